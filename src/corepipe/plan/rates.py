"""The best rates for the routes that a plan has: the linear program of the routes without new ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import linprog

from corepipe.cost.table import CostTable
from corepipe.plan.model import Hop, Plan, hop_s, route_groups

KEPT_SHARE = 0.01
"""Of the frames of routes that share workers each keeps so many: one without would tell nothing of itself any more."""


def route_loads(plan: Plan, table: CostTable, took_s: Mapping[Hop, float] | None = None) -> list[dict[str, float]]:
    """For each route the seconds that each of its workers spends on a frame, its halves of hand-overs included.

    Args:
        plan: the plan.
        table: the costs.
        took_s: what hops of the plan were seen to take for a frame, in seconds. Those not seen are assumed to take by
            the same factor longer than the table says as those of their worker that were.

    Raises:
        PlanError: the table has no costs of a worker, or not with its engines and batches.
    """
    table, busy = table.for_frames(plan.batch), len(plan.workers) > 1
    expected = {hop: hop_s(plan, hop, table, busy=busy) for route in plan.routes for hop in route.hops}
    took = dict(took_s or {})
    for worker in plan.workers:
        own = [hop for hop in expected if hop.worker == worker.name]
        seen = [hop for hop in own if hop in took]
        should_s = sum(expected[hop] for hop in seen)
        factor = sum(took[hop] for hop in seen) / should_s if should_s > 0 else 1.0
        took.update({hop: factor * expected[hop] for hop in own if hop not in took})
    loads = []
    for route in plan.routes:
        load: dict[str, float] = {}
        for hop in route.hops:
            seconds = took[hop] + table.half_hop_s(hop.start) + table.half_hop_s(hop.stop)
            load[hop.worker] = load.get(hop.worker, 0.0) + seconds
        loads.append(load)
    return loads


def mix_fps(plan: Plan, loads: Sequence[Mapping[str, float]]) -> float:
    """Frames/s of a plan at the mix of its own rates; routes that have no worker in common do not wait for each other.

    Args:
        plan: the plan.
        loads: for each route the seconds that each worker spends on a frame.
    """
    return filled(plan, loads).throughput_fps


def filled(plan: Plan, loads: Sequence[Mapping[str, float]]) -> Plan:
    """The plan with the rates of each group of routes scaled until a worker of it has no more time.

    Args:
        plan, loads: as for `mix_fps`.
    """
    rates = [route.rate_fps for route in plan.routes]
    for group in route_groups(plan):
        busy = [sum(rates[n] * loads[n].get(worker.name, 0.0) for n in group) for worker in plan.workers]
        for number in group:
            rates[number] /= max(*busy, 1e-12)
    return plan.with_rates(rates)


def best_rates(plan: Plan, loads: Sequence[Mapping[str, float]], *, least_share: float = KEPT_SHARE) -> Plan:
    """The plan with the rates that give the highest throughput; routes without a rate stay without.

    Args:
        plan, loads: as for `mix_fps`.
        least_share: of the frames of routes that share workers each route keeps so many (many routes together half).
    """
    used = [number for number, route in enumerate(plan.routes) if route.rate_fps > 0]
    rows = np.array([[loads[number].get(worker.name, 0.0) for number in used] for worker in plan.workers])
    scale = rows.max()
    # No route below its least share of its group's frames: share * sum(rates of the group) - rate <= 0.
    group_of = {number: group for group in route_groups(plan) for number in group}
    shares = {number: min(least_share, 0.5 / len(group_of[number])) for number in used}
    together = np.array([[shares[one] * (other in group_of[one]) for other in used] for one in used])
    least = together - np.eye(len(used))
    found = linprog(
        -np.ones(len(used)),
        A_ub=np.vstack([rows / scale, least]),
        b_ub=np.concatenate([np.ones(len(rows)), np.zeros(len(used))]),
        method="highs-ds",  # a corner: it uses few routes
    )
    if found.x is None:
        return plan
    rates = dict(zip(used, found.x / scale, strict=True))
    made = plan.with_rates(float(max(rates.get(number, 0.0), 0.0)) for number in range(len(plan.routes)))
    return made.model_copy(update={"predicted_fps": float(sum(rates.values()))})
