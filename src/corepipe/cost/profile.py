"""Fills a cost table by measuring: every layer on every core config, in pinned processes."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper
from scipy.optimize import nnls

from corepipe.cost.hop import measure_hop
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
from corepipe.network.model import Network, Segment, TensorInfo
from corepipe.runtime.launch import Child, memory_file
from corepipe.topology.model import ALL_CORES, CoreConfig, Topology

Progress = Callable[[float, str], None]
"""Called with the share of the work that is done, in [0, 1], and what comes next."""

MEASUREMENT_VERSION = 3
"""Part of every cache key; rises when what is measured changes."""

SPLITS = (3, 8)
"""Into how many segments the network is cut to learn what a cut costs beside the layers."""

_MIN_RUNS = 5
_SECONDS = 0.8
_PROFILE_RUNS = (8, 60)
_DISTURBED = 1.25
"""Runs that take longer than this many times the median were disturbed by others and do not count."""


class PartialProfile(Document):
    """What has been measured so far, so that an interrupted profile goes on where it stopped."""

    KIND: ClassVar[str] = "corepipe-partial-profile"

    configs: tuple[ConfigCosts, ...] = ()
    hop: HopCosts | None = None


def profile(
    network: Network,
    topology: Topology,
    engine: EngineName,
    *,
    done: PartialProfile | None = None,
    on_progress: Progress = lambda share, text: None,
    on_partial: Callable[[PartialProfile], None] = lambda partial: None,
) -> CostTable:
    """Measure a network on this machine.

    Each core config is measured alone and with every other core busy with the same network. The times of the layers
    come from the engine's own profiler, scaled so that they add up to the time of the whole network measured without
    it. What a cut costs beside the layers comes from running the network in several segments.

    Args:
        network: what to measure.
        topology: where.
        engine: which engine, with the version that is recorded.
        done: configs, and hop costs, that need not be measured again.
        on_progress: told of the progress.
        on_partial: given all that is measured, after each config.

    Raises:
        WorkerError: a measuring process failed; the message says on which config.
        EngineError: the engine refuses the network.
    """
    configs = core_configs(topology)
    partial = done or PartialProfile()
    measured = {costs.config: costs for costs in partial.configs}
    steps = len(configs) + 1
    for index, config in enumerate(configs):
        if str(config) not in measured:
            on_progress(index / steps, f"layers on {config}")
            measured[str(config)] = _measure_config(network, topology, config, engine.name)
            partial = PartialProfile(configs=tuple(measured.values()), hop=partial.hop)
            on_partial(partial)
    hop = partial.hop
    if hop is None:
        on_progress(len(configs) / steps, "hops between workers")
        hop = measure_hop(topology)
        partial = PartialProfile(configs=partial.configs, hop=hop)
        on_partial(partial)
    on_progress(1.0, "done")
    return CostTable(
        network=table_network(network),
        machine=table_machine(topology),
        engine=engine,
        configs=tuple(measured[str(config)] for config in configs),
        hop=hop,
        provenance=Provenance(
            source="emulated" if topology.emulated else "measured",
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        ),
    )


def core_configs(topology: Topology) -> tuple[CoreConfig, ...]:
    """The configs that a table has: every cluster and count, and all cores together."""
    configs = topology.core_configs()
    if len(topology.clusters) > 1:
        configs += (CoreConfig(ALL_CORES, len(topology.cores)),)
    return configs


def cores_of(topology: Topology, config: CoreConfig) -> tuple[int, ...]:
    """Ids of the first cores of a config."""
    cores = topology.cores if config.cluster == ALL_CORES else topology.cluster(config.cluster).cores
    return tuple(core.id for core in cores[: config.count])


def table_network(network: Network) -> TableNetwork:
    """The part of a cost table that describes the network."""
    legal = set(network.legal_cuts())
    return TableNetwork(
        name=network.name,
        sha256=network.sha256,
        layers=tuple(layer.name for layer in network.layers),
        cut_bytes=tuple(cut.nbytes for cut in network.cuts),
        illegal_cuts=tuple(i for i in range(1, len(network.layers)) if i not in legal),
    )


def table_machine(topology: Topology) -> TableMachine:
    """The part of a cost table that describes the machine."""
    return TableMachine(
        description=topology.machine,
        fingerprint=topology.fingerprint(),
        clusters=tuple(TableCluster(name=c.name, cores=tuple(k.id for k in c.cores)) for c in topology.clusters),
    )


def split_evenly(network: Network, parts: int) -> list[tuple[int, int]]:
    """Up to `parts` segments of about the same FLOPs, divided at legal cuts."""
    legal = network.legal_cuts()
    flops = np.cumsum([layer.descriptor.flops + 1 for layer in network.layers])
    wanted = [flops[-1] * part / parts for part in range(1, parts)]
    cuts = sorted({min(legal, key=lambda cut: abs(flops[cut - 1] - want)) for want in wanted}) if legal else []
    edges = [0, *cuts, len(network.layers)]
    return list(itertools.pairwise(edges))


def _measure_config(network: Network, topology: Topology, config: CoreConfig, engine: str) -> ConfigCosts:
    cores = cores_of(topology, config)
    whole = network.segment(0, len(network.layers))
    splits = [s for parts in SPLITS if len(s := split_evenly(network, parts)) > 1]
    named = name_by_layer(network, whole)
    segments = [named, *(network.segment(*edge) for split in splits for edge in split), _smallest_segment()]
    with _Prober(topology, f"probe-{config}", cores, segments, engine) as prober:
        chains, index = [[0]], 1
        for split in splits:
            chains.append(list(range(index, index + len(split))))
            index += len(split)
        (alone,) = prober.time([[0]])
        beside, *divided = prober.time(chains)
        layers = _layer_seconds(network, prober.profile(0, statistics.median(alone)))
        rows = [[len(split) - 1, 2 * sum(network.cuts[start].nbytes for start, _ in split[1:])] for split in splits]
        extra = [float(np.median(np.subtract(seconds, beside))) for seconds in divided]
        segment_s, per_byte = _fit_segment_costs(rows, extra)
        # The extra time of some cuts says little of a call's fixed cost; a segment is never cheaper than an empty one.
        segment_s = max(segment_s, _typical(prober.time([[index]])[0]))
        whole_s = _typical(alone)
        edges = network.cuts[0].nbytes + network.cuts[-1].nbytes
        fixed = min(segment_s + per_byte * edges, 0.5 * whole_s)
        busy = None
        others = _other_cores(topology, cores)
        if others:
            with contextlib.ExitStack() as stack:
                for number, group in enumerate(others):
                    load = _Prober(topology, f"load-{number}", group, [whole], engine)
                    stack.enter_context(load).load()
                busy_s = _typical(prober.time([[0]])[0])
                busy_layers = _layer_seconds(network, prober.profile(0, busy_s))
                busy = _scaled(busy_layers, max(busy_s - fixed, 0.5 * busy_s))
    return ConfigCosts(
        config=str(config),
        engine=engine,
        layer_s=_scaled(layers, whole_s - fixed),
        layer_busy_s=busy,
        segment_s=segment_s,
        segment_s_per_byte=per_byte,
        spread=_spread(alone),
    )


def _smallest_segment() -> Segment:
    """One operator on a few numbers: as good as nothing but the call."""
    tensors = [TensorInfo(name, np.dtype(np.float32), (16,)) for name in ("x", "y")]
    x, y = (helper.make_tensor_value_info(t.name, TensorProto.FLOAT, t.shape) for t in tensors)
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "smallest", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return Segment(0, 1, model, (tensors[0],), (tensors[1],))


def _scaled(layers: NDArray[np.float64], total: float) -> tuple[float, ...]:
    """Layer times scaled to add up to `total` seconds."""
    return tuple(float(s) for s in layers * (total / layers.sum()))


def _spread(values: Sequence[float]) -> float:
    """Half of the interquartile range over the median."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float((high - low) / 2 / middle)


