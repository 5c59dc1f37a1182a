"""LRN in operators that ONNX Runtime has vector code for: its own kernel raises one element after the other to a power.

y = x / (bias + alpha * m) ** beta, where m is the mean of x * x over a window of channels: an average pool over a view
of the frame whose depth is its channels. At beta = 0.75 the power is sqrt(s) * sqrt(sqrt(s)). Six to nine times as
fast; the result differs by rounding, and in that what is not finite harms its own window only, as the standard has it:
the library's kernel keeps a running sum over the channels, in which it stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

_STANDARD = ("", "ai.onnx")
_BETAS = (0.5, 0.75, 1.0)
_LEAST_OPSET = 7
"""Operators broadcast as they do today, and average pools count what is padded if told to."""

_OPERATOR = b"\x22\x03LRN"
"""A node's operator as it is serialised: field 4, three bytes. Three letters alone occur in weights by chance."""

_PART = "__lrn_"
_DEFAULTS = {"alpha": 1e-4, "beta": 0.75, "bias": 1.0}


def spell_out(model: bytes) -> bytes:
    """The model with every LRN in simpler operators, where its shape is known and its power is made of roots.

    Args:
        model: a serialised `ModelProto`.

    Returns:
        A serialised model with the same inputs and outputs; the same bytes where there is nothing to do.
    """
    if _OPERATOR not in model:
        return model
    from onnx import ModelProto  # takes longer to import than most models to compile

    parsed = ModelProto.FromString(model)
    graph = parsed.graph
    if any(used.domain in _STANDARD and used.version < _LEAST_OPSET for used in parsed.opset_import):
        return model
    shapes = _shapes(graph)
    nodes = [new for node in graph.node for new in _spelt(graph, node, shapes)]
    if len(nodes) == len(graph.node):
        return model
    del graph.node[:]
    graph.node.extend(nodes)
    return bytes(parsed.SerializeToString())


def node_of(name: str) -> str:
    """The node of the model that a node of the spelt-out one stands for."""
    return name.rpartition(_PART)[0] or name


def _shapes(graph: GraphProto) -> dict[str, list[int]]:
    """Of the float32 tensors with four axes of known size."""
    from onnx import TensorProto

    found = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        dims = [dim.dim_value for dim in kind.shape.dim]
        if kind.elem_type == TensorProto.FLOAT and len(dims) == 4 and min(dims) > 0:
            found[value.name] = dims
    return found


def _spelt(graph: GraphProto, node: NodeProto, shapes: dict[str, list[int]]) -> list[NodeProto]:
    """The nodes that take the place of one."""
    if node.op_type != "LRN" or node.domain not in _STANDARD:
        return [node]
    from onnx import TensorProto
    from onnx.helper import get_attribute_value, make_node, make_tensor

    given = {a.name: get_attribute_value(a) for a in node.attribute}
    settings: dict[str, float] = {name: given.get(name, value) for name, value in _DEFAULTS.items()}
    shape, beta, size = shapes.get(node.input[0]), settings["beta"], given.get("size", 0)
    if shape is None or beta not in _BETAS or size < 1:
        return [node]
    x, y = node.input[0], node.output[0]
    before = (size - 1) // 2
    batch, channels, height, width = shape

    def name(part: str) -> str:
        return f"{y}{_PART}{part}"

    def constant(part: str, kind: int, dims: list[int], values: list[float] | list[int]) -> str:
        graph.initializer.append(make_tensor(name(part), kind, dims, values))
        return name(part)

    deep = constant("deep", TensorProto.INT64, [5], [batch, 1, channels, height, width])
    flat = constant("flat", TensorProto.INT64, [4], shape)
    alpha = constant("alpha", TensorProto.FLOAT, [], [settings["alpha"]])
    bias = constant("bias", TensorProto.FLOAT, [], [settings["bias"]])
    nodes = [
        make_node("Mul", [x, x], [name("squares")]),
        make_node("Reshape", [name("squares"), deep], [name("view")]),
        make_node("AveragePool", [name("view")], [name("means")], kernel_shape=[size, 1, 1],
                  pads=[before, 0, 0, size - 1 - before, 0, 0], count_include_pad=1),
        make_node("Reshape", [name("means"), flat], [name("mean")]),
        make_node("Mul", [name("mean"), alpha], [name("scaled")]),
        make_node("Add", [name("scaled"), bias], [name("sum")]),
    ]  # fmt: skip
    power = name("sum")
    if beta < 1:
        nodes.append(make_node("Sqrt", [power], [name("root")]))
        power = name("root")
    if beta == 0.75:
        nodes.append(make_node("Sqrt", [power], [name("fourth_root")]))
        nodes.append(make_node("Mul", [power, name("fourth_root")], [name("power")]))
        power = name("power")
    nodes.append(make_node("Div", [x, power], [y]))
    for new in nodes:
        new.name = f"{node.name}{_PART}{new.output[0].rpartition(_PART)[2]}"
    return nodes
