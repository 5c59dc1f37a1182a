"""The stream: what a user feeds and reads; order, back-pressure and errors by name."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable
from concurrent.futures import Future
from typing import Literal, overload

from corepipe.errors import CorepipeError, PlanError, StreamClosedError, WorkerError
from corepipe.network.model import Network
from corepipe.plan.model import Plan
from corepipe.runtime.arena import or_worker_error
from corepipe.runtime.collector import collect
from corepipe.runtime.delivery import Deliveries, deliver
from corepipe.runtime.feeding import Feeding, Frame, Writer
from corepipe.runtime.lane import Flight, Lane
from corepipe.runtime.live import OnError, WhenFull, check_choice, run_live
from corepipe.runtime.loops import run_async, run_in_order
from corepipe.runtime.pool import Pool
from corepipe.runtime.record import FrameRecord
from corepipe.runtime.results import Output, Results
from corepipe.runtime.state import State
from corepipe.runtime.threads import daemon, start
from corepipe.topology.model import Topology

_FILLING_S = 5.0
_CALLBACK_S = 5.0
"""How long closing waits for what one result was called back with."""

_log = logging.getLogger("corepipe")

_open_streams: weakref.WeakSet[Stream] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Close what nobody closed while the threads of this process are still there to do it."""
    for stream in list(_open_streams):
        with contextlib.suppress(Exception):
            stream.close()


