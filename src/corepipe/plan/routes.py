"""The best mix of routes that any scheduler could find on a cost table, with its proof.

For each set of workers the best mix is a linear program (`column_generation.py`). Its optimum T(n) is concave in the
numbers n of workers of each config, and the dual prices y of one set bound all others: T(n') <= y @ n' (J. F. Benders,
"Partitioning procedures for solving mixed-variables programming problems", 1962). So not every set is solved: always
the one with the highest bound is, until no bound is above the best mix found.
"""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import itertools
import time
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from corepipe.cost.table import CostTable
from corepipe.errors import PlanError
from corepipe.plan.build import Grid, best_of, cluster_sizes, make_plan, single_plan
from corepipe.plan.column_generation import Mix, RouteProgram
from corepipe.plan.division import divided_load_s
from corepipe.plan.limits import Limits, in_mb, in_ms
from corepipe.plan.memory import fitting_plans
from corepipe.plan.model import Plan
from corepipe.plan.paths import Paths
from corepipe.plan.pipeline import best_pipeline
from corepipe.plan.replicas import best_replicas
from corepipe.plan.worker_sets import WorkerSets
from corepipe.topology.model import CoreConfig

Floats = NDArray[np.float64]

MAX_SETS = 600
"""After solving so many sets of workers the search stops, with the bound that holds by then."""

MAX_SEARCH_S = 60.0
"""The same after so many seconds, which only machines with more than 100,000 worker sets take."""

_GAP = 1e-9
_HOP_PRICE = 1e-6
_MAX_TIES = 40
_NEGLIGIBLE = 1e-6


def best_routes(table: CostTable, limits: Limits | None = None) -> Plan:
    """The plan with the highest throughput by the table, and the bound that proves it.

    `bound_fps` is what no plan at all can exceed by the table, whatever its workers and routes (within the limits on
    latency, workers and cores). Of equal plans one with few workers, then with few hops, is returned. With a memory
    budget the plan is the best that a heuristic finds, and the bound is that without the budget.

    Args:
        table: the costs.
        limits: what the plan may cost.

    Raises:
        PlanError: nothing meets the limits; the message names the smallest budget that works.
    """
    limits = limits or Limits()
    table = limits.restricted(table)
    _check_memory(table, limits)
    singles = _single_plans(table, limits)
    _check_configs(table)
    bound = max((plan.predicted_fps or 0.0 for plan in singles), default=0.0)
    plans = list(singles)
    if limits.max_workers != 1 and any(cluster_sizes(table).values()):
        program = RouteProgram(Grid.of(table), limits.latency_per_frame_s(table))
        mix, mix_bound = best_mix(program, limits.max_workers)
        bound = max(bound, mix_bound)
        if mix is not None:
            plans.append(plan_of_mix(program.grid, mix))
            if len(plans[-1].workers) == 1:
                # A lone worker has other costs (those of an idle machine), so the mix may not reach its promise.
                with contextlib.suppress(PlanError):  # too many kinds of cores
                    plans += [best_pipeline(table), best_replicas(table)]
            if limits.excess(plans[-1], table):
                plans += fitting_plans(program, mix, limits, plan_of_mix, lambda n: best_mix(program, n)[0])
    plans = [plan for plan in plans if limits.excess(plan, table) is None]
    if not plans:
        raise PlanError(
            f"no plan for {table.network.name} meets a latency budget of {(limits.latency_budget_s or 0) * 1e3:g} ms; "
            f"the smallest that works on these cores is {in_ms(least_latency_s(table, limits.max_workers))}"
        )
    best = best_of(plans)
    return best.model_copy(update={"planner": "routes", "bound_fps": max(bound, best.predicted_fps or 0.0)})


def proved_bound(table: CostTable, limits: Limits | None = None) -> float:
    """What no plan at all can exceed by the table, in frames/s: the `bound_fps` of `best_routes`.

    Args:
        table: the costs.
        limits: what plans may cost; a budget for memory is not made use of.

    Raises:
        PlanError: the table has too many layers to search, or the limits do not fit it.
    """
    limits = dataclasses.replace(limits or Limits(), memory_budget_bytes=None, layer_weight_bytes=None)
    table = limits.restricted(table)
    _check_configs(table)
    bound = max((plan.predicted_fps or 0.0 for plan in _single_plans(table, limits)), default=0.0)
    if limits.max_workers != 1 and any(cluster_sizes(table).values()):
        search = _Search(RouteProgram(Grid.of(table), limits.latency_per_frame_s(table)), limits.max_workers)
        bound = max(bound, search.bound_fps)
    return bound


