"""Commands about a model on a machine: inspect, profile, predict, plan."""

from __future__ import annotations

import functools
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corepipe.cli.common import (
    DEFAULT_ENGINE,
    Batch,
    Calibrated,
    Cores,
    Engines,
    Force,
    Json,
    Model,
    NoCache,
    OneEngine,
    Planner,
    ProgressBar,
    Shapes,
    app,
    as_given,
    costs_of,
    log,
    machine_at_hand,
    network_of,
    out,
    refuse,
    refuse_for_costs,
    topology_of,
    warn_of,
    write_json,
)
from corepipe.document import check_writable
from corepipe.errors import UsageError
from corepipe.report.terminal import say

if TYPE_CHECKING:
    from corepipe.cost.table import CostTable
    from corepipe.network.model import Network
    from corepipe.plan.model import Plan
    from corepipe.topology.model import Topology


@app.command()
def inspect(model: Model, shape: Shapes = None, json_to: Json = None) -> None:
    """Show a model's layers: shapes, GEMM dims, FLOPs, bytes, and what crosses at each cut."""
    from corepipe.report.inspect import inspect_json, render_inspect

    check_writable(json_to, inputs=[model])
    network = network_of(model, shape)
    if not write_json(json_to, lambda: inspect_json(network)):
        render_inspect(network, out())


@app.command()
def profile(
    context: typer.Context,
    model: Model,
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure each distinct layer once, predict the rest (needs a calibration).")
    ] = False,
    engine: Engines = None,
    batch: Batch = 1,
    shape: Shapes = None,
    cores: Cores = None,
    no_cache: NoCache = False,
    json_to: Json = None,
) -> None:
    """Measure every layer on every core config of this machine; Ctrl-C and start again to go on."""
    from corepipe.report.costs import render_costs

    check_writable(json_to, inputs=[model])
    if quick:
        refuse(context, "with --quick", "no_cache")
    network, topology = network_of(model, shape), machine_at_hand(cores)
    if quick:
        if batch > 1 or len(engine or ()) > 1:
            raise UsageError("--quick is for one engine, frame by frame: leave --batch out, name one --engine")
        table = _quick(network, topology, *(engine or ()))
    else:
        table = costs_of(network, topology, no_cache, engines=engine, batch=batch, measured=True)
    if not write_json(json_to, table.to_json):
        render_costs(table, out())


def _quick(network: Any, topology: Any, name: str = DEFAULT_ENGINE) -> Any:
    from corepipe.api import engine_name
    from corepipe.cost.calibration_store import CalibrationStore, not_calibrated
    from corepipe.cost.quick import profile_quick

    engine = engine_name(name)
    calibration = CalibrationStore().load(topology, engine)
    if calibration is None:
        raise UsageError(f"--quick predicts what it does not measure, and {not_calibrated(topology, engine)}")
    with ProgressBar() as on_progress:
        found = profile_quick(network, topology, engine, calibration, on_progress=on_progress)
    measured, count = found.distinct
    say(log, f"{measured} distinct layers of {count} measured; error of what is predicted: {found.error:.1%}")
    return found.table


@app.command()
def predict(
    context: typer.Context,
    model: Model,
    machine: Annotated[
        Path | None, typer.Option("--machine", help="Predict for the board that this calibration file is of.")
    ] = None,
    engine: OneEngine = DEFAULT_ENGINE,
    shape: Shapes = None,
    json_to: Json = None,
) -> None:
    """Predict every layer's time on every core config from its descriptor alone, with intervals."""
    from corepipe.report.predict import prediction_json, render_prediction

    check_writable(json_to, inputs=[model, machine])
    if machine is not None:
        refuse(context, "with --machine", "engine")
    prediction = _predicted(network_of(model, shape), machine, engine)
    if not write_json(json_to, lambda: prediction_json(prediction)):
        render_prediction(prediction, out())


def _predicted(network: Any, machine: Path | None, engine: str = DEFAULT_ENGINE) -> Any:
    """The prediction for the board of a calibration file, or for this machine."""
    from corepipe.api import engine_name
    from corepipe.cost.calibration_store import CalibrationStore, not_calibrated, read_calibration
    from corepipe.cost.predict.table import predict_table

    if machine is not None:
        return predict_table(network, read_calibration(machine, None, None))
    name, topology = engine_name(engine), topology_of(None)
    found = CalibrationStore().load(topology, name)
    if found is None:
        raise UsageError(not_calibrated(topology, name))
    return predict_table(network, found)


