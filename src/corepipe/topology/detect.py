"""Which cores there are and which of them this process may use."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from corepipe.errors import TopologyError
from corepipe.topology.cpulist import name_cpus
from corepipe.topology.grouping import Grouping, group
from corepipe.topology.linux import Cpu, LinuxMachine, read_linux
from corepipe.topology.machine_file import MachineFile, default_path
from corepipe.topology.macos import read_macos
from corepipe.topology.model import Cluster, Topology, by_capacity
from corepipe.topology.overlay import file_topology

_SELF_SCALING = ("intel_pstate", "amd-pstate-epp")


def detect(
    root: str | os.PathLike[str] = "/",
    machine_file: str | os.PathLike[str] | None = None,
    restrict_to: Iterable[int] | None = None,
) -> Topology:
    """Find out the topology of a machine.

    Args:
        root: `/` for the machine at hand, or a folder with a saved `sys/` and `proc/`.
        machine_file: a TOML description (docs/topology.md) to use instead of, or laid over, what is detected; for the
            machine at hand the environment variable `COREPIPE_MACHINE` may name one too.
        restrict_to: logical CPUs to stay within, as from `parse_cpu_list("0-3")`; None for no restriction.

    Raises:
        TopologyError: no usable core, an unreadable tree, or `restrict_to` names CPUs that may not be used.
        DocumentError: the machine file is unreadable or invalid.

    Example:
        >>> [str(config) for config in detect().core_configs()]     # doctest: +SKIP
        ['big1', 'big2', 'little1', 'little2']
    """
    path = Path(os.path.abspath(root))
    file = machine_file if machine_file is not None else default_path() if path == Path("/") else None
    wanted = None if restrict_to is None else frozenset(restrict_to)
    if file is None:
        topology, _ = _system(path, wanted)
    else:
        try:
            here, existing = _system(path, None)
        except TopologyError:
            here, existing = None, frozenset[int]()
        topology = file_topology(MachineFile.read(file), str(file), here, existing)
    if wanted is not None:
        topology = _restricted(topology, wanted)
    return _with_quota_warning(topology)


def _system(root: Path, wanted: frozenset[int] | None) -> tuple[Topology, frozenset[int]]:
    """The topology without a machine file, and all CPUs that exist."""
    if root == Path("/") and sys.platform == "darwin":
        topology = read_macos()
        return topology, frozenset(topology.cpus)
    if root == Path("/") and sys.platform not in ("linux", "android"):
        raise TopologyError(
            f"corepipe cannot read the cores of {sys.platform}, only of Linux, Android and macOS; to plan for the "
            f"machine and to simulate, describe it in a machine file (docs/topology.md)"
        )
    machine = read_linux(root)
    topology = describe(machine, wanted)
    if not machine.live:
        topology = replace(topology, pinnable=False, at_hand=False, source=f"sysfs in {root}")
    return topology, frozenset(machine.cpus) | set(machine.offline)


def describe(machine: LinuxMachine, wanted: frozenset[int] | None = None) -> Topology:
    """The topology of a Linux machine, restricted to what the process may use (and to `wanted`).

    Raises:
        TopologyError: nothing is left.
    """
    grouping = group(machine)
    reasons = _unusable(machine)
    usable = frozenset(machine.cpus) - set(reasons)
    if not usable:
        raise TopologyError(
            f"{name_cpus(machine.cpus)} are online, but this process may use none of them "
            f"({', '.join(sorted(set(reasons.values())))}); widen the mask or the cpuset"
        )
    clusters = _kept(grouping.clusters, usable)
    why = "offline, and SMT is switched off" if machine.smt_off else "offline"
    hidden = [f"{name_cpus(machine.offline)}: {why}"] if machine.offline else []
    hidden += _hidden(grouping.clusters, reasons)
    in_use = usable if wanted is None else usable & wanted
    return Topology(
        clusters=clusters,
        machine=machine.description,
        quota_cpus=machine.limits.quota_cpus,
        hidden=tuple(hidden),
        warnings=tuple(_warnings(machine, grouping, usable, in_use)),
    )


def _unusable(machine: LinuxMachine) -> dict[int, str]:
    """Why each online CPU that may not be used is out of reach."""
    cpuset, affinity = machine.limits.cpuset, machine.affinity
    reasons: dict[int, str] = {}
    for cpu in machine.cpus:
        # A live affinity mask is already cut to the cpuset, and is right where a container shows another's cpuset.
        outside = cpuset is not None and cpu not in cpuset
        if outside and not (machine.live and affinity is not None and cpu in affinity):
            reasons[cpu] = "outside this process's cpuset"
        elif affinity is not None and cpu not in affinity:
            reasons[cpu] = "outside this process's affinity mask"
    return reasons


def _kept(clusters: Iterable[Cluster], cpus: frozenset[int]) -> tuple[Cluster, ...]:
    kept = []
    for cluster in clusters:
        cores = tuple(
            replace(core, cpus=left)
            for core in cluster.cores
            if (left := tuple(cpu for cpu in core.cpus if cpu in cpus))
        )
        if cores:
            kept.append(replace(cluster, cores=cores))
    return by_capacity(kept)


def _hidden(clusters: Sequence[Cluster], reasons: Mapping[int, str]) -> list[str]:
    lines = []
    for cluster in clusters:
        for reason in sorted(set(reasons.values())):
            cpus = [cpu for cpu in cluster.cpus if reasons.get(cpu) == reason]
            if cpus:
                whole = "all of " if len(cpus) == len(cluster.cpus) else ""
                lines.append(f"{name_cpus(cpus)} ({whole}{cluster.name}): {reason}")
    return lines


def _restricted(topology: Topology, wanted: frozenset[int]) -> Topology:
    missing = wanted - set(topology.cpus)
    if missing or not wanted:
        what = f"{name_cpus(missing)} cannot be used here" if missing else "an empty list of CPUs was asked for"
        raise TopologyError(f"{what}; choose among {name_cpus(topology.cpus)}")
    left = [(c.name, [cpu for cpu in c.cpus if cpu not in wanted]) for c in topology.clusters]
    hidden = tuple(f"{name_cpus(cpus)} ({name}): not asked for" for name, cpus in left if cpus)
    kept = _kept(topology.clusters, wanted)
    return replace(topology, clusters=kept, hidden=topology.hidden + hidden, restricted=bool(hidden))


def _with_quota_warning(topology: Topology) -> Topology:
    quota, cores = topology.quota_cpus, len(topology.cores)
    if quota is None or quota >= cores:
        return topology
    fewer = f" or restrict corepipe to {int(quota)} core(s) (--cores)" if quota >= 1 else ""
    text = (
        f"a cgroup quota grants {quota:.3g} CPUs of time, fewer than the {cores} usable cores: workers will be "
        f"stopped in mid-frame; raise the quota{fewer}"
    )
    return replace(topology, warnings=(*topology.warnings, text))


def _warnings(
    machine: LinuxMachine, grouping: Grouping, usable: frozenset[int], in_use: frozenset[int]
) -> Iterable[str]:
    if machine.offline and not (machine.smt_off and len(machine.offline) <= len(machine.cpus)):
        yield f"{name_cpus(machine.offline)} offline: the machine has more cores than can be measured now"
    online = len({cpu.siblings for cpu in machine.cpus.values()})
    cores = len({machine.cpus[n].siblings for n in usable})
    if cores < online:
        yield f"only {cores} of {online} online cores may be used by this process"
    if grouping.estimated:
        yield (
            f"the machine does not tell how fast its core types are: capacities are estimated {grouping.estimated}; "
            f"they order the clusters, measured costs do not depend on them"
        )
    if machine.throttled:
        yield (
            f"the chip is throttling now ({', '.join(machine.throttled)}): costs measured now are of a hot chip; "
            f"let it cool first"
        )
    for cluster in grouping.clusters:
        cpus = [machine.cpus[n] for n in cluster.cpus if n in in_use]
        yield from _frequency_warnings(cluster.name, cpus)


def _frequency_warnings(name: str, cpus: Sequence[Cpu]) -> Iterable[str]:
    saving = [cpu for cpu in cpus if cpu.governor == "powersave"]
    if saving:
        where = f"{name} ({name_cpus(cpu.number for cpu in saving)})"
        if all(cpu.driver in _SELF_SCALING for cpu in saving):
            preference = f", preference {saving[0].preference}" if saving[0].preference else ""
            effect = f"lets the frequency follow the load ({saving[0].driver}{preference}), so times vary"
        else:
            effect = "holds the cores at their lowest frequency"
        yield f"the powersave governor of {where} {effect}; for measuring: cpupower frequency-set -g performance"
    capped = [cpu for cpu in cpus if cpu.cap_khz is not None]
    if capped:
        limit, most = (capped[0].cap_khz or 0) / 1000, (capped[0].max_khz or 0) / 1000
        yield (
            f"the frequency of {name} ({name_cpus(c.number for c in capped)}) is capped at {limit:.0f} of "
            f"{most:.0f} MHz (scaling_max_freq): costs measured now hold for this cap only"
        )
