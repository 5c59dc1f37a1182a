"""Workers that are forked off one process: weights are in memory once, and they do all that other workers do."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings

import psutil
import pytest
from reference import assert_equal, frames_for, whole
from route_plans import ROUTES
from waiting import wait_until

from corepipe.errors import WorkerError
from corepipe.network.load import load_network
from corepipe.runtime import twins, zygote
from corepipe.runtime.launch import UNKNOWN_CODE, Child
from corepipe.runtime.stream import Stream
from corepipe.topology.memory import held_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")

PLANS = {
    "replicas": ROUTES["replicas"],
    "two parts shared": [(1, [(0, 0, 3), (1, 3, 6)]), (1, [(1, 0, 3), (0, 3, 6)])],
    "parts of their own too": [(1, [(0, 0, 6)]), (1, [(1, 0, 6)]), (1, [(1, 0, 3), (0, 3, 6)])],
}

SCRIPT = """
import sys, time
import numpy as np
from corepipe.network.load import load_network
from corepipe.plan.model import Plan
from corepipe.runtime import twins
from corepipe.runtime.stream import Stream
from corepipe.topology import detect
twins.LEAST_SAVED_BYTES = 1
network = load_network(sys.argv[1])
stream = Stream(network, Plan.read(sys.argv[2]), detect())
print(*stream.pool.pids, flush=True)
for number, output in enumerate(stream(np.ones(network.inputs[0].shape, np.float32) for _ in iter(int, 1))):
    if number == 10: print("under way", flush=True)
