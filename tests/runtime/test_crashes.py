"""Workers that die, at random moments too, or hang: each frame gives one result, in order, equal to the reference."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from reference import assert_equal, assert_same, frames_for, whole
from route_plans import ROUTES
from waiting import wait_until

from corepipe.errors import FrameError, WorkerError
from corepipe.network.load import load_network
from corepipe.runtime import collector
from corepipe.runtime.stream import Stream

PLANS = {
    "replicas": [(1, [(0, 0, 6)]), (1, [(1, 0, 6)])],
    "routes that share workers": [(2, [(0, 0, 3), (1, 3, 6)]), (1, [(1, 0, 2), (0, 2, 6)])],
    "a route that comes back": [(1, [(0, 0, 2), (1, 2, 4), (0, 4, 6)])],
}


@pytest.mark.parametrize("kills", [4, pytest.param(70, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PLANS)
def test_workers_killed_at_random_moments(chain, two_cores, make_plan, name, kills):
    """Three plans, 70 kills each: over 200 in `make test-slow`."""
    generator = random.Random(name)
    frames = frames_for(chain, 5)
    expected = whole(chain, frames)
    over = threading.Event()

    with Stream(chain, make_plan(chain, PLANS[name]), two_cores) as stream:

        def kill():
            done = 0
            while done < kills and not stream.closed:
                time.sleep(generator.uniform(0, 0.05))
                pid = generator.choice(list(stream.worker_pids.values()))
                before = stream.restarts
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                done += 1
                deadline = time.monotonic() + 30
                # Some are hit while others (or they themselves) are being replaced, most are let come up first.
                at_once = generator.random() < 0.1
                while not at_once and stream.restarts == before and time.monotonic() < deadline:
                    time.sleep(0.005)
            over.set()

        killer = threading.Thread(target=kill, daemon=True)

        def feed():
            killer.start()
            number = 0
            while not over.is_set() or number % 100:
                yield frames[number % len(frames)]
                number += 1
            fed.append(number)

        fed = []
        results = list(stream(feed(), "return"))
        killer.join()
        assert len(results) == fed[0]
        assert stream.restarts >= kills // 2
        # A frame that two kills hit by chance is told so; no other fails.
        failed = [result for result in results if isinstance(result, Exception)]
        assert all("died 2 times on it" in str(error) for error in failed)
        assert len(failed) <= 1 + kills // 10
        for number, result in enumerate(results):
            if not isinstance(result, Exception):
                assert_same(result, expected[number % len(frames)], number)


SCRIPT = """
import os, sys, time
from corepipe import Plan, Stream
from corepipe.network.load import open_network
from corepipe.topology import detect
network, plan = open_network(sys.argv[1]), Plan.read(sys.argv[2])
stream = Stream(network, plan, detect())
print(*stream.worker_pids.values(), flush=True)
import numpy as np
frame = np.zeros(network.inputs[0].shape, np.float32)
for output in stream(frame for _ in range(10**9)):
    pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_death_that_its_pipe_does_not_tell_is_seen_all_the_same(chain, two_cores, make_plan, monkeypatch):
    """Where another process holds the pipe's other end: one that was forked while the worker was started."""
    monkeypatch.setattr(collector, "PATIENCE_S", 0.5)
    frames = frames_for(chain, 2)
    with Stream(chain, make_plan(chain, [(1, [(0, 0, 6)])]), two_cores) as stream:
        (child,) = stream.pool.children
        pipe, held = os.readlink(f"/proc/self/fd/{child.status_fd}"), f"/proc/{child.pid}/fd"
        end = next(fd for fd in os.listdir(held) if os.readlink(f"{held}/{fd}") == pipe)
        with open(f"{held}/{end}", "wb"):
            os.kill(child.pid, signal.SIGKILL)
            futures = [stream.submit(frame) for frame in frames]
            assert_equal([future.result(20) for future in futures], whole(chain, frames))
        assert stream.restarts == 1


