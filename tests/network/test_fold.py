"""Constants folded, shapes known, nothing of the result changed."""

from __future__ import annotations

import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from corepipe.errors import ModelError
from corepipe.network import fold as fold_module
from corepipe.network.load import Limits, load_network


def operators(network):
    return [node.op_type for node in network.model.graph.node]


def same_as_before(model, network, divider, seed=1):
    frame = divider.frame_for(network, seed)
    divider.assert_same(divider.run(model, frame), divider.run(network.model, frame))


def test_shape_arithmetic_of_an_exporter(make_model, divider):
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Shape", ["r"], ["s"]),
        helper.make_node("Constant", [], ["zero"], value_int=0),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Constant", [], ["axes"], value_ints=[0]),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["r", "target"], ["y"]),
    ]
    model = make_model(nodes, {"x": ["N", 3, 4]}, ["y"], {"rest": np.array([-1])})
    network = load_network(model, shapes={"x": (2, 3, 4)})
    assert operators(network) == ["Relu", "Reshape"]
    assert network.outputs[0].shape == (2, 12)
    same_as_before(model, network, divider)


def test_one_shape_leads_to_the_next(make_model):
    nodes = []
    for i in range(30):
        nodes += [
            helper.make_node("Shape", [f"t{i}"], [f"s{i}"]),
            helper.make_node("Reshape", [f"t{i}", f"s{i}"], [f"v{i}"]),
            helper.make_node("Relu", [f"v{i}"], [f"t{i + 1}"]),
        ]
    network = load_network(make_model(nodes, {"t0": ["N", 3]}, ["t30"]))
    assert "Shape" not in operators(network)
    assert network.outputs[0].shape == (1, 3)


def test_identities_go(make_model, divider):
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Dropout", ["b"], ["c"]),
        helper.make_node("Cast", ["c"], ["d"], to=TensorProto.FLOAT),
        helper.make_node("Tanh", ["d"], ["e"]),
        helper.make_node("Add", ["e", "b"], ["f"]),
        helper.make_node("Identity", ["f"], ["y"]),
    ]
    model = make_model(nodes, {"x": [1, 4]}, ["y"])
    network = load_network(model)
    assert operators(network) == ["Relu", "Tanh", "Add"]
    same_as_before(model, network, divider)


def test_identities_at_outputs(make_model, divider):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Identity", ["a"], ["alias"]),
        helper.make_node("Identity", ["a"], ["y"]),
        helper.make_node("Identity", ["a"], ["z"]),
        helper.make_node("Tanh", ["alias"], ["t"]),
        helper.make_node("Identity", ["x"], ["copy"]),
        helper.make_node("Identity", ["k"], ["constant"]),
    ]
    model = make_model(nodes, {"x": [1, 4]}, ["y", "z", "t", "copy", "constant"], {"k": np.ones(2, np.float32)})
    network = load_network(model)
    assert operators(network).count("Identity") == 3
    same_as_before(model, network, divider)
    divider.check(network, *([cut] for cut in network.legal_cuts()))


def test_dropout_in_training_stays(make_model):
    node = helper.make_node("Dropout", ["x", "ratio", "training"], ["y"])
    constants = {"ratio": np.float32(0.5), "training": np.array(True)}
    assert operators(load_network(make_model([node], {"x": [1, 4]}, ["y"], constants))) == ["Dropout"]


def test_random_constants_stay_random(make_model):
    nodes = [helper.make_node("RandomNormal", [], ["r"], shape=[4]), helper.make_node("Add", ["x", "r"], ["y"])]
    assert "RandomNormal" in operators(load_network(make_model(nodes, {"x": [1, 4]}, ["y"])))


def test_quantised_weights_stay_quantised(make_model):
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["w"]), helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = make_model(nodes, {"x": [1, 4]}, ["y"], {"q": np.ones((4, 4), np.int8), "s": np.float32(0.1)})
    network = load_network(model)
    assert operators(network) == ["DequantizeLinear", "MatMul"]
    assert len(network.layers) == 1


