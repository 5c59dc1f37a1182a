"""A world of simulated cores: what the decider makes of what a stream would see there."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from cost_tables import made_up
from hypothesis import given, settings
from hypothesis import strategies as st

from corepipe import plan as planners
from corepipe.cost.table import ConfigCosts, CostTable, HopCosts
from corepipe.errors import PlanError
from corepipe.follow.belief import Belief, _parted
from corepipe.follow.decide import PLAN_GAIN, Decider
from corepipe.follow.observe import Seen
from corepipe.follow.probe import TRIES, UNEQUAL, Probe, core_speeds
from corepipe.plan.model import hop_s
from corepipe.plan.rates import mix_fps
from corepipe.topology.model import CoreConfig


def table_of(clusters, layers=8, seed=0):
    """Costs of made-up layers; clusters as {name: (cores, seconds of a layer)}."""
    generator = np.random.default_rng(seed)
    configs = []
    for name, (count, seconds) in clusters.items():
        each = seconds * generator.uniform(0.4, 1.6, layers)
        configs += [
            ConfigCosts(config=f"{name}{k}", layer_s=tuple((each / k**0.8).tolist())) for k in range(1, count + 1)
        ]
    return made_up(
        configs,
        {name: count for name, (count, _) in clusters.items()},
        cut_bytes=[1000] * (layers + 1),
        hop=HopCosts(fixed_s=2e-4, edge_s=1e-4),
    )


class World:
    """Cores with true factors, and a plan on them that a decider changes."""

    def __init__(self, table, noise=0.0, seed=0, planner=planners.plan):
        self.table = table
        self.factors = dict.fromkeys((core for c in table.machine.clusters for core in c.cores), 1.0)
        self.usable = set(self.factors)
        self.plan = planner(table)
        self.planner = planner
        self.decider = Decider(table, planner, Probe(self.speeds))
        self.now = self.until = self.since = 100.0
        self.steps = []
        self.probes = 0
        self._noise, self._generator = noise, np.random.default_rng(seed)

    def speeds(self, cores):
        """What a probe would see: the worker's own threads take some of it, and as much of each core."""
        self.probes += 1
        return {core: 1000 * (core + 1) / self.factors[core] for core in cores}

    def hop_s(self, hop):
        worker = self.plan.worker(hop.worker)
        slowest = max(self.factors[core] for core in worker.cores)
        return hop_s(self.plan, hop, self.table, busy=len(self.plan.workers) > 1) * slowest

    def loads(self):
        found = []
        for route in self.plan.routes:
            load = {}
            for hop in route.hops:
                half_hops = self.table.half_hop_s(hop.start) + self.table.half_hop_s(hop.stop)
                load[hop.worker] = load.get(hop.worker, 0.0) + self.hop_s(hop) + half_hops
            found.append(load)
        return found

    def fps(self):
        return mix_fps(self.plan, self.loads())

    def best_fps(self):
        """Of a plan that knows the truth."""
        belief = Belief(self.table)
        belief._factors = {c: np.full(self.table.layer_count, f) for c, f in self.factors.items()}
        belief._at = dict.fromkeys(self.factors, 0.0)
        return self.planner(belief.table(0.0, self.usable)[0]).predicted_fps

    def seen(self, offered=np.inf):
        rate = min(self.fps(), offered)
        total = self.plan.throughput_fps
        busy = dict.fromkeys((worker.name for worker in self.plan.workers), 0.0)
        hops = {}
        for number, (route, load) in enumerate(zip(self.plan.routes, self.loads(), strict=True)):
            for name, seconds in load.items():
                busy[name] += rate * route.rate_fps / total * seconds
            if route.rate_fps > 0:
                for index, hop in enumerate(route.hops):
                    noise = 1 + self._noise * self._generator.uniform(-1, 1)
                    hops[number, index] = self.hop_s(hop) * noise
        return Seen(hops, busy, rate, self.now - self.since)

    def run(self, seconds, offered=np.inf):
        """Look as often as the decider wants to; returns the steps that were made."""
        made = []
        self.until += seconds
        while self.now + self.decider.pause_s <= self.until + 1e-9:
            self.now += self.decider.pause_s
            step = self.decider.look(self.plan, self.seen(offered), self.usable, self.now)
            if step is not None:
                self.plan, self.since = step.plan, self.now
                made.append(step)
        self.steps += made
        return made


