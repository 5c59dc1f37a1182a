"""Some plans of one network run for a while, to use the fastest, with the costs corrected by what they took."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from corepipe.compare import FRAMES_PER_HOP, compare
from corepipe.cost.learn import learnt
from corepipe.cost.table import CostTable
from corepipe.errors import CorepipeError, PlanError
from corepipe.network.model import Network
from corepipe.plan.model import Plan
from corepipe.plan.rates import best_rates, filled, mix_fps, route_loads
from corepipe.plan_results import PlanResult, Trial, fastest
from corepipe.topology.model import Topology

_ROUNDS, _MOST_ROUNDS, _SLICE_S = 6, 20, 0.5
"""How long candidates are tried: enough to tell 3 % on most machines (1 % on a quiet one), and longer where not."""

_MOST_ATTEMPTS, _REPLAN_GAIN = 3, 0.02
"""How often a trial runs plans, the later times one made by what it saw, and how much more that must promise."""


def trial(
    network: Network,
    plans: Mapping[str, Plan],
    topology: Topology,
    table: CostTable,
    frames: Sequence[Mapping[str, NDArray[Any]]],
    *,
    replan: Callable[[CostTable], Plan],
    on_progress: Callable[[float, str], None] = lambda share, text: None,
) -> Trial:
    """Run plans against each other for some seconds, to use the fastest; one that cannot run is left out.

    What their hops took corrects the costs. A plan that promises clearly more by these then runs against the fastest
    one, which may teach more, and so on a few times.

    Args:
        network, topology, table, frames, on_progress: as for `compare`.
        plans: by name, the preferred one first.
        replan: finds the best plan by a table, and gives it a name of its own.

    Raises:
        CorepipeError: no plan could run, or none has the whole model's outputs.
    """
    failures: dict[str, CorepipeError] = {}
    found: dict[str, PlanResult] = {}
    tried = {_but_rates(plan) for plan in plans.values()}
    best: PlanResult | None = None
    corrected = table
    for attempt in range(_MOST_ATTEMPTS):
        results = compare(
            network, plans, topology, corrected, frames,
            rounds=_ROUNDS, most_rounds=_MOST_ROUNDS, slice_s=_SLICE_S, race=True,
            correct_rates=plans, on_failure=failures.__setitem__,
            on_progress=functools.partial(_of_attempt, on_progress, attempt),
        )  # fmt: skip
        found |= {one.name: one for one in results}
        best = _best_of(results, found, best, failures)
        seen = [(one.plan, {check.hop: check.measured_s for check in one.hops if check.frames >= FRAMES_PER_HOP})
                for one in found.values() if not one.same_as]  # fmt: skip
        corrected = learnt(table, seen)
        again = None
        with contextlib.suppress(PlanError):
            again = replan(corrected)
        if again is None or _but_rates(again) in tried or not _promises_more(again, best.plan, corrected):
            break
        tried.add(_but_rates(again))
        name = f"{again.planner}-{attempt + 1}" if attempt else again.planner
        plans = {best.name: best.plan, name: again.model_copy(update={"planner": name})}
    on_progress(1.0, "done")
    assert best is not None
    loads = {name: route_loads(one.plan, corrected) for name, one in found.items()}
    found = {
        name: dataclasses.replace(one, predicted_fps=mix_fps(one.plan, loads[name])) for name, one in found.items()
    }
    plan = filled(best.plan, loads[best.name])
    bound_fps = None if again is None else again.bound_fps
    figures = {"predicted_fps": plan.throughput_fps, "bound_fps": bound_fps, "given_up": None}
    found[best.name] = dataclasses.replace(found[best.name], plan=plan.model_copy(update=figures))
    return Trial(found[best.name], tuple(found.values()), failures, corrected)


def _best_of(
    results: Sequence[PlanResult],
    found: Mapping[str, PlanResult],
    best: PlanResult | None,
    failures: dict[str, CorepipeError],
) -> PlanResult:
    """The fastest of a comparison in which the best one so far ran right; else of all that ran right and did not fail.

    Where that is none, the best one so far is kept if it only could not run beside others: it ran before.
    """
    if best is None and not results:
        raise next(iter(failures.values()))
    if best is None or any(one.name == best.name and one.outputs_equal for one in results):
        return fastest(results)
    left = [one for name, one in found.items() if one.outputs_equal and name not in failures]
    if not left and best.name in failures:
        del failures[best.name]
        return best
    return fastest(left, side_by_side=False)


def _but_rates(plan: Plan) -> tuple[Any, ...]:
    """What two plans have in common that share out frames differently."""
    return plan.batch, plan.workers, frozenset(route.hops for route in plan.routes if route.rate_fps > 0)


def _of_attempt(on_progress: Callable[[float, str], None], attempt: int, share: float, text: str) -> None:
    """The progress of one of several comparisons."""
    on_progress((attempt + share) / _MOST_ATTEMPTS, text if share < 1 else "planning anew")


def _promises_more(plan: Plan, best: Plan, table: CostTable) -> bool:
    """Whether it is worth running it against the best one so far, which may have its best rates."""
    promised = best_rates(best, route_loads(best, table)).predicted_fps or 0.0
    return (plan.predicted_fps or 0.0) >= (1 + _REPLAN_GAIN) * promised
