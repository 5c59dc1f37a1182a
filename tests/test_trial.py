from __future__ import annotations

import collections

import pytest
from cost_tables import of_machine
from reference import named_frames

from corepipe import compare as comparing
from corepipe import trial as trying
from corepipe.errors import CorepipeError, PlanError, WorkerError
from corepipe.plan import all_cores, replicas_per_core
from corepipe.plan.model import evaluate
from corepipe.runtime.record import FrameRecord, HopTime

HALVES = [(1, [(0, 0, 3), (1, 3, 6)])]
MIXED = [(2, [(0, 0, 6)]), (1, [(0, 0, 3), (1, 3, 6)]), (1, [(1, 0, 6)])]


@pytest.fixture
def table(chain, two_cores):
    """Made-up costs for this machine."""
    return of_machine(chain, two_cores)


def test_a_trial_keeps_what_runs_and_fails_where_nothing_does(chain, two_cores, table, monkeypatch):
    monkeypatch.setattr(trying, "_SLICE_S", 0.05)
    good, bad = all_cores(table), replicas_per_core(table)
    bad = bad.model_copy(update={"workers": tuple(w.model_copy(update={"engine": "none"}) for w in bad.workers)})
    plans = {"bad": bad, "good": good}
    trial = trying.trial(chain, plans, two_cores, table, named_frames(chain, 3), replan=lambda costs: good)
    assert (trial.best.name, [one.name for one in trial.results], set(trial.failures)) == ("good", ["good"], {"bad"})
    with pytest.raises(CorepipeError, match="none"):
        trying.trial(chain, {"bad": bad}, two_cores, table, named_frames(chain, 3), replan=lambda costs: good)


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

    monkeypatch.setattr(trying, "_SLICE_S", 0.05)
    monkeypatch.setattr(comparing, "_run_slice", measured)
    return seconds, fps


def test_a_trial_plans_anew_by_what_hops_took(chain, two_cores, table, make_plan, hop_seconds):
    """Layers take twice what the costs say: the plan that is made by that is tried, and kept if it is faster."""
    seconds, fps = hop_seconds
    seconds |= {"w0": 2e-4, "w1": 2e-4}
    plan, other = make_plan(chain, HALVES), make_plan(chain, [(1, [(0, 0, 1), (1, 1, 6)])])
    asked = []

    def replan(costs):
        promised = evaluate(other, costs).throughput_fps * (1 if asked else 3)
        asked.append(costs)
        return other.model_copy(update={"planner": "new", "predicted_fps": promised, "bound_fps": 2 * promised})

    plans = {"first": plan}
    fps |= {"first": 100.0, "new": 110.0}
    trial = trying.trial(chain, plans, two_cores, table, named_frames(chain, 3), replan=replan)
    assert (trial.best.name, {one.name for one in trial.results}) == ("new", {"first", "new"})
    assert trial.best.plan.planner == "new"
    assert asked == [asked[0], trial.table]  # the second time it promises no more than the one that was kept
    for costs in asked:
        halved = evaluate(plan, table).throughput_fps / 2
        assert evaluate(plan, costs).throughput_fps == pytest.approx(halved, rel=0.05)
    assert trial.best.predicted_fps == pytest.approx(evaluate(other, trial.table).throughput_fps)
    assert trial.best.plan.predicted_fps == trial.best.predicted_fps
    assert trial.best.plan.bound_fps > trial.best.predicted_fps
    fps |= {"first": 100.0, "new": 100.9}
    asked.clear()
    trial = trying.trial(chain, plans, two_cores, table, named_frames(chain, 3), replan=replan)
    assert (trial.best.name, {one.name for one in trial.results}) == ("first", {"first", "new"})
    assert trial.best.predicted_fps == pytest.approx(evaluate(plan, trial.table).throughput_fps)


def test_a_trial_plans_anew_a_few_times(chain, two_cores, table, make_plan, hop_seconds):
    """However much each new plan promises, but not the same one twice; it goes on with what it has where one fails."""
    seconds, fps = hop_seconds
    seconds |= {"w0": 1e-4, "w1": 1e-4}
    plan = make_plan(chain, HALVES)
    others = [make_plan(chain, [(1, [(0, 0, at), (1, at, 6)])]) for at in (1, 2, 4, 5)]
    promising = [one.model_copy(update={"planner": "new", "predicted_fps": 1e9}) for one in others]
    fps |= {"first": 100.0, "new": 90.0, "new-2": 90.0}

    def try_with(replan):
        found = trying.trial(chain, {"first": plan}, two_cores, table, named_frames(chain, 3), replan=replan)
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
    found = trying.trial(chain, {"first": plan}, two_cores, table, named_frames(chain, 3), replan=nothing)
    assert found.best.plan.bound_fps is None


