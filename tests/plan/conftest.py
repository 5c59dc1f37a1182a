from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
from cost_tables import made_up

from corepipe.cost.table import ConfigCosts, CostTable, HopCosts


@pytest.fixture
def make_table() -> Callable[..., CostTable]:
    """A cost table from {config: seconds per layer}, the clusters' sizes, and whatever else differs from nothing."""

    def make(
        costs: Mapping[str, Sequence[float]],
        clusters: Mapping[str, int],
        *,
        busy: Mapping[str, Sequence[float]] | None = None,
        cut_bytes: Sequence[int] | None = None,
        illegal_cuts: Sequence[int] = (),
        hop: HopCosts | None = None,
        segment_s: float = 0.0,
    ) -> CostTable:
        return made_up(
            [
                ConfigCosts(
                    config=name,
                    layer_s=tuple(seconds),
                    layer_busy_s=None if busy is None else tuple(busy[name]),
                    segment_s=segment_s,
                )
                for name, seconds in costs.items()
            ],
            clusters,
            cut_bytes=cut_bytes,
            illegal_cuts=illegal_cuts,
            hop=hop,
        )

    return make


@pytest.fixture
def big_little(make_table: Callable[..., CostTable]) -> CostTable:
    """2 + 2 cores, 8 layers: wide layers scale with cores, narrow ones do not; big is better at every second one."""
    layers = [3.0, 1.0, 2.0, 4.0, 1.0, 2.0, 1.0, 2.0]
    costs = {}
    for cluster, slower in (("big", (1.0, 1.0)), ("little", (3.0, 1.8))):
        for count in (1, 2):
            costs[f"{cluster}{count}"] = [
                s * 1e-3 * slower[i % 2] * (1 if count == 1 else 0.6) for i, s in enumerate(layers)
            ]
    costs["all4"] = [s * 1e-3 * 0.7 for s in layers]
    return make_table(
        costs,
        {"big": 2, "little": 2},
        busy={name: [s * 1.1 for s in seconds] for name, seconds in costs.items()},
        cut_bytes=[100, 900, 400, 400, 200, 100, 100, 50, 10],
        hop=HopCosts(fixed_s=1e-4, per_byte_s=1e-8, edge_s=2e-5, latency_s=5e-5),
        segment_s=2e-5,
    )
