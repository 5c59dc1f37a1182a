"""Runs a stream for minutes or hours and tells whether anything grows: memory, open files, threads.

    python bench/soak.py                       5 minutes of SqueezeNet (`make soak`)
    python bench/soak.py --minutes 480 --kill-every 30 --json FILE.json

Frames come as fast as they are taken; some are bad on purpose; workers may be killed now and then. Every ten seconds
the processes are looked at. The slope is a least-squares line through the second half of the run, as growth in an hour
with its standard error. Exit code 1 where frames were lost, or memory grows by over twice its error and 1 % an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from corepipe import open as open_stream
from corepipe.bench_setup import bench_frames
from corepipe.report.bench import environment
from corepipe.runtime.stream import Stream
from corepipe.topology import detect
from corepipe.topology.memory import held_bytes

FIGURES = ("memory_mb", "files", "threads", "processes")
BAD_EVERY = 997
_GROWTH = 0.01


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="squeezenet")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--sample-s", type=float, default=10.0)
    parser.add_argument("--kill-every", type=float, default=0.0, help="seconds between two killed workers; 0 for none")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with open_stream(options.model) as stream:
        result = soak(stream, options)
    show(result)
    if options.json:
        document = {"schema_version": 1, "environment": environment(detect()), "network": options.model} | result
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if result["lost"] or result["grows"] else 0


def soak(stream: Stream, options: argparse.Namespace) -> dict[str, Any]:
    """Run the stream and sample it."""
    name = stream.network.inputs[0].name
    frames = [np.ascontiguousarray(frame[name]) for frame in bench_frames(stream.network, None)[0]]
    bad = np.zeros((1, 1), np.float32)
    until = time.monotonic() + 60 * options.minutes
    samples: list[dict[str, float]] = []
    over = threading.Event()
    kills = fed = 0

    def watch() -> None:
        began = time.monotonic()
        while not over.wait(options.sample_s):
            samples.append({"at_s": time.monotonic() - began} | look())

    def kill() -> None:
        nonlocal kills
        generator = np.random.default_rng(0)
        while options.kill_every and not over.wait(options.kill_every):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(generator.choice(list(stream.worker_pids.values()))), signal.SIGKILL)
                kills += 1

    def feed() -> Iterator[Any]:
        nonlocal fed
        for number, frame in enumerate(itertools.cycle(frames)):
            if time.monotonic() > until:
                return
            fed += 1
            yield bad if number % BAD_EVERY == BAD_EVERY - 1 else frame

    threads = [threading.Thread(target=target, daemon=True) for target in (watch, kill)]
    for thread in threads:
        thread.start()
    results = errors = 0
    for result in stream(feed(), "return"):
        results += isinstance(result, np.ndarray)
        errors += not isinstance(result, np.ndarray)
    over.set()
    for thread in threads:
        thread.join()
    slopes = {figure: slope(samples[len(samples) // 2 :], figure) for figure in FIGURES}
    growth, error = slopes["memory_mb"]
    last = samples[-1]["memory_mb"] if samples else 0.0
    return {
        "minutes": options.minutes,
        "frames": fed,
        "results": results,
        "errors": errors,
        "lost": fed - results - errors,
        "unexpected_errors": errors - fed // BAD_EVERY,
        "kills": kills,
        "restarts": stream.restarts,
        "slopes_per_hour": slopes,
        "grows": growth > 2 * error and growth > _GROWTH * last,
        "samples": samples,
    }


def look() -> dict[str, float]:
    """All processes together: memory, open files, threads."""
    found = dict.fromkeys(FIGURES, 0.0)
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        try:
            with process.oneshot():
                found["memory_mb"] += held_bytes(process, shared=True) / 1e6
                found["files"] += process.num_fds()
                found["threads"] += process.num_threads()
                found["processes"] += 1
        except psutil.Error:
            continue
    return found


def slope(samples: Sequence[dict[str, float]], figure: str) -> tuple[float, float]:
    """Growth in an hour and its standard error, by least squares."""
    if len(samples) < 3:
        return float("nan"), float("nan")
    hours = np.array([sample["at_s"] for sample in samples]) / 3600
    values = np.array([sample[figure] for sample in samples])
    hours = hours - hours.mean()
    spread = float((hours**2).sum())
    found = float((hours * (values - values.mean())).sum()) / spread
    rest = values - values.mean() - found * hours
    return found, float(np.sqrt((rest**2).sum() / (len(samples) - 2) / spread))


def show(result: dict[str, Any]) -> None:
    """A table of the figures, and a line on the frames."""
    console = Console(width=120)
    table = Table("of all processes", "at first", "at the end", "most", "growth in an hour", "standard error")
    samples = result["samples"]
    for figure in FIGURES:
        values = [sample[figure] for sample in samples] or [float("nan")]
        growth, error = result["slopes_per_hour"][figure]
        ends = (f"{values[0]:.1f}", f"{values[-1]:.1f}", f"{max(values):.1f}")
        table.add_row(figure, *ends, f"{growth:+.2f}", f"{error:.2f}")
    console.print(table)
    console.print(
        f"{result['minutes']:g} minutes: {result['frames']} frames, {result['results']} results, {result['errors']} "
        f"errors by name ({result['unexpected_errors']} of them of good frames), {result['lost']} lost; "
        f"{result['kills']} workers killed, {result['restarts']} restarted"
    )
    console.print(
        f"memory grows: more than {_GROWTH:.0%} of it in an hour, and more than twice the standard error"
        if result["grows"]
        else "memory does not grow"
    )


if __name__ == "__main__":
    sys.exit(main())
