"""Starts pinned child processes that never outlive their parent.

A child is a fresh interpreter (the user's program is not forked, and needs no main-guard), or forked off such a one
(`twins`). It holds two pipes: the lifeline, whose closing tells it that the parent is gone, and the status pipe, whose
closing tells the parent that it is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from corepipe.errors import WorkerError
from corepipe.runtime.arena import anonymous_file, or_worker_error

_LOOK_S = 5.0
"""How often the system is asked whether a process that is waited for still runs."""

_SOON_S = 0.5

UNKNOWN_CODE = 1 << 16
"""In place of an exit code that nobody can tell any more."""

_QUIET = {"ORT_DISABLE_TELEMETRY": "1"}
"""What the user's environment may say otherwise. ONNX Runtime's wheels from 1.29 on send names and hashes of models to
their maker, from a thread of each process that loads them."""

_BOOT = "import sys; sys.path[:] = {path!r}; from corepipe.runtime.child import main; main({fd})"


def memory_file(data: bytes, what: str) -> int:
    """A descriptor of nameless memory that holds `data`, positioned at its start.

    Raises:
        WorkerError: the system has no room for it.
    """
    fd = anonymous_file(len(data), what)
    with or_worker_error(f"cannot write {len(data) >> 20} MiB for {what}"), contextlib.ExitStack() as undo:
        undo.callback(os.close, fd)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        undo.pop_all()
    return fd


def readable(fds: Iterable[int], timeout_s: float | None = 0.0) -> set[int]:
    """Those that can be read, or whose other end was closed, once there is one or the time is over (None: never)."""
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    return {fd for fd, _ in poller.poll(None if timeout_s is None else timeout_s * 1e3)}


def _folder() -> str:
    """The current one, which an empty entry of the path stands for; none where it was removed."""
    with contextlib.suppress(OSError):
        return os.getcwd()
    return ""


class Process(Protocol):
    """What a `Child` asks of the process behind it; `subprocess.Popen` has it."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None:
        """The exit code, negative after a signal; None while it runs."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once there is one.

        Raises:
            subprocess.TimeoutExpired: there was none in so many seconds.
        """
        ...

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless the process has ended."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


def spawn(
    module: str,
    name: str,
    cpus: Sequence[int],
    config: Mapping[str, Any],
    engines: Iterable[str],
    fds: Iterable[int] = (),
    threads: int = 1,
    strict: bool = True,
) -> Child:
    """Start a fresh interpreter that imports its engines, is pinned, and runs `module.serve(config)`.

    Args:
        module: an importable module with a function `serve(config)`.
        name: shown in process lists and in errors.
        cpus: its affinity mask; empty to leave it alone.
        config: plain data for `serve`; `fds` in it stay valid in the child under the same numbers. `threads` is added.
        engines: names of those that it uses, which share `threads` threads.
        fds: descriptors to hand down.
        threads: how many threads its engines and numeric libraries may start.
        strict: whether it must not run where the affinity mask is refused; else it then runs wherever it may.

    Raises:
        WorkerError: the process could not be started.
    """
    if getattr(sys, "frozen", False) or not sys.executable:  # workers would be the user's program again
        raise WorkerError(
            f"worker {name}: workers are processes of the Python interpreter, and this program (frozen, or "
            f"embedded) has none to start"
        )
    environment = {**_QUIET, **os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    path = [p or _folder() for p in sys.path if isinstance(p, str)]
    whole = child_config(module, name, cpus, config, engines, threads, strict)

    def start(lifeline_fd: int, status_fd: int) -> Process:
        config_fd = config_file({**whole, "lifeline_fd": lifeline_fd, "status_fd": status_fd})
        try:
            return subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT.format(path=path, fd=config_fd)],
                pass_fds=[lifeline_fd, status_fd, config_fd, *fds],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
                process_group=0,
            )
        finally:
            os.close(config_fd)

    return Child(name, start)


def child_config(
    module: str,
    name: str,
    cpus: Sequence[int],
    config: Mapping[str, Any],
    engines: Iterable[str],
    threads: int,
    strict: bool,
) -> dict[str, Any]:
    """What `child.main` reads, but for the ends of its pipes; arguments as for `spawn`."""
    own = {"module": module, "name": f"corepipe:{name}", "cpus": list(cpus), "strict": strict}
    return {**config, **own, "engines": sorted(engines), "threads": threads}


def config_file(config: Mapping[str, Any]) -> int:
    """A descriptor of what `child.main` reads.

    Raises:
        WorkerError: the system has no room for it.
    """
    return memory_file(json.dumps(config).encode(), "config")