@app.command()
def plan(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(help="An ONNX file, or a network of the zoo.")] = None,
    table_file: Annotated[
        Path | None, typer.Option("--table", help="Plan on this cost table instead of a model's on this machine.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the plan to this file.")] = None,
    planner: Planner = "routes",
    latency_budget_ms: Annotated[
        float | None, typer.Option(help="The most that a frame may take on its route.")
    ] = None,
    memory_budget_mb: Annotated[float | None, typer.Option(help="The most weights that all workers may hold.")] = None,
    max_workers: Annotated[int | None, typer.Option(help="The most workers.")] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Share of throughput that routes may give up for fewer workers or hops, usually 0.02 (and 0.04 for "
            "one engine alone); 0 gives up none.",
        ),
    ] = None,
    tried: Annotated[
        bool,
        typer.Option("--try", help="Run this plan and others, plan anew by what they took, keep the fastest."),
    ] = False,
    predicted: Annotated[
        bool, typer.Option("--predict", help="Measure nothing: predict the costs from this machine's calibration.")
    ] = False,
    machine: Annotated[
        Path | None, typer.Option("--machine", help="Plan for the board that this calibration file is of.")
    ] = None,
    calibration: Calibrated = None,
    force: Force = False,
    engine: Engines = None,
    batch: Batch = 1,
    shape: Shapes = None,
    cores: Cores = None,
    no_cache: NoCache = False,
    json_to: Json = None,
) -> None:
    """Find the best plan for a model on this machine, and say why it is the best."""
    from corepipe import plan as planners
    from corepipe.cost.table import CostTable
    from corepipe.plan.build import restrict
    from corepipe.report.plan import render_plan
    from corepipe.topology import parse_cpu_list

    check_writable(json_to, files=[output], inputs=[model, table_file, machine, calibration])
    for option, value in (
        ("--latency-budget-ms", latency_budget_ms), ("--memory-budget-mb", memory_budget_mb),
        ("--max-workers", max_workers),
    ):  # fmt: skip
        if value is not None and not value > 0:
            raise UsageError(f"{option} {value:g}: give more than zero")
    if tolerance is not None and math.isnan(tolerance):
        raise UsageError("--tolerance nan is not a share of the throughput")
    if (model is None) == (table_file is None):
        raise UsageError("give either a model, or --table TABLE.json")
    if tried and planner != planners.BEST:
        raise UsageError(f"--try looks for the fastest of several planners' plans: leave out --planner {planner}")
    if tried:
        refuse(context, "with --try, which measures,", "predicted")
    if predicted:
        refuse(context, "with predicted costs", "no_cache")
    refuse_for_costs(context, calibration)
    if planner != planners.BEST:
        refuse(context, f"with --planner {planner}", "tolerance")
    weights = None
    if table_file is not None:
        refuse(context, "with --table", "predicted", "machine", "calibration", "force", "shape", "no_cache",
            "engine", "batch", "tried",
        )  # fmt: skip
        if memory_budget_mb is not None:
            raise UsageError("a memory budget needs the model: a cost table does not tell how large its weights are")
        table = CostTable.read(table_file)
    else:
        network = network_of(str(model), shape)
        weights = [layer.descriptor.bytes_weights for layer in network.layers]
        if machine is not None:
            refuse(context, "with --machine", "no_cache", "calibration", "force", "engine", "batch", "tried")
            table = _predicted(network, machine).table
        else:
            topology = machine_at_hand(cores) if tried else topology_of(cores)
            if not tried and not predicted:
                warn_of(topology)
            planners.check_planner(planner, [c.name for c in topology.clusters])
            table = costs_of(
                network, topology, no_cache, engines=engine, batch=batch, predict=predicted, calibration=calibration,
                force=force, tried=tried,
            )  # fmt: skip
    if cores is not None and (table_file or machine):
        table = restrict(table, parse_cpu_list(cores))
    find = functools.partial(
        planners.plan,
        tolerance=tolerance,
        latency_budget_s=None if latency_budget_ms is None else latency_budget_ms / 1e3,
        memory_budget_bytes=None if memory_budget_mb is None else memory_budget_mb * 1e6,
        layer_weight_bytes=weights,
        max_workers=max_workers,
    )
    if tried:
        found, table = _fastest(network, topology, table, find)
    else:
        found = find(table, planner)
    if output is not None:
        found.write(output)
        use = ["simulate", "--table", str(table_file)] if model is None else ["run", model, "--input", "FRAMES"]
        use += ["--plan", str(output), *as_given(context, "shape", *(() if machine or table_file else ("cores",)))]
        say(log, f"plan written to {output}; use it with: {shlex.join(['corepipe', *use])}")
    if not write_json(json_to, found.to_json):
        limited = any(limit is not None for limit in (latency_budget_ms, memory_budget_mb, max_workers))
        render_plan(found, table, out(), limited=limited)


def _fastest(
    network: Network, topology: Topology, table: CostTable, find: Callable[..., Plan]
) -> tuple[Plan, CostTable]:
    """The fastest of some plans, which run on this machine for a while, and the costs by what they took there.

    What they did goes to stderr.
    """
    from corepipe import plan as planners
    from corepipe.bench_setup import bench_frames
    from corepipe.report.bench import render_trial
    from corepipe.trial import trial

    frames, _ = bench_frames(network, None)
    with ProgressBar() as on_progress:
        found = trial(
            network, planners.candidates(table, find), topology, table, frames,
            replan=functools.partial(planners.replanned, find=find), on_progress=on_progress,
        )  # fmt: skip
    render_trial(found, log)
    return found.best.plan, found.table
