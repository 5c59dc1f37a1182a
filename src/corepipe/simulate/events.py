"""The events of a simulated plan.

The model is the runtime's: the same dispatcher chooses each frame's route, a bounded number of frames is under way,
results are delivered in order within a bounded window, and each worker serves one hop at a time, the shortest of those
that wait for it and then the oldest. A hop takes the worker's half of the hand-over on either side and the segment
between them, as in `CostTable`; `HopCosts.latency_s` passes between a worker's giving a frame away and its arrival at
the next. The user's process feeds and reads without delay. See docs/simulation.md.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from corepipe.cost.table import CostTable
from corepipe.errors import UnknownNameError, UsageError
from corepipe.plan.model import Plan, hop_s
from corepipe.runtime.dispatch import Dispatcher, slot_bytes_of
from corepipe.runtime.messages import MOST_PASSED
from corepipe.runtime.record import FrameRecord, HopTime, part_of
from corepipe.simulate.fits import check_fits
from corepipe.simulate.result import Simulation

_log = logging.getLogger("corepipe")

DEFAULT_FRAMES = 3000
"""Enough for a steady state of fixed service times that agrees with the table, few being under way."""

_FRAMES_PER_SLOT = 20

Contention = float | Mapping[str, float]
"""How much longer a segment takes while every other core of the machine is at work: 0.3 for 1.3 times; or that by
cluster name, clusters that are not named having none."""


def simulate(
    plan: Plan,
    table: CostTable,
    *,
    frames: int | None = None,
    slots: int | None = None,
    jitter: float = 0.0,
    contention: Contention | None = None,
    seed: int = 0,
) -> Simulation:
    """Run a plan on a cost table in simulated time, the stream kept full.

    Args:
        plan: any plan of the table's network and machine.
        table: the costs.
        frames: how many frames to feed; None for `DEFAULT_FRAMES`, more where many can be under way. Too few for a
            steady state are logged as a warning.
        slots: slots, of `plan.batch` frames each, that can be under way at once; None for what the runtime allots to
            the plan.
        jitter: coefficient of variation of a segment's time, drawn from a lognormal distribution whose mean is the
            table's figure; 0 for fixed times.
        contention: None to take the table's costs with the other cores busy (for a plan of one worker: idle). Else a
            segment takes the table's seconds on an idle machine, times 1 + contention * (share of the machine's other
            cores that are at work when it starts).
        seed: of the drawn times; the same arguments give the same records.

    Raises:
        PlanError: the plan does not fit the table's network or machine, or the table lacks a config of it.
        UnknownNameError: `contention` names a cluster that is not there.
        UsageError: a number is out of range.

    Example:
        >>> simulate(plan, table, frames=500).throughput_fps                 # doctest: +SKIP
        21.4
    """
    _check_options(frames, slots, jitter, contention, seed)
    check_fits(plan, table)
    table = table.for_frames(plan.batch)
    run = _Run(plan, table, frames, slots, jitter, contention, seed)
    run.to_the_end()
    records = tuple(sorted(run.records, key=lambda record: record.frame))
    found = Simulation(plan, records, run.fed_until_ns, run.slots)
    if not found.settled:
        _log.warning(
            "%d frames are too few for a steady state of %s: its figures include filling and draining; simulate more",
            len(records),
            plan.planner,
        )
    return found


@dataclass(frozen=True)
class _Step:
    """One hop of a route: who serves it, and a slot's seconds before, in and after the segment."""

    worker: int
    start: int
    stop: int
    before_s: float
    segment_s: float
    after_s: float


@dataclass
class _Flight:
    """The frames of a slot under way; they are submitted together."""

    number: int
    route: int
    submitted_s: float
    hops: list[HopTime] = field(default_factory=list)


