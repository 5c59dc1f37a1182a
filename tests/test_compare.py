from __future__ import annotations

import collections
import dataclasses
import itertools
import os
import signal
import statistics

import numpy as np
import pytest
from cost_tables import of_machine

from corepipe import compare as comparing
from corepipe import plan_results
from corepipe.bench_setup import bench_names, bench_plans
from corepipe.cost.table import ConfigCosts, CostTable, EngineName, Provenance, TableCluster, TableMachine, TableNetwork
from corepipe.errors import CorepipeError, PlanError, UnknownNameError, UsageError
from corepipe.network.batch_check import rounding
from corepipe.network.model import TensorInfo
from corepipe.plan import PLANNERS, all_cores, proved_bound, replicas_per_core
from corepipe.plan.model import evaluate
from corepipe.report.bench import bench_json, describe, results_json
from corepipe.report.page import page
from corepipe.report.trace import TracedPlan, write_traces
from corepipe.runtime.record import FrameRecord, HopTime


@pytest.fixture
def table(chain, two_cores):
    """Made-up costs for this machine."""
    return of_machine(chain, two_cores)


def names_of(topology):
    return [cluster.name for cluster in topology.clusters]


def frames(network, count=3):
    generator = np.random.default_rng(0)
    return [{"t0": generator.standard_normal(network.inputs[0].shape, np.float32)} for _ in range(count)]


def test_every_plan_is_measured_and_equals_the_whole_model(chain, two_cores, table):
    plans = bench_plans(table, bench_names(names_of(two_cores), ()), {})
    results = comparing.compare(chain, plans, two_cores, table, frames(chain), rounds=2, slice_s=0.2)
    assert [r.name for r in results] == list(plans)
    for result in results:
        low, high = result.throughput_spread_fps
        assert 0 < low <= result.throughput_fps <= high
        assert 0 < result.latency_s[0] <= result.latency_s[1] <= result.latency_s[2]
        assert result.outputs_equal
        assert set(result.busy) == {w.name for w in result.plan.workers}
        assert all(0 < share < 2 for share in result.busy.values())
        assert {(h.start, h.stop) for h in result.hops} == {h.layers for r in result.plan.routes for h in r.hops}
        assert result.peak_rss_bytes > 10e6
    data = bench_json(results, chain, two_cores, table, "corepipe bench", "made up")
    assert data["best"] == max(results, key=lambda r: r.throughput_fps).name
    assert {r["plan"] for r in data["results"]} == set(plans)
    assert any("Bottleneck" in sentence for sentence in describe(results))


@pytest.mark.parametrize(
    ("measured", "kept"),
    [
        ([[100.0] * 3, [101.0] * 3], "first"),  # not worth another plan
        ([[100.0] * 3, [104.0] * 3], "second"),
        ([[100.0] * 3, [101.9] * 3, [103.0] * 3], "third"),
        ([[100.0] * 3, [103.0] * 3, [104.9] * 3], "second"),  # the third is not worth leaving the second
        ([[100.0] * 3, [103.0] * 3, [106.0] * 3], "third"),
        ([[100.0, 50.0, 80.0], [106.0, 53.0, 83.0]], "second"),  # a machine that drifts does so for both
        ([[100.0] * 6, [90.0] * 3, [106.0] * 6], "third"),  # the second was left behind
        ([[100.0] * 3, None], "first"),  # its outputs are wrong
        ([[100.0, 107.0, 99.0], [104.0, 104.0, 104.0]], "second"),  # may be chance, and is the better guess
        ([[100.0, 107.0, 101.0], [104.0, 104.0, 104.0], [104.0, 108.0, 102.0]], "second"),
        ([[100.0, 107.0, 99.0, 98.0], [104.0, 104.0, 104.0, 104.0]], "second"),
        ([[100.0, 107.0, 99.0], [104.0, 104.0, 104.0], [109.0, 109.0, 109.0]], "third"),
    ],
)
def test_the_fastest_plan_is_kept_unless_a_preferred_one_comes_near(chain, two_cores, table, measured, kept):
    (result,) = comparing.compare(
        chain, {"first": all_cores(table)}, two_cores, table, frames(chain), rounds=1, slice_s=0.01
    )
    results = [
        dataclasses.replace(
            result,
            name=name,
            throughput_fps=statistics.median(slices or [1e3]),
            slices_fps=tuple(slices or [1e3]),
            largest_error=1.0 if slices is None else 0.0,
        )
        for name, slices in zip(("first", "second", "third"), measured, strict=False)
    ]
    assert plan_results.fastest(results).name == kept
    with pytest.raises(CorepipeError, match="no plan that was tried"):
        plan_results.fastest([dataclasses.replace(one, largest_error=1.0) for one in results])


