"""The parts of a page that show the machine, and the layers coloured by cost and by worker."""

from __future__ import annotations

import math
from collections.abc import Sequence

from corepipe.cost.table import ConfigCosts
from corepipe.report.costs import costs_name
from corepipe.report.html import Html, join, tag
from corepipe.report.life import layers_text, shorten
from corepipe.report.sources import Sheet, milliseconds, number, percent
from corepipe.topology.model import Cache, Cluster

_MAX_COSTS = 10
_MAX_ROUTES = 8


def machine(sheet: Sheet) -> Html:
    """A card for each cluster, its cores coloured by the workers of the best plan."""
    worker_of: dict[int, str] = {}
    if sheet.best is not None:
        worker_of = {core: worker.name for worker in sheet.best.plan.workers for core in worker.cores}
    topology = sheet.topology
    if topology is not None:
        cards = [_card(sheet, c.name, [k.id for k in c.cores], worker_of, _facts(c)) for c in topology.clusters]
        notes = [*topology.hidden, *topology.warnings]
        about = topology.machine
    elif sheet.table is not None:
        described = sheet.table.machine
        cards = [_card(sheet, c.name, c.cores, worker_of, ()) for c in described.clusters]
        notes, about = [], described.description
    else:
        return tag("p", "Nothing is known of the machine.")
    colored = f"; cores are coloured by the workers of {sheet.best.name}" if sheet.best is not None else ""
    return join(
        tag("p", f"{about or 'a machine without a name'}{colored} ", sheet.machine.pill()),
        tag("div", *cards, class_="cards"),
        *(tag("p", note, class_="note") for note in notes),
    )


def layers(sheet: Sheet) -> Html:
    """Costs of every layer, and below them which worker runs it in every route of every plan."""
    count = len(sheet.layers)
    names = [shorten(name) for name in sheet.layers]
    rows: list[Html] = []
    if sheet.table is not None:
        chosen = _chosen(sheet)
        top = max((seconds for costs in chosen.values() for seconds in _seconds(costs)), default=0.0)
        rows.append(_columns(*next(iter(chosen.items())), names))
        rows += [_heat(label, costs, names, top) for label, costs in chosen.items()]
        left = len(sheet.table.configs) - len(chosen)
        legend = tag(
            "p",
            "Darkness is the cost of a layer, from ", tag("span", "", class_="ramp"), f" 0 to {milliseconds(top)} ",
            sheet.table_source.pill(), " with the other cores busy where that was measured.",
            f" The cost table has {left} more such rows." if left else None,
            class_="legend",
        )  # fmt: skip
    else:
        rows.append(_flops(sheet, names))
        legend = tag("p", "No cost table: the height is a layer's floating-point operations ", sheet.facts.pill(),
                     class_="legend")  # fmt: skip
    for result in sheet.results:
        used = [(number_, r) for number_, r in enumerate(result.plan.routes) if r.rate_fps > 0]
        rows.append(tag("div", tag("span", result.name, class_="l-name plan"), class_="l-row l-plan"))
        for route_number, route in used[:_MAX_ROUTES]:
            pieces = [
                tag(
                    "i",
                    tag("span", hop.worker),
                    style=f"flex:{hop.stop - hop.start} 0 0;background:{sheet.colors[hop.worker]}",
                    title=f"{layers_text(hop.start, hop.stop)} on {hop.worker}",
                )
                for hop in route.hops
            ]
            label = "the engine" if result.alone else f"route {route_number}, {number(route.rate_fps, 3)}/s"
            rows.append(_strip(label, "workers", pieces))
        if len(used) > _MAX_ROUTES:
            rows.append(_strip(f"{len(used) - _MAX_ROUTES} routes more", "", []))
    chart = tag("div", tag("div", *rows, class_="layers", style=f"min-width:{max(22, 9 + count * 0.45):.1f}rem"),
                class_="scroll")  # fmt: skip
    return join(chart, legend, tag("details", tag("summary", f"All {count} layers as a table"), _table(sheet, names)))


def _card(sheet: Sheet, name: str, cores: Sequence[int], worker_of: dict[int, str], facts: Sequence[str]) -> Html:
    squares = []
    for core in cores:
        worker = worker_of.get(core)
        color = f"background:{sheet.colors[worker]}" if worker else None
        text = f"core {core}: {worker or 'not used by this plan'}"
        squares.append(tag("span", core, class_="core" if worker else "core idle", style=color, title=text))
    plural = "" if len(cores) == 1 else "s"
    return tag(
        "div",
        tag("h3", f"{name} ", tag("small", f"{len(cores)} core{plural}")),
        tag("div", *squares, class_="cores"),
        *(tag("p", fact) for fact in facts),
        class_="card",
    )


