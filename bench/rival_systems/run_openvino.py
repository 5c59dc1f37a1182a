"""OpenVINO: one request after the other, or as many in flight as it asks for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import openvino as ov

from rival_systems.child import Array, Runner
from rival_systems.prepare import model_path
from rival_systems.rate import Slice, repeat


def load(spec: dict[str, Any], folder: Path) -> Runner:
    """See `Runner`."""
    # Where the CPU has bfloat16 it would be used without this.
    config = {"INFERENCE_PRECISION_HINT": "f32", **spec["config"]}
    if spec["threads"]:
        config["INFERENCE_NUM_THREADS"] = str(spec["threads"])
    core = ov.Core()
    compiled = core.compile_model(core.read_model(model_path(folder, spec["batch"])), "CPU", config)
    return _Queue(compiled, spec["requests"]) if spec["requests"] else _Request(compiled)


class _Request:
    filling = 0

    def __init__(self, compiled: Any) -> None:
        self.about: dict[str, Any] = {}
        self._request = compiled.create_infer_request()

    def infer(self, batch: Array) -> Array:
        self._request.infer({0: batch}, share_inputs=True)
        output: Array = self._request.get_output_tensor(0).data.copy()
        return output

    def run(self, batches: list[Array], seconds: float) -> Slice:
        return repeat(lambda number: self.infer(batches[number % len(batches)]), seconds)


class _Queue:
    def __init__(self, compiled: Any, times: int) -> None:
        optimal = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self.filling = times * optimal
        self.about = {"streams": compiled.get_property("NUM_STREAMS"), "requests": self.filling}
        self._single = _Request(compiled)
        self._queue = ov.AsyncInferQueue(compiled, self.filling)
        self._calls: list[tuple[int, int]] = []
        self._queue.set_callback(self._done)

    def _done(self, request: Any, number: int) -> None:
        request.get_output_tensor(0).data.copy()
        self._calls.append((time.monotonic_ns(), number))

    def infer(self, batch: Array) -> Array:
        return self._single.infer(batch)

    def run(self, batches: list[Array], seconds: float) -> Slice:
        self._calls = []
        began = now = time.monotonic_ns()
        number = 0
        while now < began + seconds * 1e9:
            idle = self._queue.get_idle_request_id()
            self._queue.start_async({0: batches[number % len(batches)]}, idle, share_inputs=True)
            number += 1
            now = time.monotonic_ns()
        self._queue.wait_all()
        return Slice(began, now, [at for at, _ in self._calls], [request for _, request in self._calls])
