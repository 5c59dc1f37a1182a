"""The stream: frames in, results out, in order, with back-pressure and errors by name."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from corepipe.errors import CorepipeError, FrameError, StreamClosedError, UsageError, WorkerError
from corepipe.network.inputs import check_frame
from corepipe.network.model import Network
from corepipe.plan.model import Plan
from corepipe.runtime import messages
from corepipe.runtime.arena import Slot, or_worker_error
from corepipe.runtime.collector import collect
from corepipe.runtime.delivery import Deliveries, Ended, deliver
from corepipe.runtime.dispatch import Dispatcher
from corepipe.runtime.pool import Pool
from corepipe.topology.model import Topology

Array = NDArray[Any]
Frame = Array | Mapping[str, Array] | Sequence[Array]
"""One frame: an array, arrays by input name, or arrays in the order of the network's inputs."""
Output = Array | dict[str, Array]
"""One result: an array where the network has one output, else arrays by output name."""
_log = logging.getLogger("corepipe")
_FILLING_S = 5.0

Writer = Callable[[dict[str, Array]], None]
"""Fills a frame's input arrays in place."""


@dataclass(frozen=True)
class HopTime:
    """What one worker did for one frame, on CLOCK_MONOTONIC in nanoseconds."""

    worker: str
    start: int
    stop: int
    started_ns: int
    ended_ns: int


@dataclass(frozen=True)
class FrameRecord:
    """The life of one frame, on CLOCK_MONOTONIC in nanoseconds."""

    frame: int
    route: int
    submitted_ns: int
    done_ns: int
    hops: tuple[HopTime, ...]
    failed: bool = False

    @property
    def latency_s(self) -> float:
        """Seconds from submission to the result's arrival in the user's process."""
        return (self.done_ns - self.submitted_ns) * 1e-9


@dataclass(frozen=True)
class Submitted:
    """A frame that was submitted."""

    sequence: int
    future: Future[Output]
    submitted_ns: int
    own: bool = False
    """Whether only the stream itself knows the future."""


@dataclass
class Flight:
    """A slot under way.

    Attributes:
        route, slot: its route, and the number of the slot.
        frames: the frames in the slot, in order.
        kills: how many workers died on it.
        waiting: frames that came to grief together and now run one by one, each with its inputs; after those in the
            slot.
        started: whether it is on its way (or else still takes frames).
        apart: whether its frame has the slot to itself: where frames share slots, what an earlier frame left beside it
            may be at fault.
    """

    route: int
    slot: int
    frames: list[Submitted] = field(default_factory=list)
    kills: int = 0
    waiting: list[tuple[Submitted, dict[str, Array]]] = field(default_factory=list)
    started: bool = False
    apart: bool = False

    @property
    def sequence(self) -> int:
        """The number of its first frame."""
        return self.frames[0].sequence


