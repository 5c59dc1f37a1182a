"""Segments: complete, minimal, the same every time."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from corepipe.errors import ModelError, UsageError
from corepipe.network import extract
from corepipe.network.load import load_network


@pytest.fixture(scope="module")
def network(light_model):
    return load_network(light_model("squeezenet"))


def test_holds_only_what_it_reads(network):
    segment = network.segment(2, 5)
    assert [t.name for t in segment.inputs] == [t.name for t in network.cuts[2].tensors]
    assert {t.name for t in segment.outputs} == {t.name for t in network.cuts[5].tensors}
    read = {name for node in segment.model.graph.node for name in node.input}
    assert {t.name for t in segment.model.graph.initializer} <= read
    assert sum(len(t.raw_data) for t in segment.model.graph.initializer) == sum(
        layer.descriptor.bytes_weights for layer in network.layers[2:5]
    )


def test_passes_the_checker_with_all_shapes(network):
    model = network.segment(3, 9).model
    onnx.checker.check_model(model, full_check=True)
    graph = model.graph
    assert len(graph.value_info) + len(graph.output) == sum(len(node.output) for node in graph.node)
    for value in (*graph.input, *graph.output, *graph.value_info):
        assert all(dim.dim_value > 0 for dim in value.type.tensor_type.shape.dim)
    assert model.ir_version == network.model.ir_version
    assert list(model.opset_import) == list(network.model.opset_import)


def test_is_the_same_every_time(network):
    first, second = (network.segment(1, 4).model.SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert network.segment(1, 5).model.SerializeToString(deterministic=True) != first


def test_shares_nothing_with_the_network(network):
    before = network.model.graph.node[0].name
    segment = network.segment(0, 1)
    segment.model.graph.node[0].name = "changed"
    assert network.model.graph.node[0].name == before


def test_the_whole(network):
    segment = network.segment(0, len(network.layers))
    assert segment.inputs == network.inputs
    assert segment.outputs == network.outputs
    as_written = extract.extract_segment(network, 0, len(network.layers), as_written=True)
    assert [n.op_type for n in as_written.model.graph.node] == [n.op_type for n in network.model.graph.node]


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (3, 2), (-1, 2), (0, 40), (39, 40)])
def test_no_such_layers(network, start, stop):
    with pytest.raises(UsageError, match="layers 0 to 38"):
        network.segment(start, stop)


def test_unknown_shapes_are_refused(make_model):
    nodes = [
        helper.make_node("Softmax", ["x"], ["s"]),
        helper.make_node("NonZero", ["s"], ["n"]),
        helper.make_node("Transpose", ["n"], ["y"]),
    ]
    model = make_model(nodes, {"x": [1, 40]}, [])
    model.graph.output.append(helper.make_tensor_value_info("y", onnx.TensorProto.INT64, None))
    network = load_network(model)
    with pytest.raises(ModelError, match="cannot be divided before layer 2: the shape of n depends on the data"):
        network.segment(0, 2)
    assert network.segment(1, 3).outputs[0].shape is None


def test_too_much_for_one_file(make_model, monkeypatch):
    model = make_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [1, 64]}, ["y"], {"w": np.zeros((64, 64), np.float32)}
    )
    network = load_network(model)
    monkeypatch.setattr(extract, "_MAX_MODEL_BYTES", 1000)
    with pytest.raises(ModelError, match=r"hold 16\.0 KiB of constants"):
        network.segment(0, 1)
