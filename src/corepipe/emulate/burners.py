"""Starts, calibrates, watches and ends the processes that take time away from cores."""

from __future__ import annotations

import mmap
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from corepipe.errors import EmulationError, WorkerError
from corepipe.runtime.arena import anonymous_file
from corepipe.topology.cpulist import name_cpus

CHILD = Path(__file__).with_name("child.py")
PERIOD_S = 1e-3
_LEAST_SLICE_S = 1e-4
_START_TIMEOUT_S, _CALIBRATION_TIMEOUT_S = 15.0, 20.0
_WATCH_S = 0.25


def child_command(role: str, *arguments: object) -> list[str]:
    """The command line of a helper process (see `child.py`) owned by this process."""
    return [sys.executable, "-I", "-S", str(CHILD), role, str(os.getpid()), *map(str, arguments)]


class SlowedCore:
    """One core to slow, and the memory by which its burners are told the share to take.

    Attributes:
        cpus: its logical CPUs; all are slowed alike and at the same moments.
        speed: what to leave, as a fraction of the core's own speed.
        share: what the burners take of the time, known once calibrated.
    """

    def __init__(self, cpus: tuple[int, ...], speed: float, max_share: float = 0.945) -> None:
        self.cpus = cpus
        self.speed = speed
        self.share = 0.0
        self.max_share = max_share
        self.name = f"core {cpus[0]}"
        self.period_ns = round(1e9 * max(PERIOD_S, _LEAST_SLICE_S / (1 - speed)))
        try:
            self.fd = anonymous_file(mmap.PAGESIZE, "emulate")
        except WorkerError as error:
            raise EmulationError(str(error)) from None
        self._memory = mmap.mmap(self.fd, mmap.PAGESIZE)
        self.control = memoryview(self._memory).cast("d")
        self._before = [0.0] * len(self.control)

    def calibrated(self) -> None:
        """Take over the share that the calibration has found; `held` counts from now."""
        self.share = self.control[0]
        self._before = [float(value) for value in self.control]

    def held(self, slot: int) -> float | None:
        """The share that the burner of the `slot`-th CPU has taken so far; None before it has run for a second."""
        taken, over = (self.control[i] - self._before[i] for i in (1 + 2 * slot, 2 + 2 * slot))
        return taken / over if over > 1 else None

    def close(self) -> None:
        """Give the memory back."""
        self.control.release()
        self._memory.close()
        os.close(self.fd)


