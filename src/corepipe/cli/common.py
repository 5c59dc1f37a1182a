"""What the commands share: the application, options, consoles, progress."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from typer.core import TyperGroup

from corepipe.document import write_atomically
from corepipe.errors import CorepipeError, UsageError
from corepipe.report.html import visible
from corepipe.report.terminal import WIDEST, Output, say


class Interrupted(Exception):
    """Ctrl-C ended a command; the message says what becomes of its work."""


class _Commands(TyperGroup):
    """Typer ends without a word on a KeyboardInterrupt, so it gets to see another exception."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Raises:
            Interrupted: on Ctrl-C.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("interrupted") from None


@contextlib.contextmanager
def resumable(how: str) -> Iterator[None]:
    """Say on Ctrl-C how to go on.

    Raises:
        Interrupted: on Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {how} from what was kept") from None


app = typer.Typer(
    cls=_Commands,
    help="CNN inference at the highest throughput that a CPU with unequal cores can give.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DEFAULT_ENGINE = "onnxruntime"

Model = Annotated[str, typer.Argument(help="An ONNX file, or a network of the zoo: squeezenet, resnet50, ...")]
Shapes = Annotated[
    list[str] | None, typer.Option("--shape", help="Fix an input's shape: name:1x3x224x224. May be repeated.")
]
Cores = Annotated[
    str | None, typer.Option("--cores", help="Stay within these logical CPUs (cores, on a cost table): 0-3,6.")
]
Json = Annotated[str | None, typer.Option("--json", help="Write the results as JSON to this file, or - for stdout.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Measure anew instead of using kept costs.")]
Planner = Annotated[
    str,
    typer.Option(
        help="routes, pipelines, pipeline, pipe-it, replicas, replicas-per-core, replicas-per-cluster, all-cores, or "
        "cluster:NAME.",
    ),
]

Calibrated = Annotated[
    Path | None, typer.Option("--calibration", help="Predict the costs from this file of `corepipe calibrate`.")
]
Force = Annotated[
    bool, typer.Option("--force", help="Use the calibration even if it is of another machine or engine version.")
]

Engines = Annotated[
    list[str] | None,
    typer.Option("--engine", help="An engine that may be used. May be repeated. By default all installed ones."),
]
OneEngine = Annotated[str, typer.Option("--engine", help="The engine: onnxruntime or openvino.")]
Batch = Annotated[
    int,
    typer.Option("--batch", min=1, max=1024, help="How many frames may run at once, where that gives throughput."),
]

Trace = Annotated[Path | None, typer.Option("--trace", help="Write a timeline that opens in ui.perfetto.dev.")]

Report = Annotated[Path | None, typer.Option("--report", help="Write an HTML page with everything to look at.")]

log = Output(stderr=True)


def out() -> Console:
    """The console for results; piped output is not cut to a terminal's width."""
    console = Output()
    return console if console.is_terminal else Output(width=WIDEST, soft_wrap=True)


