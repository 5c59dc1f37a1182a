from __future__ import annotations

import select
from collections import Counter, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st
from route_plans import plan_of

from corepipe.runtime.dispatch import Dispatcher, slot_bytes_of
from corepipe.runtime.messages import DONE, HOLD_S, MOST_HELD, pack

rates = st.one_of(st.just(0.0), st.floats(1e-3, 1e3))
plans = (
    st.lists(st.tuples(rates, st.lists(st.integers(0, 5), min_size=1, max_size=4)), min_size=1, max_size=5)
    .filter(lambda routes: sum(rate for rate, _ in routes) > 0)
    .map(plan_of)
)


def enough():
    """No worker has work to do: rates alone decide."""
    return [[0] * 5] * 5


def sharing(plan):
    """The routes with a rate, parted by the workers that they share: what the dispatcher is held against."""
    groups = [{number} for number, route in enumerate(plan.routes) if route.rate_fps > 0]
    workers = [{hop.worker for hop in route.hops} for route in plan.routes]
    merged = True
    while merged:
        merged = False
        for one in groups:
            for other in groups:
                if one is not other and any(workers[a] & workers[b] for a in one for b in other):
                    one |= other
                    groups.remove(other)
                    merged = True
                    break
            if merged:
                break
    return groups


def order(routes, frames):
    """The routes of the first frames when every frame is done at once."""
    dispatcher = Dispatcher(plan_of(routes))
    chosen = []
    for _ in range(frames):
        chosen.append(dispatcher.choose(enough, deep=True))
        dispatcher.done(chosen[-1])
    return chosen


@pytest.mark.parametrize("shared", [False, True])
def test_equal_rates_take_turns(shared):
    routes = [(1.0, [0 if shared else worker]) for worker in range(3)]
    chosen = order(routes, 60)
    assert all(sorted(chosen[at : at + 3]) == [0, 1, 2] for at in range(0, 60, 3))


@pytest.mark.parametrize("shared", [False, True])
def test_the_order_is_smooth_not_in_blocks(shared):
    chosen = order([(30.0, [0]), (10.0, [0 if shared else 1])], 40)
    assert all(chosen[at : at + 4].count(1) == 1 for at in range(4, 36, 4))


@given(plans)
def test_counts_follow_the_rates_where_no_route_is_full(plan):
    dispatcher = Dispatcher(plan)
    counts = Counter()
    for frames in range(1, 201):
        counts[route := dispatcher.choose(enough, deep=True)] += 1
        dispatcher.done(route)
        for number, one in enumerate(plan.routes):
            assert abs(counts[number] - frames * one.rate_fps / plan.throughput_fps) <= len(plan.routes)


@given(plans, st.randoms(use_true_random=False))
def test_rates_are_kept_among_routes_that_share_workers_in_whatever_order_frames_are_done(plan, random):
    dispatcher = Dispatcher(plan)
    groups = sharing(plan)
    under_way: list[int] = []
    counts = Counter()
    for _ in range(300):
        assert dispatcher.has_room(deep=True) == (len(under_way) < dispatcher.slots)
        if dispatcher.has_room(deep=True) and random.random() < 0.6:
            under_way.append(dispatcher.choose(enough, deep=True))
            counts[under_way[-1]] += 1
        elif under_way:
            dispatcher.done(under_way.pop(random.randrange(len(under_way))))
        assert len(under_way) <= dispatcher.slots <= dispatcher.window
        for group in groups:
            frames = sum(counts[route] for route in group)
            rate = sum(plan.routes[route].rate_fps for route in group)
            for route in group:
                assert abs(counts[route] - frames * plan.routes[route].rate_fps / rate) <= len(group)
    assert set(counts) <= set().union(*groups)


@given(plans, st.data())
def test_within_a_group_a_frame_takes_a_route_that_meets_little_work_and_no_full_worker(plan, data):
    dispatcher = Dispatcher(plan)
    workers = [[hop.worker for hop in route.hops] for route in plan.routes]
    took = [data.draw(st.lists(st.floats(1e-4, 1.0), min_size=len(w), max_size=len(w))) for w in workers]
    told = set()
    for _ in range(30):
        at_hops = [data.draw(st.lists(st.integers(0, 4), min_size=len(w) + 1, max_size=len(w) + 1)) for w in workers]
        route = dispatcher.choose(lambda at=at_hops: at, deep=True)
        dispatcher.done(route, took[route] if dispatcher.learns(route) else ())
        (group,) = (group for group in sharing(plan) if route in group)
        new = route not in told
        told.add(route)
        if new or not group <= told:  # the first frames tell how long the hops of each route last
            continue
        waiting, ahead_s = Counter(), Counter()
        for number in group:
            for hop, worker in enumerate(workers[number]):
                waiting[worker] += at_hops[number][hop]
                ahead_s[worker] += sum(at_hops[number][: hop + 1]) * took[number][hop]
        slots = 4 * sum(len(workers[number]) for number in group)
        avoids_full = {number for number in group if all(2 * waiting[w] < slots for w in workers[number])} or group
        assert route in avoids_full
        rate = sum(plan.routes[number].rate_fps for number in group)
        work = {n: sum(ahead_s[w] * s for w, s in zip(workers[n], took[n], strict=True)) for n in group}
        usual = sum(plan.routes[number].rate_fps / rate * work[number] for number in group)
        # Frames behind the rates are at most 4 apart, and count a tenth of the usual work each.
        assert work[route] <= min(work[number] for number in avoids_full) + 0.4 * usual * (1 + 1e-9)


