"""What plans did when they were run: figures, whether they are to be relied on, and which plan is the best."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from corepipe.cost.table import CostTable
from corepipe.errors import CorepipeError
from corepipe.plan.model import Hop, Plan, Route, hop_s
from corepipe.runtime.record import FrameRecord

RELATIVE_TOLERANCE = 1e-3
"""Largest difference from the whole model that counts as equal, relative to the largest magnitude of the output.

It is more where the network rounds more: in half precision, or quantised (`corepipe.network.batch_check.rounding`).
"""

STABLE_SPREAD = 0.05
"""A result whose slices have half their range above this share of their median is marked unstable."""

TRIAL_TOLERANCE = 0.02
"""What a trial cannot tell apart, unless all rounds say the same; by so much less the simpler plan is kept."""

_WON_SHARE = 0.6
"""The share of the rounds in which a plan must be faster than a simpler one to take its place.

Where slices vary by 12 % and 20 rounds are run, the less simple plan is taken in 3 of 100 cases if it is 5 % slower,
in 23 if both are equally fast, and in 90 if it is 10 % faster (with three quarters of the rounds: 0, 2 and 45). Of two
that are equally simple the one that is faster by the median is the better guess, however the rounds differ.
"""

_SURE_ROUNDS, _SURE_TOLERANCE = 6, 0.01
"""A plan that is faster in each of so many rounds takes the place of another for less: were it chance from round to
round, that would be 1 of 64 cases. What two loadings of one plan differ by shows in all rounds, so not for nothing."""


@dataclass(frozen=True)
class HopCheck:
    """One hop of a plan: seconds by the table and as measured (mean, which throughput depends on), over `frames`."""

    hop: Hop
    predicted_s: float
    measured_s: float
    frames: int

    @property
    def worker(self) -> str:
        """The name of the hop's worker."""
        return self.hop.worker

    @property
    def start(self) -> int:
        """The hop's first layer."""
        return self.hop.start

    @property
    def stop(self) -> int:
        """One past the hop's last layer."""
        return self.hop.stop


@dataclass(frozen=True)
class PlanResult:
    """What one plan did.

    Attributes:
        throughput_fps: median over the slices; `throughput_spread_fps` their minimum and maximum.
        latency_s: p50, p90 and p99 from submission to result, with the stream kept full.
        busy: share of the measured time that each worker spent running segments.
        peak_rss_bytes: memory that the workers hold at the most (looked at after each slice), the slots counted once;
            0 where the system does not tell.
        largest_error: largest difference from the whole model, relative to the output's largest magnitude.
        records: every frame of the last slice, for traces and pictures.
        slices_fps: the throughput of each slice; the n-th ones of plans that are compared were run one after the other.
        restarts: workers that died and were replaced meanwhile.
        short_slices: slices that had to end before there were enough frames; their figures are rough.
        same_as: the plan, measured under another name, that this one equals; None if it was measured itself.
        tolerance: the largest difference that counts as equal.
        alone: whether it is no plan but an engine by itself (`corepipe.baseline`): `plan` is the one that comes
            nearest, and predictions are NaN.
    """

    name: str
    plan: Plan
    throughput_fps: float
    throughput_spread_fps: tuple[float, float]
    predicted_fps: float
    latency_s: tuple[float, float, float]
    busy: dict[str, float]
    hops: tuple[HopCheck, ...]
    peak_rss_bytes: int
    largest_error: float
    records: tuple[FrameRecord, ...] = field(default=(), repr=False)
    slices_fps: tuple[float, ...] = ()
    restarts: int = 0
    short_slices: int = 0
    same_as: str | None = None
    tolerance: float = RELATIVE_TOLERANCE
    alone: bool = False

    @property
    def outputs_equal(self) -> bool:
        """Whether the outputs equal the whole model's, within `tolerance`."""
        return self.largest_error <= self.tolerance

    @property
    def stable(self) -> bool:
        """Whether there were several slices, none short, they agree within `STABLE_SPREAD`, and no worker died."""
        steady = agree((*self.throughput_spread_fps, self.throughput_fps))
        return steady and len(self.slices_fps) != 1 and not self.short_slices and not self.restarts

    @property
    def bottleneck(self) -> str:
        """The busiest worker, as measured."""
        return max(self.busy, key=lambda name: self.busy[name])


