"""Plans: what each worker runs, and the searches that find good ones on a cost table."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence

from corepipe.cost.table import CostTable, check_batch_size
from corepipe.errors import PlanError, UnknownNameError
from corepipe.plan import routes
from corepipe.plan.build import best_of
from corepipe.plan.explain import explain
from corepipe.plan.limits import Limits, plan_latency_s, weight_bytes
from corepipe.plan.model import Evaluation, Hop, Plan, Route, Worker, evaluate
from corepipe.plan.pipeit import pipe_it
from corepipe.plan.pipeline import best_pipeline
from corepipe.plan.replicas import best_replicas
from corepipe.plan.routes import best_routes
from corepipe.plan.simple import all_cores, one_cluster, replicas, replicas_per_cluster, replicas_per_core

__all__ = [
    "BEST",
    "EXACT",
    "MEASURED_TOLERANCE",
    "PLANNERS",
    "Evaluation",
    "Hop",
    "Limits",
    "Plan",
    "Route",
    "Worker",
    "all_cores",
    "best_pipeline",
    "best_replicas",
    "best_routes",
    "candidates",
    "check_planner",
    "evaluate",
    "explain",
    "one_cluster",
    "pipe_it",
    "plan",
    "plan_latency_s",
    "planner_names",
    "proved_bound",
    "rated",
    "replanned",
    "replicas",
    "replicas_per_cluster",
    "replicas_per_core",
    "weight_bytes",
]

MEASURED_TOLERANCE = 0.02
"""How near to the best a simpler plan must come, by costs of a machine that are no more exact, to be preferred."""

MIXING_TOLERANCE = 0.04
"""The same for a plan on one engine: more, as costs of different engines err differently. Mixes that promised 5 to 10 %
more gave 5 to 10 % in streams, of 2 to 3 % came nothing to 6 % (2-core AMD EPYC, as it is and with a slowed core)."""

BEST = "routes"
"""The planner whose plan no other exceeds by the table."""

EXACT = "routes-exact"
"""The best mix of routes, where `routes` takes a simpler plan that comes near to it."""

REPLANNED = "routes-replanned"
"""The best mix by costs that a trial has corrected."""

_TRIED_WITHIN = 0.25
"""By how much less a plan may promise than the best and still be a candidate."""

_NOTHING_GIVEN_UP = 1e-9

_EXACT_SOURCES = ("board", "made-up")

_BASELINES = ("pipe-it", "replicas", "replicas-per-cluster", "replicas-per-core", "all-cores")
"""What others do, or would: on the default engine alone."""

PLANNERS: dict[str, Callable[[CostTable], Plan]] = {
    BEST: best_routes,
    "pipeline": best_pipeline,
    "pipelines": best_replicas,
    "pipe-it": pipe_it,
    "replicas": replicas,
    "replicas-per-cluster": replicas_per_cluster,
    "replicas-per-core": replicas_per_core,
    "all-cores": all_cores,
}
"""The planners by name; besides these there is `cluster:<name>` for each cluster of the machine."""


def planner_names(table: CostTable) -> tuple[str, ...]:
    """Every name that `plan` knows for the machine of a cost table."""
    return (*PLANNERS, *(f"cluster:{cluster.name}" for cluster in table.machine.clusters))


def check_planner(name: str, clusters: Iterable[str]) -> None:
    """Check a planner's name before anything is measured.

    Raises:
        UnknownNameError: it is none of `PLANNERS`, and no `cluster:NAME` of the given clusters.
    """
    known = (*PLANNERS, *(f"cluster:{cluster}" for cluster in clusters))
    if name not in known:
        raise UnknownNameError("planner", name, known)


def plan(
    table: CostTable,
    planner: str = BEST,
    *,
    latency_budget_s: float | None = None,
    memory_budget_bytes: float | None = None,
    layer_weight_bytes: Sequence[int] | None = None,
    max_workers: int | None = None,
    cores: Collection[int] | None = None,
    batch: int | None = None,
    tolerance: float | None = None,
    bound: bool = True,
) -> Plan:
    """A plan for the network and machine of a cost table, with what no plan within the limits can exceed.

    Args:
        table: the costs.
        planner: one of `PLANNERS`, or `cluster:NAME`.
        latency_budget_s: seconds that any frame may take on its route when it waits for no other frame (but for those
            of its slot).
        memory_budget_bytes: bytes of weights that all workers together may hold.
        layer_weight_bytes: bytes of weights of each layer; needed with a memory budget.
        max_workers: how many workers there may be.
        cores: ids of the cores that may be used.
        batch: how many frames share a slot; None for the best of the numbers that the table has costs for.
        tolerance: share of the best mix's throughput that `routes` may give up for a plan with fewer workers, then with
            fewer hops. Measured and predicted costs are no more exact than some percent, and each hop more can go
            wrong: None for `MEASURED_TOLERANCE` with such tables, 0 with those of boards and made-up ones.
        bound: whether to look for the bound where the planner does not find it anyway (all but `routes`); None stands
            in the plan where it is not, or the network has too many layers for that.

    Raises:
        UnknownNameError: no such planner, or no such cluster.
        UsageError: a limit is not above zero, the batch is out of range, or a memory budget comes without
            `layer_weight_bytes`.
        PlanError: nothing meets the limits (the message names the smallest budget that works), the one plan of a
            planner that does not search within limits exceeds them, or the table lacks the configs that it needs.

    Example:
        >>> plan(table, "routes", latency_budget_s=0.05).predicted_fps    # doctest: +SKIP
        41.7
    """
    check_planner(planner, (cluster.name for cluster in table.machine.clusters))
    limits = Limits(latency_budget_s, memory_budget_bytes, layer_weight_bytes, max_workers, cores)
    table = limits.restricted(table)
    limits = dataclasses.replace(limits, cores=None)
    if batch is not None:
        check_batch_size(batch)
    sizes = table.batches if batch is None else (batch,)
    if planner == BEST:
        if tolerance is None:
            tolerance = 0.0 if table.provenance.source in _EXACT_SOURCES else MEASURED_TOLERANCE
        mixes = _for_each_size(table, sizes, lambda sized: best_routes(sized, limits))
        near = _on_one_engine(mixes, table, sizes, limits) if tolerance > 0 else None
        return _simplest(mixes, *(near or (mixes, table)), limits, tolerance)
    plain = table.only(engine=table.engines[0].name) if _is_baseline(planner) else table
    found = _for_each_size(plain, sizes, lambda sized: _found_by(planner, sized))
    if within := [made for made in found if limits.excess(made, table) is None]:
        made = best_of(within)
        return made.model_copy(update={"bound_fps": _bound_of(table, sizes, limits)}) if bound else made
    excess = limits.excess(best_of(found), table)
    best = best_routes(table.for_frames(1), limits)
    raise PlanError(
        f"the plan of {planner!r} for {table.network.name} has {excess}; this planner does not search within "
        f"limits: use 'routes', which reaches {best.predicted_fps:.1f} frames/s within them"
    )


def candidates(table: CostTable, find: Callable[..., Plan] = plan) -> dict[str, Plan]:
    """Plans that may turn out to be the fastest: the best one by the table first, and what is best by narrower means.

    A table tells what layers cost; how engines and workers get in each other's way it tells in part. These are the best
    plan, the best mix of routes, and for each engine the best plan that has it to itself and, for each batch, one
    replica per core and one per cluster. Those are left out that the table holds for much slower than the best. Each
    says in `planner` which one it is.

    Args:
        table: the costs.
        find: `plan`, or `plan` with limits bound to it.

    Raises:
        PlanError: nothing meets the limits.

    Example:
        >>> list(candidates(table))                                       # doctest: +SKIP
        ['routes', 'routes-exact', 'routes on ncnn', 'replicas-per-core on ncnn']
    """
    found = {BEST: find(table, BEST), EXACT: find(table, BEST, tolerance=0.0)}
    for engine in table.engines:
        alone = table.only(engine=engine.name)
        with contextlib.suppress(PlanError):
            found[f"{BEST} on {engine.name}"] = find(alone, BEST, bound=False)
        for batch in alone.batches:
            of_batch = table.only(engine=engine.name, batch=batch)
            together = f", {batch} frames at once" if batch > 1 else ""
            for planner in ("replicas-per-core", "replicas-per-cluster"):
                with contextlib.suppress(PlanError):
                    found[f"{planner} on {engine.name}{together}"] = find(of_batch, planner, bound=False)
    best = found.pop(BEST)
    least = (1 - _TRIED_WITHIN) * (found[EXACT].predicted_fps or 0.0)
    # What a plan on one engine gives up is of what that engine can do: it says nothing beside the others.
    fields = {"bound_fps": best.bound_fps, "given_up": None}
    return {BEST: best} | {
        name: made.model_copy(update={"planner": name, **fields})
        for name, made in found.items()
        if (made.predicted_fps or 0.0) >= least
    }


def replanned(table: CostTable, find: Callable[..., Plan] = plan) -> Plan:
    """The best mix of routes by costs that a trial has corrected, under a name of its own.

    Args:
        table: the corrected costs.
        find: `plan`, or `plan` with limits bound to it.

    Raises:
        PlanError: nothing meets the limits.
    """
    return find(table, BEST, tolerance=0.0).model_copy(update={"planner": REPLANNED})


def proved_bound(table: CostTable, limits: Limits | None = None, sizes: Iterable[int] | None = None) -> float:
    """What no plan at all can exceed by the table, in frames/s, whatever its engines and batches.

    Args:
        table: the costs.
        limits: what plans may cost; a budget for memory is not made use of.
        sizes: how many frames may share a slot; None for the numbers that the table has costs for.

    Raises:
        PlanError: the table has too many layers to search, or the limits do not fit it.
    """
    return max(routes.proved_bound(table.for_frames(frames), limits) for frames in sizes or table.batches)


def _is_baseline(planner: str) -> bool:
    return planner in _BASELINES or planner not in PLANNERS


def _found_by(planner: str, table: CostTable) -> Plan:
    return PLANNERS[planner](table) if planner in PLANNERS else one_cluster(table, planner.partition(":")[2])


def _for_each_size(table: CostTable, sizes: Sequence[int], find: Callable[[CostTable], Plan]) -> list[Plan]:
    """A plan for each number of frames that may share a slot; those for which there is none are left out.

    Raises:
        PlanError: there is none for any; the message is that of the first.
    """
    plans, failure = [], None
    for frames in sizes:
        try:
            plans.append(find(table.for_frames(frames)))
        except PlanError as error:
            failure = failure or error
    if not plans:
        raise failure or PlanError(f"the costs of {table.network.name} are of none of the cores that may be used")
    return plans


def rated(plan: Plan, table: CostTable, bound_fps: float | None = None) -> Plan:
    """A plan from elsewhere, such as a file, with the prediction and the bound of this table instead of its own.

    Args:
        plan: the plan.
        table: the costs.
        bound_fps: the `proved_bound` of the table, for the plan's batch too, where it is known; found now by default.

    Raises:
        PlanError: plan and table are of different networks, or the table lacks a config.
    """
    fps = evaluate(plan, table).throughput_fps
    bound_fps = bound_fps or _bound_of(table, {*table.batches, plan.batch})
    return plan.model_copy(update={"predicted_fps": fps, "bound_fps": bound_fps, "given_up": None})


def _bound_of(table: CostTable, sizes: Iterable[int], limits: Limits | None = None) -> float | None:
    with contextlib.suppress(PlanError):
        return proved_bound(table, limits, sizes)
    return None


def _on_one_engine(
    mixes: Sequence[Plan], table: CostTable, sizes: Sequence[int], limits: Limits
) -> tuple[Sequence[Plan], CostTable] | None:
    """The best mixes on the one engine that comes within `MIXING_TOLERANCE` of all engines, and its table."""
    needed = (1 - MIXING_TOLERANCE) * (best_of(mixes).predicted_fps or 0.0)
    found: list[tuple[float, Sequence[Plan], CostTable]] = []
    for engine in table.engines if len(table.engines) > 1 else ():
        alone = table.only(engine=engine.name)
        with contextlib.suppress(PlanError):
            plans = _for_each_size(alone, sizes, lambda sized: best_routes(sized, limits))
            found.append((best_of(plans).predicted_fps or 0.0, plans, alone))
    fps, chosen, one_engine = max(found, key=lambda one: one[0], default=(0.0, mixes, table))
    return (chosen, one_engine) if found and fps >= needed else None


def _simplest(every: Sequence[Plan], mixes: Sequence[Plan], table: CostTable, limits: Limits, tolerance: float) -> Plan:
    """Of the best mixes, and other planners' plans that come near enough, the one that is simplest.

    That is the one with the fewest frames in a slot, then the fewest workers, then the fewest hops.

    Args:
        every: the best mixes on all engines, which tell the bound and what is given up.
        mixes: the best mix of routes for each number of frames that may share a slot.
        table: the costs that the mixes were found on.
        limits: what the plan may cost.
        tolerance: how much less the simplest may reach than the best.
    """
    best = best_of(mixes)
    fps = best.predicted_fps or 0.0
    bound_fps = max(mix.bound_fps or 0.0 for mix in every)
    near = [best]
    if tolerance > 0:
        near += [mix for mix in mixes if (mix.predicted_fps or 0.0) >= (1 - tolerance) * fps]
        for mix in mixes:
            sized = table.for_frames(mix.batch)
            for planner in (all_cores, replicas, best_pipeline, best_replicas):
                with contextlib.suppress(PlanError):
                    made = planner(sized)
                    fast_enough = (made.predicted_fps or 0.0) >= (1 - tolerance) * fps
                    if fast_enough and limits.excess(made, table) is None:
                        near.append(made)
    simplest = min(near, key=lambda plan: (plan.batch, len(plan.workers), _hops(plan), -(plan.predicted_fps or 0.0)))
    given_up = 1 - (simplest.predicted_fps or 0.0) / (best_of(every).predicted_fps or fps)
    return simplest.model_copy(
        update={
            "planner": best.planner,
            "bound_fps": bound_fps,
            "given_up": given_up if given_up > _NOTHING_GIVEN_UP else None,
        }
    )


def _hops(plan: Plan) -> int:
    return sum(len(route.hops) for route in plan.routes)
