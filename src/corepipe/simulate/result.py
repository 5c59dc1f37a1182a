"""What a simulated plan did."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from corepipe.plan.model import Plan
from corepipe.plan_results import work_fps
from corepipe.runtime.record import FrameRecord

_WARM_UP_SHARE = 0.4


@dataclass(frozen=True)
class Simulation:
    """What a plan did in simulated time.

    Attributes:
        plan: the plan.
        records: one for each frame, in the order of submission; times are nanoseconds from the start.
        fed_until_ns: when the last frame was fed; until then the workers had all the frames that they could take.
        slots: slots, of `plan.batch` frames each, that could be under way at once.
    """

    plan: Plan
    records: tuple[FrameRecord, ...] = field(repr=False)
    fed_until_ns: int
    slots: int

    @cached_property
    def steady(self) -> tuple[FrameRecord, ...]:
        """The frames that were done after the stream had filled and before feeding ended, in the order of their end.

        All frames where there are too few for that.
        """
        return self._settled_frames if self.settled else tuple(sorted(self.records, key=lambda record: record.done_ns))

    @property
    def settled(self) -> bool:
        """Whether there were enough frames for a steady state."""
        frames = self._settled_frames
        return len(frames) > 2 and frames[-1].done_ns > frames[0].done_ns

    @cached_property
    def _settled_frames(self) -> tuple[FrameRecord, ...]:
        done = sorted(self.records, key=lambda record: record.done_ns)
        fill = max(2 * self.slots * self.plan.batch, int(_WARM_UP_SHARE * len(done)))
        return tuple(record for record in done[fill:] if record.done_ns <= self.fed_until_ns)

    @property
    def span_s(self) -> float:
        """Seconds between the first and the last result of the steady state; from 0 on where that is one moment."""
        first, last = self.steady[0].done_ns, self.steady[-1].done_ns
        return (last - first if last > first else last) * 1e-9

    @property
    def throughput_fps(self) -> float:
        """Frames/s in the steady state: of a frame that was worked on in it in part, that part counts."""
        first, last = self.steady[0].done_ns, self.steady[-1].done_ns
        if self.settled:
            return work_fps(self.records, first, last)
        # Frames of one slot end at one moment: those of the first belong to the time before.
        frames = sum(record.done_ns > first for record in self.steady) if last > first else len(self.steady)
        return frames / self.span_s if self.span_s > 0 else math.inf

    @cached_property
    def busy(self) -> dict[str, float]:
        """For each worker the share of the steady state that it spent in segments, half hops not counted."""
        last = self.steady[-1].done_ns
        first = last - round(self.span_s * 1e9)
        inside = dict.fromkeys((worker.name for worker in self.plan.workers), 0)
        for record in self.records:
            for hop in record.hops:
                inside[hop.worker] += hop.inside_ns(first, last)
        return {name: ns / max(1, last - first) for name, ns in inside.items()}

    def slices(self, count: int) -> list[float]:
        """Frames/s of so many consecutive parts of the steady state, in each of which about as many frames end."""
        done = np.array([record.done_ns for record in self.steady])
        edges = np.linspace(0, len(done) - 1, count + 1).astype(int)
        times = np.unique(done[edges]).tolist()
        rates = [work_fps(self.records, since, until) for since, until in itertools.pairwise(times)]
        return rates or [self.throughput_fps]
