"""The best rates for routes that are loaded already: the linear program of the routes without new ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import linprog

from corepipe.plan.model import Plan, route_groups

KEPT_SHARE = 0.01
"""Of the frames of routes that share workers each keeps so many: one without would tell nothing of itself any more."""


def mix_fps(plan: Plan, loads: Sequence[Mapping[str, float]]) -> float:
    """Frames/s of a plan at the mix of its own rates; routes that have no worker in common do not wait for each other.

    Args:
        plan: the plan.
        loads: for each route the seconds that each worker spends on a frame.
    """
    fps = 0.0
    for group in route_groups(plan):
        rates = {number: plan.routes[number].rate_fps for number in group}
        busy = [sum(rates[n] * loads[n].get(worker.name, 0.0) for n in group) for worker in plan.workers]
        fps += sum(rates.values()) / max(*busy, 1e-12)
    return fps


def best_rates(plan: Plan, loads: Sequence[Mapping[str, float]]) -> Plan:
    """The plan with the rates that give the highest throughput; routes without a rate stay without.

    Args:
        plan, loads: as for `mix_fps`.
    """
    used = [number for number, route in enumerate(plan.routes) if route.rate_fps > 0]
    rows = np.array([[loads[number].get(worker.name, 0.0) for number in used] for worker in plan.workers])
    scale = rows.max()
    # No route below its least share of its group's frames: KEPT_SHARE * sum(rates of the group) - rate <= 0.
    group_of = {number: index for index, group in enumerate(route_groups(plan)) for number in group}
    together = np.array([[group_of[one] == group_of[other] for other in used] for one in used])
    least = KEPT_SHARE * together - np.eye(len(used))
    found = linprog(
        -np.ones(len(used)),
        A_ub=np.vstack([rows / scale, least]),
        b_ub=np.concatenate([np.ones(len(rows)), np.zeros(len(used))]),
        method="highs",
    )
    if found.x is None:
        return plan
    rates = dict(zip(used, found.x / scale, strict=True))
    routes = tuple(
        route.model_copy(update={"rate_fps": float(max(rates.get(number, 0.0), 0.0))})
        for number, route in enumerate(plan.routes)
    )
    return plan.model_copy(update={"routes": routes, "predicted_fps": float(sum(rates.values()))})