def _facts(cluster: Cluster) -> list[str]:
    facts = [cluster.core_name, f"{cluster.capacity:.0%} of the fastest core"]
    if cluster.max_mhz is not None:
        facts.append(f"up to {cluster.max_mhz:.0f} MHz" + (f", {cluster.governor}" if cluster.governor else ""))
    facts.append(", ".join(_cache(cache) for cache in cluster.caches))
    return [fact for fact in facts if fact]


def _cache(cache: Cache) -> str:
    return cache.text + (f" for {cache.shared_by}" if cache.shared_by > 1 else "")


def _chosen(sheet: Sheet) -> dict[str, ConfigCosts]:
    """By name the costs that the plans run by, the best plan's first, then others as far as there is room."""
    assert sheet.table is not None
    known = {(costs.config, costs.mode): costs for rows in sheet.table.by_config.values() for costs in rows}
    plans = [result.plan for result in sorted(sheet.results, key=lambda result: result is not sheet.best)]
    used = [
        (plan.worker(hop.worker).config, part.mode)
        for plan in plans
        for route in plan.routes
        for hop in route.hops
        for part in plan.parts_of(hop)
    ]
    order = dict.fromkeys(key for key in [*used, *known] if key in known)
    return {costs_name(known[key], sheet.table): known[key] for key in list(order)[:_MAX_COSTS]}


def _seconds(costs: ConfigCosts) -> Sequence[float]:
    return costs.layer_s if costs.layer_busy_s is None else costs.layer_busy_s


def _columns(label: str, costs: ConfigCosts, names: Sequence[str]) -> Html:
    seconds = _seconds(costs)
    top = max(seconds, default=0.0)
    bars = [
        tag(
            "i",
            "",
            style=f"--h:{percent(s, top)};--v:{_shade(s, top)}",
            title=f"{i} {n}: {milliseconds(s)} on {label}",
        )
        for i, (n, s) in enumerate(zip(names, seconds, strict=True))
    ]
    return _strip(f"cost on {label}", "columns", bars, f"{milliseconds(top)}")


def _heat(label: str, costs: ConfigCosts, names: Sequence[str], top: float) -> Html:
    cells = [
        tag("i", "", style=f"--v:{_shade(s, top)}", title=f"{i} {n}: {milliseconds(s)} on {label}")
        for i, (n, s) in enumerate(zip(names, _seconds(costs), strict=True))
    ]
    return _strip(f"{label}, {milliseconds(sum(_seconds(costs)))}", "heat", cells)


def _flops(sheet: Sheet, names: Sequence[str]) -> Html:
    flops = [layer.descriptor.flops for layer in sheet.network.layers] if sheet.network else [0] * len(names)
    top = max(flops, default=0)
    bars = [
        tag("i", "", style=f"--h:{percent(f, top)};--v:{_shade(f, top)}", title=f"{i} {n}: {number(f / 1e6, 3)} MFLOPs")
        for i, (n, f) in enumerate(zip(names, flops, strict=True))
    ]
    return _strip("FLOPs", "columns", bars, f"{number(top / 1e6, 3)} M")


def _strip(label: str, kind: str, cells: Sequence[Html], note: str = "") -> Html:
    aside = tag("small", note) if note else None
    return tag(
        "div", tag("span", label, aside, class_="l-name"), tag("div", *cells, class_=f"strip {kind}"), class_="l-row"
    )


def _shade(value: float, top: float) -> str:
    return percent(math.sqrt(value), math.sqrt(top))


def _table(sheet: Sheet, names: Sequence[str]) -> Html:
    chosen = _chosen(sheet) if sheet.table else {}
    described = sheet.network.layers if sheet.network is not None else ()
    facts = ("kind", "MFLOPs", "weights MB") if described else ()
    groups = [tag("th", "", colspan=2)]
    if facts:
        groups.append(tag("th", sheet.facts.pill(), colspan=len(facts), class_="group"))
    if chosen:
        groups.append(tag("th", sheet.table_source.pill(), colspan=len(chosen), class_="group"))
    heads = [tag("th", "#", class_="num"), tag("th", "layer", scope="col")]
    heads += [tag("th", text, scope="col", class_=None if text == "kind" else "num") for text in facts]
    heads += [tag("th", f"{label} ms", scope="col", class_="num") for label in chosen]
    rows = []
    for index, name in enumerate(names):
        cells = [tag("td", index, class_="num"), tag("th", name, scope="row", class_="mono")]
        if described:
            about = described[index].descriptor
            cells.append(tag("td", about.kind))
            cells += [tag("td", number(v / 1e6, 3), class_="num") for v in (about.flops, about.bytes_weights)]
        cells += [tag("td", number(_seconds(c)[index] * 1e3, 3), class_="num") for c in chosen.values()]
        rows.append(tag("tr", *cells))
    return tag(
        "div", tag("table", tag("thead", tag("tr", *groups), tag("tr", *heads)), tag("tbody", *rows)), class_="scroll"
    )
