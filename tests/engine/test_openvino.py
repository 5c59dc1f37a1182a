"""What holds for OpenVINO alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from corepipe.errors import EngineError
from corepipe.network import zoo

ov = pytest.importorskip("openvino", reason="needs openvino: pip install openvino")
openvino = pytest.importorskip("corepipe.engine.openvino")

ENGINE = openvino.ENGINE
CPUINFO = Path("/proc/cpuinfo")
AVX2 = CPUINFO.exists() and " avx2 " in CPUINFO.read_text(encoding="ascii", errors="replace")

DIRECT = {"jit_avx512_f32", "jit_avx2_f32"}
x86_with_avx2 = pytest.mark.skipif(not AVX2, reason="the kernels that are named are of x86 with AVX2")


def floats(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32) / 8


def blocks(ending) -> onnx.ModelProto:
    """Convolutions with what makes OpenVINO rename, fuse, move and add nodes: LRN, batch norm, a residual sum."""
    node = helper.make_node
    ends = {
        "convolution": [node("Conv", ["sum", "w", "b"], ["y"], name="last", pads=[1, 1, 1, 1])],
        "relu": [node("Conv", ["sum", "w", "b"], ["e"], name="last", pads=[1, 1, 1, 1]), node("Relu", ["e"], ["y"])],
        "lrn": [node("LRN", ["sum"], ["y"], name="last", size=5)],
        "pointwise": [node("Sigmoid", ["sum"], ["t"], name="last"), node("Mul", ["t", "sum"], ["y"], name="times")],
    }
    nodes = [
        node("Conv", ["x", "w", "b"], ["a"], name="conv1", pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["r"], name="relu1"),
        node("LRN", ["r"], ["l"], name="norm1", size=5),
        node("Conv", ["l", "w"], ["c"], name="conv2", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "s", "b", "b", "s"], ["n"], name="bn2"),
        node("MaxPool", ["n"], ["p"], name="pool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Conv", ["p", "w1"], ["side"], name="side"),
        node("Add", ["side", "l"], ["sum"], name="add"),
        *ends[ending],
    ]
    constants = {"w": floats(16, 16, 3, 3), "w1": floats(16, 16, 1, 1), "b": floats(16), "s": np.abs(floats(16)) + 1}
    graph = helper.make_graph(
        nodes,
        "blocks",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 40, 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 40, 40])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("ending", ["convolution", "relu", "lrn", "pointwise"])
def test_every_kernel_is_named_after_a_node_of_the_model(ending):
    model = blocks(ending)
    (run,) = ENGINE.profile(model.SerializeToString(), 1, {"x": floats(1, 16, 40, 40)}, 1)
    names = {kernel.node for kernel in run}
    assert names <= {node.name for node in model.graph.node} | {o for node in model.graph.node for o in node.output}
    assert names & {"last", "e", "y", "side"}
    assert {"conv1", "norm1"} <= names
    assert names & {"conv2", "bn2"}
    assert names & {"side", "add"}


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet",
        "squeezenet",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("alexnet", "googlenet", "resnet50")),
    ],
)
def test_so_are_those_of_real_networks(name):
    model = zoo.build(name)
    size = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    (run,) = ENGINE.profile(model.SerializeToString(), 1, {"data": floats(1, 3, size, size)}, 1)
    known = {node.name for node in model.graph.node} | {o for node in model.graph.node for o in node.output}
    assert {kernel.node for kernel in run} <= known


def test_what_is_inserted_serves_its_reader_and_at_the_end_its_source():
    import openvino.opset13 as ops

    def named(node, name, layers=""):
        node.set_friendly_name(name)
        if layers:
            node.get_rt_info()["originalLayersNames"] = layers
        return node

    data = named(ops.parameter([4], np.float32), "data", "data")
    before = named(ops.relu(data), "data_abcd_acdb_one/WithoutBiases")
    one = named(ops.relu(before), "one/WithoutBiases", "one/WithoutBiases,one,clip")
    pool = named(ops.relu(one), "MaxPool_77", "MaxPool_77")
    between = named(ops.relu(pool), "MaxPool_77_acdb_abcd_Multiply_5")
    two = named(ops.relu(between), "Multiply_5", "Multiply_5,two,three")
    after = named(ops.relu(two), "Multiply_5_acdb_abcd_y")
    lone = named(ops.relu(named(ops.parameter([4], np.float32), "other")), "lone")
    model = ov.Model([ops.result(after), ops.result(lone)], [data, lone.input_value(0).get_node()])
    found = openvino.served(model, frozenset({"one", "one/WithoutBiases", "clip", "two", "three"}))
    assert {
        name: found.get(name)
        for name in (n.get_friendly_name() for n in (before, one, pool, between, two, after, lone))
    } == {
        "data_abcd_acdb_one/WithoutBiases": "one",
        "one/WithoutBiases": "one",
        "MaxPool_77": "two",
        "MaxPool_77_acdb_abcd_Multiply_5": "two",
        "Multiply_5": "two",
        "Multiply_5_acdb_abcd_y": "two",
        "lone": None,
    }


@given(st.lists(st.lists(st.integers(0, 5000), min_size=3, max_size=3), min_size=1, max_size=70))
def test_runs_are_told_from_the_means_so_far(times):
    taken = np.array(times, np.int64)
    count = np.arange(1, len(taken) + 1)[:, None]
    means = taken.cumsum(axis=0) // count
    runs = openvino.each_run(means)
    assert (runs >= 0).all()
    assert (np.abs(runs.cumsum(axis=0) - taken.cumsum(axis=0)) <= count).all()


def test_equal_runs_are_told_apart_from_a_slow_one_and_from_the_first():
    taken = np.full((60, 1), 300)
    taken[0] = 900
    taken[30] = 800
    runs = openvino.each_run(taken.cumsum(axis=0) // np.arange(1, 61)[:, None])[:, 0]
    assert runs[0] == pytest.approx(900, abs=1)
    assert runs[30] == pytest.approx(800, abs=62)
    assert np.abs(np.delete(runs, [0, 30]) - 300).max() < 62
    assert np.median(runs[2:]) == pytest.approx(300, abs=10)


@pytest.mark.parametrize("threads", [0, 1])
def test_what_it_computes_with(threads):
    compiled = ENGINE.compile(blocks("relu").SerializeToString(), threads).compiled
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == ov.Type.f32
    assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("NUM_STREAMS") == 1
    assert compiled.get_property("ENABLE_CPU_PINNING") is False


def kernels(model, kind):
    compiled = ENGINE.compile(model.SerializeToString(), 1).compiled
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    return [str(n["primitiveType"].astype(str)) for n in nodes if n["layerType"].astype(str) == kind]


def one_node(node, shape, ending=("Relu",), **constants):
    """A node, activations and the like behind it, and a pool where `ending` has one."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", None))]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    names = [node.output[0], *(f"e{i}" for i in range(len(ending) - 1)), "y"]
    settings = {"MaxPool": {"kernel_shape": [3, 3], "strides": [2, 2]}, "LRN": {"size": 5}}
    nodes = [node]
    for kind, source, target in zip(ending, names, names[1:], strict=False):
        inputs = [source, "w2"] if kind == "Conv" else [source]
        nodes.append(helper.make_node(kind, inputs, [target], **settings.get(kind, {})))
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@x86_with_avx2
@pytest.mark.parametrize(("channels", "direct"), [(1, True), (3, True), (4, False), (64, False)])
def test_a_convolution_that_reads_an_image_is_direct(channels, direct):
    conv = helper.make_node("Conv", ["x", "w", "b"], ["c"], strides=[2, 2])
    model = one_node(conv, [1, channels, 64, 64], ("Relu", "MaxPool"), w=floats(64, channels, 7, 7), b=floats(64))
    (kernel,) = kernels(model, "Convolution")
    assert (kernel in DIRECT) == direct, kernel


