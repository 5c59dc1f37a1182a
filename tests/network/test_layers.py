"""Which nodes make a layer, and what crosses between layers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from corepipe.errors import ModelError
from corepipe.network.load import Limits, load_network

RNG = np.random.default_rng(0)


def weight(*shape):
    return RNG.standard_normal(shape).astype(np.float32) * 0.3


def conv(source, target, **attributes):
    return helper.make_node("Conv", [source, f"w_{target}"], [target], pads=[1, 1, 1, 1], **attributes)


def norm(source, target):
    return helper.make_node("BatchNormalization", [source, "scale", "shift", "shift", "scale"], [target])


def make(make_model, nodes, outputs, channels=4):
    constants = {"scale": np.full(channels, 1.1, np.float32), "shift": np.full(channels, 0.1, np.float32)}
    constants |= {node.input[1]: weight(channels, channels, 3, 3) for node in nodes if node.op_type == "Conv"}
    used = {name for node in nodes for name in node.input}
    return make_model(nodes, {"x": ["N", channels, 8, 8]}, outputs, {k: v for k, v in constants.items() if k in used})


def parts(network):
    return ["+".join(layer.descriptor.op_types) for layer in network.layers]


def crossing(network):
    return [[t.name for t in cut.tensors] for cut in network.cuts]


def all_cuts(network):
    return ([cut] for cut in network.legal_cuts())


def test_residual_sum_stays_with_its_convolution(make_model, divider):
    nodes = [
        conv("x", "a"),
        norm("a", "b"),
        helper.make_node("Relu", ["b"], ["c"]),
        conv("c", "d"),
        norm("d", "e"),
        helper.make_node("Add", ["e", "x"], ["f"]),
        helper.make_node("Relu", ["f"], ["y"]),
    ]
    network = load_network(make(make_model, nodes, ["y"]))
    assert parts(network) == ["Conv+BatchNormalization+Relu", "Conv+BatchNormalization+Add+Relu"]
    assert crossing(network) == [["x"], ["x", "c"], ["y"]]
    assert network.cuts[1].nbytes == 2 * 4 * 8 * 8 * 4
    divider.check(network, *all_cuts(network))


def test_two_convolutions_and_a_sum(make_model, divider):
    nodes = [conv("x", "a"), conv("x", "b"), helper.make_node("Add", ["a", "b"], ["y"])]
    network = load_network(make(make_model, nodes, ["y"]))
    assert parts(network) == ["Conv", "Conv+Add"]
    divider.check(network, *all_cuts(network))


def test_a_sum_of_three_is_not_one_layer(make_model):
    nodes = [
        conv("x", "a"),
        conv("x", "b"),
        conv("x", "c"),
        helper.make_node("Add", ["c", "a"], ["d"]),
        helper.make_node("Add", ["d", "b"], ["y"]),
    ]
    assert "Conv+Add+Add" not in parts(load_network(make(make_model, nodes, ["y"])))


@pytest.mark.parametrize(
    "activation",
    [
        [("Sigmoid", ["a"], "s"), ("Mul", ["a", "s"], "y")],
        [("HardSigmoid", ["a"], "s"), ("Mul", ["s", "a"], "y")],
        [("Softplus", ["a"], "p"), ("Tanh", ["p"], "t"), ("Mul", ["a", "t"], "y")],
        [("Clip", ["a", "lo", "hi"], "y")],
        [("LeakyRelu", ["a"], "y")],
        [("HardSwish", ["a"], "y")],
        [("Mish", ["a"], "y")],
        [
            ("Div", ["a", "hi"], "p"),
            ("Erf", ["p"], "q"),
            ("Add", ["q", "hi"], "r"),
            ("Mul", ["a", "r"], "s"),
            ("Mul", ["s", "hi"], "y"),
        ],
    ],
    ids=lambda steps: "+".join(step[0] for step in steps),
)
def test_activations_stay_with_their_convolution(make_model, divider, activation):
    nodes = [conv("x", "a"), *(helper.make_node(kind, names, [made]) for kind, names, made in activation)]
    model = make_model(
        nodes,
        {"x": [1, 4, 8, 8]},
        ["y"],
        {"w_a": weight(4, 4, 3, 3), "lo": np.float32(0), "hi": np.float32(1.5)},
        opset=18,
    )
    network = load_network(model)
    assert len(network.layers) == 1
    divider.check(network)


def test_gate_of_a_larger_tensor_is_its_own_layer(make_model, divider):
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Conv", ["p", "w"], ["q"]),
        helper.make_node("Sigmoid", ["q"], ["s"]),
        helper.make_node("Mul", ["x", "s"], ["y"]),
    ]
    network = load_network(make_model(nodes, {"x": [1, 16, 8, 8]}, ["y"], {"w": weight(16, 16, 1, 1)}))
    assert parts(network) == ["GlobalAveragePool", "Conv+Sigmoid", "Mul"]
    divider.check(network, *all_cuts(network))


def test_what_is_read_again_later_is_a_cheap_cut(make_model):
    nodes = [
        conv("x", "a"),
        norm("a", "b"),
        helper.make_node("Relu", ["b"], ["c"]),
        conv("c", "d"),
        helper.make_node("Add", ["d", "a"], ["y"]),
    ]
    network = load_network(make(make_model, nodes, ["y"]))
    assert parts(network) == ["Conv", "BatchNormalization+Relu", "Conv+Add"]
    assert crossing(network)[1] == ["a"]


def test_padding_stays_with_what_reads_it(make_model):
    nodes = [
        conv("x", "a"),
        helper.make_node("Pad", ["a", "pads"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["y"], kernel_shape=[3, 3]),
    ]
    model = make_model(
        nodes,
        {"x": [1, 4, 8, 8]},
        ["y"],
        {"w_a": weight(4, 4, 3, 3), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])},
    )
    assert parts(load_network(model)) == ["Conv", "Pad+MaxPool"]


def test_views_and_shapes_join_a_neighbour(make_model, divider):
    nodes = [
        helper.make_node("Reshape", ["x", "s"], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "v"], ["y"]),
    ]
    constants = {"s": np.array([1, 4, 4, 4]), "w": weight(4, 4, 1, 1), "v": weight(64, 10)}
    network = load_network(make_model(nodes, {"x": [1, 64]}, ["y"], constants))
    assert parts(network) == ["Reshape+Conv+Flatten", "Gemm"]
    divider.check(network, *all_cuts(network))


def test_layer_normalisation_in_primitives_is_one_layer(make_model, divider):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("ReduceMean", ["a"], ["m"], axes=[-1]),
        helper.make_node("Sub", ["a", "m"], ["d"]),
        helper.make_node("Pow", ["d", "two"], ["p"]),
        helper.make_node("ReduceMean", ["p"], ["v"], axes=[-1]),
        helper.make_node("Add", ["v", "eps"], ["e"]),
        helper.make_node("Sqrt", ["e"], ["r"]),
        helper.make_node("Div", ["d", "r"], ["n"]),
        helper.make_node("Mul", ["n", "g"], ["o"]),
        helper.make_node("MatMul", ["o", "w"], ["y"]),
    ]
    constants = {"w": weight(32, 32), "two": np.float32(2), "eps": np.float32(1e-5), "g": weight(32)}
    network = load_network(make_model(nodes, {"x": [1, 5, 32]}, ["y"], constants))
    assert [len(layer.nodes) for layer in network.layers] == [1, 8, 1]
    divider.check(network, *all_cuts(network))


def test_quantised_convolution_with_its_conversions(make_model):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["a"]),
        helper.make_node("DequantizeLinear", ["wq", "s"], ["w"]),
        helper.make_node("Conv", ["a", "w"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["d", "s", "z"], ["e"]),
        helper.make_node("MaxPool", ["e"], ["y"], kernel_shape=[2, 2]),
    ]
    constants = {"s": np.float32(0.1), "z": np.uint8(128), "wq": np.ones((4, 4, 3, 3), np.int8)}
    network = load_network(make_model(nodes, {"x": [1, 4, 8, 8]}, ["y"], constants))
    assert parts(network)[-1] == "DequantizeLinear+MaxPool"
    assert str(network.cuts[-2].tensors[0].dtype) == "uint8"


def test_integers_cross_where_several_layers_read_what_is_dequantised(make_model, divider):
    """As in a fire module: else floats would cross, and the layers behind the cut would not be run in integers."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["a"]),
        helper.make_node("DequantizeLinear", ["wq", "s"], ["w"]),
        helper.make_node("Conv", ["a", "w"], ["c1"]),
        helper.make_node("QuantizeLinear", ["c1", "s", "z"], ["c1q"]),
        helper.make_node("DequantizeLinear", ["c1q", "s", "z"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["c2"]),
        helper.make_node("Conv", ["b", "w"], ["c3"], pads=[0, 0, 0, 0]),
        helper.make_node("Concat", ["c2", "c3"], ["y"], axis=1),
    ]
    constants = {"s": np.float32(0.1), "z": np.uint8(128), "wq": RNG.integers(-9, 9, (4, 4, 3, 3)).astype(np.int8)}
    network = load_network(make_model(nodes, {"x": [1, 4, 9, 9]}, ["y"], constants))
    convolutions = [layer.index for layer in network.layers if "Conv" in layer.descriptor.op_types]
    assert len(convolutions) == 3
    for index in convolutions[1:]:
        crossing_now = {t.name: str(t.dtype) for t in network.cuts[index].tensors}
        assert crossing_now.pop("c1q") == "uint8"
        assert set(crossing_now) <= {"c2", "c3"}
    divider.check(network, *all_cuts(network))


