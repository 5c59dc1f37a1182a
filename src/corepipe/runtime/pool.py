"""The workers of one plan: their pipes, segments and processes; started, watched and restarted here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from corepipe import engine
from corepipe.errors import PlanError, TopologyError, UnknownNameError
from corepipe.network.batch import batched
from corepipe.network.model import Network, Segment, TensorInfo
from corepipe.plan.model import Hop, HopPart, Plan, Worker
from corepipe.runtime import messages
from corepipe.runtime.arena import MAX_HOPS, Arena, Layout, or_worker_error
from corepipe.runtime.launch import Child, memory_file, readable, spawn
from corepipe.runtime.twins import Twins, families
from corepipe.topology.model import ALL_CORES, Topology


class Pool:
    """One child process for each worker of a plan.

    Args:
        network, plan, topology: what runs, how, and where; the plan fits the network, see `check_fits`.
        slots: how many there are to be.
        most_held: of how many results a worker at the end of routes may hold word back.
        stop_fd: starting is given up when this becomes readable.

    Attributes:
        arena: the slots that all workers map.
        children: by worker number (the order of `plan.workers`).
        results_fd: the user's process reads its messages here.

    Raises:
        PlanError: the plan does not fit the machine.
        WorkerError: a worker could not start.
    """

    def __init__(
        self,
        network: Network,
        plan: Plan,
        topology: Topology,
        slots: int,
        most_held: Mapping[str, int],
        stop_fd: int | None = None,
    ) -> None:
        self.plan = plan
        self._most_held = most_held
        self._network = network
        self._topology = topology
        self._numbers = plan.worker_numbers
        self._specs: dict[HopPart, dict[str, Any]] = {}
        self._model_fds: dict[HopPart, int] = {}
        self._model_bytes: dict[HopPart, int] = {}
        used = {part for worker in plan.workers for part in plan.segments_of(worker.name)}
        networks = {batch: batched(network, batch) for batch in {part.batch for part in used}}
        tensors: dict[str, TensorInfo] = {t.name: t for t in (*network.inputs, *network.outputs)}
        segments = {part: networks[part.batch].segment(part.start, part.stop) for part in used}
        for route in plan.routes:
            for hop in route.hops if route.rate_fps > 0 else ():
                for tensor in crossing([segments[part] for part in plan.parts_of(hop)], network):
                    tensors.setdefault(tensor.name, tensor)
        check_cores(plan, topology)
        self.children: list[Child] = []
        self._twins: dict[str, Twins] = {}
        self._fds: list[int] = []
        self.arena = Arena.create(Layout.of(list(tensors.values()), slots, plan.batch))
        try:
            with or_worker_error("cannot make the workers' pipes"):
                self.results_fd, self._results_write = self._pipe()
                self._inboxes = [self._pipe() for _ in plan.workers]
            for part in used:
                self._keep(part, segments.pop(part))
            for workers, shared in families(plan, self._model_bytes):
                self._begin_twins(workers, shared)
            self._start_all(stop_fd)
            for child in self.children:
                child.wait_report(stop_fd)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """Of the workers, and of the processes that they were forked off."""
        zygotes = [pid for twins in set(self._twins.values()) for pid in twins.pids]
        return [child.pid for child in self.children] + zygotes

    def number(self, worker: str) -> int:
        """The number of a worker."""
        return self._numbers[worker]

    def inbox(self, worker: str) -> int:
        """Where messages to a worker are written."""
        return self._inboxes[self._numbers[worker]][1]

    def send(self, worker: int, kind: int, frame: int = 0) -> None:
        """Send a control message to a worker."""
        messages.send(self._inboxes[worker][1], kind, frame=frame)

    def restart(self, dead: set[int], stop_fd: int) -> None:
        """Replace dead workers; what waited in their inboxes is thrown away.

        A worker whose cores the system has taken away meanwhile comes up on those that are left.

        Raises:
            WorkerError: a replacement could not start, or `stop_fd` became readable meanwhile.
        """
        for number in dead:
            self.children[number].close(0)
            _drain(self._inboxes[number][0])
            self.children[number] = self._start(self.plan.workers[number], stop_fd, again=True)
        for number in dead:
            self.children[number].wait_report(stop_fd)

    def close(self) -> None:
        """Stop all workers and give everything back. Safe to call again, also where Ctrl-C cut it short."""
        for number, child in enumerate(self.children):
            with contextlib.suppress(OSError):
                if not child.ended:
                    self.send(number, messages.STOP)
        for child in self.children:
            child.release()
        for child in self.children:
            child.close()
        for twins in set(self._twins.values()):
            twins.close()
        self.arena.close()
        while self._fds:
            os.close(self._fds.pop())

    def _keep(self, part: HopPart, segment: Segment) -> None:
        """Keep a segment as the file that its workers read, now and when they are restarted."""
        model = engine.serialized(part.engine, segment.model)
        self._model_fds[part], self._model_bytes[part] = memory_file(model, "model"), len(model)
        self._fds.append(self._model_fds[part])
        self._specs[part] = {
            "engine": part.engine,
            "batch": part.batch,
            "inputs": [self._about(t) for t in segment.inputs],
            "outputs": [self._about(t) for t in segment.outputs],
        }

    def _about(self, tensor: TensorInfo) -> tuple[str, str, tuple[int, ...] | None]:
        """A tensor of one frame, as a worker is told of it."""
        tensor = self._network.tensors.get(tensor.name, tensor)
        return tensor.name, str(tensor.dtype), tensor.shape

    def _pipe(self) -> tuple[int, int]:
        ends = os.pipe()
        self._fds.extend(ends)
        return ends

    def _begin_twins(self, workers: Sequence[Worker], shared: Sequence[HopPart]) -> None:
        """Start the process that these workers are to be forked off."""
        fds = {fd for worker in workers for fd in self._fds_of(worker)}
        engines = {part.engine for worker in workers for part in self.plan.segments_of(worker.name)}
        config = {"segments": [self._spec(part) for part in shared], **self._slots_config()}
        twins = Twins([worker.name for worker in workers], engines, config, fds)
        self._twins.update((worker.name, twins) for worker in workers)

    def _start_all(self, stop_fd: int | None) -> None:
        """Start all workers, those last that wait for others' compiler."""
        started: dict[int, Child] = {}
        try:
            for worker in sorted(self.plan.workers, key=lambda worker: worker.name in self._twins):
                started[self._numbers[worker.name]] = self._start(worker, stop_fd)
        finally:
            self.children = [child for _, child in sorted(started.items())]

    def _start(self, worker: Worker, stop_fd: int | None, again: bool = False) -> Child:
        number = self._numbers[worker.name]
        mine = list(self.plan.segments_of(worker.name))
        config = {
            "number": number,
            **self._slots_config(),
            "inbox_fd": self._inboxes[number][0],
            "results_fd": self._results_write,
            "most_held": self._most_held.get(worker.name, 1),
            "segments": [self._spec(part) for part in mine],
            "hops": [
                (route, index, [mine.index(part) for part in self.plan.parts_of(hop)], to)
                for route, index, hop, to in self._hops_of(worker)
            ],
        }
        cpus = self._topology.cpus_of(worker.cores) if self._topology.pinnable else ()
        fds = self._fds_of(worker)
        if worker.name in self._twins:
            return self._twins[worker.name].start(worker.name, cpus, config, fds, not again, stop_fd)
        engines = {part.engine for part in mine}
        module = "corepipe.runtime.worker"
        return spawn(module, worker.name, cpus, config, engines, fds, len(worker.cores), strict=not again)

    def _slots_config(self) -> dict[str, Any]:
        return {"layout": self.arena.layout.to_dict(), "arena_fd": self.arena.fd}

    def _spec(self, part: HopPart) -> dict[str, Any]:
        return {**self._specs[part], "model_fd": self._model_fds[part]}

    def _hops_of(self, worker: Worker) -> list[tuple[int, int, Hop, int]]:
        """Route, number and hop of those that a worker runs, and where it sends the frame then."""
        found = []
        for number, route in enumerate(self.plan.routes):
            for index, hop in enumerate(route.hops):
                if hop.worker != worker.name or route.rate_fps <= 0:
                    continue
                last = index + 1 == len(route.hops)
                to = self._results_write if last else self._inboxes[self._numbers[route.hops[index + 1].worker]][1]
                found.append((number, index, hop, to))
        return found

    def _fds_of(self, worker: Worker) -> list[int]:
        """All that a worker needs."""
        fds = {self.arena.fd, self._inboxes[self._numbers[worker.name]][0], self._results_write}
        fds |= {self._model_fds[part] for part in self.plan.segments_of(worker.name)}
        return sorted(fds | {to for *_, to in self._hops_of(worker)})


