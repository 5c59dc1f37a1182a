"""What a running stream has taught about each core: by how much its layers are slower or faster than the cost table."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from corepipe.cost.table import ConfigCosts, CostTable, TableCluster
from corepipe.errors import CorepipeError
from corepipe.follow.observe import HopKey
from corepipe.follow.probe import Probe
from corepipe.plan.model import Plan, hop_s
from corepipe.topology.model import CoreConfig

Floats = NDArray[np.float64]

_log = logging.getLogger("corepipe")

APART = 1.2
"""Cores of one cluster whose factors lie further apart are planned for as clusters of their own (`_MOST_PARTS`)."""

_HALF_LIFE_S = 30.0
"""What is known of a core that does nothing loses half of its weight in so long: it may have cooled down."""

_CHANGED = 1.2
_NEW_WEIGHT = 0.25

_LEAST, _MOST = 0.05, 50.0


class Belief:
    """For each core and layer a factor: real seconds over those of the cost table.

    Args:
        table: the costs that the first plan was made with.
        probe: tells the cores of a worker apart; without it all are taken to be as slow as the worker.
    """

    def __init__(self, table: CostTable, probe: Probe | None = None) -> None:
        self._table = table
        self._probe = probe
        self._factors = {core: np.ones(table.layer_count) for c in table.machine.clusters for core in c.cores}
        self._at: dict[int, float] = dict.fromkeys(self._factors, 0.0)

    @property
    def cores(self) -> tuple[int, ...]:
        """All cores of the table's machine."""
        return tuple(self._factors)

    @property
    def unsure(self) -> bool:
        """Whether the next looks are to tell which core of a worker has become slow."""
        return self._probe is not None and self._probe.unsure

    def covers(self, plan: Plan) -> bool:
        """Whether the table has costs for all of a plan; if not, that is logged."""
        try:
            table = self._table.for_frames(plan.batch)
            for route in plan.routes:
                for hop in route.hops:
                    hop_s(plan, hop, table, busy=len(plan.workers) > 1)
        except CorepipeError as error:
            _log.warning("the plan is not followed, as its costs are not known: %s", error)
            return False
        return True

    def learn(self, plan: Plan, seen: Mapping[HopKey, float], now_s: float) -> None:
        """Take in the hops of a plan that were seen; for layers that a worker did not run, its other ones stand.

        Args:
            plan: the plan.
            seen: seconds of a frame for hops of it.
            now_s: the time, for what is not seen any more.
        """
        table = self._table.for_frames(plan.batch)
        busy = len(plan.workers) > 1
        if self._probe:
            self._probe.watch([worker.cores for worker in plan.workers])
        for worker in plan.workers:
            total = np.zeros(2)
            layers: list[tuple[int, int, float]] = []
            for (number, index), seconds in seen.items():
                hop = plan.routes[number].hops[index]
                if hop.worker != worker.name:
                    continue
                expected = hop_s(plan, hop, table, busy=busy)
                if expected > 0:
                    layers.append((hop.start, hop.stop, float(np.clip(seconds / expected, _LEAST, _MOST))))
                    total += seconds, expected
            if not layers:
                continue
            factors = np.full(table.layer_count, np.clip(total[0] / total[1], _LEAST, _MOST))
            # Of hops with layers in common the shorter one says more of them.
            for start, stop, factor in sorted(layers, key=lambda one: one[0] - one[1]):
                factors[start:stop] = factor
            shares = self._probe.shares(worker.cores, _mean(factors)) if self._probe else {}
            for core in worker.cores:
                # The slowest core is what the worker waits for, layer by layer.
                own = np.clip(factors * shares.get(core, 1.0), _LEAST, _MOST)
                self._factors[core], self._at[core] = _smoothed(self.factors(core, now_s), own), now_s

    def factors(self, core: int, now_s: float) -> Floats:
        """The factor of each layer on a core, shape (layers,)."""
        weight = 0.5 ** (max(now_s - self._at[core], 0.0) / _HALF_LIFE_S)
        return np.asarray(np.exp(weight * np.log(self._factors[core])))

    def slowest(self, cores: Collection[int], now_s: float) -> Floats:
        """The factor of each layer on some cores together, which wait for the slowest: shape (layers,)."""
        return np.asarray(np.max([self.factors(core, now_s) for core in cores], axis=0))

    def table(self, now_s: float, usable: Collection[int] | None = None) -> tuple[CostTable, dict[str, str]]:
        """The cost table as it is by now, and for each of its clusters the cluster of the machine that it belongs to.

        Args:
            now_s: the time.
            usable: the cores that may be used; None for all.

        Returns:
            The table; a cluster whose cores have become unequal is several in it.
        """
        factors = {core: self.factors(core, now_s) for core in self._factors if usable is None or core in usable}
        clusters: list[TableCluster] = []
        origin: dict[str, str] = {}
        groups: dict[str, list[tuple[int, ...]]] = {}
        for cluster in self._table.machine.clusters:
            parted = _parted({core: _mean(factors[core]) for core in cluster.cores if core in factors})
            for number, cores in enumerate(parted):
                name = cluster.name if len(parted) == 1 else f"{cluster.name}_{_letter(number)}"
                clusters.append(TableCluster(name=name, cores=cores))
                origin[name] = cluster.name
            groups[cluster.name] = parted
        rows: list[ConfigCosts] = []
        every = tuple(core for cluster in clusters for core in cluster.cores)
        for row in self._table.configs:
            config = row.core_config
            if config.cluster not in groups:
                # All cores wait for the slowest of them at every barrier.
                if len(every) == config.count:
                    rows.append(_scaled(row, config, self.slowest(every, now_s)))
                continue
            for cluster in clusters:
                if origin[cluster.name] == config.cluster and len(cluster.cores) >= config.count:
                    mean = np.exp(np.mean([np.log(factors[core]) for core in cluster.cores], axis=0))
                    rows.append(_scaled(row, CoreConfig(cluster.name, config.count), mean))
        machine = self._table.machine.model_copy(update={"clusters": tuple(clusters)})
        return self._table.replaced(configs=tuple(rows), machine=machine), origin