@x86_with_avx2
@pytest.mark.parametrize(
    ("ending", "direct"),
    [(["MaxPool"], True), (["Relu", "LRN"], True), (["Relu"], False), (["Relu", "Conv", "MaxPool"], False)],
    ids=["pool", "relu-lrn", "relu", "relu-conv-pool"],
)
def test_only_where_a_pool_reads_what_it_writes(ending, direct):
    conv = helper.make_node("Conv", ["x", "w"], ["c"], strides=[2, 2])
    model = one_node(conv, [1, 3, 64, 64], ending, w=floats(64, 3, 7, 7), w2=floats(64, 64, 3, 3))
    first = kernels(model, "Convolution")[0]
    assert (first in DIRECT) == direct, first


@x86_with_avx2
@pytest.mark.parametrize(("between", "direct"), [("Mul", True), ("Relu", False)])
def test_what_the_image_goes_through_first(between, direct):
    first = helper.make_node(between, ["x", "by"] if between == "Mul" else ["x"], ["s"])
    conv = helper.make_node("Conv", ["s", "w"], ["c"], strides=[2, 2])
    model = one_node(conv, [1, 3, 64, 64], ("MaxPool",), w=floats(64, 3, 7, 7), by=floats(1, 3, 1, 1))
    model.graph.node.insert(0, first)
    (kernel,) = kernels(model, "Convolution")
    assert (kernel in DIRECT) == direct, kernel


