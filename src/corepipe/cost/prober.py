"""A pinned process that runs models for `measuring`: timed, under the engine's profiler, or as mere load."""

from __future__ import annotations

import itertools
import json
import mmap
import os
import select
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from corepipe import engine
from corepipe.cost.watch import Watch
from corepipe.errors import EngineError
from corepipe.runtime.child import report
from corepipe.runtime.huge_pages import use_huge_pages

_T = TypeVar("_T")

_EVERY_S = 0.08
_LEAST_SHARE = 0.5
"""Of the time asked for: so much must count, or more is measured as long as the watch has patience."""

_LONGER = 4
"""Times the time asked for, beyond it."""

_LEAST_PROFILED = 3


def serve(config: dict[str, Any]) -> None:
    """Answer commands (one JSON object a line) until the command pipe closes or says stop."""
    models = [_Model(spec, config["threads"]) for spec in config["models"]]
    status, commands = config["status_fd"], config["command_fd"]
    watch = Watch(config["threads"], config["expected_s"]) if config["watch"] else None
    report(status, ready=True, reference_s=watch.expected_s if watch else None)
    with os.fdopen(commands, "rb", buffering=0) as pipe:
        while line := pipe.readline():
            command = json.loads(line)
            if command["op"] == "load":
                report(status, loading=True)
                _keep_busy(models[command["model"]], commands)
            elif command["op"] == "stop":
                return
            else:
                try:
                    report(status, **_answer(command, models, watch))
                except EngineError as error:
                    report(status, refused=str(error))


def _answer(command: dict[str, Any], models: Sequence[_Model], watch: Watch | None) -> dict[str, Any]:
    if command["op"] == "time":
        chains = [[models[index] for index in chain] for chain in command["chains"]]
        seconds, left_out = _time(chains, command["runs"], command["seconds"], watch, command["busy"])
        return {"seconds": seconds, "left_out": left_out}
    runs, left_out = _profile(models[command["model"]], command["runs"], watch, command["busy"])
    return {"runs": runs, "left_out": left_out}


class _Model:
    """A segment on random inputs in private memory; compiled by `prepare`."""

    def __init__(self, spec: dict[str, Any], threads: int) -> None:
        self._spec = spec
        self._engine = engine.get(spec["engine"])
        self._threads = threads
        self._run: Callable[[], None] | None = None
        generator = np.random.default_rng(0)
        self._inputs = {n: _random(generator, np.dtype(d), tuple(s)) for n, d, s in spec["inputs"]}

    def prepare(self) -> bool:
        """Compile and run once, unless that was done; whether it was not."""
        if self._run is not None:
            return False
        outputs = {n: _ignore if s is None else np.empty(s, d) for n, d, s in self._spec["outputs"]}
        run = self._engine.compile(self._bytes(), self._threads).bind(self._inputs, outputs)
        run()
        self._run = run
        return True

    def run(self) -> None:
        """Run once."""
        assert self._run is not None
        self._run()

    def profile(self, runs: int, between: Callable[[], None]) -> list[list[tuple[str, float]]]:
        """Kernel calls of each run."""
        ran = itertools.count()

        def after_run() -> None:
            if next(ran) == 0:
                use_huge_pages()
            between()

        result = self._engine.profile(self._bytes(), self._threads, self._inputs, runs, after_run)
        return [[(kernel.node, kernel.seconds) for kernel in run] for run in result]

    def _bytes(self) -> bytes:
        with mmap.mmap(self._spec["model_fd"], 0, prot=mmap.PROT_READ) as data:
            return bytes(data)


