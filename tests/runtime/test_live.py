"""Sources that do not wait: what is too much is dropped or refused, in order and counted."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time

import numpy as np
import pytest
from waiting import wait_until

from corepipe.errors import FrameError, StreamClosedError, StreamFullError, UnknownNameError, WorkerError
from corepipe.runtime.live import WAITING
from corepipe.runtime.stream import Stream

LONE = [(1, [(0, 0, 6)])]


def frame_of(network, number):
    return np.full(network.inputs[0].shape, number, np.float32)


def scaled(outputs, network, stream):
    """Each output as a multiple of that of a frame of ones: the number in its frame (the network is linear)."""
    (one,) = stream([frame_of(network, 1)])
    at = np.unravel_index(np.abs(one).argmax(), one.shape)
    return [round(float(output[at] / one[at])) for output in outputs]


def run_stopped(stream, network, when_full, on_error, count=40):
    """Feed numbered frames while the worker stands still; it goes on when all have been read."""
    pid = stream.worker_pids["w0"]
    os.kill(pid, signal.SIGSTOP)
    fed = []

    def feed():
        for number in range(count):
            fed.append(number)
            yield frame_of(network, number)
            time.sleep(0.1 if number < 4 else 0.002)  # the first ones fill the stream, whoever gets the cores
        os.kill(pid, signal.SIGCONT)

    return list(stream(feed(), on_error, when_full)), fed


def test_the_oldest_frames_are_dropped_and_the_newest_run(chain, two_cores, make_plan):
    with Stream(chain, make_plan(chain, LONE), two_cores) as stream:
        results, fed = run_stopped(stream, chain, "drop-oldest", "return")
        assert len(results) == len(fed) == 40
        dropped = [i for i, result in enumerate(results) if isinstance(result, StreamFullError)]
        kept = [i for i in range(40) if i not in dropped]
        assert len(dropped) == stream.dropped > 20
        assert kept[-WAITING:] == list(range(40 - WAITING, 40)), "the newest wait"
        assert dropped == list(range(dropped[0], dropped[-1] + 1)), "those between the first and the newest went"
        assert scaled([results[i] for i in kept], chain, stream) == kept
        assert "newer frames came" in str(results[dropped[0]])


def test_frames_without_room_are_refused(chain, two_cores, make_plan):
    with Stream(chain, make_plan(chain, LONE), two_cores) as stream:
        results, _ = run_stopped(stream, chain, "error", "return")
        refused = [i for i, result in enumerate(results) if isinstance(result, StreamFullError)]
        kept = [i for i in range(40) if i not in refused]
        assert len(refused) == stream.dropped > 20
        assert kept[0] == 0
        assert scaled([results[i] for i in kept], chain, stream) == kept


def test_where_errors_are_raised_dropped_frames_are_passed_over_and_refused_ones_are_not(chain, two_cores, make_plan):
    with Stream(chain, make_plan(chain, LONE), two_cores) as stream:
        results, _ = run_stopped(stream, chain, "drop-oldest", "raise")
        assert len(results) == 40 - stream.dropped
        with pytest.raises(StreamFullError, match="refused"):
            run_stopped(stream, chain, "error", "raise")
        os.kill(stream.worker_pids["w0"], signal.SIGCONT)


@pytest.mark.parametrize("when_full", ["drop-oldest", "error"])
def test_a_source_that_is_slow_enough_loses_nothing(chain, two_cores, make_plan, when_full):
    turn = threading.Semaphore(1)

    def feed():
        for number in range(30):
            turn.acquire()
            yield frame_of(chain, number)

    with Stream(chain, make_plan(chain, LONE), two_cores) as stream:
        outputs = []
        for output in stream(feed(), "raise", when_full):
            outputs.append(output)
            turn.release()
        assert stream.dropped == 0
        assert scaled(outputs, chain, stream) == list(range(30))


@pytest.mark.parametrize("when_full", ["drop-oldest", "error"])
def test_bad_frames_and_a_source_that_fails_are_told_at_their_turn(chain, two_cores, make_plan, when_full):
    def feed():
        yield frame_of(chain, 0)
        time.sleep(0.2)
        yield np.zeros((1, 2), np.float32)
        time.sleep(0.2)
        yield frame_of(chain, 2)
        raise OSError("the camera is gone")

    with Stream(chain, make_plan(chain, LONE), two_cores) as stream:
        found = []
        with pytest.raises(OSError, match="camera is gone"):
            found.extend(stream(feed(), "return", when_full))
        running = stream(feed(), "return", when_full)
        kinds = [type(next(running)) for _ in range(3)]
        assert kinds == [np.ndarray, FrameError, np.ndarray]


@pytest.mark.parametrize("when_full", ["drop-oldest", "error"])
def test_a_source_that_wants_to_exit_is_not_taken_for_one_that_has_ended(chain, two_cores, make_plan, when_full):
    def feed():
        yield frame_of(chain, 0)
        raise SystemExit(3)

    with Stream(chain, make_plan(chain, LONE), two_cores) as stream, pytest.raises(SystemExit):
        list(stream(feed(), "return", when_full))


@pytest.mark.parametrize("when_full", ["drop-oldest", "error"])
def test_a_reader_that_stops_stops_the_reading(chain, two_cores, make_plan, when_full):
    read = []

    def feed():
        for number in range(100_000):
            read.append(number)
            yield frame_of(chain, number)
            time.sleep(0.002)

    before = threading.active_count()
    with Stream(chain, make_plan(chain, LONE), two_cores) as stream:
        running = stream(feed(), "return", when_full)
        next(running)
        running.close()
        count = len(read)
        time.sleep(0.1)
        assert len(read) <= count + 1
    wait_until(lambda: threading.active_count() <= before, 20)


@pytest.mark.parametrize("when_full", ["drop-oldest", "error"])
def test_closing_the_stream_ends_the_run(chain, two_cores, make_plan, when_full):
    def feed():
        for number in range(100_000):
            yield frame_of(chain, number)
            time.sleep(0.002)

    stream = Stream(chain, make_plan(chain, LONE), two_cores)
    results = []

    def read():
        try:
            results.extend(stream(feed(), "return", when_full))
        except StreamClosedError as error:
            results.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    time.sleep(0.3)
    stream.close()
    reader.join(10)
    assert not reader.is_alive()
    assert isinstance(results[-1], StreamClosedError)


@pytest.mark.parametrize("when_full", ["wait", "drop-oldest", "error"])
def test_closing_the_stream_ends_the_run_of_a_source_that_has_nothing(chain, two_cores, make_plan, when_full):
    over = threading.Event()

    def feed():
        yield frame_of(chain, 1)
        over.wait(30)

    stream = Stream(chain, make_plan(chain, LONE), two_cores)
    closing = threading.Timer(0.3, stream.close)
    results = stream(feed(), "raise", when_full, live=True)
    try:
        next(results)
        closing.start()
        with pytest.raises(StreamClosedError):
            next(results)
    finally:
        over.set()
        closing.join()


def test_frames_that_wait_are_those_that_were_given(chain, two_cores, make_plan):
    """A camera's driver may hand out the same buffer again and again."""
    buffer = frame_of(chain, 0)
    with Stream(chain, make_plan(chain, LONE), two_cores) as stream:
        pid = stream.worker_pids["w0"]
        os.kill(pid, signal.SIGSTOP)

        def feed():
            for number in range(40):
                buffer[...] = number
                yield buffer
                time.sleep(0.05 if number < 4 else 0.002)
            os.kill(pid, signal.SIGCONT)

        results = list(stream(feed(), "return", "drop-oldest"))
        kept = [i for i, result in enumerate(results) if not isinstance(result, StreamFullError)]
        assert 0 < len(kept) < 40
        assert scaled([results[i] for i in kept], chain, stream) == kept