@given(plans, st.lists(st.lists(st.integers(0, 4), min_size=5, max_size=5), min_size=5, max_size=5))
def test_every_route_with_a_rate_gets_a_frame_at_once_and_now_and_then_whatever_waits(plan, at_hops):
    dispatcher = Dispatcher(plan)
    (group,) = (group for group in sharing(plan) if max(group) == max(max(one) for one in sharing(plan)))
    rate = sum(plan.routes[route].rate_fps for route in group)
    last = {}
    frames = 0
    for _ in range(1000):
        route = dispatcher.choose(lambda: at_hops, deep=True)
        dispatcher.done(route, [0.1] * len(plan.routes[route].hops) if dispatcher.learns(route) else ())
        frames += route in group
        last.update({route: frames} if route in group else {})
        for number in group:
            most = max(100, rate / plan.routes[number].rate_fps) if number in last else 0
            assert frames - last.get(number, 0) <= most + len(group)


def test_a_route_to_a_worker_that_was_slow_for_long_is_not_paid_back_for_long():
    dispatcher = Dispatcher(plan_of([(1.0, [0]), (1.0, [0, 1])]))

    def next_routes(at_hops, count=20):
        chosen = []
        for _ in range(count):
            chosen.append(dispatcher.choose(lambda: at_hops, deep=True))
            dispatcher.done(chosen[-1], [0.2] if chosen[-1] == 0 else [0.1, 0.1])
        return chosen

    assert next_routes([[0, 0, 0], [0, 0, 0]], 2) in ([0, 1], [1, 0])
    assert next_routes([[1, 0, 0], [0, 5, 0]]) == [0] * 20
    assert next_routes([[0, 0, 0], [0, 0, 0]]).count(0) == 8


@given(plans, st.booleans())
def test_a_group_that_stalls_holds_no_other_up(plan, deep):
    groups = sharing(plan)
    dispatcher = Dispatcher(plan)
    stalled = groups[0]
    stuck = 0
    for _ in range(500):
        if not dispatcher.has_room(deep=deep):
            break
        route = dispatcher.choose(enough, deep=deep)
        if route in stalled:
            stuck += 1
        else:
            dispatcher.done(route)
    hops = sum(len(plan.routes[route].hops) for route in stalled)
    workers = {hop.worker for route in stalled for hop in plan.routes[route].hops}
    room = hops * (4 if hops > len(workers) else 2)
    if deep:
        ends = {plan.routes[route].hops[-1].worker for route in stalled}
        room += min(64 * len(ends), int(0.2 * sum(plan.routes[route].rate_fps for route in stalled)))
    assert stuck <= room
    assert dispatcher.has_room(deep=deep) == (len(groups) > 1 or stuck < room)


def fill(dispatcher):
    """How many frames are taken with short queues, and how many more where latency does not count."""
    counts = []
    for deep in (False, True):
        counts.append(0)
        while dispatcher.has_room(deep=deep):
            dispatcher.choose(enough, deep=deep)
            counts[-1] += 1
    return counts


@pytest.mark.parametrize(("rate", "longer_by"), [(1.0, 0), (4.0, 0), (6.0, 1), (11.0, 2), (51.0, 10), (1000.0, 64)])
def test_only_queues_of_high_rates_are_longer_and_only_where_latency_does_not_count(rate, longer_by):
    dispatcher = Dispatcher(plan_of([(rate, [0])]))
    assert dispatcher.holds(0) == (longer_by > 0)
    assert fill(dispatcher) == [2, longer_by]


@pytest.mark.parametrize("routes", [[(11.0, [0, 1])], [(6.0, [0]), (6.0, [0, 1])], [(6.0, [0]), (6.0, [0])]])
def test_routes_that_share_workers_have_longer_queues_together(routes):
    dispatcher = Dispatcher(plan_of(routes))
    assert all(dispatcher.holds(route) for route in range(len(routes)))
    assert fill(dispatcher)[1] == 2


