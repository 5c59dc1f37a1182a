"""What every engine does alike: the contract of `corepipe.engine.base`, on real and on awkward models."""

from __future__ import annotations

import ctypes
import itertools
import json
import mmap
import os
import subprocess
import sys
import time

import idle_cpu
import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from reference import by_onnxruntime

from corepipe import engine as engines
from corepipe.cost.measuring import layer_of, layer_seconds, name_by_layer
from corepipe.engine.base import Engine
from corepipe.engine.onnxruntime import _split_runs
from corepipe.errors import EngineError, FrameError, UnknownNameError
from corepipe.network import zoo
from corepipe.network.load import load_network

F = T.FLOAT
QUICK = ["squeezenet", "mobilenet"]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in zoo.NAMES if name not in QUICK]


REFUSES = {
    "ncnn": {
        "test_scalars_and_nothing": ("has no elements", "its matrices have at least one"),
        "test_a_dynamic_output_is_handed_over_after_each_run": ("NonZero", "shapes are fixed"),
        "test_a_dynamic_output_never_leaves_the_memory_it_was_given": ("NonZero", "shapes are fixed"),
        "test_a_run_that_fails_and_one_that_does_not": ("NonZero", "shapes are fixed"),
        "test_booleans_and_casts": ("not float32", "all is float32"),
        "test_large_integers_are_right_or_refused_but_never_cut_off": ("not float32", "all is float32"),
    }
}
"""What the tests ask for and an engine refuses when it compiles: a part of the message, and why."""


@pytest.fixture(params=engines.names())
def engine(request) -> Engine:
    try:
        found = engines.get(request.param)
    except EngineError as error:
        pytest.skip(str(error))
    message, _ = REFUSES.get(request.param, {}).get(request.function.__name__, ("", ""))
    return Refusing(found, message) if message else found


class Refusing:
    """An engine that refuses some of what a test asks for; the test ends with a refusal of that message."""

    def __init__(self, found: Engine, message: str) -> None:
        self._found = found
        self._message = message
        self.name = found.name

    def compile(self, data, threads):
        try:
            return self._found.compile(data, threads)
        except EngineError as error:
            assert str(error).startswith(f"{self.name} refuses the model: ")
            assert self._message in str(error)
            pytest.skip(str(error))


def model(nodes, inputs, outputs, constants=None, opset=17) -> bytes:
    """`inputs` and `outputs`: name to (type, shape); `constants`: name to value."""

    def infos(values):
        return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in values.items()]

    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    graph = helper.make_graph([node(*n) for n in nodes], "test", infos(inputs), infos(outputs), held)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return made.SerializeToString()


def node(kind, inputs, outputs, attributes=None):
    return helper.make_node(kind, inputs.split(), outputs.split(), name=f"n_{outputs}", **(attributes or {}))


def relu(shape=(4,)) -> bytes:
    return model([("Relu", "x", "y")], {"x": (F, shape)}, {"y": (F, shape)})


def non_zero() -> bytes:
    return model([("NonZero", "x", "y")], {"x": (F, [4])}, {"y": (T.INT64, [1, None])})


def run(engine, data: bytes, inputs, outputs, threads=1):
    engine.compile(data, threads).bind(inputs, outputs)()
    return outputs


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def assert_near(got, want, tolerance=1e-4):
    scale = float(np.abs(want).max()) + 1e-12
    np.testing.assert_allclose(got / scale, want / scale, rtol=0, atol=tolerance)


# Results


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_a_whole_network_gives_what_onnxruntime_gives(engine, name, threads):
    whole = zoo.build(name)
    network = load_network(whole)
    data = engines.serialized(engine.name, network.segment(0, len(network.layers)).model)
    frame = {"data": numbers(1, 3, zoo_size(name), zoo_size(name))}
    got = run(engine, data, frame, {"prob": np.zeros((1, 1000), np.float32)}, threads)
    assert_near(got["prob"], by_onnxruntime(whole.SerializeToString(), frame)["prob"])