def _check_configs(table: CostTable) -> None:
    """Refuse a table that no plan can be made from."""
    if not _single_configs(table) and not any(cluster_sizes(table).values()):
        known = ", ".join(map(str, table.by_config)) or "none"
        together = f" for {table.frames} frames at once" if table.frames > 1 else ""
        raise PlanError(
            f"the cost table of {table.network.name} has no config of a cluster or of all cores{together} (it has "
            f"{known}); profile again"
        )


def best_mix(program: RouteProgram, max_workers: int | None = None) -> tuple[Mix | None, float]:
    """The best mix of routes on any set of workers, all costs those with the other cores busy.

    Args:
        program: the linear program, its pool of routes used and enlarged.
        max_workers: sets of more workers are left out.

    Returns:
        The mix, None if no route meets the latency budget, and what no mix on any set can exceed, in frames/s.
    """
    search = _Search(program, max_workers)
    if search.best is None:
        return None, 0.0
    best = _fewest_workers(program, search.best, search.sets, search.reference)
    frugal = program.solve(_used(best), hop_price=_HOP_PRICE)
    if frugal.fps >= best.fps * (1 - _GAP):
        best = frugal
    return best, max(search.bound_fps, best.fps)


class _Search:
    """The best mix on any set of workers.

    Attributes:
        best: None if no route meets the latency budget.
        bound_fps: what no mix on any set can exceed.
        sets: the sets of workers, with their bounds.
        reference: prices that bound every set.
    """

    def __init__(self, program: RouteProgram, max_workers: int | None) -> None:
        self.sets = WorkerSets(program.grid, max_workers)
        self.reference = program.relaxed_prices(max_workers)
        self.sets.add_cut(self.reference)
        self.best: Mix | None = None
        solved: set[tuple[float, ...]] = set()
        deadline = time.monotonic() + MAX_SEARCH_S
        for _ in range(MAX_SETS):
            if self.best and time.monotonic() > deadline:
                break
            bound, workers = self.sets.most_promising()
            floor = self.best.fps if self.best else 0.0
            if workers is None or bound <= floor * (1 + _GAP) or tuple(workers) in solved:
                break
            solved.add(tuple(workers))
            mix = program.solve(workers, floor_fps=floor)
            self.sets.add_cut(program.lifted(mix, self.reference))
            if mix.fps > floor:
                self.best = mix
        self.bound_fps = max(self.sets.most_promising()[0], self.best.fps) if self.best else 0.0


def plan_of_mix(grid: Grid, mix: Mix) -> Plan:
    """A plan of workers and their routes from a mix of routes over configs.

    The frames of a second are laid out along a line, route after route. For each config the line is cut where a worker
    has had its share of the load, and the next one takes over (R. McNaughton's wrap-around rule, 1959). That gives at
    most as many routes as workers, all workers of a config equally busy.
    """
    needed = _used(mix).astype(int)
    first = np.concatenate([[0], np.cumsum(needed)])
    configs = [config for t, config in enumerate(grid.configs) for _ in range(needed[t])]
    share = mix.loads / np.maximum(needed, 1)
    total = sum(rate for rate, _ in mix.routes)
    at, left = np.zeros(len(needed), int), share.copy()
    pieces: dict[tuple[tuple[int, int, int], ...], float] = {}
    for rate, path in mix.routes:
        load = np.zeros(len(needed))
        for t, start, stop in path:
            load[t] += grid.loads[t, stop, start]
        while rate > 0:
            ending = np.flatnonzero((load > 0) & (at < needed - 1))
            piece = min([rate, *(left[ending] / load[ending])])
            if rate - piece <= 1e-9 * total:
                piece = rate
            hops = tuple((int(first[t] + at[t]), grid.cuts[start], grid.cuts[stop]) for t, start, stop in path)
            pieces[hops] = pieces.get(hops, 0.0) + piece
            rate -= piece
            left -= piece * load
            full = ending[left[ending] <= 1e-9 * share[ending]]
            at[full] += 1
            left[full] = share[full]
    every = [(rate, hops) for hops, rate in pieces.items()]
    kept = [(rate, hops) for rate, hops in every if rate >= _NEGLIGIBLE * total]
    plan = make_plan(grid.table, "routes", configs, every)
    if len(kept) < len(every):
        smaller = make_plan(grid.table, "routes", configs, kept)
        if (smaller.predicted_fps or 0.0) >= (plan.predicted_fps or 0.0) * (1 - _GAP):
            return smaller
    return plan


