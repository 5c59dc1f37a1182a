"""A stream that goes on with other rates or another plan while frames are under way."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from reference import assert_equal, assert_same, frames_for, whole
from waiting import wait_until

from corepipe.errors import CorepipeError, PlanError, StreamClosedError, WorkerError
from corepipe.runtime.stream import Stream

REPLICAS = [(1, [(0, 0, 6)]), (1, [(1, 0, 6)])]
PIPELINE = [(1, [(0, 0, 3), (1, 3, 6)])]
OTHER_WAY = [(1, [(1, 0, 2), (0, 2, 6)])]
LONE = [(1, [(0, 0, 6)])]


def check_all(outputs, expected, times):
    assert len(outputs) == times
    for number, output in enumerate(outputs):
        assert_same(output, expected[number % len(expected)], number)


def test_plans_change_in_mid_stream_and_no_frame_is_lost_or_out_of_order(chain, two_cores, make_plan, is_running):
    frames = frames_for(chain, 7)
    seen, pids = [], set()
    with Stream(chain, make_plan(chain, REPLICAS), two_cores, on_record=seen.append) as stream:
        pids |= set(stream.worker_pids.values())

        def change():
            for routes in (PIPELINE, OTHER_WAY, LONE, REPLICAS):
                stream.switch(make_plan(chain, routes))
                pids.update(stream.worker_pids.values())
                time.sleep(0.05)
            done.set()

        done = threading.Event()
        changing = threading.Thread(target=change)

        def feed():
            changing.start()
            number = 0
            while not done.is_set() or number % 50:
                yield frames[number % len(frames)]
                number += 1

        outputs = list(stream(feed()))
        changing.join()
        check_all(outputs, whole(chain, frames), len(outputs))
        assert len(outputs) == len(seen)
        assert {record.plan for record in seen} == {0, 1, 2, 3, 4}
        assert stream.restarts == 0

        def old_workers_have_ended():
            return len(stream.lanes) == 1 and not any(map(is_running, pids - set(stream.worker_pids.values())))

        wait_until(old_workers_have_ended, 10)
    assert not any(map(is_running, pids))


def test_futures_end_in_the_order_of_submission_over_a_change(chain, two_cores, make_plan):
    frames = frames_for(chain, 4)
    ended = []
    with Stream(chain, make_plan(chain, LONE), two_cores) as stream:
        os.kill(stream.worker_pids["w0"], signal.SIGSTOP)
        old = stream.worker_pids["w0"]
        futures = [stream.submit(frames[i]) for i in range(2)]
        stream.switch(make_plan(chain, [(1, [(1, 0, 6)])]))
        futures += [stream.submit(frames[i]) for i in range(2, 4)]
        for number, future in enumerate(futures):
            future.add_done_callback(lambda _, number=number: ended.append(number))
        time.sleep(0.3)
        assert ended == []
        os.kill(old, signal.SIGCONT)
        check_all([future.result(10) for future in futures], whole(chain, frames), 4)
    assert ended == [0, 1, 2, 3]


def test_a_worker_of_the_old_plan_that_dies_is_replaced_for_its_last_frames(chain, two_cores, make_plan):
    frames = frames_for(chain, 3)
    with Stream(chain, make_plan(chain, LONE), two_cores) as stream:
        old = stream.worker_pids["w0"]
        os.kill(old, signal.SIGSTOP)
        futures = [stream.submit(frames[0]), stream.submit(frames[1])]
        stream.switch(make_plan(chain, [(1, [(1, 0, 6)])]))
        futures.append(stream.submit(frames[2]))
        os.kill(old, signal.SIGKILL)
        check_all([future.result(30) for future in futures], whole(chain, frames), 3)
        assert stream.restarts == 1


def test_slots_that_frames_share_go_on_their_way_when_the_plan_changes(chain, two_cores, make_plan):
    frames = frames_for(chain, 5)
    shared = make_plan(chain, PIPELINE).model_copy(update={"batch": 4})
    with Stream(chain, shared, two_cores) as stream:
        futures = [stream.submit(frame) for frame in frames]
        stream.switch(make_plan(chain, LONE))
        check_all([future.result(10) for future in futures], whole(chain, frames), 5)


def test_a_plan_that_cannot_be_loaded_leaves_the_old_one_at_work(chain, two_cores, make_plan, monkeypatch):
    frames = frames_for(chain, 3)
    with Stream(chain, make_plan(chain, LONE), two_cores) as stream:
        before = stream.plan
        with pytest.raises(PlanError):
            stream.switch(before.model_copy(update={"network": before.network.model_copy(update={"layers": 5})}))
        monkeypatch.setattr("corepipe.runtime.pool.Pool._start", refuse)
        with pytest.raises(WorkerError, match="no room"):
            stream.switch(make_plan(chain, PIPELINE))
        assert stream.plan is before
        check_all(list(stream(frames)), whole(chain, frames), 3)


def refuse(*_):
    raise WorkerError("no room")


def test_rates_shift_at_once(chain, two_cores, make_plan):
    frames = frames_for(chain, 2)
    seen = []
    routes = [(1, [(0, 0, 3), (1, 3, 6)]), (1, [(0, 0, 6)])]
    with Stream(chain, make_plan(chain, routes), two_cores, on_record=seen.append) as stream:
        for i in range(40):  # one by one: no worker waits for another, so that only the rates count
            list(stream([frames[i % 2]]))
        assert sum(record.route == 0 for record in seen) == 20
        stream.set_rates(make_plan(chain, [(3, routes[0][1]), (1, routes[1][1])]))
        seen.clear()
        for i in range(40):
            list(stream([frames[i % 2]]))
        assert sum(record.route == 0 for record in seen) == 30
        stream.set_rates(make_plan(chain, [(0, routes[0][1]), (1, routes[1][1])]))
        seen.clear()
        check_all(list(stream(frames[i % 2] for i in range(40))), whole(chain, frames), 40)
        assert all(record.route == 1 for record in seen)
        with pytest.raises(PlanError, match="other workers or routes"):
            stream.set_rates(make_plan(chain, PIPELINE))
        with pytest.raises(PlanError, match="switch to that plan"):
            stream.set_rates(stream.plan.model_copy(update={"batch": 2}))


def test_a_route_without_a_rate_gets_none_later(chain, two_cores, make_plan):
    routes = [(0, [(0, 0, 3), (1, 3, 6)]), (1, [(0, 0, 6)])]
    with (
        Stream(chain, make_plan(chain, routes), two_cores) as stream,
        pytest.raises(PlanError, match="switch to the other plan"),
    ):
        stream.set_rates(make_plan(chain, [(1, routes[0][1]), (1, routes[1][1])]))


def test_closing_during_a_change_ends_everything(chain, two_cores, make_plan, is_running):
    stream = Stream(chain, make_plan(chain, LONE), two_cores)
    pids = set(stream.worker_pids.values())
    failures = []

    def change():
        try:
            for _ in range(20):
                stream.switch(make_plan(chain, PIPELINE))
                pids.update(stream.worker_pids.values())
        except CorepipeError as error:
            failures.append(error)

    changing = threading.Thread(target=change)
    changing.start()
    time.sleep(0.7)
    stream.close()
    changing.join(20)
    assert not changing.is_alive()
    assert isinstance(failures[0], StreamClosedError)
    assert not any(map(is_running, pids))


def test_a_change_under_way_keeps_the_streams_descriptors_until_it_has_given_up(
    chain, two_cores, make_plan, monkeypatch
):
    kept = []

    def slow_lane(network, plan, topology, number, stop_fd):
        while not stream.closed:
            time.sleep(0.01)
        time.sleep(0.3)  # by now an impatient `close` would be over
        kept.append(os.fstat(stop_fd))
        raise WorkerError("not waited for")

    def change():
        with pytest.raises(StreamClosedError):
            stream.switch(make_plan(chain, LONE))

    stream = Stream(chain, make_plan(chain, REPLICAS), two_cores)
    monkeypatch.setattr("corepipe.runtime.stream.Lane", slow_lane)
    changing = threading.Thread(target=change)
    changing.start()
    time.sleep(0.1)
    stream.close()
    changing.join(10)
    assert kept


def test_a_plan_that_is_for_another_one_s_place_is_refused(chain, two_cores, make_plan):
    frames = frames_for(chain, 3)
    other = make_plan(chain, PIPELINE)
    with Stream(chain, make_plan(chain, REPLICAS), two_cores) as stream:
        assert stream.switch(other, after=0) == 1
        with pytest.raises(PlanError, match="plan 0 of the stream is not at work any more, but plan 1"):
            stream.switch(make_plan(chain, REPLICAS), after=0)
        assert stream.plan == other
        assert_equal(stream(frames), whole(chain, frames))
