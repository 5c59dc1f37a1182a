"""From a machine file to a topology: on its own, or laid over the machine at hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from corepipe.errors import TopologyError
from corepipe.topology.cpulist import name_cpus
from corepipe.topology.grouping import suffix
from corepipe.topology.machine_file import FileCluster, MachineFile
from corepipe.topology.model import Cluster, Core, Topology, by_capacity


def file_topology(file: MachineFile, source: str, here: Topology | None, existing: Iterable[int] = ()) -> Topology:
    """The machine that a file describes.

    Args:
        file: what was read.
        source: the file's name.
        here: the machine at hand, None if it could not be read; with `override` the file is laid over it.
        existing: the CPUs that the machine at hand has, those included that may not be used.

    Raises:
        TopologyError: `override` is set and a CPU does not exist here, or none of them may be used.
    """
    if not file.override:
        return _alone(file, source, here)
    if here is None:
        raise TopologyError(f"{source}: has override = true, but the machine at hand could not be read")
    return _laid_over(file, source, here, frozenset(existing) | set(here.cpus))


def _alone(file: MachineFile, source: str, here: Topology | None) -> Topology:
    missing = {cpu for c in file.cluster for cpu in c.all_cpus} - set(here.cpus if here else ())
    warnings: tuple[str, ...] = ()
    if missing:
        text = (
            f"{source} describes a machine that is not at hand ({name_cpus(missing)} cannot be used here): plans for "
            f"it can be made and simulated, not run"
        )
        warnings = (text,)
    elif here:
        warnings = tuple(w for w in here.warnings if "capacities are estimated" not in w)
        if file.machine and file.machine != here.machine and not file.emulated:
            text = f"{source} is taken to describe this machine: it says {file.machine!r}, the system {here.machine!r}"
            warnings = (*warnings, text)
    own = here if here and not missing else None
    top = max((c.max_mhz or 0 for c in file.cluster), default=0)
    return Topology(
        clusters=by_capacity(_described(c, top, own) for c in file.cluster),
        pinnable=own is not None and own.pinnable,
        at_hand=own is not None and own.at_hand,
        source=source,
        machine=file.machine or "",
        quota_cpus=own.quota_cpus if own and file.quota_cpus is None else file.quota_cpus,
        emulated=file.emulated,
        warnings=warnings,
    )


def _described(cluster: FileCluster, top_mhz: float, here: Topology | None) -> Cluster:
    """A cluster of the file; what the system holds it to now is taken from the machine at hand, if it is that one."""
    capacity = cluster.capacity
    if capacity is None:
        capacity = max(0.001, round(cluster.max_mhz / top_mhz, 4)) if cluster.max_mhz else 1.0
    packages = cluster.packages or (0,) * len(cluster.groups)
    siblings = cluster.siblings or cluster.groups
    detected = next((c for c in here.clusters if set(c.cpus) & set(cluster.all_cpus)), None) if here else None
    return Cluster(
        name=cluster.name,
        cores=_sorted(map(Core, cluster.groups, packages, siblings)),
        capacity=capacity,
        core_name=cluster.core_name or "",
        max_mhz=cluster.max_mhz,
        governor=detected.governor if detected and cluster.governor is None else cluster.governor,
        limit_mhz=detected.limit_mhz if detected and cluster.limit_mhz is None else cluster.limit_mhz,
        caches=cluster.caches,
    )


def _laid_over(file: MachineFile, source: str, here: Topology, existing: frozenset[int]) -> Topology:
    claimed = {cpu for c in file.cluster for cpu in c.all_cpus}
    if claimed - existing:
        verb = "does" if len(claimed - existing) == 1 else "do"
        raise TopologyError(
            f"{source}: has override = true, but {name_cpus(claimed - existing)} {verb} not exist on this machine "
            f"(it has {name_cpus(existing)}); correct the file or leave out override"
        )
    clusters = [done for c in file.cluster if (done := _merged(c, here)) is not None]
    if not clusters:
        raise TopologyError(f"{source}: none of its CPUs may be used by this process ({name_cpus(claimed)})")
    names = {c.name for c in file.cluster}
    for rest in here.clusters:
        cores = tuple(
            replace(core, cpus=left)
            for core in rest.cores
            if (left := tuple(cpu for cpu in core.cpus if cpu not in claimed))
        )
        if cores:
            name = _free_name("big" if rest.name == "cpu" else rest.name, names)
            names.add(name)
            clusters.append(replace(rest, name=name, cores=cores))
    unusable = claimed - set(here.cpus)
    hidden = (f"{name_cpus(unusable)}: named in {source}, but not usable here",) if unusable else ()
    return replace(
        here,
        clusters=by_capacity(clusters),
        source=source,
        machine=here.machine if file.machine is None else file.machine,
        quota_cpus=here.quota_cpus if file.quota_cpus is None else file.quota_cpus,
        emulated=file.emulated or here.emulated,
        hidden=here.hidden + hidden,
    )


def _merged(cluster: FileCluster, here: Topology) -> Cluster | None:
    """A cluster of the file with what was detected of its CPUs; None if none of them may be used."""
    wanted = set(cluster.all_cpus)
    known = [(core, c) for c in here.clusters for core in c.cores if wanted & set(core.cpus)]
    if not known:
        return None
    detected = known[0][1]
    if cluster.cores:
        cores = _regrouped(cluster.groups, [core for core, _ in known])
    else:
        cores = [replace(core, cpus=tuple(cpu for cpu in core.cpus if cpu in wanted)) for core, _ in known]
    return Cluster(
        name=cluster.name,
        cores=_sorted(cores),
        capacity=detected.capacity if cluster.capacity is None else cluster.capacity,
        core_name=detected.core_name if cluster.core_name is None else cluster.core_name,
        max_mhz=detected.max_mhz if cluster.max_mhz is None else cluster.max_mhz,
        current_mhz=detected.current_mhz,
        governor=detected.governor if cluster.governor is None else cluster.governor,
        limit_mhz=detected.limit_mhz if cluster.limit_mhz is None else cluster.limit_mhz,
        caches=detected.caches if cluster.cache is None else cluster.caches,
    )


def _regrouped(groups: Iterable[tuple[int, ...]], detected: Iterable[Core]) -> list[Core]:
    """Cores as the file divides them, of the CPUs that may be used, with package and siblings as detected."""
    core_of = {cpu: core for core in detected for cpu in core.cpus}
    cores = []
    for group in groups:
        cpus = tuple(cpu for cpu in group if cpu in core_of)
        if cpus:
            siblings = {s for cpu in cpus for s in core_of[cpu].siblings or (cpu,)}
            cores.append(Core(cpus, core_of[cpus[0]].package, tuple(sorted(siblings))))
    return cores


def _free_name(name: str, taken: Iterable[str]) -> str:
    """`name`, or the first of `name-b`, `name-c`, ... that no other cluster has."""
    taken = set(taken)
    return next(free for i in range(len(taken) + 1) if (free := name + suffix(i)) not in taken)


def _sorted(cores: Iterable[Core]) -> tuple[Core, ...]:
    return tuple(sorted(cores, key=lambda core: core.id))