def least_latency_s(table: CostTable, max_workers: int | None = None) -> float:
    """Seconds of the route with the lowest latency that any plan on this machine can have."""
    seconds = [divided_load_s(table, config, 0, table.layer_count, busy=False) for config in _single_configs(table)]
    if max_workers != 1 and any(cluster_sizes(table).values()):
        seconds.append(_least_beside_others_s(Paths(Grid.of(table)), max_workers))
    return table.frames * min(seconds)


def _least_beside_others_s(paths: Paths, max_workers: int | None) -> float:
    """The same for plans of several workers; infinite where there is room for one only.

    Branch and bound: where the quickest route over some configs uses more than fit on the machine together, every route
    that fits does without one of those.
    """
    grid = paths.grid
    numbers = itertools.count()
    every = frozenset(range(len(grid.configs)))
    seconds, path = paths.quickest(np.array(sorted(every)))
    waiting, seen = [(seconds, next(numbers), every, path)], {every}
    while waiting:
        seconds, _, configs, path = heapq.heappop(waiting)
        used = {t for t, _, _ in path}
        if _fit_together(grid, used, max_workers):
            return seconds
        for t in used:
            fewer = configs - {t}
            if fewer and fewer not in seen:
                seen.add(fewer)
                seconds, path = paths.quickest(np.array(sorted(fewer)))
                heapq.heappush(waiting, (seconds, next(numbers), fewer, path))
    return np.inf


def _fit_together(grid: Grid, used: set[int], max_workers: int | None) -> bool:
    """Whether a worker of each of these configs, and a second one if there is but one config, fit on the machine."""
    left = Counter(grid.cluster_cores)
    for t in used:
        left[grid.configs[t].cluster] -= grid.configs[t].count
    room_for_more = any(left[config.cluster] >= config.count for config in grid.configs)
    few_enough = max_workers is None or len(used) <= max_workers
    return few_enough and min(left.values()) >= 0 and (len(used) > 1 or room_for_more)


def _fewest_workers(program: RouteProgram, best: Mix, sets: WorkerSets, reference: Floats) -> Mix:
    """An equally good mix with fewer workers, if there is one."""
    enough = best.fps * (1 - _GAP)
    for _, workers in zip(range(_MAX_TIES), sets.ties(enough, int(_used(best).sum())), strict=False):
        mix = program.solve(workers, floor_fps=enough)
        if mix.fps >= enough:
            best = mix
            break
        sets.add_cut(program.lifted(mix, reference))
    fewer = True
    while fewer:
        fewer = False
        workers = _used(best)
        for t in np.flatnonzero(workers):
            smaller = workers - (np.arange(len(workers)) == t)
            if not smaller.any():
                continue
            mix = program.solve(smaller, floor_fps=enough)
            if mix.fps >= enough:
                best, fewer = mix, True
                break
    return best


def _used(mix: Mix) -> Floats:
    """How many workers of each config a mix needs for its loads, shape (T,)."""
    named = mix.loads > 0
    named[[t for rate, path in mix.routes if rate > 0 for t, _, _ in path]] = True  # a hop may cost nothing
    return np.minimum(np.maximum(np.ceil(mix.loads - 1e-7), named), mix.workers)


def _single_configs(table: CostTable) -> list[CoreConfig]:
    configs = [CoreConfig(name, count) for name, counts in cluster_sizes(table).items() for count in counts]
    return configs + [table.all_cores] * (table.all_cores in table.by_config and table.all_cores not in configs)


def _single_plans(table: CostTable, limits: Limits) -> list[Plan]:
    plans = [single_plan(table, "routes", config) for config in _single_configs(table)]
    return [plan for plan in plans if limits.excess(plan, table) is None]


def _check_memory(table: CostTable, limits: Limits) -> None:
    """One copy of all weights is what every plan holds at least."""
    if limits.memory_budget_bytes is None or limits.layer_weight_bytes is None:
        return
    least = sum(limits.layer_weight_bytes)
    if least > limits.memory_budget_bytes:
        raise PlanError(
            f"no plan for {table.network.name} fits into a memory budget of {limits.memory_budget_bytes / 1e6:g} MB; "
            f"the smallest that works is {in_mb(least)}, one copy of the weights"
        )
