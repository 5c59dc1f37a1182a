"""A vector by many weights as a convolution gives the same product, and only what was measured to gain is spelt so."""

from __future__ import annotations

import platform

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, checker, helper, numpy_helper
from onnx import TensorProto as T

from corepipe import engine
from corepipe.cost.measuring import layer_of, name_by_layer
from corepipe.engine._onnxruntime.spelling import spell_out
from corepipe.engine.base import on_x86
from corepipe.engine.onnxruntime import ENGINE
from corepipe.network.load import load_network

ROWS, COLUMNS = 1000, 504
ON_X86 = on_x86()


@pytest.fixture(autouse=True)
def x86(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


def product(
    rows=ROWS, columns=COLUMNS, operator="Gemm", frames=1, bias=True, kind=np.float32, declared=True, shared=0, seed=0,
    domain="", opset=17, within=False, **settings,
) -> ModelProto:  # fmt: skip
    """y = 2 x W + b; `shared` more nodes read the weights, `within` one of them in the graph of an `If`."""
    generator = np.random.default_rng(seed)
    weights = (generator.standard_normal((rows, columns)) / rows**0.5).astype(kind)
    held = [numpy_helper.from_array(weights.T.copy() if settings.get("transB") else weights, "w")]
    if bias and operator == "Gemm":
        held.append(numpy_helper.from_array(generator.standard_normal(columns).astype(kind), "b"))
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    nodes = [
        helper.make_node("Add", ["x", "x"], ["a"], name="before"),
        helper.make_node(operator, ["a", *(t.name for t in held)], ["p"], name="fc", domain=domain, **settings),
        helper.make_node("Neg", ["p"], ["y"], name="after"),
    ]
    ends = [helper.make_tensor_value_info("y", element, [frames, columns])]
    for number in range(shared):
        nodes.append(helper.make_node("ReduceMax", ["w"], [f"m{number}"], keepdims=0))
        ends.append(helper.make_tensor_value_info(f"m{number}", element, []))
    if within:
        inner = helper.make_node("ReduceMax", ["w"], ["most"], keepdims=0)
        branch = helper.make_graph([inner], "branch", [], [helper.make_tensor_value_info("most", element, [])])
        held.append(numpy_helper.from_array(np.array(True), "yes"))
        nodes.append(helper.make_node("If", ["yes"], ["chosen"], then_branch=branch, else_branch=branch))
        ends.append(helper.make_tensor_value_info("chosen", element, []))
    inputs, middle = (helper.make_tensor_value_info(name, element, [frames, rows]) for name in "xa")
    graph = helper.make_graph(nodes, "g", [inputs], ends, held, value_info=[middle] if declared else [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(data: bytes, x, columns):
    y = np.empty((1, columns), np.float32)
    ENGINE.compile(data, 1).bind({"x": x}, {"y": y})()
    return y


@settings(max_examples=25)
@given(
    st.integers(64, 600).map(lambda n: 4 * n), st.integers(256, 2200), st.sampled_from(["Gemm", "MatMul"]),
    st.booleans(), st.booleans(), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_the_same_but_for_rounding(rows, columns, operator, bias, transposed, seed):
    columns = max(columns, -(-500_000 // rows))
    attributes = {"transB": int(transposed)} if operator == "Gemm" else {}
    model = product(rows, columns, operator, bias=bias, seed=seed, **attributes)
    plain = model.SerializeToString()
    spelt = spell_out(model)
    assert [node.op_type for node in spelt.graph.node].count("Conv") == 1
    assert model.SerializeToString() == plain  # it is another one
    checker.check_model(spelt, full_check=True)
    x = np.random.default_rng(seed).standard_normal((1, rows), np.float32)
    held = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    weights = held["w"].T if attributes.get("transB") else held["w"]
    want = -((x + x) @ weights + held.get("b", 0))
    for data in (plain, engine.serialized("onnxruntime", model)):
        np.testing.assert_allclose(run(data, x, columns), want, rtol=1e-4, atol=1e-5)


def declared(where):
    """The weights, which a constant is, are declared there too."""
    model = product()
    getattr(model.graph, where).append(helper.make_tensor_value_info("w", T.FLOAT, [ROWS, COLUMNS]))
    return model


def with_bias(values):
    model = product(bias=False)
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.float32), "b"))
    model.graph.node[1].input.append("b")
    return model


@pytest.mark.parametrize(
    "model",
    [
        product(frames=2),
        product(ROWS, 496),
        product(2002, 300),
        product(4000, 252),
        product(252, 4000),
        product(kind=np.float64),
        product(kind=np.float16),
        product(alpha=0.5),
        product(beta=2.0),
        product(transA=1),
        product(declared=False),
        product(shared=1),
        product(within=True),
        declared("input"),
        declared("output"),
        declared("value_info"),
        with_bias(np.zeros((1, COLUMNS))),
        with_bias(0),
        product(opset=6),
        product(domain="other"),
        product(operator="MatMulInteger"),
    ],
    ids=[
        "two rows", "few weights", "no multiple of four", "few columns", "few rows", "float64", "float16", "alpha",
        "beta", "transA", "no shape", "weights read twice", "weights read within", "weights an input",
        "weights an output", "weights of declared shape", "bias of two axes",
        "bias for all", "old operators", "other domain", "another operator",
    ],
)  # fmt: skip
def test_all_else_stays_as_it_is(model):
    assert spell_out(model) is model


def two_products(shared_bias: bool) -> ModelProto:
    """Two in a row, unnamed, from the frame to the result; the first has an empty third input, or both one bias."""
    generator = np.random.default_rng(0)
    held = [
        numpy_helper.from_array(generator.standard_normal((1000, 1000)).astype(np.float32) / 32, name) for name in "vw"
    ]
    held.append(numpy_helper.from_array(generator.standard_normal(1000).astype(np.float32), "b"))
    nodes = [
        helper.make_node("Gemm", ["x", "v", "b" if shared_bias else ""], ["h"], transB=1),
        helper.make_node("Gemm", ["h", "w", "b"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, T.FLOAT, [1, 1000]) for name in "xyh"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:2], held, value_info=values[2:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("shared_bias", [False, True])
def test_one_after_the_other_from_the_frame_to_the_result(shared_bias):
    model = two_products(shared_bias)
    spelt = spell_out(model)
    assert [node.op_type for node in spelt.graph.node].count("Conv") == 2
    assert len({node.name for node in spelt.graph.node}) == len(spelt.graph.node)
    checker.check_model(spelt, full_check=True)
    x = np.random.default_rng(1).standard_normal((1, 1000), np.float32)
    got = run(engine.serialized("onnxruntime", model), x, 1000)
    np.testing.assert_allclose(got, run(model.SerializeToString(), x, 1000), rtol=1e-4, atol=1e-5)


def test_other_cpus_and_engines_stay_with_the_product(monkeypatch):
    model = product()
    plain = model.SerializeToString()
    assert engine.serialized("onnxruntime", model) != plain
    assert engine.serialized("openvino", model) == plain
    assert engine.serialized("ncnn", model) == plain
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert engine.serialized("onnxruntime", model) == plain


@pytest.mark.parametrize("output", ["y", 'a "name"', "of__part_one", ""])
@pytest.mark.parametrize("transposed", [0, 1])
def test_its_time_is_the_layer_s(transposed, output):
    model = product(2000, 1000, transB=transposed)
    if output:  # of the product itself, which is the network's
        del model.graph.node[2]
        model.graph.node[1].output[0] = model.graph.output[0].name = output
    network = load_network(model)
    named = name_by_layer(network, network.segment(0, len(network.layers)))
    data = engine.serialized("onnxruntime", named.model)
    assert data != named.model.SerializeToString()
    (kernels,) = ENGINE.profile(data, 1, {"x": np.ones((1, 2000), np.float32)}, 1)
    owner = {name: layer.index for layer in network.layers for name in layer.outputs}
    (dense_layer,) = (layer.index for layer in network.layers if "Gemm" in layer.descriptor.op_types)
    longest = max(kernels, key=lambda kernel: kernel.seconds)
    assert layer_of(longest.node, owner, -1) == dense_layer


@pytest.mark.parametrize("transposed", [0, 1])
def test_weights_are_turned_and_put_in_blocks_once(transposed, tmp_path):
    """When it compiles: what is left to run is the convolution, on x86 with the blocked kernel."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(engine.serialized("onnxruntime", product(transB=transposed)), options)
    made = onnx.load(options.optimized_model_filepath)
    operators = [node.op_type for node in made.graph.node]
    assert operators.count("Conv") == 1
    assert "Transpose" not in operators
    (conv,) = (node for node in made.graph.node if node.op_type == "Conv")
    assert conv.domain.endswith("nchwc") or not ON_X86
