"""What holds for ncnn alone: its translation of ONNX is right or refused, never wrong."""

from __future__ import annotations

import ctypes
import math
import mmap
import subprocess
import sys
from pathlib import Path

import idle_cpu
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ncnn_models import (
    ACTIVATIONS,
    ENGINE,
    Graph,
    by_ncnn,
    channels,
    check,
    check_if_onnxruntime_runs,
    floats,
    pads_of,
    pair,
    sizes,
    some,
)
from onnx import numpy_helper
from reference import by_onnxruntime

from corepipe.engine import _ncnn as ncnn_graph
from corepipe.errors import EngineError
from corepipe.network import zoo
from corepipe.network.load import load_network

LIGHT = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("light_*.onnx"))


@st.composite
def pools(draw):
    kind = draw(st.sampled_from(["MaxPool", "AveragePool"]))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    attributes = {"kernel_shape": kernel, "strides": draw(pair)}
    auto = draw(st.sampled_from(["NOTSET", "NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto == "NOTSET":
        attributes["pads"] = [min(p, k - 1) for p, k in zip(pads_of(draw), [*kernel, *kernel], strict=True)]
        attributes["ceil_mode"] = draw(st.integers(0, 1))
    else:
        attributes["auto_pad"] = auto
    if kind == "AveragePool":
        attributes["count_include_pad"] = draw(st.integers(0, 1))
    graph = Graph((1, draw(channels), draw(sizes), draw(sizes)))
    return graph, graph.add(kind, "x", **attributes)


@some
@given(pools())
def test_pools(made):
    check_if_onnxruntime_runs(*made)


# Graphs


@st.composite
def graphs(draw):
    """Some operators of all kinds, in a row and joined, from an image of odd size to one to three outputs."""
    opset = draw(st.sampled_from([12, 17, 18]))
    graph = Graph((1, draw(channels), draw(sizes), draw(sizes)), opset)
    tensors = [("x", graph.shape)]
    for _ in range(draw(st.integers(1, 7))):
        name, shape = draw(st.sampled_from(tensors[-3:]))
        kind = draw(st.sampled_from(sorted(STEPS)))
        tensors += STEPS[kind](draw, graph, name, shape, tensors) or []
    outputs = {tensors[-1][0]} | {name for name, _ in tensors[1:] if draw(st.integers(0, 5)) == 0}
    return graph, sorted(outputs - {"x"})


def step_unary(draw, graph, x, shape, _):
    kind = draw(st.sampled_from(["Abs", "Neg", "Floor", "Ceil", "Exp", "Identity", "Clip", *ACTIVATIONS]))
    kind = "Relu" if graph.opset < 14 and kind == "HardSwish" else kind
    if kind == "Exp":
        x = graph.add("Clip", x, "", graph.constant(np.float32(3)))
    return [(graph.add(kind, x, **ACTIVATIONS.get(kind, {})), shape)]


def step_constant(draw, graph, x, shape, _):
    kept = [size if draw(st.booleans()) else 1 for size in shape]
    first = draw(st.integers(0, len(shape)))
    value = graph.constant(np.abs(floats(*kept[first:], seed=3)) + np.float32(0.5))
    operands = draw(st.permutations([x, value]))
    kind = draw(st.sampled_from(["Add", "Sub", "Mul", "Max", "Min", "Div"]))
    if kind == "Div":
        operands = [x, value]
    return [(graph.add(kind, *operands), shape)]


def step_binary(draw, graph, x, shape, tensors):
    def fits(other):
        try:
            return np.broadcast_shapes(shape, other)
        except ValueError:
            return None

    other, size = draw(st.sampled_from([t for t in tensors if fits(t[1])]))
    kind = draw(st.sampled_from(["Add", "Sub", "Mul", "Max", "Min", "Sum"]))
    return [(graph.add(kind, *draw(st.permutations([x, other]))), fits(size))]


def step_gate(draw, graph, x, shape, _):
    if len(shape) != 4 or shape[0] != 1:
        return None
    gate = graph.add("Sigmoid", graph.add(draw(st.sampled_from(["GlobalAveragePool", "GlobalMaxPool"])), x))
    return [(gate, (*shape[:2], 1, 1)), (graph.add("Mul", *draw(st.permutations([x, gate]))), shape)]


def step_concat(draw, graph, x, shape, tensors):
    axis = draw(st.integers(0, len(shape) - 1))

    def fits(other):
        return len(other) == len(shape) and all(
            a == b for i, (a, b) in enumerate(zip(other, shape, strict=True)) if i != axis
        )

    parts = draw(st.lists(st.sampled_from([t for t in tensors if fits(t[1])]), min_size=1, max_size=3))
    parts = draw(st.permutations([(x, shape), *parts]))
    made = (*shape[:axis], sum(s[axis] for _, s in parts), *shape[axis + 1 :])
    return [(graph.add("Concat", *(n for n, _ in parts), axis=axis), made)]


def step_split(draw, graph, x, shape, _):
    axis = draw(st.integers(0, len(shape) - 1))
    if shape[axis] < 2 or graph.opset < 13:
        return None
    first = draw(st.integers(1, shape[axis] - 1))
    parts = (first, shape[axis] - first)
    names = graph.add("Split", x, graph.constant(np.array(parts)), outputs=2, axis=axis)
    return [(n, (*shape[:axis], size, *shape[axis + 1 :])) for n, size in zip(names, parts, strict=True)]


def step_slice(draw, graph, x, shape, _):
    axis = draw(st.integers(0, len(shape) - 1))
    start = draw(st.integers(0, shape[axis] - 1))
    end = draw(st.integers(start + 1, shape[axis]))
    wanted = [graph.constant(np.array([v])) for v in (start - shape[axis], end, axis)]
    return [(graph.add("Slice", x, *wanted), (*shape[:axis], end - start, *shape[axis + 1 :]))]


def step_softmax(draw, graph, x, shape, _):
    return [(graph.add("Softmax", x, axis=draw(st.integers(0, len(shape) - 1))), shape)]


def step_transpose(draw, graph, x, shape, _):
    order = draw(st.permutations(range(len(shape))))
    return [(graph.add("Transpose", x, perm=order), tuple(shape[i] for i in order))]


def step_shuffle(draw, graph, x, shape, _):
    if len(shape) != 4 or shape[0] != 1:
        return None
    groups = draw(st.sampled_from([g for g in (1, 2, 3, 4, 8) if shape[1] % g == 0]))
    inner = graph.constant(np.array([1, groups, -1, *shape[2:]]))
    turned = graph.add("Transpose", graph.add("Reshape", x, inner), perm=[0, 2, 1, 3, 4])
    return [(graph.add("Reshape", turned, graph.constant(np.array(shape))), shape)]


def step_reshape(draw, graph, x, shape, _):
    elements, made = math.prod(shape), []
    for _ in range(draw(st.integers(0, 4))):
        divisors = [d for d in (1, 2, 3, 4, 5, 7, 8, 16) if elements % d == 0]
        made.append(draw(st.sampled_from(divisors)))
        elements //= made[-1]
    made = (*made, elements)
    return [(graph.add("Reshape", x, graph.constant(np.array(made))), made)]


def step_view(draw, graph, x, shape, _):
    axis = draw(st.integers(0, len(shape)))
    kind = draw(st.sampled_from(["Flatten", "Dropout"]))
    if kind == "Dropout":
        return [(graph.add(kind, x), shape)]
    return [(graph.add(kind, x, axis=axis), (math.prod(shape[:axis]), math.prod(shape[axis:])))]


def step_image(draw, graph, x, shape, _):
    if len(shape) != 4 or shape[0] != 1:
        return None
    _, c, h, w = shape
    kind = draw(st.sampled_from(["pad", "nearest", "linear", "lrn", "norm", "mean", "conv", "pool", "prelu"]))
    if kind == "pad":
        pads = pads_of(draw, 2)
        mode = draw(st.sampled_from(["constant", "edge", "reflect"]))
        if mode == "reflect" and (max(pads[0], pads[2]) >= h or max(pads[1], pads[3]) >= w):
            return None
        values = [graph.constant(np.array([0, 0, *pads[:2], 0, 0, *pads[2:]])), graph.constant(np.float32(0.3))]
        made = (1, c, h + pads[0] + pads[2], w + pads[1] + pads[3])
        return [(graph.add("Pad", x, *values[: 1 + (mode == "constant")], mode=mode), made)]
    if kind in ("nearest", "linear"):
        up = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        scales = graph.constant(np.array([1, 1, *up], np.float32))
        mode = draw(st.sampled_from(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]))
        rounding = draw(st.sampled_from(["floor", "round_prefer_floor", "ceil", "round_prefer_ceil"]))
        attributes = {"mode": kind, "coordinate_transformation_mode": mode, "nearest_mode": rounding}
        return [(graph.add("Resize", x, "", scales, **attributes), (1, c, h * up[0], w * up[1]))]
    if kind == "lrn":
        return [(graph.add("LRN", x, size=draw(st.integers(1, 6)), alpha=0.3, beta=0.6, bias=1.5), shape)]
    if kind == "norm":
        statistics = [graph.weight(c) for _ in range(3)]
        return [(graph.add("BatchNormalization", x, *statistics, graph.constant(np.ones(c, np.float32))), shape)]
    if kind == "mean":
        if graph.opset >= 18:
            return [(graph.add("ReduceMean", x, graph.constant(np.array([2, 3])), keepdims=0), (1, c))]
        return [(graph.add("ReduceMean", x, axes=[-1, 2], keepdims=1), (1, c, 1, 1))]
    if kind == "prelu":
        slope = graph.weight(c, 1, 1) if draw(st.booleans()) else graph.weight(1)
        return [(graph.add("PRelu", x, slope), shape)]
    if kind == "pool":
        made = (1, c, (h + 1) // 2, (w + 1) // 2)
        if min(h, w) < 2:
            return None
        return [(graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), made)]
    out = draw(channels)
    return [(graph.add("Conv", x, graph.weight(out, c, 3, 3), pads=[1, 1, 1, 1]), (1, out, h, w))]


@pytest.mark.parametrize(
    ("given", "shape", "slope"),
    [((1, 12), (1, 3, 4), (3, 1)), ((1, 6), (2, 3), (3,)), ((1, 12), (1, 12), (12,)), ((1, 3, 4), (1, 3, 4), (3, 1))],
)
def test_a_slope_for_each_channel_of_what_is_no_image(given, shape, slope):
    graph = Graph(given)
    x = graph.add("Reshape", "x", graph.constant(np.array(shape)))
    data = graph.model(graph.add("PRelu", x, graph.weight(*slope)))
    assert check(data, {"x": floats(*given)}) == (shape[0] == 1)


def step_matrix(draw, graph, x, shape, _):
    out = draw(channels)
    if len(shape) == 2 and draw(st.booleans()):
        turned = draw(st.integers(0, 1))
        weight = graph.weight(*((out, shape[1]) if turned else (shape[1], out)))
        return [(graph.add("Gemm", x, weight, graph.weight(out), transB=turned, alpha=0.5, beta=2.0), (shape[0], out))]
    made = graph.add("MatMul", x, graph.weight(shape[-1], out))
    if draw(st.booleans()):
        made = graph.add("Add", made, graph.weight(out))
    return [(made, (*shape[:-1], out))]


STEPS = {name.removeprefix("step_"): value for name, value in globals().items() if name.startswith("step_")}


@some
@given(graphs())
def test_graphs(made):
    graph, outputs = made
    if not outputs:
        return
    data, x = graph.model(*outputs), {"x": floats(*graph.shape, seed=9)}
    try:
        by_onnxruntime(data, x)
    except Exception:
        # Some versions of an operator do not take what was drawn.
        return
    check(data, x)


# Networks


def without_softmax(model):
    """The same network up to its scores, which tell more than probabilities near 0 and 1."""
    last = model.graph.node[-1]
    assert last.op_type == "Softmax"
    model.graph.output[0].name = last.input[0]
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    del model.graph.node[-1]
    return model


def light(path):
    """A graph of the onnx package, with seeded weights in place of constant ones."""
    model, random = onnx.load(path), np.random.default_rng(0)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    filled = {n.output[0]: held[n.input[0]] for n in model.graph.node if n.op_type == "ConstantOfShape"}
    nodes = [node for node in model.graph.node if node.op_type != "ConstantOfShape"]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    shapes = {name: value.shape for name, value in held.items() if value.dtype == np.float32} | filled
    for name, shape in shapes.items():
        value = random.standard_normal(tuple(shape), np.float32)
        value *= math.sqrt(2 / max(math.prod(shape[1:]), 1)) if len(shape) > 1 else 0.2
        # Statistics, factors and offsets of channels: near one.
        held[name] = value if len(shape) > 1 else np.abs(value) + np.float32(0.9)
    for name in held.keys() - filled.keys() - shapes.keys() | shapes.keys():
        model.graph.initializer.append(numpy_helper.from_array(held[name], name))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
def test_the_graphs_of_the_onnx_package(path):
    model = without_softmax(load_network(light(path)).model) if path.stem != "light_densenet121" else light(path)
    held = {tensor.name for tensor in model.graph.initializer}
    (image,) = (value for value in model.graph.input if value.name not in held)
    shape = [dim.dim_value for dim in image.type.tensor_type.shape.dim]
    assert check(model.SerializeToString(), {image.name: floats(*shape)})


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet",
        "squeezenet",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("alexnet", "googlenet", "resnet50")),
    ],
)
def test_segments_of_networks(name):
    network, random = load_network(zoo.build(name)), np.random.default_rng(3)
    edges = [0, *network.legal_cuts(), len(network.layers)]
    for _ in range(6):
        start, stop = sorted(int(edge) for edge in random.choice(edges, 2, replace=False))
        segment = network.segment(start, stop)
        inputs = {t.name: np.abs(random.standard_normal(t.shape, np.float32)) for t in segment.inputs}
        assert check(segment.model.SerializeToString(), inputs, threads=1 + stop % 2)


