"""Reading small files of `/sys` and `/proc` without trusting them: what is missing or garbled reads as None."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from corepipe.errors import UsageError
from corepipe.topology.cpulist import parse_cpu_list

_MAX_BYTES = 16 * 2**20


def read_text(path: Path) -> str | None:
    """The file's text without surrounding white space and NULs; None if it cannot be read or is no plain file."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            # Nothing at all comes of a file that would have to be waited for, as `/proc/kmsg`.
            return (file.read(_MAX_BYTES) or b"").decode("utf-8", "replace").strip().strip("\0").strip()
    except (OSError, ValueError):
        return None


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a pipe in a saved tree would be waited for without end."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_number(path: Path, least: int = 1, most: int = 10**9) -> int | None:
    """A decimal (or 0x...) integer between `least` and `most`; None for anything else."""
    text = read_text(path) or ""
    if not re.fullmatch(r"-?[0-9]{1,18}|0[xX][0-9a-fA-F]{1,16}", text, re.ASCII):
        return None
    value = int(text, 0 if text[:2] in ("0x", "0X") else 10)
    return value if least <= value <= most else None


def read_cpus(path: Path) -> tuple[int, ...] | None:
    """A CPU list, separated by commas or (as in `related_cpus`) blanks; None if empty or garbled."""
    return parse_cpus(read_text(path) or "")


def parse_cpus(text: str) -> tuple[int, ...] | None:
    """The same of a text at hand."""
    try:
        return parse_cpu_list(",".join(text.split()))
    except UsageError:
        return None


def read_bytes_size(path: Path) -> int | None:
    """A size such as `48K` or `2M`, in bytes."""
    match = re.fullmatch(r"([0-9]{1,9})([KMG]?)B?", read_text(path) or "", re.ASCII)
    size = int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]] if match else 0
    return size or None
