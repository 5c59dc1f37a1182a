"""Which core of a worker has become slow: a short piece of work on each of its cores, at the same moment.

The worker itself waits meanwhile. Beside it the cores cannot be told apart: the system moves its threads from core to
core, away from a slow one above all, so that the piece of work there may have the slow core to itself.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from corepipe.topology.model import Topology

PROBE_S = 0.02
"""How long the cores are tried, and their worker waits."""

UNEQUAL = 1.3
"""Cores of a worker whose speeds have come further apart are told apart; less may be chance."""

TRIES = 5
"""After a change; a moment is short, and others may have disturbed it, so the median of some counts."""

_ENOUGH = 3
"""Tries before cores are told apart."""

_CHANGED = 1.2
_CHANGED_MUCH = 1.4
"""A worker's time has changed where it is off by so much at two looks in a row, or by so much more at one."""

_REST = 10
"""Looks after which the cores of a worker that is still off are tried again, twice as many after each time."""

_WINDOW = 2
"""Looks for which a change may have gone on before it was seen: times are medians over them."""

_PATIENCE_S = 1.0
"""How long the cores wait for each other before a try is given up."""

_BLOCK = bytes(1 << 16)

Floats = NDArray[np.float64]
Speeds = dict[int, float]


@dataclass
class _Tries:
    """What was seen of the cores of a worker since its time last changed.

    Attributes:
        factor: the worker's time over what the costs say.
        left: how many tries are still to come.
        off: looks in a row at which the factor was another one.
        rest: looks from the last one until there are tries again.
        rested: those that were.
        found: of each try the logarithms of the cores' speeds, less their mean: shape (cores,).
    """

    factor: float
    left: int = TRIES
    off: int = 0
    rest: int = _REST
    rested: int = 0
    found: list[Floats] = field(default_factory=list)

    def changed(self, factor: float) -> bool:
        """Whether the worker's time is another one by now."""
        change = abs(math.log(factor / self.factor))
        self.off = self.off + 1 if change > math.log(_CHANGED) else 0
        return self.off > 1 or change > math.log(_CHANGED_MUCH)


class Probe:
    """Tells the cores of a worker apart once it takes longer, or less long, than before.

    All that a worker's times show is how it does as a whole. Speeds are held against those of the first tries of the
    same cores, so cores may be of any kind.

    Args:
        measure: tells the speed of each of some cores, in any unit; empty where it cannot be told.
    """

    def __init__(self, measure: Callable[[Sequence[int]], Speeds]) -> None:
        self._measure = measure
        self._first: dict[tuple[int, ...], Floats] = {}
        self._tries: dict[tuple[int, ...], _Tries] = {}

    def watch(self, workers: Collection[tuple[int, ...]]) -> None:
        """These are the workers' cores from now on; of others only the first tries are kept."""
        self._tries = {cores: tries for cores, tries in self._tries.items() if cores in workers}

    @property
    def unsure(self) -> bool:
        """Whether a worker's time has changed and its cores have not been tried often enough yet."""
        return any(
            cores in self._first and tries.left and len(tries.found) < _ENOUGH for cores, tries in self._tries.items()
        )

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
        if cores not in self._first:
            if tries.changed(factor):
                self._keep_first(cores, tries.found[:-_WINDOW] or tries.found[:1])
                tries = self._tries[cores] = _Tries(factor)
        elif tries.left:
            tries.factor = factor
        elif tries.changed(factor):
            tries = self._tries[cores] = _Tries(factor)
        if tries.left:
            self._try(cores, tries)
        slowness = self._slowness(cores, tries)
        if slowness is not None:
            return dict(zip(cores, np.exp(slowness - slowness.max()).tolist(), strict=True))
        if not tries.left and abs(math.log(factor)) > math.log(_CHANGED):
            # All may be as slow; or else others were in the way of these tries.
            tries.rested += 1
            if tries.rested == tries.rest:
                self._tries[cores] = _Tries(factor, rest=2 * tries.rest)
        return equal

    def _try(self, cores: tuple[int, ...], tries: _Tries) -> None:
        tries.left -= 1
        now = self._measure(cores)
        if set(now) == set(cores):
            speeds = np.log([now[core] for core in cores])
            tries.found.append(speeds - speeds.mean())
        if not tries.left and (cores not in self._first or abs(math.log(tries.factor)) < math.log(_CHANGED)):
            self._keep_first(cores, tries.found)

    def _slowness(self, cores: tuple[int, ...], tries: _Tries) -> Floats | None:
        """Of each core the logarithm, where the cores can be told apart."""
        if len(tries.found) < _ENOUGH or cores not in self._first:
            return None
        slowness = self._first[cores] - np.median(tries.found, axis=0)
        return np.asarray(slowness) if np.ptp(slowness) >= math.log(UNEQUAL) else None

    def _keep_first(self, cores: tuple[int, ...], found: Sequence[Floats]) -> None:
        if found:
            self._first[cores] = np.asarray(np.median(found, axis=0))


def core_speeds(
    topology: Topology, cores: Sequence[int], pauses: Sequence[AbstractContextManager[object]] = ()
) -> Speeds:
    """Blocks hashed in a second on each core, for a moment; empty where threads cannot be bound to cores.

    Hashing lets go of the interpreter's lock, so the cores work side by side, and so does the rest of this process.

    Args:
        topology: the machine.
        cores: which, by id.
        pauses: entered when all cores are ready and left when all are done: they hold up what else runs there.
    """
    waiting = ExitStack()
    found: Speeds = {}

    def pause() -> None:
        for one in pauses:
            waiting.enter_context(one)

    ready = threading.Barrier(len(cores), action=pause)

    def work(core: int) -> None:
        try:
            os.sched_setaffinity(0, topology.cpus_of([core]))
        except (AttributeError, OSError):
            ready.abort()
        try:
            ready.wait(_PATIENCE_S)
        except threading.BrokenBarrierError:
            return
        began = time.monotonic()
        done = 0
        while (took := time.monotonic() - began) < PROBE_S:
            hashlib.sha256(_BLOCK).digest()
            done += 1
        found[core] = max(done, 1) / took

    threads = [threading.Thread(target=work, args=(core,), name="corepipe-probe", daemon=True) for core in cores]
    with waiting:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return found if len(found) == len(cores) else {}
