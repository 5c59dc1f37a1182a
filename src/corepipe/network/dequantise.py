"""Dequantising where it is read, so that integers cross cuts, and constants none."""

from __future__ import annotations

from collections import Counter

from onnx import GraphProto, NodeProto

from corepipe.errors import ModelError
from corepipe.network.graph import TensorType, reads, rename_reads, replace_nodes


def dequantise_at_readers(graph: GraphProto, types: dict[str, TensorType], name: str, most_nodes: int) -> None:
    """Give each node that reads a DequantizeLinear one of its own, right in front of it.

    A result that several layers read would cross cuts as floats, four times the bytes of the integers that it is made
    of, and behind a cut an engine that looks for quantised operators would find none. The same goes for weights that
    several layers share. Engines do this too, within what they are given. What is an output of the graph, or reads
    what is dequantised itself (a scale, say), stays where it is.

    Args:
        graph: a checked graph in topological order; changed in place.
        types: by tensor name; those of new tensors are added.
        name: what messages call the model.
        most_nodes: how many nodes the graph may have.

    Raises:
        ModelError: it would have more.
    """
    ends = {value.name for value in graph.output}
    dequantised = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear" and node.output[0]}
    movable = {
        output: node
        for output, node in dequantised.items()
        if output not in ends and dequantised.keys().isdisjoint(node.input)
    }
    if not movable:
        return
    taken = {output for node in graph.node for output in node.output}
    taken |= {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    readers: Counter[str] = Counter()
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.output[0] in movable:
            continue
        renamed: dict[str, str] = {}
        for tensor in reads(node):
            if tensor not in movable:
                continue
            own = NodeProto()
            own.CopyFrom(movable[tensor])
            if readers[tensor]:
                while (copy := f"{tensor}__again{readers[tensor]}") in taken:
                    readers[tensor] += 1
                if tensor in types:
                    types[copy] = types[tensor]
                own.output[0] = renamed[tensor] = copy
            readers[tensor] += 1
            nodes.append(own)
        if renamed:
            rename_reads(node, renamed)
        nodes.append(node)
        if len(nodes) > most_nodes:
            raise ModelError(
                f"{name}: more than {most_nodes:,} nodes once each reader of a DequantizeLinear has one of its own; "
                f"export the model with fewer"
            )
    replace_nodes(graph, nodes)