BIG_LITTLE = {"big": (2, 0.004), "little": (2, 0.009)}
EQUAL = {"cpu": (2, 0.004)}


@pytest.mark.parametrize("clusters", [BIG_LITTLE, EQUAL, {"big": (1, 0.004), "little": (1, 0.01)}])
@pytest.mark.parametrize("factor", [2.0, 0.5, 4.0])
def test_after_a_change_of_speed_the_plan_is_near_the_best_within_five_seconds(clusters, factor):
    world = World(table_of(clusters))
    world.run(4)
    core = max(world.factors)
    world.factors[core] = factor
    world.run(5)
    assert world.fps() >= 0.95 * world.best_fps()
    world.factors[core] = 1.0
    world.run(5)
    assert world.fps() >= 0.95 * world.best_fps()


def test_long_searches_are_rare(monkeypatch):
    """They take time of the cores that they are for."""
    clock, searches = [0.0], []

    def planner(table):
        searches.append(clock[0])
        clock[0] += 3.0
        return planners.plan(table)

    monkeypatch.setattr("corepipe.follow.decide.time.monotonic", lambda: clock[0])
    world = World(table_of(BIG_LITTLE), planner=planner)
    searches.clear()
    generator = np.random.default_rng(0)
    for _ in range(40):
        for core in world.factors:
            world.factors[core] = generator.uniform(0.5, 2.0)
        world.run(3)
    assert 2 <= len(searches) <= 120 / 30 + 2
    world.usable.discard(max(world.factors))  # but nobody waits for a plan without a core that is lost
    before = len(searches)
    world.run(1)
    assert len(searches) > before or max(world.factors) not in {c for w in world.plan.workers for c in w.cores}


@pytest.mark.parametrize("core", [0, 1])
@pytest.mark.parametrize("factor", [2.0, 4.0])
def test_a_worker_of_several_cores_is_left_where_one_of_them_becomes_slow(core, factor):
    """Whole operators over two cores are the best pipeline on equal cores, and a bad plan on unequal ones."""
    table = table_of(EQUAL)
    wide = table.configs[1]
    table = table.replaced(configs=(table.configs[0], wide.model_copy(update={"layer_s": tuple(
        s / 2 for s in table.configs[0].layer_s)})))  # fmt: skip
    world = World(table, planner=lambda costs: planners.plan(costs, "pipeline"))
    world.run(4)
    assert [len(worker.cores) for worker in world.plan.workers] == [2]
    world.factors[core] = factor
    world.run(1.6)  # the first look after half a second, three tries and half a second of agreement
    assert world.fps() >= 0.95 * world.best_fps()
    world.run(3.4)
    world.factors[core] = 1.0
    world.run(6)
    assert world.fps() >= 0.95 * world.best_fps()
    assert world.probes <= 3 * TRIES


@pytest.mark.parametrize(("factor", "blip_s"), [(2.0, 0.4), (1.1, 1.2)])
def test_what_is_over_soon_changes_nothing(factor, blip_s):
    world = World(table_of(BIG_LITTLE))
    world.run(4)
    world.factors[0] = factor
    made = world.run(0.5 + blip_s)
    world.factors[0] = 1.0
    assert not made + world.run(20)


def test_it_looks_more_often_only_while_a_change_is_in_question():
    world = World(table_of(BIG_LITTLE))
    world.run(4)
    usual = world.decider.pause_s
    world.factors[0] = 2.0
    world.run(usual)
    assert world.decider.pause_s < usual
    world.run(5)
    assert world.steps
    assert world.decider.pause_s == usual


def probe_of(*answers):
    """A probe whose tries find this; none is left over or missing."""
    left = list(answers)
    return Probe(lambda cores: left.pop(0)), left


AS_EVER, SLOW = {0: 10.0, 1: 30.0}, {0: 10.0, 1: 15.0}
ALIKE = {0: 1.0, 1: 1.0}
SLOW_SHARES = {0: 0.5, 1: 1.0}


