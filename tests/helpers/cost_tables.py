"""Cost tables that are made up."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from corepipe.cost.measuring import core_configs
from corepipe.cost.profile import table_machine, table_network
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
from corepipe.network.model import Network
from corepipe.topology.model import Topology


def of_machine(network: Network, topology: Topology) -> CostTable:
    """A table of a real network and machine on ONNX Runtime: every layer a tenth of a millisecond on one core."""
    return CostTable(
        network=table_network(network),
        machine=table_machine(topology),
        engines=(EngineName(name="onnxruntime", version="any"),),
        configs=tuple(
            ConfigCosts(config=str(config), layer_s=(1e-4 / config.count,) * len(network.layers))
            for config in core_configs(topology)
        ),
        provenance=Provenance(source="made-up"),
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
