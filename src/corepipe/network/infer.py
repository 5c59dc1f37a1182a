"""Types of what nodes make, node by node: no node gets to see a shape that is over the limits.

Shape inference over a whole graph can be made to grow without end by a few dozen nodes (each doubling the rank or the
known values of the one before), so the onnx library is only ever asked about one node.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, MutableMapping, Sequence

import onnx
import onnx.shape_inference
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto

from corepipe.errors import ModelError
from corepipe.network.check import Limits, check_value, explain, title
from corepipe.network.graph import (
    INTEGER_TYPES,
    TensorType,
    attribute,
    constant_of,
    int_attribute,
    ints_attribute,
    is_standard,
    opset_of,
    storage_bytes,
    subgraphs,
    type_of,
)
from corepipe.network.guard import fault, has_typed_inputs

_VISIBLE_BYTES = 1024
_VISIBLE_INTEGER_BYTES = 2**16
_SPARE_CALLS = 10_000

Types = MutableMapping[str, TypeProto]
Constants = MutableMapping[str, TensorProto]


def visible(tensor: TensorProto) -> bool:
    """Whether inference may look at a constant's values (axes, shapes), not only at its type."""
    size = storage_bytes(tensor.data_type, tensor.dims) or 0
    return size <= (_VISIBLE_INTEGER_BYTES if tensor.data_type in INTEGER_TYPES else _VISIBLE_BYTES)


def tensor_type(elem_type: int, shape: Sequence[int | None] | None = None) -> TypeProto:
    """A type proto; sizes that are None are left open."""
    proto = TypeProto()
    proto.tensor_type.elem_type = elem_type
    if shape is not None:
        proto.tensor_type.shape.SetInParent()
        for size in shape:
            dim = proto.tensor_type.shape.dim.add()
            if size is not None:
                dim.dim_value = size
    return proto