def test_a_scale_that_is_dequantised_itself_stays_in_front_of_its_readers(make_model, divider):
    nodes = [
        helper.make_node("DequantizeLinear", ["sq", "s"], ["scale"]),
        helper.make_node("DequantizeLinear", ["wq", "scale"], ["w"]),
        helper.make_node("QuantizeLinear", ["x", "s"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "scale"], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["b"]),
        helper.make_node("Mul", ["b", "scale"], ["c"]),
        helper.make_node("Conv", ["a", "w"], ["d"]),
        helper.make_node("Add", ["c", "d"], ["y"]),
    ]
    constants = {"s": np.float32(0.1), "sq": np.uint8(2), "wq": RNG.integers(-9, 9, (4, 4, 3, 3)).astype(np.int8)}
    network = load_network(make_model(nodes, {"x": [1, 4, 9, 9]}, ["y"], constants))
    divider.check(network, *all_cuts(network))


def test_dequantising_at_each_reader_is_bounded(make_model):
    adds = [helper.make_node("Add", ["a", "a"] if i == 0 else [f"b{i - 1}", "a"], [f"b{i}"]) for i in range(30)]
    nodes = [helper.make_node("DequantizeLinear", ["x", "s"], ["a"]), *adds]
    model = make_model(nodes, {"x": [1, 4]}, ["b29"], {"s": np.float32(0.1)})
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    assert sum(node.op_type == "DequantizeLinear" for node in load_network(model).body.graph.node) == 30
    with pytest.raises(ModelError, match="once each reader of a DequantizeLinear has one of its own"):
        load_network(model, limits=Limits(nodes=40))


