"""The plans that need no search: all cores in one worker, one cluster, one replica per cluster or per core."""

from __future__ import annotations

from corepipe.cost.table import CostTable
from corepipe.errors import PlanError, UnknownNameError
from corepipe.plan.build import best_of, cluster_configs, cluster_sizes, make_plan, single_plan
from corepipe.plan.division import divided_load_s
from corepipe.plan.model import Plan
from corepipe.topology.model import CoreConfig


def all_cores(table: CostTable) -> Plan:
    """One worker over every core of the machine: each operator split over all cores, an engine's default way.

    Raises:
        PlanError: the table has no costs of that config.
    """
    if table.all_cores not in table.by_config:
        raise PlanError(
            f"the cost table of {table.network.name} has no config {str(table.all_cores)!r} (it has "
            f"{', '.join(map(str, table.by_config))}); profile it on all cores, or choose another planner"
        )
    return single_plan(table, "all-cores", table.all_cores)


def one_cluster(table: CostTable, name: str) -> Plan:
    """One worker on the most cores of one cluster that the table knows; the rest of the machine idles.

    Raises:
        UnknownNameError: the machine has no such cluster.
        PlanError: the table has no config of it.
    """
    sizes = cluster_sizes(table)
    if name not in sizes:
        raise UnknownNameError("cluster", name, sizes)
    if not sizes[name]:
        raise PlanError(
            f"the cost table of {table.network.name} has no config of cluster {name!r} (it has "
            f"{', '.join(map(str, table.by_config))}); profile the network on it, or choose another planner"
        )
    return single_plan(table, f"cluster:{name}", CoreConfig(name, sizes[name][-1]))


def replicas_per_cluster(table: CostTable) -> Plan:
    """One worker per cluster, each running whole frames at its own pace: one session per cluster.

    Raises:
        PlanError: the table has no config within one cluster.
    """
    return _replicas(table, "replicas-per-cluster", smallest=False)


def replicas_per_core(table: CostTable) -> Plan:
    """One worker per core, each running whole frames at its own pace.

    Where the table has no config of one core, as many workers of the smallest size as fit into the cluster.

    Raises:
        PlanError: the table has no config within one cluster.
    """
    return _replicas(table, "replicas-per-core", smallest=True)


def replicas(table: CostTable) -> Plan:
    """The better, by the table, of one replica per cluster and one per core.

    Raises:
        PlanError: the table has no config within one cluster.
    """
    best = best_of([replicas_per_cluster(table), replicas_per_core(table)])
    return best.model_copy(update={"planner": "replicas"})


def _replicas(table: CostTable, planner: str, *, smallest: bool) -> Plan:
    cluster_configs(table)
    configs: list[CoreConfig] = []
    sizes = cluster_sizes(table)
    for cluster in table.machine.clusters:
        if sizes[cluster.name]:
            size = sizes[cluster.name][0 if smallest else -1]
            count = len(cluster.cores) // size if smallest else 1
            configs += [CoreConfig(cluster.name, size)] * count
    whole = table.layer_count
    seconds = [divided_load_s(table, config, 0, whole, busy=len(configs) > 1) for config in configs]
    if min(seconds) <= 0:
        raise PlanError("the cost table gives the network no cost at all; profile it again")
    return make_plan(table, planner, configs, [(1 / s, [(i, 0, whole)]) for i, s in enumerate(seconds)])
