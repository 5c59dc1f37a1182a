"""The best rates for routes that are loaded already: the linear program of the routes without new ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import linprog

from corepipe.plan.model import Plan

LEAST_SHARE = 0.01
"""Of the frames that a route keeps: one without frames would tell nothing of its workers any more."""


def mix_fps(plan: Plan, loads: Sequence[Mapping[str, float]]) -> float:
    """Frames/s of a plan at the mix of its own rates.

    Args:
        plan: the plan.
        loads: for each route the seconds that each worker spends on a frame.
    """
    shares = np.array([route.rate_fps for route in plan.routes]) / plan.throughput_fps
    names = [worker.name for worker in plan.workers]
    busy = [sum(share * load.get(name, 0.0) for share, load in zip(shares, loads, strict=True)) for name in names]
    return 1 / max(*map(float, busy), 1e-12)


def best_rates(plan: Plan, loads: Sequence[Mapping[str, float]]) -> Plan:
    """The plan with the rates that give the highest throughput; routes without a rate stay without.

    Args:
        plan, loads: as for `mix_fps`.
    """
    used = [number for number, route in enumerate(plan.routes) if route.rate_fps > 0]
    rows = np.array([[loads[number].get(worker.name, 0.0) for number in used] for worker in plan.workers])
    scale = rows.max()
    # No route below its least share of the total: LEAST_SHARE * sum(rates) - rate <= 0.
    least = np.full((len(used), len(used)), LEAST_SHARE) - np.eye(len(used))
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
