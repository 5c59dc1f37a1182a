"""Streams in processes of their own: scripts without a main guard, kill -9, Ctrl-C, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from route_plans import ROUTES

from corepipe.runtime.stream import Stream

SCRIPT = """
import sys, time
import numpy as np
from corepipe.network.load import load_network
from corepipe.plan.model import Plan
from corepipe.runtime.stream import Stream
from corepipe.topology import detect
network = load_network(sys.argv[1])
stream = Stream(network, Plan.read(sys.argv[2]), detect())
frame = np.ones(network.inputs[0].shape, np.float32)
print(*stream.worker_pids.values(), flush=True)
"""

ONE_FRAME = SCRIPT + "print(stream.submit(frame).result().shape)\nstream.close()\n"
FOREVER = (
    SCRIPT
    + """
for number, output in enumerate(stream(frame for _ in iter(int, 1))):
    if number == 10: print("under way", flush=True)
"""
)
NEVER_CLOSED = SCRIPT + "stream.submit(frame).result()\n"


FEW_FILES = """
import os, resource, sys
import numpy as np
from corepipe.cost.measuring import MeasuringProcess, smallest_segment
from corepipe.errors import WorkerError
from corepipe.network.load import load_network
from corepipe.plan.model import Plan
from corepipe.runtime.stream import Stream
from corepipe.topology import detect
network, plan, topology = load_network(sys.argv[1]), Plan.read(sys.argv[2]), detect()
frame = np.ones(network.inputs[0].shape, np.float32)

def use_stream():
    with Stream(network, plan, topology) as stream:
        stream.submit(frame).result()

def use_process():
    with MeasuringProcess(topology, "probe", [topology.cores[0].id], [smallest_segment()] * 3, "onnxruntime") as probe:
        probe.time([[0, 1, 2]], 0.0, runs=1)

def open_files():
    return sorted(os.listdir("/proc/self/fd"))

for use in (use_stream, use_process):
    use()
    before = open_files()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    refused = 0
    for limit in range(len(before), len(before) + 60):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        try:
            use()
            break
        except WorkerError as error:
            refused += "ulimit -n" in str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert open_files() == before, (limit, before, open_files())
    else:
        raise SystemExit("never enough files")
    assert refused > 5, refused
"""


@pytest.fixture
def files(tmp_path, chain, make_chain, make_plan, two_cores):
    """A model and a plan on disk."""
    model, plan = tmp_path / "chain.onnx", tmp_path / "plan.json"
    model.write_bytes(make_chain().SerializeToString())
    make_plan(chain, [(1, [(0, 0, 3), (1, 3, 6)])]).write(plan)
    return [str(model), str(plan)]


def start(arguments, **options):
    return subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def gone(pids, is_running, seconds=2.0):
    deadline = time.monotonic() + seconds
    while any(map(is_running, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def shared_memory(pid):
    """The nameless files of a process, as (device, inode)."""
    found = set()
    with contextlib.suppress(OSError):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(fd).startswith("/memfd:corepipe-"):
                    found.add((fd.stat().st_dev, fd.stat().st_ino))
    return found


def held_by_anyone(memory):
    return any(memory & shared_memory(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


@pytest.mark.parametrize("how", ["file", "command", "stdin"])
def test_a_script_needs_no_main_guard(files, tmp_path, how, is_running):
    if how == "file":
        (tmp_path / "script.py").write_text(ONE_FRAME)
        process = start([str(tmp_path / "script.py"), *files])
        out, err = process.communicate(timeout=60)
    elif how == "command":
        process = start(["-c", ONE_FRAME, *files])
        out, err = process.communicate(timeout=60)
    else:
        process = start(["-", *files], stdin=subprocess.PIPE)
        out, err = process.communicate(ONE_FRAME, timeout=60)
    assert process.returncode == 0, err
    assert out.splitlines()[1] == "(1, 8, 16, 16)"
    assert err == ""
    assert gone([int(pid) for pid in out.splitlines()[0].split()], is_running)


def test_a_stream_that_is_never_closed_ends_with_its_process(files, is_running):
    process = start(["-c", NEVER_CLOSED, *files])
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert gone([int(pid) for pid in out.split()], is_running)


@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_when_the_users_process_is_stopped(files, what, is_running):
    process = start(["-c", FOREVER, *files])
    try:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        assert process.stdout.readline() == "under way\n"
        memory = shared_memory(process.pid)
        assert memory & shared_memory(pids[0])
        process.send_signal(what)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode != 0
    if what == signal.SIGINT:
        assert err.rstrip().endswith("KeyboardInterrupt")
    assert gone(pids, is_running)
    assert not held_by_anyone(memory)


def test_a_worker_that_was_made_to_wait_ends_with_its_parent(files, is_running):
    process = start(["-c", FOREVER, *files])
    try:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert process.stdout.readline() == "under way\n"
        os.kill(pids[0], signal.SIGSTOP)  # as Child.paused does
        process.kill()
        process.communicate(timeout=30)
        assert gone(pids, is_running)
    finally:
        process.kill()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_workers_end_even_if_a_forked_child_of_the_parent_lives_on(files, is_running):
    forked = SCRIPT + "import os\nif os.fork() == 0: time.sleep(60); os._exit(0)\nprint('ready', flush=True)\n"
    process = start(["-W", "ignore", "-c", forked + "time.sleep(60)\n", *files], start_new_session=True)
    try:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        process.stdout.readline()
        process.kill()
        process.wait()
        assert gone(pids, is_running)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.stderr.close()


def test_a_module_in_the_working_folder_cannot_get_into_a_worker(files, tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit('hijacked')")
    script = tmp_path / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text(ONE_FRAME)
    process = start([str(script), *files], cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.splitlines()[1] == "(1, 8, 16, 16)"


@pytest.mark.parametrize("users", [None, "0"])
def test_workers_send_no_telemetry_but_where_the_user_says_so(chain, two_cores, make_plan, monkeypatch, users):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setenv("ORT_RUNNING_UNIT_TESTS", "1")  # so that it sends none all the same
    if users is not None:
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", users)
    with Stream(chain, make_plan(chain, ROUTES["one worker"]), two_cores) as stream:
        (pid,) = stream.worker_pids.values()
        assert psutil.Process(pid).environ()["ORT_DISABLE_TELEMETRY"] == (users or "1")


def test_running_out_of_files_is_one_error_and_leaks_none(files):
    process = start(["-c", FEW_FILES, *files])
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


def test_a_plan_on_a_forbidden_core_gives_one_message(files, tmp_path):
    text = Path(files[1]).read_text()
    process = start(["-c", "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n" + ONE_FRAME, *files])
    _, err = process.communicate(timeout=60)
    assert "PlanError" in err.splitlines()[-1]
    assert "is not usable here" in err.splitlines()[-1]
    assert text == Path(files[1]).read_text()
