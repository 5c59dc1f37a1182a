"""A vector by a large matrix of weights as a 1x1 convolution, on x86.

Such a layer takes as long as its weights take to arrive. ONNX Runtime's matrix product reads them in one stream, its
blocked convolution in four: 23 against 30 GB/s from memory on one core with AVX-512. From a cache both take the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from corepipe.engine._onnxruntime.parts import Parts
from corepipe.engine.base import on_x86

if TYPE_CHECKING:
    from onnx import NodeProto

_LEAST_WEIGHTS = 500_000
"""With a quarter of a million the product is a tenth quicker, even where they come from memory."""
_LEAST_SIDE = 256
"""Rows and columns; narrower matrices were not tried."""
_ALIGNMENT = 4
"""Of the input's channels in blocked convolutions."""
_DEFAULTS = {"alpha": 1.0, "beta": 1.0, "transA": 0}


def spelt(node: NodeProto, parts: Parts) -> list[NodeProto]:
    """The nodes that take the place of a Gemm or MatMul; none where it is not a vector by enough constant weights."""
    from onnx import TensorProto
    from onnx.helper import get_attribute_value, make_node

    if len(node.input) < 2:
        return []
    vector, weights, *others = node.input
    bias = [name for name in others if name]
    settings = {a.name: get_attribute_value(a) for a in node.attribute}
    dims = parts.constants.get(weights, []) if weights in parts.sole else []
    to_turn = not settings.get("transB", 0)
    rows, columns = (dims if to_turn else dims[::-1]) if len(dims) == 2 else (0, 0)
    if (
        rows * columns < _LEAST_WEIGHTS
        or min(rows, columns) < _LEAST_SIDE
        or rows % _ALIGNMENT
        or parts.shapes.get(vector) != [1, rows]
        or any(parts.constants.get(name) != [columns] for name in bias)
        or any(settings.get(name, value) != value for name, value in _DEFAULTS.items())
        or not on_x86()
    ):
        return []
    own = parts.of(node)
    pixel = own.constant("pixel", TensorProto.INT64, [4], [1, rows, 1, 1])
    flat = own.constant("flat", TensorProto.INT64, [2], [1, columns])
    parts.reshaped[weights] = [*dims, 1, 1]
    kernel = own.tensor("kernel") if to_turn else weights
    nodes = [
        make_node("Reshape", [vector, pixel], [own.tensor("image")]),
        make_node("Conv", [own.tensor("image"), kernel, *bias], [own.tensor("product")], kernel_shape=[1, 1]),
        make_node("Reshape", [own.tensor("product"), flat], [node.output[0]]),
    ]
    if to_turn:  # the library does that once, when it compiles, as they are constant
        nodes.insert(0, make_node("Transpose", [weights], [kernel], perm=[1, 0, 2, 3]))
    return own.named(nodes)
