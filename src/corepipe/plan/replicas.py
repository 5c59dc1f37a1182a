"""The best replicas of pipelines: dynamic programming over the cores."""

from __future__ import annotations

import itertools

import numpy as np

from corepipe.cost.table import CostTable
from corepipe.plan.build import Grid, best_of, make_plan
from corepipe.plan.model import Plan
from corepipe.plan.pipeline import Cores, PipelineSearch, best_pipeline
from corepipe.topology.model import CoreConfig


def best_replicas(table: CostTable, max_groups: int | None = None) -> Plan:
    """The best way to part the cores into groups, each a pipeline of its own that runs whole frames.

    A group may be a single worker, so plain replicas (of any sizes) and the single pipeline are among the plans that
    are searched. By the table no other partition, split or order of such groups does better.

    Args:
        table: the costs.
        max_groups: how many groups there may be; as each holds every layer once, so many copies of the weights.

    Raises:
        PlanError: the table has no config within one cluster, gives the network no cost at all, or has too many kinds
            of cores to search.
    """
    grid = Grid.of(table)
    search = PipelineSearch(grid)
    total: Cores = tuple(grid.cluster_cores.values())
    shape = tuple(n + 1 for n in total)
    alone = np.zeros(shape)
    for cores in itertools.product(*map(range, shape)):
        alone[cores] = 1 / search.slowest_s(cores)
    best = [np.zeros(shape), alone]
    choice: list[dict[Cores, Cores]] = [{}, {cores: cores for cores in np.ndindex(shape) if alone[cores] > 0}]
    for _ in range(2, min(max_groups or sum(total), sum(total)) + 1):
        fps, first = np.zeros(shape), {}
        for cores in np.ndindex(shape):
            part = tuple(slice(0, n + 1) for n in cores)
            rest = tuple(slice(n, None, -1) for n in cores)
            sums = np.where((alone[part] > 0) & (best[-1][rest] > 0), alone[part] + best[-1][rest], 0.0)
            at = np.unravel_index(int(np.argmax(sums)), sums.shape)
            if sums[at] > 0:
                fps[cores], first[cores] = sums[at], tuple(int(n) for n in at)
        best.append(fps)
        choice.append(first)
    plans = [best_pipeline(table).model_copy(update={"planner": "pipelines"})]
    # One group is the best pipeline: a plan of one worker has costs of its own.
    groups = max(range(2, len(best)), key=lambda k: best[k][total], default=0)
    if groups and best[groups][total] > 0:
        configs: list[CoreConfig] = []
        routes = []
        left = total
        for k in range(groups, 0, -1):
            cores = choice[k][left]
            stages = search.stages(cores)
            hops = [(len(configs) + i, start, stop) for i, (_, start, stop) in enumerate(stages)]
            configs += [config for config, _, _ in stages]
            routes.append((1 / search.slowest_s(cores), hops))
            left = tuple(a - b for a, b in zip(left, cores, strict=True))
        plans.append(make_plan(table, "pipelines", configs, routes))
    return best_of(plans)