def test_a_probe_holds_cores_against_their_first_tries_and_outvotes_a_disturbed_one():
    disturbed = {0: 2.0, 1: 15.0}
    probe, left = probe_of(*[AS_EVER] * TRIES, disturbed, *[SLOW] * (TRIES - 1))
    for _ in range(TRIES + 3):
        assert probe.shares((0, 1), 1.1) == ALIKE, "the first tries are what others are held against"
    assert len(left) == TRIES, "no change, no probe"
    for tries in range(1, TRIES + 3):
        wanted = ALIKE if tries < 3 else SLOW_SHARES
        assert probe.shares((0, 1), 2.0 + 0.01 * tries) == pytest.approx(wanted), f"after {tries} tries"
    assert not left


def test_a_probe_that_cannot_tell_leaves_the_cores_equal():
    unclear = {0: 10.0, 1: 30.0 / UNEQUAL * 1.05}
    probe, left = probe_of(*[AS_EVER] * TRIES, *[unclear] * TRIES, *[{}] * TRIES)
    assert probe.shares((0,), 3.0) == {0: 1.0}, "one core is not probed"
    for factor in (1.0, 2.0, 4.0):
        for _ in range(TRIES + 1):
            assert probe.shares((0, 1), factor) == ALIKE
    assert not left, "it is left alone"


def test_a_worker_that_stays_slow_is_tried_again_ever_more_seldom():
    speeds, tried = AS_EVER, []
    probe = Probe(lambda cores: tried.append(cores) or speeds)

    def looks(count, factor):
        return [probe.shares((0, 1), factor) for _ in range(count)]

    looks(TRIES, 1.0)
    assert looks(400, 2.0) == [ALIKE] * 400, "something else was in the way of these tries"
    assert len(tried) <= 7 * TRIES
    speeds = SLOW
    assert looks(600, 2.0)[-1] == pytest.approx(SLOW_SHARES)
    del tried[:]
    looks(1000, 2.0)
    assert not tried, "they are told apart"


def test_a_change_during_the_first_tries_is_seen():
    # Two tries are of the time after it: the worker's time is a median over two looks.
    probe, _ = probe_of(AS_EVER, *[SLOW] * 10)
    for factor in (1.0, 1.0, 1.1):
        assert probe.shares((0, 1), factor) == ALIKE
    for _ in range(3):
        shares = probe.shares((0, 1), 2.0)
    assert shares == pytest.approx(SLOW_SHARES)


def test_a_core_that_is_slow_at_first_is_fast_at_last():
    probe, _ = probe_of(*[SLOW] * TRIES, *[AS_EVER] * TRIES, *[SLOW] * TRIES)
    for factor, wanted in ((2.0, ALIKE), (1.0, ALIKE), (2.0, SLOW_SHARES)):
        for _ in range(TRIES):
            shares = probe.shares((0, 1), factor)
        if factor == 2.0:
            assert shares == pytest.approx(wanted)


def test_a_time_that_swings_does_not_keep_the_probe_busy():
    for swing in (1.25, 1.35):
        tries = []
        probe = Probe(lambda cores, tries=tries: tries.append(cores) or AS_EVER)
        for look in range(100):
            probe.shares((0, 1), swing ** (look % 2))
        assert len(tries) <= 3 * TRIES


def test_sets_of_cores_that_overlap_are_not_held_against_each_other():
    speeds = {0: 30.0, 1: 30.0, 2: 10.0, 3: 10.0}
    probe = Probe(lambda cores: {core: speeds[core] for core in cores})
    for cores in ((0, 1), (2, 3), (0, 1, 2, 3)):
        for _ in range(TRIES + 1):
            assert probe.shares(cores, 1.0) == dict.fromkeys(cores, 1.0)


def test_cores_that_come_back_are_tried_anew():
    probe, left = probe_of(*[AS_EVER] * TRIES, *[SLOW] * TRIES, *[AS_EVER] * TRIES)
    for factor in (1.0, 2.0):
        for _ in range(TRIES):
            shares = probe.shares((0, 1), factor)
    assert shares == pytest.approx(SLOW_SHARES)
    probe.watch([(0,), (1,)])
    probe.watch([(0, 1)])
    for _ in range(TRIES):
        shares = probe.shares((0, 1), 2.0)
    assert shares == ALIKE
    assert not left