class Burners:
    """The burner processes of one emulation, one for each CPU.

    They are started by a thread that lives as long as they: the kernel's parent-death signal, which ends them when
    this process is killed, is bound to the thread that started them, and the caller's thread may end earlier.
    """

    def __init__(self, cores: Sequence[SlowedCore]) -> None:
        self._cores = cores
        self._burners: list[tuple[SlowedCore, int, subprocess.Popen[bytes]]] = []
        self._probes: list[subprocess.Popen[bytes]] = []
        self._measured: list[float] = []
        self._error: BaseException | None = None
        self._lost: str | None = None
        self._looking = threading.Lock()
        self._started = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="corepipe-emulation", daemon=True)

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids, by CPU in the order of the cores."""
        return tuple(burner.pid for _, _, burner in self._burners)

    def start(self) -> list[float]:
        """Slow the cores and return the measured speed of each.

        Raises:
            EmulationError: it is not possible; nothing is left running.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._started.wait()
        if self._error is not None:
            raise self._error
        self.resume()
        return self._measured

    def pause(self) -> None:
        """Take nothing until `resume`."""
        for core in () if self._stop.is_set() else self._cores:
            core.control[0] = 0.0

    def resume(self) -> None:
        """Take the calibrated share again."""
        for core in () if self._stop.is_set() else self._cores:
            core.control[0] = core.share

    def check(self) -> None:
        """Raise EmulationError if a burner has ended by itself."""
        self._look()
        if self._lost:
            raise EmulationError(self._lost)

    def drift(self) -> list[str]:
        """One sentence for each CPU whose burner could not hold its share (throttled, or the machine was paused)."""
        sentences = []
        for core in self._cores:
            for slot, cpu in enumerate(core.cpus):
                held = core.held(slot)
                if held is not None and abs(held - core.share) > 0.1 * core.speed:
                    sentences.append(
                        f"CPU {cpu} was slowed unevenly: {held:.3f} of its time was taken instead of {core.share:.3f}"
                    )
        return sentences

    def stop(self) -> None:
        """End all processes and wait for that."""
        self._stop.set()
        for process in [*self._probes, *(burner for _, _, burner in self._burners)]:
            process.kill()
        if self._thread.ident is not None:
            self._thread.join()
        for core in self._cores:
            core.close()

    def _keep(self) -> None:
        try:
            self._start_burners()
            self._calibrate()
        except BaseException as error:
            self._error = error
        finally:
            self._started.set()
        while self._error is None and not self._stop.wait(_WATCH_S):
            self._look()
        for process in [*self._probes, *(burner for _, _, burner in self._burners)]:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()

    def _look(self) -> None:
        with self._looking:
            for core, slot, burner in self._burners:
                if self._lost is None and not self._stop.is_set() and burner.poll() is not None:
                    last_words = _last_words(burner) or f"code {burner.returncode}"
                    self._lost = (
                        f"CPU {core.cpus[slot]} is no longer slowed: its burner process {burner.pid} ended "
                        f"({last_words}); what was measured since is not valid, run it again"
                    )

    def _start_burners(self) -> None:
        for core in self._cores:
            for slot, cpu in enumerate(core.cpus):
                arguments = (cpu, core.period_ns, slot, core.fd)
                self._burners.append((core, slot, self._spawn("burn", core, *arguments)))
        for core, slot, burner in self._burners:
            self._expect(burner, "ready", core.cpus[slot], _START_TIMEOUT_S)

    def _calibrate(self) -> None:
        for core in self._cores:
            arguments = (core.cpus[0], core.speed, core.max_share, core.fd)
            self._probes.append(self._spawn("probe", core, *arguments))
        for core, probe in zip(self._cores, self._probes, strict=True):
            self._expect(probe, "ready", core.cpus[0], _START_TIMEOUT_S)
        for core, probe in zip(self._cores, self._probes, strict=True):
            self._measured.append(float(self._expect(probe, "measured", core.cpus[0], _CALIBRATION_TIMEOUT_S)[0]))
            core.calibrated()
            probe.wait()

    def _spawn(self, role: str, core: SlowedCore, *arguments: object) -> subprocess.Popen[bytes]:
        if self._stop.is_set():
            raise EmulationError("slowing cores was interrupted")
        try:
            return subprocess.Popen(
                child_command(role, *arguments),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[core.fd],
                start_new_session=True,
                bufsize=0,
                cwd="/",
            )
        except OSError as error:
            raise EmulationError(
                f"{core.name} cannot be slowed: its helper process cannot be started: {error.strerror or error}"
            ) from None

    def _expect(self, process: subprocess.Popen[bytes], word: str, cpu: int, timeout_s: float) -> list[str]:
        words = _read_line(process, timeout_s).split()
        if words[:1] == [word]:
            return words[1:]
        if words[:1] == ["refused"]:
            raise EmulationError(_refusal(cpu, words[1], words[2]))
        raise EmulationError(
            f"CPU {cpu} cannot be slowed: its helper process did not answer ({' '.join(words) or 'nothing'} instead of "
            f"{word}); is {sys.executable} a working Python, and is the machine not overloaded?"
        )


def _read_line(process: subprocess.Popen[bytes], timeout_s: float) -> str:
    """The next line of its output; what there is of it at its end or after the timeout."""
    assert process.stdout is not None
    fd = process.stdout.fileno()
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLHUP)
    deadline = time.monotonic() + timeout_s
    line = b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            break
        byte = os.read(fd, 1)
        if not byte:
            break
        line += byte
    return line.decode(errors="replace")


def _last_words(process: subprocess.Popen[bytes]) -> str:
    """The last line that an ended process wrote."""
    lines = []
    while line := _read_line(process, 0.1):
        lines.append(line.strip())
    return lines[-1] if lines else ""


def _refusal(cpu: int, reason: str, detail: str) -> str:
    if reason == "taken":
        holder = "another emulation" if detail == "0" else f"another emulation (process {detail})"
        return f"CPU {cpu} is already slowed by {holder}; wait until that ends, or choose another CPU"
    if reason == "privilege":
        return (
            f"{name_cpus([cpu])} cannot be slowed: no right to real-time scheduling (needs CAP_SYS_NICE or an rtprio "
            f"limit of at least 2); run as root, start the container with `--cap-add SYS_NICE`, or allow it with "
            f"'rtprio 2' in /etc/security/limits.conf (`ulimit -r` shows it); a control group may forbid it too, even "
            f"to root (cpu.rt_runtime_us of 0)"
        )
    return f"CPU {cpu} cannot be slowed: the system does not let a process run on it (offline, or outside the cpuset)"
