"""The plan: workers, and the routes that frames take over them, with a rate each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from corepipe.cost.table import MAX_BATCH, CostTable, Mode
from corepipe.document import Document, Part
from corepipe.errors import PlanError, UnknownNameError
from corepipe.topology.model import CoreConfig

MAX_RATE_FPS = 1e30

LEAST_SHARE = 1e-12
"""A route with a smaller share of the frames would never get one."""


class Worker(Part):
    """One process pinned to cores of one cluster (or, in the engine's default plan, to all cores).

    Attributes:
        name: unique in the plan, such as `big4` or `cpu1-b`.
        config: the core config whose costs hold for it.
        cores: the ids of its cores, as many as the config counts.
        engine: the kernel library it runs, where a hop does not say otherwise.
    """

    name: str
    config: str
    cores: tuple[int, ...] = Field(min_length=1)
    engine: str = "onnxruntime"

    @property
    def core_config(self) -> CoreConfig:
        """The parsed `config`."""
        return CoreConfig.parse(self.config)


class HopPart(Part):
    """Some layers of a hop, [start, stop): a segment of their own, run by one engine on so many frames at once."""

    layers: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]]
    engine: str = "onnxruntime"
    batch: Annotated[int, Field(ge=1, le=MAX_BATCH)] = 1

    @property
    def start(self) -> int:
        """First layer."""
        return self.layers[0]

    @property
    def stop(self) -> int:
        """One past the last layer."""
        return self.layers[1]

    @property
    def mode(self) -> Mode:
        """Engine and batch."""
        return Mode(self.engine, self.batch)


class Hop(Part):
    """A worker and the layers that it runs: [start, stop).

    Attributes:
        worker: its name.
        layers: start and stop.
        parts: how the layers are divided into segments; None for one segment, on the worker's engine, frame by frame.
    """

    worker: str
    layers: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]]
    parts: Annotated[tuple[HopPart, ...], Field(min_length=1)] | None = None

    @property
    def start(self) -> int:
        """First layer."""
        return self.layers[0]

    @property
    def stop(self) -> int:
        """One past the last layer."""
        return self.layers[1]


class Route(Part):
    """The hops that one frame takes, and how many frames a second are to take it."""

    rate_fps: Annotated[float, Field(ge=0, le=MAX_RATE_FPS)]
    hops: tuple[Hop, ...] = Field(min_length=1)


class PlanNetwork(Part):
    """Which network a plan is for."""

    name: str
    sha256: str
    layers: Annotated[int, Field(ge=1)]


class Plan(Document):
    """Workers, and routes with a rate each; see docs/architecture.md for the words.

    Attributes:
        batch: how many frames share a slot and make their hops together.
        planner: what made it: `routes`, `pipe-it`, `replicas`, `all-cores`, `cluster:big`, or `by hand`.
        predicted_fps: throughput by the cost table; None where no table was at hand.
        bound_fps: the most that any plan can reach by the table; None where that was not asked for.
        given_up: the share of the best mix's throughput that `routes` gave up for a simpler plan; None if nothing.
    """

    KIND: ClassVar[str] = "corepipe-plan"

    planner: str
    network: PlanNetwork
    workers: tuple[Worker, ...] = Field(min_length=1)
    routes: tuple[Route, ...] = Field(min_length=1)
    batch: Annotated[int, Field(ge=1, le=MAX_BATCH)] = 1
    predicted_fps: Annotated[float, Field(ge=0)] | None = None
    bound_fps: Annotated[float, Field(ge=0)] | None = None
    given_up: Annotated[float, Field(ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [w.name for w in self.workers]
        if len(set(names)) != len(names):
            raise ValueError("workers: a name appears twice")
        for worker in self.workers:
            if len(worker.cores) != worker.core_config.count:
                raise ValueError(
                    f"workers: {worker.name!r} has the config {worker.config}, but {len(worker.cores)} cores; "
                    f"list {worker.core_config.count}"
                )
        cores = [core for w in self.workers for core in w.cores]
        if len(set(cores)) != len(cores):
            raise ValueError("workers: a core belongs to two workers")
        for number, route in enumerate(self.routes):
            at = 0
            for hop in route.hops:
                if hop.worker not in names:
                    raise ValueError(f"routes.{number}: no worker is called {hop.worker!r}")
                if hop.start != at:
                    raise ValueError(f"routes.{number}: a hop starts at layer {hop.start}, {at} was expected")
                if hop.stop <= hop.start:
                    raise ValueError(f"routes.{number}: layers {list(hop.layers)} hold nothing; write [start, stop)")
                at = hop.stop
                self._check_parts(number, hop)
            if at != self.network.layers:
                raise ValueError(f"routes.{number}: ends at layer {at}, the network has {self.network.layers}")
        total = self.throughput_fps
        if total <= 0:
            raise ValueError("routes: at least one rate must be above zero")
        for number, route in enumerate(self.routes):
            if 0 < route.rate_fps < LEAST_SHARE * total:
                raise ValueError(
                    f"routes.{number}: rate_fps {route.rate_fps:g} is less than {LEAST_SHARE:g} of all rates; "
                    "write 0, or leave the route out"
                )
        return self

    def _check_parts(self, route: int, hop: Hop) -> None:
        at = hop.start
        for part in hop.parts or ():
            if part.start != at or part.stop <= part.start:
                raise ValueError(
                    f"routes.{route}: a part of hop {list(hop.layers)} has the layers {list(part.layers)}; it must "
                    f"start at {at} and hold something"
                )
            if self.batch % part.batch:
                raise ValueError(f"routes.{route}: a part runs {part.batch} frames at once, of a plan's {self.batch}")
            at = part.stop
        if hop.parts and at != hop.stop:
            raise ValueError(f"routes.{route}: the parts of hop {list(hop.layers)} end at layer {at}")

    def worker(self, name: str) -> Worker:
        """The worker of that name."""
        return next(w for w in self.workers if w.name == name)

    @property
    def worker_numbers(self) -> dict[str, int]:
        """For each worker's name its place in `workers`."""
        return {worker.name: number for number, worker in enumerate(self.workers)}

    @property
    def throughput_fps(self) -> float:
        """The sum of the routes' rates."""
        return sum(route.rate_fps for route in self.routes)

    def with_rates(self, rates_fps: Iterable[float]) -> Plan:
        """The plan with another rate for each route, in their order; its prediction is as before."""
        routes = zip(self.routes, rates_fps, strict=True)
        return self.model_copy(
            update={"routes": tuple(route.model_copy(update={"rate_fps": rate}) for route, rate in routes)}
        )

    def parts_of(self, hop: Hop) -> tuple[HopPart, ...]:
        """The segments that a hop consists of."""
        return hop.parts or (HopPart(layers=hop.layers, engine=self.worker(hop.worker).engine),)

    def segments_of(self, worker: str) -> tuple[HopPart, ...]:
        """The distinct segments that a worker must hold, in order."""
        held = {
            part
            for route in self.routes
            if route.rate_fps > 0
            for hop in route.hops
            if hop.worker == worker
            for part in self.parts_of(hop)
        }
        return tuple(sorted(held, key=lambda part: (part.layers, part.mode)))

    @property
    def engines(self) -> tuple[str, ...]:
        """The engines that its workers run, by name."""
        return tuple(sorted({part.engine for worker in self.workers for part in self.segments_of(worker.name)}))


@dataclass(frozen=True)
class Evaluation:
    """A plan held against a cost table.

    Attributes:
        throughput_fps: the most frames/s at the plan's own mix of routes: the mix is scaled until a worker is full.
        load: for each worker the share of its time that is used at that throughput, in [0, 1].
        bottleneck: the worker with load 1.
        busy_s: for each worker the seconds it spends per frame, averaged over the mix.
    """

    throughput_fps: float
    load: dict[str, float]
    bottleneck: str
    busy_s: dict[str, float]


def evaluate(plan: Plan, table: CostTable, *, busy: bool | None = None) -> Evaluation:
    """Throughput and loads of a plan by a cost table.

    Args:
        plan: any plan of the table's network.
        table: the costs.
        busy: whether to use the costs with the other cores busy; by default when the plan has more than one worker.

    Raises:
        PlanError: plan and table are of different networks, or the table lacks a config, engine or batch.
    """
    if plan.network.layers != table.layer_count:
        raise PlanError(
            f"the plan has {plan.network.layers} layers ({plan.network.name}), the cost table has "
            f"{table.layer_count} ({table.network.name}); make the plan anew"
        )
    table = table.for_frames(plan.batch)
    busy = len(plan.workers) > 1 if busy is None else busy
    total = plan.throughput_fps
    busy_s = dict.fromkeys((w.name for w in plan.workers), 0.0)
    for route in plan.routes:
        for hop in route.hops:
            busy_s[hop.worker] += route.rate_fps / total * hop_load_s(plan, hop, table, busy=busy)
    bottleneck = max(busy_s, key=lambda name: busy_s[name])
    worst = busy_s[bottleneck]
    if worst <= 0:
        raise PlanError("the cost table gives this plan no cost at all; profile the network again")
    return Evaluation(1 / worst, {n: s / worst for n, s in busy_s.items()}, bottleneck, busy_s)


def hop_s(plan: Plan, hop: Hop, table: CostTable, *, busy: bool) -> float:
    """Seconds of one frame for a hop of a plan, without handing it over.

    Args:
        plan: the plan.
        hop: one of its hops.
        table: the costs.
        busy: with every other core busy (where that was measured).

    Raises:
        PlanError: the table has no costs of the hop's core config, or not with its engine and batch.
    """
    config = plan.worker(hop.worker).core_config
    if config not in table.by_config:
        raise PlanError(f"worker {hop.worker}: the cost table has no config {config}; profile this machine")
    try:
        return parts_s(plan.parts_of(hop), config, table, busy=busy)
    except UnknownNameError as error:
        raise PlanError(f"worker {hop.worker}: {error}; profile with that engine and batch") from None


def parts_s(parts: Iterable[HopPart], config: CoreConfig, table: CostTable, *, busy: bool) -> float:
    """Seconds of one frame for some segments on a core config.

    Raises:
        UnknownNameError: the table has no such config, or not with an engine and batch of theirs.
    """
    return sum(table.segment_s(config, part.start, part.stop, busy=busy, mode=part.mode) for part in parts)


def hop_load_s(plan: Plan, hop: Hop, table: CostTable, *, busy: bool) -> float:
    """Seconds that a worker spends on one frame for a hop, its half of each hand-over included.

    Args:
        plan, hop, table, busy: as for `hop_s`; the table `for_frames` of the plan.

    Raises:
        PlanError: as for `hop_s`.
    """
    return hop_s(plan, hop, table, busy=busy) + table.half_hop_s(hop.start) + table.half_hop_s(hop.stop)


def route_groups(plan: Plan) -> list[list[int]]:
    """The numbers of the routes with a rate, in groups that have no worker in common: each may run at its own speed."""
    groups: list[tuple[set[str], list[int]]] = []
    for number, route in enumerate(plan.routes):
        if route.rate_fps <= 0:
            continue
        workers, routes = {hop.worker for hop in route.hops}, [number]
        apart = []
        for group in groups:
            if group[0] & workers:
                workers |= group[0]
                routes = group[1] + routes
            else:
                apart.append(group)
        groups = [*apart, (workers, sorted(routes))]
    return [routes for _, routes in sorted(groups, key=lambda group: group[1])]
