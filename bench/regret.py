"""How far each planner's plan is from the bound that no plan can exceed, and how long it takes to find.

    python bench/regret.py                                    # tables; reads ../shared/boards where it is there
    python bench/regret.py --json bench/results/regret.json --plot bench/results/regret.png
    python bench/regret.py --random 200 --seed 1

Regret is 1 - frames/s by the table / bound: 0 is optimal, 0.2 gives a fifth away. The bound is that of `routes`.
Tables: random ones (`random_table` says how they are drawn) and those of `board_tables.py`; nothing runs on a real
board here.
The plot needs matplotlib (`pip install matplotlib`).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import board_tables
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
from corepipe.errors import CorepipeError
from corepipe.plan import plan

PLANNERS = ("all-cores", "replicas", "pipe-it", "pipeline", "pipelines", "routes")

MACHINES = (
    {"cpu": 4},
    {"big": 2, "little": 2},
    {"big": 2, "little": 4},
    {"big": 4, "little": 4},
    {"prime": 1, "big": 3, "little": 4},
)


@dataclass(frozen=True)
class Sample:
    """One planner on one table."""

    source: str
    table: str
    planner: str
    regret: float
    seconds: float


def random_table(generator: np.random.Generator) -> CostTable:
    """A table drawn at random.

    One of `MACHINES`, 5 to 60 layers of lognormal cost (sigma 1), 5 to 200 ms in all on the fastest core. From cluster
    to cluster a layer gets slower by 1.2 to 3 times, on average 2; on n cores it takes (1 - p + p / n) times as long
    with p from 0.7 to 1; beside busy cores 1 to 1.3 times. A hop costs 0 to 1 % of the whole on either side. Over all
    cores of a machine a layer is split evenly and waits for the slowest cluster's cores.
    """
    clusters = MACHINES[int(generator.integers(len(MACHINES)))]
    count = int(generator.integers(5, 61))
    layers = generator.lognormal(0, 1, count)
    layers *= generator.uniform(5e-3, 200e-3) / layers.sum()
    total = sum(clusters.values())
    configs = []
    slower = np.ones(count)
    for name, cores in clusters.items():
        parallel = generator.uniform(0.7, 1, count)
        beside = generator.uniform(1, 1.3)
        for size in range(1, cores + 1):
            alone = layers * slower * (1 - parallel + parallel / size)
            configs.append(
                ConfigCosts(config=f"{name}{size}", layer_s=tuple(alone), layer_busy_s=tuple(alone * beside))
            )
        everywhere = layers * slower * (1 - parallel + parallel / total)
        slower = slower * np.clip(generator.normal(2, 0.4, count), 1.2, 3)
    if len(clusters) > 1:
        configs.append(ConfigCosts(config=f"all{total}", layer_s=tuple(everywhere)))
    numbers = iter(range(total))
    return CostTable(
        network=TableNetwork(
            name="random", sha256="", layers=tuple(f"l{i}" for i in range(count)), cut_bytes=(0,) * (count + 1)
        ),
        machine=TableMachine(
            description=" + ".join(f"{cores} {name}" for name, cores in clusters.items()),
            fingerprint="",
            clusters=tuple(
                TableCluster(name=name, cores=tuple(next(numbers) for _ in range(n))) for name, n in clusters.items()
            ),
        ),
        engines=(EngineName(name="onnxruntime", version=""),),
        configs=tuple(configs),
        hop=HopCosts(fixed_s=2 * float(generator.uniform(0, 0.01)) * float(layers.sum())),
        provenance=Provenance(source="made-up"),
    )


def all_tables(count: int, seed: int, data: Path | None) -> Iterator[tuple[str, str, CostTable]]:
    """Source, name and table: random ones, then the boards' that are at hand."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        yield "random", f"random {number}", random_table(generator)
    for fill in board_tables.Fill:
        boards = dict(board_tables.hikey970_tables(fill))
        yield from (("boards", f"{t.machine.description}, {name}", t) for name, t in boards.items())
        if data is not None:
            vim3 = board_tables.vim3_tables(fill, data)
            yield from (("boards", f"{t.machine.description}, {name}", t) for name, t in vim3.items())


def measure(source: str, name: str, table: CostTable) -> list[Sample]:
    """Every planner on one table; `routes` comes last and gives the bound."""
    fps: dict[str, float] = {}
    seconds: dict[str, float] = {}
    bound = 0.0
    for planner in PLANNERS:
        began = time.perf_counter()
        made = plan(table, planner, bound=False)
        seconds[planner] = time.perf_counter() - began
        fps[planner] = made.predicted_fps or 0.0
        bound = max(bound, made.bound_fps or 0.0)
    return [Sample(source, name, p, max(0.0, 1 - fps[p] / bound), seconds[p]) for p in PLANNERS]


