"""What strided 1x1 convolutions skip is not computed: where it is done, and that the results are the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from corepipe import engine
from corepipe.cost.predict import terms
from corepipe.cost.predict.layout import samples
from corepipe.network import zoo
from corepipe.network.batch import batched
from corepipe.network.check import Limits
from corepipe.network.load import load_network

SIZE, CHANNELS = 9, 4


def weights(name, *dims):
    seed = sum(name.encode())
    return numpy_helper.from_array(np.random.default_rng(seed).standard_normal(dims).astype(np.float32), name)


class Builder:
    """A graph of images of `CHANNELS` channels, made node by node."""

    def __init__(self, size=SIZE):
        self.nodes, self.constants, self.size = [], [], size

    def node(self, op, inputs, output, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"n_{output}", **attributes))
        return output

    def conv(self, x, output, kernel=1, stride=1, **attributes):
        self.constants.append(weights(f"w_{output}", CHANNELS, CHANNELS, kernel, kernel))
        if "auto_pad" not in attributes:
            attributes.setdefault("pads", [kernel // 2] * 4)
        return self.node("Conv", [x, f"w_{output}"], output, strides=[stride] * 2, **attributes)

    def constant(self, name, *dims):
        self.constants.append(weights(name, *dims))
        return name

    def model(self, *outputs):
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, self.size, self.size])
        graph = helper.make_graph(self.nodes, "graph", [x], ends, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def strides(model):
    return {n.output[0]: list(a.ints) for n in model.graph.node for a in n.attribute if a.name == "strides"}


def run(model):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options)
    shape = session.get_inputs()[0].shape
    return session.run(None, {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)})


def assert_same(model, network):
    onnx.checker.check_model(network.model, full_check=True)
    for one, other in zip(run(model), run(network.model), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4 * max(1e-6, np.abs(one).max()))


def moved(model):
    """The network, which gives what the model gives."""
    network = load_network(model)
    assert_same(model, network)
    return network


def assert_stays(model):
    network, written = load_network(model), load_network(model, keep_strides=True)
    assert network.sha256 == written.sha256
    return network


def stage_end():
    """The end of a stage, with its residual sum, and the next stage, which strides in its 1x1 convolutions."""
    b = Builder()
    first = b.node("Relu", [b.conv("x", "c0", 3)], "r0")
    inner = b.node("Relu", [b.conv(b.node("Relu", [b.conv(first, "c1")], "r1"), "c2", 3)], "r2")
    total = b.node("Relu", [b.node("Add", [b.conv(inner, "c3"), first], "sum")], "r3")
    shortcut, main = b.conv(total, "c4", 1, 2), b.conv(b.conv(total, "c5", 1, 2), "c6", 3)
    b.node("Add", [main, shortcut], "y")
    return b.model("y")


def test_the_end_of_a_residual_stage_is_computed_where_it_is_read():
    network = moved(stage_end())
    assert strides(network.model) == {
        "c0": [1, 1], "c1": [1, 1], "c2": [2, 2], "c3": [1, 1], "c4": [1, 1], "c5": [1, 1], "c6": [1, 1],
        "r0__every2x2": [2, 2],
    }  # fmt: skip
    assert network.flops < load_network(stage_end(), keep_strides=True).flops


def test_what_thins_a_summand_out_is_no_layer_of_its_own():
    network, written = load_network(stage_end()), load_network(stage_end(), keep_strides=True)
    assert [layer.name for layer in network.layers] == [layer.name for layer in written.layers]
    assert sum("AveragePool" in layer.descriptor.op_types for layer in network.layers) == 1
    assert all(c.nbytes <= w.nbytes for c, w in zip(network.cuts[:-3], written.cuts[:-3], strict=True))


def test_segments_give_what_the_whole_gives():
    network = load_network(stage_end())
    x = np.random.default_rng(1).standard_normal((1, CHANNELS, SIZE, SIZE)).astype(np.float32)
    for cut in network.legal_cuts():
        values = {"x": x}
        for segment in (network.segment(0, cut), network.segment(cut, len(network.layers))):
            session = ort.InferenceSession(segment.model.SerializeToString())
            names = [t.name for t in segment.outputs]
            values |= zip(names, session.run(names, {t.name: values[t.name] for t in segment.inputs}), strict=True)
        (want,) = run(stage_end())
        np.testing.assert_allclose(values["y"], want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_numbers_for_each_channel_pass():
    b = Builder()
    scaled = b.node("Mul", [b.conv("x", "c0", 3), b.constant("scale", CHANNELS, 1, 1)], "scaled")
    for name in ("gain", "shift", "mean", "variance"):
        b.constants.append(numpy_helper.from_array(np.full(CHANNELS, 0.5, np.float32), name))
    normal = b.node("BatchNormalization", [scaled, "gain", "shift", "mean", "variance"], "normal")
    gate = b.node("Sigmoid", [b.node("GlobalAveragePool", ["x"], "mean_of_x")], "gate")
    b.conv(b.node("Mul", [normal, gate], "gated"), "y", 1, 3)
    network = moved(b.model("y"))
    assert strides(network.model) == {"c0": [3, 3], "y": [1, 1]}


def test_a_stride_moves_through_several_convolutions():
    b = Builder()
    b.conv(b.conv(b.conv("x", "c0", 3, 2), "c1", 1, 2, auto_pad="VALID"), "y", 1, 2)
    network = moved(b.model("y"))
    assert strides(network.model) == {"c0": [8, 8], "c1": [1, 1], "y": [1, 1]}


@pytest.mark.parametrize("padding", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_padding_that_follows_the_stride_stays_what_it_was(padding, kernel):
    b = Builder()
    b.conv(b.conv("x", "c0", kernel, auto_pad=padding), "y", 1, 2)
    network = moved(b.model("y"))
    assert strides(network.model) == {"c0": [2, 2], "y": [1, 1]}


def whole_too():
    b = Builder()
    b.conv(b.conv("x", "c0", 3), "y", 1, 2)
    b.node("Relu", ["c0"], "z")
    return b.model("y", "z")


def an_output():
    b = Builder()
    b.conv(b.conv("x", "c0", 3), "y", 1, 2)
    return b.model("y", "c0")


def at_two_steps():
    b = Builder()
    b.conv(b.conv("x", "c0", 3), "y", 1, 2)
    b.conv("c0", "z", 1, 3)
    return b.model("y", "z")


def large_kernel():
    b = Builder()
    b.conv(b.conv("x", "c0", 3), "y", 3, 2)
    return b.model("y")


def padded():
    b = Builder()
    b.conv(b.conv("x", "c0", 3), "y", 1, 2, pads=[1, 1, 1, 1])
    return b.model("y")


def padded_by_stride():
    b = Builder()
    b.conv(b.conv("x", "c0", 3, 2, auto_pad="SAME_LOWER"), "y", 1, 2)
    return b.model("y")


def dilated_and_padded_by_stride():
    b = Builder()
    b.conv(b.conv("x", "c0", 3, auto_pad="SAME_LOWER", dilations=[2, 2]), "y", 1, 2)
    return b.model("y")


def a_constant_image():
    b = Builder()
    b.conv(b.node("Add", [b.conv("x", "c0", 3), b.constant("image", 1, CHANNELS, SIZE, SIZE)], "s"), "y", 1, 2)
    return b.model("y")


def no_convolution():
    b = Builder()
    b.conv(b.node("Relu", [b.node("MaxPool", ["x"], "p", kernel_shape=[3, 3])], "r"), "y", 1, 2)
    return b.model("y")


def along_rows():
    b = Builder()
    b.conv(b.node("Softmax", [b.conv("x", "c0", 3)], "s", axis=3), "y", 1, 2)
    return b.model("y")


def a_stride_beyond_the_image():
    b = Builder()
    b.conv(b.conv("x", "c0", 3), "y", 1, 2**40)
    return b.model("y")


@pytest.mark.parametrize(
    "make",
    [
        whole_too, an_output, at_two_steps, large_kernel, padded, padded_by_stride,
        dilated_and_padded_by_stride, a_constant_image, no_convolution,
        along_rows, a_stride_beyond_the_image,
    ],
)  # fmt: skip
def test_what_is_read_otherwise_stays(make):
    assert_stays(make())


def by_opset(version):
    def make():
        model = stage_end()
        model.opset_import[0].version = version
        return model

    return make


def normalised_by_position():
    b = Builder()
    b.conv("x", "c0", 3)
    for name in ("gain", "shift", "mean", "variance"):
        b.constants.append(numpy_helper.from_array(np.full((CHANNELS, SIZE, SIZE), 0.5, np.float32), name))
    b.conv(b.node("BatchNormalization", ["c0", "gain", "shift", "mean", "variance"], "n", spatial=0), "y", 1, 2)
    model = b.model("y")
    model.opset_import[0].version = 8
    return model


def filters_of_unknown_shape():
    b = Builder()
    b.constants += [weights("filters", 2 * CHANNELS, CHANNELS * 9), numpy_helper.from_array(SHAPE, "shape")]
    b.node("Compress", ["filters", "chosen"], "some", axis=0)
    b.node("Reshape", ["some", "shape"], "w0")
    b.conv(b.node("Conv", ["x", "w0"], "c0", auto_pad="SAME_UPPER", kernel_shape=[3, 3]), "y", 1, 2)
    model = b.model("y")
    model.graph.input.append(helper.make_tensor_value_info("chosen", TensorProto.BOOL, [2 * CHANNELS]))
    return model


SHAPE = np.array([CHANNELS, -1, 3, 3], np.int64)


def strides_beyond_64_bits():
    b = Builder()
    b.node("Conv", ["x", "w0"], "c0", strides=[2**62, 1], pads=[2**62, 0, 0, 0])
    b.constants.append(weights("w0", CHANNELS, CHANNELS, 1, 1))
    b.node("Conv", ["c0", "w1"], "y", strides=[2, 1])
    b.constants.append(weights("w1", CHANNELS, CHANNELS, 1, 1))
    return b.model("y")


@pytest.mark.parametrize(
    "make",
    [by_opset(6), normalised_by_position, filters_of_unknown_shape, strides_beyond_64_bits],
    ids=["opset 6", "spatial=0", "unknown filters", "64 bits"],
)
def test_what_engines_would_not_take_stays(make):
    assert_stays(make())


def test_an_operator_of_somebody_else_that_is_called_conv_is_left_alone():
    model = stage_end()
    model.graph.node.append(helper.make_node("Conv", ["x"], ["z"], domain="com.microsoft"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert strides(load_network(model).model)["c2"] == [2, 2]


def test_names_in_subgraphs_are_left_to_their_owners():
    b = Builder()
    branch = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["x__every2x2"]), helper.make_node("Neg", ["x__every2x2"], ["out"])],
        "branch", [], [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
    )  # fmt: skip
    b.constants.append(numpy_helper.from_array(np.zeros(1, np.float32), "zero"))
    b.node("ReduceMax", ["x"], "most", axes=[0, 1, 2, 3], keepdims=0)
    b.node("Greater", ["most", "zero"], "positive")
    b.node("If", ["positive"], "z", then_branch=branch, else_branch=branch)
    b.conv(b.node("Add", [b.conv("x", "c0", 3), "x"], "s"), "y", 1, 2)
    network = moved(b.model("y", "z"))
    assert strides(network.model)["c0"] == [2, 2]


def test_no_more_nodes_than_are_allowed():
    model = stage_end()
    limits = Limits(nodes=len(model.graph.node))
    assert load_network(model, limits=limits).sha256 == load_network(model, keep_strides=True).sha256


def test_steps_of_rows_and_columns_differ():
    b = Builder()
    for name in ("w0", "w1"):
        b.constants.append(weights(name, CHANNELS, CHANNELS, 3 if name == "w0" else 1, 3 if name == "w0" else 1))
    b.node("Conv", ["x", "w0"], "c0", pads=[1, 0, 0, 2], strides=[2, 1], dilations=[1, 2])
    b.node("Conv", [b.node("Clip", ["c0", "", "most"], "clipped"), "w1"], "y", strides=[1, 3])
    b.constants.append(numpy_helper.from_array(np.array(0.5, np.float32), "most"))
    network = moved(b.model("y"))
    assert strides(network.model) == {"c0": [2, 3], "y": [1, 1]}


def test_an_image_thinned_out_at_two_steps():
    b = Builder()
    for step in (2, 3):
        b.conv(b.node("Sub", [b.conv("x", f"c{step}", 3), "x"], f"s{step}"), f"y{step}", 1, step)
    network = moved(b.model("y2", "y3"))
    assert {"x__every2x2", "x__every3x3"} <= strides(network.model).keys()


def test_a_sum_that_is_a_layer_of_its_own_stays_the_main_operator():
    b = Builder()
    both = b.node("Add", [b.conv("x", "c0", 3), b.node("MaxPool", ["x"], "p", kernel_shape=[1, 1])], "s0")
    b.conv(b.node("Add", [both, b.node("Relu", ["x"], "r")], "s1"), "y", 1, 2)
    network = load_network(b.model("y"))
    pooled = [layer for layer in network.layers if "AveragePool" in layer.descriptor.op_types]
    assert pooled
    assert all(layer.descriptor.kind != "pool" for layer in pooled)
    assert {terms._main(sample) for sample in samples(network) if "AveragePool" in sample.op_types} == {"Add", "Conv"}


def test_several_frames_at_once():
    network = load_network(stage_end())
    many = batched(network, 3)
    x = np.random.default_rng(2).standard_normal((3, CHANNELS, SIZE, SIZE)).astype(np.float32)
    session, single = (ort.InferenceSession(n.model.SerializeToString()) for n in (many, network))
    (got,) = session.run(None, {"x": x})
    want = np.concatenate([single.run(None, {"x": frame[None]})[0] for frame in x])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("name", ["openvino", "ncnn"])
def test_other_engines_give_the_same(name):
    pytest.importorskip(name)
    model = stage_end()
    network = load_network(model)
    (segment,) = (network.segment(0, len(network.layers)),)
    x = np.random.default_rng(1).standard_normal((1, CHANNELS, SIZE, SIZE)).astype(np.float32)
    got = np.empty(segment.outputs[0].shape, np.float32)
    engine.get(name).compile(segment.model.SerializeToString(), 1).bind({"x": x}, {"y": got})()
    (want,) = run(model)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3 * np.abs(want).max())


def test_other_types_stay():
    model = stage_end()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    assert_stays(model)


def test_an_operator_without_a_convolution_reads_a_thinned_image_only_where_another_operand_gains():
    b = Builder()
    pooled = b.node("MaxPool", ["x"], "p", kernel_shape=[1, 1])
    b.conv(b.node("Add", [b.conv("x", "c0", 3), b.node("Relu", [pooled], "r")], "s"), "y", 1, 2)
    network = moved(b.model("y"))
    assert [n.input[0] for n in network.model.graph.node if n.op_type == "AveragePool"] == ["r"]


def test_taken_names_are_left_to_their_owners():
    b = Builder()
    other = b.node("Relu", ["x"], "x__every2x2")
    b.conv(b.node("Add", [b.conv("x", "c0", 3), "x"], "s"), "y", 1, 2)
    b.conv(b.node("Add", [b.conv(other, "c1", 3), "x"], "s1"), "z", 1, 2)
    network = moved(b.model("y", "z"))
    assert sum(n.op_type == "AveragePool" for n in network.model.graph.node) == 1


def test_the_paper_s_resnet_computes_a_tenth_less():
    model = zoo.build("resnet50")
    network, written = load_network(model), load_network(model, keep_strides=True)
    assert written.flops - network.flops == pytest.approx(0.756e9, rel=0.01)
    assert {layer.name for layer in network.layers} == {layer.name for layer in written.layers}


@st.composite
def models(draw):
    """Random graphs of convolutions with any strides, sums, pools and activations over images of several sizes."""
    b = Builder(size=draw(st.integers(5, 11)))
    sizes = {"x": b.size}
    for index in range(draw(st.integers(2, 9))):
        x = draw(st.sampled_from(list(sizes)))
        name, size = f"t{index}", sizes[x]
        kind = draw(st.sampled_from(["small", "small", "large", "relu", "sum", "sum", "pool", "mul"]))
        if kind in ("small", "large"):
            kernel, stride = 1 if kind == "small" else 3, draw(st.integers(1, 3))
            padding = draw(st.sampled_from([{}, {}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "VALID"}]))
            if size < kernel:
                continue
            b.conv(x, name, kernel, stride, **padding)
            sizes[name] = -(-size // stride) if padding.get("auto_pad") != "VALID" else (size - kernel) // stride + 1
        elif kind == "sum":
            other = draw(st.sampled_from([t for t, s in sizes.items() if s == size]))
            sizes[b.node("Add", [x, other], name)] = size
        elif kind == "pool":
            stride = draw(st.integers(1, 2))
            b.node("MaxPool", [x], name, kernel_shape=[1, 1], strides=[stride] * 2)
            sizes[name] = -(-size // stride)
        elif kind == "mul":
            sizes[b.node("Mul", [x, b.constant(f"m{index}", CHANNELS, 1, 1)], name)] = size
        else:
            sizes[b.node("Relu", [x], name)] = size
    made = [t for t in sizes if t != "x"]
    read = {name for node in b.nodes for name in node.input}
    return b.model(*dict.fromkeys([*(t for t in made if t not in read), draw(st.sampled_from(made or ["x"]))]))


@settings(max_examples=150)
@given(models())
def test_results_are_the_same(model):
    if not model.graph.node:
        return
    assert_same(model, load_network(model))
