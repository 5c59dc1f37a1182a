from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corepipe.emulate import emulation, slowed_topology
from corepipe.emulate.machine import machine_file
from corepipe.errors import EmulationError
from corepipe.topology import ENVIRONMENT, detect, to_toml
from corepipe.topology.machine_file import MachineFile
from corepipe.topology.model import Cluster, Core, Topology
from corepipe.topology.overlay import file_topology


def machine(*clusters: tuple[str, float, int], threads: int = 1, text: str = "Board") -> Topology:
    """Clusters as (name, capacity, cores), CPUs numbered through."""
    made, cpu = [], 0
    for name, capacity, count in clusters:
        cores = []
        for _ in range(count):
            cpus = tuple(range(cpu, cpu + threads))
            cores.append(Core(cpus, 0, cpus))
            cpu += threads
        made.append(Cluster(name, tuple(cores), capacity, core_name=f"Cortex-{name}"))
    return Topology(tuple(made), machine=text)


def shape(topology: Topology) -> list[tuple[str, tuple[int, ...], float]]:
    return [(c.name, c.cpus, c.capacity) for c in topology.clusters]


def test_slowed_cores_become_a_cluster_of_their_own() -> None:
    slow = slowed_topology(machine(("cpu", 1.0, 4)), {2: 0.4, 3: 0.4})
    assert shape(slow) == [("big", (0, 1), 1.0), ("little", (2, 3), 0.4)]
    assert slow.emulated
    assert slow.machine == "Board slowed 2-3:0.4"
    assert [c.core_name for c in slow.clusters] == ["Cortex-cpu", "Cortex-cpu slowed to 0.4"]


def test_three_speeds_make_three_clusters() -> None:
    slow = slowed_topology(machine(("cpu", 1.0, 4)), {0: 0.2, 2: 0.5, 3: 0.5})
    assert shape(slow) == [("prime", (1,), 1.0), ("big", (2, 3), 0.5), ("little", (0,), 0.2)]


def test_a_slowed_big_core_may_fall_below_the_little_ones() -> None:
    slow = slowed_topology(machine(("big", 1.0, 2), ("little", 0.5, 2)), {1: 0.2})
    assert shape(slow) == [("prime", (0,), 1.0), ("big", (2, 3), 0.5), ("little", (1,), 0.2)]


def test_all_cores_slowed_alike_stay_one_cluster_but_another_machine() -> None:
    plain = machine(("cpu", 1.0, 2))
    slow = slowed_topology(plain, {0: 0.4, 1: 0.4})
    assert shape(slow) == [("cpu", (0, 1), 1.0)]
    assert slow.fingerprint() != plain.fingerprint()


def test_capacity_is_relative_to_the_fastest_core_left() -> None:
    slow = slowed_topology(machine(("cpu", 1.0, 2)), {0: 0.5, 1: 0.4})
    assert shape(slow) == [("big", (0,), 1.0), ("little", (1,), 0.8)]


def test_a_core_with_two_threads_is_slowed_as_a_whole() -> None:
    plain = machine(("cpu", 1.0, 2), threads=2)
    assert shape(slowed_topology(plain, {3: 0.4})) == [("big", (0, 1), 1.0), ("little", (2, 3), 0.4)]
    with pytest.raises(EmulationError, match="one core and cannot have two speeds"):
        slowed_topology(plain, {2: 0.4, 3: 0.5})


def test_an_unknown_cpu_is_refused_with_those_that_exist() -> None:
    with pytest.raises(EmulationError, match=r"CPU 9 cannot be slowed.*usable: CPUs 0-3"):
        slowed_topology(machine(("cpu", 1.0, 4)), {1: 0.4, 9: 0.4})


def test_long_names_are_cut_to_what_a_machine_file_takes(tmp_path: Path) -> None:
    plain = machine(("cpu", 1.0, 40), text="B" * 120)
    for speeds in ({1: 0.5}, {cpu: 0.1 + cpu / 50 for cpu in range(40)}):
        path = tmp_path / "machine.toml"
        path.write_text(to_toml(slowed_topology(plain, speeds)))
        assert len(detect(machine_file=path).machine) == 120


@given(st.data())
def test_every_core_appears_once_and_the_machine_file_tells_the_same(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    plain = machine(("big", 1.0, count), ("little", 0.45, count), text="B" * data.draw(st.integers(0, 130)))
    cpus = st.integers(0, 2 * count - 1)
    speeds = data.draw(st.dictionaries(cpus, st.integers(6, 99).map(lambda p: p / 100), min_size=1))
    slow = slowed_topology(plain, speeds)
    assert sorted(slow.cpus) == sorted(plain.cpus)
    capacities = [c.capacity for c in slow.clusters]
    assert capacities == sorted(capacities, reverse=True)
    assert capacities[0] == 1
    assert len({c.name for c in slow.clusters}) == len(slow.clusters)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "machine.toml")
        path.write_text(to_toml(slow))
        again = file_topology(MachineFile.read(path), str(path), None)
        assert again.clusters == slow.clusters
        assert again.emulated


def test_machine_file_goes_when_the_block_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with machine_file("one = 1\n") as path, machine_file("two = 2\n") as other:
        assert path.read_text() == "one = 1\n"
        assert other.read_text() == "two = 2\n"
        assert sorted(tmp_path.iterdir()) == sorted([path, other])
    assert list(tmp_path.iterdir()) == []


def test_machine_file_of_a_killed_owner_is_removed_by_the_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = "import os\nfrom corepipe.emulate.machine import machine_file\n"
    script += "with machine_file('x = 1'):\n    os.kill(os.getpid(), 9)\n"
    killed = subprocess.run([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert killed.returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    with machine_file("two = 2\n") as path:
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("override", [True, False])
def test_cpus_that_a_machine_file_leaves_out_stay_out(override, tmp_path, monkeypatch) -> None:
    path = tmp_path / "machine.toml"
    path.write_text(to_toml(machine(("cpu", 1.0, 2)), override=override))
    monkeypatch.setenv(ENVIRONMENT, str(path))
    assert emulation._lies_over() == override
    monkeypatch.delenv(ENVIRONMENT)
    assert emulation._lies_over()
