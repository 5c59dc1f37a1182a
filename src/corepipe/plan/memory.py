"""Plans that keep a memory budget: a heuristic, since which segments to hold is a choice of yes or no for each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np

from corepipe.cost.table import CostTable
from corepipe.errors import PlanError
from corepipe.plan.build import Grid, make_plan
from corepipe.plan.column_generation import Mix, RouteProgram
from corepipe.plan.limits import Limits, weight_bytes
from corepipe.plan.model import Plan
from corepipe.plan.pipeline import best_pipeline
from corepipe.plan.rates import best_rates, route_loads
from corepipe.plan.replicas import best_replicas

_MAX_SPARE_COPIES = 2


def fitting_plans(
    program: RouteProgram,
    mix: Mix,
    limits: Limits,
    plan_of_mix: Callable[[Grid, Mix], Plan],
    best_mix: Callable[[int], Mix | None],
) -> list[Plan]:
    """Plans within a memory budget, made from mixes of routes that are too large for it.

    From the best mix without the budget, and from the best mixes of so many workers as there is memory for copies
    of the weights (and of one and two more), the route whose loss costs least throughput is taken away, one after the
    other, until the rest fits. The best replicas of pipelines with so many copies, the best single pipeline, and the
    route with the lowest latency alone are tried as well.

    Args:
        program: the linear program of the routes.
        mix: the best mix without a memory budget.
        limits: with a memory budget.
        plan_of_mix: makes a plan of a mix.
        best_mix: finds the best mix for a number of workers.

    Returns:
        Plans, not all of them within every limit.
    """
    table, weights = program.grid.table, limits.layer_weight_bytes
    if weights is None or limits.memory_budget_bytes is None:
        return []
    workers = int(mix.workers.sum())
    copies = int(limits.memory_budget_bytes // max(sum(weights), 1))
    most = min(workers, limits.max_workers or workers)
    numbers = range(max(copies, 2), min(copies + _MAX_SPARE_COPIES + 1, most))
    mixes = [mix, *(best_mix(number) for number in numbers)]
    plans = [_shrunk(plan_of_mix(program.grid, m), table, limits) for m in mixes if m is not None]
    _, quickest = program.paths.quickest(np.flatnonzero(mix.workers > 0))
    cuts = program.grid.cuts
    used = sorted({t for t, _, _ in quickest})
    hops = [(used.index(t), cuts[start], cuts[stop]) for t, start, stop in quickest]
    alone = make_plan(table, "routes", [program.grid.configs[t] for t in used], [(1.0, hops)])
    plans.append(alone)
    with contextlib.suppress(PlanError):  # too many kinds of cores
        plans += [best_pipeline(table), best_replicas(table, max(copies, 1))]
    return plans


def _shrunk(plan: Plan, table: CostTable, limits: Limits) -> Plan:
    """A plan with routes taken away until its weights fit into the budget (or one route is left)."""
    assert limits.layer_weight_bytes is not None
    assert limits.memory_budget_bytes is not None
    while len(plan.routes) > 1:
        held = sum(weight_bytes(plan, limits.layer_weight_bytes).values())
        if held <= limits.memory_budget_bytes:
            break
        smaller = [_with_best_rates(plan, table, left_out) for left_out in range(len(plan.routes))]
        need = held - limits.memory_budget_bytes

        def merit(candidate: Plan, held: int = held, need: float = need) -> float:
            assert limits.layer_weight_bytes is not None
            freed = held - sum(weight_bytes(candidate, limits.layer_weight_bytes).values())
            return (candidate.predicted_fps or 0.0) * min(1.0, freed / need)

        plan = max(smaller, key=merit)
    return plan


def _with_best_rates(plan: Plan, table: CostTable, left_out: int) -> Plan:
    """The plan without one of its routes, the rates of the others solved anew."""
    rest = plan.model_copy(update={"routes": tuple(r for i, r in enumerate(plan.routes) if i != left_out)})
    best = best_rates(rest, route_loads(rest, table), least_share=0.0)
    numbers = plan.worker_numbers
    mix = [
        (route.rate_fps, [(numbers[hop.worker], hop.start, hop.stop) for hop in route.hops])
        for route in best.routes
        if route.rate_fps > 1e-9 * best.throughput_fps
    ]
    return make_plan(table, plan.planner, [worker.core_config for worker in plan.workers], mix)