class Stream:
    """Runs a plan: feed frames, read results in the same order.

    Args:
        network: the network to run.
        plan: how to run it.
        topology: the machine.
        on_record: called with a `FrameRecord` for every frame, in the collecting thread; keep it short.

    Raises:
        PlanError: the plan does not fit the network or the machine.
        WorkerError: a worker could not start.
        TopologyError: the machine is not at hand.

    Example:
        >>> with Stream(network, plan, topology) as stream:                  # doctest: +SKIP
        ...     for output in stream(frames):
        ...         print(output.argmax())
    """

    def __init__(
        self,
        network: Network,
        plan: Plan,
        topology: Topology,
        *,
        on_record: Callable[[FrameRecord], None] | None = None,
    ) -> None:
        self._owner = os.getpid()
        self.network = network
        self.plan = plan
        self.on_record = on_record
        self.restarts = 0
        self._dispatcher = Dispatcher(plan, plan.batch * sum(t.nbytes or 0 for t in network.outputs))
        self._window = self._dispatcher.window * plan.batch
        self.pool = Pool(network, plan, topology, self._dispatcher.slots)
        self._workers_of = [{hop.worker for hop in route.hops} for route in plan.routes]
        self._state = threading.Condition()
        self._free = list(range(self._dispatcher.slots))
        self._flights: dict[int, Flight] = {}
        self._open: Flight | None = None
        self._ended: dict[int, Ended] = {}
        self._deliveries: Deliveries = Deliveries()
        self._next_sequence = 0
        self._next_delivery = 0
        self._delivered = 0
        self._filling = 0
        self._paused = False
        self._generation = 0
        self._broken: CorepipeError | None = None
        self.closed = False
        with or_worker_error("cannot open the stream"), contextlib.ExitStack() as undo:
            undo.callback(self.pool.close)
            undo.callback(setattr, self, "closed", True)
            self.wake_fd, self._wake_write = os.pipe()
            undo.callback(os.close, self.wake_fd)
            undo.callback(os.close, self._wake_write)
            reference = weakref.ref(self)
            self._deliverer = threading.Thread(
                target=deliver, args=(reference, self._deliveries), name="corepipe-delivery", daemon=True
            )
            undo.callback(self._deliveries.put, None)
            self._deliverer.start()
            self._collector = threading.Thread(
                target=collect, args=(reference,), name="corepipe-collector", daemon=True
            )
            self._collector.start()
            undo.pop_all()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    @property
    def worker_pids(self) -> dict[str, int]:
        """The process id of each worker."""
        return {w.name: c.pid for w, c in zip(self.plan.workers, self.pool.children, strict=True)}

    def submit(self, frame: Frame | Writer, timeout: float | None = None) -> Future[Output]:
        """Feed one frame; blocks while the stream is full.

        Args:
            frame: arrays for the network's inputs (copied before this returns), or a function that is given the
                input arrays in shared memory by name and fills them in place.
            timeout: seconds to wait for room; None to wait as long as it takes.

        Returns:
            A future that ends, in the order of submission, with the result or with a `FrameError`. Its callbacks run
            in a thread that ends all futures: they may submit frames, but not wait for results.

        Raises:
            FrameError: the frame does not fit the inputs; nothing was submitted.
            StreamClosedError: the stream is closed.
            WorkerError: a worker died and could not be replaced.
            TimeoutError: no room within `timeout`.
            UsageError: the stream was opened in another process, before a fork.
        """
        return self._submit(frame, timeout)

    def _submit(self, frame: Frame | Writer, timeout: float | None = None, own: bool = False) -> Future[Output]:
        if os.getpid() != self._owner:
            raise UsageError("a stream belongs to the process that opened it; open one in the forked process")
        with self._state:
            if not self._state.wait_for(lambda: self._broken or self.closed or self._has_room(), timeout):
                raise TimeoutError(f"the stream had no room within {timeout} s")
            self._check_open()
            flight = self._open or Flight(self._dispatcher.choose(), self._free.pop())
            self._open = None
            self._filling += 1
        slot = self.pool.arena.slots[flight.slot]
        try:
            self._fill(slot, frame, len(flight.frames))
        except BaseException:
            with self._state:
                self._filling -= 1
                self._put_back(flight)
            raise
        with self._state:
            self._filling -= 1
            if self.closed or self._broken:
                self._put_back(flight)
                self._check_open()
            future: Future[Output] = Future()
            flight.frames.append(Submitted(self._next_sequence, future, time.monotonic_ns(), own))
            self._next_sequence += 1
            self._flights[flight.slot] = flight
            self._state.notify_all()
            if len(flight.frames) == self.plan.batch:
                self._start(flight)
            else:
                self._open = flight
                self._start_if_idle()
        return future

    def _put_back(self, flight: Flight) -> None:
        """What a frame that was not fed leaves: a flight that still takes frames, or nothing."""
        if not flight.frames:
            self._release(flight.slot, flight.route)
        elif self._flights.get(flight.slot) is flight:
            self._open = flight
            self._start_if_idle()
            self._state.notify_all()

    def _start_if_idle(self) -> None:
        """Let a slot that is not full go if its workers have nothing else to do: more frames may never come."""
        if self._open is None:
            return
        mine = self._workers_of[self._open.route]
        if not any(f.started and mine & self._workers_of[f.route] for f in self._flights.values()):
            self._start(self._open)

    def __call__(
        self, frames: Iterable[Frame | Writer], on_error: Literal["raise", "return"] = "raise"
    ) -> Iterator[Output | CorepipeError]:
        """Run frames from any iterable; results come in the same order.

        At most a bounded number of frames is under way, so a slow reader stops the feeding.

        Args:
            frames: consumed as there is room, in the caller's thread.
            on_error: `raise` a frame's `FrameError` at its turn, or `return` it in place of the result.

        Raises:
            FrameError: as above.
            StreamClosedError, WorkerError: the stream ended early.
            Exception: whatever `frames` raised, after the results of the frames before it.
        """
        source = iter(frames)
        waiting: deque[Future[Output]] = deque()
        more = True
        failure: Exception | None = None
        while more or waiting:
            if waiting:
                self._wait_for_room_or(waiting[0], more and len(waiting) < self._window)
                if waiting[0].done():
                    yield _outcome(waiting.popleft(), on_error)
                    continue
            if more:
                try:
                    frame = next(source)
                except StopIteration:
                    more = False
                    continue
                except Exception as error:
                    more, failure = False, error
                    continue
                try:
                    waiting.append(self._submit(frame, own=True))
                except FrameError as error:
                    waiting.append(_failed(error))
                except Exception as error:
                    more, failure = False, error
        if failure is not None:
            raise failure

    def _wait_for_room_or(self, oldest: Future[Output], room_helps: bool) -> None:
        """Wait until the oldest frame has its result or, if that helps, another frame can be fed."""
        with self._state:
            self._state.wait_for(lambda: oldest.done() or (room_helps and self._has_room()))

    async def aiter(
        self,
        frames: Iterable[Frame | Writer] | AsyncIterable[Frame | Writer],
        on_error: Literal["raise", "return"] = "raise",
    ) -> AsyncIterator[Output | CorepipeError]:
        """The same for asyncio: `async for output in stream.aiter(frames)`; the event loop is never blocked.

        Raises:
            FrameError: one frame failed, at its turn.
            Exception: whatever `frames` raised, after the results of the frames before it.
        """
        room = asyncio.Semaphore(self._window)
        fed: asyncio.Queue[Future[Output] | None] = asyncio.Queue()

        async def feed() -> None:
            try:
                async for frame in _as_async(frames):
                    await room.acquire()
                    try:
                        fed.put_nowait(await asyncio.to_thread(self.submit, frame))
                    except FrameError as error:
                        fed.put_nowait(_failed(error))
            finally:
                fed.put_nowait(None)

        feeder = asyncio.create_task(feed())
        try:
            while (future := await fed.get()) is not None:
                with contextlib.suppress(CorepipeError):
                    await asyncio.wrap_future(future)
                room.release()
                yield _outcome(future, on_error)
            await feeder
        finally:
            feeder.cancel()

    def close(self) -> None:
        """Stop the workers; frames under way end with `StreamClosedError`. Safe to call again."""
        if getattr(self, "_collector", None) is None or os.getpid() != self._owner:
            self.closed = True
            return
        with self._state:
            if self.closed:
                return
            self.closed = True
            self._state.notify_all()
        os.write(self._wake_write, b"x")
        if threading.current_thread() is not self._collector:
            self._collector.join()
        with self._state:
            self._state.wait_for(lambda: self._filling == 0, _FILLING_S)
        self._fail_all(StreamClosedError("the stream was closed before this frame's result was there"))
        self._deliveries.put(None)
        self.pool.close()
        os.close(self.wake_fd)
        os.close(self._wake_write)
        if threading.current_thread() is not self._deliverer:
            self._deliverer.join()

    def pause(self) -> None:
        """Hold new frames back (for the collector)."""
        with self._state:
            self._paused = True

    def resume(self, restarted: int) -> None:
        """Run every frame under way again from its start, and take new ones (for the collector)."""
        with self._state:
            self.restarts += restarted
            self._paused = False
            for flight in self.flights_under_way():
                if flight.started:
                    self._start(flight)
            self._start_if_idle()
            self._state.notify_all()

    def flights_under_way(self) -> list[Flight]:
        """The slots with frames that have no result yet, oldest first (for the collector)."""
        return sorted(self._flights.values(), key=lambda flight: flight.sequence)

    def next_generation(self) -> int:
        """A number for the next round of fences (for the collector)."""
        self._generation += 1
        return self._generation

    def give_up(self, error: CorepipeError) -> None:
        """End every frame under way with `error`, and refuse new ones (for the collector)."""
        with self._state:
            self._broken = error
        self._fail_all(error)

    def _check_open(self) -> None:
        if self._broken:
            raise WorkerError(str(self._broken)) from self._broken
        if self.closed:
            raise StreamClosedError("the stream is closed; open a new one")

    def _has_room(self) -> bool:
        if self.plan.batch > 1 and self._filling:
            return False
        if self._open is None and (self._paused or not self._free or not self._dispatcher.has_room()):
            return False
        # Deliveries wait for a callback that submits, so that callback must not wait for deliveries.
        in_callback = threading.current_thread() is self._deliverer
        return in_callback or self._next_sequence - self._delivered + self._filling < self._window

    def _release(self, slot: int, route: int) -> None:
        self._free.append(slot)
        self._dispatcher.done(route)
        self._state.notify_all()

    def _start(self, flight: Flight) -> None:
        """Send a slot on its way; while workers are being replaced, `resume` does so."""
        flight.started = True
        if flight is self._open:
            self._open = None
        if self._paused:
            return
        hops, slot = self.plan.routes[flight.route].hops, self.pool.arena.slots[flight.slot]
        slot.times[: len(hops)] = 0
        slot.count = len(flight.frames)
        first = self.pool.number(hops[0].worker)
        self.pool.send(first, messages.RUN, flight.route, flight.slot, flight.sequence)

    def _fill(self, slot: Slot, frame: Frame | Writer, position: int) -> None:
        inputs = self.network.inputs
        views = {t.name: slot.view(t.name, position) for t in inputs}
        if callable(frame):
            frame(views)
            return
        if isinstance(frame, list | tuple):
            if len(frame) != len(inputs):
                raise FrameError(f"{len(frame)} arrays for the {len(inputs)} inputs {[t.name for t in inputs]}")
            frame = {t.name: array for t, array in zip(inputs, frame, strict=True)}
        arrays = check_frame(cast("Array | Mapping[str, Array]", frame), inputs, "frame")
        for name, view in views.items():
            np.copyto(view, arrays[name])

    def _result(self, slot: Slot, position: int) -> Output:
        outputs = {t.name: slot.view(t.name, position).copy() for t in self.network.outputs}
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def finish(self, slot_number: int, sequence: int, failed: bool) -> None:
        """Take results or errors out of a slot, and deliver what is next in order (for the collector)."""
        flight = self._flights.get(slot_number)
        if flight is None or flight.sequence != sequence:
            return
        slot = self.pool.arena.slots[slot_number]
        if not failed:
            results = [self._result(slot, position) for position in range(len(flight.frames))]
            self._end(flight, [Ended(f.future, r, own=f.own) for f, r in zip(flight.frames, results, strict=True)])
        elif self.plan.batch > 1 and not flight.apart:
            self.run_apart(flight)
        else:
            self.fail(flight, FrameError(f"frame {sequence}: {slot.error}"))

    def run_apart(self, flight: Flight) -> None:
        """Run the frames of a slot again one by one, so that the one at fault fails alone (for the collector)."""
        slot = self.pool.arena.slots[flight.slot]
        inputs = [{t.name: slot.view(t.name, i).copy() for t in self.network.inputs} for i in range(len(flight.frames))]
        with self._state:
            flight.waiting = list(zip(flight.frames, inputs, strict=True))
            self._run_next_apart(flight)

    def _run_next_apart(self, flight: Flight) -> None:
        """The next of the frames that run one by one; copies of it fill the slot."""
        frame, inputs = flight.waiting.pop(0)
        flight.frames, flight.kills, flight.apart = [frame], 0, True
        slot = self.pool.arena.slots[flight.slot]
        for name, array in inputs.items():
            for position in range(self.plan.batch):
                np.copyto(slot.view(name, position), array)
        self._start(flight)

    def fail(self, flight: Flight, error: CorepipeError) -> None:
        """End the frames of a slot with an error (for the collector)."""
        self._end(flight, [Ended(frame.future, error=error, own=frame.own) for frame in flight.frames])

    def delivered(self) -> None:
        """One more future has ended (for the delivering thread)."""
        with self._state:
            self._delivered += 1
            self._state.notify_all()

    def _end(self, flight: Flight, ended: Sequence[Ended]) -> None:
        self._record(flight, self.pool.arena.slots[flight.slot], ended[0].error is not None)
        with self._state:
            if self._flights.get(flight.slot) is not flight:
                return
            self._ended |= {frame.sequence: end for frame, end in zip(flight.frames, ended, strict=True)}
            if flight.waiting:
                self._run_next_apart(flight)
            else:
                del self._flights[flight.slot]
                self._release(flight.slot, flight.route)
                self._start_if_idle()
            while (following := self._ended.pop(self._next_delivery, None)) is not None:
                if following.own and self._delivered == self._next_delivery:
                    following.end()
                    self._delivered += 1
                else:
                    self._deliveries.put(following)
                self._next_delivery += 1
            self._state.notify_all()

    def _record(self, flight: Flight, slot: Slot, failed: bool) -> None:
        """Tell `on_record` of each frame; of the time that a worker spent on a slot, each has an equal part."""
        if self.on_record is None:
            return
        count, now = len(flight.frames), time.monotonic_ns()
        times = slot.times.tolist()
        hops = self.plan.routes[flight.route].hops
        for position, frame in enumerate(flight.frames):
            parts = tuple(
                HopTime(hop.worker, hop.start, hop.stop, *_share(began, ended, position, count))
                for hop, (began, ended) in zip(hops, times, strict=False)
            )
            record = FrameRecord(frame.sequence, flight.route, frame.submitted_ns, now, parts, failed)
            try:
                self.on_record(record)
            except Exception:
                _log.exception("on_record failed for frame %d; it is not called any more", frame.sequence)
                self.on_record = None
                return

    def _fail_all(self, error: CorepipeError) -> None:
        """End everything that has not ended, in order."""
        with self._state:
            flights = self._flights.values()
            frames = [frame for f in flights for frame in (*f.frames, *(frame for frame, _ in f.waiting))]
            failed = {frame.sequence: Ended(frame.future, error=error) for frame in frames}
            failed |= {sequence: Ended(ended.future, error=error) for sequence, ended in self._ended.items()}
            self._flights.clear()
            self._open = None
            self._ended.clear()
            for _, ended in sorted(failed.items()):
                self._deliveries.put(ended)
            self._state.notify_all()


def _share(began: int, ended: int, position: int, count: int) -> tuple[int, int]:
    """Start and end of one of `count` equal parts of a time; the time itself where it has not ended."""
    if not ended:
        return began, ended
    return began + (ended - began) * position // count, began + (ended - began) * (position + 1) // count


def _failed(error: CorepipeError) -> Future[Output]:
    future: Future[Output] = Future()
    future.set_exception(error)
    return future


def _outcome(future: Future[Output], on_error: str) -> Output | CorepipeError:
    if on_error == "return":
        error = future.exception()
        if isinstance(error, FrameError):
            return error
    return future.result()


async def _as_async(frames: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(frames, AsyncIterable):
        async for frame in frames:
            yield frame
        return
    source, end = iter(frames), object()
    while (frame := await asyncio.to_thread(next, source, end)) is not end:
        yield frame
