"""Feeds hostile models and documents to corepipe and says what was found: `make fuzz`, or `campaign.py --help`."""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import worker
from targets import ENDS
from watched import Watched

HERE = Path(__file__).resolve().parent
POLL_S = 0.2
LOST = "lost"
"""How an input ends that ends the process, or hangs."""
_PAUSED = 6
_START_S = 300.0
"""An input may take so many times its seconds where the machine gives the process no time to compute."""


@dataclass(frozen=True)
class Settings:
    """What holds for a whole campaign.

    Attributes:
        folder: where findings go.
        seed: of all dice.
        seconds: of computing that one input may take.
        memory_mib: of address space that the process under test may take.
        guided: whether coverage chooses the inputs.
    """

    folder: Path
    seed: int
    seconds: float
    memory_mib: int
    guided: bool


def main() -> int:
    """Run a campaign.

    Returns:
        The exit code: 1 where anything was found.
    """
    options = _options()
    # What ends this process must end the one under test, and remove its files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    guided = _guided(options.guided)
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / worker.FOUND).unlink(missing_ok=True)
    settings = Settings(options.folder, options.seed, options.seconds, options.memory_mib, guided)
    report: dict[str, Any] = {"guided": guided, "seed": options.seed, "folder": str(options.folder)}
    for kind, count in (("models", options.models), ("readers", options.inputs)):
        report[kind] = run(kind, count, settings)
        _say(f"{kind}: {json.dumps(report[kind])}")
    report["findings"] = findings(options.folder)
    for finding in report["findings"]:
        _say(f"FOUND {finding['count']} x {finding['what']}: {finding['summary']} ({finding['file']})")
    total = sum(finding["count"] for finding in report["findings"])
    _say(f"{total} findings" + (f"; the inputs are in {options.folder}" if total else ""))
    if options.json == Path("-"):
        print(json.dumps(report, indent=2))
    elif options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 1 if total else 0


def run(kind: str, count: int, settings: Settings) -> dict[str, Any]:
    """Run inputs of one kind, whatever becomes of the process that runs them.

    Args:
        kind: `models` or `readers`.
        count: how many inputs.
        settings: of the campaign.

    Returns:
        Inputs that began, seconds, crashes, hangs, foreign errors, and how the others ended.
    """
    path = settings.folder / f"{kind}.watched"
    path.unlink(missing_ok=True)
    watched = Watched(path, (*ENDS, worker.DEFECT, LOST))
    started = time.monotonic()
    crashes = hangs = 0
    while watched.begun < count:
        how = _run_once(kind, count - watched.begun, watched, settings)
        crashes += how == "crash"
        hangs += how == "hang"
        if how == "done":
            break
    ends = watched.counts
    ends.pop(LOST, None)
    path.unlink()
    return {
        "inputs": watched.begun, "seconds": round(time.monotonic() - started, 1), "crashes": crashes, "hangs": hangs,
        "foreign_errors": ends.pop(worker.DEFECT, 0), "ends": ends,
    }  # fmt: skip


def _run_once(kind: str, count: int, watched: Watched, settings: Settings) -> str:
    """Run inputs until they are through or the process is lost; a crash or hang is noted."""
    command = [sys.executable, str(HERE / "worker.py"), kind, str(settings.folder)]
    numbers = {"first": watched.begun, "count": count, "seed": settings.seed, "memory-mib": settings.memory_mib}
    command += [f"--{name}={number}" for name, number in numbers.items()]
    command += ["--guided"] if settings.guided else []
    log = settings.folder / f"{kind}.log"
    with log.open("wb") as output, tempfile.TemporaryDirectory(prefix="corepipe-fuzz-", dir=_in_memory()) as scratch:
        # Threads of the numeric libraries reserve address space, which is limited.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TMPDIR": scratch}
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            hung = _watch(process, watched, settings.seconds)
        finally:
            process.kill()
            process.wait()
    if not hung and process.returncode == 0:
        return "done"
    what = "hang" if hung else "crash"
    if not watched.running:
        raise SystemExit(f"input {watched.begun} cannot be made ({process.returncode}); the last words are in {log}")
    watched.end(LOST)
    summary = f"over {settings.seconds:g} s" if hung else f"ended with {process.returncode}"
    details = log.read_bytes()[-3000:].decode("utf-8", "replace")
    worker.note(settings.folder, kind, what, summary, details, watched.data)
    return what


def _in_memory() -> Path | None:
    """Where files cost no writing to a disk, if there is such a place."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else None


def _watch(process: subprocess.Popen[bytes], watched: Watched, seconds: float) -> bool:
    """Wait for the end of a process; whether it hangs in one input."""
    at, since, used = watched.begun, time.monotonic(), 0.0
    started = False
    while process.poll() is None:
        time.sleep(POLL_S)
        now = _computed(process.pid)
        if not started:  # importing, and instrumenting what is imported, is no input's doing
            started = watched.begun != at or watched.running
            used = now
            if time.monotonic() - since > _START_S:
                return True
        elif watched.begun != at:
            at, since, used = watched.begun, time.monotonic(), now
        elif now - used > seconds or time.monotonic() - since > _PAUSED * seconds:
            return True
        if sys.stderr.isatty():
            print(f"\r{at} inputs", end="", file=sys.stderr, flush=True)
    return False


def _computed(pid: int) -> float:
    """Seconds of computing of a process so far."""
    with contextlib.suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0


def findings(folder: Path) -> list[dict[str, Any]]:
    """Each distinct finding once, with the number of inputs that led to it and the first of them."""
    path = folder / worker.FOUND
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    counts: collections.Counter[tuple[str, str, str]] = collections.Counter()
    for line in map(json.loads, lines):
        key = (line["kind"], line["what"], line["summary"])
        found.setdefault(key, line)
        counts[key] += 1
    return [{**line, "count": counts[key]} for key, line in found.items()]


def _guided(wish: str) -> bool:
    there = importlib.util.find_spec("atheris") is not None
    if wish == "yes" and not there:
        raise SystemExit("atheris is not installed; install the extra `fuzz`, or leave out --guided yes")
    return there and wish != "no"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=10_000, help="hostile model files (default %(default)s)")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="inputs of the readers (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all dice")
    parser.add_argument("--seconds", type=float, default=10.0, help="of computing that one input may take")
    parser.add_argument("--memory-mib", type=int, default=4096, help="of address space for the process under test")
    parser.add_argument("--guided", choices=("auto", "yes", "no"), default="auto", help="by coverage, with atheris")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), help="where findings go")
    parser.add_argument("--json", type=Path, help="a file for the report, or - for the output")
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
