from __future__ import annotations

import dataclasses
import statistics

import pytest
from cost_tables import of_machine
from reference import named_frames

from corepipe import compare as comparing
from corepipe import plan_results
from corepipe.bench_setup import bench_plans
from corepipe.errors import CorepipeError
from corepipe.plan import all_cores, replicas_per_core
from corepipe.report.page import page
from corepipe.report.trace import TracedPlan, write_traces
from corepipe.runtime.record import FrameRecord, HopTime

HALVES = [(1, [(0, 0, 3), (1, 3, 6)])]


@pytest.fixture
def table(chain, two_cores):
    """Made-up costs for this machine."""
    return of_machine(chain, two_cores)


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
        ([[100.0] * 6, [101.5] * 6], "second"),  # a little faster, but in every round
        ([[100.0] * 6, [101.5] * 5 + [99.9]], "first"),
        ([[100.0] * 5, [101.5] * 5], "first"),
        ([[100.0] * 6, [101.5] * 3], "first"),  # a race left it behind after three rounds
        ([[100.0] * 6, [100.9] * 6], "first"),  # not worth another plan even so
    ],
)
def test_the_fastest_plan_is_kept_unless_a_preferred_one_comes_near(chain, two_cores, table, measured, kept):
    (result,) = comparing.compare(
        chain, {"first": all_cores(table)}, two_cores, table, named_frames(chain, 3), rounds=1, slice_s=0.01
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
    apart = plan_results.fastest(results, side_by_side=False).name  # a drift between them is no difference of plans
    assert apart == ("first" if measured[1] == [101.5] * 6 else kept)
    with pytest.raises(CorepipeError, match="no plan that was tried"):
        plan_results.fastest([dataclasses.replace(one, largest_error=1.0) for one in results])


def test_a_plan_that_is_less_simple_must_be_faster_in_most_of_the_rounds(chain, two_cores, table):
    plans = {"replicas": replicas_per_core(table), "all-cores": all_cores(table)}
    one, other = comparing.compare(chain, plans, two_cores, table, named_frames(chain, 3), rounds=1, slice_s=0.01)
    one = dataclasses.replace(one, slices_fps=(100.0,) * 10)
    for wins, kept in ((5, "replicas"), (6, "all-cores"), (7, "all-cores")):
        slices = (106.0,) * wins + (99.0,) * (10 - wins)
        assert plan_results.fastest([one, dataclasses.replace(other, slices_fps=slices)]).name == kept


def test_a_plan_of_more_hops_or_larger_workers_must_be_faster(chain, two_cores, table, make_plan):
    plans = {"whole": all_cores(table), "copies": replicas_per_core(table), "pipeline": make_plan(chain, HALVES)}
    assert [len(plan.routes[0].hops) for plan in plans.values()] == [1, 1, 2]
    results = comparing.compare(chain, plans, two_cores, table, named_frames(chain, 3), rounds=1, slice_s=0.01)
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
    results = comparing.compare(chain, plans, two_cores, table, named_frames(chain, 3), rounds=2, slice_s=0.1)
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
    (result,) = comparing.compare(chain, plans, two_cores, table, named_frames(chain, 3), rounds=1, slice_s=0.1)
    assert not result.stable