class Child:
    """A process that tells what it does over its status pipe, and ends when its lifeline closes.

    Args:
        name: shown in errors.
        start: starts it, given the ends of lifeline and status pipe that it is to have; here they are closed then.
        parent: the process that it is forked off and ends with, if that is not this one.

    Raises:
        WorkerError: the process could not be started.
    """

    def __init__(self, name: str, start: Callable[[int, int], Process], parent: Child | None = None) -> None:
        self.name = name
        self._parent = parent
        self._lifeline = self.status_fd = -1
        self._buffer = b""
        self._queued: list[dict[str, Any]] = []
        self._error = ""
        self.ended = False
        with (
            or_worker_error(f"worker {name}: cannot start a process"),
            contextlib.ExitStack() as undo,
            contextlib.ExitStack() as given,
        ):
            lifeline_read, self._lifeline = os.pipe()
            given.callback(os.close, lifeline_read)
            undo.callback(self.release)
            self.status_fd, status_write = os.pipe()
            given.callback(os.close, status_write)
            undo.callback(self._close_status)
            os.set_blocking(self.status_fd, False)
            self._process = start(lifeline_read, status_write)
            undo.pop_all()

    def __del__(self) -> None:
        if not sys.is_finalizing():  # then the system closes it
            self.release()
            self._close_status()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def reports(self) -> list[dict[str, Any]]:
        """What the child has reported since the last call; sets `ended` when its status pipe has closed."""
        messages: list[dict[str, Any]] = []
        while not self.ended:
            try:
                data = os.read(self.status_fd, 1 << 20)
            except BlockingIOError:
                break
            if not data:
                self.ended = True
                break
            self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        messages.extend(json.loads(line) for line in lines)
        self._error = next((m["error"] for m in messages if "error" in m), self._error)
        return messages

    def look(self) -> None:
        """Ask the system whether the process still runs, and set `ended`.

        The status pipe does not tell where another process, forked while this one was started, holds its other end.
        """
        if self._process.poll() is not None:
            self._queued += self.reports()
            self.ended = True

    def has_ended(self, within_s: float) -> bool:
        """Whether it has, or does so soon: its pipes close a moment before."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(within_s)
        self.look()
        return self.ended

    def wait_report(self, stop_fd: int | None = None) -> dict[str, Any]:
        """The next report, however long it takes (compiling a large model may take minutes).

        Args:
            stop_fd: waiting ends when this becomes readable.

        Raises:
            WorkerError: the child reported an error or ended, or `stop_fd` became readable.
        """
        while not self._queued and not self.ended:
            ready = readable((self.status_fd, *([] if stop_fd is None else [stop_fd])), _LOOK_S)
            if stop_fd in ready:
                raise WorkerError(f"worker {self.name}: not waited for any longer")
            if ready:
                self._queued = self.reports()
            else:
                self.look()
        if not self._queued:
            raise WorkerError(f"worker {self.name} {self.describe_end()}")
        message = self._queued.pop(0)
        if "error" in message:
            raise WorkerError(f"worker {self.name}: {message['error']}")
        return message

    def ask(self, fd: int, question: object) -> None:
        """Write a line of JSON to a pipe that the child reads.

        Raises:
            WorkerError: the child ended.
        """
        try:
            os.write(fd, json.dumps(question).encode() + b"\n")
        except BrokenPipeError:
            self.reports()
            raise WorkerError(f"worker {self.name} {self.describe_end()}") from None

    def describe_end(self) -> str:
        """How the process ended, in words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        code = self._process.returncode
        if self._error:
            return f"failed: {self._error}"
        if code is None:
            return "closed its status pipe but still runs"
        if self._parent is not None and code in (0, UNKNOWN_CODE) and self._parent.has_ended(_SOON_S):
            return f"ended with the process that it was forked off, which {self._parent.describe_end()}"
        if code == UNKNOWN_CODE:
            return "ended"
        if code < 0:
            hint = "; if memory ran out, use fewer workers or a smaller model" if code == -9 else ""
            return f"was killed by signal {-code}{hint}"
        return f"ended with exit code {code}"

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let the process wait meanwhile; if this process ends first, the kernel lets the other go on (see `child`)."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def release(self) -> None:
        """Tell the child to end, without waiting for it."""
        fd, self._lifeline = self._lifeline, -1  # first: Ctrl-C may come between, and this be called again
        if fd >= 0:
            os.close(fd)

    def close(self, timeout_s: float = 2.0) -> None:
        """End the child: close the lifeline, wait, then kill."""
        self.release()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._error = self._error or "did not end when it was told to, and was killed"
            self._process.kill()
            self._process.wait()
        self.ended = True
        self._close_status()

    def _close_status(self) -> None:
        fd, self.status_fd = self.status_fd, -1
        if fd >= 0:
            os.close(fd)