@pytest.mark.parametrize(("ends", "longer_by"), [([[0, 1], [0]], 128), ([[0, 1], [1]], 64), ([[0, 1], [1, 0]], 128)])
def test_queues_are_longer_by_what_all_workers_at_the_end_of_routes_may_hold(ends, longer_by):
    assert fill(Dispatcher(plan_of([(1000.0, workers) for workers in ends])))[1] == longer_by


@pytest.mark.parametrize(("batch", "cut_bytes", "longer_by"), [
    (1, [2**18, 2**18], 128), (1, [2**20, 2**20], 32), (1, [2**21 - 7, 7], 32), (2, [2**20, 2**20], 16),
    (1, [2**24, 2**24], 2), (1, [2**25, 2**25], 0), (1, [2**40, 0], 0),
])  # fmt: skip
def test_queues_are_longer_by_no_more_than_some_memory(batch, cut_bytes, longer_by):
    plan = plan_of([(10_000.0, [0]), (10_000.0, [1])]).model_copy(update={"batch": batch})
    dispatcher = Dispatcher(plan, 0, slot_bytes_of(plan, cut_bytes))
    assert fill(dispatcher) == [4, longer_by]
    assert dispatcher.holds(0) == (longer_by > 0)
    assert dispatcher.most_held == {"w0": max(longer_by // 2, 1), "w1": max(longer_by // 2, 1)}


def test_what_lies_at_the_ends_of_hops_counts_for_that_memory_but_not_of_routes_that_are_not_used():
    plan = plan_of([(1.0, [0, 1]), (0.0, [0, 1, 0])])
    assert slot_bytes_of(plan, [1, 10, 100, 1000]) == 1011


def test_of_routes_that_share_workers_all_those_at_an_end_may_hold_as_many():
    assert Dispatcher(plan_of([(50.0, [0, 1]), (50.0, [1, 0]), (1.0, [2])])).most_held == {"w0": 20, "w1": 20, "w2": 1}


def test_what_a_worker_holds_fits_into_one_write():
    plan = plan_of([(1000.0, [0, end]) for end in range(1, 6)])
    assert Dispatcher(plan).most_held == {f"w{end}": MOST_HELD for end in range(1, 6)}
    assert (MOST_HELD + 1) * len(pack(DONE, 0, 0, 0, 0)) <= select.PIPE_BUF


def test_queues_follow_the_rates_within_the_slots_that_there_are():
    dispatcher = Dispatcher(plan_of([(40.0, [0])]))
    for rate, counts in ((2.5, [2, 0]), (12.5, [2, 2]), (40.0, [2, 8]), (200.0, [2, 8])):
        dispatcher.set_rates(plan_of([(rate, [0])]))
        assert fill(dispatcher) == counts
        for _ in range(sum(counts)):
            dispatcher.done(0)


def test_a_faster_group_takes_more_than_its_rate():
    dispatcher = Dispatcher(plan_of([(1.0, [0]), (1.0, [1])]))
    counts = Counter()
    slow: list[int] = []
    for frame in range(400):
        counts[route := dispatcher.choose(enough, deep=True)] += 1
        if route == 0:
            dispatcher.done(route)
        else:
            slow.append(route)
        if frame % 4 == 3 and slow:
            dispatcher.done(slow.pop())
    assert counts[0] > 2 * counts[1]


def test_the_window_is_bounded_by_the_size_of_results():
    plan = plan_of([(1.0, [0]), (1e-6, [1])])
    assert Dispatcher(plan).window == 1024
    assert Dispatcher(plan, 2**24).window == 16
    assert Dispatcher(plan, 2**40).window == Dispatcher(plan).slots == 4


def test_a_worker_half_as_fast_as_its_rates_holds_nobody_up():
    dispatcher = Dispatcher(plan_of([(60.0, [0]), (60.0, [1])]))
    takes = [1 / 90, 1 / 30]
    queued, held, told = [deque(), deque()], [[], []], set()
    at_work = {}
    worked = [0.0, 0.0]
    now, fed, delivered = 0.0, 0, 0
    while now < 5.0:
        while dispatcher.has_room(deep=True) and fed - delivered < dispatcher.window:
            queued[dispatcher.choose(enough, deep=True)].append(fed)
            fed += 1
        for worker in (0, 1):
            if worker not in at_work and queued[worker]:
                at_work[worker] = now + takes[worker], queued[worker].popleft()
        worker = min(at_work, key=at_work.__getitem__)
        now, frame = at_work.pop(worker)
        worked[worker] += takes[worker]
        held[worker].append((frame, now))
        if len(queued[worker]) < 2 or now + takes[worker] - held[worker][0][1] > HOLD_S:
            for frame, _ in held[worker]:
                told.add(frame)
                dispatcher.done(worker)
            held[worker].clear()
        while delivered in told:
            delivered += 1
    assert min(worked) > 0.97 * now
