from __future__ import annotations

import functools

import pytest

from corepipe.cost.table import ConfigCosts, EngineName
from corepipe.errors import PlanError
from corepipe.plan import candidates, evaluate, plan


@pytest.fixture
def two_engines(make_table):
    """Two cores and two engines, each of which is better at one half of the layers; the second one is better alone."""

    def make(first=(1.0, 4.0), second=(3.0, 1.0)):
        table = make_table({"big1": first, "little1": [2 * s for s in first]}, {"big": 1, "little": 1})
        other = [
            ConfigCosts(config=config, layer_s=tuple(scale * s for s in second), engine="ncnn")
            for config, scale in (("big1", 1), ("little1", 2))
        ]
        return table.replaced(
            configs=(*table.configs, *other), engines=(*table.engines, EngineName(name="ncnn", version="1"))
        )

    return make


def test_the_best_plan_by_the_table_comes_first_and_each_engine_has_its_own(two_engines):
    table = two_engines()
    found = candidates(table, functools.partial(plan, tolerance=0.02))
    assert next(iter(found)) == "routes"
    assert found["routes"] == plan(table, tolerance=0.02)
    assert all(made.planner == name for name, made in found.items())
    assert found["routes-exact"].engines == ("ncnn", "onnxruntime")
    assert "routes on onnxruntime" not in found, "40 % of the best mix is not worth trying"


def test_plans_on_one_engine_have_it_to_themselves_and_figures_of_the_whole_table(two_engines):
    table = two_engines(first=(1.0, 1.1), second=(1.1, 1.0))
    found = candidates(table)
    for engine in ("onnxruntime", "ncnn"):
        for planner in ("routes", "replicas-per-core"):
            made = found[f"{planner} on {engine}"]
            assert made.engines == (engine,)
            assert made.bound_fps == found["routes"].bound_fps
            assert made.given_up is None, "of what the engine can do alone, which says nothing beside the others"
            assert made.predicted_fps == pytest.approx(evaluate(made, table).throughput_fps)
            assert made.predicted_fps <= found["routes-exact"].predicted_fps * (1 + 1e-9)


def test_every_candidate_keeps_the_limits(two_engines):
    table = two_engines(first=(1.0, 1.1), second=(1.1, 1.0))
    for made in candidates(table, functools.partial(plan, max_workers=1)).values():
        assert len(made.workers) == 1
    with pytest.raises(PlanError, match="latency budget"):
        candidates(table, functools.partial(plan, latency_budget_s=0.1))


def test_each_batch_of_an_engine_has_replicas_of_its_own(two_engines):
    table = two_engines(first=(1.0, 1.1), second=(1.1, 1.0))
    batched = [row.model_copy(update={"batch": 4}) for row in table.configs if row.engine == "ncnn"]
    found = candidates(table.replaced(configs=(*table.configs, *batched)))
    replicas = {name: made for name, made in found.items() if name.startswith("replicas-per-core")}
    assert list(replicas) == [
        f"replicas-per-core on {mode}" for mode in ("onnxruntime", "ncnn", "ncnn, 4 frames at once")
    ]
    for name, made in replicas.items():
        batches = {part.batch for route in made.routes for hop in route.hops for part in made.parts_of(hop)}
        assert batches == {4 if "at once" in name else 1}


def test_replicas_per_core_are_tried_even_where_one_worker_seems_to_be_as_fast(make_table):
    table = make_table({"big1": (1.0, 1.0), "big2": (0.45, 0.45)}, {"big": 2})
    found = candidates(table)
    assert [worker.config for worker in found["routes"].workers] == ["big2"]
    assert [worker.config for worker in found["replicas-per-core on onnxruntime"].workers] == ["big1", "big1"]
    assert [worker.config for worker in found["replicas-per-cluster on onnxruntime"].workers] == ["big2"]
