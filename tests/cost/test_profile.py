from __future__ import annotations

import itertools
import math
import os
import signal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from corepipe.api import engine_name
from corepipe.cost import measuring
from corepipe.cost import profile as profiling
from corepipe.cost.hop import measure_hop
from corepipe.cost.table import ConfigCosts, CostTable, HopCosts
from corepipe.errors import EngineError, WorkerError
from corepipe.network.load import load_network, open_network
from corepipe.plan import plan
from corepipe.topology.model import Cluster, Core, Topology


@pytest.fixture
def quick(monkeypatch):
    """Short measurements: these tests look at what is measured, not at how exact it is."""
    monkeypatch.setattr(profiling, "_SECONDS", 0.02)
    monkeypatch.setattr(profiling, "measure_hop", lambda topology: HopCosts(fixed_s=1e-5))


def test_of_a_large_cluster_not_every_count_is_measured():
    cores = [Core((number,)) for number in range(28)]
    machine = Topology(clusters=(Cluster("big", tuple(cores[:20])), Cluster("little", tuple(cores[20:]))))
    counts = {name: [c.count for c in measuring.profiled_configs(machine) if c.cluster == name]
              for name in ("big", "little", "all")}  # fmt: skip
    assert counts == {"big": [*range(1, 9), 12, 16, 20], "little": [*range(1, 9)], "all": [28]}


def test_a_profile_holds_every_layer_on_every_config(chain, here, quick):
    shares = []
    table = profiling.profile(chain, here, engine_name(), on_progress=lambda share, text: shares.append(share))
    assert [costs.config for costs in table.configs] == [str(c) for c in measuring.profiled_configs(here)]
    for costs in table.configs:
        assert len(costs.layer_s) == len(chain.layers)
        assert all(seconds > 0 for seconds in costs.layer_s)
        has_others = costs.core_config.count < len(here.cores)
        assert (costs.layer_busy_s is not None) == has_others
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert CostTable.from_json(table.to_json()) == table
    assert plan(table, "routes").throughput_fps > 0


def test_an_interrupted_profile_goes_on_where_it_stopped(chain, two_cores, quick, monkeypatch):
    kept = []

    def interrupt(partial):
        kept.append(partial)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profiling.profile(chain, two_cores, engine_name(), on_partial=interrupt)
    measured = []
    real = profiling._measure_config
    monkeypatch.setattr(profiling, "_measure_config", lambda *args: measured.append(str(args[2])) or real(*args))
    table = profiling.profile(chain, two_cores, engine_name(), done=kept[0])
    assert measured == [str(c) for c in measuring.profiled_configs(two_cores)[1:]]
    assert table.configs[0].segment_s == kept[0].configs[0].segment_s
    assert all(costs.passes == 2 for costs in table.configs)


def test_what_was_quicker_the_second_time_counts(chain, here, monkeypatch):
    config = str(here.core_configs()[0])
    count = len(chain.layers)
    costs = ConfigCosts(config=config, layer_s=(1e-3,) * count, layer_busy_s=(2e-3,) * count, segment_s=1e-4)
    now = measuring.WholeTime(count * 0.5e-3 + 1e-4, count * 3e-3, spread=0.07, left_out=0.3)
    monkeypatch.setattr(profiling, "time_whole", lambda *args: [now])
    found = profiling._measure_again(chain, here, costs, "onnxruntime")
    assert found.layer_s == pytest.approx((0.5e-3,) * count)
    assert found.layer_busy_s == costs.layer_busy_s
    assert (found.spread, found.left_out) == (0.07, 0.3), "of the times that count"


def test_a_layer_that_does_more_is_measured_as_more(here, quick):
    network = open_network("squeezenet")
    config = here.core_configs()[0]
    costs = profiling._measure_config(network, here, config, "onnxruntime")
    seconds = dict(zip((layer.name for layer in network.layers), costs.layer_s, strict=True))
    flops = {layer.name: layer.descriptor.flops for layer in network.layers}
    heavy = sorted(flops, key=lambda name: flops[name])[-5:]
    assert sum(seconds[name] for name in heavy) > 0.3 * sum(seconds.values())
    joins = {layer.name for layer in network.layers if layer.descriptor.op_types == ("Concat",)}
    assert min(seconds[name] for name in seconds.keys() - joins) > 1e-8, "every other layer runs a kernel"


@pytest.mark.parametrize(
    ("node", "layer"),
    [
        ("corepipeL7.12", 7),
        ("fused corepipeL7.12", 7),
        ("corepipeL7.12_token_3", 7),
        ("L7.12", 4),
        ("/L1/L1.0/Conv_output_0_nchwc", 3),
        ("conv1_r_nchwc", 1),
        ("conv1_r_nchwc_2", 1),
        ("ReorderOutput_token_9", 4),
        ("", 4),
    ],
)
def test_kernels_are_mapped_to_layers_whatever_the_engine_calls_them(node, layer):
    assert measuring.layer_of(node, {"conv1_r": 1, "pool": 2, "/L1/L1.0/Conv_output_0": 3}, default=4) == layer


