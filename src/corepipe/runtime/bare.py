"""The process of a baseline: an engine as its documentation begins, one frame after another.

It imports nothing but the engine and numpy, so that its memory is the engine's.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from corepipe.engine.base import as_engine_error
from corepipe.runtime.child import report

_WARM_CALLS = 2
"""Before the clock starts: threads have gone to sleep since the slice before."""

_Frame = Mapping[str, NDArray[Any]]
_Infer = Callable[[_Frame], Sequence[NDArray[Any]]]


def serve(config: dict[str, Any]) -> None:
    """Run all frames once for their outputs, tell how long one takes, then do whatever is asked for."""
    with open(config["frames_fd"], "rb") as file:
        stored = unpacked(file, config["frames"], len(config["inputs"]))
    frames = [dict(zip(config["inputs"], arrays, strict=True)) for arrays in stored]
    with as_engine_error(f"{config['engine']} refuses the model or a frame"):
        infer = LOADERS[config["engine"]](_source(config), config["outputs"], config["own_threads"])
        frame_s = _first_results(infer, frames, config["results_fd"])
    report(config["status_fd"], frame_s=frame_s)
    with open(config["requests_fd"]) as requests:
        for line in requests:
            began, ended = _calls(infer, frames, *json.loads(line))
            report(config["status_fd"], began=began, ended=ended)


def _first_results(infer: _Infer, frames: Sequence[_Frame], fd: int) -> float:
    """Write what comes of all frames to a file; the seconds of the quickest one: an engine's first are slow."""
    results, took = [], []
    for frame in frames if len(frames) > 1 else [*frames, *frames]:
        began = time.monotonic()
        results.append(infer(frame))
        took.append(time.monotonic() - began)
    with open(fd, "wb") as file:
        file.write(packed(results[: len(frames)]))
    return min(took)


def _calls(
    infer: _Infer, frames: Sequence[_Frame], seconds: float, least: int, most_s: float
) -> tuple[list[int], list[int]]:
    """Begin and end of calls: for some seconds and until there are enough, but for no longer than `most_s`."""
    clock = time.monotonic_ns
    for number in range(_WARM_CALLS):
        infer(frames[number % len(frames)])
    began: list[int] = []
    ended: list[int] = []
    while True:
        began.append(clock())
        infer(frames[len(ended) % len(frames)])
        ended.append(clock())
        elapsed = (ended[-1] - began[0]) * 1e-9
        if elapsed >= (seconds if len(ended) >= least else most_s):
            return began, ended


def _source(config: Mapping[str, Any]) -> str | bytes:
    """The file, or what was handed down in place of one."""
    if config["model_fd"] is None:
        return str(config["model"])
    with open(config["model_fd"], "rb") as file:
        return file.read()


def _onnxruntime(model: str | bytes, outputs: list[str], threads: int) -> _Infer:
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    if threads:
        options.intra_op_num_threads = threads
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda frame: session.run(outputs, frame)


def _openvino(model: str | bytes, outputs: list[str], threads: int) -> _Infer:
    import openvino as ov

    core = ov.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_NUM_THREADS": threads} if threads else {})
    known = {name for port in compiled.inputs for name in port.names}

    def infer(frame: _Frame) -> list[NDArray[Any]]:
        results = compiled({name: array for name, array in frame.items() if name in known})
        return [results[name] for name in outputs]

    return infer


LOADERS: dict[str, Callable[[str | bytes, list[str], int], _Infer]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
"""By the names of the engines that read ONNX models by themselves."""


def packed(rows: Sequence[Sequence[NDArray[Any]]]) -> bytes:
    """Arrays as data for `unpacked`."""
    buffer = io.BytesIO()
    arrays = {f"{row}_{column}": array for row, one in enumerate(rows) for column, array in enumerate(one)}
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def unpacked(file: IO[bytes], rows: int, columns: int) -> list[list[NDArray[Any]]]:
    """The arrays in a file that `packed` made, in rows as they were."""
    with np.load(file, allow_pickle=False) as stored:
        return [[stored[f"{row}_{index}"] for index in range(columns)] for row in range(rows)]