class Stream:
    """Runs a plan: feed frames, read results in the same order.

    Args:
        network: the network to run.
        plan: how to run it.
        topology: the machine.
        on_record: called with a `FrameRecord` for every frame, in the collecting thread; it must be short, and not
            wait for results.

    Attributes:
        network: the network.
        topology: the machine, as it was when the stream was opened.
        dropped: frames that were dropped or refused because the stream was full.
        state, feeding, results: what the stream holds, what takes frames in, and what ends them; for the threads and
            loops of `corepipe.runtime`.

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
        self.network = network
        self.topology = topology
        self.dropped = 0
        self._switching = threading.Lock()
        self._ending: list[threading.Thread] = []
        """End the workers of plans that were given up."""
        self._closing_now = False
        self._steps_done = 0
        """Of `close`."""
        with or_worker_error("cannot open the stream"), contextlib.ExitStack() as undo:
            self.state = State()
            undo.callback(self._close_signals)
            lane = Lane(network, plan, topology)
            undo.callback(lane.pool.close)
            self.state.set_lanes(lane)
            undo.callback(setattr, self.state, "closed", True)
            self._deliveries: Deliveries = Deliveries()
            self.results = Results(self.state, network, self._deliveries, on_record)
            self.feeding = Feeding(self.state, self.results, network.inputs)
            reference = weakref.ref(self)
            self._deliverer = start(daemon("corepipe-delivery", deliver, reference, self._deliveries))
            self.state.deliverer = self._deliverer
            undo.callback(self._deliveries.put, None)
            self.state.collector = daemon("corepipe-collector", collect, reference)
            self._collector = start(self.state.collector)
            undo.pop_all()
        _open_streams.add(self)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if sys.is_finalizing():  # its threads are gone, perhaps with the lock; the workers end by themselves
            return
        with contextlib.suppress(Exception):
            self.close()

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """The plan at work last, before it those that still hold frames."""
        return self.state.lanes

    @property
    def plan(self) -> Plan:
        """The plan by which new frames run."""
        return self.state.lanes[-1].plan

    @property
    def pool(self) -> Pool:
        """The workers of that plan."""
        return self.state.lanes[-1].pool

    @property
    def worker_pids(self) -> dict[str, int]:
        """The process id of each worker."""
        return {w.name: c.pid for w, c in zip(self.plan.workers, self.pool.children, strict=True)}

    @property
    def window(self) -> int:
        """How many frames may be between the oldest one whose result was not delivered and the newest."""
        return self.state.window

    @property
    def on_record(self) -> Callable[[FrameRecord], None] | None:
        """What is called with each frame's record; None where nothing is, or once it raised."""
        return self.results.on_record

    @on_record.setter
    def on_record(self, on_record: Callable[[FrameRecord], None] | None) -> None:
        self.results.on_record = on_record

    @property
    def restarts(self) -> int:
        """How many workers were replaced because they died."""
        return self.state.restarts

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self.state.closed

    def submit(self, frame: Frame | Writer, timeout: float | None = None) -> Future[Output]:
        """Feed one frame; blocks while the stream is full.

        Args:
            frame: arrays for the network's inputs (copied before this returns), or a function that is given the
                input arrays in shared memory by name and fills them in place. It should not wait: with batches, frames
                that share its slot wait too.
            timeout: seconds to wait for room; None to wait as long as it takes.

        Returns:
            A future that ends, in the order of submission, with the result, with a `FrameError`, or, where the whole
            stream ended, with a `StreamClosedError` or `WorkerError`. Its callbacks run in a thread that ends all
            futures: they may submit frames, but not wait for results. Where it is cancelled, its frame is run all the
            same.

        Raises:
            FrameError: the frame does not fit the inputs; nothing was submitted.
            StreamClosedError: the stream is closed.
            WorkerError: a worker died and could not be replaced.
            TimeoutError: no room within `timeout`.
            UsageError: the stream was opened in another process, before a fork; or `on_record` submits without a
                `timeout`, and there is no room.
        """
        future: Future[Output] = Future()
        self.feeding.submit(frame, future, timeout)
        return future

    @overload
    def __call__(
        self,
        frames: Iterable[Frame | Writer],
        on_error: Literal["raise"] = "raise",
        when_full: WhenFull = "wait",
        live: bool = False,
    ) -> Generator[Output, None, None]: ...

    @overload
    def __call__(
        self, frames: Iterable[Frame | Writer], on_error: OnError, when_full: WhenFull = "wait", live: bool = False
    ) -> Generator[Output | CorepipeError, None, None]: ...

    def __call__(
        self,
        frames: Iterable[Frame | Writer],
        on_error: OnError = "raise",
        when_full: WhenFull = "wait",
        live: bool = False,
    ) -> Generator[Output | CorepipeError, None, None]:
        """Run frames from any iterable; results come in the same order.

        At most a bounded number of frames is under way, so a slow reader stops the feeding.

        Args:
            frames: consumed as there is room, in the caller's thread: while that waits for the next frame it is given
                no results.
            on_error: `raise` a frame's `FrameError` at its turn, or `return` it in place of the result.
            when_full: `wait` before the next frame is consumed while there is no room; or consume frames at their own
                pace, and `drop-oldest` of those that wait for room, or let a frame that finds none end in an `error`.
                Both are counted in `dropped`, and such a frame's error is a `StreamFullError` (where errors are raised,
                dropped frames are passed over).
            live: consume frames in another thread, so that results are given while the source has nothing; always so
                where `when_full` is not `wait`. It costs some throughput where frames take well under a millisecond.

        Raises:
            UnknownNameError: there is no such choice.
            UsageError: the stream was opened in another process, before a fork.
            FrameError: as above.
            StreamClosedError, WorkerError: the stream ended early.
            Exception: whatever `frames` raised, after the results of the frames before it.
            KeyboardInterrupt: while it waited, after the results of the frames that are under way; at once the second
                time.
        """
        check_choice("on_error", on_error, OnError)
        check_choice("when_full", when_full, WhenFull)
        self.state.check_owner()
        if live or when_full != "wait":
            return run_live(self, frames, when_full, on_error)
        return run_in_order(self, frames, on_error)

    @overload
    def aiter(
        self,
        frames: Iterable[Frame | Writer] | AsyncIterable[Frame | Writer],
        on_error: Literal["raise"] = "raise",
    ) -> AsyncGenerator[Output, None]: ...

    @overload
    def aiter(
        self, frames: Iterable[Frame | Writer] | AsyncIterable[Frame | Writer], on_error: OnError
    ) -> AsyncGenerator[Output | CorepipeError, None]: ...

    def aiter(
        self,
        frames: Iterable[Frame | Writer] | AsyncIterable[Frame | Writer],
        on_error: OnError = "raise",
    ) -> AsyncGenerator[Output | CorepipeError, None]:
        """The same for asyncio: `async for output in stream.aiter(frames)`; the event loop is never blocked.

        Queues stay short, as they do for `submit`.

        Raises:
            UnknownNameError: there is no such choice.
            UsageError: the stream was opened in another process, before a fork.
            FrameError: one frame failed, at its turn.
            StreamClosedError, WorkerError: the stream ended early.
            Exception: whatever `frames` raised, after the results of the frames before it.
        """
        check_choice("on_error", on_error, OnError)
        self.state.check_owner()
        return run_async(self, frames, on_error)

    def watch(self, watcher: Callable[[FrameRecord], None]) -> None:
        """Tell another one of each frame's record, as `on_record` is."""
        self.results.watchers.append(watcher)

    def set_rates(self, plan: Plan) -> None:
        """Share new frames out by other rates at once; nothing is loaded.

        Args:
            plan: the stream's own plan but for the rates of its routes (those that had none stay without).

        Raises:
            PlanError: it has other workers or routes, or another batch.
            UsageError: the stream was opened in another process, before a fork.
        """
        self.state.check_owner()
        with self.state.lock:
            lane = self.lanes[-1]
            if _but_rates(plan) != _but_rates(lane.plan):
                raise PlanError("these rates are of a plan with other workers or routes; switch to that plan instead")
            lane.set_rates(plan)
            self.state.set_lanes(*self.lanes)
            self.state.tell()

    def switch(self, plan: Plan, *, after: int | None = None) -> int:
        """Go on with another plan: its workers are started beside the old ones, which end with their last frames.

        Blocks until new frames run by the new plan; results keep the order of submission.

        Args:
            plan: any plan for this network and machine.
            after: the number of the plan that it is to follow (`FrameRecord.plan`), where it is not for any other one.

        Returns:
            The new plan's number.

        Raises:
            PlanError: the plan does not fit the network or the machine, or another plan than `after` is at work; what
                is at work stays.
            WorkerError: a worker could not start; the old plan stays.
            StreamClosedError: the stream was closed meanwhile.
            UsageError: the stream was opened in another process, before a fork.
        """
        self.state.check_owner()
        with self._switching:
            self.state.check_open()
            old = self.lanes[-1]
            if after not in (None, old.number):
                raise PlanError(f"plan {after} of the stream is not at work any more, but plan {old.number}")
            filling: Flight | None = None
            try:
                lane = Lane(self.network, plan, self.topology, old.number + 1, self.state.wake.fd)
            except WorkerError:
                self.state.check_open()
                raise
            try:
                with self.state.lock:
                    self.state.check_open()
                    filling = old.open
                    self.state.set_lanes(*self.lanes, lane)
                    self._come_in(old, filling)
            except BaseException:  # Ctrl-C, perhaps
                with self.state.lock:
                    if lane in self.lanes:
                        self._come_in(old, filling)
                    else:
                        lane.pool.close()
                raise
            return lane.number

    def _come_in(self, old: Lane, filling: Flight | None) -> None:
        """Let the slot go that the plan before still filled, and the collector know of another lane."""
        if filling is not None and not filling.started:
            old.start(filling)
        self.state.changed.set()
        self.state.tell()

    def let_go(self) -> None:
        """End the workers of plans that hold no frames any more (for the collector)."""
        if len(self.lanes) == 1:
            return
        with self.state.lock:
            done = [lane for lane in self.lanes[:-1] if lane.empty]
            self.state.set_lanes(*(lane for lane in self.lanes if lane not in done))
        for lane in done:
            try:
                ending = start(daemon("corepipe-closing", lane.pool.close))
            except WorkerError:
                lane.pool.close()
            else:
                self._ending = [thread for thread in self._ending if thread.is_alive()] + [ending]

    def close(self) -> None:
        """Stop the workers; frames under way end with `StreamClosedError`. Safe to call again.

        Where two threads call it, the second does not wait for the first.

        Callbacks of results are waited for, but for none longer than some seconds. Not for signal handlers, which may
        run in the middle of a call of the same stream: let them raise an exception, or tell another thread.

        Ctrl-C ends a wait in it at once; what is left is done all the same, and then it raises.
        """
        if getattr(self, "_collector", None) is None:  # it did not open
            return
        if os.getpid() != self.state.owner:
            self.state.closed = True
            return
        ended = StreamClosedError("the stream was closed before this frame's result was there")
        steps: tuple[tuple[Callable[[], None], bool], ...] = (  # whether it is done again where Ctrl-C cuts it short
            (self.state.wake.set, True),
            (self._wait_for_collector, False),
            (self._wait_for_filling, False),
            (functools.partial(self.results.fail_all, ended), True),
            (functools.partial(self._deliveries.put, None), True),
            (self._close_pools, True),
            (self._wait_for_pools, False),
            (self._close_signals, True),
            (self._wait_for_deliverer, False),
        )
        interrupt: KeyboardInterrupt | None = None
        mine = False
        try:
            with self.state.lock:
                if self._closing_now:
                    return
                self.state.closed = self._closing_now = mine = True
                self.state.tell()
            while self._steps_done < len(steps):
                step, again = steps[self._steps_done]
                try:
                    step()
                except KeyboardInterrupt as error:
                    interrupt = error
                    if again:
                        continue
                self._steps_done += 1
        finally:
            if mine:
                self._closing_now = False
        if interrupt is not None:
            raise interrupt

    def _wait_for_collector(self) -> None:
        if threading.current_thread() is not self._collector:
            self._collector.join()

    def _wait_for_filling(self) -> None:
        with self.state.lock:
            self.state.sleep_until(lambda: not any(lane.filling for lane in self.lanes), _FILLING_S)

    def _close_pools(self) -> None:
        for lane in self.lanes:
            lane.pool.close()

    def _wait_for_pools(self) -> None:
        for ending in self._ending:
            ending.join()

    def _close_signals(self) -> None:
        with self._switching:  # a switch under way gives up by `wake`, which must not be another file by then
            self.state.wake.close()
            self.state.changed.close()

    def _wait_for_deliverer(self) -> None:
        if threading.current_thread() is not self._deliverer:
            delivered = -1
            while self._deliverer.is_alive() and self.state.delivered > delivered:
                delivered = self.state.delivered
                self._deliverer.join(_CALLBACK_S)
            if self._deliverer.is_alive():
                _log.warning("the callback of a result has not returned; the stream is closed without waiting for it")


def _but_rates(plan: Plan) -> tuple[object, ...]:
    """What of a plan stays where only its rates change."""
    return plan.batch, plan.workers, [route.hops for route in plan.routes]
