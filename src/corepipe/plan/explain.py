"""A plan in words: what limits it, what would help, and why it is better or worse than the plain ways."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np

from corepipe.cost.table import CostTable, TableNetwork
from corepipe.errors import PlanError
from corepipe.plan.build import Grid, cluster_sizes, searchable
from corepipe.plan.column_generation import RouteProgram
from corepipe.plan.model import Evaluation, Plan, evaluate
from corepipe.plan.pipeline import best_pipeline
from corepipe.plan.simple import replicas
from corepipe.topology.model import CoreConfig

_FINE_LAYERS = 240
_NOTHING_FPS = 5e-3


def explain(plan: Plan, table: CostTable, *, limited: bool = False) -> list[str]:
    """Sentences about a plan, all figures by the cost table.

    They tell the bottleneck and the loads, how far the bound is, what was given up for a simpler plan, why the plan
    beats the best pipeline (or does not) and plain replicas, and what other rates, one more core or a finer cut of the
    layers would give; of a network too large to search in finer parts only what comes before the pipeline.

    Args:
        plan: any plan of the table's network.
        table: the costs.
        limited: whether a budget or a number of workers was asked for: what plans without it would reach is left out.

    Raises:
        PlanError: plan and table are of different networks, or the table lacks a config.
    """
    table = table.for_frames(plan.batch)
    found = evaluate(plan, table)
    sentences = [*_bottleneck(plan, found), *_bound(plan, found), *_given_up(plan)]
    fine = finer(table, max(2, _FINE_LAYERS // table.layer_count))
    if searchable(fine) and not limited:
        with contextlib.suppress(PlanError):  # too many kinds of cores
            sentences += _against_pipeline(found.throughput_fps, table, fine)
        sentences += _against_replicas(found.throughput_fps, table)
        sentences += _what_would_help(plan, found.throughput_fps, table, fine)
    return sentences


def finer(table: CostTable, parts: int) -> CostTable:
    """The table of a network whose layers could each be cut into equal parts, at every place.

    A new cut holds what lies between the bytes of the cuts around it, in proportion.

    Args:
        table: the costs.
        parts: into how many parts each layer falls.
    """
    names = tuple(f"{name}.{part}" for name in table.network.layers for part in range(parts))
    cuts = np.arange(len(names) + 1) / parts
    cut_bytes = np.interp(cuts, np.arange(table.layer_count + 1), table.network.cut_bytes)

    def divided(seconds: Sequence[float]) -> tuple[float, ...]:
        return tuple((np.repeat(seconds, parts) / parts).tolist())

    configs = tuple(
        costs.model_copy(
            update={
                "layer_s": divided(costs.layer_s),
                "layer_busy_s": None if costs.layer_busy_s is None else divided(costs.layer_busy_s),
            }
        )
        for costs in table.configs
    )
    network = TableNetwork(
        name=table.network.name,
        sha256=table.network.sha256,
        layers=names,
        cut_bytes=tuple(round(size) for size in cut_bytes.tolist()),
    )
    return table.replaced(network=network, configs=configs)


def _bottleneck(plan: Plan, found: Evaluation) -> list[str]:
    fps = f"{found.throughput_fps:.2f} frames/s"
    if len(plan.workers) == 1:
        return [f"One worker, {found.bottleneck}, runs whole frames: {fps}."]
    full = [name for name, load in found.load.items() if load > 1 - 1e-6]
    others = sorted(((load, name) for name, load in found.load.items() if name not in full), reverse=True)
    if not others:
        every = "Both" if len(full) == 2 else f"All {len(full)}"
        return [f"{every} workers are busy all the time at {fps}: each of them is the bottleneck."]
    loads = ", ".join(f"{name} {load:.1%}" for load, name in others)
    named = f"{', '.join(full)} {'is' if len(full) == 1 else 'are'} the bottleneck"
    return [f"{named}: busy all the time at {fps}.", f"The other workers are less busy: {loads}."]


def _bound(plan: Plan, found: Evaluation) -> list[str]:
    if plan.bound_fps is None:
        return []
    gap = max(0.0, 1 - found.throughput_fps / plan.bound_fps) if plan.bound_fps > 0 else 0.0
    place = "this one reaches it" if gap < 1e-6 else f"this one is {gap:.2%} below it"
    return [f"No plan within the limits asked for can exceed {plan.bound_fps:.2f} frames/s; {place}."]


def _given_up(plan: Plan) -> list[str]:
    if plan.given_up is None:
        return []
    return [
        f"{plan.given_up:.2%} of the best mix's throughput is given up for one engine, fewer workers or fewer hops, as "
        "costs are no more exact than that; a tolerance of 0 gives the best mix."
    ]


def _against_pipeline(fps: float, table: CostTable, fine: CostTable) -> list[str]:
    pipeline = best_pipeline(table)
    reached = pipeline.predicted_fps or 0.0
    stages = f"{len(pipeline.workers)} stage{'s' if len(pipeline.workers) > 1 else ''}"
    ahead = fps - reached
    if abs(ahead) < _NOTHING_FPS:
        return [f"The best single pipeline ({stages}) is as good."]
    if ahead < 0:
        return [f"The best single pipeline ({stages}) would reach {reached:.2f} frames/s, {-ahead:.2f} more."]
    fluid = best_pipeline(fine).predicted_fps or 0.0
    rounding = min(max(fluid - reached, 0.0), ahead)
    return [
        f"It beats the best single pipeline ({stages}, {reached:.2f} frames/s) by {ahead:.2f} frames/s: {rounding:.2f} "
        f"that a pipeline loses to rounding, since layers are coarse, and {ahead - rounding:.2f} of comparative "
        "advantage, since routes give each worker more of the layers that it is relatively best at."
    ]


def _against_replicas(fps: float, table: CostTable) -> list[str]:
    plain = replicas(table)
    ahead = fps - (plain.predicted_fps or 0.0)
    if ahead < _NOTHING_FPS:
        return []
    return [
        f"It beats the best plain replicas ({len(plain.workers)} workers, {plain.predicted_fps:.2f} frames/s) by "
        f"{ahead:.2f} frames/s: there every worker runs every layer, whether it is good at it or not."
    ]


def _what_would_help(plan: Plan, fps: float, table: CostTable, fine: CostTable) -> list[str]:
    """What other rates, a finer cut and one more worker would give on the plan's own workers."""
    program = RouteProgram(Grid.of(table))
    known = {config: t for t, config in enumerate(program.grid.configs)}
    if any(worker.core_config not in known for worker in plan.workers):
        return []
    counts = np.zeros(len(known))
    for worker in plan.workers:
        counts[known[worker.core_config]] += 1
    best = fps if len(plan.workers) == 1 else program.solve(counts).fps
    sentences = []
    if best - fps >= _NOTHING_FPS:
        sentences.append(
            f"On the same workers the best mix of routes would reach {best:.2f} frames/s, {best - fps:.2f} more."
        )
    if len(plan.workers) > 1:
        gain = RouteProgram(Grid.of(fine)).solve(counts).fps - best
        sentences.append(_gain("Layers that could be cut anywhere", gain))
    for name, sizes in cluster_sizes(table).items():
        if sizes:
            more = counts.copy()
            more[known[CoreConfig(name, sizes[0])]] += 1
            cores = "One more core" if sizes[0] == 1 else f"{sizes[0]} more cores"
            gain = program.solve(more).fps - best
            sentences.append(_gain(f"{cores} in cluster {name}, as a worker beside these,", gain))
    return sentences


def _gain(what: str, fps: float) -> str:
    return f"{what} would add {fps:.2f} frames/s." if fps >= _NOTHING_FPS else f"{what} would add nothing."
