"""Ctrl-C at any moment: a stream goes on or says that it cannot, and closing one closes all of it."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import signal
import sys
import threading
import time

import numpy as np
import psutil
import pytest
from waiting import wait_until

from corepipe.errors import StreamClosedError, StreamFullError, WorkerError
from corepipe.runtime import live
from corepipe.runtime import stream as stream_module
from corepipe.runtime.stream import Stream

PLANS = {
    "one worker": (1, [(1, [(0, 0, 6)])]),
    "pipeline": (1, [(1, [(0, 0, 2), (1, 2, 6)])]),
    "shared slots": (2, [(1, [(0, 0, 6)])]),
}


@pytest.fixture(autouse=True)
def _no_others():
    """Streams that earlier tests have left are closed now, and not at such a moment."""
    gc.collect()


@contextlib.contextmanager
def ctrl_c(moment, but=()):
    """Raise `KeyboardInterrupt` at one of the moments at which Python looks for signals in the runtime's own code.

    Those are the beginning of a function and the end of a call into C; not in functions named in `but`. (What is raised
    in a generator that is thrown away, Python ignores.)
    """
    moments = itertools.count(1)

    def look(frame, event, _):
        ours = os.sep + os.path.join("corepipe", "runtime") + os.sep in frame.f_code.co_filename
        passes = event in ("call", "c_return") and frame.f_code.co_name not in ("<genexpr>", *but)
        if passes and ours and next(moments) == moment:
            raise KeyboardInterrupt

    gc.disable()
    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(None)
        gc.enable()


@pytest.mark.parametrize(("batch", "routes"), PLANS.values(), ids=PLANS.keys())
def test_while_a_frame_is_fed(chain, two_cores, make_plan, batch, routes):
    plan = make_plan(chain, routes).model_copy(update={"batch": batch})
    frame = np.ones(chain.inputs[0].shape, np.float32)
    with contextlib.ExitStack() as opened:
        stream = opened.enter_context(Stream(chain, plan, two_cores))
        expected = stream.submit(frame).result(30)
        for moment in itertools.count(1):
            assert moment < 500
            try:
                with ctrl_c(moment):
                    stream.submit(frame)
                break
            except KeyboardInterrupt:
                pass
            try:
                futures = [stream.submit(frame, timeout=20) for _ in range(12)]
            except WorkerError as error:
                assert "interrupted while it took a frame" in str(error)
                stream.close()
                stream = opened.enter_context(Stream(chain, plan, two_cores))
                continue
            for future in futures:
                assert np.array_equal(future.result(20), expected), moment
        assert moment > 15


@pytest.mark.parametrize(("batch", "routes"), PLANS.values(), ids=PLANS.keys())
def test_while_a_loop_reads_every_frame_that_was_fed_gives_its_result(chain, two_cores, make_plan, batch, routes):
    plan = make_plan(chain, routes).model_copy(update={"batch": batch})
    frames = [np.full(chain.inputs[0].shape, 1 + number, np.float32) for number in range(2)]
    with contextlib.ExitStack() as opened:
        stream = opened.enter_context(Stream(chain, plan, two_cores))
        expected = list(stream(frames))
        for moment in itertools.count(1):
            assert moment < 2000
            fed, got = stream.state.next_sequence, []
            try:
                with ctrl_c(moment, but=("take", "choose", "next_route")):  # a new stream after each takes its time
                    got.extend(stream(frames))
                break
            except KeyboardInterrupt:
                pass
            except WorkerError as error:
                assert "interrupted while it took a frame" in str(error)
                stream.close()
                stream = opened.enter_context(Stream(chain, plan, two_cores))
                continue
            assert len(got) == stream.state.next_sequence - fed, moment
            assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=False)), moment
        assert moment > 15


@pytest.mark.parametrize("when_full", ["wait", "drop-oldest"])
def test_while_a_live_loop_reads_every_frame_that_was_fed_gives_its_result(chain, two_cores, make_plan, when_full):
    plan = make_plan(chain, PLANS["one worker"][1])
    frames = [np.full(chain.inputs[0].shape, 1 + number, np.float32) for number in range(2)]
    with Stream(chain, plan, two_cores) as stream:
        expected = list(stream(frames))
        for moment in itertools.count(1):
            assert moment < 2000
            fed, got = stream.state.next_sequence, []
            try:
                with ctrl_c(moment):
                    got.extend(stream(frames, "return", when_full, live=True))
                break
            except KeyboardInterrupt:
                pass
            assert len(got) == stream.state.next_sequence - fed, moment
            assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=False)), moment
        assert moment > 15


def test_while_another_plan_comes_in(chain, two_cores, make_plan, monkeypatch):
    def plan_of(name):
        batch, routes = PLANS[name]
        return make_plan(chain, routes).model_copy(update={"batch": batch})

    plans = itertools.cycle(plan_of(name) for name in ("pipeline", "shared slots"))
    frame, make_lane = np.ones(chain.inputs[0].shape, np.float32), stream_module.Lane
    others = {child.pid for child in psutil.Process().children()}

    def are_its_own(stream):
        return {child.pid for child in psutil.Process().children()} - others <= set(stream.worker_pids.values())

    with Stream(chain, next(plans), two_cores) as stream:
        expected = stream.submit(frame).result(30)
        for moment in itertools.count(1):
            assert moment < 100
            with contextlib.ExitStack() as later:

                def made(*arguments, moment=moment, later=later):
                    lane = make_lane(*arguments)
                    later.enter_context(ctrl_c(moment))
                    return lane

                monkeypatch.setattr(stream_module, "Lane", made)
                try:
                    stream.switch(next(plans))
                    finished = True
                except KeyboardInterrupt:
                    finished = False
            assert np.array_equal(stream.submit(frame).result(20), expected), moment
            wait_until(lambda: len(stream.lanes) == 1, 10)
            wait_until(lambda: are_its_own(stream), 10)
            if finished:
                break
        assert moment > 5


@pytest.mark.filterwarnings("ignore:subprocess:ResourceWarning")
def test_a_plan_that_was_loaded_and_is_not_used_leaves_no_process(chain, two_cores, make_plan, monkeypatch, is_running):
    def interrupt(*_):
        raise KeyboardInterrupt

    plan = make_plan(chain, PLANS["pipeline"][1])
    others = {child.pid for child in psutil.Process().children()}

    def left():
        return [child.pid for child in psutil.Process().children() if child.pid not in others and is_running(child.pid)]

    with monkeypatch.context() as patch:
        patch.setattr("corepipe.runtime.lane.Whereabouts", interrupt)
        with pytest.raises(KeyboardInterrupt):
            Stream(chain, plan, two_cores)
    with monkeypatch.context() as patch:
        patch.setattr("corepipe.runtime.state.State.set_lanes", interrupt)
        with pytest.raises(KeyboardInterrupt):
            Stream(chain, plan, two_cores)
    stream_module.Lane(chain, plan, two_cores)
    wait_until(lambda: gc.collect() >= 0 and not left(), 10)


def test_while_a_stream_is_closed(chain, two_cores, make_plan, is_running):
    plan = make_plan(chain, PLANS["pipeline"][1])
    frame = np.ones(chain.inputs[0].shape, np.float32)
    for moment in (*range(1, 40), *range(42, 100, 20)):
        before = set(threading.enumerate())
        stream = Stream(chain, plan, two_cores)
        pids = list(stream.worker_pids.values())
        futures = [stream.submit(frame) for _ in range(4)]
        with contextlib.suppress(KeyboardInterrupt), ctrl_c(moment):
            stream.close()
        stream.close()
        for future in futures:
            with contextlib.suppress(StreamClosedError):
                future.result(10)
        wait_until(lambda pids=pids: not any(map(is_running, pids)), 10)
        wait_until(lambda before=before: set(threading.enumerate()) <= before, 10)


def test_a_wait_that_is_cut_short_does_not_keep_a_stream_half_open(
    chain, two_cores, make_plan, monkeypatch, is_running
):
    stream = Stream(chain, make_plan(chain, PLANS["one worker"][1]), two_cores)
    (pid,) = stream.worker_pids.values()
    os.kill(pid, signal.SIGSTOP)
    future = stream.submit(np.ones(chain.inputs[0].shape, np.float32))

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(stream._collector, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stream.close()
    with pytest.raises(StreamClosedError):
        future.result(10)
    assert not is_running(pid)


def test_results_after_it_belong_to_the_frames_that_they_are_given_for(chain, two_cores, make_plan):
    """Frames that were dropped before it stay in the row: who counts results would take the next for theirs."""
    with Stream(chain, make_plan(chain, PLANS["one worker"][1]), two_cores) as stream:
        pid = stream.worker_pids["w0"]
        (one,) = stream([np.ones(chain.inputs[0].shape, np.float32)])
        at = np.unravel_index(np.abs(one).argmax(), one.shape)
        os.kill(pid, signal.SIGSTOP)

        def feed():
            for number in range(40):
                yield np.full(chain.inputs[0].shape, number, np.float32)
                time.sleep(0.1 if number < 4 else 0.002)  # the first ones fill the stream
            os.kill(os.getpid(), signal.SIGINT)
            threading.Timer(0.5, os.kill, (pid, signal.SIGCONT)).start()
            threading.Event().wait(30)

        results = []
        with pytest.raises(KeyboardInterrupt):
            results.extend(stream(feed(), "return", "drop-oldest"))
        ran = [n for n, result in enumerate(results) if not isinstance(result, StreamFullError)]
        assert len(results) > len(ran) > 0
        assert [round(float(results[n][at] / one[at])) for n in ran] == ran


def test_a_frame_that_comes_with_it_is_not_waited_for(chain, two_cores, make_plan, monkeypatch):
    """A source's frame that was read, but not put in front of the stream yet, when the run was ended."""
    arrived = threading.Event()
    put = live._Intake._put

    def put_late(intake, frame):
        if float(frame.flat[0]) == 2:
            arrived.set()
            wait_until(lambda: intake.stopped, 20)
        put(intake, frame)

    monkeypatch.setattr(live._Intake, "_put", put_late)
    with Stream(chain, make_plan(chain, PLANS["one worker"][1]), two_cores) as stream:
        frames = [np.full(chain.inputs[0].shape, number, np.float32) for number in (1, 2, 3)]
        threading.Timer(0, lambda: (arrived.wait(20), os.kill(os.getpid(), signal.SIGINT))).start()
        results = []
        with pytest.raises(KeyboardInterrupt):
            results.extend(stream(iter(frames), "return", "drop-oldest"))
        assert len(results) <= 1


def test_ctrl_c_waits_for_the_frames_under_way(chain, two_cores, make_plan):
    frame = np.ones(chain.inputs[0].shape, np.float32)

    def feed():
        yield from [frame] * 5
        raise KeyboardInterrupt

    with Stream(chain, make_plan(chain, [(1, [(0, 0, 6)])]), two_cores) as stream:
        outputs = []
        with pytest.raises(KeyboardInterrupt):
            outputs.extend(stream(feed()))
        assert len(outputs) == 5