@dataclass(frozen=True)
class Trial:
    """What came of trying some plans.

    Attributes:
        best: the one to use; see `fastest`. Its plan's rates, prediction and bound are by `table`.
        results: of all that could run, in the order in which they first ran, with predictions by `table`. Those that
            ran in the same comparison were measured in turns; of those that ran in several it is the last.
        failures: by name, why others could not, or not any more when they ran again.
        table: the costs as the streams of the trial took them (see `corepipe.cost.learn`).
    """

    best: PlanResult
    results: tuple[PlanResult, ...]
    failures: Mapping[str, CorepipeError]
    table: CostTable


def hop_times(plan: Plan, records: Iterable[FrameRecord], least: int = 1) -> dict[Hop, float]:
    """The mean seconds (which throughput depends on) of hops that frames went over, in the plan's order.

    Args:
        plan: the plan.
        records: of frames that ended well.
        least: how many frames must have gone over a hop for it to count.
    """
    took = _times(plan, records)
    return {hop: statistics.fmean(found) * 1e-9 for hop, found in took.items() if len(found) >= least}


def _times(plan: Plan, records: Iterable[FrameRecord]) -> dict[Hop, list[int]]:
    times: dict[tuple[int, int], list[int]] = {}
    for record in records:
        for index, hop_time in enumerate(record.hops):
            times.setdefault((record.route, index), []).append(hop_time.ended_ns - hop_time.started_ns)
    took: dict[Hop, list[int]] = {}
    for (number, index), found in sorted(times.items()):
        took.setdefault(plan.routes[number].hops[index], []).extend(found)
    return took


def work_fps(records: Iterable[FrameRecord], since_ns: int, until_ns: int) -> float:
    """Frames/s within a stretch of time; of a frame that was worked on in it in part, that part counts.

    Frames that are under way come to an end in bursts where their hops wait for each other: how many end within a
    second or two tells little of what was done in it.

    Args:
        records: of all frames that were worked on within the stretch and ended well.
        since_ns, until_ns: its ends, on CLOCK_MONOTONIC.
    """
    frames = 0.0
    for record in records:
        whole = sum(hop.ended_ns - hop.started_ns for hop in record.hops)
        inside = sum(hop.inside_ns(since_ns, until_ns) for hop in record.hops)
        frames += inside / whole if whole > 0 else since_ns < record.done_ns <= until_ns
    return frames / ((until_ns - since_ns) * 1e-9)


def hop_checks(plan: Plan, records: Iterable[FrameRecord], table: CostTable | None) -> tuple[HopCheck, ...]:
    """What hops took, a check for each worker and layers that any frame went over; in the plan's order.

    Args:
        plan, records: as for `hop_times`.
        table: the costs to hold them against; without any the predictions are NaN.
    """
    checks = []
    for hop, found in _times(plan, records).items():
        predicted = math.nan if table is None else hop_s(plan, hop, table, busy=len(plan.workers) > 1)
        checks.append(HopCheck(hop, predicted, statistics.fmean(found) * 1e-9, len(found)))
    return tuple(checks)


def fastest(results: Sequence[PlanResult], *, side_by_side: bool = True) -> PlanResult:
    """The plan to use by a comparison: the simplest one, or what is faster by more than a tolerance.

    They are taken up in the order of their hops a frame, then of the cores of their largest worker (those cores wait
    for each other, so whatever disturbs one of them holds all of them up), then in the order given. What comes later
    must be faster, and so in most of the rounds where it is less simple (see `clearly_faster`). Of many plans that are
    alike one is the fastest by chance. Plans whose outputs are wrong do not count.

    Args:
        results: the preferred one first.
        side_by_side: whether their slices are of the same rounds.

    Raises:
        CorepipeError: no plan has the whole model's outputs.
    """
    right = [result for result in results if result.outputs_equal]
    if not right:
        raise CorepipeError("no plan that was tried has the whole model's outputs; name another --engine")
    chosen, *others = sorted(right, key=lambda result: _complexity(result.plan))
    for result in others:
        if clearly_faster(result, chosen, side_by_side=side_by_side):
            chosen = result
    return chosen


