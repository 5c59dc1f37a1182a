"""What all planners share: the costs as arrays over legal cuts, and plans put together from configs and hops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from corepipe.cost.table import CostTable, Mode, TableCluster, TableMachine
from corepipe.errors import PlanError
from corepipe.plan.division import Divider, divided_load_s
from corepipe.plan.model import LEAST_SHARE, Hop, Plan, PlanNetwork, Route, Worker, evaluate
from corepipe.topology.model import ALL_CORES, CoreConfig

Stage = tuple[CoreConfig, int, int]
"""A worker's config with the layers [start, stop) that it runs."""

Hops = Sequence[tuple[int, int, int]]
"""A route in the making: (index of a worker, start, stop) for each hop."""


def restrict(table: CostTable, cores: Collection[int]) -> CostTable:
    """The same table for a machine of which only some cores may be used.

    Args:
        table: the costs.
        cores: ids of the cores that plans may use.

    Raises:
        PlanError: a core is not of this machine, or none of the table's configs fits into them.
    """
    known = {core for cluster in table.machine.clusters for core in cluster.cores}
    foreign = sorted(set(cores) - known)
    if foreign:
        raise PlanError(f"core {foreign[0]} is not in the cost table's machine (its cores: {_listed(known)})")
    kept = tuple(
        TableCluster(name=cluster.name, cores=tuple(core for core in cluster.cores if core in cores))
        for cluster in table.machine.clusters
        if any(core in cores for core in cluster.cores)
    )
    counts = {cluster.name: len(cluster.cores) for cluster in kept}
    if len(known) == len(set(cores)):
        counts[ALL_CORES] = len(known)
    configs = tuple(c for c in table.configs if c.core_config.count <= counts.get(c.core_config.cluster, 0))
    if not configs:
        raise PlanError(
            f"no config of the cost table ({', '.join(c.config for c in table.configs)}) fits into the "
            f"cores {_listed(cores) or '(none)'}; allow more cores, or profile smaller configs"
        )
    machine = TableMachine(description=table.machine.description, fingerprint=table.machine.fingerprint, clusters=kept)
    return table.replaced(machine=machine, configs=configs)


def cluster_sizes(table: CostTable) -> dict[str, tuple[int, ...]]:
    """For each cluster, fastest first, the worker sizes that the table has costs for, ascending."""
    return {
        cluster.name: tuple(
            sorted(c.count for c in table.by_config if c.cluster == cluster.name and c.count <= len(cluster.cores))
        )
        for cluster in table.machine.clusters
    }


def cluster_configs(table: CostTable) -> tuple[CoreConfig, ...]:
    """The configs within one cluster that the table has costs for: clusters fastest first, sizes ascending.

    Raises:
        PlanError: there are none.
    """
    configs = tuple(CoreConfig(name, count) for name, counts in cluster_sizes(table).items() for count in counts)
    if not configs:
        raise PlanError(
            f"the cost table of {table.network.name} has no config within one cluster (it has "
            f"{', '.join(map(str, table.by_config))}); profile the network on smaller configs"
        )
    return configs


def make_workers(table: CostTable, configs: Iterable[CoreConfig]) -> tuple[Worker, ...]:
    """Workers on distinct cores, named `big4`, or `big1-a`, `big1-b` where a config appears more than once.

    Raises:
        PlanError: the machine has too few cores in a cluster.
    """
    configs = tuple(configs)
    total, seen = Counter(configs), Counter[CoreConfig]()
    free = {cluster.name: list(cluster.cores) for cluster in table.machine.clusters}
    free[ALL_CORES] = [core for cluster in table.machine.clusters for core in cluster.cores]
    workers = []
    for config in configs:
        name = str(config) if total[config] == 1 else f"{config}-{_letters(seen[config])}"
        seen[config] += 1
        cores = free.get(config.cluster, [])[: config.count]
        if len(cores) < config.count:
            raise PlanError(f"worker {name}: the machine has too few cores in cluster {config.cluster!r}")
        del free[config.cluster][: config.count]
        engine = table.costs_of(config).engine
        workers.append(Worker(name=name, config=str(config), cores=tuple(cores), engine=engine))
    return tuple(workers)


def make_plan(
    table: CostTable,
    planner: str,
    configs: Sequence[CoreConfig],
    routes: Iterable[tuple[float, Hops]],
) -> Plan:
    """A plan whose mix of routes is scaled until its fullest worker is busy all the time.

    Routes with next to no share, and workers without a route, are left out.

    Args:
        table: the costs.
        planner: what the plan is to say made it.
        configs: one for each worker.
        routes: for each route its share (any unit) and its hops.

    Raises:
        PlanError: the table gives the plan no cost at all.
    """
    routes = list(routes)
    least = 2 * LEAST_SHARE * sum(rate for rate, _ in routes)
    mix = [(rate, list(hops)) for rate, hops in routes if rate > least]
    used = sorted({worker for _, hops in mix for worker, _, _ in hops})
    workers = dict(zip(used, make_workers(table, [configs[i] for i in used]), strict=True))
    dividers = {config: Divider(table, config, busy=len(used) > 1) for config in {configs[i] for i in used}}

    def hop_of(worker: int, start: int, stop: int) -> Hop:
        parts, _ = dividers[configs[worker]].divide(start, stop)
        plain = len(parts) == 1 and parts[0].mode == Mode(workers[worker].engine)
        return Hop(worker=workers[worker].name, layers=(start, stop), parts=None if plain else parts)

    divided = [(rate, tuple(hop_of(*hop) for hop in hops)) for rate, hops in mix]

    def plan_at(scale: float, fps: float | None) -> Plan:
        return Plan(
            planner=planner,
            network=PlanNetwork(name=table.network.name, sha256=table.network.sha256, layers=table.layer_count),
            workers=tuple(workers.values()),
            routes=tuple(Route(rate_fps=rate * scale, hops=hops) for rate, hops in divided),
            batch=table.frames,
            predicted_fps=fps,
        )

    draft = plan_at(1.0, None)
    fps = evaluate(draft, table).throughput_fps
    return plan_at(fps / draft.throughput_fps, fps)


