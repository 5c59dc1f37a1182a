"""What is refused before anything large is allocated: sizes, nesting, names, order, operator domains."""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from corepipe.errors import ModelError
from corepipe.network.graph import (
    STANDARD_DOMAINS,
    all_nodes,
    attribute_tensors,
    element_bits,
    human_bytes,
    reads,
    storage_bytes,
    subgraphs,
    type_name,
)

KNOWN_DOMAINS = (*STANDARD_DOMAINS, "ai.onnx.ml", "com.microsoft")
"""Operator domains that are let in; model-local functions may be of any domain, they are inlined."""

_MAX_CALL_DEPTH = 64
_RENAMING_BYTES = 16
"""What inlining may append to a name to make it unique."""

_FunctionKey = tuple[str, str, str]


@dataclass(frozen=True)
class Limits:
    """What a model may ask for; checked before it is compiled and before large allocations.

    Attributes:
        file_bytes: size of the model file.
        nodes: operators, those in subgraphs and inlined functions included.
        inlined_nodes, inlined_bytes: what inlining functions adds to the graph, at most: a few lines can ask for a lot.
        constants: initializers and tensors in attributes, those in subgraphs and functions included.
        depth: levels of subgraphs (If, Loop, Scan) inside each other.
        rank: dimensions of a tensor.
        tensor_bytes: one tensor, constant or computed, as far as its shape is known.
        weight_bytes: all constants together; below the 2 GiB that a serialised ONNX model may have.
        live_bytes: all tensors alive at one cut.
        crossings: tensors alive at all cuts together.
    """

    file_bytes: int = 2**31 - 1
    nodes: int = 100_000
    inlined_nodes: int = 20_000
    inlined_bytes: int = 2**28
    constants: int = 200_000
    depth: int = 12
    rank: int = 16
    tensor_bytes: int = 2**31 - 1
    weight_bytes: int = 2**31 - 2**24
    live_bytes: int = 2**33
    crossings: int = 2_000_000


DEFAULT_LIMITS = Limits()


def check_structure(model: ModelProto, name: str, limits: Limits) -> None:
    """Refuse a model that is too large, too deep or inconsistent in its names; sort its nodes if need be.

    Sizes are judged from the declared dims, so this costs nothing however much a model asks for.

    Args:
        model: changed in place only in the order of its nodes.
        name: what messages call the model.
        limits: what it may ask for.

    Raises:
        ModelError: it is refused; the message names the node or tensor.
    """
    if not model.HasField("graph"):
        raise ModelError(f"{name}: not an ONNX model (it holds no graph); export it as .onnx")
    if model.graph.sparse_initializer:
        raise ModelError(f"{name}: sparse initializers are not supported; export the model with dense weights")
    if not model.graph.node:
        raise ModelError(f"{name}: the graph has no nodes, so there is nothing to run; export the model again")
    _check_sizes(model, name, limits)
    _check_text(model, name)
    _check_functions(model, name, limits)
    _sort(model.graph, name)
    _check_names(model.graph, name, set())
    _check_outputs(model.graph, name)
    _check_domains(model, name)


def all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every dense tensor in the model: initializers and attributes, subgraphs and functions included."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def check_data(model: ModelProto, name: str) -> None:
    """Refuse tensors that do not hold the data that their dims promise.

    Raises:
        ModelError: the tensor is named.
    """
    for tensor in all_tensors(model):
        count = math.prod(tensor.dims)
        if tensor.data_type == TensorProto.STRING:
            held, needed = len(tensor.string_data), count
        elif tensor.HasField("raw_data"):
            held, needed = len(tensor.raw_data), storage_bytes(tensor.data_type, tensor.dims) or 0
        else:
            held, needed = _typed_data(tensor)
        if held != needed:
            raise ModelError(
                f"{name}: tensor {tensor.name!r} of dims {list(tensor.dims)} holds {held} values or bytes instead "
                f"of {needed}; the file is damaged, export the model again"
            )


def check_value(value: ValueInfoProto, name: str, limits: Limits) -> None:
    """Refuse a declared or inferred tensor of too many dims or bytes.

    Raises:
        ModelError: the tensor is named.
    """
    if value.type.WhichOneof("value") != "tensor_type":
        return
    tensor = value.type.tensor_type
    # A size that is not known counts for one.
    check_size(value.name, tensor.elem_type, [max(dim.dim_value, 1) for dim in tensor.shape.dim], name, limits)


