"""CPU lists as Linux and people write them: `0-3,8`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from corepipe.errors import UsageError

MAX_CPU = 65535
"""Higher CPU numbers are taken for a mistake (Linux knows 8192 at most)."""

_ITEM = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9})(?::([0-9]{1,9}))?)?", re.ASCII)


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Read `0-3,8` (also `0-7:2`, every second one) into CPU numbers, ascending and distinct.

    Raises:
        UsageError: `text` is empty or is not such a list.

    Example:
        >>> parse_cpu_list("8,0-3")
        (0, 1, 2, 3, 8)
    """
    cpus: set[int] = set()
    listed = 0
    for item in text.split(","):
        match = _ITEM.fullmatch(item.strip())
        first = int(match[1]) if match else 0
        last = int(match[2]) if match and match[2] else first
        step = int(match[3]) if match and match[3] else 1
        listed += max(last - first, 0) // max(step, 1) + 1
        if not match or last < first or last > MAX_CPU or step < 1 or listed > MAX_CPU + 1:
            raise UsageError(f"{_short(text)} is not a list of CPUs; write numbers and ranges, as in '0-3,8'")
        cpus.update(range(first, last + 1, step))
    return tuple(sorted(cpus))


def format_cpu_list(cpus: Iterable[int]) -> str:
    """Write CPU numbers as `0-3,8`; the empty list gives an empty text.

    Example:
        >>> format_cpu_list([0, 1, 2, 3, 8])
        '0-3,8'
    """
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def name_cpus(cpus: Iterable[int]) -> str:
    """`CPU 3` or `CPUs 0-3,8`, for messages."""
    cpus = sorted(set(cpus))
    return f"CPU{'' if len(cpus) == 1 else 's'} {format_cpu_list(cpus) or 'none'}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