def test_graph_output_that_is_read_again(make_model, divider):
    nodes = [conv("x", "a"), conv("a", "b"), conv("b", "c")]
    network = load_network(make(make_model, nodes, ["a", "c"]))
    assert crossing(network) == [["x"], ["a"], ["b"], ["a", "c"]]
    assert [t.name for t in network.segment(0, 2).outputs] == ["b", "a"]
    assert [t.name for t in network.segment(1, 3).outputs] == ["c"]
    divider.check(network, *all_cuts(network), [1, 2])


def test_input_read_late_crosses_every_cut(make_model, divider):
    nodes = [conv("x", "a"), conv("a", "b"), helper.make_node("Concat", ["b", "x"], ["y"], axis=1)]
    network = load_network(make(make_model, nodes, ["y"]))
    assert all("x" in names for names in crossing(network)[:-1])
    divider.check(network, *all_cuts(network))


def test_input_that_nothing_reads(make_model):
    model = make(make_model, [conv("x", "a"), conv("a", "y")], ["y"])
    model.graph.input.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, [3]))
    network = load_network(model)
    assert crossing(network) == [["x", "unused"], ["a"], ["y"]]
    assert [t.name for t in network.segment(0, 2).inputs] == ["x"]


def values(*names, kind=TensorProto.FLOAT, shape=None):
    return [helper.make_tensor_value_info(name, kind, shape) for name in names]


