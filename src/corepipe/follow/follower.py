"""The thread that watches a stream and changes its plan."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from corepipe import plan as planners
from corepipe.cost.table import CostTable
from corepipe.errors import CorepipeError, StreamClosedError, WorkerError
from corepipe.follow.decide import Decider
from corepipe.follow.observe import Observer
from corepipe.follow.probe import Probe, Speeds, core_speeds
from corepipe.plan.limits import loading_bytes
from corepipe.plan.model import Plan
from corepipe.runtime.record import FrameRecord
from corepipe.runtime.stream import Stream
from corepipe.runtime.threads import daemon, start
from corepipe.topology.memory import available_memory

_KEPT_CHANGES = 1000
"""Those of rates are forgotten first, the oldest of them: for months some are made every few seconds."""

_log = logging.getLogger("corepipe")


@dataclass(frozen=True)
class Change:
    """A change of the plan of a running stream.

    Attributes:
        at_ns: when new frames began to run by it, on CLOCK_MONOTONIC.
        kind: `rates` of the routes at hand, or another `plan`.
        number: how many plans the stream had before this one, as in `FrameRecord.plan`.
        plan: the plan from then on.
        reason: why, for people.
    """

    at_ns: int
    kind: Literal["rates", "plan"]
    number: int
    plan: Plan
    reason: str


class Follower:
    """Lets a stream's plan follow the machine: throttling, other programs, lost cores.

    It takes the stream's records beside whatever else is told of them, and ends with the stream.

    Args:
        stream: an open stream.
        table: the costs that its plan was made with.
        planner: finds the best plan on a table; the default looks for routes, with the tolerance that `plan` has.
        on_change: called with each change, in the follower's thread.

    Raises:
        WorkerError: the system has no thread left.

    Attributes:
        changes: what was changed, in order; of very many, the latest.
    """

    def __init__(
        self,
        stream: Stream,
        table: CostTable,
        *,
        planner: Callable[[CostTable], Plan] = planners.plan,
        on_change: Callable[[Change], None] = lambda change: None,
    ) -> None:
        self.changes: list[Change] = []
        self._stream = weakref.ref(stream)
        self._decider = Decider(table, planner, Probe(self._core_speeds))
        self._on_change = on_change
        self._watched = stream.lanes[-1].number, Observer(stream.plan, time.monotonic_ns())
        """The plan that is watched: its number and observer, which change together."""
        self._topology = stream.topology
        self._first_mask: frozenset[int] = frozenset()
        self._thread = start(daemon("corepipe-follower", self._follow))
        stream.watch(self._add)

    def _add(self, record: FrameRecord) -> None:
        number, observer = self._watched
        if record.plan == number:
            observer.add(record)

    def _follow(self) -> None:
        self._first_mask = self._mask()
        while True:
            time.sleep(self._decider.pause_s)
            stream = self._stream()
            if stream is None or stream.closed:
                return
            try:
                self._look(stream)
            except StreamClosedError:
                return
            except CorepipeError as error:
                if stream.lanes[-1].number == self._watched[0]:  # else its user has switched meanwhile
                    _log.warning("the plan stays as it is: %s", error)
                    self._decider.refused(time.monotonic())
            except Exception:
                if stream.closed:
                    return
                _log.exception("the plan is not followed any more")
                return
            del stream

    def _look(self, stream: Stream) -> None:
        now_ns = time.monotonic_ns()
        lane = stream.lanes[-1]
        plan = lane.plan
        if lane.number != self._watched[0]:  # somebody else has switched
            self._watched = lane.number, Observer(lane.plan, now_ns)
            self._decider.switched()
        seen = self._watched[1].seen(now_ns)
        step = self._decider.look(plan, seen, self._usable(), now_ns * 1e-9)
        if step is None:
            return
        number = lane.number
        if step.kind == "rates":
            with stream.state.lock:
                if stream.plan is not plan:  # its user has changed it meanwhile
                    return
                stream.set_rates(step.plan)
        else:
            _check_memory(stream, step.plan)
            number = stream.switch(step.plan, after=number)
        at_ns = time.monotonic_ns()
        self._watched = number, Observer(step.plan, at_ns)
        change = Change(at_ns, step.kind, number, step.plan, step.reason)
        self.changes.append(change)
        if len(self.changes) > _KEPT_CHANGES:
            del self.changes[next((n for n, old in enumerate(self.changes) if old.kind == "rates"), 0)]
        _log.info("the plan changes (%s): %s", step.kind, step.reason)
        self._on_change(change)

    def _core_speeds(self, cores: Sequence[int]) -> Speeds:
        """See `core_speeds`; the workers on these cores wait meanwhile."""
        stream = self._stream()
        if stream is None or not self._topology.pinnable:
            return {}
        pauses = [
            child.paused()
            for lane in stream.lanes
            for worker, child in zip(lane.plan.workers, lane.pool.children, strict=True)
            if set(cores) & set(worker.cores)
        ]
        return core_speeds(self._topology, cores, pauses)

    def _usable(self) -> set[int]:
        """The cores that the system still lets this process use: a thread's mask loses those that it takes away."""
        cores = {core.id: core.cpus for core in self._topology.cores}
        now = self._mask()
        return {core for core, cpus in cores.items() if not self._first_mask.intersection(cpus) or now & set(cpus)}

    @staticmethod
    def _mask() -> frozenset[int]:
        """The mask of this thread; empty where the system does not tell."""
        with contextlib.suppress(AttributeError, OSError):
            return frozenset(os.sched_getaffinity(0))
        return frozenset()


def _check_memory(stream: Stream, plan: Plan) -> None:
    """While another plan is loaded both are in memory.

    Raises:
        WorkerError: that much is not to be had.
    """
    layers = [layer.descriptor.bytes_weights for layer in stream.network.layers]
    arena = stream.pool.arena.held_bytes * plan.batch // stream.plan.batch
    needed = loading_bytes(plan, layers) + arena
    available = available_memory()
    if needed > available:
        raise WorkerError(
            f"another plan would be better, but loading it beside this one needs {needed >> 20} MiB, and "
            f"{available >> 20} MiB are available"
        )
