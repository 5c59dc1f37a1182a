"""The first frames of a run of any length, for a trace and a page."""

from __future__ import annotations

from dataclasses import dataclass

from corepipe.runtime.record import FrameRecord

MAX_FRAMES = 10_000
"""Frames in a trace at most (a frame of two hops takes some 2 KB); the earliest are kept."""


@dataclass(frozen=True)
class LeftOut:
    """Frames that are not kept: how many, the first and the last of them."""

    count: int
    first: int
    last: int

    def __add__(self, other: LeftOut) -> LeftOut:
        """Both together."""
        first, last = min(self.first, other.first), max(self.last, other.last)
        return LeftOut(self.count + other.count, first, last)


class Recording:
    """Keeps the records of the first frames of a stream, and counts those of the others.

    Frames that were under way beside the first ones are kept as well: queue depths depend on them.

    Args:
        max_frames: how many the first ones are.

    Attributes:
        records: in the order in which the frames ended.
        left_out: the frames without a record here; None if all are kept.
    """

    def __init__(self, max_frames: int = MAX_FRAMES) -> None:
        self.records: list[FrameRecord] = []
        self.left_out: LeftOut | None = None
        self._first = max_frames
        self._missing = max_frames
        self._until_ns = 0

    def of_plan(self, number: int) -> list[FrameRecord]:
        """The records of the frames that ran by one of the stream's plans, as `FrameRecord.plan` counts them."""
        return [record for record in self.records if record.plan == number]

    def add(self, record: FrameRecord) -> None:
        """Take the record of a frame that ended; for `Stream(on_record=...)`."""
        if record.frame < self._first:
            self._missing -= 1
            self._until_ns = max(self._until_ns, record.done_ns)
        elif not self._missing and record.submitted_ns > self._until_ns:
            one = LeftOut(1, record.frame, record.frame)
            self.left_out = one if self.left_out is None else self.left_out + one
            return
        self.records.append(record)
