"""Graph -> order -> layers and cuts: a layer holds one main operator and all that engines fuse with it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnx import GraphProto, ModelProto, NodeProto

from corepipe.errors import ModelError
from corepipe.network.check import Limits
from corepipe.network.describe import POINTWISE, POOLS, describe, dominant
from corepipe.network.graph import INTEGER_TYPES, UNKNOWN, TensorType, human_bytes, reads
from corepipe.network.model import Cut, Layer

LAYERS_VERSION = 1
"""Raised whenever the same model is divided differently; part of `Network.sha256`."""

_CONVOLUTIONS = frozenset({
    "Conv", "ConvInteger", "ConvTranspose", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul",
    "MatMulInteger", "QGemm", "QLinearConv", "QLinearMatMul",
})  # fmt: skip
_FOLLOWING = POINTWISE | {"BatchNormalization"}
_VIEWS = frozenset({
    "Cast", "CastLike", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze",
})  # fmt: skip
_LOOPS = frozenset({"If", "Loop", "Scan"})
_FUSION_WINDOW = 16
_ORDER_EFFORT = 200_000
_ORDER_BRANCHES = 4
_TINY_INTEGERS = 64
_TINY_FLOATS = 8

_LAYER_NORM = (
    {"ReduceMean"}, {"Sub"}, {"Pow", "Mul"}, {"ReduceMean"}, {"Add"}, {"Sqrt"}, {"Div"},
)  # fmt: skip


def build_layers(
    model: ModelProto,
    types: dict[str, TensorType],
    name: str,
    limits: Limits,
    thinning: frozenset[str] = frozenset(),
) -> tuple[tuple[Layer, ...], tuple[Cut, ...]]:
    """Divide a folded model into layers, and put its nodes into their order.

    The order is depth first from the outputs, so that a branch is finished before the next begins. Of several ways
    to choose the first branch, the one with the fewest bytes alive over all cuts is taken.

    Args:
        model: its nodes are put in the order of the layers.
        types: types of the main graph's tensors.
        name: what messages call the model.
        limits: for the bytes alive at a cut.
        thinning: names of nodes that only thin out what another node reads; they belong to the layer behind them.

    Returns:
        L layers and L + 1 cuts.

    Raises:
        ModelError: more bytes are alive at a cut than the limits allow.
    """
    graph = _Graph(model.graph, types)
    order = graph.best_order()
    copies = GraphProto()
    copies.node.extend(model.graph.node[i] for i in order)
    del model.graph.node[:]
    model.graph.node.extend(copies.node)
    graph = _Graph(model.graph, types, thinning)
    return _assemble(graph, _group(graph), name, limits)


class _Graph:
    """What the order and the grouping need to know of the nodes, computed once."""

    def __init__(self, graph: GraphProto, types: dict[str, TensorType], thinning: frozenset[str] = frozenset()) -> None:
        self.nodes: Sequence[NodeProto] = list(graph.node)
        self.types = types
        self.thinning = thinning
        self.inputs = [value.name for value in graph.input]
        self.outputs = [value.name for value in graph.output]
        self.constants = {tensor.name for tensor in graph.initializer}
        self.maker = {output: i for i, node in enumerate(self.nodes) for output in node.output if output}
        self.reads = [[n for n in reads(node) if n not in self.constants] for node in self.nodes]
        self.sources = [list(dict.fromkeys(self.maker[n] for n in names if n in self.maker)) for names in self.reads]
        self.readers: dict[str, list[int]] = {}
        for i, names in enumerate(self.reads):
            for tensor in names:
                self.readers.setdefault(tensor, []).append(i)
        fed = set(self.inputs)
        self.varies: list[bool] = []
        for i, names in enumerate(self.reads):
            self.varies.append(any(n in fed for n in names) or any(self.varies[s] for s in self.sources[i]))

    def type(self, tensor: str) -> TensorType:
        return self.types.get(tensor, UNKNOWN)

    def best_order(self) -> list[int]:
        """The depth-first order with the fewest bytes alive, of those tried; deterministic.

        A few rules for which branch comes first are tried on the whole graph, then other first branches at each
        node where branches meet.
        """
        depth = [0] * len(self.nodes)
        for i, sources in enumerate(self.sources):
            depth[i] = 1 + max((depth[s] for s in sources), default=0)
        rules: list[Callable[[list[int]], list[int]]] = [
            lambda sources: sources,
            lambda sources: sorted(sources, key=lambda s: -depth[s]),
            lambda sources: sorted(sources, key=lambda s: depth[s]),
            lambda sources: sources[::-1],
        ]
        # Constants too large to be folded come last: they are wanted close to their reader.
        rankings = [
            [sorted(rule(sources), key=lambda s: not self.varies[s]) for sources in self.sources] for rule in rules
        ]
        tried = [(self.live_bytes(order), order) for order in map(self._depth_first, rankings)]
        number = min(range(len(rules)), key=lambda i: tried[i][0])
        (fewest, best), ranking = tried[number], rankings[number]
        tries = _ORDER_EFFORT // max(len(self.nodes), 1)
        for i in range(len(self.nodes)):
            for source in ranking[i][1:_ORDER_BRANCHES]:
                if tries <= 0 or not self.varies[source]:
                    break
                tries -= 1
                kept = ranking[i]
                ranking[i] = [source, *(s for s in kept if s != source)]
                order = self._depth_first(ranking)
                alive = self.live_bytes(order)
                if alive < fewest:
                    fewest, best = alive, order
                else:
                    ranking[i] = kept
        return best

    def _depth_first(self, ranking: Sequence[Sequence[int]]) -> list[int]:
        """Post-order from the outputs, each node's sources in the given order."""
        done = [False] * len(self.nodes)
        order: list[int] = []
        for root in dict.fromkeys(self.maker[name] for name in self.outputs if name in self.maker):
            stack = [] if done[root] else [(root, iter(ranking[root]))]
            while stack:
                node, rest = stack[-1]
                source = next((s for s in rest if not done[s]), None)
                if source is not None:
                    stack.append((source, iter(ranking[source])))
                    continue
                stack.pop()
                done[node] = True
                order.append(node)
        return order

    def spans(self, order: Sequence[int]) -> dict[str, tuple[int, int]]:
        """For each tensor the positions where it is made (-1: fed) and last read."""
        position = {node: at for at, node in enumerate(order)}
        spans = {}
        for tensor, readers in self.readers.items():
            made = position[self.maker[tensor]] if tensor in self.maker else -1
            spans[tensor] = (made, max(position[r] for r in readers))
        return spans

    def live_bytes(self, order: Sequence[int]) -> int:
        """Bytes alive behind each node, summed over all nodes."""
        return sum((last - made) * (self.type(t).nbytes or 0) for t, (made, last) in self.spans(order).items())


