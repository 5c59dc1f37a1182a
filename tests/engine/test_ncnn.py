"""What holds for ncnn alone: its translation of ONNX is right or refused, never wrong."""

from __future__ import annotations

import ctypes
import math
import mmap
import subprocess
import sys
from pathlib import Path
from unittest import mock

import idle_cpu
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from corepipe.errors import EngineError
from corepipe.network import zoo
from corepipe.network.load import load_network

pytest.importorskip("ncnn", reason="needs ncnn: pip install ncnn")
engine = pytest.importorskip("corepipe.engine.ncnn")
ncnn_graph = pytest.importorskip("corepipe.engine._ncnn")
from corepipe.engine._ncnn import winograd  # noqa: E402

ENGINE = engine.ENGINE
LIGHT = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("light_*.onnx"))

some = settings(max_examples=60, deadline=None)


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


def by_onnxruntime(data, inputs):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


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


ACTIVATIONS = {
    "Relu": {}, "LeakyRelu": {"alpha": 0.2}, "Sigmoid": {}, "HardSwish": {}, "HardSigmoid": {"alpha": 0.3},
    "Elu": {"alpha": 0.7}, "Tanh": {},
}  # fmt: skip
sizes = st.integers(1, 15)
channels = st.sampled_from([1, 2, 3, 4, 5, 8, 12, 16, 17, 32])
pair = st.tuples(st.integers(1, 3), st.integers(1, 3))


def pads_of(draw, most=3):
    return draw(st.lists(st.integers(0, most), min_size=4, max_size=4))


@st.composite
def convolutions(draw):
    c, h, w = draw(channels), draw(sizes), draw(sizes)
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    groups = draw(st.sampled_from([g for g in (1, 1, 2, 4, c) if c % g == 0]))
    out = groups * draw(st.sampled_from([1, 2, 4, 8, 3]))
    attributes = {"group": groups, "strides": draw(pair), "dilations": draw(st.sampled_from([(1, 1), (2, 2), (1, 2)]))}
    auto = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto == "NOTSET":
        attributes["pads"] = pads_of(draw)
    else:
        attributes["auto_pad"] = auto
        if auto != "VALID":
            attributes["dilations"] = (1, 1)
            # What ONNX Runtime takes as negative pads is refused.
            attributes["strides"] = tuple(min(s, k + 1) for s, k in zip(attributes["strides"], kernel, strict=True))
    graph = Graph((1, c, h, w))
    inputs = ["x", graph.weight(out, c // groups, *kernel)]
    if draw(st.booleans()):
        inputs.append(graph.weight(out))
    y = graph.add("Conv", *inputs, **attributes)
    return graph, after(draw, graph, y, out)


def after(draw, graph, y, out):
    """What is fused into a convolution."""
    what = draw(st.sampled_from(["", "batch norm", "scale", "offset"]))
    if what == "batch norm":
        statistics = [graph.weight(out) for _ in range(3)]
        variance = graph.constant(np.abs(floats(out)) + np.float32(0.5))
        y = graph.add("BatchNormalization", y, *statistics, variance, epsilon=1e-3)
    elif what == "scale":
        y = graph.add("Mul", y, graph.weight(out, 1, 1))
    elif what == "offset":
        y = graph.add("Sub", graph.weight(1, out, 1, 1), y)
    kind = draw(st.sampled_from(["", "Clip", *ACTIVATIONS]))
    if kind == "Clip":
        y = graph.add("Clip", y, graph.constant(np.float32(-0.5)), graph.constant(np.float32(0.7)))
    elif kind:
        y = graph.add(kind, y, **ACTIVATIONS[kind])
    return y


@some
@given(convolutions())
def test_convolutions(made):
    graph, y = made
    data, x = graph.model(y), {"x": floats(*graph.shape, seed=9)}
    try:
        by_onnxruntime(data, x)
    except Exception:
        # A window larger than its input.
        with pytest.raises(EngineError):
            ENGINE.compile(data, 1)
        return
    assert check(data, x)


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (7, 7), (14, 14), (40, 33)])
@pytest.mark.parametrize("channels", [(16, 16), (160, 320), (512, 512)])
def test_winograd_tiles_are_small_where_weights_are_many_and_results_few(channels, size):
    graph = Graph((1, channels[0], *size))
    y = graph.add("Conv", "x", graph.weight(channels[1], channels[0], 3, 3), pads=[1, 1, 1, 1])
    data = graph.model(y)
    _, layer = ncnn_graph.translate(data).layers
    assert (30 in layer.params) == (channels[0] > 16 and max(size) <= 7)
    assert check(data, {"x": floats(*graph.shape)})