def test_a_channel_shuffle_is_one_layer():
    graph = Graph((1, 12, 5, 7))
    inner = graph.add("Reshape", "x", graph.constant(np.array([1, 3, 4, 5, 7])))
    turned = graph.add("Transpose", inner, perm=[0, 2, 1, 3, 4])
    y = graph.add("Reshape", turned, graph.constant(np.array([1, 12, 5, 7])))
    data = graph.model(y)
    assert [layer.kind for layer in ncnn_graph.translate(data).layers] == ["Input", "ShuffleChannel"]
    assert check(data, {"x": floats(1, 12, 5, 7)}, 1e-6)


def test_what_follows_a_convolution_is_folded_into_it_unless_others_read_between():
    def kinds(shared):
        graph = Graph((1, 4, 9, 9))
        a = graph.add("Conv", "x", graph.weight(8, 4, 3, 3))
        statistics = [graph.constant(np.abs(floats(8)) + np.float32(0.5))] * 4
        b = graph.add("BatchNormalization", a, *statistics)
        y = graph.add("Relu", b)
        data = graph.model(y, *([a] if shared else []))
        assert check(data, {"x": floats(1, 4, 9, 9)})
        return [layer.kind for layer in ncnn_graph.translate(data).layers]

    assert kinds(False) == ["Input", "Convolution"]
    assert kinds(True) == ["Input", "Convolution", "Split", "Scale", "ReLU"]