def test_what_an_if_captures_crosses(make_model, divider):
    then = helper.make_graph([helper.make_node("Add", ["a", "c"], ["t"])], "then", [], values("t"))
    deep = helper.make_graph([helper.make_node("Sub", ["c", "a"], ["u"])], "deep", [], values("u"))
    flat = helper.make_graph([helper.make_node("Mul", ["c", "k"], ["v"])], "flat", [], values("v"))
    other = helper.make_graph(
        [helper.make_node("If", ["flag"], ["e"], then_branch=deep, else_branch=flat)], "else", [], values("e")
    )
    nodes = [
        conv("x", "a"),
        conv("a", "b"),
        conv("b", "c"),
        helper.make_node("ReduceSum", ["c"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["flag"]),
        helper.make_node("If", ["flag"], ["d"], then_branch=then, else_branch=other),
        conv("d", "y"),
    ]
    model = make(make_model, nodes, ["y"])
    for name, value in (("zero", 0.0), ("k", 2.0)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(value), name))
    network = load_network(model)
    where = next(i for i, layer in enumerate(network.layers) if "If" in layer.descriptor.op_types)
    assert {"a", "c", "flag"} <= set(crossing(network)[where])
    assert "k" not in crossing(network)[where]
    assert str(network.tensors["d"]) == "float32[1x4x8x8]"
    for seed in range(4):
        frame = divider.frame_for(network, seed)
        whole = divider.run(network.model, frame)
        for cut in network.legal_cuts():
            divider.assert_same(whole, divider.run_divided(network, [cut], frame))


def test_what_a_loop_captures_crosses(make_model, divider):
    body = helper.make_graph(
        [
            helper.make_node("Add", ["state", "a"], ["next"]),
            helper.make_node("Identity", ["on"], ["still"]),
            helper.make_node("ReduceSum", ["next"], ["trace"], keepdims=0),
        ],
        "body",
        [
            *values("i", kind=TensorProto.INT64, shape=[]),
            *values("on", kind=TensorProto.BOOL, shape=[]),
            *values("state"),
        ],
        [*values("still", kind=TensorProto.BOOL, shape=[]), *values("next", "trace")],
    )
    nodes = [
        conv("x", "a"),
        conv("a", "b"),
        helper.make_node("Loop", ["trips", "", "b"], ["c", "traces"], body=body),
        conv("c", "y"),
    ]
    model = make(make_model, nodes, ["y"])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.int64(3), "trips"))
    network = load_network(model)
    assert parts(network) == ["Conv", "Conv", "Loop", "Conv"]
    assert crossing(network) == [["x"], ["a"], ["a", "b"], ["c"], ["y"]]
    assert str(network.tensors["c"]) == "float32[1x4x8x8]"
    assert divider.check(network, *all_cuts(network), [1, 2, 3]) == 4


