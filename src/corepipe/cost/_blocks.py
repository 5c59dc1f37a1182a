"""The kinds of synthetic network that a calibration measures, with sizes drawn at random."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from corepipe.cost._synthetic import SyntheticGraph

_T = TypeVar("_T")

_SIDES = (7, 7, 10, 13, 14, 14, 16, 20, 20, 27, 28, 28, 32, 40, 40, 52, 55, 56, 56, 64, 80, 80)
_FLOPS = 1.2e9
"""Of a network, about: 5 to 20 ms on a desktop core, and above a hundred on a small one."""

_WIDEST_IMAGE = 640

_ACTS = ("relu", "relu6", "silu", "silu", "relu6", "hardswish", "none", "leaky")


class Draw:
    """Random sizes, and the graph that they start."""

    def __init__(self, seed: int, name: str) -> None:
        self._random = np.random.default_rng(seed)
        self._seed, self._name = seed, name

    def graph(self, *shape: int) -> SyntheticGraph:
        """A graph whose current tensor has that shape: its input or, for half of the feature maps, the first
        convolution on an image, as it begins nearly every network."""
        kernel, stride = self.pick((3, 1), (3, 2), (3, 2), (5, 2), (6, 2), (7, 2), (4, 4), (11, 4))
        act, norm = self.act(), self.chance(0.7)
        if len(shape) == 4 and shape[1] > 3 and self.chance(0.5):
            side = (shape[2] - 1) * stride + kernel - 2 * (kernel // 2)
            flops = 2 * math.prod(shape) * 3 * kernel**2
            if shape[2] == shape[3] and 16 <= side <= _WIDEST_IMAGE and flops < 0.2 * _FLOPS:
                graph = SyntheticGraph(self._name, (1, 3, side, side), self._seed)
                graph.conv(shape[1], kernel, stride, act=act, norm=norm)
                return graph
        return SyntheticGraph(self._name, shape, self._seed)

    def pick(self, *choices: _T) -> _T:
        return choices[int(self._random.integers(len(choices)))]

    def chance(self, probability: float) -> bool:
        return bool(self._random.random() < probability)

    def log(self, low: float, high: float, multiple: int = 1) -> int:
        """A number drawn evenly on a logarithmic scale, rounded to a multiple."""
        value = math.exp(self._random.uniform(math.log(low), math.log(high)))
        return max(multiple, round(value / multiple) * multiple)

    def side(self, low: int = 7, high: int = 80) -> int:
        """A height: of those that real networks have, or any."""
        if self.chance(0.25):
            return self.log(low, high)
        return self.pick(*(side for side in _SIDES if low <= side <= high))

    def channels(self, side: int, volume: float, low: int = 16, high: int = 1024) -> int:
        """Channels such that a convolution of that `volume` from and to them takes 3 to 30 % of a network.

        Mostly a multiple of 16, sometimes only of 8 or 4, as networks with a width multiplier have them.
        """
        most = math.sqrt(_FLOPS * 0.3 / (2 * side * side * volume))
        least = math.sqrt(_FLOPS * 0.03 / (2 * side * side * volume))
        high = max(low, min(high, int(most)))
        return self.log(max(low, min(least, high / 2)), high, self.pick(16, 16, 16, 8, 8, 4))

    def act(self) -> str:
        return self.pick(*_ACTS)


def _stem(d: Draw) -> SyntheticGraph:
    side = d.pick(128, 160, 192, 224, 224, 227, 256, 299, 320, 416)
    g = d.graph(1, 3, side, side)
    act, norm = d.act(), d.chance(0.7)
    g.conv(d.log(16, 96, 8), d.pick(3, 3, 5, 7, 7, 11), d.pick(2, 2, 2, 4), act=act, norm=norm)
    if d.chance(0.5):
        g.pool(3, 2)
    else:
        g.conv(g.channels, 3, groups=g.channels, act=act)
    g.conv(d.log(16, 96, 8), 1, act=act, norm=norm)
    g.conv(d.log(16, 96, 8), 3, d.pick(1, 2), act=act, norm=norm)
    g.pool(2, 2, d.pick("MaxPool", "AveragePool"))
    g.conv(d.log(24, 128, 8), 3, d.pick(1, 2), act=act, norm=norm)
    return g


def _plain(d: Draw) -> SyntheticGraph:
    side, kernel = d.side(), d.pick(3, 3, 3, 3, 5, 7)
    g = d.graph(1, d.channels(side, kernel**2), side, side)
    act = d.act()
    for _ in range(4):
        dilation = d.pick(2, 3) if kernel == 3 and d.chance(0.15) else 1
        g.conv(d.channels(g.side, kernel**2), kernel, act=act, norm=True, dilation=dilation)
    if g.side >= 14:
        g.pool(d.pick(2, 3), 2)
        for _ in range(2):
            g.conv(d.channels(g.side, 9), 3, act=act)
    return g


def _heavy(d: Draw) -> SyntheticGraph:
    side = d.pick(4, 5, 7, 7, 8, 10, 14)
    g = d.graph(1, d.log(128, 1024, 16), side, side)
    for _ in range(2):
        g.conv(d.log(256, 1024, 16), 3, norm=True)
        g.conv(d.log(256, 2048, 16), 1, norm=True)
    g.conv(g.channels, 3, groups=g.channels, norm=True)
    g.conv(d.log(256, 1024, 16), 1, d.pick(1, 2), norm=True)
    return g


def _vast(d: Draw) -> SyntheticGraph:
    side, act = d.pick(96, 104, 112, 112, 128, 150, 160, 160, 208), d.act()
    g = d.graph(1, d.log(8, 64, 8), side, side)
    g.conv(d.log(16, 64, 8), 1, act=act, norm=True)
    start = g.x
    g.conv(g.channels, 3, groups=d.pick(1, 1, g.channels), act=act, norm=True)
    g.add(start)
    g.conv(d.log(16, 96, 8), 1, act=act, norm=True)
    start, channels = g.x, g.channels
    g.conv(d.log(16, 64, 8), 3, d.pick(1, 2), act=act, norm=True)
    if g.side == side:
        g.concat([start, g.x], channels + g.channels)
    g.node("Pad", g.x, g.sizes(0, 0, 0, 0, 0, 0, 1, 1), shape=(1, g.channels, g.side + 1, g.side + 1))
    g.pool(2, 2)
    return g


def _asymmetric(d: Draw) -> SyntheticGraph:
    side, length = d.side(7, 40), d.pick(3, 5, 7)
    g = d.graph(1, d.channels(side, length), side, side)
    for _ in range(3):
        g.conv(d.channels(side, length), (1, length), norm=True)
        g.conv(d.channels(side, length), (length, 1), norm=True)
    return g


def _pointwise(d: Draw) -> SyntheticGraph:
    side = d.side()
    g = d.graph(1, d.channels(side, 1, high=2048), side, side)
    act = d.act()
    for _ in range(5):
        g.conv(d.channels(g.side, 1, high=2048), 1, d.pick(1, 1, 1, 1, 2) if g.side > 20 else 1, act=act, norm=True)
    return g


def _bottleneck(d: Draw) -> SyntheticGraph:
    side = d.side()
    width = d.channels(side, 9, high=512)
    g = d.graph(1, d.pick(2, 4) * width, side, side)
    for _ in range(3):
        start, channels = g.x, g.channels
        g.conv(width, 1, norm=True)
        g.conv(width, 3, norm=True)
        g.conv(channels, 1, norm=True, act="none")
        g.add(start, "relu")
    g.conv(d.pick(1, 2) * g.channels, 1, 2, norm=True, act="none")
    g.conv(d.channels(g.side, 9), 3, norm=True)
    return g


def _inverted(d: Draw) -> SyntheticGraph:
    side, act = d.side(7, 112), d.act()
    expand = d.pick(1, 2, 3, 4, 6, 6)
    width = d.channels(side, expand * 2, 8, 256)
    g = d.graph(1, width, side, side)
    squeeze = d.chance(0.4)
    for stride in (1, 2, 1):
        start, channels = g.x, g.channels
        width = channels if stride == 1 else d.log(channels, 2 * channels, 8)
        g.conv(expand * channels, 1, act=act, norm=True)
        g.conv(expand * channels, d.pick(3, 3, 5), stride, groups=expand * channels, act=act, norm=True)
        if squeeze:
            g.gate(max(8, channels // 4), act)
        g.conv(width, 1, norm=True, act="none")
        if stride == 1:
            g.add(start)
    return g


def _separable(d: Draw) -> SyntheticGraph:
    side, act = d.side(7, 112), d.act()
    g = d.graph(1, d.channels(side, 2), side, side)
    for _ in range(4):
        kernel = d.pick(3, 3, 3, 5, 7)
        g.conv(g.channels, kernel, d.pick(1, 1, 2) if g.side > 12 else 1, groups=g.channels, act=act, norm=True)
        g.conv(d.channels(g.side, 2), 1, act=act, norm=True)
    return g


def _inception(d: Draw) -> SyntheticGraph:
    side = d.side(7, 56)
    g = d.graph(1, d.channels(side, 4), side, side)
    for _ in range(2):
        width = d.channels(side, 12, 16, 256)

        def reduced(kernel: int, share: int, width: int = width) -> None:
            g.conv(max(8, width // share), 1)
            g.conv(max(8, 2 * width // share), kernel)

        def pooled(width: int = width) -> None:
            g.pool(3, 1, d.pick("MaxPool", "AveragePool"))
            g.conv(max(16, width // 2), 1)

        g.branches([lambda w=width: g.conv(w, 1), lambda: reduced(3, 1), lambda: reduced(5, 4), pooled])  # type: ignore[misc]
    g.pool(3, 2)
    return g


def _fire(d: Draw) -> SyntheticGraph:
    side = d.side(10, 80)
    g = d.graph(1, d.channels(side, 3, 32, 512), side, side)
    for _ in range(3):
        width = d.channels(side, 4, 32, 256)
        g.conv(max(8, width // 4), 1)
        g.branches([lambda w=width: g.conv(w, 1), lambda w=width: g.conv(w, 3)])  # type: ignore[misc]
    g.pool(3, 2)
    return g


def _densely(d: Draw) -> SyntheticGraph:
    side, growth = d.side(7, 56), d.pick(16, 24, 32, 32, 48)
    g = d.graph(1, d.channels(side, 2, 64, 768), side, side)
    for _ in range(3):
        start, shape = g.x, g.shape
        g.norm()
        g.act("relu")
        g.conv(4 * growth, 1, norm=True)
        g.conv(growth, 3, act="none")
        g.concat([start, g.x], shape[1] + growth)
    g.norm()
    g.act("relu")
    g.conv(max(16, g.channels // 2), 1, act="none")
    g.pool(2, 2, "AveragePool")
    return g


def _partial(d: Draw) -> SyntheticGraph:
    side, act = d.side(16, 112), d.pick("silu", "silu", "relu", "leaky")
    half = d.channels(side, 9, 16, 256)
    g = d.graph(1, 2 * half, side, side)
    for _ in range(2):
        g.conv(2 * half, 1, act=act, norm=True)
        parts = g.split(2)
        for _ in range(d.pick(1, 2)):
            start = g.x
            g.conv(half, 3, act=act, norm=True)
            g.conv(half, 3, act=act, norm=True)
            if d.chance(0.6):
                g.add(start)
            parts.append(g.x)
        g.concat(parts, half * len(parts))
        g.conv(2 * half, 1, act=act, norm=True)
    if d.chance(0.5):
        parts = [g.x]
        for _ in range(2):
            parts.append(g.pool(5, 1))
        g.concat(parts, 3 * g.channels)
    return g


def _grouped(d: Draw) -> SyntheticGraph:
    side = d.side()
    per_group = d.pick(4, 8, 16, 16, 24, 32, 64, 96)
    width = d.channels(side, 3 + per_group / 24, high=768) if d.chance(0.75) else 0
    groups = max(2, width // per_group)
    width = groups * per_group
    side = min(side, max(7, int(math.sqrt(_FLOPS * 0.2 / (2 * width * (width + 9 * per_group))))))
    g = d.graph(1, width, side, side)
    squeeze = d.chance(0.5)
    for stride in (1, 1, 2):
        start = g.x
        g.conv(width, 1, norm=True)
        g.conv(width, d.pick(3, 3, 5), stride, groups=groups, norm=True)
        if squeeze:
            g.gate(max(8, width // 4))
        g.conv(width, 1, norm=True, act="none")
        if stride == 1:
            g.add(start, "relu")
    return g


def _shuffled(d: Draw) -> SyntheticGraph:
    side, groups = d.side(7, 56), d.pick(2, 3, 4, 8)
    width = groups * d.log(16, 96, 4)
    g = d.graph(1, width, side, side)
    for _ in range(3):
        start = g.x
        g.conv(width, 1, groups=groups, norm=True)
        g.reshape(1, groups, width // groups, side, side)
        g.transpose(0, 2, 1, 3, 4)
        g.reshape(1, width, side, side)
        g.conv(width, 3, groups=width, norm=True, act="none")
        g.conv(width, 1, groups=groups, norm=True, act="none")
        g.add(start, "relu")
    return g


def _channels_last(d: Draw) -> SyntheticGraph:
    side = d.side(7, 64)
    width, gated = d.channels(side, 4, 32, 640), d.chance(0.5)
    g = d.graph(1, width, side, side)
    for _ in range(2):
        start = g.x
        g.conv(width, 7, groups=width, act="none")
        g.transpose(0, 2, 3, 1)
        g.layer_norm()
        g.linear(d.pick(2, 4) * width, d.pick("gelu", "gelu", "silu"))
        if gated:
            _response_norm(g)
        g.linear(width)
        g.transpose(0, 3, 1, 2)
        g.add(start)
    g.conv(2 * width if side < 20 else width, 2 if d.chance(0.5) else 1, 2, act="none")
    return g


def _response_norm(g: SyntheticGraph) -> None:
    """Global response normalisation (arXiv 2301.00808) on channels last."""
    start, shape = g.x, g.shape
    g.node("ReduceL2", g.x, g.sizes(1, 2), shape=(1, 1, 1, shape[3]), keepdims=1)
    size = g.x
    g.node("ReduceMean", g.x, g.sizes(-1), shape=(1, 1, 1, 1), keepdims=1)
    g.node("Div", size, g.x, shape=(1, 1, 1, shape[3]))
    g.node("Mul", start, g.x, shape=shape)
    g.node("Mul", g.x, g.weight(1, 1, 1, shape[3]))
    g.node("Add", g.x, start)


def _attention(d: Draw) -> SyntheticGraph:
    tokens, heads = d.log(16, 1024), d.pick(2, 4, 4, 8)
    width = heads * d.pick(16, 24, 32, 36, 48, 64)
    g = d.graph(1, tokens, width)
    for _ in range(2):
        start = g.x
        normed = g.layer_norm()
        flat = g.shape
        parts = []
        for order in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)):
            g.x, g.shape = normed, flat
            g.linear(width)
            g.reshape(1, tokens, heads, width // heads)
            parts.append(g.transpose(*order))
        q, k, v = parts
        g.node("MatMul", q, k, shape=(1, heads, tokens, tokens))
        g.node("Div", g.x, g.weight(1, gain=0.0, shift=math.sqrt(width / heads)))
        g.node("Softmax", axis=-1)
        g.node("MatMul", g.x, v, shape=(1, heads, tokens, width // heads))
        g.transpose(0, 2, 1, 3)
        g.reshape(1, tokens, width)
        g.linear(width)
        start = g.add(start)
        g.layer_norm()
        g.linear(d.pick(1, 2, 4) * width, d.pick("silu", "gelu", "relu"))
        g.linear(width)
        g.add(start)
    return g


def _head(d: Draw) -> SyntheticGraph:
    side, width = d.pick(4, 6, 7, 7, 8, 10), d.log(128, 1024, 8)
    g = d.graph(1, width, side, side)
    g.conv(d.log(256, 1280, 8), 1, act=d.act(), norm=True)
    if d.chance(0.6):
        g.conv(max(16, d.log(2**11, 2**14) // side**2), 1)
        g.reshape(1, g.channels * side * side)
        g.dense(d.log(2**20, 2**24.3) // g.shape[1] + 64, "relu")
        g.dense(d.log(256, 4096), "relu")
    else:
        g.global_pool(as_mean=d.chance(0.5))
        g.reshape(1, g.channels)
        if d.chance(0.5):
            g.dense(d.log(256, 4096), d.pick("relu", "hardswish"))
    g.dense(d.pick(10, 100, 1000, 1000, d.log(100, 4096)))
    g.node("Softmax", axis=1)
    return g


def _classic(d: Draw) -> SyntheticGraph:
    side = d.pick(26, 27, 28, 32, 56)
    g = d.graph(1, d.log(32, 128, 16), side, side)
    for _ in range(3):
        g.conv(d.channels(side, 9, 64), 3)
    g.pool(3, side // 6)
    g.conv(max(16, d.log(2**12, 2**14.5) // g.side**2), 1)
    g.reshape(1, g.channels * g.side**2)
    g.dense(d.log(2**22.5, 2**24.5) // g.shape[1] + 64, "relu")
    g.dense(d.log(256, 2048), "relu")
    g.dense(d.pick(100, 1000))
    return g


def _pyramid(d: Draw) -> SyntheticGraph:
    side, act = d.side(7, 40), d.pick("silu", "relu")
    g = d.graph(1, d.channels(side, 4), side, side)
    low = g.conv(d.channels(side, 2), 1, act=act)
    shape = g.shape
    mode = d.pick("nearest", "nearest", "linear")
    g.branches([lambda: g.resize(mode), lambda: (g.conv(g.channels, 1, act=act), g.resize("nearest"))])
    g.conv(d.channels(g.side, 9), 3, act=act)
    g.conv(shape[1], 3, 2, act=act)
    g.branches([lambda: None, lambda: setattr(g, "x", low)])
    g.conv(d.channels(side, 9), 3, act=act)
    return g


def _normalised(d: Draw) -> SyntheticGraph:
    side = d.side(13, 64)
    g = d.graph(1, d.channels(side, 3), side, side)
    g.conv(d.channels(side, 3), 1)
    g.node("LRN", size=5, alpha=1e-4, beta=0.75)
    g.pool(3, 2)
    g.conv(d.channels(g.side, 9), 3, act="tanh")
    g.node("LRN", size=5, alpha=1e-4, beta=0.75)
    g.conv(d.channels(g.side, 3), 1, act="sigmoid")
    return g


def _maths(d: Draw) -> SyntheticGraph:
    side = d.side(7, 112)
    width = 2 * (d.log(2**14, 2**20) // side**2 + 2)
    g = d.graph(1, width, side, side)
    start = g.x
    g.act("tanh")
    g.node("Mul", start, g.x)
    g.node("Pad", g.x, g.sizes(0, 0, 1, 1, 0, 0, 1, 1), shape=(1, width, side + 2, side + 2))
    g.pool(3, 1, "AveragePool")
    g.act("sigmoid")
    g.node("Softmax", axis=-1)
    g.norm()
    g.node("Neg")
    first, second = g.split(2)
    g.node("Sub", first, g.node("Exp", second))
    g.node("ReduceMax", g.x, g.sizes(1), shape=(1, 1, *g.shape[2:]), keepdims=1)
    return g


def _unfolded(d: Draw) -> SyntheticGraph:
    side, width, patch = 2 * d.log(4, 32), d.log(48, 256, 8), 2
    g = d.graph(1, width, side, side)
    g.conv(width, 1, act="silu")
    rows = side // patch
    g.reshape(width * rows, patch, rows, patch)
    g.transpose(0, 2, 1, 3)
    g.reshape(1, width, rows * rows, patch * patch)
    g.transpose(0, 3, 2, 1)
    g.reshape(patch * patch, rows * rows, width)
    g.layer_norm()
    g.linear(2 * width, "silu")
    g.linear(width)
    g.reshape(1, patch * patch, rows * rows, width)
    g.transpose(0, 3, 2, 1)
    g.reshape(width * rows, rows, patch, patch)
    g.transpose(0, 2, 1, 3)
    g.reshape(1, width, side, side)
    g.conv(width, 3, act="silu")
    return g


KINDS: dict[str, Callable[[Draw], SyntheticGraph]] = {
    "plain": _plain,
    "bottleneck": _bottleneck,
    "inverted": _inverted,
    "head": _head,
    "pointwise": _pointwise,
    "partial": _partial,
    "stem": _stem,
    "inception": _inception,
    "grouped": _grouped,
    "separable": _separable,
    "attention": _attention,
    "densely": _densely,
    "channels-last": _channels_last,
    "fire": _fire,
    "asymmetric": _asymmetric,
    "pyramid": _pyramid,
    "shuffled": _shuffled,
    "normalised": _normalised,
    "maths": _maths,
    "heavy": _heavy,
    "vast": _vast,
    "classic": _classic,
    "unfolded": _unfolded,
}
