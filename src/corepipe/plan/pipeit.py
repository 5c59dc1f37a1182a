"""Pipe-it's own search for a pipeline.

S. Wang, G. Ananthanarayanan, Y. Zeng, N. Goel, A. Pathania, T. Mitra: "High-Throughput CNN Inference on Embedded ARM
big.LITTLE Multi-Core Processors" (arXiv 1903.05898), the design space exploration: `find_split`, `work_flow` and
`merge_stage`. Where a choice is open, or a cost table does not promise what the search builds on (hops for free, every
cut legal, costs of every core count), the docstrings below say what is done here.
"""

from __future__ import annotations

import numpy as np

from corepipe.cost.table import CostTable
from corepipe.plan.build import Grid, pipeline_plan
from corepipe.plan.model import Plan
from corepipe.topology.model import CoreConfig

Stage = tuple[int, int, int]
"""Index of a config in the grid, and the indices of the cuts where the stage starts and stops (equal: empty)."""


def pipe_it(table: CostTable) -> Plan:
    """The pipeline that Pipe-it's search finds.

    It starts with one stage per core, fastest cluster first (where the table has no config of one core: stages of the
    smallest size it has), lets the layers flow down the stages to a balance, and merges neighbouring stages of one
    cluster while that raises the throughput. Stages that end up without layers are left out; their cores idle.

    Args:
        table: the costs; a stage costs its layers, its segment and its half of each hop.

    Raises:
        PlanError: the table has no config within one cluster, or gives the network no cost at all.
    """
    grid = Grid.of(table)
    stages = merge_stage(grid, single_core_stages(grid))
    return pipeline_plan(
        table,
        "pipe-it",
        [(grid.configs[t], grid.cuts[start], grid.cuts[stop]) for t, start, stop in stages if start < stop],
    )


def single_core_stages(grid: Grid) -> list[int]:
    """The configs of the pipeline that the search starts from: one core each, fastest cluster first."""
    smallest: dict[str, int] = {}
    for t, config in enumerate(grid.configs):
        smallest.setdefault(config.cluster, t)
    return [t for name, t in smallest.items() for _ in range(grid.cluster_cores[name] // grid.configs[t].count)]


def find_split(grid: Grid, first: Stage, second: Stage) -> tuple[Stage, Stage]:
    """Move layers from the end of a stage to the start of the next until the two are in balance.

    In balance means: the slower of the two is as fast as it can get. Every legal cut within the first stage is tried,
    since with hops that cost something the time of the slower one need not fall steadily; of equal ones, that which
    moves most layers is taken, so that they can flow on to stages further down.

    Args:
        grid: the costs.
        first: a stage from cut a to cut b.
        second: the next stage, from cut b to cut c.

    Returns:
        The two stages, from a to s and from s to c for some a <= s <= b.
    """
    (upper, start, split), (lower, _, stop) = first, second
    upper_s, lower_s = grid.loads[upper, start : split + 1, start].copy(), np.zeros(split - start + 1)
    upper_s[0] = 0.0
    lower_s[: stop - start] = grid.loads[lower, stop, start : split + 1][: stop - start]
    slower_s = np.maximum(upper_s, lower_s)
    best = start + int(np.argmin(slower_s))
    return (upper, start, best), (lower, best, stop)


def work_flow(grid: Grid, configs: list[int]) -> list[Stage]:
    """Divide the layers among given stages: all start in the first and flow down, stage by stage, to a balance.

    Passes over all neighbours are repeated until none moves a layer. Layers never flow back up, so this ends.

    Returns:
        One stage per config, in order; stages that got no layers are empty.
    """
    last = len(grid.cuts) - 1
    stages: list[Stage] = [(configs[0], 0, last), *((t, last, last) for t in configs[1:])]
    open_pairs = {0} if len(stages) > 1 else set()
    while open_pairs:
        for i in sorted(open_pairs):
            open_pairs.discard(i)
            pair = find_split(grid, stages[i], stages[i + 1])
            if pair[0] != stages[i]:
                stages[i : i + 2] = pair
                open_pairs |= {k for k in (i - 1, i + 1) if 0 <= k < len(stages) - 1}
    return stages


def merge_stage(grid: Grid, configs: list[int]) -> list[Stage]:
    """Merge neighbouring stages of one cluster into a stage with the cores of both, while it raises the throughput.

    In each round every merge is tried (the table must have costs of the merged config), the layers flow anew over the
    stages that it leaves, and the best one is kept.

    Returns:
        The stages of the best pipeline found, empty ones among them.
    """
    known = {config: t for t, config in enumerate(grid.configs)}
    stages = work_flow(grid, configs)
    best_s = _pipeline_s(grid, stages)
    while True:
        better: list[Stage] | None = None
        tried: set[tuple[int, ...]] = set()
        for i in range(len(configs) - 1):
            upper, lower = grid.configs[configs[i]], grid.configs[configs[i + 1]]
            merged = known.get(CoreConfig(upper.cluster, upper.count + lower.count))
            if upper.cluster != lower.cluster or merged is None:
                continue
            attempt = [*configs[:i], merged, *configs[i + 2 :]]
            if tuple(attempt) in tried:
                continue
            tried.add(tuple(attempt))
            candidate = work_flow(grid, attempt)
            seconds = _pipeline_s(grid, candidate)
            if seconds < best_s:
                better, best_s = candidate, seconds
        if better is None:
            return stages
        stages, configs = better, [t for t, _, _ in better]


def _pipeline_s(grid: Grid, stages: list[Stage]) -> float:
    """Seconds of the slowest stage; a pipeline of one stage runs with the rest of the machine idle."""
    filled = [(t, start, stop) for t, start, stop in stages if start < stop]
    if len(filled) == 1:
        return grid.alone_s(grid.configs[filled[0][0]])
    return max(float(grid.loads[t, stop, start]) for t, start, stop in filled)
