"""Nodes that make the onnx library's shape inference crash or hang are refused before it sees them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser

from corepipe.errors import FrameError, ModelError
from corepipe.network.infer import Inference
from corepipe.network.inputs import check_frame
from corepipe.network.load import DEFAULT_LIMITS, Limits, load_network
from corepipe.network.model import TensorInfo

HEAD = '<ir_version: 8, opset_import: ["" : 17]> g '


def load(text):
    return load_network(parser.parse_model(HEAD + text))


@pytest.mark.parametrize(
    "equation",
    ["i.j", "i....j", "ij.", "ij,jk->ik", "ijk->i", "", "->", "i1->i", "...ijk->...i", "ij->i.j", "ij,", "é"],
)
def test_an_equation_that_does_not_fit_is_refused(equation):
    with pytest.raises(ModelError, match=r"'y' \(Einsum\): the equation .* does not fit its inputs"):
        load(f'(float[2, 3] x) => (float[M] y) {{ y = Einsum <equation: string = "{equation}"> (x) }}')


@pytest.mark.parametrize(
    ("equation", "shape"),
    [("ij->ji", (3, 2)), (" i j -> j ", (3,)), ("ij", (2, 3)), ("...j->j...", (3, 2)), ("...ij->...ij", (2, 3))],
)
def test_an_equation_that_fits_is_taken(equation, shape):
    network = load(f'(float[2, 3] x) => (float y) {{ y = Einsum <equation: string = "{equation}"> (x) }}')
    assert network.outputs[0].shape == shape


def test_two_operands_are_taken():
    text = '(float[2, 3] x, float[3, 4] w) => (float y) { y = Einsum <equation: string = "ij,jk->ik"> (x, w) }'
    assert load(text).outputs[0].shape == (2, 4)


@pytest.mark.parametrize("batch_dims", [-1, -2, -(10**11)])
def test_batch_dims_below_zero_are_refused(batch_dims):
    with pytest.raises(ModelError, match="batch_dims is below zero; export the model again"):
        load(
            f"(float[2, 3] x) => (float y) <int64[2, 1] i = {{0, 1}}> "
            f"{{ y = GatherND <batch_dims: int = {batch_dims}> (x, i) }}"
        )


@pytest.mark.parametrize("count", [1, 3, 2**31])
def test_a_split_into_another_number_of_parts_is_refused(count):
    """onnx would make a list of so many sizes."""
    text = f"(float[6] x) => (float a, float b) {{ a, b = Split <num_outputs: int = {count}> (x) }}"
    with pytest.raises(ModelError, match="num_outputs is not the number of its outputs, 2"):
        load_network(parser.parse_model(HEAD.replace("17", "18") + text))


def test_inference_is_not_asked_about_inputs_of_no_type():
    text = '<ir_version: 10, opset_import: ["" : 20]> g (string[N] x) => (bool[N] y) { y = RegexFullMatch (x) }'
    model = parser.parse_model(text)
    inference = Inference(model, "m", DEFAULT_LIMITS)
    assert inference.outputs(model.graph.node[0], {}, {}) == {}


def test_a_tensor_that_is_a_segment_is_refused(make_model):
    node = onnx.helper.make_node("Add", ["x", "k"], ["y"])
    model = make_model([node], {"x": [2]}, ["y"], {"k": np.ones(2, np.float32)})
    model.graph.initializer[0].segment.begin = 0
    with pytest.raises(ModelError, match="'k' is a segment of another"):
        load_network(model)


def test_more_tensors_alive_than_cuts_can_name_are_refused(make_model):
    count = 60
    nodes = [onnx.helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(count)]
    nodes.append(onnx.helper.make_node("Sum", [f"t{i}" for i in range(count + 1)], ["y"]))
    model = make_model(nodes, {"t0": [1, 100]}, ["y"])
    assert len(load_network(model).layers) > 40
    with pytest.raises(ModelError, match="tensors cross the cuts between its"):
        load_network(model, limits=Limits(crossings=1000))


def test_what_only_looks_like_an_array_is_a_bad_frame():
    class OnAnotherDevice:
        def __array__(self, *_, **__):
            raise TypeError("cannot be turned into an array")

    with pytest.raises(FrameError, match="not an array: cannot be turned"):
        check_frame(OnAnotherDevice(), [TensorInfo("x", np.dtype(np.float32), (1, 3))], "frame 0")