@given(
    fixed=st.floats(0, 1e-3),
    per_byte=st.floats(0, 1e-9),
    rows=st.lists(st.tuples(st.integers(1, 10), st.integers(10_000, 10_000_000)), min_size=2, max_size=4, unique=True),
)
def test_segment_costs_are_found_again(fixed, per_byte, rows):
    extra = [fixed * segments + per_byte * size for segments, size in rows]
    found = profiling._fit_segment_costs(rows, extra)
    for (segments, size), seconds in zip(rows, extra, strict=True):
        assert found[0] * segments + found[1] * size == pytest.approx(seconds, rel=1e-3, abs=1e-9)


def test_segment_costs_are_never_negative():
    assert profiling._fit_segment_costs([[2, 1000], [7, 3000]], [-1e-3, -2e-3]) == (0.0, 0.0)
    assert profiling._fit_segment_costs([], []) == (0.0, 0.0)


@pytest.mark.parametrize("parts", [1, 2, 3, 8, 100])
def test_a_split_covers_the_network_at_legal_cuts(parts):
    network = open_network("googlenet")
    segments = measuring.split_evenly(network, parts)
    assert segments[0][0] == 0
    assert segments[-1][1] == len(network.layers)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(segments))
    assert all(start < stop for start, stop in segments)
    assert {start for start, _ in segments[1:]} <= set(network.legal_cuts())
    assert len(segments) <= parts


def test_hop_costs_are_positive_and_finite(two_cores):
    hop = measure_hop(two_cores)
    assert 0 < hop.latency_s < math.inf
    assert all(0 <= value < math.inf for value in (hop.edge_s, hop.fixed_s, hop.per_byte_s))


def test_a_network_that_cannot_run_names_the_config(here, quick):
    nodes = [
        helper.make_node("Mul", ["indices", "one"], ["same"]),
        helper.make_node("Gather", ["table", "same"], ["picked"]),
    ]
    graph = helper.make_graph(
        nodes,
        "gather",
        [helper.make_tensor_value_info("indices", 7, [3])],
        [helper.make_tensor_value_info("picked", 1, [3])],
        [helper.make_tensor("table", 1, [0], []), helper.make_tensor("one", 7, [1], [1])],
    )
    network = load_network(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10))
    config = here.core_configs()[0]
    with pytest.raises(EngineError, match=f"probe-{config}"):
        profiling.profile(network, here, engine_name())


def test_a_process_that_dies_under_load_is_named(here):
    core = here.cores[0].id
    with measuring.MeasuringProcess(here, "load-0", [core], [measuring.smallest_segment()], "onnxruntime") as process:

        def killed():
            with process.load():
                os.kill(process._child.pid, signal.SIGKILL)
                process._child._process.wait()

        with pytest.raises(WorkerError, match="worker load-0 was killed by signal 9"):
            killed()


def test_load_ends_with_any_number_of_open_files(here, many_files):
    core = here.cores[0].id
    with measuring.MeasuringProcess(here, "load-0", [core], [measuring.smallest_segment()], "onnxruntime") as process:
        with process.load():
            pass
        assert process.time([[0]], 0.0, runs=3)


def test_spread_is_half_the_interquartile_range_over_the_median():
    assert measuring.spread([1.0, 1.0, 1.0]) == 0
    assert measuring.spread(list(np.linspace(0.5, 1.5, 101))) == pytest.approx(0.25)


def test_a_layer_that_is_seldom_interrupted_costs_its_mean(chain):
    runs = [[(f"corepipeL{layer}.0", 1e-4) for layer in range(6)] for _ in range(10)]
    runs[3][2] = ("corepipeL2.0", 2e-4)
    runs[7][2] = ("corepipeL2.0", 2e-4)
    seconds = measuring.layer_seconds(chain, runs)
    assert seconds[2] == pytest.approx(1.2e-4)
    assert seconds[0] == pytest.approx(1e-4)


def test_a_disturbed_run_does_not_count(chain):
    runs = [[(f"corepipeL{layer}.0", 1e-4) for layer in range(6)] for _ in range(10)]
    runs[5][4] = ("corepipeL4.0", 1e-1)
    assert measuring.layer_seconds(chain, runs)[4] == pytest.approx(1e-4)
    assert measuring.typical([1.0, 1.0, 1.2, 9.0]) == pytest.approx(3.2 / 3)
