from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corepipe.cost.table import CostTable, HopCosts
from corepipe.errors import CorepipeError, PlanError, UsageError
from corepipe.plan import (
    Plan,
    evaluate,
    explain,
    plan,
    plan_latency_s,
    planner_names,
    proved_bound,
    rated,
    weight_bytes,
)
from corepipe.plan import routes as routes_module
from corepipe.plan import worker_sets as worker_sets_module
from corepipe.plan.build import Grid
from corepipe.plan.limits import Limits
from corepipe.plan.worker_sets import WorkerSets
from corepipe.runtime.dispatch import Dispatcher

WEIGHTS = [10_000_000, 20_000_000] * 4


def test_latency_is_hops_and_hand_overs(big_little):
    made = plan(big_little, "pipeline")
    (route,) = made.routes
    expected = sum(evaluate(made, big_little).busy_s.values()) + (len(route.hops) - 1) * big_little.hop.latency_s
    assert plan_latency_s(made, big_little) == pytest.approx(expected)


def test_a_tighter_latency_budget_never_gives_more(big_little):
    budgets = [0.012, 0.015, 0.02, 0.03, 1.0]
    fps = [plan(big_little, latency_budget_s=budget).predicted_fps for budget in budgets]
    assert fps == sorted(fps)
    assert fps[-1] == plan(big_little).predicted_fps


def test_the_smallest_latency_is_named_and_works(big_little):
    with pytest.raises(
        PlanError, match=r"meets a latency budget of 1 ms; the smallest that works .* is [\d.]+ ms"
    ) as e:
        plan(big_little, latency_budget_s=1e-3)
    smallest = float(str(e.value).split()[-2])
    assert plan_latency_s(plan(big_little, latency_budget_s=smallest / 1e3), big_little) <= smallest / 1e3


def test_weights_count_once_per_segment_and_worker(big_little):
    replicas = plan(big_little, "replicas-per-core")
    assert weight_bytes(replicas, WEIGHTS) == dict.fromkeys((w.name for w in replicas.workers), sum(WEIGHTS))
    assert sum(weight_bytes(plan(big_little, "pipeline"), WEIGHTS).values()) == sum(WEIGHTS)


def test_the_smallest_memory_is_named_and_works(big_little):
    with pytest.raises(PlanError, match=r"fits into a memory budget of 100 MB; the smallest that works is 120.00 MB"):
        plan(big_little, memory_budget_bytes=100e6, layer_weight_bytes=WEIGHTS)
    made = plan(big_little, memory_budget_bytes=120e6, layer_weight_bytes=WEIGHTS)
    assert sum(weight_bytes(made, WEIGHTS).values()) == 120e6


def test_memory_and_latency_together(big_little):
    made = plan(big_little, memory_budget_bytes=130e6, layer_weight_bytes=WEIGHTS, latency_budget_s=0.02)
    assert sum(weight_bytes(made, WEIGHTS).values()) <= 130e6
    assert plan_latency_s(made, big_little) <= 0.02


def test_weights_must_fit_the_network(big_little):
    with pytest.raises(PlanError, match="has 2 entries, the cost table of net has 8 layers"):
        plan(big_little, memory_budget_bytes=1e9, layer_weight_bytes=[1, 2])


def test_other_planners_say_what_they_exceed(big_little):
    with pytest.raises(
        PlanError, match=r"plan of 'replicas-per-core' .* has 4 workers where 3 are allowed; .*'routes'"
    ):
        plan(big_little, "replicas-per-core", max_workers=3)
    with pytest.raises(PlanError, match=r"has a latency of [\d.]+ ms where 13 ms are allowed"):
        plan(big_little, "replicas-per-core", latency_budget_s=0.013)
    with pytest.raises(PlanError, match="of weights where 130 MB are allowed"):
        plan(big_little, "replicas-per-core", memory_budget_bytes=130e6, layer_weight_bytes=WEIGHTS)
    assert plan(big_little, "cluster:big", max_workers=1).planner == "cluster:big"
    assert Limits(max_workers=1).excess(plan(big_little, "cluster:big"), big_little) is None


def test_of_equal_plans_the_one_with_fewest_workers_is_taken(make_table):
    layers = np.array([3.0, 1.0, 2.0])
    costs = {f"cpu{n}": list(layers / n) for n in (1, 2, 3, 4)}
    made = plan(make_table(costs, {"cpu": 4}))
    assert [worker.name for worker in made.workers] == ["cpu4"]
    assert made.bound_fps == pytest.approx(made.predicted_fps)


