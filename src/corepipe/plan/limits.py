"""What a plan may cost: latency, memory, workers, cores."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from corepipe.cost.table import CostTable
from corepipe.errors import PlanError, UsageError
from corepipe.plan.build import restrict
from corepipe.plan.model import Plan, hop_load_s

_PROCESS_BYTES = 60 * 2**20
_COPIES = 3
"""Of weights while a worker loads. Both by what workers of the zoo's networks hold."""


@dataclass(frozen=True)
class Limits:
    """Limits on a plan; None where there is none.

    Attributes:
        latency_budget_s: seconds that any frame may take on its route when it waits for no other frame.
        memory_budget_bytes: bytes of weights that all workers together may hold.
        layer_weight_bytes: bytes of weights of each layer; needed with a memory budget.
        max_workers: how many workers there may be.
        cores: ids of the cores that may be used.

    Raises:
        UsageError: a limit is not above zero, or the weights are missing.
    """

    latency_budget_s: float | None = None
    memory_budget_bytes: float | None = None
    layer_weight_bytes: Sequence[int] | None = None
    max_workers: int | None = None
    cores: Collection[int] | None = None

    def __post_init__(self) -> None:
        for name in ("latency_budget_s", "memory_budget_bytes", "max_workers"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} must be above zero, not {value}")
        if self.memory_budget_bytes is not None and self.layer_weight_bytes is None:
            raise UsageError("a memory budget needs layer_weight_bytes: the bytes of weights of every layer")

    def latency_per_frame_s(self, table: CostTable) -> float | None:
        """The latency budget for one of the frames that share a slot, in a table whose seconds are those of one."""
        return None if self.latency_budget_s is None else self.latency_budget_s / table.frames

    def restricted(self, table: CostTable) -> CostTable:
        """The table for the cores that may be used.

        Raises:
            PlanError: these limits do not fit the table: a foreign core, weights of another number of layers.
        """
        weights = self.layer_weight_bytes
        if weights is not None and len(weights) != table.layer_count:
            raise PlanError(
                f"layer_weight_bytes has {len(weights)} entries, the cost table of {table.network.name} has "
                f"{table.layer_count} layers; give one entry per layer"
            )
        return table if self.cores is None else restrict(table, self.cores)

    def excess(self, plan: Plan, table: CostTable) -> str | None:
        """What a plan exceeds, in words; None if it keeps all limits."""
        if self.max_workers is not None and len(plan.workers) > self.max_workers:
            return f"{len(plan.workers)} workers where {self.max_workers} are allowed"
        if self.latency_budget_s is not None:
            latency_s = plan_latency_s(plan, table)
            if latency_s > self.latency_budget_s * (1 + 1e-9):
                return f"a latency of {in_ms(latency_s)} where {self.latency_budget_s * 1e3:g} ms are allowed"
        if self.memory_budget_bytes is not None and self.layer_weight_bytes is not None:
            held = sum(weight_bytes(plan, self.layer_weight_bytes).values())
            if held > self.memory_budget_bytes:
                return f"{in_mb(held)} of weights where {self.memory_budget_bytes / 1e6:g} MB are allowed"
        return None


def plan_latency_s(plan: Plan, table: CostTable) -> float:
    """Seconds that a frame takes on the plan's slowest route when it waits for no other frame.

    Its hops with their half of each hand-over, and between two hops the time until the next worker starts. Frames that
    share a slot are done when all of them are.
    """
    table = table.for_frames(plan.batch)
    busy = len(plan.workers) > 1
    return plan.batch * max(
        sum(hop_load_s(plan, hop, table, busy=busy) for hop in route.hops) + (len(route.hops) - 1) * table.hop.latency_s
        for route in plan.routes
        if route.rate_fps > 0
    )


def weight_bytes(plan: Plan, layer_weight_bytes: Sequence[int]) -> dict[str, int]:
    """Bytes of weights that each worker holds.

    A worker holds every segment that its routes need. Each segment is a model of its own, so layers that lie in two of
    them are held twice.
    """
    return {
        worker.name: sum(sum(layer_weight_bytes[s.start : s.stop]) for s in plan.segments_of(worker.name))
        for worker in plan.workers
    }


def loading_bytes(plan: Plan, layer_weight_bytes: Sequence[int]) -> int:
    """About what a plan's workers take while they load: each is a process, and holds weights as read and as packed."""
    return sum(_PROCESS_BYTES + _COPIES * held for held in weight_bytes(plan, layer_weight_bytes).values())


def in_ms(seconds: float) -> str:
    """Milliseconds, rounded up so that the figure works as a budget."""
    return f"{math.ceil(seconds * 1e6) / 1e3:.3f} ms"


def in_mb(size: float) -> str:
    """Megabytes (10^6 bytes), rounded up so that the figure works as a budget."""
    return f"{math.ceil(size / 1e4) / 1e2:.2f} MB"