def test_scan(make_model, divider):
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "row"], ["t"]), helper.make_node("Mul", ["t", "a0"], ["out"])],
        "body",
        [*values("s"), *values("row")],
        [*values("t"), *values("out")],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("ReduceMax", ["a"], ["a0"], axes=[0], keepdims=0),
        helper.make_node("Scan", ["zero", "a"], ["last", "rows"], body=body, num_scan_inputs=1),
        helper.make_node("MatMul", ["rows", "w"], ["y"]),
    ]
    constants = {"w": weight(16, 16), "zero": np.zeros(16, np.float32)}
    network = load_network(make_model(nodes, {"x": [6, 16]}, ["y", "last"], constants))
    assert str(network.tensors["rows"]) == "float32[6x16]"
    divider.check(network, *all_cuts(network))


def test_sequences_never_cross(make_model, divider):
    nodes = [
        conv("x", "a"),
        helper.make_node("SequenceConstruct", ["a", "x"], ["both"]),
        conv("a", "b"),
        helper.make_node("SequenceAt", ["both", "one"], ["c"]),
        helper.make_node("Add", ["b", "c"], ["d"]),
        conv("d", "y"),
    ]
    model = make(make_model, nodes, ["y"])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.int64(1), "one"))
    network = load_network(model)
    assert "both" not in {name for names in crossing(network) for name in names}
    divider.check(network, *all_cuts(network))


def test_unknown_shapes_make_a_cut_illegal(make_model, divider):
    nodes = [
        conv("x", "a"),
        helper.make_node("NonZero", ["a"], ["n"]),
        helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["k", "f"], ["m"]),
        helper.make_node("ReduceMax", ["m"], ["y"], keepdims=0),
    ]
    model = make(make_model, nodes, ["y"])
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight(2, 4), "k"))
    network = load_network(model)
    assert len(network.layers) > 2
    assert list(network.legal_cuts()) == [1]
    divider.check(network, [1])


