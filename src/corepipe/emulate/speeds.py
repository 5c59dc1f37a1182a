"""Which CPUs to slow to what speed, as people write it: `1:0.4`, `4-7:0.4,2:0.5`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from corepipe.errors import EmulationError, UsageError
from corepipe.topology.cpulist import format_cpu_list, parse_cpu_list

MAX_SPEED = 0.99
"""A slice that takes less than this leaves is no longer than what waking up for it costs."""

_EXAMPLE = "write CPUs and a speed, as in '1:0.4' or '4-7:0.4,2:0.5'"
_SPEED = re.compile(r"[0-9]{1,3}(\.[0-9]{1,9})?|\.[0-9]{1,9}", re.ASCII)


def parse_slow(*texts: str) -> dict[int, float]:
    """Read `--slow` options into speed by CPU.

    Each text is a list of `CPUS:SPEED`, where CPUS is a number or a range and SPEED a fraction of the CPU's own;
    CPUs without a speed share the next one (`0,2-3:0.4`). Whether a speed can be had is decided by `slowed`.

    Raises:
        UsageError: a text is not such a list, or names a CPU twice.

    Example:
        >>> parse_slow("4-5:0.4", "2:0.5")
        {4: 0.4, 5: 0.4, 2: 0.5}
    """
    speeds: dict[int, float] = {}
    for text in texts:
        waiting: list[str] = []
        for item in text.split(","):
            cpus, colon, speed = (part.strip() for part in item.partition(":"))
            waiting.append(cpus)
            if not colon:
                continue
            if not _SPEED.fullmatch(speed):
                raise UsageError(f"{speed[:40]!r} in --slow {text[:80]!r} is not a speed; {_EXAMPLE}")
            for part in waiting:
                for cpu in _cpus(part, text):
                    if cpu in speeds:
                        raise UsageError(f"CPU {cpu} has two speeds in --slow; name every CPU once")
                    speeds[cpu] = float(speed)
            waiting = []
        if waiting:
            raise UsageError(f"{','.join(waiting)[:40]!r} in --slow {text[:80]!r} has no speed; {_EXAMPLE}")
    return speeds


def check_speeds(speeds: Mapping[int, float], lowest: float) -> None:
    """Refuse what no burner can give.

    Raises:
        EmulationError: there is no CPU, or a speed is not in [lowest, MAX_SPEED].
    """
    if not speeds:
        raise EmulationError("no CPU to slow down was given; name at least one, as in 1:0.4")
    for cpu, speed in speeds.items():
        if not lowest <= speed <= MAX_SPEED:
            why = f" (real-time threads may take at most {1 - lowest + 0.01:.0%} here)" if 0 < speed < lowest else ""
            raise EmulationError(
                f"CPU {cpu} cannot be slowed to {speed:g} of its speed{why}; "
                f"ask for a speed from {lowest:g} to {MAX_SPEED:g}"
            )


def format_slow(speeds: Mapping[int, float]) -> str:
    """The reverse of `parse_slow`.

    Example:
        >>> format_slow({4: 0.4, 5: 0.4, 2: 0.5})
        '2:0.5,4-5:0.4'
    """
    by_speed: dict[float, list[int]] = {}
    for cpu in sorted(speeds):
        by_speed.setdefault(speeds[cpu], []).append(cpu)
    return ",".join(f"{format_cpu_list(cpus)}:{speed:.12g}" for speed, cpus in by_speed.items())


def _cpus(part: str, text: str) -> tuple[int, ...]:
    try:
        if ":" in part:
            raise UsageError("")
        return parse_cpu_list(part)
    except UsageError:
        raise UsageError(f"{part[:40]!r} in --slow {text[:80]!r} names no CPUs; {_EXAMPLE}") from None