def _smoothed(before: Floats, after: Floats) -> Floats:
    """What is believed of a core after one more look: small differences are noise, large ones a change."""
    differences = np.log(after / before)
    if np.abs(differences).max() > math.log(_CHANGED):
        return after
    return np.asarray(before * np.exp(_NEW_WEIGHT * differences))


def _mean(factors: Floats) -> float:
    return float(np.exp(np.log(factors).mean()))


_MOST_PARTS = 4
"""Groups of cores in a cluster: the time to plan grows exponentially with them."""

_COARSER = 1.1


def _parted(factors: Mapping[int, float], apart: float = APART) -> list[tuple[int, ...]]:
    """Cores in a few groups, fastest first, of which none holds factors farther apart than need be."""
    groups: list[list[int]] = []
    first = 0.0
    for core in sorted(factors, key=lambda core: (factors[core], core)):
        if not groups or factors[core] > first * apart:
            groups.append([])
            first = factors[core]
        groups[-1].append(core)
    if len(groups) > _MOST_PARTS:
        return _parted(factors, apart * _COARSER)
    return [tuple(sorted(group)) for group in groups]


def _letter(number: int) -> str:
    """a to z, then za to zz and so on, for names of clusters."""
    return "z" * (number // 26) + chr(ord("a") + number % 26)


def _scaled(row: ConfigCosts, config: CoreConfig, factors: Floats) -> ConfigCosts:
    update = {
        "config": str(config),
        "layer_s": tuple((np.array(row.layer_s) * factors).tolist()),
        "segment_s": row.segment_s * _mean(factors),
        "segment_s_per_byte": row.segment_s_per_byte * _mean(factors),
    }
    if row.layer_busy_s is not None:
        update["layer_busy_s"] = tuple((np.array(row.layer_busy_s) * factors).tolist())
    return row.model_copy(update=update)
