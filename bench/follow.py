"""How fast a running stream's plan follows a core whose speed changes in mid-run (emulated).

    python bench/follow.py                            SqueezeNet and GoogLeNet, CPU 1 to half of its speed and back
    python bench/follow.py --planner pipeline         plans of one route, which depend on the balance of its stages
    python bench/follow.py alexnet --slow 1:0.25      another network, another speed
    python bench/follow.py --json FILE.json           keep the result

One stream runs on. A core becomes slower at once, and later fast again. Held against it: the best plan for each
speed, made from costs measured at that speed and run by itself, and the first plan where nothing follows. A stream has
recovered when a second of it, and all that is left of the phase, reach 95 % of that best plan.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from corepipe import plan as planners
from corepipe.api import find_costs
from corepipe.bench_setup import bench_frames
from corepipe.cost.table import CostTable
from corepipe.emulate import parse_slow, slowed
from corepipe.follow import Change, Follower
from corepipe.network.load import open_network
from corepipe.network.model import Network
from corepipe.plan import Plan
from corepipe.report.bench import environment
from corepipe.runtime.stream import Stream
from corepipe.topology import Topology, detect

GOAL = 0.95
_LEAD_S = 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["squeezenet", "googlenet"])
    parser.add_argument("--slow", default="1:0.5", help="CPU and speed, as for `corepipe emulate`")
    parser.add_argument("--planner", default="routes", help="what makes the plans, such as `pipeline`")
    parser.add_argument("--engine", action="append", help="engines that plans may use (default: onnxruntime)")
    parser.add_argument("--seconds", type=float, default=12.0, help="length of a phase")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    topology = detect()
    rows = [row for model in options.models for row in measure(model, topology, options)]
    show(rows)
    if options.json:
        document = {"schema_version": 1, "environment": environment(topology), "slow": options.slow, "rows": rows}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def measure(model: str, topology: Topology, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one network: slowed down, and fast again."""
    network, engines = open_network(model), options.engine or ["onnxruntime"]
    frames = [np.ascontiguousarray(frame[network.inputs[0].name]) for frame in bench_frames(network, None)[0]]
    table = find_costs(network, topology, engines=engines, measured=True).table
    planner = functools.partial(planners.plan, planner=options.planner)
    plan = planner(table)
    with slowed(parse_slow(options.slow)) as emulation:
        slow_topology = detect()
        slow_table = find_costs(network, slow_topology, engines=engines, measured=True).table
        best_slow = fps_of(network, planner(slow_table), slow_topology, frames, options.seconds / 2)
        kept_slow = fps_of(network, plan, topology, frames, options.seconds / 2)
        emulation.pause()
        best_fast = fps_of(network, plan, topology, frames, options.seconds / 2)
        moments, done, changes, wrong = follow(
            network, planner, plan, topology, table, frames, options.seconds, [emulation.resume, emulation.pause]
        )
    phases = [("slowed", best_slow, kept_slow), ("fast again", best_fast, best_fast)]
    return [
        {
            "network": network.name,
            "planner": options.planner,
            "phase": name,
            "best_plan_fps": best,
            "first_plan_fps": kept,
            **recovery(done, since, until, best),
            "changes": [
                {"after_s": (change.at_ns - since) * 1e-9, "kind": change.kind, "reason": change.reason}
                for change in changes
                if since <= change.at_ns < until
            ],
            "frames": len(done),
            "lost_or_wrong": wrong,
        }
        for (name, best, kept), since, until in zip(phases, moments[1:-1], moments[2:], strict=True)
    ]


def fps_of(network: Network, plan: Plan, topology: Topology, frames: Sequence[Any], seconds: float) -> float:
    """Frames/s of a plan that stays as it is."""
    done: list[int] = []
    with Stream(network, plan, topology, on_record=lambda record: done.append(record.done_ns)) as stream:
        began = time.monotonic()
        for _ in stream(itertools.takewhile(lambda _: time.monotonic() - began < seconds, itertools.cycle(frames))):
            pass
    first = int((began + _LEAD_S) * 1e9)
    steady = [at for at in done if first <= at <= (began + seconds) * 1e9]
    return (len(steady) - 1) / ((steady[-1] - steady[0]) * 1e-9)


def follow(
    network: Network,
    planner: Callable[[CostTable], Plan],
    plan: Plan,
    topology: Topology,
    table: CostTable,
    frames: Sequence[Any],
    seconds: float,
    events: Sequence[Callable[[], None]],
) -> tuple[list[int], list[int], list[Change], int]:
    """One stream over all phases: when they began and the last ended, when frames ended, changes, wrong frames."""
    done: list[int] = []
    moments = [time.monotonic_ns()]
    ended = threading.Event()

    def happen() -> None:
        for event in events:
            time.sleep(seconds)
            event()
            moments.append(time.monotonic_ns())
        time.sleep(seconds)
        moments.append(time.monotonic_ns())
        ended.set()

    fed = 0

    def feed() -> Iterator[Any]:
        nonlocal fed
        for frame in itertools.cycle(frames):
            if ended.is_set():
                return
            fed += 1
            yield frame

    with Stream(network, plan, topology, on_record=lambda record: done.append(record.done_ns)) as stream:
        expected = list(stream(frames))
        done.clear()
        follower = Follower(stream, table, planner=planner)
        threading.Thread(target=happen, daemon=True).start()
        results = wrong = 0
        for number, output in enumerate(stream(feed())):
            results += 1
            want = expected[number % len(expected)]
            wrong += not np.allclose(output, want, rtol=1e-3, atol=1e-3 * float(np.abs(want).max()))
        return moments, sorted(done), follower.changes, wrong + abs(fed - results)


def recovery(done: Sequence[int], since: int, until: int, best: float) -> dict[str, float | None]:
    """Throughput in the second half of a phase, and seconds until the stream had recovered."""
    times = np.array([at for at in done if since <= at < until])
    half = (since + until) // 2
    steady = (times >= half).sum() / ((until - half) * 1e-9)
    second = 1_000_000_000
    for at in range(since, until - second, second // 10):
        now = ((times >= at) & (times < at + second)).sum()
        rest = (times >= at).sum() / ((until - at) * 1e-9)
        if min(now, rest) >= GOAL * best:
            return {"fps": float(steady), "recovered_s": (at - since) * 1e-9}
    return {"fps": float(steady), "recovered_s": None}


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A table, and each change with its reason."""
    console = Console(width=160)
    heads = (
        "network",
        "planner",
        "CPU is",
        "first plan, kept",
        "best plan",
        "following",
        "of the best",
        "recovered after",
    )
    table = Table(*heads, title="A core's speed changes in mid-run (emulated); frames/s")
    for row in rows:
        after = "not" if row["recovered_s"] is None else f"{row['recovered_s']:.1f} s"
        share = f"{row['fps'] / row['best_plan_fps']:.2f}"
        rates = [f"{row[key]:.1f}" for key in ("first_plan_fps", "best_plan_fps", "fps")]
        table.add_row(row["network"], row["planner"], row["phase"], *rates, share, after)
    console.print(table)
    for row in rows:
        for change in row["changes"]:
            console.print(f"{row['network']}, {row['phase']}, after {change['after_s']:.1f} s: {change['reason']}")
    console.print(f"frames lost, out of order or wrong: {sum(row['lost_or_wrong'] for row in rows[::2])}")


if __name__ == "__main__":
    sys.exit(main())