def test_integers_and_booleans_may_cross(make_model, divider):
    nodes = [
        helper.make_node("MaxPool", ["x"], ["p", "where"], kernel_shape=[2, 2], strides=[2, 2]),
        conv("p", "a"),
        helper.make_node("MaxUnpool", ["a", "where"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    network = load_network(make(make_model, nodes, ["y"]))
    assert {str(t.dtype) for t in network.cuts[1].tensors} == {"float32", "int64"}
    divider.check(network, *all_cuts(network), [1, 2])


def test_branches_are_finished_one_by_one(make_model):
    nodes, ends = [], []
    for step in range(3):
        for branch in range(3):
            nodes.append(conv(f"t{branch}_{step - 1}" if step else "x", f"t{branch}_{step}"))
    ends = [f"t{branch}_2" for branch in range(3)]
    nodes.append(helper.make_node("Concat", ends, ["y"], axis=1))
    network = load_network(make(make_model, nodes, ["y"]))
    assert max(len(cut.tensors) for cut in network.cuts) == 3
    names = [layer.outputs[0] for layer in network.layers[:-1]]
    assert all(names[i][:2] == names[i + 1][:2] for i in (0, 1, 3, 4, 6, 7))


def test_the_narrow_end_is_carried(make_model):
    """Of a branch that widens and one that does not, the wide result is made last."""
    nodes = [
        helper.make_node("Conv", ["x", "wide"], ["a"]),
        helper.make_node("Conv", ["x", "n1"], ["b"]),
        helper.make_node("Conv", ["b", "n2"], ["c"]),
        helper.make_node("Conv", ["c", "n2"], ["d"]),
        helper.make_node("Conv", ["d", "n3"], ["e"]),
        helper.make_node("Add", ["a", "e"], ["y"]),
    ]
    constants = {
        "wide": weight(64, 4, 1, 1),
        "n1": weight(2, 4, 1, 1),
        "n2": weight(2, 2, 1, 1),
        "n3": weight(64, 2, 1, 1),
    }
    network = load_network(make_model(nodes, {"x": [1, 4, 8, 8]}, ["y"], constants))
    assert [layer.outputs[0] for layer in network.layers][:3] == ["b", "c", "d"]


def test_a_long_chain(make_model):
    nodes = [conv(f"t{i}", f"t{i + 1}") for i in range(300)]
    for node in nodes:
        node.input[1] = "w"
    model = make_model(nodes, {"t0": [1, 2, 4, 4]}, ["t300"], {"w": weight(2, 2, 3, 3)})
    network = load_network(model)
    assert len(network.layers) == 300
    assert len(network.cuts) == 301
    assert len({layer.name for layer in network.layers}) == 300


def test_layers_hold_every_node_once(light_model):
    network = load_network(light_model("shufflenet"))
    nodes = [i for layer in network.layers for i in layer.nodes]
    assert nodes == list(range(len(network.model.graph.node)))


@st.composite
def graphs(draw):
    """A random graph of convolutions, activations, sums, concatenations and pools."""
    constants: dict[str, np.ndarray] = {}
    channels = {"x": draw(st.integers(1, 3))}
    nodes = []
    for index in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["conv", "conv", "norm", "relu", "silu", "add", "add", "concat", "pool", "view"]))
        source = draw(st.sampled_from(list(channels)))
        made, width = f"t{index}", channels[source]
        if kind == "conv":
            wider = draw(st.integers(1, 3))
            constants[f"w{index}"] = weight(wider, width, 3, 3)
            nodes.append(helper.make_node("Conv", [source, f"w{index}"], [made], pads=[1, 1, 1, 1]))
            width = wider
        elif kind == "norm":
            names = [f"{part}{index}" for part in ("g", "b", "m", "v")]
            for name in names:
                constants[name] = np.abs(weight(width)) + np.float32(0.5)
            nodes.append(helper.make_node("BatchNormalization", [source, *names], [made]))
        elif kind == "relu":
            nodes.append(helper.make_node("Relu", [source], [made]))
        elif kind == "silu":
            nodes.append(helper.make_node("Sigmoid", [source], [f"s{index}"]))
            nodes.append(helper.make_node("Mul", [source, f"s{index}"], [made]))
        elif kind == "add":
            same = [name for name, count in channels.items() if count == width]
            nodes.append(helper.make_node("Add", [source, draw(st.sampled_from(same))], [made]))
        elif kind == "concat":
            other = draw(st.sampled_from(list(channels)))
            nodes.append(helper.make_node("Concat", [source, other], [made], axis=1))
            width += channels[other]
        elif kind == "pool":
            nodes.append(helper.make_node("MaxPool", [source], [made], kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        else:
            constants[f"shape{index}"] = np.array([0, 0, -1, 6])
            nodes.append(helper.make_node("Reshape", [source, f"shape{index}"], [made]))
        channels[made] = width
    read = {name for node in nodes for name in node.input}
    made_names = [name for name in channels if name != "x"]
    outputs = [name for name in made_names if name not in read]
    outputs += draw(st.lists(st.sampled_from(made_names), max_size=2, unique=True))
    order = draw(st.permutations(range(len(nodes))))
    return [nodes[i] for i in order], {"x": ["N", channels["x"], 6, 6]}, list(dict.fromkeys(outputs)), constants


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(graphs(), st.data())
def test_random_graphs_divide_anywhere(make_model, divider, graph, data):
    model = make_model(*graph)
    network = load_network(model)
    legal = list(network.legal_cuts())
    assert legal == list(range(1, len(network.layers)))
    assert network.sha256 == load_network(model).sha256
    some = data.draw(st.lists(st.sampled_from(legal), unique=True).map(sorted)) if legal else []
    frame = divider.frame_for(network)
    whole = divider.run(network.model, frame)
    constants = {t.name for t in model.graph.initializer}
    assert {t.name for cut in network.cuts for t in cut.tensors}.isdisjoint(constants)
    for cuts in [*([cut] for cut in legal), some, legal]:
        divider.assert_same(whole, divider.run_divided(network, cuts, frame), tolerance=1e-5)
