"""Entry of every process that corepipe starts: load its libraries wherever there is time, pin all threads, then serve.

The system finds the imports a better core than a slow one that another worker keeps busy. Nothing is compiled or run
before the mask is set: threads that an engine starts then inherit it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import threading
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corepipe.engine import Engine

_PARENT_CHECK_S = 0.5
_PR_SET_PDEATHSIG = 1

_stay_on: list[int] = []
"""The cores of this process, once it is pinned."""


def main(config_fd: int, **given: Any) -> None:
    """Load the engines and, on the cores that they are to have, run `serve` of the module named; never returns.

    Args:
        config_fd: the configuration as JSON, see `launch.child_config`.
        given: what is not in there, or other there: of a process that was forked.
    """
    with open(config_fd, "rb") as file:
        config: dict[str, Any] = {**json.load(file), **given}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # of a whole group: the lifeline tells when to end
        signal.signal(number, signal.SIG_IGN)
    name_process(config["name"])
    code = 1
    try:
        _go_on_with_parents_death()
        config["watch"] = Watch(config["lifeline_fd"], *config.get("other_lifeline_fds", ()))
        if not threads():  # those that importing starts could not be pinned afterwards
            pin(config["cpus"], config["strict"])
        module = import_module(config["module"])
        engines = _load(config["engines"])
        pin(config["cpus"], config["strict"])
        _stay_on.extend(config["cpus"])
        for engine in engines:
            engine.dedicate(config["threads"], alone=len(engines) == 1)
        module.serve(config)
        code = 0
    except BaseException as error:
        report(config["status_fd"], error=_explain(error))
    finally:
        if sys.stderr is not None:
            sys.stderr.flush()
        os._exit(code)


def _load(names: list[str]) -> list[Engine]:
    from corepipe import engine

    return [engine.get(name) for name in names]


def report(status_fd: int, **fields: Any) -> None:
    """Tell the parent something: one JSON object on a line."""
    try:
        os.write(status_fd, json.dumps(fields).encode() + b"\n")
    except OSError:
        os._exit(1)


def _explain(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "out of memory; use fewer workers or a smaller model"
    if isinstance(error, PinningError) or type(error).__module__ == "corepipe.errors":
        return str(error)
    return f"{type(error).__name__}: {error}"


class PinningError(RuntimeError):
    """The system refuses the affinity mask."""


def pin(cpus: list[int], strict: bool) -> None:
    """Set the mask of all threads of this process."""
    if not cpus or not hasattr(os, "sched_setaffinity"):
        return
    try:
        os.sched_setaffinity(0, cpus)
        pinned = {threading.get_native_id()}
        while others := threads() - pinned:
            for thread in others:  # one that is new by the next look may have been started by one of these
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(thread, cpus)
            pinned |= others
    except OSError as error:
        if not strict:
            return
        text = f"cannot pin to CPUs {cpus}: {error.strerror}; see `corepipe doctor` for the usable cores"
        raise PinningError(text) from None


def threads() -> set[int]:
    """The ids of all threads of this process; none where the system does not tell."""
    with contextlib.suppress(OSError):  # no /proc, or none for this process
        return {int(name) for name in os.listdir("/proc/self/task")}
    return set()


def name_process(name: str) -> None:
    """What process lists show; the system keeps 15 characters of it."""
    try:
        with open("/proc/self/comm", "w") as file:
            file.write(name[:15])
    except OSError:
        pass


def _go_on_with_parents_death() -> None:
    """Let the kernel wake this process when its parent ends while it is paused: else it would never see that."""
    if sys.platform in ("linux", "android"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGCONT), 0, 0, 0)


class Watch:
    """Ends this process when the other end of a lifeline closes, or the parent is gone; keeps it pinned meanwhile.

    The second test serves where a forked child of the parent still holds the lifeline open.
    """

    def __init__(self, *lifeline_fds: int) -> None:
        self._lifeline_fds = set(lifeline_fds)
        self._parent = os.getppid()
        self._stop_fd, self._stop = os.pipe()
        self._thread = threading.Thread(target=self.wait_for, args=(self._stop_fd,), daemon=True)
        self._thread.start()

    def wait_for(self, fd: int) -> None:
        """Return once `fd` can be read."""
        poller = select.poll()
        for one in (*self._lifeline_fds, fd):
            poller.register(one, select.POLLIN)
        while True:
            ready = {one for one, _ in poller.poll(_PARENT_CHECK_S * 1000)}
            if self._lifeline_fds & ready or os.getppid() != self._parent:
                os._exit(0)
            if fd in ready:
                return
            _pin_again()

    def stop(self) -> None:
        """End the thread: from now on only `wait_for` looks. For a process that is to fork."""
        os.write(self._stop, b".")
        self._thread.join()
        until_s = time.monotonic() + _PARENT_CHECK_S
        while self._thread.native_id in threads() and time.monotonic() < until_s:
            time.sleep(1e-4)  # Python is done with it a moment before the system is
        os.close(self._stop_fd)
        os.close(self._stop)


def _pin_again() -> None:
    """The system forgets masks: of all processes where a cpuset changes, of some where their core was offline."""
    if _stay_on and hasattr(os, "sched_getaffinity") and not os.sched_getaffinity(0) <= set(_stay_on):
        pin(_stay_on, strict=False)
