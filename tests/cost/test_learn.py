"""Costs after streams: what was seen is explained, what was not is corrected like what is nearest to it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cost_tables import made_up
from hypothesis import given, settings
from hypothesis import strategies as st

from corepipe import plan as planners
from corepipe.cost.learn import learnt
from corepipe.cost.table import ConfigCosts
from corepipe.plan.model import Hop, HopPart, Plan, PlanNetwork, Route, Worker, hop_s

LAYERS = 6
ENGINES = ("onnxruntime", "openvino", "ncnn")


def row(config, engine="onnxruntime", layer_s=(1e-3,) * LAYERS, **fields):
    return ConfigCosts(config=config, engine=engine, layer_s=layer_s, **fields)


def two_cores(factors=None):
    """A big and a LITTLE core with three engines; `factors` by config and engine."""
    generator = np.random.default_rng(1)
    rows = []
    for config, engine in itertools.product(("big1", "little1", "all2"), ENGINES):
        costs = generator.uniform(0.5e-3, 3e-3, LAYERS) * {"big1": 1.0, "little1": 2.5, "all2": 0.8}[config]
        costs *= (factors or {}).get((config, engine), 1.0)
        rows.append(row(config, engine, tuple(costs.tolist()), segment_s=1e-5))
    return made_up(rows, {"big": 1, "little": 1})


def replicas(table, engine):
    return planners.replicas_per_core(table.only(engine=engine))


def seen(plan, table, factor=1.0):
    """What the hops of a plan take where these are the costs."""
    busy = len(plan.workers) > 1
    return plan, {hop: factor * hop_s(plan, hop, table, busy=busy) for route in plan.routes for hop in route.hops}


def by_hand(table, *routes):
    """Each route as hops of worker name and (start, stop, engine) for its parts."""
    workers = {
        f"{c.name}1": Worker(name=f"{c.name}1", config=f"{c.name}1", cores=c.cores) for c in table.machine.clusters
    }
    made = []
    for route in routes:
        hops = []
        for worker, *parts in route:
            cut = tuple(HopPart(layers=(start, stop), engine=engine) for start, stop, engine in parts)
            hops.append(Hop(worker=worker, layers=(cut[0].start, cut[-1].stop), parts=cut))
        made.append(Route(rate_fps=1.0, hops=tuple(hops)))
    network = PlanNetwork(name=table.network.name, sha256=table.network.sha256, layers=LAYERS)
    return Plan(planner="by hand", network=network, workers=tuple(workers.values()), routes=tuple(made))


def ratios(after, before):
    """By config and engine, the ratio of each layer's costs."""
    return {
        (new.config, new.engine): np.array(new.layer_s) / old.layer_s
        for new, old in zip(after.configs, before.configs, strict=True)
    }


def test_costs_that_hold_are_left_as_they_are():
    table = two_cores()
    after = learnt(table, [seen(replicas(table, engine), table) for engine in ENGINES])
    for found in ratios(after, table).values():
        assert found == pytest.approx(1.0)
    assert learnt(table, []) is table


def test_a_config_that_is_slower_in_streams_is_so_with_every_engine():
    table = two_cores()
    now = two_cores({("little1", engine): 1.3 for engine in ENGINES})
    after = ratios(learnt(table, [seen(replicas(table, "openvino"), now)]), table)
    assert after["little1", "openvino"] == pytest.approx(1.3, abs=0.02)
    assert after["big1", "openvino"] == pytest.approx(1.0, abs=0.02)
    for engine in ("onnxruntime", "ncnn"):
        assert after["little1", engine] == pytest.approx(1.28, abs=0.03)
        assert after["big1", engine] == pytest.approx(1.0, abs=0.02)
    assert 1.0 <= after["all2", "ncnn"].mean() <= 1.3


def test_engines_on_a_config_are_told_apart():
    table = two_cores()
    now = two_cores({("big1", "ncnn"): 1.25, ("little1", "ncnn"): 1.25})
    after = ratios(learnt(table, [seen(replicas(table, engine), now) for engine in ENGINES]), table)
    for config in ("big1", "little1"):
        assert after[config, "ncnn"] == pytest.approx(1.25, abs=0.02)
        assert after[config, "openvino"] == pytest.approx(1.0, abs=0.02)


def test_layers_that_take_longer_than_the_rest_are_found():
    """Of a route that is divided, one hop says more of its layers than the whole network does."""
    table = two_cores()
    plan = by_hand(table, [("big1", (0, 3, "ncnn")), ("little1", (3, 6, "ncnn"))], [("big1", (0, 6, "ncnn"))])
    took = seen(plan, table)[1]
    first = plan.routes[0].hops[0]
    found = ratios(learnt(table, [(plan, took | {first: 1.2 * took[first]})]), table)["big1", "ncnn"]
    assert found[:3].mean() > 1.04
    assert found[3:].mean() < 1.0


