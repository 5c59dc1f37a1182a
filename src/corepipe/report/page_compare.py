"""The part of a page that puts throughput and latency of every plan side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator

from corepipe.plan_results import STABLE_SPREAD, PlanResult
from corepipe.report.bench import bottleneck
from corepipe.report.html import Html, join, tag
from corepipe.report.sources import Sheet, milliseconds, number, percent

_ROOM = 1.02


def headline(sheet: Sheet) -> Iterator[str]:
    """What the results mean, in sentences."""
    best = sheet.best
    if best is None:
        return
    if sheet.successive:
        steps = ", then ".join(f"{r.name} ({number(r.throughput_fps)} frames/s)" for r in sheet.results)
        yield f"The plan changed while it ran: {steps}. They ran at different times, so they are not compared."
        yield bottleneck(sheet.results[-1])
        return
    default = sheet.results[0]
    how = {"simulated": "in the simulation", "emulated": "measured on emulated cores"}.get(sheet.run.kind, "measured")
    fps = f"{number(best.throughput_fps)} frames/s"
    if len(sheet.results) == 1:
        yield f"{best.name}: {fps} {how}."
    elif best is default:
        yield f"Nothing beats {default.name} here: {fps} {how}."
    else:
        gain = best.throughput_fps / default.throughput_fps
        yield f"Best: {best.name} at {fps} {how}, {gain:.2f}x {default.name} ({number(default.throughput_fps)})."
    yield bottleneck(best)
    if best.plan.bound_fps:
        share = best.throughput_fps / best.plan.bound_fps
        yield (
            f"By the cost table no plan can exceed {number(best.plan.bound_fps)} frames/s; "
            f"{best.name} is at {share:.0%} of that."
        )


def comparison(sheet: Sheet) -> Html:
    """A row of bars for each plan, and all figures as a table below."""
    top_fps = max(max(_finite(r.throughput_spread_fps[1], r.predicted_fps, _bound(sheet, r))) for r in sheet.results)
    top_s = max(max(_finite(*r.latency_s)) for r in sheet.results)
    top_fps, top_s = top_fps * _ROOM, top_s * _ROOM
    head = tag(
        "div",
        tag("span", "plan", class_="c-name"),
        tag("span", "throughput, frames/s ", sheet.run.pill(), class_="c-fps"),
        tag("span", "latency from submission to result ", sheet.run.pill(), class_="c-lat"),
        class_="c-row c-head",
    )
    rows = [_row(sheet, result, top_fps, top_s) for result in sheet.results]
    legend = tag(
        "p",
        tag("span", "", class_="key k-spread"), "slowest to fastest slice  ",
        tag("span", "", class_="key k-pred"), "predicted ", sheet.table_source.pill(), " ",
        tag("span", "", class_="key k-bound"), "bound ", sheet.bound.pill(), "  ",
        tag("span", "", class_="key k-p50"), "p50  ",
        tag("span", "", class_="key k-p99"), "p50 to p90, line to p99",
        class_="legend",
    )  # fmt: skip
    notes = []
    if any(not r.stable for r in sheet.results):
        notes.append(
            f"? marks an unstable figure: half the range of its slices is over {STABLE_SPREAD:.0%} of their median."
        )
    if sheet.simulated:
        notes.append("Outputs are not compared in a simulation.")
    elif any(r.outputs_equal for r in sheet.results):
        notes.append(
            f"Outputs are equal where they differ from the whole model's by at most "
            f"{sheet.results[0].tolerance:g} of the largest magnitude."
        )
    return join(
        tag("div", head, *rows, class_="compare"),
        legend,
        *(tag("p", note, class_="note") for note in notes),
        tag("details", tag("summary", "All figures as a table"), _table(sheet)),
    )


def _row(sheet: Sheet, result: PlanResult, top_fps: float, top_s: float) -> Html:
    low, high = result.throughput_spread_fps
    unstable = "" if result.stable else " ?"
    marks = [
        tag("i", "", class_="bar", style=f"width:{percent(result.throughput_fps, top_fps)}"),
        tag("i", "", class_="spread", style=_span(low, high, top_fps), title=f"slices {number(low)} to {number(high)}"),
    ]
    if math.isfinite(result.predicted_fps):
        text = f"predicted {number(result.predicted_fps)} frames/s, {sheet.table_source.sentence}"
        marks.append(tag("i", "", class_="pred", style=f"left:{percent(result.predicted_fps, top_fps)}", title=text))
    if bound := _bound(sheet, result):
        text = f"bound {number(bound)} frames/s: {sheet.bound.sentence}"
        marks.append(tag("i", "", class_="bound", style=f"left:{percent(bound, top_fps)}", title=text))
    p50, p90, p99 = result.latency_s
    times = [
        tag("i", "", class_="p99", style=_span(p50, p99, top_s)),
        tag("i", "", class_="p90", style=_span(p50, p90, top_s)),
        tag("i", "", class_="p50", style=f"left:{percent(p50, top_s)}"),
    ]
    text = f"p50 {milliseconds(p50)}, p90 {milliseconds(p90)}, p99 {milliseconds(p99)}"
    return tag(
        "div",
        tag("span", result.name, class_="c-name"),
        tag(
            "span",
            tag("span", *marks, class_="track"),
            tag("b", number(result.throughput_fps) + unstable),
            class_="c-fps",
        ),
        tag("span", tag("span", *times, class_="track", title=text), tag("b", milliseconds(p50)), class_="c-lat"),
        class_="c-row best" if sheet.leads(result) else "c-row",
    )


def _table(sheet: Sheet) -> Html:
    default = sheet.results[0]
    run, by_table, bound = sheet.run.pill(), sheet.table_source.pill(), sheet.bound.pill()
    spans = ((None, 1), (run, 3), (by_table, 2), (bound, 1), (run, 6))
    groups = [tag("th", pill, colspan=span, class_="group") for pill, span in spans]
    figures = ("frames/s", "slices", "gain", "predicted", "reached", "bound", "p50 ms", "p90 ms", "p99 ms", "MB")
    heads = [tag("th", "plan", scope="col"), *(tag("th", text, scope="col", class_="num") for text in figures)]
    heads += [tag("th", text, scope="col") for text in ("outputs", "bottleneck")]
    rows = []
    for r in sheet.results:
        low, high = r.throughput_spread_fps
        values = [
            number(r.throughput_fps) + ("" if r.stable else " ?"),
            f"{number(low)} – {number(high)}",
            "–" if sheet.successive else f"{r.throughput_fps / default.throughput_fps:.2f}x",
            number(r.predicted_fps),
            f"{r.throughput_fps / r.predicted_fps:.0%}" if math.isfinite(r.predicted_fps) and r.predicted_fps else "–",
            number(_bound(sheet, r)),
            *(number(seconds * 1e3, 3) for seconds in r.latency_s),
            number(r.peak_rss_bytes / 1e6, 3) if r.peak_rss_bytes else "–",
        ]
        cells = [tag("td", text, class_="num") for text in values]
        cells += [tag("td", _outputs(sheet, r)), tag("td", f"{r.bottleneck} {r.busy[r.bottleneck]:.0%}")]
        rows.append(tag("tr", tag("th", r.name, scope="row"), *cells, class_="best" if sheet.leads(r) else None))
    return tag(
        "div", tag("table", tag("thead", tag("tr", *groups), tag("tr", *heads)), tag("tbody", *rows)), class_="scroll"
    )


def _outputs(sheet: Sheet, result: PlanResult) -> str:
    if sheet.simulated or math.isnan(result.largest_error):
        return "not compared"
    return "equal" if result.outputs_equal else f"DIFFER by {result.largest_error:.1e}"


def _bound(sheet: Sheet, result: PlanResult) -> float | None:
    """Its own, else the loosest of the other plans': what holds for any plan holds for it."""
    return result.plan.bound_fps or max((r.plan.bound_fps or 0.0 for r in sheet.results), default=0.0) or None


def _span(low: float, high: float, top: float) -> str:
    return f"left:{percent(low, top)};width:{percent(high - low, top)}"


def _finite(*values: float | None) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)] or [0.0]
