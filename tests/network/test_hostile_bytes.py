"""Whatever bytes a model file holds: it loads, or it is refused by name."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from corepipe.errors import CorepipeError, ModelError
from corepipe.network.load import load_network

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="session")
def content(make_model):
    """A small model with shape arithmetic and a subgraph."""
    outputs = {name: [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)] for name in ("t", "e")}
    then = helper.make_graph([helper.make_node("Add", ["c", "k"], ["t"])], "then", [], outputs["t"])
    other = helper.make_graph([helper.make_node("Mul", ["c", "c"], ["e"])], "else", [], outputs["e"])
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("ReduceSum", ["c"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["flag"]),
        helper.make_node("If", ["flag"], ["d"], then_branch=then, else_branch=other),
        helper.make_node("Shape", ["d"], ["shape"]),
        helper.make_node("Slice", ["shape", "first", "second"], ["n"]),
        helper.make_node("Concat", ["n", "minus"], ["target"], axis=0),
        helper.make_node("Reshape", ["d", "target"], ["f"]),
        helper.make_node("Softmax", ["f"], ["y"]),
    ]
    constants = {
        "w": np.ones((2, 1, 3, 3), np.float32),
        "k": np.ones((1, 2, 1, 1), np.float32),
        "zero": np.float32(0),
        "first": np.array([0]),
        "second": np.array([1]),
        "minus": np.array([-1]),
    }
    return make_model(nodes, {"x": ["N", 1, 4, 4]}, ["y"], constants).SerializeToString()


def test_unharmed(content, tmp_path):
    (tmp_path / "m.onnx").write_bytes(content)
    assert load_network(tmp_path / "m.onnx").outputs[0].shape == (1, 32)


@QUICK
@given(data=st.data())
def test_cut_short(content, tmp_path, data):
    (tmp_path / "m.onnx").write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(ModelError, match=r"m\.onnx"):
        load_network(tmp_path / "m.onnx")


@QUICK
@given(data=st.data())
def test_bytes_changed(content, tmp_path, data):
    harmed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        harmed[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "m.onnx").write_bytes(harmed)
    with contextlib.suppress(CorepipeError):
        load_network(tmp_path / "m.onnx")


@QUICK
@given(data=st.binary(max_size=200))
def test_any_bytes(tmp_path, data):
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(ModelError, match=r"m\.onnx"):
        load_network(tmp_path / "m.onnx")
