"""Whatever a tree holds, the answer is a topology or one of corepipe's own errors."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from corepipe.errors import CorepipeError
from corepipe.topology import detect, sysfs, to_toml
from corepipe.topology.cgroup import read_limits
from corepipe.topology.machine_file import MachineFile
from corepipe.topology.overlay import file_topology

NAMES = [
    "sys/devices/system/cpu/online",
    "sys/devices/system/cpu/present",
    "sys/devices/cpu_core/cpus",
    "sys/devices/cpu_atom/cpus",
    "sys/fs/cgroup/cpu.max",
    "sys/fs/cgroup/cpuset.cpus.effective",
    "proc/cpuinfo",
    "proc/self/status",
    "proc/self/cgroup",
    "proc/self/mountinfo",
    "proc/mounts",
    "proc/device-tree/model",
]
NAMES += [
    f"sys/devices/system/cpu/cpu{n}/{name}"
    for n in range(4)
    for name in (
        "cpu_capacity",
        "topology/thread_siblings_list",
        "topology/physical_package_id",
        "cpufreq/cpuinfo_max_freq",
        "cpufreq/related_cpus",
        "cpufreq/scaling_cur_freq",
        "cpufreq/scaling_governor",
        "regs/identification/midr_el1",
        "acpi_cppc/highest_perf",
        "cache/index0/level",
        "cache/index0/size",
    )
]
NUMBERS = ["0-3", "0 1", "4-7", "0-99999999999", "1024", "0", "-1", "3000000", "1800000", "1e9", "²", "nan", "inf"]
NUMBERS += ["0x410fd034", "0x410fd0b0", "32K", "max 1"]
LINES = [
    "processor: 0\nvendor_id: GenuineIntel\n",
    "processor: 1\nCPU implementer: 0x41\nCPU part: 0xd03\n",
    "Cpus_allowed_list: 0-1",
    "5 4 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup rw",
    "x y cgroup cpu,cpuset",
    "0::/a",
    "\0",
    "9" * 400,
]
CONTENTS = st.binary(max_size=30) | st.sampled_from(NUMBERS + LINES).map(str.encode)


@settings(max_examples=120, deadline=None)
@given(files=st.dictionaries(st.sampled_from(NAMES), CONTENTS, max_size=25))
def test_garbage_never_raises_a_foreign_error(files):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        read_limits(root)
        try:
            topology = detect(root)
        except CorepipeError as error:
            assert str(root) in str(error) or "may use none" in str(error)
            return
        names = [c.name for c in topology.clusters]
        assert len(set(names)) == len(names)
        assert all(re.fullmatch(r"[a-z][a-z_-]*", name) for name in names)
        assert len(set(topology.cpus)) == len(topology.cpus)
        assert all(0 < c.capacity <= 1 for c in topology.clusters)
        again = file_topology(MachineFile.from_toml(to_toml(topology)), "again", None)
        assert [c.cpus for c in again.clusters] == [c.cpus for c in topology.clusters]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 1024), st.integers(1, 4_000_000), st.integers(0, 3), st.integers(0, 3)),
        min_size=1,
        max_size=8,
    )
)
def test_any_mixture_of_cores_gives_each_core_once(make_tree, chip, cores):
    domains = [[n for n, c in enumerate(cores) if c[3] == d] for d in range(4)]
    tree = chip(
        max_khz=[c[1] for c in cores],
        capacity=[c[0] for c in cores],
        midr=[0x410FD030 + (c[2] << 4) for c in cores],
        domains=[d for d in domains if d],
    )
    with tempfile.TemporaryDirectory() as folder:
        topology = detect(make_tree(Path(folder), tree))
    assert sorted(topology.cpus) == list(range(len(cores)))
    capacities = [c.capacity for c in topology.clusters]
    assert capacities == sorted(capacities, reverse=True)
    assert len({c.name for c in topology.clusters}) == len(topology.clusters)


def test_pipes_folders_and_links_in_a_tree_are_not_waited_for(tmp_path):
    cpu = tmp_path / "sys/devices/system/cpu"
    (cpu / "cpu0/topology").mkdir(parents=True)
    (cpu / "online").write_text("0")
    os.mkfifo(cpu / "cpu0/cpu_capacity")
    (cpu / "cpu0/topology/thread_siblings_list").mkdir()
    (cpu / "present").symlink_to("present")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").symlink_to("/dev/zero")
    before = len(os.listdir("/proc/self/fd"))
    assert detect(tmp_path).cpus == (0,)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_has_nothing_to_say_yet_reads_as_nothing(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "kmsg")
    writer = os.open(tmp_path / "kmsg", os.O_RDWR | os.O_NONBLOCK)
    monkeypatch.setattr(sysfs.stat, "S_ISREG", lambda _: True)
    assert not sysfs.read_text(tmp_path / "kmsg")
    os.close(writer)
