"""How long it takes to find the optimal routes with their proof, and to explain them.

    python bench/planning_time.py
    python bench/planning_time.py --json bench/results/planning-time.json --repeat 5

Held against 1 s for 4 + 4 cores and 10 s for 16 + 8 cores, planning and explaining together, with and without a latency
budget; what takes longer is marked MISSED, and the exit code is 1.

Tables are made up, of 60 layers of lognormal cost (sigma 1), and irregular: every layer has another efficiency, 0.8 to
1.2, on every core config, which makes the search visit many sets of workers. Costs of every number of cores from 1 to
the whole cluster are in them. The latency budget is 1.5 times the least that works.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from corepipe import __version__
from corepipe.cost.table import (
    ConfigCosts,
    CostTable,
    EngineName,
    HopCosts,
    Provenance,
    TableCluster,
    TableMachine,
    TableNetwork,
)
from corepipe.document import write_atomically
from corepipe.plan import explain, plan
from corepipe.plan.routes import least_latency_s

LAYERS = 60
TABLES = 3
BUDGET = 1.5


@dataclass(frozen=True)
class Claim:
    """A machine and the seconds within which its plan is found and explained."""

    clusters: Mapping[str, int]
    allowed_s: float


CLAIMS = (Claim({"big": 4, "little": 4}, 1.0), Claim({"big": 16, "little": 8}, 10.0))


def irregular_table(clusters: Mapping[str, int], layers: int, seed: int) -> CostTable:
    """A table drawn at random, as the docstring above says."""
    generator = np.random.default_rng(seed)
    seconds = generator.lognormal(0, 1, layers) * 1e-3
    configs = []
    for index, (name, cores) in enumerate(clusters.items()):
        for count in range(1, cores + 1):
            efficiency = generator.uniform(0.8, 1.2, layers)
            costs = seconds * 2.5**index * efficiency / count**0.95
            configs.append(ConfigCosts(config=f"{name}{count}", layer_s=tuple(costs.tolist())))
    numbers = iter(range(sum(clusters.values())))
    return CostTable(
        network=TableNetwork(
            name=f"irregular {seed}",
            sha256="",
            layers=tuple(f"l{i}" for i in range(layers)),
            cut_bytes=(0,) * (layers + 1),
        ),
        machine=TableMachine(
            description=" + ".join(f"{cores} {name}" for name, cores in clusters.items()),
            fingerprint="",
            clusters=tuple(
                TableCluster(name=name, cores=tuple(next(numbers) for _ in range(cores)))
                for name, cores in clusters.items()
            ),
        ),
        engines=(EngineName(name="onnxruntime", version=""),),
        configs=tuple(configs),
        hop=HopCosts(fixed_s=1e-4, edge_s=5e-5),
        provenance=Provenance(source="made-up"),
    )


def measure(claim: Claim, seed: int, *, budgeted: bool, layers: int, repeat: int) -> dict[str, Any]:
    """Seconds of planning and of explaining one table: the median of some runs, and the slowest of both together."""
    table = irregular_table(claim.clusters, layers, seed)
    budget_s = BUDGET * least_latency_s(table) if budgeted else None
    planning, explaining = [], []
    for _ in range(repeat):
        began = time.perf_counter()
        made = plan(table, latency_budget_s=budget_s)
        found = time.perf_counter()
        explain(made, table)
        planning.append(found - began)
        explaining.append(time.perf_counter() - found)
    slowest = max(a + b for a, b in zip(planning, explaining, strict=True))
    return {
        "machine": table.machine.description,
        "layers": layers,
        "seed": seed,
        "latency_budget_ms": None if budget_s is None else round(budget_s * 1e3, 6),
        "plan_s": round(statistics.median(planning), 4),
        "explain_s": round(statistics.median(explaining), 4),
        "slowest_s": round(slowest, 4),
        "allowed_s": claim.allowed_s,
        "gap": max(0.0, 1 - (made.predicted_fps or 0.0) / (made.bound_fps or 1.0)),
        "workers": len(made.workers),
        "within": slowest <= claim.allowed_s,
    }


def render(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """A line for each table."""
    table = Table(title="Seconds to find the optimal routes with their proof, and to explain them")
    for heading in ("machine", "layers", "table", "latency budget ms", "plan s", "explain s", "slowest s", "claim s"):
        table.add_column(heading, justify="left" if heading == "machine" else "right")
    for row in rows:
        budget = row["latency_budget_ms"]
        table.add_row(
            row["machine"],
            str(row["layers"]),
            str(row["seed"]),
            "-" if budget is None else f"{budget:.2f}",
            f"{row['plan_s']:.2f}",
            f"{row['explain_s']:.2f}",
            f"{row['slowest_s']:.2f}",
            f"{row['allowed_s']:g}" + ("" if row["within"] else " MISSED"),
        )
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 where a claim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="runs of each")
    parser.add_argument("--layers", type=int, default=LAYERS, help="layers of the made-up networks")
    parser.add_argument("--json", metavar="FILE", help="write the results to FILE, - for stdout")
    options = parser.parse_args(arguments)
    console = Console(stderr=options.json == "-", width=None if sys.stdout.isatty() else 150)
    rows = [
        measure(claim, seed, budgeted=budgeted, layers=options.layers, repeat=options.repeat)
        for claim in CLAIMS
        for budgeted in (False, True)
        for seed in range(TABLES)
    ]
    render(rows, console)
    if options.json:
        result = {
            "schema_version": 1,
            "note": "Run time of the planner, measured; the cost tables are made up.",
            "corepipe": __version__,
            "python": platform.python_version(),
            "system": platform.platform(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "load_average": list(os.getloadavg()),
            "repeat": options.repeat,
            "results": rows,
        }
        text = json.dumps(result, indent=2) + "\n"
        if options.json == "-":
            sys.stdout.write(text)
        else:
            write_atomically(options.json, text)
    return 0 if all(row["within"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
