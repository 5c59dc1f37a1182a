"""Measures the calibration set on this machine, in pinned processes, on every core config alone and busy."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from corepipe.cost.calibration import Calibration, Measurement, PartialCalibration, SampleNetwork
from corepipe.cost.calibration_set import SET_VERSION, calibration_network, kind_count
from corepipe.cost.hop import measure_hop
from corepipe.cost.measuring import (
    MeasuringProcess,
    Progress,
    cores_of,
    layer_seconds,
    loaded,
    loads,
    name_by_layer,
    scaled,
    smallest_segment,
    some_configs,
    split_evenly,
    spread,
    time_whole,
    typical,
)
from corepipe.cost.predict.fit import fit
from corepipe.cost.predict.layout import samples
from corepipe.cost.profile import table_machine
from corepipe.cost.table import EngineName
from corepipe.errors import UsageError
from corepipe.network.model import Network, Segment
from corepipe.topology.model import CoreConfig, Topology

CALIBRATED = ("onnxruntime", "openvino")
"""The engines that have the operators of all networks of the set; ncnn has no LayerNormalization, for one."""

MOST_SPREAD = 0.08
"""A calibration whose networks' times vary more than this (median, half the interquartile range) is marked."""

_ROUNDS = 4
"""How many networks of each kind are measured."""

_BATCH = 6
"""Networks that one process measures; an interrupted calibration loses one batch at most."""

_PARTS = 3
_RUNS = 6
_SECONDS = 0.12
_CALL_SECONDS = 0.05
_LAW_COUNTS = 3
"""Of a cluster with more cores than this, only the counts 1, 2 and all are measured."""


def check_calibrated(engine: EngineName) -> None:
    """Refuse an engine that cannot be calibrated.

    Raises:
        UsageError: it lacks operators of the set.
    """
    if engine.name not in CALIBRATED:
        raise UsageError(
            f"{engine.name} cannot be calibrated: the networks of the calibration need operators that it lacks; its "
            f"costs are measured (corepipe profile), those of {' and '.join(CALIBRATED)} can be predicted"
        )


def calibrate(
    topology: Topology,
    engine: EngineName,
    *,
    done: PartialCalibration | None = None,
    on_progress: Progress = lambda share, text: None,
    on_partial: Callable[[PartialCalibration], None] = lambda partial: None,
    networks: int | None = None,
) -> Calibration:
    """Measure the calibration set on this machine and fit the cost model to it.

    Takes 4 to 5 minutes for one cluster of two cores; each further core config adds a minute or two.

    Args:
        topology: the machine.
        engine: which engine, with the version that is recorded.
        done: what need not be measured again; of another version of the set it is ignored.
        on_progress: told of the progress.
        on_partial: given all that is measured, after each batch of networks.
        networks: how many networks of the set; by default four of each kind.

    Returns:
        The calibration. Where the machine was too noisy, `trustworthy` is false: keep it, and say so.

    Raises:
        UsageError: the engine lacks operators of the set.
        TopologyError: the machine is not at hand.
        WorkerError: a measuring process failed; the message says on which config.
        EngineError: the engine refuses a network of the set.
    """
    check_calibrated(engine)
    count = networks or _ROUNDS * kind_count()
    kept = done if done is not None and done.set_version == SET_VERSION else None
    partial = kept or PartialCalibration(set_version=SET_VERSION)
    configs = measured_configs(topology)
    batches = [range(start, min(start + _BATCH, count)) for start in range(0, count, _BATCH)]
    steps = 2 * len(configs) * len(batches) + 1
    work = itertools.product((1, 2), batches, configs)
    for step, (passes, batch, config) in enumerate(work):
        kept_of = {m.network: m for m in partial.measurements if m.config == str(config)}
        missing = [i for i in batch if (i not in kept_of if passes == 1 else kept_of[i].passes == 1)]
        if missing:
            when = "" if passes == 1 else ", once more"
            on_progress(step / steps, f"networks {batch.start + 1} to {batch.stop} of {count} on {config}{when}")
            if passes == 1:
                found = _measure(missing, topology, config, engine.name)
            else:
                found = _measure_again([kept_of[i] for i in missing], topology, config, engine.name)
            done_now = {m.network for m in found}
            others = tuple(m for m in partial.measurements if m.config != str(config) or m.network not in done_now)
            partial = partial.model_copy(update={"measurements": (*others, *found)})
            on_partial(partial)
    if partial.hop is None:
        on_progress((steps - 1) / steps, "hops between workers")
        partial = partial.model_copy(update={"hop": measure_hop(topology)})
        on_partial(partial)
    on_progress(1.0, "done")
    return build(topology, engine, partial, count)


def build(topology: Topology, engine: EngineName, partial: PartialCalibration, count: int) -> Calibration:
    """The calibration from all that was measured of the first `count` networks, fitted."""
    from corepipe.engine.onnxruntime import channel_block  # loads the engine

    wanted = {str(config) for config in measured_configs(topology)}
    used = tuple(m for m in partial.measurements if m.network < count and m.config in wanted)
    spread = statistics.median(m.spread for m in used)
    block = channel_block()
    calibration = Calibration(
        machine=table_machine(topology),
        engine=engine,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        emulated=topology.emulated,
        set_version=SET_VERSION,
        spread=spread,
        trustworthy=spread <= MOST_SPREAD,
        hop=partial.hop or measure_hop(topology),
        channel_block=block,
        own_cache_bytes=own_cache_bytes(topology),
        networks=tuple(_sample_network(index, block) for index in sorted({m.network for m in used})),
        measurements=used,
    )
    return fit(calibration)


