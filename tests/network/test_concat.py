"""Convolutions that read the parts of a Concat: where it is done, that it is the same, that profiles still fit."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from corepipe.cost.measuring import layer_of, name_by_layer
from corepipe.cost.profile import table_network
from corepipe.network.concat import never_joined, read_parts, useful_cuts
from corepipe.network.extract import extract_segment
from corepipe.network.load import load_network


def weights(name, *dims, seed=0):
    return numpy_helper.from_array(np.random.default_rng(seed).standard_normal(dims, np.float32), name)


def joined(channels=(32, 32), out=8, *, between=(), size=8, kernel=1, bias=True, group=1, twice=False, end=""):
    """Parts that convolutions make of x, joined, through some operators to another convolution."""
    nodes, constants, parts = [], [], []
    for index, count in enumerate(channels):
        nodes.append(helper.make_node("Conv", ["x", f"w{index}"], [f"c{index}"], name=f"conv{index}"))
        constants.append(weights(f"w{index}", count, 4, 1, 1, seed=index))
        parts.append(f"c{index}")
    nodes.append(helper.make_node("Concat", parts, ["joined"], axis=1, name="join"))
    name = "joined"
    for index, (op, attributes) in enumerate(between):
        nodes.append(helper.make_node(op, [name], [f"b{index}"], name=f"between{index}", **attributes))
        name = f"b{index}"
    filters = [name, "w", "bias"] if bias else [name, "w"]
    pads = [kernel // 2] * 4
    nodes.append(
        helper.make_node("Conv", filters, ["conv"], name="last", kernel_shape=[kernel] * 2, pads=pads, group=group)
    )
    nodes.append(helper.make_node("Relu", ["conv"], ["y"], name="relu"))
    constants.append(weights("w", out, sum(channels) // group, kernel, kernel, seed=9))
    constants += [weights("bias", out, seed=10)] if bias else []
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    if twice:
        nodes.append(helper.make_node("Relu", ["joined"], ["z"]))
        outputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    if end:
        outputs.append(helper.make_tensor_value_info(end, TensorProto.FLOAT, None))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, size, size])
    graph = helper.make_graph(nodes, "joined", [x], outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def both(model):
    """The whole network as it is written, and as engines get it."""
    network = load_network(model)
    written = extract_segment(network, 0, len(network.layers), as_written=True)
    return network, written, network.segment(0, len(network.layers))


def concats(segment):
    return sum(node.op_type == "Concat" for node in segment.model.graph.node)


def assert_same(written, segment):
    onnx.checker.check_model(segment.model, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    frame = np.random.default_rng(1).standard_normal(written.inputs[0].shape, np.float32)
    want, got = (
        ort.InferenceSession(s.model.SerializeToString(), options).run([t.name for t in s.outputs], {"x": frame})
        for s in (written, segment)
    )
    for one, other in zip(want, got, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4 * max(1e-6, np.abs(one).max()))


@pytest.mark.parametrize(
    "between",
    [
        (),
        [("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2]})],
        [("Relu", {}), ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}), ("LeakyRelu", {"alpha": 0.1})],
        [("GlobalAveragePool", {})],
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_parts_are_read_one_by_one(between, bias):
    _, written, segment = both(joined((32, 16, 48), between=between, bias=bias))
    assert (concats(written), concats(segment)) == (1, 0)
    assert_same(written, segment)


@pytest.mark.parametrize(
    "case",
    [
        {"out": 32},  # too much to add up
        {"size": 4},  # too small to matter
        {"channels": (61, 3)},  # a part that fills no vector
        {"group": 2},
        {"twice": True},
        {"end": "joined"},
        {"between": [("Softmax", {"axis": 1})]},
        {"between": [("MaxPool", {"kernel_shape": [2, 2]})], "end": "b0"},
    ],
)
def test_what_others_read_or_what_would_not_pay_stays(case):
    assert_stays(joined(**case))


def test_what_is_joined_along_another_axis_stays():
    assert_stays(along_height())


def assert_stays(model):
    _, written, segment = both(model)
    assert concats(segment) == 1
    assert [n.name for n in segment.model.graph.node] == [n.name for n in written.model.graph.node]


def along_height():
    nodes = [
        helper.make_node("Concat", ["x", "x"], ["j"], axis=2),
        helper.make_node("Conv", ["j", "w"], ["y"], kernel_shape=[1, 1]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 16, 8])
    graph = helper.make_graph(nodes, "height", [x], [y], [weights("w", 4, 32, 1, 1)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_names_that_are_taken_are_not_given_again():
    model = joined()
    for node in model.graph.node:
        if node.name == "relu":
            node.output[0] = "conv_part0"
    model.graph.output[0].name = "conv_part0"
    _, written, segment = both(model)
    assert concats(segment) == 1
    assert_same(written, segment)


def test_weights_that_two_convolutions_share_are_not_held_twice():
    nodes = []
    for index in range(2):
        nodes.append(helper.make_node("Concat", ["x", "x"], [f"j{index}"], axis=1))
        nodes.append(helper.make_node("Conv", [f"j{index}", "w"], [f"y{index}"], kernel_shape=[1, 1], pads=[index] * 4))
    x, *ends = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 16, 8, 8]) for n in ("x", "y0", "y1"))
    for end in ends:
        end.type.tensor_type.ClearField("shape")
    graph = helper.make_graph(nodes, "shared", [x], ends, [weights("w", 4, 32, 1, 1)])
    _, written, segment = both(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert concats(segment) == 2
    assert_same(written, segment)


def test_a_cut_behind_the_join_keeps_it():
    network = load_network(joined())
    stop = next(cut.index for cut in network.cuts if [t.name for t in cut.tensors] == ["joined"])
    first, second = network.segment(0, stop), network.segment(stop, len(network.layers))
    assert concats(first) == 1
    assert [t.name for t in second.inputs] == ["joined"]


def test_new_nodes_belong_to_the_layers_they_come_from(light_model):
    network = load_network(light_model("squeezenet"))
    named = name_by_layer(network, network.segment(0, len(network.layers)))
    owner = {output: layer.index for layer in network.layers for output in layer.outputs}
    for node in named.model.graph.node:
        output = node.output[0]
        assert layer_of(node.name, {}, default=-1) == owner[output.partition("_part")[0].removesuffix("_sum")]
    assert any("_part" in node.output[0] for node in named.model.graph.node)


def test_no_plan_cuts_where_only_the_cut_would_make_the_join(light_model):
    network = load_network(light_model("squeezenet"))
    free = never_joined(network)
    assert free
    for index in free:
        assert network.layers[index].descriptor.op_types == ("Concat",)
        behind = index + 1
        assert (behind in useful_cuts(network)) == (network.cuts[behind].nbytes < network.cuts[index].nbytes)
        assert (behind in useful_cuts(network)) != (behind in table_network(network).illegal_cuts)
    assert set(useful_cuts(network)) <= set(network.legal_cuts())


def test_nothing_is_left_behind(light_model):
    network = load_network(light_model("squeezenet"))
    graph = network.segment(0, len(network.layers)).model.graph
    read = {name for node in graph.node for name in node.input}
    made = {name for node in graph.node for name in node.output}
    assert {tensor.name for tensor in graph.initializer} <= read
    assert {value.name for value in graph.value_info} <= made


def test_again_changes_nothing(light_model):
    network = load_network(light_model("squeezenet"))
    model = network.segment(0, len(network.layers)).model
    before = model.SerializeToString(deterministic=True)
    read_parts(model.graph)
    assert model.SerializeToString(deterministic=True) == before


@given(
    channels=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    out=st.integers(1, 40),
    size=st.integers(3, 9),
    kernel=st.sampled_from([1, 3]),
    bias=st.booleans(),
    between=st.lists(
        st.sampled_from(
            [
                ("Relu", {}),
                ("MaxPool", {"kernel_shape": [2, 2]}),
                ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
                ("Softmax", {"axis": 1}),
                ("Sigmoid", {}),
            ]
        ),
        max_size=2,
    ),
    twice=st.booleans(),
)
def test_any_join_gives_the_same(channels, out, size, kernel, bias, between, twice):
    _, written, segment = both(joined(channels, out, size=size, kernel=kernel, bias=bias, between=between, twice=twice))
    assert_same(written, segment)
