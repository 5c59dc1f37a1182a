"""The searches against brute force on small tables."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cost_tables import made_up
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from corepipe.cost.table import ConfigCosts, CostTable, HopCosts
from corepipe.errors import PlanError
from corepipe.plan import (
    Plan,
    best_pipeline,
    best_replicas,
    best_routes,
    evaluate,
    explain,
    plan,
    plan_latency_s,
    planner_names,
    weight_bytes,
)
from corepipe.plan.build import Grid, cluster_sizes
from corepipe.plan.column_generation import RouteProgram
from corepipe.plan.division import divided_load_s
from corepipe.plan.limits import Limits
from corepipe.plan.routes import least_latency_s
from corepipe.plan.worker_sets import WorkerSets
from corepipe.topology.model import CoreConfig

RELATIVE = 1e-9
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def tables(draw, max_layers=5, busy=(1.0, 1.5), all_cores=True):
    count = draw(st.integers(1, max_layers))
    clusters = draw(st.sampled_from([{"cpu": 1}, {"cpu": 2}, {"big": 1, "little": 1}, {"big": 2, "little": 1},
                                     {"big": 2, "little": 2}]))  # fmt: skip
    seconds = st.floats(1e-4, 1e-2)
    configs = []
    for name, cores in clusters.items():
        sizes = draw(st.sampled_from([[1], [2], [1, 2]])) if cores == 2 else [1]
        for size in sizes:
            layers = draw(st.lists(seconds, min_size=count, max_size=count))
            factor = draw(st.none() | st.floats(*busy))
            configs.append(
                ConfigCosts(
                    config=f"{name}{size}",
                    layer_s=tuple(layers),
                    layer_busy_s=None if factor is None else tuple(s * factor for s in layers),
                    segment_s=draw(st.sampled_from([0.0, 1e-4, 1e-3])),
                    segment_s_per_byte=draw(st.sampled_from([0.0, 1e-6])),
                )
            )
    total = sum(clusters.values())
    if all_cores and len(clusters) > 1 and draw(st.booleans()):
        configs.append(
            ConfigCosts(config=f"all{total}", layer_s=tuple(draw(st.lists(seconds, min_size=count, max_size=count))))
        )
    cores = iter(range(total))
    return made_up(
        configs,
        clusters,
        cut_bytes=draw(st.lists(st.integers(0, 1000), min_size=count + 1, max_size=count + 1)),
        illegal_cuts=sorted(draw(st.sets(st.integers(1, max(1, count - 1)), max_size=1))),
        hop=HopCosts(
            fixed_s=draw(st.sampled_from([0.0, 1e-4, 1e-3])),
            per_byte_s=draw(st.sampled_from([0.0, 1e-6])),
            edge_s=draw(st.sampled_from([0.0, 1e-4])),
            latency_s=draw(st.sampled_from([0.0, 1e-3])),
        ),
    )


def worker_lists(table):
    """Every list of workers (configs, equal ones side by side) that fits on the machine."""
    cores = {c.name: len(c.cores) for c in table.machine.clusters}
    parts = []
    for name, sizes in cluster_sizes(table).items():
        parts.append(
            [
                [CoreConfig(name, s) for n, s in zip(counts, sizes, strict=True) for _ in range(n)]
                for counts in itertools.product(*(range(cores[name] // size + 1) for size in sizes))
                if sum(n * size for n, size in zip(counts, sizes, strict=True)) <= cores[name]
            ]
        )
    return [list(itertools.chain(*choice)) for choice in itertools.product(*parts) if any(choice)]


def splits(table):
    """Every way to divide the layers at legal cuts, as a list of segments."""
    for chosen in itertools.product([False, True], repeat=len(table.legal_cuts())):
        cuts = [0, *(c for c, keep in zip(table.legal_cuts(), chosen, strict=True) if keep), table.layer_count]
        yield list(itertools.pairwise(cuts))


def every_route(table, workers):
    """For each route over workers: the load of each, and its latency."""
    for segments in splits(table):
        for choice in itertools.product(range(len(workers)), repeat=len(segments)):
            if any(a == b for a, b in itertools.pairwise(choice)):
                continue
            load = np.zeros(len(workers))
            for worker, (start, stop) in zip(choice, segments, strict=True):
                load[worker] += divided_load_s(table, workers[worker], start, stop)
            yield load, load.sum() + (len(segments) - 1) * table.hop.latency_s


def alone_s(table, config):
    return divided_load_s(table, config, 0, table.layer_count, busy=False)


def single_configs(table):
    return [c for c in table.by_config if c.cluster != "all" or c == table.all_cores]


def brute_force_routes(table, latency_budget_s=np.inf, max_workers=99):
    singles = [1 / alone_s(table, c) for c in single_configs(table) if alone_s(table, c) <= latency_budget_s]
    best = max(singles, default=0.0)
    for workers in worker_lists(table):
        if not 1 < len(workers) <= max_workers:
            continue
        loads = {tuple(load) for load, latency in every_route(table, workers) if latency <= latency_budget_s}
        if loads:
            rows = np.array(sorted(loads)).T
            scale = rows.max()
            result = linprog(-np.ones(rows.shape[1]), A_ub=rows / scale, b_ub=np.ones(len(workers)), method="highs")
            best = max(best, -result.fun / scale)
    return best


def brute_force_pipeline(table, *, alone=True):
    best = max((1 / alone_s(table, c) for c in table.by_config if c.cluster != "all"), default=0.0) if alone else 0.0
    for workers in worker_lists(table):
        for order in set(itertools.permutations(workers)):
            for segments in splits(table):
                if len(segments) == len(order) and (not alone or len(order) > 1):
                    slowest = max(divided_load_s(table, c, *s) for c, s in zip(order, segments, strict=True))
                    best = max(best, 1 / slowest)
    return best


def check(made: Plan, table: CostTable):
    """The plan is sound: own validation, legal cuts, existing cores of the right cluster, its promise kept."""
    made = Plan.from_json(made.to_json())
    legal = {0, *table.legal_cuts(), table.layer_count}
    clusters = {c.name: set(c.cores) for c in table.machine.clusters}
    clusters["all"] = set().union(*clusters.values())
    for worker in made.workers:
        assert set(worker.cores) <= clusters[worker.core_config.cluster]
        assert len(worker.cores) == worker.core_config.count
        assert made.segments_of(worker.name)
    for route in made.routes:
        assert {cut for hop in route.hops for cut in hop.layers} <= legal
        assert all(a.worker != b.worker for a, b in itertools.pairwise(route.hops))
    found = evaluate(made, table)
    assert made.predicted_fps == pytest.approx(found.throughput_fps, rel=RELATIVE)
    assert made.throughput_fps == pytest.approx(found.throughput_fps, rel=RELATIVE)


@QUICK
@given(tables(max_layers=4))
def test_routes_are_the_optimum_of_all_route_mixes(table):
    made = best_routes(table)
    check(made, table)
    best = brute_force_routes(table)
    assert made.predicted_fps == pytest.approx(best, rel=1e-7)
    assert made.bound_fps == pytest.approx(best, rel=1e-7)
    assert made.bound_fps >= made.predicted_fps
    assert len(made.routes) <= len(made.workers)


@QUICK
@given(tables(max_layers=4, busy=(0.6, 1.5)))
def test_no_plan_beats_the_bound(table):
    assert brute_force_routes(table) <= best_routes(table).bound_fps * (1 + 1e-7)


@QUICK
@given(st.one_of(tables(), tables(busy=(0.6, 1.5))))
def test_planners_never_order_worse(table):
    plans = {name: plan(table, name) for name in planner_names(table)
             if name != "all-cores" and (":" not in name or cluster_sizes(table)[name.partition(":")[2]])}  # fmt: skip
    fps = {name: made.predicted_fps for name, made in plans.items()}
    for made in plans.values():
        check(made, table)
        assert made.bound_fps == pytest.approx(plans["routes"].bound_fps, rel=1e-7)
    for worse, better in (("pipe-it", "pipeline"), ("pipeline", "pipelines"), ("replicas", "pipelines"),
                          ("pipelines", "routes"), *((n, "routes") for n in fps)):  # fmt: skip
        assert fps[worse] <= fps[better] * (1 + RELATIVE), (worse, better)


@QUICK
@given(tables())
def test_the_pipeline_equals_exhaustive_search(table):
    made = best_pipeline(table)
    check(made, table)
    assert len(made.routes) == 1
    assert len(made.routes[0].hops) == len(made.workers)
    assert made.predicted_fps == pytest.approx(brute_force_pipeline(table), rel=RELATIVE)


@QUICK
@given(tables(max_layers=3))
def test_replicas_of_pipelines_equal_exhaustive_search(table):
    total = tuple(len(c.cores) for c in table.machine.clusters)
    alone = {}
    for cores in itertools.product(*(range(n + 1) for n in total)):
        if any(cores):
            kept = [core for c, n in zip(table.machine.clusters, cores, strict=True) for core in c.cores[:n]]
            fits = {c.name: n for c, n in zip(table.machine.clusters, cores, strict=True)}
            configs = [c for c in table.by_config if c.count <= fits.get(c.cluster, 0)]
            alone[cores] = brute_force_pipeline(Limits(cores=kept).restricted(table), alone=False) if configs else 0.0

    def best(left):
        options = [
            fps + best(tuple(a - b for a, b in zip(left, group, strict=True)))
            for group, fps in alone.items()
            if fps > 0 and all(b <= a for a, b in zip(left, group, strict=True))
        ]
        return max(options, default=0.0)

    made = best_replicas(table)
    check(made, table)
    single = max(1 / alone_s(table, c) for c in table.by_config if c.cluster != "all")
    assert made.predicted_fps >= single * (1 - RELATIVE)
    if len(made.workers) > 1:
        assert made.predicted_fps == pytest.approx(best(total), rel=RELATIVE)
    used = [{hop.worker for hop in route.hops} for route in made.routes]
    assert sum(map(len, used)) == len(made.workers)


@QUICK
@given(tables(max_layers=4), st.floats(0.5, 2.0))
def test_a_latency_budget_is_kept_and_still_optimal(table, share):
    quickest = min(
        [alone_s(table, c) for c in single_configs(table)]
        + [latency for workers in worker_lists(table) if len(workers) > 1 for _, latency in every_route(table, workers)]
    )
    budget = share * quickest
    if share < 1 - 1e-6:
        with pytest.raises(PlanError, match="the smallest that works on these cores is") as caught:
            best_routes(table, Limits(latency_budget_s=budget))
        smallest = float(str(caught.value).rsplit(" ", 2)[-2])
        assert smallest == pytest.approx(quickest * 1e3, abs=1.1e-3)
        assert best_routes(table, Limits(latency_budget_s=smallest / 1e3)).predicted_fps > 0
    elif share > 1 + 1e-6:
        made = best_routes(table, Limits(latency_budget_s=budget))
        check(made, table)
        assert plan_latency_s(made, table) <= budget * (1 + RELATIVE)
        assert made.predicted_fps == pytest.approx(brute_force_routes(table, budget), rel=1e-7)


@QUICK
@given(tables(max_layers=4), st.integers(1, 4))
def test_the_least_latency_within_a_number_of_workers_equals_exhaustive_search(table, most):
    lists = [workers for workers in worker_lists(table) if 1 < len(workers) <= most]
    routes = [latency for workers in lists for _, latency in every_route(table, workers)]
    alone = [alone_s(table, config) for config in single_configs(table)]
    assert least_latency_s(table, most) == pytest.approx(min(alone + routes), rel=RELATIVE)


@QUICK
@given(tables(max_layers=3), st.integers(1, 3))
def test_a_limit_on_workers_is_kept_and_still_optimal(table, most):
    made = best_routes(table, Limits(max_workers=most))
    assert len(made.workers) <= most
    assert made.predicted_fps == pytest.approx(brute_force_routes(table, max_workers=most), rel=1e-7)


@QUICK
@given(tables(), st.floats(1.0, 4.0))
def test_a_memory_budget_is_kept(table, copies):
    weights = [1000 * (i + 1) for i in range(table.layer_count)]
    limits = Limits(memory_budget_bytes=copies * sum(weights), layer_weight_bytes=weights)
    made = best_routes(table, limits)
    check(made, table)
    assert sum(weight_bytes(made, weights).values()) <= copies * sum(weights)
    assert best_pipeline(table).predicted_fps <= made.predicted_fps * (1 + RELATIVE)
    assert made.predicted_fps <= made.bound_fps


@QUICK
@given(tables(max_layers=3))
def test_listed_sets_and_the_integer_program_agree(table):
    grid = Grid.of(table)
    prices = [RouteProgram(grid).relaxed_prices(), np.arange(1.0, len(grid.configs) + 1)]
    listed, solved = WorkerSets(grid), WorkerSets(grid)
    solved.listed = None
    for cut in prices:
        listed.add_cut(cut)
        solved.add_cut(cut)
    assert solved.most_promising()[0] == pytest.approx(listed.most_promising()[0], rel=1e-6)


def test_too_many_kinds_of_cores_are_left_to_the_routes(make_table):
    """The time to search for pipelines grows exponentially with the kinds."""
    kinds = [f"k{letter}" for letter in "abcdefghij"]
    table = make_table({f"{kind}1": [0.1 + 0.01 * i, 0.1] for i, kind in enumerate(kinds)}, dict.fromkeys(kinds, 4))
    for planner in (best_pipeline, best_replicas):
        with pytest.raises(PlanError, match=r"10 kinds of cores .* too many to search"):
            planner(table)
    found = plan(table)
    assert found.predicted_fps >= 0.98 * 4 * sum(1 / (0.2 + 0.01 * i) for i in range(10))
    assert explain(found, table)
