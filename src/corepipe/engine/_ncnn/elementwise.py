"""Activations and arithmetic element by element."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from corepipe.engine._ncnn.graph import Refused, Shape, Tensor, Value
from corepipe.engine._ncnn.node import Node
from corepipe.engine._ncnn.pools import scaled

Numbers = NDArray[np.float64]

_UNARY = {"Abs": 0, "Neg": 1, "Floor": 2, "Ceil": 3, "Sqrt": 5, "Exp": 7, "Log": 8, "Reciprocal": 15}
_BINARY = {"Add": 0, "Sub": 1, "Mul": 2, "Div": 3, "Max": 4, "Min": 5}
_REVERSED = {"Add": 0, "Sub": 7, "Mul": 2, "Div": 8, "Max": 4, "Min": 5}
"""With the operands exchanged."""

_AFFINE: dict[int, Callable[[Numbers], tuple[Numbers, Numbers]]] = {
    0: lambda c: (np.ones_like(c), c),
    1: lambda c: (np.ones_like(c), -c),
    2: lambda c: (c, np.zeros_like(c)),
    3: lambda c: (1 / c, np.zeros_like(c)),
    7: lambda c: (-np.ones_like(c), c),
}
"""Factor and offset that do the same as an operator with a constant."""

_LARGEST = float(np.finfo(np.float32).max)


def unary(node: Node) -> Tensor:
    """A function of one number."""
    return node.builder.compute("UnaryOp", node.tensor(0), {0: _UNARY[node.kind]})


def relu(node: Node) -> Tensor:
    """Relu."""
    return _activation(node, "ReLU", {}, 1)


def leaky_relu(node: Node) -> Tensor:
    """LeakyRelu."""
    slope = float(node.attribute("alpha", 0.01))
    return _activation(node, "ReLU", {0: slope}, 2, slope)


def clip(node: Node) -> Tensor:
    """Clip."""
    low, high = node.number("min", 1, -_LARGEST), node.number("max", 2, _LARGEST)
    if low > high:
        raise Refused("min above max")
    return _activation(node, "Clip", {0: low, 1: high}, 3, low, high)


def sigmoid(node: Node) -> Tensor:
    """Sigmoid."""
    return _activation(node, "Sigmoid", {}, 4)


def hard_swish(node: Node) -> Tensor:
    """HardSwish."""
    return _activation(node, "HardSwish", {0: 1 / 6, 1: 0.5}, 6, 1 / 6, 0.5)


def hard_sigmoid(node: Node) -> Tensor:
    """HardSigmoid, which ncnn limits where the line crosses 0 and 1."""
    alpha, beta = float(node.attribute("alpha", 0.2)), float(node.attribute("beta", 0.5))
    if alpha <= 0:
        raise Refused("a slope that is not above zero")
    return node.builder.compute("HardSigmoid", node.tensor(0), {0: alpha, 1: beta})


def elu(node: Node) -> Tensor:
    """Elu."""
    return node.builder.compute("ELU", node.tensor(0), {0: float(node.attribute("alpha", 1.0))})


def tanh(node: Node) -> Tensor:
    """Tanh."""
    return node.builder.compute("TanH", node.tensor(0))


def prelu(node: Node) -> Tensor:
    """PRelu with one slope, or one for each channel."""
    slope, given = node.floats(1, "slope").astype(np.float32), node.tensor(0)
    if slope.size == 1:
        if len(given.blob_shape) == 4:  # of which most versions leave such blobs as they are
            given = node.builder.place(given, (math.prod(given.shape),))
        return node.builder.compute("PReLU", given, {0: 1}, weights=[slope.reshape(1)])
    channels = _channels(slope.shape, given.shape)
    if not channels or given.shape[0] != 1:
        raise Refused(f"a slope of {list(slope.shape)}")
    rest = math.prod(given.shape[2:])  # ncnn goes by the blob's axes: its first one must be that of the channels
    given = node.image() if len(given.shape) == 4 else node.builder.place(given, (channels, rest)[: 1 + (rest > 1)])
    return node.builder.compute("PReLU", given, {0: channels}, weights=[slope.reshape(-1)])


def _activation(node: Node, kind: str, params: dict[int, Value], fused: int, *numbers: float) -> Tensor:
    linear = node.open(0)
    if linear is None:
        return node.builder.compute(kind, node.tensor(0), params)
    linear.layer.params[9] = fused
    if numbers:
        linear.layer.params[10] = numbers
    result = node.passed_on(0)
    result.linear = None
    return result


def binary(node: Node) -> Tensor:
    """Add, Sub, Mul, Div, Max and Min of two, of which one may be repeated along axes where it has 1."""
    if len(node.inputs) == 1:
        return node.passed_on(0)
    if len(node.inputs) != 2:
        raise Refused(f"{len(node.inputs)} inputs")
    if node.attribute("axis") is not None or node.attribute("broadcast") is not None:
        raise Refused("the broadcast of an old opset")
    first, second = node.constant(0), node.constant(1)
    if first is not None and second is not None:
        raise Refused("two constants")
    if second is not None:
        return _with_constant(node, 0, node.floats(1, "constant"), _BINARY[node.kind])
    if first is not None:
        return _with_constant(node, 1, node.floats(0, "constant"), _REVERSED[node.kind])
    return _of_two(node, node.tensor(0), node.tensor(1), _BINARY[node.kind])


def total(node: Node) -> Tensor:
    """Sum."""
    made = node.passed_on(0)
    for index in range(1, len(node.inputs)):
        made = _of_two(node, made, node.tensor(index), 0)
    return made


def _with_constant(node: Node, index: int, value: NDArray[np.float64], operator: int) -> Tensor:
    given = node.tensor(index)
    shape = np.broadcast_shapes(given.shape, value.shape)
    if not value.size:
        raise Refused("a constant without elements")
    linear, channels = node.open(index), _channels(value.shape, given.shape)
    if shape == given.shape and operator in _AFFINE and np.isfinite(value).all() and (operator != 3 or value.all()):
        factor, offset = _AFFINE[operator](value.reshape(-1))
        if channels and given.shape[0] == 1:
            return scaled(node, index, factor, offset)
        of_last = value.shape[-1:] == (value.size,) == given.shape[-1:]
        if of_last and linear is not None and linear.layer.kind == "InnerProduct":
            linear.scale(factor, offset)
            return node.passed_on(index)
    if value.size == 1 and shape == given.shape:
        return node.builder.compute("BinaryOp", given, {0: operator, 1: 1, 2: float(value.reshape(()))})
    constant = node.tensor(1 - index)
    return _of_two(node, *((given, constant) if index == 0 else (constant, given)), _BINARY[node.kind])


def _channels(constant: Shape, given: Shape) -> int:
    """How many channels there are, if a constant has just one number for each; else 0."""
    if len(given) < 2 or len(constant) > len(given):
        return 0
    full = (1,) * (len(given) - len(constant)) + tuple(constant)
    wanted = (1, given[1], *[1] * (len(given) - 2))
    return given[1] if full == wanted and given[1] > 1 else 0


def _of_two(node: Node, first: Tensor, second: Tensor, operator: int) -> Tensor:
    shape = np.broadcast_shapes(first.shape, second.shape)
    if first.shape == second.shape and first.blob_shape == second.blob_shape:
        layer = node.builder.add("BinaryOp", [first.blob, second.blob], {0: operator})
        return Tensor(layer.tops[0], shape, first.blob_shape)
    if shape not in (first.shape, second.shape):
        raise Refused("both inputs are repeated")
    a, b = (_of_rank(t.shape, len(shape)) for t in (first, second))
    a, b = _joined(a, b)
    placed = node.builder.place(first, a), node.builder.place(second, b)
    layer = node.builder.add("BinaryOp", [t.blob for t in placed], {0: operator})
    return Tensor(layer.tops[0], shape, tuple(max(pair) for pair in zip(a, b, strict=True)))


def _of_rank(shape: Shape, rank: int) -> Shape:
    return (1,) * (rank - len(shape)) + shape


def _joined(first: Shape, second: Shape) -> tuple[Shape, Shape]:
    """The same two shapes with a leading 1 left out, so that an image lies as usual."""
    strip = len(first) > 1 and first[0] == second[0] == 1
    if len(first) - strip > 4:
        raise Refused(f"{len(first)} axes")
    return (first[strip:] or (1,), second[strip:] or (1,))


OPERATORS = {
    **dict.fromkeys(_UNARY, unary), **dict.fromkeys(_BINARY, binary), "Sum": total, "Relu": relu,
    "LeakyRelu": leaky_relu, "Clip": clip, "Sigmoid": sigmoid, "HardSwish": hard_swish,
    "HardSigmoid": hard_sigmoid, "Elu": elu, "Tanh": tanh, "PRelu": prelu,
}  # fmt: skip
