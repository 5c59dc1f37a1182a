"""The parent's side of `corepipe.cost.prober`: pinned processes that measure, and what is made of their figures."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from corepipe.cost.watch import REFERENCE_ENGINE
from corepipe.engine import serialized
from corepipe.errors import EngineError, WorkerError
from corepipe.network.concat import useful_cuts
from corepipe.network.model import Network, Segment, TensorInfo
from corepipe.runtime.arena import or_worker_error
from corepipe.runtime.launch import memory_file, spawn
from corepipe.topology.model import ALL_CORES, CoreConfig, Topology

Progress = Callable[[float, str], None]
"""Called with the share of the work that is done, in [0, 1], and what comes next."""

MIN_RUNS = 5
PROFILE_RUNS = (8, 60)
"""Least and most runs of a profile."""

_EVERY_COUNT = 8
_COUNTS = (12, 16, 24, 32, 48, 64, 96, 128)
"""Of a cluster every count up to the first is measured, then these, and the whole cluster."""

_MARK = "corepipeL"
"""Before the number of its layer in a node's name: names of tensors, which engines make names of, may look alike."""

_DISTURBING = re.compile(r'["\\\x00-\x1f]')
"""What would end or change a string of JSON."""

_DISTURBED = 1.25
"""Runs that take longer than this many times the median were disturbed by others and do not count."""


class MeasuringProcess:
    """A process on the cores of a config that times and profiles segments, or keeps the cores busy with them.

    Args:
        topology: the machine.
        name: shown in process lists and in errors.
        cores: ids of its cores; it runs as many threads.
        segments: what it measures, known by their index.
        engine: which engine.
        watch: whether moments at which the cores are disturbed are found and left out.

    Attributes:
        left_out: the largest share of a measurement's runs that did not count, because the cores were disturbed.
        reference_s: of the watch, on one core (None without a watch, or on cores of several kinds).

    Raises:
        WorkerError: the process could not start.
        TopologyError: the machine is not at hand.
    """

    def __init__(
        self,
        topology: Topology,
        name: str,
        cores: Sequence[int],
        segments: Sequence[Segment],
        engine: str,
        *,
        engines: Sequence[str] | None = None,
        watch: bool = True,
    ) -> None:
        topology.check_at_hand()
        self.left_out = 0.0
        expected_s = None
        if watch and len(cores) > 1 and len({c.name for c in topology.clusters for k in c.cores if k.id in cores}) == 1:
            with MeasuringProcess(topology, f"{name}-1", cores[:1], (), engine) as lone:
                expected_s = lone.reference_s
        cpus = topology.cpus_of(cores) if topology.pinnable else ()
        with (
            or_worker_error(f"worker {name}: cannot start a process"),
            contextlib.ExitStack() as undo,
            contextlib.ExitStack() as given,
        ):
            models: list[dict[str, Any]] = []
            for segment, own in zip(segments, engines or [engine] * len(segments), strict=True):
                model_fd = memory_file(serialized(own, segment.model), "model")
                given.callback(os.close, model_fd)
                models.append(
                    {
                        "model_fd": model_fd,
                        "engine": own,
                        "inputs": [[t.name, str(t.dtype), t.shape] for t in segment.inputs],
                        "outputs": [[t.name, str(t.dtype), t.shape] for t in segment.outputs],
                    }
                )
            command_read, self._commands = os.pipe()
            given.callback(os.close, command_read)
            undo.callback(os.close, self._commands)
            used = {engine, *(model["engine"] for model in models)}
            if watch:
                # Else the reference's threads spin on after each look, in the way of the models' threads.
                used.add(REFERENCE_ENGINE)
            config = {
                "watch": watch,
                "expected_s": expected_s,
                "command_fd": command_read,
                "models": models,
            }
            fds = [command_read, *(model["model_fd"] for model in models)]
            self._child = spawn("corepipe.cost.prober", name, cpus, config, used, fds, threads=len(cores))
            undo.pop_all()
        try:
            self.reference_s: float | None = self._child.wait_report()["reference_s"]
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(WorkerError):
            self._ask(op="stop")
        os.close(self._commands)
        self._child.close()

    def time(
        self, chains: Sequence[Sequence[int]], seconds: float, *, runs: int = MIN_RUNS, busy: bool = False
    ) -> list[list[float]]:
        """Seconds of each run of each chain of segments.

        Args:
            chains: indices of the segments to run one after the other; the chains take turns.
            seconds: how long to measure, all chains together.
            runs: how many runs of each there must be at the least.
            busy: whether the other cores are being kept busy.

        Raises:
            EngineError: the engine refuses a segment, or fails on it.
            WorkerError: the process ended.
        """
        found = self.time_each(chains, seconds, runs=runs, busy=busy)
        return [[sum(times) for times in chain_times] for chain_times in found]

    def time_each(
        self, chains: Sequence[Sequence[int]], seconds: float, *, runs: int = MIN_RUNS, busy: bool = False
    ) -> list[list[list[float]]]:
        """Seconds of each segment in each run of each chain; otherwise as `time`.

        Raises:
            EngineError, WorkerError: as for `time`.
        """
        self._ask(op="time", chains=chains, runs=runs, seconds=seconds, busy=busy)
        found: list[list[list[float]]] = self._answer()["seconds"]
        return found

    def profile(
        self, segment: int, run_s: float, seconds: float, *, busy: bool = False
    ) -> list[list[tuple[str, float]]]:
        """Kernel calls (the engine's name for the node, seconds) of each run.

        Args:
            segment: its index.
            run_s: what a run takes.
            seconds: as many runs as fit into so much time, within `PROFILE_RUNS`.
            busy: whether the other cores are being kept busy.

        Raises:
            EngineError: the engine refuses the segment, or fails on it.
            WorkerError: the process ended.
        """
        least, most = PROFILE_RUNS
        self._ask(op="profile", model=segment, runs=min(max(int(seconds / run_s), least), most), busy=busy)
        found: list[list[tuple[str, float]]] = self._answer()["runs"]
        return found

    @contextlib.contextmanager
    def load(self, segment: int = 0) -> Iterator[None]:
        """Keep the cores busy with a segment until the block ends.

        Raises:
            WorkerError: the segment failed, or the process ended.
        """
        self.time([[segment]], 0.0, runs=1)
        self._ask(op="load", model=segment)
        self._child.wait_report()
        try:
            yield
        finally:
            self.time([[segment]], 0.0, runs=0)

    def _answer(self) -> dict[str, Any]:
        answer = self._child.wait_report()
        if "refused" in answer:
            raise EngineError(f"worker {self._child.name}: {answer['refused']}")
        self.left_out = max(self.left_out, answer["left_out"])
        return answer

    def _ask(self, **command: Any) -> None:
        self._child.ask(self._commands, command)