def test_a_plan_that_is_less_simple_must_be_faster_in_most_of_the_rounds(chain, two_cores, table):
    plans = {"replicas": replicas_per_core(table), "all-cores": all_cores(table)}
    one, other = comparing.compare(chain, plans, two_cores, table, frames(chain), rounds=1, slice_s=0.01)
    one = dataclasses.replace(one, slices_fps=(100.0,) * 10)
    for wins, kept in ((5, "replicas"), (6, "all-cores"), (7, "all-cores")):
        slices = (106.0,) * wins + (99.0,) * (10 - wins)
        assert plan_results.fastest([one, dataclasses.replace(other, slices_fps=slices)]).name == kept


@pytest.mark.parametrize("fits", [True, False], ids=["kept open", "opened for each round"])
def test_workers_that_died_are_counted_over_all_rounds(chain, two_cores, table, monkeypatch, fits):
    number, run_slice = itertools.count(), comparing._run_slice

    def run(contender, *arguments):
        if next(number) == 0:
            os.kill(next(iter(contender.stream.worker_pids.values())), signal.SIGKILL)
        run_slice(contender, *arguments)

    monkeypatch.setattr(comparing, "_fits_in_memory", lambda *_: fits)
    monkeypatch.setattr(comparing, "_run_slice", run)
    (result,) = comparing.compare(
        chain, {"first": all_cores(table)}, two_cores, table, frames(chain), rounds=3, slice_s=0.01
    )
    assert result.restarts == 1


STAGES = [(1, [(0, 0, 3), (1, 3, 6)])]


def test_a_plan_of_more_hops_or_larger_workers_must_be_faster(chain, two_cores, table, make_plan):
    plans = {"whole": all_cores(table), "copies": replicas_per_core(table), "pipeline": make_plan(chain, STAGES)}
    assert [len(plan.routes[0].hops) for plan in plans.values()] == [1, 1, 2]
    results = comparing.compare(chain, plans, two_cores, table, frames(chain), rounds=1, slice_s=0.01)
    for rates, best in (
        ((100, 103, 104), "copies"),
        ((100, 103, 106), "pipeline"),
        ((100, 101, 104), "pipeline"),
        ((101, 100, 101), "copies"),  # whose cores do not wait for each other
        ((104, 100, 101), "whole"),
    ):
        measured = [dataclasses.replace(r, slices_fps=(float(fps),)) for r, fps in zip(results, rates, strict=True)]
        first, copies, pipeline = measured
        assert plan_results.fastest([first, copies, pipeline]).name == best
        assert plan_results.fastest([first, pipeline, copies]).name == best


def test_a_race_leaves_behind_what_is_clearly_slower(chain, two_cores, table, make_plan, monkeypatch):
    run_slice = comparing._run_slice
    rates = {"whole": [100.0, 100.0, 120.0], "slow": [90.0, 90.0, 110.0], "near": [97.0, 94.0, 94.0]}

    def measured(contender, *arguments):
        run_slice(contender, *arguments)
        contender.slices[-1] = rates[contender.name][min(len(contender.slices), 3) - 1]

    monkeypatch.setattr(comparing, "_run_slice", measured)
    plans = {"whole": all_cores(table), "slow": replicas_per_core(table), "near": make_plan(chain, STAGES)}
    results = comparing.compare(
        chain, plans, two_cores, table, frames(chain), rounds=4, most_rounds=5, slice_s=0.01, race=True
    )
    assert {one.name: len(one.slices_fps) for one in results} == {"whole": 5, "slow": 3, "near": 5}
    rates["near"][0] = 90.0
    results = comparing.compare(
        chain, plans, two_cores, table, frames(chain), rounds=4, most_rounds=5, slice_s=0.01, race=True
    )
    assert {one.name: len(one.slices_fps) for one in results} == {"whole": 3, "slow": 3, "near": 3}


