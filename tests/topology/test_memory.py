"""Memory that a control group limits, in trees made for this."""

from __future__ import annotations

import os
import warnings

import numpy as np
import psutil
import pytest

from corepipe.topology.memory import available_memory, held_bytes


def tree(root, files, cgroup="0::/box\n", mount="/sys/fs/cgroup rw - cgroup2 cgroup2 rw"):
    for name, text in {
        "proc/self/cgroup": cgroup,
        "proc/self/mountinfo": f"30 25 0:26 / {mount}\n",
        **files,
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def large_machine(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1 << 40})())


def test_the_tightest_group_counts_and_cached_files_can_be_taken(tmp_path):
    files = {
        "sys/fs/cgroup/box/memory.max": "max\n",
        "sys/fs/cgroup/box/memory.current": "500\n",
        "sys/fs/cgroup/memory.max": "1000\n",
        "sys/fs/cgroup/memory.current": "700\n",
        "sys/fs/cgroup/memory.stat": "anon 600\ninactive_file 50\nactive_file 20\n",
    }
    assert available_memory(tree(tmp_path, files)) == 350


@pytest.mark.parametrize(
    ("used", "stat", "left"),
    [
        (5000, "total_inactive_file 904\n", 0),
        (4000, "inactive_file 1\ntotal_inactive_file 904\n", 1000),  # the files of groups inside count
    ],
)
def test_version_1(tmp_path, used, stat, left):
    files = {
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "4096\n",
        "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{used}\n",
        "sys/fs/cgroup/memory/box/memory.stat": stat,
    }
    mount = "/sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
    assert available_memory(tree(tmp_path, files, "3:memory:/box\n", mount)) == left


@pytest.mark.parametrize("text", ["", "none\n", "-5\n", "1e9\n", "٣\n"])
def test_what_cannot_be_read_is_no_limit(tmp_path, text):
    files = {"sys/fs/cgroup/box/memory.max": text, "sys/fs/cgroup/box/memory.current": "500\n"}
    assert available_memory(tree(tmp_path, files)) == 1 << 40


def test_no_groups(tmp_path):
    assert available_memory(tmp_path) == 1 << 40


def test_pages_of_forked_processes_count_once_and_those_of_files_never():
    mine = np.ones(64 << 20, np.uint8)
    before = held_bytes(psutil.Process())
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12 where there are threads
        pid = os.fork()
    if pid == 0:
        os.read(read, 1)
        os._exit(int(mine[0]))
    try:
        both = held_bytes(psutil.Process()) + held_bytes(psutil.Process(pid))
        assert both == pytest.approx(before, abs=16 << 20)
        assert before > mine.nbytes
        assert held_bytes(psutil.Process(), shared=True) >= held_bytes(psutil.Process()) - (1 << 20)
    finally:
        os.write(write, b".")
        os.waitpid(pid, 0)
        os.close(read)
        os.close(write)
