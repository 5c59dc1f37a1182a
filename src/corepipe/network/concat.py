"""Convolutions read the parts of a Concat one by one, so that nobody copies them together first.

A convolution over joined channels is the sum of one over each part's channels: conv(concat(a, b)) = conv(a) + conv(b),
and operators that keep channels apart, such as pools, are applied to each part. Most engines add the sum
up as they write it, and the others save the copy, which is the larger: joining reads and writes every element once
more, a tenth of SqueezeNet's time. The result differs by rounding alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto

from corepipe.network.graph import (
    TensorType,
    int_attribute,
    is_standard,
    keep_named,
    reads,
    replace_nodes,
    set_type,
    types_of,
)
from corepipe.network.model import Network

_KEEPS_CHANNELS_APART = frozenset({
    "AveragePool", "Clip", "Elu", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish", "LeakyRelu",
    "MaxPool", "Relu", "Selu", "Sigmoid", "Tanh",
})  # fmt: skip
_CHANNELS = 1
_Shapes = Mapping[str, tuple[int, ...]]

_LEAST_GAIN = 4
"""Elements that need not be joined, for one that is added up instead: adding reads and writes as well, and each
convolution starts anew. What gains less was not measured."""

_LEAST_ELEMENTS = 4096
"""Joining fewer takes no longer than one more call of a kernel."""

_LEAST_CHANNELS = 16
"""Engines compute with so many at a time; fewer in a part would leave their vectors half empty."""


@dataclass(frozen=True)
class _Join:
    """A Concat, the operators on its output up to a convolution, and that convolution."""

    concat: NodeProto
    between: tuple[NodeProto, ...]
    conv: NodeProto


def read_parts(graph: GraphProto) -> None:
    """Take every Concat out that only a convolution reads, where the convolution's output is small beside it.

    Args:
        graph: in topological order, with the types of its inner tensors; changed in place. What is new is named after
            the tensor that it is a part of, with `_part<i>` behind.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    shapes = _shapes(graph, constants.values())
    replaced: dict[str, list[NodeProto]] = {}
    for join in _find(graph, constants, shapes):
        replaced |= {node.output[0]: [] for node in (join.concat, *join.between)}
        replaced[join.conv.output[0]] = _apart(graph, join, shapes, constants[join.conv.input[1]])
    if not replaced:
        return
    replace_nodes(graph, [n for node in graph.node for n in replaced.get(next(iter(node.output), ""), [node])])
    keep_named(graph.value_info, {output for node in graph.node for output in node.output})
    keep_named(graph.initializer, {name for node in graph.node for name in reads(node)})


def never_joined(network: Network) -> frozenset[int]:
    """The layers that are such a Concat and nothing else: a segment that goes on behind them does not run them."""
    graph, constants = network.body.graph, {tensor.name: tensor for tensor in network.constants}
    joins = _find(graph, constants, _shapes(graph, constants.values()))
    names = {join.concat.output[0] for join in joins}
    return frozenset(layer.index for layer in network.layers if names.issuperset(layer.outputs))


def useful_cuts(network: Network) -> tuple[int, ...]:
    """The legal cuts, but for those for which alone a join would be made, where no less crosses than before it."""
    behind = {i + 1 for i in never_joined(network) if network.cuts[i + 1].nbytes >= network.cuts[i].nbytes}
    return tuple(cut for cut in network.legal_cuts() if cut not in behind)


def _shapes(graph: GraphProto, constants: Iterable[TensorProto]) -> _Shapes:
    """Of the float32 tensors, where they are known."""
    types = types_of(graph) | {t.name: TensorType(t.data_type, tuple(t.dims)) for t in constants}
    return {name: t.shape for name, t in types.items() if t.elem_type == TensorProto.FLOAT and t.shape is not None}


def _find(graph: GraphProto, constants: Collection[str], shapes: _Shapes) -> list[_Join]:
    concats = [node for node in graph.node if node.op_type == "Concat" and is_standard(node) and len(node.input) > 1]
    if not concats:
        return []
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in reads(node):
            readers.setdefault(name, []).append(node)
    # The parts of weights that two read would be held twice.
    weights = {name for name in constants if len(readers.get(name, ())) == 1}
    ends = {value.name for value in graph.output}
    taken = {*constants, *types_of(graph), *readers, *(output for node in graph.node for output in node.output)}
    found = []
    for concat in concats:
        join = _follow(concat, readers, ends)
        if join is None or join.conv.input[1] not in weights or not _pays(join, shapes):
            continue
        names = _names(join)
        if taken.isdisjoint(names) and len(set(names)) == len(names):
            found.append(join)
            taken.update(names)
    return found


