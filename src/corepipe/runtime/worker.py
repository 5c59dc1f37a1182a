"""The worker process: compiles its segments, then serves hops until told to stop."""

from __future__ import annotations

import contextlib
import heapq
import math
import mmap
import os
import select
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from corepipe import engine
from corepipe.engine.base import Compiled
from corepipe.errors import CorepipeError, EngineError
from corepipe.runtime import messages
from corepipe.runtime.arena import Arena, Layout, Slot
from corepipe.runtime.child import report
from corepipe.runtime.huge_pages import use_huge_pages


def serve(config: dict[str, Any]) -> None:
    """Compile, report ready, and serve; see `corepipe.runtime.pool` for the configuration.

    What the process that this one was forked off has compiled (`zygote`) is in `ready`.
    """
    ready: Ready = config.get("ready") or Ready(config)
    segments = ready.segments(config["segments"], config["threads"])
    hops = {(route, hop): ([segments[i] for i in indices], to) for route, hop, indices, to in config["hops"]}
    use_huge_pages()
    report(config["status_fd"], ready=True)
    _loop(config["number"], config["inbox_fd"], config["results_fd"], hops, ready.arena, config["most_held"])


class Ready:
    """The slots, and the segments that are compiled and warm, by `model_fd`."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.arena = Arena(Layout.from_dict(config["layout"]), config["arena_fd"])
        self._scratch = _Scratch(self.arena)
        self._segments: dict[int, _Segment] = {}

    def segments(self, specs: list[dict[str, Any]], threads: int) -> list[_Segment]:
        """Compile those that are not ready yet, and run each once."""
        for spec in specs:
            if spec["model_fd"] not in self._segments:
                self._segments[spec["model_fd"]] = _Segment(spec, threads, self._scratch)
            self._segments[spec["model_fd"]].warm_up()
        return [self._segments[spec["model_fd"]] for spec in specs]


class _Segment:
    """One compiled segment and its bindings, one for each slot and batch of frames in it."""

    def __init__(self, spec: dict[str, Any], threads: int, memory: _Scratch) -> None:
        self._batch: int = spec["batch"]
        self._inputs: list[_Tensor] = spec["inputs"]
        self._outputs: list[_Tensor] = spec["outputs"]
        self._memory = memory
        with mmap.mmap(spec["model_fd"], 0, prot=mmap.PROT_READ) as data:
            model = bytes(data)
        os.close(spec["model_fd"])
        self._compiled: Compiled = engine.get(spec["engine"]).compile(model, threads)
        self._bound: list[list[Callable[[], None]]] = [[] for _ in memory.arena.slots]

    def run(self, number: int) -> None:
        """Run this segment on all frames of a slot, a batch at a time."""
        calls, slot = self._bound[number], self._memory.arena.slots[number]
        needed = -(-slot.count // self._batch)
        while len(calls) < needed:
            calls.append(self._bind(slot, len(calls) * self._batch))
        for call in calls[:needed]:
            call()

    def _bind(self, slot: Slot, first: int) -> Callable[[], None]:
        return self._compiled.bind(
            {tensor[0]: self._memory.view(slot, tensor, first, self._batch) for tensor in self._inputs},
            {tensor[0]: self._memory.target(slot, tensor, first, self._batch) for tensor in self._outputs},
        )

    def warm_up(self) -> None:
        """Run once in private memory, so that the first frame does not pay for the engine's first allocations.

        A model may refuse zeros; whether it takes the frames is for the frames to tell.
        """
        memory, slot, size = self._memory, self._memory.arena.slots[0], self._batch
        inputs = {tensor[0]: np.zeros_like(memory.view(slot, tensor, 0, size)) for tensor in self._inputs}
        outputs = {tensor[0]: _like(memory.target(slot, tensor, 0, size)) for tensor in self._outputs}
        run = self._compiled.bind(inputs, outputs)
        with contextlib.suppress(EngineError):
            run()


_Tensor = tuple[str, str, list[int] | None]
"""Name, type and shape of one frame."""


class _Scratch:
    """The slots, and the worker's own memory for what one part of a hop hands to another.

    That is the same for all slots, so that it stays in the caches of the worker's cores.
    """

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self._shared = {place.name for place in arena.layout.places}
        self._own: dict[str, np.ndarray[Any, Any]] = {}

    def view(self, slot: Slot, tensor: _Tensor, first: int, frames: int) -> Any:
        """Memory of `frames` frames from the frame `first` on, as one array."""
        name, dtype, shape = tensor
        if name in self._shared or shape is None:
            return slot.view(name, first, frames)
        if name not in self._own:
            self._own[name] = np.empty((self.arena.layout.frames, *shape), dtype)
        part = self._own[name][first : first + frames]
        return part[0] if frames == 1 else part.reshape(frames * shape[0], *shape[1:])

    def target(self, slot: Slot, tensor: _Tensor, first: int, frames: int) -> Any:
        """Where an engine is to write: the same memory, or a function that stores an output of unknown shape."""
        if tensor[0] in self._shared:
            return slot.target(tensor[0], first, frames)
        return self.view(slot, tensor, first, frames)


def _like(target: Any) -> Any:
    return np.empty_like(target) if isinstance(target, np.ndarray) else lambda array: None


_NEWS = 0.02
"""Share of the latest time in what a hop usually takes: small, as which of two hops is the shorter hardly changes."""


class _Usual:
    """How long each hop usually takes, in ns; hops of the same segments take as long.

    Args:
        segments: what runs, by route and hop.

    Attributes:
        alike: whether all hops run the same segments: then nothing is kept, since nothing would be chosen by it.
    """

    def __init__(self, segments: dict[tuple[int, int], tuple[int, ...]]) -> None:
        self._segments = segments
        self.alike = len(set(segments.values())) < 2
        self._seen: dict[tuple[int, ...], tuple[int, float]] = {}

    def note(self, hop: int, route: int, ns: int) -> None:
        """A hop took so long."""
        if self.alike:
            return
        key = self._segments[route, hop]
        count, mean = self._seen.get(key, (0, 0.0))
        self._seen[key] = count + 1, mean + max(_NEWS, 1 / (count + 1)) * (ns - mean)

    def ns(self, hop: int, route: int) -> float:
        """What is known; 0 of what has not run."""
        return self._seen.get(self._segments.get((route, hop), ()), (0, 0.0))[1]


_Waiting = tuple[int, int, int, int, int]
"""Frame, hop, route, slot and kind of message."""


class _Inbox:
    """What waits at a worker: the shortest hop first, the oldest frame among hops that take as long.

    Short hops feed other workers, which would wait behind long ones. A frame that `most_passed` later ones are ahead of
    comes first.

    Between two hops everything that this process does has to come from memory: what ran pushed it out of the caches. So
    frames wait in a heap for each hop of each route, of which mostly there is one.

    Attributes:
        waiting: how many hops and fences wait, as far as was looked; none once this worker is to end.
    """

    def __init__(self, fd: int, usual: _Usual | None = None, most_passed: float = math.inf) -> None:
        self.waiting = 0
        self._fd = fd
        self._most_passed = most_passed
        self._newest = 0
        self._usual = usual or _Usual({})
        self._heaps: dict[tuple[int, int], list[_Waiting]] = {}
        self._stopped = False
        self._poller = select.poll()
        self._poller.register(fd, select.POLLIN)

    def look(self) -> None:
        """Take in what has arrived by now."""
        while self._poller.poll(0) and not self._stopped:
            self._take()

    def next_hop(self) -> _Waiting | int:
        """The next of those that wait, or that come; (_LAST, generation, ...) for a fence, last; or STOP.

        Where all hops are alike, nothing that has come since `look` would be taken before what waits.
        """
        if not self._usual.alike:
            self.look()
        while not (self.waiting or self._stopped):
            self._take()
            self.look()
        if self._stopped:
            return messages.STOP
        key = self._first()
        heap = self._heaps[key]
        found = heapq.heappop(heap)
        if not heap:
            del self._heaps[key]
        self.waiting -= 1
        return found

    def next_ns(self) -> float:
        """How long the hop that comes next usually takes, as far as that is known; call only where one waits."""
        return 0.0 if self._usual.alike else self._usual.ns(*self._first())

    def _first(self) -> tuple[int, int]:
        """The hop and route that the next frame waits for."""
        if len(self._heaps) == 1:
            return next(iter(self._heaps))
        oldest = min(self._heaps, key=lambda key: self._heaps[key][0])
        passed = self._newest - self._heaps[oldest][0][0]
        return oldest if passed > self._most_passed else min(self._heaps, key=self._rank)

    def _rank(self, key: tuple[int, int]) -> tuple[bool, float, int]:
        frame = self._heaps[key][0][0]
        return frame == _LAST, self._usual.ns(*key), frame

    def _take(self) -> None:
        """Take in what has arrived; wait where nothing has."""
        arrived = list(messages.receive(self._fd))
        for kind, hop, route, slot, frame in arrived or _END:
            if kind in (messages.RUN, messages.RUN_HOLD):
                heapq.heappush(self._heaps.setdefault((hop, route), []), (frame, hop, route, slot, kind))
                self._newest = max(self._newest, frame)
            elif kind == messages.STOP:
                self._stopped, self.waiting = True, 0
                return
            else:
                # The stream is held back while fences are under way: nothing else comes after one.
                heapq.heappush(self._heaps.setdefault(_FENCES, []), (_LAST, frame, 0, 0, kind))
            self.waiting += 1


_FENCES = (-1, -1)
"""In place of a hop and a route."""

_LAST = 2**64
"""Sorts behind every frame."""

_HOLD_NS = int(messages.HOLD_S * 1e9)

_END = ((messages.STOP, 0, 0, 0, 0),)
"""What the end of the file stands for."""


class _Outbox:
    """Messages to the user's process. Word of a result may wait for that of the next one, where that is allowed.

    The user's process runs on the workers' cores: whenever it wakes up, it takes a core and its caches from one of
    them. While at least two hops wait here, this worker can do without it.
    """

    def __init__(self, fd: int, inbox: _Inbox, most_held: int = messages.MOST_HELD) -> None:
        self._fd = fd
        self._inbox = inbox
        self._most_bytes = most_held * len(messages.pack(messages.DONE, 0, 0, 0, 0))
        self._held = b""
        self._since = 0

    def send(self, kind: int, hop: int = 0, route: int = 0, slot: int = 0, frame: int = 0) -> None:
        """Send a message at once, behind those that are held."""
        self._let_go(messages.pack(kind, hop, route, slot, frame))

    def hold(self, hop: int, route: int, slot: int, frame: int, began: int, ended: int) -> None:
        """Tell that a frame has its result, now or with later ones."""
        if not self._held:
            self._since = ended
        self._held += messages.pack(messages.DONE, hop, route, slot, frame)
        self.settle(began, ended)

    def settle(self, began: int, ended: int) -> None:
        """After a hop: let go what is held, unless it may wait for the next hop."""
        if not self._held:
            return
        if self._inbox.waiting >= 2 and len(self._held) < self._most_bytes:
            next_end = ended + (self._inbox.next_ns() or ended - began)
            if next_end - self._since <= _HOLD_NS:
                return
        self._let_go()

    def _let_go(self, message: bytes = b"") -> None:
        os.write(self._fd, self._held + message)
        self._held = b""


def _loop(
    number: int,
    inbox_fd: int,
    results: int,
    hops: dict[tuple[int, int], tuple[list[_Segment], int]],
    arena: Arena,
    most_held: int = messages.MOST_HELD,
) -> None:
    clock, usual = time.monotonic_ns, _Usual({key: tuple(map(id, segments)) for key, (segments, _) in hops.items()})
    inbox = _Inbox(inbox_fd, usual, messages.MOST_PASSED * len(arena.slots) * arena.layout.frames)
    outbox = _Outbox(results, inbox, most_held)
    while True:
        found = inbox.next_hop()
        if isinstance(found, int):
            return
        frame, hop, route, slot_number, kind = found
        if frame == _LAST:
            outbox.send(messages.FENCED, 0, 0, number, hop)
            continue
        segments, to = hops[route, hop]
        slot = arena.slots[slot_number]
        began = clock()
        slot.begin(hop, began)
        try:
            for segment in segments:
                segment.run(slot_number)
        except Exception as error:
            slot.error = str(error) if isinstance(error, CorepipeError) else f"{type(error).__name__}: {error}"
            outbox.send(messages.FAILED, hop, route, slot_number, frame)
            inbox.look()
            continue
        ended = clock()
        slot.end(hop, ended)
        inbox.look()
        usual.note(hop, route, ended - began)
        if to != results:
            messages.send(to, kind, hop + 1, route, slot_number, frame)
            outbox.settle(began, ended)
        elif kind == messages.RUN_HOLD:
            outbox.hold(hop, route, slot_number, frame, began, ended)
        else:
            outbox.send(messages.DONE, hop, route, slot_number, frame)
