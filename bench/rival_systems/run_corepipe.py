"""corepipe by its public interface: costs measured and kept, the plan, frames through a stream.

python -m rival_systems.run_corepipe FOLDER [CPUS, BATCHES]    measure costs and keep them
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from corepipe import Plan, Stream
from corepipe import plan as planners
from corepipe.api import ALIGNED_S, find_costs
from corepipe.bench_setup import bench_frames
from corepipe.cost.table import CostTable
from corepipe.network.load import open_network
from corepipe.network.model import Network
from corepipe.plan.model import hop_s
from corepipe.plan_results import PlanResult
from corepipe.report.plan import hop_text
from corepipe.runtime.feeding import Writer
from corepipe.runtime.record import FrameRecord
from corepipe.topology import Topology, detect
from corepipe.trial import trial
from rival_systems.child import TOLERANCE, Array, Runner
from rival_systems.prepare import model_path
from rival_systems.rate import Slice


def load(spec: dict[str, Any], folder: Path) -> Runner:
    """See `Runner`; corepipe may choose from all installed engines, and for `batches` frames at once."""
    network = open_network(model_path(folder, 1))
    topology = detect(restrict_to=spec["cpus"])
    # As the rivals' settings are: the candidates are tried, and the fastest one is measured.
    frames, _ = bench_frames(network, None)
    best: list[tuple[PlanResult, CostTable]] = []
    for batch in spec["batches"]:
        table = _costs(network, topology, batch)
        found = trial(network, planners.candidates(table), topology, table, frames, replan=planners.replanned)
        best.append((found.best, found.table))
    result, table = max(best, key=lambda one: one[0].throughput_fps)
    plan = result.plan
    done: list[FrameRecord] = []
    stream = Stream(network, plan, topology, on_record=done.append)
    return _Stream(stream, plan, table, done)


def _costs(network: Network, topology: Topology, batch: int) -> CostTable:
    return find_costs(network, topology, batch=batch, measured=True, aligned_within_s=ALIGNED_S).table


def measure_costs(folder: Path, cpus: Sequence[int], batches: Sequence[int]) -> None:
    """Measure what `load` needs, where it is not known yet."""
    network, topology = open_network(model_path(folder, 1)), detect(restrict_to=cpus)
    for batch in batches:
        _costs(network, topology, batch)


class _Stream:
    """Frames lie in the slots, as a camera or decoder puts them there, and are not copied while the clock runs."""

    def __init__(self, stream: Stream, plan: Plan, table: CostTable, done: list[FrameRecord]) -> None:
        self._stream, self._done = stream, done
        busy = len(plan.workers) > 1
        self._costs_s = [sum(hop_s(plan, hop, table, busy=busy) for hop in route.hops) for route in plan.routes]
        self._expected: list[Array] = []
        self.filling = len(stream.pool.arena.slots)
        self.about = {"settings": _words(plan), "bound_fps": plan.bound_fps, "predicted_fps": plan.predicted_fps}
        self.about |= {"batch": plan.batch}

    def infer(self, batch: Array) -> Array:
        (output,) = self._stream([batch])
        return output

    def run(self, batches: list[Array], seconds: float) -> Slice:
        self._expected = self._expected or [self.infer(batch) for batch in batches]
        self._done.clear()
        placed: set[int] = set()
        began = ended = time.monotonic_ns()

        def place(inputs: dict[str, Array], batch: Array) -> None:
            (slot,) = inputs.values()
            if slot.ctypes.data not in placed:
                placed.add(slot.ctypes.data)
                slot[...] = batch

        def feed() -> Iterator[Writer]:
            nonlocal ended
            for batch in itertools.cycle(batches):
                yield functools.partial(place, batch=batch)
                ended = time.monotonic_ns()
                if ended - began >= seconds * 1e9:
                    return

        (last,) = deque(self._stream(feed()), maxlen=1)
        if not any(
            np.allclose(last, output, rtol=0, atol=TOLERANCE * np.abs(output).max()) for output in self._expected
        ):
            raise RuntimeError("a frame in a slot came out wrong")
        # A call is a slot: its frames are told of at one moment, and the last one's end is the slot's.
        slots = [list(frames) for _, frames in itertools.groupby(self._done, lambda record: record.done_ns)]
        ends, routes = [slot[-1].computed_ns for slot in slots], [slot[-1].route for slot in slots]
        spans = [[(hop.started_ns, hop.ended_ns) for frame in slot for hop in frame.hops] for slot in slots]
        return Slice(began, ended, ends, routes, [len(slot) for slot in slots], spans, self._over_costs())

    def _over_costs(self) -> float:
        took_ns = sum(hop.ended_ns - hop.started_ns for record in self._done for hop in record.hops)
        return took_ns * 1e-9 / sum(self._costs_s[record.route] for record in self._done)


def _words(plan: Plan) -> str:
    """The plan in a line: each route with its share of the frames."""
    total = plan.throughput_fps
    routes = [
        " > ".join(hop_text(hop, plan) for hop in route.hops) + f" {route.rate_fps / total:.0%}"
        for route in plan.routes
    ]
    together = f", {plan.batch} frames a slot" if plan.batch > 1 else ""
    return f"{plan.planner}{together}: {'; '.join(routes)}"


if __name__ == "__main__":
    measure_costs(Path(sys.argv[1]), *json.loads(sys.argv[2]))
