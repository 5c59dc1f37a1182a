"""What a machine with slowed cores looks like to corepipe, and the machine file that tells it so."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from corepipe.emulate.speeds import format_slow
from corepipe.errors import EmulationError
from corepipe.topology.cpulist import name_cpus
from corepipe.topology.grouping import name_levels
from corepipe.topology.model import Cluster, Core, Topology

_LONGEST_LABEL = 120
_PREFIX, _SUFFIX = "corepipe-emulate-", ".toml"


def speed_by_core(topology: Topology, speeds: Mapping[int, float]) -> dict[Core, float]:
    """The cores to slow. A core is slowed as a whole: naming one of its CPUs (SMT) is enough.

    Args:
        topology: this machine as it is.
        speeds: speed by logical CPU.

    Raises:
        EmulationError: a CPU is not usable here, or two CPUs of one core have two speeds.
    """
    core_of = {cpu: core for core in topology.cores for cpu in core.cpus}
    unusable = sorted(set(speeds) - set(core_of))
    if unusable:
        raise EmulationError(
            f"{name_cpus(unusable)} cannot be slowed: not there, offline or not allowed for this process "
            f"(usable: {name_cpus(core_of)}); see `corepipe doctor`"
        )
    by_core: dict[Core, float] = {}
    for cpu, speed in speeds.items():
        core = core_of[cpu]
        if by_core.setdefault(core, speed) != speed:
            raise EmulationError(
                f"{name_cpus(core.cpus)} are one core and cannot have two speeds ({by_core[core]:g} and {speed:g}); "
                f"give one speed for the core"
            )
    return by_core


def slowed_topology(topology: Topology, speeds: Mapping[int, float]) -> Topology:
    """The machine with some cores slowed: each cluster is divided by speed, capacities and names follow.

    Args:
        topology: this machine as it is.
        speeds: speed by logical CPU, as a fraction of its own.

    Raises:
        EmulationError: as `speed_by_core`.
    """
    by_core = speed_by_core(topology, speeds)
    parts: list[tuple[float, Cluster]] = []
    for cluster in topology.clusters:
        for speed in sorted({by_core.get(core, 1.0) for core in cluster.cores}, reverse=True):
            label = _label(cluster.core_name, f"slowed to {speed:g}") if speed < 1 else cluster.core_name
            cores = tuple(core for core in cluster.cores if by_core.get(core, 1.0) == speed)
            parts.append((cluster.capacity * speed, replace(cluster, cores=cores, core_name=label)))
    top = max(capacity for capacity, _ in parts)
    parts = [(max(0.001, round(capacity / top, 4)), part) for capacity, part in parts]
    parts.sort(key=lambda part: (-part[0], part[1].cores[0].id))
    names = name_levels([(capacity, part.core_name) for capacity, part in parts])
    clusters = tuple(
        replace(part, name=name, capacity=capacity) for name, (capacity, part) in zip(names, parts, strict=True)
    )
    machine = _label(topology.machine, f"slowed {format_slow(speeds)}")
    return replace(topology, clusters=clusters, machine=machine, emulated=True)


def _label(text: str, addition: str) -> str:
    """Both together, within what a machine file takes."""
    addition = addition[:_LONGEST_LABEL]
    return f"{text[: max(0, _LONGEST_LABEL - len(addition) - 1)]} {addition}".strip()


@contextmanager
def machine_file(text: str) -> Iterator[Path]:
    """A temporary file that holds `text`; others may read it (the command may run as another user), not write it.

    Its owner keeps a lock on it, so that files of owners that were killed can be told apart; they are removed here.
    """
    folder = Path(tempfile.gettempdir())
    _remove_orphans(folder)
    descriptor, draft = tempfile.mkstemp(prefix=".corepipe-", dir=folder)
    path = folder / f"{_PREFIX}{os.path.basename(draft).removeprefix('.corepipe-')}{_SUFFIX}"
    owner = os.getpid()
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
            file.flush()
            os.rename(draft, path)
            yield path
    finally:
        if os.getpid() == owner:
            path.unlink(missing_ok=True)
            Path(draft).unlink(missing_ok=True)


def _remove_orphans(folder: Path) -> None:
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        except OSError:
            pass
        finally:
            os.close(descriptor)
