"""A timeline of frames in the Chrome trace event format, which ui.perfetto.dev and chrome://tracing open.

The format: "Trace Event Format" (Google, 2016), JSON object form. One process per plan holds one thread per worker with
a complete event ("X") per hop, nestable async events ("b", "e") for the life of each frame, flow ids that join the
hops of a frame, and counters ("C").
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from corepipe import __version__
from corepipe.document import write_atomically
from corepipe.errors import PlanError
from corepipe.plan.model import Plan
from corepipe.report.frequency import CounterSample
from corepipe.report.life import hops_done, segment_name, waits
from corepipe.report.recording import MAX_FRAMES, LeftOut
from corepipe.runtime.record import FrameRecord

_Event = dict[str, Any]

_FRAMES_TID = 0


@dataclass(frozen=True)
class TracedPlan:
    """A plan with what happened to its frames; a trace may hold several, each as a process of its own.

    Attributes:
        name: what the process is called, such as `routes`.
        records: in any order; all times on one clock.
        left_out: later frames of which there are no records, as `Recording` counts them.
    """

    name: str
    plan: Plan
    records: Sequence[FrameRecord]
    left_out: LeftOut | None = None


@dataclass(frozen=True)
class TraceSummary:
    """What a trace holds and what was left out, by plan."""

    frames: dict[str, int]
    dropped: dict[str, LeftOut]

    def describe(self) -> str:
        """One sentence."""
        text = f"frames in the trace: {sum(self.frames.values())}"
        for name, dropped in self.dropped.items():
            text += f"; {dropped.count} later ones of {name} left out (frames {dropped.first} to {dropped.last})"
        return text


def write_trace(
    path: str | os.PathLike[str],
    records: Sequence[FrameRecord],
    plan: Plan,
    *,
    simulated: bool,
    counters: Iterable[CounterSample] = (),
    layers: Sequence[str] = (),
    left_out: LeftOut | None = None,
    max_frames: int = MAX_FRAMES,
) -> TraceSummary:
    """Write the timeline of one plan; see `write_traces`, and `TracedPlan` for `left_out`.

    Raises:
        DocumentError: the file cannot be written.
        PlanError: `layers` or a record does not fit the plan.
    """
    traced = TracedPlan(plan.planner, plan, records, left_out)
    return write_traces(path, [traced], simulated=simulated, counters=counters, layers=layers, max_frames=max_frames)


def write_traces(
    path: str | os.PathLike[str],
    plans: Sequence[TracedPlan],
    *,
    simulated: bool,
    counters: Iterable[CounterSample] = (),
    layers: Sequence[str] = (),
    changes: Iterable[tuple[int, str]] = (),
    max_frames: int = MAX_FRAMES,
) -> TraceSummary:
    """Write the timeline of plans that ran one after the other (or by turns) on one clock.

    Args:
        path: the JSON file; opens in ui.perfetto.dev.
        plans: the plans, all of one network.
        simulated: whether the times come from a simulator, not from a run; the trace says so.
        counters: more counter tracks, such as `FrequencySampler.samples`; those outside the frames' time are left out.
        layers: the network's layer names, for the names of the slices.
        changes: moments (CLOCK_MONOTONIC, nanoseconds) at which the plan of a stream changed, and why.
        max_frames: frames of all plans together at the most.

    Raises:
        DocumentError: the file cannot be written.
        PlanError: `layers` or a record does not fit a plan.
    """
    parts = _earliest(plans, max_frames)
    begin = min((r.submitted_ns for kept, _ in parts for r in kept), default=0)
    end = max((r.done_ns for kept, _ in parts for r in kept), default=0)
    how = "simulated" if simulated else "measured"
    flows = itertools.count(1)
    events: list[_Event] = []
    summary = TraceSummary({}, {})
    for pid, (traced, (records, others)) in enumerate(zip(plans, parts, strict=True), 1):
        if layers and len(layers) != traced.plan.network.layers:
            raise PlanError(
                f"plan {traced.name}: has {traced.plan.network.layers} layers, {len(layers)} layer names were given; "
                f"take plan and network of the same model"
            )
        events += _names(pid, traced, how)
        events += _hops(pid, traced.plan, records, layers, begin, flows)
        events += _lives(pid, records, begin)
        events += _depths(pid, traced.records, begin, end)
        summary.frames[traced.name] = len(records)
        if dropped := _dropped(others, traced.left_out):
            summary.dropped[traced.name] = dropped
            text = f"{dropped.count} later frames left out ({dropped.first} to {dropped.last})"
            events.append({"ph": "i", "s": "p", "pid": pid, "tid": 0, "ts": _us(end - begin), "name": text})
    events += [
        {"ph": "i", "s": "g", "pid": 1, "tid": _FRAMES_TID, "ts": _us(at - begin), "name": text}
        for at, text in changes
        if begin <= at <= end
    ]
    events += _samples(len(plans) + 1, counters, begin, end)
    network = plans[0].plan.network.name if plans else ""
    about = {
        "made_by": f"corepipe {__version__}",
        "network": network,
        "source": "simulated on a cost table" if simulated else "measured in a run",
        "clock": "simulated time" if simulated else "CLOCK_MONOTONIC",
        "clock_at_zero_ns": begin,
        "contents": summary.describe(),
    }
    lines = ",\n".join(json.dumps(event, separators=(",", ":")) for event in events)
    header = f'"displayTimeUnit":"ms",\n"otherData":{json.dumps(about)},\n'
    write_atomically(path, f'{{{header}"traceEvents":[\n{lines}\n]}}\n')
    return summary


def _earliest(plans: Sequence[TracedPlan], count: int) -> list[tuple[list[FrameRecord], list[FrameRecord]]]:
    """For each plan its earliest frames, `count` of all plans together, and its others, in order of submission.

    Each plan gets the same number; what one has no frames for goes to the others.
    """
    parts: dict[int, tuple[list[FrameRecord], list[FrameRecord]]] = {}
    for done, index in enumerate(sorted(range(len(plans)), key=lambda i: len(plans[i].records))):
        records = sorted(plans[index].records, key=lambda r: (r.submitted_ns, r.frame))
        share = count // (len(plans) - done)
        parts[index] = records[:share], records[share:]
        count -= len(parts[index][0])
    return [parts[index] for index in range(len(plans))]


def _dropped(others: Sequence[FrameRecord], left_out: LeftOut | None) -> LeftOut | None:
    """The frames that do not come into the trace, whether there are records of them or not."""
    if not others:
        return left_out
    numbers = [record.frame for record in others]
    here = LeftOut(len(numbers), min(numbers), max(numbers))
    return here if left_out is None else here + left_out


def _names(pid: int, traced: TracedPlan, how: str) -> Iterator[_Event]:
    yield _meta(pid, 0, "process_name", name=f"{traced.name} ({how})")
    yield _meta(pid, 0, "process_sort_index", sort_index=pid)
    for worker, tid in _tids(pid, traced.plan).items():
        of = traced.plan.worker(worker)
        cores = ",".join(map(str, of.cores))
        yield _meta(pid, tid, "thread_name", name=f"{worker} (core{'s' * (len(of.cores) > 1)} {cores})")
        yield _meta(pid, tid, "thread_sort_index", sort_index=tid)


def _tids(pid: int, plan: Plan) -> dict[str, int]:
    """Thread numbers by worker; none equals `pid`, which viewers take for a main thread and put out of order."""
    return {worker.name: 1000 * pid + number for number, worker in enumerate(plan.workers, 1)}


def _meta(pid: int, tid: int, kind: str, **args: Any) -> _Event:
    return {"ph": "M", "pid": pid, "tid": tid, "name": kind, "args": args}


def _hops(
    pid: int, plan: Plan, records: Iterable[FrameRecord], layers: Sequence[str], begin: int, flows: Iterator[int]
) -> Iterator[_Event]:
    tids = _tids(pid, plan)
    names = {hop.layers: segment_name(hop.start, hop.stop, layers) for r in plan.routes for hop in r.hops}
    for record in records:
        hops = hops_done(record)
        if unknown := {hop.worker for hop in hops} - tids.keys():
            raise PlanError(f"frame {record.frame} ran on {min(unknown)!r}, which is no worker of this plan")
        flow = next(flows)
        for number, hop in enumerate(hops):
            event = {
                "ph": "X",
                "pid": pid,
                "tid": tids[hop.worker],
                "ts": _us(hop.started_ns - begin),
                "dur": _us(hop.ended_ns - hop.started_ns),
                "cat": "hop",
                "name": names.get((hop.start, hop.stop)) or segment_name(hop.start, hop.stop, layers),
                "args": {"frame": record.frame, "route": record.route, "layers": [hop.start, hop.stop]},
            }
            if len(hops) > 1:
                event |= {"bind_id": flow, "flow_in": number > 0, "flow_out": number < len(hops) - 1}
            yield event


def _lives(pid: int, records: Sequence[FrameRecord], begin: int) -> Iterator[_Event]:
    """Async events; frames of a route that are under way together lie on lanes (ids), which are used again."""
    free: dict[int, list[int]] = defaultdict(list)
    busy: list[tuple[int, int, int]] = []
    opened: dict[int, int] = defaultdict(int)
    for record in records:
        while busy and busy[0][0] < record.submitted_ns:
            _, route, lane = heapq.heappop(busy)
            heapq.heappush(free[route], lane)
        if not free[record.route]:
            opened[record.route] += 1
            free[record.route].append(opened[record.route])
        lane = heapq.heappop(free[record.route])
        done = max(record.done_ns, record.submitted_ns)
        heapq.heappush(busy, (done, record.route, lane))
        common = {"pid": pid, "tid": _FRAMES_TID, "cat": "frame", "id2": {"local": f"{record.route}.{lane}"}}
        args = {"frame": record.frame, "route": record.route, "latency_ms": (done - record.submitted_ns) * 1e-6}
        if record.failed:
            args["failed"] = True
        name = f"frame on route {record.route}" + (" (failed)" if record.failed else "")
        yield {"ph": "b", **common, "name": name, "ts": _us(record.submitted_ns - begin), "args": args}
        for (worker, since, until), hop in zip(waits(record), hops_done(record), strict=True):
            for inner, start, stop in ((f"waits for {worker}", since, until), (f"on {worker}", until, hop.ended_ns)):
                if record.submitted_ns <= start < stop <= done:
                    yield {"ph": "b", **common, "name": inner, "ts": _us(start - begin)}
                    yield {"ph": "e", **common, "name": inner, "ts": _us(stop - begin)}
        yield {"ph": "e", **common, "name": name, "ts": _us(done - begin)}


def _depths(pid: int, records: Iterable[FrameRecord], begin: int, end: int) -> Iterator[_Event]:
    """Counters: frames in flight, and frames that wait for each worker (viewers add the unit to a track's name)."""
    steps: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for record in records:
        steps["in flight"][record.submitted_ns] += 1
        steps["in flight"][max(record.done_ns, record.submitted_ns)] -= 1
        for worker, since, until in waits(record):
            steps[f"waiting for {worker}"][since] += 1
            steps[f"waiting for {worker}"][until] -= 1
    for track, changes in steps.items():
        depth = 0
        for at in sorted(changes):
            depth += changes[at]
            if changes[at] and begin <= at <= end:
                yield {"ph": "C", "pid": pid, "name": track, "ts": _us(at - begin), "args": {"[frames]": depth}}


def _samples(pid: int, counters: Iterable[CounterSample], begin: int, end: int) -> list[_Event]:
    events = [
        {"ph": "C", "pid": pid, "name": s.track, "ts": _us(s.at_ns - begin), "args": {f"[{s.unit}]": s.value}}
        for s in counters
        if begin <= s.at_ns <= end
    ]
    return [_meta(pid, 0, "process_name", name="machine"), *events] if events else []


def _us(ns: int) -> float:
    return ns / 1000
