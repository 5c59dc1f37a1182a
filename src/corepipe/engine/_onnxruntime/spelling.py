"""A model in the operators that ONNX Runtime is quickest at."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from corepipe.engine._onnxruntime import dense, lrn
from corepipe.engine._onnxruntime.parts import Parts

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
    graph = model.graph
    if any(used.domain in _STANDARD and used.version < _LEAST_OPSET for used in model.opset_import):
        return model
    found = [i for i, node in enumerate(graph.node) if node.op_type in _SPELLINGS and node.domain in _STANDARD]
    if not found:
        return model
    parts = _parts(graph)
    spelt = {i: nodes for i in found if (nodes := _SPELLINGS[graph.node[i].op_type](graph.node[i], parts))}
    if not spelt:
        return model
    made = type(model)()
    made.CopyFrom(model)
    del made.graph.node[:]
    for i, node in enumerate(graph.node):
        made.graph.node.extend(spelt.get(i, [node]))
    for tensor in made.graph.initializer:
        if tensor.name in parts.reshaped:
            tensor.dims[:] = parts.reshaped[tensor.name]
    made.graph.initializer.extend(parts.made)
    return made


def _parts(graph: GraphProto) -> Parts:
    from onnx import TensorProto

    shapes = {}
    values = [*graph.input, *graph.value_info, *graph.output]
    for value in values:
        kind = value.type.tensor_type
        dims = [dim.dim_value for dim in kind.shape.dim]
        if kind.elem_type == TensorProto.FLOAT and min(dims, default=0) > 0:
            shapes[value.name] = dims
    constants = {t.name: list(t.dims) for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    if any(a.HasField("g") or a.graphs for node in graph.node for a in node.attribute):
        return Parts(shapes, constants, frozenset())  # those graphs may read any
    reads = Counter(name for node in graph.node for name in node.input)
    declared = {value.name for value in values}
    return Parts(shapes, constants, {name for name in constants if reads[name] == 1 and name not in declared})
