"""A page to look at: one HTML file that needs nothing else, and says of every figure where it comes from."""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from importlib import resources

from corepipe import __version__
from corepipe.cost.table import CostTable
from corepipe.document import write_atomically
from corepipe.errors import PlanError
from corepipe.network.model import Network
from corepipe.plan_results import PlanResult
from corepipe.report.html import Html, join, raw, tag
from corepipe.report.page_compare import comparison, headline
from corepipe.report.page_frames import plan_details
from corepipe.report.page_layers import layers, machine
from corepipe.report.sources import Sheet, number
from corepipe.runtime.record import FrameRecord
from corepipe.topology.model import Topology


def write_page(
    path: str | os.PathLike[str],
    network: Network | None,
    topology: Topology | None,
    table: CostTable | None,
    results: Sequence[PlanResult],
    records: Mapping[str, Sequence[FrameRecord]],
    *,
    simulated: bool = False,
    successive: bool = False,
    command: str = "",
    frames: str = "",
) -> None:
    """Write the results of one or several plans of a network as a page.

    The file holds its styles and its script, asks for nothing from any network, and forbids itself to.

    Args:
        path: the HTML file.
        network: the network; None where only the cost table is at hand (a simulation).
        topology: the machine; None likewise.
        table: the costs; None where a plan ran without.
        results: the plans, the first being the one that gains are relative to; see
            `corepipe.report.summary.result_of_records` for a single run.
        records: the frames of each plan, by the result's name; a plan may be missing.
        simulated: whether results and records come from the simulator.
        successive: whether the plans ran one after the other, each where the one before was given up.
        command: the command line that made them.
        frames: a sentence on the frames that were fed.

    Raises:
        DocumentError: the file cannot be written.
        PlanError: plans, network and cost table do not belong together.
    """
    write_atomically(path, page(network, topology, table, results, records, simulated, successive, command, frames))


def page(
    network: Network | None,
    topology: Topology | None,
    table: CostTable | None,
    results: Sequence[PlanResult],
    records: Mapping[str, Sequence[FrameRecord]],
    simulated: bool = False,
    successive: bool = False,
    command: str = "",
    frames: str = "",
) -> str:
    """The text of the page that `write_page` writes."""
    sheet = Sheet.of(network, topology, table, results, simulated, successive)
    _check(sheet)
    name = network.name if network else table.network.name if table else _first_name(results)
    style, script = _file("page.css"), _file("page.js")
    sections = [
        ("Plans side by side", comparison(sheet) if results else None),
        ("The machine", machine(sheet)),
        ("Layers, by cost and by worker", layers(sheet) if sheet.layers else None),
        (
            "Routes and frames",
            join(*(plan_details(sheet, r, records.get(r.name, ())) for r in results)) if results else None,
        ),
        ("Where the figures come from", _sources(sheet, command, frames)),
    ]
    body = tag(
        "body",
        tag("header", tag("h1", name), tag("p", *_about(sheet))),
        tag("p", "Simulated: nothing on this page was run on the machine it shows.", class_="banner")
        if simulated
        else None,
        tag("div", *(tag("p", sentence) for sentence in headline(sheet)), class_="headline"),
        *(tag("section", tag("h2", title), content) for title, content in sections if content is not None),
        tag("footer", f"corepipe {__version__}, {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}"),
        tag("script", raw(script)),
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{name} - corepipe"),
        tag("style", raw(style)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _about(sheet: Sheet) -> list[Html | str]:
    parts: list[Html | str] = []
    if sheet.network is not None:
        network = sheet.network
        parts += [
            f"{len(network.layers)} layers, {number(network.flops / 1e9, 3)} GFLOPs a frame, "
            f"{number(network.weight_bytes / 1e6, 3)} MB of weights ",
            sheet.facts.pill(),
        ]
    elif sheet.layers:
        parts += [f"{len(sheet.layers)} layers ", sheet.table_source.pill()]
    return parts


def _sources(sheet: Sheet, command: str, frames: str) -> Html:
    sources = [sheet.run, sheet.table_source, sheet.bound, sheet.facts, sheet.machine]
    items = [join(tag("dt", source.pill()), tag("dd", source.sentence)) for source in dict.fromkeys(sources)]
    if sheet.network is not None:
        digest = tag("code", sheet.network.sha256[:16])
        items.append(join(tag("dt", "model"), tag("dd", f"{sheet.network.name}, sha256 ", digest)))
    for term, text in (("frames", frames), ("command", command)):
        if text:
            items.append(join(tag("dt", term), tag("dd", text)))
    return tag("dl", *items)


def _check(sheet: Sheet) -> None:
    for result in sheet.results:
        count = result.plan.network.layers
        if sheet.layers and count != len(sheet.layers):
            raise PlanError(
                f"plan {result.name} has {count} layers, the network has {len(sheet.layers)}; "
                f"take plan and network of the same model"
            )
    if sheet.network and sheet.table and len(sheet.network.layers) != sheet.table.layer_count:
        raise PlanError(
            f"the cost table has {sheet.table.layer_count} layers, network {sheet.network.name} has "
            f"{len(sheet.network.layers)}; profile the network again"
        )


def _first_name(results: Sequence[PlanResult]) -> str:
    return results[0].plan.network.name if results else "corepipe"


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    only = f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f"default-src 'none'; {only}; base-uri 'none'; form-action 'none'"


def _file(name: str) -> str:
    return (resources.files("corepipe.report") / name).read_text("utf-8").strip()
