from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corepipe.errors import DocumentError, TopologyError
from corepipe.topology import ENVIRONMENT, Cache, Cluster, Core, Topology, detect, to_toml
from corepipe.topology.machine_file import MachineFile
from corepipe.topology.overlay import file_topology

HIKEY = """
machine = "HiKey 970"

[[cluster]]
name = "little"
cpus = "0-3"
capacity = 0.45
core_name = "Cortex-A53"

[[cluster]]
name = "big"
cpus = [4, 5, 6, 7]
capacity = 1.0
core_name = "Cortex-A73"
max_mhz = 2362
cache = [{ level = 2, size_kib = 2048, shared_by = 4 }]
"""


def write(tmp_path, text):
    path = tmp_path / "machine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def shape(topology):
    return {c.name: c.cpus for c in topology.clusters}


def test_a_machine_that_is_not_at_hand(tmp_path, make_tree, chips):
    file = write(tmp_path, HIKEY)
    topology = detect(make_tree(tmp_path / "tree", chips["pi5"]), machine_file=file)
    assert shape(topology) == {"big": (4, 5, 6, 7), "little": (0, 1, 2, 3)}
    assert topology.machine == "HiKey 970"
    assert topology.source == str(file)
    assert not topology.pinnable
    with pytest.raises(TopologyError, match="not at hand: plans for it can be made and simulated, not measured or run"):
        topology.check_at_hand()
    assert topology.clusters[0].caches == (Cache(2, 2 * 2**20, 4),)
    assert "not at hand (CPUs 4-7" in topology.warnings[0]


def test_a_file_needs_no_machine(tmp_path):
    assert shape(detect(tmp_path / "nowhere", machine_file=write(tmp_path, HIKEY)))["big"] == (4, 5, 6, 7)


def test_restriction_of_a_file(tmp_path):
    file = write(tmp_path, HIKEY + "\n")
    topology = detect(tmp_path / "nowhere", machine_file=file, restrict_to=[0, 1])
    assert shape(topology) == {"little": (0, 1)}


def test_quota_of_a_file(tmp_path):
    topology = detect(tmp_path / "nowhere", machine_file=write(tmp_path, "quota_cpus = 2.5\n" + HIKEY))
    assert topology.quota_cpus == 2.5
    assert any("quota" in w for w in topology.warnings)


def test_capacity_from_frequencies(tmp_path):
    text = '[[cluster]]\nname="a"\ncpus=[0]\nmax_mhz=2000\n[[cluster]]\nname="b"\ncpus=[1]\nmax_mhz=1000'
    assert [c.capacity for c in detect(tmp_path / "x", machine_file=write(tmp_path, text)).clusters] == [1.0, 0.5]


def test_override_keeps_what_was_detected(tmp_path, make_tree, chips):
    tree = make_tree(tmp_path / "tree", replace(chips["rk3588"], governor="powersave"))
    text = 'override = true\n[[cluster]]\nname = "slow"\ncpus = [7]\ncapacity = 0.4\ncore_name = "emulated"'
    topology = detect(tree, machine_file=write(tmp_path, text))
    assert shape(topology) == {"big": (4, 5), "big-b": (6,), "little": (0, 1, 2, 3), "slow": (7,)}
    slow, detected = topology.cluster("slow"), detect(tree)
    assert (slow.core_name, slow.capacity) == ("emulated", 0.4)
    assert (slow.governor, slow.max_mhz, slow.caches) == ("powersave", 2352, detected.cluster("big-b").caches)
    assert topology.machine == detected.machine
    assert topology.warnings == detected.warnings


def test_a_file_for_this_machine_keeps_what_the_system_holds_it_to(tmp_path, make_tree, chips):
    files = {"sys/fs/cgroup/cpu.max": "200000 100000", "proc/device-tree/model": "Board 1"}
    tree = make_tree(tmp_path / "tree", replace(chips["kirin970"], governor="powersave", files=files))
    detected = detect(tree)
    assert detected.quota_cpus == 2
    topology = detect(tree, machine_file=write(tmp_path, HIKEY))
    assert topology.quota_cpus == 2
    assert {c.governor for c in topology.clusters} == {"powersave"}
    assert set(detected.warnings) < set(topology.warnings)
    assert [w for w in topology.warnings if "is taken to describe this machine: it says 'HiKey 970'" in w]
    named = detect(tree, machine_file=write(tmp_path, HIKEY.replace("HiKey 970", "Board 1")))
    assert set(named.warnings) == set(detected.warnings)  # it is what the system calls itself