def test_a_plan_that_cannot_run_is_left_out_with_its_reason(chain, two_cores, table):
    good, bad = all_cores(table), replicas_per_core(table)
    bad = bad.model_copy(update={"workers": tuple(w.model_copy(update={"engine": "none"}) for w in bad.workers)})
    failures = {}
    plans = {"bad": bad, "good": good, "twin": bad}
    results = comparing.compare(
        chain, plans, two_cores, table, frames(chain), rounds=2, slice_s=0.05, on_failure=failures.__setitem__
    )
    assert [(one.name, len(one.slices_fps)) for one in results] == [("good", 2)]
    assert set(failures) == {"bad"}
    assert "none" in str(failures["bad"])
    with pytest.raises(CorepipeError):
        comparing.compare(chain, plans, two_cores, table, frames(chain), rounds=1, slice_s=0.05)


def test_a_trial_keeps_what_runs_and_fails_where_nothing_does(chain, two_cores, table, monkeypatch):
    monkeypatch.setattr(comparing, "_TRIAL_SLICE_S", 0.05)
    good, bad = all_cores(table), replicas_per_core(table)
    bad = bad.model_copy(update={"workers": tuple(w.model_copy(update={"engine": "none"}) for w in bad.workers)})
    plans = {"bad": bad, "good": good}
    trial = comparing.trial(chain, plans, two_cores, table, frames(chain), replan=lambda costs: good)
    assert (trial.best.name, [one.name for one in trial.results], set(trial.failures)) == ("good", ["good"], {"bad"})
    with pytest.raises(CorepipeError, match="none"):
        comparing.trial(chain, {"bad": bad}, two_cores, table, frames(chain), replan=lambda costs: good)


@pytest.fixture
def hop_seconds(monkeypatch):
    """What layers seem to take, by worker, and what slices seem to reach, by the plan's name; both to be filled."""
    seconds, fps = {}, {}

    def measured(contender, *_):
        contender.slices.append(fps[contender.name])
        contender.seconds += 1.0
        contender.kept[:] = [
            FrameRecord(0, number, 0, 10**9, hops_of(route), False, 0)
            for number, route in enumerate(contender.plan.routes)
            for _ in range(5)
        ]

    def hops_of(route):
        return tuple(
            HopTime(h.worker, h.start, h.stop, 0, round(1e9 * (h.stop - h.start) * seconds[h.worker]))
            for h in route.hops
        )

    monkeypatch.setattr(comparing, "_TRIAL_SLICE_S", 0.05)
    monkeypatch.setattr(comparing, "_run_slice", measured)
    return seconds, fps


