"""ONNX file -> checked, folded network: everything a model may not do is refused here, before it is compiled."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path

import onnx
import onnx.checker
import onnx.defs
import onnx.inliner
import onnx.shape_inference
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

from corepipe.errors import ModelError, UnknownNameError, UsageError
from corepipe.network.check import (
    DEFAULT_LIMITS,
    Limits,
    check_data,
    check_size,
    check_structure,
    check_with_onnx,
    explain,
    function_key,
)
from corepipe.network.external import load_external, read_at
from corepipe.network.fold import fold, forget_shapes, skeleton
from corepipe.network.graph import (
    STANDARD_DOMAINS,
    TensorType,
    all_nodes,
    constant_of,
    human_bytes,
    is_standard,
    replace_nodes,
    set_type,
    type_name,
    type_of,
)
from corepipe.network.layers import LAYERS_VERSION, build_layers
from corepipe.network.model import Network
from corepipe.network.strides import move_strides_up

__all__ = ["Limits", "load_network", "open_network", "parse_shape"]

_RAISED_IR_VERSION = 8

Dim = int | str | None


def open_network(model: str | os.PathLike[str], shapes: Mapping[str, Sequence[int]] | None = None) -> Network:
    """A network by file path or zoo name, ready to be scheduled.

    Args:
        model: a path (anything with a separator, ending in `.onnx`, or that exists), else a name of the zoo.
        shapes: input shapes by input name, for dims that the model leaves open.

    Raises:
        UnknownNameError: neither a file nor a zoo name.
        ModelError: the model is unreadable, refused or unsupported.
        UsageError: `shapes` do not fit the model.
    """
    text = os.fspath(model)
    is_path = not isinstance(model, str) or os.sep in text or "/" in text or text.lower().endswith(".onnx")
    if is_path or os.path.isfile(text):
        return load_network(text, shapes=shapes)
    from corepipe.network import zoo

    if text not in zoo.NAMES:
        if os.path.lexists(text):
            return load_network(text, shapes=shapes)
        raise UnknownNameError("network", text, zoo.NAMES)
    return _prepare(zoo.build(text), text, None, shapes or {}, DEFAULT_LIMITS)


def load_network(
    source: str | os.PathLike[str] | ModelProto,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    limits: Limits = DEFAULT_LIMITS,
    keep_strides: bool = False,
) -> Network:
    """Read, check, fold and divide a model.

    A dynamic first dim becomes 1; other dynamic dims must be given.

    Args:
        source: an ONNX file, or a model in memory (left as it is).
        shapes: input shapes by input name. A size that the model declares as 0 counts as dynamic, as exporters write
            it for an unknown batch; where it does mean an empty tensor, give the 0.
        limits: what the model may ask for.
        keep_strides: whether convolutions keep their strides; else what strided 1x1 convolutions skip is not computed
            (see `corepipe.network.strides`).

    Raises:
        ModelError: the model is unreadable, refused or unsupported; the message says which part of it.
        UsageError: `shapes` name an unknown input or contradict the model.

    Example:
        >>> network = load_network("model.onnx", shapes={"data": (1, 3, 224, 224)})  # doctest: +SKIP
        >>> len(network.layers)                                                      # doctest: +SKIP
        42
    """
    if isinstance(source, ModelProto):
        model = ModelProto()
        model.CopyFrom(source)
        return _prepare(model, model.graph.name or "model", None, shapes or {}, limits, keep_strides)
    path = Path(source)
    name = os.fsencode(path.stem).decode("utf-8", "replace")  # as models and plans can hold it
    return _prepare(_read(path, limits), name, path, shapes or {}, limits, keep_strides)


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read `data:1x3x224x224`.

    Raises:
        UsageError: it is not a name, a colon and sizes joined by `x`.

    Example:
        >>> parse_shape("data:1x3x224x224")
        ('data', (1, 3, 224, 224))
    """
    match = re.fullmatch(r"(.+):([0-9]{1,9}(?:[xX,][0-9]{1,9})*)", text)
    shape = tuple(int(size) for size in re.split("[xX,]", match[2])) if match else ()
    if not match or not all(shape):
        raise UsageError(f"{text!r} is not an input shape; write NAME:SIZExSIZE..., as in 'data:1x3x224x224'")
    return match[1], shape


