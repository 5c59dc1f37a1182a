"""A pinned process that runs models for the profiler: timed, under the engine's profiler, or as mere load."""

from __future__ import annotations

import json
import mmap
import os
import select
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corepipe import engine
from corepipe.runtime.child import report


def serve(config: dict[str, Any]) -> None:
    """Answer commands (one JSON object a line) until the command pipe closes or says stop."""
    models = [_Model(spec, config["engine"], config["threads"]) for spec in config["models"]]
    status, commands = config["status_fd"], config["command_fd"]
    report(status, ready=True)
    with os.fdopen(commands, "rb", buffering=0) as pipe:
        while line := pipe.readline():
            command = json.loads(line)
            if command["op"] == "time":
                chains = [[models[index] for index in chain] for chain in command["chains"]]
                report(status, seconds=_time(chains, command["runs"], command["seconds"]))
            elif command["op"] == "profile":
                report(status, runs=models[command["model"]].profile(command["runs"]))
            elif command["op"] == "load":
                report(status, loading=True)
                _load(models[command["model"]], commands)
            else:
                return


class _Model:
    """A segment on random inputs in private memory; compiled when it is first run."""

    def __init__(self, spec: dict[str, Any], engine_name: str, threads: int) -> None:
        self._spec = spec
        self._engine = engine.get(engine_name)
        self._threads = threads
        self._run: Callable[[], None] | None = None
        generator = np.random.default_rng(0)
        self._inputs = {n: _random(generator, np.dtype(d), tuple(s)) for n, d, s in spec["inputs"]}

    def run(self) -> None:
        """Run once."""
        if self._run is None:
            outputs = {n: _ignore if s is None else np.empty(s, d) for n, d, s in self._spec["outputs"]}
            self._run = self._engine.compile(self._bytes(), self._threads).bind(self._inputs, outputs)
        self._run()

    def profile(self, runs: int) -> list[list[tuple[str, float]]]:
        """Kernel calls of each run; the first two runs are dropped as warm-up."""
        result = self._engine.profile(self._bytes(), self._threads, self._inputs, runs + 2)
        return [[(kernel.node, kernel.seconds) for kernel in run] for run in result[2:]]

    def _bytes(self) -> bytes:
        with mmap.mmap(self._spec["model_fd"], 0, prot=mmap.PROT_READ) as data:
            return bytes(data)


def _random(generator: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if dtype.kind == "f":
        return generator.standard_normal(shape, np.float32).astype(dtype)
    return np.zeros(shape, dtype)


def _ignore(_: NDArray[Any]) -> None:
    pass


def _time(chains: list[list[_Model]], runs: int, seconds: float) -> list[list[float]]:
    """Seconds of each run of each chain of models: at least `runs` runs and, in all, `seconds` seconds.

    The chains take turns, so that what disturbs the machine disturbs them alike.
    """
    for chain in chains:
        _run_chain(chain)
    times: list[list[float]] = [[] for _ in chains]
    end = time.perf_counter() + seconds
    while len(times[0]) < runs or time.perf_counter() < end:
        for chain, mine in zip(chains, times, strict=True):
            mine.append(_run_chain(chain))
    return times


def _run_chain(chain: list[_Model]) -> float:
    before = time.perf_counter()
    for model in chain:
        model.run()
    return time.perf_counter() - before


def _load(model: _Model, commands: int) -> None:
    """Keep the cores busy until the next command arrives."""
    while not select.select([commands], [], [], 0)[0]:
        model.run()
