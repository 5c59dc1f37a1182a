"""Models written node by node, held against ONNX Runtime on ncnn; whoever imports this is skipped where ncnn is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from reference import by_onnxruntime

from corepipe.errors import EngineError

pytest.importorskip("ncnn", reason="needs ncnn: pip install ncnn")
ENGINE = pytest.importorskip("corepipe.engine.ncnn").ENGINE

some = settings(max_examples=60, deadline=None)
sizes = st.integers(1, 15)
channels = st.sampled_from([1, 2, 3, 4, 5, 8, 12, 16, 17, 32])
pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
ACTIVATIONS = {
    "Relu": {}, "LeakyRelu": {"alpha": 0.2}, "Sigmoid": {}, "HardSwish": {}, "HardSigmoid": {"alpha": 0.3},
    "Elu": {"alpha": 0.7}, "Tanh": {},
}  # fmt: skip


def floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


class Graph:
    """A model written node by node; seeded weights."""

    def __init__(self, shape, opset=17):
        self.nodes, self.constants, self.opset = [], {}, opset
        self.shape = tuple(shape)

    def constant(self, value):
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def weight(self, *shape):
        scale = 1 / math.sqrt(max(math.prod(shape[1:]), 1))
        return self.constant(floats(*shape, seed=len(self.constants)) * np.float32(scale))

    def add(self, kind, *inputs, outputs=1, **attributes):
        made = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), made, name=f"n{len(self.nodes)}", **attributes))
        return made[0] if outputs == 1 else made

    def model(self, *outputs):
        values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)]
        made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        held = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph(self.nodes, "test", values, made, held)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        return model.SerializeToString()


def by_ncnn(data, inputs, names, threads=1):
    got = {}
    targets = {name: lambda array, name=name: got.update({name: array.copy()}) for name in names}
    ENGINE.compile(data, threads).bind(inputs, targets)()
    return got


def check(data, inputs, tolerance=1e-4, threads=1):
    """Whether ncnn takes the model; if so, its results are those of ONNX Runtime."""
    want = by_onnxruntime(data, inputs)
    given_ = {name: value.copy() for name, value in inputs.items()}
    try:
        got = by_ncnn(data, given_, want, threads)
    except EngineError as error:
        assert str(error).startswith("ncnn refuses the model: "), error
        return False
    for name, value in want.items():
        assert got[name].shape == value.shape
        scale = float(np.abs(value).max()) + 1e-6
        np.testing.assert_allclose(got[name] / scale, value / scale, rtol=0, atol=tolerance)
    for name, value in inputs.items():
        np.testing.assert_array_equal(given_[name], value)
    return True


def check_if_onnxruntime_runs(graph, y):
    data, x = graph.model(y), {"x": floats(*graph.shape, seed=9)}
    try:
        by_onnxruntime(data, x)
    except Exception:
        return
    check(data, x)


def pads_of(draw, most=3):
    return draw(st.lists(st.integers(0, most), min_size=4, max_size=4))
