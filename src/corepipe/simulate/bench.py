"""Plans side by side in simulated time, with results like those of measured ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from corepipe.cost.table import CostTable
from corepipe.plan.model import Plan, evaluate
from corepipe.plan_results import PlanResult, hop_checks
from corepipe.simulate.events import Contention, simulate
from corepipe.simulate.result import Simulation

_SLICES = 5


def simulate_bench(
    table: CostTable,
    plans: Mapping[str, Plan],
    *,
    frames: int | None = None,
    slots: int | None = None,
    jitter: float = 0.0,
    contention: Contention | None = None,
    seed: int = 0,
) -> list[PlanResult]:
    """Simulated results of several plans, as `corepipe.compare.compare` gives measured ones.

    Nothing is computed, so there is no memory to report (0) and no output to differ (largest error 0).

    Args:
        table: the costs.
        plans: by the name to report.
        frames, slots, jitter, contention, seed: as for `simulate`.

    Raises:
        PlanError, UnknownNameError, UsageError: as for `simulate`.
    """
    runs = {
        name: simulate(plan, table, frames=frames, slots=slots, jitter=jitter, contention=contention, seed=seed)
        for name, plan in plans.items()
    }
    return [_result(name, run, table) for name, run in runs.items()]


def _result(name: str, run: Simulation, table: CostTable) -> PlanResult:
    plan = run.plan
    slices = run.slices(_SLICES)
    p50, p90, p99 = (float(p) for p in np.percentile([record.latency_s for record in run.steady], [50, 90, 99]))
    return PlanResult(
        name=name,
        plan=plan,
        throughput_fps=run.throughput_fps,
        throughput_spread_fps=(min(*slices, run.throughput_fps), max(*slices, run.throughput_fps)),
        predicted_fps=evaluate(plan, table).throughput_fps,
        latency_s=(p50, p90, p99),
        busy=run.busy,
        hops=hop_checks(plan, run.steady, table),
        peak_rss_bytes=0,
        largest_error=0.0,
        records=run.records,
    )
