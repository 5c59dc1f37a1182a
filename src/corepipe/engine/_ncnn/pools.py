"""Pools, normalisation, padding and resizing of images."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from corepipe.engine._ncnn.graph import Refused, Tensor
from corepipe.engine._ncnn.node import Node, axis_of
from corepipe.engine._ncnn.windows import windows

_EXACT_NEAREST = frozenset({
    ("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil"),
    ("pytorch_half_pixel", "round_prefer_floor"), ("pytorch_half_pixel", "round_prefer_ceil"),
})  # fmt: skip
"""Ways to round that agree where the scale is a whole number."""


def pool(node: Node) -> Tensor:
    """MaxPool and AveragePool."""
    given = node.image()
    average = node.kind == "AveragePool"
    kernel = node.integers("kernel_shape") or ()
    at = windows(node, kernel, given.shape[1:], ceil=bool(node.attribute("ceil_mode", 0)))
    if set(at.dilations) != {1}:
        raise Refused("dilations")
    if node.gives(1):
        raise Refused("the places of the largest")
    # Windows at the end may need more padding than was asked for (ceil_mode), or less.
    needed = [max((at.out[i] - 1) * at.strides[i] + kernel[i] - given.shape[2 + i] - at.before[i], 0) for i in range(2)]
    counted = bool(node.attribute("count_include_pad", 0))
    if average and counted and any(n > a for n, a in zip(needed, at.after, strict=True)):
        raise Refused("count_include_pad with a window that reaches beyond the padding")
    if any(b >= k or n >= k for b, n, k in zip(at.before, needed, kernel, strict=True)):
        raise Refused("a window that lies in the padding alone")
    params = {
        0: int(average), 1: kernel[1], 11: kernel[0], 2: at.strides[1], 12: at.strides[0], 3: at.before[1],
        13: at.before[0], 14: needed[1], 15: needed[0], 5: 1, 6: int(counted),
    }  # fmt: skip
    channels = given.shape[1]
    return node.builder.compute("Pooling", given, params, shape=(1, channels, *at.out), blob_shape=(channels, *at.out))


def global_pool(node: Node) -> Tensor:
    """GlobalAveragePool and GlobalMaxPool."""
    return _global(node, node.kind == "GlobalAveragePool", keep=True)


def reduce_mean(node: Node) -> Tensor:
    """ReduceMean over height and width."""
    rank = len(node.tensor(0).shape)
    axes = node.integers("axes", 1)
    if axes is None or rank != 4 or sorted(axis_of(a, rank) for a in axes) != [2, 3]:
        raise Refused("only over height and width")
    return _global(node, True, keep=bool(node.attribute("keepdims", 1)))


def _global(node: Node, average: bool, *, keep: bool) -> Tensor:
    given = node.image()
    channels = given.shape[1]
    shape = (1, channels, 1, 1) if keep else (1, channels)
    return node.builder.compute("Pooling", given, {0: int(average), 4: 1}, shape=shape, blob_shape=(channels,))


def lrn(node: Node) -> Tensor:
    """LRN over an odd number of channels."""
    size = int(node.attribute("size"))
    if size < 1 or size % 2 == 0:
        raise Refused(f"size {size}")
    params = {
        0: 0, 1: size, 2: float(node.attribute("alpha", 1e-4)), 3: float(node.attribute("beta", 0.75)),
        4: float(node.attribute("bias", 1.0)),
    }  # fmt: skip
    return node.builder.compute("LRN", node.image(), params)


def batch_norm(node: Node) -> Tensor:
    """BatchNormalization with the statistics that it holds: into what made its input, or a layer of its own."""
    scale, offset, mean, variance = (node.floats(i, "statistics") for i in range(1, 5))
    given = node.tensor(0)
    if len(given.shape) < 2 or given.shape[0] != 1 or any(v.shape != given.shape[1:2] for v in (scale, offset, mean)):
        raise Refused("its statistics do not fit its input")
    if (
        int(node.attribute("training_mode", 0))
        or int(node.attribute("spatial", 1)) != 1
        or any(node.gives(i) for i in range(1, 5))
    ):
        raise Refused("only with given statistics for each channel")
    factor = scale / np.sqrt(variance + float(node.attribute("epsilon", 1e-5)))
    return scaled(node, 0, factor, offset - mean * factor)


def scaled(node: Node, index: int, factor: NDArray[np.float64], offset: NDArray[np.float64]) -> Tensor:
    """Channel c of an input of [1, channels, ...] times `factor[c]` plus `offset[c]`."""
    given, linear = node.tensor(index), node.open(index)
    # The channels of a matrix product are the last axis.
    if linear is not None and (linear.layer.kind != "InnerProduct" or len(given.shape) == 2):
        linear.scale(factor, offset)
        return node.passed_on(index)
    channels, rest = given.shape[1], math.prod(given.shape[2:])
    if given.blob_shape[0] != channels or len(given.blob_shape) == 4:
        given = node.builder.place(given, (channels, rest))
    weights = [factor.astype(np.float32), offset.astype(np.float32)]
    return node.builder.compute("Scale", given, {0: channels, 1: 1}, weights=weights)


def pad(node: Node) -> Tensor:
    """Pad of height and width."""
    given = node.image()
    pads, mode = node.integers("pads", 1), node.attribute("mode", "constant")
    if node.has(3):
        raise Refused("axes")
    if pads is None or len(pads) != 8 or min(pads) < 0 or any(pads[i] for i in (0, 1, 4, 5)):
        raise Refused("only of height and width")
    kinds = {"constant": 0, "edge": 1, "reflect": 2}
    if mode not in kinds:
        raise Refused(f"mode {mode}")
    height, width = given.shape[2:]
    if mode == "reflect" and (max(pads[2], pads[6]) >= height or max(pads[3], pads[7]) >= width):
        raise Refused("reflects more than there is")
    params = {
        0: pads[2], 1: pads[6], 2: pads[3], 3: pads[7], 4: kinds[mode], 5: node.number("value", 2, 0.0),
    }  # fmt: skip
    shape = (given.shape[1], height + pads[2] + pads[6], width + pads[3] + pads[7])
    return node.builder.compute("Padding", given, params, shape=(1, *shape), blob_shape=shape)


def resize(node: Node) -> Tensor:
    """Resize and Upsample: nearest by whole numbers, and linear in both directions."""
    given = node.image()
    channels, height, width = given.shape[1:]
    old = node.kind == "Upsample" or node.opset < 11
    sizes = None if old else node.integers("sizes_", 3)
    if sizes is not None:
        out = sizes
    else:
        scales = np.atleast_1d(node.attribute("scales", ())) if old else np.zeros(0)
        if not scales.size:
            scales = node.floats(1 if old else 2, "scales")
        if scales.shape != (4,):
            raise Refused("scales of not four axes")
        exact = np.array(given.shape) * scales
        out = tuple(int(v) for v in np.round(exact))
        if np.abs(exact - out).max() > 1e-6:
            raise Refused("a scale that does not fit its input")
    if len(out) != 4 or out[:2] != (1, channels) or min(out) < 1:
        raise Refused("only of height and width")
    mode = node.attribute("mode", "nearest")
    transform = "asymmetric" if old else node.attribute("coordinate_transformation_mode", "half_pixel")
    rounding = "floor" if old else node.attribute("nearest_mode", "round_prefer_floor")
    if node.attribute("antialias", 0) or node.attribute("exclude_outside", 0) or node.integers("axes"):
        raise Refused("antialias, exclude_outside or axes")
    if node.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Refused("keep_aspect_ratio_policy")
    params = {3: out[2], 4: out[3]}
    smooth = mode == "linear" and transform in ("half_pixel", "pytorch_half_pixel", "align_corners")
    nearest = mode == "nearest" and (transform, rounding) in _EXACT_NEAREST
    if (nearest and _repeats(height, out[2]) and _repeats(width, out[3])) or (smooth and height == width == 1):
        params[0] = 1
    elif smooth and min(height, width, *out[2:]) > 1:  # of a single row or column ncnn reads what is before it
        params |= {0: 2, 6: int(transform == "align_corners")}
    else:
        raise Refused(f"mode {mode} with {transform} and {rounding}")
    return node.builder.compute("Interp", given, params, shape=out, blob_shape=out[1:])


def _repeats(size: int, out: int) -> bool:
    """Whether the nearest of `size` for each of `out`, as ncnn rounds it, is each of them equally often."""
    if out % size:
        return False
    step = np.float32(size) / np.float32(out)
    found = (np.arange(out, dtype=np.float32) * step).astype(np.int64)
    return np.array_equal(np.minimum(found, size - 1), np.arange(out) // (out // size))


OPERATORS = {
    "MaxPool": pool, "AveragePool": pool, "GlobalAveragePool": global_pool, "GlobalMaxPool": global_pool,
    "ReduceMean": reduce_mean, "LRN": lrn, "BatchNormalization": batch_norm, "Pad": pad, "Resize": resize,
    "Upsample": resize,
}  # fmt: skip