def zoo_size(name):
    return {"alexnet": 227, "squeezenet": 227}.get(name, 224)


def test_segments_one_after_the_other_give_what_the_whole_gives(engine):
    network = load_network(zoo.build("squeezenet"))
    legal = network.legal_cuts()
    alive = {"data": numbers(1, 3, 227, 227)}
    whole = by_onnxruntime(network.model.SerializeToString(), alive)
    edges = [0, legal[len(legal) // 3], legal[len(legal) // 2], len(network.layers)]
    for start, stop in itertools.pairwise(edges):
        segment = network.segment(start, stop)
        made = {t.name: np.zeros(t.shape, t.dtype) for t in segment.outputs}
        data = engines.serialized(engine.name, segment.model)
        run(engine, data, {t.name: alive[t.name] for t in segment.inputs}, made)
        alive |= made
    assert_near(alive["prob"], whole["prob"])


def test_float32_is_float32(engine):
    a, b = numbers(64, 512), numbers(512, 64, seed=1)
    data = model(
        [("MatMul", "x w", "m"), ("Conv", "i k", "c", {"pads": [1, 1, 1, 1]})],
        {"x": (F, [64, 512]), "i": (F, [1, 64, 16, 16])},
        {"m": (F, [64, 64]), "c": (F, [1, 8, 16, 16])},
        {"w": b, "k": numbers(8, 64, 3, 3, seed=2)},
    )
    image = numbers(1, 64, 16, 16, seed=3)
    got = run(engine, data, {"x": a, "i": image}, {"m": empty(64, 64), "c": empty(1, 8, 16, 16)})
    # With the 8 bits of bfloat16 the error would be some 1e-3 of the largest value.
    assert_near(got["m"], a.astype(np.float64) @ b.astype(np.float64), 2e-6)
    assert_near(got["c"], by_onnxruntime(data, {"x": a, "i": image})["c"], 2e-6)


def empty(*shape, dtype=np.float32):
    return np.full(shape, 77, dtype)


KINDS = {
    "plain": [("Relu", "x", "y")],
    "the input as it is": [("Identity", "x", "y")],
    "the input in another shape": [("Reshape", "x s", "y")],
    "a constant": [("Relu", "x", "z"), ("Identity", "c", "y")],
    "read by others too": [("Relu", "x", "y"), ("Neg", "y", "a"), ("Exp", "a", "z")],
    "the same as another": [("Relu", "x", "y"), ("Identity", "y", "z"), ("Identity", "y", "w")],
    "two views of the input": [("Identity", "x", "y"), ("Identity", "x", "z")],
    "parts of one": [("Relu", "x", "a"), ("Split", "a", "y z", {"axis": 1}), ("Concat", "z y", "w", {"axis": 1})],
    "put together": [("Relu", "x", "a"), ("Neg", "x", "b"), ("Concat", "a b", "y", {"axis": 1})],
}


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_of_every_kind_are_written_at_every_call(engine, kind):
    x = numbers(1, 4, 3, 3)
    made = [output for n in KINDS[kind] for output in n[2].split() if output in "yzw"]
    constants = {"s": np.array([2, 18]), "c": numbers(3, seed=9)}
    untyped = onnx.load_from_string(
        model(KINDS[kind], {"x": (F, x.shape)}, dict.fromkeys(made, (F, None)), constants, opset=13)
    )
    typed = onnx.shape_inference.infer_shapes(untyped)
    del typed.graph.value_info[:]
    data = typed.SerializeToString()
    outputs = {name: np.zeros_like(value) for name, value in by_onnxruntime(data, {"x": x}).items()}
    call = engine.compile(data, 1).bind({"x": x}, outputs)
    for seed in (1, 2):
        x[...] = numbers(*x.shape, seed=seed)
        for array in outputs.values():
            array[...] = 77
        call()
        for name, value in by_onnxruntime(data, {"x": x}).items():
            assert_near(outputs[name], value, 1e-6)


def test_an_output_that_is_an_input(engine):
    if engine.name == "onnxruntime":
        pytest.skip("leaves it unwritten; such networks are refused when they are loaded")
    data = model([("Relu", "x", "y")], {"x": (F, [4])}, {"y": (F, [4]), "x": (F, [4])})
    x = numbers(4)
    got = run(engine, data, {"x": x}, {"y": empty(4), "x": empty(4)})
    np.testing.assert_array_equal(got["x"], x)
    np.testing.assert_array_equal(got["y"], np.maximum(x, 0))


def test_names_count_and_not_their_order(engine):
    data = model(
        [("Sub", "b:0 a:0", "r/ü:1"), ("Neg", "r/ü:1", "q,0")],
        {"a:0": (F, [2]), "b:0": (F, [2])},
        {"r/ü:1": (F, [2]), "q,0": (F, [2])},
    )
    inputs = {"b:0": np.array([5, 7], np.float32), "a:0": np.array([1, 2], np.float32)}
    for order in (list(inputs), list(inputs)[::-1]):
        got = run(engine, data, {n: inputs[n] for n in order}, {"q,0": empty(2), "r/ü:1": empty(2)})
        np.testing.assert_array_equal(got["r/ü:1"], [4, 5])
        np.testing.assert_array_equal(got["q,0"], [-4, -5])


def test_an_input_that_nothing_reads_does_no_harm(engine):
    data = model([("Relu", "x", "y")], {"u": (F, [3]), "x": (F, [4])}, {"y": (F, [4])})
    np.testing.assert_array_equal(
        run(engine, data, {"x": np.ones(4, np.float32), "u": empty(3)}, {"y": empty(4)})["y"], np.ones(4)
    )


# Memory


def test_each_binding_has_memory_of_its_own(engine):
    compiled = engine.compile(relu((2, 3)), 1)
    slots = [(np.full((2, 3), n, np.float32), np.zeros((2, 3), np.float32)) for n in range(1, 4)]
    calls = [compiled.bind({"x": x}, {"y": y}) for x, y in slots]
    for number in (2, 0, 1, 2):
        slots[number][0][...] += 10
        calls[number]()
    assert [y[0, 0] for _, y in slots] == [11, 12, 23]
    assert all((y == y[0, 0]).all() for _, y in slots)


def test_a_binding_keeps_its_memory_alive(engine):
    y = empty(4)
    call = engine.compile(relu(), 1).bind({"x": np.full(4, 5, np.float32)}, {"y": y})
    for _ in range(20):
        np.full(4, 3, np.float32)
    call()
    np.testing.assert_array_equal(y, [5, 5, 5, 5])


def test_inputs_are_never_written_and_may_be_read_only(engine):
    network = load_network(zoo.build("squeezenet"))
    size = 4 * 3 * 227 * 227
    memory = mmap.mmap(-1, size)
    frame = numbers(1, 3, 227, 227)
    memory.write(frame.tobytes())
    data = network.model.SerializeToString()
    view = np.frombuffer(memory, np.float32).reshape(frame.shape)
    address = view.ctypes.data
    view.flags.writeable = False
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), mmap.PROT_READ) == 0
    got = run(engine, data, {"data": view}, {"prob": empty(1, 1000)})
    assert_near(got["prob"], by_onnxruntime(data, {"data": frame})["prob"])