def test_core_speeds_of_this_machine(two_cores):
    ids = [core.id for core in two_cores.cores[:2]]
    mask = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    speeds = core_speeds(two_cores, ids)
    if mask is None:
        assert speeds == {}
        return
    assert set(speeds) == set(ids)
    assert min(speeds.values()) > 0
    assert os.sched_getaffinity(0) == mask
    assert not [thread for thread in threading.enumerate() if thread.name == "corepipe-probe"]


def test_core_speeds_where_a_core_may_not_be_used(two_cores, monkeypatch):
    monkeypatch.setattr(type(two_cores), "cpus_of", lambda self, cores: (4000,))
    assert core_speeds(two_cores, [core.id for core in two_cores.cores[:2]]) == {}


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.lists(st.sampled_from([0.5, 0.7, 1.0, 1.4, 2.0, 3.0]), min_size=4, max_size=4))
def test_it_comes_near_the_best_whatever_the_factors(seed, factors):
    world = World(table_of(BIG_LITTLE, seed=seed))
    world.factors = dict(zip(world.factors, factors, strict=True))
    world.run(12)
    # What is left is worth less than what a change must promise.
    assert world.fps() * (1 + PLAN_GAIN) * 1.02 >= world.best_fps()
    assert not world.run(30), "it settles"


@pytest.mark.parametrize("seed", range(4))
def test_noise_changes_nothing(seed):
    world = World(table_of(BIG_LITTLE, seed=seed), noise=0.06, seed=seed)
    assert not world.run(60)


def test_a_stream_that_waits_for_frames_keeps_its_plan():
    world = World(table_of(BIG_LITTLE))
    world.factors[max(world.factors)] = 2.0
    assert not world.run(20, offered=0.4 * world.fps())


def test_a_uniform_slowdown_changes_nothing():
    world = World(table_of(BIG_LITTLE))
    world.factors = dict.fromkeys(world.factors, 1.7)
    assert not world.run(30)


def test_a_lost_core_is_done_without_at_once_and_used_again_when_it_is_back():
    world = World(table_of(BIG_LITTLE))
    lost = world.plan.workers[0].cores[0]
    world.usable.discard(lost)
    (step,) = world.run(0.5)
    assert step.kind == "plan"
    assert f"core {lost}" in step.reason
    assert lost not in {core for worker in step.plan.workers for core in worker.cores}
    world.run(10)
    world.usable.add(lost)
    world.run(10)
    assert world.fps() >= 0.95 * world.best_fps()


def test_a_core_that_is_lost_again_is_done_without_again():
    """Its user went back to the first plan in between, and the stream waits for frames all the time."""
    world = World(table_of(BIG_LITTLE))
    first, lost = world.plan, world.plan.workers[0].cores[0]
    for _ in range(2):
        world.usable.discard(lost)
        (step,) = world.run(2, offered=1.0)
        assert f"core {lost}" in step.reason
        world.usable.add(lost)
        world.plan = first
        world.decider.switched()


def test_where_no_core_is_left_it_says_so_and_goes_on_when_they_are_back():
    world = World(table_of(BIG_LITTLE))
    cores = set(world.usable)
    world.usable.clear()
    with pytest.raises(PlanError, match="none of its cores"):
        world.run(0.5)
    world.decider.refused(world.now)
    assert not world.run(0.1)
    world.usable.update(list(cores)[1:])
    steps = world.run(30)
    assert [step.kind for step in steps[:1]] == ["plan"]


def test_a_refused_plan_without_a_lost_core_is_asked_for_again():
    world = World(table_of(BIG_LITTLE))
    world.usable.discard(world.plan.workers[0].cores[0])
    first = world.plan
    (step,) = world.run(0.5)
    world.plan = first
    assert not world.run(5), "it is being made"
    world.decider.refused(world.now)
    assert not world.run(9)
    (again,) = world.run(2)
    assert again.reason == step.reason


def test_what_is_refused_again_and_again_is_asked_for_ever_more_seldom():
    world = World(table_of(BIG_LITTLE))
    world.run(4)
    world.factors[world.plan.workers[0].cores[0]] = 4.0
    kept, asked = world.plan, 0
    for _ in range(600):
        for step in world.run(0.5):
            asked += step.kind == "plan"
            if step.kind == "plan":
                world.plan = kept
                world.decider.refused(world.now)
    assert 2 <= asked <= 6


