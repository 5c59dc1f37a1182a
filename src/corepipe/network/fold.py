"""Constants folded, shapes inferred: what turns a checked ONNX graph into one whose shapes are all known."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto

from corepipe.network.check import Limits
from corepipe.network.dequantise import dequantise_at_readers
from corepipe.network.graph import (
    UNKNOWN,
    TensorType,
    attribute,
    attribute_value,
    int_attribute,
    is_standard,
    keep_named,
    opset_of,
    reads,
    rename_reads,
    replace_nodes,
    set_type,
    storage_bytes,
    subgraphs,
    type_of,
)
from corepipe.network.infer import Inference, tensor_type, visible

_ALWAYS_FOLD_BYTES = 2**20
_FOLD_BUDGET_BYTES = 2**28
_READ_BUDGET_BYTES = 2**32
_STEP_BUDGET = 2**20

_ELEMENTWISE = frozenset({
    "Abs", "Add", "And", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "Cast", "CastLike", "Ceil", "Clip", "Cos",
    "Div", "Equal", "Erf", "Exp", "Floor", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less",
    "LessOrEqual", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu",
    "Round", "Sigmoid", "Sign", "Sin", "Sqrt", "Sub", "Sum", "Tanh", "Where", "Xor",
})  # fmt: skip
_NOT_GROWING = frozenset({
    "ArgMax", "ArgMin", "Concat", "CumSum", "Flatten", "Identity", "NonZero", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "ScatterElements", "ScatterND", "Slice", "Split",
    "Squeeze", "Transpose", "Trilu", "Unsqueeze",
})  # fmt: skip
_SIZED_BY_INFERENCE = frozenset({
    "ConstantOfShape", "Expand", "EyeLike", "Gather", "GatherND", "Pad", "Range", "Tile",
})  # fmt: skip
"""Not `OneHot` and `GatherElements`: the reference makes NaN of infinite values, and misreads long rows."""
_SUMMING = frozenset({"CumSum", "ReduceMean", "ReduceProd", "ReduceSum"})
"""The reference keeps sums in the element type; engines add halves up as floats."""
_ONE_BY_ONE = {"Erf": 0, "GatherND": 1, "ScatterElements": 1, "ScatterND": 1}
"""The reference implementation goes through the elements of that input in a loop."""

_HALVES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})

_FOLDABLE = _ELEMENTWISE | _NOT_GROWING | _SIZED_BY_INFERENCE
"""Deterministic, cheap operators; (de)quantising ones are left alone, engines recognise them around a convolution."""

Array = NDArray[np.generic]
Types = dict[str, TensorType]


def fold(model: ModelProto, name: str, limits: Limits, known: Mapping[str, TensorType] | None = None) -> Types:
    """Fold constants and infer types in one pass, then drop what no output needs.

    Requires: a checked model in topological order, without functions, whose initializers are not among the inputs
    and whose inputs have static shapes.
    Ensures: nodes have unique names, `value_info` holds every tensor whose type is known, outputs their shapes.

    Args:
        model: changed in place.
        name: what messages call the model.
        limits: what inferred tensors may ask for.
        known: types of what operators outside the ONNX standard make.

    Returns:
        Types by tensor name, for the main graph.

    Raises:
        ModelError: inference fails, or a tensor is over the limits.
    """
    _free_constant_outputs(model.graph)
    folder = _Folder(model, Inference(model, name, limits, known))
    folder.run()
    for value in model.graph.output:
        folder.types.setdefault(value.name, tensor_type(value.type.tensor_type.elem_type))
    _prune(model.graph)
    types = {tensor: type_of(proto) for tensor, proto in folder.types.items()}
    dequantise_at_readers(model.graph, types, name, limits.nodes)
    _name_nodes(model.graph)
    _write_types(model.graph, types)
    return types


def skeleton(model: ModelProto) -> ModelProto:
    """The model with its large initializers turned into inputs: cheap to hand to the onnx library."""
    small = ModelProto(ir_version=max(model.ir_version, 4), producer_name=model.producer_name)
    small.opset_import.extend(model.opset_import)
    small.functions.extend(model.functions)
    graph = small.graph
    graph.name = model.graph.name or "graph"
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    declared = {value.name for value in graph.input}
    for tensor in model.graph.initializer:
        if visible(tensor):
            graph.initializer.append(tensor)
        elif tensor.name not in declared:
            set_type(graph.input.add(name=tensor.name), TensorType(tensor.data_type, tuple(tensor.dims)))
    return small


class _Folder:
    """One model being folded: its constants and types by name, and what may still be spent on constants."""

    def __init__(self, model: ModelProto, inference: Inference) -> None:
        self.model = model
        self.graph = model.graph
        self.inference = inference
        self.opset = opset_of(model)
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.outputs = {value.name for value in self.graph.output}
        self.inputs = {value.name for value in self.graph.input}
        self.types = {value.name: value.type for value in self.graph.input}
        self.budget = _FOLD_BUDGET_BYTES
        for tensor in self.graph.initializer:
            self.types[tensor.name] = tensor_type(tensor.data_type, list(tensor.dims))
            self.budget += storage_bytes(tensor.data_type, tensor.dims) or 0
        self.steps = _STEP_BUDGET
        self.readable = _READ_BUDGET_BYTES + 2 * self.budget
        self.taken = self.inputs | set(self.constants) | {o for node in self.graph.node for o in node.output}
        self.scalars: dict[str, str] = {}
        self.branches = 0
        self.renamed: dict[str, str] = {}
        self.aliases: dict[str, list[str]] = {}
        self.readers: dict[str, list[NodeProto]] = {}
        self.kept: list[NodeProto] = []
        self.maker: dict[str, NodeProto] = {}

    def run(self) -> None:
        """Go over the nodes once."""
        waiting = deque(self.graph.node)
        while waiting:
            node = waiting.popleft()
            if self.renamed:
                rename_reads(node, self.renamed)
            if self._bypass(node):
                continue
            self._make_scalars(node)
            branch = self._branch(node)
            if branch is not None:
                waiting.extendleft(reversed(branch))
                continue
            made = self.inference.outputs(node, self.types, self.constants)
            if self._fold(node, made):
                continue
            self.types.update(made)
            self.kept.append(node)
            for name in reads(node):
                self.readers.setdefault(name, []).append(node)
            self.maker.update((output, node) for output in node.output if output)
        replace_nodes(self.graph, self.kept)

    def _make_scalars(self, node: NodeProto) -> None:
        """Let a Range read scalars: engines take one-element vectors, but not where they know the values beforehand."""
        if node.op_type != "Range" or not is_standard(node):
            return
        for index, name in enumerate(node.input):
            tensor = self.constants.get(name)
            if tensor is None or not tensor.dims or math.prod(tensor.dims) != 1:
                continue
            if name not in self.scalars:
                self.scalars[name] = scalar = self._fresh(f"{name}__scalar")
                self._add(scalar, onnx.numpy_helper.from_array(self._value(name).reshape(())))
            node.input[index] = self.scalars[name]

    def _bypass(self, node: NodeProto) -> bool:
        """Drop a node that only passes its first input on."""
        if not node.input or not node.input[0] or not self._passes_on(node):
            return False
        source, target = node.input[0], node.output[0]
        if target not in self.outputs:
            self.renamed[target] = source
            self.aliases.setdefault(source, []).append(target)
            return True
        if source in self.outputs or source not in self.maker:
            return False
        maker = self.maker.pop(source)
        self.maker[target] = maker
        for index, output in enumerate(maker.output):
            if output == source:
                maker.output[index] = target
        readers, aliases = self.readers.pop(source, []), [*self.aliases.pop(source, []), source]
        for other in readers:
            rename_reads(other, {source: target})
        self.readers[target] = readers
        self.aliases[target] = aliases
        self.renamed.update(dict.fromkeys(aliases, target))
        if source in self.types:
            self.types[target] = self.types[source]
        return True

    def _passes_on(self, node: NodeProto) -> bool:
        if not is_standard(node):
            return False
        if node.op_type == "Identity":
            return True
        if node.op_type == "Cast":
            proto = self.types.get(node.input[0])
            source = type_of(proto).elem_type if proto is not None else 0
            return source != 0 and int_attribute(node, "to", 0) == source
        if node.op_type != "Dropout" or any(node.output[1:]):
            return False
        if self.opset >= 12:
            flag = node.input[2] if len(node.input) > 2 else ""
            return not flag or (flag in self.constants and not bool(self._value(flag).any()))
        return self.opset >= 7 or int_attribute(node, "is_test", 0) == 1

    def _value(self, name: str) -> Array:
        value: Array = onnx.numpy_helper.to_array(self.constants[name])
        return value

    def _fold(self, node: NodeProto, made: Mapping[str, TypeProto]) -> bool:
        """Turn a node's outputs into initializers, where that is safe and small; outputs of the graph copy theirs."""
        if not is_standard(node):
            return False
        if node.op_type == "Identity" and node.output[0] in self.outputs:
            if node.input[0] in self.constants:
                self.renamed[node.output[0]] = node.input[0]
            return False
        if node.op_type == "Constant":
            values = _constant(node)
        elif node.op_type in ("Shape", "Size"):
            proto = self.types.get(node.input[0])
            values = _shape(node, type_of(proto)) if proto is not None else None
        elif (
            node.op_type in _FOLDABLE
            and all(not n or n in self.constants for n in node.input)
            and not _unlike_reference(node)
        ):
            values = self._evaluate(node, {output: type_of(proto) for output, proto in made.items()})
        else:
            return False
        if values is None:
            return False
        for output, tensor in zip(node.output, values, strict=True):
            if output in self.outputs:
                inner = self._fresh(f"{output}__constant")
                self._add(inner, tensor)
                self.types[output] = self.types[inner]
                self.renamed[output] = inner
                self.kept.append(onnx.helper.make_node("Identity", [inner], [output]))
            elif output:
                self._add(output, tensor)
        return True

    def _fresh(self, wanted: str) -> str:
        """A name that no tensor has."""
        while wanted in self.taken:
            wanted += "_"
        self.taken.add(wanted)
        return wanted

    def _add(self, output: str, tensor: TensorProto) -> None:
        new = self.graph.initializer.add()
        new.CopyFrom(tensor)
        new.name = output
        self.constants[output] = new
        self.types[output] = tensor_type(tensor.data_type, list(tensor.dims))
        self.budget -= storage_bytes(tensor.data_type, tensor.dims) or 0

    def _evaluate(self, node: NodeProto, made: Mapping[str, TensorType]) -> list[TensorProto] | None:
        constants = [self.constants[n] for n in node.input if n]
        kinds = [*(t.data_type for t in constants), *(kind.elem_type for kind in made.values())]
        if TensorProto.STRING in kinds:
            return None
        bound = _output_bound(node, constants, made)
        given = sum(storage_bytes(t.data_type, t.dims) or 0 for t in constants)
        if bound is None or bound > max(_ALWAYS_FOLD_BYTES, 2 * given) or bound > self.budget or given > self.readable:
            return None
        if node.op_type in _ONE_BY_ONE:
            steps = math.prod(size or 1 for size in self.constants[node.input[_ONE_BY_ONE[node.op_type]]].dims)
            if steps > self.steps:
                return None
            self.steps -= steps
        self.readable -= given
        from onnx.reference import ReferenceEvaluator

        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                evaluator = ReferenceEvaluator(self._alone(node))
                values = {n: self._value(n) for n in node.input if n}
                given_type = values[node.input[0]].dtype
                widened = node.op_type in _SUMMING and constants[0].data_type in _HALVES
                if widened:
                    values[node.input[0]] = values[node.input[0]].astype(np.float32)
                results = [np.asarray(result) for result in evaluator.run(None, values)]
                if widened:
                    results = [result.astype(given_type) for result in results]
                tensors = [onnx.numpy_helper.from_array(result) for result in results]
        except Exception:
            # Whatever the reference implementation cannot do stays in the graph for the engine.
            return None
        named = [output for output in node.output if output]
        for output, tensor in zip(named, tensors, strict=True):
            kind = made.get(output, UNKNOWN)
            if kind.elem_type not in (0, tensor.data_type) or kind.shape not in (None, tuple(tensor.dims)):
                return None
        if sum(len(t.raw_data) for t in tensors) > self.budget:
            return None
        by_name = dict(zip(named, tensors, strict=True))
        return [by_name.get(output, TensorProto()) for output in node.output]

    def _alone(self, node: NodeProto) -> ModelProto:
        """A model of one node: the reference implementation heeds the opset of a model only."""
        model = ModelProto(ir_version=self.model.ir_version)
        model.opset_import.extend(self.model.opset_import)
        model.graph.node.append(node)
        model.graph.input.extend(ValueInfoProto(name=n) for n in dict.fromkeys(node.input) if n)
        model.graph.output.extend(ValueInfoProto(name=n) for n in node.output if n)
        return model

    def _branch(self, node: NodeProto) -> list[NodeProto] | None:
        """The nodes of the branch that an If with a constant condition takes."""
        if node.op_type != "If" or not is_standard(node) or not node.input or node.input[0] not in self.constants:
            return None
        value = self._value(node.input[0])
        taken = attribute(node, "then_branch" if bool(value.any()) else "else_branch")
        if not isinstance(taken, GraphProto) or len(taken.output) < len(node.output):
            return None
        self.branches += 1
        made = [*(t.name for t in taken.initializer), *(o for n in taken.node for o in n.output if o)]
        renamed = {old: f"{old}__branch{self.branches}" for old in made}
        if self.taken.intersection(renamed.values()):
            return None
        self.taken.update(renamed.values())
        for tensor in taken.initializer:
            self._add(renamed[tensor.name], tensor)
        nodes = []
        for inner in taken.node:
            copy = NodeProto()
            copy.CopyFrom(inner)
            rename_reads(copy, renamed)
            for index, output in enumerate(copy.output):
                copy.output[index] = renamed.get(output, output)
            nodes.append(copy)
        for target, value_info in zip(node.output, taken.output, strict=False):
            if target:
                source = renamed.get(value_info.name, value_info.name)
                nodes.append(onnx.helper.make_node("Identity", [source], [target]))
        return nodes


