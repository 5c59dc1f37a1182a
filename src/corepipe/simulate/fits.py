"""Whether a plan can run on the network and machine of a cost table."""

from __future__ import annotations

from corepipe.cost.table import CostTable
from corepipe.errors import PlanError
from corepipe.plan.model import Plan, evaluate


def check_fits(plan: Plan, table: CostTable) -> None:
    """Check that a plan can run on the network and machine of a cost table.

    Raises:
        PlanError: another network, an illegal cut, a config that the table lacks, or a core that the machine or the
            worker's cluster lacks.
    """
    if plan.network.sha256 not in ("", table.network.sha256):
        raise PlanError(
            f"the plan is for {plan.network.name} ({plan.network.sha256[:12]}), the cost table is of "
            f"{table.network.name} ({table.network.sha256[:12]}); make the plan from this table"
        )
    evaluate(plan, table)
    clusters = {cluster.name: set(cluster.cores) for cluster in table.machine.clusters}
    everything = set().union(*clusters.values())
    for worker in plan.workers:
        known = clusters.get(worker.core_config.cluster, everything)
        foreign = [core for core in worker.cores if core not in known]
        if foreign:
            raise PlanError(
                f"worker {worker.name} ({worker.config}) names core {foreign[0]}, which the cost table's machine does "
                f"not have there (it has {', '.join(map(str, sorted(known)))}); make the plan from this table"
            )
    legal = {0, *table.legal_cuts(), table.layer_count}
    for number, route in enumerate(plan.routes):
        for part in (part for hop in route.hops for part in plan.parts_of(hop)):
            if part.start not in legal:
                raise PlanError(
                    f"route {number} cuts before layer {part.start}, where the cost table of {table.network.name} "
                    f"allows no cut; choose another cut, or make the plan from this table"
                )