def _follow(concat: NodeProto, readers: Mapping[str, Sequence[NodeProto]], ends: set[str]) -> _Join | None:
    """From a Concat to a convolution, where nothing else reads what is on the way."""
    between: list[NodeProto] = []
    name = concat.output[0]
    while name not in ends and len(readers.get(name, ())) == 1:
        (node,) = readers[name]
        if not is_standard(node) or list(node.input[:1]) != [name] or name in node.input[1:] or any(node.output[1:]):
            return None
        if node.op_type == "Conv":
            return _Join(concat, tuple(between), node)
        if node.op_type not in _KEEPS_CHANNELS_APART:
            return None
        between.append(node)
        name = node.output[0]
    return None


def _pays(join: _Join, shapes: _Shapes) -> bool:
    """Whether all shapes are known and fit, and less is added up than need not be joined."""
    sources, whole, filters, output = join.concat.input, join.concat.output[0], join.conv.input[1], join.conv.output[0]
    if not shapes.keys() >= {*sources, whole, *(node.output[0] for node in join.between), filters, output}:
        return False
    rank = len(shapes[whole])
    if rank < 3 or int_attribute(join.concat, "axis", 0) % rank != _CHANNELS or len(shapes[filters]) != rank:
        return False
    channels = [shapes[source][_CHANNELS] for source in sources]
    if int_attribute(join.conv, "group", 1) != 1 or sum(channels) != shapes[filters][1]:
        return False
    joined, added = math.prod(shapes[whole]), (len(sources) - 1) * math.prod(shapes[output])
    return min(channels) >= _LEAST_CHANNELS and joined >= _LEAST_ELEMENTS and joined >= _LEAST_GAIN * added


def _names(join: _Join) -> list[str]:
    """All that `_apart` calls something new."""
    names = [node.output[0] for node in (*join.between, join.conv)]
    names += [_filters(join.conv), _sum(join.conv)]
    return [_part(name, index) for name in names for index in range(len(join.concat.input))]


def _filters(conv: NodeProto) -> str:
    return f"{conv.output[0]}_filters"


def _sum(conv: NodeProto) -> str:
    return f"{conv.output[0]}_sum"


def _part(name: str, index: int) -> str:
    return f"{name}_part{index}"


def _apart(graph: GraphProto, join: _Join, shapes: _Shapes, filters: TensorProto) -> list[NodeProto]:
    """The nodes that take the place of a join; constants and types are added to the graph."""
    weights, output = onnx.numpy_helper.to_array(filters), join.conv.output[0]
    nodes: list[NodeProto] = []
    sums: list[str] = []
    first = 0
    for index, source in enumerate(join.concat.input):
        channels = shapes[source][_CHANNELS]
        for node in join.between:
            nodes.append(_copy(node, index, [source, *node.input[1:]]))
            source = nodes[-1].output[0]
            batch, _, *places = shapes[node.output[0]]
            _declare(graph, source, (batch, channels, *places))
        own = np.ascontiguousarray(weights[:, first : first + channels])
        first += channels
        graph.initializer.append(onnx.numpy_helper.from_array(own, _part(_filters(join.conv), index)))
        # The bias is added once.
        bias = join.conv.input[2:] if index == 0 else []
        nodes.append(_copy(join.conv, index, [source, graph.initializer[-1].name, *bias]))
        sums.append(nodes[-1].output[0])
    totals = [sums[0], *(_part(_sum(join.conv), index) for index in range(1, len(sums) - 1)), output]
    for name in (*sums, *totals[1:-1]):
        _declare(graph, name, shapes[output])
    for index, name in enumerate(sums[1:], 1):
        add = onnx.helper.make_node("Add", [totals[index - 1], name], [totals[index]])
        add.name = _part(f"{join.conv.name}_sum", index)
        nodes.append(add)
    return nodes


def _copy(node: NodeProto, index: int, inputs: Sequence[str]) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name = _part(node.name, index)
    copy.input[:] = inputs
    copy.output[:] = [_part(node.output[0], index)]
    return copy


def _declare(graph: GraphProto, name: str, shape: Sequence[int]) -> None:
    set_type(graph.value_info.add(name=name), TensorType(TensorProto.FLOAT, tuple(shape)))
