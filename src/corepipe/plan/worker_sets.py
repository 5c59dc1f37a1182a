"""The sets of workers that a machine's cores can be parted into, and the search for the most promising one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from corepipe.plan.build import Grid

Floats = NDArray[np.float64]

MAX_LISTED = 100_000
"""Up to so many worker sets are listed one by one; beyond, an integer program stands for them."""

MAX_PROGRAM_S = 5.0
"""After so many seconds an integer program gives the bound and the set that it has by then."""


class WorkerSets:
    """All sets of workers, each a count per config, with an upper bound on what each can reach.

    A bound is a *cut*: prices y with `throughput(n) <= y . n` for every set n (a dual solution of the routes' linear
    program, at whose prices no route costs less than 1). A set's bound is the least over all cuts. Sets are maximal: no
    further worker fits in, since another worker never lowers the optimum.

    Args:
        grid: whose configs the sets consist of.
        max_workers: sets of more workers are left out.
    """

    def __init__(self, grid: Grid, max_workers: int | None = None) -> None:
        self._grid = grid
        self._max_workers = max_workers
        self._cuts: list[Floats] = []
        self._bound = np.inf
        self.listed: Floats | None = None
        if self.count() <= MAX_LISTED:
            self.listed = self._list()
            self._bounds = np.full(len(self.listed), np.inf)

    def count(self) -> int:
        """How many sets there are at most (the limit on workers aside)."""
        total = 1
        for sizes, cores, _ in self._clusters():
            ways = [1] + [0] * cores
            for size in sizes:
                for n in range(size, cores + 1):
                    ways[n] += ways[n - size]
            total *= sum(ways if self._max_workers else ways[max(0, cores - sizes[0] + 1) :])
        return total

    def add_cut(self, prices: Floats) -> None:
        """Tighten the bounds by prices y, shape (T,), with throughput(n) <= y . n for every set n."""
        if self.listed is None:
            self._cuts.append(prices)
            per_core = [(max(prices[indices] / sizes), cores) for sizes, cores, indices in self._clusters()]
            self._bound = min(self._bound, float(sum(price * cores for price, cores in per_core)))
        else:
            np.minimum(self._bounds, self.listed @ prices, out=self._bounds)

    def most_promising(self) -> tuple[float, Floats | None]:
        """The highest bound of all sets (so a bound on them all) and a set that has it, None if there is no set.

        Where the integer program is not solved in time, the bound is a higher one and the set a good one.
        """
        if self.listed is None:
            bound, workers = self._solve()
            self._bound = min(self._bound, bound)
            return self._bound, workers
        if not len(self.listed):
            return 0.0, None
        at = int(np.argmax(self._bounds))
        return float(self._bounds[at]), self.listed[at]

    def ties(self, fps: float, workers: int) -> Iterator[Floats]:
        """Sets of fewer workers than `workers` whose bound is not below `fps`, those with fewest workers first."""
        if self.listed is None:
            return
        sizes = self.listed.sum(axis=1)
        tried = np.zeros(len(sizes), bool)
        while True:
            open_sets = np.flatnonzero((self._bounds >= fps) & (sizes < workers) & ~tried)
            if not len(open_sets):
                return
            at = open_sets[int(np.argmin(sizes[open_sets]))]
            tried[at] = True
            yield self.listed[at]

    def _clusters(self) -> Iterator[tuple[list[int], int, list[int]]]:
        """For each cluster the worker sizes, ascending, the number of cores, and the indices of the configs."""
        for name, cores in self._grid.cluster_cores.items():
            indices = [t for t, config in enumerate(self._grid.configs) if config.cluster == name]
            if indices:
                yield [self._grid.configs[t].count for t in indices], cores, indices

    def _list(self) -> Floats:
        limit = self._max_workers or sum(self._grid.cluster_cores.values())
        parts = []
        for sizes, cores, indices in self._clusters():
            found = list(_parts(tuple(reversed(sizes)), cores, limit, full=not self._max_workers))
            rows = np.array(found, float)[:, ::-1]
            wide = np.zeros((len(rows), len(self._grid.configs)))
            wide[:, indices] = rows
            parts.append(wide)
        sets = parts[0]
        for part in parts[1:]:
            sets = (sets[:, None, :] + part[None, :, :]).reshape(-1, sets.shape[1])
            sets = sets[sets.sum(axis=1) <= limit]
        return np.asarray(sets[sets.sum(axis=1) > 0])

    def _solve(self) -> tuple[float, Floats | None]:
        """Maximise the bound over n by an integer program in (n, bound)."""
        count = len(self._grid.configs)
        cuts = np.array(self._cuts)
        rows = [LinearConstraint(np.hstack([cuts, -np.ones((len(cuts), 1))]), lb=0)]
        upper = []
        for sizes, cores, indices in self._clusters():
            weights = np.zeros(count + 1)
            weights[indices] = sizes
            rows.append(LinearConstraint(weights, ub=cores))
            upper += [cores // size for size in sizes]
        if self._max_workers:
            rows.append(LinearConstraint(np.append(np.ones(count), 0.0), ub=self._max_workers))
        result = milp(
            c=np.append(np.zeros(count), -1.0),
            integrality=np.append(np.ones(count), 0),
            bounds=Bounds(0, np.append(upper, np.inf)),
            constraints=rows,
            options={"mip_rel_gap": 1e-9, "time_limit": MAX_PROGRAM_S},
        )
        bounds = [-float(value) for value in (result.fun, result.mip_dual_bound) if value is not None]
        bound = max(bounds) if result.mip_dual_bound is not None else np.inf
        if result.x is None:
            return bound, self._filled(self._cuts[-1])
        return bound, np.round(result.x[:-1])

    def _filled(self, prices: Floats) -> Floats:
        """A set of the configs whose cores have the highest prices."""
        workers = np.zeros(len(prices))
        most = self._max_workers or sum(self._grid.cluster_cores.values())
        for sizes, cores, indices in self._clusters():
            left = cores
            for size, t in sorted(zip(sizes, indices, strict=True), key=lambda one: -prices[one[1]] / one[0]):
                workers[t] = min(left // size, most - int(workers.sum()))
                left -= int(workers[t]) * size
        return workers


def _parts(sizes: tuple[int, ...], cores: int, workers: int, *, full: bool) -> Iterator[tuple[int, ...]]:
    """The counts of each size, descending, with at most so many cores and workers; `full`: with no room for more."""
    most = min(cores // sizes[0], workers)
    if len(sizes) == 1:
        yield from ((count,) for count in range(most if full else 0, most + 1))
        return
    for count in range(most + 1):
        for rest in _parts(sizes[1:], cores - count * sizes[0], workers - count, full=full):
            yield (count, *rest)
