"""The life of a frame: what streams and the simulator tell of each, and whatever looks at runs reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from corepipe.runtime.lane import Flight, Lane


class HopTime(NamedTuple):
    """What one worker did for one frame, on CLOCK_MONOTONIC in nanoseconds."""

    worker: str
    start: int
    stop: int
    started_ns: int
    ended_ns: int

    def inside_ns(self, since_ns: int, until_ns: int) -> int:
        """How much of it lies within a stretch of time."""
        return max(min(self.ended_ns, until_ns) - max(self.started_ns, since_ns), 0)


class FrameRecord(NamedTuple):
    """The life of one frame, on CLOCK_MONOTONIC in nanoseconds; `plan` counts the plans that its stream had before."""

    frame: int
    route: int
    submitted_ns: int
    done_ns: int
    hops: tuple[HopTime, ...]
    failed: bool = False
    plan: int = 0

    @property
    def latency_s(self) -> float:
        """Seconds from submission to the result's arrival in the user's process."""
        return (self.done_ns - self.submitted_ns) * 1e-9

    @property
    def computed_ns(self) -> int:
        """When its last hop ended: results of several frames may arrive together. When it failed, if it did."""
        return self.done_ns if self.failed or not self.hops else self.hops[-1].ended_ns


def records_of(lane: Lane, flight: Flight, failed: bool, now_ns: int) -> Iterator[FrameRecord]:
    """The records of a slot's frames, which end now; of the time that a worker spent on it, each has an equal part.

    Args:
        lane, flight: the frames, before their slot is used again.
        failed: whether they end with an error.
        now_ns: on CLOCK_MONOTONIC.
    """
    count = len(flight.frames)
    slot, hops = lane.slot(flight), lane.plan.routes[flight.route].hops
    times = [slot.times(index) for index in range(len(hops))]
    for position, frame in enumerate(flight.frames):
        parts = tuple(
            HopTime(hop.worker, hop.start, hop.stop, *part_of(began, ended, position, count))
            for hop, (began, ended) in zip(hops, times, strict=True)
        )
        yield FrameRecord(frame.sequence, flight.route, frame.submitted_ns, now_ns, parts, failed, lane.number)


def part_of(began: int, ended: int, position: int, count: int) -> tuple[int, int]:
    """Start and end of one of `count` equal parts of a time; the time itself where it has not ended."""
    if not ended:
        return began, ended
    return began + (ended - began) * position // count, began + (ended - began) * (position + 1) // count
