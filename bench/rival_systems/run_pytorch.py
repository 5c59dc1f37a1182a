"""PyTorch on the CPU, eager or compiled by its inductor."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx2torch
import torch

from rival_systems.child import Array, Runner
from rival_systems.prepare import model_path
from rival_systems.rate import Slice, repeat


def load(spec: dict[str, Any], folder: Path) -> Runner:
    """See `Runner`."""
    if spec["compiled"] and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise RuntimeError("torch.compile needs a C++ compiler, and there is none (g++ or clang++)")
    torch.set_num_threads(spec["threads"])
    torch.set_num_interop_threads(1)
    return _Module(model_path(folder, spec["batch"]), spec)


class _Module:
    filling = 0

    def __init__(self, model: Path, spec: dict[str, Any]) -> None:
        self.about: dict[str, Any] = {}
        self._format = torch.channels_last if spec["channels_last"] else torch.contiguous_format
        module = onnx2torch.convert(onnx.load(model)).eval().to(memory_format=self._format)
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        self._call: Callable[[torch.Tensor], torch.Tensor] = module
        # The inductor freezes weights only outside of inference mode.
        self._mode: Callable[[], Any] = torch.inference_mode
        if spec["compiled"]:
            import torch._inductor.config as inductor

            inductor.compile_threads = 1
            inductor.freezing = spec["freezing"]
            self._mode = torch.no_grad if spec["freezing"] else torch.inference_mode
            self._call = torch.compile(module, dynamic=False)

    def _arranged(self, batch: Array) -> torch.Tensor:
        return torch.from_numpy(batch).contiguous(memory_format=self._format)

    def infer(self, batch: Array) -> Array:
        with self._mode():
            output: Array = self._call(self._arranged(batch)).numpy()
        return output

    def run(self, batches: list[Array], seconds: float) -> Slice:
        arranged = [self._arranged(batch) for batch in batches]
        with self._mode():
            return repeat(lambda number: self._call(arranged[number % len(arranged)]).numpy(), seconds)