def test_a_timeout_of_the_function_that_fills_a_frame_is_not_the_streams(chain, two_cores, make_plan):
    def fill(views):
        raise TimeoutError("the sensor")

    with Stream(chain, make_plan(chain, LONE), two_cores) as stream:
        with pytest.raises(TimeoutError, match="the sensor"):
            list(stream([fill], live=True))
        assert stream.dropped == 0


@pytest.mark.parametrize("when_full", ["drop-oldest", "error"])
def test_a_reader_that_stands_still_bounds_what_is_held(chain, two_cores, make_plan, when_full):
    def feed():
        for number in range(2000):
            yield frame_of(chain, number)
            time.sleep(0.0005)

    ran = []
    with Stream(chain, make_plan(chain, LONE), two_cores, on_record=ran.append) as stream:
        running = stream(feed(), "return", when_full)
        results = [next(running)]
        time.sleep(0.7)
        assert len(ran) <= stream.window + 1, "results wait for the reader, so no more frames are run"
        results += running
        assert len(results) == 2000
        assert sum(isinstance(result, np.ndarray) for result in results) == len(ran)
        assert stream.dropped == 2000 - len(ran)


def test_choices_that_do_not_exist_are_refused(chain, two_cores, make_plan):
    with Stream(chain, make_plan(chain, LONE), two_cores) as stream:
        with pytest.raises(UnknownNameError, match="when_full 'drop_oldest'; did you mean 'drop-oldest'"):
            stream([], when_full="drop_oldest")
        with pytest.raises(UnknownNameError, match="on_error 'retrun'; did you mean 'return'"):
            stream([], on_error="retrun")


