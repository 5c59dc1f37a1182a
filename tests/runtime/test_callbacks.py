"""What callbacks of results and records may do: nobody else is held up or harmed."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import threading
import time

import numpy as np
import pytest
from reference import assert_equal, frames_for, whole
from route_plans import ROUTES
from waiting import wait_until

from corepipe.errors import StreamClosedError, WorkerError
from corepipe.runtime.stream import Stream


def test_a_future_that_was_cancelled_is_not_waited_for(chain, two_cores, make_plan):
    with Stream(chain, make_plan(chain, ROUTES["one worker"]), two_cores) as stream:
        os.kill(stream.worker_pids["w0"], signal.SIGSTOP)
        first, second = (stream.submit(frame) for frame in frames_for(chain, 2))
        assert first.cancel()
        os.kill(stream.worker_pids["w0"], signal.SIGCONT)
        done, left = concurrent.futures.wait([first, second], timeout=30)
        assert (done, left) == ({first, second}, set())
        assert list(concurrent.futures.as_completed([first], timeout=30)) == [first]


def test_closing_does_not_wait_for_a_callback_for_ever(chain, two_cores, make_plan, monkeypatch, caplog):
    monkeypatch.setattr("corepipe.runtime.stream._CALLBACK_S", 0.1)
    go_on, called = threading.Event(), threading.Event()
    stream = Stream(chain, make_plan(chain, ROUTES["one worker"]), two_cores)
    os.kill(stream.worker_pids["w0"], signal.SIGSTOP)
    future = stream.submit(frames_for(chain, 1)[0])
    future.add_done_callback(lambda _: (called.set(), go_on.wait(30)))
    os.kill(stream.worker_pids["w0"], signal.SIGCONT)
    assert called.wait(30)
    stream.close()
    assert "has not returned" in caplog.text
    go_on.set()
    stream._deliverer.join(30)


def test_each_future_has_an_error_of_its_own(chain, two_cores, make_plan):
    """One that is raised for several frames would gather the tracebacks of all."""
    with Stream(chain, make_plan(chain, ROUTES["one worker"]), two_cores) as stream:
        os.kill(stream.worker_pids["w0"], signal.SIGSTOP)
        futures = [stream.submit(frame) for frame in frames_for(chain, 2)]
    errors = [future.exception(30) for future in futures]
    assert all(isinstance(error, StreamClosedError) for error in errors)
    assert errors[0] is not errors[1]


def test_closing_does_not_hold_the_streams_lock_while_callbacks_run(chain, two_cores, make_plan):
    lock = threading.Lock()
    stream = Stream(chain, make_plan(chain, ROUTES["pipeline"]), two_cores)
    os.kill(stream.worker_pids["w0"], signal.SIGSTOP)

    def callback(_):
        with lock:
            pass

    for frame in frames_for(chain, 3):
        stream.submit(frame).add_done_callback(callback)
    with lock:
        closing = threading.Thread(target=stream.close)
        closing.start()
        time.sleep(0.2)
        with pytest.raises(StreamClosedError):
            stream.submit(frames_for(chain, 1)[0], timeout=5)
    closing.join(20)
    assert not closing.is_alive()


def test_a_callback_may_submit_when_another_thread_took_its_room(chain, two_cores, make_plan):
    frame = frames_for(chain, 1)[0]
    accepted = []
    with Stream(chain, make_plan(chain, ROUTES["pipeline"]), two_cores) as stream:
        os.kill(stream.worker_pids["w1"], signal.SIGSTOP)
        with contextlib.suppress(TimeoutError):
            while True:
                accepted.append(stream.submit(frame, timeout=0.3))
        full = len(accepted)

        def again(_):
            wait_until(lambda: len(accepted) > full)
            accepted.append(stream.submit(frame))

        accepted[0].add_done_callback(again)
        os.kill(stream.worker_pids["w1"], signal.SIGCONT)
        accepted.append(stream.submit(frame))
        wait_until(lambda: len(accepted) == full + 2, 10)
        assert_equal([future.result(30) for future in accepted], whole(chain, [frame]) * len(accepted))


def test_a_callback_may_submit_while_a_worker_is_replaced(chain, two_cores, make_plan):
    frame = frames_for(chain, 1)[0]
    futures = []
    with Stream(chain, make_plan(chain, ROUTES["pipeline"]), two_cores) as stream:
        first, last = stream.worker_pids["w0"], stream.worker_pids["w1"]
        os.kill(last, signal.SIGSTOP)
        for _ in range(3):
            futures.append(stream.submit(frame))
            futures[-1].add_done_callback(lambda _: futures.append(stream.submit(frame)))
        slots = [stream.pool.arena.slots[flight.slot] for flight in stream.lanes[-1].under_way()]
        wait_until(lambda: all(slot.times(0)[1] for slot in slots))
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: stream.lanes[-1].paused)
        os.kill(last, signal.SIGCONT)
        wait_until(lambda: len(futures) == 6, 10)
        assert_equal([future.result(30) for future in futures], whole(chain, [frame]) * 6)
        assert stream.restarts == 1


def test_a_callback_that_waits_does_not_stop_the_collector(chain, two_cores, make_plan):
    frame = frames_for(chain, 1)[0]
    records, go = [], threading.Event()
    with Stream(chain, make_plan(chain, ROUTES["pipeline"]), two_cores, on_record=records.append) as stream:
        stream.submit(frame).add_done_callback(lambda _: go.wait(30))
        last = stream.submit(frame)
        wait_until(lambda: len(records) == 2, 10)
        go.set()
        last.result(30)


def test_a_callback_may_close_the_stream(chain, two_cores, make_plan, is_running):
    frame = frames_for(chain, 1)[0]
    stream = Stream(chain, make_plan(chain, ROUTES["pipeline"]), two_cores)
    pids = list(stream.worker_pids.values())
    stream.submit(frame).add_done_callback(lambda _: stream.close())
    wait_until(lambda: stream.closed and not any(map(is_running, pids)))


def test_a_callback_that_exits_ends_the_stream_by_name(chain, two_cores, make_plan):
    def leave(_):
        raise SystemExit(1)

    with Stream(chain, make_plan(chain, ROUTES["pipeline"]), two_cores) as stream:
        stream.submit(frames_for(chain, 1)[0]).add_done_callback(leave)
        wait_until(lambda: stream.state.broken is not None)
        with pytest.raises(WorkerError, match="SystemExit"):
            stream.submit(frames_for(chain, 1)[0])


def test_on_record_may_close_the_stream_while_other_results_wait(chain, two_cores, make_plan):
    seen = []

    def on_record(record):
        seen.append(record.frame)
        if len(seen) == 1:
            time.sleep(0.5)  # the other results arrive together
        else:
            stream.close()

    stream = Stream(chain, make_plan(chain, ROUTES["replicas"]), two_cores, on_record=on_record)
    futures = [stream.submit(frame) for frame in frames_for(chain, 4)]
    for future in futures:
        with contextlib.suppress(StreamClosedError):
            future.result(30)
    with pytest.raises(StreamClosedError):
        stream.submit(frames_for(chain, 1)[0])
    assert len(seen) == 2


def test_a_failing_on_record_is_logged_and_dropped(chain, two_cores, make_plan, caplog):
    frames = frames_for(chain, 5)
    with Stream(chain, make_plan(chain, ROUTES["pipeline"]), two_cores, on_record=lambda record: 1 / 0) as stream:
        assert_equal(stream(frames), whole(chain, frames))
    assert "on_record failed for frame 0" in caplog.text


def test_a_failing_watcher_is_logged_and_dropped(chain, two_cores, make_plan, caplog):
    frames, seen = frames_for(chain, 3), []
    with Stream(chain, make_plan(chain, ROUTES["pipeline"]), two_cores, on_record=seen.append) as stream:
        stream.watch(lambda record: 1 / 0)
        assert_equal(stream(frames), whole(chain, frames))
        assert caplog.text.count("a watcher failed for frame 0") == 1
        assert not stream.results.watchers
    assert [record.frame for record in seen] == [0, 1, 2]


def test_on_record_cannot_wait_for_room_that_only_its_thread_makes(chain, two_cores, make_plan, caplog):
    frames, futures = frames_for(chain, 3), []

    def on_record(record):
        while True:
            futures.append(stream.submit(frames[0]))

    with Stream(chain, make_plan(chain, ROUTES["pipeline"]), two_cores, on_record=on_record) as stream:
        first = stream.submit(frames[0]).result(30)
        wait_until(lambda: "on_record failed for frame 0" in caplog.text)
        assert "submit from another thread" in caplog.text
        assert all(np.array_equal(future.result(30), first) for future in futures)
        assert_equal(stream(frames), whole(chain, frames))
