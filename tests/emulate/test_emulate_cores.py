"""Slowing cores for real; skipped where real-time scheduling is not allowed."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator

import pytest

from corepipe.emulate import Emulation, slowed
from corepipe.errors import EmulationError
from corepipe.topology import ENVIRONMENT, detect

pytestmark = pytest.mark.privileged

VICTIM = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
for line in sys.stdin:
    done, end = 0, time.monotonic() + 0.06
    while time.monotonic() < end:
        sum(range(1000))
        done += 1
    print(done, flush=True)
"""


@pytest.fixture(scope="module")
def running(cpu: int) -> Iterator[Emulation]:
    """CPU `cpu` at 0.4 of its speed for all tests of this file."""
    with slowed({cpu: 0.4}) as emulation:
        yield emulation


@pytest.fixture
def emulation(running: Emulation, monkeypatch: pytest.MonkeyPatch) -> Emulation:
    """The running emulation, with the environment that it set (tests start with a clean one)."""
    monkeypatch.setenv(ENVIRONMENT, str(running.machine_file))
    return running


def test_ratio_is_near_what_was_asked(cpu: int, emulation: Emulation) -> None:
    assert emulation.measured[cpu] == pytest.approx(0.4, rel=0.1)
    with subprocess.Popen(
        [sys.executable, "-c", VICTIM, str(cpu)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as victim:
        ask, answer = victim.stdin, victim.stdout
        assert ask is not None
        assert answer is not None

        def work() -> int:
            ask.write("\n")
            return int(answer.readline())

        ratios: list[float] = []
        while len(ratios) < 7 or (len(ratios) < 35 and not 0.3 < statistics.median(ratios) < 0.5):  # others disturb
            emulation.pause()
            full = max(work() for _ in range(2))
            emulation.resume()
            ratios.append(max(work() for _ in range(2)) / full)
        ask.close()
    assert 0.3 < statistics.median(ratios) < 0.5


def test_it_shows_as_a_cluster_of_its_own(cpu: int, emulation: Emulation) -> None:
    seen = detect()
    assert seen.clusters == emulation.topology.clusters
    assert seen.emulated
    if len(seen.cores) > 1:
        assert cpu in seen.clusters[-1].cpus
        assert cpu not in seen.clusters[0].cpus


def test_the_same_cpu_is_refused_while_it_is_slowed(cpu: int, emulation: Emulation) -> None:
    with (
        pytest.raises(EmulationError, match=rf"already slowed by .*{emulation.burner_pids[0]}"),
        slowed({cpu: 0.5}),
    ):
        pass
    emulation.check()
    assert os.environ[ENVIRONMENT] == str(emulation.machine_file)


def test_blocks_on_other_cpus_nest(cpu: int, emulation: Emulation) -> None:
    others = sorted({core.id for core in emulation.topology.cores} - {cpu})
    if not others:
        pytest.skip("needs two cores")
    with slowed({others[0]: 0.7}) as inner:
        assert detect().clusters == inner.topology.clusters
        speeds = {c: cluster.capacity for cluster in inner.topology.clusters for c in cluster.cpus}
        assert speeds[others[0]] / speeds[cpu] == pytest.approx(0.7 / 0.4, rel=0.01)
    assert detect().clusters == emulation.topology.clusters


def test_unknown_and_impossible_are_refused(emulation: Emulation) -> None:
    with pytest.raises(EmulationError, match="CPU 60000 cannot be slowed"), slowed({60000: 0.5}):
        pass
    with pytest.raises(EmulationError, match="ask for a speed from"), slowed({0: 0.001}):
        pass
    with pytest.raises(EmulationError, match="no CPU"), slowed({}):
        pass
