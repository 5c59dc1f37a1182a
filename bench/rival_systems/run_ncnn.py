"""ncnn: one frame after the other; it has no batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ncnn
import numpy as np

from rival_systems.child import Array, Runner
from rival_systems.prepare import converted
from rival_systems.rate import Slice, repeat


def load(spec: dict[str, Any], folder: Path) -> Runner:
    """See `Runner`."""
    return _Net(converted("ncnn", folder, 1), spec["threads"])


class _Net:
    filling = 0

    def __init__(self, param: Path, threads: int) -> None:
        self.about: dict[str, Any] = {}
        self._net = ncnn.Net()
        options = self._net.opt
        options.num_threads = threads
        options.use_vulkan_compute = False
        for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
            setattr(options, name, False)
        self._net.load_param(str(param))
        self._net.load_model(str(param.with_suffix(".bin")))

    def infer(self, batch: Array) -> Array:
        extractor = self._net.create_extractor()
        extractor.input("in0", ncnn.Mat(batch[0]))
        failed, output = extractor.extract("out0")
        if failed:
            raise RuntimeError(f"ncnn: extract failed with {failed}")
        return np.array(output)[np.newaxis]

    def run(self, batches: list[Array], seconds: float) -> Slice:
        return repeat(lambda number: self.infer(batches[number % len(batches)]), seconds)
