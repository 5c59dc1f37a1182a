"""Plans of one network measured side by side, interleaved in one run, with their outputs checked."""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from corepipe import engine
from corepipe.baseline import Baseline, EngineAlone
from corepipe.cost.table import CostTable
from corepipe.errors import CorepipeError
from corepipe.network.batch_check import relative_error, rounding, runs_on
from corepipe.network.model import Network
from corepipe.plan.limits import loading_bytes
from corepipe.plan.model import Plan, evaluate, route_groups
from corepipe.plan.rates import best_rates, mix_fps, route_loads
from corepipe.plan_results import (
    RELATIVE_TOLERANCE,
    PlanResult,
    agree,
    as_twin,
    hop_checks,
    hop_times,
    twins,
    work_fps,
)
from corepipe.runtime.record import FrameRecord, HopTime
from corepipe.runtime.results import Output
from corepipe.runtime.stream import Stream
from corepipe.topology.memory import available_memory, held_bytes
from corepipe.topology.model import Topology

_RACE_ROUNDS, _RACE_BEHIND = 3, 0.05
"""A plan that was so much slower than the fastest one in each of the first rounds leaves the race."""

_FRAMES_PER_SLICE, _SLOTS_PER_SLICE = 24, 12
"""At the least; each counts."""

FRAMES_PER_HOP = 5
"""Of a hop that fewer frames went over too little is known."""

_RATES_GAIN = 0.01
"""Less than this is not worth other rates."""

_LONGER = 10
"""Times the planned length, for a plan that turns out slower than predicted, or a machine that stalls."""

_MEMORY_SHARE = 0.5


@dataclass(eq=False)
class _Contender:
    """A plan with its stream, or an engine by itself, and what was measured so far."""

    name: str
    plan: Plan
    baseline: Baseline | None = None
    records: list[FrameRecord] = field(default_factory=list)
    slices: list[float] = field(default_factory=list)
    kept: list[FrameRecord] = field(default_factory=list)
    seconds: float = 0.0
    busy_s: dict[str, float] = field(default_factory=dict)
    restarts: int = 0
    restarts_counted: int = 0
    """How many of them were of the stream that is open."""
    short_slices: int = 0
    largest_error: float = 0.0
    peak_rss_bytes: int = 0
    stream: Stream | EngineAlone | None = None

    def check(self, output: Any, expected: Mapping[str, NDArray[Any]]) -> None:
        """Hold an output against the whole model's."""
        if self.stream is not None:
            self.largest_error = max(self.largest_error, _error(output, expected, self.stream.network))


