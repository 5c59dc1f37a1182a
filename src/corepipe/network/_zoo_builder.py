"""Writes an image-classification network node by node, with seeded random weights, as one ONNX graph."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

_Array = NDArray[np.float32]

_OPSET = 17
_IR_VERSION = 8
_RECTIFIED_MEAN = 1 / math.sqrt(2 * math.pi)
_RECTIFIED_VARIANCE = 0.5 - 0.5 / math.pi
"""Of max(z, 0) for a standard normal z."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph being written: shape [1, channels, size, size], or [1, channels] for size 0."""

    name: str
    channels: int
    size: int


class GraphBuilder:
    """Appends nodes and weights to one ONNX model; every method returns the tensor that it makes.

    Weights keep the activations finite and varied, and the output dependent on the input, at any depth: uniform,
    with He et al.'s variance (arXiv 1502.01852) for filters whose mean over the input channels is zero (centred as
    in Huang et al., "Centered Weight Normalization", ICCV 2017). Without the centring, the positive mean that a
    ReLU leaves in every channel adds up over the layers until all frames give the same output. Filters that see
    few channels (of the image, or one in a depthwise convolution) are not centred: they would see edges only.
    """

    def __init__(self, name: str, size: int, seed: int) -> None:
        data = helper.make_tensor_value_info("data", TensorProto.FLOAT, [1, 3, size, size])
        self._model = helper.make_model(
            helper.make_graph([], name, [data], []),
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
            producer_name="corepipe",
        )
        self._random = np.random.default_rng([seed, zlib.crc32(name.encode())])
        self.data = Tensor("data", 3, size)

    def finish(self, logits: Tensor) -> onnx.ModelProto:
        """Softmax over `logits` [1, classes] becomes the output `prob`; returns the model."""
        self._add("Softmax", "prob", [logits.name], axis=1)
        shape = [1, logits.channels]
        self._model.graph.output.append(helper.make_tensor_value_info("prob", TensorProto.FLOAT, shape))
        return self._model

    def conv_relu(
        self, x: Tensor, name: str, filters: int, kernel: int, stride: int = 1, pad: int = 0, groups: int = 1,
        gain: float = 1.0,
    ) -> Tensor:  # fmt: skip
        """Convolution with bias, then ReLU; `gain` multiplies the weights."""
        weights = self._filters((filters, x.channels // groups, kernel, kernel), gain)
        bias = self._bias(f"{name}.bias", filters, gain)
        return self.relu(self._conv(x, name, weights, bias, stride, pad, groups))

    def conv_norm(
        self, x: Tensor, name: str, filters: int, kernel: int, stride: int = 1, pad: int = 0, groups: int = 1,
        scale: float = 1.0, relu: bool = True,
    ) -> Tensor:  # fmt: skip
        """Convolution without bias, batch normalisation and, unless `relu` is False, ReLU.

        The statistics are near those that training would find: what the filters make of a rectified normal input,
        its variance halfway between neighbouring pixels that are alike and that are independent.

        Args:
            x: input.
            name: of the convolution; the others add to it.
            filters: output channels.
            kernel: height and width.
            stride: both ways.
            pad: on all sides.
            groups: of channels.
            scale: standard deviation of the normalised tensor, about.
            relu: whether a ReLU follows.
        """
        weights = self._filters((filters, x.channels // groups, kernel, kernel))
        y = self._conv(x, name, weights, None, stride, pad, groups)
        of_image = x.name == self.data.name
        sums = weights.sum(axis=(2, 3))
        variance = ((sums**2).sum(axis=1) + (weights**2).sum(axis=(1, 2, 3))) / 2
        variance *= 1.0 if of_image else _RECTIFIED_VARIANCE
        mean = sums.sum(axis=1) * (0.0 if of_image else _RECTIFIED_MEAN)
        deviation = np.sqrt(variance)
        parameters = {
            "scale": self._uniform((filters,), 0.2 * scale) + scale,
            "bias": self._uniform((filters,), 0.2 * scale),
            "mean": mean + deviation * self._uniform((filters,), 0.2),
            "var": variance * (1 + self._uniform((filters,), 0.2)),
        }
        inputs = [self._weight(f"{name}.norm.{key}", value) for key, value in parameters.items()]
        self._add("BatchNormalization", f"{name}.norm", [y.name, *inputs], epsilon=1e-5)
        y = Tensor(f"{name}.norm", filters, y.size)
        return self.relu(y) if relu else y

    def relu(self, x: Tensor) -> Tensor:
        """ReLU."""
        return self._map("Relu", f"{x.name}.relu", x)

    def lrn(self, x: Tensor, name: str) -> Tensor:
        """Local response normalisation over 5 channels with Caffe's constants of AlexNet and GoogLeNet."""
        return self._map("LRN", name, x, size=5, alpha=1e-4, beta=0.75, bias=1.0)

    def max_pool(self, x: Tensor, name: str, kernel: int, stride: int, pad: int = 0) -> Tensor:
        """Max pooling; as in Caffe, the last window may reach over the lower and right edge."""
        size = -(-(x.size + 2 * pad - kernel) // stride) + 1
        over = (size - 1) * stride + kernel - x.size - pad
        self._add(
            "MaxPool", name, [x.name],
            kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad, pad, over, over],
        )  # fmt: skip
        return Tensor(name, x.channels, size)

    def global_average(self, x: Tensor, name: str) -> Tensor:
        """Mean over all positions: [1, channels, 1, 1]."""
        self._add("GlobalAveragePool", name, [x.name])
        return Tensor(name, x.channels, 1)

    def concat(self, parts: Iterable[Tensor], name: str) -> Tensor:
        """The channels of `parts` one after the other."""
        parts = list(parts)
        self._add("Concat", name, [part.name for part in parts], axis=1)
        return Tensor(name, sum(part.channels for part in parts), parts[0].size)

    def add(self, x: Tensor, y: Tensor, name: str) -> Tensor:
        """Sum of two tensors of one shape."""
        self._add("Add", name, [x.name, y.name])
        return Tensor(name, x.channels, x.size)

    def flatten(self, x: Tensor, name: str) -> Tensor:
        """[1, channels, size, size] -> [1, channels * size * size]."""
        self._add("Flatten", name, [x.name], axis=1)
        return Tensor(name, x.channels * x.size**2, 0)

    def fully_connected(self, x: Tensor, name: str, outputs: int, gain: float = 1.0) -> Tensor:
        """Matrix product with a flat tensor, plus bias; `gain` multiplies the weights."""
        weight = self._weight(f"{name}.weight", self._filters((outputs, x.channels), gain))
        self._add("Gemm", name, [x.name, weight, self._bias(f"{name}.bias", outputs, gain)], transB=1)
        return Tensor(name, outputs, 0)

    def _conv(
        self, x: Tensor, name: str, weights: _Array, bias: str | None, stride: int, pad: int, groups: int
    ) -> Tensor:
        filters, kernel = weights.shape[0], weights.shape[-1]
        inputs = [x.name, self._weight(f"{name}.weight", weights)]
        self._add(
            "Conv", name, inputs if bias is None else [*inputs, bias],
            kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4, group=groups,
        )  # fmt: skip
        return Tensor(name, filters, (x.size + 2 * pad - kernel) // stride + 1)

    def _map(self, op_type: str, name: str, x: Tensor, **attributes: Any) -> Tensor:
        self._add(op_type, name, [x.name], **attributes)
        return Tensor(name, x.channels, x.size)

    def _add(self, op_type: str, name: str, inputs: list[str], **attributes: Any) -> None:
        self._model.graph.node.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))

    def _filters(self, shape: tuple[int, ...], gain: float = 1.0) -> _Array:
        fan_in = math.prod(shape[1:])
        if shape[1] < 8:
            return self._uniform(shape, gain * math.sqrt(3 * 2 / fan_in))
        values = self._uniform(shape, gain * math.sqrt(3 / (_RECTIFIED_VARIANCE * fan_in)))
        values -= values.mean(axis=1, keepdims=True)
        return values

    def _bias(self, name: str, channels: int, gain: float) -> str:
        return self._weight(name, self._uniform((channels,), 0.1 * gain))

    def _uniform(self, shape: tuple[int, ...], limit: float) -> _Array:
        values = self._random.random(shape, dtype=np.float32)
        values -= np.float32(0.5)
        values *= np.float32(2 * limit)
        return values

    def _weight(self, name: str, values: _Array) -> str:
        # Filled in place: appending a finished tensor would copy its data once more.
        tensor = self._model.graph.initializer.add()
        tensor.name = name
        tensor.data_type = TensorProto.FLOAT
        tensor.dims.extend(values.shape)
        tensor.raw_data = values.astype("<f4", copy=False).tobytes()
        return name