def test_ctrl_c_waits_for_the_frames_that_a_live_source_has_given(chain, two_cores, make_plan):
    fed = threading.Event()

    def feed():
        for number in (1, 2):
            yield frame_of(chain, number)
        fed.set()
        time.sleep(30)

    with Stream(chain, make_plan(chain, LONE), two_cores) as stream:
        os.kill(stream.worker_pids["w0"], signal.SIGSTOP)
        # The main thread waits for the first result meanwhile.
        threading.Timer(0, lambda: (fed.wait(10), os.kill(os.getpid(), signal.SIGINT))).start()
        threading.Timer(1.0, lambda: os.kill(stream.worker_pids["w0"], signal.SIGCONT)).start()
        outputs = []
        with pytest.raises(KeyboardInterrupt):
            outputs.extend(stream(feed(), live=True))
        assert scaled(outputs, chain, stream) == [1, 2]


def test_ctrl_c_with_the_first_frame_of_a_live_source_stops_the_reading(chain, two_cores, make_plan):
    read = []

    def feed():
        os.kill(os.getpid(), signal.SIGINT)  # the main thread starts the reading one at this moment
        time.sleep(0.05)
        for number in range(100_000):
            read.append(number)
            yield frame_of(chain, number + 1)
            time.sleep(0.002)

    with Stream(chain, make_plan(chain, LONE), two_cores) as stream:
        outputs = []
        with pytest.raises(KeyboardInterrupt):
            outputs.extend(stream(feed(), live=True))
        count = len(read)
        time.sleep(0.1)
        assert len(read) <= count + 1
        assert scaled(outputs, chain, stream) == list(range(1, len(outputs) + 1))


@pytest.mark.parametrize("when_full", ["wait", "drop-oldest", "error"])
def test_a_system_without_threads_is_told_and_the_stream_goes_on(chain, two_cores, make_plan, when_full, monkeypatch):
    frames = [frame_of(chain, number) for number in range(3)]

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    async def read(stream):
        return [output async for output in stream.aiter(frames)]

    with Stream(chain, make_plan(chain, LONE), two_cores) as stream:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(WorkerError, match="can't start new thread; close other programs"):
                list(stream(frames, when_full=when_full, live=True))
            with pytest.raises(WorkerError, match="can't start new thread; close other programs"):
                asyncio.run(read(stream))
        assert len(list(stream(frames))) == len(asyncio.run(read(stream))) == 3
