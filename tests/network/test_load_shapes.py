"""Shapes that are given, declared or asked for, and what stays of a model otherwise."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from model_files import refused
from onnx import TensorProto, helper

from corepipe.errors import ModelError, UnknownNameError, UsageError
from corepipe.network.load import load_network, parse_shape


def test_ir_version_3(small):
    small.ir_version = 3
    for tensor in small.graph.initializer:
        small.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    network = load_network(small)
    assert network.model.ir_version >= 4
    assert [t.name for t in network.inputs] == ["x"]
    assert network.outputs[0].shape == (1, 4, 8, 8)


def test_the_model_given_is_left_alone(small):
    before = small.SerializeToString(deterministic=True)
    load_network(small)
    assert small.SerializeToString(deterministic=True) == before


def test_stale_shapes_are_dropped(small):
    small.graph.value_info.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [9, 9]))
    small.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 99, 99]))
    assert load_network(small, shapes={"x": (2, 3, 4, 4)} | {"x": (2, 3, 8, 8)}).outputs[0].shape == (2, 4, 8, 8)


def test_declared_shapes_help_where_inference_cannot(make_model):
    nodes = [
        helper.make_node("QuickGelu", ["x"], ["g"], domain="com.microsoft"),
        helper.make_node("Conv", ["g", "w"], ["y"]),
    ]
    constants = {"w": np.ones((2, 3, 1, 1), np.float32)}
    model = make_model(nodes, {"x": [1, 3, 4, 4]}, ["y"], constants)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert len(load_network(model).layers) == 1
    model.graph.value_info.append(helper.make_tensor_value_info("g", TensorProto.FLOAT, [1, 3, 4, 4]))
    network = load_network(model)
    assert [str(t) for t in network.cuts[1].tensors] == ["float32[1x3x4x4]"]
    assert network.outputs[0].shape == (1, 2, 4, 4)


def test_digest_follows_weights_and_shapes_only(small):
    digest = load_network(small).sha256
    assert load_network(small).sha256 == digest
    small.doc_string = "words"
    small.graph.node[0].doc_string = "more words"
    assert load_network(small).sha256 == digest
    assert load_network(small, shapes={"x": (2, 3, 8, 8)}).sha256 != digest
    weights = np.ones((4, 3, 3, 3), np.float32)
    weights[0, 0, 0, 0] = 2
    small.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w"))
    assert load_network(small).sha256 != digest


def test_dynamic_batch_becomes_1(small):
    network = load_network(small)
    assert network.inputs[0].shape == (1, 3, 8, 8)
    assert network.outputs[0].shape == (1, 4, 8, 8)


def test_other_dynamic_dims_are_asked_for(make_model, small):
    small.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", None]))
    refused(small, r"'x' has dynamic dims \[1, 3, H, \?\]; .* --shape x:1x3x224x224")
    assert load_network(small, shapes={"x": (2, 3, 6, 5)}).outputs[0].shape == (2, 4, 6, 5)


def test_input_without_any_shape(small):
    small.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, None))
    refused(small, "'x' declares no shape")
    assert load_network(small, shapes={"x": (1, 3, 6, 5)}).outputs[0].shape == (1, 4, 6, 5)


def test_one_symbol_is_one_size(make_model):
    model = make_model([helper.make_node("Add", ["a", "b"], ["y"])], {"a": ["N", 3], "b": ["N", 3]}, ["y"])
    assert load_network(model, shapes={"b": (4, 3)}).inputs[0].shape == (4, 3)
    with pytest.raises(UsageError, match="does not fit"):
        load_network(model, shapes={"a": (2, 3), "b": (4, 3)})


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 3, 8), (0, 3, 8, 8), (-1, 3, 8, 8)])
def test_shapes_that_do_not_fit(small, shape):
    with pytest.raises(UsageError, match="x:"):
        load_network(small, shapes={"x": shape})


def test_a_declared_size_of_0_is_dynamic_unless_given(make_model):
    model = make_model([helper.make_node("Concat", ["a", "b"], ["y"], axis=0)], {"a": [0, 3], "b": [2, 3]}, ["y"])
    assert load_network(model).outputs[0].shape == (3, 3)
    empty = load_network(model, shapes={"a": (0, 3)})
    assert (empty.inputs[0].shape, empty.outputs[0].shape) == ((0, 3), (2, 3))
    with pytest.raises(UsageError, match="not positive"):
        load_network(model, shapes={"b": (0, 3)})


def test_shape_of_an_unknown_input(small):
    with pytest.raises(UnknownNameError, match="unknown input 'y'"):
        load_network(small, shapes={"y": (1,)})


def test_parse_shape():
    assert parse_shape("data:1x3x224x224") == ("data", (1, 3, 224, 224))
    assert parse_shape("input:0:5") == ("input:0", (5,))


@pytest.mark.parametrize(
    "text", ["", "data", "data:", ":1x3", "data:1x", "data:0x3", "data:-1x3", "data:axb", "d:1 x3"]
)
def test_parse_shape_refuses(text):
    with pytest.raises(UsageError, match="write NAME:SIZE"):
        parse_shape(text)


def test_declared_shapes_do_not_hold_where_the_image_has_another_size(make_model):
    model = foreign(make_model, "N", ["N", 2, 4, 4])
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    network = load_network(model, shapes={"x": (1, 2, 8, 4)})
    assert len(network.layers) <= 2


def foreign(make_model, size, declared):
    """Convolution, an operator that is none of ONNX's and whose output is declared, convolution."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("QLinearThing", ["a"], ["b"], domain="com.microsoft"),
        helper.make_node("Conv", ["b", "w"], ["c"]),
        helper.make_node("Conv", ["c", "w"], ["y"]),
    ]
    weights = {"w": np.ones((2, 2, 1, 1), np.float32)}
    model = make_model(nodes, {"x": [size, 2, 4, 4]}, ["y"], weights, **{"com.microsoft": 1})
    model.graph.value_info.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, declared))
    return model


