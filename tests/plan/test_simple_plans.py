from __future__ import annotations

import pytest

from corepipe.errors import PlanError, UnknownNameError, UsageError
from corepipe.plan import PLANNERS, all_cores, evaluate, one_cluster, plan, planner_names, replicas
from corepipe.plan.build import make_workers
from corepipe.plan.simple import replicas_per_cluster, replicas_per_core
from corepipe.topology.model import CoreConfig


def test_all_cores_is_one_worker_on_every_core(big_little):
    made = all_cores(big_little)
    assert [w.name for w in made.workers] == ["all4"]
    assert made.workers[0].cores == (0, 1, 2, 3)
    assert made.planner == "all-cores"
    assert made.predicted_fps == pytest.approx(1 / (16e-3 * 0.7 + 2e-5 + 4e-5))


def test_all_cores_of_one_cluster_is_that_cluster(make_table):
    table = make_table({"cpu1": [1.0], "cpu2": [0.6]}, {"cpu": 2})
    assert [w.name for w in all_cores(table).workers] == ["cpu2"]


def test_all_cores_without_costs_says_what_to_do(make_table):
    table = make_table({"big2": [1.0], "little2": [2.0]}, {"big": 2, "little": 2})
    with pytest.raises(PlanError, match=r"no config 'all4' \(it has big2, little2\)"):
        all_cores(table)


def test_one_cluster_uses_its_largest_config_and_idle_costs(big_little):
    made = one_cluster(big_little, "little")
    assert [(w.name, w.cores) for w in made.workers] == [("little2", (2, 3))]
    assert made.planner == "cluster:little"
    assert made.predicted_fps == evaluate(made, big_little, busy=False).throughput_fps


def test_an_unknown_cluster_is_named(big_little):
    with pytest.raises(UnknownNameError, match="did you mean 'little'"):
        one_cluster(big_little, "litle")


def test_replicas_run_at_their_own_pace(big_little):
    per_core = replicas_per_core(big_little)
    assert [w.name for w in per_core.workers] == ["big1-a", "big1-b", "little1-a", "little1-b"]
    assert [w.cores for w in per_core.workers] == [(0,), (1,), (2,), (3,)]
    assert list(evaluate(per_core, big_little).load.values()) == pytest.approx([1.0] * 4)
    per_cluster = replicas_per_cluster(big_little)
    assert [w.name for w in per_cluster.workers] == ["big2", "little2"]
    best = replicas(big_little)
    assert best.predicted_fps == max(per_core.predicted_fps, per_cluster.predicted_fps)
    assert best.planner == "replicas"


def test_replicas_per_core_take_the_smallest_size_there_is(make_table):
    table = make_table({"big4": [1.0], "little2": [2.0]}, {"big": 4, "little": 5})
    assert [w.name for w in replicas_per_core(table).workers] == ["big4", "little2-a", "little2-b"]


def test_a_table_of_the_whole_machine_only_has_no_replicas(make_table):
    table = make_table({"all4": [1.0]}, {"big": 2, "little": 2})
    with pytest.raises(PlanError, match="no config within one cluster"):
        replicas(table)
    assert plan(table, "routes").predicted_fps == pytest.approx(1.0)


def test_a_table_without_any_cost_is_refused(make_table):
    table = make_table({"cpu1": [0.0, 0.0]}, {"cpu": 1})
    for name in ("routes", "pipeline", "pipelines", "pipe-it", "replicas", "all-cores"):
        with pytest.raises(PlanError, match="no cost at all"):
            plan(table, name)


def test_layers_that_cost_nothing_on_one_config_each_are_refused(make_table):
    table = make_table({"big1": [0.0, 1.0], "little1": [1.0, 0.0]}, {"big": 1, "little": 1})
    for name in ("routes", "pipeline", "pipelines", "pipe-it"):
        with pytest.raises(PlanError, match="no cost at all"):
            plan(table, name)


def test_every_planner_has_a_name_and_others_are_refused(big_little):
    names = planner_names(big_little)
    assert {"routes", "pipeline", "pipe-it", "replicas", "all-cores", "cluster:big", "cluster:little"} <= set(names)
    for name in names:
        made = plan(big_little, name)
        assert made.planner == name
        assert made.predicted_fps == pytest.approx(made.throughput_fps)
        assert made == type(made).from_json(made.to_json())
    with pytest.raises(UnknownNameError, match="did you mean 'pipe-it'"):
        plan(big_little, "pipeit")
    with pytest.raises(UnknownNameError, match="did you mean 'cluster:big'"):
        plan(big_little, "cluster:bigg")


def test_cores_may_be_restricted(big_little):
    made = plan(big_little, "replicas-per-core", cores=[1, 2])
    assert [(w.name, w.cores) for w in made.workers] == [("big1", (1,)), ("little1", (2,))]
    assert [w.name for w in plan(big_little, "all-cores", cores=[0, 1]).workers] == ["big2"]
    with pytest.raises(PlanError, match="core 9 is not in the cost table's machine"):
        plan(big_little, "routes", cores=[0, 9])
    with pytest.raises(PlanError, match="fits into the cores"):
        plan(big_little, "routes", cores=[])


@pytest.mark.parametrize(
    "limits",
    [{"latency_budget_s": 0}, {"max_workers": 0}, {"memory_budget_bytes": 5}, {"latency_budget_s": float("nan")}],
)
def test_senseless_limits_are_refused(big_little, limits):
    with pytest.raises(UsageError):
        plan(big_little, "routes", **limits)


def test_worker_names_go_on_after_z(make_table):
    table = make_table({"cpu1": [1.0]}, {"cpu": 28})
    names = [w.name for w in make_workers(table, [CoreConfig("cpu", 1)] * 28)]
    assert names[:2] == ["cpu1-a", "cpu1-b"]
    assert names[-3:] == ["cpu1-z", "cpu1-aa", "cpu1-ab"]
    with pytest.raises(PlanError, match="too few cores"):
        make_workers(table, [CoreConfig("cpu", 1)] * 29)


@pytest.mark.parametrize("name", PLANNERS)
def test_costs_of_none_of_the_cores_are_refused(name, make_table):
    """As where a stream has lost the cores that its costs are of."""
    table = make_table({"cpu1": [1e-3]}, {"cpu": 1}).replaced(configs=())
    with pytest.raises(PlanError, match="none of the cores"):
        plan(table, name)