def _fit_segment_costs(rows: Sequence[Sequence[float]], extra: Sequence[float]) -> tuple[float, float]:
    """Seconds per additional segment and per byte at its cuts; neither is negative."""
    if not rows:
        return 0.0, 0.0
    matrix = np.array(rows, dtype=float)
    scale = np.maximum(matrix.max(axis=0), 1.0)
    fit, _ = nnls(matrix / scale, np.array(extra))
    return float(fit[0] / scale[0]), float(fit[1] / scale[1])


def _other_cores(topology: Topology, cores: Sequence[int]) -> list[tuple[int, ...]]:
    """The cores that are not in use, in one group for each cluster."""
    groups = [tuple(core.id for core in c.cores if core.id not in cores) for c in topology.clusters]
    return [group for group in groups if group]


def name_by_layer(network: Network, segment: Segment) -> Segment:
    """The same segment with nodes renamed to `L<layer>.<n>`, so that an engine's profile tells their layers."""
    model = type(segment.model)()
    model.CopyFrom(segment.model)
    owner = {output: layer.index for layer in network.layers for output in layer.outputs}
    for number, node in enumerate(model.graph.node):
        layer = next((owner[o] for o in node.output if o in owner), 0)
        node.name = f"L{layer}.{number}"
    return Segment(segment.start, segment.stop, model, segment.inputs, segment.outputs)


