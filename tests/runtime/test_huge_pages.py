import ctypes
import errno
import mmap
import os
import sys

import numpy as np
import psutil
import pytest

from corepipe.network.load import open_network
from corepipe.runtime import huge_pages
from corepipe.runtime.huge_pages import VARIABLE, obstacle, use_huge_pages
from corepipe.runtime.stream import Stream

_MIB = 1 << 20


@pytest.fixture
def allowed(monkeypatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if sys.platform != "linux":
        pytest.skip("huge pages are asked for on Linux only")
    if reason := obstacle():
        pytest.skip(f"no huge pages here: {reason}")
    if tuple(int(part) for part in os.uname().release.split(".")[:2]) < (6, 1):
        pytest.skip("this kernel gives huge pages later, not at once")


def _huge_bytes(pid: int | str = "self") -> int:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("AnonHugePages"))


def test_filled_memory_moves_and_keeps_its_contents(allowed):
    array = np.random.default_rng(0).random(32 * _MIB // 8)
    sum_before, address = array.sum(), array.ctypes.data
    before = _huge_bytes()
    moved = use_huge_pages()
    assert moved >= 28 * _MIB  # all but the ends, which share their blocks with others
    assert _huge_bytes() >= max(before, 28 * _MIB)
    assert (array.sum(), array.ctypes.data) == (sum_before, address)


def test_memory_that_is_hardly_used_stays_small(allowed):
    use_huge_pages()
    with mmap.mmap(-1, 256 * _MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as sparse:
        for offset in range(0, len(sparse), 2 * _MIB):
            sparse[offset] = 1
        before = psutil.Process().memory_info().rss
        use_huge_pages()
        assert psutil.Process().memory_info().rss < before + 32 * _MIB
        assert sparse[2 * _MIB] == 1
        assert sparse[2 * _MIB + 1] == 0


def test_what_is_half_there_is_not_filled_up(allowed):
    use_huge_pages()
    with mmap.mmap(-1, 256 * _MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as half:
        for offset in range(0, len(half), 2 * _MIB):
            half[offset : offset + int(1.2 * _MIB)] = b"x" * int(1.2 * _MIB)
        before = psutil.Process().memory_info().rss
        use_huge_pages()
        assert psutil.Process().memory_info().rss < before + 32 * _MIB
        assert half[int(1.2 * _MIB) - 1 : int(1.2 * _MIB) + 1] == b"x\0"


def test_maps_that_cannot_be_read_are_left_alone(allowed, monkeypatch, tmp_path):
    monkeypatch.setattr(huge_pages, "_PAGEMAP", tmp_path / "none")
    assert "cannot be read" in obstacle()
    assert use_huge_pages() == 0


def test_a_kernel_that_has_no_room_is_not_asked_again(allowed, monkeypatch):
    asked = []

    class Refusing:
        def __init__(self, *_: object, **__: object) -> None:
            self.madvise = self

        def __call__(self, *arguments: int) -> int:
            asked.append(arguments)
            ctypes.set_errno(errno.ENOMEM)
            return -1

    array = np.ones(32 * _MIB // 8)
    monkeypatch.setattr(huge_pages.ctypes, "CDLL", Refusing)
    assert use_huge_pages() == 0
    assert len(asked) == 1
    assert array.sum() == array.size


def test_workers_use_them(allowed, here, make_plan):
    network = open_network("squeezenet")
    plan = make_plan(network, [(1, [(0, 0, len(network.layers))])])
    with Stream(network, plan, here) as stream:
        (pid,) = stream.worker_pids.values()
        assert _huge_bytes(pid) > 0


def test_who_wants_none_gets_none(allowed, monkeypatch):
    monkeypatch.setenv(VARIABLE, "never")
    assert use_huge_pages() == 0
    assert VARIABLE in obstacle()


@pytest.mark.parametrize(
    ("enabled", "said"),
    [("always [madvise] never", ""), ("[always] madvise never", ""), ("always madvise [never]", "echo madvise")],
)
def test_the_system_is_asked(tmp_path, monkeypatch, enabled, said):
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / "enabled").write_text(enabled)
    (tmp_path / "hpage_pmd_size").write_text("2097152")
    reason = obstacle(tmp_path)
    assert said in reason
    assert bool(reason) == bool(said)


def test_pages_that_nothing_would_fill(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / "enabled").write_text("[always] madvise never")
    (tmp_path / "hpage_pmd_size").write_text(str(512 * _MIB))
    assert "too large (512 MiB)" in obstacle(tmp_path)


def test_a_system_without_huge_pages(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert "has none" in obstacle(tmp_path)
