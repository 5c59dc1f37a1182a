"""The processes behind an emulation: stand-alone, started by path, standard library only so that they start fast.

    child.py burn OWNER CPU PERIOD_NS SLOT CONTROL_FD    takes the share in the control block away from CPU
    child.py probe OWNER CPU SPEED MAX_SHARE CONTROL_FD  sets that share so that CPU runs at SPEED, by measuring
    child.py launch OWNER -- COMMAND...                  becomes COMMAND, which dies with OWNER

The control block is shared memory of doubles, one block per core: [0] the share to take, then for each burner two
sums in seconds, the time it took and the time over which it took it. `burn` and `probe` first write one line, `ready`
or `refused REASON DETAIL`. All die with OWNER: by the kernel's parent-death signal, and `burn` also when its standard
input, a pipe that only OWNER holds, reaches its end.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import resource
import select
import signal
import socket
import struct
import sys
import time

BURNER_PRIORITY = 2  # the lowest real-time priorities: burners yield to the system's own real-time threads
PROBE_PRIORITY = 1
MAX_SLICE_S = 1e-3
CONTROL_BYTES = mmap.PAGESIZE

_PR_SET_PDEATHSIG = 1
_IDLE_S = 5e-3
_FULL_WINDOW_S, _SLOWED_WINDOW_S, _SETTLE_S = 0.025, 0.060, 0.012
_PAIRS = 4
_ROUNDS, _MOST_ROUNDS = 4, 12  # more are needed where others disturb the measuring (a busy host of a virtual machine)
_CLOSE_ENOUGH, _ACCEPTABLE = 0.015, 0.05


def _refuse(reason: str, detail: object = "-") -> None:
    print("refused", reason, detail, flush=True)
    sys.exit(1)


def _die_with(owner: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != owner:
        sys.exit(1)


def _claim(cpu: int) -> socket.socket:
    """Hold this CPU against other emulations; the kernel lets go of the name when the process ends, however it ends."""
    name = f"\0corepipe-emulate-cpu{cpu}"
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        claim.bind(name)
        claim.listen(8)
    except OSError:
        try:
            claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            claim.connect(name)
            pid = struct.unpack("3i", claim.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        except OSError:
            pid = 0
        _refuse("taken", pid)
    return claim


def _go_real_time(cpu: int, priority: int) -> None:
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError:
        _refuse("cpu", cpu)
    # A process that runs longer than this without sleeping is killed by the kernel: it can never hold a core for good.
    soft, hard = 300_000, 400_000
    most = resource.getrlimit(resource.RLIMIT_RTTIME)[1]
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    resource.setrlimit(resource.RLIMIT_RTTIME, (soft, hard))
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except OSError as error:
        _refuse("privilege", error.errno)


def _control(fd: int) -> memoryview[float]:
    return memoryview(mmap.mmap(fd, CONTROL_BYTES)).cast("d")


def _burn(owner: int, cpu: int, period_ns: int, slot: int, control: memoryview[float]) -> None:
    claim = _claim(cpu)
    _go_real_time(cpu, BURNER_PRIORITY)
    lifeline = select.poll()
    lifeline.register(sys.stdin.fileno(), select.POLLIN | select.POLLHUP)
    print("ready", flush=True)
    gc.disable()
    now, sleep = time.monotonic_ns, time.sleep
    taken, over = 1 + 2 * slot, 2 + 2 * slot
    max_slice_ns = int(MAX_SLICE_S * 1e9)
    debt_ns = 0
    count = 0
    last_start: int | None = None
    while True:
        count += 1
        if os.getppid() != owner or (count % 64 == 0 and lifeline.poll(0)):
            break
        if count % 64 == 0 and os.sched_getaffinity(0) != {cpu}:
            print("moved to another CPU: this one went offline, or the mask was changed", flush=True)
            break
        due_ns = int(control[0] * period_ns)
        if due_ns <= 0:
            debt_ns, last_start = 0, None
            sleep(_IDLE_S)
            continue
        # Starts are multiples of the period on the machine-wide clock, so cores slowed alike pause at the same time.
        start = (now() // period_ns + 1) * period_ns
        sleep(max(0, start - now()) * 1e-9)
        woke = now()
        if last_start is not None:
            control[over] += (start - last_start) * 1e-9
            if start - last_start > period_ns or woke - start > period_ns:
                debt_ns = 0  # held up from outside (throttled, machine paused): not to be made up for
        last_start = start
        end = woke + min(due_ns + debt_ns, max_slice_ns)
        stop = woke
        while stop < end:
            stop = now()
        control[taken] += (stop - woke) * 1e-9
        debt_ns = max(min(debt_ns + due_ns - (stop - woke), period_ns // 4), -period_ns)
    claim.close()


class _Work:
    """A fixed work in small pieces, about half arithmetic and half reading 8 MiB, as much as a small CNN's weights."""

    def __init__(self) -> None:
        self._pairs = [(bytes(32768), bytes(bytearray(32768))) for _ in range(128)]

    def rate(self, duration_s: float) -> float:
        """Pieces done per second, from now until at least `duration_s` later."""
        now, pairs = time.monotonic_ns, self._pairs
        done = 0
        start = now()
        end = start + int(duration_s * 1e9)
        stop = start
        while stop < end:
            sum(range(400))
            left, right = pairs[done % 128]
            done += left == right
            stop = now()
        return done * 1e9 / (stop - start)


def _probe(cpu: int, speed: float, max_share: float, control: memoryview[float]) -> None:
    """Alternate the burner off and on, and correct its share until the work done is `speed` times the undisturbed."""
    _go_real_time(cpu, PROBE_PRIORITY)
    print("ready", flush=True)
    gc.disable()
    work = _Work()
    share = min(1 - speed, max_share)
    best_share, best = share, float("inf")
    for attempt in range(_MOST_ROUNDS):
        ratios = []
        for _ in range(_PAIRS):
            control[0] = 0.0
            time.sleep(_SETTLE_S)
            full = work.rate(_FULL_WINDOW_S)
            control[0] = share
            time.sleep(_SETTLE_S)
            ratios.append(work.rate(_SLOWED_WINDOW_S) / full)
        ratios.sort()
        measured = (ratios[(_PAIRS - 1) // 2] + ratios[_PAIRS // 2]) / 2
        close = attempt > 0 and abs(measured - speed) <= _CLOSE_ENOUGH * speed  # one good round may be luck
        if close or abs(measured - speed) < abs(best - speed):
            best_share, best = share, measured
        if close or (attempt + 1 >= _ROUNDS and abs(best - speed) <= _ACCEPTABLE * speed):
            break
        share = min(max(share + measured - speed, 1e-3), max_share)
    control[0] = best_share
    print("measured", best, flush=True)


def _launch(owner: int, command: list[str]) -> None:
    _die_with(owner)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # the interpreter ignores these, and so would the command
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"corepipe emulate: cannot run {command[0]!r}: {error.strerror}", file=sys.stderr)
        sys.exit(126 if isinstance(error, PermissionError) else 127)


def _main(arguments: list[str]) -> None:
    role, owner = arguments[0], int(arguments[1])
    if role == "launch":
        _launch(owner, arguments[3:])
        return
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # the thread that starts burners blocks all signals
    _die_with(owner)
    if role == "burn":
        cpu, period_ns, slot, fd = map(int, arguments[2:])
        _burn(owner, cpu, period_ns, slot, _control(fd))
    else:
        cpu, fd = int(arguments[2]), int(arguments[5])
        _probe(cpu, float(arguments[3]), float(arguments[4]), _control(fd))


if __name__ == "__main__":
    _main(sys.argv[1:])
