"""Which core of a worker has become slow: a short piece of work on each of its cores, at the same moment."""

from __future__ import annotations

import hashlib
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from corepipe.topology.model import Topology

PROBE_S = 0.1
"""How long the cores are tried."""

UNEQUAL = 1.4
"""Cores of a worker whose speeds have come further apart are told apart; less may be chance."""

TRIES = 5
"""After a change; a moment is short, and others may have disturbed it, so the median of some counts."""

_CHANGED = 1.2

_BLOCK = bytes(1 << 16)

Speeds = dict[int, float]


@dataclass
class _Tries:
    """What was seen of the cores of a worker since its time last changed.

    Attributes:
        factor: the worker's time over what the costs say, at the change.
        left: how many tries are still to come.
        found: of each try the logarithms of the cores' speeds, less their mean: shape (cores,).
    """

    factor: float
    left: int = TRIES
    found: list[NDArray[np.float64]] = field(default_factory=list)

    def median(self) -> NDArray[np.float64]:
        return np.asarray(np.median(self.found, axis=0))


class Probe:
    """Tells the cores of a worker apart once it takes longer, or less long, than before.

    All that a worker's times show is how it does as a whole. Speeds are held against those of the first tries, so cores
    may be of any kind, and of the same moment, so that what else runs on them (the worker itself) counts on all.

    Args:
        measure: tells the speed of each of some cores, in any unit; empty where it cannot be told.
    """

    def __init__(self, measure: Callable[[Sequence[int]], Speeds]) -> None:
        self._measure = measure
        self._first: dict[int, float] = {}
        self._tries: dict[tuple[int, ...], _Tries] = {}

    def shares(self, cores: tuple[int, ...], factor: float) -> Mapping[int, float]:
        """For each core of a worker what its slowness is of that of the slowest, in (0, 1].

        To be asked from look to look: each call may be a try.

        Args:
            cores: the cores of a worker.
            factor: its time over what the costs say.
        """
        equal = dict.fromkeys(cores, 1.0)
        if len(cores) == 1:
            return equal
        tries = self._tries.setdefault(cores, _Tries(factor))
        if abs(math.log(factor / tries.factor)) > math.log(_CHANGED):
            self._keep_first(cores, tries)
            tries = self._tries[cores] = _Tries(factor)
        if tries.left:
            tries.left -= 1
            now = self._measure(cores)
            if set(now) == set(cores):
                speeds = np.log([now[core] for core in cores])
                tries.found.append(speeds - speeds.mean())
            if not tries.left:
                self._keep_first(cores, tries)
        if not tries.found or any(core not in self._first for core in cores):
            return equal
        slowness = np.array([self._first[core] for core in cores]) - tries.median()
        if np.ptp(slowness) < math.log(UNEQUAL):
            return equal
        return dict(zip(cores, np.exp(slowness - slowness.max()).tolist(), strict=True))

    def _keep_first(self, cores: tuple[int, ...], tries: _Tries) -> None:
        if tries.found:
            for core, speed in zip(cores, tries.median(), strict=True):
                self._first.setdefault(core, float(speed))


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