def _layer_seconds(network: Network, runs: Sequence[Sequence[tuple[str, float]]]) -> NDArray[np.float64]:
    """Mean over the undisturbed runs of each layer's seconds.

    The mean, not the median: where a core's time is shared in slices, a short kernel is mostly not interrupted at all
    and sometimes for much longer than it takes, so its median tells nothing of what it costs.

    Engines rename, fuse and add nodes. A node is known by the layer in its name, by the tensor that its name starts
    with (ONNX Runtime's blocked kernels), else it changes a layout for the kernel that runs before it.
    """
    owner = {output: layer.index for layer in network.layers for output in layer.outputs}
    table = np.zeros((len(runs), len(network.layers)))
    for row, run in zip(table, runs, strict=True):
        layer = 0
        for node, seconds in run:
            layer = _layer_of(node, owner, layer)
            row[layer] += seconds
    totals = table.sum(axis=1)
    result: NDArray[np.float64] = np.maximum(table[totals <= _DISTURBED * np.median(totals)].mean(axis=0), 1e-9)
    return result


def _typical(seconds: Sequence[float]) -> float:
    """Mean over the undisturbed runs."""
    values = np.asarray(seconds)
    return float(values[values <= _DISTURBED * np.median(values)].mean())


def _layer_of(node: str, owner: Mapping[str, int], default: int) -> int:
    if match := re.search(r"\bL(\d+)\.\d+", node):
        return int(match[1])
    name = node
    while name:
        if name in owner:
            return owner[name]
        name = name.rpartition("_")[0]
    return default


class _Prober:
    """The parent's side of `corepipe.cost.prober`."""

    def __init__(
        self, topology: Topology, name: str, cores: Sequence[int], segments: Sequence[Segment], engine: str
    ) -> None:
        model_fds = [memory_file(s.model.SerializeToString(), "model") for s in segments]
        command_read, self._commands = os.pipe()
        config = {
            "engine": engine,
            "threads": len(cores),
            "command_fd": command_read,
            "models": [
                {
                    "model_fd": fd,
                    "inputs": [[t.name, str(t.dtype), t.shape] for t in segment.inputs],
                    "outputs": [[t.name, str(t.dtype), t.shape] for t in segment.outputs],
                }
                for fd, segment in zip(model_fds, segments, strict=True)
            ],
        }
        cpus = topology.cpus_of(cores) if topology.pinnable else ()
        try:
            self._child = Child(
                "corepipe.cost.prober", name, cpus, config, [command_read, *model_fds], threads=len(cores)
            )
        except BaseException:
            os.close(self._commands)
            raise
        finally:
            for fd in (command_read, *model_fds):
                os.close(fd)
        try:
            self._child.wait_report()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._ask(op="stop")
        os.close(self._commands)
        self._child.close()

    def time(self, chains: list[list[int]]) -> list[list[float]]:
        """Seconds of each run of each chain of models; the chains take turns."""
        self._ask(op="time", chains=chains, runs=_MIN_RUNS, seconds=_SECONDS * len(chains))
        seconds: list[list[float]] = self._child.wait_report()["seconds"]
        return seconds

    def profile(self, model: int, run_s: float) -> list[list[tuple[str, float]]]:
        """Kernel calls of as many runs as fit into the time, `run_s` seconds each."""
        least, most = _PROFILE_RUNS
        self._ask(op="profile", model=model, runs=min(max(int(_SECONDS / run_s), least), most))
        runs: list[list[tuple[str, float]]] = self._child.wait_report()["runs"]
        return runs

    def load(self) -> None:
        """Keep the cores busy until the next command."""
        self._ask(op="time", chains=[[0]], runs=1, seconds=0)
        self._child.wait_report()
        self._ask(op="load", model=0)
        self._child.wait_report()

    def _ask(self, **command: Any) -> None:
        os.write(self._commands, json.dumps(command).encode() + b"\n")
