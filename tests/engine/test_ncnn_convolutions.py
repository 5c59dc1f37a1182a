"""Convolutions on ncnn: those that are made ready for its Winograd kernels come out the same."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ncnn_models import (
    ACTIVATIONS,
    ENGINE,
    Graph,
    channels,
    check,
    check_if_onnxruntime_runs,
    floats,
    pads_of,
    pair,
    sizes,
    some,
)
from reference import by_onnxruntime

from corepipe.engine import _ncnn as ncnn_graph
from corepipe.engine._ncnn import winograd
from corepipe.errors import EngineError


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


@some
@given(transposed_convolutions())
def test_transposed_convolutions(made):
    check_if_onnxruntime_runs(*made)
