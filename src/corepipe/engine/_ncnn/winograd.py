"""Convolutions made ready for ncnn's Winograd kernels, which are for 3x3 windows only.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016): tiles of 6x6 results take 64 multiplications
in place of 324, tiles of 4x4 36 for 144, tiles of 2x2 16 for 36.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from corepipe.engine._ncnn.graph import Builder, Tensor, check_size
from corepipe.engine._ncnn.windows import Windows

_FEW_RESULTS, _STREAMED_BYTES = 7, 2**22
"""Rows or columns, and bytes. With tiles of 2x2 such convolutions in ResNet-50 and GoogLeNet took a fifth to a quarter
less time, the networks 3 and 1.5 % less (a core of an AMD EPYC with 1 MiB of L2)."""

_WIDEST, _LEAST_CHANNELS, _LEAST_RESULTS = 9, 8, 20
"""The widest kernel that is taken in blocks, for how many channels on either side, and rows and columns of results. With
fewer results the transformed weights, 144 for 25, cost more to read than is gained."""

_MOST_WASTE = 1.5
"""By how many times 3x3 blocks may have more elements than the kernel: 5x5 1.44, 6x6 1; 4x4, with 2.25, gained
nothing. 5x5 of 16 to 256 channels with 28 rows took 1.5 to 2 times less, 6x6 2.2 to 2.6 times (both cores of an AMD
EPYC at work); in the whole network conv2 of AlexNet 1.7 times, inception_3b.5x5 of GoogLeNet 1.6 times."""


def streams_weights(at: Windows, channels: int, made: int) -> bool:
    """Whether a Winograd convolution reads more weights than a core's caches hold, for few results.

    Without a hint ncnn takes tiles of 4x4 for it, whose transformed weights are 36 for 9; for the smallest of images
    tiles of 2x2, with 16. (Its tables for images of just this size are slower for many other convolutions. A 3x3
    convolution that reads the result, and gets no hint of its own, goes by that of its input: small tiles too.)
    """
    return at.kernel == (3, 3) and at.dense and max(at.out) <= _FEW_RESULTS and channels * made * 144 >= _STREAMED_BYTES


def gains_by_blocks(at: Windows, channels: int, made: int) -> bool:
    """Whether a wide convolution of so many channels (of one group) takes less time as `in_blocks` has it."""
    blocks = math.prod(_blocks(at))
    fits = at.dense and blocks > 1 and max(at.kernel) <= _WIDEST and 9 * blocks <= _MOST_WASTE * math.prod(at.kernel)
    return fits and min(channels, made) >= _LEAST_CHANNELS and min(at.out) >= _LEAST_RESULTS


def in_blocks(
    builder: Builder, given: Tensor, weight: NDArray[np.float32], at: Windows, groups: int
) -> tuple[Tensor, NDArray[np.float32], Windows]:
    """The same results by 3x3 windows: the kernel in blocks of 3x3, each over the image shifted to its place.

    The shifted images are stacked as channels, so that the sum over blocks is part of the product.

    Args:
        builder: takes the layers.
        given: the image, [1, channels, height, width] in a blob of [channels, height, width].
        weight: of [made, channels / groups, rows, columns].
        at: the windows, with strides and dilations of 1.
        groups: of channels.

    Returns:
        Image, weight and windows for a convolution of as many groups.
    """
    rows, columns = _blocks(at)
    made, each = weight.shape[:2]
    wide = np.zeros((made, each, 3 * rows, 3 * columns), np.float32)
    wide[:, :, : at.kernel[0], : at.kernel[1]] = weight
    places = [(3 * i, 3 * j) for i, j in itertools.product(range(rows), range(columns))]
    parts = np.concatenate([wide[:, :, y : y + 3, x : x + 3] for y, x in places], axis=1)
    size = tuple(n + 2 for n in at.out)
    check_size((each * groups * len(places), *size))
    height, width = given.shape[2:]
    below, right = 3 * rows + at.out[0] - 1 - height - at.before[0], 3 * columns + at.out[1] - 1 - width - at.before[1]
    padding = builder.add("Padding", [given.blob], {0: at.before[0], 1: below, 2: at.before[1], 3: right})
    crops = [
        builder.add("Crop", padding.tops, {0: x, 1: y, 2: group * each, 3: size[1], 4: size[0], 5: each}).tops[0]
        for group in range(groups)
        for y, x in places
    ]
    stacked = builder.add("Concat", crops, {0: 0}).tops[0]
    shape = (each * groups * len(places), *size)
    whole = Windows((3, 3), (1, 1), (1, 1), (0, 0), (0, 0), at.out, (3, 3))
    return Tensor(stacked, (1, *shape), shape), parts, whole


def _blocks(at: Windows) -> tuple[int, int]:
    return -(-at.kernel[0] // 3), -(-at.kernel[1] // 3)
