"""A vector by a large matrix of weights as a 1x1 convolution, on x86.

Such a layer takes as long as its weights take to arrive. ONNX Runtime's matrix product reads them in one stream, its
blocked convolution in four: 23 against 30 GB/s on one core of a CPU with AVX-512, where caches do not hold them, and
the same where they do.
"""

from __future__ import annotations

import platform
from math import prod
from typing import TYPE_CHECKING

from corepipe.engine._onnxruntime.parts import Parts, named, part

if TYPE_CHECKING:
    from onnx import NodeProto

_X86 = ("x86_64", "amd64")
_LEAST_WEIGHTS = 500_000
"""With a quarter of a million weights the product is the quicker one."""
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
    columns_first = settings.pop("transB", 0) != 0
    sides = parts.weights.get(weights, [])[:: -1 if columns_first else 1]
    if len(sides) != 2 or prod(sides) < _LEAST_WEIGHTS or min(sides) < _LEAST_SIDE or not _on_x86():
        return []
    rows, columns = sides
    if (
        any(settings.get(name, value) != value for name, value in _DEFAULTS.items())
        or rows % _ALIGNMENT
        or parts.shapes.get(vector) != [1, rows]
        or any(parts.weights.get(name) != [columns] for name in bias)
    ):
        return []

    def name(what: str) -> str:
        return part(node, what)

    pixel = parts.constant(name("pixel"), TensorProto.INT64, [4], [1, rows, 1, 1])
    flat = parts.constant(name("flat"), TensorProto.INT64, [2], [1, columns])
    nodes = [
        make_node("Reshape", [vector, pixel], [name("image")]),
        make_node("Conv", [name("image"), weights, *bias], [name("product")], kernel_shape=[1, 1]),
        make_node("Reshape", [name("product"), flat], [node.output[0]]),
    ]
    if columns_first:
        parts.dims[weights] = [columns, rows, 1, 1]
    else:  # constant, so that the library turns them when it compiles
        parts.dims[weights] = [rows, columns, 1, 1]
        nodes.insert(0, make_node("Transpose", [weights], [name("turned")], perm=[1, 0, 2, 3]))
        nodes[2].input[1] = name("turned")
    return named(node, nodes)


def _on_x86() -> bool:
    return platform.machine().lower() in _X86
