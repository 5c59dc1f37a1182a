"""Forks workers off a process that has compiled what they share (`zygote`): so weights are in memory once.

Workers of one thread each whose engines can go on in a forked process are twins, if they run a segment that another one
of them runs too. Linux only: elsewhere system libraries do not take to forking.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import psutil

from corepipe.engine import FORKABLE
from corepipe.errors import WorkerError
from corepipe.plan.model import HopPart, Plan, Worker
from corepipe.runtime.arena import or_worker_error
from corepipe.runtime.launch import Child, Process, child_config, config_file, spawn

VARIABLE = "COREPIPE_SHARE_WEIGHTS"
"""Environment variable; `never` gives every worker weights of its own."""

LEAST_SAVED_BYTES = 32 << 20
"""Of models, which engines hold once or twice: a process more takes as much."""

_WORKER = "corepipe.runtime.worker"

_LOOK_S = 5.0
_PATIENCE_S = 60.0
"""How long the zygote may take to fork; it copies page tables, which takes milliseconds."""

_CODE_PATIENCE_S = 2.0
"""How long it may take to tell an exit code, which is only told to the user."""

_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 0.001, 0.02


def families(plan: Plan, model_bytes: Mapping[HopPart, int]) -> list[tuple[list[Worker], list[HopPart]]]:
    """Workers that are to be twins, with the parts that at least two of them run.

    Args:
        plan: a plan.
        model_bytes: the sizes of its parts, which are all but their weights'.
    """
    if sys.platform not in ("linux", "android") or os.environ.get(VARIABLE) == "never":
        return []
    by_engines: dict[frozenset[str], list[Worker]] = {}
    for worker in plan.workers:
        engines = frozenset(part.engine for part in plan.segments_of(worker.name))
        if len(worker.cores) == 1 and engines <= FORKABLE:
            by_engines.setdefault(engines, []).append(worker)
    found = []
    for workers in by_engines.values():
        held = [part for worker in workers for part in plan.segments_of(worker.name)]
        shared = [part for part in dict.fromkeys(held) if held.count(part) > 1]
        twins = [worker for worker in workers if not set(shared).isdisjoint(plan.segments_of(worker.name))]
        if sum((held.count(part) - 1) * model_bytes[part] for part in shared) >= LEAST_SAVED_BYTES:
            found.append((twins, shared))
    return found


class Twins:
    """Workers that are forked off one process, which is started here, and again if it ends.

    Args:
        name: of that process, in errors.
        engines: names of the engines of each of these workers.
        config: what it compiles, as `segments`, and the slots, as in a worker's configuration.
        fds: descriptors that any of the workers needs.

    Raises:
        WorkerError: the process could not be started.
    """

    def __init__(self, name: str, engines: Collection[str], config: Mapping[str, Any], fds: Collection[int]) -> None:
        self._name = name
        self._engines = engines
        self._config = config
        self._fds = sorted(fds)
        self._lock = threading.Lock()
        self._questions = 0
        self._apart = False
        self._ready = False
        self._zygote, self._requests = self._begin()

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self._requests.close()

    @property
    def pid(self) -> int:
        """Of the process that workers are forked off."""
        return self._zygote.pid

    def start(
        self,
        name: str,
        cpus: Sequence[int],
        config: Mapping[str, Any],
        fds: Collection[int],
        strict: bool,
        stop_fd: int | None = None,
    ) -> Child:
        """Start one of the workers.

        Args:
            name, cpus, config, fds, strict: as for `launch.spawn`.
            stop_fd: waiting for the compiler ends when this becomes readable.

        Raises:
            WorkerError: it could not be started, or `stop_fd` became readable.
        """
        self._compile(stop_fd)
        if self._apart:
            return spawn(_WORKER, name, cpus, config, self._engines, fds, 1, strict)
        whole = child_config(_WORKER, name, cpus, config, self._engines, 1, strict)

        def fork(lifeline_fd: int, status_fd: int) -> Process:
            config_fd = config_file(whole)
            try:
                answer = self._ask({"fds": sorted(fds)}, [config_fd, lifeline_fd, status_fd])
            finally:
                os.close(config_fd)
            if "error" in answer:
                raise WorkerError(
                    f"worker {name}: cannot fork: {answer['error']}; close other programs or use fewer workers"
                )
            return _Forked(answer["pid"], self)

        return Child(name, fork, self._zygote)

    def exit_code(self, pid: int) -> int:
        """Of a worker that has ended: negative after a signal, 0 where nobody knows any more."""
        with contextlib.suppress(WorkerError):
            return self._ask({"wait": pid}, patience_s=_CODE_PATIENCE_S)["code"] or 0
        return 0

    def close(self) -> None:
        """End the process, and with it all workers that still run."""
        self._requests.close()
        self._zygote.close()

    def _begin(self) -> tuple[Child, socket.socket]:
        with or_worker_error(f"worker {self._name}: cannot make a socket"):
            here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as undo, there:
            undo.callback(here.close)
            requests_fd = there.fileno()
            config = {**self._config, "requests_fd": requests_fd, "fds": self._fds}
            handed = [*self._fds, requests_fd]
            zygote = spawn("corepipe.runtime.zygote", self._name, (), config, self._engines, handed)
            undo.pop_all()
        return zygote, here

    def _compile(self, stop_fd: int | None) -> None:
        """Wait until everything is compiled, again where the process has ended since."""
        if self._apart:
            return
        self._zygote.look()
        if self._ready and self._zygote.ended:
            self.close()
            self._ready = False
            self._zygote, self._requests = self._begin()
        if not self._ready:
            self._apart = "threads" in self._zygote.wait_report(stop_fd)
            self._ready = True
        if self._apart:
            self.close()

    def _ask(
        self, question: Mapping[str, Any], fds: Sequence[int] = (), patience_s: float = _PATIENCE_S
    ) -> dict[str, Any]:
        """What the zygote answers.

        Raises:
            WorkerError: nothing: it has ended, or hangs.
        """
        with self._lock:
            self._questions += 1
            try:
                socket.send_fds(self._requests, [json.dumps({"id": self._questions, **question}).encode()], fds)
                until_s = time.monotonic() + patience_s
                while (left_s := until_s - time.monotonic()) > 0:
                    if not _readable(self._requests, min(left_s, _LOOK_S)):
                        self._zygote.look()
                        if self._zygote.ended:
                            break
                        continue
                    data = self._requests.recv(1 << 16)
                    if not data:
                        break
                    answer: dict[str, Any] = json.loads(data)
                    if answer["id"] == self._questions:  # Ctrl-C may have left the answer to the last one
                        return answer
            except OSError:
                pass
        self._zygote.look()
        raise WorkerError(
            f"worker {self._name} " + (self._zygote.describe_end() if self._zygote.ended else "forks no worker")
        )


def _readable(requests: socket.socket, timeout_s: float) -> bool:
    poller = select.poll()
    poller.register(requests, select.POLLIN)
    return bool(poller.poll(timeout_s * 1e3))


class _Forked:
    """A worker that is no child of this process but of the zygote, which keeps its exit code; see `launch.Process`."""

    def __init__(self, pid: int, twins: Twins) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._twins = twins
        self._process: psutil.Process | None = None
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process = psutil.Process(pid)  # tells it from a later one of this number

    def poll(self) -> int | None:
        if self.returncode is None and not self._runs():
            self.returncode = self._twins.exit_code(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        began, pause_s = time.monotonic(), _SHORTEST_WAIT_S
        while (code := self.poll()) is None:
            if timeout is not None and time.monotonic() - began > timeout:
                raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_WAIT_S)
        return code

    def send_signal(self, sig: int) -> None:
        if self._process is not None and self.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._process.send_signal(sig)

    def kill(self) -> None:
        if self._process is not None and self.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._process.kill()

    def _runs(self) -> bool:
        if self._process is None:
            return False
        try:
            return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
