"""How long hops really take: medians over the last moments of a running stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from corepipe.plan.model import Plan
from corepipe.runtime.stream import FrameRecord

WINDOW_S = 1.0
"""What is older does not count where there are `_ENOUGH` younger ones."""

_ENOUGH = 5
_KEPT = 1024

HopKey = tuple[int, int]
"""Number of the route, and of the hop on it."""


@dataclass(frozen=True)
class Seen:
    """What a stream saw of a plan.

    Attributes:
        hop_s: the median seconds of a frame for each hop that was seen often enough lately.
        utilization: for each worker the share of the last moments that it was busy, in [0, 1].
        fps: frames that ended in a second.
        seconds: how long the plan has been watched.
    """

    hop_s: dict[HopKey, float]
    utilization: dict[str, float]
    fps: float
    seconds: float


class Observer:
    """Takes the records of one plan's frames; of each hop the median counts, so that single slow runs do not.

    `add` may be called in another thread than `seen`.

    Args:
        plan: the plan.
        began_ns: when it was put to work, on CLOCK_MONOTONIC.
    """

    def __init__(self, plan: Plan, began_ns: int) -> None:
        self._plan = plan
        self._began_ns = began_ns
        self._records: deque[FrameRecord] = deque(maxlen=_KEPT)

    def add(self, record: FrameRecord) -> None:
        """Take the record of a frame that ended."""
        if not record.failed:
            self._records.append(record)

    def seen(self, now_ns: int) -> Seen:
        """The last moments before `now_ns`."""
        records = list(self._records)
        since = max(now_ns - int(WINDOW_S * 1e9), self._began_ns)
        length_s = max((now_ns - since) * 1e-9, 1e-9)
        times: dict[HopKey, list[tuple[int, float]]] = {}
        busy = dict.fromkeys((worker.name for worker in self._plan.workers), 0.0)
        for record in records:
            for index, hop in enumerate(record.hops):
                seconds = (hop.ended_ns - hop.started_ns) * 1e-9
                times.setdefault((record.route, index), []).append((hop.ended_ns, seconds))
                busy[hop.worker] += max(min(hop.ended_ns, now_ns) - max(hop.started_ns, since), 0) * 1e-9 / length_s
        hop_s = {key: median for key, found in times.items() if (median := _median(found, since)) is not None}
        fps = sum(record.done_ns >= since for record in records) / length_s
        seconds = (now_ns - self._began_ns) * 1e-9
        return Seen(hop_s, {name: min(share, 1.0) for name, share in busy.items()}, fps, seconds)


def _median(found: Iterable[tuple[int, float]], since: int) -> float | None:
    found = sorted(found)
    young = [seconds for ended, seconds in found if ended >= since]
    if len(young) < _ENOUGH:
        young = [seconds for _, seconds in found[-_ENOUGH:]]
    return float(np.median(young)) if len(young) >= _ENOUGH else None
