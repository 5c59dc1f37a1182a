"""Runs a command on a machine with slowed cores, as if it had been started by itself."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import sysconfig
import threading
from collections.abc import Callable, Mapping, Sequence

from corepipe.emulate.burners import child_command
from corepipe.emulate.emulation import Emulation, slowed
from corepipe.errors import UsageError

_POLL_S = 0.2
_FROM_KERNEL = 128  # SI_KERNEL: typed at the terminal, which has sent it to the command as well


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run_command(slow: Mapping[int, float], command: Sequence[str], say: Callable[[str], None] = _say) -> int:
    """Run `command` with CPUs slowed and `COREPIPE_MACHINE` set, and return its exit code.

    The command shares the terminal and the process group; signals that reach only this process are passed on to it. It
    is killed if this process is. While both are suspended (Ctrl-Z) the cores run at full speed.

    Args:
        slow: speed by logical CPU.
        command: program and arguments; programs beside this Python are found, too, where PATH has none of that name.
        say: is given each line about the emulation; by default they go to stderr.

    Returns:
        The command's exit code; 128 + N if signal N ended it, as in a shell.

    Raises:
        UsageError: there is no such command.
        EmulationError: as `slowed`; also if a burner ended while the command was running.
    """
    if not command:
        raise UsageError("no command was given; write it after --, as in `corepipe emulate --slow 1:0.4 -- make`")
    program = shutil.which(command[0]) or shutil.which(command[0], path=sysconfig.get_path("scripts"))
    if program is None:
        raise UsageError(f"{command[0]!r} is not a program that can be run; check the spelling, PATH and its mode")
    command = [program, *command[1:]]
    with slowed(slow) as emulation:
        for cpu in sorted(emulation.measured):
            say(f"core {cpu}: asked {emulation.speeds[cpu]:.2f}, measured {emulation.measured[cpu]:.3f}")
        for warning in emulation.warnings:
            say(f"warning: {warning}")
        said = len(emulation.warnings)
        code = _run(command, emulation)
    for warning in emulation.warnings[said:]:
        say(f"warning: {warning}")
    return code


def _run(command: Sequence[str], emulation: Emulation) -> int:
    if threading.current_thread() is not threading.main_thread():
        return _exit_code(os.waitpid(_spawn(command, signal.pthread_sigmask(signal.SIG_BLOCK, [])), 0)[1])
    stops = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
    watched = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
    watched |= stops | {signal.SIGCONT, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    ignored = signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN  # inherited: the command's exit code would be lost
    try:
        if ignored:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        pid = _spawn(command, before)
        while True:
            # Any thread that does not block SIGCHLD may swallow it, hence the polling.
            received = signal.sigtimedwait(watched, _POLL_S)
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return _exit_code(status)
            # After a stop that outlasts the wait, Python gives what was in memory there for a signal.
            if received is None or received.si_signo not in watched or received.si_signo == signal.SIGCHLD:
                continue
            if received.si_code != _FROM_KERNEL and received.si_pid != pid:
                os.kill(pid, received.si_signo)
            if received.si_signo in stops:
                emulation.pause()
                os.kill(os.getpid(), signal.SIGSTOP)
                emulation.resume()
    finally:
        while signal.sigtimedwait(watched, 0):
            pass
        if ignored:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _spawn(command: Sequence[str], mask: set[signal.Signals] | set[int]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # it was closed
            stream.flush()
    return os.posix_spawn(sys.executable, child_command("launch", "--", *command), os.environ, setsigmask=mask)


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
