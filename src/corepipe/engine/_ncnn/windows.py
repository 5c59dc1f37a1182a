"""Where the windows of a convolution or pool lie in an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from corepipe.engine._ncnn.graph import Refused, check_size
from corepipe.engine._ncnn.node import Node


@dataclass(frozen=True)
class Windows:
    """Where windows lie; of all of these height and width.

    Attributes:
        kernel: elements of a window.
        strides: from one window to the next.
        dilations: from one element to the next.
        before, after: pads.
        out: how many windows there are.
        extent: what a window spans.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    out: tuple[int, ...]
    extent: tuple[int, ...]


def windows(node: Node, kernel: Sequence[int], shape: Sequence[int], *, ceil: bool = False) -> Windows:
    """Where the windows of a convolution or pool lie in an image of [channels, height, width]."""
    size = shape[1:]
    if len(kernel) != 2 or len(size) != 2:
        raise Refused("only two-dimensional windows")
    strides = node.integers("strides") or (1, 1)
    dilations = node.integers("dilations") or (1, 1)
    pads = node.integers("pads") or (0, 0, 0, 0)
    if len(strides) != 2 or len(dilations) != 2 or len(pads) != 4:
        raise Refused("only two-dimensional windows")
    if min(*kernel, *strides, *dilations) < 1 or min(pads) < 0:
        raise Refused("kernel, strides or pads out of range")
    extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    before, after, out = list(pads[:2]), list(pads[2:]), [0, 0]
    auto = node.attribute("auto_pad", "NOTSET")
    if auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise Refused(f"auto_pad {auto}")
    for i in range(2):
        if auto == "VALID":
            before[i] = after[i] = 0
        elif auto != "NOTSET":
            total = (math.ceil(size[i] / strides[i]) - 1) * strides[i] + extent[i] - size[i]
            if total < -1:  # to ONNX Runtime a negative pad: the first window begins behind the first element
                raise Refused(f"auto_pad {auto} where windows have gaps")
            total = max(total, 0)
            before[i] = (total + (auto == "SAME_LOWER")) // 2
            after[i] = total - before[i]
        room = size[i] + before[i] + after[i] - extent[i]
        if room < 0:
            raise Refused("its window is larger than its input")
        out[i] = room // strides[i] + 1
        if ceil and auto in ("NOTSET", "VALID") and room % strides[i]:
            if out[i] * strides[i] >= size[i] + before[i]:
                raise Refused("ceil_mode with a window that starts behind the input")
            out[i] += 1
    padded = [s + b + a for s, b, a in zip(size, before, after, strict=True)]
    check_size((shape[0], *padded))
    return Windows(
        kernel=tuple(kernel),
        strides=strides,
        dilations=dilations,
        before=tuple(before),
        after=tuple(after),
        out=tuple(out),
        extent=tuple(extent),
    )