WIDE = {
    "5x5": {"kernel": (5, 5), "pads": [2, 2, 2, 2]},
    "5x5 of groups": {"kernel": (5, 5), "pads": [2, 2, 2, 2], "groups": 2},
    "6x5, uneven pads": {"kernel": (6, 5), "pads": [0, 3, 1, 2], "size": (26, 25)},
    "no pads at all": {"kernel": (6, 6), "pads": [0, 0, 0, 0], "size": (25, 27)},
    "SAME_LOWER": {"kernel": (5, 6), "auto_pad": "SAME_LOWER"},
    "one row of blocks": {"kernel": (3, 5), "pads": [1, 2, 1, 2]},
    "one channel": {"kernel": (5, 5), "pads": [2, 2, 2, 2], "channels": 1, "blocks": False},
    "two channels": {"kernel": (5, 5), "pads": [2, 2, 2, 2], "channels": 2},
    "not wide": {"kernel": (2, 3), "pads": [1, 1, 0, 1], "blocks": False},
    "few channels of many groups": {"kernel": (5, 5), "pads": [2, 2, 2, 2], "groups": 8, "blocks": False},
    "blocks mostly empty": {"kernel": (4, 4), "pads": [2, 2, 1, 1], "blocks": False},
    "too wide": {"kernel": (12, 12), "pads": [6, 6, 6, 6], "blocks": False},
    "few results": {"kernel": (5, 5), "pads": [2, 2, 2, 2], "size": (19, 30), "blocks": False},
    "7x7 by 2": {"kernel": (7, 7), "pads": [3, 3, 3, 3], "strides": [2, 2], "size": (43, 40)},
    "11x11 by 4": {"kernel": (11, 11), "pads": [0, 0, 0, 0], "strides": [4, 4], "size": (87, 90)},
    "6x6 by 2, of groups": {"kernel": (6, 6), "pads": [2, 2, 2, 2], "strides": [2, 2], "size": (41, 40), "groups": 2},
    "7x7 by 2, of groups": {
        "kernel": (7, 7),
        "pads": [3, 3, 2, 3],
        "strides": [2, 2],
        "size": (44, 43),
        "groups": 2,
    },
    "9x9 by 3": {"kernel": (9, 9), "pads": [4, 4, 4, 4], "strides": [3, 3], "size": (64, 64)},
    "7x7 by 3": {"kernel": (7, 7), "pads": [3, 3, 3, 3], "strides": [3, 3], "size": (64, 64), "blocks": False},
    "8 channels of 8": {"kernel": (5, 5), "pads": [2, 2, 2, 2], "channels": 2, "made": 8, "blocks": False},
    "narrow": {"kernel": (2, 9), "pads": [1, 4, 0, 4], "blocks": False},
    "3x3 by 2": {"kernel": (3, 3), "pads": [1, 1, 1, 1], "strides": [2, 2], "size": (40, 40), "blocks": False},
    "uneven strides": {"kernel": (5, 5), "pads": [2, 2, 2, 2], "strides": [2, 1], "size": (50, 50), "blocks": False},
    "dilations": {"kernel": (5, 5), "pads": [4, 4, 4, 4], "dilations": [1, 2], "blocks": False},
}


