"""Where ONNX Runtime keeps tensors in blocked channels, and where it changes the layout.

On CPUs with such kernels its convolutions and pools work on channels in blocks of 8 or 16 (NCHWc). What stands between
two of them and does not mind the layout stays in it; at anything else a tensor is put back in order. Which operators
these are follows `onnxruntime/core/optimizer/nchwc_transformer.cc`, as observed in optimised graphs of version 1.32.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass

from onnx import NodeProto, numpy_helper

from corepipe.cost.calibration import CHANNEL_BLOCK, Sample
from corepipe.network.graph import UNKNOWN, TensorType, int_attribute, ints_attribute, types_of
from corepipe.network.model import Network

_ALIGNMENT = 4

_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"})
_POINTWISE = frozenset({
    "Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "Clip", "HardSwish", "QuickGelu", "Elu", "Neg", "Exp",
})  # fmt: skip
_JOINING = frozenset({"Add", "Mul", "Sum"})
_SCALING = frozenset({"Add", "Sub", "Mul", "Div"})
_VIEWS = frozenset({"Identity", "Dropout"})


@dataclass
class _Place:
    """What a layer's descriptor does not tell.

    Attributes:
        blocked: whether its main kernel works on blocked channels.
        reorders, reorder_bytes: changes of layout that count for it, and the bytes of those tensors.
        moves: whether a transposition moves anything; not where only dims of 1 move, or another kernel does it.
        copies: pieces that a transposition of several axes copies one by one; 0 for those with a kernel of their own.
        footprint: bytes of all weights and activations of its network: what passes through the caches per frame.
    """

    blocked: bool = False
    reorders: int = 0
    reorder_bytes: int = 0
    footprint: int = 0
    moves: bool = False
    copies: int = 0


def samples(network: Network, block: int = CHANNEL_BLOCK) -> tuple[Sample, ...]:
    """The layers as a cost model sees them: descriptors, and where the engine changes the layout.

    A change of layout is counted where an engine's profile shows it: with the layer that runs before it.

    Args:
        network: any.
        block: channels in a block, see `corepipe.engine.onnxruntime.channel_block`.
    """
    idle = _idle_nodes(network)
    found = []
    for layer, place in zip(network.layers, _places(network, idle, block), strict=True):
        fields = asdict(layer.descriptor) | asdict(place)
        working = [op for node, op in zip(layer.nodes, layer.descriptor.op_types, strict=True) if node not in idle]
        found.append(Sample(**(fields | {"op_types": tuple(working) or layer.descriptor.op_types})))
    return tuple(found)


def _idle_nodes(network: Network) -> set[int]:
    """Sums with 0 and products with 1, and those by channel that the engine folds into a convolution before them."""
    graph = network.model.graph
    constants = {t.name: t for t in graph.initializer}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    foldable: dict[str, int] = {}
    found = set()
    for index, node in enumerate(graph.node):
        if node.op_type == "Conv" and node.input[1] in constants and readers.get(node.output[0]) == 1:
            foldable[node.output[0]] = constants[node.input[1]].dims[0]
            continue
        given = [name for name in node.input if name in foldable]
        if node.op_type == "BatchNormalization" and given and readers.get(node.output[0]) == 1:
            foldable[node.output[0]] = foldable[given[0]]
        nothing = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}.get(node.op_type)
        if nothing is None:
            continue
        for name in node.input if node.op_type in ("Add", "Mul") else node.input[1:]:
            if name not in constants:
                continue
            size = math.prod(constants[name].dims)
            if size == 1 and float(numpy_helper.to_array(constants[name]).ravel()[0]) == nothing:
                found.add(index)
            elif given and node.op_type in ("Add", "Mul") and size == foldable[given[0]]:
                found.add(index)
                if readers.get(node.output[0]) == 1:
                    foldable[node.output[0]] = size
    return found


def _places(network: Network, idle: Collection[int], block: int) -> list[_Place]:
    graph = network.model.graph
    types = types_of(graph)
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    layer_of = {index: layer.index for layer in network.layers for index in layer.nodes}
    maker = {output: layer_of[i] for i, node in enumerate(graph.node) for output in node.output}
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    ends = {value.name for value in graph.output}
    footprint = network.weight_bytes + sum(layer.descriptor.bytes_out for layer in network.layers)
    places = [_Place(footprint=footprint) for _ in network.layers]
    blocked: set[str] = set()
    plain_too: set[str] = set()
    blocked_too: set[str] = set()

    def reorder(tensor: str, layer: int) -> None:
        place = places[max(layer, 0)]
        place.reorders += 1
        place.reorder_bytes += types.get(tensor, UNKNOWN).nbytes or 0

    def want_plain(tensor: str) -> None:
        if tensor in blocked and tensor not in plain_too:
            plain_too.add(tensor)
            reorder(tensor, maker[tensor])

    def want_blocked(tensor: str, layer: int) -> None:
        if tensor not in blocked and tensor not in blocked_too:
            blocked_too.add(tensor)
            reorder(tensor, layer - 1)

    for index, node in enumerate(graph.node):
        layer = layer_of[index]
        reads = [name for name in node.input if name and name not in weights]
        kind = node.op_type
        result = False
        if kind == "Conv":
            mode = _convolution(node, weights, block)
            if mode == "blocked":
                want_blocked(node.input[0], layer)
            else:
                want_plain(node.input[0])
            result = mode != "plain"
            places[layer].blocked |= result
        elif kind in _POOLS and _channels(node.input[0], types) % block == 0:
            want_blocked(node.input[0], layer)
            result = places[layer].blocked = True
        elif kind in _POINTWISE or kind in _VIEWS or kind == "BatchNormalization":
            result = node.input[0] in blocked
            # What is not folded into a convolution becomes one itself, of a single weight by channel.
            places[layer].blocked |= result and kind == "BatchNormalization"
        elif kind in _JOINING and len(reads) > 1:
            shapes = {types.get(name, UNKNOWN).shape for name in reads}
            result = len(shapes) == 1 and all(name in blocked for name in reads)
        elif kind == "Concat" and int_attribute(node, "axis", 1) == 1:
            result = all(n in blocked and _channels(n, types) % block == 0 for n in reads)
        elif index in idle or (kind in _SCALING and len(reads) == 1 and _by_number(node, weights)):
            result = bool(reads) and reads[0] in blocked
        elif kind == "Resize" and _text(node, "mode", "nearest") in ("nearest", "linear"):
            result = node.input[0] in blocked
        if kind == "Transpose":
            _transpose(places[layer], node, types, readers, blocked)
        if result:
            blocked.add(node.output[0])
        elif kind != "Conv":
            for name in reads:
                want_plain(name)
    for name in ends:
        want_plain(name)
    return places


def _convolution(node: NodeProto, weights: Mapping[str, tuple[int, ...]], block: int) -> str:
    """`blocked`, `plain`, or `enters` for one of few input channels that reads plain and writes blocked."""
    weight = weights.get(node.input[1], ())
    groups = int_attribute(node, "group", 1)
    if len(weight) != 4:
        return "plain"
    filters, given = weight[0], weight[1] * groups
    if groups > 1:
        depthwise = weight[1] == 1 and filters == groups
        if depthwise:
            return "blocked" if filters % _ALIGNMENT == 0 else "plain"
        even = weight[1] % block == 0 and (filters // groups) % block == 0
        return "blocked" if even else "plain"
    if given < block:
        return "enters"
    return "blocked" if given % _ALIGNMENT == 0 else "plain"


def _transpose(
    place: _Place,
    node: NodeProto,
    types: Mapping[str, TensorType],
    readers: Mapping[str, set[str]],
    blocked: Collection[str],
) -> None:
    """Notes what a transposition costs."""
    shape = types.get(node.input[0], UNKNOWN).shape
    order = ints_attribute(node, "perm")
    if not shape or len(order) != len(shape):
        place.moves = True
        return
    moving = [axis for axis in order if shape[axis] != 1]
    rank, after = len(order), readers.get(node.output[0], set())
    if moving == sorted(moving):
        return
    if list(order) == [*range(rank - 2), rank - 1, rank - 2] and after == {"MatMul"}:
        return
    if (order == (0, 2, 3, 1) and node.input[0] in blocked) or (order == (0, 3, 1, 2) and after == {"Conv"}):
        return
    place.moves = True
    if not any([a for a in moving if a != axis] == sorted(a for a in moving if a != axis) for axis in moving):
        run, axis = 1, rank - 1
        while order[axis] == axis:
            run *= shape[axis]
            axis -= 1
        place.copies += math.prod(shape) // run


def _channels(name: str, types: Mapping[str, TensorType]) -> int:
    shape = types.get(name, UNKNOWN).shape
    return shape[1] if shape and len(shape) == 4 else 1


def _by_number(node: NodeProto, weights: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether all constants that a node reads are single numbers."""
    return all(math.prod(weights[name]) == 1 for name in node.input if name in weights)


def _text(node: NodeProto, name: str, default: str) -> str:
    for attribute in node.attribute:
        if attribute.name == name:
            return str(attribute.s, "utf-8", "replace")
    return default
