"""Writes the synthetic networks of a calibration node by node: blocks as current networks are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_OPSET = 18
_IR_VERSION = 8


class SyntheticGraph:
    """A graph being written: `x` is the tensor that the next node reads, of shape `shape`.

    Weights are drawn with He's variance, so that activations stay normal numbers: arithmetic on subnormal ones is
    slow and would be measured as such.
    """

    def __init__(self, name: str, shape: Sequence[int], seed: int) -> None:
        self.name = name
        self.random = np.random.default_rng(seed)
        self.x = "x"
        self.shape = tuple(shape)
        self._input = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    @property
    def channels(self) -> int:
        """Channels of the current tensor, [1, channels, height, width]."""
        return self.shape[1]

    @property
    def side(self) -> int:
        """Height of the current tensor."""
        return self.shape[2]

    def model(self) -> onnx.ModelProto:
        """The finished model; its output is the current tensor."""
        output = helper.make_tensor_value_info(self.x, TensorProto.FLOAT, list(self.shape))
        graph = helper.make_graph(self._nodes, self.name, [self._input], [output], self._weights)
        opset = helper.make_opsetid("", _OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION, producer_name="corepipe")

    def node(self, kind: str, *inputs: str, shape: Sequence[int] | None = None, **attributes: Any) -> str:
        """Append an operator on `inputs` (by default the current tensor); its result becomes the current tensor."""
        name = f"{kind.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs or (self.x,)), [name], name=name, **attributes))
        self.x, self.shape = name, tuple(shape or self.shape)
        return name

    def weight(self, *shape: int, gain: float = 1.0, shift: float = 0.0) -> str:
        """A constant drawn from a normal distribution of deviation `gain` around `shift`."""
        values = self.random.standard_normal(shape, np.float32) * np.float32(gain) + np.float32(shift)
        return self._constant(values)

    def conv(
        self,
        filters: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        dilation: int = 1,
        act: str = "relu",
        norm: bool = False,
    ) -> str:
        """Convolution that keeps height and width but for the stride, with batch normalisation and activation."""
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        volume = self.channels // groups * height * width
        weight = self.weight(filters, self.channels // groups, height, width, gain=math.sqrt(2 / volume))
        pads = [height // 2 * dilation, width // 2 * dilation] * 2
        sides = [
            (size + 2 * pad - dilation * (k - 1) - 1) // stride + 1
            for size, pad, k in zip(self.shape[2:], pads, (height, width), strict=False)
        ]
        self.node(
            "Conv", self.x, weight, *([] if norm else [self.weight(filters, gain=0.05)]), shape=(1, filters, *sides),
            kernel_shape=[height, width], strides=[stride] * 2, pads=pads, dilations=[dilation] * 2, group=groups,
        )  # fmt: skip
        if norm:
            self.norm()
        return self.act(act)

    def norm(self) -> str:
        """Batch normalisation."""
        near_one = [self.weight(self.channels, gain=0.05, shift=1.0) for _ in range(2)]
        near_zero = [self.weight(self.channels, gain=0.05) for _ in range(2)]
        return self.node("BatchNormalization", self.x, near_one[0], *near_zero, near_one[1])

    def act(self, kind: str) -> str:
        """An activation by name; `none` for none."""
        start = self.x
        if kind == "silu":
            return self.node("Mul", start, self.node("Sigmoid"))
        if kind == "gelu":
            self.node("Erf", self.node("Div", start, self._scalar(math.sqrt(2.0))))
            self.node("Mul", self._scalar(0.5), self.node("Add", self.x, self._scalar(1.0)))
            return self.node("Mul", start, self.x)
        if kind == "relu6":
            return self.node("Clip", start, self._scalar(0.0), self._scalar(6.0))
        names = {"relu": "Relu", "hardswish": "HardSwish", "sigmoid": "Sigmoid", "tanh": "Tanh", "leaky": "LeakyRelu"}
        return self.node(names[kind]) if kind in names else start

    def add(self, other: str, act: str = "none") -> str:
        """Sum with a tensor of the same shape."""
        self.node("Add", self.x, other)
        return self.act(act)

    def sizes(self, *values: int) -> str:
        """A constant of whole numbers."""
        return self._constant(np.array(values))

    def concat(self, parts: Sequence[str], channels: int) -> str:
        """Channels of several tensors, `channels` in all, one after the other."""
        return self.node("Concat", *parts, shape=(1, channels, *self.shape[2:]), axis=1)

    def split(self, parts: int) -> list[str]:
        """Equal shares of the channels; the last becomes the current tensor."""
        name = f"split{len(self._nodes)}"
        names = [f"{name}.{i}" for i in range(parts)]
        sizes = self.sizes(*[self.channels // parts] * parts)
        self._nodes.append(helper.make_node("Split", [self.x, sizes], names, name=name, axis=1))
        self.x, self.shape = names[-1], (1, self.channels // parts, *self.shape[2:])
        return names

    def branches(self, makers: Sequence[Callable[[], Any]]) -> str:
        """Each maker writes on the same tensor; the results are concatenated."""
        start, shape = self.x, self.shape
        parts, channels = [], 0
        for make in makers:
            self.x, self.shape = start, shape
            make()
            parts.append(self.x)
            channels += self.channels
        return self.concat(parts, channels)

    def pool(self, kernel: int, stride: int, kind: str = "MaxPool") -> str:
        """Pooling with half-window padding."""
        sides = [(size + 2 * (kernel // 2) - kernel) // stride + 1 for size in self.shape[2:]]
        return self.node(
            kind, shape=(1, self.channels, *sides),
            kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[kernel // 2] * 4,
        )  # fmt: skip

    def global_pool(self, *, as_mean: bool = False) -> str:
        """Mean over all positions, [1, channels, 1, 1]."""
        shape = (1, self.channels, 1, 1)
        if as_mean:
            return self.node("ReduceMean", self.x, self.sizes(2, 3), shape=shape, keepdims=1)
        return self.node("GlobalAveragePool", shape=shape)

    def gate(self, squeezed: int, act: str = "relu") -> str:
        """Squeeze and excitation (arXiv 1709.01507)."""
        start, shape = self.x, self.shape
        self.global_pool(as_mean=True)
        self.conv(squeezed, act=act)
        gate = self.conv(shape[1], act="sigmoid")
        return self.node("Mul", start, gate, shape=shape)

    def resize(self, mode: str = "nearest") -> str:
        """Twice the height and width."""
        scales = self._constant(np.array([1, 1, 2, 2], np.float32))
        shape = (1, self.channels, 2 * self.side, 2 * self.shape[3])
        return self.node(
            "Resize", self.x, "", scales, shape=shape, mode=mode, nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        )  # fmt: skip

    def reshape(self, *shape: int) -> str:
        """Another shape of the same elements."""
        return self.node("Reshape", self.x, self.sizes(*shape), shape=shape)

    def transpose(self, *order: int) -> str:
        """Axes in another order."""
        return self.node("Transpose", perm=list(order), shape=[self.shape[axis] for axis in order])

    def linear(self, width: int, act: str = "none", *, bias: bool = True) -> str:
        """Matrix product over the last axis, with bias and activation."""
        weight = self.weight(self.shape[-1], width, gain=1 / math.sqrt(self.shape[-1]))
        self.node("MatMul", self.x, weight, shape=(*self.shape[:-1], width))
        if bias:
            self.node("Add", self.x, self.weight(width, gain=0.05))
        return self.act(act)

    def dense(self, width: int, act: str = "none") -> str:
        """Fully connected layer on [1, features]."""
        weight = self.weight(width, self.shape[-1], gain=1 / math.sqrt(self.shape[-1]))
        self.node("Gemm", self.x, weight, self.weight(width, gain=0.05), shape=(1, width), transB=1)
        return self.act(act)

    def layer_norm(self) -> str:
        """Layer normalisation over the last axis."""
        width = self.shape[-1]
        scale, bias = self.weight(width, gain=0.05, shift=1.0), self.weight(width, gain=0.05)
        return self.node("LayerNormalization", self.x, scale, bias, axis=-1)

    def _scalar(self, value: float) -> str:
        return self._constant(np.array(value, np.float32))

    def _constant(self, values: Any) -> str:
        name = f"c{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name