class _Run:
    """The state of a simulation and its events: a slot's frames arrive at a worker, a worker ends a hop.

    As in the runtime, a worker takes the shortest of the hops that wait for it, and of those the oldest slot's.
    """

    def __init__(
        self,
        plan: Plan,
        table: CostTable,
        frames: int | None,
        slots: int | None,
        jitter: float,
        contention: Contention | None,
        seed: int,
    ) -> None:
        self._names = [worker.name for worker in plan.workers]
        self._cores = [len(worker.cores) for worker in plan.workers]
        self._routes = _steps(plan, table, busy=len(plan.workers) > 1 and contention is None)
        self._batch = plan.batch
        self._latency_s = table.hop.latency_s * plan.batch
        self._slowing = _slowing(plan, table, contention)
        self._others = [sum(len(c.cores) for c in table.machine.clusters) - cores for cores in self._cores]
        # A lognormal variable with mean 1 and coefficient of variation c has sigma^2 = ln(1 + c^2), mu = -sigma^2 / 2.
        self._sigma = math.sqrt(math.log1p(jitter**2))
        self._generator = np.random.default_rng(seed)
        self._dispatcher = Dispatcher(
            plan, plan.batch * table.network.cut_bytes[-1], slot_bytes_of(plan, table.network.cut_bytes)
        )
        self.slots = min(slots or self._dispatcher.slots, self._dispatcher.slots)
        wanted = frames or max(DEFAULT_FRAMES, _FRAMES_PER_SLOT * self.slots * plan.batch)
        self._to_feed = math.ceil(wanted / plan.batch)
        self._fed = 0
        self._under_way = 0
        self._next_delivery = 0
        self._ended: set[int] = set()
        self._queues: list[list[tuple[float, int, _Flight]]] = [[] for _ in plan.workers]
        self._serving: list[_Flight | None] = [None] * len(plan.workers)
        self._at_hops = [[0] * (len(route) + 1) for route in self._routes]
        self._working_cores = 0
        self._events: list[tuple[float, int, int, _Flight]] = []
        self._numbers = itertools.count()
        self.records: list[FrameRecord] = []
        self.fed_until_ns = 0

    def to_the_end(self) -> None:
        """Feed all frames and let them finish."""
        self._feed(0.0)
        while self._events:
            now, _, worker, flight = heapq.heappop(self._events)
            if self._serving[worker] is flight:
                self._end_hop(now, worker, flight)
            else:
                self._arrive(now, worker, flight)

    def _at(self, time_s: float, worker: int, flight: _Flight) -> None:
        """Note what comes next for a flight; events of one moment happen in the order in which they were noted."""
        heapq.heappush(self._events, (time_s, next(self._numbers), worker, flight))

    def _feed(self, now: float) -> None:
        while (
            self._fed < self._to_feed
            and self._under_way < self.slots
            and self._fed - self._next_delivery < self._dispatcher.window
            and self._dispatcher.has_room(deep=True)
        ):
            flight = _Flight(self._fed, self._dispatcher.choose(lambda: self._at_hops, deep=True), now)
            worker = self._routes[flight.route][0].worker
            self._fed += 1
            self._under_way += 1
            self._at_hops[flight.route][0] += 1
            self.fed_until_ns = _ns(now)
            self._arrive(now, worker, flight)

    def _arrive(self, now: float, worker: int, flight: _Flight) -> None:
        takes_s = self._routes[flight.route][len(flight.hops)].segment_s
        heapq.heappush(self._queues[worker], (takes_s, flight.number, flight))
        if self._serving[worker] is None:
            self._begin_hop(now, worker)

    def _begin_hop(self, now: float, worker: int) -> None:
        queue = self._queues[worker]
        *_, flight = oldest = min(queue, key=lambda waiting: waiting[1])
        if self._fed - flight.number > MOST_PASSED * self._dispatcher.slots:
            queue.remove(oldest)
            heapq.heapify(queue)
        else:
            *_, flight = heapq.heappop(queue)
        step = self._routes[flight.route][len(flight.hops)]
        segment_s = step.segment_s
        if self._slowing[worker] and self._others[worker]:
            segment_s *= 1 + self._slowing[worker] * self._working_cores / self._others[worker]
        if self._sigma:
            segment_s *= self._generator.lognormal(-(self._sigma**2) / 2, self._sigma)
        started = now + step.before_s
        ended = started + segment_s
        flight.hops.append(HopTime(self._names[worker], step.start, step.stop, _ns(started), _ns(ended)))
        self._serving[worker] = flight
        self._working_cores += self._cores[worker]
        self._at(ended + step.after_s, worker, flight)

    def _end_hop(self, now: float, worker: int, flight: _Flight) -> None:
        self._serving[worker] = None
        self._working_cores -= self._cores[worker]
        route = self._routes[flight.route]
        self._at_hops[flight.route][len(flight.hops) - 1] -= 1
        self._at_hops[flight.route][len(flight.hops)] += 1
        if len(flight.hops) == len(route):
            self._end_flight(now, flight)
        else:
            following = route[len(flight.hops)].worker
            self._at(now + self._latency_s, following, flight)
        if self._serving[worker] is None and self._queues[worker]:
            self._begin_hop(now, worker)

    def _end_flight(self, now: float, flight: _Flight) -> None:
        for position in range(self._batch):
            hops = tuple(
                HopTime(h.worker, h.start, h.stop, *part_of(h.started_ns, h.ended_ns, position, self._batch))
                for h in flight.hops
            )
            frame = flight.number * self._batch + position
            self.records.append(FrameRecord(frame, flight.route, _ns(flight.submitted_s), _ns(now), hops))
        self._under_way -= 1
        self._at_hops[flight.route][-1] -= 1
        self._dispatcher.done(flight.route, [(hop.ended_ns - hop.started_ns) * 1e-9 for hop in flight.hops])
        self._ended.add(flight.number)
        while self._next_delivery in self._ended:
            self._ended.remove(self._next_delivery)
            self._next_delivery += 1
        self._feed(now)