def compare(
    network: Network,
    plans: Mapping[str, Plan],
    topology: Topology,
    table: CostTable,
    frames: Sequence[Mapping[str, NDArray[Any]]],
    *,
    rounds: int = 5,
    most_rounds: int = 0,
    slice_s: float = 1.0,
    race: bool = False,
    correct_rates: Collection[str] = (),
    on_progress: Callable[[float, str], None] = lambda share, text: None,
    on_failure: Callable[[str, CorepipeError], None] | None = None,
    baselines: Sequence[Baseline] = (),
) -> list[PlanResult]:
    """Measure plans against each other.

    In each round every plan runs for a slice of time, the order rotating from round to round, so that a machine that
    drifts or throttles does so for all of them. A slice counts what is done of frames after the stream has filled and
    before feeding stops (`work_fps`); it goes on, within bounds, until two dozen of them have come to an end. The
    outputs of every frame are checked before the first slice, and those of the last frames after each slice: never
    while it runs. Plans that are the same but for their names are measured once.

    Args:
        network: the network of all plans.
        plans: by the name to report.
        topology: the machine.
        table: the costs that predictions are made from.
        frames: input arrays by name; fed again and again in this order.
        rounds: slices for each plan.
        most_rounds: so many at the most, as long as the slices of any plan disagree (see `STABLE_SPREAD`).
        slice_s: seconds of a slice at the least; slow plans get longer ones.
        race: whether plans that are clearly behind are closed after a few rounds, with the slices that they have, so
            that the time is spent on those that are hard to tell apart. It ends when one is left.
        correct_rates: names of plans that get, before each slice, the best rates by what hops took so far, if their
            routes share workers; one slice more is run for that, whose throughput does not count. The results hold
            these plans with the last rates.
        on_progress: told of the progress.
        on_failure: told of a plan that cannot run, which is left out with those that equal it; None to raise its
            error.
        baselines: engines to be measured by themselves beside the plans; their results come first.

    Raises:
        FrameError: the network failed on a frame.
        WorkerError: a worker could not start.
    """
    expected = _reference(network, frames)
    corrected = {name for name in correct_rates if name in plans and _shares_workers(plans[name])}
    same = twins({name: plans[name] for name in plans if name in corrected})
    same |= twins({name: plans[name] for name in plans if name not in corrected})
    contenders = [_Contender(one.name, one.plan(network, topology), one) for one in baselines]
    contenders += [_Contender(name, plan) for name, plan in plans.items() if name not in same]
    keep_open = _fits_in_memory(network, [one.plan for one in contenders])
    most_rounds = max(rounds, most_rounds)
    steps = most_rounds * len(contenders)
    failed: set[str] = set()
    running = list(contenders)
    with contextlib.ExitStack() as opened:
        for number in range(most_rounds):
            if race and number >= _RACE_ROUNDS and running:
                _leave_behind(running)
                if len(running) == 1:
                    break
            if not running or (number >= rounds and all(agree(one.slices) for one in running)):
                break
            shift = number % len(contenders)
            for index, contender in enumerate(contenders[shift:] + contenders[:shift]):
                on_progress((number * len(contenders) + index) / steps, contender.name)
                if contender not in running:
                    continue
                try:
                    with contextlib.ExitStack() as brief:
                        if contender.stream is None:
                            _open(contender, network, topology, frames, expected, opened if keep_open else brief)
                        seconds = _slice_seconds(contender, table, slice_s)
                        if contender.name in corrected:
                            _correct_rates(contender, table, frames, expected, seconds)
                        _run_slice(contender, frames, expected, seconds)
                except CorepipeError as error:
                    if on_failure is None:
                        raise
                    failed.add(contender.name)
                    running.remove(contender)
                    if contender.stream is not None:
                        contender.stream.close()
                    on_failure(contender.name, error)
                if not keep_open:
                    contender.stream = None
    on_progress(1.0, "done")
    results = {
        one.name: _result(one, plans.get(one.name, one.plan), network, table)
        for one in contenders
        if one.name not in failed
    }
    for name, twin in same.items():
        if twin in results:
            results[name] = as_twin(results[twin], name, plans[name], corrected=results[twin].plan != plans[twin])
    return [results[name] for name in (*(one.name for one in baselines), *plans) if name in results]


def _leave_behind(running: list[_Contender]) -> None:
    """Close those that were clearly slower than the fastest one in every round so far."""
    fastest = max(running, key=lambda one: statistics.median(one.slices))
    for one in list(running):
        if all(a < (1 - _RACE_BEHIND) * b for a, b in zip(one.slices, fastest.slices, strict=True)):
            running.remove(one)
            if one.stream is not None:
                one.stream.close()


def _shares_workers(plan: Plan) -> bool:
    """Whether routes share workers: only then there are rates to correct."""
    return any(len(group) > 1 for group in route_groups(plan))


def _correct_rates(
    contender: _Contender,
    table: CostTable,
    frames: Sequence[Mapping[str, NDArray[Any]]],
    expected: Sequence[Mapping[str, NDArray[Any]]],
    seconds: float,
) -> None:
    """Go on with the best rates by what hops took so far, where they promise more: first after an uncounted slice."""
    plan, stream = contender.plan, contender.stream
    assert isinstance(stream, Stream)
    if not contender.slices:
        _run_slice(contender, frames, expected, seconds)
        contender.slices.clear()
        contender.short_slices = 0
    loads = route_loads(plan, table, hop_times(plan, contender.kept, FRAMES_PER_HOP))
    best = best_rates(plan, loads)
    if (best.predicted_fps or 0.0) > (1 + _RATES_GAIN) * mix_fps(plan, loads):
        fps = evaluate(best, table).throughput_fps
        contender.plan = best.model_copy(update={"predicted_fps": fps, "given_up": None})
        stream.set_rates(contender.plan)