def test_large_constants_are_not_blown_up(make_model):
    nodes = [
        helper.make_node("Expand", ["one", "shape"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["s"], keepdims=0),
        helper.make_node("Add", ["x", "s"], ["y"]),
    ]
    model = make_model(nodes, {"x": [1]}, ["y"], {"one": np.ones(1, np.float32), "shape": np.array([2**26])})
    network = load_network(model)
    assert "Expand" in operators(network)
    assert network.weight_bytes < 100


def test_reference_that_cannot_is_no_failure(make_model):
    nodes = [helper.make_node("Reshape", ["k", "s"], ["r"]), helper.make_node("Add", ["x", "r"], ["y"])]
    model = make_model(nodes, {"x": [1]}, ["y"], {"k": np.ones(4, np.float32), "s": np.array([3])})
    assert operators(load_network(model)) == ["Reshape", "Add"]


def test_old_opset(make_model, divider):
    nodes = [
        helper.make_node("Unsqueeze", ["k"], ["u"], axes=[0, 2]),
        helper.make_node("Squeeze", ["u"], ["v"], axes=[0, 2]),
        helper.make_node("Mul", ["x", "v"], ["y"]),
    ]
    model = make_model(nodes, {"x": [2, 4]}, ["y"], {"k": np.arange(4, dtype=np.float32)}, opset=9)
    network = load_network(model)
    assert operators(network) == ["Mul"]
    same_as_before(model, network, divider)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_broadcast_of_an_old_opset_is_not_folded(make_model, axis):
    w, s = np.arange(16, dtype=np.float32).reshape(4, 4), np.arange(1, 5, dtype=np.float32)
    nodes = [
        helper.make_node("Mul", ["w", "s"], ["v"], broadcast=1, axis=axis),
        helper.make_node("MatMul", ["x", "v"], ["y"]),
    ]
    network = load_network(make_model(nodes, {"x": [2, 4]}, ["y"], {"w": w, "s": s}, opset=6))
    assert operators(network) == ["Mul", "MatMul"], "the reference implementation does not know of it"


def test_folding_goes_through_no_more_indices_than_its_budget(make_model):
    zero = helper.make_tensor("v", TensorProto.INT64, [1], [0])
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["i"], value=zero),
        helper.make_node("ConstantOfShape", ["count"], ["u"]),
        *(helper.make_node("ScatterND", [f"d{n}", "i", "u"], [f"d{n + 1}"]) for n in range(300)),
        helper.make_node("Add", ["x", "d300"], ["y"]),
    ]
    constants = {"shape": np.array([2**17, 1]), "count": np.array([2**17]), "d0": np.ones(1, np.float32)}
    network = load_network(make_model(nodes, {"x": [1]}, ["y"], constants))
    assert operators(network).count("ScatterND") == 300 - fold_module._STEP_BUDGET // 2**17


def branch(nodes, output):
    return helper.make_graph(nodes, output, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])


@pytest.mark.parametrize("condition", [True, False])
def test_if_with_a_constant_condition(make_model, divider, condition):
    then = branch([helper.make_node("Relu", ["x"], ["t"]), helper.make_node("Tanh", ["t"], ["u"])], "u")
    other = branch([helper.make_node("Identity", ["x"], ["t"])], "t")
    nodes = [
        helper.make_node("If", ["c"], ["r"], then_branch=then, else_branch=other),
        helper.make_node("Neg", ["r"], ["y"]),
    ]
    model = make_model(nodes, {"x": [1, 4]}, ["y"], {"c": np.array(condition)})
    network = load_network(model)
    assert operators(network) == (["Relu", "Tanh", "Neg"] if condition else ["Neg"])
    same_as_before(model, network, divider)


def test_a_range_does_not_read_a_constant_of_the_models_that_is_called_like_its_scalar(make_model, divider):
    nodes = [
        helper.make_node("Range", ["zero", "n", "one"], ["r"]),
        helper.make_node("Cast", ["r"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "f"], ["s"]),
        helper.make_node("Mul", ["s", "n__scalar"], ["y"]),
    ]
    constants = {"zero": np.int64(0), "n": np.array([4]), "one": np.int64(1), "n__scalar": np.float32(7)}
    network = load_network(make_model(nodes, {"x": [1, 4]}, ["y"], constants))
    (made,) = divider.run(network.model, {"x": np.zeros((1, 4), np.float32)}).values()
    assert made.tolist() == [[0, 7, 14, 21]]


