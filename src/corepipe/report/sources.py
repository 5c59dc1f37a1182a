"""Where the figures of a page come from, in words, and how figures are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from corepipe.cost.table import CostTable
from corepipe.network.model import Network
from corepipe.plan_results import PlanResult
from corepipe.report.costs import engines_text
from corepipe.report.html import Html, tag
from corepipe.topology.model import Topology

_TABLES = {
    "measured": "measured with the engine",
    "emulated": "measured with the engine on cores slowed by emulation",
    "predicted": "predicted by a calibrated model, not measured",
    "board": "made from figures measured on a board",
    "made-up": "made up",
}
_BOUND = "the most that any plan can reach by the cost table, proved by a linear program"
_COLORS = ("#1f6fb2", "#b8500a", "#2a7d46", "#8b46a8", "#a3342f", "#0b7a82", "#7a6a00", "#b03a78")


@dataclass(frozen=True)
class Source:
    """A kind (`measured`, `emulated`, `simulated`, `table`, `proved`, `read`), a short label and a sentence."""

    kind: str
    label: str
    sentence: str

    def pill(self) -> Html:
        """The label, marked as one, with the sentence behind it."""
        return tag("span", self.label, class_=f"src {self.kind}", title=self.sentence)


@dataclass(frozen=True)
class Sheet:
    """All that a page shows.

    Attributes:
        results: the plans in the order of their comparison, the first being the one that gains are relative to.
        best: the fastest of them whose outputs are not known to be wrong; None without results.
        layers: layer names, empty where neither network nor table is known.
        colors: a colour for every worker name.
        successive: whether the plans ran one after the other, each where the one before was given up, so that they are
            not compared.
        run, table_source, bound, facts, machine: where the figures of each sort come from.
    """

    network: Network | None
    topology: Topology | None
    table: CostTable | None
    results: Sequence[PlanResult]
    best: PlanResult | None
    layers: Sequence[str]
    colors: dict[str, str]
    simulated: bool
    successive: bool
    run: Source
    table_source: Source
    bound: Source
    facts: Source
    machine: Source

    def leads(self, result: PlanResult) -> bool:
        """Whether it is the best of plans that are compared."""
        return result is self.best and not self.successive

    @classmethod
    def of(
        cls,
        network: Network | None,
        topology: Topology | None,
        table: CostTable | None,
        results: Sequence[PlanResult],
        simulated: bool,
        successive: bool = False,
    ) -> Sheet:
        """Put together, with the sources told apart."""
        best = max(results, key=lambda r: (not _wrong(r), r.throughput_fps), default=None)
        names = [layer.name for layer in network.layers] if network else table.network.layers if table else ()
        workers = [w.name for r in sorted(results, key=lambda r: r is not best) for w in r.plan.workers]
        table_source = _table_source(table)
        return cls(
            network, topology, table, results, best, names, _colors(workers), simulated,
            successive=successive and len(results) > 1,
            run=_run_source(topology, table, simulated),
            table_source=table_source,
            bound=Source("proved", "proved", _BOUND),
            facts=Source("read", "from the model", "counted in the ONNX graph, nothing was timed"),
            machine=_machine_source(topology),
        )  # fmt: skip


def _run_source(topology: Topology | None, table: CostTable | None, simulated: bool) -> Source:
    if simulated:
        machine = (table.machine.description if table else "") or "a machine that is not at hand"
        return Source("simulated", "simulated", f"simulated event by event on the cost table of {machine}; nothing ran")
    if topology is not None and topology.emulated:
        return Source("emulated", "measured, emulated cores", "measured here, on cores slowed by `corepipe emulate`")
    return Source("measured", "measured here", "measured on this machine, in the run that made this page")


def _table_source(table: CostTable | None) -> Source:
    if table is None:
        return Source("table", "no cost table", "there was no cost table")
    about = table.provenance
    kind = _TABLES[about.source]
    sentence = f"by the cost table of {table.machine.description or 'an unnamed machine'}, {kind}"
    sentence += f" ({engines_text(table)})"
    sentence += f", {about.created}" if about.created else ""
    sentence += f"; {about.note}" if about.note else ""
    return Source("table", f"cost table ({about.source})", sentence)


def _machine_source(topology: Topology | None) -> Source:
    if topology is None:
        return Source("table", "from the cost table", "the machine as the cost table describes it")
    return Source("read", "read here", f"read from {topology.source}")


def _wrong(result: PlanResult) -> bool:
    return not result.outputs_equal and not math.isnan(result.largest_error)


def _colors(names: Sequence[str]) -> dict[str, str]:
    colors: dict[str, str] = {}
    for name in names:
        number = len(colors)
        if name not in colors:
            further = f"hsl({number * 137.5 % 360:.0f} 45% 36%)"
            colors[name] = _COLORS[number] if number < len(_COLORS) else further
    return colors


def number(value: float | None, digits: int = 4) -> str:
    """A figure with some significant digits, never in exponent form; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:,.{min(max(decimals, 0), 9)}f}"


def milliseconds(seconds: float | None) -> str:
    """Seconds as `1.23 ms`."""
    text = number(None if seconds is None else seconds * 1e3, 3)
    return text if text == "–" else f"{text} ms"


def percent(part: float, whole: float = 1.0) -> str:
    """For a CSS length: `12.34%`."""
    share = part / whole if whole > 0 else 0.0
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%"
