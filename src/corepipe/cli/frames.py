"""Commands that run frames: bench, run."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from corepipe.cli.common import (
    Batch,
    Calibrated,
    Cores,
    Engines,
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
    as_given,
    command_line,
    costs_of,
    log,
    machine_at_hand,
    network_of,
    out,
    read_plan,
    refuse,
    refuse_for_costs,
    say_left_out,
    trace_plans,
    write_json,
)
from corepipe.cli.simulated import Contentions, FrameCount, Jitter, Seed, Slots, bench_simulated, options_of
from corepipe.document import check_writable
from corepipe.errors import CorepipeError, FrameError, NotTrustworthyError, UsageError, WorkerError
from corepipe.report.terminal import say

if TYPE_CHECKING:
    from corepipe.plan_results import PlanResult

_FEW = 10
"""A plan that a run changed to and that saw no more frames is not on its page."""


@app.command()
def bench(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(help="An ONNX file, or a network of the zoo.")] = None,
    input_spec: Annotated[
        str | None, typer.Option("--input", help="Frames to use: a folder of images, a video, arrays.")
    ] = None,
    plan_file: Annotated[
        list[Path] | None, typer.Option("--plan", help="Compare this plan too. May be repeated.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="Compare only these, any planner's.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Slices of time for each plan.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a slice at the least.")] = 1.0,
    simulate_on: Annotated[
        Path | None, typer.Option("--simulate", help="Run nothing: simulate on this cost table instead of a model.")
    ] = None,
    frame_count: FrameCount = None,
    slots: Slots = None,
    jitter: Jitter = 0.0,
    contention: Contentions = None,
    seed: Seed = 0,
    trace: Trace = None,
    report: Report = None,
    shape: Shapes = None,
    cores: Cores = None,
    no_cache: NoCache = False,
    engine: Engines = None,
    batch: Batch = 1,
    calibration: Calibrated = None,
    force: Force = False,
    json_to: Json = None,
) -> None:
    """Compare, on this machine: the engine by itself, all cores, one cluster alone, replicas, and pipelined plans."""
    from corepipe import compare
    from corepipe import plan as planners
    from corepipe.api import engine_names
    from corepipe.baseline import baselines
    from corepipe.bench_setup import bench_frames, bench_names, bench_plans, read_plans
    from corepipe.report import bench as reporting
    from corepipe.runtime.pool import check_cores, check_fits

    read = [model, simulate_on, input_spec, calibration, *(plan_file or ())]
    check_writable(json_to, files=[trace, report], inputs=read)
    if not math.isfinite(seconds):
        raise UsageError(f"--seconds {seconds:g} is not a length of time")
    if (model is None) == (simulate_on is None):
        raise UsageError("give either a model to run, or --simulate TABLE.json")
    if simulate_on is not None:
        refuse(
            context, "with --simulate",
            "input_spec", "rounds", "seconds", "shape", "cores", "no_cache", "calibration", "force",
            "engine", "batch",
        )  # fmt: skip
        options = options_of(frame_count, slots, jitter, contention, seed)
        bench_simulated(simulate_on, plan_file or [], only or [], options, trace, report, json_to)
        return
    refuse(context, "without --simulate", "frame_count", "slots", "jitter", "contention", "seed")
    refuse_for_costs(context, calibration)
    network, topology = network_of(str(model), shape), machine_at_hand(cores)
    own = read_plans(plan_file or ())
    alone = baselines((one.name for one in engine_names(engine)), str(model))
    names = bench_names([c.name for c in topology.clusters], only or (), list(own), list(alone))
    for plan in own.values():
        check_fits(plan, network)
        check_cores(plan, topology)
    frames, said = bench_frames(network, input_spec, _say_skipped)
    table = costs_of(network, topology, no_cache, engines=engine, batch=batch, calibration=calibration, force=force)
    plans = bench_plans(table, [n for n in names if n not in alone], own, None if only else say_left_out)
    failures: dict[str, CorepipeError] = {}

    def failed(name: str, error: CorepipeError) -> None:
        if only or name in own or not isinstance(error, WorkerError):
            raise error
        failures[name] = error
        say_left_out(name, error)

    say(log, f"frames: {said}")
    with ProgressBar() as on_progress, _sampler(topology, trace) as sampler:
        results = compare.compare(
            network, plans, topology, table, frames,
            rounds=rounds, slice_s=seconds, correct_rates={planners.BEST}, on_progress=on_progress, on_failure=failed,
            baselines=[alone[name] for name in names if name in alone],
        )  # fmt: skip
    if failures and (all(one.alone for one in results) or own.keys() - {one.name for one in results}):
        # A plan's failure rather than an engine's; with a plan goes what is the same by another name.
        of_plans = [error for name, error in failures.items() if name not in alone]
        raise next(iter(of_plans or failures.values()))
    data = reporting.bench_json(results, network, topology, table, command_line(), said)
    # What is kept before what is shown: whoever reads that may go away.
    if json_to != "-":
        write_json(json_to, lambda: data)
    trace_plans(trace, results, table.network.layers, simulated=False, counters=sampler.samples)
    if report is not None:
        from corepipe.report.page import write_page

        records = {r.name: r.records for r in results}
        write_page(report, network, topology, table, results, records, command=command_line(), frames=said)
    if json_to == "-":
        write_json(json_to, lambda: data)
    else:
        reporting.render_bench(results, f"{network.name} on {reporting.machine_title(topology)}", out())
        files = {path.stem: path for path in plan_file or ()}
        for command in _to_run(context, results, files):
            say(out(), command)
    if wrong := [result.name for result in results if not (result.outputs_equal or result.alone)]:
        raise CorepipeError(f"the outputs of {', '.join(wrong)} differ from the whole model's")
    if not all(result.stable for result in results):
        raise NotTrustworthyError("some figures are unstable (marked ?); close other programs and try again")


def _to_run(context: typer.Context, results: Sequence[PlanResult], files: Mapping[str, Path]) -> list[str]:
    """The commands that run the fastest plan; `routes` where nothing is clearly faster, as it follows the machine."""
    from corepipe import plan as planners
    from corepipe.plan_results import clearly_faster, fastest

    results = [result for result in results if not result.alone]
    if not any(result.outputs_equal for result in results):
        return []
    best = fastest(results)
    followed = next((r for r in results if r.name == planners.BEST and r.outputs_equal), best)
    if not clearly_faster(best, followed):
        best = followed
    given = as_given(context, "shape", "cores", "engine", "batch", "calibration", "force")
    where = as_given(context, "shape", "cores")
    model = context.params["model"]
    run = ["corepipe", "run", model, "--input", "FRAMES"]
    if best.name in files:
        return [f"To run it: {shlex.join([*run, '--plan', str(files[best.name]), *where])}"]
    if best.name == planners.EXACT:
        names = (f"plan{number}.json" for number in ("", *range(2, 1000)))
        file = next((name for name in names if not os.path.lexists(name)), "plan.json")
        plan = shlex.join(["corepipe", "plan", model, "--tolerance", "0", "-o", file, *given])
        return [f"To run it: {plan}", f"      then: {shlex.join([*run, '--plan', file, *where])}"]
    planner = [] if best.name == planners.BEST else ["--planner", best.name]
    return [f"To run it: {shlex.join([*run, *planner, *given])}"]


@app.command()
def run(
    context: typer.Context,
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
    rate: Annotated[float | None, typer.Option(min=0.001, help="Take so many frames a second at the most.")] = None,
    when_full: Annotated[
        str,
        typer.Option(help="What becomes of frames that come too fast: wait, drop-oldest (a live camera), or error."),
    ] = "wait",
    follow: Annotated[
        bool,
        typer.Option(
            "--follow/--no-follow", help="Correct a plan of `routes` while it runs, as cores slow down or recover."
        ),
    ] = True,
    trace: Trace = None,
    report: Report = None,
    color: Annotated[str | None, typer.Option(help="rgb, bgr or gray.")] = None,
    layout: Annotated[str | None, typer.Option(help="nchw or nhwc.")] = None,
    resize: Annotated[str | None, typer.Option(help="crop, crop:256 (shorter side), stretch or letterbox.")] = None,
    scale: Annotated[str | None, typer.Option(help="Pixels are multiplied by this first: 1/255.")] = None,
    mean: Annotated[str | None, typer.Option(help="Then this is subtracted: 0.485,0.456,0.406.")] = None,
    std: Annotated[str | None, typer.Option(help="Then it is divided by this: 0.229,0.224,0.225.")] = None,
    shape: Shapes = None,
    cores: Cores = None,
    no_cache: NoCache = False,
    engine: Engines = None,
    batch: Batch = 1,
    calibration: Calibrated = None,
    force: Force = False,
) -> None:
    """Run a model on real frames: top classes as text, or everything as JSONL or .npz."""
    from corepipe import frames as io
    from corepipe import plan as planners
    from corepipe.follow import Change, Follower
    from corepipe.network.graph import is_standard
    from corepipe.report.recording import LeftOut, Recording
    from corepipe.report.trace import TracedPlan, write_traces
    from corepipe.run import check_images, image_inputs, run_frames
    from corepipe.runtime.live import WhenFull, check_choice
    from corepipe.runtime.pool import check_cores, check_fits
    from corepipe.runtime.stream import Stream

    if plan_file is not None:
        refuse(context, "with --plan", "planner", "no_cache", "calibration", "force", "engine", "batch")
    refuse_for_costs(context, calibration)
    if follow and plan_file is not None:
        refuse(context, "with --plan", "follow")
    if follow and planner != planners.BEST:
        refuse(context, f"with a planner other than {planners.BEST}", "follow")
    if rate is not None and not math.isfinite(rate):
        raise UsageError(f"--rate {rate:g} is not a number of frames a second")
    check_choice("choice for --when-full", when_full, WhenFull)
    result_file = io.result_file(output)
    npz = result_file is not None and result_file.suffix.lower() == ".npz"
    check_writable(
        files=[trace, report, result_file if npz else None], in_place=[None if npz else result_file],
        inputs=[model, plan_file, input_spec and os.path.expanduser(input_spec), labels, calibration],
    )  # fmt: skip
    network, topology = network_of(model, shape), machine_at_hand(cores)
    planners.check_planner(planner, [c.name for c in topology.clusters])
    options = io.parse_options(mean=mean, std=std, scale=scale, layout=layout, color=color, resize=resize)
    prepare = image_inputs(network, options)
    names = None if labels is None else io.read_labels(labels)
    io.check_sink(output, outputs=network.outputs, labels=names, top_k=top)
    if npz:
        refuse(context, "with results in an .npz, which holds the outputs themselves", "labels", "top")
    # Behind operators of others, shapes may be unknown that are the same for all frames: each frame tells them.
    outputs = network.outputs if all(map(is_standard, network.body.graph.node)) else None
    if outputs is not None and not io.may_hold_classes(outputs, names):
        refuse(context, "where it is not one output of the network that holds class scores", "top")
    if input_spec is None:
        input_spec = _photographs(network, prepare)
    with io.open_source(input_spec, inputs=network.inputs, on_skip=_say_skipped) as source:
        if not source.images:
            refuse(
                context, "with arrays, which are taken as they are", "color", "layout", "resize", "scale", "mean", "std"
            )
        if source.images:
            check_images(source.name, network, prepare)
        table = None
        if plan_file is not None:
            chosen = read_plan(plan_file)
            check_fits(chosen, network)
            check_cores(chosen, topology)
        else:
            table = costs_of(
                network, topology, no_cache, engines=engine, batch=batch, calibration=calibration, force=force
            )
            chosen = planners.plan(table, planner, bound=False)
        for one in prepare.values() if source.images else ():
            say(log, f"preprocessing: {one.describe()}")
        say(log, f"plan: {chosen.planner}, workers {', '.join(w.name for w in chosen.workers)}")
        recording = Recording()
        with (
            _sampler(topology, trace) as sampler,
            Stream(network, chosen, topology, on_record=recording.add if trace or report else None) as stream,
            io.open_sink(  # replaces an older file
                output, outputs=outputs, labels=names, top_k=top, probabilities=network.probabilities
            ) as sink,
        ):
            changes: list[Change] = []
            if follow and table is not None and planner == planners.BEST:
                changes = Follower(stream, table, on_change=_say_change).changes
            summary = run_frames(
                stream, source, sink, prepare, limit, when_full=cast("WhenFull", when_full), rate_fps=rate
            )
            try:
                sink.close()
            except CorepipeError as error:
                first = summary.failure
                summary.failure = error if first is None else CorepipeError(f"{first}; and then {error}")
    # Frames of which there are no records ran by the last plan, or were near it.
    ran: list[tuple[str, planners.Plan, LeftOut | None]] = [(chosen.planner, chosen, None)]
    ran += [(f"{c.plan.planner} {c.number + 1}", c.plan, None) for c in changes if c.kind == "plan"]
    ran[-1] = (*ran[-1][:2], recording.left_out)
    for sentence in summary.sentences():
        say(log, sentence)
    if trace is not None:
        done = write_traces(
            trace,
            [TracedPlan(name, plan, recording.of_plan(n), left) for n, (name, plan, left) in enumerate(ran)],
            simulated=False,
            counters=sampler.samples,
            layers=[layer.name for layer in network.layers],
            changes=[(change.at_ns, f"{change.kind}: {change.reason}") for change in changes],
        )
        say(log, f"{trace}: {done.describe()}; open it in ui.perfetto.dev")
    if report is not None:
        try:
            _write_report(report, network, topology, table, ran, recording, input_spec)
        except FrameError as error:
            if not (summary.interrupted or summary.failure):
                raise
            say(log, f"no page: {error}")
    if summary.failure is not None:
        raise summary.failure
    if summary.interrupted:
        raise typer.Exit(130)
    if summary.failed or not summary.frames or (summary.dropped and when_full == "error"):
        raise typer.Exit(1)


def _write_report(
    path: Path, network: Any, topology: Any, table: Any, ran: list[Any], recording: Any, input_spec: str
) -> None:
    """The page of a run: its plan, and those that it changed to."""
    from corepipe.report.page import write_page
    from corepipe.report.summary import result_of_records

    records = {name: recording.of_plan(number) for number, (name, *_) in enumerate(ran)}
    done = {name: sum(not record.failed for record in records[name]) for name in records}
    most = max(done, key=lambda name: done[name])
    results = [
        result_of_records(name, plan, records[name], table)
        for name, plan, _ in ran
        if name == most or done[name] > _FEW
    ]
    said = f"{len(recording.records)} frames of {input_spec}, read and preprocessed meanwhile"
    if recording.left_out is not None:
        said += f"; {recording.left_out.count} later ones are not on this page"
    write_page(
        path, network, topology, table, results, records, successive=True, command=command_line(), frames=said
    )  # fmt: skip
    say(log, f"page written to {path}")


def _sampler(topology: Any, trace: Path | None) -> Any:
    """Samples core frequencies while a trace is being made."""
    from corepipe.report.frequency import FrequencySampler

    return FrequencySampler(topology.cpus if trace is not None else ())


def _photographs(network: Any, prepare: Any) -> str:
    """The folder of photographs that come with corepipe, for a network that takes images."""
    from corepipe.data import sample_frames

    if not prepare:
        wanted = ", ".join(f"{t.name} {t}" for t in network.inputs)
        raise UsageError(f"{network.name} does not take images ({wanted}); give frames with --input, as .npy or .npz")
    say(log, "frames: the photographs that come with corepipe (--input names others)")
    return str(sample_frames()[0].parent)


def _say_change(change: Any) -> None:
    say(log, f"the plan changes: {change.reason}")


def _say_skipped(skipped: Any) -> None:
    say(log, f"skipped {skipped.name}: {skipped.reason}")
