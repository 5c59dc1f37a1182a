"""Layer -> descriptor: kind, the GEMM it amounts to, operations and bytes; all that a cost model may look at."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from corepipe.network.graph import UNKNOWN, TensorType, int_attribute, ints_attribute, reads, shape_of
from corepipe.network.model import Descriptor

Types = Mapping[str, TensorType]

_WEIGHT_INPUT = {
    "Conv": 1, "FusedConv": 1, "ConvTranspose": 1, "ConvInteger": 1, "QLinearConv": 3,
    "Gemm": 1, "FusedGemm": 1, "QGemm": 3, "MatMul": 1, "FusedMatMul": 1, "MatMulInteger": 1, "QLinearMatMul": 3,
}  # fmt: skip
_CONVOLUTIONS = frozenset(("Conv", "FusedConv", "ConvTranspose", "ConvInteger", "QLinearConv"))
POOLS = frozenset({
    "AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool",
})  # fmt: skip
"""They look at a window, or at the whole image."""
POINTWISE = frozenset({
    "Abs", "Add", "And", "BiasGelu", "Ceil", "Celu", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp",
    "FastGelu", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "LeakyRelu", "Less",
    "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow",
    "QuickGelu", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Softplus",
    "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu", "Where", "Xor",
})  # fmt: skip
"""Each element of what they make depends on the same one of what they read."""

_NORMALISATION = {
    "BatchNormalization": 2, "InstanceNormalization": 6, "GroupNormalization": 6, "LayerNormalization": 6,
    "SimplifiedLayerNormalization": 4, "RMSNormalization": 4, "MeanVarianceNormalization": 6, "LpNormalization": 3,
    "SkipLayerNormalization": 7, "Softmax": 4, "LogSoftmax": 4,
}  # fmt: skip
"""Operations per output element."""

_NO_OPERATIONS = frozenset({
    "Cast", "CastLike", "Compress", "Concat", "ConcatFromSequence", "Constant", "ConstantOfShape",
    "DepthToSpace", "Dropout", "Expand", "EyeLike", "Flatten", "Gather", "GatherElements", "GatherND",
    "Identity", "If", "Loop", "NonZero", "OneHot", "Pad", "Reshape", "Scan", "ScatterElements", "ScatterND",
    "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceInsert", "Shape", "Size", "Slice",
    "SpaceToDepth", "Split", "SplitToSequence", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
_ELEMENTWISE = POINTWISE | {"DequantizeLinear", "QuantizeLinear"}
_VIEWS = frozenset({
    "Cast", "CastLike", "Constant", "Dropout", "Flatten", "Identity", "Reshape", "Shape", "Squeeze",
    "Unsqueeze",
})  # fmt: skip


@dataclass(frozen=True)
class _Gemm:
    m: int = 0
    n: int = 0
    k: int = 0
    groups: int = 1

    @property
    def flops(self) -> int:
        return 2 * self.m * self.n * self.k * self.groups


def describe(
    nodes: Sequence[NodeProto], types: Types, constants: Collection[str], leaving: Sequence[str]
) -> Descriptor:
    """The descriptor of a layer.

    Args:
        nodes: its nodes in order.
        types: types of the graph's tensors; what is of unknown shape counts as nothing.
        constants: names of the initializers.
        leaving: tensors it makes that others read or that are outputs of the network.
    """
    main = nodes[dominant(nodes, types)]
    made = {output for node in nodes for output in node.output}
    read = dict.fromkeys(name for node in nodes for name in reads(node))
    gemm = _gemm(main, types)
    output = types.get(main.output[0], UNKNOWN)
    weight = _input(main, _WEIGHT_INPUT[main.op_type]) if main.op_type in _WEIGHT_INPUT else ""
    spatial = shape_of(types, weight)[2:] if main.op_type in _CONVOLUTIONS else ()
    kernel = ints_attribute(main, "kernel_shape") or spatial
    if main.op_type in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
        kernel = shape_of(types, _input(main, 0))[2:]
    windowed = main.op_type in _CONVOLUTIONS or main.op_type in POOLS
    ones = (1,) * len(kernel)
    return Descriptor(
        kind=_kind(main, gemm, types),
        op_types=tuple(node.op_type for node in nodes),
        m=gemm.m,
        n=gemm.n,
        k=gemm.k,
        groups=gemm.groups,
        flops=sum(node_flops(node, types) for node in nodes),
        bytes_in=_bytes((n for n in read if n not in made and n not in constants), types),
        bytes_out=_bytes(leaving, types),
        bytes_weights=_bytes((n for n in read if n in constants), types),
        kernel=tuple(kernel) if windowed else (),
        strides=(ints_attribute(main, "strides") or ones) if windowed else (),
        dilations=(ints_attribute(main, "dilations") or ones) if windowed else (),
        dtype=str(output.info("").dtype) if output.can_cross else "float32",
    )


def dominant(nodes: Sequence[NodeProto], types: Types) -> int:
    """Index of the node that does most of the work; of equals the first that is more than a view."""
    return max(range(len(nodes)), key=lambda i: (node_flops(nodes[i], types), nodes[i].op_type not in _VIEWS, -i))


def node_flops(node: NodeProto, types: Types) -> int:
    """Floating-point operations of one node, a multiply-add counted as 2, a transcendental function as 1.

    Subgraphs count as nothing: how often they run depends on the data.
    """
    kind = node.op_type
    if kind in _WEIGHT_INPUT:
        return _gemm(node, types).flops
    if kind in _NO_OPERATIONS:
        return 0
    given = math.prod(shape_of(types, node.input[0])) if node.input and _known(types, node.input[0]) else 0
    made = sum(types.get(output, UNKNOWN).elements or 0 for output in node.output if output)
    if kind in POOLS:
        window = math.prod(ints_attribute(node, "kernel_shape") or (1,))
        return given if kind.startswith("Global") else made * window * (window > 1)
    if kind == "LRN":
        return made * (2 * int_attribute(node, "size", 1) + 3)
    if kind in ("LSTM", "GRU", "RNN"):
        return _recurrent_flops(node, types)
    if kind in ("Sum", "Max", "Min", "Mean"):
        return made * max(1, len(node.input) - 1)
    if kind.startswith(("Reduce", "Arg")):
        return given
    return made * _NORMALISATION.get(kind, 1)


def _kind(node: NodeProto, gemm: _Gemm, types: Types) -> str:
    kind = node.op_type
    if kind in _CONVOLUTIONS:
        if gemm.groups == 1:
            return "conv"
        shape = shape_of(types, node.input[0])
        return "depthwise" if len(shape) > 1 and shape[1] == gemm.groups else "grouped"
    if kind in _WEIGHT_INPUT:
        return "fully-connected"
    if kind in POOLS:
        return "pool"
    if kind in _NORMALISATION or kind == "LRN":
        return "normalisation"
    return "elementwise" if kind in _ELEMENTWISE else "other"


def _input(node: NodeProto, index: int) -> str:
    """An input's name; empty where there is none, as a domain other than ONNX's own may have it."""
    return node.input[index] if len(node.input) > index else ""


def _known(types: Types, name: str) -> bool:
    return types.get(name, UNKNOWN).shape is not None


def _bytes(names: Iterable[str], types: Types) -> int:
    return sum(types.get(name, UNKNOWN).nbytes or 0 for name in names)


def _gemm(node: NodeProto, types: Types) -> _Gemm:
    """The dims of the GEMM that a convolution (by im2col) or matrix product amounts to; zeros where unknown."""
    kind = node.op_type
    index = _WEIGHT_INPUT.get(kind)
    if index is None or len(node.input) <= index:
        return _Gemm()
    given, weight = shape_of(types, node.input[0]), shape_of(types, node.input[index])
    made = shape_of(types, node.output[0])
    if not given or not weight or not made:
        return _Gemm()
    if kind in _CONVOLUTIONS:
        groups = int_attribute(node, "group", 1)
        if len(given) < 3 or len(weight) < 3 or len(made) < 3 or groups < 1:
            return _Gemm()
        volume = math.prod(weight[2:])
        if kind == "ConvTranspose":
            return _Gemm(given[0] * math.prod(given[2:]), weight[1] * volume, weight[0] // groups, groups)
        return _Gemm(made[0] * math.prod(made[2:]), weight[0] // groups, weight[1] * volume, groups)
    if kind in ("Gemm", "FusedGemm", "QGemm"):
        k = given[0] if int_attribute(node, "transA", 0) else given[-1]
        return _Gemm(made[0], made[-1], k)
    k = given[-2] if int_attribute(node, "transA", 0) and len(given) > 1 else given[-1]
    if len(weight) <= 2:
        n = made[-1] if len(weight) == 2 else 1
        return _Gemm(math.prod(made) // max(n, 1), n, k)
    rows = made[-2] if len(given) > 1 and len(made) > 1 else 1
    return _Gemm(rows, made[-1], k, max(1, math.prod(made) // max(rows * made[-1], 1)))


def _recurrent_flops(node: NodeProto, types: Types) -> int:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[node.op_type]
    shape, hidden = shape_of(types, _input(node, 0)), int_attribute(node, "hidden_size", 0)
    directions = int(np.prod(shape_of(types, _input(node, 1))[:1]) or 1)
    if len(shape) != 3:
        return 0
    return 2 * shape[0] * shape[1] * gates * hidden * (shape[2] + hidden) * directions
