"""ncnn behind the engine interface: Winograd convolutions and kernels for NEON, AVX2 and AVX-512."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corepipe.engine._ncnn import Output, Program, translate
from corepipe.engine.base import DynamicOutput, KernelTime, as_engine_error, brief, check_memory
from corepipe.errors import CorepipeError, EngineError

# OpenMP reads it when it is loaded. Else its threads spin for milliseconds after each run, in the way of others.
_POLICY = os.environ.get("OMP_WAIT_POLICY")
os.environ["OMP_WAIT_POLICY"] = _POLICY or "PASSIVE"
try:
    import ncnn
finally:
    if _POLICY is None:
        del os.environ["OMP_WAIT_POLICY"]

_OFF = (
    "use_vulkan_compute", "use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_packed",
    "use_bf16_storage", "use_int8_inference", "use_int8_packed", "use_int8_storage", "use_int8_arithmetic",
)  # fmt: skip
_POOL = ncnn.PoolAllocator()
"""For the blobs of all networks. Blobs from a network's own pool are copied when they are asked for."""

# Blobs may live as long as anything, and crash the process if they outlive their pool.
ctypes.pythonapi.Py_IncRef(ctypes.py_object(_POOL))

_AS_IT_IS = 1
"""A blob is handed over in the layout that it has."""


class NcnnEngine:
    """ncnn in float32, on the calling thread and OpenMP threads that share its affinity mask."""

    name = "ncnn"

    def dedicate(self, threads: int, alone: bool = True) -> None:
        """See `Engine.dedicate`: OpenMP's threads are shared by all models of the thread that runs them."""

    def compile(self, model: bytes, threads: int) -> _Model:
        """See `Engine.compile`."""
        with as_engine_error("ncnn refuses the model"):
            return _Model(translate(model), threads)

    def profile(
        self,
        model: bytes,
        threads: int,
        inputs: Mapping[str, NDArray[Any]],
        runs: int,
        between: Callable[[], None] = lambda: None,
    ) -> Sequence[Sequence[KernelTime]]:
        """See `Engine.profile`; a layer is named after the node that it computes or serves.

        The library has no profiler. Blobs are asked for one after the other: each layer then computes what it does in
        a run, in the memory in which it does.
        """
        compiled = self.compile(model, threads)
        with as_engine_error("ncnn: cannot bind"):
            feeds = compiled.feeds(inputs)
        steps = [(layer.tops[0], layer.node) for layer in compiled.program.layers if layer.kind != "Input"]
        clock, result = time.perf_counter, []
        for _ in range(runs):
            with as_engine_error("ncnn: profiling failed"):
                extractor = compiled.extractor(feeds)
                times = [clock()]
                for blob, _name in steps:
                    compiled.extract(extractor, blob, _AS_IT_IS)
                    times.append(clock())
            result.append([KernelTime(n, b - a) for (_, n), a, b in zip(steps, times, times[1:], strict=False)])
            between()
        return result