"""


@pytest.fixture
def share_all(monkeypatch):
    """Small models too."""
    monkeypatch.setattr(twins, "LEAST_SAVED_BYTES", 1)


def zygote_of(stream):
    (pid,) = set(stream.pool.pids) - set(stream.worker_pids.values())
    return pid


@pytest.mark.parametrize("name", PLANS)
def test_results_are_those_of_the_whole_model_before_and_after_each_process_is_killed(
    chain, two_cores, make_plan, share_all, name
):
    frames = frames_for(chain, 20)
    expected = whole(chain, frames)
    with Stream(chain, make_plan(chain, PLANS[name]), two_cores) as stream:
        assert {psutil.Process(pid).ppid() for pid in stream.worker_pids.values()} == {zygote_of(stream)}
        assert_equal(list(stream(frames)), expected)
        for victim in ("w0", "w1"):
            before, zygote_before = stream.worker_pids, zygote_of(stream)
            os.kill(before[victim], signal.SIGKILL)
            assert_equal(list(stream(frames)), expected)
            wait_until(lambda before=before, victim=victim: stream.worker_pids[victim] != before[victim])
            assert zygote_of(stream) == zygote_before
        before = stream.pool.pids
        os.kill(zygote_of(stream), signal.SIGKILL)
        assert_equal(list(stream(frames)), expected)
        wait_until(lambda: set(before).isdisjoint(stream.pool.pids))
        assert_equal(list(stream(frames)), expected)
        assert {psutil.Process(pid).ppid() for pid in stream.worker_pids.values()} == {zygote_of(stream)}


def test_each_twin_is_pinned_to_its_own_core(chain, two_cores, make_plan, share_all):
    plan = make_plan(chain, ROUTES["replicas"])
    with Stream(chain, plan, two_cores) as stream:
        zygote_of(stream)
        for worker in plan.workers:
            assert os.sched_getaffinity(stream.worker_pids[worker.name]) == set(two_cores.cpus_of(worker.cores))


def test_a_death_is_told_by_its_signal(chain, two_cores, make_plan, share_all, caplog):
    with Stream(chain, make_plan(chain, ROUTES["replicas"]), two_cores) as stream:
        os.kill(stream.worker_pids["w0"], signal.SIGKILL)
        wait_until(lambda: stream.restarts == 1)
        assert "worker w0 was killed by signal 9" in caplog.text
        os.kill(zygote_of(stream), signal.SIGTERM)  # of a whole group, perhaps: the lifeline tells when to end
        os.kill(zygote_of(stream), signal.SIGKILL)
        wait_until(lambda: stream.restarts >= 3)
        assert "ended with the process that it was forked off, which was killed by signal 9" in caplog.text


def test_weights_are_in_memory_once(make_chain, two_cores, make_plan, monkeypatch):
    """By default, since these are large enough."""
    network = load_network(make_chain(channels=512, side=4))
    plan, frames = make_plan(network, ROUTES["replicas"]), frames_for(network, 2)
    held = {}
    for said in ("never", ""):
        monkeypatch.setenv(twins.VARIABLE, said)
        with Stream(network, plan, two_cores) as stream:
            assert_equal(list(stream(frames)), whole(network, frames))
            held[said] = sum(held_bytes(psutil.Process(pid)) for pid in stream.pool.pids)
            assert len(stream.pool.pids) == (2 if said else 3)
    assert held[""] < held["never"] - 20e6


@pytest.mark.parametrize(
    ("routes", "groups"),
    [
        (ROUTES["one worker"], []),
        (ROUTES["pipeline"], []),
        (ROUTES["replicas"], [(["w0", "w1"], [(0, 6)])]),
        (ROUTES["there and back"], []),
        (ROUTES["mix"], []),
        (PLANS["two parts shared"], [(["w0", "w1"], [(0, 3), (3, 6)])]),
        (PLANS["parts of their own too"], [(["w0", "w1"], [(0, 6)])]),
    ],
)
def test_workers_that_share_segments_are_a_family(chain, two_cores, make_plan, share_all, routes, groups):
    plan = make_plan(chain, routes)
    sizes = {part: 1 for worker in plan.workers for part in plan.segments_of(worker.name)}
    found = [
        ([worker.name for worker in workers], [(part.start, part.stop) for part in parts])
        for workers, parts in twins.families(plan, sizes)
    ]
    assert found == groups


def test_no_family_where_it_cannot_be_or_saves_nothing(chain, two_cores, make_plan, monkeypatch):
    plan = make_plan(chain, ROUTES["replicas"])
    (part,) = plan.segments_of("w0")
    large = {part: twins.LEAST_SAVED_BYTES}
    assert twins.families(plan, large)
    assert not twins.families(plan, {part: twins.LEAST_SAVED_BYTES - 1})
    workers = plan.workers
    wide = workers[0].model_copy(update={"cores": tuple(core.id for core in two_cores.cores[:2])})
    assert not twins.families(plan.model_copy(update={"workers": (wide, workers[1])}), large)
    monkeypatch.setattr(twins, "FORKABLE", frozenset({"ncnn"}))
    assert not twins.families(plan, large)
    monkeypatch.undo()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not twins.families(plan, large)
    monkeypatch.undo()
    monkeypatch.setenv(twins.VARIABLE, "never")
    assert not twins.families(plan, large)


def test_a_process_of_several_threads_forks_none(chain, two_cores, make_plan, share_all, monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    frames = frames_for(chain, 5)
    with Stream(chain, make_plan(chain, ROUTES["replicas"]), two_cores) as stream:
        assert {psutil.Process(pid).ppid() for pid in stream.worker_pids.values()} == {os.getpid()}
        assert_equal(list(stream(frames)), whole(chain, frames))
        os.kill(stream.worker_pids["w0"], signal.SIGKILL)
        assert_equal(list(stream(frames)), whole(chain, frames))


def test_closing_does_not_wait_for_a_stopped_zygote(chain, two_cores, make_plan, share_all, is_running):
    stream = Stream(chain, make_plan(chain, ROUTES["replicas"]), two_cores)
    pids = stream.pool.pids
    os.kill(zygote_of(stream), signal.SIGSTOP)
    before = time.monotonic()
    stream.close()
    assert time.monotonic() - before < 9, "each worker's exit code was asked for"
    wait_until(lambda: not any(map(is_running, pids)), 5)


def test_closing_ends_a_zygote_of_which_a_forked_process_of_the_users_holds_the_socket(
    chain, two_cores, make_plan, share_all
):
    with Stream(chain, make_plan(chain, ROUTES["replicas"]), two_cores) as stream:
        zygote_child = stream.pool._twins["w0"]._zygote.child
        read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            forked = os.fork()
        if forked == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
    try:
        assert zygote_child.describe_end() == "ended with exit code 0", "it was not told to end, but killed"
    finally:
        os.close(write)
        os.close(read)
        os.waitpid(forked, 0)


@pytest.mark.parametrize("told", [True, False])
def test_a_zygote_that_does_not_fork_is_not_waited_for_and_then_replaced(
    chain, two_cores, make_plan, share_all, monkeypatch, told
):
    frames = frames_for(chain, 5)
    with Stream(chain, make_plan(chain, ROUTES["replicas"]), two_cores) as stream:
        before, family = stream.pool.pids, stream.pool._twins["w0"]
        os.kill(zygote_of(stream), signal.SIGSTOP)
        read, write = os.pipe()
        try:
            if told:
                threading.Timer(0.3, os.write, (write, b".")).start()
                with pytest.raises(WorkerError, match="not waited for any longer"):
                    family.start("w0", (), {}, [], strict=False, stop_fd=read)
                assert zygote_of(stream) in before
                os.kill(zygote_of(stream), signal.SIGCONT)
            else:
                monkeypatch.setattr(twins, "_FORK_PATIENCE_S", 0.3)
                with pytest.raises(WorkerError, match=r"w0 and 1 more: the process that .* did not answer"):
                    family.start("w0", (), {}, [], strict=False)
                monkeypatch.undo()
                monkeypatch.setattr(twins, "LEAST_SAVED_BYTES", 1)
                wait_until(lambda: set(before).isdisjoint(stream.pool.pids), 30)
        finally:
            os.close(read)
            os.close(write)
        assert_equal(list(stream(frames)), whole(chain, frames))


def test_an_exit_code_that_is_not_told_in_time_costs_no_worker(chain, two_cores, make_plan, share_all, monkeypatch):
    monkeypatch.setattr(twins, "_CODE_PATIENCE_S", 0.2)
    with Stream(chain, make_plan(chain, ROUTES["replicas"]), two_cores) as stream:
        before, stopped = stream.worker_pids, zygote_of(stream)
        os.kill(stopped, signal.SIGSTOP)
        os.kill(before["w0"], signal.SIGKILL)
        wait_until(lambda: not stream.pool._twins["w0"]._zygote._tells_codes)
        os.kill(stopped, signal.SIGCONT)
        wait_until(lambda: stream.restarts == 1)
        assert zygote_of(stream) == stopped
        assert stream.worker_pids["w1"] == before["w1"]


@pytest.mark.parametrize("how", ["killed while it compiles", "never started"])
def test_a_zygote_that_does_not_come_up_again_is_tried_again(
    chain, two_cores, make_plan, share_all, monkeypatch, how, caplog
):
    frames, spawn, failed = frames_for(chain, 5), twins.spawn, []

    def fail_twice(*arguments, **options):
        if len(failed) >= 2:
            return spawn(*arguments, **options)
        failed.append(how)
        if how == "never started":
            raise WorkerError("too many open files")
        child = spawn(*arguments, **options)
        os.kill(child.pid, signal.SIGKILL)
        return child

    with Stream(chain, make_plan(chain, ROUTES["replicas"]), two_cores) as stream:
        monkeypatch.setattr(twins, "spawn", fail_twice)
        os.kill(zygote_of(stream), signal.SIGKILL)
        wait_until(lambda: stream.restarts >= 2, 30)
        assert_equal(list(stream(frames)), whole(chain, frames))
        zygote_of(stream)
    assert len(failed) == 2
    assert caplog.text.count("trying again") == 2


def test_workers_end_at_once_with_their_zygote(chain, two_cores, make_plan, share_all, is_running):
    """Else a frame could be at work on one, and then on another, when they end: it would be taken for their killer."""
    took_s, frames = [], frames_for(chain, 10)
    with Stream(chain, make_plan(chain, ROUTES["replicas"]), two_cores) as stream:
        for attempt in range(3):  # each process looks twice a second who its parent is
            time.sleep(0.15)
            os.kill(stream.worker_pids["w1"], signal.SIGKILL)  # the next one looks at other times than its sibling
            wait_until(lambda restarts=3 * attempt + 1: stream.restarts == restarts)
            old = set(stream.worker_pids.values())
            os.kill(zygote_of(stream), signal.SIGKILL)
            began = time.monotonic()
            wait_until(lambda old=old: not any(map(is_running, old)), every=0.001)
            took_s.append(time.monotonic() - began)
            wait_until(lambda restarts=3 * attempt + 3: stream.restarts == restarts)
            assert_equal(list(stream(frames)), whole(chain, frames))  # workers that only die are given up
    assert min(took_s) < 0.05


def test_no_worker_is_started_once_all_are_to_end(chain, two_cores, make_plan, share_all):
    with Stream(chain, make_plan(chain, ROUTES["replicas"]), two_cores) as stream:
        family = stream.pool._twins["w0"]
    with pytest.raises(WorkerError, match="not waited for any longer"):
        family.start("w0", (), {}, [], strict=False)
    assert family.pids == []


def test_a_process_that_is_to_fork_has_a_single_thread():
    """The system still counts a thread for a moment after Python has joined it."""
    script = (
        "import os, sys; from corepipe.runtime.child import Watch, threads\n"
        "ends = os.pipe()\n"
        "def counted():\n"
        "    watch = Watch(ends[0]); watch.stop(); return len(threads())\n"
        "print(max(counted() for _ in range(300)))\n"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "1\n"


def test_nothing_is_left_when_the_users_process_is_killed(
    tmp_path, chain, make_chain, make_plan, two_cores, is_running
):
    model, plan = tmp_path / "chain.onnx", tmp_path / "plan.json"
    model.write_bytes(make_chain().SerializeToString())
    make_plan(chain, ROUTES["replicas"]).write(plan)
    command = [sys.executable, "-c", SCRIPT, str(model), str(plan)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 3
        assert process.stdout.readline() == "under way\n"
        process.kill()
        wait_until(lambda: not any(map(is_running, pids)), 5)


@pytest.mark.parametrize("arrived", [3, 2])
def test_what_cannot_be_forked_is_told_and_leaves_no_descriptor(monkeypatch, arrived):
    def fork():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(arrived)]
    monkeypatch.setattr(os, "fork", fork)
    why = "Resource temporarily unavailable" if arrived == 3 else "too many open files"
    assert zygote._fork({}, None, None, (-1, -1), [], fds) == {"error": why}
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_an_answer_that_ctrl_c_left_behind_is_passed_over(chain, two_cores, make_plan, share_all):
    with Stream(chain, make_plan(chain, ROUTES["replicas"]), two_cores) as stream:
        asked, pid = stream.pool._twins["w0"]._zygote, stream.worker_pids["w0"]
        asked._questions += 1
        asked._requests.send(json.dumps({"id": asked._questions, "wait": 1}).encode())
        assert asked.ask({"wait": pid}, 10) == {"id": asked._questions}
        assert asked.ask({"wait": 1}, 10) == {"id": asked._questions, "unknown": True}


def test_a_zygote_that_does_not_answer_is_not_asked_again_for_exit_codes():
    silent = twins._Zygote.__new__(twins._Zygote)
    silent._requests, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    silent._lock, silent._questions, silent._tells_codes = threading.Lock(), 0, True
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process, there:
        silent.child = Child("w0", lambda lifeline, status: process)
        with pytest.raises(WorkerError, match="worker w0: the process that they are forked off did not answer"):
            silent.ask({}, 0.2)
        before = time.monotonic()
        assert [silent.exit_code(pid) for pid in range(1, 9)] == [UNKNOWN_CODE] * 8
        assert time.monotonic() - before < 2 * twins._CODE_PATIENCE_S
        process.kill()
        with pytest.raises(WorkerError, match="was killed by signal 9"):
            silent.ask({}, 30)


def test_a_worker_that_nobody_can_look_at_is_taken_to_run(monkeypatch):
    """As where the user's process has all its files open: a signal that lets it go on must not be lost."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        forked = twins._Forked(process.pid, None)
        assert forked.poll() is None

        def refuse(*_, **__):
            raise OSError(24, "Too many open files")

        monkeypatch.setattr("builtins.open", refuse)
        assert forked.poll() is None
        forked.kill()
        assert process.wait(10) == -signal.SIGKILL
        monkeypatch.undo()
        assert not forked._runs()
        other = twins._Forked(os.getpid(), None)
        other._began += "0"
        assert not other._runs(), "another process of that number"
