from __future__ import annotations

import subprocess
import sys

import pytest

from corepipe.errors import TopologyError
from corepipe.topology.macos import NOT_PINNABLE, read_macos

M1_PRO = """kern.ostype: Darwin
hw.ncpu: 10
hw.physicalcpu: 10
hw.logicalcpu: 10
hw.nperflevels: 2
hw.perflevel0.physicalcpu: 8
hw.perflevel0.logicalcpu: 8
hw.perflevel0.l1icachesize: 196608
hw.perflevel0.l1dcachesize: 131072
hw.perflevel0.l2cachesize: 12582912
hw.perflevel0.cpusperl2: 4
hw.perflevel0.name: Performance
hw.perflevel1.physicalcpu: 2
hw.perflevel1.logicalcpu: 2
hw.perflevel1.l1dcachesize: 65536
hw.perflevel1.l2cachesize: 4194304
hw.perflevel1.cpusperl2: 2
hw.perflevel1.name: Efficiency
machdep.cpu.brand_string: Apple M1 Pro
"""
INTEL = "hw.physicalcpu: 4\nhw.logicalcpu: 8\nhw.l1dcachesize: 32768\nhw.cpufrequency_max: 2300000000\nhw.model: Mac"


def test_apple_silicon():
    commands = []
    topology = read_macos(lambda command: commands.append(command) or M1_PRO)
    assert commands[0][0].endswith("sysctl")
    assert [(c.name, len(c.cores), c.core_name) for c in topology.clusters] == [
        ("big", 8, "Performance"),
        ("little", 2, "Efficiency"),
    ]
    assert topology.cpus == tuple(range(10))
    assert not topology.pinnable
    assert NOT_PINNABLE in topology.warnings
    assert any("estimates" in w for w in topology.warnings)
    assert [(c.level, c.shared_by) for c in topology.clusters[0].caches] == [(1, 1), (2, 4)]
    assert (topology.machine, topology.source) == ("Apple M1 Pro", "sysctl")


def test_intel_mac():
    (cluster,) = (topology := read_macos(lambda _: INTEL)).clusters
    assert (cluster.name, cluster.max_mhz) == ("cpu", 2300)
    assert [core.cpus for core in cluster.cores] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert topology.warnings == (NOT_PINNABLE,)


@pytest.mark.parametrize("text", ["", "nonsense", "hw.physicalcpu: -3", "hw.physicalcpu: 8\nhw.logicalcpu: 99999999"])
def test_garbage(text):
    with pytest.raises(TopologyError, match="core count"):
        read_macos(lambda _: text)


@pytest.mark.skipif(sys.platform == "darwin", reason="has the real sysctl")
def test_no_sysctl(monkeypatch):
    def fail(*_, **__):
        raise subprocess.CalledProcessError(1, "sysctl")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(TopologyError, match="sysctl failed"):
        read_macos()
