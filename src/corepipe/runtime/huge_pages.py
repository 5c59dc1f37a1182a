"""Huge pages for what a worker reads with every frame: weights, and what layers hand to each other.

A core keeps the places of only so many pages at hand; beyond them every access first walks the page tables, which in a
virtual machine takes twice as long. Weights alone are tens of thousands of 4 KiB pages, but some dozen of 2 MiB.
Engines do not ask for such pages, and most systems give them only to those who ask (`madvise`).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

VARIABLE = "COREPIPE_HUGE_PAGES"
"""Environment variable; `never` leaves memory as the engines take it."""

_SYSTEM = Path("/sys/kernel/mm/transparent_hugepage")
_PAGEMAP = Path("/proc/self/pagemap")
_HUGEPAGE, _COLLAPSE = 14, 25
"""Advice to `madvise`: huge pages where the kernel finds the time; at once (Linux 6.1 and later)."""

_PRESENT = np.uint64(63)
"""Bit of an entry of the page map: the page is in memory."""

_LEAST_PRESENT = 0.75
"""Of a huge page: where less is in memory, the whole is not taken. So private memory grows by a third at the most, and
hardly at all in practice, since what compiling left behind is given back first."""

_LARGEST = 32 << 20
"""Bytes of a huge page; some arm64 kernels have pages of half a gigabyte, which nothing here would fill."""

_ENTRY_BYTES = 8
_READ_BYTES = 1 << 20


def obstacle(system: Path = _SYSTEM) -> str:
    """Why no huge pages can be had here; empty if they can."""
    if os.environ.get(VARIABLE) == "never":
        return f"the environment variable {VARIABLE} says never"
    try:
        allowed, size = (system / "enabled").read_text(encoding="ascii"), _page_bytes(system)
    except (OSError, ValueError):
        return "this system has none for programs to ask for"
    if "[never]" in allowed:
        return f"the system gives none; as root, `echo madvise > {system}/enabled` lets workers use them"
    if not 0 < size <= _LARGEST:
        return f"this system's are too large ({size >> 20} MiB)"
    if not os.access(_PAGEMAP, os.R_OK):
        return f"{_PAGEMAP} cannot be read"
    return ""


def _page_bytes(system: Path) -> int:
    return int((system / "hpage_pmd_size").read_text(encoding="ascii"))


def use_huge_pages() -> int:
    """Move this process's private memory into huge pages, as far as it fills them; contents and addresses stay.

    For a process that has compiled and run its models once. Does nothing where it cannot be done.

    Returns:
        How many bytes are in huge pages then, as far as this call found.
    """
    if obstacle():
        return 0
    moved = 0
    # Maps may change meanwhile, or be closed to this process: then they stay as they are.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)  # what compiling left behind need not be moved
        size = _page_bytes(_SYSTEM)
        for begin, end in list(_filled(size)):
            if libc.madvise(begin, end - begin, _COLLAPSE) == 0:
                moved += end - begin
            elif ctypes.get_errno() == errno.EINVAL:
                libc.madvise(begin, end - begin, _HUGEPAGE)
            elif ctypes.get_errno() == errno.ENOMEM:
                break  # each further try would make the kernel look for room again
    return moved


def _filled(size: int) -> Iterator[tuple[int, int]]:
    """Runs of aligned blocks of `size` bytes in private memory of which enough is present."""
    page, fd = os.sysconf("SC_PAGE_SIZE"), os.open(_PAGEMAP, os.O_RDONLY)
    pages = size // page
    # A part of the map at a time, which holds whole blocks.
    step = size * max(1, _READ_BYTES // (_ENTRY_BYTES * pages))
    try:
        for begin, end in list(_private_ranges()):
            first, last = -(-begin // size) * size, end // size * size
            for start in range(first, last, step):
                length = (min(start + step, last) - start) // page * _ENTRY_BYTES
                entries = np.frombuffer(os.pread(fd, length, start // page * _ENTRY_BYTES), np.uint64)
                present = (entries >> _PRESENT).reshape(-1, pages).mean(axis=1) >= _LEAST_PRESENT
                edges = np.flatnonzero(np.diff(present, prepend=False, append=False))
                yield from ((start + size * int(a), start + size * int(b)) for a, b in edges.reshape(-1, 2))
    finally:
        os.close(fd)


def _private_ranges() -> Iterator[tuple[int, int]]:
    """Readable memory of no file, as (begin, end), but for reservations larger than the machine's memory."""
    largest = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            addresses, access, _, _, inode, *name = line.split(maxsplit=5)
            begin, _, end = addresses.partition("-")
            nameless = inode == "0" and (not name or name[0].startswith(("[heap]", "[anon")))
            if nameless and access[0] == "r" and int(end, 16) - int(begin, 16) <= largest:
                yield int(begin, 16), int(end, 16)
