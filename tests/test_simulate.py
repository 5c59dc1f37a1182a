from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections import Counter

import numpy as np
import pytest
from cost_tables import made_up
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corepipe.cost.table import ConfigCosts, CostTable, HopCosts
from corepipe.errors import PlanError, UsageError
from corepipe.plan import Hop, Route, Worker, evaluate, plan, plan_latency_s
from corepipe.plan.model import route_groups
from corepipe.report.bench import describe
from corepipe.runtime.dispatch import Dispatcher
from corepipe.simulate import simulate, simulate_bench

PLANNERS = ("routes", "pipeline", "pipelines", "pipe-it", "replicas")
MACHINES = (
    {"cpu": 3},
    {"big": 1, "little": 1},
    {"big": 2, "little": 2},
    {"big": 1, "little": 3},
    {"prime": 1, "big": 3, "little": 4},
)


def random_table(seed: int, *, latency_s: float = 0.0) -> CostTable:
    """Layers of very unequal cost, each with its own ratio between the clusters and its own scaling."""
    generator = np.random.default_rng(seed)
    clusters = MACHINES[generator.integers(len(MACHINES))]
    count = int(generator.integers(1, 14))
    layers = generator.lognormal(0, 1, count) * 1e-3
    configs = []
    for index, (name, cores) in enumerate(clusters.items()):
        slower = generator.uniform(1, 3, count) ** index
        parallel = generator.uniform(0.6, 1, count)
        for size in range(1, cores + 1):
            alone = layers * slower * (1 - parallel + parallel / size)
            busy = alone * generator.uniform(1, 1.4)
            configs.append(ConfigCosts(config=f"{name}{size}", layer_s=tuple(alone), layer_busy_s=tuple(busy)))
    return made_up(
        configs,
        clusters,
        cut_bytes=[int(b) for b in generator.integers(0, 10_000, count + 1)],
        hop=HopCosts(
            fixed_s=float(generator.choice([0.0, 2e-4, 1e-3])), per_byte_s=1e-9, edge_s=5e-5, latency_s=latency_s
        ),
    )


def alike(cores: int, layer_s: tuple[float, ...] = (1e-3, 1e-3), busy: float = 1.0) -> CostTable:
    """A machine of like cores, costs of one core only, hops for free."""
    return made_up(
        [ConfigCosts(config="cpu1", layer_s=layer_s, layer_busy_s=tuple(busy * s for s in layer_s))], {"cpu": cores}
    )


seeds = st.integers(0, 10**6)
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("planner", PLANNERS)
@QUICK
@given(seed=seeds)
def test_the_steady_state_agrees_with_the_table(planner, seed):
    table = random_table(seed)
    made = plan(table, planner)
    found = simulate(made, table)
    # Frames of routes that share workers go where there is little work, which may cost some percent of the best rates.
    shared = any(len(group) > 1 for group in route_groups(made))
    fps = evaluate(made, table).throughput_fps
    assert found.throughput_fps == pytest.approx(fps, rel=0.04 if shared else 0.01)


@QUICK
@given(seed=seeds)
def test_no_mix_of_routes_beats_the_bound(seed):
    table = random_table(seed)
    made = plan(table, "routes")
    assert simulate(made, table).throughput_fps <= made.bound_fps * 1.01


@QUICK
@given(seed=seeds, planner=st.sampled_from(PLANNERS), jitter=st.sampled_from([0.0, 0.3]), slots=st.none() | st.just(2))
def test_every_frame_is_served_hop_by_hop(seed, planner, jitter, slots):
    table = random_table(seed, latency_s=1e-4)
    made = plan(table, planner)
    run = simulate(made, table, frames=200, jitter=jitter, slots=slots, seed=seed)
    assert [record.frame for record in run.records] == list(range(200))
    for record in run.records:
        route = made.routes[record.route]
        assert [(h.worker, h.start, h.stop) for h in record.hops] == [(h.worker, *h.layers) for h in route.hops]
        assert record.submitted_ns <= record.hops[0].started_ns
        assert record.hops[-1].ended_ns <= record.done_ns
        assert all(b.started_ns - a.ended_ns >= 0.99e5 for a, b in itertools.pairwise(record.hops))
        assert not record.failed
    for worker in made.workers:
        hops = sorted((h.started_ns, h.ended_ns) for r in run.records for h in r.hops if h.worker == worker.name)
        assert all(b[0] >= a[1] - 1 for a, b in itertools.pairwise(hops))
        assert run.busy[worker.name] <= 1 + 1e-6
    ends = sorted(record.done_ns for record in run.records)
    for record in run.records:
        under_way = record.frame + 1 - sum(end <= record.submitted_ns for end in ends)
        assert under_way <= run.slots <= (slots or math.inf)


@QUICK
@given(seed=seeds)
def test_a_lone_frame_takes_the_latency_of_its_route(seed):
    table = random_table(seed, latency_s=1e-3)
    made = plan(table, "pipeline")
    (record,) = simulate(made, table, frames=1).records
    assert record.latency_s == pytest.approx(plan_latency_s(made, table), abs=1e-8)