@pytest.mark.parametrize(
    ("tail", "found"),
    [
        ([helper.make_node("Softmax", ["x"], ["y"])], {"y"}),
        ([helper.make_node("Sigmoid", ["x"], ["a"]), helper.make_node("Flatten", ["a"], ["y"])], {"y"}),
        ([helper.make_node("Softmax", ["x"], ["a"]), helper.make_node("Log", ["a"], ["y"])], set()),
        (
            [
                helper.make_node("Softmax", ["x"], ["a"]),
                helper.make_node("QuantizeLinear", ["a", "s"], ["q"]),
                helper.make_node("DequantizeLinear", ["q", "s"], ["y"]),
            ],
            {"y"},
        ),
        (
            [helper.make_node("Softmax", ["x"], ["a"]), helper.make_node("QuantizeLinear", ["a", "s"], ["y"])],
            set(),  # a count of steps
        ),
    ],
)
def test_which_outputs_are_probabilities(make_model, tail, found):
    used = {name for node in tail for name in node.input}
    constants = {"s": np.float32(1 / 256)} if "s" in used else {}
    model = make_model(tail, {"x": [1, 4]}, ["y"], constants)
    if tail[-1].op_type == "QuantizeLinear":
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8
    assert load_network(model).probabilities == found


def test_range_reads_scalars(make_model, divider):
    """ONNX Runtime takes vectors of one number at run time, but refuses a model in which it can see that they are."""
    many = [onnx.helper.make_tensor_value_info("many", TensorProto.INT64, [1])]
    branches = [helper.make_graph([helper.make_node("Identity", [n], ["many"])], n, [], many) for n in ("five", "two")]
    nodes = [
        helper.make_node("Size", ["x"], ["size"]),
        helper.make_node("Equal", ["size", "six"], ["flag"]),
        helper.make_node("If", ["flag"], ["n"], then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("Range", ["zero", "n", "one"], ["r"]),
        helper.make_node("Cast", ["r"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["f"], ["s"], keepdims=0),
        helper.make_node("Add", ["x", "s"], ["y"]),
    ]
    constants = {"six": np.int64(6), "zero": np.int64(0), "one": np.int64(1), "five": [5], "two": [2]}
    model = make_model(nodes, {"x": [2, 3]}, ["y"], constants)
    same_as_before(model, load_network(model), divider)


def test_dead_nodes_and_constants_go(make_model):
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Add", ["x", "k"], ["dead"])]
    network = load_network(make_model(nodes, {"x": [1, 4]}, ["y"], {"k": np.ones(4, np.float32)}))
    assert operators(network) == ["Relu"]
    assert not network.model.graph.initializer


def test_node_names_are_unique(make_model):
    nodes = [helper.make_node("Relu", ["x"], ["a"], name="n"), helper.make_node("MaxPool", ["a"], ["b"], name="n")]
    nodes[1].attribute.append(helper.make_attribute("kernel_shape", [1, 1]))
    nodes.append(helper.make_node("Tanh", ["b"], ["y"]))
    network = load_network(make_model(nodes, {"x": [1, 1, 2, 2]}, ["y"]))
    assert [node.name for node in network.model.graph.node] == ["n", "n_2", "y"]


def test_all_types_are_written(make_model):
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Tanh", ["a"], ["y"])]
    network = load_network(make_model(nodes, {"x": ["N", 4]}, ["y"]))
    (value,) = network.model.graph.value_info
    assert value.name == "a"
    assert [d.dim_value for d in value.type.tensor_type.shape.dim] == [1, 4]
    onnx.checker.check_model(network.model, full_check=True)


def test_data_dependent_shapes_are_unknown_and_unlike(make_model):
    nodes = [
        helper.make_node("NonZero", ["a"], ["na"]),
        helper.make_node("NonZero", ["b"], ["nb"]),
        helper.make_node("Concat", ["na", "nb"], ["y"], axis=1),
    ]
    model = make_model(nodes, {"a": [4], "b": [4]}, [])
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.INT64, None))
    network = load_network(model)
    assert network.outputs[0].shape is None
    assert list(network.legal_cuts()) == []


# What would grow without end if it were let


def test_rank_that_doubles(make_model):
    nodes = [helper.make_node("Gather", [f"t{i}", f"t{i}"], [f"t{i + 1}"]) for i in range(60)]
    model = make_model(nodes, {}, [])
    model.graph.input.append(helper.make_tensor_value_info("t0", TensorProto.INT64, [1, 1]))
    model.graph.output.append(helper.make_tensor_value_info("t60", TensorProto.INT64, None))
    with pytest.raises(ModelError, match="dims, at most 16"):
        load_network(model)