def clearly_faster(one: PlanResult, other: PlanResult, *, side_by_side: bool = True) -> bool:
    """Whether it is by more than a tolerance, and, if it is less simple, in most of the rounds that both ran in.

    A smaller tolerance does where it is faster in every one of many rounds, which must have been the same ones
    (`side_by_side`): else a machine that drifts would say so.
    """
    ratios = [a / b for a, b in zip(one.slices_fps, other.slices_fps, strict=False)]
    won = _complexity(one.plan) <= _complexity(other.plan)
    won = won or statistics.fmean(ratio > 1 for ratio in ratios) >= _WON_SHARE
    sure = side_by_side and len(ratios) >= _SURE_ROUNDS and min(ratios) > 1
    tolerance = _SURE_TOLERANCE if sure else TRIAL_TOLERANCE
    return won and statistics.median(ratios) * (1 - tolerance) >= 1


def _complexity(plan: Plan) -> tuple[float, int]:
    """Hops a frame, and cores of the largest worker."""
    hops = sum(route.rate_fps * len(route.hops) for route in plan.routes) / plan.throughput_fps
    return round(hops, 6), max(len(worker.cores) for worker in plan.workers)


def agree(rates: Sequence[float]) -> bool:
    """Whether half their range is within a share of their median."""
    return (max(rates) - min(rates)) / 2 <= STABLE_SPREAD * statistics.median(rates)


def twins(plans: Mapping[str, Plan]) -> dict[str, str]:
    """For each plan that is the same as an earlier one but for its names: that one's name."""
    seen: dict[object, str] = {}
    found = {}
    for name, plan in plans.items():
        workers = tuple(sorted((w.cores, w.engine) for w in plan.workers))
        first = seen.setdefault((plan.batch, workers, tuple(key for key, _ in _routes(plan))), name)
        if first != name:
            found[name] = first
    return found


def _routes(plan: Plan) -> list[tuple[Any, int]]:
    """What each route is, whatever workers are called, with its number: in an order that is the same for twins."""
    cores = {w.name: (w.cores, w.engine) for w in plan.workers}
    total = plan.throughput_fps

    def key(route: Route) -> tuple[Any, ...]:
        parts = (tuple((p.layers, p.engine, p.batch) for p in plan.parts_of(hop)) for hop in route.hops)
        hops = tuple(zip((cores[hop.worker] for hop in route.hops), parts, strict=True))
        return hops, round(route.rate_fps / total, 6)

    return sorted((key(route), number) for number, route in enumerate(plan.routes))


def as_twin(result: PlanResult, name: str, plan: Plan, *, corrected: bool = False) -> PlanResult:
    """A result in the words of a plan that is the same but for the names of workers and the order of routes.

    Args:
        result: of the other plan.
        name, plan: the twin.
        corrected: whether the other plan had its rates corrected; the twin gets them too.
    """
    names = {w.cores: w.name for w in plan.workers}
    worker = {w.name: names[w.cores] for w in result.plan.workers}
    route = {old: new for (_, old), (_, new) in zip(_routes(result.plan), _routes(plan), strict=True)}
    if corrected:
        rates = {route[number]: one.rate_fps for number, one in enumerate(result.plan.routes)}
        plan = plan.with_rates(rates[number] for number in range(len(plan.routes)))
        plan = plan.model_copy(update={"predicted_fps": result.plan.predicted_fps, "given_up": None})
    return dataclasses.replace(
        result,
        name=name,
        plan=plan,
        same_as=result.name,
        busy={worker[old]: share for old, share in result.busy.items()},
        hops=tuple(
            dataclasses.replace(one, hop=one.hop.model_copy(update={"worker": worker[one.worker]}))
            for one in result.hops
        ),
        records=tuple(
            record._replace(
                route=route[record.route],
                hops=tuple(hop._replace(worker=worker[hop.worker]) for hop in record.hops),
            )
            for record in result.records
        ),
    )
