"""Workers killed at random moments: every frame gives exactly one result, in order, equal to the reference."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
from reference import assert_equal, assert_same, frames_for, whole

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
