"""Results out: taken out of their slots, recorded, and delivered in the order of submission; errors by name too."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from corepipe.errors import CorepipeError, FrameError
from corepipe.network.model import Network
from corepipe.runtime.arena import Slot
from corepipe.runtime.delivery import Deliveries, Ended
from corepipe.runtime.lane import Flight, Lane
from corepipe.runtime.record import FrameRecord, records_of
from corepipe.runtime.state import State

Output = Any
"""One result: an array where the network has one output, else a dict of arrays by output name.

As a union every use of either would have to ask which it is, for what the network says once.
"""

_log = logging.getLogger("corepipe")


class Results:
    """Ends frames.

    Attributes:
        on_record: called with each frame's record; dropped once it raises.
        watchers: called with it too, and dropped likewise.

    Args:
        state: what the stream holds.
        network: what its plans run.
        deliveries: what the delivering thread ends.
        on_record: see above.
    """

    def __init__(
        self,
        state: State,
        network: Network,
        deliveries: Deliveries,
        on_record: Callable[[FrameRecord], None] | None,
    ) -> None:
        self.on_record = on_record
        self.watchers: list[Callable[[FrameRecord], None]] = []
        self._state = state
        self._network = network
        self._deliveries = deliveries
        self._ended: dict[int, Ended] = {}
        self._next_delivery = 0

    def finish(self, lane: Lane, done: Iterable[tuple[int, int, bool]]) -> None:
        """Take results or errors out of slots, and deliver what is next in order.

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
                ended.append((flight, self._outputs_of(lane, flight)))
            elif lane.plan.batch > 1 and not flight.apart:
                self.run_apart(lane, flight)
            else:
                error = FrameError(f"frame {sequence}: {lane.slot(flight).error}")
                ended.append((flight, _failed_together(flight, error)))
        self._end(lane, ended)

    def run_apart(self, lane: Lane, flight: Flight) -> None:
        """Run the frames of a slot again one by one, so that the one at fault fails alone."""
        slot, inputs = lane.slot(flight), self._network.inputs
        copies = [{t.name: slot.view(t.name, i).copy() for t in inputs} for i in range(len(flight.frames))]
        with self._state.lock:
            flight.waiting = list(zip(flight.frames, copies, strict=True))
            lane.start_next_apart(flight)

    def fail(self, lane: Lane, flight: Flight, error: CorepipeError) -> None:
        """End the frames of a slot with an error."""
        self._end(lane, [(flight, _failed_together(flight, error))])

    def give_up(self, error: CorepipeError) -> None:
        """End every frame under way with `error`, and refuse new ones."""
        with self._state.lock:
            self._state.broken = error
        self.fail_all(error)

    def fail_all(self, error: CorepipeError) -> None:
        """End every frame that has not ended, in order."""
        with self._state.lock:
            lanes = self._state.lanes
            flights = [flight for lane in lanes for flight in lane.flights.values()]
            frames = [frame for f in flights for frame in (*f.frames, *(frame for frame, _ in f.waiting))]
            failed = {frame.sequence: Ended(frame.future, error=_own(error)) for frame in frames}
            failed |= {number: Ended(ended.future, error=_own(error)) for number, ended in self._ended.items()}
            # Put before they are forgotten: where Ctrl-C cuts this short, it is done again.
            for _, ended in sorted(failed.items()):
                self._deliveries.put(ended)
            for lane in lanes:
                lane.flights.clear()
                lane.open = None
            self._ended.clear()
            self._state.tell()

    def count_delivered(self) -> None:
        """One more future has ended (for the delivering thread)."""
        with self._state.lock:
            self._state.delivered += 1
            self._state.tell()

    def _outputs_of(self, lane: Lane, flight: Flight) -> list[Ended]:
        slot = lane.slot(flight)
        return [Ended(f.future, self._output(slot, i), own=f.own) for i, f in enumerate(flight.frames)]

    def _output(self, slot: Slot, position: int) -> Output:
        outputs = self._network.outputs
        if len(outputs) == 1:
            return slot.view(outputs[0].name, position).copy()
        return {t.name: slot.view(t.name, position).copy() for t in outputs}

    def _end(self, lane: Lane, ended: Sequence[tuple[Flight, list[Ended]]]) -> None:
        state = self._state
        for flight, ends in ended:
            if lane.flights.get(flight.slot) is flight:  # a callback may have closed the stream
                self._record(lane, flight, ends[0].error is not None)
        with state.lock:
            for flight, ends in ended:
                if lane.flights.get(flight.slot) is not flight:
                    continue
                for frame, end in zip(flight.frames, ends, strict=True):
                    self._ended[frame.sequence] = end
                lane.note_end(flight)
                if flight.waiting:
                    lane.start_next_apart(flight)
                else:
                    del lane.flights[flight.slot]
                    state.release(lane, flight)
                    lane.start_if_idle()
            while (following := self._ended.pop(self._next_delivery, None)) is not None:
                if following.own and state.delivered == self._next_delivery:
                    following.end()
                    state.delivered += 1
                else:
                    self._deliveries.put(following)
                self._next_delivery += 1
            state.tell()

    def _record(self, lane: Lane, flight: Flight, failed: bool) -> None:
        """Tell whoever wants to know of each frame."""
        if self.on_record is None and not self.watchers:
            return
        for record in records_of(lane, flight, failed, time.monotonic_ns()):
            for watcher in tuple(self.watchers):
                try:
                    watcher(record)
                except Exception:
                    _log.exception("a watcher failed for frame %d; it is not called any more", record.frame)
                    self.watchers.remove(watcher)
            on_record = self.on_record
            try:
                if on_record is not None:
                    on_record(record)
            except Exception:
                _log.exception("on_record failed for frame %d; it is not called any more", record.frame)
                if self.on_record is on_record:
                    self.on_record = None


def _failed_together(flight: Flight, error: CorepipeError) -> list[Ended]:
    return [Ended(frame.future, error=_own(error), own=frame.own) for frame in flight.frames]


def _own(error: CorepipeError) -> CorepipeError:
    """The error for one frame: one that is raised in several places would hold the tracebacks of all of them."""
    one = copy.copy(error)
    one.__cause__ = error.__cause__
    return one