def _slice_seconds(contender: _Contender, table: CostTable, least: float) -> float:
    """Long enough for two dozen frames beside those that fill the stream, which is open."""
    plan = contender.plan
    if isinstance(contender.stream, EngineAlone):  # no costs tell how fast it is
        return max(least, _FRAMES_PER_SLICE * contender.stream.frame_s)
    fps = evaluate(plan, table).throughput_fps
    assert contender.stream is not None
    return max(least, (_least_frames(plan) + _filling(contender.stream)) / fps)


def _least_frames(plan: Plan) -> int:
    """In a slice: two dozen frames, and a dozen slots."""
    return max(_FRAMES_PER_SLICE, plan.batch * _SLOTS_PER_SLICE)


def _filling(stream: Stream) -> int:
    """How many frames fill the stream."""
    return stream.plan.batch * len(stream.pool.arena.slots)


def _open(
    contender: _Contender,
    network: Network,
    topology: Topology,
    frames: Sequence[Mapping[str, NDArray[Any]]],
    expected: Sequence[Mapping[str, NDArray[Any]]],
    until: contextlib.ExitStack,
) -> None:
    """Start a plan's stream, which ends with `until`, and check its outputs of all frames."""
    if contender.baseline is not None:
        alone = until.enter_context(contextlib.closing(EngineAlone(contender.baseline, network, topology, frames)))
        contender.stream = alone
        for result, want in zip(alone.outputs, expected, strict=True):
            contender.check(result, want)
        return
    stream = Stream(network, contender.plan, topology, on_record=contender.records.append)
    contender.stream, contender.restarts_counted = until.enter_context(stream), 0
    for output, want in zip(stream(frames), expected, strict=True):
        contender.check(output, want)


def _run_slice(
    contender: _Contender,
    frames: Sequence[Mapping[str, NDArray[Any]]],
    expected: Sequence[Mapping[str, NDArray[Any]]],
    seconds: float,
) -> None:
    stream = contender.stream
    assert stream is not None
    contender.records.clear()
    if isinstance(stream, EngineAlone):
        _run_slice_alone(contender, stream, seconds)
        return
    filling, least = _filling(stream), _least_frames(stream.plan)
    began = ended = time.monotonic_ns()

    def feed() -> Iterator[Mapping[str, NDArray[Any]]]:
        nonlocal ended
        for frame in itertools.cycle(frames):
            yield frame
            enough = len(contender.records) >= filling + least
            ended = time.monotonic_ns()
            if (ended - began) * 1e-9 >= (seconds if enough else _LONGER * seconds):
                return

    last = deque(enumerate(stream(feed())), maxlen=len(frames))
    for number, output in last:
        contender.check(output, expected[number % len(frames)])
    done = sorted(contender.records, key=lambda record: record.computed_ns)
    steady = [record for record in done[filling:] if record.computed_ns <= ended]
    if len(steady) >= least:
        since, until = steady[0].computed_ns, ended
        counted = [record for record in steady if record.computed_ns > since]
    else:
        contender.short_slices += 1
        since, until, counted = began, done[-1].computed_ns, done
    _keep(contender, counted, since, until)
    contender.restarts += stream.restarts - contender.restarts_counted
    contender.restarts_counted = stream.restarts


def _run_slice_alone(contender: _Contender, alone: EngineAlone, seconds: float) -> None:
    calls = alone.run(seconds, _FRAMES_PER_SLICE, _LONGER * seconds)
    (worker,), layers = contender.plan.workers, contender.plan.network.layers
    for number, (began, ended) in enumerate(calls):
        hop = HopTime(worker.name, 0, layers, began, ended)
        contender.records.append(FrameRecord(number, 0, began, ended, (hop,)))
    contender.short_slices += len(calls) < _FRAMES_PER_SLICE
    _keep(contender, contender.records, calls[0][0], calls[-1][1])