def test_known_values_that_double(make_model):
    nodes = [helper.make_node("Concat", [f"d{i}", f"d{i}"], [f"d{i + 1}"], axis=0) for i in range(27)]
    nodes += [helper.make_node("ReduceSum", ["d27"], ["s"], keepdims=0), helper.make_node("Add", ["x", "s"], ["y"])]
    network = load_network(make_model(nodes, {"x": [1]}, ["y"], {"d0": np.ones(1, np.float32)}))
    assert network.weight_bytes < 2**28


def loops(depth):
    """A loop in a loop in a loop, each changing the shape of what it carries."""
    value = helper.make_tensor_value_info
    inner = helper.make_node("Concat", ["v_in", "v_in"], ["v_out"], axis=0)
    for level in range(depth):
        body = helper.make_graph(
            [inner, helper.make_node("Identity", [f"c{level}"], [f"k{level}"])],
            "body",
            [
                value(f"i{level}", TensorProto.INT64, []),
                value(f"c{level}", TensorProto.BOOL, []),
                value("v_in" if level == 0 else f"a{level}", TensorProto.FLOAT, None),
            ],
            [value(f"k{level}", TensorProto.BOOL, []), value(inner.output[0], TensorProto.FLOAT, None)],
        )
        source = "x" if level == depth - 1 else f"a{level + 1}"
        inner = helper.make_node("Loop", ["trips", "", source], [f"o{level}"], body=body)
    return inner


def test_loops_within_loops(make_model):
    node = loops(2)
    model = make_model([node], {"x": [2]}, [node.output[0]], {"trips": np.int64(2)})
    assert load_network(model).outputs[0].shape is None


def test_loops_deep_within_loops_end(make_model):
    node = loops(12)
    model = make_model([node], {"x": [2]}, [node.output[0]], {"trips": np.int64(2)})
    began = time.monotonic()
    try:
        load_network(model, limits=Limits(depth=50))
    except ModelError as error:
        assert "loops within loops" in str(error)
    assert time.monotonic() - began < 60


def test_what_constant_nodes_hold_become_initializers(make_model, divider):
    weight = onnx.numpy_helper.from_array(np.ones((4, 4), np.float32), "anything")
    nodes = [helper.make_node("Constant", [], ["w"], value=weight), helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = make_model(nodes, {"x": [2, 4]}, ["y"])
    network = load_network(model)
    assert operators(network) == ["MatMul"]
    assert [tensor.name for tensor in network.model.graph.initializer] == ["w"]
    same_as_before(model, network, divider)


def test_folding_reads_no_more_than_its_budget(make_model, monkeypatch):
    evaluated = []
    real = fold_module._Folder._alone
    monkeypatch.setattr(fold_module._Folder, "_alone", lambda self, node: evaluated.append(node) or real(self, node))
    monkeypatch.setattr(fold_module, "_READ_BUDGET_BYTES", -2 * fold_module._FOLD_BUDGET_BYTES)
    nodes = [helper.make_node("ReduceSum", ["c"], [f"s{i}"], keepdims=0) for i in range(9)]
    nodes.append(helper.make_node("Sum", ["x", *(f"s{i}" for i in range(9))], ["y"]))
    load_network(make_model(nodes, {"x": [1]}, ["y"], {"c": np.ones(1000, np.float32)}))
    assert len(evaluated) == 2, "twice the bytes of the weights"


@pytest.mark.parametrize("taken", ["input", "node"])
def test_the_name_of_a_constant_output_is_free(make_model, divider, taken):
    inputs = {"x": [2]} | ({"k__constant": [2]} if taken == "input" else {})
    other = "k__constant" if taken == "input" else "x"
    nodes = [helper.make_node("Neg", [other], ["n" if taken == "input" else "k__constant"])]
    nodes.append(helper.make_node("Add", [nodes[0].output[0], "x"], ["y"]))
    model = make_model(nodes, inputs, ["y", "k"], {"k": np.ones(2, np.float32)})
    same_as_before(model, load_network(model), divider)


def test_what_the_reference_gets_wrong_is_left_to_the_engine(make_model, divider):
    """Of infinite values it makes NaN."""
    nodes = [
        helper.make_node("OneHot", ["indices", "depth", "values"], ["mask"], axis=-1),
        helper.make_node("Max", ["x", "mask"], ["y"]),
    ]
    constants = {
        "indices": np.array([0, 2]),
        "depth": np.array(3),
        "values": np.array([-np.inf, 0], np.float32),
    }
    model = make_model(nodes, {"x": [2, 3]}, ["y"], constants)
    network = load_network(model)
    (got,) = divider.run(network.model, {"x": np.full((2, 3), -1, np.float32)}).values()
    assert got.tolist() == [[0, -1, -1], [-1, -1, 0]]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
@pytest.mark.parametrize(
    ("reduce", "shape", "expected"), [("ReduceMean", (1, 100_000), 1), ("ReduceSum", (4096, 8), 4096)]
)
def test_constant_halves_are_added_up_as_floats(make_model, divider, reduce, shape, expected, kind):
    """As halves they would come to infinity, or to no more than 2048."""
    nodes = [
        helper.make_node("Cast", ["ones"], ["c"], to=kind),
        helper.make_node(reduce, ["c", "axes"][: 1 if reduce == "ReduceMean" else 2], ["s"]),
        helper.make_node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["f"], ["m"], keepdims=0),
        helper.make_node("Mul", ["x", "m"], ["y"]),
    ]
    constants = {"ones": np.ones(shape, np.float32)} | ({} if reduce == "ReduceMean" else {"axes": np.array([0])})
    network = load_network(make_model(nodes, {"x": [1]}, ["y"], constants))
    assert operators(network) == ["Mul"]
    (got,) = divider.run(network.model, {"x": np.ones(1, np.float32)}).values()
    assert got == [expected]


