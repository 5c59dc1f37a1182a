"""OpenVINO behind the engine interface: its CPU plugin, which on ARM runs on the Arm Compute Library."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from corepipe.engine._openvino_kernels import name_kernels
from corepipe.engine.base import DynamicOutput, KernelTime, brief, check_memory
from corepipe.errors import CorepipeError, EngineError

_T = TypeVar("_T")

_CONFIG = {
    # Without these two it computes in bfloat16 or float16 where the CPU can, and quantises activations by itself.
    "INFERENCE_PRECISION_HINT": "f32",
    "EXECUTION_MODE_HINT": "ACCURACY",
    # Else it replaces the affinity mask of its threads by one of its own choice.
    "ENABLE_CPU_PINNING": "NO",
    # Else it takes fewer threads than it is told where it would rather not use a core.
    "ENABLE_HYPER_THREADING": "YES",
    "SCHEDULING_CORE_TYPE": "ANY_CORE",
    "NUM_STREAMS": "1",
}
_TYPES = {
    "boolean": "bool", "f16": "float16", "f32": "float32", "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64",
    "u8": "uint8", "u16": "uint16", "u32": "uint32", "u64": "uint64",
}  # fmt: skip
_NARROWED = frozenset({"int64", "uint32", "uint64"})
_INT32 = np.iinfo(np.int32)
_MICROSECOND = timedelta(microseconds=1)
_GIVEN = frozenset({"Constant", "Parameter", "Result"})
_PART = "/WithoutBiases"
"""A convolution with a bias becomes two nodes, of which this one takes the time."""


class OpenVinoEngine:
    """The CPU plugin in float32; a run uses the calling thread, and TBB workers that share its affinity mask."""

    name = "openvino"

    def dedicate(self, threads: int, alone: bool = True) -> None:
        """See `Engine.dedicate`: all models of a process share one pool of workers as it is."""

    def compile(self, model: bytes, threads: int) -> _Model:
        """See `Engine.compile`."""
        return _Model(_compile(model, threads)[0])

    def profile(
        self,
        model: bytes,
        threads: int,
        inputs: Mapping[str, NDArray[Any]],
        runs: int,
        between: Callable[[], None] = lambda: None,
    ) -> Sequence[Sequence[KernelTime]]:
        """See `Engine.profile`; a kernel is named after the node of the model that it computes or serves."""
        compiled, given = _compile(model, threads, PERF_COUNT="YES")
        call = _Call(compiled, inputs, {})
        means, kernels = [], []
        for _ in range(runs):
            call()
            kernels = _profiled(call.request.get_profiling_info)
            means.append([kernel.real_time // _MICROSECOND for kernel in kernels])
            between()
        if not means:
            return []
        nodes = _profiled(lambda: served(compiled.get_runtime_model(), given))
        names = [nodes.get(kernel.node_name, kernel.node_name) for kernel in kernels]
        counted = np.asarray(means, np.int64)
        ran = np.flatnonzero(counted.any(axis=0))
        seconds = each_run(counted) * 1e-6
        return [[KernelTime(names[kernel], float(run[kernel])) for kernel in ran] for run in seconds]


class _Model:
    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled

    def bind(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any] | DynamicOutput]
    ) -> Callable[[], None]:
        """See `Compiled.bind`. An input that nothing in the model reads is unknown to the library: it may be anything.

        The library computes 64-bit integers in 32 bits, and many operators on integers in float32 (24 bits): a call
        with inputs beyond 32 bits raises `EngineError`. It trusts the shapes that a model computes from its data: where
        they do not fit each other, the result is anything, or the process ends.
        """
        return _Call(self.compiled, inputs, outputs)


class _Call:
    """An infer request of its own, on the caller's memory."""

    def __init__(
        self,
        compiled: Any,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Mapping[str, NDArray[Any] | DynamicOutput],
    ) -> None:
        check_memory("openvino", inputs, outputs)
        # The library knows addresses only: the arrays, and what made the request, must live as long as the call.
        self._keep_alive = (compiled, inputs, outputs)
        self._narrowed = [(name, array) for name, array in inputs.items() if array.dtype.name in _NARROWED]
        self._after: list[tuple[Any, str, NDArray[Any] | DynamicOutput]] = []
        try:
            self.request = compiled.create_infer_request()
            self._bind_inputs(compiled.inputs, inputs)
            self._bind_outputs(_by_name(compiled.outputs), outputs)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"openvino: cannot bind: {_brief(error)}") from None

    def __call__(self) -> None:
        """Run."""
        for name, array in self._narrowed:
            if array.size and not (_INT32.min <= array.min() and array.max() <= _INT32.max):
                raise EngineError(
                    f"openvino: {name!r} holds integers beyond 32 bits, which it cannot compute with; use onnxruntime"
                )
        try:
            # The calling thread computes; `start_async` wakes another one, which takes 12 microseconds more.
            self.request.infer(share_outputs=True)
            for port, name, target in self._after:
                self._hand_over(port, name, target)
        except CorepipeError:
            raise
        except Exception as error:
            raise EngineError(f"openvino: run failed: {_brief(error)}") from None

    def _bind_inputs(self, ports: Sequence[Any], inputs: Mapping[str, NDArray[Any]]) -> None:
        for port in ports:
            name = next((n for n in sorted(port.get_names()) if n in inputs), None)
            if name is None:
                raise EngineError(f"openvino: cannot bind: nothing is given for input {port.get_any_name()!r}")
            _check(port, name, inputs[name])
            self.request.set_tensor(port, _tensor(inputs[name]))

    def _bind_outputs(self, ports: Mapping[str, Any], outputs: Mapping[str, NDArray[Any] | DynamicOutput]) -> None:
        for name, target in outputs.items():
            if name not in ports:
                raise EngineError(f"openvino: cannot bind: there is no output {name!r}")
            port = ports[name]
            if isinstance(target, np.ndarray):
                _check(port, name, target)
            if isinstance(target, np.ndarray) and port.get_partial_shape().is_static:
                self.request.set_tensor(port, _tensor(target))
            else:
                # Given memory that turns out too small, it writes past its end, or nothing at all, and says nothing.
                self._after.append((port, name, target))

    def _hand_over(self, port: Any, name: str, target: NDArray[Any] | DynamicOutput) -> None:
        value = self.request.get_tensor(port).data
        if not isinstance(target, np.ndarray):
            target(value)
        elif target.shape != value.shape:
            raise EngineError(f"openvino: run failed: output {name!r} has shape {value.shape}, not {target.shape}")
        else:
            target[...] = value