@dataclass
class _Open:
    """The layer being built: its nodes by position, and what may still join."""

    start: int
    made: set[str]
    convolution: bool
    residual: bool = False


def _group(graph: _Graph) -> list[int]:
    """Nodes at which a layer starts (the first is 0); the graph must be in its final order."""
    starts: list[int] = []
    current: _Open | None = None
    waiting: int | None = None
    norm_end = _layer_norms(graph)
    for at, node in enumerate(graph.nodes):
        if current is not None and (at < norm_end.get(current.start, 0) or _joins(graph, at, current)):
            current.made.update(o for i in range(waiting or at, at + 1) for o in graph.nodes[i].output if o)
            waiting = None
        elif _waits(graph, at):
            waiting = at if waiting is None else waiting
        else:
            start = at if waiting is None else waiting
            starts.append(start)
            made = {o for i in range(start, at + 1) for o in graph.nodes[i].output if o}
            current = _Open(start, made, node.op_type in _CONVOLUTIONS)
            if at in norm_end:
                norm_end[start] = norm_end[at]
            waiting = None
    return _without_illegal(graph, starts or [0])


def _joins(graph: _Graph, at: int, current: _Open) -> bool:
    """Whether a node belongs to the layer before it; notes on `current` that its residual sum is taken."""
    node = graph.nodes[at]
    names = [n for n in graph.reads[at] if n not in graph.maker or graph.varies[graph.maker[n]]]
    inside = [n for n in names if n in current.made]
    if not inside:
        return False
    kind = node.op_type
    if len(inside) == len(names):
        if _is_tiny(graph, at):
            return True
        follows = kind in _FOLLOWING or kind in _VIEWS or kind == "QuantizeLinear"
        return follows and all(_is_used_up(graph, at, n) for n in inside)
    if kind not in POINTWISE or not current.convolution or current.residual:
        return False
    shape = graph.type(node.output[0]).shape
    if shape is None or all(graph.type(n).shape != shape for n in inside):
        return False
    current.residual = all(_is_used_up(graph, at, n) for n in inside)
    return current.residual


def _is_used_up(graph: _Graph, at: int, tensor: str) -> bool:
    """Whether all that reads a tensor from node `at` on can be one layer: else a cut is cheaper before `at`."""
    last = graph.readers[tensor][-1]
    for index in range(at, min(at + _FUSION_WINDOW, len(graph.nodes))):
        if index >= last:
            return True
        kind = graph.nodes[index].op_type
        if graph.varies[index] and kind not in _FOLLOWING and kind not in _VIEWS and not _is_tiny(graph, index):
            return False
    return False