@pytest.mark.parametrize(
    ("size", "declared", "shapes", "known"),
    [
        (1, [1, 2, 4, 4], {}, True),
        ("N", ["N", 2, 4, 4], {}, True),
        ("N", [1, 2, 4, 4], {}, True),  # traced with one frame
        ("N", [3, 2, 4, 4], {}, False),
        ("N", ["N", 2, 4, 4], {"x": (5, 2, 4, 4)}, True),
        ("N", [1, 2, 4, 4], {"x": (5, 2, 4, 4)}, False),
        ("N", [1, 2, 4, 4], {"x": (1, 2, 4, 4)}, True),
        ("N", ["M", 2, 4, 4], {}, False),
    ],
)
def test_shapes_behind_operators_of_others_are_known_where_the_file_tells_them(
    make_model, size, declared, shapes, known
):
    network = load_network(foreign(make_model, size, declared), shapes=shapes)
    assert (len(network.layers) > 2) == known
    if known:
        assert network.outputs[0].shape == (shapes["x"][0] if shapes else 1, 2, 4, 4)


def test_sizes_may_be_integers_of_numpy(make_model):
    model = make_model([helper.make_node("Relu", ["x"], ["y"])], {"x": ["N", "C"]}, ["y"])
    assert load_network(model, shapes={"x": np.array([2, 3])}).inputs[0].shape == (2, 3)


def test_a_size_that_another_input_has_decided_is_said(make_model):
    nodes = [helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Relu", ["b"], ["z"])]
    model = make_model(nodes, {"a": ["N", 4], "b": ["N", 8]}, ["y", "z"])
    with pytest.raises(UsageError, match="the shape b:3x8 does not fit the model's Nx8 with N = 2"):
        load_network(model, shapes={"a": (2, 4), "b": (3, 8)})


@pytest.mark.parametrize("sizes", [(2**63, 3), (1,) * 40, (1, 3, 19000, 19000)])
def test_shapes_that_are_given_have_the_limits_of_those_in_files(make_model, sizes):
    model = make_model([helper.make_node("ReduceSum", ["x"], ["y"])], {"x": [1]}, ["y"])
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, None))
    with pytest.raises(ModelError, match=r"'x'.*at most"):
        load_network(model, shapes={"x": sizes})
