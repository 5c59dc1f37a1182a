"""How much memory this process can still get: the machine's, or what its control groups leave; what a process holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import psutil

from corepipe.topology.cgroup import group_folders
from corepipe.topology.sysfs import read_text

_NAMES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def available_memory(root: Path = Path("/")) -> int:
    """Bytes, what can be taken from caches of files included.

    Args:
        root: where `proc` and `sys` are.
    """
    return min([psutil.virtual_memory().available, *_left_by_groups(root)])


def held_bytes(process: psutil.Process, *, shared: bool = False) -> int:
    """Bytes of memory that is no file's; of pages that several forked processes hold, a process's part (Linux 5.9).

    Pages of libraries do not count: whose they are changes whenever another program starts or ends.

    Args:
        process: which one.
        shared: whether its part of shared memory counts too, where the system tells that.

    Raises:
        psutil.Error: it has ended, or may not be looked at.
    """
    rollup = Path(f"/proc/{process.pid}/smaps_rollup")
    try:
        lines = dict(line.split(":", 1) for line in rollup.read_text(encoding="ascii").splitlines()[1:])
        kinds = ("Pss_Anon", "Pss_Shmem") if shared else ("Pss_Anon",)
        return 1024 * sum(int(lines[kind].split()[0]) for kind in kinds)
    except (OSError, KeyError):  # no Linux, or before 5.9; or it has ended
        memory = process.memory_info()
        return int(memory.rss - getattr(memory, "shared", 0))


def _left_by_groups(root: Path) -> Iterator[int]:
    for folder in group_folders(root, "memory"):
        for limit, used in _NAMES:
            numbers = [read_text(folder / name) or "" for name in (limit, used)]
            if all(re.fullmatch(r"[0-9]{1,19}\n?", number, re.ASCII) for number in numbers):
                yield max(int(numbers[0]) - int(numbers[1]) + _cached(folder), 0)


def _cached(folder: Path) -> int:
    """Bytes of files that the kernel drops first when the group needs memory."""
    text = read_text(folder / "memory.stat") or ""
    for name in ("total_inactive_file", "inactive_file"):  # of version 1 groups inside included, as in their usage
        if found := re.search(rf"^{name} ([0-9]{{1,19}})$", text, re.M):
            return int(found[1])
    return 0
