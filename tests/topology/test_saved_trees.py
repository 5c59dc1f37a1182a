"""Trees saved from real machines (hwloc's test suite)."""

from __future__ import annotations

import pytest

from corepipe.topology import detect


def test_hybrid_laptop(saved):
    topology = detect(saved("alderlake-6p-8e"))
    big, little = topology.clusters
    assert (big.name, little.name) == ("big", "little")
    assert (big.core_name, little.core_name) == ("P-core", "E-core")
    assert [core.cpus for core in big.cores] == [(n, n + 1) for n in range(0, 12, 2)]
    assert little.cpus == tuple(range(12, 20))
    assert little.capacity == pytest.approx(39 / 64, abs=1e-3)
    assert (big.max_mhz, little.max_mhz) == (5200, 3900)
    assert [(c.level, c.size_bytes, c.shared_by) for c in little.caches] == [
        (1, 32 * 1024, 1),
        (2, 2048 * 1024, 4),
        (3, 24576 * 1024, 20),
    ]
    assert topology.machine == "13th Gen Intel(R) Core(TM) i7-1370P"
    assert len(topology.warnings) == 2
    assert all("intel_pstate" in w for w in topology.warnings)


def test_server_in_a_cgroup(saved):
    topology = detect(saved("amd64-32-cgroup2"))
    assert [(c.name, c.cpus) for c in topology.clusters] == [("cpu", tuple(range(6)))]
    assert topology.hidden == ("CPUs 6-31 (cpu): outside this process's cpuset",)
    assert "only 6 of 32 online cores may be used by this process" in topology.warnings
    assert len(topology.cores) == 6


def test_old_arm_board(saved):
    topology = detect(saved("arm-2c"))
    (cluster,) = topology.clusters
    assert (cluster.name, cluster.cpus, cluster.core_name) == ("cpu", (0, 1), "Cortex-A9")
    assert (cluster.max_mhz, cluster.governor, cluster.caches) == (800, "ondemand", ())
    assert topology.machine == "ST-Ericsson MOP500 platform"


def test_unequal_caches_do_not_make_clusters(saved):
    topology = detect(saved("xeon-2s4c-asymcaches"))
    (cluster,) = topology.clusters
    assert (cluster.name, cluster.cpus) == ("cpu", tuple(range(8)))
    assert {core.package for core in cluster.cores} == {0, 1}
    assert [cache.level for cache in cluster.caches] == [1, 2]
