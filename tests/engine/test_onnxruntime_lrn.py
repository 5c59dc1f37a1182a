"""LRN in simpler operators gives what the standard asks for.

ONNX Runtime's own kernel, which keeps a running sum over the channels, is no oracle for the last digits, nor for what
is not finite: that stays in its sum.
"""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from onnx import ModelProto, helper
from onnx import TensorProto as T

from corepipe import engine
from corepipe.engine._onnxruntime.spelling import spell_out
from corepipe.engine.onnxruntime import ENGINE
from corepipe.errors import EngineError

SETTINGS = {"size": 5, "alpha": 1e-4, "beta": 0.75, "bias": 1.0}


def lrn(shape, opset=17, kind=T.FLOAT, declared=True, domain="", **settings) -> ModelProto:
    """The LRN stands between two others, so that its input's shape is known only where it is declared."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["a"], name="before"),
        helper.make_node("LRN", ["a"], ["l"], name="norm", domain=domain, **settings),
        helper.make_node("Neg", ["l"], ["y"], name="after"),
    ]
    values = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y", "a")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:2], value_info=values[2:] if declared else [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model, x):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )[0]


def expected(x, size=5, alpha=1e-4, beta=0.75, bias=1.0):
    """What `lrn` computes, by the standard's definition, in float64."""
    a = (x + x).astype(np.float64)
    means = np.empty_like(a)
    for c in range(a.shape[1]):
        window = a[:, max(0, c - (size - 1) // 2) : c + size // 2 + 1]
        means[:, c] = (window * window).sum(axis=1) / size
    with np.errstate(invalid="ignore"):
        return -a / (bias + alpha * means) ** beta


@given(
    st.tuples(*(st.integers(1, most) for most in (3, 20, 9, 9))),
    st.integers(1, 9),
    st.floats(2**-16, 2, width=32),
    st.sampled_from([0.5, 0.75, 1.0]),
    st.floats(0.125, 4, width=32),
    st.integers(0, 2**32 - 1),
)
@example((1, 1, 1, 1), 9, 0.5, 0.75, 1.0, 0)
def test_the_same_but_for_rounding(shape, size, alpha, beta, bias, seed):
    model = lrn(shape, size=size, alpha=alpha, beta=beta, bias=bias)
    spelt = spell_out(model)
    assert spelt != model
    x = np.random.default_rng(seed).standard_normal(shape, np.float32) * 8
    np.testing.assert_allclose(run(spelt, x), expected(x, size, alpha, beta, bias), rtol=2e-5)


def test_the_defaults_are_those_of_the_standard():
    x = np.random.default_rng(0).standard_normal((1, 7, 3, 3), np.float32) * 90
    np.testing.assert_allclose(run(spell_out(lrn(x.shape, size=3)), x), expected(x, size=3), rtol=2e-5)
    np.testing.assert_allclose(run(lrn(x.shape, size=3), x), expected(x, size=3), rtol=2e-4)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e-40, 0.0])
def test_what_is_not_finite_harms_its_window_alone(value):
    x = np.random.default_rng(0).standard_normal((1, 9, 4, 5), np.float32)
    x[0, 4, 2, 3] = value
    model = lrn(x.shape, **SETTINGS)
    np.testing.assert_allclose(run(spell_out(model), x), expected(x), rtol=2e-5)


@pytest.mark.parametrize(
    "model",
    [
        lrn((1, 8, 4, 4), **SETTINGS | {"beta": 0.6}),
        lrn((1, 8, 4, 4), declared=False, **SETTINGS),
        lrn((1, 8, 4, "w"), **SETTINGS),
        lrn((1, 8, 4), **SETTINGS),
        lrn((1, 8, 4, 4), kind=T.FLOAT16, **SETTINGS),
        lrn((1, 8, 4, 4), opset=6, **SETTINGS),
        lrn((1, 8, 4, 4)),
        lrn((1, 8, 4, 4), domain="other", **SETTINGS),
    ],
    ids=[
        "other power", "no shape", "open shape", "three axes", "float16", "old operators", "no size", "other domain",
    ],
)  # fmt: skip
def test_all_else_stays_as_it_is(model):
    assert spell_out(model) is model


@pytest.mark.parametrize("data", [b'"\x03LRN', b'"\x03LRN' * 9, lrn((1, 8, 4, 4), **SETTINGS).SerializeToString()[:-3]])
def test_harmed_models_are_refused_by_name(data):
    with pytest.raises(EngineError, match="onnxruntime refuses the model"):
        ENGINE.compile(data, 1)


def test_the_engine_uses_it_and_counts_its_time_as_the_node_s():
    x = np.random.default_rng(0).standard_normal((1, 64, 56, 56), np.float32)
    (kernels,) = ENGINE.profile(engine.serialized("onnxruntime", lrn(x.shape, **SETTINGS)), 1, {"x": x}, 1)
    names = [kernel.node for kernel in kernels]
    assert set(names) == {"before", "norm", "after"}
    assert names.count("norm") > 1
