"""Fills a cost table by measuring: every layer on every core config, in pinned processes."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
from scipy.optimize import nnls

from corepipe.cost.hop import measure_hop
from corepipe.cost.measuring import (
    MeasuringProcess,
    Progress,
    cores_of,
    layer_seconds,
    loaded,
    loads,
    name_by_layer,
    profiled_configs,
    scaled,
    smallest_segment,
    split_evenly,
    spread,
    time_whole,
    typical,
)
from corepipe.cost.table import (
    ConfigCosts,
    CostTable,
    EngineName,
    HopCosts,
    Provenance,
    TableCluster,
    TableMachine,
    TableNetwork,
)
from corepipe.document import Document
from corepipe.network.batch import batched
from corepipe.network.concat import useful_cuts
from corepipe.network.model import Network
from corepipe.topology.model import CoreConfig, Topology

MEASUREMENT_VERSION = 13
"""Part of every cache key; rises when what is measured changes."""

SPLITS = (3, 8)
"""Into how many segments the network is cut to learn what a cut costs beside the layers."""

_SECONDS = 0.8


class PartialProfile(Document):
    """What has been measured so far, so that an interrupted profile goes on where it stopped.

    Attributes:
        configs: seconds of a run, of however many frames.
        hop: where it has been measured.
    """

    KIND: ClassVar[str] = "corepipe-partial-profile"

    configs: tuple[ConfigCosts, ...] = ()
    hop: HopCosts | None = None


def profile(
    network: Network,
    topology: Topology,
    engine: EngineName,
    *,
    batch: int = 1,
    done: PartialProfile | None = None,
    on_progress: Progress = lambda share, text: None,
    on_partial: Callable[[PartialProfile], None] = lambda partial: None,
) -> CostTable:
    """Measure a network on this machine.

    Each core config is measured alone and with every other core busy with the same network. The times of the layers
    come from the engine's own profiler, scaled so that they add up to the time of the whole network measured without
    it (twice, at different moments, of which the quicker counts: what disturbs a machine only ever makes it slower).
    What a cut costs beside the layers comes from running the network in several segments. Runs at moments when the
    cores were disturbed do not count (see `corepipe.cost.watch`).

    Args:
        network: what to measure.
        topology: where.
        engine: which engine, with the version that is recorded.
        batch: how many frames are run at once.
        done: configs, and hop costs, that need not be measured again.
        on_progress: told of the progress.
        on_partial: given all that is measured, after each config.

    Raises:
        TopologyError: the machine is not at hand.
        WorkerError: a measuring process failed; the message says on which config.
        EngineError: the engine refuses the network.
        BatchError: the network does not allow batches.
    """
    whole = batched(network, batch)
    configs = profiled_configs(topology)
    partial = done or PartialProfile()
    measured = {costs.config: costs for costs in partial.configs}
    steps = 2 * len(configs) + 1

    def keep(costs: ConfigCosts) -> None:
        nonlocal partial
        measured[costs.config] = costs
        partial = PartialProfile(configs=tuple(measured.values()), hop=partial.hop)
        on_partial(partial)

    for index, config in enumerate(configs):
        if str(config) not in measured:
            on_progress(index / steps, f"layers on {config}")
            keep(_measure_config(whole, topology, config, engine.name))
    for index, config in enumerate(configs, len(configs)):
        if measured[str(config)].passes == 1:
            on_progress(index / steps, f"once more on {config}")
            keep(_measure_again(whole, topology, measured[str(config)], engine.name))
    hop = partial.hop
    if hop is None:
        on_progress((steps - 1) / steps, "hops between workers")
        hop = measure_hop(topology)
        partial = PartialProfile(configs=partial.configs, hop=hop)
        on_partial(partial)
    on_progress(1.0, "done")
    return CostTable(
        network=table_network(network),
        machine=table_machine(topology),
        engines=(engine,),
        configs=tuple(_per_frame(measured[str(config)], batch) for config in configs),
        hop=hop,
        provenance=Provenance(
            source="emulated" if topology.emulated else "measured",
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        ),
    )


def table_network(network: Network) -> TableNetwork:
    """The part of a cost table that describes the network."""
    useful = set(useful_cuts(network))
    return TableNetwork(
        name=network.name,
        sha256=network.sha256,
        layers=tuple(layer.name for layer in network.layers),
        cut_bytes=tuple(cut.nbytes for cut in network.cuts),
        illegal_cuts=tuple(i for i in range(1, len(network.layers)) if i not in useful),
    )


def table_machine(topology: Topology) -> TableMachine:
    """The part of a cost table that describes the machine."""
    return TableMachine(
        description=topology.machine,
        fingerprint=topology.fingerprint(),
        clusters=tuple(TableCluster(name=c.name, cores=tuple(k.id for k in c.cores)) for c in topology.clusters),
    )


def _per_frame(costs: ConfigCosts, batch: int) -> ConfigCosts:
    """Seconds of one frame, from those of a run of some; what a byte costs is the same."""
    busy = costs.layer_busy_s
    return costs.model_copy(
        update={
            "batch": batch,
            "layer_s": tuple(seconds / batch for seconds in costs.layer_s),
            "layer_busy_s": None if busy is None else tuple(seconds / batch for seconds in busy),
            "segment_s": costs.segment_s / batch,
        }
    )


def _measure_config(network: Network, topology: Topology, config: CoreConfig, engine: str) -> ConfigCosts:
    cores = cores_of(topology, config)
    whole = network.segment(0, len(network.layers))
    splits = [s for parts in SPLITS if len(s := split_evenly(network, parts)) > 1]
    named = name_by_layer(network, whole)
    segments = [named, *(network.segment(*edge) for split in splits for edge in split), smallest_segment()]
    with MeasuringProcess(topology, f"probe-{config}", cores, segments, engine) as prober:
        chains, index = [[0]], 1
        for split in splits:
            chains.append(list(range(index, index + len(split))))
            index += len(split)
        (alone,) = prober.time([[0]], _SECONDS)
        beside, *divided = prober.time(chains, _SECONDS * len(chains) / 2)
        layers = layer_seconds(network, prober.profile(0, statistics.median(alone), _SECONDS))
        rows = [[len(split) - 1, 2 * sum(network.cuts[start].nbytes for start, _ in split[1:])] for split in splits]
        extra = [float(np.median(np.subtract(seconds, beside))) for seconds in divided]
        segment_s, per_byte = _fit_segment_costs(rows, extra)
        # The extra time of some cuts says little of a call's fixed cost; a segment is never cheaper than an empty one.
        segment_s = max(segment_s, typical(prober.time([[index]], _SECONDS / 8)[0]))
        whole_s = typical(alone)
        edges = network.cuts[0].nbytes + network.cuts[-1].nbytes
        fixed = min(segment_s + per_byte * edges, 0.5 * whole_s)
        busy = None
        with contextlib.ExitStack() as stack:
            if others := loads(stack, topology, cores, [whole], engine):
                with loaded(others):
                    busy_s = typical(prober.time([[0]], _SECONDS, busy=True)[0])
                    busy_layers = layer_seconds(network, prober.profile(0, busy_s, _SECONDS, busy=True))
                busy = scaled(busy_layers, max(busy_s - fixed, 0.5 * busy_s))
        left_out = prober.left_out
    return ConfigCosts(
        config=str(config),
        engine=engine,
        layer_s=scaled(layers, whole_s - fixed),
        layer_busy_s=busy,
        segment_s=segment_s,
        segment_s_per_byte=per_byte,
        spread=spread(alone),
        left_out=left_out,
    )


def _measure_again(network: Network, topology: Topology, costs: ConfigCosts, engine: str) -> ConfigCosts:
    """The same costs with a second look at the whole network: where it was quicker, all layers are."""
    whole = network.segment(0, len(network.layers))
    cores = cores_of(topology, costs.core_config)
    (now,) = time_whole(topology, f"probe-{costs.config}", cores, [whole], engine, _SECONDS)
    fixed = costs.beside_layers_s(network.cuts[0].nbytes + network.cuts[-1].nbytes)

    def quicker(layers: tuple[float, ...], whole_s: float) -> tuple[float, ...]:
        own = whole_s - min(fixed, 0.5 * whole_s)
        return scaled(np.array(layers), own) if own < sum(layers) else layers

    busy = costs.layer_busy_s
    update: dict[str, object] = {"layer_s": quicker(costs.layer_s, now.alone_s), "passes": 2}
    if update["layer_s"] != costs.layer_s:
        update |= {"spread": now.spread, "left_out": now.left_out}
    if busy is not None and now.busy_s is not None:
        update["layer_busy_s"] = quicker(busy, now.busy_s)
    return costs.model_copy(update=update)


def _fit_segment_costs(rows: Sequence[Sequence[float]], extra: Sequence[float]) -> tuple[float, float]:
    """Seconds per additional segment and per byte at its cuts; neither is negative."""
    if not rows:
        return 0.0, 0.0
    matrix = np.array(rows, dtype=float)
    scale = np.maximum(matrix.max(axis=0), 1.0)
    fit, _ = nnls(matrix / scale, np.array(extra))
    return float(fit[0] / scale[0]), float(fit[1] / scale[1])