def test_of_equal_plans_the_one_with_fewest_hops_is_taken(make_table):
    table = make_table({"big1": [1.0, 1.0, 1.0], "little1": [2.0, 2.0, 2.0]}, {"big": 1, "little": 1})
    made = plan(table)
    assert made.predicted_fps == pytest.approx(0.5)
    assert [len(route.hops) for route in made.routes] == [1, 1]


def test_a_worker_that_only_costs_hops_is_left_out(make_table):
    table = make_table({"big1": [1.0, 1.0], "little1": [1e6, 1e6]}, {"big": 1, "little": 1}, hop=HopCosts(fixed_s=10.0))
    assert plan(table, max_workers=1).predicted_fps == pytest.approx(0.5)
    assert plan(table).predicted_fps == pytest.approx(0.5, rel=1e-5)


def test_larger_machines_are_searched_by_integer_program(big_little, monkeypatch):
    listed = plan(big_little)
    monkeypatch.setattr(worker_sets_module, "MAX_LISTED", 0)
    assert WorkerSets(Grid.of(big_little)).listed is None
    solved = plan(big_little)
    assert solved.predicted_fps == pytest.approx(listed.predicted_fps, rel=1e-9)
    assert solved.bound_fps == pytest.approx(listed.bound_fps, rel=1e-6)
    assert len(plan(big_little, max_workers=2).workers) <= 2
    with pytest.raises(PlanError, match="the smallest that works"):
        plan(big_little, latency_budget_s=1e-4)


@pytest.mark.parametrize("solved", [0, 1, 3])
@pytest.mark.parametrize("limits", [{}, {"max_workers": 2}, {"latency_budget_s": 0.02}])
def test_a_bound_stays_a_bound_when_the_integer_program_fails(big_little, monkeypatch, solved, limits):
    best = plan(big_little, **limits)
    monkeypatch.setattr(worker_sets_module, "MAX_LISTED", 0)
    real, calls = worker_sets_module.milp, iter(range(1000))

    def failing(**arguments):
        if next(calls) < solved:
            return real(**arguments)
        return SimpleNamespace(x=None, fun=None, mip_dual_bound=None)

    monkeypatch.setattr(worker_sets_module, "milp", failing)
    made = plan(big_little, **limits)
    assert 0 < made.predicted_fps <= best.predicted_fps * (1 + 1e-9)
    assert best.predicted_fps * (1 - 1e-9) <= made.bound_fps < np.inf
    assert Limits(**limits).excess(made, big_little) is None


def test_a_search_that_takes_too_long_stops_with_its_bound(big_little, monkeypatch):
    best = plan(big_little)
    monkeypatch.setattr(routes_module, "MAX_SEARCH_S", -1.0)
    made = plan(big_little)
    assert 0 < made.predicted_fps <= best.predicted_fps * (1 + 1e-9) <= made.bound_fps * (1 + 2e-9)


def test_the_smallest_latency_is_found_among_configs_that_fit_together(make_table):
    costs = {"big1": [1.0, 9.0, 9.0, 2.0], "big2": [2.0, 1.0, 9.0, 1.0], "little1": [9.0, 9.0, 1.0, 9.0]}
    table = make_table(costs, {"big": 2, "little": 1})
    for most, least_s in ((None, 5.0), (2, 5.0), (1, 13.0)):
        with pytest.raises(PlanError, match=f"the smallest that works on these cores is {least_s * 1e3:.3f} ms"):
            plan(table, latency_budget_s=1e-3, max_workers=most)
        assert plan(table, latency_budget_s=least_s, max_workers=most).predicted_fps > 0


def test_a_network_of_many_layers_on_eight_cores(make_table):
    rng = np.random.default_rng(0)
    layers = rng.lognormal(0, 1, 60) * 1e-3
    costs = {}
    for cluster, slower in (("big", 1.0), ("little", 2.5)):
        for count in (1, 2, 3, 4):
            costs[f"{cluster}{count}"] = list(layers * slower * rng.uniform(0.8, 1.2, 60) / count**0.95)
    table = make_table(costs, {"big": 4, "little": 4}, hop=HopCosts(fixed_s=1e-4, edge_s=5e-5), segment_s=5e-5)
    made = plan(table)
    assert made.bound_fps == pytest.approx(made.predicted_fps, rel=1e-8)
    assert len(made.routes) <= len(made.workers)
    assert made.predicted_fps > plan(table, "pipelines").predicted_fps