@x86_with_avx2
@pytest.mark.parametrize(("name", "direct"), [("squeezenet", True), ("mobilenet", False)])
def test_so_it_is_in_real_networks(name, direct):
    kernel = kernels(zoo.build(name), "Convolution")[0]
    assert (kernel in DIRECT) == direct, kernel


@x86_with_avx2
@pytest.mark.parametrize(("rows", "width", "plain"), [(1, 2048, True), (2, 2048, False), (1, 1024, False)])
def test_a_vector_by_large_weights_is_a_plain_product(rows, width, plain):
    gemm = helper.make_node("Gemm", ["x", "w"], ["c"], transB=1)
    (kernel,) = kernels(one_node(gemm, [rows, width], w=floats(2048, width)), "FullyConnected")
    assert (kernel == "jit_gemm_f32") == plain, kernel


@pytest.mark.parametrize("weights", ["input", "float16"])
def test_weights_that_are_not_float32_constants_leave_the_choice_to_the_library(weights):
    import openvino.opset13 as ops

    from corepipe.engine import _openvino_kernels

    x = ops.parameter([1, 3, 8, 8], np.float32)
    w = ops.parameter([4, 3, 3, 3], np.float32)
    constant = ops.constant(floats(4, 3, 3, 3).astype(np.float16))
    read, given = (w, [x, w]) if weights == "input" else (constant, [x])
    if weights == "float16":
        x = ops.parameter([1, 3, 8, 8], np.float16)
        given = [x]
    conv = ops.convolution(x, read, [1, 1], [0, 0], [0, 0], [1, 1])
    model = ov.Model([ops.result(conv)], given)
    _openvino_kernels.name_kernels(ov.Core(), model.get_ordered_ops())
    assert not list(conv.get_rt_info())


def test_shapes_that_are_not_fixed_and_float64_inside_are_refused():
    def model(nodes, shape):
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", None))]
        graph = helper.make_graph(nodes, "g", values[:1], values[1:])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()

    with pytest.raises(EngineError, match="shape of 'x' is not fixed"):
        ENGINE.compile(model([helper.make_node("Relu", ["x"], ["y"])], ["n", 4]), 1)
    inside = [
        helper.make_node("Cast", ["x"], ["d"], to=TensorProto.DOUBLE),
        helper.make_node("Exp", ["d"], ["e"]),
        helper.make_node("Cast", ["e"], ["y"], to=TensorProto.FLOAT),
    ]
    with pytest.raises(EngineError, match="float64"):
        ENGINE.compile(model(inside, [4]), 1)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "Exception from src/a.cpp:75:\nException from src/b.cpp:1:\nCheck 'x' failed at src/c.cpp:2:\nno room\n",
            "no room",
        ),
        ("", "RuntimeError"),
    ],
)
def test_a_failure_of_the_library_in_a_run(said, told):
    class Broken:
        def infer(self, **_):
            raise RuntimeError(said)

    x, y = floats(1, 16, 40, 40), np.empty((1, 16, 40, 40), np.float32)
    call = ENGINE.compile(blocks("relu").SerializeToString(), 1).bind({"x": x}, {"y": y})
    call.request = Broken()
    with pytest.raises(EngineError) as error:
        call()
    assert str(error.value) == f"openvino: run failed: {told}"
