"""What `corepipe doctor` tells: clusters, what may be used, engines, and what would spoil a measurement."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from corepipe import engine
from corepipe.emulate.child import BURNER_PRIORITY
from corepipe.errors import EngineError
from corepipe.report.terminal import plain
from corepipe.runtime.huge_pages import obstacle
from corepipe.topology.cpulist import format_cpu_list, name_cpus
from corepipe.topology.model import Cache, Cluster, Topology

BUSY_SHARE = 0.2
"""A CPU that works more than this without corepipe spoils measurements on it."""


@dataclass(frozen=True)
class Check:
    """Whether something works here; `reason` says why not."""

    works: bool
    reason: str = ""


@dataclass(frozen=True)
class SystemState:
    """What can only be told by trying, or by looking for a while.

    Attributes:
        pinning: whether a thread can be kept on each usable CPU.
        realtime: whether SCHED_FIFO is permitted, which `corepipe emulate` needs.
        huge_pages: whether workers may hold their memory in huge pages.
        engines: version by engine, None where it is not installed.
        busy: share of time in [0, 1] that each usable CPU worked for others while looked at; empty if unknown.
        sample_s: how long it was looked at.
    """

    pinning: Check
    realtime: Check
    huge_pages: Check
    engines: Mapping[str, str | None] = field(default_factory=dict)
    busy: Mapping[int, float] = field(default_factory=dict)
    sample_s: float = 0.0


def examine(topology: Topology, sample_s: float = 0.3) -> SystemState:
    """Try out what this machine permits, and look for `sample_s` seconds which CPUs are busy.

    Of a machine that is not at hand no CPU is looked at.
    """
    shares = sample_busy(sample_s) if topology.pinnable else {}
    return SystemState(
        pinning=check_pinning(topology),
        realtime=check_realtime(),
        huge_pages=check_huge_pages(),
        engines={name: _version(name) for name in engine.names()},
        busy={cpu: share for cpu, share in shares.items() if cpu in topology.cpus},
        sample_s=sample_s,
    )


def check_pinning(topology: Topology) -> Check:
    """Pin a short-lived thread to every usable CPU in turn."""
    if not topology.pinnable:
        return Check(False, "the cores of this system, or of a machine that is not at hand, cannot be chosen")
    if not hasattr(os, "sched_setaffinity"):
        return Check(False, "this system has no call to choose cores")

    def attempt() -> Check:
        for cpu in topology.cpus:
            try:
                os.sched_setaffinity(0, {cpu})
            except (OSError, ValueError) as error:
                return Check(False, f"CPU {cpu}: {getattr(error, 'strerror', None) or error}")
            if os.sched_getaffinity(0) != {cpu}:
                return Check(False, f"CPU {cpu}: the system ignores the request")
        return Check(True)

    return _in_a_thread(attempt)


def check_realtime() -> Check:
    """Give a short-lived thread real-time priority."""
    if not hasattr(os, "sched_setscheduler"):
        return Check(False, "this system has no SCHED_FIFO for threads")

    def attempt() -> Check:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(BURNER_PRIORITY))
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        except OSError as error:
            hint = "run as root, grant CAP_SYS_NICE or raise `ulimit -r`"
            return Check(False, f"{error.strerror or error}; {hint}")
        return Check(True)

    return _in_a_thread(attempt)


def check_huge_pages() -> Check:
    """Whether `corepipe.runtime.huge_pages` finds what it needs."""
    reason = obstacle()
    return Check(not reason, reason)


def sample_busy(seconds: float, stat: Path = Path("/proc/stat")) -> dict[int, float]:
    """The share of time in [0, 1] that each online CPU works, over `seconds`; empty where it cannot be told."""
    before = _ticks(stat)
    if not before:
        return {}
    time.sleep(seconds)
    after = _ticks(stat)
    shares = {}
    for cpu in before.keys() & after.keys():
        total = after[cpu][1] - before[cpu][1]
        if total > 0:
            shares[cpu] = min(1.0, max(0.0, (after[cpu][0] - before[cpu][0]) / total))
    return dict(sorted(shares.items()))


def doctor_warnings(topology: Topology, state: SystemState) -> list[str]:
    """Everything that would spoil a measurement or stop corepipe from working, one sentence each."""
    warnings = list(topology.warnings)
    busy = {cpu: share for cpu, share in state.busy.items() if share > BUSY_SHARE}
    if busy:
        most = max(busy.values())
        verb = "is" if len(busy) == 1 else "are"
        how = f"up to {most:.0%}{'; the work that slows cores here counts too' if topology.emulated else ''}"
        warnings.append(f"{name_cpus(busy)} {verb} busy with other work ({how}): stop other programs before measuring")
    if not state.pinning.works and topology.pinnable:
        warnings.append(f"workers cannot be kept on their cores ({state.pinning.reason})")
    if not any(state.engines.values()):
        warnings.append(f"no engine is installed; install one of {', '.join(engine.names())}")
    return warnings


def render_doctor(topology: Topology, console: Console, state: SystemState | None = None) -> None:
    """Print everything for people.

    Args:
        topology: the machine.
        console: where to print.
        state: from `examine`, which is called if it is not given.
    """
    state = state or examine(topology)
    console.print(plain(topology.machine or "unknown machine", "bold"), plain(f"(from {topology.source})"))
    console.print(_cluster_table(topology))
    console.print(_fact_table(topology, state))
    warnings = doctor_warnings(topology, state)
    for warning in warnings:
        console.print(Text.assemble(("! ", "bold yellow"), plain(warning)))
    if not warnings:
        console.print(Text("nothing found that would spoil a measurement", style="green"))


def doctor_json(topology: Topology, state: SystemState | None = None) -> dict[str, Any]:
    """Everything for programs, units in the keys.

    Args:
        topology: the machine.
        state: from `examine`, which is called if it is not given.
    """
    state = state or examine(topology)
    return {
        "schema_version": 1,
        "command": "doctor",
        "topology": topology_json(topology),
        "pinning": {"works": state.pinning.works, "reason": state.pinning.reason},
        "realtime": {"works": state.realtime.works, "reason": state.realtime.reason},
        "huge_pages": {"works": state.huge_pages.works, "reason": state.huge_pages.reason},
        "engines": dict(state.engines),
        "busy_percent": {str(cpu): round(100 * share, 1) for cpu, share in state.busy.items()},
        "busy_sample_s": state.sample_s,
        "warnings": doctor_warnings(topology, state),
    }


def topology_json(topology: Topology) -> dict[str, Any]:
    """A topology for programs, units in the keys."""
    return {
        "machine": topology.machine,
        "source": topology.source,
        "fingerprint": topology.fingerprint(),
        "pinnable": topology.pinnable,
        "emulated": topology.emulated,
        "quota_cpus": topology.quota_cpus,
        "cpus": list(topology.cpus),
        "clusters": [_cluster_json(cluster) for cluster in topology.clusters],
        "hidden": list(topology.hidden),
        "warnings": list(topology.warnings),
    }


def _cluster_json(cluster: Cluster) -> dict[str, Any]:
    return {
        "name": cluster.name,
        "core_name": cluster.core_name,
        "capacity": cluster.capacity,
        "cores": [
            {"id": core.id, "cpus": list(core.cpus), "package": core.package, "siblings": list(core.siblings)}
            for core in cluster.cores
        ],
        "max_mhz": cluster.max_mhz,
        "current_mhz": cluster.current_mhz,
        "governor": cluster.governor,
        "caches": [
            {"level": cache.level, "size_bytes": cache.size_bytes, "shared_by_cpus": cache.shared_by}
            for cache in cluster.caches
        ],
    }


def _cluster_table(topology: Topology) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("cluster", "cores", "CPUs", "core", "capacity", "max MHz", "now MHz", "governor", "caches"):
        table.add_column(title, justify="right" if title in ("cores", "capacity", "max MHz", "now MHz") else "left")
    for cluster in topology.clusters:
        cells = (
            cluster.name,
            str(len(cluster.cores)),
            _cpu_text(cluster),
            cluster.core_name or "-",
            f"{cluster.capacity:.2f}",
            _mhz(cluster.max_mhz),
            _mhz(cluster.current_mhz),
            cluster.governor or "-",
            ", ".join(map(_cache_text, cluster.caches)) or "-",
        )
        table.add_row(*map(plain, cells))
    return table


def _fact_table(topology: Topology, state: SystemState) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    quota = "none" if topology.quota_cpus is None else f"{topology.quota_cpus:.3g} CPUs"
    cores = len(topology.cores)
    facts = [("may use", f"{cores} core{'' if cores == 1 else 's'}: {name_cpus(topology.cpus)}")]
    facts += [("not usable", line) for line in topology.hidden]
    facts += [
        ("CPU quota", quota),
        ("pinning", "works" if state.pinning.works else f"does not work: {state.pinning.reason}"),
        ("real-time", "permitted" if state.realtime.works else f"no `corepipe emulate` here: {state.realtime.reason}"),
        ("huge pages", "used by workers" if state.huge_pages.works else f"not used: {state.huge_pages.reason}"),
        ("engines", ", ".join(f"{name} {version or '(not installed)'}" for name, version in state.engines.items())),
    ]
    if topology.emulated:
        facts.append(("emulation", "some cores are slowed down by `corepipe emulate`"))
    for name, value in facts:
        table.add_row(name, plain(value))
    return table


def _cpu_text(cluster: Cluster) -> str:
    threads = max(len(core.cpus) for core in cluster.cores)
    return format_cpu_list(cluster.cpus) + (f" ({threads} a core)" if threads > 1 else "")


def _cache_text(cache: Cache) -> str:
    return cache.text + (f" / {cache.shared_by} CPUs" if cache.shared_by > 1 else "")


def _mhz(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _version(name: str) -> str | None:
    from corepipe.api import engine_name

    try:
        return engine_name(name).version
    except EngineError:
        return None


def _in_a_thread(attempt: Callable[[], Check]) -> Check:
    """Run in a thread of its own: on Linux affinity and scheduling class belong to the thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(attempt).result()


def _ticks(stat: Path) -> dict[int, tuple[int, int]]:
    """Busy and total ticks by CPU; `user` to `steal`, as `guest` is part of `user`."""
    ticks = {}
    try:
        lines = stat.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    for line in lines:
        name, *values = line.split()[:9] or [""]
        if name[:3] == "cpu" and name[3:].isdecimal() and len(values) >= 4 and all(v.isdecimal() for v in values):
            numbers = [int(v) for v in values]
            idle = sum(numbers[3:5])
            ticks[int(name[3:])] = (sum(numbers) - idle, sum(numbers))
    return ticks