# Refusals


def simple(kind, *inputs, shape=(1, 4, 6, 6), **attributes):
    graph = Graph(shape)
    names = [name if isinstance(name, str) else graph.constant(name) for name in inputs]
    return graph.model(graph.add(kind, *names, **attributes))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (simple("Sin", "x"), r"operator Sin \(node n0\) is not supported"),
        (simple("MaxPool", "x", kernel_shape=[2, 2], shape=(2, 4, 6, 6)), "not one image"),
        (simple("MaxPool", "x", kernel_shape=[2, 2, 2], shape=(1, 4, 6, 6, 6)), r"MaxPool \(node n0\)"),
        (simple("MaxPool", "x", kernel_shape=[2, 2], dilations=[2, 2]), "dilations"),
        (simple("Conv", "x", "x"), "weight is not constant"),
        (simple("LRN", "x", size=4), "size 4"),
        (simple("HardSigmoid", "x", alpha=-0.2), "slope"),
        (simple("Relu", "x", shape=("n", 4)), "shape of 'x' is not fixed"),
        (simple("Concat", "x", "x", axis=0, shape=(1, 2, 3, 4, 5)), "5 axes"),
        (simple("Pad", "x", np.array([0, 1, 0, 0, 0, 0, 0, 0])), "only of height and width"),
        (simple("Slice", "x", np.array([0]), np.array([6]), np.array([3]), np.array([2])), "steps"),
        (simple("Add", "x", np.float64(1)), "float64"),
        (simple("Conv", "x", floats(4, 4, 3, 3), pads=[10**6] * 4, strides=[10**6] * 2), "2 GiB"),
        (simple("MaxPool", "x", kernel_shape=[2, 2], strides=[2**40] * 2), "refuses"),
    ],
)
def test_what_it_refuses_it_names_before_anything_runs(data, message):
    with pytest.raises(EngineError, match=message) as error:
        ENGINE.compile(data, 1)
    assert str(error.value).startswith("ncnn refuses the model: ")
    assert len(str(error.value)) < 500


