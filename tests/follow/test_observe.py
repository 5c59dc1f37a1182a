from __future__ import annotations

import pytest

from corepipe.follow.observe import Observer
from corepipe.plan.model import Hop, Plan, PlanNetwork, Route, Worker
from corepipe.runtime.record import FrameRecord, HopTime

PLAN = Plan(
    planner="by hand",
    network=PlanNetwork(name="n", sha256="", layers=4),
    workers=(Worker(name="a", config="cpu1", cores=(0,)), Worker(name="b", config="cpu1", cores=(1,))),
    routes=(Route(rate_fps=1, hops=(Hop(worker="a", layers=(0, 2)), Hop(worker="b", layers=(2, 4)))),),
)
MS = 1_000_000


def record(frame, at_ms, a_ms, b_ms, failed=False):
    at_ns = int(at_ms * MS)
    a = HopTime("a", 0, 2, at_ns, at_ns + int(a_ms * MS))
    b = HopTime("b", 2, 4, a.ended_ns, a.ended_ns + int(b_ms * MS))
    return FrameRecord(frame, 0, at_ns, b.ended_ns, (a, b), failed)


def observed(records, now_ms, began_ms=0):
    observer = Observer(PLAN, began_ms * MS)
    for one in records:
        observer.add(one)
    return observer.seen(now_ms * MS)


def test_single_slow_runs_do_not_count():
    slow = {7, 31, 50}
    seen = observed([record(i, 20 * i, 400 if i in slow else 10, 5) for i in range(100)], 2000)
    assert seen.hop_s == {(0, 0): pytest.approx(0.010), (0, 1): pytest.approx(0.005)}


def test_only_the_last_moments_count():
    before = [record(i, 20 * i, 10, 5) for i in range(100)]
    after = [record(100 + i, 2000 + 20 * i, 19, 5) for i in range(50)]
    assert observed(before + after, 3000).hop_s[0, 0] == pytest.approx(0.019)


def test_a_slow_board_is_judged_by_its_last_frames():
    assert observed([record(i, 700 * i, 600, 50) for i in range(10)], 7000).hop_s[0, 0] == pytest.approx(0.6)
    assert observed([record(i, 700 * i, 600, 50) for i in range(4)], 7000).hop_s == {}


def test_how_busy_workers_are():
    seen = observed([record(i, 20 * i, 10, 5) for i in range(100)], 2000)
    assert seen.utilization == {"a": pytest.approx(0.5, abs=0.02), "b": pytest.approx(0.25, abs=0.02)}
    assert seen.fps == pytest.approx(50, abs=1)


@pytest.mark.parametrize("now_ms", [7000, 7200, 7450])
def test_a_worker_in_the_middle_of_a_long_hop_is_busy(now_ms):
    """Hops are known when their frames have ended: of the last 550 ms nothing is."""
    records = [record(i, 500 * i, 500, 50) for i in range(20)]
    seen = observed([one for one in records if one.done_ns <= now_ms * MS], now_ms)
    assert seen.utilization["a"] == pytest.approx(1.0, abs=0.01)
    assert seen.utilization["b"] < 0.2


def test_a_worker_that_has_run_dry_is_not_busy():
    assert observed([record(i, 20 * i, 20, 5) for i in range(50)], 2500).utilization["a"] == 0.0


def test_more_frames_than_are_kept():
    seen = observed([record(i, i / 4, 0.25, 0.125) for i in range(8000)], 2000)
    assert seen.utilization == {"a": pytest.approx(1.0, abs=0.02), "b": pytest.approx(0.5, abs=0.02)}
    assert seen.fps == pytest.approx(4000, rel=0.02)


