"""Convolutions and matrix products with constant weights."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from corepipe.engine._ncnn import winograd
from corepipe.engine._ncnn.graph import SHAPE_HINT, Refused, Tensor
from corepipe.engine._ncnn.node import Node
from corepipe.engine._ncnn.windows import windows


def conv(node: Node) -> Tensor:
    """Conv."""
    weight = _weight(node, 1, 4)
    given = node.image()
    groups = int(node.attribute("group", 1))
    made, each = weight.shape[:2]
    channels = given.shape[1]
    if groups < 1 or channels != each * groups or made % groups:
        raise Refused("its weight does not fit its input")
    kernel = node.integers("kernel_shape") or weight.shape[2:]
    if kernel != weight.shape[2:]:
        raise Refused("its weight does not fit its kernel_shape")
    at = windows(node, kernel, given.shape[1:])
    if winograd.gains_by_blocks(at, channels, made, groups):
        given, weight, at = winograd.in_blocks(node.builder, given, weight, at, groups)
    kind = "Convolution" if groups == 1 else "ConvolutionDepthWise"
    linear = node.builder.linear(kind, given, weight, _bias(node, 2, made))
    linear.layer.params = {
        1: at.kernel[1], 11: at.kernel[0], 2: at.dilations[1], 12: at.dilations[0], 3: at.strides[1],
        13: at.strides[0], 4: at.before[1], 14: at.before[0], 15: at.after[1], 16: at.after[0],
    }  # fmt: skip
    if groups > 1:
        linear.layer.params[7] = groups
    elif winograd.streams_weights(at, weight.shape[1], made):
        linear.layer.params[SHAPE_HINT] = (3, 1, 1, made)
    return Tensor(linear.layer.tops[0], (1, made, *at.out), (made, *at.out), linear)


def conv_transpose(node: Node) -> Tensor:
    """ConvTranspose, where it tells its pads."""
    weight = _weight(node, 1, 4)
    given = node.image()
    groups = int(node.attribute("group", 1))
    channels, each = weight.shape[:2]
    if groups < 1 or channels != given.shape[1] or channels % groups:
        raise Refused("its weight does not fit its input")
    if node.integers("output_shape") or node.attribute("auto_pad", "NOTSET") != "NOTSET":
        raise Refused("output_shape or auto_pad")
    kernel = node.integers("kernel_shape") or weight.shape[2:]
    strides = node.integers("strides") or (1, 1)
    dilations = node.integers("dilations") or (1, 1)
    pads = node.integers("pads") or (0, 0, 0, 0)
    added = node.integers("output_padding") or (0, 0)
    if kernel != weight.shape[2:] or min(*strides, *dilations) < 1 or min(*pads, *added) < 0:
        raise Refused("kernel, strides or pads out of range")
    full = [
        (s - 1) * t + d * (k - 1) + 1 for s, t, d, k in zip(given.shape[2:], strides, dilations, kernel, strict=True)
    ]
    out = [full[i] + added[i] - pads[i] - pads[2 + i] for i in range(2)]
    if min(out) < 1 or any(a >= max(s, d) for a, s, d in zip(added, strides, dilations, strict=True)):
        raise Refused("pads out of range")
    made = each * groups
    turned = weight.reshape(groups, channels // groups, each, *kernel).transpose(0, 2, 1, 3, 4)
    kind = "Deconvolution" if groups == 1 else "DeconvolutionDepthWise"
    turned = np.ascontiguousarray(turned).reshape(made, channels // groups, *kernel)
    linear = node.builder.linear(kind, given, turned, _bias(node, 2, made))
    linear.layer.params = {
        1: kernel[1], 11: kernel[0], 2: dilations[1], 12: dilations[0], 3: strides[1], 13: strides[0],
        4: pads[1], 14: pads[0], 15: pads[3], 16: pads[2], 18: added[1], 19: added[0],
    }  # fmt: skip
    if groups > 1:
        linear.layer.params[7] = groups
    return Tensor(linear.layer.tops[0], (1, made, *out), (made, *out), linear)


def gemm(node: Node) -> Tensor:
    """Gemm with a constant B, and a constant C that is the same in every row."""
    weight = node.floats(1, "B") * float(node.attribute("alpha", 1.0))
    given = node.tensor(0)
    if int(node.attribute("transA", 0)):
        raise Refused("transA")
    if len(given.shape) != 2 or weight.ndim != 2:
        raise Refused("its inputs are no matrices")
    if not int(node.attribute("transB", 0)):
        weight = weight.T
    bias = None
    if node.has(2):
        added = node.floats(2, "C") * float(node.attribute("beta", 1.0))
        rows = added.reshape((1,) * (2 - added.ndim) + added.shape)
        if added.ndim > 2 or rows.shape[0] != 1 or rows.shape[1] not in (1, len(weight)):
            raise Refused(f"its C is {list(added.shape)}")
        bias = np.broadcast_to(rows[0], len(weight)).astype(np.float32)
    return _product(node, given, weight.astype(np.float32), bias)


def matmul(node: Node) -> Tensor:
    """MatMul with a constant matrix on the right."""
    weight = node.floats(1, "right matrix").astype(np.float32)
    given = node.tensor(0)
    if weight.ndim != 2 or not given.shape:
        raise Refused("its right side is no matrix")
    return _product(node, given, np.ascontiguousarray(weight.T), None)


def _product(node: Node, given: Tensor, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> Tensor:
    """Rows of `given` by a weight of [out, in]."""
    out, each = weight.shape
    if given.shape[-1] != each:
        raise Refused("its matrices do not fit each other")
    rows = math.prod(given.shape[:-1])
    given_shape = given.shape
    given = node.builder.place(given, (each,) if rows == 1 else (rows, each))
    linear = node.builder.linear("InnerProduct", given, np.ascontiguousarray(weight), bias)
    return Tensor(linear.layer.tops[0], (*given_shape[:-1], out), (out,) if rows == 1 else (rows, out), linear)


def _weight(node: Node, index: int, rank: int) -> NDArray[np.float32]:
    weight = node.floats(index, "weight").astype(np.float32)
    if weight.ndim != rank or not weight.size:
        raise Refused(f"its weight is {list(weight.shape)}")
    return weight


def _bias(node: Node, index: int, channels: int) -> NDArray[np.float32] | None:
    if not node.has(index):
        return None
    bias = node.floats(index, "bias").astype(np.float32)
    if bias.shape != (channels,):
        raise Refused("its bias does not fit its weight")
    return bias


OPERATORS = {"Conv": conv, "ConvTranspose": conv_transpose, "Gemm": gemm, "MatMul": matmul}