@pytest.mark.parametrize("name", WIDE)
def test_wide_convolutions_are_computed_by_3x3_blocks_where_that_gains(name):
    case = dict(WIDE[name])
    kernel, groups, channels = case.pop("kernel"), case.pop("groups", 1), case.pop("channels", 16)
    size, blocks, made = case.pop("size", (20, 23)), case.pop("blocks", True), case.pop("made", 24)
    graph = Graph((1, channels, *size))
    y = graph.add(
        "Conv", "x", graph.weight(made, channels // groups, *kernel), graph.weight(made), group=groups, **case
    )
    y = graph.add("Relu", graph.add("Mul", y, graph.weight(made, 1, 1)))
    data = graph.model(y)
    (layer,) = [layer for layer in ncnn_graph.translate(data).layers if layer.kind.startswith("Convolution")]
    assert ((layer.params[11], layer.params[1], layer.params[3]) == (3, 3, 1)) == blocks
    assert check(data, {"x": floats(*graph.shape)}, threads=1 + (groups > 1))


def test_what_several_wide_convolutions_read_stays_as_it_is():
    graph = Graph((1, 16, 24, 24))
    x = graph.add("Relu", "x")
    five = graph.add("Conv", x, graph.weight(16, 16, 5, 5), pads=[2, 2, 2, 2])
    seven = graph.add("Conv", x, graph.weight(16, 16, 7, 7), pads=[3, 3, 3, 3])
    assert check(graph.model(graph.add("Sum", x, five, seven), x), {"x": floats(*graph.shape)})


@pytest.mark.parametrize(("stride", "taken"), [(2, True), (3, False)])
def test_pads_that_onnxruntime_takes_as_negative_are_refused(stride, taken):
    graph = Graph((1, 1, stride, stride))
    y = graph.add("Conv", "x", graph.weight(1, 1, 1, 1), strides=[stride, stride], auto_pad="SAME_UPPER")
    assert check(graph.model(y), {"x": floats(*graph.shape)}) == taken


def test_an_image_that_would_be_too_large_in_blocks_is_not_refused():
    graph = Graph((1, 64, 1024, 1024))
    data = graph.model(graph.add("Conv", "x", graph.weight(64, 64, 7, 7), pads=[3, 3, 3, 3]))
    assert [layer.kind for layer in ncnn_graph.translate(data).layers] == ["Input", "Convolution"]


@pytest.mark.parametrize(("pads", "in_place"), [([3, 3, 3, 3], True), ([0, 0, 0, 0], False)])
def test_an_input_that_is_padded_first_is_read_where_it_lies(pads, in_place):
    graph = Graph((1, 16, 27, 27))
    data = graph.model(graph.add("Conv", "x", graph.weight(16, 16, 6, 6), pads=pads))
    assert ncnn_graph.translate(data).inputs["x"].in_place == in_place
    assert check(data, {"x": floats(*graph.shape)})


@st.composite
def convolutions_without_dilation(draw):
    groups, step = draw(st.sampled_from([1, 1, 2, 3])), draw(st.integers(1, 5))
    graph = Graph((1, groups * draw(st.integers(1, 3)), draw(st.integers(1, 30)), draw(st.integers(1, 30))))
    kernel = [draw(st.integers(1, min(12, size))) for size in graph.shape[2:]]
    weight = graph.weight(groups * draw(st.integers(1, 3)), graph.shape[1] // groups, *kernel)
    pads = draw(st.sampled_from([{"pads": pads_of(draw, 5)}, {"auto_pad": "SAME_LOWER"}, {"auto_pad": "SAME_UPPER"}]))
    return graph, graph.add("Conv", "x", weight, group=groups, strides=[step, step], **pads)


@some
@given(convolutions_without_dilation())
def test_whatever_is_computed_by_blocks_comes_out_the_same(made):
    graph, y = made
    x = {"x": floats(*graph.shape, seed=9)}
    taken = check(graph.model(y), x)
    with mock.patch.object(winograd, "gains_by_blocks", return_value=True):
        assert check(graph.model(y), x) == taken


@st.composite
def transposed_convolutions(draw):
    c, h, w = draw(channels), draw(sizes), draw(sizes)
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    groups = draw(st.sampled_from([g for g in (1, 1, 2, c) if c % g == 0]))
    each = draw(st.sampled_from([1, 2, 4, 8]))
    strides = draw(pair)
    graph = Graph((1, c, h, w))
    inputs = ["x", graph.weight(c, each, *kernel)]
    if draw(st.booleans()):
        inputs.append(graph.weight(each * groups))
    y = graph.add(
        "ConvTranspose",
        *inputs,
        group=groups,
        strides=strides,
        dilations=draw(st.sampled_from([(1, 1), (2, 2), (2, 1)])),
        pads=pads_of(draw, 1),
        output_padding=[draw(st.integers(0, s - 1)) for s in strides],
    )
    return graph, after(draw, graph, y, each * groups)


def check_if_onnxruntime_runs(graph, y):
    data, x = graph.model(y), {"x": floats(*graph.shape, seed=9)}
    try:
        by_onnxruntime(data, x)
    except Exception:
        return
    check(data, x)


@some
@given(transposed_convolutions())
def test_transposed_convolutions(made):
    check_if_onnxruntime_runs(*made)


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
