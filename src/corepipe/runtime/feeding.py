"""Frames in: room is waited for, a slot filled, and the slot sent on its way."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from corepipe.errors import FrameError, WorkerError
from corepipe.network.inputs import check_frame
from corepipe.network.model import TensorInfo
from corepipe.runtime.arena import Slot
from corepipe.runtime.delivery import Outcome
from corepipe.runtime.lane import Flight, Lane, Submitted
from corepipe.runtime.results import Results
from corepipe.runtime.state import State

Array = NDArray[Any]
Frame = Array | Mapping[str, Array] | Sequence[Array]
"""One frame: an array, arrays by input name, or arrays in the order of the network's inputs."""

Writer = Callable[[dict[str, Array]], None]
"""Fills a frame's input arrays in place."""


class NoRoomError(TimeoutError):
    """The stream had no room: not what a function that fills the inputs may raise itself."""


class Feeding:
    """Feeds frames into the plan that is at work last, from any thread.

    Ctrl-C may come at each call in here, and what a stream holds must be whole after it.

    Args:
        state: what the stream holds.
        results: what ends frames.
        inputs: the network's.
    """

    def __init__(self, state: State, results: Results, inputs: Sequence[TensorInfo]) -> None:
        self._state = state
        self._results = results
        self._inputs = inputs

    def submit(
        self,
        frame: Frame | Writer,
        future: Future[Any] | Outcome,
        timeout: float | None = None,
        *,
        own: bool = False,
        deep: bool = False,
    ) -> None:
        """Feed one frame; blocks while the stream is full.

        Args:
            frame: see `Stream.submit`.
            future: ends with its result; whether the frame was fed where Ctrl-C cuts this short, an `Outcome` tells.
            timeout: seconds to wait for room; None to wait as long as it takes.
            own: whether nobody but the runtime knows the future: it may end in the collecting thread then.
            deep: whether queues may be as long as throughput asks for, for who only reads results in order.

        Raises:
            FrameError, StreamClosedError, WorkerError, TimeoutError, UsageError: as for `Stream.submit`.
        """
        state = self._state
        state.check_owner()
        done = "waiting"
        try:
            with state.lock:
                if not state.wait_for_room(timeout, deep=deep):
                    raise NoRoomError(f"the stream had no room within {timeout} s")
                state.check_open()
                lane = state.lanes[-1]
                done = "taking"
                flight = lane.take(deep=deep)
                done = "filling"
            self._fill(lane.slot(flight), frame, len(flight.frames))
            with state.lock:
                state.check_open()
                submitted = Submitted(state.next_sequence, future, time.monotonic_ns(), own)
                try:
                    done = "sent"
                    self._send(lane, flight, submitted)
                except BaseException:
                    # Before others have the lock: to them a frame is fed or not.
                    self._send(lane, flight, submitted)
                    raise
        except BaseException:
            with state.lock:
                if done == "taking":
                    self._results.give_up(
                        WorkerError("the stream was interrupted while it took a frame; open a new one")
                    )
                elif done == "filling":
                    lane.filling -= 1
                    self._put_back(lane, flight)
            raise

    def _fill(self, slot: Slot, frame: Frame | Writer, position: int) -> None:
        views = {t.name: slot.view(t.name, position) for t in self._inputs}
        if callable(frame):
            frame({name: view[...] for name, view in views.items()})
            return
        if isinstance(frame, list | tuple):
            names = list(views)
            if len(frame) != len(names):
                raise FrameError(f"{len(frame)} arrays for the {len(names)} inputs {names}")
            frame = dict(zip(names, frame, strict=True))
        arrays = check_frame(cast("Array | Mapping[str, Array]", frame), self._inputs, "frame")
        for name, view in views.items():
            np.copyto(view, arrays[name])

    def _send(self, lane: Lane, flight: Flight, frame: Submitted) -> None:
        """Let a frame whose slot is filled go, or wait for others in its slot; goes on where it was cut short."""
        if not flight.frames or flight.frames[-1] is not frame:
            flight.frames.append(frame)
        if self._state.next_sequence == frame.sequence:
            if isinstance(frame.future, Outcome):
                frame.future.fed = True
            lane.filling -= 1
            self._state.next_sequence += 1
        lane.flights[flight.slot] = flight
        self._state.tell()
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
            self._state.release(lane, flight)
        elif lane.flights.get(flight.slot) is flight:
            self._let_fill(lane, flight)
        self._state.tell()

    def _let_fill(self, lane: Lane, flight: Flight) -> None:
        """A slot that is not full takes more frames, but those of a plan that is given up."""
        if lane is self._state.lanes[-1]:
            lane.open = flight
            lane.start_if_idle()
        else:
            lane.start(flight)