def test_a_route_that_few_frames_take_is_seen_among_many_others():
    routes = (*PLAN.routes, PLAN.routes[0].model_copy(update={"rate_fps": 0.01}))
    observer = Observer(PLAN.model_copy(update={"routes": routes}), 0)
    for number in range(1000):
        one = record(number, 2 * number, 1, 1)
        observer.add(one._replace(route=1) if number % 100 == 0 else one)
    assert set(observer.seen(2000 * MS).hop_s) == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_what_did_not_run_since_the_last_look_is_not_seen_again():
    observer = Observer(PLAN, 0)
    for number in range(10):
        observer.add(record(number, 20 * number, 10, 5))
    assert observer.seen(300 * MS).hop_s
    assert observer.seen(600_000 * MS).hop_s == {}
    observer.add(record(10, 600_010, 10, 5))
    assert observer.seen(600_100 * MS).hop_s


def slot(number, a_ms, frames=8):
    """The records of frames that share a slot, as `records_of` makes them: each has an equal part of its time."""
    whole = record(number, 100 * number, a_ms, 8)
    found = []
    for place in range(frames):
        parts = [
            hop._replace(
                started_ns=hop.started_ns + (hop.ended_ns - hop.started_ns) * place // frames,
                ended_ns=hop.started_ns + (hop.ended_ns - hop.started_ns) * (place + 1) // frames,
            )
            for hop in whole.hops
        ]
        found.append(whole._replace(frame=8 * number + place, hops=tuple(parts)))
    return found


def observed_batches(slots, now_ms, batch=8):
    observer = Observer(PLAN.model_copy(update={"batch": batch}), 0)
    for one in slots:
        for each in one:
            observer.add(each)
    return observer.seen(now_ms * MS)


def test_frames_that_share_a_slot_are_one_run():
    assert observed_batches([slot(number, 8) for number in range(4)], 400).hop_s == {}
    many = observed_batches([slot(number, 80 if number in (4, 8) else 8) for number in range(9)], 900)
    assert many.hop_s[0, 0] == pytest.approx(0.001)
    assert many.fps == pytest.approx(80, rel=0.02)


def test_slots_that_are_not_full_say_nothing_of_a_frame():
    found = observed_batches([slot(number, 8, frames=8 if number % 3 == 0 else 2) for number in range(30)], 3000)
    assert found.hop_s[0, 0] == pytest.approx(0.001)
    assert found.utilization["a"] == pytest.approx(0.08, abs=0.02)


def test_how_busy_workers_are_with_large_batches():
    found = observed_batches([slot(number, 25, frames=512) for number in range(20)], 2000, batch=512)
    assert found.utilization["a"] == pytest.approx(0.25, abs=0.05)


def test_failed_frames_tell_nothing():
    assert observed([record(i, 20 * i, 10, 5, failed=True) for i in range(50)], 1000).hop_s == {}


def test_word_that_comes_for_several_results_at_once_does_not_change_the_rate():
    """20 frames/s, told of in threes (see `HOLD_S`): done in bunches, computed evenly."""
    observer, rates = Observer(PLAN, 0), []
    computed = [record(i, 50 * i, 30, 10) for i in range(200)]
    for last in range(2, len(computed), 3):
        now_ns = computed[last].done_ns
        for one in computed[last - 2 : last + 1]:
            observer.add(one._replace(done_ns=now_ns))
        if now_ns > 3000 * MS:
            rates += [observer.seen(now_ns + wait * MS).fps for wait in (0, 40, 80)]
    assert min(rates) == pytest.approx(20, rel=0.06)
    assert max(rates) == pytest.approx(20, rel=0.06)


@pytest.mark.parametrize("fps", [100, 5_000, 50_000])
@pytest.mark.parametrize("seconds", [0.1, 3.0])
def test_the_rate_of_fast_streams_and_of_fresh_ones(fps, seconds):
    observer = Observer(PLAN, 0)
    for number in range(int(fps * seconds)):
        observer.add(record(number, number * 1e3 / fps, 0.01, 0.01))
    assert observer.seen(int(seconds * 1e9)).fps == pytest.approx(fps, rel=0.2)
