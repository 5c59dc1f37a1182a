"""Kernel libraries behind one interface; `get` returns one by name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from corepipe.engine.base import Compiled, DynamicOutput, Engine
from corepipe.errors import EngineError, UnknownNameError

if TYPE_CHECKING:
    from onnx import ModelProto

_ENGINES = {
    "onnxruntime": ("corepipe.engine.onnxruntime", "install it anew: pip install --force-reinstall onnxruntime"),
    "openvino": ("corepipe.engine.openvino", "install it: pip install openvino"),
    "ncnn": ("corepipe.engine.ncnn", "install it: pip install ncnn"),
}
"""Module, and what to do where its library does not load."""

FORKABLE = frozenset({"onnxruntime", "ncnn"})
"""Those whose models, compiled for one thread, run on in processes that are forked then. OpenVINO has more threads."""

__all__ = ["FORKABLE", "Compiled", "DynamicOutput", "Engine", "get", "names", "serialized"]


def names() -> tuple[str, ...]:
    """The names that `get` knows."""
    return tuple(_ENGINES)


def get(name: str) -> Engine:
    """The engine of that name; its library is imported here. Pin all threads of the process before it compiles.

    Raises:
        UnknownNameError: there is no such engine.
        EngineError: its library is not installed or does not load.
    """
    if name not in _ENGINES:
        raise UnknownNameError("engine", name, _ENGINES)
    module, advice = _ENGINES[name]
    try:
        return cast(Engine, import_module(module).ENGINE)
    except Exception as error:  # of a library of another version perhaps not ImportError
        raise EngineError(f"engine {name}: its library does not load ({error}); {advice}") from None


def serialized(name: str, model: ModelProto) -> bytes:
    """A segment for that engine's `compile` and `profile`, which run any model, in the form that it is quickest at.

    For ONNX Runtime, operators that it is slow at are spelt out in others; results differ by rounding. No library of
    kernels is loaded.
    """
    if name == "onnxruntime":
        from corepipe.engine._onnxruntime.spelling import spell_out

        model = spell_out(model)
    return bytes(model.SerializeToString())
