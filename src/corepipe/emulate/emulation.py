"""Cores slowed for as long as a `with` block lasts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from corepipe.emulate.burners import Burners, SlowedCore
from corepipe.emulate.machine import machine_file, slowed_topology, speed_by_core
from corepipe.emulate.speeds import check_speeds
from corepipe.errors import EmulationError
from corepipe.topology import ENVIRONMENT, detect, to_toml
from corepipe.topology.machine_file import MachineFile, default_path
from corepipe.topology.model import Topology

ACCEPTED_ERROR = 0.10
_WORTH_A_WARNING = 0.03


@dataclass
class Emulation:
    """A running emulation.

    Attributes:
        speeds: asked speed by logical CPU, as a fraction of its own; all CPUs of a slowed core are in it.
        measured: the speed that the calibrated loop reached on it.
        topology: what the machine looks like to corepipe now.
        machine_file: the machine file that says so; `COREPIPE_MACHINE` names it.
        burner_pids: the processes that take the time away.
        warnings: what is not quite as asked, one sentence each.
    """

    speeds: dict[int, float]
    measured: dict[int, float]
    topology: Topology
    machine_file: Path
    burner_pids: tuple[int, ...]
    warnings: list[str] = field(default_factory=list)
    _burners: Burners = field(repr=False, kw_only=True)

    def pause(self) -> None:
        """Let the cores run at full speed until `resume`."""
        self._burners.pause()

    def resume(self) -> None:
        """Slow the cores again after `pause`."""
        self._burners.resume()

    def check(self) -> None:
        """See whether the cores are still slowed.

        Raises:
            EmulationError: a burner has ended, so what was measured since is not valid.
        """
        self._burners.check()


@contextmanager
def slowed(slow: Mapping[int, float]) -> Iterator[Emulation]:
    """Slow CPUs for everyone who runs on them, this process included, until the block ends.

    A real-time process pinned to each CPU takes the rest of its time, in slices of at most 1 ms; a calibrated loop
    sets the share so that the work done there is the asked fraction (one to two seconds; up to five where others
    disturb it). A core with several CPUs (SMT) is slowed as a whole. Inside the block `COREPIPE_MACHINE` names a
    machine file in which the slowed cores are a cluster of their own; a machine file that was in force before describes
    the machine to slow, so blocks on different CPUs nest.

    Args:
        slow: speed by logical CPU, as a fraction of its own speed.

    Raises:
        EmulationError: not Linux, no right to real-time scheduling, a CPU that is not usable or already slowed, a speed
            out of range or not reached within 10 %; on leaving the block, if a burner ended before it.

    Example:
        >>> with slowed({1: 0.4}) as emulation:  # doctest: +SKIP
        ...     emulation.measured
        {1: 0.398}
    """
    if not sys.platform.startswith("linux"):
        raise EmulationError(f"cores can be slowed on Linux only, and this is {sys.platform}; use a Linux machine")
    limit = _real_time_limit()
    check_speeds(slow, lowest=round(1 - limit + 0.01, 4))
    machine = detect()
    if not machine.pinnable:
        raise EmulationError(
            f"{machine.source} describes a machine that is not at hand: its cores cannot be slowed; unset {ENVIRONMENT}"
        )
    by_core = speed_by_core(machine, slow)
    topology = slowed_topology(machine, slow)
    cores = [SlowedCore(core.cpus, speed, max_share=limit - 0.005) for core, speed in by_core.items()]
    owner = os.getpid()
    burners = Burners(cores)
    try:
        measured = burners.start()
        burners.check()
        with machine_file(to_toml(topology, override=_lies_over())) as path, _environment(ENVIRONMENT, str(path)):
            emulation = Emulation(
                speeds={cpu: core.speed for core in cores for cpu in core.cpus},
                measured={cpu: value for core, value in zip(cores, measured, strict=True) for cpu in core.cpus},
                topology=topology,
                machine_file=path,
                burner_pids=burners.pids,
                warnings=[w for core, value in zip(cores, measured, strict=True) for w in _judge(core, value)],
                _burners=burners,
            )
            yield emulation
        if os.getpid() == owner:
            emulation.warnings += burners.drift()
            burners.check()
    finally:
        if os.getpid() == owner:
            burners.stop()


def _lies_over() -> bool:
    """Whether CPUs that the file of the slowed machine does not name belong to it: not where a file names them all."""
    path = default_path()
    return path is None or MachineFile.read(path).override


def _judge(core: SlowedCore, measured: float) -> Iterator[str]:
    error = abs(measured - core.speed) / core.speed
    if error > ACCEPTED_ERROR:
        raise EmulationError(
            f"{core.name} was asked to run at {core.speed:.2f} of its speed but runs at {measured:.3f}; "
            f"is other real-time work on it, or is the machine (or the host of a virtual one) overloaded? "
            f"Try again when it is quiet, or another speed"
        )
    if error > _WORTH_A_WARNING:
        yield f"{core.name} runs at {measured:.3f} of its speed, {error:.0%} off the {core.speed:.2f} asked"


def _real_time_limit() -> float:
    """The share of a CPU that the kernel leaves to real-time work; at most 0.95.

    Kernels from 6.12 on ignore the limit and keep 5 % for other work by a fair server instead.
    """
    try:
        runtime = int(Path("/proc/sys/kernel/sched_rt_runtime_us").read_text())
        period = int(Path("/proc/sys/kernel/sched_rt_period_us").read_text())
    except (OSError, ValueError):
        return 0.95
    limit = min(runtime / period, 0.95) if runtime >= 0 else 0.95
    if limit < 0.05:
        raise EmulationError(
            f"cores cannot be slowed: the kernel grants real-time work {limit:.1%} of a CPU only; "
            f"set kernel.sched_rt_runtime_us to 950000 (sysctl)"
        )
    return limit


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