def test_memory_that_cannot_be_shared_is_refused(engine):
    compiled = engine.compile(relu(), 1)
    x, y = numbers(4), empty(4)
    locked = empty(4)
    locked.flags.writeable = False
    for inputs, outputs, what in [
        ({"x": numbers(8)[::2]}, {"y": y}, "not contiguous"),
        ({"x": x}, {"y": empty(8)[::2]}, "not contiguous"),
        ({"x": x.astype(">f4")}, {"y": y}, "byte order"),
        ({"x": x}, {"y": y.astype(">f4")}, "byte order"),
        ({"x": x}, {"y": locked}, "read-only"),
    ]:
        with pytest.raises(EngineError, match=what):
            compiled.bind(inputs, outputs)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1, 0, 2), (1,)])
def test_scalars_and_nothing(engine, shape):
    x = np.full(shape, -3, np.float32)
    got = run(engine, model([("Neg", "x", "y")], {"x": (F, shape)}, {"y": (F, shape)}), {"x": x}, {"y": empty(*shape)})
    np.testing.assert_array_equal(got["y"], -x)
    x.flags.writeable = False
    run(engine, relu(shape), {"x": x}, {"y": empty(*shape)})


# Outputs whose shape depends on the data


def test_a_dynamic_output_is_handed_over_after_each_run(engine):
    x, got = np.zeros(4, np.float32), []
    call = engine.compile(non_zero(), 1).bind({"x": x}, {"y": lambda array: got.append(array.tolist())})
    for values in ([0, 1, 2, 3], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]):
        x[...] = values
        call()
    assert got == [[[1, 2, 3]], [[]], [[0, 1, 2, 3]], [[3]]]


