"""Which core of a worker has become slow: a short piece of work on each of its cores, at the same moment."""

from __future__ import annotations

import hashlib
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from corepipe.topology.model import Topology

PROBE_S = 0.1
"""How long the cores are tried."""

UNEQUAL = 1.4
"""Cores of a worker whose speeds have come further apart are told apart; less may be chance."""

_CHANGED = 1.2
_PAUSE_S = 1.5
_MORE_TRIES = 2
"""Where a change was seen and no core stands out: a moment is short, and others may have disturbed it."""

_BLOCK = bytes(1 << 16)

Speeds = dict[int, float]


class Probe:
    """Tells the cores of a worker apart once it takes longer, or less long, than at the last try.

    All that a worker's times show is how it does as a whole. Speeds are held against those of the first try, so cores
    may be of any kind, and of the same moment, so that what else runs on them (the worker itself) counts on all.

    Args:
        measure: tells the speed of each of some cores, in any unit; empty where it cannot be told.
    """

    def __init__(self, measure: Callable[[Sequence[int]], Speeds]) -> None:
        self._measure = measure
        self._first: Speeds = {}
        self._known: dict[tuple[int, ...], tuple[float, float, Speeds, int]] = {}

    def shares(self, cores: tuple[int, ...], factor: float, now_s: float) -> Mapping[int, float]:
        """For each core of a worker what its slowness is of that of the slowest, in (0, 1].

        Args:
            cores: the cores of a worker.
            factor: its time over what the costs say.
            now_s: the time; the same cores are not tried again at once.
        """
        equal = dict.fromkeys(cores, 1.0)
        if len(cores) == 1:
            return equal
        if cores not in self._known:
            self._known[cores] = now_s, factor, self._try(cores) or equal, 0
        tried_s, before, shares, left = self._known[cores]
        changed = abs(math.log(factor / before)) > math.log(_CHANGED)
        if (changed or left) and now_s >= tried_s + _PAUSE_S:
            shares = self._try(cores) or equal
            left = 0 if shares != equal else _MORE_TRIES if changed else left - 1
            self._known[cores] = now_s, factor if changed else before, shares, left
        return shares

    def _try(self, cores: tuple[int, ...]) -> Speeds:
        now = self._measure(cores)
        if set(now) != set(cores):
            return {}
        ratios = {core: speed / self._first.setdefault(core, speed) for core, speed in now.items()}
        slowest = min(ratios.values())
        if max(ratios.values()) < UNEQUAL * slowest:
            return {}
        return {core: slowest / ratio for core, ratio in ratios.items()}


def core_speeds(topology: Topology, cores: Sequence[int]) -> Speeds:
    """Blocks hashed in a second on each core, for a moment; empty where threads cannot be bound to cores.

    Hashing lets go of the interpreter's lock, so the cores work side by side and the stream goes on.

    Args:
        topology: the machine.
        cores: which, by id.
    """
    ready = threading.Barrier(len(cores))
    found: Speeds = {}

    def work(core: int) -> None:
        try:
            os.sched_setaffinity(0, topology.cpus_of([core]))
        except (AttributeError, OSError):
            ready.abort()
        try:
            ready.wait(1.0)
        except threading.BrokenBarrierError:
            return
        began = time.monotonic()
        done = 0
        while (took := time.monotonic() - began) < PROBE_S:
            hashlib.sha256(_BLOCK).digest()
            done += 1
        found[core] = max(done, 1) / took

    threads = [threading.Thread(target=work, args=(core,), name="corepipe-probe", daemon=True) for core in cores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found if len(found) == len(cores) else {}