def _unlike_reference(node: NodeProto) -> bool:
    """Whether the reference implementation, which is of newer opsets, would compute something else."""
    if node.op_type == "Concat":
        return attribute(node, "axis") is None
    return bool(int_attribute(node, "broadcast", 0))


def _constant(node: NodeProto) -> list[TensorProto] | None:
    """The value of a Constant node."""
    if len(node.attribute) != 1:
        return None
    item = node.attribute[0]
    if item.name == "value":
        return [item.t]
    value = attribute_value(item)
    if value is None:
        return None
    if item.name in ("value_float", "value_floats"):
        return [onnx.numpy_helper.from_array(np.asarray(value, np.float32))]
    if item.name in ("value_int", "value_ints"):
        return [onnx.numpy_helper.from_array(np.asarray(value, np.int64))]
    return None


def _shape(node: NodeProto, kind: TensorType) -> list[TensorProto] | None:
    """The value of a Shape or Size node whose input has a known shape."""
    if kind.shape is None:
        return None
    if node.op_type == "Size":
        return [onnx.numpy_helper.from_array(np.asarray(math.prod(kind.shape), np.int64))]
    rank = len(kind.shape)
    stop = attribute(node, "end")
    part = kind.shape[slice(int_attribute(node, "start", 0), stop if isinstance(stop, int) else rank)]
    return [onnx.numpy_helper.from_array(np.asarray(part, np.int64))]