@some
@given(st.data())
def test_damaged_models_are_refused_or_run(data):
    graph = Graph((1, 4, 6, 6))
    y = graph.add("Conv", "x", graph.weight(4, 4, 3, 3), pads=[1, 1, 1, 1])
    y = graph.add("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    y = graph.add("Add", y, graph.add("Softmax", y, axis=1))
    y = graph.add("Reshape", y, graph.constant(np.array([1, -1])))
    damaged = bytearray(graph.model(y))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        program = ncnn_graph.translate(bytes(damaged))
        inputs = {name: floats(*given_.shape) for name, given_ in program.inputs.items()}
        by_ncnn(bytes(damaged), inputs, program.outputs)
    except EngineError:
        pass


# Memory and threads


class Fenced:
    """Floats that end where memory does that nobody may read."""

    def __init__(self, shape):
        size, page = math.prod(shape) * 4, mmap.PAGESIZE
        self._memory = mmap.mmap(-1, -(-size // page) * page + page)
        end = ctypes.addressof(ctypes.c_char.from_buffer(self._memory)) + len(self._memory) - page
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(end), ctypes.c_size_t(page), 0) == 0
        place = (ctypes.c_char * size).from_address(end - size)
        self.array = np.ndarray(shape, np.float32, memoryview(place))
        self.array[...] = floats(*shape)


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect by address")
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (5, 9), (13, 13), (27, 31)])
def test_inputs_are_not_read_beyond_their_end(size):
    for channel_count in (1, 3, 4, 8, 16):
        fenced = Fenced((1, channel_count, *size))
        for kind in ("Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "Relu", "depthwise"):
            graph = Graph(fenced.array.shape)
            if kind in ("Conv", "depthwise"):
                groups = channel_count if kind == "depthwise" else 1
                weight = graph.weight(channel_count, channel_count // groups, 3, 3)
                y = graph.add("Conv", "x", weight, pads=[1, 1, 1, 1], group=groups)
            elif kind.endswith("Pool") and not kind.startswith("Global"):
                y = graph.add(kind, "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])
            else:
                y = graph.add(kind, "x")
            by_ncnn(graph.model(y), {"x": fenced.array}, [y])


def test_a_handed_over_array_outlives_the_model():
    kept = []
    call = ENGINE.compile(simple("Conv", "x", floats(8, 4, 3, 3)), 1).bind(
        {"x": floats(1, 4, 6, 6)}, {"t0_0": kept.append}
    )
    call()
    before = kept[0].copy()
    del call
    np.testing.assert_array_equal(kept[0], before)


def test_threads_sleep_after_a_run_and_nothing_is_printed():
    command = [sys.executable, "-c", idle_cpu.SCRIPT, "ncnn"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert min(map(float, done.stdout.split())) < 0.005
    assert done.stderr == ""


# Profile


def test_a_profile_names_the_nodes_of_the_model():
    network = zoo.build("mobilenet")
    (run,) = ENGINE.profile(network.SerializeToString(), 1, {"data": floats(1, 3, 224, 224)}, 1)
    names = [kernel.node for kernel in run]
    assert set(names) <= {node.name or node.output[0] for node in network.graph.node}
    heavy = {node.name or node.output[0] for node in network.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")}
    assert heavy <= set(names)


LINEAR = [{"mode": "linear", "coordinate_transformation_mode": way} for way in ("half_pixel", "align_corners")]


@pytest.mark.parametrize("attributes", LINEAR)
@pytest.mark.parametrize(("size", "taken"), [((1, 1), True), ((1, 4), False), ((4, 1), False), ((2, 2), True)])
def test_a_single_row_or_column_is_not_stretched_by_what_lies_before_it(attributes, size, taken):
    graph = Graph((1, 3, *size))
    sizes = graph.constant(np.array([1, 3, 6, 8], np.int64))
    y = graph.add("Resize", "x", "", "", sizes, **attributes)
    assert check(graph.model(y), {"x": floats(1, 3, *size)}) == taken


@pytest.mark.parametrize("factor", range(1, 100))
def test_an_image_is_repeated_any_number_of_times_or_refused(factor):
    graph = Graph((1, 1, 2, 3))
    scales = graph.constant(np.array([1, 1, factor, factor], np.float32))
    y = graph.add("Resize", "x", "", scales, mode="nearest")
    taken = check(graph.model(y), {"x": floats(1, 1, 2, 3)})
    assert taken or factor > 40


@pytest.mark.parametrize("size", range(5, 10))
def test_the_last_window_of_a_pool_without_pads_may_reach_beyond_its_input(size):
    graph = Graph((1, 3, size, size))
    x = graph.add("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], auto_pad="VALID", ceil_mode=1)
    assert check(graph.model(graph.add("GlobalAveragePool", x)), {"x": floats(1, 3, size, size)})


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 2, 3, 4, 5), (1, 3, 4, 5), (1, 6)])
def test_one_slope_for_every_axis(shape):
    graph = Graph(shape)
    y = graph.add("PRelu", "x", graph.constant(np.full(1, 0.2, np.float32)))
    assert check(graph.model(y), {"x": floats(*shape)})
