"""Measures what a hop costs: real streams of a small synthetic network, on this machine's cores."""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import time
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from corepipe.cost.table import HopCosts
from corepipe.network.load import load_network
from corepipe.network.model import Network
from corepipe.plan.model import Hop, Plan, PlanNetwork, Route, Worker
from corepipe.runtime.record import FrameRecord
from corepipe.runtime.stream import Stream
from corepipe.topology.model import CoreConfig, Topology

_CHANNELS = 16
_SMALL, _LARGE = 16, 192
"""Side of the square maps: 16 KiB and 2.25 MiB cross."""

_DEPTH = {_SMALL: 24, _LARGE: 2}
"""Convolutions in each half: enough work that the next frame always waits at the slower worker."""

_UNEVEN = 6
"""Convolutions of the lighter part of an uneven cut, of 48: even the slowest core of a chip finishes them first."""

_FRAMES = {_SMALL: 400, _LARGE: 60}
_LATENCY_FRAMES = 200
_WARM_UP = 8


def measure_hop(topology: Topology) -> HopCosts:
    """Seconds of work for a hop and at the ends of a route, and a hop's latency on an idle machine.

    Between the end of one frame's segment and the start of the next, a worker whose queue is never empty spends exactly
    what handing over costs it: its two ends with one worker, an end and half a hop with two. So the slower of two
    workers is looked at, and an uneven cut makes each in turn the slower one, while this process keeps off its core.
    What a byte costs shows in the run times: the data lies in another core's cache.

    Between clusters the fastest and the slowest core are taken. The time that this process itself needs for a frame is
    part of `edge_s`, since a plan that uses all cores gives it none of its own.

    Args:
        topology: the machine; with a single core there is no hop, and only the ends are measured.

    Raises:
        WorkerError: a worker could not start.
    """
    small, large = _network(_SMALL), _network(_LARGE)
    first, *others = topology.cores
    whole = [(first.id, 0, len(small.layers))]
    records, own_s = _run(small, whole, topology, off=first.id)
    end = _gap(records, 0) / 2
    edge_s = end + own_s / 2
    if not others:
        return HopCosts(edge_s=edge_s)
    second = others[-1] if len(topology.clusters) > 1 else others[0]
    count = len(small.layers)
    heavy_first = [(first.id, 0, count - _UNEVEN), (second.id, count - _UNEVEN, count)]
    heavy_last = [(first.id, 0, _UNEVEN), (second.id, _UNEVEN, count)]
    giving = _gap(_run(small, heavy_first, topology, off=first.id)[0], 0) - end
    taking = _gap(_run(small, heavy_last, topology, off=second.id)[0], 1) - end
    return HopCosts(
        fixed_s=max(giving, 0.0) + max(taking, 0.0),
        per_byte_s=_per_byte(large, topology, first.id, second.id),
        edge_s=edge_s,
        latency_s=_latency(small, [(first.id, 0, count // 2), (second.id, count // 2, count)], topology),
    )


def _per_byte(network: Network, topology: Topology, first: int, second: int) -> float:
    """How much longer two halves run on two cores than each pair of halves on a core of its own, per crossing byte.

    Both cores are busy either way.
    """
    count = len(network.layers)
    middle = count // 2
    apart, _ = _run(network, [(first, 0, middle), (second, middle, count)], topology)
    replicas = [[(core, 0, middle), (core, middle, count)] for core in (first, second)]
    together, _ = _run(network, replicas[0], topology, beside=replicas[1])
    extra = sum(_service(apart, 0, hop) - _service(together, hop, hop) for hop in (0, 1))
    return max(extra, 0.0) / network.cuts[middle].nbytes


def _network(side: int) -> Network:
    """A chain of equal convolutions whose middle cut is of the same size as its ends."""
    generator = np.random.default_rng(0)
    shape = [1, _CHANNELS, side, side]
    nodes, weights = [], []
    count = 2 * _DEPTH[side]
    for index in range(count):
        weight = generator.standard_normal((_CHANNELS, _CHANNELS, 3, 3), np.float32) / np.float32(12)
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(
            helper.make_node("Conv", [f"t{index}", f"w{index}"], [f"t{index + 1}"], name=f"conv{index}", pads=[1] * 4)
        )
    graph = helper.make_graph(
        nodes,
        f"hop-{side}",
        [helper.make_tensor_value_info("t0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"t{count}", TensorProto.FLOAT, shape)],
        weights,
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return load_network(model)


_Hops = list[tuple[int, int, int]]
"""A route as (core, start, stop)."""


def _plan(network: Network, topology: Topology, routes: list[_Hops]) -> Plan:
    """A worker for each core that the routes name."""
    cluster_of = {core.id: c.name for c in topology.clusters for core in c.cores}
    cores = dict.fromkeys(core for hops in routes for core, _, _ in hops)
    return Plan(
        planner="hop measurement",
        network=PlanNetwork(name=network.name, sha256=network.sha256, layers=len(network.layers)),
        workers=tuple(
            Worker(name=f"core{core}", config=str(CoreConfig(cluster_of[core], 1)), cores=(core,)) for core in cores
        ),
        routes=tuple(
            Route(rate_fps=1.0, hops=tuple(Hop(worker=f"core{core}", layers=(a, b)) for core, a, b in hops))
            for hops in routes
        ),
    )


def _run(
    network: Network, hops: _Hops, topology: Topology, *, beside: _Hops | None = None, off: int | None = None
) -> tuple[list[FrameRecord], float]:
    """Records of a saturated run without its first and last frames, and this process's seconds per frame."""
    records: list[FrameRecord] = []
    frame = np.ones(network.inputs[0].shape or (), np.float32)
    count = _FRAMES[frame.shape[-1]]
    plan = _plan(network, topology, [hops] if beside is None else [hops, beside])
    with _keeping_off(topology, off), Stream(network, plan, topology, on_record=records.append) as stream:
        before = time.process_time()
        for _ in stream(frame for _ in range(count)):
            pass
        own_s = (time.process_time() - before) / count
    return sorted(records, key=lambda r: r.frame)[_WARM_UP:-_WARM_UP], own_s


@contextlib.contextmanager
def _keeping_off(topology: Topology, core: int | None) -> Iterator[None]:
    """Keep this thread, and the threads that it starts, off a core, where another one is there and pinning works."""
    others = set(topology.cpus) - set(topology.cpus_of([core])) if core is not None else set()
    if not others or not topology.pinnable or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, others)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _gap(records: list[FrameRecord], hop: int) -> float:
    """Median seconds between the end of one frame's hop and the start of the next one's."""
    times = [record.hops[hop] for record in records]
    return statistics.median(b.started_ns - a.ended_ns for a, b in itertools.pairwise(times)) * 1e-9


def _service(records: list[FrameRecord], route: int, hop: int) -> float:
    """Median seconds that a hop's segment runs."""
    times = [record.hops[hop] for record in records if record.route == route]
    return statistics.median(time_.ended_ns - time_.started_ns for time_ in times) * 1e-9


def _latency(network: Network, hops: _Hops, topology: Topology) -> float:
    """Median seconds from the end of the first hop to the start of the second, one frame at a time."""
    records: list[FrameRecord] = []
    frame = np.ones(network.inputs[0].shape or (), np.float32)
    with Stream(network, _plan(network, topology, [hops]), topology, on_record=records.append) as stream:
        for _ in range(_LATENCY_FRAMES):
            stream.submit(frame).result()
    waits = [r.hops[1].started_ns - r.hops[0].ended_ns for r in records[_WARM_UP:]]
    return statistics.median(waits) * 1e-9
