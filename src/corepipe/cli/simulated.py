"""Plans in simulated time: simulate, and what bench does with --simulate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from corepipe.cli.common import (
    Json,
    Report,
    Trace,
    app,
    command_line,
    out,
    read_plan,
    say_left_out,
    trace_plans,
    write_json,
)
from corepipe.document import check_writable

FrameCount = Annotated[int | None, typer.Option("--frames", min=1, help="How many frames to feed in a simulation.")]
Slots = Annotated[
    int | None, typer.Option("--slots", min=1, help="Simulated slots under way at once; no more than a run allots.")
]
Jitter = Annotated[
    float, typer.Option("--jitter", min=0, help="Coefficient of variation of a segment's time in a simulation.")
]
Contentions = Annotated[
    list[str] | None,
    typer.Option(
        "--contention",
        help="How much longer simulated segments take while all other cores work: 0.3 for 1.3 times, or big:0.3 for "
        "one cluster. May be repeated.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the times drawn in a simulation.")]


def options_of(
    frames: int | None, slots: int | None, jitter: float, contention: list[str] | None, seed: int
) -> dict[str, Any]:
    """The options of a simulation, as `simulate_bench` takes them.

    Raises:
        UsageError: the contention cannot be read.
    """
    from corepipe.simulate.contention import parse_contention

    found = {"slots": slots, "jitter": jitter, "contention": parse_contention(contention or ()), "seed": seed}
    return found if frames is None else {**found, "frames": frames}


def bench_simulated(
    path: Path,
    files: list[Path],
    only: list[str],
    options: Mapping[str, Any],
    trace: Path | None,
    report: Path | None,
    json_to: str | None,
) -> None:
    """All plans on a cost table."""
    from corepipe.bench_setup import bench_names, bench_plans, read_plans
    from corepipe.cost.table import CostTable

    table = CostTable.read(path)
    own = read_plans(files)
    names = bench_names([c.name for c in table.machine.clusters], only, list(own))
    plans = bench_plans(table, names, own, None if only else say_left_out)
    _simulate(table, plans, options, trace, report, json_to)


@app.command()
def simulate(
    table_file: Annotated[Path, typer.Option("--table", help="A cost table, such as a board's.")],
    plan_file: Annotated[
        Path | None, typer.Option("--plan", help="The plan; by default the best by the table.")
    ] = None,
    frames: FrameCount = None,
    slots: Slots = None,
    jitter: Jitter = 0.0,
    contention: Contentions = None,
    seed: Seed = 0,
    trace: Trace = None,
    report: Report = None,
    json_to: Json = None,
) -> None:
    """Run a plan in simulated time, on the cost table of a machine that is not at hand."""
    from corepipe import plan as planners
    from corepipe.cost.table import CostTable

    check_writable(json_to, files=[trace, report], inputs=[table_file, plan_file])
    options = options_of(frames, slots, jitter, contention, seed)
    table = CostTable.read(table_file)
    plan = planners.plan(table) if plan_file is None else planners.rated(read_plan(plan_file), table)
    _simulate(table, {plan.planner: plan}, options, trace, report, json_to)


def _simulate(
    table: Any,
    plans: Mapping[str, Any],
    options: Mapping[str, Any],
    trace: Path | None,
    report: Path | None,
    json_to: str | None,
) -> None:
    from corepipe.report import bench as reporting
    from corepipe.report.page import write_page
    from corepipe.simulate import simulate_bench

    results = simulate_bench(table, plans, **options)
    data = reporting.simulated_json(results, table, command_line())
    if json_to != "-":
        write_json(json_to, lambda: data)
    trace_plans(trace, results, table.network.layers, simulated=True, counters=())
    if report is not None:
        records = {r.name: r.records for r in results}
        write_page(report, None, None, table, results, records, simulated=True, command=command_line())
    if json_to == "-":
        write_json(json_to, lambda: data)
    else:
        title = f"{table.network.name} on {table.machine.description}, simulated"
        reporting.render_bench(results, title, out(), simulated=True)