def test_an_output_of_known_shape_may_be_handed_over_too(engine):
    got = []
    run(engine, relu(), {"x": np.ones(4, np.float32)}, {"y": lambda array: got.append(array.tolist())})
    assert got == [[1, 1, 1, 1]]


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4])
def test_a_dynamic_output_never_leaves_the_memory_it_was_given(engine, length):
    memory = np.full(64, 77, np.int64)
    place = memory[16 : 16 + length].reshape(1, length)
    call = engine.compile(non_zero(), 1).bind({"x": np.array([0, 1, 0, 1], np.float32)}, {"y": place})
    if length == 2:
        call()
        np.testing.assert_array_equal(place, [[1, 3]])
    else:
        with pytest.raises(EngineError):
            call()
    assert (memory[:16] == 77).all()
    assert (memory[16 + length :] == 77).all()


def test_what_fails_in_handing_over(engine):
    def full(array):
        raise FrameError("no room")

    def broken(array):
        raise ValueError("broken")

    compiled = engine.compile(non_zero() if engine.name != "ncnn" else relu(), 1)
    inputs = {"x": np.ones(4, np.float32)}
    with pytest.raises(FrameError, match="no room"):
        compiled.bind(inputs, {"y": full})()
    with pytest.raises(EngineError, match="broken"):
        compiled.bind(inputs, {"y": broken})()


def test_what_fails_in_handing_over_leaves_the_next_run_alone(engine):
    x, got, room = np.ones(4, np.float32), [], [3]

    def store(array):
        if array.size > room[0]:
            raise FrameError("no room")
        got.append(array.tolist())

    dynamic = engine.name != "ncnn"
    call = engine.compile(non_zero() if dynamic else relu(), 1).bind({"x": x}, {"y": store})
    with pytest.raises(FrameError, match="no room"):
        call()
    x[...], room[0] = [0, 1, 0, 1], 4
    call()
    assert got == [[[1, 3]] if dynamic else [0, 1, 0, 1]]


# Types

TYPES = {
    T.FLOAT: np.float32, T.FLOAT16: np.float16, T.DOUBLE: np.float64, T.INT64: np.int64, T.INT32: np.int32,
    T.INT16: np.int16, T.INT8: np.int8, T.UINT8: np.uint8, T.UINT16: np.uint16, T.UINT32: np.uint32,
    T.UINT64: np.uint64,
}  # fmt: skip


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: T.DataType.Name(kind).lower())
@pytest.mark.parametrize("operator", ["Identity", "Add", "Reshape"])
def test_a_type_is_exact_or_refused(engine, kind, operator):
    dtype = np.dtype(TYPES[kind])
    values = np.array([0, 1, 5, 40, 60, 3], dtype)
    if dtype.kind == "i":
        values -= dtype.type(7)
    if dtype == np.float64:
        values += 1 / 3
    second = {"Identity": "x", "Add": "x x", "Reshape": "x s"}[operator]
    data = model([(operator, second, "y")], {"x": (kind, [6])}, {"y": (kind, [6])}, {"s": np.array([6])})
    want = values + values if operator == "Add" else values
    try:
        got = run(engine, data, {"x": values}, {"y": np.zeros(6, dtype)})
    except EngineError:
        assert (engine.name, dtype) not in {("onnxruntime", np.float64), ("openvino", np.int64)}
        assert dtype != np.float32
        return
    np.testing.assert_array_equal(got["y"], want)