def write_json(target: str | None, data: Callable[[], Any]) -> bool:
    """Write JSON where the user wants it; False if nowhere, so that the caller prints for people."""
    if target is None:
        return False
    value = data()
    text = value if isinstance(value, str) else json.dumps(value, indent=2, allow_nan=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_atomically(target, text)
    return True


def network_of(model: str, shapes: list[str] | None) -> Any:
    """The network that the user names."""
    from corepipe.network.load import open_network, parse_shape

    return open_network(model, dict(parse_shape(text) for text in shapes or ()))


def topology_of(cores: str | None) -> Any:
    """This machine, within the CPUs that the user names."""
    from corepipe.topology import detect, parse_cpu_list

    return detect(restrict_to=None if cores is None else parse_cpu_list(cores))


def machine_at_hand(cores: str | None) -> Any:
    """The same to run or measure on: it must be at hand, and what would spoil the figures is said on stderr."""
    topology = topology_of(cores)
    topology.check_at_hand()
    warn_of(topology)
    return topology


def warn_of(topology: Any) -> None:
    """Say on stderr what would spoil figures of this machine."""
    for warning in topology.warnings:
        say(log, f"warning: {warning}")


def costs_of(
    network: Any,
    topology: Any,
    no_cache: bool,
    *,
    engines: list[str] | None = None,
    batch: int = 1,
    predict: bool = False,
    measured: bool = False,
    calibration: Path | None = None,
    force: bool = False,
    tried: bool = False,
) -> Any:
    """The costs to plan with, and on stderr where they come from.

    Args:
        network: the network.
        topology: the machine.
        no_cache: measure now.
        engines: which engines plans may use; None for all.
        batch: how many frames may be run at once.
        predict: do not measure: predict from this machine's calibration.
        measured: do not predict.
        calibration: predict from this file.
        force: even if it is of another machine or engine version.
        tried: whether they are for plans that are to be tried on this machine now.
    """
    from corepipe import api

    how = "start again without --no-cache to go on" if no_cache else "start again to go on"
    with resumable(how), ProgressBar(api.measuring(network)) as on_progress:
        found = api.find_costs(
            network,
            topology,
            engines=engines,
            batch=batch,
            use_cache=not no_cache,
            predict=predict,
            measured=measured,
            calibration=calibration,
            force=force,
            aligned_within_s=api.ALIGNED_S if tried else math.inf,
            on_progress=on_progress,
        )
    say(log, found.source)
    return found.table


def read_plan(path: Path) -> Any:
    """The plan of a file, without the figures in it: they are of another cost table, or edited."""
    from corepipe.plan.model import Plan

    return Plan.read(path).model_copy(update={"predicted_fps": None, "bound_fps": None})


def command_line() -> str:
    """What the user typed, for results to name."""
    return shlex.join(["corepipe", *sys.argv[1:]])


def trace_plans(path: Path | None, results: Any, layers: Any, *, simulated: bool, counters: Any) -> None:
    """Write the timeline of several plans where the user wants one."""
    if path is None:
        return
    from corepipe.report.trace import TracedPlan, write_traces

    traced = [TracedPlan(r.name, r.plan, r.records) for r in results if r.same_as is None]
    summary = write_traces(path, traced, simulated=simulated, counters=counters, layers=layers)
    say(log, f"{path}: {summary.describe()}; open it in ui.perfetto.dev")


def say_left_out(name: str, error: CorepipeError) -> None:
    """Say on stderr which plan is not compared, and why."""
    say(log, f"without {name}: {error}")


def refuse(context: typer.Context, when: str, *parameters: str) -> None:
    """Stop where the user gives an option that would have no effect.

    Args:
        context: of the command.
        when: what makes the options void: `with --simulate`.
        parameters: their names.

    Raises:
        UsageError: the user gave one.
    """
    for parameter in context.command.params:
        if parameter.name in parameters and is_given(context, parameter.name):
            raise UsageError(f"{max(parameter.opts, key=len)} has no effect {when}; leave it out")


def refuse_for_costs(context: typer.Context, calibration: Path | None) -> None:
    """Stop where an option about costs has no effect, given where they come from.

    Raises:
        UsageError: the user gave one.
    """
    if calibration is None:
        refuse(context, "without --calibration", "force")
    else:
        refuse(context, "with predicted costs", "no_cache")


def as_given(context: typer.Context, *options: str) -> list[str]:
    """Of some options those that the user gave, as they are written on the command line."""
    words: list[str] = []
    for option in options:
        value = context.params[option]
        if not is_given(context, option):
            continue
        values = value if isinstance(value, list | tuple) else [value]
        words += [f"--{option}"] if value is True else [word for one in values for word in (f"--{option}", str(one))]
    return words


def is_given(context: typer.Context, parameter: str) -> bool:
    """Whether the user gave an option, rather than its default standing for it."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


class ProgressBar:
    """A live bar on a terminal; elsewhere at most one line, when the work begins.

    Args:
        begun: that line.
    """

    def __init__(self, begun: str | None = None) -> None:
        self._begun = begun
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=log,
            transient=True,
            disable=not log.is_terminal,
        )

    def __enter__(self) -> Callable[[float, str], None]:
        if not log.is_terminal:
            tell = functools.cache(lambda: say(log, self._begun) if self._begun else None)
            return lambda share, text: tell()
        self._bar.start()
        task = self._bar.add_task("", total=1.0)
        return lambda share, text: self._bar.update(task, completed=share, description=visible(text))

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
