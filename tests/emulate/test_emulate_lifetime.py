"""What becomes of the burners when things end, in order or not; skipped where real-time scheduling is not allowed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from corepipe.emulate import slowed
from corepipe.errors import EmulationError
from corepipe.topology import ENVIRONMENT

pytestmark = pytest.mark.privileged

CAP_SYS_NICE, PR_CAPBSET_DROP = 23, 24


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until_gone(pids: tuple[int, ...]) -> None:
    deadline = time.monotonic() + 2
    while not all(map(gone, pids)):
        assert time.monotonic() < deadline, f"still there: {[p for p in pids if not gone(p)]}"
        time.sleep(0.02)


def owner(cpu: int, body: str) -> subprocess.Popen[str]:
    """A process that slows `cpu`, prints the burner's id and does `body`."""
    script = f"""
import os, sys, threading, time
from corepipe.emulate import slowed
def main():
    with slowed({{{cpu}: 0.5}}) as emulation:
        print(emulation.burner_pids[0], emulation.machine_file, flush=True)
{textwrap.indent(textwrap.dedent(body), "        ")}
main()
"""
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_nothing_is_left_after_the_block(cpu: int) -> None:
    before = dict(os.environ)
    with contextlib.suppress(KeyError), slowed({cpu: 0.5}) as emulation:
        assert os.environ[ENVIRONMENT] == str(emulation.machine_file)
        raise KeyError
    assert dict(os.environ) == before
    assert all(map(gone, emulation.burner_pids))
    assert not emulation.machine_file.exists()
    assert "corepipe-emulation" not in [thread.name for thread in threading.enumerate()]
    emulation.pause()


def test_burners_die_with_a_killed_owner_though_its_fork_lives_on(cpu: int) -> None:
    fork = """
    import warnings
    warnings.simplefilter("ignore")
    os.write(1, f"{os.fork()}\\n".encode())  # at once: print() may write the number and the end of the line apart
    time.sleep(60)
    """
    process = owner(cpu, fork)
    try:
        assert process.stdout is not None
        burner, path = process.stdout.readline().split()
        forks = [int(process.stdout.readline()) for _ in range(2)]
        assert not gone(int(burner))
    finally:
        process.kill()  # also where the test fails: a burner that stays would fail all tests after this one
        process.wait(10)
    wait_until_gone((int(burner),))
    assert not gone(max(forks))
    os.kill(max(forks), signal.SIGKILL)
    process.communicate(timeout=10)
    Path(path).unlink(missing_ok=True)


def test_a_forked_child_that_ends_leaves_the_emulation_alone(cpu: int) -> None:
    fork = """
    import warnings
    warnings.simplefilter("ignore")
    if os.fork() == 0:
        sys.exit(0)
    os.wait()
    time.sleep(0.2)
    emulation.check()
    assert emulation.machine_file.exists()
    print("kept", flush=True)
    """
    process = owner(cpu, fork)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.endswith("kept\n")
    wait_until_gone((int(out.split()[0]),))


def test_the_starting_thread_may_end(cpu: int) -> None:
    context = slowed({cpu: 0.5})
    entered = []
    thread = threading.Thread(target=lambda: entered.append(context.__enter__()))
    thread.start()
    thread.join()
    try:
        time.sleep(0.3)
        entered[0].check()
    finally:
        context.__exit__(None, None, None)
    assert all(map(gone, entered[0].burner_pids))


def test_a_burner_that_ended_is_reported(cpu: int) -> None:
    context = slowed({cpu: 0.5})
    emulation = context.__enter__()
    try:
        os.kill(emulation.burner_pids[0], signal.SIGTERM)
        wait_until_gone(emulation.burner_pids)
    finally:
        with pytest.raises(EmulationError, match="no longer slowed"):
            context.__exit__(None, None, None)


def test_a_burner_that_the_kernel_moved_is_reported(cpu: int) -> None:
    """As it does where a CPU goes offline: another one would be slowed, and this one not."""
    everywhere = os.sched_getaffinity(0)
    if len(everywhere) < 2:
        pytest.skip("needs two CPUs")
    context = slowed({cpu: 0.5})
    emulation = context.__enter__()
    try:
        os.sched_setaffinity(emulation.burner_pids[0], everywhere)
        wait_until_gone(emulation.burner_pids)
    finally:
        with pytest.raises(EmulationError, match=r"no longer slowed.*moved to another CPU"):
            context.__exit__(None, None, None)


def test_a_limit_on_real_time_work_that_is_lower_already(cpu: int) -> None:
    script = f"""
import resource
from corepipe.emulate import slowed
resource.setrlimit(resource.RLIMIT_RTTIME, (200_000, 200_000))
with slowed({{{cpu}: 0.5}}) as emulation:
    emulation.check()
    assert resource.prlimit(emulation.burner_pids[0], resource.RLIMIT_RTTIME)[1] == 200_000
"""
    tried = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert tried.returncode == 0, tried.stderr


def test_without_the_privilege(cpu: int) -> None:
    script = f"""
import ctypes, os, resource, sys
if "dropped" not in sys.argv and os.geteuid() == 0:
    assert ctypes.CDLL(None).prctl({PR_CAPBSET_DROP}, {CAP_SYS_NICE}, 0, 0, 0) == 0
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], "dropped"])
resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
from corepipe.emulate import slowed
with slowed({{{cpu}: 0.5}}):
    pass
"""
    tried = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "EmulationError: CPU" in tried.stderr
    assert "CAP_SYS_NICE" in tried.stderr
    assert "run as root" in tried.stderr
