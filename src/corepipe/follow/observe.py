"""How long hops really take: medians over the last moments of a running stream."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from corepipe.plan.model import Plan
from corepipe.runtime.messages import HOLD_S
from corepipe.runtime.record import FrameRecord

WINDOW_S = 1.0
"""What is older does not count where there are `_ENOUGH` younger ones."""

_ENOUGH = 5

_KEPT_TIMES = 64
_KEPT_SPANS = 256
_KEPT_ENDS = 4096
"""The last ones of each hop, of each worker, and of all frames. A look goes through them and takes a core meanwhile."""

HopKey = tuple[int, int]
"""Number of the route, and of the hop on it."""

Span = list[int]
"""When something began and ended."""


@dataclass(frozen=True)
class Seen:
    """What a stream saw of a plan.

    Attributes:
        hop_s: the median seconds of a frame for each hop that ran since the last look, and often enough lately.
        utilization: for each worker the share of the last moments that it was busy, in [0, 1].
        fps: frames that were computed in a second.
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
        self._began_ns = began_ns
        self._batch = plan.batch
        self._lock = threading.Lock()
        self._times: dict[HopKey, deque[tuple[int, float]]] = {}
        self._spans: dict[str, deque[Span]] = {w.name: deque(maxlen=_KEPT_SPANS) for w in plan.workers}
        self._ends: deque[int] = deque(maxlen=_KEPT_ENDS)
        self._ran: set[HopKey] = set()
        self._latency_ns = 0
        self._slot = (-1, -1)
        self._count = 0
        self._hops: list[Span] = []
        """The slot whose frames come in, how many have, and its hops."""

    def add(self, record: FrameRecord) -> None:
        """Take the record of a frame that ended."""
        if record.failed:
            return
        # Frames that shared a slot end together and have equal parts of its time: one run, however many they are.
        slot = record.route, record.done_ns
        with self._lock:
            self._ends.append(record.computed_ns)  # word of results may come for several at once
            self._latency_ns = record.done_ns - record.submitted_ns
            if slot != self._slot:
                self._slot, self._count = slot, 0
                self._hops = [[hop.started_ns, hop.ended_ns] for hop in record.hops]
                for hop, span in zip(record.hops, self._hops, strict=True):
                    self._spans[hop.worker].append(span)
            self._count += 1
            for hop, span in zip(record.hops, self._hops, strict=True):
                span[1] = hop.ended_ns
            if self._count == self._batch:  # what an engine takes for a slot that is not full says little of a frame
                for index, (began, ended) in enumerate(self._hops):
                    key = record.route, index
                    times = self._times.setdefault(key, deque(maxlen=_KEPT_TIMES))
                    times.append((ended, (ended - began) * 1e-9 / self._batch))
                    self._ran.add(key)

    def seen(self, now_ns: int) -> Seen:
        """The last moments before `now_ns`."""
        with self._lock:
            times = {key: list(self._times[key]) for key in self._ran}
            spans = {name: [(began, ended) for began, ended in found] for name, found in self._spans.items()}
            ends, latency_ns = list(self._ends), self._latency_ns
            self._ran.clear()
        second = now_ns - int(WINDOW_S * 1e9)
        hop_s = {key: median for key, found in times.items() if (median := _median(found, second)) is not None}
        fps = _rate(ends, now_ns, self._began_ns, latency_ns)
        busy = {name: _busy(found, now_ns, self._began_ns, latency_ns) for name, found in spans.items()}
        return Seen(hop_s, busy, fps, (now_ns - self._began_ns) * 1e-9)


def _rate(ends: Sequence[int], now_ns: int, began_ns: int, latency_ns: int) -> float:
    """Frames computed in a second of the last moments, which end when word of all results must have come."""
    if not ends:
        return 0.0
    last = max(ends)
    until = last - int(HOLD_S * 1e9) if now_ns - last <= 2 * latency_ns else now_ns
    since = max(until - int(WINDOW_S * 1e9), min(ends) if len(ends) == _KEPT_ENDS else began_ns)
    if until <= since:  # of a fresh plan, or where the ends that are kept reach less far back
        until = last
    return sum(since < end <= until for end in ends) / max((until - since) * 1e-9, 1e-9)


def _busy(spans: Sequence[tuple[int, int]], now_ns: int, began_ns: int, latency_ns: int) -> float:
    """The share of the last moments in which a worker had something to do.

    A hop is known only once its frame has left the stream: of a worker that is at work the moments end with its last
    known hop. They are several hops long.
    """
    if not spans:
        return 0.0
    if len(spans) == _KEPT_SPANS:
        began_ns = min(started for started, _ in spans)
    last = max(ended for _, ended in spans)
    until = last if now_ns - last <= 2 * latency_ns else now_ns
    longest = max(ended - started for started, ended in spans)
    since = max(until - max(int(WINDOW_S * 1e9), 4 * longest), began_ns)
    worked = sum(max(min(ended, until) - max(started, since), 0) for started, ended in spans)
    return min(worked / max(until - since, 1), 1.0)


def _median(found: Sequence[tuple[int, float]], since: int) -> float | None:
    young = [seconds for ended, seconds in found if ended >= since]
    if len(young) < _ENOUGH:
        young = [seconds for _, seconds in sorted(found)[-_ENOUGH:]]
    return float(np.median(young)) if len(young) >= _ENOUGH else None