def _random(generator: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if dtype.kind == "f":
        return generator.standard_normal(shape, np.float32).astype(dtype)
    return np.zeros(shape, dtype)


def _ignore(_: NDArray[Any]) -> None:
    pass


class _Levels:
    """For each of a row of runs, how slow the reference was before and after it: the slower of the two.

    Without a watch all runs are alike.
    """

    def __init__(self, watch: Watch | None, busy: bool) -> None:
        self._watch = watch
        self._busy = busy
        self._levels: list[float] = []
        self._waiting = 0
        self._before = self._look()

    def ran(self) -> None:
        """One more run has ended."""
        self._waiting += 1
        now = time.perf_counter()
        if self._watch is not None and now - self._looked >= max(_EVERY_S, 5 * self._look_s):
            self.settle()

    def settle(self) -> None:
        """Look now, for the runs since the last look."""
        if self._waiting:
            after = self._look()
            self._levels += [max(self._before, after)] * self._waiting
            self._waiting, self._before = 0, after

    def counting(self, runs: Sequence[_T]) -> list[_T]:
        """Those of the settled runs that count."""
        limit = float("inf") if self._watch is None else self._watch.limit(self._busy)
        return [run for run, level in zip(runs, self._levels, strict=False) if level <= limit]

    def best(self, runs: Sequence[_T], count: int) -> tuple[list[_T], float]:
        """The runs that count, but at least `count` (those of the best moments), and the share that does not."""
        counting = self.counting(runs)
        left_out = 1 - len(counting) / max(len(runs), 1)
        if len(counting) < count:
            order = sorted(range(len(runs)), key=lambda i: self._levels[i])[:count]
            counting = [runs[i] for i in sorted(order)]
        return counting, left_out

    def _look(self) -> float:
        began = time.perf_counter()
        level = 0.0
        if self._watch is not None:
            level = self._watch.look()
            self._watch.note(level, self._busy)
        self._looked = time.perf_counter()
        self._look_s = self._looked - began
        return level


def _time(
    chains: list[list[_Model]], runs: int, seconds: float, watch: Watch | None, busy: bool
) -> tuple[list[list[list[float]]], float]:
    """Seconds of each model in each run of each chain: at least `runs` runs and, in all, `seconds` seconds.

    The chains take turns, so that what disturbs the machine disturbs them alike. Also the share of the runs that does
    not count, because the cores were disturbed.
    """
    _prepare([model for chain in chains for model in chain])
    for chain in chains:
        _run_chain(chain)
    levels = _Levels(watch, busy)
    rounds: list[list[list[float]]] = []
    began = time.perf_counter()
    end = began + seconds
    while True:
        rounds.append([_run_chain(chain) for chain in chains])
        levels.ran()
        if len(rounds) < runs or time.perf_counter() < end:
            continue
        levels.settle()
        counting = levels.counting(rounds)
        counting_s = sum(sum(times) for chain_times in counting for times in chain_times)
        enough = len(counting) >= runs and counting_s >= _LEAST_SHARE * seconds
        overdue = time.perf_counter() - began >= (1 + _LONGER) * seconds
        if enough or overdue or watch is None or not watch.wait(seconds / 2):
            break
        end = time.perf_counter() + seconds / 2
    kept, left_out = levels.best(rounds, runs)
    return [list(times) for times in zip(*kept, strict=True)], left_out


def _profile(model: _Model, runs: int, watch: Watch | None, busy: bool) -> tuple[list[list[tuple[str, float]]], float]:
    """Kernel calls of the runs that count, and the share of those that do not; the first two runs are warm-up."""
    while True:
        began = time.perf_counter()
        levels = _Levels(watch, busy)
        found = model.profile(runs + 2, levels.ran)
        levels.settle()
        counting = levels.counting(found)
        if len(counting) >= _LEAST_PROFILED + 2 or watch is None or not watch.wait(time.perf_counter() - began):
            break
    kept, left_out = levels.best(list(enumerate(found)), _LEAST_PROFILED + 2)
    return [run for number, run in kept if number >= 2], left_out


def _run_chain(chain: list[_Model]) -> list[float]:
    ended = [time.perf_counter()]
    for model in chain:
        model.run()
        ended.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(ended)]


def _prepare(models: Sequence[_Model]) -> None:
    """Make models ready as a worker does (see `corepipe.runtime.worker`)."""
    fresh = [model for model in models if model.prepare()]
    if fresh:
        use_huge_pages()


def _keep_busy(model: _Model, commands: int) -> None:
    """Keep the cores busy until the next command arrives."""
    _prepare([model])
    poller = select.poll()
    poller.register(commands, select.POLLIN)
    while not poller.poll(0):
        model.run()
