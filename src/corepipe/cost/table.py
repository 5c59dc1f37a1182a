"""The cost table: all that a planner knows of a network and a machine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, model_validator

from corepipe.document import Document, Part
from corepipe.errors import PlanError, UnknownNameError, UsageError
from corepipe.topology.model import ALL_CORES, CoreConfig

MAX_COST_S = 1e6
"""No layer takes longer: eleven days."""

MAX_CUT_BYTES = 2**53 - 1
"""The largest whole number up to which every other one is a float too."""

MAX_BATCH = 1024

_LEAST_S = 1e-12
_LEAST_S_PER_BYTE = 1e-18


def _nothing_below(least: float) -> AfterValidator:
    """Makes 0 of what is smaller: rounding errors, whose inverse is no rate."""
    return AfterValidator(lambda value: value if value >= least else 0.0)


Seconds = Annotated[float, Field(ge=0)]
CostSeconds = Annotated[float, Field(ge=0, le=MAX_COST_S), _nothing_below(_LEAST_S)]
CostPerByte = Annotated[float, Field(ge=0, le=1), _nothing_below(_LEAST_S_PER_BYTE)]


class TableNetwork(Part):
    """Which network the costs are of; `layers` are the layer names, `cut_bytes` has one entry more."""

    name: str
    sha256: str
    layers: tuple[str, ...] = Field(min_length=1)
    cut_bytes: tuple[Annotated[int, Field(ge=0, le=MAX_CUT_BYTES)], ...]
    illegal_cuts: tuple[int, ...] = ()
    """Inner cuts where the network must not be divided, or only at a loss."""


class TableCluster(Part):
    """A cluster and the ids of its cores; the order of clusters is fastest first."""

    name: str
    cores: tuple[int, ...] = Field(min_length=1)


class TableMachine(Part):
    """Which machine the costs hold for."""

    description: str
    fingerprint: str
    clusters: tuple[TableCluster, ...] = Field(min_length=1)


class EngineName(Part):
    """An engine and its version."""

    name: str
    version: str


class Mode(NamedTuple):
    """A way to run a segment: with which engine, on how many frames at once."""

    engine: str
    batch: int = 1


class ConfigCosts(Part):
    """Seconds of one frame on one core config in one mode: one engine, so many frames at once.

    Attributes:
        layer_s: each layer with the rest of the machine idle.
        layer_busy_s: the same with every other core of the machine busy; None where it was not measured (or where
            no other core exists).
        segment_s: what every segment costs beside its layers: the call, and layouts undone and redone at its ends.
        segment_s_per_byte: the same per byte that its two cuts hold.
        batch: how many frames are run at once; all seconds are those of one of them.
        config: a core config; `all8` stands for one worker over all 8 cores of a machine with several clusters.
        spread: relative half-width of the middle half of the measured whole-network times.
        left_out: the largest share of a measurement's runs that did not count, because the cores were disturbed.
        passes: how many times, at different moments, the whole network was timed; the quickest counts.
    """

    config: str
    engine: str = "onnxruntime"
    batch: Annotated[int, Field(ge=1, le=MAX_BATCH)] = 1
    layer_s: tuple[CostSeconds, ...]
    layer_busy_s: tuple[CostSeconds, ...] | None = None
    segment_s: CostSeconds = 0.0
    segment_s_per_byte: CostPerByte = 0.0
    spread: Seconds = 0.0
    left_out: Annotated[float, Field(ge=0, le=1)] = 0.0
    passes: Annotated[int, Field(ge=1)] = 1

    @property
    def core_config(self) -> CoreConfig:
        """The parsed `config`."""
        return CoreConfig.parse(self.config)

    @property
    def mode(self) -> Mode:
        """Engine and batch."""
        return Mode(self.engine, self.batch)

    def beside_layers_s(self, edge_bytes: int) -> float:
        """Seconds of a segment beside its layers, whose two cuts hold so many bytes together."""
        return self.segment_s + self.segment_s_per_byte * edge_bytes


class HopCosts(Part):
    """Seconds for handing a frame over (or, where a table is `for_frames` that share a slot, its part of them).

    Attributes:
        fixed_s, per_byte_s: a hop from worker to worker, in seconds of work, half of it on either side.
        edge_s: what a worker spends to take a frame from the user's process, and again to give a result back.
        latency_s: time until the next worker starts on it, idle machine, small tensor.
    """

    fixed_s: CostSeconds = 0.0
    per_byte_s: CostPerByte = 0.0
    edge_s: CostSeconds = 0.0
    latency_s: CostSeconds = 0.0


class Provenance(Part):
    """Where the figures come from."""

    source: Literal["measured", "emulated", "predicted", "board", "made-up"]
    created: str = ""
    note: str = ""


class CostTable(Document):
    """Seconds of every layer on every core config in every mode, and of a hop.

    Attributes:
        engines: the engines with their versions; the first is the default one.
        frames: how many frames share a slot, and so the costs of a hop; see `for_frames`.

    Example:
        >>> table = CostTable.read("squeezenet.costs.json")                  # doctest: +SKIP
        >>> table.segment_s(CoreConfig("big", 4), 0, 12)                     # doctest: +SKIP
        0.0123
    """

    KIND: ClassVar[str] = "corepipe-cost-table"

    network: TableNetwork
    machine: TableMachine
    engines: tuple[EngineName, ...] = Field(min_length=1)
    configs: tuple[ConfigCosts, ...] = Field(min_length=1)
    hop: HopCosts = HopCosts()
    frames: Annotated[int, Field(ge=1, le=MAX_BATCH)] = 1
    provenance: Provenance

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        count = len(self.network.layers)
        if len(self.network.cut_bytes) != count + 1:
            raise ValueError(f"network.cut_bytes needs {count + 1} entries, has {len(self.network.cut_bytes)}")
        clusters = {c.name: len(c.cores) for c in self.machine.clusters}
        if len(clusters) != len(self.machine.clusters):
            raise ValueError("machine.clusters: a cluster name appears twice")
        if ALL_CORES in clusters:
            raise ValueError(f"machine.clusters: the name {ALL_CORES!r} is reserved for all cores together")
        cores = [core for c in self.machine.clusters for core in c.cores]
        if len(set(cores)) != len(cores):
            raise ValueError("machine.clusters: a core appears twice")
        engines = [engine.name for engine in self.engines]
        if len(set(engines)) != len(engines):
            raise ValueError("engines: one appears twice")
        seen = set()
        for costs in self.configs:
            for name, values in (("layer_s", costs.layer_s), ("layer_busy_s", costs.layer_busy_s)):
                if values is not None and len(values) != count:
                    raise ValueError(f"config {costs.config}: {name} needs {count} entries, has {len(values)}")
            config = costs.core_config
            if config.count > clusters.get(config.cluster, len(cores) if config.cluster == ALL_CORES else 0):
                raise ValueError(f"config {costs.config}: the machine has no such cores")
            if (costs.config, costs.mode) in seen:
                raise ValueError(f"config {costs.config}: appears twice with {costs.engine}, batch {costs.batch}")
            seen.add((costs.config, costs.mode))
            if costs.engine not in engines:
                raise ValueError(
                    f"config {costs.config}: {costs.engine!r} is none of the engines ({', '.join(engines)})"
                )
        return self

    @property
    def all_cores(self) -> CoreConfig:
        """The config of one worker over all cores: `all8`, or `cpu2` where there is one cluster."""
        clusters = self.machine.clusters
        name = clusters[0].name if len(clusters) == 1 else ALL_CORES
        return CoreConfig(name, sum(len(c.cores) for c in clusters))

    @property
    def layer_count(self) -> int:
        """Number of layers."""
        return len(self.network.layers)

    @cached_property
    def by_config(self) -> dict[CoreConfig, tuple[ConfigCosts, ...]]:
        """The costs by core config; for each its modes, the default engine's first."""
        order = {engine.name: number for number, engine in enumerate(self.engines)}
        found: dict[CoreConfig, list[ConfigCosts]] = {}
        for costs in sorted(self.configs, key=lambda c: (order[c.engine], c.batch)):
            found.setdefault(costs.core_config, []).append(costs)
        return {costs.core_config: tuple(found[costs.core_config]) for costs in self.configs}

    def costs_of(self, config: CoreConfig, mode: Mode | None = None) -> ConfigCosts:
        """The costs on a core config in a mode; None for the first mode.

        Raises:
            UnknownNameError: the table has no such config, or not in that mode.
        """
        if config not in self.by_config:
            raise UnknownNameError("core config", str(config), map(str, self.by_config))
        rows = self.by_config[config]
        for costs in rows:
            if mode is None or costs.mode == mode:
                return costs
        known = (f"{row.engine}, batch {row.batch}" for row in rows)
        raise UnknownNameError(f"mode on {config}", f"{mode.engine}, batch {mode.batch}" if mode else "", known)

    @cached_property
    def batches(self) -> tuple[int, ...]:
        """The numbers of frames that are run at once in some mode, ascending."""
        return tuple(sorted({costs.batch for costs in self.configs}))

    def replaced(self, **changes: Any) -> CostTable:
        """A copy with other values, which are not checked."""
        return CostTable.model_construct(**{name: getattr(self, name) for name in CostTable.model_fields} | changes)

    def for_frames(self, frames: int) -> CostTable:
        """The table for slots that so many frames share, in which a hop is made once for all of them.

        Modes are kept whose batches divide the slot. All seconds stay those of one frame.
        """
        if frames == self.frames and all(frames % costs.batch == 0 for costs in self.configs):
            return self
        share = self.frames / frames
        hop = self.hop.model_copy(
            update={name: getattr(self.hop, name) * share for name in ("fixed_s", "edge_s", "latency_s")}
        )
        configs = tuple(costs for costs in self.configs if frames % costs.batch == 0)
        return self.replaced(configs=configs, hop=hop, frames=frames)

    def only(self, engine: str, batch: int | None = None) -> CostTable:
        """The table with the modes of one engine, or that with one batch."""
        configs = tuple(c for c in self.configs if c.engine == engine and batch in (None, c.batch))
        engines = tuple(e for e in self.engines if e.name == engine)
        return self.replaced(configs=configs, engines=engines)

    @cached_property
    def _prefix(self) -> dict[tuple[CoreConfig, Mode, bool], NDArray[np.float64]]:
        """Running sums of layer seconds, so that a segment costs two look-ups."""
        sums = {}
        for costs in self.configs:
            alone = np.concatenate([[0.0], np.cumsum(costs.layer_s)])
            busy = alone if costs.layer_busy_s is None else np.concatenate([[0.0], np.cumsum(costs.layer_busy_s)])
            key = costs.core_config, costs.mode
            sums[*key, False], sums[*key, True] = alone, busy
        return sums

    def legal_cuts(self) -> tuple[int, ...]:
        """The inner cuts where the network may be divided."""
        illegal = set(self.network.illegal_cuts)
        return tuple(i for i in range(1, self.layer_count) if i not in illegal)

    def segment_s(
        self, config: CoreConfig, start: int, stop: int, *, busy: bool = True, mode: Mode | None = None
    ) -> float:
        """Seconds of one frame for layers `start` to `stop - 1` as one segment on `config`, without hops.

        Args:
            config: a core config of this table.
            start: first layer.
            stop: one past the last layer.
            busy: with every other core busy (where that was measured), as in a running plan.
            mode: engine and batch; None for the first mode of the config.

        Raises:
            UnknownNameError: the table has no such config, or not in that mode.
        """
        costs = self.costs_of(config, mode)
        sums = self._prefix[config, costs.mode, busy]
        edges = self.network.cut_bytes[start] + self.network.cut_bytes[stop]
        return float(sums[stop] - sums[start]) + costs.beside_layers_s(edges)

    def half_hop_s(self, cut: int) -> float:
        """Seconds that one worker spends on handing a frame over at `cut` (giving or taking it).

        At cut 0 and at the last cut the other side is the user's process.
        """
        if cut in (0, self.layer_count):
            return self.hop.edge_s
        return (self.hop.fixed_s + self.hop.per_byte_s * self.network.cut_bytes[cut]) / 2


def check_batch_size(batch: int) -> None:
    """Refuse a number of frames at once that tables and plans cannot hold.

    Raises:
        UsageError: it is out of range.
    """
    if not 1 <= batch <= MAX_BATCH:
        raise UsageError(f"batch {batch}: give a number of frames from 1 to {MAX_BATCH}")


def merged(tables: Sequence[CostTable]) -> CostTable:
    """One table of several of the same network and machine, each with engines or batches of its own.

    Hop costs and provenance are those of the first.

    Raises:
        PlanError: they are of different networks or machines.
    """
    first = tables[0]
    for table in tables[1:]:
        if table.network != first.network or table.machine != first.machine:
            raise PlanError(f"the cost tables of {first.network.name} are of different networks or machines")
    engines = {engine.name: engine for table in tables for engine in table.engines}
    return CostTable(
        network=first.network,
        machine=first.machine,
        engines=tuple(engines.values()),
        configs=tuple(costs for table in tables for costs in table.configs),
        hop=first.hop,
        provenance=first.provenance,
    )
