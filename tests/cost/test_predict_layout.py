from __future__ import annotations

import platform
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest

from corepipe.cost.calibration_set import calibration_network, kind_count
from corepipe.cost.predict.layout import samples
from corepipe.engine.onnxruntime import channel_block
from corepipe.network.load import load_network, open_network
from corepipe.network.zoo import NAMES

BLOCKED = ("Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the engine's blocked kernels differ by CPU")
@pytest.mark.parametrize("name", [*NAMES, *map(str, range(kind_count()))])
def test_layouts_are_those_of_the_engine(name, tmp_path):
    network = calibration_network(int(name)) if name.isdigit() else open_network(name)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(
        network.model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
    nodes = onnx.load(options.optimized_model_filepath, load_external_data=False).graph.node
    found = Counter(node.op_type for node in nodes)
    blocked = sum(node.op_type in BLOCKED and node.domain.endswith("nchwc") for node in nodes)
    if not blocked:
        pytest.skip("this CPU has no blocked kernels")
    mine = samples(network, channel_block())
    assert sum(sample.reorders for sample in mine) == found["ReorderInput"] + found["ReorderOutput"]
    thinning = sum("AveragePool" in sample.op_types and sample.kind != "pool" for sample in mine)
    assert sum(sample.blocked for sample in mine) + thinning == blocked  # beside the layer's main kernel


def test_few_channels_fill_small_blocks_only(make_layout_model):
    network = load_network(make_layout_model([("MaxPool",), ("Relu",)]))
    assert [sum(sample.blocked for sample in samples(network, block)) for block in (8, 16)] == [1, 0]


def test_sums_with_nothing_are_left_out(make_layout_model):
    network = load_network(make_layout_model([("Relu",), ("Mul", 1.0), ("Add", 0.0), ("Mul", 2.0)]))
    assert [op for sample in samples(network) for op in sample.op_types] == ["Relu", "Mul"]


def test_a_branch_of_constants_reads_nothing():
    helper = onnx.helper
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Mul", ["c", "one"], ["anchors"]),
    ]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in ("x", "y", "anchors")]
    constants = [onnx.numpy_helper.from_array(np.ones(4, np.float32), name) for name in ("c", "one")]
    graph = helper.make_graph(nodes, "anchors", values[:1], values[1:], constants)
    network = load_network(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10))
    assert "anchors" in [tensor.name for tensor in network.outputs]
    assert len(samples(network)) == len(network.layers)


def test_transpositions_that_move_nothing_are_known(make_layout_model):
    moved = samples(load_network(make_layout_model([("Relu",), ("Transpose", [0, 2, 3, 1]), ("Relu",)])))
    (still,) = samples(load_network(make_layout_model([("Transpose", [1, 0, 2, 3])])))
    assert any(sample.moves for sample in moved)
    assert not still.moves


def test_a_transposition_of_several_axes_is_copied_in_pieces(make_layout_model):
    (sample,) = samples(load_network(make_layout_model([("Transpose", [0, 3, 2, 1])])))
    assert sample.moves
    assert sample.copies == 8 * 6 * 6


@pytest.fixture
def make_layout_model():
    """A chain of operators on [1, 8, 6, 6]; a number is a constant operand, a list the order of a transposition."""

    def make(chain):
        helper = onnx.helper
        nodes, constants, name = [], [], "x"
        for index, (kind, *rest) in enumerate(chain):
            inputs, attributes = [name], {}
            if rest and isinstance(rest[0], list):
                attributes["perm"] = rest[0]
            elif kind == "MaxPool":
                attributes = {"kernel_shape": [1, 1]}
            elif rest:
                constants.append(helper.make_tensor(f"c{index}", 1, [], rest))
                inputs.append(f"c{index}")
            name = f"t{index}"
            nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        graph = helper.make_graph(
            nodes,
            "chain",
            [helper.make_tensor_value_info("x", 1, [1, 8, 6, 6])],
            [helper.make_tensor_value_info(name, 1, None)],
            constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    return make