@dataclass(frozen=True)
class WholeTime:
    """What a segment takes alone and, where there are other cores, with all of them running it too.

    Attributes:
        alone_s, busy_s: seconds of a run.
        spread: of the runs alone.
        left_out: the share of the runs that did not count, the larger one.
    """

    alone_s: float
    busy_s: float | None
    spread: float
    left_out: float


def time_whole(
    topology: Topology, name: str, cores: Sequence[int], segments: Sequence[Segment], engine: str, seconds: float
) -> list[WholeTime]:
    """The time of each segment, one after the other.

    Raises:
        WorkerError: a segment failed, or a process could not start.
    """
    with contextlib.ExitStack() as stack:
        prober = stack.enter_context(MeasuringProcess(topology, name, cores, segments, engine))
        others = loads(stack, topology, cores, segments, engine)
        found = []
        for index in range(len(segments)):
            prober.left_out = 0.0
            alone = prober.time([[index]], seconds)[0]
            busy_s = None
            if others:
                with loaded(others, index):
                    busy_s = typical(prober.time([[index]], seconds, busy=True)[0])
            found.append(WholeTime(typical(alone), busy_s, spread(alone), prober.left_out))
        return found


def loads(
    stack: contextlib.ExitStack, topology: Topology, cores: Sequence[int], segments: Sequence[Segment], engine: str
) -> list[MeasuringProcess]:
    """A process for each cluster that has cores beside `cores`, to keep those busy; they end with the stack."""
    return [
        stack.enter_context(MeasuringProcess(topology, f"load-{number}", group, segments, engine, watch=False))
        for number, group in enumerate(other_cores(topology, cores))
    ]


@contextlib.contextmanager
def loaded(others: Sequence[MeasuringProcess], segment: int = 0) -> Iterator[None]:
    """All of `loads` keep their cores busy with a segment until the block ends."""
    with contextlib.ExitStack() as stack:
        for other in others:
            stack.enter_context(other.load(segment))
        yield


def core_configs(topology: Topology) -> tuple[CoreConfig, ...]:
    """The configs that a table may have: every cluster and count, and all cores together."""
    configs = topology.core_configs()
    if len(topology.clusters) > 1:
        configs += (CoreConfig(ALL_CORES, len(topology.cores)),)
    return configs


def some_configs(topology: Topology, wanted: Callable[[int, int], bool]) -> tuple[CoreConfig, ...]:
    """Those for which `wanted(count, cores of the cluster)`; of all cores together there is one config."""
    sizes = {cluster.name: len(cluster.cores) for cluster in topology.clusters}
    return tuple(c for c in core_configs(topology) if wanted(c.count, sizes.get(c.cluster, c.count)))