def _read(path: Path, limits: Limits) -> ModelProto:
    """The proto in a file."""
    name = str(path)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ModelError(f"{name}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{name}: cannot read the model: {reason}") from None
    try:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise ModelError(f"{name}: is a directory; give the .onnx file in it")
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{name}: is not a plain file; copy the model to one first")
        if status.st_size == 0:
            raise ModelError(f"{name}: is empty; copy or download the model again")
        if status.st_size > limits.file_bytes:
            raise ModelError(
                f"{name}: {human_bytes(status.st_size)}, at most {human_bytes(limits.file_bytes)} are allowed; "
                f"keep the weights as external data next to it"
            )
        data = read_at(handle, 0, status.st_size)
    except OSError as error:
        raise ModelError(f"{name}: cannot read the model: {error.strerror or error}") from None
    finally:
        os.close(handle)
    if data.startswith(b"version https://git-lfs"):
        raise ModelError(f"{name}: is a Git LFS pointer, not the model; fetch it with `git lfs pull`")
    try:
        model: ModelProto = ModelProto.FromString(data)
    except Exception:
        # protobuf raises DecodeError, and on some inputs others, depending on its backend.
        raise ModelError(f"{name}: not an ONNX model, or truncated; copy or export it again") from None
    return model


def _prepare(
    model: ModelProto,
    name: str,
    path: Path | None,
    shapes: Mapping[str, Sequence[int]],
    limits: Limits,
    keep_strides: bool = False,
) -> Network:
    """Turn a model that nobody else holds into a network."""
    label = str(path) if path else name
    try:
        return _divide(model, name, label, path.parent if path else None, shapes, limits, keep_strides)
    except UnicodeError:
        # protobuf checks that strings are UTF-8 only when they are looked at.
        raise ModelError(f"{label}: holds a name that is not text; the file is damaged, export it again") from None


def _divide(
    model: ModelProto,
    name: str,
    label: str,
    folder: Path | None,
    shapes: Mapping[str, Sequence[int]],
    limits: Limits,
    keep_strides: bool,
) -> Network:
    del model.training_info[:]
    check_structure(model, label, limits)
    load_external(model, folder, label)
    check_data(model, label)
    _modernise(model)
    check_with_onnx(skeleton(model), label)
    _inline_functions(model, label, limits)
    _check_ends(model, label)
    changes, symbols = _fix_inputs(model, label, shapes, limits)
    types = fold(model, label, limits, _unknown_to_onnx(model, changes, symbols))
    if not model.graph.input:
        raise ModelError(f"{label}: the model has no inputs, so frames could not change its result")
    for value in model.graph.output:
        if not types[value.name].can_cross:
            kind = type_name(types[value.name].elem_type)
            raise ModelError(f"{label}: the output {value.name!r} has element type {kind}, which is not supported")
    thinning = frozenset() if keep_strides else move_strides_up(model, types, limits.nodes)
    layers, cuts = build_layers(model, types, label, limits, thinning)
    inputs = tuple(types[value.name].info(value.name) for value in model.graph.input)
    outputs = tuple(types[value.name].info(value.name) for value in model.graph.output)
    return Network(name, _digest(model), model, inputs, outputs, layers, cuts)


def _modernise(model: ModelProto) -> None:
    """Raise an IR version that needs initializers among the inputs, and take them out; drop comments.

    What Constant nodes hold become initializers, as weights mostly are: nodes are copied and checked at length.
    """
    model.ir_version = model.ir_version if model.ir_version >= 4 else _RAISED_IR_VERSION
    constants = {tensor.name for tensor in model.graph.initializer}
    fed = [value for value in model.graph.input if value.name not in constants]
    if len(fed) < len(model.graph.input):
        kept = GraphProto(input=fed)
        del model.graph.input[:]
        model.graph.input.extend(kept.input)
    ends = {value.name for value in model.graph.output}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
        value = constant_of(node)
        if value is None or node.output[0] in ends:
            nodes.append(node)
        else:
            new = model.graph.initializer.add()
            new.CopyFrom(value)
            new.name = node.output[0]
    if len(nodes) < len(model.graph.node):
        replace_nodes(model.graph, nodes)


def _inline_functions(model: ModelProto, name: str, limits: Limits) -> None:
    if not model.functions:
        return
    given = skeleton(model)
    _align_opsets(given, name)
    _give_defaults(given, name)
    try:
        inlined = onnx.inliner.inline_local_functions(given)
    except Exception as error:
        raise ModelError(f"{name}: its functions cannot be inlined: {explain(error)}; export it without") from None
    if inlined.functions:
        raise ModelError(f"{name}: its function {inlined.functions[0].name!r} cannot be inlined; export it without")
    del model.functions[:]
    del model.graph.node[:]
    model.graph.node.extend(inlined.graph.node)
    del model.opset_import[:]
    model.opset_import.extend(inlined.opset_import)
    check_structure(model, name, limits)
    check_with_onnx(skeleton(model), name)  # an argument that a call leaves out may be one that a node needs