def test_a_trial_plans_anew_by_what_hops_took(chain, two_cores, table, make_plan, hop_seconds):
    """Layers take twice what the costs say: the plan that is made by that is tried, and kept if it is faster."""
    seconds, fps = hop_seconds
    seconds |= {"w0": 2e-4, "w1": 2e-4}
    plan, other = make_plan(chain, STAGES), make_plan(chain, [(1, [(0, 0, 1), (1, 1, 6)])])
    asked = []

    def replan(costs):
        promised = evaluate(other, costs).throughput_fps * (1 if asked else 3)
        asked.append(costs)
        return other.model_copy(update={"planner": "new", "predicted_fps": promised, "bound_fps": 2 * promised})

    plans = {"first": plan}
    fps |= {"first": 100.0, "new": 110.0}
    trial = comparing.trial(chain, plans, two_cores, table, frames(chain), replan=replan)
    assert (trial.best.name, {one.name for one in trial.results}) == ("new", {"first", "new"})
    assert trial.best.plan.planner == "new"
    assert asked == [asked[0], trial.table]  # the second time it promises no more than the one that was kept
    for costs in asked:
        halved = evaluate(plan, table).throughput_fps / 2
        assert evaluate(plan, costs).throughput_fps == pytest.approx(halved, rel=0.05)
    assert trial.best.predicted_fps == pytest.approx(evaluate(other, trial.table).throughput_fps)
    assert trial.best.plan.predicted_fps == trial.best.predicted_fps
    assert trial.best.plan.bound_fps > trial.best.predicted_fps
    fps |= {"first": 100.0, "new": 101.0}
    asked.clear()
    trial = comparing.trial(chain, plans, two_cores, table, frames(chain), replan=replan)
    assert (trial.best.name, {one.name for one in trial.results}) == ("first", {"first", "new"})
    assert trial.best.predicted_fps == pytest.approx(evaluate(plan, trial.table).throughput_fps)


def test_a_trial_plans_anew_a_few_times(chain, two_cores, table, make_plan, hop_seconds):
    """However much each new plan promises, but not the same one twice; it goes on with what it has where one fails."""
    seconds, fps = hop_seconds
    seconds |= {"w0": 1e-4, "w1": 1e-4}
    plan = make_plan(chain, STAGES)
    others = [make_plan(chain, [(1, [(0, 0, at), (1, at, 6)])]) for at in (1, 2, 4, 5)]
    promising = [one.model_copy(update={"planner": "new", "predicted_fps": 1e9}) for one in others]
    fps |= {"first": 100.0, "new": 90.0, "new-2": 90.0}

    def try_with(replan):
        found = comparing.trial(chain, {"first": plan}, two_cores, table, frames(chain), replan=replan)
        assert any(one is found.best for one in found.results)
        return found.best.name, [one.name for one in found.results], set(found.failures)

    one_after_the_other = iter(promising)
    assert try_with(lambda costs: next(one_after_the_other)) == ("first", ["first", "new", "new-2"], set())
    assert next(one_after_the_other) is promising[3]
    assert try_with(lambda costs: promising[0]) == ("first", ["first", "new"], set())
    workers = tuple(w.model_copy(update={"engine": "none"}) for w in promising[0].workers)
    broken = promising[0].model_copy(update={"workers": workers})
    assert try_with(lambda costs: broken) == ("first", ["first"], {"new"})

    def nothing(costs):
        raise PlanError("nothing meets the budget")

    assert try_with(nothing) == ("first", ["first"], set())
    found = comparing.trial(chain, {"first": plan}, two_cores, table, frames(chain), replan=nothing)
    assert found.best.plan.bound_fps is None


def test_what_a_trial_predicts_of_replicas_is_what_each_of_them_can_do(chain, two_cores, table, make_plan, hop_seconds):
    seconds, fps = hop_seconds
    seconds |= {"w0": 2e-4, "w1": 2e-4}
    fps |= {"first": 100.0}
    lopsided = make_plan(chain, [(3, [(0, 0, 6)]), (1, [(1, 0, 6)])])
    trial = comparing.trial(chain, {"first": lopsided}, two_cores, table, frames(chain), replan=lambda costs: lopsided)
    assert trial.best.predicted_fps == pytest.approx(2 / (6 * 2e-4), rel=0.05)
    assert trial.best.plan.predicted_fps == trial.best.predicted_fps
    assert [r.rate_fps for r in trial.best.plan.routes] == pytest.approx([trial.best.predicted_fps / 2] * 2, rel=0.01)


MIXED = [(2, [(0, 0, 6)]), (1, [(0, 0, 3), (1, 3, 6)]), (1, [(1, 0, 6)])]


