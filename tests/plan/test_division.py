"""A worker's layers divided among engines and batches, against every division there is."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from cost_tables import made_up
from hypothesis import given
from hypothesis import strategies as st

from corepipe.cost.table import ConfigCosts, CostTable, HopCosts, Mode, Provenance, merged
from corepipe.errors import DocumentError, PlanError
from corepipe.plan import best_pipeline, evaluate, explain, plan, plan_latency_s, proved_bound, weight_bytes
from corepipe.plan.build import Grid, single_plan
from corepipe.plan.division import Divider, divided_load_s
from corepipe.plan.model import Hop, HopPart, Plan, PlanNetwork, Route, Worker
from corepipe.topology.model import CoreConfig

ONE = CoreConfig("cpu", 1)


def table_of(rows, cut_bytes=None, illegal=(), cores=2, hop=None):
    """A table of one cluster; rows are (config, engine, batch, layer seconds, fields)."""
    return made_up(
        [
            ConfigCosts(config=config, engine=engine, batch=batch, layer_s=tuple(seconds), **fields)
            for config, engine, batch, seconds, fields in rows
        ],
        {"cpu": cores},
        cut_bytes=cut_bytes,
        illegal_cuts=illegal,
        hop=hop,
    )


@st.composite
def tables(draw):
    count = draw(st.integers(1, 6))
    seconds = st.floats(0.01, 1.0)
    rows = [
        (
            "cpu1",
            engine,
            batch,
            draw(st.lists(seconds, min_size=count, max_size=count)),
            {
                "layer_busy_s": tuple(draw(st.lists(seconds, min_size=count, max_size=count))),
                "segment_s": draw(st.floats(0, 0.2)),
                "segment_s_per_byte": draw(st.floats(0, 0.1)),
            },
        )
        for engine, batch in draw(
            st.lists(st.sampled_from([("a", 1), ("b", 1), ("b", 2), ("c", 1)]), min_size=1, max_size=4, unique=True)
        )
    ]
    cut_bytes = draw(st.lists(st.integers(0, 3), min_size=count + 1, max_size=count + 1))
    illegal = draw(st.sets(st.integers(1, count - 1))) if count > 1 else ()
    return table_of(rows, cut_bytes, sorted(illegal))


def every_division(table, start, stop, busy):
    """Seconds of each way to divide layers [start, stop)."""
    inner = [cut for cut in table.legal_cuts() if start < cut < stop]
    modes = [costs.mode for costs in table.by_config[ONE]]
    for count in range(len(inner) + 1):
        for cuts in itertools.combinations(inner, count):
            spans = list(itertools.pairwise((start, *cuts, stop)))
            for chosen in itertools.product(modes, repeat=len(spans)):
                yield sum(
                    table.segment_s(ONE, *span, busy=busy, mode=mode) for span, mode in zip(spans, chosen, strict=True)
                )


@given(tables(), st.booleans())
def test_no_division_is_better(table, busy):
    table = table.for_frames(2)
    divider = Divider(table, ONE, busy=busy)
    seconds = divider.seconds()
    for i, j in itertools.combinations(range(len(divider.cuts)), 2):
        start, stop = divider.cuts[i], divider.cuts[j]
        best = min(every_division(table, start, stop, busy))
        parts, found = divider.divide(start, stop)
        assert seconds[j, i] == pytest.approx(best)
        assert found == pytest.approx(best)
        assert (parts[0].start, parts[-1].stop) == (start, stop)
        assert all(a.stop == b.start for a, b in itertools.pairwise(parts))
        assert sum(table.segment_s(ONE, p.start, p.stop, busy=busy, mode=p.mode) for p in parts) == pytest.approx(best)
    assert np.isinf(seconds[np.triu_indices(len(divider.cuts))]).all()


@given(tables())
def test_a_plan_reaches_what_the_division_promises(table):
    alone = single_plan(table.for_frames(2), "x", ONE)
    assert alone.batch == 2
    expected = divided_load_s(table.for_frames(2), ONE, 0, table.layer_count, busy=False)
    assert evaluate(alone, table).throughput_fps == pytest.approx(1 / expected)
    assert Plan.from_json(alone.to_json()) == alone


@given(tables())
def test_the_grid_takes_the_best_of_each_segment(table):
    table = table.for_frames(2)
    grid = Grid.of(table)
    last = len(grid.cuts) - 1
    best = min(every_division(table, 0, table.layer_count, True))
    assert grid.loads[0, last, 0] == pytest.approx(best)


def test_each_worker_takes_the_engine_that_is_better_for_its_layers():
    table = table_of([("cpu1", "a", 1, [1.0, 3.0], {}), ("cpu1", "b", 1, [3.0, 1.0], {})])
    found = plan(table, "routes", tolerance=0)
    assert found.predicted_fps == pytest.approx(1.0)
    assert found.bound_fps == pytest.approx(1.0)
    assert set(found.engines) == {"a", "b"}
    assert plan(table, "replicas").predicted_fps == pytest.approx(0.5), "a baseline is on the first engine alone"
    assert plan(table.only(engine="b"), "routes").engines == ("b",)


def test_a_slot_shares_hops_and_a_batch_is_taken_where_it_pays():
    hop = HopCosts(fixed_s=0.2, edge_s=0.1, latency_s=0.4)
    rows = [("cpu1", "a", 1, [1.0, 1.0], {}), ("cpu1", "a", 4, [1.5, 0.25], {})]
    table = table_of(rows, hop=hop)
    shared = table.for_frames(4)
    assert shared.hop == HopCosts(fixed_s=0.05, edge_s=0.025, latency_s=0.1)
    assert shared.for_frames(4) is shared
    assert shared.for_frames(1).hop == hop
    found = plan(table, "routes", tolerance=0)
    assert found.batch == 4
    modes = {part.layers: part.mode for w in found.workers for part in found.segments_of(w.name)}
    assert modes[0, 1] == Mode("a", 1)
    assert modes[1, 2] == Mode("a", 4)
    assert found.predicted_fps == pytest.approx(2 / (1.25 + 2 * 0.025))
    assert plan_latency_s(found, table) == pytest.approx(4 * (1.25 + 0.05))
    assert proved_bound(table) == pytest.approx(found.predicted_fps)
    assert plan(table, "routes", batch=1).predicted_fps == pytest.approx(2 / 2.2)
    quick = plan(table, "routes", latency_budget_s=3.0, tolerance=0)
    assert quick.batch == 1
    with pytest.raises(PlanError, match="latency budget"):
        plan(table, "routes", latency_budget_s=0.5)


def test_fewer_frames_in_a_slot_are_preferred_where_that_costs_little():
    rows = [("cpu1", "a", 1, [1.0], {}), ("cpu1", "a", 8, [0.99], {})]
    table = table_of(rows).replaced(provenance=Provenance(source="measured"))
    found = plan(table, "routes")
    assert found.batch == 1
    assert found.given_up == pytest.approx(0.01)
    assert plan(table, "routes", tolerance=0).batch == 8


def test_segments_in_two_modes_are_held_twice():
    parts = (HopPart(layers=(0, 2), engine="a"), HopPart(layers=(2, 3), engine="b"))
    made = Plan(
        planner="by hand",
        network=PlanNetwork(name="net", sha256="", layers=3),
        workers=(Worker(name="w", config="cpu1", cores=(0,), engine="b"),),
        routes=(
            Route(rate_fps=1, hops=(Hop(worker="w", layers=(0, 3), parts=parts),)),
            Route(rate_fps=1, hops=(Hop(worker="w", layers=(0, 3)),)),
        ),
    )
    assert weight_bytes(made, [1, 10, 100]) == {"w": 222}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([[0, 1], [2, 3]], "must start at 1"),
        ([[0, 2]], "end at layer 2"),
        ([[1, 3]], "must start at 0"),
        ([[0, 2], [2, 2], [2, 3]], "hold something"),
        ([], "parts"),
    ],
)
def test_parts_that_do_not_make_up_a_hop_are_refused(parts, message):
    data = {
        "planner": "by hand",
        "network": {"name": "net", "sha256": "", "layers": 3},
        "workers": [{"name": "w", "config": "cpu1", "cores": [0]}],
        "routes": [
            {"rate_fps": 1, "hops": [{"worker": "w", "layers": [0, 3], "parts": [{"layers": p} for p in parts]}]}
        ],
    }
    text = json.dumps({"schema_version": 1, "kind": "corepipe-plan", **data})
    with pytest.raises(DocumentError, match=message):
        Plan.from_json(text)


def test_a_batch_that_does_not_divide_the_slot_is_refused():
    with pytest.raises(ValueError, match="4 frames at once, of a plan's 2"):
        Plan(
            planner="by hand",
            network=PlanNetwork(name="net", sha256="", layers=1),
            workers=(Worker(name="w", config="cpu1", cores=(0,)),),
            routes=(
                Route(rate_fps=1, hops=(Hop(worker="w", layers=(0, 1), parts=(HopPart(layers=(0, 1), batch=4),)),)),
            ),
            batch=2,
        )


def test_a_plan_with_an_engine_that_the_table_lacks_is_refused():
    table = table_of([("cpu1", "a", 1, [1.0], {})])
    made = Plan(
        planner="by hand",
        network=PlanNetwork(name="net", sha256="", layers=1),
        workers=(Worker(name="w", config="cpu1", cores=(0,), engine="b"),),
        routes=(Route(rate_fps=1, hops=(Hop(worker="w", layers=(0, 1)),)),),
    )
    with pytest.raises(PlanError, match="b, batch 1"):
        evaluate(made, table)


def test_tables_of_several_engines_are_merged():
    first, second = (table_of([("cpu1", name, 1, [1.0, 2.0], {})]) for name in "ab")
    both = merged([first, second])
    assert [engine.name for engine in both.engines] == ["a", "b"]
    assert both.costs_of(ONE).engine == "a"
    assert both.costs_of(ONE, Mode("b")).engine == "b"
    assert CostTable.from_json(both.to_json()) == both
    other = table_of([("cpu1", "c", 1, [1.0], {})])
    with pytest.raises(PlanError, match="different networks"):
        merged([first, other])


def test_a_plan_with_batches_is_explained():
    rows = [("cpu1", "a", 1, [1.0, 1.0], {}), ("cpu1", "a", 4, [1.5, 0.25], {})]
    table = table_of(rows, hop=HopCosts(edge_s=0.1))
    for batch in (1, 4):
        found = plan(table, "routes", batch=batch, tolerance=0)
        assert any("can exceed" in sentence for sentence in explain(found, table))


def test_modes_that_do_not_fit_into_a_slot_are_not_used():
    table = table_of([("cpu1", "a", 1, [1.0], {}), ("cpu1", "a", 4, [0.5], {})])
    assert best_pipeline(table).predicted_fps == pytest.approx(1.0)
    assert best_pipeline(table.for_frames(4)).predicted_fps == pytest.approx(2.0)


def test_one_engine_is_taken_where_it_comes_near_to_a_mix_of_engines():
    rows = [("cpu1", "a", 1, [1.0, 1.04], {}), ("cpu1", "b", 1, [3.0, 1.0], {})]
    table = table_of(rows).replaced(provenance=Provenance(source="measured"))
    found = plan(table, "routes")
    assert found.engines == ("a",)
    assert found.given_up == pytest.approx(1 - 2.0 / 2.04)
    assert found.bound_fps == pytest.approx(1.0)
    assert plan(table, "routes", tolerance=0).engines == ("a", "b")
    worth = table_of([("cpu1", "a", 1, [1.0, 1.1], {}), rows[1]]).replaced(provenance=Provenance(source="measured"))
    assert plan(worth, "routes").engines == ("a", "b")