def measured_configs(topology: Topology) -> tuple[CoreConfig, ...]:
    """The configs that a calibration measures; of large clusters the counts between are left to the fitted law."""
    return some_configs(topology, lambda count, size: size <= _LAW_COUNTS or count in (1, 2, size))


def own_cache_bytes(topology: Topology) -> int:
    """What a core has to itself of its caches up to the second level, of the cluster that has least; 0 if unknown."""
    found = []
    for cluster in topology.clusters:
        sizes = [cache.size_bytes // max(cache.shared_by, 1) for cache in cluster.caches if cache.level <= 2]
        found.append(max(sizes, default=0))
    return min(found)


def _sample_network(index: int, block: int) -> SampleNetwork:
    network = calibration_network(index)
    ends = network.cuts[0].nbytes + network.cuts[-1].nbytes
    return SampleNetwork(index=index, layers=samples(network, block), end_bytes=ends)


def _measure(indices: Sequence[int], topology: Topology, config: CoreConfig, engine: str) -> list[Measurement]:
    """Each network alone, and with every other core running the same network."""
    cores = cores_of(topology, config)
    networks = [calibration_network(index) for index in indices]
    wholes = [_segment(network, 0, len(network.layers)) for network in networks]
    splits = [split_evenly(network, _PARTS) for network in networks]
    segments: list[Segment] = []
    chains: list[list[list[int]]] = []
    for network, whole, split in zip(networks, wholes, splits, strict=True):
        first = len(segments)
        segments += [name_by_layer(network, whole), *(_segment(network, *edge) for edge in split)]
        chains.append([[first], list(range(first + 1, len(segments)))])
    found = []
    segments.append(smallest_segment())
    with contextlib.ExitStack() as stack:
        prober = stack.enter_context(MeasuringProcess(topology, f"calibrate-{config}", cores, segments, engine))
        others = loads(stack, topology, cores, wholes, engine)
        call_s = typical(prober.time([[len(segments) - 1]], _CALL_SECONDS, runs=_RUNS)[0])
        for number, (index, network) in enumerate(zip(indices, networks, strict=True)):
            measured = _measure_network(
                prober, others, str(config), index, network, splits[number], chains[number], number
            )
            found.append(measured.model_copy(update={"call_s": call_s}))
    return found


def _measure_again(
    measurements: Sequence[Measurement], topology: Topology, config: CoreConfig, engine: str
) -> list[Measurement]:
    """The same measurements with a second look at each whole network: where it was quicker, all layers are."""
    networks = [calibration_network(measured.network) for measured in measurements]
    wholes = [_segment(network, 0, len(network.layers)) for network in networks]
    cores = cores_of(topology, config)
    times = time_whole(topology, f"calibrate-{config}", cores, wholes, engine, _SECONDS)
    found = []
    for measured, now in zip(measurements, times, strict=True):
        alone_s, busy_s = now.alone_s, now.busy_s
        update: dict[str, object] = {"passes": 2}
        if alone_s < measured.whole_s:
            update |= {"layer_s": scaled(np.array(measured.layer_s), alone_s), "whole_s": alone_s}
        if busy_s is not None and measured.busy_layer_s is not None and busy_s < (measured.busy_whole_s or 0.0):
            update |= {"busy_layer_s": scaled(np.array(measured.busy_layer_s), busy_s), "busy_whole_s": busy_s}
        found.append(measured.model_copy(update=update))
    return found


def _segment(network: Network, start: int, stop: int) -> Segment:
    """With every join made: what joins cost is to be learnt, too."""
    return network.segment(start, stop, as_written=True)


def _measure_network(
    prober: MeasuringProcess,
    others: Sequence[MeasuringProcess],
    config: str,
    index: int,
    network: Network,
    split: Sequence[tuple[int, int]],
    chains: Sequence[Sequence[int]],
    number: int,
) -> Measurement:
    """One network: `chains` are the whole and its parts among the prober's models, `number` the load's model."""
    prober.left_out = 0.0
    # Not beside its parts: the threads of a session spin on for a while after each run, in the way of the next one's.
    (alone,) = prober.time(chains[:1], _SECONDS, runs=_RUNS)
    beside, divided = prober.time(chains, _SECONDS, runs=_RUNS)
    whole_s = typical(alone)
    whole = chains[0][0]
    layers = layer_seconds(network, prober.profile(whole, whole_s, _SECONDS))
    busy: list[float] = []
    busy_layers = None
    if others:
        with loaded(others, number):
            busy = prober.time(chains[:1], _SECONDS, runs=_RUNS, busy=True)[0]
            profiled = prober.profile(whole, typical(busy), _SECONDS, busy=True)
            busy_layers = layer_seconds(network, profiled)
    busy_s = typical(busy) if busy else None
    return Measurement(
        config=config,
        network=index,
        layer_s=scaled(layers, whole_s),
        busy_layer_s=None if busy_layers is None or busy_s is None else scaled(busy_layers, busy_s),
        whole_s=whole_s,
        busy_whole_s=busy_s,
        cuts=len(split) - 1,
        cut_bytes=2 * sum(network.cuts[start].nbytes for start, _ in split[1:]),
        cuts_extra_s=float(np.median(np.subtract(divided, beside))),
        spread=max(spread(alone), spread(busy) if busy else 0.0),
        left_out=prober.left_out,
    )
