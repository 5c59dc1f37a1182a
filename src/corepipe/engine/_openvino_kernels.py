"""Kernels that OpenVINO has on x86, but does not choose where they are the fastest: they are named in the model.

Measured on one core with AVX-512, and with AVX2 alone. The library reads the name from the runtime info of a node,
under the key that its own tests use (`PrimitivesPriority`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

from corepipe.engine.base import on_x86

_DIRECT = "cpu:jit_avx512,cpu:jit_avx2"
_FEW_CHANNELS = 3
"""Of an image, or less. The usual kernel first turns the frame to channels last, then multiplies blocks of 16 of them;
the direct one reads planes as they are. Saves 4 % of AlexNet with AVX-512, 8 % of SqueezeNet with AVX2. It writes
blocks: a pool or LRN takes them as they are, but a convolution has them changed, which costs what was saved."""

_ELEMENTWISE = ("Add", "Subtract", "Multiply", "Divide")
_FUSED = (*_ELEMENTWISE, "BatchNormInference", "Relu", "PRelu", "Clamp", "Elu", "Sigmoid", "Swish", "HSwish", "Mish")
_POOLS = ("MaxPool", "AvgPool", "LRN")

_VECTOR = "cpu:jit_gemm"
_LARGE_BYTES = 16 << 20
"""A layer that multiplies one vector by more weights than caches hold takes as long as they take to arrive; in the
order of the usual kernel, which is made for many rows, a sixth longer. Below, and with two rows, the usual one wins."""

_KEY = "primitives_priority_0"
_CARRIER = """\
<net name="carrier" version="11">
    <layers>
        <layer id="0" name="x" type="Parameter" version="opset1">
            <data shape="1" element_type="f32"/>
            <rt_info><attribute name="primitives_priority" version="0" value="{kernels}"/></rt_info>
            <output><port id="0" precision="FP32"><dim>1</dim></port></output>
        </layer>
        <layer id="1" name="y" type="Result" version="opset1">
            <input><port id="0" precision="FP32"><dim>1</dim></port></input>
        </layer>
    </layers>
    <edges><edge from-layer="0" from-port="0" to-layer="1" to-port="0"/></edges>
</net>
"""
"""The binding can neither make such a value nor take text for it, but hands on one that came with a model."""


def name_kernels(core: Any, nodes: Iterable[Any]) -> None:
    """Name the kernels in the runtime info of the nodes of a model that has just been read.

    Args:
        core: the library's.
        nodes: changed in place.
    """
    if not on_x86():
        return
    for node in nodes:
        kernels = _kernels(node)
        if kernels:
            node.set_rt_info(_priority(core, kernels), _KEY)


def _kernels(node: Any) -> str:
    kind = node.get_type_name()
    if kind not in ("Convolution", "MatMul"):
        return ""
    weights, data = node.input_value(1), node.input_value(0).get_partial_shape()
    if weights.get_node().get_type_name() != "Constant" or weights.get_element_type().get_type_name() != "f32":
        return ""
    shape = list(weights.get_shape())
    if kind == "Convolution":
        few = len(shape) == 4 and shape[1] <= _FEW_CHANNELS
        return _DIRECT if few and _is_fed(node.input_value(0)) and _is_pooled(node.output(0)) else ""
    one_row = data.is_static and math.prod(data.to_shape()) == data.to_shape()[-1]
    return _VECTOR if one_row and 4 * math.prod(shape) >= _LARGE_BYTES else ""


def _is_fed(value: Any) -> bool:
    """Whether it is an input of the model, or one that was scaled and shifted."""
    while value.get_node().get_type_name() in _ELEMENTWISE:
        value = value.get_node().input_value(0)
    return str(value.get_node().get_type_name()) == "Parameter"


def _is_pooled(value: Any) -> bool:
    """Whether nothing but a pool reads it, or what an activation makes of it."""
    while True:
        readers = [reader.get_node() for reader in value.get_target_inputs()]
        readers = [node for node in readers if node.get_type_name() != "ShapeOf"]  # for a bias
        if len(readers) != 1 or readers[0].get_type_name() not in _FUSED:
            return len(readers) == 1 and readers[0].get_type_name() in _POOLS
        value = readers[0].output(0)


@functools.cache
def _priority(core: Any, kernels: str) -> Any:
    carrier = core.read_model(_CARRIER.format(kernels=kernels).encode())
    return carrier.get_parameters()[0].get_rt_info()[_KEY]
