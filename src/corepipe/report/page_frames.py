"""The part of a page that shows one plan: its routes, its workers, and some frames on their way through."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from corepipe.plan.model import Hop, Route, evaluate
from corepipe.plan_results import HopCheck, PlanResult
from corepipe.report.html import Html, join, tag
from corepipe.report.life import hops_done, layers_text, shorten
from corepipe.report.sources import Sheet, milliseconds, number, percent
from corepipe.runtime.record import FrameRecord, HopTime

_FRAMES = 14
_LABEL_SHARE = 0.022
_GAP_SHARE = 0.005
_MAX_NEAR = 400
_MAX_CHIPS = 5


def plan_details(sheet: Sheet, result: PlanResult, records: Sequence[FrameRecord]) -> Html:
    """Routes, workers and a Gantt chart of one plan, folded up unless it is the best."""
    plan = result.plan
    taken = Counter(record.route for record in records)
    hops = {(h.worker, h.start, h.stop): h for h in result.hops}
    routes = [
        _route(sheet, result, index, route, taken, hops)
        for index, route in enumerate(plan.routes)
        if route.rate_fps > 0
    ]
    return tag(
        "details",
        tag("summary", tag("b", result.name), f" {number(result.throughput_fps)} frames/s, {_shape(result)}"),
        tag("h4", "Routes"),
        *routes,
        tag("h4", "Workers"),
        _workers(sheet, result),
        tag("h4", "Some frames ", sheet.run.pill()),
        gantt(sheet, result, records),
        open=result is sheet.best,
        class_="plan",
    )


def gantt(sheet: Sheet, result: PlanResult, records: Sequence[FrameRecord]) -> Html:
    """What each worker did while some frames went through, and the life of each of those frames."""
    chosen = typical(records, _FRAMES)
    if not chosen:
        return tag("p", "There are no records of frames.", class_="note")
    window = _Window(min(r.submitted_ns for r in chosen), max(r.done_ns for r in chosen))
    near = [r for r in records if r.done_ns >= window.begin and r.submitted_ns <= window.end]
    left_out = len(near[_MAX_NEAR:])
    lanes = []
    for worker in result.plan.workers:
        blocks = [
            _block(sheet, r, h, window)
            for r in near[:_MAX_NEAR]
            for h in hops_done(r)
            if h.worker == worker.name and h.ended_ns > window.begin and h.started_ns < window.end
        ]
        lanes.append(_lane(worker.name, "worker", blocks))
    for record in chosen:
        failed = ", failed" if record.failed else ""
        text = f"frame {record.frame}, route {record.route}{failed}: {milliseconds(record.latency_s)}"
        place = window.place(record.submitted_ns, record.done_ns)
        life = tag("i", "", class_="life", style=place, title=text, data_f=record.frame)
        blocks = [_block(sheet, record, hop, window, label=False) for hop in hops_done(record)]
        lanes.append(_lane(f"frame {record.frame}", "frame", [life, *blocks], record.frame))
    seconds = window.span * 1e-9
    ticks = [tag("span", _round(at * 1e3), style=f"left:{percent(at, seconds)}") for at in _ticks(seconds)]
    axis = tag("div", tag("span", "ms", class_="g-name"), tag("div", *ticks, class_="axis"), class_="g-row")
    return join(
        tag("div", tag("div", axis, *lanes, class_="gantt"), class_="scroll"),
        tag("p", "Above: what each worker runs, by frame. Below: a line from submission to result of each frame, thick "
                 "and in the worker's colour where it is being computed, thin where it waits.",
            f" {left_out} more frames of that time are not drawn." if left_out else None, class_="note"),
    )  # fmt: skip


def typical(records: Sequence[FrameRecord], count: int) -> list[FrameRecord]:
    """A run of frames, one submitted after the other, that took neither short nor long to pass through together."""
    ordered = sorted(records, key=lambda r: (r.submitted_ns, r.frame))
    count = min(count, len(ordered))
    if count == 0:
        return []
    windows = [ordered[i : i + count] for i in range(len(ordered) - count + 1)]
    spans = [max(r.done_ns for r in w) - w[0].submitted_ns for w in windows]
    middle = statistics.median_low(spans)
    return windows[spans.index(middle)]


def _route(
    sheet: Sheet,
    result: PlanResult,
    index: int,
    route: Route,
    taken: Counter[int],
    hops: dict[tuple[str, int, int], HopCheck],
) -> Html:
    total = sum(taken.values())
    planned: list[Html | str] = []
    if not result.alone:
        planned = [f"{number(route.rate_fps, 3)} frames/s planned ", sheet.table_source.pill()]
    measured: list[Html | str] = []
    if total:
        share = taken[index] / total
        rate = f"{number(share * result.throughput_fps, 3)} frames/s ({share:.0%} of the frames) "
        measured = [", " if planned else "", rate, sheet.run.pill()]
    head = tag("p", tag("b", f"route {index}"), ": ", *planned, *measured)
    if len(route.hops) <= _MAX_CHIPS:
        chips: list[Html] = []
        for hop in route.hops:
            chip = tag(
                "span",
                *(tag(name, text) for name, text in zip(("b", "span", "small"), _hop(sheet, hop, hops), strict=False)),
                class_="chip",
                style=f"background:{sheet.colors[hop.worker]};flex-grow:{hop.stop - hop.start}",
            )
            chips += [tag("span", "→", class_="arrow"), chip] if chips else [chip]
        return join(head, tag("div", *chips, class_="route"))
    pieces = []
    for hop in route.hops:
        check = hops.get((hop.worker, hop.start, hop.stop))
        share = check.measured_s * 1e6 if check is not None else 1.0
        style = f"flex:{share:.3f} 0 0;background:{sheet.colors[hop.worker]}"
        pieces.append(tag("i", tag("span", hop.worker), style=style, title=", ".join(_hop(sheet, hop, hops))))
    rows = [tag("tr", *(tag("td", text) for text in _hop(sheet, hop, hops))) for hop in route.hops]
    table = tag("div", tag("table", tag("tbody", *rows)), class_="scroll")
    return join(
        head,
        tag("div", *pieces, class_="strip workers long"),
        tag("details", tag("summary", f"{len(route.hops)} hops, the widths above being their times"), table),
    )


def _hop(sheet: Sheet, hop: Hop, checks: dict[tuple[str, int, int], HopCheck]) -> list[str]:
    """Its worker, its layers, and its times where they are known."""
    title = layers_text(hop.start, hop.stop)
    if sheet.layers:
        first, last = shorten(sheet.layers[hop.start], 40), shorten(sheet.layers[hop.stop - 1], 40)
        title += f": {first}" + (f" to {last}" if hop.stop > hop.start + 1 else "")
    check = checks.get((hop.worker, hop.start, hop.stop))
    if check is None:
        return [hop.worker, title]
    times = f"{milliseconds(check.measured_s)} {'simulated' if sheet.simulated else 'measured'}"
    if math.isfinite(check.predicted_s):
        times += f" · {milliseconds(check.predicted_s)} by the table"
    return [hop.worker, title, times]


def _workers(sheet: Sheet, result: PlanResult) -> Html:
    loads = {} if sheet.table is None or result.alone else evaluate(result.plan, sheet.table).load
    heads = [
        tag("th", "worker"), tag("th", "cores"), tag("th", "layers it holds"),
        tag("th", "load ", sheet.table_source.pill()), tag("th", "computing ", sheet.run.pill()),
    ]  # fmt: skip
    rows = []
    for worker in result.plan.workers:
        color = sheet.colors[worker.name]
        held = "; ".join(layers_text(*segment.layers) for segment in result.plan.segments_of(worker.name))
        rows.append(
            tag(
                "tr",
                tag("th", tag("span", "", class_="dot", style=f"background:{color}"), worker.name, scope="row"),
                tag("td", ", ".join(map(str, worker.cores))),
                tag("td", held),
                _share(loads.get(worker.name), color),
                _share(result.busy.get(worker.name), color),
            )
        )
    return tag("div", tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows)), class_="scroll")


def _share(share: float | None, color: str) -> Html:
    if share is None:
        return tag("td", "–")
    bar = tag("i", "", style=f"width:{percent(share)};background:{color}")
    return tag("td", tag("span", bar, class_="share"), f" {share:.0%}", class_="sharing")


@dataclass(frozen=True)
class _Window:
    """The time that a chart shows, in ns."""

    begin: int
    end: int

    @property
    def span(self) -> int:
        return max(self.end - self.begin, 1)

    def place(self, since: int, until: int) -> str:
        """Where an interval lies, as CSS."""
        since, until = max(since, self.begin), min(until, self.end)
        return f"left:{percent(since - self.begin, self.span)};width:{percent(until - since, self.span)}"


def _block(sheet: Sheet, record: FrameRecord, hop: HopTime, window: _Window, *, label: bool = True) -> Html:
    took = hop.ended_ns - hop.started_ns
    what = f"{layers_text(hop.start, hop.stop)} on {hop.worker}, {milliseconds(took * 1e-9)}"
    return tag(
        "i",
        str(record.frame) if label and took / window.span >= _LABEL_SHARE else "",
        class_="block wide" if took / window.span >= _GAP_SHARE else "block",
        style=f"{window.place(hop.started_ns, hop.ended_ns)};background:{sheet.colors.get(hop.worker, '#777')}",
        title=f"frame {record.frame}, route {record.route}: {what}",
        data_f=record.frame,
    )


def _lane(name: str, kind: str, blocks: Sequence[Html], frame: int | None = None) -> Html:
    label = tag("span", name, class_="g-name", data_f=frame)
    return tag("div", label, tag("div", *blocks, class_="lane"), class_=f"g-row g-{kind}")


def _ticks(seconds: float) -> list[float]:
    """At most eight round places on an axis that begins at 0."""
    least = seconds / 8
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least)
    return [step * i for i in range(int(seconds / step) + 1) if step * i < 0.97 * seconds]


def _round(value: float) -> str:
    return f"{value:.10g}"


def _shape(result: PlanResult) -> str:
    workers, routes = len(result.plan.workers), sum(r.rate_fps > 0 for r in result.plan.routes)
    return f"{workers} worker{'s' * (workers > 1)}, {routes} route{'s' * (routes > 1)}"
