"""macOS: clusters from `sysctl hw.perflevel*`; cores cannot be chosen there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping, Sequence

from corepipe.errors import TopologyError
from corepipe.topology.grouping import name_levels
from corepipe.topology.model import Cache, Cluster, Core, Topology

NOT_PINNABLE = (
    "macOS cannot keep a process on chosen cores: clusters are shown as they are, but the system decides where work "
    "runs, so plans for single clusters cannot be held to them"
)
SLOWEST_CAPACITY = 0.4
"""Taken for the efficiency cores, of which macOS tells no speed (Apple M1: about a third of a performance core)."""

Runner = Callable[[Sequence[str]], str]


def read_macos(run: Runner | None = None) -> Topology:
    """Read the clusters of a Mac.

    CPU numbers are labels only, counted from the fastest cluster on; macOS does not tell the real ones.

    Args:
        run: runs a command and returns what it prints; by default a subprocess.

    Raises:
        TopologyError: sysctl fails or prints no core count.
    """
    run = run or _run
    values = _parse(run(["/usr/sbin/sysctl", "-a"]))
    count = _number(values, "hw.nperflevels") or 1
    levels = [f"hw.perflevel{i}" for i in range(min(count, 8)) if _number(values, f"hw.perflevel{i}.physicalcpu")]
    levels = levels or ["hw"]
    clusters: list[Cluster] = []
    first = 0
    names = name_levels([(_capacity(i, len(levels)), level) for i, level in enumerate(levels)])
    for index, (name, level) in enumerate(zip(names, levels, strict=True)):
        physical = _number(values, f"{level}.physicalcpu") or 0
        logical = _number(values, f"{level}.logicalcpu") or physical
        if not 0 < physical <= logical <= 4096:
            raise TopologyError(f"sysctl tells no core count in {level}.physicalcpu; describe the machine in a file")
        threads = logical // physical
        cores = []
        for core in range(physical):
            cpus = tuple(range(first + core * threads, first + (core + 1) * threads))
            cores.append(Core(cpus, 0, cpus))
        first += physical * threads
        clusters.append(
            Cluster(
                name=name,
                cores=tuple(cores),
                capacity=_capacity(index, len(levels)),
                core_name=values.get(f"{level}.name", "")[:40],
                max_mhz=_mhz(values),
                caches=_caches(values, level, threads),
            )
        )
    warnings = [NOT_PINNABLE]
    if len(clusters) > 1:
        warnings.append("macOS does not tell how fast its core types are: their capacities are rough estimates")
    return Topology(
        clusters=tuple(clusters),
        pinnable=False,
        source="sysctl",
        machine=values.get("machdep.cpu.brand_string", "")[:120] or values.get("hw.model", "")[:120],
        warnings=tuple(warnings),
    )


def _run(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise TopologyError(f"{command[0]} failed ({error}); describe the machine in a machine file") from None


def _parse(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines() if line.startswith(("hw.", "machdep.cpu.")))
    return {key.strip(): value.strip() for key, _, value in pairs}


def _number(values: Mapping[str, str], key: str) -> int | None:
    text = values.get(key, "")
    return int(text) or None if re.fullmatch(r"[0-9]{1,15}", text, re.ASCII) else None


def _capacity(index: int, count: int) -> float:
    return round(1 - (1 - SLOWEST_CAPACITY) * index / max(1, count - 1), 4)


def _mhz(values: Mapping[str, str]) -> float | None:
    hertz = _number(values, "hw.cpufrequency_max")
    return hertz / 1e6 if hertz else None


def _caches(values: Mapping[str, str], level: str, threads: int) -> tuple[Cache, ...]:
    shared = _number(values, f"{level}.cpusperl2") or threads
    found = (
        (1, _number(values, f"{level}.l1dcachesize"), threads),
        (2, _number(values, f"{level}.l2cachesize"), shared),
        (3, _number(values, f"{level}.l3cachesize"), _number(values, f"{level}.cpusperl3") or shared),
    )
    return tuple(Cache(depth, size, by) for depth, size, by in found if size)
