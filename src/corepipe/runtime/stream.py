"""The stream: frames in, results out, in order, with back-pressure and errors by name."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from corepipe.errors import CorepipeError, FrameError, PlanError, StreamClosedError, UsageError, WorkerError
from corepipe.network.inputs import check_frame
from corepipe.network.model import Network
from corepipe.plan.model import Plan
from corepipe.runtime.arena import Slot, or_worker_error
from corepipe.runtime.collector import collect
from corepipe.runtime.delivery import Deliveries, Ended, Outcome, deliver
from corepipe.runtime.lane import Flight, Lane, Submitted
from corepipe.runtime.live import OnError, WhenFull, check_choice, run_live
from corepipe.runtime.loops import run_async, run_in_order
from corepipe.runtime.pool import Pool
from corepipe.runtime.record import FrameRecord, records_of
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
        self.on_record = on_record
        self._watchers: list[Callable[[FrameRecord], None]] = []
        self.restarts = 0
        self.dropped = 0
        """Frames that were dropped or refused because the stream was full."""
        self.topology = topology
        """The machine, as it was when the stream was opened."""
        self.lanes: tuple[Lane, ...] = ()
        """The plan at work last, before it those that still hold frames."""
        self.window = 0
        """How many frames may be between the oldest one whose result was not delivered and the newest."""
        self._lock = threading.RLock()
        self._state = threading.Condition(self._lock)
        self._switching = threading.Lock()
        self._ended: dict[int, Ended] = {}
        self._deliveries: Deliveries = Deliveries()
        self._next_sequence = 0
        self._next_delivery = 0
        self._delivered = 0
        self._generation = 0
        self._sleepers = 0
        """How many wait to be told; never fewer than do."""
        self._briefly = 0
        """How many wait for room in queues that stay short."""
        self._broken: CorepipeError | None = None
        self._closing: list[threading.Thread] = []
        self._closing_now = False
        self._steps_done = 0
        """Of `close`."""
        self.closed = False
        with or_worker_error("cannot open the stream"), contextlib.ExitStack() as undo:
            self.lanes = (Lane(network, plan, topology),)
            undo.callback(self.pool.close)
            self._set_lanes(*self.lanes)
            undo.callback(setattr, self, "closed", True)
            self.wake_fd, self._wake_write = os.pipe()
            undo.callback(os.close, self.wake_fd)
            undo.callback(os.close, self._wake_write)
            self.changed_fd, self._changed_write = os.pipe()
            undo.callback(os.close, self.changed_fd)
            undo.callback(os.close, self._changed_write)
            reference = weakref.ref(self)
            self._pipe_fds = [self.wake_fd, self._wake_write, self.changed_fd, self._changed_write]
            self._deliverer = _started("corepipe-delivery", deliver, reference, self._deliveries)
            undo.callback(self._deliveries.put, None)
            self._collector = _started("corepipe-collector", collect, reference)
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
    def plan(self) -> Plan:
        """The plan by which new frames run."""
        return self.lanes[-1].plan

    @property
    def pool(self) -> Pool:
        """The workers of that plan."""
        return self.lanes[-1].pool

    def watch(self, watcher: Callable[[FrameRecord], None]) -> None:
        """Tell another one of each frame's record, as `on_record` is; it must not raise."""
        self._watchers.append(watcher)

    def set_rates(self, plan: Plan) -> None:
        """Share new frames out by other rates at once; nothing is loaded.

        Args:
            plan: the stream's own plan but for the rates of its routes (those that had none stay without).

        Raises:
            PlanError: it has other workers or routes, or another batch.
        """
        lane = self.lanes[-1]
        if _but_rates(plan) != _but_rates(lane.plan):
            raise PlanError("these rates are of a plan with other workers or routes; switch to that plan instead")
        with self._lock:
            lane.set_rates(plan)
            self._set_lanes(*self.lanes)
            self._tell()

    def switch(self, plan: Plan) -> None:
        """Go on with another plan: its workers are started beside the old ones, which end with their last frames.

        Blocks until new frames run by the new plan; results keep the order of submission.

        Args:
            plan: any plan for this network and machine.

        Raises:
            PlanError: the plan does not fit the network or the machine; the old one stays.
            WorkerError: a worker could not start; the old plan stays.
            StreamClosedError: the stream was closed meanwhile.
        """
        with self._switching:
            self._check_open()
            try:
                lane = Lane(self.network, plan, self.topology, self.lanes[-1].number + 1, self.wake_fd)
            except WorkerError:
                self._check_open()
                raise
            with self._lock:
                if self.closed or self._broken:
                    lane.pool.close()
                    self._check_open()
                old = self.lanes[-1]
                self._set_lanes(*self.lanes, lane)
                if old.open is not None:
                    old.start(old.open)
                os.write(self._changed_write, b"x")
                self._tell()

    def let_go(self) -> None:
        """End the workers of plans that hold no frames any more (for the collector)."""
        if len(self.lanes) == 1:
            return
        with self._lock:
            done = [lane for lane in self.lanes[:-1] if lane.empty]
            self._set_lanes(*(lane for lane in self.lanes if lane not in done))
        for lane in done:
            try:
                ending = _started("corepipe-closing", lane.pool.close)
            except WorkerError:
                lane.pool.close()
            else:
                self._closing = [thread for thread in self._closing if thread.is_alive()] + [ending]

    @property
    def worker_pids(self) -> dict[str, int]:
        """The process id of each worker."""
        return {w.name: c.pid for w, c in zip(self.plan.workers, self.pool.children, strict=True)}

    def submit(self, frame: Frame | Writer, timeout: float | None = None) -> Future[Output]:
        """Feed one frame; blocks while the stream is full.

        Args:
            frame: arrays for the network's inputs (copied before this returns), or a function that is given the
                input arrays in shared memory by name and fills them in place. It should not wait: with batches, frames
                that share its slot wait too.
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
        future: Future[Output] = Future()
        self._submit(frame, future, timeout)
        return future

    def submit_own(self, frame: Frame | Writer, timeout: float | None = None) -> Future[Output]:
        """As `submit`, for a future that nobody else is given: it may end in the collecting thread, callbacks too."""
        future: Future[Output] = Future()
        self._submit(frame, future, timeout, own=True)
        return future

    def submit_in_order(self, frame: Frame | Writer, outcome: Outcome) -> None:
        """As `submit`, for who only reads results in order: queues may be as long as throughput asks for.

        Whether the frame was fed where Ctrl-C cuts this short, `outcome` tells.
        """
        self._submit(frame, outcome, own=True, deep=True)

    def _set_lanes(self, *lanes: Lane) -> None:
        window = max(lane.window for lane in lanes)
        self.lanes, self.window = lanes, window

    def wait_for_room(self) -> None:
        """Wait until a frame could be submitted at once, or the stream has ended."""
        with self._lock:
            self._wait_for_room()

    def wait_for_room_or(self, oldest: Outcome, room_helps: bool) -> None:
        """Wait until the oldest frame has its result or, if that helps, another frame can be fed."""
        with self._lock:
            self._sleep_until(lambda: oldest.ended or (room_helps and self._has_room(deep=True)))

    def _submit(
        self,
        frame: Frame | Writer,
        future: Future[Output] | Outcome,
        timeout: float | None = None,
        own: bool = False,
        deep: bool = False,
    ) -> None:
        if os.getpid() != self._owner:
            raise UsageError("a stream belongs to the process that opened it; open one in the forked process")
        # Ctrl-C may come at each call below, and what a stream holds must be whole after it.
        done = "waiting"
        try:
            with self._lock:
                if not self._wait_for_room(timeout, deep=deep):
                    raise TimeoutError(f"the stream had no room within {timeout} s")
                self._check_open()
                lane = self.lanes[-1]
                done = "taking"
                flight = lane.take(deep=deep)
                done = "filling"
            self._fill(lane.slot(flight), frame, len(flight.frames))
            with self._lock:
                self._check_open()
                submitted = Submitted(self._next_sequence, future, time.monotonic_ns(), own)
                try:
                    done = "sent"
                    self._send(lane, flight, submitted)
                except BaseException:
                    # Before others have the lock: to them a frame is fed or not.
                    self._send(lane, flight, submitted)
                    raise
        except BaseException:
            with self._lock:
                if done == "taking":
                    self.give_up(WorkerError("the stream was interrupted while it took a frame; open a new one"))
                elif done == "filling":
                    lane.filling -= 1
                    self._put_back(lane, flight)
            raise

    def _send(self, lane: Lane, flight: Flight, frame: Submitted) -> None:
        """Let a frame whose slot is filled go, or wait for others in its slot; goes on where it was cut short."""
        if not flight.frames or flight.frames[-1] is not frame:
            flight.frames.append(frame)
        if self._next_sequence == frame.sequence:
            if isinstance(frame.future, Outcome):
                frame.future.fed = True
            lane.filling -= 1
            self._next_sequence += 1
        lane.flights[flight.slot] = flight
        self._tell()
        if flight.started:
            return
        if flight is lane.open:
            lane.start_if_idle()
        elif len(flight.frames) == lane.plan.batch:
            lane.start(flight)
        else:
            self._let_fill(lane, flight)

    def _put_back(self, lane: Lane, flight: Flight) -> None:
        """What a frame that was not fed leaves: a flight that still takes frames, or nothing."""
        if not flight.frames:
            self._release(lane, flight)
        elif lane.flights.get(flight.slot) is flight:
            self._let_fill(lane, flight)
        self._tell()

    def _let_fill(self, lane: Lane, flight: Flight) -> None:
        """A slot that is not full takes more frames, but those of a plan that is given up."""
        if lane is self.lanes[-1]:
            lane.open = flight
            lane.start_if_idle()
        else:
            lane.start(flight)

    def __call__(
        self,
        frames: Iterable[Frame | Writer],
        on_error: OnError = "raise",
        when_full: WhenFull = "wait",
        live: bool = False,
    ) -> Iterator[Output | CorepipeError]:
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
            FrameError: as above.
            StreamClosedError, WorkerError: the stream ended early.
            Exception: whatever `frames` raised, after the results of the frames before it.
            KeyboardInterrupt: while it waited, after the results of the frames that are under way; at once the second
                time.
        """
        check_choice("on_error", on_error, OnError)
        check_choice("when_full", when_full, WhenFull)
        if live or when_full != "wait":
            return run_live(self, frames, when_full, on_error)
        return run_in_order(self, frames, on_error)

    def aiter(
        self,
        frames: Iterable[Frame | Writer] | AsyncIterable[Frame | Writer],
        on_error: OnError = "raise",
    ) -> AsyncIterator[Output | CorepipeError]:
        """The same for asyncio: `async for output in stream.aiter(frames)`; the event loop is never blocked.

        Queues stay short, as they do for `submit`.

        Raises:
            UnknownNameError: there is no such choice.
            FrameError: one frame failed, at its turn.
            Exception: whatever `frames` raised, after the results of the frames before it.
        """
        check_choice("on_error", on_error, OnError)
        return run_async(self, frames, on_error)

    def _sleep_until(self, reached: Callable[[], Any], timeout: float | None = None) -> bool:
        """Wait, with the lock, until that is so, as far as others tell; whether it is."""
        if (now := bool(reached())) or timeout == 0:
            return now
        self._sleepers += 1
        try:
            return bool(self._state.wait_for(reached, timeout))
        finally:
            self._sleepers -= 1

    def _tell(self) -> None:
        """Wake up, with the lock, whoever waits: room, a result, or the end may be there."""
        if self._sleepers:
            self._state.notify_all()

    def _wait_for_room(self, timeout: float | None = None, *, deep: bool = False) -> bool:
        """Wait until a frame can be fed or the stream has ended; while others wait, who feeds deep leaves them room."""
        self._briefly += not deep
        try:
            return self._sleep_until(lambda: self._broken or self.closed or self._has_room(deep=deep), timeout)
        finally:
            self._briefly -= not deep

    def close(self) -> None:
        """Stop the workers; frames under way end with `StreamClosedError`. Safe to call again.

        Ctrl-C ends a wait in it at once; what is left is done all the same, and then it raises.
        """
        if getattr(self, "_collector", None) is None or os.getpid() != self._owner:
            self.closed = True
            return
        ended = StreamClosedError("the stream was closed before this frame's result was there")
        steps: tuple[tuple[Callable[[], None], bool], ...] = (  # whether it is done again where Ctrl-C cuts it short
            (self._wake, True),
            (self._wait_for_collector, False),
            (self._wait_for_filling, False),
            (functools.partial(self._fail_all, ended), True),
            (functools.partial(self._deliveries.put, None), True),
            (self._close_pools, True),
            (self._wait_for_pools, False),
            (self._close_pipes, True),
            (self._wait_for_deliverer, False),
        )
        interrupt: KeyboardInterrupt | None = None
        mine = False
        try:
            with self._lock:
                if self._closing_now:
                    return
                self.closed = self._closing_now = mine = True
                self._tell()
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

    def _wake(self) -> None:
        os.write(self._wake_write, b"x")

    def _wait_for_collector(self) -> None:
        if threading.current_thread() is not self._collector:
            self._collector.join()

    def _wait_for_filling(self) -> None:
        with self._lock:
            self._sleep_until(lambda: not any(lane.filling for lane in self.lanes), _FILLING_S)

    def _close_pools(self) -> None:
        for lane in self.lanes:
            lane.pool.close()

    def _wait_for_pools(self) -> None:
        for ending in self._closing:
            ending.join()

    def _close_pipes(self) -> None:
        with self._switching:  # a switch under way gives up by the wake pipe, which must not be another file by then
            while self._pipe_fds:
                os.close(self._pipe_fds.pop())

    def _wait_for_deliverer(self) -> None:
        if threading.current_thread() is not self._deliverer:
            self._deliverer.join()

    def waits_for(self, seconds: float) -> list[tuple[str, int, int]]:
        """For each plan with frames under way for so long the worker that the oldest is at, its process, the frame."""
        before = time.monotonic_ns() - int(seconds * 1e9)
        with self._lock:
            oldest = [(lane, flight) for lane in self.lanes for flight in lane.started()[:1]]
            return [(*lane.at_work(f), f.sequence) for lane, f in oldest if f.frames[-1].submitted_ns <= before]

    def pause(self, lane: Lane) -> None:
        """Hold new frames back (for the collector)."""
        with self._lock:
            lane.paused = True

    def resume(self, lane: Lane, restarted: int) -> None:
        """Run every frame under way again from its start, and take new ones (for the collector)."""
        with self._lock:
            self.restarts += restarted
            lane.paused = False
            for flight in lane.started():
                lane.start(flight)
            lane.start_if_idle()
            self._tell()

    def next_generation(self) -> int:
        """A number for the next round of fences (for the collector)."""
        self._generation += 1
        return self._generation

    def give_up(self, error: CorepipeError) -> None:
        """End every frame under way with `error`, and refuse new ones (for the collector)."""
        with self._lock:
            self._broken = error
        self._fail_all(error)

    def _check_open(self) -> None:
        if self._broken:
            raise WorkerError(str(self._broken)) from self._broken
        if self.closed:
            raise StreamClosedError("the stream is closed; open a new one")

    def _has_room(self, *, deep: bool) -> bool:
        """Whether a frame can be taken; `deep` as for `Dispatcher.has_room`: for who only reads results in order."""
        if not self.lanes[-1].has_room(deep=deep and not self._briefly):
            return False
        filling = 0
        for lane in self.lanes:
            filling += lane.filling
        if self._next_sequence - self._delivered + filling < self.window:
            return True
        # Deliveries wait for a callback that submits, so that callback must not wait for deliveries.
        return threading.current_thread() is self._deliverer

    def _release(self, lane: Lane, flight: Flight) -> None:
        """Free a slot; the caller tells whoever waits."""
        lane.release(flight)
        if lane is not self.lanes[-1] and not self.closed:
            os.write(self._changed_write, b"x")

    def _fill(self, slot: Slot, frame: Frame | Writer, position: int) -> None:
        inputs = self.network.inputs
        views = {t.name: slot.view(t.name, position) for t in inputs}
        if callable(frame):
            frame({name: view[...] for name, view in views.items()})
            return
        if isinstance(frame, list | tuple):
            if len(frame) != len(inputs):
                raise FrameError(f"{len(frame)} arrays for the {len(inputs)} inputs {[t.name for t in inputs]}")
            frame = {t.name: array for t, array in zip(inputs, frame, strict=True)}
        arrays = check_frame(cast("Array | Mapping[str, Array]", frame), inputs, "frame")
        for name, view in views.items():
            np.copyto(view, arrays[name])

    def _results(self, lane: Lane, flight: Flight) -> list[Ended]:
        slot = lane.slot(flight)
        return [Ended(f.future, self._result(slot, i), own=f.own) for i, f in enumerate(flight.frames)]

    def _result(self, slot: Slot, position: int) -> Output:
        outputs = self.network.outputs
        if len(outputs) == 1:
            return slot.view(outputs[0].name, position).copy()
        return {t.name: slot.view(t.name, position).copy() for t in outputs}

    def finish(self, lane: Lane, done: Iterable[tuple[int, int, bool]]) -> None:
        """Take results or errors out of slots, and deliver what is next in order (for the collector).

        Whoever waits is woken once for all of them.

        Args:
            lane: the plan by which they ran.
            done: for each slot its number, the number of its first frame, and whether it failed.
        """
        ended: list[tuple[Flight, list[Ended]]] = []
        for slot, sequence, failed in done:
            flight = lane.flights.get(slot)
            if flight is None or flight.sequence != sequence:
                continue
            if not failed:
                ended.append((flight, self._results(lane, flight)))
            elif lane.plan.batch > 1 and not flight.apart:
                self.run_apart(lane, flight)
            else:
                error = FrameError(f"frame {sequence}: {lane.slot(flight).error}")
                ended.append((flight, _failed_together(flight, error)))
        self._end(lane, ended)

    def run_apart(self, lane: Lane, flight: Flight) -> None:
        """Run the frames of a slot again one by one, so that the one at fault fails alone (for the collector)."""
        slot = lane.slot(flight)
        inputs = [{t.name: slot.view(t.name, i).copy() for t in self.network.inputs} for i in range(len(flight.frames))]
        with self._lock:
            flight.waiting = list(zip(flight.frames, inputs, strict=True))
            lane.start_next_apart(flight)

    def fail(self, lane: Lane, flight: Flight, error: CorepipeError) -> None:
        """End the frames of a slot with an error (for the collector)."""
        self._end(lane, [(flight, _failed_together(flight, error))])

    def delivered(self) -> None:
        """One more future has ended (for the delivering thread)."""
        with self._lock:
            self._delivered += 1
            self._tell()

    def _end(self, lane: Lane, ended: Sequence[tuple[Flight, list[Ended]]]) -> None:
        for flight, ends in ended:
            if lane.flights.get(flight.slot) is flight:  # a callback may have closed the stream
                self._record(lane, flight, ends[0].error is not None)
        with self._lock:
            for flight, ends in ended:
                if lane.flights.get(flight.slot) is not flight:
                    continue
                for frame, end in zip(flight.frames, ends, strict=True):
                    self._ended[frame.sequence] = end
                if flight.waiting:
                    lane.start_next_apart(flight)
                else:
                    del lane.flights[flight.slot]
                    self._release(lane, flight)
                    lane.start_if_idle()
            while (following := self._ended.pop(self._next_delivery, None)) is not None:
                if following.own and self._delivered == self._next_delivery:
                    following.end()
                    self._delivered += 1
                else:
                    self._deliveries.put(following)
                self._next_delivery += 1
            self._tell()

    def _record(self, lane: Lane, flight: Flight, failed: bool) -> None:
        """Tell whoever wants to know of each frame."""
        if self.on_record is None and not self._watchers:
            return
        for record in records_of(lane, flight, failed, time.monotonic_ns()):
            for watcher in self._watchers:
                watcher(record)
            try:
                if self.on_record is not None:
                    self.on_record(record)
            except Exception:
                _log.exception("on_record failed for frame %d; it is not called any more", record.frame)
                self.on_record = None

    def _fail_all(self, error: CorepipeError) -> None:
        """End everything that has not ended, in order."""
        with self._lock:
            flights = [flight for lane in self.lanes for flight in lane.flights.values()]
            frames = [frame for f in flights for frame in (*f.frames, *(frame for frame, _ in f.waiting))]
            failed = {frame.sequence: Ended(frame.future, error=error) for frame in frames}
            failed |= {sequence: Ended(ended.future, error=error) for sequence, ended in self._ended.items()}
            # Put before they are forgotten: where Ctrl-C cuts this short, it is done again.
            for _, ended in sorted(failed.items()):
                self._deliveries.put(ended)
            for lane in self.lanes:
                lane.flights.clear()
                lane.open = None
            self._ended.clear()
            self._tell()


def _started(name: str, target: Callable[..., object], *arguments: object) -> threading.Thread:
    """A thread that runs `target` and does not keep the process alive."""
    thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise WorkerError(f"{name}: {error}; close other programs or use fewer workers") from None
    return thread


def _failed_together(flight: Flight, error: CorepipeError) -> list[Ended]:
    return [Ended(frame.future, error=error, own=frame.own) for frame in flight.frames]


def _but_rates(plan: Plan) -> tuple[object, ...]:
    """What of a plan stays where only its rates change."""
    return plan.batch, plan.workers, [route.hops for route in plan.routes]
