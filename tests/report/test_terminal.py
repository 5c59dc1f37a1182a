from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable

import pytest
from rich.console import Console

from corepipe.cost.predict.table import Interval, Prediction
from corepipe.cost.table import (
    ConfigCosts,
    CostTable,
    EngineName,
    Provenance,
    TableCluster,
    TableMachine,
    TableNetwork,
)
from corepipe.plan.model import Hop, Plan, PlanNetwork, Route, Worker
from corepipe.report.bench import render_bench
from corepipe.report.costs import render_costs
from corepipe.report.plan import render_plan
from corepipe.report.predict import render_prediction
from corepipe.report.terminal import Output, plain, rate_text, say
from corepipe.simulate import simulate_bench

NAMES = {
    "x[/]": "x[/]",
    "net[final]": "net[final]",
    "[red]": "[red]",
    "a:fire:": "a:fire:",
    "\\[bold]": "\\[bold]",
    "e\x1b]0;title\x07": "e\\u001b]0;title\\u0007",
    "two\nlines\r": "two\\u000alines\\u000d",
    "\u202etxt": "\\u202etxt",
}
"""Names as they are in a file, and as a terminal shows them."""


def table_of(name: str) -> CostTable:
    return CostTable(
        network=TableNetwork(name=name, sha256="0", layers=(name, "end"), cut_bytes=(1, 1, 1)),
        machine=TableMachine(description=name, fingerprint="", clusters=(TableCluster(name="cpu", cores=(0, 1)),)),
        engines=(EngineName(name=name, version="1"),),
        configs=(ConfigCosts(config="cpu1", engine=name, layer_s=(1e-3, 1e-3), layer_busy_s=(1e-3, 1e-3)),),
        provenance=Provenance(source="made-up", note=name, created=name),
    )


def plan_of(name: str) -> Plan:
    return Plan(
        planner=name,
        network=PlanNetwork(name=name, sha256="0", layers=2),
        workers=(
            Worker(name=name, config="cpu1", cores=(0,), engine=name),
            Worker(name="other", config="cpu1", cores=(1,), engine=name),
        ),
        routes=(Route(rate_fps=1, hops=(Hop(worker=name, layers=(0, 1)), Hop(worker="other", layers=(1, 2)))),),
    )


def show_bench(name: str, console: Console) -> None:
    results = simulate_bench(table_of(name), {"first": plan_of(name), name: plan_of(name)}, frames=100)
    render_bench(results, f"{name} on {name}", console, simulated=True)


def show_prediction(name: str, console: Console) -> None:
    interval = Interval(low_s=(0.0, 0.0), high_s=(1.0, 1.0), network_low_s=0.0, network_high_s=1.0)
    render_prediction(Prediction(table_of(name), {"cpu1": interval}, (name,)), console)


RENDERERS: dict[str, Callable[[str, Console], None]] = {
    "bench": show_bench,
    "costs": lambda name, console: render_costs(table_of(name), console),
    "plan": lambda name, console: render_plan(plan_of(name), table_of(name), console),
    "prediction": show_prediction,
    "say": lambda name, console: say(console, name),
    "cell": lambda name, console: console.print(plain(name, "bold")),
}


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize(("name", "shown"), NAMES.items())
def test_names_are_shown_as_they_are(renderer: str, name: str, shown: str) -> None:
    console = Console(file=io.StringIO(), width=300)
    RENDERERS[renderer](name, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown in text
    assert not set("\x1b\x07\r\u202e") & set(text)


def test_the_heading_of_a_plan_is_text_too() -> None:
    console = Console(file=io.StringIO(), width=300)
    render_plan(plan_of("net"), table_of("net"), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "hops: worker [layers]" in text
    assert "net [0-0 net]  ->  other [1-1 net]" in text, "with the engine, here of the same name"


def test_a_plan_on_the_default_engine_alone_does_not_repeat_its_name() -> None:
    console = Console(file=io.StringIO(), width=300)
    render_plan(plan_of("onnxruntime"), table_of("onnxruntime"), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "onnxruntime [0-0]  ->  other [1-1]" in text


def test_a_narrow_terminal_shows_fewer_columns_rather_than_parts_of_words() -> None:
    wide, narrow = (Console(file=io.StringIO(), width=width) for width in (200, 80))
    for console in (wide, narrow):
        show_bench("routes-exact", console)
    texts = [console.file.getvalue() for console in (wide, narrow)]  # type: ignore[attr-defined]
    assert ["p90 ms" in text for text in texts] == [True, False]
    assert ["for want of width" in text for text in texts] == [False, True]
    assert all("routes-exact" in text and "simulated" in text and "…" not in text for text in texts)
    assert all("--no-cache" not in text and "close other programs" not in text for text in texts)


def test_costs_of_several_engines_are_tables_of_their_own() -> None:
    one = table_of("net")
    configs = [c.model_copy(update={"engine": name}) for name in ("onnxruntime", "openvino") for c in one.configs]
    both = one.replaced(
        configs=tuple(configs), engines=tuple(EngineName(name=n, version="1") for n in ("onnxruntime", "openvino"))
    )
    console = Console(file=io.StringIO(), width=80)
    render_costs(both, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("whole network") == 2


@pytest.mark.parametrize("stderr", [False, True])
def test_a_reader_that_goes_away(stderr: bool) -> None:
    """Rich would take the program's standard output from it, and end it, whichever of the two was lost."""
    reading, writing = os.pipe()
    os.close(reading)
    before = os.fstat(1)
    with open(writing, "w") as file:
        console = Output(stderr=stderr, file=file)
        with contextlib.nullcontext() if stderr else pytest.raises(BrokenPipeError):
            say(console, "x" * 100_000)
        with contextlib.suppress(BrokenPipeError):
            say(console, "more")
        with contextlib.suppress(BrokenPipeError):
            file.close()
    assert (os.fstat(1).st_dev, os.fstat(1).st_ino) == (before.st_dev, before.st_ino)


@pytest.mark.parametrize(
    ("fps", "text"), [(0.012345, "0.01235"), (23.4, "23.4"), (9999.4, "9999"), (9999.6, "10000"), (123456.7, "123457")]
)
def test_high_rates_are_not_in_exponent_form(fps, text):
    assert rate_text(fps) == text
