"""When a running plan is to change: shift the rates of its routes, or go on with another plan, or leave it alone.

Nothing here knows of processes or clocks: the time is told (but for how long a search takes, to rest accordingly).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from corepipe.cost.table import CostTable
from corepipe.errors import PlanError
from corepipe.follow.belief import Belief
from corepipe.follow.observe import Seen
from corepipe.follow.probe import Probe
from corepipe.plan.model import Plan, Worker, hop_s
from corepipe.plan.rates import best_rates, mix_fps, route_loads

Floats = NDArray[np.float64]

_log = logging.getLogger("corepipe")

RATES_GAIN = 0.03
"""Rates are shifted where that promises so much more throughput; it costs nothing."""

PLAN_GAIN = 0.05
"""Another plan is loaded where it promises so much more than the best rates of this one."""

SATURATED = 0.75
"""A plan none of whose workers is busy for so much of the time waits for frames: it is fast enough."""

SETTLING_S = 2.5
"""How long a new plan runs before it is judged, and before the next one may follow."""

_ALIKE = 0.05
"""Factors that differ by less lead to the same plan."""

_REST = 10
"""After a search no other one is made for so many times as long: it takes time of the cores that it is for."""

_AGREEING_S = 1.5
"""A change is made when all looks of so long have asked for it."""

_URGENT_GAIN = 0.15
_URGENT_AGREEING_S = 0.4
"""The same where so much is to be gained: three looks."""

PERIOD_S = 0.5
_DOUBT_PERIOD_S = 0.2
"""How often to look at a stream, and how often while a change is in question."""

_RETRY_S = 10.0
_MOST_RETRIES = 6
"""After a refused step no other plan is asked for in so long, twice as long after the next one, and so on."""

_KEPT_PROMISE = 0.3
_MOST_CAUTIOUS = 8.0
_FORGIVEN_S = 60.0


@dataclass(frozen=True)
class Step:
    """What is to be done: `rates` of the present plan, or another `plan`; the reason for people."""

    kind: Literal["rates", "plan"]
    plan: Plan
    reason: str


@dataclass
class _Patience:
    """How long not to ask for what was refused, longer each time; the `refusals` since the plan changed count."""

    refusals: int = 0
    not_before_s: float = float("-inf")

    def refused(self, now_s: float) -> None:
        """It was refused again."""
        self.not_before_s = now_s + _RETRY_S * 2**self.refusals
        self.refusals = min(self.refusals + 1, _MOST_RETRIES)


class Decider:
    """Looks at a stream from time to time and says what to change.

    A change needs a gain above a threshold in all looks of some time, the shorter the larger it is. After a new plan
    nothing is changed until it has been seen for a while; one that does not keep its promise doubles the threshold,
    which falls back with time: so plans do not alternate.

    Args:
        table: the costs that the plan was made with.
        planner: finds the best plan on a table.
        probe: tells the cores of a worker apart.
    """

    def __init__(self, table: CostTable, planner: Callable[[CostTable], Plan], probe: Probe | None = None) -> None:
        self.belief = Belief(table, probe)
        self._table = table
        self._planner = planner
        self._asked_since_s: float | None = None
        self._lost: frozenset[int] = frozenset()
        self._better_plans = _Patience()
        self._plans_without_lost = _Patience()
        self._hops: list[object] = []
        self._covered = True
        self._caution = 1.0
        self._cautious_s = float("-inf")
        self._promise: tuple[float, float] | None = None
        self._found: tuple[dict[int, Floats], Plan | None] | None = None
        self._rested_s = float("-inf")

    @property
    def pause_s(self) -> float:
        """Seconds until the next look is due."""
        return _DOUBT_PERIOD_S if self._asked_since_s is not None or self.belief.unsure else PERIOD_S

    def look(self, plan: Plan, seen: Seen, usable: Collection[int], now_s: float) -> Step | None:
        """What to change now, if anything.

        Args:
            plan: the plan that runs.
            seen: what was seen of it lately.
            usable: the cores that this process may use at present.
            now_s: the time, any clock that does not go back.

        Raises:
            PlanError: a core that the plan uses is lost, and the table has no plan for those that are left.
        """
        hops: list[object] = [plan.workers, *(route.hops for route in plan.routes)]
        if hops != self._hops:
            self._hops, self._covered = hops, self.belief.covers(plan)
            self._better_plans.refusals = self._plans_without_lost.refusals = 0
        lost = frozenset(core for worker in plan.workers for core in worker.cores) - frozenset(usable)
        if lost:
            return self._without(lost, usable, now_s)
        if not self._covered:
            return None
        self.belief.learn(plan, seen.hop_s, now_s)
        self._judge(seen, now_s)
        asked_since_s, self._asked_since_s = self._asked_since_s, None
        if max(seen.utilization.values(), default=0.0) < SATURATED or seen.seconds < SETTLING_S:
            return None
        step, gain = self._better(plan, usable, now_s)
        if step is None:
            return None
        since_s = now_s if asked_since_s is None else asked_since_s
        if now_s - since_s < (_URGENT_AGREEING_S if gain > _URGENT_GAIN else _AGREEING_S):
            self._asked_since_s = since_s
            return None
        if step.kind == "plan":
            self._promise = seen.fps, 1 + gain
        return step

    def switched(self) -> None:
        """The stream's user chose another plan: what was done about lost cores was for the one before."""
        self._lost = frozenset()

    def refused(self, now_s: float) -> None:
        """The step could not be made (no memory for another plan, say): be slower to ask again."""
        self._promise = None
        (self._plans_without_lost if self._lost else self._better_plans).refused(now_s)
        self._lost = frozenset()

    def _without(self, lost: frozenset[int], usable: Collection[int], now_s: float) -> Step | None:
        if lost == self._lost or now_s < self._plans_without_lost.not_before_s:
            return None
        self._lost, self._promise = lost, None
        if not usable:
            raise PlanError("none of its cores may be used any more; it goes on where they come back")
        names = ", ".join(str(core) for core in sorted(lost))
        found = self._search(usable, now_s)
        return Step("plan", found, f"core {names} is offline or may not be used any more")

    def _better(self, plan: Plan, usable: Collection[int], now_s: float) -> tuple[Step | None, float]:
        """A step that gains enough, if there is one, and the share of throughput that it gains."""
        self._lost = frozenset()
        loads = self._loads(plan, now_s)
        now_fps = mix_fps(plan, loads)
        shifted = best_rates(plan, loads)
        shifted_fps = max(shifted.predicted_fps or 0.0, now_fps)
        caution = self._caution_at(now_s)
        found = self._best_plan(usable, now_s) if now_s >= self._better_plans.not_before_s else None
        # Judged as the present one is, by each core's own factor: the search takes cores that differ little for equal.
        gain = mix_fps(found, self._loads(found, now_s)) / shifted_fps - 1 if found else 0.0
        if found and gain > PLAN_GAIN * caution:
            found = found.model_copy(update={"predicted_fps": (1 + gain) * shifted_fps})
            text = f"{self._slowest(plan, now_s)}; another plan promises {_rate(found.predicted_fps)} instead of "
            return Step("plan", found, text + _rate(shifted_fps)), gain
        gain = shifted_fps / now_fps - 1
        if gain > RATES_GAIN:
            text = f"{self._slowest(plan, now_s)}; other rates promise {_rate(shifted_fps)} instead of {_rate(now_fps)}"
            return Step("rates", shifted, text), gain
        return None, 0.0

    def _best_plan(self, usable: Collection[int], now_s: float) -> Plan | None:
        """The best plan by what is known now, if there is any; not searched for again before that has changed."""
        known = {core: self.belief.factors(core, now_s) for core in self.belief.cores if core in usable}
        same_cores = self._found is not None and known.keys() == self._found[0].keys()
        if self._found is not None and same_cores and (now_s < self._rested_s or _alike(known, self._found[0])):
            return self._found[1]
        began, found = time.monotonic(), None
        try:
            found = self._search(usable, now_s)
        except PlanError as error:
            _log.warning("no other plan is looked for: %s", error)
        self._found = known, found
        self._rested_s = now_s + _REST * (time.monotonic() - began)
        return found

    def _search(self, usable: Collection[int], now_s: float) -> Plan:
        table, origin = self.belief.table(now_s, usable)
        plan = self._planner(table)

        def named(worker: Worker) -> Worker:
            config = worker.core_config
            cluster = origin.get(config.cluster, config.cluster)
            return worker.model_copy(update={"config": f"{cluster}{config.count}"})

        return plan.model_copy(update={"workers": tuple(map(named, plan.workers)), "bound_fps": None})

    def _loads(self, plan: Plan, now_s: float) -> list[dict[str, float]]:
        """For each route the seconds of each worker, by what is known now."""
        table = self._table.for_frames(plan.batch)
        busy = len(plan.workers) > 1
        took_s = {}
        for hop in (hop for route in plan.routes for hop in route.hops):
            factors = self.belief.slowest(plan.worker(hop.worker).cores, now_s)[hop.start : hop.stop]
            weights = self._layer_weights(plan, hop.start, hop.stop, hop.worker)
            took_s[hop] = hop_s(plan, hop, table, busy=busy) * float(factors @ weights)
        return route_loads(plan, table, took_s)

    def _layer_weights(self, plan: Plan, start: int, stop: int, worker: str) -> list[float]:
        row = self._table.costs_of(plan.worker(worker).core_config)
        layers = (row.layer_busy_s or row.layer_s)[start:stop]
        total = sum(layers)
        return [seconds / total for seconds in layers] if total > 0 else [1 / (stop - start)] * (stop - start)

    def _slowest(self, plan: Plan, now_s: float) -> str:
        """The worker whose time differs most from the table's, in words."""
        factors = {w.name: float(self.belief.slowest(w.cores, now_s).mean()) for w in plan.workers}
        name = max(factors, key=lambda name: max(factors[name], 1 / factors[name]))
        return f"{name} takes {factors[name]:.2f} times as long as the costs say"

    def _judge(self, seen: Seen, now_s: float) -> None:
        if self._promise is None or seen.seconds < SETTLING_S:
            return
        before, promised = self._promise
        self._promise = None
        if max(seen.utilization.values(), default=0.0) < SATURATED:
            return
        if seen.fps < before * (1 + _KEPT_PROMISE * (promised - 1)):
            self._be_cautious(now_s)

    def _be_cautious(self, now_s: float) -> None:
        self._caution = min(2 * self._caution_at(now_s), _MOST_CAUTIOUS)
        self._cautious_s = now_s

    def _caution_at(self, now_s: float) -> float:
        return float(max(1.0, self._caution * 0.5 ** ((now_s - self._cautious_s) / _FORGIVEN_S)))


def _alike(one: dict[int, Floats], other: dict[int, Floats]) -> bool:
    return one.keys() == other.keys() and all(
        bool(np.max(np.abs(np.log(one[core] / other[core]))) < _ALIKE) for core in one
    )


def _rate(fps: float | None) -> str:
    return f"{fps or 0.0:.1f} frames/s"
