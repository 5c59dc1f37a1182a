"""Frames per second from the times at which calls ended, the same for every system."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LEAD_S = 0.2
"""Seconds at the beginning of each slice that do not count: caches and spinning threads get warm."""

_LEAST_CALLS = 4
"""Two calls may end at nearly the same moment; where so few are left, all of the slice counts."""


@dataclass(frozen=True)
class Slice:
    """When a slice began and feeding ended, and when each call ended, on CLOCK_MONOTONIC in nanoseconds.

    Attributes:
        lanes: for each call which request, thread or route made it; None where one call follows the other.
        sizes: how many frames each call took, where that is not the same for all.
        spans: for each call the stretches of time in which it was worked on, where calls overlap. What lies within the
            slice then counts (`corepipe.plan_results.work_fps`).
        over_costs: time that hops took, over what it should be by the costs that the plan was made from.
    """

    began: int
    ended: int
    calls: Sequence[int]
    lanes: Sequence[int] | None = None
    sizes: Sequence[int] | None = None
    spans: Sequence[Sequence[tuple[int, int]]] | None = None
    over_costs: float | None = None

    def calls_per_s(self, filling: int = 0) -> float:
        """As `frames_per_s`, each call counted once."""
        return self._per_s(filling, [1] * len(self.calls))

    def frames_per_s(self, filling: int = 0) -> float:
        """From the first call that ended in the steady state to the last one before feeding ended, or until that.

        Of each lane by itself, and added up: where lanes end their calls at the same moments, the time from the first
        of all calls to the last is one call of each lane short. Together where a lane has too few calls.

        Args:
            filling: calls at the beginning that fill a pipeline or a queue.
        """
        return self._per_s(filling, self.sizes or [1] * len(self.calls))

    def _per_s(self, filling: int, sizes: Sequence[int]) -> float:
        since = self.began + min(int(LEAD_S * 1e9), (self.ended - self.began) // 4)
        ordered = sorted(zip(self.calls, self.lanes or [0] * len(self.calls), sizes, strict=True))
        steady = [(at, lane, size) for at, lane, size in ordered[filling:] if since <= at <= self.ended]
        if len(steady) < _LEAST_CALLS:
            return sum(sizes) / ((max(self.calls) - self.began) * 1e-9)
        if self.spans is not None:
            return self._work_per_s(steady[0][0], self.spans, sizes)
        by_lane: dict[int, list[tuple[int, int]]] = {}
        for at, lane, size in steady:
            by_lane.setdefault(lane, []).append((at, size))
        if min(map(len, by_lane.values())) < _LEAST_CALLS:
            return _rate([(at, size) for at, _, size in steady])
        return sum(_rate(calls) for calls in by_lane.values())

    # As `corepipe.plan_results.work_fps`, in the words of rivals.
    def _work_per_s(self, since: int, spans: Sequence[Sequence[tuple[int, int]]], sizes: Sequence[int]) -> float:
        frames = 0.0
        for size, call in zip(sizes, spans, strict=True):
            whole = sum(end - begin for begin, end in call)
            inside = sum(max(min(end, self.ended) - max(begin, since), 0) for begin, end in call)
            frames += size * inside / max(whole, 1)
        return frames / ((self.ended - since) * 1e-9)


def _rate(calls: Sequence[tuple[int, int]]) -> float:
    """What came after the first call, over the time from its end to that of the last one."""
    return sum(size for _, size in calls[1:]) / ((calls[-1][0] - calls[0][0]) * 1e-9)


def repeat(call: Callable[[int], object], seconds: float) -> Slice:
    """Call again and again, one call after the other; the last one begins before the time is over."""
    began = time.monotonic_ns()
    until = began + int(seconds * 1e9)
    calls: list[int] = []
    while not calls or calls[-1] < until:
        call(len(calls))
        calls.append(time.monotonic_ns())
    return Slice(began, calls[-1], calls)