def test_a_trial_corrects_the_rates_of_routes_that_share_workers(chain, two_cores, table, make_plan, monkeypatch):
    """Of workers that take other times than the costs say; the plan and its twin end with rates that suit these."""
    monkeypatch.setattr(comparing, "_TRIAL_SLICE_S", 0.05)
    mixed, apart = make_plan(chain, MIXED), make_plan(chain, [MIXED[0], MIXED[2]])
    twin = mixed.model_copy(
        update={"workers": tuple(w.model_copy(update={"name": w.name.upper()}) for w in mixed.workers)}
        | {
            "routes": tuple(
                r.model_copy(update={"hops": tuple(h.model_copy(update={"worker": h.worker.upper()}) for h in r.hops)})
                for r in reversed(mixed.routes)
            )
        }
    )
    seconds = {"w0": 0.003, "w1": 0.001}
    monkeypatch.setattr(
        comparing,
        "hop_times",
        lambda plan, *_: {
            hop: (hop.stop - hop.start) * seconds[hop.worker] for route in plan.routes for hop in route.hops
        },
    )
    run_slice, ran = comparing._run_slice, collections.Counter()
    monkeypatch.setattr(comparing, "_run_slice", lambda one, *rest: ran.update([one.name]) or run_slice(one, *rest))
    plans = {"mixed": mixed, "twin": twin, "apart": apart}
    trial = comparing.trial(chain, plans, two_cores, table, frames(chain), replan=lambda costs: mixed)
    results = {one.name: one for one in trial.results}
    found, same = results["mixed"].plan, results["twin"].plan
    shares = [route.rate_fps / found.throughput_fps for route in found.routes]
    # w0 can do 1 of 0.018 s, or a half of 0.009 s beside a half of w1: all mixes that fill both are equally good.
    busy_s = (shares[0] + shares[1] / 2) * 0.018, (shares[2] + shares[1] / 2) * 0.006
    assert busy_s[0] == pytest.approx(busy_s[1])
    assert found.throughput_fps == pytest.approx(1 / 0.018 + 1 / 0.006)
    assert found.predicted_fps == pytest.approx(evaluate(found, table).throughput_fps)
    assert [r.rate_fps for r in same.routes] == [r.rate_fps for r in reversed(found.routes)]
    assert trial.best.name == "apart"  # the simplest: it has the rates that its routes turned out to have
    assert [route.hops for route in results["apart"].plan.routes] == [route.hops for route in apart.routes]
    assert ran["mixed"] == len(results["mixed"].slices_fps) + 1  # the one before the first correction
    assert ran["apart"] == len(results["apart"].slices_fps)
    assert all(one.outputs_equal for one in results.values())


def test_plans_that_are_compared_keep_their_rates_but_where_others_are_asked_for(
    chain, two_cores, table, make_plan, monkeypatch
):
    monkeypatch.setattr(
        comparing, "hop_times", lambda plan, *_: {hop: 0.001 for route in plan.routes for hop in route.hops}
    )
    kept = make_plan(chain, MIXED)
    plans = {"corrected": kept, "kept": kept}  # the same plan, and each is measured
    results = comparing.compare(
        chain, plans, two_cores, table, frames(chain), rounds=2, slice_s=0.01, correct_rates=["corrected"]
    )
    assert results[1].plan == kept
    assert not any(one.same_as for one in results)
    assert [one.predicted_fps for one in results] == [evaluate(kept, table).throughput_fps] * 2
    shares = [route.rate_fps / results[0].plan.throughput_fps for route in results[0].plan.routes]
    assert shares == pytest.approx([0.495, 0.01, 0.495])  # all hops take as long: whole frames are best


@pytest.mark.parametrize(
    ("rates", "slices"),
    [
        ([100.0, 100.0, 101.0], 3),
        ([100.0, 200.0, 100.0, 200.0, 100.0, 200.0], 5),
        ([100.0, 100.0, 120.0, 100.0], 5),  # once is enough to doubt
    ],
)
def test_slices_that_disagree_are_repeated_within_bounds(chain, two_cores, table, monkeypatch, rates, slices):
    run_slice, left = comparing._run_slice, iter(rates)

    def measured(contender, *arguments):
        run_slice(contender, *arguments)
        contender.slices[-1] = next(left, 100.0)

    monkeypatch.setattr(comparing, "_run_slice", measured)
    plans = {"all-cores": all_cores(table)}
    (result,) = comparing.compare(chain, plans, two_cores, table, frames(chain), rounds=3, most_rounds=5, slice_s=0.01)
    assert len(result.slices_fps) == slices


