"""Whatever a kernel library raises, wherever it is called: the engine raises `EngineError`.

The real library is put behind a stand-in that counts the calls into it and makes one of them fail. A new engine needs a
line in `LIBRARIES`.
"""

from __future__ import annotations

import builtins
import collections
import datetime
import importlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from corepipe import engine as engines
from corepipe.errors import EngineError

LIBRARIES = {
    "onnxruntime": ("ort", "onnxruntime"),
    "openvino": ("ov", "openvino"),
    "ncnn": ("ncnn", "ncnn"),
}
"""By engine: what its module calls its library, and the package in which the library's exceptions are."""

STAGES = ("compile", "bind", "run", "profile")
PLAIN = (str, bytes, int, float, bool, type(None), np.ndarray, np.generic, datetime.timedelta)


class Faults:
    """Counts calls, and raises an error at one of them."""

    def __init__(self) -> None:
        self.calls = 0
        self.at: int | None = None
        self.error: BaseException = RuntimeError()

    def call(self) -> None:
        self.calls += 1
        if self.calls - 1 == self.at:
            raise self.error


class StandIn:
    """In the place of a library's object or function."""

    def __init__(self, real: Any, faults: Faults) -> None:
        self.__dict__.update(_real=real, _faults=faults)

    def __call__(self, *given: Any, **named: Any) -> Any:
        self._faults.call()
        return self._wrap(self._real(*map(bare, given), **{key: bare(value) for key, value in named.items()}))

    def __getattr__(self, name: str) -> Any:
        return self._wrap(getattr(self._real, name))

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._real, name, bare(value))

    def __getitem__(self, key: Any) -> Any:
        return self._wrap(self._real[key])

    def __iter__(self) -> Iterator[Any]:
        return map(self._wrap, iter(self._real))

    def __len__(self) -> int:
        return len(self._real)

    def __str__(self) -> str:
        return str(self._real)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        self._faults.call()
        return np.array(self._real, dtype=dtype, copy=copy)

    def _wrap(self, value: Any) -> Any:
        return value if isinstance(value, PLAIN) else StandIn(value, self._faults)


def bare(value: Any) -> Any:
    """What the library itself may be given."""
    if isinstance(value, StandIn):
        return value._real
    if isinstance(value, list | tuple | set):
        return type(value)(bare(item) for item in value)
    return value


class Bench:
    """An engine on a library that fails when it is told to."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine = engines.get(name)
        assert name in LIBRARIES, f"name the library of engine {name} in LIBRARIES"
        attribute, self.package = LIBRARIES[name]
        module = importlib.import_module(type(self.engine).__module__)
        self.faults = Faults()
        monkeypatch.setattr(module, attribute, StandIn(getattr(module, attribute), self.faults))
        self._forget = [value.cache_clear for value in vars(module).values() if hasattr(value, "cache_clear")]
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 4, 4]) for name in "xy"]
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
        self.model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        self.x = np.full((1, 2, 4, 4), -1, np.float32)
        self.y = np.ones_like(self.x)

    def run(self, stage: str, at: int | None = None, error: BaseException | None = None) -> int:
        """Go through a stage, with an error at one of its calls into the library; returns how many there were."""
        for forget in self._forget:
            forget()
        data, start = self.model.SerializeToString(), self.faults.calls
        steps: dict[str, Any] = {}

        def go(name: str) -> None:
            if name == "compile":
                steps[name] = self.engine.compile(data, 1)
            elif name == "bind":
                steps[name] = steps["compile"].bind({"x": self.x}, {"y": self.y})
            elif name == "run":
                steps["bind"]()
            else:
                self.engine.profile(data, 1, {"x": self.x}, 2)

        try:
            for name in STAGES[: STAGES.index(stage)] if stage != "profile" else ():
                go(name)
            start = self.faults.calls
            self.faults.at, self.faults.error = None if at is None else start + at, error or RuntimeError()
            go(stage)
        finally:
            self.faults.at = None
        return self.faults.calls - start


@pytest.fixture(params=engines.names())
def bench(request, monkeypatch) -> Bench:
    try:
        engines.get(request.param)
    except EngineError as error:
        pytest.skip(str(error))
    made = Bench(request.param, monkeypatch)
    yield made
    for forget in made._forget:
        forget()


def errors_of(package: str) -> list[Exception]:
    """One of every exception that Python or the library has."""
    kinds = {kind for kind in vars(builtins).values() if isinstance(kind, type)}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == package:
            kinds |= {kind for kind in vars(module).values() if isinstance(kind, type)}
    found = []
    for kind in sorted((k for k in kinds if issubclass(k, Exception)), key=lambda k: (k.__module__, k.__name__)):
        if issubclass(kind, UnicodeEncodeError | UnicodeDecodeError):
            text = "x" if issubclass(kind, UnicodeEncodeError) else b"x"
            found.append(kind("utf-8", text, 0, 1, "no"))
        elif issubclass(kind, UnicodeTranslateError):
            found.append(kind("x", 0, 1, "no"))
        elif issubclass(kind, BaseExceptionGroup):
            found.append(kind("no", [ValueError("room")]))
        else:
            try:
                found.append(kind("no room"))
            except TypeError:
                found.append(kind.__new__(kind))
    return found


def test_the_librarys_own_exceptions_are_among_them(bench):
    own = [type(e) for e in errors_of(bench.package) if type(e).__module__.partition(".")[0] == bench.package]
    names = {kind.__name__ for kind in own}
    wanted = {
        "onnxruntime": {"Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented"}
    }
    assert wanted.get(bench.engine.name, set()) <= names


@pytest.mark.parametrize("stage", STAGES)
def test_every_exception(bench, stage):
    assert bench.run(stage) > 0
    for error in errors_of(bench.package):
        with pytest.raises(EngineError, match=f"^{bench.engine.name}"):
            bench.run(stage, 0, error)


@pytest.mark.parametrize("stage", STAGES)
def test_at_every_call(bench, stage):
    errors = collections.deque(errors_of(bench.package))
    for at in range(bench.run(stage)):
        with pytest.raises(EngineError, match=f"^{bench.engine.name}"):
            bench.run(stage, at, errors[0])
        errors.rotate(-1)


@pytest.mark.parametrize("stage", STAGES)
def test_an_interruption_passes(bench, stage):
    for error in (KeyboardInterrupt(), SystemExit(1)):
        with pytest.raises(type(error)):
            bench.run(stage, 0, error)


def test_all_is_well_afterwards(bench):
    with pytest.raises(EngineError):
        bench.run("run", 0, MemoryError())
    bench.run("run")
    np.testing.assert_array_equal(bench.y, np.zeros_like(bench.y))


@pytest.mark.parametrize("error", [ImportError("libgomp.so.1"), AttributeError("no PoolAllocator"), OSError("no AVX2")])
def test_a_library_that_does_not_load_is_named(monkeypatch, error):
    """For want of a file, or because it is of another version or for another CPU."""

    def fail(module):
        raise error

    monkeypatch.setattr(engines, "import_module", fail)
    with pytest.raises(EngineError, match=f"engine ncnn: its library does not load .{error}.; install it: pip"):
        engines.get("ncnn")
