"""The exact best single pipeline: dynamic programming over (layers, cores used per cluster)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from corepipe.cost.table import CostTable
from corepipe.errors import PlanError
from corepipe.plan.build import Grid, Stage, best_of, pipeline_plan, single_plan
from corepipe.plan.model import Plan

Cores = tuple[int, ...]
"""Numbers of cores, one per cluster in the machine's order."""

_SLACK = 1 + 1e-12


def best_pipeline(table: CostTable) -> Plan:
    """The pipeline with the highest throughput by the table, stages in any order over the clusters.

    No split of the layers into stages, choice of worker sizes or order of workers does better; of equal pipelines one
    with the fewest stages is returned.

    Args:
        table: the costs.

    Raises:
        PlanError: the table has no config within one cluster, gives the network no cost at all, or has too many kinds
            of cores to search.
    """
    grid = Grid.of(table)
    search = PipelineSearch(grid, several=True)
    total = tuple(grid.cluster_cores.values())
    plans = [single_plan(table, "pipeline", config) for config in grid.configs]
    if np.isfinite(search.slowest_s(total)):
        plans.append(pipeline_plan(table, "pipeline", search.stages(total)))
    return best_of(plans)


MAX_STATES = 2**20
"""Numbers of cores of each kind, times all cores: some seconds. Six kinds of four cores have a third of it."""

MAX_STEPS = 2**33
"""And these times configs times pairs of cuts: some ten seconds."""


@dataclass
class PipelineSearch:
    """The least possible time of the slowest stage, for every number of cores at once.

    Costs are those with the other cores busy, also for a pipeline of one stage.

    Attributes:
        grid: the costs.
        several: whether pipelines of one stage are left out (a plan of one worker has other costs).

    Raises:
        PlanError: there are too many kinds of cores to search.
    """

    grid: Grid
    several: bool = False

    def __post_init__(self) -> None:
        self._loads = self.grid.loads
        if self.several:
            self._loads = self._loads.copy()
            self._loads[:, -1, 0] = np.inf
        clusters = list(self.grid.cluster_cores)
        self._total: Cores = tuple(self.grid.cluster_cores.values())
        self._check_size()
        self._take = [tuple(c.count if name == c.cluster else 0 for name in clusters) for c in self.grid.configs]
        self._slowest = self._solve_slowest()

    def _check_size(self) -> None:
        states = math.prod(n + 1 for n in self._total)
        if states * sum(self._total) > MAX_STATES or states * self._loads.size > MAX_STEPS:
            raise PlanError(
                f"pipelines of {len(self._total)} kinds of cores ({', '.join(map(str, self._total))}) and "
                f"{len(self.grid.cuts) - 1} parts are too many to search; let the planner find routes"
            )

    def slowest_s(self, cores: Cores) -> float:
        """Seconds of the slowest stage of the best pipeline on these cores; infinite if there is none."""
        return float(self._slowest[cores][0])

    def stages(self, cores: Cores) -> list[Stage]:
        """The best pipeline on these cores, of equal ones one with the fewest stages.

        Raises:
            ValueError: there is none.
        """
        limit = self.slowest_s(cores) * _SLACK
        if not np.isfinite(limit):
            raise ValueError(f"there is no pipeline on {cores} cores")
        fits = self._loads <= limit
        counts = self._solve_counts(fits, cores)
        cuts, last = self.grid.cuts, len(self.grid.cuts) - 1
        start, left, stages = 0, cores, []
        while start < last:
            t, stop = next(
                (t, stop)
                for t in range(len(self.grid.configs))
                if (rest := _minus(left, self._take[t])) is not None
                for stop in range(start + 1, last + 1)
                if fits[t, stop, start] and counts[rest][stop] + 1 == counts[left][start]
            )
            stages.append((self.grid.configs[t], cuts[start], cuts[stop]))
            start, left = stop, _minus(left, self._take[t]) or left
        return stages

    def _solve_slowest(self) -> dict[Cores, NDArray[np.float64]]:
        """For each number of cores, by the cut from which on layers are still to run: seconds of the slowest stage."""
        done = np.full(len(self.grid.cuts), np.inf)
        done[-1] = 0.0
        best: dict[Cores, NDArray[np.float64]] = {}
        for cores in itertools.product(*(range(n + 1) for n in self._total)):
            value = done.copy()
            for t, take in enumerate(self._take):
                rest = _minus(cores, take)
                if rest is not None:
                    slowest = np.maximum(self._loads[t], best[rest][:, None]).min(axis=0)
                    np.minimum(value, slowest, out=value)
            best[cores] = value
        return best

    def _solve_counts(self, fits: NDArray[np.bool_], total: Cores) -> dict[Cores, NDArray[np.float64]]:
        """The same for the least number of stages, using only stages that fit into the time."""
        done = np.full(len(self.grid.cuts), np.inf)
        done[-1] = 0.0
        stage = np.where(fits, 1.0, np.inf)
        best: dict[Cores, NDArray[np.float64]] = {}
        for cores in itertools.product(*(range(n + 1) for n in total)):
            value = done.copy()
            for t, take in enumerate(self._take):
                rest = _minus(cores, take)
                if rest is not None:
                    np.minimum(value, (stage[t] + best[rest][:, None]).min(axis=0), out=value)
            best[cores] = value
        return best


def _minus(cores: Cores, take: Cores) -> Cores | None:
    """What is left of some cores, None if there are too few."""
    left = tuple(a - b for a, b in zip(cores, take, strict=True))
    return left if min(left) >= 0 else None