def test_override_leaves_no_cluster_called_cpu(tmp_path, make_tree, chips):
    text = 'override = true\n[[cluster]]\nname = "little"\ncpus = [1]\ncapacity = 0.4'
    topology = detect(make_tree(tmp_path / "tree", chips["pi5"]), machine_file=write(tmp_path, text))
    assert shape(topology) == {"big": (0, 2, 3), "little": (1,)}


def test_override_whose_name_is_taken(tmp_path, make_tree, chips):
    text = 'override = true\n[[cluster]]\nname = "big"\ncpus = [0]\ncapacity = 1.0'
    topology = detect(make_tree(tmp_path / "tree", chips["kirin970"]), machine_file=write(tmp_path, text))
    assert shape(topology) == {"big": (0,), "big-b": (4, 5, 6, 7), "little": (1, 2, 3)}


def test_override_keeps_smt_siblings_together(tmp_path, make_tree, chip, x86_cpuinfo):
    siblings = [[n, n + 4] for n in range(4)]
    tree = make_tree(
        tmp_path / "tree", chip(max_khz=[3000000] * 8, siblings=siblings, files={"proc/cpuinfo": x86_cpuinfo})
    )
    text = 'override = true\n[[cluster]]\nname = "little"\ncpus = [3, 7]\ncapacity = 0.5'
    topology = detect(tree, machine_file=write(tmp_path, text))
    assert topology.cluster("little").cores == (Core((3, 7), 0, (3, 7)),)


def test_override_with_cpus_that_may_not_be_used(tmp_path, make_tree, chips):
    tree = make_tree(tmp_path / "tree", replace(chips["pi5"], files={"proc/self/status": "Cpus_allowed_list: 0-1"}))
    text = 'override = true\n[[cluster]]\nname = "little"\ncpus = {}\ncapacity = 0.5'
    topology = detect(tree, machine_file=write(tmp_path, text.format([1, 2])))
    assert shape(topology) == {"big": (0,), "little": (1,)}
    assert any("CPU 2: named in" in line for line in topology.hidden)
    with pytest.raises(TopologyError, match="none of its CPUs"):
        detect(tree, machine_file=write(tmp_path, text.format([2, 3])))
    with pytest.raises(TopologyError, match="CPU 9 does not exist"):
        detect(tree, machine_file=write(tmp_path, text.format([0, 9])))


def test_override_of_an_unreadable_machine(tmp_path):
    text = "override = true\n" + HIKEY
    with pytest.raises(TopologyError, match="could not be read"):
        detect(tmp_path / "nowhere", machine_file=write(tmp_path, text))


