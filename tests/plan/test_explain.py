from __future__ import annotations

import re

import pytest

from corepipe.errors import PlanError
from corepipe.plan import best_pipeline, explain, plan, planner_names
from corepipe.plan.explain import finer


def test_the_bottleneck_and_the_loads_are_named(make_table):
    table = make_table({"big1": [2.0, 1.0], "little1": [2.0, 1.0]}, {"big": 1, "little": 1})
    text = explain(plan(table, "pipe-it"), table)
    assert text[0] == "big1 is the bottleneck: busy all the time at 0.50 frames/s."
    assert text[1] == "The other workers are less busy: little1 50.0%."
    assert "On the same workers the best mix of routes would reach 0.67 frames/s, 0.17 more." in text


def test_one_worker_is_no_bottleneck_of_many(big_little):
    assert re.match(r"One worker, big2, runs whole frames: \d", explain(plan(big_little, "cluster:big"), big_little)[0])


def test_rounding_and_comparative_advantage_add_up(big_little):
    made = plan(big_little, "routes")
    text = " ".join(explain(made, big_little))
    found = re.search(r"by ([\d.]+) frames/s: ([\d.]+) that a pipeline loses .* and ([\d.]+) of comparative", text)
    assert found, text
    ahead, rounding, advantage = map(float, found.groups())
    assert ahead == pytest.approx(made.predicted_fps - best_pipeline(big_little).predicted_fps, abs=0.01)
    assert rounding + advantage == pytest.approx(ahead, abs=0.011)
    assert "this one reaches it" in text


def test_with_layers_alike_the_gain_over_the_pipeline_is_rounding(make_table):
    table = make_table({"big1": [1.0, 1.0], "little1": [2.0, 2.0]}, {"big": 1, "little": 1})
    text = " ".join(explain(plan(table, "routes"), table))
    assert "by 0.25 frames/s: 0.25 that a pipeline loses to rounding" in text
    assert "0.00 of comparative advantage" in text


def test_one_more_core_is_weighed(make_table):
    table = make_table({"cpu1": [1.0, 1.0]}, {"cpu": 2})
    assert "One more core in cluster cpu, as a worker beside these, would add 0.50 frames/s." in explain(
        plan(table, "routes"), table
    )


def test_what_is_beyond_the_limits_is_not_held_up(big_little):
    text = " ".join(explain(plan(big_little, "routes", max_workers=1), big_little, limited=True))
    assert "within the limits asked for" in text
    assert "would reach" not in text
    assert "would add" not in text


def test_every_plan_can_be_explained(big_little):
    for name in planner_names(big_little):
        text = explain(plan(big_little, name), big_little)
        assert text
        assert all(sentence.endswith(".") for sentence in text)


def test_every_plan_is_held_against_the_bound(big_little):
    best = plan(big_little)
    for name in planner_names(big_little):
        made = plan(big_little, name)
        assert made.bound_fps == pytest.approx(best.bound_fps, rel=1e-9)
        said = f"No plan within the limits asked for can exceed {best.bound_fps:.2f} frames/s; this one "
        gap = 1 - made.predicted_fps / best.bound_fps
        assert said + ("reaches it." if gap < 1e-6 else f"is {gap:.2%} below it.") in explain(made, big_little)
        assert plan(big_little, name, bound=False).bound_fps == (made.bound_fps if name == "routes" else None)


def test_the_bound_is_that_within_the_limits(big_little):
    weights = [10] * 8
    for limits in ({"max_workers": 2}, {"cores": [0, 1]}, {"latency_budget_s": 0.02}):
        made = plan(big_little, "cluster:big", memory_budget_bytes=80, layer_weight_bytes=weights, **limits)
        assert made.bound_fps == pytest.approx(plan(big_little, **limits).bound_fps, rel=1e-9)


def test_finer_layers_cost_the_same_in_sum(big_little):
    fine = finer(big_little, 3)
    assert fine.layer_count == 24
    for config, (costs,) in big_little.by_config.items():
        assert sum(fine.costs_of(config).layer_s) == pytest.approx(sum(costs.layer_s))
    assert fine.network.cut_bytes[::3] == big_little.network.cut_bytes
    assert best_pipeline(fine).predicted_fps >= best_pipeline(big_little).predicted_fps


def test_a_plan_of_another_network_is_refused(big_little, make_table):
    other = make_table({"big1": [1.0], "little1": [1.0]}, {"big": 2, "little": 2})
    with pytest.raises(PlanError, match="make the plan anew"):
        explain(plan(big_little, "replicas"), other)
