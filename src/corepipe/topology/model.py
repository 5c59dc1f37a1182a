"""What a machine looks like to corepipe: clusters of cores, ordered by capacity."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from corepipe.errors import TopologyError, UnknownNameError

ALL_CORES = "all"
"""The reserved cluster name of a config over all cores of a machine with several clusters, such as `all8`."""


@dataclass(frozen=True, order=True)
class CoreConfig:
    """A cluster and a number of its cores, written `big4` or `little2`.

    Example:
        >>> CoreConfig.parse("big4")
        CoreConfig(cluster='big', count=4)
    """

    cluster: str
    count: int

    def __str__(self) -> str:
        return f"{self.cluster}{self.count}"

    @classmethod
    def parse(cls, text: str) -> CoreConfig:
        """Read `big4`.

        Raises:
            TopologyError: `text` is not a cluster name followed by a positive count.
        """
        match = re.fullmatch(r"([a-z][a-z_-]*)([1-9][0-9]{0,8})", text)
        if not match:
            raise TopologyError(f"{text!r} is not a core config; write a cluster and a count, as in 'big4'")
        return cls(match[1], int(match[2]))


@dataclass(frozen=True)
class Core:
    """One physical core.

    Attributes:
        cpus: its logical CPU numbers that this process may use, ascending (more than one with SMT).
        package: physical socket number.
        siblings: all its logical CPUs, those that this process may not use included.
    """

    cpus: tuple[int, ...]
    package: int = 0
    siblings: tuple[int, ...] = ()

    @property
    def id(self) -> int:
        """The lowest logical CPU number: what plans name a core by."""
        return self.cpus[0]


@dataclass(frozen=True)
class Cache:
    """One cache as its cluster sees it: `level`, bytes, and how many CPUs share it."""

    level: int
    size_bytes: int
    shared_by: int

    @property
    def text(self) -> str:
        """`L2 512 KiB`."""
        size = self.size_bytes / 1024
        return f"L{self.level} " + (f"{size / 1024:.3g} MiB" if size >= 1024 else f"{size:.3g} KiB")


@dataclass(frozen=True)
class Cluster:
    """Cores of one kind that share a frequency domain.

    Attributes:
        name: `prime`, `big`, `little`; `cpu` where all cores are alike; `big-b` and so on for further ones.
        cores: ordered by CPU number.
        capacity: speed of one core relative to the fastest core of the machine, in (0, 1].
        core_name: such as `Cortex-A76`; empty if unknown.
        max_mhz, current_mhz, governor: from cpufreq, None where the machine does not tell.
        limit_mhz: the highest frequency allowed at present, None where that is `max_mhz`.
        caches: ordered by level.
    """

    name: str
    cores: tuple[Core, ...]
    capacity: float = 1.0
    core_name: str = ""
    max_mhz: float | None = None
    current_mhz: float | None = None
    governor: str | None = None
    limit_mhz: float | None = None
    caches: tuple[Cache, ...] = ()

    @property
    def cpus(self) -> tuple[int, ...]:
        """All logical CPUs of the cluster that this process may use."""
        return tuple(cpu for core in self.cores for cpu in core.cpus)


def by_capacity(clusters: Iterable[Cluster]) -> tuple[Cluster, ...]:
    """Clusters as a topology orders them: the fastest first, of equally fast ones the one with the first core."""
    return tuple(sorted(clusters, key=lambda cluster: (-cluster.capacity, cluster.cores[0].id)))


@dataclass(frozen=True)
class Topology:
    """The machine: clusters by descending capacity, restricted to what this process may use.

    Attributes:
        clusters: at least one, each with at least one core.
        pinnable: whether the system can keep a process on chosen cores (not on macOS).
        at_hand: whether the cores are those of the machine that this runs on, so that it can be measured.
        source: where it was read: `sysfs`, `sysctl`, or the path of a machine file.
        machine: a short description (CPU model, board).
        quota_cpus: CPUs' worth of time that a cgroup grants, None if unlimited.
        emulated: some cores are slowed down by `corepipe emulate`.
        hidden: what exists but may not be used, in words (offline cores, a cpuset).
        warnings: what would spoil a measurement, one sentence each.
        restricted: whether the user asked for some of the cores only (`--cores`).
    """

    clusters: tuple[Cluster, ...]
    pinnable: bool = True
    at_hand: bool = True
    source: str = "sysfs"
    machine: str = ""
    quota_cpus: float | None = None
    emulated: bool = False
    hidden: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())
    restricted: bool = False

    def __post_init__(self) -> None:
        if not self.clusters or any(not cluster.cores for cluster in self.clusters):
            raise TopologyError(f"{self.source}: no usable core found; see `corepipe doctor`")

    @property
    def cores(self) -> tuple[Core, ...]:
        """All usable cores, fastest cluster first."""
        return tuple(core for cluster in self.clusters for core in cluster.cores)

    @property
    def cpus(self) -> tuple[int, ...]:
        """All usable logical CPUs."""
        return tuple(cpu for core in self.cores for cpu in core.cpus)

    def cluster(self, name: str) -> Cluster:
        """The cluster of that name.

        Raises:
            UnknownNameError: there is none.
        """
        for cluster in self.clusters:
            if cluster.name == name:
                return cluster
        raise UnknownNameError("cluster", name, [c.name for c in self.clusters])

    def cpus_of(self, core_ids: Iterable[int]) -> tuple[int, ...]:
        """The affinity mask (logical CPUs) of cores given by id.

        Raises:
            TopologyError: this machine has no such core, or may not use it.
        """
        by_id = {core.id: core for core in self.cores}
        cpus: list[int] = []
        for core_id in core_ids:
            if core_id not in by_id:
                known = ", ".join(map(str, sorted(by_id)))
                raise TopologyError(f"core {core_id} is not usable here (usable: {known})")
            cpus.extend(by_id[core_id].cpus)
        return tuple(sorted(cpus))

    def check_at_hand(self) -> None:
        """Refuse to run or measure on a machine that is only described.

        Raises:
            TopologyError: these are not the cores of the machine that this runs on.
        """
        if not self.at_hand:
            raise TopologyError(
                f"{self.source}: describes a machine that is not at hand: plans for it can be made and simulated, not "
                f"measured or run; unset COREPIPE_MACHINE, or go on on that machine"
            )

    def core_configs(self) -> tuple[CoreConfig, ...]:
        """Every (cluster, count), fastest cluster first, counts ascending."""
        return tuple(
            CoreConfig(cluster.name, count) for cluster in self.clusters for count in range(1, len(cluster.cores) + 1)
        )

    def fingerprint(self) -> str:
        """16 hex digits that change when costs measured on this machine no longer hold."""
        parts = [self.machine, str(self.quota_cpus)]
        parts += [
            f"{c.name}|{[k.cpus for k in c.cores]}|{c.capacity:.3f}|{c.core_name}"
            f"|{c.max_mhz}|{c.governor}|{c.limit_mhz}"
            for c in self.clusters
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
