"""ONNX Runtime: one session, or a pinned thread with a session for each core."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import onnxruntime as ort

from rival_systems.child import Array, Runner
from rival_systems.prepare import model_path
from rival_systems.rate import Slice, repeat


def load(spec: dict[str, Any], folder: Path) -> Runner:
    """See `Runner`."""
    model = str(model_path(folder, spec["batch"]))
    if spec.get("pinned"):
        return _Threads(model, [set(cpus) for cpus in spec["pinned"]])
    return _Session(model, spec["threads"], spec.get("spin"), spec.get("dynamic_blocks"))


class _Session:
    filling = 0

    def __init__(self, model: str, threads: int, spin: bool | None = None, dynamic_blocks: int | None = None) -> None:
        self.about: dict[str, Any] = {}
        options = ort.SessionOptions()
        if threads:
            options.intra_op_num_threads = threads
        if spin is not None:
            options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
        if dynamic_blocks:
            options.add_session_config_entry("session.dynamic_block_base", str(dynamic_blocks))
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def infer(self, batch: Array) -> Array:
        output: Array = self._session.run(None, {self._input: batch})[0]
        return output

    def run(self, batches: list[Array], seconds: float) -> Slice:
        return repeat(lambda number: self.infer(batches[number % len(batches)]), seconds)


class _Threads:
    """Sessions of one thread each, every one called from a thread of this process that is pinned to its core."""

    filling = 0

    def __init__(self, model: str, masks: list[set[int]]) -> None:
        self.about: dict[str, Any] = {}
        self._masks = masks
        self._sessions = [_Session(model, 1) for _ in masks]

    def infer(self, batch: Array) -> Array:
        return self._sessions[0].infer(batch)

    def run(self, batches: list[Array], seconds: float) -> Slice:
        done: list[Slice] = []

        def work(session: _Session, mask: set[int]) -> None:
            os.sched_setaffinity(0, mask)
            done.append(session.run(batches, seconds))

        threads = [threading.Thread(target=work, args=pair) for pair in zip(self._sessions, self._masks, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        calls = [(at, thread) for thread, one in enumerate(done) for at in one.calls]
        began, ended = min(one.began for one in done), min(one.ended for one in done)
        return Slice(began, ended, [at for at, _ in calls], [thread for _, thread in calls])