def test_a_network_too_large_to_search_is_named_and_can_have_replicas(make_table):
    table = make_table({"cpu1": [1e-3] * 20_000}, {"cpu": 2})
    for planner in ("routes", "pipeline", "pipelines", "pipe-it"):
        with pytest.raises(PlanError, match="has 20000 layers, too many to search"):
            plan(table, planner)
    made = plan(table, "replicas")
    assert made.predicted_fps == pytest.approx(0.1)
    assert explain(made, table)


extreme = st.sampled_from([0.0, 1e-310, 1e-13, 1e-12, 1e-6, 1.0, 1e3, 1e6])


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_extreme_costs_give_a_plan_or_one_message(data):
    count = data.draw(st.integers(1, 4))
    layers = st.lists(extreme, min_size=count, max_size=count)
    document = {
        "schema_version": 1,
        "kind": "corepipe-cost-table",
        "network": {
            "name": "n",
            "sha256": "",
            "layers": [f"l{i}" for i in range(count)],
            "cut_bytes": [data.draw(st.sampled_from([0, 1, 2**53 - 1])) for _ in range(count + 1)],
        },
        "machine": {
            "description": "",
            "fingerprint": "",
            "clusters": [{"name": "big", "cores": [0, 1]}, {"name": "little", "cores": [2]}],
        },
        "engines": [{"name": "onnxruntime", "version": "1"}],
        "configs": [
            {"config": config, "layer_s": data.draw(layers), "layer_busy_s": data.draw(layers),
             "segment_s": data.draw(extreme), "segment_s_per_byte": data.draw(st.sampled_from([0.0, 1e-310, 1.0]))}
            for config in ("big1", "big2", "little1", "all3")
        ],
        "hop": {key: data.draw(extreme) for key in ("fixed_s", "edge_s", "latency_s")},
        "provenance": {"source": "made-up"},
    }  # fmt: skip
    table = CostTable.from_json(json.dumps(document))
    for planner in planner_names(table):
        with contextlib.suppress(CorepipeError):
            made = plan(table, planner)
            assert 0 < made.predicted_fps < np.inf
            Dispatcher(Plan.from_json(made.to_json()))
            explain(made, table)


def test_with_a_latency_budget_any_planner_takes_the_slot_that_keeps_it(make_table):
    one = make_table({"cpu1": [0.01, 0.01]}, {"cpu": 1}, hop=HopCosts(edge_s=1e-3))
    eight = [costs.model_copy(update={"batch": 8}) for costs in one.configs]
    table = one.replaced(configs=(*one.configs, *eight))
    assert plan(table, "pipeline").batch == 8
    assert plan(table, "pipeline", latency_budget_s=0.05).batch == 1
    with pytest.raises(PlanError, match="the smallest that works"):
        plan(table, "pipeline", latency_budget_s=0.001)


@pytest.mark.parametrize("planner", ["routes", "pipeline", "replicas"])
def test_the_bound_is_for_the_slots_that_are_planned_for(make_table, planner):
    table = make_table({"cpu1": [0.0045, 0.0045]}, {"cpu": 1}, hop=HopCosts(edge_s=5e-4))
    for batch in (None, 1, 8):
        made = plan(table, planner, batch=batch)
        assert made.predicted_fps <= made.bound_fps * (1 + 1e-9)
    assert rated(plan(table, "pipeline", batch=8), table).bound_fps == pytest.approx(1 / 0.009125)


@pytest.mark.parametrize("batch", [0, -1, 5000])
def test_a_batch_out_of_range_is_refused(big_little, batch):
    with pytest.raises(UsageError, match=f"batch {batch}: give a number"):
        plan(big_little, batch=batch)


@pytest.mark.parametrize("budget_s", [None, 1.0])
def test_a_table_without_any_config_of_use_is_named(make_table, budget_s):
    table = make_table({"all2": [1.0]}, {"big": 2, "little": 2})
    for find in (lambda: plan(table, latency_budget_s=budget_s), lambda: proved_bound(table)):
        with pytest.raises(PlanError, match=r"has no config of a cluster or of all cores \(it has all2\)"):
            find()


def test_a_worker_whose_hop_costs_nothing_is_one(make_table):
    table = make_table({"big1": [0.010, 0.001], "little1": [0.1, 0.0]}, {"big": 1, "little": 1})
    found = plan(table, latency_budget_s=0.012)
    assert {hop.worker for route in found.routes for hop in route.hops} == {worker.name for worker in found.workers}
    assert found.predicted_fps == pytest.approx(evaluate(found, table).throughput_fps)
