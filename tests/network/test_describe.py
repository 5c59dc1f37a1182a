"""Descriptors: kinds, GEMM dims, operations and bytes worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from corepipe.network.load import load_network
from corepipe.network.model import KINDS


def zeros(*shape):
    return np.zeros(shape, np.float32)


def only(make_model, nodes, shape, constants=None, **options):
    """The descriptor of a network of one layer."""
    network = load_network(make_model(nodes, {"x": shape}, [nodes[-1].output[0]], constants, **options))
    assert len(network.layers) == 1
    descriptor = network.layers[0].descriptor
    assert descriptor.kind in KINDS
    assert network.flops == descriptor.flops
    assert network.weight_bytes == descriptor.bytes_weights
    return descriptor


def test_convolution(make_model):
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], strides=[2, 2], pads=[3, 3, 3, 3])
    d = only(make_model, [node], [1, 3, 224, 224], {"w": zeros(64, 3, 7, 7), "b": zeros(64)})
    assert (d.kind, d.m, d.n, d.k, d.groups) == ("conv", 112 * 112, 64, 3 * 49, 1)
    assert d.flops == 2 * d.m * d.n * d.k
    assert (d.kernel, d.strides, d.dilations) == ((7, 7), (2, 2), (1, 1))
    assert d.bytes_in == 4 * 3 * 224 * 224
    assert d.bytes_out == 4 * 64 * 112 * 112
    assert d.bytes_weights == 4 * (64 * 3 * 49 + 64)
    assert d.dtype == "float32"


@pytest.mark.parametrize(("kind", "inputs"), [("FusedConv", ["x"]), ("GlobalAveragePool", []), ("LSTM", [])])
def test_operators_of_other_domains_may_have_any_inputs(make_model, kind, inputs):
    nodes = [helper.make_node(kind, inputs, ["t"], domain="com.microsoft"), helper.make_node("Add", ["x", "t"], ["y"])]
    load_network(make_model(nodes, {"x": [1, 3, 8, 8]}, ["y"], **{"com.microsoft": 1}))


def test_batch_counts(make_model):
    node = helper.make_node("Conv", ["x", "w"], ["y"], dilations=[2, 2])
    d = only(make_model, [node], [5, 2, 8, 8], {"w": zeros(4, 2, 3, 3)})
    assert (d.m, d.n, d.k, d.dilations) == (5 * 16, 4, 18, (2, 2))


@pytest.mark.parametrize(
    ("channels", "filters", "groups", "kind", "n", "k"),
    [(8, 8, 8, "depthwise", 1, 9), (8, 16, 8, "depthwise", 2, 9), (8, 16, 4, "grouped", 4, 18)],
)
def test_groups(make_model, channels, filters, groups, kind, n, k):
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=groups, pads=[1, 1, 1, 1])
    weight = zeros(filters, channels // groups, 3, 3)
    d = only(make_model, [node], [1, channels, 10, 10], {"w": weight})
    assert (d.kind, d.m, d.n, d.k, d.groups) == (kind, 100, n, k, groups)
    assert d.flops == 2 * 100 * filters * k


def test_transposed_convolution(make_model):
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    d = only(make_model, [node], [1, 6, 5, 5], {"w": zeros(6, 4, 2, 2)})
    assert (d.kind, d.m, d.n, d.k) == ("conv", 25, 16, 6)
    assert d.bytes_out == 4 * 4 * 100


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(make_model, transposed):
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=transposed)
    weight = zeros(10, 7) if transposed else zeros(7, 10)
    d = only(make_model, [node], [3, 7], {"w": weight, "b": zeros(10)})
    assert (d.kind, d.m, d.n, d.k, d.groups, d.flops) == ("fully-connected", 3, 10, 7, 1, 420)


@pytest.mark.parametrize(
    ("given", "weight", "dims"),
    [
        ([2, 5, 7], (7, 3), (10, 3, 7, 1)),
        ([7], (7, 3), (1, 3, 7, 1)),
        ([5, 7], (7,), (5, 1, 7, 1)),
        ([2, 5, 7], (2, 7, 3), (5, 3, 7, 2)),
        ([5, 7], (2, 4, 7, 3), (5, 3, 7, 8)),
    ],
)
def test_matmul(make_model, given, weight, dims):
    d = only(make_model, [helper.make_node("MatMul", ["x", "w"], ["y"])], given, {"w": zeros(*weight)})
    assert (d.m, d.n, d.k, d.groups) == dims
    assert d.flops == 2 * np.prod(dims)


def test_pools(make_model):
    d = only(make_model, [helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 2])], [1, 2, 5, 5])
    assert (d.kind, d.kernel, d.strides, d.flops) == ("pool", (3, 2), (1, 1), 2 * 3 * 4 * 6)
    d = only(make_model, [helper.make_node("GlobalAveragePool", ["x"], ["y"])], [1, 2, 5, 4])
    assert (d.kind, d.kernel, d.flops) == ("pool", (5, 4), 40)


@pytest.mark.parametrize(
    ("node", "kind", "flops"),
    [
        (helper.make_node("Relu", ["x"], ["y"]), "elementwise", 48),
        (helper.make_node("Sum", ["x", "x", "x"], ["y"]), "elementwise", 96),
        (helper.make_node("LRN", ["x"], ["y"], size=5), "normalisation", 48 * 13),
        (helper.make_node("Softmax", ["x"], ["y"]), "normalisation", 192),
        (helper.make_node("Transpose", ["x"], ["y"]), "other", 0),
        (helper.make_node("Concat", ["x", "x"], ["y"], axis=1), "other", 0),
    ],
    ids=lambda value: getattr(value, "op_type", None),
)
def test_others(make_model, node, kind, flops):
    d = only(make_model, [node], [1, 3, 4, 4])
    assert (d.kind, d.flops, d.m, d.n, d.k) == (kind, flops, 0, 0, 0)


def test_fused_layer(make_model):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "g", "b", "b", "g"], ["n"]),
        helper.make_node("Add", ["n", "x"], ["a"]),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    d = only(make_model, nodes, [1, 4, 8, 8], {"w": zeros(4, 4, 1, 1), "g": zeros(4) + 1, "b": zeros(4)})
    assert d.op_types == ("Conv", "BatchNormalization", "Add", "Relu")
    assert d.kind == "conv"
    assert d.flops == 2 * 64 * 16 + 256 * (2 + 1 + 1)
    assert d.bytes_in == d.bytes_out == 4 * 256
    assert d.bytes_weights == 4 * (16 + 4 + 4)


def test_half_precision(make_model):
    model = make_model(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        {"x": [1, 2, 4, 4]},
        ["y"],
        {"w": zeros(2, 2, 1, 1).astype(np.float16)},
    )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = 10
    d = load_network(model).layers[0].descriptor
    assert (d.dtype, d.bytes_in, d.bytes_weights) == ("float16", 64, 8)


def test_operators_from_elsewhere_are_other(make_model):
    node = helper.make_node("QuickGelu", ["x"], ["y"], domain="com.microsoft")
    model = make_model([node], {"x": [1, 4]}, ["y"])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    d = load_network(model).layers[0].descriptor
    assert (d.kind, d.flops, d.bytes_out) == ("elementwise", 0, 0)


@pytest.mark.parametrize(("name", "gflops", "megabytes"), [("squeezenet", 0.704, 4.94), ("resnet50", 8.2, 102)])
def test_published_figures(light_model, name, gflops, megabytes):
    network = load_network(light_model(name), keep_strides=True)
    assert network.flops / 1e9 == pytest.approx(gflops, rel=0.02)
    assert network.weight_bytes / 1e6 == pytest.approx(megabytes, rel=0.01)


@pytest.mark.parametrize("wrong", [["a"], [float("inf"), 1.0], [float("nan")]])
def test_attributes_of_another_type_on_operators_of_others_are_left_alone(make_model, wrong):
    node = helper.make_node("FusedConv", ["x", "w"], ["c"], domain="com.microsoft", strides=wrong)
    model = make_model(
        [node, helper.make_node("Relu", ["c"], ["y"])],
        {"x": [1, 3, 8, 8]},
        ["y"],
        {"w": np.ones((4, 3, 3, 3), np.float32)},
        **{"com.microsoft": 1},
    )
    assert load_network(model).layers
