"""What each planner's plan reaches on boards that are not at hand: everything here is SIMULATED.

    python bench/boards.py                                   # tables; reads ../shared/boards for the VIM3
    python bench/boards.py --json bench/results/boards-simulated.json
    python bench/boards.py --data FOLDER --jitter 0.1

The boards' cost tables, and what in them is measured, modelled or filled in, are those of `board_tables.py`. Frames/s
are by the cost table; every plan also runs in the event simulator, and how far the two differ is printed. Rates
that were measured on the boards are given beside, marked as measured.

Of the table in the design, the RK3399Pro rows cannot be repeated: its per-layer times are not among the data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import board_tables
from board_tables import Fill
from rich.console import Console
from rich.table import Table

from corepipe import __version__
from corepipe.cost.table import CostTable
from corepipe.document import write_atomically
from corepipe.errors import CorepipeError
from corepipe.plan import Plan, plan
from corepipe.simulate import simulate

PLANNERS = ("pipe-it", "pipeline", "replicas", "pipelines", "routes")

DESIGN_ROUTES = {"alexnet": 1.65, "googlenet": 1.40, "mobilenet": 1.47, "resnet50": 1.46}
"""Optimal routes on the VIM3 by big cluster alone, whole clusters as the workers (docs/simulation.md)."""

PAPER_GAIN = 0.39
"""Pipe-it's average gain on the HiKey 970, as published (arXiv 1903.05898)."""

BUSY_FACTOR = 1.23
"""Stage times under load by isolated ones: middle of the 1.16 to 1.30 measured on another board, the RK3399Pro."""


@dataclass(frozen=True)
class Row:
    """One network on one board: frames/s by the table, and simulated, by plan; the bound."""

    board: str
    network: str
    fps: dict[str, float]
    simulated_fps: dict[str, float]
    bound_fps: float

    def gain(self, name: str) -> float:
        """Frames/s by those of the best single cluster."""
        return self.fps[name] / max(self.fps["big"], self.fps["little"])


def rows_of(tables: Mapping[str, CostTable], *, frames: int, jitter: float = 0.0) -> list[Row]:
    """Plan and simulate every network of a board."""
    rows = []
    for network, table in tables.items():
        names = {"big": "cluster:big", "little": "cluster:little", "all-cores": "all-cores"}
        plans: dict[str, Plan] = {name: plan(table, names.get(name, name), bound=False) for name in (*names, *PLANNERS)}
        simulated = {
            name: simulate(made, table, frames=frames, jitter=jitter).throughput_fps for name, made in plans.items()
        }
        fps = {name: made.predicted_fps or 0.0 for name, made in plans.items()}
        rows.append(Row(table.machine.description, network, fps, simulated, plans["routes"].bound_fps or 0.0))
    return rows


def render(rows: Sequence[Row], console: Console) -> None:
    """A table per board, frames/s and, in brackets, gain over the best single cluster."""
    for board in dict.fromkeys(row.board for row in rows):
        table = Table(title=f"{board}: SIMULATED frames/s (x best single cluster)", title_justify="left")
        table.add_column("network")
        columns = ("big", "all-cores", *PLANNERS)
        for column in (*columns, "bound"):
            table.add_column("all cores, split" if column == "all-cores" else column, justify="right")
        mine = [row for row in rows if row.board == board]
        for row in mine:
            cells = [f"{row.fps[name]:.2f} ({row.gain(name):.2f})" for name in columns]
            table.add_row(row.network, *cells, f"{row.bound_fps:.2f}")
        means = [f"({statistics.mean(row.gain(name) for row in mine):.2f})" for name in columns]
        table.add_row("mean gain", *means, "", style="bold")
        console.print(table)


