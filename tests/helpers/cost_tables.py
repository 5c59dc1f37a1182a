"""Cost tables that are made up."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from corepipe.cost.table import (
    ConfigCosts,
    CostTable,
    EngineName,
    HopCosts,
    Provenance,
    TableCluster,
    TableMachine,
    TableNetwork,
)


def made_up(
    configs: Iterable[ConfigCosts],
    clusters: Mapping[str, int],
    *,
    cut_bytes: Sequence[int] | None = None,
    illegal_cuts: Iterable[int] = (),
    hop: HopCosts | None = None,
    source: Any = "made-up",
) -> CostTable:
    """A cost table; clusters by their numbers of cores, which are numbered one cluster after the other."""
    configs = tuple(configs)
    count = len(configs[0].layer_s)
    numbers = itertools.count()
    return CostTable(
        network=TableNetwork(
            name="net",
            sha256="0" * 64,
            layers=tuple(f"layer{i}" for i in range(count)),
            cut_bytes=tuple(cut_bytes or [0] * (count + 1)),
            illegal_cuts=tuple(illegal_cuts),
        ),
        machine=TableMachine(
            description="made up",
            fingerprint="0",
            clusters=tuple(
                TableCluster(name=name, cores=tuple(itertools.islice(numbers, cores)))
                for name, cores in clusters.items()
            ),
        ),
        engines=tuple(EngineName(name=name, version="1") for name in dict.fromkeys(c.engine for c in configs)),
        configs=configs,
        hop=hop or HopCosts(),
        provenance=Provenance(source=source),
    )
