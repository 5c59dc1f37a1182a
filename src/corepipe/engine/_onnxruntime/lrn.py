"""LRN in operators that ONNX Runtime has vector code for: its own kernel raises one element after the other to a power.

y = x / (bias + alpha * m) ** beta, where m is the mean of x * x over a window of channels: an average pool over a view
of the frame whose depth is its channels. At beta = 0.75 the power is sqrt(s) * sqrt(sqrt(s)). Six to nine times as
fast; the result differs by rounding, and in that what is not finite harms its own window only, as the standard has it:
the library's kernel keeps a running sum over the channels, in which it stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from corepipe.engine._onnxruntime.parts import Parts

if TYPE_CHECKING:
    from onnx import NodeProto

_BETAS = (0.5, 0.75, 1.0)
_DEFAULTS = {"alpha": 1e-4, "beta": 0.75, "bias": 1.0}


def spelt(node: NodeProto, parts: Parts) -> list[NodeProto]:
    """The nodes that take the place of an LRN; none where its shape is not known or its power is not made of roots."""
    from onnx import TensorProto
    from onnx.helper import get_attribute_value, make_node

    given = {a.name: get_attribute_value(a) for a in node.attribute}
    settings: dict[str, float] = {name: given.get(name, value) for name, value in _DEFAULTS.items()}
    shape, beta, size = parts.shapes.get(node.input[0], []), settings["beta"], given.get("size", 0)
    if len(shape) != 4 or beta not in _BETAS or size < 1:
        return []
    x, y = node.input[0], node.output[0]
    before = (size - 1) // 2
    batch, channels, height, width = shape
    own = parts.of(node)
    name = own.tensor
    deep = own.constant("deep", TensorProto.INT64, [5], [batch, 1, channels, height, width])
    flat = own.constant("flat", TensorProto.INT64, [4], shape)
    alpha = own.constant("alpha", TensorProto.FLOAT, [], [settings["alpha"]])
    bias = own.constant("bias", TensorProto.FLOAT, [], [settings["bias"]])
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
    return own.named(nodes)
