"""Clusters of made-up trees: names, sizes, speeds, and what a process may use of them."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from corepipe.errors import CorepipeError, TopologyError
from corepipe.topology import CoreConfig, detect, linux, parse_cpu_list, to_toml
from corepipe.topology.grouping import name_levels, suffix
from corepipe.topology.machine_file import MachineFile
from corepipe.topology.overlay import file_topology

CPU = "sys/devices/system/cpu"


def shape(topology):
    return {c.name: c.cpus for c in topology.clusters}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("kirin970", {"big": (4, 5, 6, 7), "little": (0, 1, 2, 3)}),
        ("rk3588", {"big": (4, 5), "big-b": (6, 7), "little": (0, 1, 2, 3)}),
        ("snapdragon888", {"prime": (7,), "big": (4, 5, 6), "little": (0, 1, 2, 3)}),
        ("snapdragon855", {"prime": (7,), "big": (4, 5, 6), "little": (0, 1, 2, 3)}),
        ("pi5", {"cpu": (0, 1, 2, 3)}),
        ("one-core", {"cpu": (0,)}),
        ("msm8939", {"big": (4, 5, 6, 7), "little": (0, 1, 2, 3)}),
        ("altra", {"cpu": (0, 1, 2, 3)}),
        ("two-sockets", {"cpu": tuple(range(8))}),
        ("odroid-n2-old-kernel", {"big": (2, 3, 4, 5), "little": (0, 1)}),
    ],
)
def test_clusters(tmp_path, make_tree, chips, name, expected):
    topology = detect(make_tree(tmp_path, chips[name]))
    assert shape(topology) == expected
    assert list(shape(topology)) == list(expected)
    capacities = [c.capacity for c in topology.clusters]
    assert capacities[0] == 1.0
    assert capacities == sorted(capacities, reverse=True)
    assert topology.hidden == ()
    assert not topology.pinnable
    assert all(CoreConfig.parse(str(config)) == config for config in topology.core_configs())


def test_details_of_a_cluster(tmp_path, make_tree, chips):
    topology = detect(make_tree(tmp_path, chips["rk3588"]))
    big, _, little = topology.clusters
    assert (big.core_name, little.core_name) == ("Cortex-A76", "Cortex-A55")
    assert big.max_mhz == 2400
    assert big.current_mhz == 600
    assert big.governor == "schedutil"
    assert little.capacity == pytest.approx(530 / 1024, abs=1e-4)
    assert [(c.level, c.size_bytes) for c in big.caches] == [(1, 65536), (2, 524288), (3, 3 * 2**20)]
    assert topology.warnings == ()


def test_board_name_comes_from_the_device_tree(tmp_path, make_tree, chips):
    assert detect(make_tree(tmp_path, chips["kirin970"])).machine == "HiKey970"


@pytest.mark.parametrize("capacity", [[], [1024] * 8])
def test_capacity_is_estimated_where_the_machine_does_not_tell_it(tmp_path, make_tree, chips, capacity):
    topology = detect(make_tree(tmp_path, replace(chips["kirin970"], capacity=capacity)))
    assert shape(topology) == {"big": (4, 5, 6, 7), "little": (0, 1, 2, 3)}
    assert 0.35 < topology.cluster("little").capacity < 0.55
    assert any("estimated" in w for w in topology.warnings)


def test_types_without_any_speed_are_still_ordered(tmp_path, make_tree, chips):
    topology = detect(make_tree(tmp_path, replace(chips["kirin970"], capacity=[], max_khz=[])))
    assert shape(topology) == {"big": (4, 5, 6, 7), "little": (0, 1, 2, 3)}


def test_midr_from_cpuinfo(tmp_path, make_tree, chips):
    blocks = "".join(
        f"processor : {n}\nCPU implementer : 0x41\nCPU part : 0x{'d03' if n < 4 else 'd09'}\n\n" for n in range(8)
    )
    chip = replace(chips["kirin970"], midr=[], files={"proc/cpuinfo": blocks + "Hardware : Kirin970"})
    topology = detect(make_tree(tmp_path, chip))
    assert [c.core_name for c in topology.clusters] == ["Cortex-A73", "Cortex-A53"]
    assert topology.machine == "Kirin970"


def test_clusters_without_any_midr(tmp_path, make_tree, chips):
    topology = detect(make_tree(tmp_path, replace(chips["rk3588"], midr=[])))
    assert shape(topology) == {"big": (4, 5), "big-b": (6, 7), "little": (0, 1, 2, 3)}


def test_preferred_cores_are_not_a_cluster(tmp_path, make_tree, chip, x86_cpuinfo):
    clocks = [4600000, 4600000, 4800000, 4800000, 4600000, 4600000, 4500000, 4400000]
    topology = detect(make_tree(tmp_path, chip(max_khz=clocks, files={"proc/cpuinfo": x86_cpuinfo})))
    assert shape(topology) == {"cpu": tuple(range(8))}
    assert topology.machine == "Test CPU"
    assert topology.clusters[0].max_mhz == 4800


def test_dense_x86_cores_are_a_cluster(tmp_path, make_tree, chip, x86_cpuinfo):
    clocks = [5100000] * 4 + [3300000] * 4
    info = x86_cpuinfo.replace("GenuineIntel", "AuthenticAMD")
    topology = detect(make_tree(tmp_path, chip(max_khz=clocks, files={"proc/cpuinfo": info})))
    assert shape(topology) == {"big": (0, 1, 2, 3), "little": (4, 5, 6, 7)}
    assert topology.warnings == ()


def test_intel_hybrid_by_its_own_lists(tmp_path, make_tree, chip, x86_cpuinfo):
    tree = make_tree(
        tmp_path,
        chip(
            max_khz=[4800000] * 4 + [3800000] * 2 + [2500000] * 2,
            siblings=[[0, 1], [2, 3]],
            files={
                "proc/cpuinfo": x86_cpuinfo,
                "sys/devices/cpu_core/cpus": "0-3",
                "sys/devices/cpu_atom/cpus": "4-7",
            },
        ),
    )
    topology = detect(tree)
    assert shape(topology) == {"prime": (0, 1, 2, 3), "big": (4, 5), "little": (6, 7)}
    assert [core.cpus for core in topology.cluster("prime").cores] == [(0, 1), (2, 3)]
    assert [c.core_name for c in topology.clusters] == ["P-core", "E-core", "E-core"]
    assert any("estimated" in w for w in topology.warnings)


def test_firmware_performance_levels_beat_frequencies(tmp_path, make_tree, chip, x86_cpuinfo):
    files = {f"{CPU}/cpu{n}/acpi_cppc/highest_perf": str(60 if n < 4 else 30) for n in range(8)}
    files |= {"sys/devices/cpu_core/cpus": "0-3", "sys/devices/cpu_atom/cpus": "4-7", "proc/cpuinfo": x86_cpuinfo}
    topology = detect(make_tree(tmp_path, chip(max_khz=[5000000] * 4 + [4000000] * 4, files=files)))
    assert topology.cluster("little").capacity == 0.5
    assert not topology.warnings


def test_offline_cores(tmp_path, make_tree, chips):
    tree = make_tree(tmp_path, chips["kirin970"])
    (tree / CPU / "online").write_text("0-3,6-7\n")
    topology = detect(tree)
    assert shape(topology) == {"big": (6, 7), "little": (0, 1, 2, 3)}
    assert topology.hidden == ("CPUs 4-5: offline",)
    assert any("CPUs 4-5 offline" in w for w in topology.warnings)


def test_offline_by_the_cpus_own_files(tmp_path, make_tree, chips):
    tree = make_tree(tmp_path, chips["pi5"])
    (tree / CPU / "online").unlink()
    (tree / CPU / "cpu2" / "online").write_text("0\n")
    topology = detect(tree)
    assert topology.cpus == (0, 1, 3)
    assert topology.hidden == ("CPU 2: offline",)


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/status": "Name:\tx\nCpus_allowed_list:\t0-3"},
        {"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpuset.cpus.effective": "0-3"},
        {"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpuset.cpus.effective": "0-3"},
        {"proc/self/cgroup": "3:cpuset:/a\n0::/", "sys/fs/cgroup/cpuset/a/cpuset.effective_cpus": "0-3"},
        {
            "proc/self/cgroup": "4:cpuset,x:/docker/1",
            "proc/self/mountinfo": "9 8 0:1 /docker/1 /cg/set rw - cgroup cgroup rw,cpuset",
            "cg/set/cpuset.cpus": "0-3",
        },
    ],
)
def test_a_cpuset_or_mask_that_hides_the_big_cluster(tmp_path, make_tree, chips, files):
    topology = detect(make_tree(tmp_path, replace(chips["kirin970"], files=files)))
    assert shape(topology) == {"little": (0, 1, 2, 3)}
    assert topology.clusters[0].capacity == pytest.approx(462 / 1024, abs=1e-4)
    assert topology.hidden[0].startswith("CPUs 4-7 (all of big): outside this process's")
    assert "only 4 of 8 online cores may be used by this process" in topology.warnings


def test_nothing_usable(tmp_path, make_tree, chips):
    chip = replace(chips["pi5"], files={"proc/self/status": "Cpus_allowed_list: 9"})
    with pytest.raises(TopologyError, match="may use none of them"):
        detect(make_tree(tmp_path, chip))


def test_smt_siblings_are_one_core(tmp_path, make_tree, chip, x86_cpuinfo):
    siblings = [[n, n + 4] for n in range(4)]
    files = {"proc/cpuinfo": x86_cpuinfo, "proc/self/status": "Cpus_allowed_list:\t0-5"}
    topology = detect(make_tree(tmp_path, chip(max_khz=[3000000] * 8, siblings=siblings, files=files)))
    assert [core.cpus for core in topology.cores] == [(0, 4), (1, 5), (2,), (3,)]
    assert [core.siblings for core in topology.cores] == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert topology.cpus_of([0, 2]) == (0, 2, 4)
    assert topology.hidden == ("CPUs 6-7 (cpu): outside this process's affinity mask",)


def test_siblings_that_disagree_are_cores_of_their_own(tmp_path, make_tree, chips):
    tree = make_tree(tmp_path, chips["pi5"])
    (tree / CPU / "cpu0/topology/thread_siblings_list").write_text("0-1\n")
    assert [core.cpus for core in detect(tree).cores] == [(0,), (1,), (2,), (3,)]


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/cpu.max": "100000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "9 1",
            },
            1.0,
        ),
        (
            {
                "proc/self/cgroup": "2:cpu,cpuacct:/x",
                "proc/mounts": "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "50000",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000",
            },
            0.5,
        ),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
        ({"sys/fs/cgroup/cpu.max": "100000 0"}, None),
    ],
)
def test_quota(tmp_path, make_tree, chips, files, quota):
    topology = detect(make_tree(tmp_path, replace(chips["pi5"], files=files)))
    assert topology.quota_cpus == quota
    assert any("quota" in w for w in topology.warnings) == (quota is not None)


def test_a_quota_is_held_against_cores_not_hardware_threads(tmp_path, make_tree, chips):
    files = {"sys/fs/cgroup/cpu.max": "200000 100000"}
    threads = replace(chips["pi5"], siblings=[[0, 1], [2, 3]], files=files)
    assert not [w for w in detect(make_tree(tmp_path / "threads", threads)).warnings if "quota" in w]
    (warning,) = (w for w in detect(make_tree(tmp_path / "cores", replace(chips["pi5"], files=files))).warnings)
    assert "restrict corepipe to 2 core(s)" in warning


def test_of_less_than_one_core_no_restriction_helps(tmp_path, make_tree, chips):
    files = {"sys/fs/cgroup/cpu.max": "50000 100000"}
    (warning,) = detect(make_tree(tmp_path, replace(chips["pi5"], files=files))).warnings
    assert warning.endswith("raise the quota")


def test_cpus_that_are_known_to_be_active_are_online(tmp_path, make_tree, chips):
    tree = make_tree(tmp_path, chips["pi5"])
    (tree / CPU / "online").write_text("0-1\n")
    info = linux._CpuInfo.read(tree)
    assert linux._online(tree, info, frozenset()) == ((0, 1), (2, 3))
    assert linux._online(tree, info, frozenset({0, 3, 9})) == ((0, 1, 3), (2,))


def test_a_group_cannot_lead_out_of_the_hierarchy(tmp_path, make_tree, chips):
    files = {"proc/self/cgroup": "0::/../../other", "other/cpu.max": "1 2"}
    assert detect(make_tree(tmp_path, replace(chips["pi5"], files=files))).quota_cpus is None


def test_of_clusters_as_fast_as_each_other_the_one_with_the_first_usable_core_comes_first(tmp_path):
    """As a machine file would order them: their names would not fit otherwise."""
    folder = tmp_path / CPU
    for number, (part, capacity) in enumerate([("0xd0b", 65535), ("0xd41", 65534), ("0xd05", 300), ("0xd0b", 65535)]):
        for name, text in (
            ("regs/identification/midr_el1", f"0x41{int(part, 16) << 4:06x}"),
            ("cpu_capacity", capacity),
        ):
            (path := folder / f"cpu{number}" / name).parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
    (folder / "online").write_text("0-3\n")
    assert [c.cpus for c in detect(tmp_path).clusters] == [(0, 3), (1,), (2,)]
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("Cpus_allowed_list:\t1-3\n")
    topology = detect(tmp_path)
    assert [c.cpus for c in topology.clusters] == [(1,), (3,), (2,)]
    again = file_topology(MachineFile.from_toml(to_toml(topology)), "again", None)
    assert again.clusters == topology.clusters


def test_powersave_governor(tmp_path, make_tree, chips):
    topology = detect(make_tree(tmp_path, replace(chips["kirin970"], governor="powersave")))
    assert sum("lowest frequency" in w for w in topology.warnings) == 2


def test_powersave_of_a_self_scaling_driver(tmp_path, make_tree, chips):
    files = {f"{CPU}/cpu{n}/cpufreq/scaling_driver": "intel_pstate" for n in range(4)}
    topology = detect(make_tree(tmp_path, replace(chips["pi5"], governor="powersave", files=files)))
    assert [w for w in topology.warnings if "follow the load (intel_pstate)" in w]


def test_capped_frequency(tmp_path, make_tree, chips):
    tree = make_tree(tmp_path, chips["pi5"])
    (tree / CPU / "cpu0/cpufreq/scaling_max_freq").write_text("1500000\n")
    assert any("capped at 1500 of 2400 MHz" in w for w in detect(tree).warnings)
    assert detect(tree).clusters[0].limit_mhz == 1500


@pytest.mark.parametrize(("file", "text"), [("scaling_max_freq", "1500000"), ("scaling_governor", "powersave")])
def test_costs_hold_for_one_governor_and_cap_only(tmp_path, make_tree, chips, file, text):
    tree = make_tree(tmp_path, chips["pi5"])
    before = detect(tree).fingerprint()
    assert detect(tree).clusters[0].limit_mhz is None
    for number in range(4):
        (tree / CPU / f"cpu{number}/cpufreq" / file).write_text(text + "\n")
    again = detect(tree)
    assert again.fingerprint() != before
    (tmp_path / "m.toml").write_text(to_toml(again), encoding="utf-8")
    assert detect(tree, machine_file=tmp_path / "m.toml").fingerprint() == again.fingerprint()


@pytest.mark.parametrize("kind", ["thermal-cpufreq-1", "cpufreq-cpu0", "Processor"])
def test_a_chip_that_throttles_is_the_same_machine(tmp_path, make_tree, chips, kind):
    """Thermal control lowers the cap that a user may set: at each start it would be another machine."""
    tree = make_tree(tmp_path, chips["kirin970"])
    before = detect(tree)
    device = tree / "sys/class/thermal/cooling_device0"
    device.mkdir(parents=True)
    (device / "type").write_text(kind + "\n")
    (device / "cur_state").write_text("0\n")
    assert detect(tree) == before
    (device / "cur_state").write_text("3\n")
    for number in range(4, 8):
        (tree / CPU / f"cpu{number}/cpufreq/scaling_max_freq").write_text("1500000\n")
    hot = detect(tree)
    assert hot.fingerprint() == before.fingerprint()
    assert [w for w in hot.warnings if f"throttling now ({kind})" in w]
    (device / "type").write_text("pwm-fan\n")
    assert detect(tree).fingerprint() != before.fingerprint()


def test_hyperthreads_that_are_switched_off_are_no_cores(tmp_path, make_tree, chips):
    files = {f"{CPU}/online": "0-1", f"{CPU}/smt/control": "off"}
    topology = detect(make_tree(tmp_path, replace(chips["pi5"], files=files)))
    assert topology.hidden == ("CPUs 2-3: offline, and SMT is switched off",)
    assert topology.warnings == ()


def test_restriction(tmp_path, make_tree, chips):
    tree = make_tree(tmp_path, replace(chips["kirin970"], governor="powersave"))
    topology = detect(tree, restrict_to=parse_cpu_list("0-1,4"))
    assert shape(topology) == {"big": (4,), "little": (0, 1)}
    assert topology.hidden == ("CPUs 5-7 (big): not asked for", "CPUs 2-3 (little): not asked for")
    assert topology.restricted
    assert not detect(tree, restrict_to=range(8)).restricted
    only_little = detect(tree, restrict_to=[0])
    assert shape(only_little) == {"little": (0,)}
    assert len(only_little.warnings) == 1


@pytest.mark.parametrize("cpus", [[], [8], [0, 99]])
def test_impossible_restriction(tmp_path, make_tree, chips, cpus):
    with pytest.raises(TopologyError, match="choose among CPUs 0-7"):
        detect(make_tree(tmp_path, chips["kirin970"]), restrict_to=cpus)


def test_unreadable_trees(tmp_path):
    with pytest.raises(TopologyError, match="not a folder"):
        detect(tmp_path / "nowhere")
    with pytest.raises(TopologyError, match="no CPU found"):
        detect(tmp_path)


def test_cpuinfo_alone_is_enough(tmp_path, x86_cpuinfo):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(x86_cpuinfo)
    topology = detect(tmp_path)
    assert shape(topology) == {"cpu": tuple(range(8))}
    assert topology.clusters[0].current_mhz == 900.5


def test_names():
    assert name_levels([(1.0, "a")]) == ["cpu"]
    assert name_levels([(1.0, "a"), (0.99, "a")]) == ["big", "big-b"]
    assert name_levels([(1.0, "a"), (0.99, "b")]) == ["big", "little"]
    assert name_levels([(1.0, "a"), (0.8, "b"), (0.7, "c"), (0.2, "d")]) == ["prime", "big", "big-b", "little"]
    assert [suffix(i) for i in (0, 1, 25, 26, 27)] == ["", "-b", "-z", "-ba", "-bb"]


@pytest.mark.skipif(not os.path.exists("/sys/devices/system/cpu"), reason="no sysfs on this system")
def test_this_machine():
    topology = detect()
    assert set(topology.cpus) == os.sched_getaffinity(0)
    assert topology.pinnable
    assert topology.source == "sysfs"
    assert topology.clusters[0].capacity <= 1
    assert detect(restrict_to=topology.cpus[:1]).cpus == topology.cpus[:1]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks on this system")
def test_the_affinity_mask_of_this_process_counts():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        topology = detect()
    finally:
        os.sched_setaffinity(0, before)
    assert topology.cpus == (min(before),)
    assert len(before) == 1 or any("affinity mask" in line for line in topology.hidden)


def test_all_errors_are_corepipes(tmp_path):
    with pytest.raises(CorepipeError):
        detect("\0")