def far_too_fast(table):
    """The same table with costs that make slices as short as the caller allows."""
    fast = (1e-12,) * table.layer_count
    return table.model_copy(update={"configs": tuple(c.model_copy(update={"layer_s": fast}) for c in table.configs)})


def test_a_slice_goes_on_until_there_are_enough_frames(chain, two_cores, table, monkeypatch):
    monkeypatch.setattr(comparing, "_LONGER", 1e9)
    plans = {"all-cores": all_cores(table)}
    (result,) = comparing.compare(chain, plans, two_cores, far_too_fast(table), frames(chain), rounds=2, slice_s=1e-6)
    assert len(result.records) >= 2 + comparing._FRAMES_PER_SLICE
    assert result.short_slices == 0


def test_a_slice_with_too_few_frames_is_marked_and_ends_nothing(chain, two_cores, table, monkeypatch):
    monkeypatch.setattr(comparing, "_LONGER", 0)
    plans = {"all-cores": all_cores(table), "per core": replicas_per_core(table)}
    results = comparing.compare(chain, plans, two_cores, far_too_fast(table), frames(chain), rounds=2, slice_s=1e-6)
    for result in results:
        assert result.throughput_fps > 0
        assert result.short_slices == 2
        assert not result.stable
        assert result.outputs_equal
    assert any("all-cores finished too few frames in 2 of 2 slices" in text for text in describe(results))


@pytest.mark.parametrize(
    ("spans", "since", "until", "fps"),
    [
        ([[(0, 4)], [(4, 8)]], 0, 8, 2 / 8),
        ([[(0, 4)], [(4, 8)]], 2, 6, 1 / 4),
        ([[(0, 2), (6, 8)], [(2, 6)]], 0, 4, 1 / 4),  # nothing has come to an end
        ([[(0, 2), (6, 8)], [(2, 6)]], 6, 10, 0.5 / 4),
        ([[(0, 0)], []], 0, 1, 0.0),  # too short to be measured, or failed
    ],
)
def test_of_a_frame_that_was_worked_on_in_part_that_part_counts(spans, since, until, fps):
    records = [
        FrameRecord(number, 0, 0, 0, tuple(HopTime("w", 0, 1, a * 10**9, b * 10**9) for a, b in hops), False, 0)
        for number, hops in enumerate(spans)
    ]
    assert plan_results.work_fps(records, since * 10**9, until * 10**9) == pytest.approx(fps)


def test_a_wrong_output_is_noticed(chain, two_cores, table, monkeypatch):
    real = comparing._reference
    monkeypatch.setattr(
        comparing, "_reference", lambda *args: [{name: a * 1.01 for name, a in one.items()} for one in real(*args)]
    )
    plans = bench_plans(table, ["all-cores"], {})
    (result,) = comparing.compare(chain, plans, two_cores, table, frames(chain), rounds=1, slice_s=0.2)
    assert not result.outputs_equal
    assert result.largest_error == pytest.approx(0.01, rel=0.05)
    endless = dataclasses.replace(result, largest_error=np.inf)
    assert [r["largest_relative_error"] for r in results_json([result, endless])] == [result.largest_error, None]


@pytest.mark.parametrize(
    ("got", "want", "error"),
    [
        ([[0, 3, 2, 2]], [[0, 1, 2, 2]], 0.25),  # a pixel in four has another class
        ([[250, 249]], [[249, 250]], 1 / 250),  # quantised values a step apart
        ([[5]], [[4]], 0.25),
    ],
)
def test_integers_differ_by_their_share_at_the_most(got, want, error):
    assert comparing._error_of(np.array(got), np.array(want)) == pytest.approx(error)


