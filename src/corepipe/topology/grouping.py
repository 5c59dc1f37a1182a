"""From single CPUs to clusters: which cores are alike, how fast each kind is, and what to call it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from corepipe.topology.cpunames import IN_ORDER_PER_MHZ, core_name, per_mhz
from corepipe.topology.linux import Cpu, LinuxMachine
from corepipe.topology.model import Cache, Cluster, Core

SAME_KIND = 0.85
"""Cores of one type whose speeds differ by less are alike: firmware favours some cores by up to 10 % ("preferred")."""
SAME_LEVEL = 0.93
"""Clusters of one type whose speeds differ by less share a level name (`big`, `big-b`)."""
_SAME_DOMAIN_SPEED = 0.95
_KIND_NAMES = {"core": "P-core", "atom": "E-core", "lowpower": "LP-E-core"}


@dataclass(frozen=True)
class Grouping:
    """All clusters of a machine, with every online core in them.

    Attributes:
        clusters: by descending capacity.
        estimated: how the capacities were estimated, in words; empty if the machine told them.
    """

    clusters: tuple[Cluster, ...]
    estimated: str = ""


@dataclass(frozen=True)
class _Core:
    """A physical core as seen through its CPUs; `first` stands for it where they agree."""

    cpus: tuple[Cpu, ...]
    type: Hashable = None
    speed: float = 1.0

    @property
    def first(self) -> Cpu:
        return self.cpus[0]


def group(machine: LinuxMachine) -> Grouping:
    """Divide the online cores into clusters.

    Cores are told apart by type (MIDR; Intel's own lists; else caches together with clock), within a type by a gap in
    speed, and on machines other than x86 by frequency domain where there is more than one kind of core. Clock domains
    of single cores say nothing (every x86 core has its own), and alike domains of an all-alike machine are one cluster.
    """
    cores = [
        _Core(tuple(machine.cpus[n] for n in cpu.siblings))
        for cpu in machine.cpus.values()
        if cpu.siblings[0] == cpu.number
    ]
    types = _types(cores, x86=bool(machine.vendor))
    speeds, estimated = _speeds(cores, several_types=len(set(types)) > 1)
    cores = [_Core(c.cpus, t, s) for c, t, s in zip(cores, types, speeds, strict=True)]
    groups = [part for same in _by(cores, lambda c: c.type) for part in _split_at_gaps(same, SAME_KIND)]
    if not machine.vendor:
        several = len(groups) > 1
        groups = [part for same in groups for part in _split_by_domain(same, several=several)]
    top = max(map(_speed, groups))

    def capacity(group: Sequence[_Core]) -> float:
        return max(0.001, round(_speed(group) / top, 4))

    # By the rounded capacities, which machine files hold: read again, they give the same order.
    groups.sort(key=lambda g: (-capacity(g), g[0].first.number))
    names = name_levels([(capacity(g), g[0].type) for g in groups])
    clusters = tuple(
        _cluster(name, g, capacity(g), _label(machine, g, groups)) for name, g in zip(names, groups, strict=True)
    )
    return Grouping(clusters, estimated if len(set(types)) > 1 else "")


def name_levels(clusters: Sequence[tuple[float, Hashable]]) -> list[str]:
    """Names for clusters given as (capacity, type), fastest first.

    One cluster is `cpu`. Otherwise the fastest level is `prime` (`big` where there are only two), the slowest `little`,
    all between are `big`; clusters of one type and nearly one speed share a level. Repeated names get `-b`, `-c`, ...

    Example:
        >>> name_levels([(1.0, "A76"), (0.98, "A76"), (0.5, "A55")])
        ['big', 'big-b', 'little']
    """
    if len(clusters) == 1:
        return ["cpu"]
    levels = [0]
    lead_capacity, lead_type = clusters[0]
    for capacity, kind in clusters[1:]:
        same = kind == lead_type and capacity >= SAME_LEVEL * lead_capacity
        levels.append(levels[-1] + (not same))
        if not same:
            lead_capacity, lead_type = capacity, kind
    last = levels[-1]
    seen: Counter[str] = Counter()
    names = []
    for level in levels:
        base = "prime" if level == 0 and last > 1 else "little" if level == last > 0 else "big"
        names.append(base + suffix(seen[base]))
        seen[base] += 1
    return names


def suffix(index: int) -> str:
    """What tells the further ones of a name apart: nothing, `-b`, `-c`, ..., `-z`, `-ba`, ..."""
    letters = ""
    number = index
    while number:
        number, digit = divmod(number, 26)
        letters = chr(ord("a") + digit) + letters
    return f"-{letters}" if letters else ""


def _by(cores: Iterable[_Core], key: Callable[[_Core], Hashable]) -> list[list[_Core]]:
    parts: defaultdict[Hashable, list[_Core]] = defaultdict(list)
    for core in cores:
        parts[key(core)].append(core)
    return list(parts.values())


def _speed(cores: Sequence[_Core]) -> float:
    return median(core.speed for core in cores)


def _types(cores: Sequence[_Core], *, x86: bool) -> list[Hashable]:
    """What kind each core is; cores of which nothing is told count as the only known kind, if there is just one."""
    if x86 and not any(core.first.kind for core in cores):
        return _types_by_cache(cores)
    types: list[Hashable] = [(core.first.kind or None) if x86 else core.first.midr for core in cores]
    known = set(types) - {None}
    return [next(iter(known))] * len(cores) if len(known) == 1 else types


def _types_by_cache(cores: Sequence[_Core]) -> list[Hashable]:
    """x86 without Intel's lists: other first- and second-level caches and another clock make another type."""
    marks: list[Hashable] = []
    for core in cores:
        sizes = {cache.level: cache.size_bytes for cache in core.first.caches}
        if 1 not in sizes or 2 not in sizes or core.first.max_khz is None:
            return [None] * len(cores)
        marks.append((sizes[1], sizes[2]))
    clocks = {
        mark: median(c.first.max_khz or 0 for c, m in zip(cores, marks, strict=True) if m == mark)
        for mark in set(marks)
    }
    ordered = sorted(clocks.values())
    if any(a > _SAME_DOMAIN_SPEED * b for a, b in pairwise(ordered)):
        return [None] * len(cores)
    return marks


def _speeds(cores: Sequence[_Core], *, several_types: bool) -> tuple[list[float], str]:
    """A relative speed for each core, and how it was estimated if the machine does not tell it."""
    capacities = _told(cores, lambda c: c.capacity)
    if capacities and len(set(capacities)) > 1:
        return capacities, ""
    if several_types:
        levels = _told(cores, lambda c: c.highest_perf)
        if levels and len(set(levels)) > 1:
            return levels, ""
    factors = [per_mhz(*core.first.midr) if core.first.midr else 1.0 for core in cores]
    rough = f" and {IN_ORDER_PER_MHZ} of the work per MHz for in-order cores" if len(set(factors)) > 1 else ""
    clocks = _told(cores, lambda c: c.max_khz)
    if clocks:
        return [c * f for c, f in zip(clocks, factors, strict=True)], f"from the maximum frequencies{rough}"
    return factors, f"without knowing any frequency{rough}"


def _told(cores: Sequence[_Core], read: Callable[[Cpu], int | None]) -> list[float]:
    """One value per core (the highest of its CPUs'), empty if any core lacks it."""
    values = [max((read(cpu) or 0 for cpu in core.cpus), default=0) for core in cores]
    return [float(v) for v in values] if all(values) else []


def _split_at_gaps(cores: Sequence[_Core], ratio: float) -> list[list[_Core]]:
    ordered = sorted(cores, key=lambda c: (-c.speed, c.first.number))
    parts = [[ordered[0]]]
    for core in ordered[1:]:
        if core.speed < ratio * parts[-1][-1].speed:
            parts.append([])
        parts[-1].append(core)
    return [sorted(part, key=lambda c: c.first.number) for part in parts]


def _split_by_domain(cores: Sequence[_Core], *, several: bool) -> list[list[_Core]]:
    domains = _by(cores, lambda c: c.first.domain or None)
    speeds = [_speed(domain) for domain in domains]
    shared = any(len(domain) > 1 for domain in domains)
    if shared and (several or min(speeds) < _SAME_DOMAIN_SPEED * max(speeds)):
        return domains
    return [list(cores)]


def _label(machine: LinuxMachine, cores: Sequence[_Core], groups: Sequence[Sequence[_Core]]) -> str:
    first = cores[0].first
    if first.midr:
        return core_name(*first.midr)
    if first.kind:
        return _KIND_NAMES[first.kind]
    types = list(dict.fromkeys(g[0].type for g in groups))
    if machine.vendor == "GenuineIntel" and len(types) == 2:
        return ("P-core", "E-core")[types.index(cores[0].type)]
    return ""


def _cluster(name: str, cores: Sequence[_Core], capacity: float, label: str) -> Cluster:
    cpus = [cpu for core in cores for cpu in core.cpus]
    limits = [limit for cpu in cpus if (limit := cpu.cap_khz) is not None]
    current = [cpu.current_khz for cpu in cpus if cpu.current_khz]
    return Cluster(
        name=name,
        cores=tuple(
            Core(tuple(c.number for c in core.cpus), core.first.package, tuple(c.number for c in core.cpus))
            for core in sorted(cores, key=lambda c: c.first.number)
        ),
        capacity=capacity,
        core_name=label,
        max_mhz=max((cpu.max_khz / 1000 for cpu in cpus if cpu.max_khz), default=None),
        current_mhz=round(median(current) / 1000, 3) if current else None,
        governor=_commonest(cpu.governor for cpu in cpus),
        limit_mhz=min(limits) / 1000 if limits else None,
        caches=_common_caches(cpus),
    )


def _commonest(values: Iterable[str | None]) -> str | None:
    counts = Counter(value for value in values if value)
    return counts.most_common(1)[0][0] if counts else None


def _common_caches(cpus: Sequence[Cpu]) -> tuple[Cache, ...]:
    """For each level the cache that most CPUs of the cluster see."""
    counts: Mapping[int, Counter[Cache]] = defaultdict(Counter)
    for cpu in cpus:
        for cache in cpu.caches:
            counts[cache.level][cache] += 1
    return tuple(counts[level].most_common(1)[0][0] for level in sorted(counts))
