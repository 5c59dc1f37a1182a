"""Predicts layers with a fitted calibration: seconds, how sure they are, and what lies outside what was seen."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from corepipe.cost.calibration import Calibration, Condition, Sample
from corepipe.cost.predict.fit import ALL, NETWORK, is_call, is_memory, matrix_of
from corepipe.cost.predict.terms import CROSSING, TILINGS, Caches, family, terms
from corepipe.errors import DocumentError
from corepipe.topology.model import ALL_CORES, CoreConfig

Vector = NDArray[np.float64]

_MARGIN = 1.5
"""A layer's size may lie this far beyond the smallest and largest that were measured."""

_PASSES = 2
"""How often a network's time, on which it depends what the caches still hold, is put into its own prediction."""

_LEAST_S = 1e-9
_DOUBT = 2.0
"""How much wider an interval is for a layer outside what was seen."""


@dataclass(frozen=True)
class Layers:
    """Predictions for layers on one core config: [layers] each."""

    seconds: Vector
    low: Vector
    high: Vector

    def without(self, free: Collection[int]) -> Layers:
        """The same, but that some layers take next to nothing."""
        kept = np.array([index not in free for index in range(len(self.seconds))])
        return Layers(*(np.where(kept, vector, _LEAST_S) for vector in (self.seconds, self.low, self.high)))


class Predictor:
    """What a calibration says of layers.

    Args:
        calibration: a fitted one.

    Raises:
        DocumentError: it was not fitted, or with kernels that this version does not know.
    """

    def __init__(self, calibration: Calibration) -> None:
        if not calibration.conditions or calibration.tiles not in TILINGS:
            raise DocumentError("the calibration holds no fit that this corepipe knows; calibrate again")
        self.calibration = calibration
        self._conditions = {(c.config, c.busy): c for c in calibration.conditions}
        self._tiling = TILINGS[calibration.tiles]
        self._caches = Caches(
            calibration.own_cache_bytes, calibration.shared_cache_bytes, calibration.others_bytes_per_s
        )
        self._ranges = _ranges(calibration)
        self._known = {op for network in calibration.networks for sample in network.layers for op in sample.op_types}

    def condition(self, config: CoreConfig, *, busy: bool = False) -> Condition | None:
        """What was fitted for a config; for a count that was not measured, by the cluster's scaling law.

        None where nothing is known: of a config that leaves no core to be busy, or of another machine.
        """
        found = self._conditions.get((str(config), busy))
        if found is not None or config.cluster == ALL_CORES:
            return found
        size = next((len(c.cores) for c in self.calibration.machine.clusters if c.name == config.cluster), 0)
        total = sum(len(c.cores) for c in self.calibration.machine.clusters)
        if not 0 < config.count <= size or (busy and config.count == total):
            return None
        one = self._conditions.get((str(CoreConfig(config.cluster, 1)), busy))
        return None if one is None else self._scaled(one, config)

    def layers(self, samples: Sequence[Sample], condition: Condition) -> Layers:
        """Seconds of a network's layers, with the interval that held 80 % of the layers left out of the fit."""
        seconds = self._seconds(samples, condition, 0.0)
        for _ in range(_PASSES):
            seconds = self._seconds(samples, condition, float(seconds.sum()))
        low, high = np.ones(len(samples)), np.ones(len(samples))
        for index, sample in enumerate(samples):
            name = family(sample)
            low[index] = min(condition.low.get(name, condition.low.get(ALL, 1.0)), 1.0)
            high[index] = max(condition.high.get(name, condition.high.get(ALL, 1.0)), 1.0)
            if self.doubts(sample):
                low[index], high[index] = low[index] / _DOUBT, high[index] * _DOUBT
        return Layers(seconds, seconds * low, seconds * high)

    def _seconds(self, samples: Sequence[Sample], condition: Condition, frame_s: float) -> Vector:
        amounts = [terms(sample, self._tiling, self._caches, frame_s) for sample in samples]
        names = tuple(sorted({name for row in amounts for name in row}))
        weights = np.array([condition.coefficients.get(name, 0.0) for name in names])
        return np.asarray(np.maximum(matrix_of(amounts, names) @ weights, _LEAST_S))

    def network_interval(self, condition: Condition) -> tuple[float, float]:
        """By which factors 10 % and 90 % of left-out networks were off."""
        return min(condition.low.get(NETWORK, 1.0), 1.0), max(condition.high.get(NETWORK, 1.0), 1.0)

    def doubts(self, sample: Sample) -> list[str]:
        """Why a layer lies outside what was calibrated; empty if it does not."""
        found = [f"operator {op} was not calibrated" for op in sample.op_types if op not in self._known]
        if sample.dtype != "float32":
            found.append(f"element type {sample.dtype} was not calibrated")
        name = family(sample)
        ranges = self._ranges.get(name)
        if ranges is None:
            return [*found, f"no layer like it ({name}) was calibrated"]
        for key, value in _sizes(sample).items():
            low, high = ranges[key]
            if value > 0 and not low / _MARGIN <= value <= high * _MARGIN:
                found.append(f"{name}: {key} {value:,.0f} is outside the calibrated {low:,.0f} to {high:,.0f}")
        return found

    def _scaled(self, one: Condition, config: CoreConfig) -> Condition:
        law = next((law for law in self.calibration.laws if law.cluster == config.cluster), None)
        if law is None:
            raise DocumentError(f"the calibration tells nothing of several cores of {config.cluster}; calibrate again")
        computing = law.serial + (1 - law.serial) / config.count
        memory = 1 / min(config.count, law.memory_cores)
        coefficients = {
            name: value * (1.0 if is_call(name) else memory if is_memory(name) else computing)
            for name, value in one.coefficients.items()
        }
        coefficients[CROSSING] = law.crossing_s_per_byte if config.count > 1 else 0.0
        coefficients["call"] = coefficients.get("call", 0.0) + law.barrier_s * (config.count - 1)
        return one.model_copy(update={"config": str(config), "coefficients": coefficients})


def _sizes(sample: Sample) -> dict[str, float]:
    return {
        "FLOPs": sample.flops,
        "bytes moved": sample.bytes_in + sample.bytes_out,
        "weight bytes": sample.bytes_weights,
    }


def _ranges(calibration: Calibration) -> dict[str, dict[str, tuple[float, float]]]:
    """The smallest and largest size of each kind that was measured, by family."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for network in calibration.networks:
        for sample in network.layers:
            mine = found.setdefault(family(sample), {})
            for key, value in _sizes(sample).items():
                low, high = mine.get(key, (math.inf, 0.0))
                mine[key] = (min(low, value) if value > 0 else low, max(high, value))
    return found
