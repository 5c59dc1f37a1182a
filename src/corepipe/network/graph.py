"""Small helpers over ONNX protos: what a node reads, how large a tensor is, which types can cross a cut."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping, MutableSequence, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, TypeProto

from corepipe.network.model import TensorInfo

STANDARD_DOMAINS = ("", "ai.onnx")

_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32, TensorProto.DOUBLE: 64, TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16,
    TensorProto.INT8: 8, TensorProto.INT16: 16, TensorProto.INT32: 32, TensorProto.INT64: 64,
    TensorProto.UINT8: 8, TensorProto.UINT16: 16, TensorProto.UINT32: 32, TensorProto.UINT64: 64,
    TensorProto.BOOL: 8, TensorProto.COMPLEX64: 64, TensorProto.COMPLEX128: 128,
    TensorProto.FLOAT8E4M3FN: 8, TensorProto.FLOAT8E4M3FNUZ: 8, TensorProto.FLOAT8E5M2: 8,
    TensorProto.FLOAT8E5M2FNUZ: 8, TensorProto.UINT4: 4, TensorProto.INT4: 4, TensorProto.FLOAT4E2M1: 4,
}  # fmt: skip

_NUMPY: dict[int, str] = {
    TensorProto.FLOAT: "float32", TensorProto.DOUBLE: "float64", TensorProto.FLOAT16: "float16",
    TensorProto.INT8: "int8", TensorProto.INT16: "int16", TensorProto.INT32: "int32", TensorProto.INT64: "int64",
    TensorProto.UINT8: "uint8", TensorProto.UINT16: "uint16", TensorProto.UINT32: "uint32",
    TensorProto.UINT64: "uint64", TensorProto.BOOL: "bool",
}  # fmt: skip

INTEGER_TYPES = frozenset(
    number for number, name in _NUMPY.items() if "int" in name or name == "bool"
)  # fmt: skip


_SAME_VALUES = frozenset({
    "Cast", "DequantizeLinear", "Dropout", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Squeeze", "Unsqueeze",
})  # fmt: skip


class TensorType:
    """Element type (0 where unknown or not a tensor) and shape (None where it depends on the data)."""

    __slots__ = ("elem_type", "shape")

    def __init__(self, elem_type: int, shape: tuple[int, ...] | None) -> None:
        self.elem_type = elem_type
        self.shape = shape

    @property
    def elements(self) -> int | None:
        """Number of elements, None where the shape is unknown."""
        return None if self.shape is None else math.prod(self.shape)

    @property
    def nbytes(self) -> int | None:
        """Size in bytes, None where shape or type is unknown."""
        return None if self.shape is None else storage_bytes(self.elem_type, self.shape)

    @property
    def can_cross(self) -> bool:
        """Whether a numpy array can carry it from worker to worker."""
        return self.elem_type in _NUMPY

    def info(self, name: str) -> TensorInfo:
        """The same with a name; only where `can_cross`."""
        return TensorInfo(name, np.dtype(_NUMPY[self.elem_type]), self.shape)


UNKNOWN = TensorType(0, None)


def storage_bytes(elem_type: int, dims: Iterable[int]) -> int | None:
    """Bytes that a tensor takes; a string counts as one byte; None for an element type not known here."""
    count = math.prod(dims)
    if elem_type == TensorProto.STRING:
        return count
    bits = _BITS.get(elem_type)
    return None if bits is None else (count * bits + 7) // 8


def element_bits(elem_type: int) -> int | None:
    """Bits of one element; None for strings and unknown types."""
    return _BITS.get(elem_type)


def type_name(elem_type: int) -> str:
    """Such as `BFLOAT16`, or the number itself."""
    try:
        name: str = TensorProto.DataType.Name(elem_type)
    except ValueError:
        return str(elem_type)
    return name


def type_of(proto: TypeProto) -> TensorType:
    """What a type proto says; `UNKNOWN` for sequences, maps and optionals."""
    if proto.WhichOneof("value") != "tensor_type":
        return UNKNOWN
    tensor = proto.tensor_type
    if not tensor.HasField("shape"):
        return TensorType(tensor.elem_type, None)
    dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
    return TensorType(tensor.elem_type, tuple(dims) if all(d >= 0 for d in dims) else None)


def set_type(info: onnx.ValueInfoProto, kind: TensorType) -> None:
    """Make `info` say just `kind`."""
    tensor = info.type.tensor_type
    tensor.elem_type = kind.elem_type
    tensor.ClearField("shape")
    if kind.shape is not None:
        tensor.shape.SetInParent()
        for size in kind.shape:
            tensor.shape.dim.add().dim_value = size


def shape_of(types: Mapping[str, TensorType], name: str) -> tuple[int, ...]:
    """A tensor's shape; empty where it is unknown."""
    return types.get(name, UNKNOWN).shape or ()