def profiled_configs(topology: Topology) -> tuple[CoreConfig, ...]:
    """The configs that a profile measures: of large clusters not every count, which would take hours."""
    return some_configs(topology, lambda count, size: count <= _EVERY_COUNT or count in (*_COUNTS, size))


def cores_of(topology: Topology, config: CoreConfig) -> tuple[int, ...]:
    """Ids of the first cores of a config."""
    cores = topology.cores if config.cluster == ALL_CORES else topology.cluster(config.cluster).cores
    return tuple(core.id for core in cores[: config.count])


def split_evenly(network: Network, parts: int) -> list[tuple[int, int]]:
    """Up to `parts` segments of about the same FLOPs, divided at legal cuts."""
    legal = useful_cuts(network)
    flops = np.cumsum([layer.descriptor.flops + 1 for layer in network.layers])
    wanted = [flops[-1] * part / parts for part in range(1, parts)]
    cuts = sorted({min(legal, key=lambda cut: abs(flops[cut - 1] - want)) for want in wanted}) if legal else []
    edges = [0, *cuts, len(network.layers)]
    return list(itertools.pairwise(edges))


def smallest_segment() -> Segment:
    """One operator on a few numbers: as good as nothing but the call."""
    tensors = [TensorInfo(name, np.dtype(np.float32), (16,)) for name in ("x", "y")]
    x, y = (helper.make_tensor_value_info(t.name, TensorProto.FLOAT, t.shape) for t in tensors)
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "smallest", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return Segment(0, 1, model, (tensors[0],), (tensors[1],))


def scaled(layers: NDArray[np.float64], total: float) -> tuple[float, ...]:
    """Layer times scaled to add up to `total` seconds."""
    return tuple(float(s) for s in layers * (total / layers.sum()))


def spread(values: Sequence[float]) -> float:
    """Half of the interquartile range over the median."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float((high - low) / 2 / middle)


def other_cores(topology: Topology, cores: Sequence[int]) -> list[tuple[int, ...]]:
    """The cores that are not in use, in one group for each cluster."""
    groups = [tuple(core.id for core in c.cores if core.id not in cores) for c in topology.clusters]
    return [group for group in groups if group]


def name_by_layer(network: Network, segment: Segment) -> Segment:
    """The same segment with nodes renamed, so that an engine's profile tells their layers.

    ONNX Runtime writes names into its profile as they are, those of tensors too: inner ones with characters that end or
    change a JSON string are renamed as well.
    """
    model = type(segment.model)()
    model.CopyFrom(segment.model)
    owner = {output: layer.index for layer in network.layers for output in layer.outputs}
    kept = {value.name for value in (*model.graph.input, *model.graph.output)}
    renamed: dict[str, str] = {}
    for number, node in enumerate(model.graph.node):
        layer = next((found for o in node.output if (found := _named_after(o, owner)) is not None), 0)
        node.name = f"{_MARK}{layer}.{number}"
        for place, output in enumerate(node.output):
            if output not in kept and _DISTURBING.search(output):
                renamed[output] = f"{_MARK}{layer}.{number}_{place}"
    if renamed and not any(a.type in (a.GRAPH, a.GRAPHS) for node in model.graph.node for a in node.attribute):
        for node in model.graph.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed.get(name, name) for name in node.output]
        for value in model.graph.value_info:
            value.name = renamed.get(value.name, value.name)
    return Segment(segment.start, segment.stop, model, segment.inputs, segment.outputs)


def layer_seconds(network: Network, runs: Sequence[Sequence[tuple[str, float]]]) -> NDArray[np.float64]:
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
            layer = layer_of(node, owner, layer)
            row[layer] += seconds
    totals = table.sum(axis=1)
    result: NDArray[np.float64] = np.maximum(table[totals <= _DISTURBED * np.median(totals)].mean(axis=0), 1e-9)
    return result


def typical(seconds: Sequence[float]) -> float:
    """Mean over the undisturbed runs."""
    return float(typical_each([[value] for value in seconds])[0])


def typical_each(times: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Mean over the undisturbed runs of each segment of a chain; `times` of shape (runs, segments)."""
    values = np.asarray(times)
    totals = values.sum(axis=1)
    return np.asarray(values[totals <= _DISTURBED * np.median(totals)].mean(axis=0))


def layer_of(node: str, owner: Mapping[str, int], default: int) -> int:
    """The layer of a node by its name; `owner` names the layer of each tensor."""
    if match := re.search(rf"\b{_MARK}(\d+)\.\d+", node):
        return int(match[1])
    found = _named_after(node, owner)
    return default if found is None else found


def _named_after(name: str, owner: Mapping[str, int]) -> int | None:
    """The layer of the tensor that a name begins with."""
    while name:
        if name in owner:
            return owner[name]
        name = name.rpartition("_")[0]
    return None