def _align_opsets(model: ModelProto, name: str) -> None:
    """Let functions have the model's opsets: those that have others are not inlined.

    Raises:
        ModelError: an operator of a function is, or may be, another one in the model's opset.
    """
    versions = {_domain(item.domain): item.version for item in model.opset_import}
    own = {(function.domain, function.name) for function in model.functions}
    for function in model.functions:
        changed = {}
        for item in function.opset_import:
            domain = _domain(item.domain)
            if domain not in versions:
                versions[domain] = item.version
                model.opset_import.add(domain=item.domain, version=item.version)
            if item.version != versions[domain]:
                changed[domain] = item.version
                item.version = versions[domain]
        for node in all_nodes(function.node):
            domain = _domain(node.domain)
            if domain not in changed or (node.domain, node.op_type) in own:
                continue
            before, now = (_since(node.op_type, domain, at) for at in (changed[domain], versions[domain]))
            if before is None or before != now:
                raise ModelError(
                    f"{name}: its function {function.name!r} is of opset {changed[domain]} of {domain or 'ONNX'}, the "
                    f"model of {versions[domain]}, where {node.op_type} may be another operator; export it without"
                )


_SIMPLE = frozenset({
    AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.STRING, AttributeProto.FLOATS, AttributeProto.INTS,
    AttributeProto.STRINGS,
})  # fmt: skip


def _give_defaults(model: ModelProto, name: str) -> None:
    """Let calls of functions give the attributes that they leave to the functions' defaults: inlining would drop those.

    Raises:
        ModelError: a default that is needed is no number or text, nor a list of them.
    """
    defaults = {(f.domain, f.name, f.overload): f.attribute_proto for f in model.functions if f.attribute_proto}
    for nodes in (model.graph.node, *(function.node for function in model.functions)) if defaults else ():
        for node in all_nodes(nodes):
            given = {attribute.name for attribute in node.attribute}
            for attribute in defaults.get(function_key(node), ()):
                if attribute.name in given:
                    continue
                if attribute.type not in _SIMPLE:
                    raise ModelError(
                        f"{name}: the attribute {attribute.name!r} of its function {node.op_type!r} has a tensor or "
                        f"graph as its default, which is not supported; export it without"
                    )
                node.attribute.append(attribute)


def _domain(name: str) -> str:
    """A domain by one name where it has two."""
    return "" if name in STANDARD_DOMAINS else name


def _since(kind: str, domain: str, version: int) -> int | None:
    """The opset that the operator is of, as it is in `version`; None where onnx does not know it."""
    try:
        return int(onnx.defs.get_schema(kind, version, domain).since_version)
    except onnx.defs.SchemaError:
        return None


def _check_ends(model: ModelProto, name: str) -> None:
    """Refuse inputs and outputs that are not numeric tensors, and inputs given back untouched."""
    inputs = {value.name for value in model.graph.input}
    for what, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            if value.type.WhichOneof("value") != "tensor_type":
                raise ModelError(
                    f"{name}: the {what} {value.name!r} is not a tensor; export the model with tensors only"
                )
            kind = type_of(value.type)
            if not kind.can_cross:
                raise ModelError(
                    f"{name}: the {what} {value.name!r} has element type {type_name(kind.elem_type)}, which is "
                    f"not supported; use floats, integers or booleans"
                )
    if not model.graph.output:
        raise ModelError(f"{name}: the model has no outputs; export it again")
    for value in model.graph.output:
        if value.name in inputs:
            raise ModelError(f"{name}: the output {value.name!r} is an input given back; remove it from the model")