def _keep(contender: _Contender, counted: Sequence[FrameRecord], since: int, until: int) -> None:
    """Add what a slice counts: its frames, and of all that were worked on meanwhile what was done of them."""
    assert contender.stream is not None
    contender.slices.append(work_fps(contender.records, since, until))
    contender.kept.extend(counted)
    contender.seconds += (until - since) * 1e-9
    for hop in (hop for record in contender.records for hop in record.hops):
        contender.busy_s[hop.worker] = contender.busy_s.get(hop.worker, 0.0) + hop.inside_ns(since, until) * 1e-9
    contender.peak_rss_bytes = max(contender.peak_rss_bytes, _resident(contender.stream))


def _result(contender: _Contender, given: Plan, network: Network, table: CostTable) -> PlanResult:
    """What was measured of a plan, which may have other rates by now, beside what the plan as given promised."""
    plan = contender.plan
    alone = contender.baseline is not None
    busy = {w.name: contender.busy_s.get(w.name, 0.0) / contender.seconds for w in plan.workers}
    latencies = [record.latency_s for record in contender.kept]
    p50, p90, p99 = (float(p) for p in np.percentile(latencies, [50, 90, 99]))
    return PlanResult(
        name=contender.name,
        plan=plan,
        throughput_fps=statistics.median(contender.slices),
        throughput_spread_fps=(min(contender.slices), max(contender.slices)),
        predicted_fps=math.nan if alone else evaluate(given, table).throughput_fps,
        latency_s=(p50, p90, p99),
        busy=busy,
        hops=hop_checks(plan, contender.kept, None if alone else table),
        peak_rss_bytes=contender.peak_rss_bytes,
        largest_error=contender.largest_error,
        slices_fps=tuple(contender.slices),
        restarts=contender.restarts,
        short_slices=contender.short_slices,
        records=tuple(sorted(contender.records, key=lambda record: record.frame)),
        tolerance=max(RELATIVE_TOLERANCE, rounding(network, list(network.tensors.values()))),
        alone=alone,
    )


def _reference(network: Network, frames: Sequence[Mapping[str, NDArray[Any]]]) -> Sequence[Mapping[str, NDArray[Any]]]:
    """The whole model's outputs: not extracted, not streamed, nothing spelt out, one thread of this process."""
    run = runs_on(engine.get("onnxruntime"))
    inputs = [{t.name: frame[t.name] for t in network.inputs} for frame in frames]
    return run(network.model.SerializeToString(), [t.name for t in network.outputs], inputs)


def _error(output: Any, expected: Mapping[str, NDArray[Any]], network: Network) -> float:
    """Largest difference of any output, relative to its largest expected magnitude; infinite if not comparable."""
    outputs: Output = output
    named = outputs if isinstance(outputs, dict) else {network.outputs[0].name: outputs}
    return max((_error_of(named[name], want) for name, want in expected.items()), default=0.0)


def _error_of(got: NDArray[Any], want: NDArray[Any]) -> float:
    """The same of one output; of integers and booleans at most the share of the elements that differ.

    Where two classes of a pixel are all but tied, the rounding before an ArgMax decides.
    """
    error, _ = relative_error(got, want)
    if want.dtype.kind in "iub" and want.size and got.shape == want.shape:
        error = min(error, float((got != want).mean()))
    return error


def _fits_in_memory(network: Network, plans: Iterable[Plan]) -> bool:
    """Whether the workers of all plans may be loaded at once."""
    weights = [layer.descriptor.bytes_weights for layer in network.layers]
    return sum(loading_bytes(plan, weights) for plan in plans) < _MEMORY_SHARE * available_memory()


def _resident(stream: Stream | EngineAlone) -> int:
    """Bytes of memory that the workers hold: each one's own, and what they share once."""
    if isinstance(stream, EngineAlone):
        pids, slots = list(stream.worker_pids.values()), 0
    else:
        pids, slots = stream.pool.pids, stream.pool.arena.held_bytes
    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            total += held_bytes(psutil.Process(pid))
    return total + slots if total else 0
