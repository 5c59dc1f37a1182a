"""A model in the operators that ONNX Runtime is quickest at, and the nodes that those stand for."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from corepipe.engine._onnxruntime import dense, lrn
from corepipe.engine._onnxruntime.parts import PART, Parts

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

_STANDARD = ("", "ai.onnx")
_LEAST_OPSET = 7
"""Operators broadcast as they do today, and average pools count what is padded if told to."""

_SPELLINGS = {"LRN": lrn.spelt, "Gemm": dense.spelt, "MatMul": dense.spelt}


def spell_out(model: ModelProto) -> ModelProto:
    """The model with those operators in others where it pays; results differ by rounding.

    Returns:
        A model with the same inputs and outputs: a new one, or the same where there is nothing to do.
    """
    if any(used.domain in _STANDARD and used.version < _LEAST_OPSET for used in model.opset_import):
        return model
    found = [n for n in model.graph.node if n.op_type in _SPELLINGS and n.domain in _STANDARD and n.input and n.output]
    if not found:
        return model
    parts = Parts(_shapes(model.graph), _sole_weights(model.graph))
    spelt = {node.output[0]: new for node in found if (new := _SPELLINGS[node.op_type](node, parts))}
    if not spelt:
        return model
    made = type(model)()
    made.CopyFrom(model)
    del made.graph.node[:]
    for node in model.graph.node:
        made.graph.node.extend(spelt.get(node.output[0] if node.output else "", [node]))
    made.graph.initializer.extend(parts.constants)
    for tensor in made.graph.initializer:
        if tensor.name in parts.dims:
            tensor.dims[:] = parts.dims[tensor.name]
    return made


def node_of(name: str) -> str:
    """The node of the model that a node of the spelt-out one stands for."""
    return name.rpartition(PART)[0] or name


def _shapes(graph: GraphProto) -> dict[str, list[int]]:
    """Of the float32 tensors whose axes are of known size."""
    from onnx import TensorProto

    found = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        dims = [dim.dim_value for dim in kind.shape.dim]
        if kind.elem_type == TensorProto.FLOAT and dims and prod(dims) > 0:
            found[value.name] = dims
    return found


def _sole_weights(graph: GraphProto) -> dict[str, list[int]]:
    """The dims of float32 constants that one node reads at most; none where nodes have graphs, which may read any."""
    from onnx import TensorProto

    if any(a.HasField("g") or a.graphs for node in graph.node for a in node.attribute):
        return {}
    reads: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            reads[name] = reads.get(name, 0) + 1
    known = {value.name for value in (*graph.input, *graph.value_info, *graph.output)}
    return {
        t.name: list(t.dims)
        for t in graph.initializer
        if t.data_type == TensorProto.FLOAT and reads.get(t.name, 0) < 2 and t.name not in known
    }
