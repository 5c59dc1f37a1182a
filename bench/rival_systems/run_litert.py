"""LiteRT with XNNPACK, as its interpreter uses it by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from rival_systems.child import Array, Runner
from rival_systems.prepare import converted
from rival_systems.rate import Slice, repeat


def load(spec: dict[str, Any], folder: Path) -> Runner:
    """See `Runner`."""
    last = bool(spec.get("channels_last"))
    return _Interpreter(converted("litert", folder, spec["batch"], last), spec["threads"], last)


class _Interpreter:
    filling = 0

    def __init__(self, model: Path, threads: int, channels_last: bool) -> None:
        self.about: dict[str, Any] = {}
        self._interpreter = Interpreter(str(model), num_threads=threads)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]
        self._last = channels_last

    def infer(self, batch: Array) -> Array:
        return self._call(self._arranged(batch))

    def _arranged(self, batch: Array) -> Array:
        return np.ascontiguousarray(batch.transpose(0, 2, 3, 1)) if self._last else batch

    def _call(self, batch: Array) -> Array:
        self._interpreter.set_tensor(self._input, batch)
        self._interpreter.invoke()
        output: Array = self._interpreter.get_tensor(self._output)
        return output

    def run(self, batches: list[Array], seconds: float) -> Slice:
        arranged = [self._arranged(batch) for batch in batches]
        return repeat(lambda number: self._call(arranged[number % len(arranged)]), seconds)