def test_plans_that_were_refused_do_not_keep_a_lost_core_in_use():
    world = World(table_of(BIG_LITTLE))
    kept = world.plan
    for _ in range(7):
        world.decider.refused(world.now)
    lost = kept.workers[0].cores[0]
    world.usable.discard(lost)
    (step,) = world.run(0.5)
    assert f"core {lost}" in step.reason


def test_a_plan_is_not_replaced_by_itself():
    """Cores that differ little are equal for the search, and not for what the present plan is believed to give."""
    world = World(table_of(EQUAL), planner=lambda costs: planners.plan(costs, "replicas-per-core"))
    world.factors[1] = 1.18
    world.run(300)
    assert [step for step in world.steps if step.kind == "plan"] == []


def test_plans_do_not_alternate_where_promises_are_not_kept():
    """Beside another worker a core is twice as slow as alone: each plan looks better from the other one."""
    world = World(table_of({"big": (1, 0.004), "little": (1, 0.01)}))
    truth = world.hop_s

    def contrary(hop):
        # Whatever runs is slow, so that what does not run always seems better.
        return truth(hop) * (3.0 if len(world.plan.workers) > 1 and hop.worker.startswith("big") else 1.0)

    world.hop_s = contrary
    world.run(240)
    assert len([step for step in world.steps if step.kind == "plan"]) <= 12


def test_unequal_cores_of_a_cluster_are_planned_for_apart():
    table = table_of({"cpu": (4, 0.004)})
    belief = Belief(table)
    belief._factors[3] = np.full(table.layer_count, 2.0)
    made, origin = belief.table(0.0)
    assert {c.name: c.cores for c in made.machine.clusters} == {"cpu_a": (0, 1, 2), "cpu_b": (3,)}
    assert origin == {"cpu_a": "cpu", "cpu_b": "cpu"}
    CostTable.model_validate(made.model_dump())
    before = table.segment_s(CoreConfig("cpu", 1), 0, 8)
    assert made.segment_s(CoreConfig("cpu_a", 1), 0, 8) == pytest.approx(before)
    assert made.segment_s(CoreConfig("cpu_b", 1), 0, 8) == pytest.approx(2 * before)


def test_workers_that_share_no_frames_do_not_wait_for_each_other():
    """So other rates for replicas gain nothing: the stream gives each worker what it can take."""
    world = World(table_of({"big": (1, 0.004), "little": (1, 0.004)}), planner=lambda t: planners.plan(t, "replicas"))
    before = world.fps()
    world.run(4)
    world.factors[1] = 2.5
    assert world.fps() == pytest.approx(before * (1 + 0.4) / 2, rel=0.01)
    assert not world.run(20)


def test_a_plan_that_the_costs_do_not_cover_is_left_alone(caplog):
    world = World(table_of(BIG_LITTLE))
    hand_made = world.plan.model_copy(
        update={"workers": tuple(w.model_copy(update={"engine": "ncnn"}) for w in world.plan.workers)}
    )
    for _ in range(20):
        world.now += 0.5
        assert world.decider.look(hand_made, world.seen(), world.usable, world.now) is None
    assert len([r for r in caplog.records if "not followed" in r.message]) == 1
    world.usable.discard(hand_made.workers[0].cores[0])
    assert world.decider.look(hand_made, world.seen(), world.usable, world.now).kind == "plan"


def test_what_is_known_of_an_idle_core_fades():
    belief = Belief(table_of(EQUAL))
    belief._factors[1] = np.full(8, 4.0)
    assert belief.factors(1, 0.0) == pytest.approx(4.0)
    assert belief.factors(1, 30.0) == pytest.approx(2.0)
    assert belief.factors(1, 600.0) == pytest.approx(1.0, abs=1e-3)


@given(factors=st.lists(st.floats(0.1, 10), min_size=1, max_size=30))
def test_the_cores_of_a_cluster_fall_into_few_groups(factors):
    groups = _parted(dict(enumerate(factors)))
    assert sorted(core for group in groups for core in group) == list(range(len(factors)))
    assert len(groups) <= 4
    slowest = [max(factors[core] for core in group) for group in groups]
    quickest = [min(factors[core] for core in group) for group in groups]
    assert all(before <= after for before, after in zip(slowest, quickest[1:], strict=False))