@pytest.mark.skipif(sys.platform != "linux", reason="reads this machine's sysfs")
def test_the_environment_names_a_file_for_this_machine_only(tmp_path, make_tree, chips, monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    here = detect()
    file = write(tmp_path, f'[[cluster]]\nname = "mine"\ncpus = {list(here.cpus)}')
    monkeypatch.setenv(ENVIRONMENT, str(file))
    assert shape(detect()) == {"mine": tuple(sorted(here.cpus))}
    assert detect().pinnable
    assert shape(detect(make_tree(tmp_path / "tree", chips["one-core"]))) == {"cpu": (0,)}
    assert "big" in shape(detect(machine_file=write(tmp_path / "tree", HIKEY)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not toml", "not valid TOML"),
        ("x = " + "9" * 5000, "not valid TOML"),
        ("", "cluster"),
        ("cluster = []", "cluster"),
        ("cluster = 3", "cluster"),
        ('machin = "x"\n' + HIKEY, "did you mean 'machine'"),
        (HIKEY.replace("capacity = 0.45", "capacty = 0.45"), "did you mean 'capacity'"),
        (HIKEY.replace("size_kib", "size_kb"), "did you mean 'size_kib'"),
        (HIKEY.replace("0.45", "1.5"), "less than or equal to 1"),
        (HIKEY.replace("0.45", "nan"), "capacity"),
        (HIKEY.replace('"0-3"', '"3-0"'), "not a list of CPUs"),
        (HIKEY.replace('"0-3"', "[0, 4]"), "a CPU appears twice"),
        (HIKEY.replace('"0-3"', "[]"), "needs either cpus or cores"),
        (HIKEY.replace('"0-3"', "[-1]"), "greater than or equal to 0"),
        (HIKEY.replace('"0-3"', "[1.5]"), "integer"),
        (HIKEY.replace('"little"', '"big"'), "name appears twice"),
        (HIKEY.replace('"little"', '"a53"'), "pattern"),
        (HIKEY.replace('"little"', '"all"'), "reserved"),
        (HIKEY.replace("capacity = 0.45", ""), "every cluster needs a capacity"),
        ("schema_version = 2\n" + HIKEY, "schema_version"),
        (HIKEY + "\npackages = [1]", "packages needs 4 entries"),
    ],
)
def test_refused(tmp_path, text, message):
    file = write(tmp_path, text)
    with pytest.raises(DocumentError, match=message) as caught:
        MachineFile.read(file)
    assert str(file) in str(caught.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(DocumentError, match="cannot read machine file"):
        MachineFile.read(tmp_path / "none.toml")
    with pytest.raises(DocumentError, match="cannot read machine file"):
        MachineFile.read(tmp_path)
    with pytest.raises(DocumentError, match="cannot read machine file: embedded null byte; check the path"):
        MachineFile.read(f"{tmp_path}/a\0b.toml")
    (tmp_path / "large").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(DocumentError, match="larger than 1 MiB"):
        MachineFile.read(tmp_path / "large")
    (tmp_path / "bom").write_bytes(b"\xef\xbb\xbf" + HIKEY.encode())
    assert len(MachineFile.read(tmp_path / "bom").cluster) == 2
    (tmp_path / "latin").write_bytes(b'machine = "\xe9"')
    with pytest.raises(DocumentError, match="UTF-8"):
        MachineFile.read(tmp_path / "latin")


@pytest.mark.parametrize("name", ["kirin970", "rk3588", "snapdragon888", "pi5", "one-core", "two-sockets"])
def test_round_trip_of_chips(tmp_path, make_tree, chips, name):
    tree = make_tree(tmp_path / "tree", chips[name])
    topology = detect(tree)
    for override in (False, True):
        again = detect(tree, machine_file=write(tmp_path, to_toml(topology, override=override)))
        plain = tuple(replace(c, current_mhz=None) for c in again.clusters)
        assert plain == tuple(replace(c, current_mhz=None) for c in topology.clusters)
        assert (again.machine, again.emulated) == (topology.machine, topology.emulated)
        assert again.fingerprint() == topology.fingerprint()


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


@st.composite
def topologies(draw):
    clusters, first = [], 0
    for index in range(draw(st.integers(1, 4))):
        threads = draw(st.integers(1, 2))
        cores = []
        for _ in range(draw(st.integers(1, 3))):
            cpus = tuple(range(first, first + threads))
            first += threads
            siblings = cpus if draw(st.booleans()) else (*cpus, first)
            first += len(siblings) - threads
            cores.append(Core(cpus, draw(st.integers(0, 3)), siblings))
        capacity = draw(st.floats(0.5, 1)) * 0.5**index
        sizes = draw(st.lists(st.integers(1, 2**30), max_size=3))
        clusters.append(
            Cluster(
                name="abcd"[index],
                cores=tuple(cores),
                capacity=capacity,
                core_name=draw(TEXT),
                max_mhz=draw(st.none() | st.floats(1, 9999)),
                governor=draw(st.none() | TEXT),
                limit_mhz=draw(st.none() | st.floats(1, 9999)),
                caches=tuple(Cache(level, size, 2) for level, size in enumerate(sizes, 1)),
            )
        )
    return Topology(
        clusters=tuple(clusters),
        pinnable=False,
        at_hand=False,
        source="x",
        machine=draw(TEXT),
        quota_cpus=draw(st.none() | st.floats(0.1, 99)),
        emulated=draw(st.booleans()),
    )


@given(topologies())
def test_round_trip(topology):
    again = file_topology(MachineFile.from_toml(to_toml(topology)), "x", None)
    assert replace(again, warnings=()) == topology
