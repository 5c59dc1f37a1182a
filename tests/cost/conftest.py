from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from corepipe.api import engine_name
from corepipe.cost.calibration import Calibration, Measurement, SampleNetwork
from corepipe.cost.calibration_set import SET_VERSION, calibration_network, kind_count
from corepipe.cost.predict.fit import fit
from corepipe.cost.predict.layout import samples
from corepipe.cost.predict.terms import CROSSING, TILINGS, Caches, terms
from corepipe.cost.table import HopCosts, TableCluster, TableMachine

OWN, SHARED = 2**20, 32 * 2**20
SERIAL, MEMORY_CORES = 0.1, 2.5


def true_seconds(sample, cores: int = 1, slow: float = 1.0) -> float:
    """What a layer takes on a machine made up for the tests: 50 GFLOP/s a core, 10 GB/s beyond its cache."""
    total = 0.0
    for name, amount in terms(sample, TILINGS["16x6"], Caches(OWN, SHARED)).items():
        if name == CROSSING:
            total += amount * 5e-11 if cores > 1 else 0.0
        elif name == "call":
            total += amount * 2e-6
        elif name.endswith(("far_bytes", "memory_bytes")):
            total += amount * 1e-10 / min(cores, MEMORY_CORES)
        else:
            rate = 4e-11 if name.endswith("macs") else 2e-10
            total += amount * rate * (SERIAL + (1 - SERIAL) / cores)
    return total * slow


@cache
def _sample_network(index: int) -> SampleNetwork:
    network = calibration_network(index)
    ends = network.cuts[0].nbytes + network.cuts[-1].nbytes
    return SampleNetwork(index=index, layers=samples(network), end_bytes=ends)


@pytest.fixture(scope="session")
def made_up() -> Callable[..., Calibration]:
    """Makes a calibration from the made-up machine's times: `clusters` by name with (cores, slowness)."""

    def make(
        clusters: dict[str, tuple[int, float]] | None = None,
        *,
        counts: tuple[int, ...] = (1, 2, 4),
        busy: float = 1.25,
        noise: float = 0.0,
        networks: int | None = None,
    ) -> Calibration:
        clusters = clusters or {"cpu": (2, 1.0)}
        generator = np.random.default_rng(0)
        used = [_sample_network(index) for index in range(networks or kind_count())]
        total = sum(size for size, _ in clusters.values())
        configs = [(name, n, slow) for name, (size, slow) in clusters.items() for n in counts if n <= size]
        if len(clusters) > 1:
            configs.append(("all", total, max(slow for _, slow in clusters.values())))
        measurements = []
        for name, count, slow in configs:
            for network in used:
                drawn = np.exp(noise * generator.standard_normal(len(network.layers)))
                seconds = np.array([true_seconds(s, count, slow) for s in network.layers]) * drawn
                measurements.append(
                    Measurement(
                        config=f"{name}{count}",
                        network=network.index,
                        layer_s=tuple(map(float, seconds)),
                        busy_layer_s=tuple(map(float, seconds * busy)) if count < total else None,
                        whole_s=float(seconds.sum()),
                        spread=0.01,
                    )
                )
        ids = iter(range(total))
        machine = TableMachine(
            description="made up",
            fingerprint="0" * 16,
            clusters=tuple(
                TableCluster(name=name, cores=tuple(next(ids) for _ in range(size)))
                for name, (size, _) in clusters.items()
            ),
        )
        return fit(
            Calibration(
                machine=machine,
                engine=engine_name(),
                set_version=SET_VERSION,
                spread=0.01,
                own_cache_bytes=OWN,
                hop=HopCosts(fixed_s=2e-5, edge_s=1e-5),
                networks=tuple(used),
                measurements=tuple(measurements),
            )
        )

    return make


@pytest.fixture(scope="session")
def calibration(made_up) -> Calibration:
    """Of a made-up machine with one cluster of two cores."""
    return made_up()


@pytest.fixture(scope="session")
def truth() -> Callable[..., float]:
    """Seconds of a layer on the made-up machine, on `cores` cores."""
    return true_seconds
