"""The network as corepipe schedules it: layers between cuts, over a loaded ONNX graph."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx

KINDS = (
    "conv", "grouped", "depthwise", "fully-connected", "pool", "elementwise", "normalisation", "other",
)  # fmt: skip
"""The layer kinds; see `Descriptor.kind`."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor that enters, leaves or crosses: `shape` is None where it depends on the data."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...] | None

    @property
    def nbytes(self) -> int | None:
        """Size in bytes, None where the shape depends on the data."""
        return None if self.shape is None else math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype}[{'x'.join(map(str, self.shape)) if self.shape is not None else '?'}]"


@dataclass(frozen=True)
class Descriptor:
    """What a layer computes, without its weights: all that predicting its time may use.

    Attributes:
        kind: one of `KINDS`, of the layer's dominant operator.
        op_types: the ONNX operators of the layer in order, such as ("Conv", "BatchNormalization", "Relu").
        m, n, k: dims of the GEMM that the dominant operator amounts to: m output positions (patches), n filters
            (per group), k filter volume (per group); 0 where it is not one.
        groups: how many GEMMs of these dims there are (convolution groups, batched MatMul).
        flops: floating-point operations of the whole layer, a multiply-add counted as 2.
        bytes_in, bytes_out, bytes_weights: activation bytes read and written, constant bytes read.
        kernel, strides, dilations: of a convolution or pool, else empty.
        dtype: element type of the main output.
    """

    kind: str
    op_types: tuple[str, ...]
    m: int = 0
    n: int = 0
    k: int = 0
    groups: int = 1
    flops: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    bytes_weights: int = 0
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    dtype: str = "float32"


@dataclass(frozen=True)
class Layer:
    """What lies between cut `index` and cut `index + 1`.

    Attributes:
        name: unique within the network, taken from its dominant node.
        nodes: indices into `Network.body.graph.node`, ascending.
        outputs: names of all tensors that its nodes produce.
    """

    index: int
    name: str
    nodes: tuple[int, ...]
    descriptor: Descriptor
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Cut:
    """A place where the graph may be divided: before layer `index`; cut 0 holds the network's inputs.

    Attributes:
        tensors: what must cross: made (or fed) before the cut and read by a layer after it. The cut after the last
            layer holds the network's outputs.
    """

    index: int
    tensors: tuple[TensorInfo, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that cross; tensors of unknown size count as nothing."""
        return sum(t.nbytes or 0 for t in self.tensors)


@dataclass(frozen=True)
class Segment:
    """A run of layers as a model of its own.

    Attributes:
        start, stop: layers `start` to `stop - 1`.
        model: a complete ONNX model whose tensors keep the names they have in the network; what a convolution reads in
            parts is never joined (`corepipe.network.concat`), so results may differ by rounding.
        inputs: what it reads of the tensors alive at cut `start` (network inputs included).
        outputs: what it makes of the tensors alive at cut `stop`, and the network's outputs that it makes.
    """

    start: int
    stop: int
    model: onnx.ModelProto = field(repr=False)
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class Network:
    """An ONNX graph after loading: safe, constants folded, all shapes known, divided into layers.

    Attributes:
        name: file stem or zoo name.
        sha256: hex digest of the loaded (folded, shape-fixed) model with its weights; keys every cache.
        body: the graph in topological order; its node order is the order of the layers. It lacks the constants that are
            in `shared`.
        inputs, outputs: what a frame holds and what a result holds, in the model's order.
        layers: L layers; cuts: L + 1 cuts.
        shared: constants by name that another network holds too, so that there is one copy of them in memory.
    """

    name: str
    sha256: str
    body: onnx.ModelProto = field(repr=False)
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    layers: tuple[Layer, ...] = field(repr=False)
    cuts: tuple[Cut, ...] = field(repr=False)
    shared: Mapping[str, onnx.TensorProto] = field(default_factory=dict, repr=False)

    @property
    def model(self) -> onnx.ModelProto:
        """The complete model: `body` itself, or, where constants are shared, a new copy of all of it at each call."""
        if not self.shared:
            return self.body
        whole = onnx.ModelProto()
        whole.CopyFrom(self.body)
        whole.graph.initializer.extend(self.shared.values())
        return whole

    @property
    def constants(self) -> Iterator[onnx.TensorProto]:
        """All constants of the graph, without a copy."""
        yield from self.body.graph.initializer
        yield from self.shared.values()

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor that appears in a cut, by name."""
        return {t.name: t for cut in self.cuts for t in cut.tensors} | {t.name: t for t in self.outputs}

    @property
    def probabilities(self) -> frozenset[str]:
        """Outputs that are probabilities: a softmax or sigmoid makes them."""
        from corepipe.network.graph import probability_outputs

        return probability_outputs(self.body.graph)

    @property
    def flops(self) -> int:
        """Floating-point operations of one frame."""
        return sum(layer.descriptor.flops for layer in self.layers)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all constants."""
        return sum(layer.descriptor.bytes_weights for layer in self.layers)

    def segment(self, start: int, stop: int, *, as_written: bool = False) -> Segment:
        """Layers `start` to `stop - 1` as a model of their own; see `corepipe.network.extract`."""
        from corepipe.network.extract import extract_segment

        return extract_segment(self, start, stop, as_written=as_written)

    def legal_cuts(self) -> Sequence[int]:
        """Indices of the inner cuts where the network may be divided: those whose tensors all have known shapes."""
        return [c.index for c in self.cuts[1:-1] if all(t.shape is not None for t in c.tensors)]
