"""A cost table from a calibration: no run of the network."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from corepipe.cost.calibration import Calibration, Sample
from corepipe.cost.predict.layout import samples
from corepipe.cost.predict.model import Predictor
from corepipe.cost.predict.paper import fit_paper
from corepipe.cost.profile import table_network
from corepipe.cost.table import ConfigCosts, CostTable, Provenance
from corepipe.errors import DocumentError
from corepipe.network.concat import never_joined
from corepipe.network.model import Network
from corepipe.topology.model import ALL_CORES, CoreConfig

_LEAST_SHARE = 0.01
"""Of a network's time: layers below it are not warned of."""


@dataclass(frozen=True)
class Interval:
    """Seconds of each layer below and above which 10 % of comparable layers lay, and the same of the whole network."""

    low_s: tuple[float, ...]
    high_s: tuple[float, ...]
    network_low_s: float
    network_high_s: float


@dataclass(frozen=True)
class Prediction:
    """A predicted cost table, how sure it is, and what it has no grounds for.

    Attributes:
        table: as a profile would make it, of provenance `predicted`.
        intervals: by config, for the layers alone.
        warnings: layers that lie outside what was calibrated, one sentence for each reason.
    """

    table: CostTable
    intervals: dict[str, Interval]
    warnings: tuple[str, ...]


def predict_table(network: Network, calibration: Calibration) -> Prediction:
    """Predict every layer of a network on every core config of a calibrated machine.

    Args:
        network: any; it is not run.
        calibration: of this or another machine.

    Raises:
        DocumentError: the calibration holds no fit.

    Example:
        >>> prediction = predict_table(network, Calibration.read("pi5.json"))    # doctest: +SKIP
        >>> plan(prediction.table).throughput_fps                                # doctest: +SKIP
        12.3
    """
    predictor = Predictor(calibration)
    seen, free = samples(network, calibration.channel_block), never_joined(network)
    edges = network.cuts[0].nbytes + network.cuts[-1].nbytes
    configs: list[ConfigCosts] = []
    intervals: dict[str, Interval] = {}
    for config in machine_configs(calibration):
        condition = predictor.condition(config)
        if condition is None:
            continue
        layers = predictor.layers(seen, condition).without(free)
        whole = float(layers.seconds.sum()) + condition.segment_s
        # As in a profile, what the two ends cost counts as the segment's: it is among the layers' terms as well.
        ends = condition.segment_s_per_byte * edges
        share = 1 - min(ends / whole, 0.5)
        busy = predictor.condition(config, busy=True)
        busy_s = None if busy is None else predictor.layers(seen, busy).without(free).seconds * share
        configs.append(
            ConfigCosts(
                config=str(config),
                engine=calibration.engine.name,
                layer_s=tuple(map(float, layers.seconds * share)),
                layer_busy_s=None if busy_s is None else tuple(map(float, busy_s)),
                segment_s=condition.segment_s,
                segment_s_per_byte=condition.segment_s_per_byte,
                spread=calibration.spread,
            )
        )
        low, high = predictor.network_interval(condition)
        intervals[str(config)] = Interval(
            tuple(map(float, layers.low * share)), tuple(map(float, layers.high * share)), whole * low, whole * high
        )
    if not configs:
        raise DocumentError("the calibration tells nothing of the cores of its own machine; calibrate again")
    note = f"from the calibration of {calibration.created or 'unknown date'}"
    warnings = _warnings(network, seen, predictor, machine_configs(calibration)[0])
    return Prediction(_table(network, calibration, configs, note), intervals, warnings)


def predict_table_paper(network: Network, calibration: Calibration) -> CostTable:
    """The same by the paper's regression (see `corepipe.cost.predict.paper`), as a baseline to compare with."""
    model = fit_paper(calibration)
    clusters = {cluster.name: len(cluster.cores) for cluster in calibration.machine.clusters}
    seen, free = samples(network, calibration.channel_block), never_joined(network)
    configs = [
        ConfigCosts(
            config=str(config),
            engine=calibration.engine.name,
            layer_s=tuple(
                0.0 if index in free else model.seconds(sample, config, clusters) for index, sample in enumerate(seen)
            ),
        )
        for config in machine_configs(calibration)
    ]
    return _table(network, calibration, configs, "by the regression of arXiv 1903.05898")


def machine_configs(calibration: Calibration) -> tuple[CoreConfig, ...]:
    """Every config of the calibrated machine, as a profile of it would hold."""
    clusters = calibration.machine.clusters
    configs = [CoreConfig(c.name, count) for c in clusters for count in range(1, len(c.cores) + 1)]
    if len(clusters) > 1:
        configs.append(CoreConfig(ALL_CORES, sum(len(c.cores) for c in clusters)))
    return tuple(configs)


def _table(network: Network, calibration: Calibration, configs: list[ConfigCosts], note: str) -> CostTable:
    return CostTable(
        network=table_network(network),
        machine=calibration.machine,
        engines=(calibration.engine,),
        configs=tuple(configs),
        hop=calibration.hop,
        provenance=Provenance(
            source="predicted", created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), note=note
        ),
    )


def _warnings(network: Network, seen: Sequence[Sample], predictor: Predictor, config: CoreConfig) -> tuple[str, ...]:
    """Each reason once, with the first layer that it holds for; layers of little weight are passed over."""
    condition = predictor.condition(config)
    if condition is None:
        return ()
    seconds = predictor.layers(seen, condition).seconds
    found: dict[str, list[str]] = {}
    for layer, sample, share in zip(network.layers, seen, seconds / seconds.sum(), strict=True):
        for reason in predictor.doubts(sample) if share > _LEAST_SHARE else ():
            found.setdefault(reason, []).append(layer.name)
    return tuple(
        f"layer {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "") + f": {reason}"
        for reason, names in found.items()
    )


__all__ = ["Interval", "Prediction", "machine_configs", "predict_table", "predict_table_paper"]
