"""Hostile model files, always the same ones: valid models harmed byte by byte, field by field, and built to be bad."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper, parser

PLAIN = """<ir_version: 8, opset_import: ["" : 17]>
plain (float[N, 3, 8, 8] x) => (float[N, 5] y)
<float[4] b = {1, 2, 3, 4}, float[4, 5] w = {1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5}> {
  k = ConstantOfShape <value: tensor = float[1] {0.5}> (shape)
  shape = Constant <value_ints: ints = [4, 3, 3, 3]> ()
  c = Conv <pads: ints = [1, 1, 1, 1], strides: ints = [2, 2]> (x, k, b)
  r = Relu (c)
  p = MaxPool <kernel_shape: ints = [2, 2], strides: ints = [2, 2]> (r)
  q = Concat <axis: int = 1> (p, p, p)
  s1, s2, s3 = Split <axis: int = 1> (q)
  m = GlobalAveragePool (s2)
  f = Flatten (m)
  y = MatMul (f, w)
}"""
CONTROL = """<ir_version: 8, opset_import: ["" : 17]>
control (float[N, 4] x) => (float[N, M] y, float[K, N, 4] z) {
  zero = Constant <value_int: int = 0> ()
  axes = Constant <value_ints: ints = [0]> ()
  rest = Constant <value_ints: ints = [-1]> ()
  times = Constant <value: tensor = int64 {3}> ()
  go = Constant <value: tensor = bool {1}> ()
  s = Shape (x)
  n = Gather (s, zero)
  u = Unsqueeze (n, axes)
  t = Concat <axis: int = 0> (u, rest)
  total = ReduceSum <keepdims: int = 0> (x)
  positive = Greater (total, half)
  half = Constant <value_float: float = 0.5> ()
  i = If (positive) <
    then_branch = a () => (float[N, 4] then) { then = Add (x, half) },
    else_branch = b () => (float[N, 4] other) { deep = Relu (x) other = Mul (deep, deep) }>
  last, z = Loop (times, go, i) <
    body = c (int64 at, bool keep, float[N, 4] state) => (bool more, float[N, 4] next, float[N, 4] out) {
      more = Identity (keep)
      next = Add (state, half)
      out = Neg (next)
    }>
  y = Reshape (last, t)
}"""
FUNCTIONS = """<ir_version: 9, opset_import: ["" : 18, "own" : 1]>
functions (float[2, 4] x) => (float[2, 4] y) {
  a = own.outer <slope = 0.25> (x)
  y = own.inner <alpha = 0.5> (a)
}
<domain: "own", opset_import: ["" : 18]>
inner <alpha> (v) => (w) { r = LeakyRelu <alpha: float = @alpha> (v) w = Add (r, v) }
<domain: "own", opset_import: ["" : 18, "own" : 1]>
outer <slope> (v) => (w) { a = own.inner <alpha: float = @slope> (v) b = own.inner <alpha: float = @slope> (a) w = Mul (a, b) }"""
MIXED = """<ir_version: 10, opset_import: ["" : 21, "ai.onnx.ml" : 3, "com.microsoft" : 1]>
mixed (uint8[1, 2, 4, 4] x, float[4] g) => (uint8[1, 2, 4, 4] y, float[4] h, int64[U] u)
<float scale = {0.5}, uint8 zero = {3}, int64[2] wide = {4, 5}> {
  d = DequantizeLinear (x, scale, zero)
  e = com.microsoft.Gelu (d)
  y = QuantizeLinear (e, scale, zero)
  seq = SequenceConstruct (g, g)
  at = Constant <value_int: int = 1> ()
  one = SequenceAt (seq, at)
  two = ai.onnx.ml.Scaler <offset: floats = [1.0], scale: floats = [2.0]> (one)
  h = Where (two_positive, two, one)
  two_positive = Greater (two, scale)
  nz = NonZero (two)
  u = Squeeze (nz, squeezed)
  squeezed = Constant <value_ints: ints = [0]> ()
  r = Range (wide_first, wide_last, wide_first)
  wide_first, wide_last = Split (wide)
}"""
LOCATIONS = (
    "weights.bin", "./weights.bin", "in/weights.bin", "../secret", "../../etc/passwd", "/etc/passwd", "in/../weights.bin",
    "link.bin", "linked/weights.bin", "hard.bin", "pipe", "in", "", ".", "..", "in//weights.bin", "weights.bin/", "missing.bin",
    "loop.bin", "\\weights.bin", "weights.bin\0", "a" * 5000, "/".join("d" * 300), "w\u20ac.bin", "/dev/zero", "/proc/self/mem",
)  # fmt: skip
NUMBERS = ("0", "4", "64", "-1", "18446744073709551615", "9" * 30, "", "1e3", "0x10", "²", "999999999999999999")
INTEGERS = (
    0, 1, 2, 3, 7, 16, 17, 100, 255, 1000, 65_536, 10**6, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1,
    -1, -2, -3, -100, -(2**31), -(2**63),
)  # fmt: skip
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e38, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "",
    "x",
    "y",
    "\0",
    "\n",
    "a" * 3000,
    "\u20ac",
    "../x",
    "[/red]",
    "ai.onnx",
    "com.microsoft",
    "NOTSET",
    "SAME_UPPER",
)


def prepare_folder(folder: Path) -> None:
    """The files beside a model that its external data may name: good ones, links, a pipe."""
    (folder / "in").mkdir()
    (folder / "weights.bin").write_bytes(bytes(range(256)) * 4)
    (folder / "in" / "weights.bin").write_bytes(bytes(1024))
    (folder / "link.bin").symlink_to("weights.bin")
    (folder / "loop.bin").symlink_to("loop.bin")
    (folder / "linked").symlink_to("in")
    (folder / "original.bin").write_bytes(bytes(1024))
    os.link(folder / "original.bin", folder / "hard.bin")
    os.mkfifo(folder / "pipe")


def valid_models() -> dict[str, ModelProto]:
    """Small models of every make that the loader takes."""
    models = {
        name: parser.parse_model(text)
        for name, text in (("plain", PLAIN), ("control", CONTROL), ("functions", FUNCTIONS), ("mixed", MIXED))
    }
    models["external"] = parser.parse_model(PLAIN)
    for tensor in models["external"].graph.initializer:
        _put_outside(tensor, "weights.bin", "0", str(4 * int(np.prod(tensor.dims))))
    return models


def _put_outside(tensor: TensorProto, location: str, offset: str | None, length: str | None) -> None:
    del tensor.float_data[:]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=value)


def _any_valid(dice: random.Random) -> ModelProto:
    return dice.choice(list(_VALID.values()))


# Bytes


def truncated(dice: random.Random) -> bytes:
    """Cut off anywhere."""
    data = _any_valid(dice).SerializeToString()
    return data[: dice.randrange(len(data))]


def no_model(dice: random.Random) -> bytes:
    """An empty file, text, noise, what a failed download leaves."""
    noise = dice.randbytes(dice.choice((1, 10, 300)))
    return dice.choice(
        (b"", b"\0" * 100, b"<html></html>", b"version https://git-lfs.github.com/spec/v1\n", noise, noise)
    )


def flipped(dice: random.Random) -> bytes:
    """Some bytes changed, left out, doubled."""
    return flip(_any_valid(dice).SerializeToString(), dice)


def flip(data: bytes, dice: random.Random) -> bytes:
    """The same for any bytes."""
    harmed = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 4, 8))):
        at, length = dice.randrange(len(harmed) + 1), dice.choice((1, 1, 1, 2, 8, 30))
        what = dice.randrange(4)
        if what == 0:
            harmed[at : at + 1] = bytes([dice.randrange(256)])
        elif what == 1:
            del harmed[at : at + length]
        elif what == 2:
            harmed[at:at] = harmed[at : at + length]
        elif harmed:
            harmed[min(at, len(harmed) - 1)] ^= 1 << dice.randrange(8)
    return bytes(harmed)


def giant_length(dice: random.Random) -> bytes:
    """A field that says it is longer than the file, or longer than anything."""
    data = _any_valid(dice).SerializeToString()
    start, end, length = dice.choice(list(_lengths(data)))
    giant = dice.choice((length + 1, length * 1000 + 200, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1))
    return data[:start] + _varint(giant) + data[end:]


def _lengths(data: bytes, at: int = 0, stop: int | None = None) -> Iterator[tuple[int, int, int]]:
    """Where the length of each delimited field stands, and what it says; also inside what parses as a message."""
    stop = len(data) if stop is None else stop
    found = []
    while at < stop:
        tag, at = _read_varint(data, at, stop)
        kind = tag & 7
        if at < 0 or kind not in (0, 1, 2, 5) or not tag >> 3:
            return
        if kind == 2:
            length, end = _read_varint(data, at, stop)
            if end < 0 or end + length > stop:
                return
            found.append((at, end, length))
            at = end + length
        else:
            at = _read_varint(data, at, stop)[1] if kind == 0 else at + (8 if kind == 1 else 4)
            if at < 0:
                return
    yield from found
    for _, start, length in found:
        yield from _lengths(data, start, start + length)


def _read_varint(data: bytes, at: int, stop: int) -> tuple[int, int]:
    value = shift = 0
    while at < stop and shift < 70:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at
    return 0, -1


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def bad_text(dice: random.Random) -> bytes:
    """Names that are not UTF-8."""
    model = ModelProto()
    model.CopyFrom(_any_valid(dice))
    mark = "#" * dice.choice((1, 2, 4))
    places = [(m, f) for m, f in _fields(model) if f.type == f.TYPE_STRING]
    message, field = dice.choice(places)
    if field.is_repeated:
        getattr(message, field.name)[0] = mark
    else:
        setattr(message, field.name, mark)
    bad = dice.choice((b"\xff", b"\xc3", b"\xed\xa0\x80\xff", b"\x80\x00", b"\xf5\x80")) * 4
    return model.SerializeToString().replace(mark.encode(), bad[: len(mark)])


# Fields


def changed(dice: random.Random) -> bytes:
    """Some fields set to extreme or foreign values, lists shortened and doubled, names exchanged."""
    model = ModelProto()
    model.CopyFrom(_any_valid(dice))
    for _ in range(dice.choice((1, 1, 2, 3, 5))):
        _change(model, dice)
    return model.SerializeToString()


def _fields(message: Message) -> list[tuple[Message, Any]]:
    """All set fields of a message and of those inside it."""
    found = []
    for field, value in message.ListFields():
        found.append((message, field))
        if field.type == field.TYPE_MESSAGE:
            for inner in value if field.is_repeated else (value,):
                found += _fields(inner)
    return found


def _change(model: ModelProto, dice: random.Random) -> None:
    message, field = dice.choice(_fields(model))
    if field.is_repeated:
        values = getattr(message, field.name)
        if field.type == field.TYPE_MESSAGE:
            what = dice.randrange(4)
            if what == 0:
                del values[dice.randrange(len(values))]
            elif what == 1:
                values.add().CopyFrom(dice.choice(values))
            else:
                others = [v for m, f in _fields(model) if f is field for v in getattr(m, f.name)]
                # Through a copy: protobuf ends the process where a message is put into one inside it.
                other = type(values[0])()
                other.CopyFrom(dice.choice(others))
                values[dice.randrange(len(values))].CopyFrom(other)
        elif dice.random() < 0.3:
            if dice.random() < 0.5:
                del values[dice.randrange(len(values))]
            else:
                values.extend(list(values) * dice.choice((1, 1, 30)))
        else:
            values[dice.randrange(len(values))] = _other(model, field, dice)
    elif field.type == field.TYPE_MESSAGE:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _other(model, field, dice))


def _other(model: ModelProto, field: Any, dice: random.Random) -> Any:
    """Another value for a scalar field."""
    if field.type == field.TYPE_STRING:
        names = [n for node in model.graph.node for n in (*node.input, *node.output, node.op_type)]
        return dice.choice(TEXTS) if dice.random() < 0.3 or not names else dice.choice(names)
    if field.type == field.TYPE_BYTES:
        return dice.randbytes(dice.choice((0, 1, 4, 8, 64)))
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return dice.choice(FLOATS)
    if field.type == field.TYPE_ENUM:
        return dice.choice([v.number for v in field.enum_type.values])
    value = dice.choice(INTEGERS) if dice.random() < 0.6 else dice.randrange(30)
    if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32):
        value = max(min(value, 2**31 - 1), -(2**31))
    return abs(value) if field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64) else value


def same_names(dice: random.Random) -> bytes:
    """Two nodes, tensors, inputs or functions of one name."""
    model = ModelProto()
    model.CopyFrom(_any_valid(dice))
    named = [m for m, f in _fields(model) if f.name in ("name", "output", "input") and f.type == f.TYPE_STRING]
    for _ in range(dice.choice((1, 2, 5))):
        one, other = dice.choice(named), dice.choice(named)
        field = dice.choice(("name", "output", "input"))
        mine, theirs = getattr(one, field, None), getattr(other, field, None)
        if isinstance(mine, str) and isinstance(theirs, str):
            setattr(one, field, theirs)
        elif mine and theirs and isinstance(theirs[0], str) and isinstance(mine[0], str):
            mine[0] = theirs[0]
    return model.SerializeToString()


def huge_dims(dice: random.Random) -> bytes:
    """Tensors that ask for more than there is."""
    model = ModelProto()
    model.CopyFrom(_any_valid(dice))
    for message, field in _fields(model):
        if field.name == "dims" and dice.random() < 0.3:
            message.dims[dice.randrange(len(message.dims))] = dice.choice(INTEGERS)
        elif field.name == "dim" and dice.random() < 0.5:
            message.dim[dice.randrange(len(message.dim))].dim_value = dice.choice(INTEGERS)
        elif field.name == "ints" and dice.random() < 0.3:
            message.ints[dice.randrange(len(message.ints))] = dice.choice(INTEGERS)
    if dice.random() < 0.2:
        model.graph.input[0].type.tensor_type.shape.dim.extend(
            [onnx.TensorShapeProto.Dimension(dim_value=1)] * dice.choice((12, 16, 17, 5000))
        )
    return model.SerializeToString()


def cyclic(dice: random.Random) -> bytes:
    """Nodes that read what they or later ones make; functions that call each other."""
    model = ModelProto()
    model.CopyFrom(_any_valid(dice))
    nodes = [node for m, f in _fields(model) if f.name == "node" for node in m.node]
    names = [name for node in nodes for name in node.output]
    for _ in range(dice.choice((1, 2, 6))):
        node = dice.choice([n for n in nodes if n.input])
        node.input[dice.randrange(len(node.input))] = dice.choice(names)
    if model.functions and dice.random() < 0.7:
        body = dice.choice(model.functions)
        call = body.node.add(op_type=dice.choice(("inner", "outer")), domain="own")
        call.input.append(body.input[0])
        call.output.append("called")
    return model.SerializeToString()


def external(dice: random.Random) -> bytes:
    """Data by traversal, through links, from pipes, beyond the end, of absurd offsets."""
    model = ModelProto()
    model.CopyFrom(_VALID["external"])
    for tensor in model.graph.initializer:
        if dice.random() < 0.7:
            numbers = [dice.choice((*NUMBERS, None, str(dice.randrange(2000)))) for _ in range(2)]
            right = str(4 * int(np.prod(tensor.dims)))
            length = right if dice.random() < 0.6 else numbers[1]
            _put_outside(tensor, dice.choice(LOCATIONS), dice.choice(("0", numbers[0])), length)
        if dice.random() < 0.1:
            tensor.external_data.add(
                key=dice.choice(("location", "offset", "checksum", "")), value=dice.choice(NUMBERS)
            )
        if dice.random() < 0.1:
            tensor.data_type = dice.randrange(30)
        if dice.random() < 0.1:
            tensor.dims[0] = dice.choice(INTEGERS)
    return model.SerializeToString()


# Built


def nested(dice: random.Random) -> bytes:
    """Subgraphs, functions, types or groups inside each other, by the dozen or by the thousand."""
    depth = dice.choice((2, 11, 12, 13, 30, 45, 60, 95, 130, 500))
    what = dice.choice(("If", "Loop", "function", "type", "wire"))
    if what == "wire":
        inner = b""
        # A graph of a node of an attribute of a graph of a node ...
        for field in (*(1, 5, 6) * depth, 1, 7):
            inner = _varint(field << 3 | 2) + _varint(len(inner)) + inner
        return _VALID["plain"].SerializeToString() + inner
    model = parser.parse_model(FUNCTIONS)
    if what == "type":
        # Deeper ones cannot be written: protobuf takes a hundred messages inside each other.
        kind = model.graph.input[0].type
        for _ in range(min(depth, 40)):
            inner = onnx.TypeProto()
            inner.CopyFrom(kind)
            kind.Clear()
            (kind.sequence_type if dice.random() < 0.5 else kind.optional_type).elem_type.CopyFrom(inner)
        return model.SerializeToString()
    if what == "function":
        previous = "inner"
        for index in range(depth):
            node = helper.make_node(previous, ["v"], ["u"], domain="own", alpha=0.5)
            calls = [
                node,
                *(helper.make_node(previous, ["u"], [f"u{i}"], domain="own") for i in range(dice.choice((0, 1, 9)))),
            ]
            previous = f"f{index}"
            opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
            model.functions.append(helper.make_function("own", previous, ["v"], ["u"], calls, opsets))
        model.graph.node[1].op_type = previous
        return model.SerializeToString()
    body = helper.make_node("Relu", ["x"], ["out"])
    for index in range(min(depth, 28)):
        out = helper.make_tensor_value_info(body.output[-1], TensorProto.FLOAT, [2, 4])
        if what == "If":
            graph = helper.make_graph([body], f"g{index}", [], [out])
            body = helper.make_node("If", ["flag"], [f"o{index}"], then_branch=graph, else_branch=graph)
            if index > 8:
                del body.attribute[1]
            continue
        ends = [
            helper.make_tensor_value_info(n, t, []) for n, t in ((f"i{index}", 7), (f"k{index}", 9), (f"m{index}", 9))
        ]
        more = helper.make_node("Identity", [f"k{index}"], [f"m{index}"])
        graph = helper.make_graph([more, body], f"g{index}", ends[:2], [ends[2], out])
        body = helper.make_node("Loop", ["times", "flag"], [f"o{index}"], body=graph)
    del model.graph.node[:]
    flag = helper.make_node("Constant", [], ["flag"], value=numpy_helper.from_array(np.bool_(True)))
    times = helper.make_node(
        "Constant", [], ["times"], value=numpy_helper.from_array(np.int64(dice.choice((1, 2**62))))
    )
    model.graph.node.extend([flag, times, body, helper.make_node("Identity", [body.output[0]], ["y"])])
    return model.SerializeToString()


def growing(dice: random.Random) -> bytes:
    """A few dozen nodes that each double something: a size, a rank, a list of known values, a name."""
    count = dice.choice((5, 20, 40, 70))
    kind = dice.choice(("Concat", "Gather", "Tile", "Expand", "Pad", "Resize", "Add", "Split", "Loop", "name"))
    start = dice.choice((1, 2, 8))
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[{start}] x) => (float[M] y)'
        f"<int64[{start}] known = {{{', '.join('2' * start)}}}> {{ y = Relu (x) }}"
    )
    graph = model.graph
    del graph.node[:]
    at = dice.choice(("x", "known"))
    for i in range(count):
        extra: dict[str, Any] = {}
        inputs = [at]
        if kind == "Concat":
            inputs, extra = [at] * dice.choice((2, 3, 9)), {"axis": dice.choice((0, 0, -1))}
        elif kind in ("Gather", "Add"):
            inputs = [at, "known" if kind == "Gather" and dice.random() < 0.5 else at]
        elif kind in ("Tile", "Expand", "Pad"):
            inputs = [at, "known"]
        elif kind == "Resize":
            inputs, extra = [at, "", "", "known"], {}
        elif kind == "Split":
            graph.node.append(helper.make_node("Split", [at], [f"t{i}", f"s{i}"]))
            at = f"t{i}"
            continue
        op = "Concat" if kind in ("name", "Loop") else kind
        extra = extra or ({"axis": 0} if op == "Concat" else {})
        out = f"t{i}" if kind != "name" else "n" * min(2 ** (i // 2), 2**14) + str(i)
        graph.node.append(helper.make_node(op, inputs, [out], **extra))
        at = out
    graph.node.append(helper.make_node("ConstantOfShape" if dice.random() < 0.3 else "Identity", [at], ["y"]))
    return model.SerializeToString()


def operators(dice: random.Random) -> bytes:
    """Operators of every kind with inputs, constants and attributes of any kind."""
    model = ModelProto(ir_version=dice.choice((3, 7, 8, 10, 12)))
    newest = onnx.defs.onnx_opset_version()
    model.opset_import.add(domain="", version=dice.choice((newest,) * 6 + (1, 9, 11, 13, 17, 18, 21, 10**6)))
    model.opset_import.add(domain="ai.onnx.ml", version=dice.choice((1, 3, 5)))
    graph = model.graph
    graph.name = "operators"
    graph.input.append(helper.make_tensor_value_info("x", _elem_type(dice), _dims(dice)))
    alive = ["x"]
    for i in range(dice.choice((1, 2, 3, 6))):
        for _ in range(dice.choice((0, 1, 2))):
            graph.initializer.append(_tensor(dice, f"c{len(graph.initializer)}"))
            alive.append(graph.initializer[-1].name)
        schema = dice.choice(_SCHEMAS)
        node = graph.node.add(op_type=schema.name, domain=schema.domain, name=f"node{i}")
        most = min(schema.max_input, 6)
        wanted = dice.randint(min(schema.min_input, most), most)
        kinds = [schema.inputs[min(k, len(schema.inputs) - 1)].option for k in range(wanted)]
        node.input.extend(dice.choice(alive if kind != _OPTIONAL else ("", *alive)) for kind in kinds)
        outputs = min(max(schema.min_output, dice.choice((1, 1, 2, 3))), schema.max_output, 8)
        node.output.extend(f"n{i}_{k}" for k in range(outputs))
        for name, attribute in schema.attributes.items():
            if attribute.required or dice.random() < 0.3:
                node.attribute.append(_attribute(name, attribute.type.value, dice))
        alive += node.output
    for name in dict.fromkeys((alive[-1], dice.choice(alive[1:] or alive))):
        graph.output.append(helper.make_tensor_value_info(name, dice.choice((1, 1, 7, 9, 6, 10)), None))
    return model.SerializeToString()


def _elem_type(dice: random.Random) -> int:
    return dice.choice((1, 1, 1, 7, 7, 6, 9, 11, 10, 2, 3, 16, 22, 8, dice.randrange(28)))


def _dims(dice: random.Random) -> list[int]:
    return [dice.choice((1, 2, 3, 4, 4, 8, 0)) for _ in range(dice.choice((0, 1, 1, 2, 3, 4, 4, 5)))]


def _tensor(dice: random.Random, name: str = "") -> TensorProto:
    dims = _dims(dice)
    kind = dice.choice(
        ("float32", "float32", "int64", "int64", "int64", "int32", "bool", "uint8", "float64", "float16")
    )
    values = [
        dice.choice(INTEGERS) if dice.random() < 0.3 else dice.randrange(-4, 9) for _ in range(int(np.prod(dims)))
    ]
    with np.errstate(all="ignore"):
        array = np.array(values, np.int64).reshape(dims).astype(kind)
    return numpy_helper.from_array(array, name)


def _attribute(name: str, kind: int, dice: random.Random) -> AttributeProto:
    item = AttributeProto(name=name, type=kind)
    if dice.random() < 0.03:
        item.type = dice.randrange(15)
    few = range(dice.choice((0, 1, 2, 3, 4, 8)))
    if kind == AttributeProto.INT:
        item.i = dice.choice(INTEGERS) if dice.random() < 0.5 else dice.randrange(-4, 25)
    elif kind == AttributeProto.FLOAT:
        item.f = dice.choice(FLOATS)
    elif kind == AttributeProto.STRING:
        item.s = dice.choice((*TEXTS, "ij,jk->ik", "...ii->", "constant", "linear", "nearest")).encode()
    elif kind == AttributeProto.INTS:
        item.ints.extend(dice.choice(INTEGERS) if dice.random() < 0.3 else dice.randrange(-2, 6) for _ in few)
    elif kind == AttributeProto.FLOATS:
        item.floats.extend(dice.choice(FLOATS) for _ in few)
    elif kind == AttributeProto.STRINGS:
        item.strings.extend(dice.choice(TEXTS).encode() for _ in few)
    elif kind == AttributeProto.TENSOR:
        item.t.CopyFrom(_tensor(dice))
    elif kind == AttributeProto.GRAPH:
        item.g.CopyFrom(dice.choice(_GRAPHS))
    return item


KINDS: dict[str, Callable[[random.Random], bytes]] = {
    make.__name__: make
    for make in (
        operators,
        truncated,
        changed,
        flipped,
        operators,
        giant_length,
        changed,
        huge_dims,
        cyclic,
        external,
        nested,
        growing,
        bad_text,
        same_names,
        no_model,
    )
}
"""What makes a hostile model of each kind from dice."""

_TURNS = ("operators", "changed", "flipped", "operators", "external", "huge_dims", "truncated", "operators", "changed",
          "cyclic", "nested", "growing", "bad_text", "giant_length", "same_names", "no_model")  # fmt: skip
_VALID = valid_models()
_OPTIONAL = onnx.defs.OpSchema.FormalParameterOption.Optional
_GRAPHS = [item.g for node in _VALID["control"].graph.node for item in node.attribute if item.HasField("g")]
_SCHEMAS = sorted(
    (s for s in onnx.defs.get_all_schemas() if s.domain in ("", "ai.onnx.ml")), key=lambda s: (s.domain, s.name)
)


def hostile_models(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """`count` models with the kind of each, all kinds in turns."""
    for number in range(count):
        yield hostile_model(number, seed)


def hostile_model(number: int, seed: int = 0) -> tuple[str, bytes]:
    """One of them."""
    kind = _TURNS[number % len(_TURNS)]
    return kind, KINDS[kind](random.Random(f"{seed} {number} {kind}"))


def mutate(data: bytes, seed: int) -> bytes:
    """A model near to `data`: fields changed where it parses, bytes where it does not; now and then a new one."""
    dice = random.Random(zlib.crc32(data) ^ seed)
    if dice.random() < 0.1:
        return KINDS[dice.choice(_TURNS)](dice)
    if dice.random() < 0.2:
        return flip(data, dice)
    model = ModelProto()
    try:
        model.ParseFromString(data)
        for _ in range(dice.choice((1, 1, 2, 4))):
            _change(model, dice)
        return model.SerializeToString()
    except Exception:
        return flip(data, dice)