def summary(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Mean and worst regret and run time, by source and planner."""
    found = []
    for source in dict.fromkeys(sample.source for sample in samples):
        for planner in PLANNERS:
            mine = [s for s in samples if s.source == source and s.planner == planner]
            worst = max(mine, key=lambda sample: sample.regret)
            found.append(
                {
                    "source": source,
                    "planner": planner,
                    "tables": len(mine),
                    "mean_regret": round(statistics.mean(s.regret for s in mine), 9),
                    "worst_regret": round(worst.regret, 9),
                    "worst_table": worst.table,
                    "mean_ms": round(statistics.mean(s.seconds for s in mine) * 1e3, 3),
                    "worst_ms": round(max(s.seconds for s in mine) * 1e3, 3),
                }
            )
    return found


def render(found: Sequence[dict[str, Any]], console: Console) -> None:
    """The summary as a table."""
    table = Table(title="Regret: share of the bound that a planner's plan gives away (by cost tables)")
    for heading in ("tables", "planner", "mean", "worst", "run time mean ms", "worst ms", "worst table"):
        table.add_column(heading, justify="left" if heading in ("tables", "planner", "worst table") else "right")
    for line in found:
        table.add_row(
            f"{line['tables']} {line['source']}",
            line["planner"],
            f"{line['mean_regret']:.2%}",
            f"{line['worst_regret']:.2%}",
            f"{line['mean_ms']:.1f}",
            f"{line['worst_ms']:.1f}",
            line["worst_table"] if line["worst_regret"] > 0 else "",
            end_section=line["planner"] == PLANNERS[-1],
        )
    console.print(table)


def draw(samples: Sequence[Sample], target: str) -> bool:
    """Regret of every table, sorted, a line per planner; returns False where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    sources = list(dict.fromkeys(sample.source for sample in samples))
    figure, axes = pyplot.subplots(1, len(sources), figsize=(5.5 * len(sources), 4), sharey=True, squeeze=False)
    for axis, source in zip(axes[0], sources, strict=True):
        for planner in PLANNERS:
            regrets = sorted(s.regret * 100 for s in samples if s.source == source and s.planner == planner)
            shares = [100 * (i + 1) / len(regrets) for i in range(len(regrets))]
            axis.plot(shares, regrets, label=planner, linewidth=2)
        axis.set_title(f"{len(regrets)} cost tables: {source}")
        axis.set_xlabel("% of tables, best first")
        axis.set_ylim(-2, 100)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("% of the bound given away")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(target, dpi=110)
    pyplot.close(figure)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", type=int, default=100, metavar="N", help="how many random tables")
    parser.add_argument("--seed", type=int, default=0, help="of the random tables")
    parser.add_argument("--data", type=Path, help="folder of the VIM3's CSV files (default: ../shared/boards)")
    parser.add_argument("--json", metavar="FILE", help="write the results to FILE, - for stdout")
    parser.add_argument("--plot", metavar="FILE", help="draw to a .png, .svg or .pdf file")
    options = parser.parse_args(arguments)
    log = Console(stderr=True)
    console = log if options.json == "-" else Console(width=None if sys.stdout.isatty() else 150)
    data = options.data or (board_tables.DATA if board_tables.DATA.is_dir() else None)
    try:
        if data is None:
            log.print("no ../shared/boards here, so no VIM3; give the folder of its CSV files with --data FOLDER")
        samples = [s for each in all_tables(options.random, options.seed, data) for s in measure(*each)]
        found = summary(samples)
        render(found, console)
        if options.json:
            text = json.dumps(
                {
                    "schema_version": 1,
                    "simulated": True,
                    "note": "By cost tables: random ones and those of bench/board_tables.py.",
                    "corepipe": __version__,
                    "python": platform.python_version(),
                    "machine": platform.machine(),
                    "random_tables": options.random,
                    "seed": options.seed,
                    "vim3": data is not None,
                    "results": found,
                },
                indent=2,
            )
            if options.json == "-":
                sys.stdout.write(text + "\n")
            else:
                write_atomically(options.json, text + "\n")
        if options.plot and not draw(samples, options.plot):
            log.print("no plot: matplotlib is missing; pip install matplotlib", markup=False)
    except CorepipeError as error:
        log.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