def test_booleans_and_casts(engine):
    data = model(
        [("Not", "x", "y"), ("Cast", "y", "f", {"to": F}), ("ArgMax", "f", "a", {"axis": 0, "keepdims": 0})],
        {"x": (T.BOOL, [4])},
        {"y": (T.BOOL, [4]), "f": (F, [4]), "a": (T.INT64, [])},
    )
    outputs = {"y": empty(4, dtype=bool), "f": empty(4), "a": empty(dtype=np.int64)}
    run(engine, data, {"x": np.array([True, True, False, True])}, outputs)
    assert [o.tolist() for o in outputs.values()] == [[False, False, True, False], [0, 0, 1, 0], 2]


@pytest.mark.parametrize("kind", [T.INT64, T.UINT64, T.UINT32], ids=lambda kind: T.DataType.Name(kind).lower())
def test_large_integers_are_right_or_refused_but_never_cut_off(engine, kind):
    dtype = TYPES[kind]
    x = np.array([1, np.iinfo(dtype).max - 5, 3], dtype)
    call = engine.compile(
        model(
            [("Identity", "x", "y"), ("Cast", "x", "f", {"to": F})],
            {"x": (kind, [3])},
            {"y": (kind, [3]), "f": (F, [3])},
        ),
        1,
    ).bind({"x": x}, outputs := {"y": np.zeros(3, dtype), "f": empty(3)})
    try:
        call()
    except EngineError as error:
        assert "32 bits" in str(error)
        x[1] = 2
        call()
    np.testing.assert_array_equal(outputs["y"], x)
    np.testing.assert_allclose(outputs["f"], x.astype(np.float64), rtol=1e-6)


def test_strings_are_refused(engine):
    data = model([("Identity", "x", "y")], {"x": (T.STRING, [2])}, {"y": (T.STRING, [2])})
    with pytest.raises(EngineError):
        run(engine, data, {"x": np.array(["a", "b"], object)}, {"y": lambda array: None})
    for array in (np.array(["a"] * 4), np.array(["a"] * 4, object), np.zeros(4, np.complex64)):
        with pytest.raises(EngineError):
            run(engine, relu(), {"x": array}, {"y": empty(4)})


# Refusals


def one_line(error) -> bool:
    text = str(error.value)
    return "\n" not in text and 10 < len(text) < 500 and ".cpp" not in text


def test_models_that_are_none(engine):
    unknown = model([("Reluctant", "x", "y")], {"x": (F, [4])}, {"y": (F, [4])})
    shapes = model([("MatMul", "x w", "y")], {"x": (F, [4, 5])}, {"y": (F, [4, 3])}, {"w": np.ones((7, 3), np.float32)})
    for data in (b"", b"garbage", relu()[:-20], unknown, shapes):
        with pytest.raises(EngineError) as error:
            engine.compile(data, 1)
        assert one_line(error)
        with pytest.raises(EngineError):
            engine.profile(data, 1, {"x": numbers(4)}, 1)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ({}, {"y": empty(4)}),
        ({"z": numbers(4)}, {"y": empty(4)}),
        ({"x": numbers(4)}, {"z": empty(4)}),
        ({"x": numbers(4).astype(np.float64)}, {"y": empty(4)}),
        ({"x": numbers(4)}, {"y": empty(4, dtype=np.int32)}),
        ({"x": numbers(5)}, {"y": empty(4)}),
        ({"x": numbers(2, 2)}, {"y": empty(4)}),
        ({"x": numbers(4)}, {"y": empty(5)}),
        ({"x": numbers(4)}, {"y": empty(0)}),
        ({"x": numbers(4)}, {"y": empty(2, 2)}),
    ],
)
def test_arrays_that_do_not_fit(engine, inputs, outputs):
    with pytest.raises(EngineError) as error:
        run(engine, relu(), inputs, outputs)
    assert one_line(error)
    assert all((array == 77).all() for array in outputs.values())


