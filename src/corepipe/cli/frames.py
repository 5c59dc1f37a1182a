"""Commands that run frames, for real or simulated: bench, run, simulate."""

from __future__ import annotations

import sys
from collections import deque
from pathlib import Path
from typing import Annotated, Any

import typer

from corepipe.cli.common import (
    Calibrated,
    Cores,
    Force,
    Json,
    Model,
    NoCache,
    Planner,
    ProgressBar,
    Report,
    Shapes,
    Trace,
    app,
    costs_of,
    log,
    network_of,
    out,
    topology_of,
    write_json,
)
from corepipe.errors import CorepipeError, NotTrustworthyError, UsageError


@app.command()
def bench(
    model: Annotated[str | None, typer.Argument(help="An ONNX file, or a network of the zoo.")] = None,
    input_spec: Annotated[
        str | None, typer.Option("--input", help="Frames to use: a folder of images, a video, arrays.")
    ] = None,
    plan_file: Annotated[
        list[Path] | None, typer.Option("--plan", help="Compare this plan too. May be repeated.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="Compare only these plans.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Slices of time for each plan.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a slice at the least.")] = 1.0,
    simulate_on: Annotated[
        Path | None, typer.Option("--simulate", help="Run nothing: simulate on this cost table instead of a model.")
    ] = None,
    trace: Trace = None,
    report: Report = None,
    shape: Shapes = None,
    cores: Cores = None,
    no_cache: NoCache = False,
    calibration: Calibrated = None,
    force: Force = False,
    json_to: Json = None,
) -> None:
    """Compare, on this machine: the engine's default way, one cluster alone, replicas, and the pipelined plans."""
    from corepipe import compare
    from corepipe.bench_setup import bench_frames, bench_names, bench_plans, read_plans
    from corepipe.report import bench as reporting
    from corepipe.runtime.pool import check_cores, check_fits

    if (model is None) == (simulate_on is None):
        raise UsageError("give either a model to run, or --simulate TABLE.json")
    if simulate_on is not None:
        _bench_simulated(simulate_on, plan_file or [], only or [], trace, report, json_to)
        return
    network, topology = network_of(str(model), shape), topology_of(cores)
    own = read_plans(plan_file or ())
    names = bench_names([c.name for c in topology.clusters], only or (), list(own))
    for plan in own.values():
        check_fits(plan, network)
        check_cores(plan, topology)
    frames, said = bench_frames(network, input_spec, _say_skipped)
    table = costs_of(network, topology, no_cache, calibration=calibration, force=force)
    plans = bench_plans(table, names, own)
    log.print(f"frames: {said}", highlight=False, soft_wrap=True)
    with ProgressBar() as on_progress, _sampler(topology, trace) as sampler:
        results = compare.compare(
            network, plans, topology, table, frames, rounds=rounds, slice_s=seconds, on_progress=on_progress
        )
    data = reporting.bench_json(results, network, topology, table, ["corepipe", *sys.argv[1:]], said)
    if not write_json(json_to, lambda: data) or json_to != "-":
        reporting.render_bench(results, f"{network.name} on {reporting.machine_title(topology)}", out())
    _write_trace(trace, results, table.network.layers, simulated=False, counters=sampler.samples)
    if report is not None:
        from corepipe.report.page import write_page

        records = {r.name: r.records for r in results}
        command = "corepipe bench " + network.name
        write_page(report, network, topology, table, results, records, command=command, frames=said)
    if not all(result.outputs_equal for result in results):
        raise CorepipeError("a plan's outputs differ from the whole model's; see the table above")
    if not all(result.stable for result in results):
        raise NotTrustworthyError("some figures are unstable (marked ?); close other programs and try again")


def _bench_simulated(
    path: Path, files: list[Path], only: list[str], trace: Path | None, report: Path | None, json_to: str | None
) -> None:
    from corepipe.bench_setup import bench_names, bench_plans, read_plans
    from corepipe.cost.table import CostTable
    from corepipe.report import bench as reporting
    from corepipe.simulate import simulate_bench

    table = CostTable.read(path)
    own = read_plans(files)
    names = bench_names([c.name for c in table.machine.clusters], only, list(own))
    results = simulate_bench(table, bench_plans(table, names, own))
    data = reporting.simulated_json(results, table, ["corepipe", *sys.argv[1:]])
    if not write_json(json_to, lambda: data) or json_to != "-":
        title = f"{table.network.name} on {table.machine.description}, simulated"
        reporting.render_bench(results, title, out(), simulated=True)
    _write_trace(trace, results, table.network.layers, simulated=True, counters=())
    _write_simulated_page(report, results, table)


def _write_simulated_page(report: Path | None, results: Any, table: Any) -> None:
    if report is None:
        return
    from corepipe.report.page import write_page

    records = {r.name: r.records for r in results}
    write_page(report, None, None, table, results, records, simulated=True, command="corepipe bench --simulate")


@app.command()
def simulate(
    table_file: Annotated[Path, typer.Option("--table", help="A cost table, such as a board's.")],
    plan_file: Annotated[
        Path | None, typer.Option("--plan", help="The plan; by default the best by the table.")
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="How many frames to feed.")] = 1000,
    jitter: Annotated[float, typer.Option(min=0, help="Coefficient of variation of a segment's time.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the drawn times.")] = 0,
    trace: Trace = None,
    report: Report = None,
    json_to: Json = None,
) -> None:
    """Run a plan in simulated time, on the cost table of a machine that is not at hand."""
    from corepipe import plan as planners
    from corepipe.cost.table import CostTable
    from corepipe.plan.model import Plan
    from corepipe.report import bench as reporting
    from corepipe.simulate import simulate_bench

    table = CostTable.read(table_file)
    plan = planners.plan(table) if plan_file is None else Plan.read(plan_file)
    results = simulate_bench(table, {plan.planner: plan}, frames=frames, jitter=jitter, seed=seed)
    data = reporting.simulated_json(results, table, ["corepipe", *sys.argv[1:]])
    if not write_json(json_to, lambda: data) or json_to != "-":
        title = f"{table.network.name} on {table.machine.description}, simulated"
        reporting.render_bench(results, title, out(), simulated=True)
    _write_trace(trace, results, table.network.layers, simulated=True, counters=())
    _write_simulated_page(report, results, table)


@app.command()
def run(
    model: Model,
    input_spec: Annotated[
        str | None,
        typer.Option(
            "--input",
            "-i",
            help="A folder of images, an image, a video, camera:0, .npy, .npz, or - (stdin); by default the "
            "photographs that come with corepipe.",
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="- for JSONL on stdout, or a .jsonl, .npz or .txt file.")
    ] = None,
    plan_file: Annotated[Path | None, typer.Option("--plan", help="Run this plan instead of the best one.")] = None,
    planner: Planner = "routes",
    labels: Annotated[Path | None, typer.Option(help="Class names, one a line.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to give.")] = 5,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many frames.")] = None,
    trace: Trace = None,
    color: Annotated[str | None, typer.Option(help="rgb, bgr or gray.")] = None,
    layout: Annotated[str | None, typer.Option(help="nchw or nhwc.")] = None,
    resize: Annotated[str | None, typer.Option(help="crop, crop:256 (shorter side), stretch or letterbox.")] = None,
    scale: Annotated[str | None, typer.Option(help="Pixels are multiplied by this first: 1/255.")] = None,
    mean: Annotated[str | None, typer.Option(help="Then this is subtracted: 0.485,0.456,0.406.")] = None,
    std: Annotated[str | None, typer.Option(help="Then it is divided by this: 0.229,0.224,0.225.")] = None,
    shape: Shapes = None,
    cores: Cores = None,
    no_cache: NoCache = False,
    calibration: Calibrated = None,
    force: Force = False,
) -> None:
    """Run a model on real frames: top classes as text, or everything as JSONL or .npz."""
    from corepipe import frames as io
    from corepipe import plan as planners
    from corepipe.plan.model import Plan
    from corepipe.report.trace import MAX_FRAMES, write_trace
    from corepipe.run import image_inputs, run_frames
    from corepipe.runtime.stream import FrameRecord, Stream

    network, topology = network_of(model, shape), topology_of(cores)
    planners.check_planner(planner, [c.name for c in topology.clusters])
    options = io.parse_options(mean=mean, std=std, scale=scale, layout=layout, color=color, resize=resize)
    prepare = image_inputs(network, options)
    names = None if labels is None else io.read_labels(labels)
    if input_spec is None:
        input_spec = _photographs(network, prepare)
    with io.open_source(input_spec, inputs=network.inputs, on_skip=_say_skipped) as source:
        if plan_file is not None:
            chosen = Plan.read(plan_file)
        else:
            table = costs_of(network, topology, no_cache, calibration=calibration, force=force)
            chosen = planners.plan(table, planner, tolerance=planners.MEASURED_TOLERANCE)
        for one in prepare.values():
            log.print(f"preprocessing: {one.describe()}", highlight=False, soft_wrap=True)
        log.print(f"plan: {chosen.planner}, workers {', '.join(w.name for w in chosen.workers)}", highlight=False)
        records: deque[FrameRecord] = deque(maxlen=MAX_FRAMES)
        with (
            io.open_sink(output, outputs=network.outputs, labels=names, top_k=top) as sink,
            _sampler(topology, trace) as sampler,
            Stream(network, chosen, topology, on_record=records.append if trace else None) as stream,
        ):
            summary = run_frames(stream, source, sink, prepare, limit)
    if trace is not None:
        layers = [layer.name for layer in network.layers]
        done = write_trace(trace, list(records), chosen, simulated=False, counters=sampler.samples, layers=layers)
        log.print(f"{trace}: {done.describe()}; open it in ui.perfetto.dev", highlight=False, soft_wrap=True)
    for sentence in summary.sentences():
        log.print(sentence, highlight=False, soft_wrap=True)
    if summary.interrupted:
        raise typer.Exit(130)
    if summary.failed or not summary.frames:
        raise typer.Exit(1)


def _sampler(topology: Any, trace: Path | None) -> Any:
    """Samples core frequencies while a trace is being made."""
    from corepipe.report.frequency import FrequencySampler

    return FrequencySampler(topology.cpus if trace is not None else ())


def _write_trace(path: Path | None, results: Any, layers: Any, *, simulated: bool, counters: Any) -> None:
    if path is None:
        return
    from corepipe.report.trace import TracedPlan, write_traces

    traced = [TracedPlan(r.name, r.plan, r.records) for r in results]
    summary = write_traces(path, traced, simulated=simulated, counters=counters, layers=layers)
    log.print(f"{path}: {summary.describe()}; open it in ui.perfetto.dev", highlight=False, soft_wrap=True)


def _photographs(network: Any, prepare: Any) -> str:
    """The folder of photographs that come with corepipe, for a network that takes images."""
    from corepipe.data import sample_frames

    if not prepare:
        wanted = ", ".join(f"{t.name} {t}" for t in network.inputs)
        raise UsageError(f"{network.name} does not take images ({wanted}); give frames with --input, as .npy or .npz")
    log.print("frames: the photographs that come with corepipe (--input names others)", highlight=False, soft_wrap=True)
    return str(sample_frames()[0].parent)


def _say_skipped(skipped: Any) -> None:
    log.print(f"skipped {skipped.name}: {skipped.reason}", highlight=False, soft_wrap=True, markup=False)
