"""An ONNX model into ncnn's layers, or the reason why not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

from corepipe.engine._ncnn import elementwise, pools, products, shapes
from corepipe.engine._ncnn.graph import (
    Builder,
    Output,
    Program,
    Refused,
    Shape,
    Tensor,
    blob_shape,
    check_size,
    finish,
)
from corepipe.engine._ncnn.node import Node, Scope
from corepipe.engine.base import brief
from corepipe.errors import EngineError

_Operator = Callable[[Node], Tensor | list[Tensor]]
OPERATORS = cast(
    dict[str, _Operator],
    {**products.OPERATORS, **pools.OPERATORS, **elementwise.OPERATORS, **shapes.OPERATORS},
)
"""By type; each takes a node and returns what it makes."""

_VIEWS = frozenset({"Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Unsqueeze"})
_OPSETS = range(7, 27)


def translate(data: bytes) -> Program:
    """The model as a program for ncnn.

    Args:
        data: a serialized ONNX model.

    Raises:
        EngineError: it is none, or ncnn cannot compute what it says.
    """
    try:
        model = onnx.load_from_string(data)
        return _translate(model)
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(f"ncnn refuses the model: {brief(str(error), type(error).__name__)}") from None


def _translate(model: onnx.ModelProto) -> Program:
    graph = model.graph
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    if opset not in _OPSETS:
        raise Refused(f"opset {opset} is not supported")
    if not graph.output or model.functions or graph.sparse_initializer:
        raise Refused("it has no outputs, or functions of its own, or sparse constants")
    constants = {tensor.name: _value(tensor) for tensor in graph.initializer}
    nodes = _live(graph)
    uses: dict[str, int] = {}
    for name in [name for node in nodes for name in node.input] + [value.name for value in graph.output]:
        uses[name] = uses.get(name, 0) + 1
    builder = Builder()
    scope = Scope(builder, opset, constants, {}, uses)
    inputs: dict[str, Tensor] = {}
    for value in graph.input:
        if value.name in uses and value.name not in constants:
            shape = _shape(value)
            check_size(shape)
            inputs[value.name] = scope.tensors[value.name] = Tensor(
                builder.blob(), shape, blob_shape(shape), source=value.name
            )
    for number, node in enumerate(nodes):
        name = node.name or next((output for output in node.output if output), str(number))
        builder.node = name
        _add(node, name, scope)
    outputs = {value.name: _output(value, scope) for value in graph.output}
    return finish(builder, inputs, outputs)


def _live(graph: onnx.GraphProto) -> list[NodeProto]:
    """The nodes that the outputs depend on."""
    wanted, found = {value.name for value in graph.output}, []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            found.append(node)
            wanted.update(node.input)
    return found[::-1]


def _add(proto: NodeProto, name: str, scope: Scope) -> None:
    kind = proto.op_type
    where = f"operator {kind} (node {name})"
    if proto.domain not in ("", "ai.onnx") or (kind not in OPERATORS and kind not in _MADE):
        raise EngineError(f"ncnn refuses the model: {where} is not supported")
    try:
        node = Node(proto, scope)
        if kind in _MADE:
            scope.constants[node.outputs[0]] = _MADE[kind](node)
            return
        if kind in _VIEWS and node.constant(0) is not None:
            scope.constants[node.outputs[0]] = _viewed(node)
            return
        made = OPERATORS[kind](node)
        for output, tensor in zip(node.outputs, made if isinstance(made, list) else [made], strict=False):
            check_size(tensor.shape)
            scope.tensors[output] = tensor
    except EngineError:
        raise
    except Refused as error:
        raise EngineError(f"ncnn refuses the model: {where} is not supported: {error}") from None
    except Exception as error:
        said = brief(str(error), type(error).__name__)
        raise EngineError(f"ncnn refuses the model: {where} is malformed: {said}") from None


def _constant(node: Node) -> NDArray[Any]:
    if node.attribute("value") is None:
        raise Refused("a constant of another kind")
    return _value(node.attribute("value"))


def _filled(node: Node) -> NDArray[Any]:
    shape = node.integers("shape", 0)
    if shape is None or min(shape, default=1) < 0 or math.prod(shape) > _MOST_FILLED:
        raise Refused("no shape of some size")
    value = node.attribute("value")
    return np.full(shape, _value(value).reshape(()) if value is not None else np.float32(0))


_MADE = {"Constant": _constant, "ConstantOfShape": _filled}
_MOST_FILLED = 2**28


def _viewed(node: Node) -> NDArray[Any]:
    """What a view makes of a constant."""
    value = node.constant(0)
    assert value is not None
    made = OPERATORS[node.kind](_OnlyShapes(node, value))
    assert isinstance(made, Tensor)
    return value.reshape(made.shape)


class _OnlyShapes(Node):
    """A node that reads a constant of any type, of which only the shape counts."""

    def __init__(self, node: Node, value: NDArray[Any]) -> None:
        self.__dict__.update(node.__dict__)
        self._shape = value.shape

    def tensor(self, index: int) -> Tensor:
        """See `Node.tensor`."""
        return Tensor(-1, self._shape, self._shape)


def _value(tensor: onnx.TensorProto) -> NDArray[Any]:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise Refused(f"constant {tensor.name!r} lies in a file of its own")
    return numpy_helper.to_array(tensor)


def _shape(value: onnx.ValueInfoProto) -> Shape:
    kind = value.type.tensor_type
    if kind.elem_type != onnx.TensorProto.FLOAT:
        raise Refused(f"{value.name!r} is not float32")
    if not kind.HasField("shape") or any(not dim.HasField("dim_value") for dim in kind.shape.dim):
        raise Refused(f"the shape of {value.name!r} is not fixed")
    shape = tuple(dim.dim_value for dim in kind.shape.dim)
    if any(size < 1 for size in shape):
        raise Refused(f"{value.name!r} has no elements")
    return shape


def _output(value: onnx.ValueInfoProto, scope: Scope) -> Output:
    name = value.name
    if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise Refused(f"{name!r} is not float32")
    if name in scope.constants:
        constant = scope.constants[name]
        if constant.dtype != np.float32:
            raise Refused(f"{name!r} is not float32")
        return Output(constant.shape, constant=constant)
    tensor = scope.tensors[name]
    declared = value.type.tensor_type.shape.dim
    known: Sequence[int] = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in declared]
    if value.type.tensor_type.HasField("shape") and (
        len(known) != len(tensor.shape) or any(a not in (-1, b) for a, b in zip(known, tensor.shape, strict=True))
    ):
        raise Refused(f"{name!r} is said to be {list(known)} and turns out to be {list(tensor.shape)}")
    if tensor.source:
        return Output(tensor.shape, source=tensor.source, source_shape=scope.tensors[tensor.source].shape)
    return Output(tensor.shape, tensor.blob, tensor.blob_shape)