def test_shapes_behind_a_constant_that_is_an_output_too_are_known(make_model, divider):
    target = onnx.numpy_helper.from_array(np.array([2, 6]), "")
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Constant", [], ["target"], value=target),
        helper.make_node("Shape", ["r"], ["shape"]),
        helper.make_node("Reshape", ["r", "target"], ["a"]),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("Reshape", ["b", "shape"], ["y"]),
        helper.make_node("Identity", ["shape"], ["again"]),
    ]
    model = make_model(nodes, {"x": [3, 4]}, ["shape", "y", "target", "again"])
    for index in (0, 2, 3):
        model.graph.output[index].type.tensor_type.elem_type = TensorProto.INT64
    network = load_network(model)
    assert [output.name for output in network.outputs] == ["shape", "y", "target", "again"]
    assert network.outputs[1].shape == (3, 4)
    assert len(network.legal_cuts()) == len(network.layers) - 1
    assert len(network.model.graph.initializer) == 2, "each constant once"
    same_as_before(model, network, divider)


def test_large_constants_within_loops_are_not_read_again_and_again(make_model, monkeypatch):
    node = loops(3)
    body, deepest = node.attribute[0].g, None
    while body is not None:
        deepest, body = body, next((n.attribute[0].g for n in body.node if n.op_type == "Loop"), None)
    large = onnx.numpy_helper.from_array(np.ones(10_000, np.float32), "")
    deepest.node.extend([helper.make_node("Constant", [], ["large"], value=large)])
    real, sizes = onnx.shape_inference.infer_shapes, []
    monkeypatch.setattr(
        onnx.shape_inference, "infer_shapes", lambda m, **options: sizes.append(m.ByteSize()) or real(m, **options)
    )
    load_network(make_model([node], {"x": [2]}, [node.output[0]], {"trips": np.int64(2)}))
    assert max(sizes) < 10_000


def test_dequantised_tensors_without_a_name_are_nobody_s(make_model):
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["", "h"], hidden_size=2),
        helper.make_node("DequantizeLinear", ["q", "s"], ["", "z"], domain="com.microsoft"),
        helper.make_node("Squeeze", ["h"], ["y"]),
    ]
    constants = {
        "w": np.ones((1, 8, 3), np.float32), "r": np.ones((1, 8, 2), np.float32),
        "q": np.ones(2, np.int8), "s": np.float32(0.1),
    }  # fmt: skip
    model = make_model(nodes, {"x": [4, 1, 3]}, ["y", "z"], constants, **{"com.microsoft": 1})
    assert sorted(operators(load_network(model))) == ["DequantizeLinear", "LSTM", "Squeeze"]