def types_of(graph: GraphProto) -> dict[str, TensorType]:
    """What a graph declares of its inputs, inner tensors and outputs."""
    return {value.name: type_of(value.type) for value in (*graph.input, *graph.value_info, *graph.output)}


def replace_nodes(graph: GraphProto, nodes: Sequence[NodeProto]) -> None:
    """Give a graph other nodes, some of its own among them."""
    copies = GraphProto()
    copies.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(copies.node)


def keep_named(values: MutableSequence[Any], names: Container[str]) -> None:
    """Drop the initializers, or declared types, of other names."""
    for index in reversed(range(len(values))):
        if values[index].name not in names:
            del values[index]


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs directly inside a node (branches of If, bodies of Loop and Scan)."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Nodes, and those of the graphs inside them."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from all_nodes(graph.node)


def attribute_tensors(node: NodeProto) -> Iterator[TensorProto]:
    """The tensors among a node's attributes."""
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors


def captures(graph: GraphProto) -> dict[str, None]:
    """Names that a subgraph reads from the graphs around it, in order of first use."""
    inside = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    found: dict[str, None] = {}
    for node in graph.node:
        for name in reads(node):
            if name not in inside:
                found.setdefault(name)
        inside.update(node.output)
    for value in graph.output:
        if value.name and value.name not in inside:
            found.setdefault(value.name)
    return found


def reads(node: NodeProto) -> tuple[str, ...]:
    """Names that a node reads, each once: its inputs, then what its subgraphs capture."""
    names = dict.fromkeys(name for name in node.input if name)
    for graph in subgraphs(node):
        names.update(captures(graph))
    return tuple(names)


def probability_outputs(graph: GraphProto) -> frozenset[str]:
    """Floating-point outputs that a Softmax or Sigmoid makes, quantised or reshaped in between or not."""
    maker = {output: node for node in graph.node for output in node.output}

    def made_by(name: str) -> bool:
        while (node := maker.get(name)) is not None and node.op_type in _SAME_VALUES and node.input:
            name = node.input[0]
        return node is not None and node.op_type in ("Softmax", "Sigmoid")

    floats = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
    ends = (value.name for value in graph.output if value.type.tensor_type.elem_type in floats)
    return frozenset(name for name in ends if made_by(name))


def rename_reads(node: NodeProto, renamed: Mapping[str, str]) -> None:
    """Replace names that a node reads, in its subgraphs too."""
    for index, name in enumerate(node.input):
        if name in renamed:
            node.input[index] = renamed[name]
    for graph in subgraphs(node):
        for inner in graph.node:
            rename_reads(inner, renamed)
        for value in graph.output:
            if value.name in renamed:
                value.name = renamed[value.name]


def attribute(node: NodeProto, name: str, default: object = None) -> object:
    """The value of an attribute, or `default`."""
    for item in node.attribute:
        if item.name == name:
            return attribute_value(item, default)
    return default


def attribute_value(item: AttributeProto, default: object = None) -> object:
    """The value that an attribute holds; `default` where it is of no known type or only refers to another."""
    try:
        value: object = onnx.helper.get_attribute_value(item)
    except ValueError:
        return default
    return value


def int_attribute(node: NodeProto, name: str, default: int) -> int:
    """The value of an integer attribute, or `default`."""
    value = attribute(node, name, default)
    return value if isinstance(value, int) else default


def ints_attribute(node: NodeProto, name: str) -> tuple[int, ...]:
    """The value of a list-of-integers attribute, empty where there is none, or of another type."""
    value = attribute(node, name)
    return tuple(v for v in value if isinstance(v, int)) if isinstance(value, (list, tuple)) else ()


def constant_of(node: NodeProto) -> TensorProto | None:
    """The tensor that a Constant node holds, if it is one that does."""
    if node.op_type != "Constant" or not is_standard(node) or len(node.attribute) != 1 or len(node.output) != 1:
        return None
    item = node.attribute[0]
    return item.t if item.name == "value" and item.HasField("t") and node.output[0] else None


def is_standard(node: NodeProto) -> bool:
    """Whether the operator is ONNX's own."""
    return node.domain in STANDARD_DOMAINS


def opset_of(model: onnx.ModelProto, domain: str = "") -> int:
    """The model's opset version of a domain, 1 where it does not say."""
    names = STANDARD_DOMAINS if domain in STANDARD_DOMAINS else (domain,)
    return next((item.version for item in model.opset_import if item.domain in names), 1)


def human_bytes(count: float) -> str:
    """Bytes for people, such as `4.0 TiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