def test_a_run_that_fails_and_one_that_does_not(engine):
    if engine.name == "openvino":
        pytest.skip("trusts the shapes that a model computes: its result is then anything")
    data = model(
        [("NonZero", "x", "n"), ("Add", "n c", "y")], {"x": (F, [4])}, {"y": (T.INT64, [1, None])}, {"c": [[1, 2, 3]]}
    )
    x, got = np.array([1, 0, 1, 0], np.float32), []
    call = engine.compile(data, 1).bind({"x": x}, {"y": lambda array: got.append(array.tolist())})
    with pytest.raises(EngineError) as error:
        call()
    assert one_line(error)
    x[1] = 1
    call()
    assert got == [[[1, 3, 5]]]


def test_an_engine_that_does_not_exist():
    with pytest.raises(UnknownNameError, match="openvino"):
        engines.get("openvin")


def test_a_library_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "corepipe.engine.openvino", raising=False)
    with pytest.raises(EngineError, match=r"engine openvino: .*pip install openvino"):
        engines.get("openvino")


# Threads

THREADS = """
import json, os, sys, time
cpus, threads, name = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
import numpy as np
from corepipe import engine
from corepipe.network import zoo
from corepipe.runtime.child import pin

def tasks():
    found = {}
    for task in os.listdir("/proc/self/task"):
        status = open(f"/proc/self/task/{task}/status").read()
        allowed = status.split("Cpus_allowed_list:")[1].split()[0]
        ran = open(f"/proc/self/task/{task}/schedstat").read().split()[0]
        found[task] = (allowed, int(ran))
    return found

chosen = engine.get(name)
pin(cpus, strict=True)
chosen.dedicate(threads)
compiled = [chosen.compile(zoo.build("squeezenet").SerializeToString(), threads) for _ in range(2)]
x, y = np.ones((1, 3, 227, 227), np.float32), np.zeros((1, 1000), np.float32)
calls = [c.bind({"data": x}, {"prob": y}) for c in compiled for _ in range(2)]
for call in calls:
    call()
before, wall, cpu = tasks(), time.perf_counter(), time.process_time()
for call in calls * 4:
    call()
wall, cpu, after = time.perf_counter() - wall, time.process_time() - cpu, tasks()
assert chosen.profile(zoo.build("squeezenet").SerializeToString(), threads, {"data": x}, 1)
print(json.dumps({
    "allowed": sorted({allowed for allowed, _ in {**after, **tasks()}.values()}),
    "mine": sorted(os.sched_getaffinity(0)),
    "busy": sorted((ran - before.get(task, (0, 0))[1] for task, (_, ran) in after.items()), reverse=True),
    "cpu_per_wall": cpu / wall,
}))
"""


def printed_by(script, *arguments, folder=None):
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        check=True,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    return done.stdout


def threads_of(engine, cpus, threads, folder=None):
    return json.loads(printed_by(THREADS, json.dumps(cpus), str(threads), engine.name, folder=folder))


needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity mask")


@needs_affinity
def test_threads_stay_on_the_cores_of_a_pinned_process_and_no_file_is_written(engine, tmp_path):
    cpu = max(os.sched_getaffinity(0))
    found = threads_of(engine, [cpu], 1, tmp_path)
    assert found["allowed"] == [str(cpu)]
    assert found["mine"] == [cpu]
    assert not list(tmp_path.iterdir())