@pytest.mark.parametrize("batch", [1, 4, 16, 128])
def test_frames_that_share_a_slot_go_together(batch):
    table = random_table(3, latency_s=1e-4)
    made = plan(table, "pipeline", batch=batch)
    lone = simulate(made, table, frames=batch, slots=1)
    assert lone.records[-1].latency_s == pytest.approx(plan_latency_s(made, table), rel=1e-6)
    assert [record.frame for record in lone.records] == list(range(batch))
    for frames in (None, 25 * batch):
        full = simulate(made, table, frames=frames)
        assert full.throughput_fps == pytest.approx(evaluate(made, table).throughput_fps, rel=0.01)
        assert full.slices(5) == pytest.approx([full.throughput_fps] * 5, rel=0.01)
        assert all(share <= 1 + 1e-6 for share in full.busy.values())


def test_results_that_wait_for_their_turn_take_no_more_memory_than_in_a_stream():
    """A slow worker's slot holds a fast one up where results are large."""
    table = made_up(
        [ConfigCosts(config="big1", layer_s=(1e-3,)), ConfigCosts(config="little1", layer_s=(1e-2,))],
        {"big": 1, "little": 1},
        cut_bytes=[0, 2**20],
    )
    made = plan(table, "replicas", batch=32)
    window = 32 * Dispatcher(made, 32 * 2**20, 32 * 2**20).window
    run = simulate(made, table, frames=32 * 100)
    done = np.array([record.done_ns for record in run.records])
    for record in run.records:
        waiting = np.flatnonzero(done[: record.frame] > record.submitted_ns)
        assert not len(waiting) or record.frame - waiting[0] < window


@pytest.mark.parametrize(("middle_s", "share"), [(0.0, 0.75), (2e-3, 0.5)], ids=["equally good", "best at halves"])
def test_rates_of_routes_that_share_workers_are_kept_unless_other_shares_are_better(middle_s, share):
    table = alike(2, (1e-3, middle_s, 1e-3))
    cut = plan(alike(2, (1e-3, 2e-3, 1e-3)), "pipeline")
    first, second = cut.workers[0].name, cut.workers[1].name
    routes = (
        Route(rate_fps=100.0, hops=(Hop(worker=first, layers=(0, 2)), Hop(worker=second, layers=(2, 3)))),
        Route(rate_fps=300.0, hops=(Hop(worker=first, layers=(0, 1)), Hop(worker=second, layers=(1, 3)))),
    )
    mixed = cut.model_copy(update={"routes": routes})
    found = Counter(record.route for record in simulate(mixed, table).steady)
    assert found[1] / found.total() == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(
    "routes",
    [
        [[("big1", 0, 4)], [("little1", 0, 2), ("big1", 2, 4)]],
        [[("little1", 0, 4)], [("little1", 0, 2), ("big1", 2, 4)]],
        [[("big1", 0, 4)], [("big1", 0, 2), ("little1", 2, 4)]],
    ],
    ids=["little begins", "big ends", "little ends"],
)
@pytest.mark.parametrize("first", [0.1, 0.4, 0.7, 1.0])
def test_wrong_rates_of_routes_that_share_workers_cost_little(routes, first):
    """By the rates alone 1.0 would give 0.68, 0.51 and 0.68 of the best."""
    table = made_up(
        [ConfigCosts(config="big1", layer_s=(1e-2,) * 4), ConfigCosts(config="little1", layer_s=(2e-2,) * 4)],
        {"big": 1, "little": 1},
    )
    whole = plan(table, "routes")
    workers = tuple(Worker(name=f"{c}1", config=f"{c}1", cores=(n,)) for n, c in enumerate(("big", "little")))

    def with_rates(*rates):
        made = tuple(
            Route(rate_fps=rate, hops=tuple(Hop(worker=w, layers=(a, b)) for w, a, b in hops))
            for rate, hops in zip(rates, routes, strict=True)
        )
        return whole.model_copy(update={"workers": workers, "routes": made})

    best = max(evaluate(with_rates(share, 1 - share), table).throughput_fps for share in np.linspace(0.01, 0.99, 99))
    found = simulate(with_rates(first, max(1 - first, 0.01)), table, jitter=0.05)
    # Where LITTLE ends, frames for it stand in line behind all else at big, up to a limit.
    least = 0.88 if routes[1][-1][0] == "little1" else 0.95 if first < 1.0 else 0.9
    assert found.throughput_fps > least * best


def test_drawn_times_have_the_mean_and_variation_asked_for_and_repeat():
    table = alike(1)
    made = plan(table, "replicas")
    run = simulate(made, table, jitter=0.5, seed=3)
    times = [hop.ended_ns - hop.started_ns for record in run.records for hop in record.hops]
    assert statistics.mean(times) == pytest.approx(2e6, rel=0.05)
    assert statistics.stdev(times) / statistics.mean(times) == pytest.approx(0.5, rel=0.1)
    assert simulate(made, table, jitter=0.5, seed=3) == run
    assert simulate(made, table, jitter=0.5, seed=4) != run