def _profiled(ask: Callable[[], _T]) -> _T:
    try:
        return ask()
    except Exception as error:
        raise EngineError(f"openvino: profiling failed: {_brief(error)}") from None


@functools.cache
def _core() -> Any:
    return ov.Core()


def _compile(model: bytes, threads: int, **config: str) -> tuple[Any, frozenset[str]]:
    """The compiled model, and the names that the file gives to what it computes."""
    try:
        read = _core().read_model(model)
        operators = [node for node in read.get_ordered_ops() if node.get_type_name() not in _GIVEN]
        named = frozenset(n.get_friendly_name() for n in operators if n.get_friendly_name() != n.get_name())
        _check_model([value for node in operators for value in node.outputs()], read.inputs, read.outputs)
        name_kernels(_core(), operators)
        config |= _CONFIG | {"INFERENCE_NUM_THREADS": str(max(1, threads))}
        return _core().compile_model(read, "CPU", config), named
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(f"openvino refuses the model: {_brief(error)}") from None


def _check_model(values: Iterable[Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    """Refuse what it would compute with fewer digits than the model asks for, and inputs and outputs of other kinds."""
    if any(value.get_element_type().get_type_name() == "f64" for value in (*values, *inputs, *outputs)):
        raise EngineError("openvino refuses the model: it computes float64 in float32 only; use onnxruntime")
    for port in (*inputs, *outputs):
        kind = port.get_element_type().get_type_name()
        if kind not in _TYPES:
            raise EngineError(f"openvino refuses the model: it cannot take or give {port.get_any_name()!r}, a {kind}")
    for port in inputs:
        if port.get_partial_shape().is_dynamic:
            # In runs it checks no shape: those that do not fit give nonsense, or end the process.
            raise EngineError(f"openvino refuses the model: the shape of {port.get_any_name()!r} is not fixed")


def _by_name(ports: Iterable[Any]) -> dict[str, Any]:
    """Ports by each of their names."""
    found: dict[str, Any] = {}
    for port in ports:
        for name in port.get_names():
            found.setdefault(name, port)
    return found


def _check(port: Any, name: str, array: NDArray[Any]) -> None:
    shape, wanted = port.get_partial_shape(), _TYPES[port.get_element_type().get_type_name()]
    if array.dtype != wanted:
        raise EngineError(f"openvino: cannot bind {name!r}: it is {wanted}, not {array.dtype}")
    if not shape.compatible(ov.PartialShape(list(array.shape))):
        raise EngineError(f"openvino: cannot bind {name!r}: its shape is {shape}, not {list(array.shape)}")


def _tensor(array: NDArray[Any]) -> Any:
    """A tensor on the array's own memory; the binding takes only what is writable, though inputs are never written."""
    if not array.flags.writeable:
        memory = (ctypes.c_char * array.nbytes).from_address(array.ctypes.data)
        array = np.ndarray(array.shape, array.dtype, memoryview(memory))
    return ov.Tensor(array, shared_memory=True)


def served(runtime: Any, given: frozenset[str]) -> dict[str, str]:
    """The node of the model that each node of the runtime graph computes, or else serves.

    A fused kernel computes the first of its nodes. One that the library put in, such as a change of layout, serves the
    nearest reader that computes a node, or where there is none, the nearest source.

    Args:
        runtime: the graph that is run.
        given: names of the model's nodes.

    Returns:
        Names by the name of the runtime node; those are left out that have nothing to do with any node.
    """
    own: dict[str, str] = {}
    readers: dict[str, list[str]] = {}
    sources: dict[str, list[str]] = {}
    for node in runtime.get_ordered_ops():
        name = node.get_friendly_name()
        readers[name] = [into.get_node().get_friendly_name() for o in node.outputs() for into in o.get_target_inputs()]
        sources[name] = [value.get_node().get_friendly_name() for value in node.input_values()]
        fused = _text(node.get_rt_info(), "originalLayersNames").split(",")
        computed = next((n for n in (name, *fused) if n in given), None)
        if computed is not None:
            own[name] = computed.removesuffix(_PART)
    found = dict(own)
    for name in readers.keys() - own.keys():
        near = [*_nearest(name, readers, own), *_nearest(name, sources, own)]
        if near:
            found[name] = near[0]
    return found


def _text(info: Any, key: str) -> str:
    try:
        return str(info[key].astype(str))
    except (KeyError, RuntimeError):
        return ""


def _nearest(start: str, ways: Mapping[str, Sequence[str]], own: Mapping[str, str]) -> Iterator[str]:
    """What the nearest nodes compute, breadth first along `ways`."""
    seen, queue = {start}, [start]
    for name in queue:
        if name in own:
            yield own[name]
            return
        fresh = [n for n in dict.fromkeys(ways.get(name, ())) if n not in seen]
        seen.update(fresh)
        queue += fresh


def each_run(means: NDArray[np.int64]) -> NDArray[np.float64]:
    """The library tells the mean over all runs so far, in whole units, rounded down: what did each run take?

    Nearest to even that fits what was told; the sum over the first r runs is right to r units.

    Args:
        means: [runs, kernels], after each run.

    Returns:
        [runs, kernels] in the same unit, none negative.
    """
    count = np.arange(1, len(means) + 1)[:, None]
    low = np.maximum.accumulate(means * count, axis=0).astype(np.float64)
    high = np.minimum.accumulate(((means + 1) * count)[::-1], axis=0)[::-1].astype(np.float64)
    # The first run is no example: it also prepares.
    steady = (low[-1] - low[0]) / max(len(means) - 1, 1)
    total, result = np.zeros(means.shape[1]), np.empty(means.shape)
    for run, (least, most) in enumerate(zip(low, high, strict=True)):
        reached = np.clip(total + steady, least, most)
        result[run] = reached - total
        total = reached
    return result


def _brief(error: Exception) -> str:
    """What a message says, without the source positions that it starts with."""
    lines = [line.strip().removeprefix("-- ") for line in str(error).strip().splitlines()]
    noise = ("Exception from ", "Check '", "FrontEnd API failed", "Model wasn't fully converted", "Summary:")
    return brief("\n".join(line for line in lines if line and not line.startswith(noise)), type(error).__name__)


ENGINE = OpenVinoEngine()