@needs_affinity
def test_one_thread_keeps_one_core_busy_though_it_may_use_all(engine):
    found = threads_of(engine, [], 1)
    assert found["mine"] == sorted(os.sched_getaffinity(0))
    assert found["cpu_per_wall"] < 1.2
    assert found["busy"][0] > 20 * sum(found["busy"][1:])


@needs_affinity
def test_two_threads_share_the_work(engine):
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        pytest.skip("needs two cores")
    found = threads_of(engine, cpus, 2)
    first, second, *others = found["busy"]
    assert second > 0
    assert sum(others) < first / 20


@needs_affinity
def test_no_thread_spins_on_beside_another_engine(engine):
    """A pool that ONNX Runtime's sessions shared spun for tens of milliseconds, whatever the sessions were told."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    spent = sorted(map(float, printed_by(idle_cpu.SCRIPT, engine.name).split()))
    assert spent[2] < 0.01, "seconds of processor time in 0.05 s in which nothing runs"


# Profile


def test_a_profile_has_every_run_in_order(engine):
    data = zoo.build("squeezenet").SerializeToString()
    frame = {"data": numbers(1, 3, 227, 227)}
    ends = [time.perf_counter()]
    runs = engine.profile(data, 1, frame, 5, lambda: ends.append(time.perf_counter()))
    assert len(runs) == 5
    assert len(ends) == 6
    for run_, wall in list(zip(runs, np.diff(ends), strict=True))[1:]:
        seconds = [kernel.seconds for kernel in run_]
        assert min(seconds) >= 0
        assert 0 < sum(seconds) <= 1.02 * wall + 1e-4
        assert len(run_) > 30
    assert len({tuple(kernel.node for kernel in run_) for run_ in runs}) == 1


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_the_seconds_of_the_kernels_are_those_of_the_layers(engine, name):
    network = load_network(zoo.build(name))
    segment = name_by_layer(network, network.segment(0, len(network.layers)))
    frame = {"data": numbers(1, 3, zoo_size(name), zoo_size(name))}
    runs = [
        [(kernel.node, kernel.seconds) for kernel in run_]
        for run_ in engine.profile(engines.serialized(engine.name, segment.model), 1, frame, 4)[1:]
    ]
    layers = np.mean([layer_seconds(network, [run_]) for run_ in runs], axis=0)
    assert layers.sum() == pytest.approx(np.mean([sum(s for _, s in run_) for run_ in runs]), rel=1e-3)
    heavy = [i for i, layer in enumerate(network.layers) if layer.descriptor.flops > 1e6]
    assert len(heavy) > 5
    # Those whose kernels were counted elsewhere would have nothing.
    assert min(layers[i] for i in heavy) > 1e-6
    owner = {output: layer.index for layer in network.layers for output in layer.outputs}
    known = sum(s for run_ in runs for node, s in run_ if layer_of(node, owner, -1) >= 0)
    assert known > 0.8 * sum(s for run_ in runs for _, s in run_)


def test_the_time_inside_a_loop_is_that_of_the_loop():
    def event(name, ts, dur, kind="Add"):
        return {"name": name, "ts": ts, "dur": dur, "args": {"op_name": kind}}

    events = [
        event("model_run", 0, 100), event("a_kernel_time", 1, 9), event("add_kernel_time", 12, 3),
        event("loop_kernel_time", 10, 40, "Loop"), event("add_kernel_time", 20, 30), event("b_kernel_time", 50, 0),
        event("c_kernel_time", 50, 7),
    ]  # fmt: skip
    (run_,) = _split_runs(events, 1)
    assert [(kernel.node, round(kernel.seconds * 1e6)) for kernel in run_] == [
        ("a", 9),
        ("loop", 40),
        ("b", 0),
        ("c", 7),
    ]


def test_a_profile_that_fails(engine):
    with pytest.raises(EngineError):
        engine.profile(relu(), 1, {"x": numbers(5)}, 2)
