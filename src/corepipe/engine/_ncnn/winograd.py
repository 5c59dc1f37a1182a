"""Convolutions made ready for ncnn's Winograd kernels, which are for 3x3 windows only.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016): tiles of 6x6 results take 64 multiplications
in place of 324, tiles of 4x4 36 for 144, tiles of 2x2 16 for 36.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from corepipe.engine._ncnn.graph import Builder, Tensor, check_size
from corepipe.engine._ncnn.windows import Windows

_FEW_RESULTS, _STREAMED_BYTES = 7, 2**22
"""Rows or columns, and bytes. With tiles of 2x2 such convolutions in ResNet-50 and GoogLeNet took a fifth to a quarter
less time, the networks 3 and 1.5 % less (a core of an AMD EPYC with 1 MiB of L2)."""

_WIDEST, _LEAST_CHANNELS, _LEAST_RESULTS, _MOST_STACKED = 11, 8, 20, 2**24
"""The widest kernel that is taken in blocks, for how many channels on either side (of what is stacked), rows and
columns of results, and elements of the stacked image. With fewer results the transformed weights, 144 for 25, cost more
to read than is gained."""

_MOST_WASTE, _MOST_WASTE_BY_3 = 1.7, 1.5
"""By how many times 3x3 blocks may have more elements than the kernel; also by strides of 3 and more. 5x5 1.44, 6x6 1,
7x7 1.65, 11x11 by 4 1.19; 4x4 by 1, with 2.25, gained nothing, 7x7 by 3, with 1.65, lost 12 %.

In whole networks, both cores of an AMD EPYC at work, conv2 of AlexNet (5x5) took 1.7 times less, conv1 of GoogLeNet and
SqueezeNet (7x7 by 2) 1.15 times, conv1 of AlexNet 1.6 times; by themselves 8x8 to 11x11 1.5 to 1.9 times, 6x6 by 2 1.2
to 1.7 times, 5x5 by 2 0.94 to 1.5 times."""


def streams_weights(at: Windows, channels: int, made: int) -> bool:
    """Whether a Winograd convolution reads more weights than a core's caches hold, for few results.

    Without a hint ncnn takes tiles of 4x4 for it, whose transformed weights are 36 for 9; for the smallest of images
    tiles of 2x2, with 16. (Its tables for images of just this size are slower for many other convolutions. A 3x3
    convolution that reads the result, and gets no hint of its own, goes by that of its input: small tiles too.)
    """
    return (
        at.kernel == (3, 3)
        and at.strides == at.dilations == (1, 1)
        and max(at.out) <= _FEW_RESULTS
        and channels * made * 144 >= _STREAMED_BYTES
    )


def gains_by_blocks(at: Windows, channels: int, made: int, groups: int) -> bool:
    """Whether a wide convolution of so many channels in all takes less time as `in_blocks` has it."""
    takes = at.dilations == (1, 1) and at.strides[0] == at.strides[1]
    if not takes or min(at.kernel) < 3 or not 3 < max(at.kernel) <= _WIDEST or min(at.out) < _LEAST_RESULTS:
        return False
    blocks, most = len(_places(at)), _MOST_WASTE if max(at.strides) < 3 else _MOST_WASTE_BY_3
    stacked = channels * blocks
    fewer, more = sorted((stacked // groups, made // groups))
    enough = fewer >= _LEAST_CHANNELS and more > _LEAST_CHANNELS  # for 8 of 8 ncnn has no Winograd kernel
    small = stacked * math.prod(n + 2 for n in at.out) <= _MOST_STACKED
    return 9 * blocks <= most * math.prod(at.kernel) and enough and small


def in_blocks(
    builder: Builder, given: Tensor, weight: NDArray[np.float32], at: Windows, groups: int
) -> tuple[Tensor, NDArray[np.float32], Windows]:
    """The same results by 3x3 windows: the kernel in blocks of 3x3, each over the image shifted to its place.

    With strides the elements of a block are as far apart, and so is what it is laid over. The shifted images are
    stacked as channels, so that the sum over blocks is part of the product.

    Args:
        builder: takes the layers.
        given: the image, [1, channels, height, width] in a blob of [channels, height, width].
        weight: of [made, channels / groups, rows, columns].
        at: the windows, with equal strides, and dilations of 1.
        groups: of channels.

    Returns:
        Image, weight and windows for a convolution of as many groups.
    """
    step, places = at.strides[0], _places(at)
    made, each = weight.shape[:2]
    parts = np.zeros((made, len(places), each, 3, 3), np.float32)
    for number, (y, x) in enumerate(places):
        block = weight[:, :, y : y + 3 * step : step, x : x + 3 * step : step]
        parts[:, number, :, : block.shape[2], : block.shape[3]] = block
    size = tuple(n + 2 for n in at.out)
    shape = (each * groups * len(places), *size)
    # Of a phase: each step-th row and column from one of the first. All shifts lie in it, and all of the image.
    phase = [
        max(n + max(place[axis] for place in places) // step, -(-(at.before[axis] + given.shape[2 + axis]) // step))
        for axis, n in enumerate(size)
    ]
    check_size(shape)
    check_size((each * groups * step * step, *phase))
    after = [n * step - before - wide for n, before, wide in zip(phase, at.before, given.shape[2:], strict=True)]
    blob = given.blob
    if any((*at.before, *after)):
        blob = builder.add("Padding", [blob], {0: at.before[0], 1: after[0], 2: at.before[1], 3: after[1]}).tops[0]
    if step > 1:
        blob = builder.add("Reorg", [blob], {0: step, 1: 1}).tops[0]  # phases as channels (space to depth)
    runs: list[tuple[int, int, int, int]] = []  # row and column of the shift, first channel and the one after the last
    for group, (y, x) in itertools.product(range(groups), places):
        first = ((y % step * step + x % step) * groups + group) * each
        last = first + each
        if runs and runs[-1][:2] == (y // step, x // step) and runs[-1][3] == first:
            first = runs.pop()[2]
        runs.append((y // step, x // step, first, last))
    if runs != [(0, 0, 0, step * step * groups * each)] or tuple(phase) != size:
        crops = [
            builder.add("Crop", [blob], {0: x, 1: y, 2: first, 3: size[1], 4: size[0], 5: last - first}).tops[0]
            for y, x, first, last in runs
        ]
        blob = builder.add("Concat", crops, {0: 0}).tops[0] if len(crops) > 1 else crops[0]
    whole = replace(at, kernel=(3, 3), strides=(1, 1), before=(0, 0), after=(0, 0), extent=(3, 3))
    return Tensor(blob, (1, *shape), shape), parts.reshape(made, -1, 3, 3), whole


def _places(at: Windows) -> list[tuple[int, int]]:
    """Row and column of the kernel's element at which each of its blocks begins; equal shifts side by side."""
    step = at.strides[0]
    rows, columns = ([first for first in range(size) if first // step % 3 == 0] for size in at.kernel)
    return sorted(itertools.product(rows, columns), key=lambda place: (place[0] // step, place[1] // step))