def _dims(value: onnx.ValueInfoProto) -> list[Dim] | None:
    """Sizes, symbols, or None for each dim of an input; None if not even the rank is declared."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [dim.dim_value if dim.dim_value > 0 else (dim.dim_param or None) for dim in tensor.shape.dim]


_Change = tuple[int, int]
"""An axis of an input, and the size that it was given."""


def _fix_inputs(
    model: ModelProto, name: str, shapes: Mapping[str, Sequence[int]], limits: Limits
) -> tuple[set[_Change], dict[str, int]]:
    """Give every input a static shape; which sizes were changed, as (axis, size), and what symbols stand for."""
    values = list(model.graph.input)
    for wanted in shapes:
        if wanted not in [value.name for value in values]:
            raise UnknownNameError("input", wanted, [value.name for value in values])
    symbols: dict[str, int] = {}
    for value in values:
        if value.name in shapes:
            _check_shape(value, shapes[value.name], name, symbols)
    for value in values:
        dims = _dims(value)
        if value.name not in shapes and dims and isinstance(dims[0], str):
            symbols.setdefault(dims[0], 1)
    problems: list[tuple[str, list[Dim] | None]] = []
    changes: set[_Change] = set()
    for value in values:
        dims = _dims(value)
        if value.name in shapes:
            fixed: list[Dim] | None = [int(size) for size in shapes[value.name]]
        else:
            fixed = dims and [symbols.get(d, d) if isinstance(d, str) else d for d in dims]
            if fixed and fixed[0] is None:
                fixed[0] = 1
        if fixed is None or not all(isinstance(size, int) for size in fixed):
            problems.append((value.name, fixed))
            continue
        before = dims or [None] * len(fixed)
        changes |= {(axis, int(size or 0)) for axis, size in enumerate(fixed) if size != before[axis]}
        sizes = tuple(size for size in fixed if isinstance(size, int))
        check_size(value.name, value.type.tensor_type.elem_type, sizes, name, limits)
        set_type(value, TensorType(value.type.tensor_type.elem_type, sizes))
    if problems:
        raise ModelError(_ask_for_shapes(name, problems))
    return changes, symbols


def _check_shape(value: onnx.ValueInfoProto, shape: Sequence[int], name: str, symbols: dict[str, int]) -> None:
    given = f"{value.name}:{'x'.join(map(str, shape))}"
    declared = value.type.tensor_type.shape.dim
    zeros = {i for i, dim in enumerate(declared) if dim.HasField("dim_value") and dim.dim_value == 0}
    if not all(isinstance(size, Integral) and (size > 0 or (size == 0 and i in zeros)) for i, size in enumerate(shape)):
        raise UsageError(f"{name}: the shape {given} has a size that is not positive")
    dims = _dims(value)
    if dims is None:
        return
    wanted = "x".join(str(d) if d is not None else "?" for d in dims)
    fits = len(dims) == len(shape) and all(
        size == (symbols.setdefault(d, int(size)) if isinstance(d, str) else d or size)
        for d, size in zip(dims, shape, strict=True)
    )
    if not fits:
        taken = ", ".join(f"{d} = {symbols[d]}" for d in dict.fromkeys(dims) if isinstance(d, str) and d in symbols)
        raise UsageError(
            f"{name}: the shape {given} does not fit the model's {wanted or 'scalar'}"
            + (f" with {taken}" if taken else "")
        )


def _ask_for_shapes(name: str, problems: Sequence[tuple[str, list[Dim] | None]]) -> str:
    said, options = [], []
    for value, dims in problems:
        if dims is None:
            said.append(f"{value!r} declares no shape")
            options.append(f"--shape {value}:1x3x224x224")
            continue
        shown = ", ".join(str(d) if d is not None else "?" for d in dims)
        said.append(f"{value!r} has dynamic dims [{shown}]")
        images = len(dims) == 4
        channels_last = images and dims[3] in (1, 3, 4)
        guess = (1, 224, 224, 3) if channels_last else (1, 3, 224, 224)
        filled = [d if isinstance(d, int) else (guess[i] if images else 1) for i, d in enumerate(dims)]
        options.append(f"--shape {value}:{'x'.join(map(str, filled))}")
    return f"{name}: input {'; input '.join(said)}; give the sizes, for example {' '.join(options)}"


def _unknown_to_onnx(model: ModelProto, changes: set[_Change], symbols: Mapping[str, int]) -> dict[str, TensorType]:
    """Declared types of what operators outside the ONNX standard make: inference cannot tell those.

    Where only the number of frames was changed, those that say how they depend on that; and those of one frame, as
    exporters write them that trace one, where it is one now. Where other sizes were changed, none.
    """
    declared, symbolic = forget_shapes(model.graph, symbols)

    def holds(output: str) -> bool:
        kind = declared.get(output)
        if kind is None or any(axis > 0 for axis, _ in changes):
            return False
        one_frame = changes == {(0, 1)} and kind.shape is not None and kind.shape[:1] == (1,)
        return not changes or output in symbolic or one_frame

    unknown = [output for node in model.graph.node if not is_standard(node) for output in node.output]
    return {output: declared[output] for output in unknown if holds(output)}


def _digest(model: ModelProto) -> str:
    """SHA-256 over the model, its constants one by one: no second copy of the weights is made."""
    bare = ModelProto(ir_version=model.ir_version)
    bare.opset_import.extend(model.opset_import)
    bare.graph.node.extend(model.graph.node)
    bare.graph.input.extend(model.graph.input)
    bare.graph.output.extend(model.graph.output)
    hasher = hashlib.sha256(f"corepipe layers {LAYERS_VERSION}\n".encode())
    hasher.update(bare.SerializeToString(deterministic=True))
    for tensor in sorted(model.graph.initializer, key=lambda t: t.name):
        if tensor.HasField("raw_data"):
            hasher.update(f"{tensor.name!r} {tensor.data_type} {list(tensor.dims)}\n".encode())
            hasher.update(tensor.raw_data)
        else:
            hasher.update(tensor.SerializeToString(deterministic=True))
    return hasher.hexdigest()
