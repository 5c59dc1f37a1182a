"""A quick profile: each distinct layer measured once, on one core of each type; a calibration predicts the rest."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from corepipe.cost.calibration import Calibration
from corepipe.cost.measuring import MeasuringProcess, Progress, cores_of, layer_seconds, name_by_layer, typical
from corepipe.cost.predict.layout import samples
from corepipe.cost.predict.model import Predictor
from corepipe.cost.predict.table import predict_table
from corepipe.cost.table import ConfigCosts, CostTable, EngineName, Provenance
from corepipe.network.concat import never_joined, useful_cuts
from corepipe.network.model import Network
from corepipe.topology.model import ALL_CORES, CoreConfig, Topology

Vector = NDArray[np.float64]

_SECONDS = 0.15


@dataclass(frozen=True)
class QuickProfile:
    """A cost table of which a part was measured.

    Attributes:
        distinct: how many layers were measured, of how many.
        error: what predicting costs where nothing was measured: the time-weighted relative error of the calibration's
            left-out layers, the largest of all predicted conditions.
    """

    table: CostTable
    distinct: tuple[int, int]
    error: float


def profile_quick(
    network: Network,
    topology: Topology,
    engine: EngineName,
    calibration: Calibration,
    *,
    on_progress: Progress = lambda share, text: None,
) -> QuickProfile:
    """Measure each distinct layer once on one core of each type, and predict everything else.

    Layers with equal descriptors and layouts count as one. They are measured in segments of neighbouring layers, one
    more in front than is wanted, so that each runs in the layout that it has in the network. Other counts of cores,
    and busy cores, are predicted, and corrected by what the layer took against its prediction on one core.

    Args:
        network: what to measure.
        topology: where.
        engine: which engine, with the version that is recorded.
        calibration: of this machine.
        on_progress: told of the progress.

    Raises:
        WorkerError: a measuring process failed.
    """
    predicted = predict_table(network, calibration).table
    seen = samples(network, calibration.channel_block)
    free = never_joined(network)
    first = first_of_kind([(sample, index in free) for index, sample in enumerate(seen)])
    wanted = sorted(set(first))
    spans = spans_of(network, wanted)
    ratios: dict[str, Vector] = {}
    for number, cluster in enumerate(topology.clusters):
        config = CoreConfig(cluster.name, 1)
        on_progress(number / len(topology.clusters), f"{len(wanted)} distinct layers on {config}")
        own = _measure(network, topology, config, engine.name, spans, predicted.costs_of(config))
        guess = np.array(predicted.costs_of(config).layer_s)
        ratios[cluster.name] = np.array([own[i] / guess[i] if i in own else 1.0 for i in first])
    ratios[ALL_CORES] = ratios[topology.clusters[0].name]
    on_progress(1.0, "done")
    table = predicted.replaced(
        configs=tuple(_corrected(costs, ratios[costs.core_config.cluster]) for costs in predicted.configs),
        provenance=Provenance(
            source="predicted",
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            note=f"{len(wanted)} distinct layers of {len(seen)} measured on one core, the rest predicted",
        ),
    )
    conditions = Predictor(calibration).calibration.conditions
    return QuickProfile(table, (len(wanted), len(seen)), max(c.error for c in conditions))


def first_of_kind(seen: Sequence[Hashable]) -> list[int]:
    """For each layer the index of the first that is equal to it."""
    first: dict[Hashable, int] = {}
    return [first.setdefault(sample, index) for index, sample in enumerate(seen)]


def spans_of(network: Network, wanted: Sequence[int]) -> list[tuple[int, int]]:
    """Segments that hold all wanted layers, each with a layer in front, divided only where that is legal."""
    edges = sorted({0, *useful_cuts(network), len(network.layers)})
    spans: list[tuple[int, int]] = []
    for index in wanted:
        start = max(edge for edge in edges if edge <= max(index - 1, 0))
        stop = min(edge for edge in edges if edge > index)
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(stop, spans[-1][1]))
        else:
            spans.append((start, stop))
    return spans


def _measure(
    network: Network,
    topology: Topology,
    config: CoreConfig,
    engine: str,
    spans: Sequence[tuple[int, int]],
    costs: ConfigCosts,
) -> Mapping[int, float]:
    """Seconds by layer of all layers within the spans; the extra layer in front of a span gives way to its own span."""
    segments = [name_by_layer(network, network.segment(*span)) for span in spans]
    found: dict[int, float] = {}
    with MeasuringProcess(topology, f"quick-{config}", cores_of(topology, config), segments, engine) as process:
        for number, (start, stop) in enumerate(spans):
            whole = typical(process.time([[number]], _SECONDS)[0])
            layers = layer_seconds(network, process.profile(number, whole, _SECONDS))[start:stop]
            ends = network.cuts[start].nbytes + network.cuts[stop].nbytes
            own = max(whole - costs.beside_layers_s(ends), 0.5 * whole)
            for index, seconds in zip(range(start, stop), layers * (own / layers.sum()), strict=True):
                if index > start or index not in found:
                    found[index] = float(seconds)
    return found


def _corrected(costs: ConfigCosts, ratio: Vector) -> ConfigCosts:
    busy = costs.layer_busy_s
    return costs.model_copy(
        update={
            "layer_s": tuple(map(float, np.array(costs.layer_s) * ratio)),
            "layer_busy_s": None if busy is None else tuple(map(float, np.array(busy) * ratio)),
        }
    )
