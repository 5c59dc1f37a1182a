from __future__ import annotations

import pytest
from cost_tables import made_up
from hypothesis import given, settings
from hypothesis import strategies as st

from corepipe.cost.table import ConfigCosts, HopCosts
from corepipe.plan import explain, plan


def nearly_alike(source):
    """Two cores for which the best mix is 1 % better than replicas."""
    return made_up(
        [ConfigCosts(config="big1", layer_s=(0.5, 0.5)), ConfigCosts(config="little1", layer_s=(0.49, 0.51))],
        {"big": 1, "little": 1},
        source=source,
    )


def hops(made):
    return sum(len(route.hops) for route in made.routes)


@st.composite
def tables(draw):
    layers = draw(st.integers(1, 6))
    seconds = st.lists(st.floats(1e-3, 1e-2), min_size=layers, max_size=layers).map(tuple)
    return made_up(
        [ConfigCosts(config=name, layer_s=draw(seconds)) for name in ("big1", "little1", "all2")],
        {"big": 1, "little": 1},
        hop=HopCosts(fixed_s=1e-5),
    )


def size(made):
    return len(made.workers), hops(made)


@settings(max_examples=60, deadline=None)
@given(table=tables(), tolerance=st.sampled_from([0.0, 0.02, 0.2, 0.5]))
def test_a_simpler_plan_is_taken_only_within_the_tolerance(table, tolerance):
    best, found = plan(table), plan(table, tolerance=tolerance)
    assert found.planner == "routes"
    assert found.bound_fps == best.bound_fps
    assert found.predicted_fps >= (1 - tolerance) * best.predicted_fps * (1 - 1e-9)
    assert size(found) <= size(best)
    for name in ("all-cores", "replicas", "pipeline"):
        other = plan(table, name)
        if other.predicted_fps >= (1 - tolerance) * best.predicted_fps and tolerance:
            assert size(found) <= size(other)


@settings(max_examples=60, deadline=None)
@given(table=tables())
def test_what_was_given_up_is_kept_and_said(table):
    best, found = plan(table), plan(table, tolerance=0.3)
    assert best.given_up is None
    lost = 1 - found.predicted_fps / best.predicted_fps
    said = [sentence for sentence in explain(found, table) if "throughput is given up for" in sentence]
    if lost > 1e-8:
        assert found.given_up == pytest.approx(lost)
        assert said[0].startswith(f"{lost:.2%} of the best mix's throughput")
    else:
        assert not said


@pytest.mark.parametrize(
    ("source", "given_up"), [("measured", True), ("emulated", True), ("predicted", True), ("board", False)]
)
def test_a_machines_own_costs_have_a_tolerance_and_a_boards_have_none(source, given_up):
    table = nearly_alike(source)
    assert (plan(table).given_up is not None) == given_up
    assert plan(table, tolerance=0.0).given_up is None