def crossing(parts: Sequence[Segment], network: Network) -> list[TensorInfo]:
    """The tensors of a hop that others see: all but those that one of its parts hands to another.

    Args:
        parts: the segments of the hop.
        network: the network, for the tensors of one frame.
    """
    made = {tensor.name for part in parts for tensor in part.outputs}
    read = [tensor for part in parts for tensor in part.inputs if tensor.name not in made]
    left = {tensor.name for tensor in (*network.cuts[parts[-1].stop].tensors, *network.outputs)}
    written = [tensor for part in parts for tensor in part.outputs if tensor.name in left]
    return [network.tensors.get(tensor.name, tensor) for tensor in (*read, *written)]


def check_fits(plan: Plan, network: Network) -> None:
    """Check that a plan can run a network.

    Raises:
        PlanError: another network, an illegal cut, or too many hops.
    """
    if plan.network.layers != len(network.layers) or plan.network.sha256 not in ("", network.sha256):
        raise PlanError(
            f"the plan is for {plan.network.name} ({plan.network.layers} layers, {plan.network.sha256[:12]}), not for "
            f"{network.name} ({len(network.layers)} layers, {network.sha256[:12]}); make it anew with `corepipe plan`"
        )
    dynamic = [tensor.name for tensor in (*network.inputs, *network.outputs) if tensor.shape is None]
    if plan.batch > 1 and dynamic:
        raise PlanError(f"{plan.batch} frames cannot share a slot: the shape of {dynamic[0]!r} is not known beforehand")
    legal = set(network.legal_cuts()) | {0, len(network.layers)}
    for number, route in enumerate(plan.routes):
        if len(route.hops) > MAX_HOPS:
            raise PlanError(f"route {number} has {len(route.hops)} hops, at most {MAX_HOPS} are possible")
        for part in (part for hop in route.hops for part in plan.parts_of(hop)):
            if part.start not in legal:
                raise PlanError(
                    f"route {number} cuts before layer {part.start}, where a tensor of unknown shape would cross; "
                    f"`corepipe inspect` shows the cuts"
                )


def _drain(fd: int) -> None:
    while readable([fd]):
        if not os.read(fd, 1 << 16):
            return


def check_cores(plan: Plan, topology: Topology) -> None:
    """Check that a machine has the cores that a plan names, in the clusters that its configs name.

    Raises:
        PlanError: it lacks one, may not use it, or has it in another cluster.
    """
    try:
        for worker in plan.workers:
            topology.cpus_of(worker.cores)
            name = worker.core_config.cluster
            if name == ALL_CORES:
                continue
            members = [core.id for core in topology.cluster(name).cores]
            foreign = [core for core in worker.cores if core not in members]
            if foreign:
                raise PlanError(
                    f"the plan does not fit this machine: worker {worker.name} ({worker.config}) names core "
                    f"{foreign[0]}, cluster {name} has {', '.join(map(str, members))}; make it anew with "
                    "`corepipe plan`"
                )
    except UnknownNameError as error:
        raise PlanError(
            f"the plan does not fit this machine: worker {worker.name} ({worker.config}): {error}; make it anew with "
            "`corepipe plan`"
        ) from None
    except TopologyError as error:
        raise PlanError(f"the plan does not fit this machine: worker {worker.name}: {error}") from None
