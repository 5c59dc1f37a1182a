"""Costs corrected by what the hops of running plans took.

A table is measured in moments that others leave quiet, on one core config after the other; a plan runs in whatever the
machine gives, on all of them at once. So a config may be slower in streams than its costs say, by a quarter and more,
and the plan that is best by those costs is out of balance. What hops take tells that: each is the sum of the costs of
its layers, on one config and in known modes.

Of all corrections the most likely one is taken: the mean of a Gaussian after linear observations. Costs are taken to be
off by a factor that all share, one that those of a config share, one that those of a mode on it share, and each by
something of its own; and each segment on a config may cost the same more. So what was not seen is corrected like what
is nearest to it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import diags, lil_matrix

from corepipe.cost.table import ConfigCosts, CostTable
from corepipe.plan.model import Hop, HopPart, Plan, hop_s
from corepipe.topology.model import CoreConfig

Floats = NDArray[np.float64]

Seen = tuple[Plan, Mapping[Hop, float]]
"""A plan that ran, and the mean seconds of a frame for hops of it."""

_SHARED_DOUBT, _CONFIG_DOUBT, _MODE_DOUBT, _LAYER_DOUBT = 0.3, 0.3, 0.1, 0.05
"""How far off costs are taken to be, as standard deviations and shares of themselves: all together, those of a config
together, those of a mode on it together, and each for itself."""

_SEGMENT_DOUBT = 0.02
"""The same for what each segment costs beside its layers, as a share of the whole network."""

_TIME_DOUBT = 0.02
"""The same for a time that was seen."""

_LEAST_SHARE = 0.1
"""Of a cost that is left, whatever was seen."""

_LEAST_S, _NOTHING_S = 1e-6, 1e-15
"""Times are no more exact than the one; by no less than the other is divided."""


@dataclass(frozen=True)
class _Observation:
    """Some segments on a config took so many seconds, and so many more than expected."""

    config: CoreConfig
    parts: tuple[HopPart, ...]
    took_s: float
    more_s: float


def learnt(table: CostTable, seen: Iterable[Seen]) -> CostTable:
    """The table with the costs that are the most likely ones after what hops took.

    Args:
        table: the costs before.
        seen: what ran. A single worker on some of the cores does not count: it tells nothing of a core whose neighbours
            are busy.

    Raises:
        PlanError: the table has no costs of some hop.
    """
    observations = [one for plan, took in seen for one in _observed(table, plan, took)]
    if not observations:
        return table
    doubts = dict.fromkeys(table.by_config, _SEGMENT_DOUBT)
    while True:
        rows, dearer_s = _corrected(table, observations, doubts)
        # Segments that seem to gain something are taken to cost what they did.
        cheaper = [config for config, seconds in dearer_s.items() if seconds < 0]
        if not cheaper:
            return table.replaced(configs=rows)
        doubts.update(dict.fromkeys(cheaper, 0.0))


def _observed(table: CostTable, plan: Plan, took: Mapping[Hop, float]) -> Iterator[_Observation]:
    busy = len(plan.workers) > 1
    sized = table.for_frames(plan.batch)
    for hop, seconds in took.items():
        config = plan.worker(hop.worker).core_config
        if busy or config == table.all_cores:
            expected = hop_s(plan, hop, sized, busy=busy)
            yield _Observation(config, plan.parts_of(hop), seconds, seconds - expected)


def _corrected(
    table: CostTable, observations: Sequence[_Observation], segment_doubts: Mapping[CoreConfig, float]
) -> tuple[tuple[ConfigCosts, ...], dict[CoreConfig, float]]:
    """The corrected rows, and by config the seconds by which segments cost more on it.

    The unknowns are, in this order: the shared factor, the factor of each config, what segments cost more on it, the
    factor of each row, and of each row the layers.
    """
    rows, configs, count = table.configs, list(table.by_config), table.layer_count
    costs = np.array([row.layer_s if row.layer_busy_s is None else row.layer_busy_s for row in rows])
    config_of = [configs.index(row.core_config) for row in rows]
    number_of = {(row.core_config, row.mode): number for number, row in enumerate(rows)}
    whole = [min(costs[n].sum() for n, of in enumerate(config_of) if of == c) for c in range(len(configs))]
    ends = list(itertools.accumulate([1, len(configs), len(configs), len(rows), costs.size]))
    every_config, every_segment, every_row, every_layer = (slice(a, b) for a, b in itertools.pairwise(ends))

    # Of small layers more than their share: a profiler may have counted them for their neighbours.
    doubt = np.empty(ends[-1])
    doubt[0], doubt[every_config], doubt[every_row] = _SHARED_DOUBT, _CONFIG_DOUBT, _MODE_DOUBT
    doubt[every_segment] = [segment_doubts[config] * seconds for config, seconds in zip(configs, whole, strict=True)]
    doubt[every_layer] = (_LAYER_DOUBT * np.maximum(costs, costs.mean(axis=1, keepdims=True))).ravel()

    belongs = lil_matrix((len(observations), ends[-1]))
    for line, one in enumerate(observations):
        config = configs.index(one.config)
        belongs[line, every_segment.start + config] = len(one.parts)
        for part in one.parts:
            number = number_of[one.config, part.mode]
            seconds = float(costs[number, part.start : part.stop].sum())
            first = every_layer.start + number * count
            belongs[line, first + part.start : first + part.stop] = 1.0
            belongs[line, every_row.start + number] += seconds
            belongs[line, every_config.start + config] += seconds
            belongs[line, 0] += seconds
    # In shares of what was seen, so that short hops and long ones have the same weight, and nothing is near to zero.
    took = np.array([max(one.took_s, one.took_s - one.more_s, _LEAST_S) for one in observations])
    spread = diags(1 / took) @ belongs.tocsr() @ diags(doubt)
    known = (spread @ spread.T).toarray() + _TIME_DOUBT**2 * np.eye(len(observations))
    weights = np.linalg.solve(known, [one.more_s for one in observations] / took)
    found = doubt * (spread.T @ weights)

    factors = (found[0] + found[every_config][config_of] + found[every_row])[:, np.newaxis]
    more = factors * costs + found[every_layer].reshape(costs.shape)
    dearer_s = dict(zip(configs, found[every_segment].tolist(), strict=True))
    return tuple(_changed(row, own, dearer_s[row.core_config]) for row, own in zip(rows, more, strict=True)), dearer_s


def _changed(row: ConfigCosts, more_s: Floats, dearer_s: float) -> ConfigCosts:
    """The row with its layers, beside busy neighbours where that is known, dearer by so much."""
    known = np.array(row.layer_s if row.layer_busy_s is None else row.layer_busy_s)

    def changed(layers: tuple[float, ...]) -> tuple[float, ...]:
        own = np.array(layers)
        share = own / np.maximum(np.maximum(own, known), _NOTHING_S)  # alone, layers are dearer by the same factor
        return tuple(np.maximum(own + share * more_s, _LEAST_SHARE * own).tolist())

    return row.model_copy(
        update={
            "layer_s": changed(row.layer_s),
            "layer_busy_s": None if row.layer_busy_s is None else changed(row.layer_busy_s),
            "segment_s": row.segment_s + dearer_s,
        }
    )