def test_variation_costs_a_pipeline_throughput_and_slots_give_some_back():
    table = alike(3, (1e-3, 1e-3, 1e-3))
    made = plan(table, "pipeline")
    fixed, drawn = simulate(made, table), simulate(made, table, jitter=0.5)
    tight = simulate(made, table, jitter=0.5, slots=len(made.workers))
    assert tight.throughput_fps < drawn.throughput_fps < fixed.throughput_fps
    assert len(made.workers) == 3


def test_contention_slows_a_worker_by_how_many_others_work():
    table = alike(2, busy=1.5)
    made = plan(table, "replicas")
    assert simulate(made, table).throughput_fps == pytest.approx(2 / 3e-3, rel=0.01)
    assert simulate(made, table, contention=0.0).throughput_fps == pytest.approx(2 / 2e-3, rel=0.01)
    assert simulate(made, table, contention=1.0).throughput_fps == pytest.approx(2 / 4e-3, rel=0.01)
    assert simulate(made, table, contention={"cpu": 1.0}) == simulate(made, table, contention=1.0)
    assert simulate(made, table, contention={}) == simulate(made, table, contention=0.0)


def test_fewer_slots_leave_workers_idle():
    table = alike(2, (1e-3, 1e-3))
    made = plan(table, "pipeline")
    one = simulate(made, table, slots=1)
    assert one.slots == 1
    assert one.throughput_fps == pytest.approx(1 / plan_latency_s(made, table), rel=0.01)


def test_too_few_frames_are_said_and_the_usual_number_is_enough(caplog):
    table = random_table(12)
    made = plan(table, "routes")
    few = simulate(made, table, frames=5)
    assert not few.settled
    assert "5 frames are too few for a steady state of routes" in caplog.text
    caplog.clear()
    assert simulate(made, table).settled
    wide = alike(200)
    many = simulate(plan(wide, "replicas"), wide)
    assert len(many.records) == 20 * many.slots
    assert many.settled
    assert not caplog.text


def test_bench_results_can_be_reported():
    table = random_table(12)
    results = simulate_bench(table, {name: plan(table, name) for name in PLANNERS})
    assert [result.name for result in results] == list(PLANNERS)
    for result in results:
        low, high = result.throughput_spread_fps
        assert low <= result.throughput_fps <= high
        assert result.outputs_equal
        assert result.latency_s == tuple(sorted(result.latency_s))
        assert set(result.busy) == {worker.name for worker in result.plan.workers}
        for hop in result.hops:
            assert hop.measured_s == pytest.approx(hop.predicted_s, rel=1e-3)
    bound = results[0].plan.bound_fps
    (said,) = [sentence for sentence in describe(results) if "no plan can exceed" in sentence]
    assert said.startswith(
        f"By the cost table no plan can exceed {bound:.4g} frames/s; predictions below that: routes "
    )
    assert f"replicas {1 - results[-1].predicted_fps / bound:.1%}" in said


def test_a_stage_that_costs_nothing_can_be_reported():
    table = random_table(12)
    (result,) = simulate_bench(table, {"routes": plan(table)})
    free = dataclasses.replace(result.hops[0], predicted_s=0.0, measured_s=0.0)
    slow = dataclasses.replace(result, hops=(free,), throughput_fps=result.predicted_fps / 2)
    assert any(
        "routes reaches 50% of its prediction; its stages take" in text for text in describe([slow], simulated=True)
    )


def test_a_plan_that_does_not_fit_is_refused():
    table = alike(2, (1e-3, 1e-3, 1e-3))
    made = plan(table, "pipeline")
    with pytest.raises(PlanError, match=r"3 layers.*the cost table has 2"):
        simulate(made, alike(2))
    with pytest.raises(PlanError, match="names core 1, which the cost table's machine does not have"):
        simulate(made, alike(1, (1e-3, 1e-3, 1e-3)))
    other = made.network.model_copy(update={"sha256": "1"})
    with pytest.raises(PlanError, match="make the plan from this table"):
        simulate(made.model_copy(update={"network": other}), table)
    network = table.network.model_copy(update={"illegal_cuts": (1, 2)})
    with pytest.raises(PlanError, match="allows no cut"):
        simulate(made, table.model_copy(update={"network": network}))
    with pytest.raises(PlanError, match="no config cpu1"):
        simulate(made, CostTable.from_json(table.to_json().replace("cpu1", "cpu2")))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"frames": 0}, "frames 0"),
        ({"slots": 0}, "slots 0"),
        ({"seed": -1}, "seed -1"),
        ({"jitter": -0.1}, "jitter -0.1"),
        ({"jitter": math.nan}, "jitter nan"),
        ({"jitter": 1e200}, "jitter 1e\\+200"),
        ({"contention": 1e308}, "contention 1e\\+308"),
        ({"contention": -1.0}, "contention -1.0"),
        ({"contention": {"cpu": math.inf}}, "contention inf"),
        ({"contention": {"gpu": 1.0}}, "gpu"),
    ],
)
def test_an_option_out_of_range_is_named(options, named):
    table = alike(1)
    with pytest.raises(UsageError, match=named):
        simulate(plan(table, "replicas"), table, **options)