def check_size(tensor: str, elem_type: int, dims: Iterable[int], name: str, limits: Limits) -> None:
    """Refuse a tensor of too many dims or bytes.

    Raises:
        ModelError: it is named.
    """
    dims = list(dims)
    if len(dims) > limits.rank:
        raise ModelError(f"{name}: tensor {tensor!r} has {len(dims)} dims, at most {limits.rank} are allowed")
    kept = [size for size in dims if size]  # a library may multiply the others first
    asked = storage_bytes(elem_type, kept) or math.prod(kept)
    if asked > limits.tensor_bytes:
        raise ModelError(
            f"{name}: tensor {tensor!r} asks for {human_bytes(asked)} (dims {dims}), at most "
            f"{human_bytes(limits.tensor_bytes)} are allowed; check the model or give a smaller --shape"
        )


def _check_sizes(model: ModelProto, name: str, limits: Limits) -> None:
    count = _measure(model.graph.node, name, limits, 0)
    for function in model.functions:
        count += _measure(function.node, name, limits, 0)
    if count > limits.nodes:
        raise ModelError(f"{name}: {count} nodes, at most {limits.nodes} are allowed")
    total = 0
    for number, tensor in enumerate(all_tensors(model), 1):
        if number > limits.constants:
            raise ModelError(f"{name}: more than {limits.constants} constants, which is not allowed")
        if any(size < 0 for size in tensor.dims):
            raise ModelError(f"{name}: tensor {tensor.name!r} has a negative dim {list(tensor.dims)}; export it again")
        if tensor.data_type != TensorProto.STRING and element_bits(tensor.data_type) is None:
            raise ModelError(
                f"{name}: tensor {tensor.name!r} has element type {type_name(tensor.data_type)}, which is not "
                f"supported; export the model with another type"
            )
        if tensor.HasField("segment"):
            raise ModelError(f"{name}: tensor {tensor.name!r} is a segment of another, which is not supported")
        check_size(tensor.name, tensor.data_type, tensor.dims, name, limits)
        total += storage_bytes(tensor.data_type, tensor.dims) or 0
    if total > limits.weight_bytes:
        raise ModelError(
            f"{name}: its constants take {human_bytes(total)}, at most {human_bytes(limits.weight_bytes)} are allowed"
        )
    for value in (*model.graph.input, *model.graph.output):
        check_value(value, name, limits)


def _check_text(message: Any, name: str) -> None:
    """Refuse text that is not UTF-8: some versions of protobuf hand it out as bytes."""
    texts, messages = _fields_to_check(message.DESCRIPTOR)
    for field in texts:
        text = getattr(message, field)
        if isinstance(text, bytes) or (not isinstance(text, str) and any(isinstance(item, bytes) for item in text)):
            raise ModelError(f"{name}: holds a name that is not text; the file is damaged, export it again")
    for field in messages:
        inner = getattr(message, field)
        if not hasattr(inner, "DESCRIPTOR"):
            for item in inner:
                _check_text(item, name)
        elif message.HasField(field):
            _check_text(inner, name)


@functools.cache
def _fields_to_check(descriptor: Any) -> tuple[list[str], list[str]]:
    """Names of the fields of a kind of message that hold text, and that hold messages."""
    fields = descriptor.fields
    texts = [field.name for field in fields if field.type == field.TYPE_STRING]
    return texts, [field.name for field in fields if field.type == field.TYPE_MESSAGE]


def _measure(nodes: Iterable[NodeProto], name: str, limits: Limits, depth: int) -> int:
    """Number of nodes, subgraphs included; refuses deep nesting and sparse tensors on the way."""
    if depth > limits.depth:
        raise ModelError(f"{name}: subgraphs are nested more than {limits.depth} levels deep, which is not allowed")
    count = 0
    for node in nodes:
        count += 1
        if any(item.HasField("sparse_tensor") or item.sparse_tensors for item in node.attribute):
            raise ModelError(f"{name}: node {title(node)} holds a sparse tensor; export the model with dense weights")
        for graph in subgraphs(node):
            if graph.sparse_initializer:
                raise ModelError(f"{name}: sparse initializers are not supported; export the model with dense weights")
            count += _measure(graph.node, name, limits, depth + 1)
    return count


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        yield from attribute_tensors(node)
        for graph in subgraphs(node):
            yield from _graph_tensors(graph)