def pipeline_plan(table: CostTable, planner: str, stages: Sequence[Stage]) -> Plan:
    """A plan of one route that visits each stage's worker once."""
    hops = [(i, start, stop) for i, (_, start, stop) in enumerate(stages)]
    return make_plan(table, planner, [config for config, _, _ in stages], [(1.0, hops)])


def single_plan(table: CostTable, planner: str, config: CoreConfig) -> Plan:
    """A plan of one worker that runs the whole network."""
    return pipeline_plan(table, planner, [(config, 0, table.layer_count)])


def best_of(plans: Iterable[Plan]) -> Plan:
    """The plan with the highest predicted throughput; of equal ones that with fewer workers, then the first."""
    best: Plan | None = None
    for plan in plans:
        fps = plan.predicted_fps or 0.0
        if best is None:
            best = plan
            continue
        record = best.predicted_fps or 0.0
        tied = abs(fps - record) <= 1e-12 * record
        if (fps > record and not tied) or (tied and len(plan.workers) < len(best.workers)):
            best = plan
    assert best is not None
    return best


MAX_GRID_ENTRIES = 2**26
"""Half a GiB of segment costs, on all configs: 2,800 layers on 4 + 4 cores."""


def searchable(table: CostTable) -> bool:
    """Whether the table has configs within one cluster, and not too many layers to search for the best cuts."""
    configs = sum(map(len, cluster_sizes(table).values()))
    return 0 < configs * (len(table.legal_cuts()) + 2) ** 2 <= MAX_GRID_ENTRIES


@dataclass(frozen=True)
class Grid:
    """A cost table as arrays over its legal cuts, for configs within one cluster.

    Attributes:
        table: the costs.
        configs: T configs, clusters in the machine's order, sizes ascending.
        cuts: P cuts where a hop may start or end, from 0 to the number of layers.
    """

    table: CostTable
    configs: tuple[CoreConfig, ...]
    cuts: tuple[int, ...]

    @classmethod
    def of(cls, table: CostTable) -> Grid:
        """The arrays of a table.

        Raises:
            PlanError: the table has no config within one cluster, too many layers to search, or lets a frame pass in no
                time.
        """
        grid = cls(table, cluster_configs(table), (0, *table.legal_cuts(), table.layer_count))
        if not searchable(table):
            raise PlanError(
                f"{table.network.name} has {table.layer_count} layers, too many to search for the best cuts (core "
                f"configs: {len(grid.configs)}); allow fewer cores, or use the planner 'replicas'"
            )
        step = grid.loads.min(axis=0)
        least = np.zeros(len(grid.cuts))
        for stop in range(1, len(least)):
            least[stop] = (least[:stop] + step[stop, :stop]).min()
        if least[-1] <= 0:
            raise PlanError(
                f"by the cost table of {table.network.name} a frame can pass all layers at no cost at all; "
                "profile the network again"
            )
        return grid

    @cached_property
    def loads(self) -> NDArray[np.float64]:
        """Seconds, shape (T, P, P): [t, j, i] for layers cuts[i] to cuts[j] on config t, its half hops included.

        With the other cores busy, the layers divided among the modes as is best; infinite where i >= j. The start runs
        along the last axis, so that all hops that end at a cut lie side by side.
        """
        half_hop = np.array([self.table.half_hop_s(cut) for cut in self.cuts])
        hops = half_hop[:, None] + half_hop
        return np.array([Divider(self.table, c, busy=True, cuts=self.cuts).seconds() + hops for c in self.configs])

    def alone_s(self, config: CoreConfig) -> float:
        """Seconds of the whole network on one worker with the rest of the machine idle, half hops included."""
        return divided_load_s(self.table, config, 0, self.table.layer_count, busy=False)

    @cached_property
    def cluster_cores(self) -> dict[str, int]:
        """How many cores each cluster has."""
        return {cluster.name: len(cluster.cores) for cluster in self.table.machine.clusters}


def _letters(index: int) -> str:
    """a, b, ... z, aa, ab ..."""
    text = ""
    index += 1
    while index:
        index, digit = divmod(index - 1, 26)
        text = chr(ord("a") + digit) + text
    return text


def _listed(cores: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(cores)))
