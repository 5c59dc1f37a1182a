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
        for planner in ("routes", "replicas"):
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
