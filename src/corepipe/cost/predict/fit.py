"""Fits the cost model to a calibration's measurements: non-negative, for the relative error, per core type."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from corepipe.cost.calibration import Calibration, Condition, Sample, ScalingLaw
from corepipe.cost.predict.terms import CROSSING, TILINGS, Caches, Terms, Tiling, family, terms
from corepipe.errors import DocumentError
from corepipe.topology.model import ALL_CORES, CoreConfig

Vector = NDArray[np.float64]

ALL = "all"
"""The family name under which the intervals of all layers together are kept."""

NETWORK = "network"
"""The family name under which the intervals of whole networks are kept."""

_FOLDS = 6
_ROUNDS = 6
_RESOLUTION_S = 3e-6
"""Of a measured layer: errors below this do not count as relative ones."""

_ROBUST = 0.1
"""Relative errors above this count linearly, those below it squared."""

_MEBI = 2.0**20
_SHARED_MB = (8, 16, 32, 64, 128, 256)
"""Sizes tried for what a core effectively has of the shared cache; in virtual machines no other figure can be had."""

_OTHERS_RATES = (0.0, 4e9, 12e9)
"""Bytes/s tried for what others push through the shared cache: on a chip shared with other virtual machines, a weight
that is not used for some milliseconds is gone, whatever the size of the cache."""

_DEFAULT_OWN = 0.5 * _MEBI
_LEAST_SAMPLES = 8
_PULL = 0.002
"""How strongly the scaling of a group of terms is drawn to that of all terms, per layer measured."""

_REFINED = 0.001
"""How strongly a term on several cores is drawn to what scaling gives: what being off by all of it counts."""


@dataclass(frozen=True)
class Rows:
    """Layers as a matrix: one row a layer, one column a term.

    Attributes:
        amounts: [layers, terms]; seconds: [layers], what was measured; network: [layers], which one a layer is of.
    """

    names: tuple[str, ...]
    amounts: Vector
    seconds: Vector
    families: tuple[str, ...]
    network: NDArray[np.int64]

    def take(self, chosen: NDArray[np.bool_]) -> Rows:
        """Some of the layers."""
        families = tuple(f for f, use in zip(self.families, chosen, strict=True) if use)
        return replace(
            self,
            amounts=self.amounts[chosen],
            seconds=self.seconds[chosen],
            families=families,
            network=self.network[chosen],
        )


def fit(calibration: Calibration) -> Calibration:
    """The same calibration with its conditions and laws fitted anew to its measurements.

    Raises:
        DocumentError: it lacks the measurements of one core of a cluster.
    """
    configs = list(dict.fromkeys(m.config for m in calibration.measurements))
    singles = {c.name: str(CoreConfig(c.name, 1)) for c in calibration.machine.clusters}
    for name in singles.values():
        if name not in configs:
            raise DocumentError(f"calibration: nothing was measured on {name}; calibrate again")
    segments = {config: _segment_costs(calibration, config) for config in configs}
    first = next(iter(singles.values()))
    tiling, caches = _choose(calibration, first)
    conditions: list[Condition] = []
    base: dict[str, Condition] = {}
    for cluster, single in singles.items():
        rows = _rows(calibration, single, False, tiling, caches)
        base[cluster] = _finish(single, False, segments[single], rows, solve)
        conditions.append(base[cluster])
    fastest = base[next(iter(base))]
    scaled: list[Condition] = list(conditions)
    for config in configs:
        parsed = CoreConfig.parse(config)
        start = fastest if parsed.cluster == ALL_CORES else base[parsed.cluster]
        for busy in (False, True):
            rows = _rows(calibration, config, busy, tiling, caches)
            if not len(rows.seconds) or (not busy and config in singles.values()):
                continue
            # What several cores read of each other is among the terms already where they were fitted alone.
            scaler = _scaler(start, parsed.count > 1 and CROSSING not in start.coefficients)
            if parsed.count > 1 and not busy:
                scaled.append(start.model_copy(update={"config": config, "coefficients": scaler(rows)}))
                start = _finish(config, busy, segments[config], rows, _refiner(scaler))
                conditions.append(start)
            else:
                conditions.append(_finish(config, busy, segments[config], rows, scaler))
    laws = [_law(cluster, scaled) for cluster in base]
    return calibration.model_copy(
        update={
            "tiles": tiling.name,
            "own_cache_bytes": int(caches.own),
            "shared_cache_bytes": int(caches.shared),
            "others_bytes_per_s": caches.others_rate,
            "conditions": tuple(conditions),
            "laws": tuple(laws),
        }
    )


def solve(rows: Rows) -> dict[str, float]:
    """Non-negative seconds per unit of each term that minimise the relative error (Lawson and Hanson's NNLS).

    The weights are found in rounds: an error counts relative to the geometric mean of measured and fitted time, which
    favours neither too short nor too long, and large errors count linearly.
    """
    return _each_term(rows, [name for name in rows.names if name != CROSSING], {})


def _each_term(rows: Rows, candidates: Collection[str], usual: Mapping[str, float]) -> dict[str, float]:
    """Seconds per unit of each of some terms that occur, drawn a little to what is `usual`."""
    scale = rows.amounts.max(axis=0, initial=0.0)
    used = [i for i, name in enumerate(rows.names) if scale[i] > 0 and name in candidates]
    names = [rows.names[i] for i in used]
    wanted = np.array([usual.get(name, 0.0) for name in names]) * scale[used]
    known = wanted > 0
    pull = np.sqrt(_REFINED) * np.eye(len(names))[known] / wanted[known, None]
    targets = np.full(len(pull), np.sqrt(_REFINED))
    found = _weighted(rows.amounts[:, used] / scale[used], rows.seconds, (pull, targets)) / scale[used]
    return {name: float(value) for name, value in zip(names, found, strict=True) if value > 0}


def _weighted(matrix: Vector, seconds: Vector, pull: tuple[Vector, Vector]) -> Vector:
    fitted = seconds
    found = np.zeros(matrix.shape[1])
    for _ in range(_ROUNDS):
        size = np.sqrt((seconds + _RESOLUTION_S) * (np.maximum(fitted, seconds / 5) + _RESOLUTION_S))
        error = np.abs(fitted - seconds) / size
        weight = 1 / size / np.sqrt(np.maximum(error, _ROBUST) / _ROBUST)
        left = np.vstack([matrix * weight[:, None], pull[0]])
        right = np.concatenate([seconds * weight, pull[1]])
        found, _ = nnls(left, right, maxiter=50 * matrix.shape[1])
        fitted = matrix @ found
    return np.asarray(found, dtype=np.float64)


def _scaler(start: Condition, several: bool) -> Callable[[Rows], dict[str, float]]:
    """Fits how much longer or shorter each group of one core's terms takes under another condition.

    On several cores, what one has written and another reads comes as a term of its own.
    """

    def scale(rows: Rows) -> dict[str, float]:
        groups: dict[str, list[str]] = {}
        for name in start.coefficients:
            groups.setdefault(_group(name), []).append(name)
        column = {name: rows.amounts[:, i] for i, name in enumerate(rows.names)}
        nothing = np.zeros(len(rows.seconds))
        columns = [
            sum((start.coefficients[n] * column[n] for n in names if n in column), nothing) for names in groups.values()
        ]
        common = float(np.median(rows.seconds / np.maximum(sum(columns, nothing), 1e-9)))
        wanted = [common] * len(columns)
        unit = float(rows.seconds.sum() / max(column.get(CROSSING, nothing).sum(), 1.0))
        if several:
            columns.append(unit * column.get(CROSSING, nothing))
            wanted.append(0.0)
        parts = np.column_stack(columns)
        strength = np.sqrt(_PULL * len(rows.seconds)) * np.eye(parts.shape[1])
        factors = _weighted(parts, rows.seconds, (strength, strength @ np.array(wanted)))
        factor = dict(zip(groups, factors, strict=False))
        found = {name: value * float(factor[_group(name)]) for name, value in start.coefficients.items()}
        return found | ({CROSSING: unit * float(factors[-1])} if several else {})

    return scale


def _refiner(start: Callable[[Rows], dict[str, float]]) -> Callable[[Rows], dict[str, float]]:
    """Fits every term by itself, drawn a little to what `start` makes of it."""
    return lambda rows: _each_term(rows, rows.names, start(rows))


def _group(name: str) -> str:
    """What scales alike: bytes from beyond a cache, calls, and the computing of one kind of kernel."""
    if is_memory(name):
        return "memory"
    return "call" if is_call(name) else name.partition(".")[0]


def is_memory(name: str) -> bool:
    """Whether a term is of bytes that come from a shared cache or memory."""
    return name.endswith(("far_bytes", "memory_bytes"))


def is_call(name: str) -> bool:
    """Whether a term is of kernel calls."""
    return name == "call"


def _rows(
    calibration: Calibration,
    config: str,
    busy: bool,
    tiling: Tiling,
    caches: Caches,
) -> Rows:
    networks = {network.index: network for network in calibration.networks}
    found: list[tuple[Sample, float, int]] = []
    amounts: list[Terms] = []
    for measured in calibration.measurements:
        layers = measured.busy_layer_s if busy else measured.layer_s
        if measured.config != config or layers is None:
            continue
        network = networks[measured.network]
        total = sum(layers)
        own = max(total - measured.call_s, 0.5 * total)
        found += [(s, v * own / total, network.index) for s, v in zip(network.layers, layers, strict=True)]
        amounts += [terms(sample, tiling, caches, total) for sample in network.layers]
    names = tuple(sorted({name for row in amounts for name in row}))
    return Rows(
        names,
        matrix_of(amounts, names),
        np.array([seconds for _, seconds, _ in found]),
        tuple(family(sample) for sample, _, _ in found),
        np.array([index for _, _, index in found], dtype=np.int64),
    )


def matrix_of(amounts: Sequence[Mapping[str, float]], names: Sequence[str]) -> Vector:
    """Amounts as a matrix [layers, terms]."""
    return np.array([[row.get(name, 0.0) for name in names] for row in amounts]).reshape(len(amounts), len(names))


def _finish(
    config: str, busy: bool, segment: tuple[float, float], rows: Rows, fitter: Callable[[Rows], dict[str, float]]
) -> Condition:
    """Fit, and judge by networks that were left out of the fit."""
    predicted = np.zeros(len(rows.seconds))
    folds = rows.network % _FOLDS
    for fold in range(_FOLDS):
        out = folds == fold
        if out.any() and not out.all():
            predicted[out] = _apply(fitter(rows.take(~out)), rows.take(out))
    seen = predicted > 0
    coefficients = fitter(rows)
    if not seen.any():
        predicted, seen = _apply(coefficients, rows), np.ones(len(rows.seconds), dtype=np.bool_)
    low, high = _intervals(rows.take(seen), predicted[seen])
    error = np.abs(predicted[seen] - rows.seconds[seen]).sum() / rows.seconds[seen].sum()
    return Condition(
        config=config,
        busy=busy,
        coefficients=coefficients,
        low=low,
        high=high,
        segment_s=segment[0],
        segment_s_per_byte=segment[1],
        error=float(error),
    )


def _apply(coefficients: Mapping[str, float], rows: Rows) -> Vector:
    return np.asarray(rows.amounts @ np.array([coefficients.get(name, 0.0) for name in rows.names]))


def _intervals(rows: Rows, predicted: Vector) -> tuple[dict[str, float], dict[str, float]]:
    """The 10 % and 90 % quantiles of measured over predicted, by family; few layers borrow from all."""
    ratio = rows.seconds / np.maximum(predicted, 1e-9)
    low, high = {}, {}

    def note(name: str, values: Vector) -> None:
        low[name], high[name] = (float(q) for q in np.percentile(values, [10, 90]))

    note(ALL, ratio)
    for name in sorted(set(rows.families)):
        mine = np.array([f == name for f in rows.families])
        if mine.sum() >= _LEAST_SAMPLES:
            note(name, ratio[mine])
    totals = [
        (rows.seconds[rows.network == index].sum(), predicted[rows.network == index].sum())
        for index in np.unique(rows.network)
    ]
    note(NETWORK, np.array([measured / max(made, 1e-9) for measured, made in totals]))
    return low, high


def _segment_costs(calibration: Calibration, config: str) -> tuple[float, float]:
    """Seconds per segment, no less than an empty call takes, and per byte at its cuts, over all networks."""
    mine = [m for m in calibration.measurements if m.config == config and m.cuts]
    if not mine:
        return 0.0, 0.0
    call_s = float(np.median([m.call_s for m in mine]))
    matrix = np.array([[m.cuts, m.cut_bytes] for m in mine], dtype=float)
    extra = np.array([m.cuts_extra_s for m in mine])
    scale = np.maximum(matrix.max(axis=0), 1.0)
    weight = 1 / np.array([max(m.whole_s, 1e-6) for m in mine])
    found, _ = nnls(matrix / scale * weight[:, None], extra * weight)
    return max(float(found[0] / scale[0]), call_s), float(found[1] / scale[1])


def _choose(calibration: Calibration, config: str) -> tuple[Tiling, Caches]:
    """The tiling and the effective share of the shared cache under which one core's times fit best."""
    own = calibration.own_cache_bytes or _DEFAULT_OWN

    def loss(tiling: Tiling, caches: Caches) -> float:
        rows = _rows(calibration, config, False, tiling, caches)
        fitted = _apply(solve(rows), rows)
        size = np.sqrt((rows.seconds + _RESOLUTION_S) * (fitted + _RESOLUTION_S))
        return float(np.mean(np.abs(fitted - rows.seconds) / size * np.sqrt(rows.seconds)))

    middle = Caches(own, max(_SHARED_MB[len(_SHARED_MB) // 2] * _MEBI, 2 * own))
    tiling = min(TILINGS.values(), key=lambda t: loss(t, middle))
    sizes = [size * _MEBI for size in _SHARED_MB if size * _MEBI > own] or [4 * own]
    choices = [Caches(own, size, rate) for size in sizes for rate in _OTHERS_RATES]
    return tiling, min(choices, key=lambda caches: loss(tiling, caches))


def _law(cluster: str, conditions: Sequence[Condition]) -> ScalingLaw:
    """The serial fraction and the bandwidth ceiling that explain the measured counts of a cluster best."""
    alone = {
        parsed.count: c for c in conditions if not c.busy and (parsed := CoreConfig.parse(c.config)).cluster == cluster
    }
    one = alone[1]
    serial, cores, barrier, crossing = [], [], [], []
    for count, condition in alone.items():
        if count == 1:
            continue
        computing, memory = _ratio(condition, one, False), _ratio(condition, one, True)
        serial.append((computing * count - 1) / (count - 1))
        cores.append(1 / max(memory, 1 / count))
        call = condition.coefficients.get("call", 0.0) - one.coefficients.get("call", 0.0)
        barrier.append(call / (count - 1))
        crossing.append(condition.coefficients.get(CROSSING, 0.0))
    if not serial:
        return ScalingLaw(cluster=cluster)
    return ScalingLaw(
        cluster=cluster,
        serial=float(np.clip(np.median(serial), 0.0, 1.0)),
        memory_cores=float(max(1.0, max(cores))),
        barrier_s=float(max(0.0, np.median(barrier))),
        crossing_s_per_byte=float(np.median(crossing)),
    )


def _ratio(condition: Condition, one: Condition, memory: bool) -> float:
    """Median ratio of the coefficients of a class."""
    ratios = [
        condition.coefficients[name] / value
        for name, value in one.coefficients.items()
        if is_memory(name) == memory and not is_call(name) and name in condition.coefficients
    ]
    return float(np.median(ratios)) if ratios else 1.0