def test_mixes_of_engines_that_take_longer_make_segments_dearer():
    table = two_cores()
    mixed = by_hand(
        table,
        [("big1", (0, 2, "ncnn"), (2, 4, "openvino"), (4, 6, "onnxruntime"))],
        [("little1", (0, 6, "ncnn"))],
    )
    exact = [seen(replicas(table, engine), table) for engine in ENGINES]
    took = seen(mixed, table)[1]
    whole_s = sum(table.costs_of(table.configs[0].core_config).layer_s)
    divided = mixed.routes[0].hops[0]
    after = learnt(table, [*exact, (mixed, took | {divided: took[divided] + 0.04 * whole_s})])
    by_name = {(c.config, c.engine): c for c in after.configs}
    for engine in ENGINES:
        assert by_name["big1", engine].segment_s > 1e-5 + 0.005 * whole_s
        assert by_name["little1", engine].segment_s == pytest.approx(1e-5, abs=1e-6)
    # A whole network takes what it took.
    whole = replicas(table, "ncnn")
    for hop, seconds in exact[2][1].items():
        assert hop_s(whole, hop, after, busy=True) == pytest.approx(seconds, rel=0.02)
    # Segments that seem to gain something are not believed to.
    after = learnt(table, [*exact, (mixed, took | {divided: took[divided] - 0.04 * whole_s})])
    assert {c.segment_s for c in after.configs} == {1e-5}


def test_a_worker_on_its_own_tells_of_all_cores_only():
    table = two_cores()
    alone = planners.plan(table.only(engine="ncnn"), "cluster:big")
    assert learnt(table, [seen(alone, table, 2.0)]) is table
    every = planners.plan(table.only(engine="ncnn"), "all-cores")
    assert ratios(learnt(table, [seen(every, table, 1.5)]), table)["all2", "ncnn"].mean() == pytest.approx(
        1.5, abs=0.03
    )


def test_costs_of_batches_and_of_busy_neighbours_are_corrected_alike():
    rows = [
        row("big1", layer_busy_s=(2e-3,) * LAYERS), row("big1", batch=4, layer_busy_s=(1.5e-3,) * LAYERS),
        row("little1", layer_busy_s=(4e-3,) * LAYERS), row("little1", batch=4, layer_busy_s=(3e-3,) * LAYERS),
    ]  # fmt: skip
    table = made_up(rows, {"big": 1, "little": 1})
    plan = planners.replicas_per_core(table.only(engine="onnxruntime", batch=4).for_frames(4))
    assert plan.batch == 4
    after = learnt(table, [seen(plan, table.for_frames(4), 1.4)])
    for new, old in zip(after.configs, table.configs, strict=True):
        assert np.array(new.layer_busy_s) / old.layer_busy_s == pytest.approx(1.4, abs=0.06)
        assert np.array(new.layer_s) / old.layer_s == pytest.approx(1.4, abs=0.06)


@pytest.mark.parametrize("busy", [0.0, 1e-15, 1e-6])
def test_layers_that_cost_nothing_cost_little_afterwards(busy):
    costs = (1e-3, 0.0, 1e-3, 1e-15, 1e-3, 1e-3)
    rows = [
        row(config, layer_s=costs, layer_busy_s=(2e-3, busy, 2e-3, busy, 2e-3, 2e-3)) for config in ("big1", "little1")
    ]
    table = made_up(rows, {"big": 1, "little": 1})
    after = learnt(table, [seen(replicas(table, "onnxruntime"), table, 1.3)])
    for found in after.configs:
        assert 0 <= min(found.layer_s) <= max(found.layer_s) < 2e-3
        assert 0 <= min(found.layer_busy_s) <= max(found.layer_busy_s) < 4e-3
        assert sum(found.layer_busy_s) == pytest.approx(1.3 * sum(rows[0].layer_busy_s), rel=0.02)


def test_hops_that_took_no_time_are_no_harm():
    table = two_cores()
    nothing = seen(replicas(table, "ncnn"), table, 0.0)
    after = learnt(table, [nothing, nothing])
    assert all(min(c.layer_s) >= 0 for c in after.configs)


@settings(deadline=None)
@given(
    configs=st.lists(st.floats(0.3, 3.0), min_size=3, max_size=3),
    engines=st.lists(st.floats(0.8, 1.25), min_size=9, max_size=9),
    ran=st.sets(st.sampled_from(ENGINES), min_size=1),
)
def test_what_was_seen_is_explained(configs, engines, ran):
    """Whatever factors configs and engines are off by, hops that were seen take what they took."""
    table = two_cores()
    keys = list(itertools.product(("big1", "little1", "all2"), ENGINES))
    factors = [configs[number // len(ENGINES)] * own for number, own in enumerate(engines)]
    now = two_cores(dict(zip(keys, factors, strict=True)))
    observed = [seen(replicas(table, engine), now) for engine in sorted(ran)]
    after = learnt(table, observed)
    for plan, took in observed:
        for hop, seconds in took.items():
            assert hop_s(plan, hop, after, busy=True) == pytest.approx(seconds, rel=0.1)
    assert all(min(c.layer_s) > 0 for c in after.configs)