def _output_bound(node: NodeProto, constants: Sequence[TensorProto], types: Mapping[str, TensorType]) -> int | None:
    """The most bytes that evaluating a node can take; None where that cannot be told."""
    sizes = [types.get(output, UNKNOWN).nbytes for output in node.output if output]
    known = [size for size in sizes if size is not None]
    if len(known) == len(sizes):
        return sum(known)
    if node.op_type in _ELEMENTWISE:
        try:
            return 8 * math.prod(np.broadcast_shapes(*(tuple(t.dims) for t in constants)))
        except ValueError:
            return None
    if node.op_type in _NOT_GROWING:
        return sum(8 * max(len(t.dims), 1) * int(math.prod(t.dims)) for t in constants)
    return None


def _free_constant_outputs(graph: GraphProto) -> None:
    """Give an output that is an initializer a node that makes it, so that some layer does."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    taken = {*constants, *(value.name for value in graph.input), *(o for node in graph.node for o in node.output)}
    renamed: dict[str, str] = {}
    for value in graph.output:
        tensor = constants.get(value.name)
        if tensor is None:
            continue
        inner = f"{value.name}__constant"
        while inner in taken:
            inner += "_"
        taken.add(inner)
        renamed[value.name] = inner
        tensor.name = inner
    for node in graph.node if renamed else ():
        rename_reads(node, renamed)
    for output, inner in renamed.items():
        graph.node.append(onnx.helper.make_node("Identity", [inner], [output]))


def _prune(graph: GraphProto) -> None:
    """Drop nodes that lead to no output, and initializers that nothing reads."""
    needed = {value.name for value in graph.output}
    kept: list[NodeProto] = []
    for node in reversed(graph.node):
        if any(output in needed for output in node.output):
            kept.append(node)
            needed.update(reads(node))
    if len(kept) < len(graph.node):
        replace_nodes(graph, kept[::-1])
    keep_named(graph.initializer, needed)


def _name_nodes(graph: GraphProto) -> None:
    """Unique node names: the given one, else the first output's."""
    seen: set[str] = set()
    numbers: dict[str, int] = {}
    for node in graph.node:
        wanted = node.name or next(output for output in node.output if output)
        unique, number = wanted, numbers.get(wanted, 1)
        while unique in seen:
            number += 1
            unique = f"{wanted}_{number}"
        numbers[wanted] = number
        seen.add(unique)
        node.name = unique


