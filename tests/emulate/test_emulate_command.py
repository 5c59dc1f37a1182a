"""Commands on slowed cores; skipped where real-time scheduling is not allowed."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator

import psutil
import pytest

from corepipe.emulate import run_command
from corepipe.errors import UsageError
from corepipe.topology import ENVIRONMENT


def emulate(cpu: int, command: list[str]) -> list[str]:
    """The command line of a process that runs `command` with `cpu` slowed."""
    script = "import sys; from corepipe.emulate import run_command\n"
    script += f"sys.exit(run_command({{{cpu}: 0.5}}, sys.argv[1:]))"
    return [sys.executable, "-c", script, *command]


@contextlib.contextmanager
def started(cpu: int, command: list[str], **options: int) -> Iterator[subprocess.Popen[str]]:
    """The process that runs `command`, whose first line is "here", with `cpu` slowed; killed in the end."""
    with subprocess.Popen(emulate(cpu, command), stdout=subprocess.PIPE, text=True, **options) as process:
        try:
            assert next_line(process) == "here\n"
            yield process
        finally:
            process.kill()


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def read_until(fd: int, text: str) -> str:
    got = ""
    deadline = time.monotonic() + 30
    while text not in got:
        assert time.monotonic() < deadline, got
        if select.select([fd], [], [], 0.2)[0]:
            try:
                got += os.read(fd, 4096).decode()
            except OSError:  # its other end is closed
                pytest.fail(f"ended without {text!r}: {got!r}")
    return got


def test_no_command_and_unknown_command() -> None:
    with pytest.raises(UsageError, match="no command"):
        run_command({0: 0.5}, [])
    with pytest.raises(UsageError, match="'no-such-program'"):
        run_command({0: 0.5}, ["no-such-program"])


@pytest.mark.privileged
def test_exit_code_environment_and_report(cpu: int, capfd: pytest.CaptureFixture[str]) -> None:
    before = dict(os.environ)
    lines: list[str] = []
    command = ["sh", "-c", f'cat "${ENVIRONMENT}"; exit 7']
    assert run_command({cpu: 0.5}, command, lines.append) == 7
    assert dict(os.environ) == before
    assert "emulated = true" in capfd.readouterr().out
    assert lines[0].startswith(f"core {cpu}: asked 0.50, measured 0.")


@pytest.mark.privileged
def test_programs_beside_this_python_are_found(
    cpu: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`.venv/bin/corepipe emulate ... -- corepipe ...` needs no PATH."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert run_command({cpu: 0.5}, ["corepipe", "--version"]) == 0
    assert "corepipe" in capfd.readouterr().out


@pytest.mark.privileged
def test_signals_reach_the_command_and_its_death_is_told(cpu: int) -> None:
    command = ["sh", "-c", 'trap "echo got" USR1; echo here; while :; do sleep 0.05; done']
    with started(cpu, command, stderr=subprocess.PIPE) as process:
        process.send_signal(signal.SIGUSR1)
        assert next_line(process) == "got\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM


@pytest.mark.privileged
def test_a_stop_of_the_owner_does_not_end_it(cpu: int) -> None:
    command = ["sh", "-c", "echo here; read line; exit 7"]
    with started(cpu, command, stdin=subprocess.PIPE) as process:
        for _ in range(5):
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.5)
            process.send_signal(signal.SIGCONT)
            time.sleep(0.3)
        process.communicate("go\n", timeout=10)
        assert process.returncode == 7


@pytest.mark.privileged
def test_the_command_and_the_burners_die_with_a_killed_owner(cpu: int) -> None:
    with started(cpu, ["sh", "-c", "echo here; exec sleep 60"]) as process:
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 2
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(family, timeout=2)
        assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.privileged
def test_ctrl_c_at_a_terminal_comes_once(cpu: int) -> None:
    code = """
import os, signal, time
signal.signal(signal.SIGINT, lambda *_: os.write(1, b"interrupt\\n"))  # may come in the middle of a print
print("here", flush=True)
end = time.monotonic() + 0.7
while time.monotonic() < end:
    time.sleep(0.05)
print("end", flush=True)
exit(3)
"""
    command = emulate(cpu, [sys.executable, "-c", code])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid, terminal = pty.fork()
    if pid == 0:
        os.execv(command[0], command)
    read_until(terminal, "here")
    os.write(terminal, b"\x03")
    assert read_until(terminal, "end").count("interrupt") == 1
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 3
