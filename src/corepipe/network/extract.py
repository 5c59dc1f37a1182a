"""Layers [start, stop) as a model of their own, whose chained outputs equal the whole model's but for rounding."""

from __future__ import annotations

from onnx import ModelProto

from corepipe.errors import ModelError, UsageError
from corepipe.network.concat import read_parts
from corepipe.network.graph import TensorType, captures, human_bytes, set_type, storage_bytes, types_of
from corepipe.network.model import Network, Segment, TensorInfo

_MAX_MODEL_BYTES = 2**31 - 2**20


def extract_segment(network: Network, start: int, stop: int, *, as_written: bool = False) -> Segment:
    """Layers `start` to `stop - 1` with just the constants they read; tensors keep their names, types and shapes.

    Args:
        network: the network; it shares nothing with the segment.
        start: first layer.
        stop: one past the last layer.
        as_written: whether every node stays as it is; else convolutions read the parts of what would be joined for
            them (see `corepipe.network.concat`), and some tensors inside the segment are never made.

    Raises:
        UsageError: there are no such layers.
        ModelError: the network cannot be divided there, or the segment is over the 2 GiB of an ONNX file.
    """
    count = len(network.layers)
    if not 0 <= start < stop <= count:
        raise UsageError(f"{network.name} has layers 0 to {count - 1}; [{start}, {stop}) is no run of them")
    for index in (start, stop):
        unknown = [t.name for t in network.cuts[index].tensors if t.shape is None]
        if unknown and index not in (0, count):
            raise ModelError(
                f"{network.name} cannot be divided before layer {index}: the shape of {', '.join(unknown)} depends "
                f"on the data; choose one of `Network.legal_cuts()`"
            )
    source = network.body
    model = ModelProto(ir_version=source.ir_version, producer_name="corepipe")
    model.opset_import.extend(source.opset_import)
    model.functions.extend(source.functions)
    graph = model.graph
    graph.name = f"{network.name}[{start}:{stop}]"
    nodes = [i for layer in network.layers[start:stop] for i in layer.nodes]
    graph.node.extend(source.graph.node[i] for i in nodes)

    made = {output for node in graph.node for output in node.output if output}
    read = captures(graph)
    inputs = tuple(t for t in network.cuts[start].tensors if t.name in read)
    leaving = {t.name: t for t in (*network.cuts[stop].tensors, *network.outputs)}
    outputs = tuple(t for t in leaving.values() if t.name in made)

    graph.initializer.extend(t for t in network.constants if t.name in read)
    held = sum(storage_bytes(t.data_type, t.dims) or 0 for t in graph.initializer)
    if held > _MAX_MODEL_BYTES:
        raise ModelError(
            f"{network.name}: layers {start} to {stop - 1} hold {human_bytes(held)} of constants, an ONNX model can "
            f"hold 2 GiB; divide the network further"
        )
    known = types_of(network.body.graph)
    ends = {t.name for t in outputs}
    for values, tensors in ((graph.input, inputs), (graph.output, outputs)):
        for tensor in tensors:
            set_type(values.add(name=tensor.name), _type_of_info(tensor, known))
    for node in graph.node:
        for output in node.output:
            if output in known and output not in ends:
                set_type(graph.value_info.add(name=output), known[output])
    if not as_written:
        read_parts(graph)
    return Segment(start, stop, model, inputs, outputs)


def _type_of_info(tensor: TensorInfo, known: dict[str, TensorType]) -> TensorType:
    return TensorType(known[tensor.name].elem_type, tensor.shape)