def _write_types(graph: GraphProto, types: Types) -> None:
    del graph.value_info[:]
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        for output in node.output:
            kind = types.get(output, UNKNOWN)
            if output and output not in outputs and kind.elem_type:
                set_type(graph.value_info.add(name=output), kind)
    for value in graph.output:
        kind = types.get(value.name, UNKNOWN)
        if kind.elem_type:
            set_type(value, kind)


def forget_shapes(graph: GraphProto, symbols: Mapping[str, int]) -> tuple[dict[str, TensorType], set[str]]:
    """Drop shapes that the file declares for inner tensors and outputs; they may be stale.

    Args:
        graph: what to drop them from.
        symbols: sizes of symbolic dims.

    Returns:
        What was declared fully, where symbols have their sizes; and what of it has a symbol.
    """
    declared: dict[str, TensorType] = {}
    symbolic: set[str] = set()
    for value in (*graph.value_info, *graph.output):
        for dim in value.type.tensor_type.shape.dim if value.type.WhichOneof("value") == "tensor_type" else ():
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param]
                symbolic.add(value.name)
        kind = type_of(value.type)
        if kind.elem_type and kind.shape is not None:
            declared[value.name] = kind
    del graph.value_info[:]
    for value in graph.output:
        if value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.ClearField("shape")
    for node in graph.node:
        for inner in subgraphs(node):
            forget_shapes(inner, {})
    return declared, symbolic