def _waits(graph: _Graph, at: int) -> bool:
    """Whether a node belongs to the layer after it."""
    node = graph.nodes[at]
    if not graph.varies[at] or _is_tiny(graph, at) or node.op_type in _VIEWS or node.op_type == "DequantizeLinear":
        return True
    if node.name in graph.thinning:
        return True
    if node.op_type != "Pad":
        return False
    readers = graph.readers.get(node.output[0], [])
    return len(readers) == 1 and graph.nodes[readers[0]].op_type in _CONVOLUTIONS | POOLS


def _is_tiny(graph: _Graph, at: int) -> bool:
    """Whether a node only computes a few numbers from a few, such as a shape."""
    node = graph.nodes[at]
    if node.op_type in _CONVOLUTIONS or node.op_type in POOLS or node.op_type in _LOOPS:
        return False
    for output in node.output:
        kind = graph.type(output)
        most = _TINY_INTEGERS if kind.elem_type in INTEGER_TYPES else _TINY_FLOATS
        if output and (kind.elements is None or kind.elements > most):
            return False
    sizes = [graph.type(n).elements for n in graph.reads[at]]
    return node.op_type in ("Shape", "Size") or all(s is not None and s <= _TINY_INTEGERS for s in sizes)


def _layer_norms(graph: _Graph) -> dict[int, int]:
    """Where a layer normalisation spelt out in primitive operators starts, and the node after its end."""
    found: dict[int, int] = {}
    at, length = 0, len(_LAYER_NORM)
    while at + length <= len(graph.nodes):
        nodes = graph.nodes[at : at + length]
        if all(node.op_type in wanted for node, wanted in zip(nodes, _LAYER_NORM, strict=True)):
            made = {output for node in nodes for output in node.output}
            if len({n for i in range(at, at + length) for n in graph.reads[i] if n not in made}) == 1:
                found[at] = at + length
                at += length
                continue
        at += 1
    return found


def _without_illegal(graph: _Graph, starts: list[int]) -> list[int]:
    """Merge layers across cuts where something would cross that no numpy array can carry."""
    change = [0] * (len(graph.nodes) + 2)
    for tensor, (made, last) in graph.spans(range(len(graph.nodes))).items():
        if not graph.type(tensor).can_cross:
            change[made + 1] += 1
            change[last + 1] -= 1
    blocked = [count > 0 for count in itertools.accumulate(change)]
    return [0, *(start for start in starts[1:] if not blocked[start])]


def _assemble(
    graph: _Graph, starts: Sequence[int], name: str, limits: Limits
) -> tuple[tuple[Layer, ...], tuple[Cut, ...]]:
    count = len(graph.nodes)
    stops = [*starts[1:], count]
    layer_of = [0] * count
    for index, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        layer_of[start:stop] = [index] * (stop - start)

    made = [*graph.inputs, *(o for node in graph.nodes for o in node.output if o)]
    spans: dict[str, range] = {}
    for tensor in made:
        if readers := graph.readers.get(tensor, []):
            first = layer_of[graph.maker[tensor]] + 1 if tensor in graph.maker else 1
            spans[tensor] = range(first, max(layer_of[r] for r in readers) + 1)
    if (total := sum(map(len, spans.values()))) > limits.crossings:
        raise ModelError(
            f"{name}: {total} tensors cross the cuts between its {len(starts)} layers, at most {limits.crossings} are "
            f"allowed; export it with fewer results that are read much later"
        )
    crossing: list[list[str]] = [[] for _ in range(len(starts) + 1)]
    for tensor, span in spans.items():
        for index in span:
            crossing[index].append(tensor)
    crossing[0], crossing[-1] = graph.inputs, graph.outputs
    infos = {tensor: graph.type(tensor).info(tensor) for tensor in {t for tensors in crossing for t in tensors}}
    cuts = []
    for index, tensors in enumerate(crossing):
        cut = Cut(index, tuple(infos[t] for t in tensors))
        if cut.nbytes > limits.live_bytes:
            raise ModelError(
                f"{name}: {human_bytes(cut.nbytes)} are alive before layer {index}, at most "
                f"{human_bytes(limits.live_bytes)} are allowed; give a smaller --shape"
            )
        cuts.append(cut)

    ends = set(graph.outputs)
    layers: list[Layer] = []
    names: set[str] = set()
    for index, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        nodes = graph.nodes[start:stop]
        outputs = tuple(o for node in nodes for o in node.output if o)
        leaving = [o for o in outputs if o in ends or any(layer_of[r] != index for r in graph.readers.get(o, []))]
        title = _unique(nodes[dominant(nodes, graph.types)].name, names)
        descriptor = describe(nodes, graph.types, graph.constants, leaving)
        layers.append(Layer(index, title, tuple(range(start, stop)), descriptor, outputs))
    return tuple(layers), tuple(cuts)


def _unique(wanted: str, seen: set[str]) -> str:
    unique, number = wanted, 1
    while unique in seen:
        number += 1
        unique = f"{wanted}_{number}"
    seen.add(unique)
    return unique