def _steps(plan: Plan, table: CostTable, *, busy: bool) -> list[list[_Step]]:
    """The hops of every route with their seconds."""
    numbers = plan.worker_numbers
    return [
        [
            _Step(
                worker=numbers[hop.worker],
                start=hop.start,
                stop=hop.stop,
                before_s=plan.batch * table.half_hop_s(hop.start),
                segment_s=plan.batch * hop_s(plan, hop, table, busy=busy),
                after_s=plan.batch * table.half_hop_s(hop.stop),
            )
            for hop in route.hops
        ]
        for route in plan.routes
    ]


def _slowing(plan: Plan, table: CostTable, contention: Contention | None) -> list[float]:
    """The contention of each worker's cluster."""
    if not isinstance(contention, Mapping):
        return [contention or 0.0] * len(plan.workers)
    names = [cluster.name for cluster in table.machine.clusters]
    for name in contention:
        if name not in names:
            raise UnknownNameError("cluster", name, names)
    return [contention.get(worker.core_config.cluster, 0.0) for worker in plan.workers]


_MOST = 1000.0
"""Jitter and contention: more is a mistake, and much more exceeds what a number can be."""


def _check_options(
    frames: int | None, slots: int | None, jitter: float, contention: Contention | None, seed: int
) -> None:
    for name, value, least in (("frames", frames, 1), ("slots", slots, 1), ("seed", seed, 0)):
        if value is not None and value < least:
            raise UsageError(f"cannot simulate with {name} {value}: give a whole number from {least} up")
    factors = contention.values() if isinstance(contention, Mapping) else [contention or 0.0]
    for name, number in (("jitter", jitter), *(("contention", factor) for factor in factors)):
        if not 0 <= number <= _MOST:
            raise UsageError(f"cannot simulate with {name} {number}: give a number from 0 to {_MOST:g}, such as 0.1")


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
