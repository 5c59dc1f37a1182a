"""An engine by itself, as its documentation begins: the model as it was given, one session, no option set.

This is what plans are held against. It runs in a process of its own, one frame after another, without anything that
corepipe does for its workers: no pinning, no huge pages, nothing of the model written anew. Where only some of the
machine's cores are to be used, it is kept to those and told their number: else ONNX Runtime would use them all.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corepipe.engine.base import as_engine_error
from corepipe.network.model import Network
from corepipe.plan.model import Hop, Plan, PlanNetwork, Route, Worker
from corepipe.runtime.arena import anonymous_file, or_worker_error
from corepipe.runtime.child import report
from corepipe.runtime.launch import Child, memory_file
from corepipe.topology.model import Topology

ENGINES = ("onnxruntime", "openvino")
"""Those that read ONNX models by themselves."""

_WARM_CALLS = 2
"""Before the clock starts: threads have gone to sleep since the slice before."""

_Frame = Mapping[str, NDArray[Any]]
_Infer = Callable[[_Frame], Sequence[NDArray[Any]]]


@dataclass(frozen=True)
class Baseline:
    """What to run.

    Attributes:
        engine: one of `ENGINES`.
        model: an ONNX file, or a name of the zoo.
    """

    engine: str
    model: str

    @property
    def name(self) -> str:
        """Such as `engine:onnxruntime`, to be told from plans."""
        return f"engine:{self.engine}"

    def plan(self, network: Network, topology: Topology) -> Plan:
        """The plan that comes nearest: one worker over all cores, that runs all layers."""
        cores = tuple(sorted(core.id for core in topology.cores))
        count = len(network.layers)
        return Plan(
            planner=self.name,
            network=PlanNetwork(name=network.name, sha256=network.sha256, layers=count),
            workers=(Worker(name="all", config=f"all{len(cores)}", cores=cores, engine=self.engine),),
            routes=(Route(rate_fps=1.0, hops=(Hop(worker="all", layers=(0, count)),)),),
        )


def baselines(engines: Iterable[str], model: str) -> dict[str, Baseline]:
    """Of those engines that can run a model by themselves, by name."""
    return {one.name: one for one in (Baseline(engine, model) for engine in engines if engine in ENGINES)}


class EngineAlone:
    """A baseline in its process; `outputs` are those of the frames that it was started with, by name.

    Args:
        baseline: what to run.
        network: the same model as corepipe loads it, for the names and types of what goes in and comes out.
        topology: the cores to use.
        frames: input arrays by name; fed again and again in this order.

    Raises:
        WorkerError: the process could not start, or the engine refuses the model or a frame.
    """

    def __init__(self, baseline: Baseline, network: Network, topology: Topology, frames: Sequence[_Frame]) -> None:
        self.network = network
        inputs, outputs = ([t.name for t in tensors] for tensors in (network.inputs, network.outputs))
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as given:
            frames_fd = memory_file(_packed([[frame[name] for name in inputs] for frame in frames]), "frames")
            given.callback(os.close, frames_fd)
            results_fd = anonymous_file(0, "results")
            given.callback(os.close, results_fd)
            with or_worker_error(f"{baseline.name}: cannot make a pipe"):
                requests_fd, self._requests = os.pipe()
            given.callback(os.close, requests_fd)
            undo.callback(os.close, self._requests)
            cpus = sorted(topology.cpus)
            config = {
                "engine": baseline.engine,
                "model": baseline.model,
                "is_file": os.path.isfile(baseline.model),
                "all_cores": cpus == list(range(os.cpu_count() or 1)),
                "inputs": inputs,
                "outputs": outputs,
                "frames": len(frames),
                "frames_fd": frames_fd,
                "results_fd": results_fd,
                "requests_fd": requests_fd,
            }
            handed = (frames_fd, results_fd, requests_fd)
            self._child = Child(__name__, baseline.name, cpus, config, (), handed, threads=len(cpus), strict=False)
            undo.callback(self._child.close)
            self._child.wait_report()
            with open(results_fd, "rb", closefd=False) as file:
                file.seek(0)
                arrays = _unpacked(file, len(frames), len(outputs))
            self.outputs = [dict(zip(outputs, one, strict=True)) for one in arrays]
            undo.pop_all()

    def run(self, seconds: float, least: int, most_s: float) -> list[tuple[int, int]]:
        """Frames by turns for a while, as fast as it can.

        Args:
            seconds: how long.
            least: it goes on until so many are done,
            most_s: but no longer than this.

        Returns:
            Begin and end of each call, on CLOCK_MONOTONIC in nanoseconds.

        Raises:
            WorkerError: the process ended, or the engine failed.
        """
        self._child.ask(self._requests, [seconds, least, most_s])
        answer = self._child.wait_report()
        return list(zip(answer["began"], answer["ended"], strict=True))

    @property
    def worker_pids(self) -> dict[str, int]:
        """Its process, as those of a stream's workers."""
        return {"all": self._child.pid}

    def close(self) -> None:
        """End the process."""
        fd, self._requests = self._requests, -1
        if fd >= 0:
            os.close(fd)
        self._child.close()


def serve(config: dict[str, Any]) -> None:
    """In the child: run all frames once for their outputs, then whatever is asked for."""
    with open(config["frames_fd"], "rb") as file:
        stored = _unpacked(file, config["frames"], len(config["inputs"]))
    frames = [dict(zip(config["inputs"], arrays, strict=True)) for arrays in stored]
    with as_engine_error(f"{config['engine']} refuses the model or a frame"):
        threads = 0 if config["all_cores"] else config["threads"]
        infer = _LOADERS[config["engine"]](_source(config), config["outputs"], threads)
        results = [infer(frame) for frame in frames]
    with open(config["results_fd"], "wb") as file:
        file.write(_packed(results))
    report(config["status_fd"], ready=True)
    with open(config["requests_fd"]) as requests:
        for line in requests:
            began, ended = _slice(infer, frames, *json.loads(line))
            report(config["status_fd"], began=began, ended=ended)


def _slice(
    infer: _Infer, frames: Sequence[_Frame], seconds: float, least: int, most_s: float
) -> tuple[list[int], list[int]]:
    clock = time.monotonic_ns
    for number in range(_WARM_CALLS):
        infer(frames[number % len(frames)])
    began: list[int] = []
    ended: list[int] = []
    start = clock()
    while True:
        began.append(clock())
        infer(frames[len(ended) % len(frames)])
        ended.append(clock())
        elapsed = (ended[-1] - start) * 1e-9
        if elapsed >= (seconds if len(ended) >= least else most_s):
            return began, ended


def _source(config: Mapping[str, Any]) -> str | bytes:
    """The file as it is, or a network of the zoo as a serialized model."""
    if config["is_file"]:
        return str(config["model"])
    from corepipe.network import zoo

    data: bytes = zoo.build(config["model"]).SerializeToString()
    return data


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


_LOADERS: dict[str, Callable[[str | bytes, list[str], int], _Infer]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}


def _packed(rows: Sequence[Sequence[NDArray[Any]]]) -> bytes:
    buffer = io.BytesIO()
    arrays = {f"{row}_{column}": array for row, one in enumerate(rows) for column, array in enumerate(one)}
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _unpacked(file: Any, rows: int, columns: int) -> list[list[NDArray[Any]]]:
    with np.load(file, allow_pickle=False) as stored:
        return [[stored[f"{row}_{index}"] for index in range(columns)] for row in range(rows)]