def test_what_may_be_rounding_depends_on_the_network(chain, two_cores, table):
    plans = bench_plans(table, ["all-cores"], {})
    (result,) = comparing.compare(chain, plans, two_cores, table, frames(chain), rounds=1, slice_s=0.1)
    assert result.tolerance == plan_results.RELATIVE_TOLERANCE
    assert not dataclasses.replace(result, largest_error=0.005).outputs_equal
    assert dataclasses.replace(result, largest_error=0.005, tolerance=0.01).outputs_equal
    half = TensorInfo("h", np.dtype(np.float16), (1,))
    assert rounding(chain, chain.outputs) < plan_results.RELATIVE_TOLERANCE < rounding(chain, [half])


def test_plans_of_a_network_too_large_for_memory_are_opened_one_at_a_time(chain, two_cores, table, monkeypatch):
    monkeypatch.setattr(comparing, "_MEMORY_SHARE", 0.0)
    opened = []
    real = comparing.Stream
    monkeypatch.setattr(comparing, "Stream", lambda *args, **kw: opened.append(1) or real(*args, **kw))
    plans = {"all-cores": all_cores(table), "per core": replicas_per_core(table)}
    results = comparing.compare(chain, plans, two_cores, table, frames(chain), rounds=2, slice_s=0.1)
    assert len(opened) == 4
    assert all(r.outputs_equal for r in results)


def test_memory_is_counted_by_processes_too(chain, two_cores, table, monkeypatch):
    """Of small networks the engines take more than the weights."""
    plans = [replicas_per_core(table)] * 4
    workers = 4 * len(plans[0].workers)
    for available, fits in ((workers * 60 * 2**20, False), (workers * 200 * 2**20, True)):
        monkeypatch.setattr(comparing, "available_memory", lambda available=available: available)
        assert comparing._fits_in_memory(chain, plans) == fits


@pytest.mark.parametrize(
    ("got", "want", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.1], [1.0, 2.0], 0.05),
        ([1.0, np.nan], [1.0, 2.0], np.inf),
        ([1.0, np.nan], [1.0, np.nan], 0.0),
        ([np.inf, 1.0], [np.inf, 1.0], 0.0),
        ([np.inf, 5.0], [np.inf, 1.0], 4.0),
        ([-np.inf, 1.0], [np.inf, 1.0], np.inf),
        ([1.0], [1.0, 2.0], np.inf),
        ([0.5, 0.0], [0.0, 0.0], 0.5),
        ([], [], 0.0),
    ],
)
def test_the_error_is_relative_to_the_largest_magnitude(chain, got, want, error):
    name = chain.outputs[0].name
    assert comparing._error(np.array(got), {name: np.array(want)}, chain) == pytest.approx(error)


def test_plan_names_are_checked(here):
    with pytest.raises(UnknownNameError, match="did you mean 'pipe-it'"):
        bench_names(names_of(here), ["pipeit"])
    with pytest.raises(UsageError, match="two plans are called 'routes'"):
        bench_names(names_of(here), (), ["routes"])
    assert bench_names(names_of(here), ["mine", "routes"], ["mine"]) == ["routes", "mine"]
    assert bench_names(["big", "little"], ()) == [
        "all-cores", "cluster:big", "cluster:little", "replicas", "pipe-it", "routes", "routes-exact"
    ]  # fmt: skip
    every = bench_names(["cpu"], [*PLANNERS, "cluster:cpu", "routes-exact"])
    assert set(every) == {*PLANNERS, "cluster:cpu", "routes-exact"}
    assert bench_names(["cpu"], ["pipeline", "pipelines"]) == ["pipeline", "pipelines"]
    assert bench_names(["cpu"], (), ["pipeline"])[-1] == "pipeline"
    with pytest.raises(UsageError, match="two plans are called 'pipeline'"):
        bench_names(["cpu"], ["pipeline"], ["pipeline"])