def render_measured(console: Console) -> None:
    """What was measured on a real VIM3 for the same networks."""
    table = Table(title="Khadas VIM3: MEASURED frames/s, kernels split over cores", title_justify="left")
    for heading in ("network", "B1", "B2", "B3", "B4", "B4+s2", "all cores / big"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for network, fps in board_tables.VIM3_FPS.items():
        table.add_row(network, *(f"{rate:.2f}" for rate in fps), f"{fps[4] / fps[3]:.2f}")
    console.print(table)


def against_design(rows: Sequence[Row]) -> list[tuple[str, float, float, bool]]:
    """Network, routes by big alone, what the design promises, and whether that is reached at its two decimals."""
    whole = {row.network: row for row in rows if row.board == f"Khadas VIM3, {Fill.WHOLE.value}"}
    found = []
    for network, wanted in DESIGN_ROUTES.items():
        if network in whole:
            reached = whole[network].fps["routes"] / whole[network].fps["big"]
            found.append((network, reached, wanted, round(reached, 2) >= wanted))
    return found


def sentences(rows: Sequence[Row], busy_rows: Sequence[Row]) -> list[str]:
    """What the figures mean."""
    said = [
        f"VIM3, whole clusters, {network}: routes {reached:.3f}x big alone, {wanted:.2f} wanted: "
        f"{'reached' if enough else 'MISSED'}."
        for network, reached, wanted, enough in against_design(rows)
    ]
    said.append("RK3399Pro: its per-layer times are not at hand, so its rows of the design cannot be repeated.")
    groups = [*_by_board(rows, "HiKey 970").items()]
    groups += [(f"{board}, all segments {BUSY_FACTOR}x", found) for board, found in _by_board(busy_rows, "").items()]
    for board, found in groups:
        gains = {name: statistics.mean(row.gain(name) for row in found) - 1 for name in PLANNERS}
        said.append(
            f"{board}: mean gain over the best single cluster: "
            + ", ".join(f"{name} {gain:+.0%}" for name, gain in gains.items())
            + f" (simulated; Pipe-it's paper, measured: {PAPER_GAIN:+.0%})."
        )
    off = {
        (row.board, row.network, name): row.simulated_fps[name] / row.fps[name] - 1 for row in rows for name in row.fps
    }
    worst = max(off, key=lambda key: abs(off[key]))
    beyond = sum(abs(value) > 0.01 for value in off.values())
    said.append(
        f"Event simulator against table: {beyond} of {len(off)} plans differ by more than 1 %; "
        f"the most is {off[worst]:+.1%} ({', '.join(worst)})."
    )
    return said


def as_json(rows: Sequence[Row], busy_rows: Sequence[Row], frames: int, jitter: float) -> dict[str, Any]:
    """The rows with what a reader needs to judge them."""
    return {
        "schema_version": 1,
        "simulated": True,
        "note": "Simulated on cost tables; what is measured, modelled or filled in: bench/board_tables.py. fps are by "
        "the cost table, simulated_fps by the event simulator.",
        "corepipe": __version__,
        "frames": frames,
        "jitter": jitter,
        "rows": [_row_json(row) for row in rows],
        f"rows_with_segments_{BUSY_FACTOR}x_under_load": [_row_json(row) for row in busy_rows],
        "measured_vim3_fps": {
            network: dict(zip(("B1", "B2", "B3", "B4", "B4+s2"), fps, strict=True))
            for network, fps in board_tables.VIM3_FPS.items()
        },
        "against_design": [
            {"network": network, "routes_by_big": reached, "wanted": wanted, "reached": enough}
            for network, reached, wanted, enough in against_design(rows)
        ],
        "paper_pipe_it_gain": PAPER_GAIN,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 where the design's column is missed or the data is not as expected."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the VIM3's CSV files (default: ../shared/boards)")
    parser.add_argument("--json", metavar="FILE", help="write the results to FILE, - for stdout")
    parser.add_argument("--frames", type=int, default=2000, help="frames for each simulated plan")
    parser.add_argument("--jitter", type=float, default=0.0, help="coefficient of variation of a segment's time")
    options = parser.parse_args(arguments)
    log = Console(stderr=True)
    console = log if options.json == "-" else Console(width=None if sys.stdout.isatty() else 150)
    try:
        rows: list[Row] = []
        if options.data or board_tables.DATA.is_dir():
            for fill in Fill:
                tables = board_tables.vim3_tables(fill, options.data or board_tables.DATA)
                rows += rows_of(tables, frames=options.frames, jitter=options.jitter)
        else:
            log.print("no ../shared/boards here, so no VIM3; give the folder of its CSV files with --data FOLDER")
        for fill in Fill:
            rows += rows_of(board_tables.hikey970_tables(fill), frames=options.frames, jitter=options.jitter)
        busy = board_tables.hikey970_tables(Fill.SHARED, busy_factor=BUSY_FACTOR)
        busy_rows = rows_of(busy, frames=options.frames, jitter=options.jitter)
        render(rows, console)
        render_measured(console)
        for sentence in sentences(rows, busy_rows):
            console.print(sentence, highlight=False, soft_wrap=True)
        if options.json:
            text = json.dumps(as_json(rows, busy_rows, options.frames, options.jitter), indent=2) + "\n"
            if options.json == "-":
                sys.stdout.write(text)
            else:
                write_atomically(options.json, text)
    except CorepipeError as error:
        log.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return error.exit_code
    return 0 if all(enough for *_, enough in against_design(rows)) else 1


def _by_board(rows: Sequence[Row], prefix: str) -> dict[str, list[Row]]:
    boards = dict.fromkeys(row.board for row in rows if row.board.startswith(prefix))
    return {board: [row for row in rows if row.board == board] for board in boards}


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "board": row.board,
        "network": row.network,
        "fps": {name: round(fps, 6) for name, fps in row.fps.items()},
        "bound_fps": round(row.bound_fps, 6),
        "simulated_fps": {name: round(fps, 6) for name, fps in row.simulated_fps.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
