"""Convolutions read the parts of a Concat one by one, so that nobody copies them together first.

A convolution over joined channels is the sum of one over each part's channels: conv(concat(a, b)) = conv(a) + conv(b),
and operators that keep channels apart, such as pools, are applied to each part. Engines add the sum up as they write
it, whereas joining reads and writes every element once more: a tenth of SqueezeNet's time. The result differs by
rounding alone. An engine that does not fuse the sum still saves the copy, which is the larger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto

from corepipe.network.graph import TensorType, int_attribute, is_standard, reads, set_type, type_of
from corepipe.network.model import Network

_KEEPS_CHANNELS_APART = frozenset({
    "AveragePool", "Clip", "Elu", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish", "LeakyRelu",
    "MaxPool", "Relu", "Selu", "Sigmoid", "Tanh",
})  # fmt: skip
_CHANNELS = 1

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
    joins = _find(graph)
    if not joins:
        return
    types = _types(graph)
    replaced: dict[str, list[NodeProto]] = {}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for join in joins:
        replaced |= {node.output[0]: [] for node in (join.concat, *join.between)}
        replaced[join.conv.output[0]] = _apart(graph, join, types, constants)
    nodes = GraphProto()
    for node in graph.node:
        nodes.node.extend(replaced.get(next(iter(node.output), ""), [node]))
    del graph.node[:]
    graph.node.extend(nodes.node)
    made = {output for node in graph.node for output in node.output}
    read = {name for node in graph.node for name in reads(node)}
    for values, used in ((graph.value_info, made), (graph.initializer, read)):
        for index in reversed(range(len(values))):
            if values[index].name not in used:
                del values[index]


def never_joined(network: Network) -> frozenset[int]:
    """The layers that are such a Concat and nothing else: a segment that goes on behind them does not run them."""
    names = {join.concat.output[0] for join in _find(network.model.graph)}
    return frozenset(layer.index for layer in network.layers if names.issuperset(layer.outputs))


def useful_cuts(network: Network) -> tuple[int, ...]:
    """The legal cuts, but for those for which alone a join would be made, where no less crosses than before it."""
    behind = {i + 1 for i in never_joined(network) if network.cuts[i + 1].nbytes >= network.cuts[i].nbytes}
    return tuple(cut for cut in network.legal_cuts() if cut not in behind)


def _find(graph: GraphProto) -> list[_Join]:
    concats = [node for node in graph.node if node.op_type == "Concat" and is_standard(node) and len(node.input) > 1]
    if not concats:
        return []
    types = _types(graph)
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in reads(node):
            readers.setdefault(name, []).append(node)
    # The parts of weights that two read would be held twice.
    weights = {tensor.name for tensor in graph.initializer if len(readers.get(tensor.name, ())) == 1}
    ends = {value.name for value in graph.output}
    taken = {*types, *readers, *ends, *(output for node in graph.node for output in node.output)}
    found = []
    for concat in concats:
        join = _follow(concat, readers, ends)
        if join is None or not _pays(join, types, weights):
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


def _pays(join: _Join, types: Mapping[str, TensorType], weights: set[str]) -> bool:
    """Whether all shapes are known and fit, and less is added up than need not be joined."""
    names = [*join.concat.input, join.concat.output[0], *(node.output[0] for node in join.between)]
    shapes = [_floats(types.get(name)) for name in (*names, join.conv.input[1], join.conv.output[0])]
    if None in shapes or join.conv.input[1] not in weights or int_attribute(join.conv, "group", 1) != 1:
        return False
    known = [shape for shape in shapes if shape is not None]
    parts, joined, filters, output = (
        known[: len(join.concat.input)],
        known[len(join.concat.input)],
        known[-2],
        known[-1],
    )
    rank = len(joined)
    if rank < 3 or int_attribute(join.concat, "axis", 0) % rank != _CHANNELS or len(filters) != rank:
        return False
    if sum(part[_CHANNELS] for part in parts) != filters[1] or min(part[_CHANNELS] for part in parts) < _LEAST_CHANNELS:
        return False
    elements = math.prod(joined)
    return elements >= _LEAST_ELEMENTS and _LEAST_GAIN * (len(parts) - 1) * math.prod(output) <= elements


def _floats(kind: TensorType | None) -> tuple[int, ...] | None:
    return kind.shape if kind is not None and kind.elem_type == TensorProto.FLOAT else None


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


def _apart(
    graph: GraphProto, join: _Join, types: dict[str, TensorType], constants: Mapping[str, TensorProto]
) -> list[NodeProto]:
    """The nodes that take the place of a join; constants and types are added to the graph."""
    filters = onnx.numpy_helper.to_array(constants[join.conv.input[1]])
    nodes: list[NodeProto] = []
    sums: list[str] = []
    first = 0
    for index, source in enumerate(join.concat.input):
        shape = types[source].shape
        assert shape is not None
        channels = shape[_CHANNELS]
        for node in join.between:
            nodes.append(_copy(node, index, [source, *node.input[1:]]))
            whole = types[node.output[0]].shape
            assert whole is not None
            source = nodes[-1].output[0]
            _declare(graph, source, (whole[0], channels, *whole[2:]))
        own = np.ascontiguousarray(filters[:, first : first + channels])
        first += channels
        graph.initializer.append(onnx.numpy_helper.from_array(own, _part(_filters(join.conv), index)))
        # The bias is added once.
        bias = join.conv.input[2:] if index == 0 else []
        nodes.append(_copy(join.conv, index, [source, graph.initializer[-1].name, *bias]))
        sums.append(nodes[-1].output[0])
    output = join.conv.output[0]
    size = types[output].shape
    assert size is not None
    total = sums[0]
    for index, name in enumerate(sums[1:], 1):
        _declare(graph, name, size)
        into = output if index == len(sums) - 1 else _part(_sum(join.conv), index)
        if into != output:
            _declare(graph, into, size)
        nodes.append(onnx.helper.make_node("Add", [total, name], [into], name=_part(f"{join.conv.name}_sum", index)))
        total = into
    _declare(graph, sums[0], size)
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


def _types(graph: GraphProto) -> dict[str, TensorType]:
    types = {v.name: type_of(v.type) for v in (*graph.input, *graph.value_info, *graph.output)}
    types.update((t.name, TensorType(t.data_type, tuple(t.dims))) for t in graph.initializer)
    return types
