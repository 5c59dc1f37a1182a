"""One plan's records as a result, where a single plan ran and nothing was compared."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from corepipe.cost.table import CostTable
from corepipe.errors import FrameError
from corepipe.plan.model import Plan, evaluate
from corepipe.plan_results import PlanResult, hop_checks
from corepipe.report.life import hops_done
from corepipe.runtime.record import FrameRecord

_PARTS = 5


def result_of_records(
    name: str, plan: Plan, records: Sequence[FrameRecord], table: CostTable | None = None
) -> PlanResult:
    """What one run of a plan did, from the records of its frames.

    The spread is over five equal parts of the run (fewer for a short one). What was not looked at is NaN: the largest
    error, and without a table the predictions. Memory is 0, which means unknown.

    Args:
        name: of the result.
        plan: the plan.
        records: of its frames, failed ones included.
        table: the costs that predictions are made from.

    Raises:
        FrameError: fewer than two frames ended well.
        PlanError: plan and table are of different networks.
    """
    # Not by when they were done: word of results may come for several at once.
    done = sorted((r for r in records if not r.failed), key=lambda r: r.computed_ns)
    if len(done) < 2 or done[-1].computed_ns <= done[0].computed_ns:
        raise FrameError(f"{name}: too few frames with a result to sum up ({len(done)}); run more frames")
    seconds = (done[-1].computed_ns - done[0].computed_ns) * 1e-9
    busy = dict.fromkeys((w.name for w in plan.workers), 0.0)
    for record in done[1:]:
        for hop in hops_done(record):
            busy[hop.worker] = busy.get(hop.worker, 0.0) + (hop.ended_ns - hop.started_ns) * 1e-9 / seconds
    p50, p90, p99 = (float(p) for p in np.percentile([r.latency_s for r in done], [50, 90, 99]))
    parts = _rates(done)
    return PlanResult(
        name=name,
        plan=plan,
        throughput_fps=(len(done) - 1) / seconds,
        throughput_spread_fps=(min(parts), max(parts)),
        predicted_fps=math.nan if table is None else evaluate(plan, table).throughput_fps,
        latency_s=(p50, p90, p99),
        busy={worker: min(share, 1.0) for worker, share in busy.items()},
        hops=hop_checks(plan, done[1:], table),
        peak_rss_bytes=0,
        largest_error=math.nan,
    )


def _rates(done: Sequence[FrameRecord]) -> list[float]:
    """Frames/s of each part of a run."""
    edges = np.linspace(0, len(done) - 1, min(_PARTS, len(done) - 1) + 1).astype(int)
    spans = [(b - a, (done[b].computed_ns - done[a].computed_ns) * 1e-9) for a, b in itertools.pairwise(edges)]
    rates = [float(count / span) for count, span in spans if span > 0]
    return rates or [(len(done) - 1) / ((done[-1].computed_ns - done[0].computed_ns) * 1e-9)]