@pytest.mark.parametrize("wait_s", [0.0, 0.3])
def test_killing_the_users_process_leaves_no_process_and_no_shared_memory(
    chain, two_cores, make_plan, make_chain, is_running, tmp_path, wait_s
):
    import onnx

    onnx.save(make_chain(), tmp_path / "chain.onnx")
    from corepipe.network.load import open_network

    network = open_network(tmp_path / "chain.onnx")
    make_plan(network, PLANS["routes that share workers"]).write(tmp_path / "plan.json")
    shared = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "chain.onnx"), str(tmp_path / "plan.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert pids
        time.sleep(wait_s)
        process.kill()
        killed = time.monotonic()
    while any(map(is_running, pids)) and time.monotonic() < killed + 10:
        time.sleep(0.01)
    assert time.monotonic() < killed + 2, "the workers exit within two seconds"
    if os.path.isdir("/dev/shm"):
        assert not {name for name in set(os.listdir("/dev/shm")) - shared if "corepipe" in name}


@pytest.mark.parametrize("victim", ["w0", "w1"])
def test_a_killed_worker_is_replaced_and_its_frames_run_again(chain, two_cores, make_plan, victim):
    frames = frames_for(chain, 40)
    open_before = len(os.listdir("/proc/self/fd"))
    with Stream(chain, make_plan(chain, ROUTES["there and back"]), two_cores) as stream:
        futures = []
        for number, frame in enumerate(frames):
            if number in (5, 25):
                os.kill(stream.worker_pids[victim], signal.SIGKILL)
            futures.append(stream.submit(frame))
        assert_equal([future.result(60) for future in futures], whole(chain, frames))
        assert stream.restarts == 2
    assert len(os.listdir("/proc/self/fd")) <= open_before


def test_a_worker_is_replaced_with_any_number_of_open_files(chain, two_cores, make_plan, many_files):
    frames = frames_for(chain, 4)
    with Stream(chain, make_plan(chain, ROUTES["one worker"]), two_cores) as stream:
        os.kill(stream.worker_pids["w0"], signal.SIGKILL)
        assert_equal(stream(frames), whole(chain, frames))


def test_a_frame_that_kills_its_worker_twice_fails_alone(two_cores, make_plan, make_chain):
    network = load_network(make_chain(layers=2, channels=64, side=512))
    frames = frames_for(network, 3)
    plan = make_plan(network, [(1, [(0, 0, 2)])])
    with Stream(network, plan, two_cores) as stream:
        deadly = stream.submit(frames[0])
        for _ in range(2):
            wait_until(lambda: stream.pool.arena.slots[stream.lanes[-1].under_way()[0].slot].times(0)[0] > 0)
            restarts = stream.restarts
            os.kill(stream.worker_pids["w0"], signal.SIGKILL)
            wait_until(lambda before=restarts: stream.restarts > before)
        with pytest.raises(FrameError, match="died 2 times"):
            deadly.result(30)
        assert stream.lanes[-1].whereabouts.at_hops() == [[0, 0]]
        assert_equal(stream(frames[1:]), whole(network, frames[1:]))


def test_closing_while_a_replacement_starts_does_not_wait_for_it(chain, two_cores, make_plan, monkeypatch):
    stream = Stream(chain, make_plan(chain, ROUTES["pipeline"]), two_cores)
    monkeypatch.setattr("corepipe.runtime.launch._BOOT", "import time; time.sleep(60)  # {path} {fd}")
    os.kill(stream.worker_pids["w0"], signal.SIGKILL)
    first = stream.worker_pids["w0"]
    wait_until(lambda: stream.worker_pids["w0"] != first)
    before = time.monotonic()
    stream.close()
    assert time.monotonic() - before < 10


def test_a_replacement_that_does_not_come_up_is_tried_again(chain, two_cores, make_plan, monkeypatch):
    frames = frames_for(chain, 5)
    with Stream(chain, make_plan(chain, ROUTES["pipeline"]), two_cores) as stream:
        real = stream.pool._start
        failures = iter([WorkerError("no memory"), WorkerError("no memory")])

        def start(*arguments, **options):
            for failure in failures:
                raise failure
            return real(*arguments, **options)

        monkeypatch.setattr(stream.pool, "_start", start)
        os.kill(stream.worker_pids["w1"], signal.SIGKILL)
        assert_equal([stream.submit(frame).result(30) for frame in frames], whole(chain, frames))


def test_a_worker_that_hangs_is_named_once_and_can_be_replaced(chain, two_cores, make_plan, monkeypatch, caplog):
    monkeypatch.setattr("corepipe.runtime.collector.PATIENCE_S", 0.3)
    frame = np.ones(chain.inputs[0].shape, np.float32)
    with Stream(chain, make_plan(chain, [(1, [(0, 0, 3), (1, 3, 6)])]), two_cores) as stream:
        (expected,) = stream([frame])
        caplog.clear()  # the first frame may take long on a busy machine
        time.sleep(0.7)
        assert "has not finished" not in caplog.text, "nothing is under way"
        name, pid = list(stream.worker_pids.items())[1]
        os.kill(pid, signal.SIGSTOP)
        futures = [stream.submit(frame) for _ in range(3)]
        time.sleep(1.5)
        assert caplog.text.count(f"worker {name} (process {pid}) has not finished frame 1 ") == 1
        os.kill(pid, signal.SIGKILL)
        for future in futures:
            assert np.array_equal(future.result(20), expected)


def test_a_worker_that_hangs_while_another_is_replaced_is_named(chain, two_cores, make_plan, monkeypatch, caplog):
    monkeypatch.setattr("corepipe.runtime.collector.PATIENCE_S", 0.3)
    frame = np.ones(chain.inputs[0].shape, np.float32)
    with Stream(chain, make_plan(chain, [(1, [(0, 0, 3), (1, 3, 6)])]), two_cores) as stream:
        (expected,) = stream([frame])
        (_, dead), (name, hung) = stream.worker_pids.items()
        os.kill(hung, signal.SIGSTOP)
        os.kill(dead, signal.SIGKILL)
        wait_until(lambda: f"worker {name} (process {hung}) has done nothing" in caplog.text, 20)
        time.sleep(1)
        assert caplog.text.count("has done nothing") == 1
        os.kill(hung, signal.SIGKILL)
        assert np.array_equal(stream.submit(frame).result(30), expected)


def test_a_worker_that_dies_again_and_again_with_no_frame_at_work_ends_the_stream(
    chain, two_cores, make_plan, monkeypatch
):
    monkeypatch.setattr(collector, "RESTART_TRIES", 2)
    frame = np.ones(chain.inputs[0].shape, np.float32)
    with Stream(chain, make_plan(chain, [(1, [(0, 0, 6)])]), two_cores) as stream:

        def kill():
            before = stream.restarts
            os.kill(stream.worker_pids["w0"], signal.SIGKILL)
            wait_until(lambda: stream.restarts > before or stream.state.broken)

        (expected,) = stream([frame])
        for _ in range(2):  # each frame that ends begins the count anew
            kill()
            kill()
            assert np.array_equal(stream.submit(frame).result(30), expected)
        kill()
        kill()
        kill()
        with pytest.raises(
            WorkerError, match=r"worker w0 was killed by signal 9.*with no frame at work, as 2 before it"
        ):
            stream.submit(frame)


def test_the_collector_never_ends_in_silence(chain, two_cores, make_plan, monkeypatch):
    def fail(stream):
        raise ValueError("no such file")

    frame = np.ones(chain.inputs[0].shape, np.float32)
    with Stream(chain, make_plan(chain, [(1, [(0, 0, 6)])]), two_cores) as stream:
        list(stream([frame]))
        monkeypatch.setattr(collector, "_watched", fail)
        stream.submit(frame)
        wait_until(lambda: stream.state.broken)
        with pytest.raises(WorkerError, match="collector ended: ValueError: no such file"):
            stream.submit(frame)