def test_the_exact_mix_has_a_row_of_its_own_where_routes_is_simpler():
    layers = ConfigCosts(config="big1", layer_s=(0.5, 0.5)), ConfigCosts(config="little1", layer_s=(0.49, 0.51))

    def plans(source, only):
        table = CostTable(
            network=TableNetwork(name="n", sha256="", layers=("a", "b"), cut_bytes=(0, 0, 0)),
            machine=TableMachine(
                description="",
                fingerprint="",
                clusters=(TableCluster(name="big", cores=(0,)), TableCluster(name="little", cores=(1,))),
            ),
            engines=(EngineName(name="onnxruntime", version="any"),),
            configs=layers,
            provenance=Provenance(source=source),
        )
        return bench_plans(table, only, {})

    found = plans("measured", ["replicas", "routes", "routes-exact"])
    assert found["routes"].routes == found["replicas"].routes
    assert found["routes-exact"].predicted_fps == pytest.approx(found["routes"].bound_fps)
    assert found["routes-exact"].predicted_fps > found["routes"].predicted_fps
    assert list(plans("board", ["routes", "routes-exact"])) == ["routes"]
    assert list(plans("board", ["routes-exact"])) == ["routes-exact"]


def test_the_figures_of_a_plan_from_a_file_are_replaced_by_those_of_this_table(table):
    mine = replicas_per_core(table).model_copy(update={"predicted_fps": 1e9, "bound_fps": 1e9})
    plans = bench_plans(table, ["routes", "mine"], {"mine": mine})
    assert plans["mine"].bound_fps == plans["routes"].bound_fps == pytest.approx(proved_bound(table))
    assert plans["mine"].predicted_fps == pytest.approx(replicas_per_core(table).predicted_fps)


def renamed(plan):
    """The same plan with other names for its workers, and its routes the other way round."""
    text = plan.to_json()
    for worker in plan.workers:
        text = text.replace(f'"{worker.name}"', f'"other-{worker.name}"')
    other = type(plan).from_json(text)
    return other.model_copy(update={"workers": other.workers[::-1], "routes": other.routes[::-1]})


def test_plans_that_differ_only_in_names_are_measured_once(chain, two_cores, table, make_plan, tmp_path):
    one = make_plan(chain, [(60, [(0, 0, 4), (1, 4, 6)]), (40, [(1, 0, 6)])])
    plans = {"a": one, "b": renamed(one)}
    results = comparing.compare(chain, plans, two_cores, table, frames(chain), rounds=2, slice_s=0.1)
    assert [r.same_as for r in results] == [None, "a"]
    first, twin = results
    assert first.throughput_fps == twin.throughput_fps
    assert twin.bottleneck == f"other-{first.bottleneck}"
    for result in results:
        assert set(result.busy) == {w.name for w in result.plan.workers}
        assert {h.worker for h in result.hops} <= set(result.busy)
        assert {r.route for r in result.records} == {0, 1}
        for record in result.records:
            hops = result.plan.routes[record.route].hops
            assert [(h.worker, h.start, h.stop) for h in record.hops] == [(h.worker, *h.layers) for h in hops]
    records = {r.name: r.records for r in results}
    write_traces(tmp_path / "t.json", [TracedPlan(r.name, r.plan, r.records) for r in results], simulated=False)
    assert "other-w" in page(chain, two_cores, table, results, records)


def test_routes_that_begin_at_the_same_worker_and_divide_differently(make_plan, chain):
    one = make_plan(chain, [(60, [(0, 0, 2), (1, 2, 6)]), (40, [(0, 0, 4), (1, 4, 6)])])
    assert plan_results.twins({"a": one, "b": renamed(one)}) == {"b": "a"}
    other = make_plan(chain, [(60, [(0, 0, 2), (1, 2, 6)]), (40, [(0, 0, 3), (1, 3, 6)])])
    assert plan_results.twins({"a": one, "b": other}) == {}


def test_a_single_slice_cannot_be_called_stable(chain, two_cores, table):
    plans = bench_plans(table, ["all-cores"], {})
    (result,) = comparing.compare(chain, plans, two_cores, table, frames(chain), rounds=1, slice_s=0.1)
    assert not result.stable