class Inference:
    """Infers the types of one model's tensors.

    Args:
        model: for its opsets and its number of nodes.
        name: what messages call it.
        limits: what a tensor may ask for.
        known: types of what operators outside the ONNX standard make.
    """

    def __init__(
        self, model: ModelProto, name: str, limits: Limits, known: Mapping[str, TensorType] | None = None
    ) -> None:
        self._name = name
        self._limits = limits
        self._known = known or {}
        self._ir_version = model.ir_version
        self._opsets = list(model.opset_import)
        self._opset = opset_of(model)
        self._calls = 4 * _count(model.graph) + _SPARE_CALLS

    def outputs(self, node: NodeProto, types: Types, constants: Constants) -> dict[str, TypeProto]:
        """Types of a node's outputs; one of which nothing is known is left out.

        Args:
            node: in the main graph or a subgraph.
            types: of all tensors that it can see, constants included.
            constants: values that it can see.

        Raises:
            ModelError: a tensor is over the limits, or inference itself breaks.
        """
        self._calls -= 1
        if self._calls < 0:
            raise ModelError(f"{self._name}: loops within loops are too costly to analyse; unroll them in the export")
        if next(subgraphs(node), None) is not None:
            made = self._control(node, types, constants)
        else:
            made = self._plain(node, types, constants)
        for output in node.output:
            known = self._known.get(output)
            if known is not None:
                made[output] = tensor_type(known.elem_type, known.shape)
        for output, proto in made.items():
            check_value(ValueInfoProto(name=output, type=proto), self._name, self._limits)
        return made

    def _plain(self, node: NodeProto, types: Types, constants: Constants) -> dict[str, TypeProto]:
        wrong = fault(node, types)
        if wrong:
            raise ModelError(f"{self._name}: node {title(node)}: {wrong}; export the model again")
        if not has_typed_inputs(node, types):
            return {}
        if (tensor := constant_of(node)) is not None:  # may be large, and is visited again and again in a Loop's body
            return {node.output[0]: tensor_type(tensor.data_type, list(tensor.dims))}
        model = ModelProto(ir_version=self._ir_version)
        model.opset_import.extend(self._opsets)
        graph = model.graph
        graph.name = "one node"
        graph.node.append(node)
        for source in dict.fromkeys(node.input):
            if source in constants and visible(constants[source]):
                graph.initializer.append(constants[source])
                graph.initializer[-1].name = source
            elif source in types:
                graph.input.append(ValueInfoProto(name=source, type=types[source]))
        try:
            inferred = onnx.shape_inference.infer_shapes(model, check_type=False, strict_mode=False, data_prop=False)
        except Exception as error:
            label = node.name or next(iter(node.output), "")
            raise ModelError(
                f"{self._name}: shape inference failed at {label!r} ({node.op_type}): {explain(error)}; "
                f"export the model again"
            ) from None
        made, wanted = {}, set(node.output)
        for value in inferred.graph.value_info:
            if value.name in wanted:
                _forget_symbols(value.type)
                made[value.name] = value.type
        return made

    def _control(self, node: NodeProto, types: Types, constants: Constants) -> dict[str, TypeProto]:
        if not is_standard(node):
            return {}
        made: list[TypeProto | None] = []
        if node.op_type == "If":
            then, other = (attribute(node, name) for name in ("then_branch", "else_branch"))
            if isinstance(then, GraphProto) and isinstance(other, GraphProto):
                branches = [self._body(graph, [], types, constants) for graph in (then, other)]
                made = [_merge(a, b) for a, b in zip(*branches, strict=False)]
        elif node.op_type == "Loop":
            made = self._loop(node, types, constants)
        elif node.op_type == "Scan" and self._opset >= 9:
            made = self._scan(node, types, constants)
        else:
            for graph in subgraphs(node):
                self._body(graph, [], types, constants)
        return {o: proto for o, proto in zip(node.output, made, strict=False) if o and proto is not None}

    def _body(
        self, graph: GraphProto, inputs: Sequence[TypeProto | None], types: Types, constants: Constants
    ) -> list[TypeProto | None]:
        """Types of a subgraph's outputs; inputs that are not given have their declared element type only."""
        inner: dict[str, TypeProto] = {}
        values: dict[str, TensorProto] = {}
        for index, value in enumerate(graph.input):
            given = inputs[index] if index < len(inputs) else None
            if given is not None:
                inner[value.name] = given
            elif value.type.WhichOneof("value") == "tensor_type":
                inner[value.name] = tensor_type(value.type.tensor_type.elem_type)
        for tensor in graph.initializer:
            inner[tensor.name] = tensor_type(tensor.data_type, list(tensor.dims))
            values[tensor.name] = tensor
        seen_types: ChainMap[str, TypeProto] = ChainMap(inner, types)
        seen_values: ChainMap[str, TensorProto] = ChainMap(values, constants)
        for node in graph.node:
            inner.update(self.outputs(node, seen_types, seen_values))
            value = attribute(node, "value")
            if node.op_type == "Constant" and isinstance(value, TensorProto):
                values[node.output[0]] = value
        return [seen_types.get(value.name) for value in graph.output]

    def _loop(self, node: NodeProto, types: Types, constants: Constants) -> list[TypeProto | None]:
        body = attribute(node, "body")
        if not isinstance(body, GraphProto):
            return []
        first = [types.get(name) for name in node.input[2:]]
        counters = [tensor_type(TensorProto.INT64, []), tensor_type(TensorProto.BOOL, [])]
        made = self._body(body, [*counters, *first], types, constants)
        carried = [_merge(a, b) for a, b in zip(first, made[1:], strict=False)]
        if any(_differ(a, b) for a, b in zip(first, carried, strict=False)):
            carried = [_without_shape(proto) for proto in carried]
            made = self._body(body, [*counters, *carried], types, constants)
        return [*carried, *(_without_shape(proto) for proto in made[1 + len(first) :])]

    def _scan(self, node: NodeProto, types: Types, constants: Constants) -> list[TypeProto | None]:
        body, scanned = attribute(node, "body"), int_attribute(node, "num_scan_inputs", 0)
        if not isinstance(body, GraphProto) or not 0 < scanned <= len(node.input):
            return []
        states = len(node.input) - scanned
        first = [types.get(name) for name in node.input[:states]]
        axes = ints_attribute(node, "scan_input_axes") or (0,) * scanned
        slices: list[TypeProto | None] = []
        length: int | None = None
        for name, axis in zip(node.input[states:], axes, strict=False):
            kind = type_of(types[name]) if name in types else TensorType(0, None)
            if kind.shape is None or not -len(kind.shape) <= axis < len(kind.shape):
                slices.append(tensor_type(kind.elem_type) if kind.elem_type else None)
                continue
            rest = list(kind.shape)
            length = rest.pop(axis)
            slices.append(tensor_type(kind.elem_type, rest))
        made = self._body(body, [*first, *slices], types, constants)
        carried = [_merge(a, b) for a, b in zip(first, made, strict=False)]
        if any(_differ(a, b) for a, b in zip(first, carried, strict=False)):
            carried = [_without_shape(proto) for proto in carried]
            made = self._body(body, [*carried, *slices], types, constants)
        stacked: list[TypeProto | None] = []
        for proto in made[states:]:
            kind = type_of(proto) if proto is not None else TensorType(0, None)
            along_first = not any(ints_attribute(node, "scan_output_axes"))
            if kind.shape is not None and length is not None and along_first:
                stacked.append(tensor_type(kind.elem_type, [length, *kind.shape]))
            else:
                stacked.append(_without_shape(proto))
        return [*carried, *stacked]


def _count(graph: GraphProto) -> int:
    return sum(1 + sum(_count(inner) for inner in subgraphs(node)) for node in graph.node)


def _forget_symbols(proto: TypeProto) -> None:
    """Drop names of unknown sizes: they are made up anew for each node, so that equal ones mean nothing."""
    kind = proto.WhichOneof("value")
    if kind == "tensor_type":
        for dim in proto.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.Clear()
    elif kind == "sequence_type":
        _forget_symbols(proto.sequence_type.elem_type)
    elif kind == "optional_type":
        _forget_symbols(proto.optional_type.elem_type)


def _merge(a: TypeProto | None, b: TypeProto | None) -> TypeProto | None:
    """What is true of both."""
    if a is None or b is None or a == b:
        return a if a == b else None
    left, right = type_of(a), type_of(b)
    return tensor_type(left.elem_type) if left.elem_type and left.elem_type == right.elem_type else None


def _differ(a: TypeProto | None, b: TypeProto | None) -> bool:
    return a is not b and a != b


def _without_shape(proto: TypeProto | None) -> TypeProto | None:
    if proto is None or proto.WhichOneof("value") != "tensor_type":
        return None
    return tensor_type(proto.tensor_type.elem_type)
