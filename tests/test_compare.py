from __future__ import annotations

import dataclasses
import itertools
import os
import signal

import numpy as np
import pytest
from cost_tables import of_machine
from reference import named_frames

from corepipe import compare as comparing
from corepipe import plan_results
from corepipe.bench_setup import bench_names, bench_plans
from corepipe.errors import CorepipeError
from corepipe.network.batch_check import rounding
from corepipe.network.model import TensorInfo
from corepipe.plan import all_cores, replicas_per_core
from corepipe.plan.model import evaluate
from corepipe.report.bench import bench_json, describe, results_json

HALVES = [(1, [(0, 0, 3), (1, 3, 6)])]
MIXED = [(2, [(0, 0, 6)]), (1, [(0, 0, 3), (1, 3, 6)]), (1, [(1, 0, 6)])]


@pytest.fixture
def table(chain, two_cores):
    """Made-up costs for this machine."""
    return of_machine(chain, two_cores)


def test_every_plan_is_measured_and_equals_the_whole_model(chain, two_cores, table):
    plans = bench_plans(table, bench_names([cluster.name for cluster in two_cores.clusters], ()), {})
    results = comparing.compare(chain, plans, two_cores, table, named_frames(chain, 3), rounds=2, slice_s=0.2)
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
        chain, {"first": all_cores(table)}, two_cores, table, named_frames(chain, 3), rounds=3, slice_s=0.01
    )
    assert result.restarts == 1


def test_a_race_leaves_behind_what_is_clearly_slower(chain, two_cores, table, make_plan, monkeypatch):
    run_slice = comparing._run_slice
    rates = {"whole": [100.0, 100.0, 120.0], "slow": [90.0, 90.0, 110.0], "near": [97.0, 94.0, 94.0]}

    def measured(contender, *arguments):
        run_slice(contender, *arguments)
        contender.slices[-1] = rates[contender.name][min(len(contender.slices), 3) - 1]

    monkeypatch.setattr(comparing, "_run_slice", measured)
    plans = {"whole": all_cores(table), "slow": replicas_per_core(table), "near": make_plan(chain, HALVES)}
    results = comparing.compare(
        chain, plans, two_cores, table, named_frames(chain, 3), rounds=4, most_rounds=5, slice_s=0.01, race=True
    )
    assert {one.name: len(one.slices_fps) for one in results} == {"whole": 5, "slow": 3, "near": 5}
    rates["near"][0] = 90.0
    results = comparing.compare(
        chain, plans, two_cores, table, named_frames(chain, 3), rounds=4, most_rounds=5, slice_s=0.01, race=True
    )
    assert {one.name: len(one.slices_fps) for one in results} == {"whole": 3, "slow": 3, "near": 3}


def test_a_plan_that_cannot_run_is_left_out_with_its_reason(chain, two_cores, table):
    good, bad = all_cores(table), replicas_per_core(table)
    bad = bad.model_copy(update={"workers": tuple(w.model_copy(update={"engine": "none"}) for w in bad.workers)})
    failures = {}
    plans = {"bad": bad, "good": good, "twin": bad}
    results = comparing.compare(
        chain, plans, two_cores, table, named_frames(chain, 3), rounds=2, slice_s=0.05, on_failure=failures.__setitem__
    )
    assert [(one.name, len(one.slices_fps)) for one in results] == [("good", 2)]
    assert set(failures) == {"bad"}
    assert "none" in str(failures["bad"])
    with pytest.raises(CorepipeError):
        comparing.compare(chain, plans, two_cores, table, named_frames(chain, 3), rounds=1, slice_s=0.05)


def test_plans_that_are_compared_keep_their_rates_but_where_others_are_asked_for(
    chain, two_cores, table, make_plan, monkeypatch
):
    monkeypatch.setattr(
        comparing, "hop_times", lambda plan, *_: {hop: 0.001 for route in plan.routes for hop in route.hops}
    )
    kept = make_plan(chain, MIXED)
    plans = {"corrected": kept, "kept": kept}  # the same plan, and each is measured
    results = comparing.compare(
        chain, plans, two_cores, table, named_frames(chain, 3), rounds=2, slice_s=0.01, correct_rates=["corrected"]
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
    (result,) = comparing.compare(
        chain, plans, two_cores, table, named_frames(chain, 3), rounds=3, most_rounds=5, slice_s=0.01
    )
    assert len(result.slices_fps) == slices


def far_too_fast(table):
    """The same table with costs that make slices as short as the caller allows."""
    fast = (1e-12,) * table.layer_count
    return table.model_copy(update={"configs": tuple(c.model_copy(update={"layer_s": fast}) for c in table.configs)})


def test_a_slice_goes_on_until_there_are_enough_frames(chain, two_cores, table, monkeypatch):
    monkeypatch.setattr(comparing, "_LONGER", 1e9)
    plans = {"all-cores": all_cores(table)}
    (result,) = comparing.compare(
        chain, plans, two_cores, far_too_fast(table), named_frames(chain, 3), rounds=2, slice_s=1e-6
    )
    assert len(result.records) >= 2 + comparing._FRAMES_PER_SLICE
    assert result.short_slices == 0


def test_a_slice_with_too_few_frames_is_marked_and_ends_nothing(chain, two_cores, table, monkeypatch):
    monkeypatch.setattr(comparing, "_LONGER", 0)
    plans = {"all-cores": all_cores(table), "per core": replicas_per_core(table)}
    results = comparing.compare(
        chain, plans, two_cores, far_too_fast(table), named_frames(chain, 3), rounds=2, slice_s=1e-6
    )
    for result in results:
        assert result.throughput_fps > 0
        assert result.short_slices == 2
        assert not result.stable
        assert result.outputs_equal
    assert any("all-cores finished too few frames in 2 of 2 slices" in text for text in describe(results))


def test_a_wrong_output_is_noticed(chain, two_cores, table, monkeypatch):
    real = comparing._reference
    monkeypatch.setattr(
        comparing, "_reference", lambda *args: [{name: a * 1.01 for name, a in one.items()} for one in real(*args)]
    )
    plans = bench_plans(table, ["all-cores"], {})
    (result,) = comparing.compare(chain, plans, two_cores, table, named_frames(chain, 3), rounds=1, slice_s=0.2)
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
    (result,) = comparing.compare(chain, plans, two_cores, table, named_frames(chain, 3), rounds=1, slice_s=0.1)
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
    results = comparing.compare(chain, plans, two_cores, table, named_frames(chain, 3), rounds=2, slice_s=0.1)
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
