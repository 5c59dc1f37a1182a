"""An engine by itself, as its documentation begins: the model as it was given, one session, no option set.

This is what plans are held against. It runs in a process of its own, one frame after another, without anything that
corepipe does for its workers: no pinning, no huge pages, nothing of the model written anew. Where only some of the
machine's cores are to be used, it is kept to those and told their number: else ONNX Runtime would use them all.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from corepipe.network import zoo
from corepipe.network.model import Network
from corepipe.plan.model import Hop, Plan, PlanNetwork, Route, Worker
from corepipe.runtime import bare
from corepipe.runtime.arena import anonymous_file, or_worker_error
from corepipe.runtime.launch import memory_file, spawn
from corepipe.topology.model import Topology

ENGINES = tuple(bare.LOADERS)
"""Those that read ONNX models by themselves."""


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
    """A baseline in its process.

    Args:
        baseline: what to run.
        network: the same model as corepipe loads it, for the names and types of what goes in and comes out.
        topology: the cores to use.
        frames: input arrays by name; fed again and again in this order.

    Attributes:
        outputs: of the frames that it was started with, by name.
        frame_s: seconds of a frame, in a first look.

    Raises:
        WorkerError: the process could not start, or the engine refuses the model or a frame.
    """

    def __init__(
        self, baseline: Baseline, network: Network, topology: Topology, frames: Sequence[Mapping[str, NDArray[Any]]]
    ) -> None:
        self.network = network
        inputs, outputs = ([t.name for t in tensors] for tensors in (network.inputs, network.outputs))
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as given:
            frames_fd = memory_file(bare.packed([[frame[name] for name in inputs] for frame in frames]), "frames")
            given.callback(os.close, frames_fd)
            results_fd = anonymous_file(0, "results")
            given.callback(os.close, results_fd)
            with or_worker_error(f"{baseline.name}: cannot make a pipe"):
                requests_fd, self._requests = os.pipe()
            given.callback(os.close, requests_fd)
            undo.callback(os.close, self._requests)
            model_fd = None
            if not os.path.isfile(baseline.model):
                model_fd = memory_file(zoo.build(baseline.model).SerializeToString(), "model")
                given.callback(os.close, model_fd)
            everything = len(topology.cpus) >= (os.cpu_count() or 1)
            threads = len(topology.cores)
            config = {
                "engine": baseline.engine,
                "model": baseline.model,
                "model_fd": model_fd,
                "own_threads": 0 if everything else threads,
                "inputs": inputs,
                "outputs": outputs,
                "frames": len(frames),
                "frames_fd": frames_fd,
                "results_fd": results_fd,
                "requests_fd": requests_fd,
            }
            handed = [fd for fd in (frames_fd, results_fd, requests_fd, model_fd) if fd is not None]
            cpus = () if everything or not topology.pinnable else sorted(topology.cpus)
            self._child = spawn(bare.__name__, baseline.name, cpus, config, (), handed, threads=threads, strict=False)
            undo.callback(self._child.close)
            self.frame_s: float = self._child.wait_report()["frame_s"]
            with open(results_fd, "rb", closefd=False) as file:
                file.seek(0)
                arrays = bare.unpacked(file, len(frames), len(outputs))
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
