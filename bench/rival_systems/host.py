"""The parent's side: starts the processes of a setting, asks them to run, and ends them whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from rival_systems.catalogue import COREPIPE, Setting

BENCH = Path(__file__).resolve().parent.parent

HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""Lets the C library ask for huge pages, as corepipe's workers do by themselves."""

_RUN_GRACE_S = 60.0
_END_GRACE_S = 3.0


class ChildError(Exception):
    """A system cannot be measured; the message is the reason."""


@contextlib.contextmanager
def _on(cpus: Sequence[int] | None) -> Iterator[None]:
    """Let what is started inside be on these CPUs from its first thread on."""
    before = os.sched_getaffinity(0)
    if cpus is not None:
        os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Child:
    """One process of `rival_systems.child`."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        # A compiler confined to a slow core would take minutes: such a process pins itself once it is loaded.
        with _on(None if spec.get("compiled") else spec["cpus"]):
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rival_systems.child", json.dumps(spec)],
                cwd=BENCH,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env={**os.environ, **({"GLIBC_TUNABLES": HUGE_PAGES} if spec["huge_pages"] else {})},
                start_new_session=True,
            )
        self._buffer = b""
        self._has_workers = spec["engine"] == COREPIPE

    def ask(self, message: dict[str, Any]) -> None:
        """Send a line.

        Raises:
            ChildError: the process has ended.
        """
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise ChildError(self._end()) from None

    def answer(self, until: float) -> dict[str, Any]:
        """The next line, by the monotonic clock until then.

        Raises:
            ChildError: the process says that it failed, has ended, or takes too long.
        """
        assert self._process.stdout
        pipe = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            left = until - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                raise ChildError("timed out")
            data = os.read(pipe, 65536)
            if not data:
                raise ChildError(self._end())
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        if "failed" in message:
            raise ChildError(message["failed"])
        return message

    def _end(self) -> str:
        """How it ended, with its last words."""
        try:
            code = self._process.wait(_END_GRACE_S)
        except subprocess.TimeoutExpired:
            return "closed its output, but does not end"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        words = f": {lines[-1][:200]}" if lines else ""
        return f"ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}{words}"

    def cpu_s(self) -> float:
        """Seconds of CPU that it and its own processes have used."""
        total = 0.0
        with contextlib.suppress(psutil.Error):
            own = psutil.Process(self._process.pid)
            for process in [own, *own.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    total += times.user + times.system
        return total

    def close(self) -> None:
        """End it and what it started."""
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        if self._has_workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_GRACE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()
        self._process.stdout.close()
        self._log.close()


class Contender:
    """A setting with its processes running, checked and warm.

    Args:
        setting: what to run.
        folder: where `prepare` put its files.
        timeout_s: seconds to load and compile.

    Raises:
        ChildError: it cannot be measured.
    """

    def __init__(self, setting: Setting, folder: Path, timeout_s: float) -> None:
        self.setting = setting
        self.about: dict[str, Any] = {}
        self.slices: list[float] = []
        self.over_costs: list[float] = []
        self.idle_share = 0.0
        self._children: list[Child] = []
        try:
            for cpus, threads in zip(setting.processes, setting.options["threads"], strict=True):
                own = {"engine": setting.engine, "cpus": cpus, "threads": threads, "batch": setting.batch}
                own |= {"huge_pages": setting.huge_pages, "folder": str(folder)}
                self._children.append(Child({**setting.options, **own}))
            ready = [answer["ready"] for answer in self._answers(time.monotonic() + timeout_s)]
        except BaseException:
            self.close()
            raise
        self.largest_error = max(one["largest_relative_error"] for one in ready)
        self.call_s = max(one["call_s"] for one in ready)
        self.filling_s = max(one["filling_s"] for one in ready)
        self.about = ready[0]["about"]

    def run(self, seconds: float) -> float:
        """Frames per second of all processes together, for that long at the least.

        Raises:
            ChildError: one failed.
        """
        for child in self._children:
            child.ask({"seconds": seconds})
        answers = self._answers(time.monotonic() + 3 * seconds + _RUN_GRACE_S)
        self.over_costs += [answer["over_costs"] for answer in answers if answer["over_costs"]]
        return float(sum(answer["fps"] for answer in answers))

    def _answers(self, until: float) -> list[dict[str, Any]]:
        return [child.answer(until) for child in self._children]

    def cpu_s(self) -> float:
        """Seconds of CPU that its processes have used."""
        return sum(child.cpu_s() for child in self._children)

    def close(self) -> None:
        """End its processes."""
        for child in self._children:
            child.close()
        self._children = []


def convert(engine: str, folder: Path, batch: int, timeout_s: float) -> str | None:
    """Convert the network in a process of its own; the reason where that fails."""
    reason = run_aside("rival_systems.prepare", [engine, str(folder), str(batch)], timeout_s)
    return None if reason is None else f"not converted: {reason}"


def run_aside(module: str, arguments: Sequence[str], timeout_s: float) -> str | None:
    """Run a module of this package in a process of its own; the reason where that fails."""
    command = [sys.executable, "-m", module, *arguments]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=BENCH, stdout=log, stderr=log, start_new_session=True)
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return f"it takes longer than {timeout_s:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
        if not code:
            return None
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:250] if lines else f"exit code {code}"
