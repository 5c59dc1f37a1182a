"""What becomes of throughput, latency and memory when more frames come than the cores can take.

    python bench/overload.py                        SqueezeNet, 0.5 to 4 times its capacity, each policy
    python bench/overload.py googlenet --rounds 5
    python bench/overload.py --json FILE.json       keep the result

Capacity is what the stream reaches when frames wait for it. Then frames come at their own pace, as from a camera, and
`when_full` decides: `wait` (the source is held up, so that more than capacity cannot be offered to the cores),
`drop-oldest`, `error`. Every load has its turn in each round, each time between two looks at the capacity; it goes by
the first, and is held against their mean. The medians over the rounds count, and the sums of frames. Goodput is results
a second; memory is the most that all processes held during a look.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from corepipe import open as open_stream
from corepipe.bench_setup import bench_frames
from corepipe.report.bench import environment
from corepipe.runtime.live import WhenFull
from corepipe.runtime.record import FrameRecord
from corepipe.runtime.stream import Stream
from corepipe.topology import detect

LOADS = (0.5, 0.8, 1.0, 1.25, 2.0, 4.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="squeezenet")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each load and policy in a round")
    parser.add_argument("--engine", action="append", help="engines that the plan may use (default: onnxruntime)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with open_stream(options.model, engines=options.engine or ["onnxruntime"], follow=False) as stream:
        name = stream.network.inputs[0].name
        frames = [np.ascontiguousarray(frame[name]) for frame in bench_frames(stream.network, None)[0]]
        cases = list(itertools.product(get_args(WhenFull), LOADS))
        taken: dict[tuple[str, float], list[dict[str, float]]] = {case: [] for case in cases}
        for _ in range(options.rounds):
            capacity = capacity_fps(stream, frames, options.seconds / 2)
            for policy, load in cases:
                took = run(stream, frames, load * capacity, cast("WhenFull", policy), options.seconds)
                before, capacity = capacity, capacity_fps(stream, frames, options.seconds / 2)
                taken[policy, load].append({"capacity_fps": (before + capacity) / 2, **took})
    rows = [{"when_full": policy, "offered": load, **summed_up(looks)} for (policy, load), looks in taken.items()]
    show(options.model, rows)
    if options.json:
        document = {"schema_version": 1, "environment": environment(detect()), "network": options.model}
        options.json.write_text(json.dumps({**document, "rows": rows}, indent=1) + "\n")
    return 0


def summed_up(looks: Sequence[dict[str, float]]) -> dict[str, Any]:
    """One row: medians, what was counted added up, and goodput over capacity with its spread."""
    shares = [look["goodput_fps"] / look["capacity_fps"] for look in looks]
    return {
        **{key: float(np.median([look[key] for look in looks])) for key in looks[0]},
        **{key: int(sum(look[key] for look in looks)) for key in ("dropped", "unaccounted")},
        "of_capacity": float(np.median(shares)),
        "of_capacity_spread": [min(shares), max(shares)],
        "peak_memory_mb": max(look["peak_memory_mb"] for look in looks),
    }


def capacity_fps(stream: Stream, frames: Sequence[Any], seconds: float) -> float:
    """What the stream reaches when frames wait for it."""
    return run(stream, frames, float("inf"), "wait", seconds)["goodput_fps"]


def run(stream: Stream, frames: Sequence[Any], rate: float, policy: WhenFull, seconds: float) -> dict[str, float]:
    """Frames at a rate for a while."""
    records: list[FrameRecord] = []
    stream.on_record = records.append
    dropped = stream.dropped
    forget_peaks(stream)
    began = time.monotonic()
    offered = 0

    def feed() -> Iterator[Any]:
        nonlocal offered
        for number, frame in enumerate(itertools.cycle(frames)):
            time.sleep(max(began + number / rate - time.monotonic(), 0.0))
            if time.monotonic() - began > seconds:
                return
            offered = number + 1
            yield frame

    results = errors = 0
    for result in stream(feed(), "return", policy):
        results += isinstance(result, np.ndarray)
        errors += not isinstance(result, np.ndarray)
    took = time.monotonic() - began
    peak = peak_memory(stream)
    if not results:
        raise SystemExit(f"no result in {seconds:g} s: give more --seconds")
    latency = np.percentile([record.latency_s for record in records], [50, 99])
    return {
        "offered_fps": offered / took,
        "goodput_fps": results / took,
        "dropped": stream.dropped - dropped,
        "unaccounted": abs(offered - results - errors),
        "latency_ms_p50": float(latency[0]) * 1e3,
        "latency_ms_p99": float(latency[1]) * 1e3,
        "peak_memory_mb": peak / 1e6,
    }


def forget_peaks(stream: Stream) -> None:
    """Begin anew with the most that each process held."""
    for pid in processes(stream):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_memory(stream: Stream) -> float:
    """Bytes that all processes have held at the most since that, shared ones counted in each; Linux only."""
    peaks = (
        re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.M) for pid in processes(stream)
    )
    return float(sum(int(peak[1]) * 1024 for peak in peaks if peak))


def processes(stream: Stream) -> tuple[int, ...]:
    """This one and the workers."""
    return os.getpid(), *stream.worker_pids.values()


def show(model: str, rows: Sequence[dict[str, Any]]) -> None:
    """A table."""
    heads = (
        "when full",
        "offered",
        "capacity",
        "offered frames/s",
        "goodput",
        "of capacity",
        "dropped",
        "p50 ms",
        "p99 ms",
        "peak MB",
    )
    table = Table(*heads, title=f"{model}: more frames than it can take (measured on this machine)")
    for row in rows:
        rates = (f"{row[key]:.1f}" for key in ("capacity_fps", "offered_fps", "goodput_fps"))
        low, high = row["of_capacity_spread"]
        share = f"{row['of_capacity']:.2f} ({low:.2f}-{high:.2f})"
        latencies = (f"{row['latency_ms_p50']:.0f}", f"{row['latency_ms_p99']:.0f}")
        cells = (*rates, share, str(row["dropped"]), *latencies, f"{row['peak_memory_mb']:.0f}")
        table.add_row(row["when_full"], f"{row['offered']:g}x", *cells)
    console = Console(width=140)
    console.print(table)
    console.print(f"frames that ended in no way: {sum(row['unaccounted'] for row in rows)}")


if __name__ == "__main__":
    sys.exit(main())