@pytest.fixture
def try_failing(chain, two_cores, table, make_plan, hop_seconds, monkeypatch):
    """Runs a trial in which plans end as they are told to, once a new one was made: "right", "wrong" or "dead"."""
    seconds, fps = hop_seconds
    seconds |= {"w0": 2e-4, "w1": 2e-4}
    fps |= {"first": 100.0, "second": 96.0, "new": 90.0}
    run_slice, planned = comparing._run_slice, []

    def run(plans, ends):
        def measured(contender, *arguments):
            run_slice(contender, *arguments)
            if planned and ends[contender.name] == "dead":
                raise WorkerError("killed by signal 9")
            if planned and ends[contender.name] == "wrong":
                contender.largest_error = 1.0

        def replan(costs):
            planned.append(costs)
            made = make_plan(chain, [(1, [(0, 0, 1), (1, 1, 6)])])
            return made.model_copy(update={"planner": "new", "predicted_fps": 1e9})

        monkeypatch.setattr(comparing, "_run_slice", measured)
        made = {name: make_plan(chain, routes) for name, routes in plans.items()}
        return trying.trial(chain, made, two_cores, table, named_frames(chain, 3), replan=replan)

    return run


@pytest.mark.parametrize(
    ("first", "new", "best"),
    [("wrong", "right", "new"), ("dead", "right", "new"), ("dead", "wrong", "first"), ("dead", "dead", "first")],
)
def test_a_trial_does_not_keep_what_fails_beside_a_new_plan(try_failing, first, new, best):
    """Unless nothing else runs either: it ran before."""
    trial = try_failing({"first": HALVES}, {"first": first, "new": new})
    assert trial.best.name == best
    assert trial.best.outputs_equal
    assert best not in trial.failures


@pytest.mark.parametrize("new", ["wrong", "dead", "right"])
@pytest.mark.parametrize("first", ["wrong", "dead"])
def test_a_trial_goes_back_to_what_it_tried_before(try_failing, first, new):
    """Where the fastest plan fails later on, and the one that was made anew is slower or fails too."""
    plans = {"first": HALVES, "second": [(1, [(0, 0, 2), (1, 2, 6)])]}
    trial = try_failing(plans, {"first": first, "new": new})
    assert trial.best.name == "second"
    assert trial.best.outputs_equal


def test_a_trial_gives_up_where_all_outputs_are_wrong_at_last(try_failing):
    with pytest.raises(CorepipeError, match="no plan that was tried"):
        try_failing({"first": HALVES}, {"first": "wrong", "new": "wrong"})


def test_what_a_trial_predicts_of_replicas_is_what_each_of_them_can_do(chain, two_cores, table, make_plan, hop_seconds):
    seconds, fps = hop_seconds
    seconds |= {"w0": 2e-4, "w1": 2e-4}
    fps |= {"first": 100.0}
    lopsided = make_plan(chain, [(3, [(0, 0, 6)]), (1, [(1, 0, 6)])])
    trial = trying.trial(
        chain, {"first": lopsided}, two_cores, table, named_frames(chain, 3), replan=lambda costs: lopsided
    )
    assert trial.best.predicted_fps == pytest.approx(2 / (6 * 2e-4), rel=0.05)
    assert trial.best.plan.predicted_fps == trial.best.predicted_fps
    assert [r.rate_fps for r in trial.best.plan.routes] == pytest.approx([trial.best.predicted_fps / 2] * 2, rel=0.01)


def test_a_trial_corrects_the_rates_of_routes_that_share_workers(chain, two_cores, table, make_plan, monkeypatch):
    """Of workers that take other times than the costs say; the plan and its twin end with rates that suit these."""
    monkeypatch.setattr(trying, "_SLICE_S", 0.05)
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
    trial = trying.trial(chain, plans, two_cores, table, named_frames(chain, 3), replan=lambda costs: mixed)
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
