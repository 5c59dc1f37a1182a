"""The best rates for the routes of a plan; a grid of other rates is the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from cost_tables import made_up
from hypothesis import given, settings
from hypothesis import strategies as st
from route_plans import plan_of

from corepipe.cost.table import ConfigCosts, HopCosts
from corepipe.plan import plan
from corepipe.plan.model import evaluate, hop_s
from corepipe.plan.rates import KEPT_SHARE, best_rates, mix_fps, route_loads

SECONDS = {"big1": 0.002, "little1": 0.004}


@st.composite
def tables(draw):
    """One big and one little core, which other layers suit."""
    layers = draw(st.integers(2, 8))
    costs = {name: st.lists(st.floats(s, 4 * s), min_size=layers, max_size=layers) for name, s in SECONDS.items()}
    return made_up(
        [ConfigCosts(config=name, layer_s=tuple(draw(seconds))) for name, seconds in costs.items()],
        {"big": 1, "little": 1},
        cut_bytes=[1000] * (layers + 1),
        hop=HopCosts(fixed_s=2e-4, edge_s=1e-4),
    )


factors = st.floats(0.3, 3.0)


def slowed(made, table, factor):
    """What the hops take where each worker is slower than the table says by a factor of its own."""
    hops = {hop for route in made.routes for hop in route.hops}
    return {hop: hop_s(made, hop, table, busy=True) * factor[hop.worker] for hop in hops}


@settings(max_examples=50, deadline=None)
@given(table=tables(), one=factors, two=factors, seed=st.integers(0, 1000))
def test_best_rates_are_no_worse_than_any_others(table, one, two, seed):
    made = plan(table)
    factor = {worker.name: factor for worker, factor in zip(made.workers, (one, two), strict=False)}
    loads = route_loads(made, table, slowed(made, table, factor))
    found = best_rates(made, loads)
    assert found.predicted_fps == pytest.approx(mix_fps(found, loads), rel=1e-6)
    assert best_rates(made, loads, least_share=0.0).predicted_fps >= mix_fps(made, loads) * (1 - 1e-9)
    count = len(made.routes)
    for shares in np.random.default_rng(seed).dirichlet(np.ones(count), 200):
        mixed = made.with_rates((KEPT_SHARE + (1 - count * KEPT_SHARE) * shares).tolist())
        assert mix_fps(mixed, loads) <= found.predicted_fps * (1 + 1e-6)


@settings(max_examples=50, deadline=None)
@given(table=tables())
def test_the_rates_of_the_best_mix_are_its_best(table):
    made = plan(table)
    loads = route_loads(made, table)
    assert best_rates(made, loads, least_share=0.0).predicted_fps == pytest.approx(made.predicted_fps, rel=1e-6)
    busy = evaluate(made, table).busy_s
    for worker, seconds in busy.items():
        shares = [route.rate_fps / made.throughput_fps for route in made.routes]
        mean = sum(share * load.get(worker, 0.0) for share, load in zip(shares, loads, strict=True))
        assert mean == pytest.approx(seconds, rel=1e-9)


def test_hops_that_were_not_seen_take_as_much_longer_as_the_others_of_their_worker():
    made = plan_of([(1.0, [0, 1]), (1.0, [1, 1]), (1.0, [1, 0])])
    table = made_up([ConfigCosts(config="cpu1", layer_s=(0.01, 0.03))], {"cpu": 2})
    first, last = made.routes[0].hops
    loads = route_loads(made, table, {first: 0.02})
    assert loads == [
        {"w0": pytest.approx(0.02), "w1": pytest.approx(0.03)},
        {"w1": pytest.approx(0.04)},
        {"w1": pytest.approx(0.01), "w0": pytest.approx(0.06)},
    ]
    loads = route_loads(made, table, {first: 0.01, last: 0.015})
    assert loads[1] == {"w1": pytest.approx(0.005 + 0.015)}


def test_a_route_of_a_group_keeps_a_little_so_that_it_can_be_seen():
    made = plan_of([(1.0, [0, 0]), (1.0, [0, 1]), (1.0, [1, 1])])
    loads = [{"w0": 1.0}, {"w0": 5.0, "w1": 5.0}, {"w1": 1.0}]
    total = best_rates(made, loads).throughput_fps
    assert best_rates(made, loads).routes[1].rate_fps == pytest.approx(KEPT_SHARE * total, rel=1e-3)
    assert best_rates(made, loads, least_share=0.0).routes[1].rate_fps == pytest.approx(0.0, abs=1e-9)


def test_many_routes_keep_no_more_than_half_of_the_frames_together():
    made = plan_of([(1.0, [number, number]) for number in range(3)] + [(1.0, [0, 1]), (1.0, [1, 2])] * 100)
    loads = [{"w0": 1.0}, {"w1": 1.0}, {"w2": 1.0}] + [{"w0": 9.0, "w1": 9.0}, {"w1": 9.0, "w2": 9.0}] * 100
    found = best_rates(made, loads)
    shares = [route.rate_fps / found.throughput_fps for route in found.routes]
    assert min(shares) == pytest.approx(0.5 / 203)
    assert sum(shares[3:]) == pytest.approx(200 * 0.5 / 203)


def test_a_hop_that_the_table_takes_for_nothing_tells_nothing_of_others():
    made = plan_of([(1.0, [0, 0])])
    table = made_up([ConfigCosts(config="cpu1", layer_s=(0.0, 0.01))], {"cpu": 1})
    assert route_loads(made, table, {made.routes[0].hops[0]: 0.003}) == [{"w0": pytest.approx(0.013)}]


def test_a_route_without_a_rate_stays_without():
    made = plan_of([(1.0, [0, 0]), (0.0, [1, 1])])
    assert [route.rate_fps for route in best_rates(made, [{"w0": 0.5}, {"w1": 0.5}]).routes] == [
        pytest.approx(2.0),
        0.0,
    ]
