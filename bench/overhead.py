"""What a frame and a hop cost beside the network's own work, where the network's work is next to nothing.

    python bench/overhead.py                         this version
    python bench/overhead.py --against OLDER/src     and another version's source tree, taking turns with it
    python bench/overhead.py --json FILE.json        keep the result

For frames of several sizes it tells the CPU time of the user's process, of the workers beside their segments, and the
rate at which frames pass. Versions take turns, so that a drifting machine disturbs both alike.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from corepipe.network.model import Network
    from corepipe.plan.model import Plan
    from corepipe.topology.model import Topology

SIDES = (8, 112, 227)
FIGURES = ("user_us_per_frame", "worker_us_per_hop", "frames_per_s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="source tree (the folder that holds corepipe/) of another version")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--probe", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        print(json.dumps(run_probe(*options.probe, options.seconds)))
        return 0
    versions = {"this": Path(__file__).parents[1] / "src"}
    if options.against:
        versions = {"before": options.against, **versions}
    cases = [(side, hops) for side in SIDES for hops in (1, 2)]
    found: dict[tuple[int, int, str], list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for side, hops in cases:
            for name, source in versions.items():
                found.setdefault((side, hops, name), []).append(probe(source, side, hops, options.seconds))
    rows = [
        {"frame_kb": 12 * side * side / 1e3, "hops": hops, "version": name} | {f: summary(runs, f) for f in FIGURES}
        for (side, hops, name), runs in found.items()
    ]
    show(rows)
    if options.json:
        from corepipe.report.bench import environment
        from corepipe.topology import detect

        document = {"schema_version": 1, "environment": environment(detect()), "rounds": options.rounds, "rows": rows}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def probe(source: Path, side: int, hops: int, seconds: float) -> dict[str, float]:
    """One run of a version in a process of its own."""
    command = [sys.executable, __file__, "--probe", str(side), str(hops), "--seconds", str(seconds)]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def run_probe(side: int, hops: int, seconds: float) -> dict[str, float]:
    """Frames of 3 x side x side through a stream of `hops` workers that do next to nothing."""
    from corepipe.runtime.record import FrameRecord
    from corepipe.runtime.stream import Stream
    from corepipe.topology import detect

    network, topology = nothing(side), detect()
    work: list[int] = []

    def keep(record: FrameRecord) -> None:
        work.append(sum(hop.ended_ns - hop.started_ns for hop in record.hops))

    generator = np.random.default_rng(0)
    frames = [generator.standard_normal(network.inputs[0].shape, np.float32) for _ in range(8)]
    with Stream(network, plan_over(network, topology, hops), topology, on_record=keep) as stream:
        list(stream(frames))
        work.clear()
        pids = list(stream.worker_pids.values())
        user, workers, began = cpu_s(os.getpid()), sum(map(cpu_s, pids)), time.perf_counter()

        def feed() -> Iterator[np.ndarray]:
            for frame in itertools.cycle(frames):
                if time.perf_counter() - began > seconds:
                    return
                yield frame

        count = sum(1 for _ in stream(feed()))
        took = time.perf_counter() - began
        user = cpu_s(os.getpid()) - user
        workers = sum(map(cpu_s, pids)) - workers - sum(work) * 1e-9
    return {
        "user_us_per_frame": user / count * 1e6,
        "worker_us_per_hop": max(workers, 0.0) / count / hops * 1e6,
        "frames_per_s": count / took,
    }


def nothing(side: int) -> Network:
    """A network of two layers that takes an image and does next to nothing with it."""
    from corepipe.network.load import load_network

    nodes = [
        helper.make_node("MaxPool", ["x"], ["a"], kernel_shape=[1, 1], strides=[side, side]),
        helper.make_node("Conv", ["a", "w"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["y"]),
    ]
    weights = numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w")
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, size, size])
        for name, size in (("x", side), ("y", 1))
    )
    graph = helper.make_graph(nodes, "nothing", [x], [y], [weights])
    return load_network(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10))


def plan_over(network: Network, topology: Topology, hops: int) -> Plan:
    """A pipeline of one or two workers, each on a core of its own."""
    from corepipe.plan.model import Hop, Plan, PlanNetwork, Route, Worker

    layers = len(network.layers)
    edges = [0, layers] if hops == 1 else [0, layers - 1, layers]
    cores = [(core.id, cluster.name) for cluster in topology.clusters for core in cluster.cores]
    workers = [Worker(name=f"w{i}", config=f"{name}1", cores=(core,)) for i, (core, name) in enumerate(cores[:hops])]
    stages = [Hop(worker=w.name, layers=edge) for w, edge in zip(workers, itertools.pairwise(edges), strict=True)]
    about = PlanNetwork(name=network.name, sha256=network.sha256, layers=layers)
    return Plan(
        planner="by hand", network=about, workers=tuple(workers), routes=(Route(rate_fps=1, hops=tuple(stages)),)
    )


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def summary(runs: list[dict[str, float]], figure: str) -> dict[str, float]:
    """Median, least and most."""
    values = [run[figure] for run in runs]
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def show(rows: list[dict[str, Any]]) -> None:
    """A table for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="overhead: median (least to most)")
    for name in ("frame", "hops", "version", "user's process, us a frame", "worker, us a hop", "frames/s"):
        table.add_column(name, justify="right")
    for row in rows:
        cells = [f"{row[f]['median']:.0f} ({row[f]['low']:.0f}-{row[f]['high']:.0f})" for f in FIGURES]
        table.add_row(f"{row['frame_kb']:.0f} kB", str(row["hops"]), row["version"], *cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    sys.exit(main())
