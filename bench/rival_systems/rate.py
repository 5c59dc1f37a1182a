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
    """When a slice began and feeding ended, and when each call ended, on CLOCK_MONOTONIC in nanoseconds."""

    began: int
    ended: int
    calls: Sequence[int]

    def calls_per_s(self, filling: int = 0) -> float:
        """From the first call that ended in the steady state to the last one before feeding ended.

        Args:
            filling: calls at the beginning that fill a pipeline or a queue.
        """
        since = self.began + min(int(LEAD_S * 1e9), (self.ended - self.began) // 4)
        steady = [at for at in sorted(self.calls)[filling:] if since <= at <= self.ended]
        if len(steady) < _LEAST_CALLS:
            return len(self.calls) / ((max(self.calls) - self.began) * 1e-9)
        return (len(steady) - 1) / ((steady[-1] - steady[0]) * 1e-9)


def repeat(call: Callable[[int], object], seconds: float) -> Slice:
    """Call again and again, one call after the other; the last one begins before the time is over."""
    began = time.monotonic_ns()
    until = began + int(seconds * 1e9)
    calls: list[int] = []
    while not calls or calls[-1] < until:
        call(len(calls))
        calls.append(time.monotonic_ns())
    return Slice(began, calls[-1], calls)
