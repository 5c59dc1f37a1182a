"""Forks workers off a process that has compiled what they share (`zygote`): so weights are in memory once.

Workers of one thread each, on the same engines, whose models can go on in a forked process are twins, if they run a
segment that another one of them runs too. Linux only: elsewhere system libraries do not take to forking.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from corepipe.engine import FORKABLE
from corepipe.errors import WorkerError
from corepipe.plan.model import HopPart, Plan, Worker
from corepipe.runtime.arena import or_worker_error
from corepipe.runtime.launch import UNKNOWN_CODE, Child, Process, child_config, config_file, readable, spawn

VARIABLE = "COREPIPE_SHARE_WEIGHTS"
"""Environment variable; `never` gives every worker weights of its own."""

LEAST_SAVED_BYTES = 32 << 20
"""Of models, which engines hold once or twice: a process more takes as much."""

_WORKER = "corepipe.runtime.worker"

_LOOK_S = 0.5
"""How often it is looked whether a zygote that is asked something still runs, and whether to go on waiting."""

_FORK_PATIENCE_S = 30.0
"""How long it may take to fork; it copies page tables, which takes milliseconds."""

_CODE_PATIENCE_S = 2.0
"""How long it may take to tell an exit code, which is only told to the user."""

_log = logging.getLogger("corepipe")

_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 0.001, 0.02


def families(plan: Plan, model_bytes: Mapping[HopPart, int]) -> list[tuple[list[Worker], list[HopPart]]]:
    """Workers that are to be twins, with the parts that at least two of them run.

    Args:
        plan: a plan.
        model_bytes: of each part as a serialized model, which is its weights and little else.
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
    """Workers that are forked off one process, the zygote, which is started here, and again if it ends.

    Args:
        workers: their names.
        engines: names of the engines of each of them.
        config: what the zygote compiles, as `segments`, and the slots, as in a worker's configuration.
        fds: descriptors that any of the workers needs.

    Raises:
        WorkerError: the zygote could not be started.
    """

    def __init__(
        self, workers: Sequence[str], engines: Collection[str], config: Mapping[str, Any], fds: Collection[int]
    ) -> None:
        first, *others = workers
        self._name = f"{first} and {len(others)} more"
        self._engines = engines
        self._config = {**config, "fds": sorted(fds)}
        self._apart = self._closed = False
        self._lock = threading.Lock()
        self._zygote: _Zygote | None = _Zygote(self._name, engines, self._config)

    @property
    def pids(self) -> list[int]:
        """Of the zygote, if there is one."""
        zygote = self._zygote
        return [] if zygote is None else [zygote.child.pid]

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
            stop_fd: waiting for the zygote ends when this becomes readable.

        Raises:
            WorkerError: it could not be started, or `stop_fd` became readable. A zygote that is at fault is ended, with
                its other workers, and the next call starts another one.
        """
        zygote = self._compiled(stop_fd)
        if zygote is None:
            return spawn(_WORKER, name, cpus, config, self._engines, fds, 1, strict)
        whole = child_config(_WORKER, name, cpus, config, self._engines, 1, strict)

        def fork(lifeline_fd: int, status_fd: int) -> Process:
            config_fd = config_file(whole)
            try:
                answer = zygote.ask(
                    {"fds": sorted(fds)}, _FORK_PATIENCE_S, [config_fd, lifeline_fd, status_fd], stop_fd
                )
            finally:
                os.close(config_fd)
            if "error" in answer:
                raise WorkerError(
                    f"worker {name}: cannot fork: {answer['error']}; close other programs or use fewer workers"
                )
            return _Forked(answer["pid"], zygote)

        try:
            return Child(name, fork, zygote.child)
        except _NoAnswerError:
            self._drop(zygote)  # the next try has another one
            raise

    def close(self) -> None:
        """End the zygote, and with it all workers that still run; none is started any more. May be called again."""
        with self._lock:
            self._closed = True
            zygote = self._zygote
        self._drop(zygote)

    def _drop(self, zygote: _Zygote | None) -> None:
        if zygote is not None:
            zygote.close()
            with self._lock:
                self._zygote = None if self._zygote is zygote else self._zygote

    def _compiled(self, stop_fd: int | None) -> _Zygote | None:
        """The zygote once it has compiled everything, another one where it has ended; None where it may not fork."""
        last = self._zygote  # `close` may take it away meanwhile
        if last is not None and last.child.has_ended(0):
            self._drop(last)
        with self._lock:
            if self._closed or (stop_fd is not None and readable([stop_fd])):
                raise WorkerError(f"worker {self._name}: not waited for any longer")
            if self._apart:
                return None
            self._zygote = zygote = self._zygote or _Zygote(self._name, self._engines, self._config)
        try:
            self._apart = not zygote.may_fork(stop_fd)
        except WorkerError:
            self._drop(zygote)
            raise
        if self._apart:
            self._drop(zygote)
            _log.info("worker %s: weights of their own, as the interpreter starts with threads", self._name)
        return None if self._apart else zygote


class _NoAnswerError(WorkerError):
    """The zygote does not answer."""


class _Zygote:
    """The process that workers are forked off, and the socket on which it is asked to.

    Attributes:
        child: the process.

    Raises:
        WorkerError: it could not be started.
    """

    def __init__(self, name: str, engines: Collection[str], config: Mapping[str, Any]) -> None:
        self._lock, self._closing = threading.Lock(), threading.Lock()
        self._questions = 0
        self._may_fork: bool | None = None
        self._tells_codes = True
        with or_worker_error(f"worker {name}: cannot make a socket"):
            self._requests, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as undo, there:
            undo.callback(self._requests.close)
            handed = [*config["fds"], there.fileno()]
            whole = {**config, "requests_fd": there.fileno()}
            self.child = spawn("corepipe.runtime.zygote", name, (), whole, engines, handed)
            undo.pop_all()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # it was never opened
            if not sys.is_finalizing():
                self._requests.close()

    def may_fork(self, stop_fd: int | None) -> bool:
        """Whether it can, once it has compiled everything.

        Raises:
            WorkerError: as `Child.wait_report`.
        """
        if self._may_fork is None:
            self._may_fork = "ready" in self.child.wait_report(stop_fd)
        return self._may_fork

    def exit_code(self, pid: int) -> int | None:
        """Of a worker that has ended; None where a last thread of it is still about to end.

        One that was not told in time is not asked for again: closing would wait for each.
        """
        if self._tells_codes:
            try:
                answer = self.ask({"wait": pid}, _CODE_PATIENCE_S)
                return UNKNOWN_CODE if answer.get("unknown") else answer.get("code")
            except WorkerError:
                self._tells_codes = False
        return UNKNOWN_CODE

    def ask(
        self, question: Mapping[str, Any], patience_s: float, fds: Sequence[int] = (), stop_fd: int | None = None
    ) -> dict[str, Any]:
        """What it answers.

        Args:
            question: what it is to do.
            patience_s: how long it may take.
            fds: descriptors to hand over.
            stop_fd: waiting ends when this becomes readable.

        Raises:
            WorkerError: `stop_fd` became readable, or, a `_NoAnswerError`, there is none.
        """
        name = self.child.name
        if not self._lock.acquire(timeout=patience_s):
            raise WorkerError(f"worker {name}: the process that they are forked off is busy")
        try:
            answer = self._exchange({"id": self._questions + 1, **question}, patience_s, fds, stop_fd)
            why = "did not answer" if answer is None else ""
        except EOFError:
            answer, why = None, self.child.describe_end()
        except (OSError, ValueError) as error:  # of a socket that was closed meanwhile, the latter
            answer, why = None, f"cannot be asked: {error}"
        finally:
            self._lock.release()
        if answer is None:
            raise _NoAnswerError(f"worker {name}: the process that they are forked off {why}")
        return answer

    def _exchange(
        self, question: Mapping[str, Any], patience_s: float, fds: Sequence[int], stop_fd: int | None
    ) -> dict[str, Any] | None:
        self._questions += 1
        try:
            socket.send_fds(self._requests, [json.dumps(question).encode()], fds)
        except (BrokenPipeError, ConnectionResetError):
            raise EOFError from None
        until_s = time.monotonic() + patience_s
        while (left_s := until_s - time.monotonic()) > 0:
            if stop_fd is not None and readable([stop_fd]):
                raise WorkerError(f"worker {self.child.name}: not waited for any longer")
            if not readable([self._requests.fileno()], min(left_s, _LOOK_S)):
                if self.child.has_ended(0):
                    raise EOFError
                continue
            data = self._requests.recv(1 << 16)
            if not data:
                raise EOFError
            answer: dict[str, Any] = json.loads(data)
            if answer["id"] == question["id"]:  # Ctrl-C may have left the answer to the last one
                return answer
        return None

    def close(self) -> None:
        """End it. May be called again, and by several threads."""
        with self._closing:
            with contextlib.suppress(OSError):  # a forked process of the user's may hold this end too
                self._requests.shutdown(socket.SHUT_RDWR)
            self._requests.close()
            self.child.close()


class _Forked:
    """A worker that is no child of this process but of a zygote, which keeps its exit code; see `launch.Process`."""

    def __init__(self, pid: int, zygote: _Zygote) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._zygote = zygote
        self._began = self._look()[1]

    def poll(self) -> int | None:
        if self.returncode is None and not self._runs():
            self.returncode = self._zygote.exit_code(self.pid)
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
        if self.returncode is None and self._runs():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _runs(self) -> bool:
        """Whether it does; a later process of its number began at another time."""
        try:
            state, began = self._look()
        except OSError:  # no file may be opened just now
            return True
        return state not in "ZX" and began == self._began

    def _look(self) -> tuple[str, str]:
        """Its state, and when it began; X and nothing where there is none."""
        try:
            with open(f"/proc/{self.pid}/stat", encoding="utf-8", errors="replace") as file:
                words = file.read().rpartition(")")[2].split()
            return words[0], words[_BEGAN]
        except (FileNotFoundError, ProcessLookupError):
            return "X", ""


_BEGAN = 19
"""Of the words behind the name in `/proc/PID/stat`: field 22, starttime."""