class _Model:
    """A loaded network."""

    def __init__(self, program: Program, threads: int) -> None:
        self.program = program
        self._net = ncnn.Net()
        options = self._net.opt
        for name in _OFF:
            if hasattr(options, name):
                setattr(options, name, False)
        options.num_threads = max(1, threads)
        options.lightmode = True
        options.openmp_blocktime = 0
        options.blob_allocator = _POOL
        if not program.layers:
            return
        parameters = np.frombuffer(program.parameters(_type), np.uint8)
        failed = self._net.load_param_bin(_Reader([parameters])) or self._net.load_model(_Reader(program.weights()))
        if failed:
            raise EngineError(f"ncnn refuses the model: it does not load (code {failed})")
        for layer in program.layers:
            layer.weights.clear()

    def bind(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any] | DynamicOutput]
    ) -> Callable[[], None]:
        """See `Compiled.bind`. An input that nothing in the model reads may be anything."""
        with as_engine_error("ncnn: cannot bind"):
            feeds = self.feeds(inputs)
        check_memory("ncnn", {}, outputs)
        extracted: list[tuple[int, str, tuple[int, ...], tuple[int, ...], Any]] = []
        copied: list[tuple[NDArray[Any], Any]] = []
        for name, target in outputs.items():
            if name not in self.program.outputs:
                raise EngineError(f"ncnn: cannot bind: there is no output {name!r}")
            output = self.program.outputs[name]
            if isinstance(target, np.ndarray):
                _check(name, target, output.shape)
            if output.blob >= 0:
                place = target.reshape(output.blob_shape) if isinstance(target, np.ndarray) else target
                extracted.append((output.blob, name, output.blob_shape, output.shape, place))
            else:
                copied.append((self._unchanged(inputs, output), target))
        create, extract = self.extractor, self.extract

        def run() -> None:
            try:
                if extracted:
                    extractor = create(feeds)
                    for blob, name, shape, onnx_shape, target in extracted:
                        value = np.asarray(extract(extractor, blob))
                        if value.shape != shape:
                            raise EngineError(f"ncnn: run failed: output {name!r} has shape {value.shape}, not {shape}")
                        if isinstance(target, np.ndarray):
                            target[...] = value
                        else:
                            target(value.reshape(onnx_shape))
                for value, target in copied:
                    if isinstance(target, np.ndarray):
                        target[...] = value
                    else:
                        target(value)
            except CorepipeError:
                raise
            except Exception as error:
                raise EngineError(f"ncnn: run failed: {brief(str(error), type(error).__name__)}") from None

        # The library knows addresses only.
        run.__dict__["keep_alive"] = (inputs, outputs)
        return run

    def feeds(self, inputs: Mapping[str, NDArray[Any]]) -> list[tuple[int, Any, bool]]:
        """For each input that is read its blob, a matrix on its memory, and whether it may be read where it lies."""
        check_memory("ncnn", inputs, {})
        found = []
        for name, given in self.program.inputs.items():
            array = _given(inputs, name, given.shape).reshape(given.blob_shape)
            found.append((given.blob, ncnn.Mat(array), given.in_place))
        return found

    def _unchanged(self, inputs: Mapping[str, NDArray[Any]], output: Output) -> NDArray[Any]:
        if output.constant is not None:
            return output.constant
        return _given(inputs, output.source, output.source_shape).reshape(output.shape)

    def extractor(self, feeds: Iterable[tuple[int, Any, bool]]) -> Any:
        """An extractor, fed."""
        extractor = self._net.create_extractor()
        for blob, matrix, in_place in feeds:
            # Of memory that is not its own it keeps no count of users, which it asks for before it writes into it.
            if extractor.input(blob, matrix if in_place else matrix.clone()):
                raise EngineError("ncnn: run failed: it takes no input")
        return extractor

    def extract(self, extractor: Any, blob: int, layout: int = 0) -> Any:
        """The matrix of a blob, computed where it is not there yet."""
        failed, matrix = extractor.extract(blob, layout)
        if failed:
            raise EngineError(f"ncnn: run failed with code {failed}")
        return matrix


class _Reader(ncnn.DataReader):  # type: ignore[misc]
    """Hands out arrays one after the other, as if they were one file."""

    def __init__(self, arrays: Sequence[NDArray[Any]]) -> None:
        super().__init__()
        self._arrays = [array for array in arrays if array.nbytes]
        self._index = self._offset = 0

    def read(self, buffer: Any, size: int) -> int:
        """Copy the next `size` bytes to an address; fewer where they end."""
        target, done = _address(buffer, None), 0
        while done < size and self._index < len(self._arrays):
            array = self._arrays[self._index]
            part = min(size - done, array.nbytes - self._offset)
            ctypes.memmove(target + done, array.ctypes.data + self._offset, part)
            done, self._offset = done + part, self._offset + part
            if self._offset == array.nbytes:
                self._index, self._offset = self._index + 1, 0
        return done


_address = ctypes.pythonapi.PyCapsule_GetPointer
_address.restype, _address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def _type(kind: str) -> int:
    number = int(ncnn.layer_to_index(kind))
    if number < 0:
        raise EngineError(f"ncnn refuses the model: this build of the library has no layer {kind}")
    return number


def _given(inputs: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    if name not in inputs:
        raise EngineError(f"ncnn: cannot bind: nothing is given for input {name!r}")
    _check(name, inputs[name], shape)
    return inputs[name]


def _check(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.dtype != np.float32:
        raise EngineError(f"ncnn: cannot bind {name!r}: it is float32, not {array.dtype}")
    if array.shape != shape:
        raise EngineError(f"ncnn: cannot bind {name!r}: its shape is {list(shape)}, not {list(array.shape)}")


ENGINE = NcnnEngine()