def _typed_data(tensor: TensorProto) -> tuple[int, int]:
    """Entries in the field that holds this type's values, and how many there should be."""
    count, kind = math.prod(tensor.dims), tensor.data_type
    if kind in (TensorProto.FLOAT, TensorProto.COMPLEX64):
        return len(tensor.float_data), count * (2 if kind == TensorProto.COMPLEX64 else 1)
    if kind in (TensorProto.DOUBLE, TensorProto.COMPLEX128):
        return len(tensor.double_data), count * (2 if kind == TensorProto.COMPLEX128 else 1)
    if kind == TensorProto.INT64:
        return len(tensor.int64_data), count
    if kind in (TensorProto.UINT32, TensorProto.UINT64):
        return len(tensor.uint64_data), count
    return len(tensor.int32_data), (count + 1) // 2 if element_bits(kind) == 4 else count


def _check_functions(model: ModelProto, name: str, limits: Limits) -> None:
    """Refuse recursive functions and those that grow beyond the limits when they are inlined."""
    if not model.functions:
        return
    bodies = {(f.domain, f.name, f.overload): f for f in model.functions}
    argument, attribute = _longest_arguments(model, bodies.keys(), name)
    known: dict[_FunctionKey, tuple[int, int]] = {}

    def inlined(key: _FunctionKey, depth: int) -> tuple[int, int]:
        if key not in known:
            body = bodies[key]
            count, held = grown(body.node, depth + 1)
            names = sum(len(node.input) + len(node.output) for node in all_nodes(body.node))
            references = sum(bool(a.ref_attr_name) for node in all_nodes(body.node) for a in node.attribute)
            held += body.ByteSize() + names * argument + references * attribute
            known[key] = max(count, 1), held
        return known[key]

    def grown(nodes: Iterable[NodeProto], depth: int) -> tuple[int, int]:
        """Number of nodes, and bytes that calls add to what is written here."""
        if depth > _MAX_CALL_DEPTH:
            raise ModelError(f"{name}: functions call each other in a circle or over {_MAX_CALL_DEPTH} levels deep")
        count = held = 0
        for node in nodes:
            key = function_key(node)
            inner = inlined(key, depth) if key in bodies else (1, 0)
            count, held = count + inner[0], held + inner[1]
            for graph in subgraphs(node):
                inner = grown(graph.node, depth + 1)
                count, held = count + inner[0], held + inner[1]
        return count, held

    count, held = grown(model.graph.node, 0)
    added = count - sum(1 for _ in all_nodes(model.graph.node))
    if added > limits.inlined_nodes or held > limits.inlined_bytes:
        raise ModelError(
            f"{name}: inlining its functions adds {added} nodes and {human_bytes(held)}, at most "
            f"{limits.inlined_nodes} and {human_bytes(limits.inlined_bytes)} are allowed; export the model without "
            "functions"
        )


def _longest_arguments(model: ModelProto, functions: Container[_FunctionKey], name: str) -> tuple[int, int]:
    """Bytes of the longest name and of the largest attribute that a function may be given.

    Raises:
        ModelError: a function is given a subgraph, which could be repeated at every level.
    """
    names = [0]
    attributes = [item.ByteSize() for function in model.functions for item in function.attribute_proto]
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in all_nodes(nodes):
            if function_key(node) in functions:
                if next(subgraphs(node), None) is not None:
                    raise ModelError(
                        f"{name}: node {title(node)} gives a subgraph to a function, which is not supported; "
                        f"export the model without functions"
                    )
                names += [len(tensor.encode()) for tensor in (*node.input, *node.output)]
                attributes += [item.ByteSize() for item in node.attribute]
    return max(names) + _RENAMING_BYTES, max(attributes, default=0)


def function_key(node: NodeProto) -> _FunctionKey:
    """What tells the function that a node calls."""
    return node.domain, node.op_type, node.overload


