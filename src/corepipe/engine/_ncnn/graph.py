"""ncnn's side: layers, blobs and their shapes, and the two binary files that ncnn loads."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]
Value = int | float | Sequence[int] | Sequence[float]
Weights = NDArray[np.float32]

_MOST_ELEMENTS = 2**29
_MAGIC = 7767517
_END = -233
_ARRAY = -23300
_AXES = {1: (0,), 2: (0, 1), 3: (0, 1, 2), 4: (0, 1, 11, 2)}
"""Parameters that hold the extents of a blob, from the last axis to the first, for Reshape and MemoryData."""

SHAPE_HINT = 30
"""The parameter that holds the rank and the extents of what a layer makes, from the last axis to the first.

A 3x3 convolution chooses by it, and by its channels, the tiles of its Winograd transform when it is loaded.
"""

FLAG = np.zeros(1, np.float32)
"""Before the weights of a convolution or matrix: what follows is plain float32."""


class Refused(Exception):
    """ncnn cannot do this as ONNX asks for it."""


@dataclass
class Layer:
    """One ncnn layer.

    Attributes:
        kind: its type.
        bottoms: blobs that it reads.
        tops: blobs that it makes.
        params: by ncnn's ids.
        weights: in the order in which ncnn reads them.
        node: the ONNX node that it computes or serves.
    """

    kind: str
    bottoms: list[int]
    tops: list[int]
    params: dict[int, Value] = field(default_factory=dict)
    weights: list[Weights] = field(default_factory=list)
    node: str = ""


@dataclass
class Linear:
    """A convolution or matrix product that is open for what may be fused into it; it becomes a layer in the end."""

    layer: Layer
    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None

    @property
    def channels(self) -> int:
        """How many it makes; the first axis of its weight."""
        return len(self.weight)

    def scale(self, factor: NDArray[np.float64], offset: NDArray[np.float64]) -> None:
        """Make channel c `factor[c] * y + offset[c]`."""
        wide = self.weight * factor.reshape(-1, *[1] * (self.weight.ndim - 1))
        bias = np.zeros(self.channels) if self.bias is None else self.bias.astype(np.float64)
        self.weight, self.bias = wide.astype(np.float32), (bias * factor + offset).astype(np.float32)


@dataclass
class Tensor:
    """An ONNX tensor in a blob of some shape with the same elements in the same order.

    Attributes:
        blob: its number.
        shape: what ONNX calls its shape.
        blob_shape: of 1 to 4 axes; ncnn has no batch axis.
        linear: what made it, as long as something may be fused into that.
        source: the input of the model that it is, if it is one.
    """

    blob: int
    shape: Shape
    blob_shape: Shape
    linear: Linear | None = None
    source: str = ""


def check_size(shape: Shape) -> None:
    """Refuse blobs of 2 GiB and more."""
    if math.prod(shape) >= _MOST_ELEMENTS:
        raise Refused(f"{list(shape)} is 2 GiB or more")


def blob_shape(shape: Shape) -> Shape:
    """The shape in which a tensor of that shape lies best: without a leading 1, of at most 4 axes."""
    kept = shape[1:] if len(shape) > 1 and shape[0] == 1 else shape
    return (*kept[:3], math.prod(kept[3:])) if len(kept) > 4 else kept or (1,)


class Builder:
    """Collects layers; every method that adds one returns the blob or tensor that it makes."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.linears: list[Linear] = []
        self.blobs = 0
        self.node = ""
        """The name for the layers to come."""

    def blob(self) -> int:
        """A new blob."""
        self.blobs += 1
        return self.blobs - 1

    def add(
        self,
        kind: str,
        bottoms: Sequence[int],
        params: Mapping[int, Value] | None = None,
        weights: Sequence[NDArray[np.float32]] = (),
        tops: int = 1,
    ) -> Layer:
        """A layer with new blobs for what it makes."""
        made = [self.blob() for _ in range(tops)]
        layer = Layer(kind, list(bottoms), made, dict(params or {}), list(weights), self.node)
        self.layers.append(layer)
        return layer

    def compute(
        self,
        kind: str,
        given: Tensor,
        params: Mapping[int, Value] | None = None,
        *,
        shape: Shape | None = None,
        blob_shape: Shape | None = None,
        weights: Sequence[NDArray[np.float32]] = (),
    ) -> Tensor:
        """A layer with one input and one output, of the shapes of the input where nothing else is said."""
        layer = self.add(kind, [given.blob], params, weights)
        return Tensor(
            layer.tops[0],
            given.shape if shape is None else shape,
            given.blob_shape if blob_shape is None else blob_shape,
        )

    def linear(self, kind: str, given: Tensor, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> Linear:
        """A layer with a weight of [channels, ...] and perhaps a bias, whose parameters for them come at the end."""
        made = Linear(self.add(kind, [given.blob]), weight, bias)
        self.linears.append(made)
        return made

    def place(self, given: Tensor, shape: Shape) -> Tensor:
        """The tensor in a blob of that shape."""
        if given.blob_shape == shape:
            return given
        if not 1 <= len(shape) <= 4:
            raise Refused(f"{len(shape)} axes")
        if len(shape) == 1:
            return self.compute("Flatten", given, blob_shape=shape)
        params = dict(zip(_AXES[len(shape)], shape[::-1], strict=True))
        return self.compute("Reshape", given, params, blob_shape=shape)

    def constant(self, value: NDArray[np.float32], shape: Shape) -> Tensor:
        """A constant in a blob of that shape."""
        if not 1 <= len(shape) <= 4:
            raise Refused(f"{len(shape)} axes")
        params = dict(zip(_AXES[len(shape)], shape[::-1], strict=True))
        layer = self.add("MemoryData", [], params, [np.ascontiguousarray(value, np.float32)])
        return Tensor(layer.tops[0], value.shape, shape)


@dataclass(frozen=True)
class Input:
    """An input of the model that is read: its blob, its shape there, and whether ncnn may read it where it lies."""

    blob: int
    shape: Shape
    blob_shape: Shape
    in_place: bool


@dataclass(frozen=True)
class Output:
    """An output of the model: a blob, or an input (by name), or a constant."""

    shape: Shape
    blob: int = -1
    blob_shape: Shape = ()
    source: str = ""
    source_shape: Shape = ()
    constant: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Program:
    """What ncnn is to run.

    Attributes:
        inputs: by name; those that nothing reads are left out.
        outputs: by name.
        layers: in an order in which they can run.
        blobs: how many there are.
    """

    inputs: Mapping[str, Input]
    outputs: Mapping[str, Output]
    layers: Sequence[Layer]
    blobs: int

    def parameters(self, type_of: Callable[[str], int]) -> bytes:
        """Its param file in binary form, which unlike the text keeps every digit; `type_of` numbers the types."""
        found = [struct.pack("3i", _MAGIC, len(self.layers), self.blobs)]
        for layer in self.layers:
            head = (type_of(layer.kind), len(layer.bottoms), len(layer.tops), *layer.bottoms, *layer.tops)
            found.append(struct.pack(f"{len(head)}i", *head))
            found += [_parameter(key, value) for key, value in sorted(layer.params.items())]
            found.append(struct.pack("i", _END))
        return b"".join(found)

    def weights(self) -> list[Weights]:
        """The pieces of ncnn's model file."""
        return [array for layer in self.layers for array in layer.weights]


def _parameter(key: int, value: Value) -> bytes:
    if isinstance(value, (int, float)):
        return struct.pack("i" + _format(value), key, value)
    return struct.pack("ii" + "".join(_format(v) for v in value), _ARRAY - key, len(value), *value)


def _format(value: int | float) -> str:
    return "f" if isinstance(value, float) else "i"


def finish(builder: Builder, inputs: Mapping[str, Tensor], outputs: Mapping[str, Output]) -> Program:
    """Fill in what was left open, and give every reader of a blob a blob of its own, as ncnn wants it."""
    for linear in builder.linears:
        bias = [] if linear.bias is None else [np.ascontiguousarray(linear.bias, np.float32)]
        term, size = (1, 2) if linear.layer.kind == "InnerProduct" else (5, 6)
        linear.layer.params |= {0: linear.channels, term: len(bias), size: linear.weight.size}
        linear.layer.weights = [FLAG, np.ascontiguousarray(linear.weight), *bias]
    if any(array.size >= _MOST_ELEMENTS for layer in builder.layers for array in layer.weights):
        raise Refused("2 GiB of weights in one layer")
    readers: dict[int, int] = {}
    for layer in builder.layers:
        for blob in layer.bottoms:
            readers[blob] = readers.get(blob, 0) + 1
    for output in outputs.values():
        if output.blob >= 0:
            readers[output.blob] = readers.get(output.blob, 0) + 1
    starts = [Layer("Input", [], [tensor.blob]) for tensor in inputs.values() if readers.get(tensor.blob)]
    copies: dict[int, list[int]] = {}
    layers: list[Layer] = []
    for layer in [*starts, *builder.layers]:
        layer.bottoms = [copies[blob].pop() if blob in copies else blob for blob in layer.bottoms]
        layers.append(layer)
        for blob in layer.tops:
            if readers.get(blob, 0) > 1:
                copies[blob] = [builder.blob() for _ in range(readers[blob])]
                layers.append(Layer("Split", [blob], list(copies[blob]), node=layer.node))
    given = {
        name: replace(output, blob=copies[output.blob].pop()) if output.blob in copies else output
        for name, output in outputs.items()
    }
    read = {
        name: Input(tensor.blob, tensor.shape, tensor.blob_shape, _only_reads(layers, tensor.blob))
        for name, tensor in inputs.items()
        if readers.get(tensor.blob)
    }
    return Program(read, given, layers, builder.blobs)


_ONLY_READ = frozenset({"Convolution", "ConvolutionDepthWise", "Pooling", "Reorg"})
"""These compute into new memory. Others may write where they read, or hand the same memory on to such, as a Padding
does that pads nothing."""


def _only_reads(layers: Sequence[Layer], blob: int) -> bool:
    for layer in layers:
        if blob in layer.bottoms:
            if layer.kind == "Split":
                if not all(_only_reads(layers, top) for top in layer.tops):
                    return False
            elif layer.kind not in _ONLY_READ and not (
                layer.kind == "Padding" and any(map(layer.params.get, range(4)))
            ):
                return False
    return True
