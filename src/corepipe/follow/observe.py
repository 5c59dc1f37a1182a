"""How long hops really take: medians over the last moments of a running stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from corepipe.plan.model import Plan
from corepipe.runtime.record import FrameRecord

WINDOW_S = 1.0
"""What is older does not count where there are `_ENOUGH` younger ones."""

_ENOUGH = 5
_KEPT = 256
"""Records: each look goes through all of them, and takes a core from the workers meanwhile."""

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
        began = records[0].done_ns if len(records) == _KEPT else self._began_ns
        since = max(now_ns - int(WINDOW_S * 1e9), began)
        times: dict[HopKey, list[tuple[int, float]]] = {}
        spans: dict[str, set[tuple[int, int]]] = {worker.name: set() for worker in self._plan.workers}
        for record in records:
            for index, hop in enumerate(record.hops):
                seconds = (hop.ended_ns - hop.started_ns) * 1e-9
                times.setdefault((record.route, index), []).append((hop.ended_ns, seconds))
                spans[hop.worker].add((hop.started_ns, hop.ended_ns))  # once for all frames of a slot
        hop_s = {key: median for key, found in times.items() if (median := _median(found, since)) is not None}
        fps = sum(record.done_ns >= since for record in records) / max((now_ns - since) * 1e-9, 1e-9)
        latency_ns = int(records[-1].latency_s * 1e9) if records else 0
        busy = {name: _busy(found, now_ns, began, latency_ns) for name, found in spans.items()}
        return Seen(hop_s, busy, fps, (now_ns - self._began_ns) * 1e-9)


def _busy(spans: Collection[tuple[int, int]], now_ns: int, began_ns: int, latency_ns: int) -> float:
    """The share of the last moments in which a worker had something to do.

    A hop is known only once its frame has left the stream: of a worker that is at work the moments end with its last
    known hop. They are several hops long.
    """
    if not spans:
        return 0.0
    last = max(ended for _, ended in spans)
    until = last if now_ns - last <= 2 * latency_ns else now_ns
    longest = max(ended - started for started, ended in spans)
    since = max(until - max(int(WINDOW_S * 1e9), 4 * longest), began_ns)
    worked = sum(max(min(ended, until) - max(started, since), 0) for started, ended in spans)
    return min(worked / max(until - since, 1), 1.0)


def _median(found: Iterable[tuple[int, float]], since: int) -> float | None:
    found = sorted(found)
    young = [seconds for ended, seconds in found if ended >= since]
    if len(young) < _ENOUGH:
        young = [seconds for _, seconds in found[-_ENOUGH:]]
    return float(np.median(young)) if len(young) >= _ENOUGH else None