def _sort(graph: GraphProto, name: str) -> None:
    """Put nodes behind those they read from, keeping their order where it is right already."""
    for node in graph.node:
        for inner in subgraphs(node):
            _sort(inner, name)
    maker = {output: i for i, node in enumerate(graph.node) for output in node.output if output}
    needs = [{maker[n] for n in reads(node) if n in maker} for node in graph.node]
    if all(all(source < i for source in sources) for i, sources in enumerate(needs)):
        return
    readers: dict[int, list[int]] = {}
    for i, sources in enumerate(needs):
        for source in sources:
            readers.setdefault(source, []).append(i)
    missing = [len(sources) for sources in needs]
    ready = [i for i, count in enumerate(missing) if count == 0]
    order: list[int] = []
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for reader in readers.get(i, ()):
            missing[reader] -= 1
            if missing[reader] == 0:
                heapq.heappush(ready, reader)
    if len(order) < len(needs):
        stuck = next(i for i, count in enumerate(missing) if count > 0)
        raise ModelError(
            f"{name}: the graph has a cycle at or before node {title(graph.node[stuck])}; export the model again"
        )
    nodes = [NodeProto.FromString(graph.node[i].SerializeToString()) for i in order]
    del graph.node[:]
    graph.node.extend(nodes)


def _check_names(graph: GraphProto, name: str, visible: set[str]) -> None:
    """Refuse names given twice, shadowed or read but never made.

    Args:
        graph: the model's, or one inside it.
        name: what messages call the model.
        visible: names of the graphs around; the same again on return.
    """
    own: set[str] = set()

    def define(what: str, tensor: str) -> None:
        if not tensor:
            raise ModelError(f"{name}: {what} has no name; export the model again")
        if tensor in visible:
            raise ModelError(f"{name}: the name {tensor!r} is given to two tensors (second: {what}); export it again")
        own.add(tensor)
        visible.add(tensor)

    for value in graph.input:
        define("a graph input", value.name)
    inputs = set(own)
    constants: set[str] = set()
    for constant in graph.initializer:
        if constant.name in constants:
            raise ModelError(f"{name}: the name {constant.name!r} is given to two initializers; export the model again")
        constants.add(constant.name)
        if constant.name not in inputs:
            define("an initializer", constant.name)
    for node in graph.node:
        for output in node.output:
            if output:
                define(f"an output of node {title(node)}", output)
    for node in graph.node:
        for inner in subgraphs(node):
            _check_names(inner, name, visible)
        for tensor in reads(node):
            if tensor not in visible:
                raise ModelError(
                    f"{name}: node {title(node)} reads {tensor!r}, which nothing makes; export the model again"
                )
    for value in graph.output:
        if value.name not in visible:
            raise ModelError(f"{name}: the output {value.name!r} is made by no node; export the model again")
    visible -= own


def _check_outputs(graph: GraphProto, name: str) -> None:
    seen: set[str] = set()
    for value in graph.output:
        if value.name in seen:
            raise ModelError(f"{name}: the output {value.name!r} is listed twice; export the model again")
        seen.add(value.name)


def _check_domains(model: ModelProto, name: str) -> None:
    local = {(f.domain, f.name) for f in model.functions}
    bodies = [model.graph.node, *(f.node for f in model.functions)]
    unknown: dict[str, set[str]] = {}
    for nodes in bodies:
        for node in all_nodes(nodes):
            if node.domain not in KNOWN_DOMAINS and (node.domain, node.op_type) not in local:
                unknown.setdefault(node.domain, set()).add(node.op_type)
    if unknown:
        listed = "; ".join(f"{domain}: {', '.join(sorted(ops))}" for domain, ops in sorted(unknown.items()))
        hint = (
            "save the model without layout optimisation"
            if set(unknown) == {"com.microsoft.nchwc"}
            else "export the model with standard operators"
        )
        raise ModelError(f"{name}: operators of unknown domains ({listed}); {hint}")


def title(node: NodeProto) -> str:
    """How messages call a node."""
    label = node.name or next((o for o in node.output if o), "")
    return f"{label!r} ({node.op_type})"


def explain(error: Exception) -> str:
    """The first meaningful line of a library's message, shortened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def check_with_onnx(skeleton: ModelProto, name: str) -> None:
    """Let `onnx.checker` judge a model (large constants may be left out of it).

    Args:
        skeleton: inputs and outputs that declare no shape get an empty one, the checker insists on it.
        name: what messages call the model.

    Raises:
        ModelError: the checker's first line.
    """
    for value in (*skeleton.graph.input, *skeleton.graph.output):
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(skeleton)
    except Exception as error:
        raise ModelError(f"{name}: not a valid ONNX model: {explain(error)}") from None
