"""Holds the modes of a cost table against each other, and the best divisions among them against their prediction.

Each mode of a table was measured at another moment; an engine's profiler does not always say which layer took the time;
and what it costs to change from one engine to another is not in any table. The best division is the one whose costs
happen to be underrated most. So on each config the whole network in every mode, and the best division, are timed in one
process, taking turns. What each part took corrects the costs of its layers, the least that explains it, which leads to
another best division, until the best one is one that was timed, or there has been enough of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import numpy as np

from corepipe.cost.measuring import MeasuringProcess, Progress, cores_of, loaded, loads, scaled, typical_each
from corepipe.cost.table import ConfigCosts, CostTable
from corepipe.network.batch import batched
from corepipe.network.model import Network
from corepipe.plan.division import Divider
from corepipe.plan.model import HopPart, parts_s
from corepipe.topology.memory import available_memory
from corepipe.topology.model import CoreConfig, Topology

Division = tuple[HopPart, ...]
Took = Mapping[Division, Sequence[float]]
"""Seconds of one frame for each part of some divisions."""

_SECONDS_EACH = 0.5
_ROUNDS = 4
_COPIES = 4
"""Of a part's weights while it is timed: the model here, handed over, and what the engine makes of it."""

_LEAST_SHARE = 0.1
"""Of a network's time stays with its layers, however much its segments cost."""

_LAYER_DOUBT = 0.3
_SEGMENT_DOUBT = 0.01
_TIME_DOUBT = 0.01
"""How far off, as standard deviations, they are taken to be: a layer's cost (a share of itself), what a segment costs
beside its layers (of the whole network) and a time in turns (of itself)."""

_NOTHING_S = 1e-15
"""A layer whose cost was too small to be kept is taken to take so long where it is divided by."""


def align(
    network: Network,
    topology: Topology,
    table: CostTable,
    *,
    on_progress: Progress = lambda share, text: None,
) -> CostTable:
    """The table with the costs of its modes corrected by what divisions really take.

    Args:
        network: the table's.
        topology: the machine, at hand.
        table: costs of several modes.
        on_progress: told of the progress.

    Raises:
        WorkerError: a measuring process failed.
        EngineError: an engine failed.
    """
    found: dict[CoreConfig, tuple[ConfigCosts, ...]] = dict(table.by_config)
    configs = [config for config, rows in table.by_config.items() if len(rows) > 1]
    for number, config in enumerate(configs):
        on_progress(number / len(configs), f"engines in turns on {config}")
        found[config] = _align_config(network, topology, table, config)
    return table.replaced(configs=tuple(costs for rows in found.values() for costs in rows))


def _align_config(
    network: Network, topology: Topology, table: CostTable, config: CoreConfig
) -> tuple[ConfigCosts, ...]:
    frames = table.batches[-1]
    table = table.for_frames(frames)
    rows = table.by_config[config]
    layers = (0, table.layer_count)
    divisions: list[Division] = [(HopPart(layers=layers, engine=row.engine, batch=row.batch),) for row in rows]
    took: Took = {}
    best, _ = Divider(table, config, busy=True).divide(*layers)
    for number in range(_ROUNDS):
        if best not in divisions:
            divisions.append(best)
        if number and not _fits(network, divisions):
            break
        took, busy = _time(network, topology, table, config, divisions)
        now = _with(table, config, [_scaled_to(row, table, took, busy) for row in table.by_config[config]])
        broken = _per_cut(now, config, {best: took[best]}, busy)
        table = _with(table, config, [_corrected(row, table, took, busy) for row in rows])
        unexplained = _per_cut(table, config, took, busy)
        table = _with(table, config, [_dearer(row, unexplained) for row in table.by_config[config]])
        best, _ = Divider(table, config, busy=True).divide(*layers)
        if best in divisions:
            return table.by_config[config]
    # The best one left was not timed: it promises too much, as the one before did.
    return tuple(_dearer(row, broken) for row in table.by_config[config])


def _fits(network: Network, divisions: Sequence[Division]) -> bool:
    """Whether the memory at hand takes all parts."""
    weights = [layer.descriptor.bytes_weights for layer in network.layers]
    parts = {part for division in divisions for part in division}
    return _COPIES * sum(sum(weights[part.start : part.stop]) for part in parts) <= available_memory()


def _per_cut(table: CostTable, config: CoreConfig, took: Took, busy: bool) -> float:
    """Seconds by which divisions took longer than the table says, for each of their cuts; of the worst one."""
    divided = [division for division in took if len(division) > 1]
    more = [(sum(took[d]) - parts_s(d, config, table, busy=busy)) / (len(d) - 1) for d in divided]
    return max([0.0, *more])


def _with(table: CostTable, config: CoreConfig, rows: Sequence[ConfigCosts]) -> CostTable:
    others = [costs for costs in table.configs if costs.core_config != config]
    return table.replaced(configs=(*others, *rows))


def _time(
    network: Network, topology: Topology, table: CostTable, config: CoreConfig, divisions: Sequence[Division]
) -> tuple[Took, bool]:
    """What each part of each division takes, in turns, with the other cores busy where there are any; and whether.

    They are busy with the quickest engine, which is likely to be what runs there, and asks most of the memory.
    """
    networks = {size: batched(network, size) for size in table.batches}
    parts = list(dict.fromkeys(part for division in divisions for part in division))
    segments = [networks[part.batch].segment(part.start, part.stop) for part in parts]
    engines = [part.engine for part in parts]
    chains = [
        [parts.index(part) for part in division for _ in range(table.frames // part.batch)] for division in divisions
    ]
    cores = cores_of(topology, config)
    default = table.engines[0].name
    alone = [row.mode for row in table.by_config[config] if row.mode.batch == 1]
    load = min(alone, key=lambda mode: table.segment_s(config, 0, table.layer_count, mode=mode)).engine
    with contextlib.ExitStack() as stack:
        prober = stack.enter_context(
            MeasuringProcess(topology, f"align-{config}", cores, segments, default, engines=engines)
        )
        others = loads(stack, topology, cores, [network.segment(0, len(network.layers))], load)
        stack.enter_context(loaded(others))
        times = prober.time_each(chains, _SECONDS_EACH * len(chains), busy=bool(others))
    took: dict[Division, list[float]] = {}
    for division, runs in zip(divisions, times, strict=True):
        calls = iter(typical_each(runs))
        repeats = [(part, table.frames // part.batch) for part in division]
        took[division] = [float(np.mean([next(calls) for _ in range(n)])) / part.batch for part, n in repeats]
    return took, bool(others)


def _corrected(row: ConfigCosts, table: CostTable, took: Took, busy: bool) -> ConfigCosts:
    """The costs of a mode such that the whole network takes what it took, and each part of a division about that.

    Of all corrections the most likely one, where costs and times are off as doubted, independently of each other: the
    mean of a Gaussian after linear observations.
    """
    times: dict[HopPart, list[float]] = {}
    for division, each in took.items():
        for part, seconds in zip(division, each, strict=True):
            if part.mode == row.mode:
                times.setdefault(part, []).append(seconds)
    parts = list(times)
    seen = np.array([np.mean(times[part]) for part in parts])
    own = np.array([_own_s(row, table, part, seconds) for part, seconds in zip(parts, seen, strict=True)])
    before = np.maximum(getattr(_scaled_to(row, table, took, busy), _field(row, busy)), _NOTHING_S)
    whole = float(before.sum())
    # The unknowns: each layer, and what any segment costs more.
    belongs = np.zeros((len(parts), len(before) + 1))
    for number, part in enumerate(parts):
        belongs[number, part.start : part.stop] = belongs[number, -1] = 1.0
    # A profiler may have counted a layer that seems to cost nothing for its neighbour.
    layer_doubt = _LAYER_DOUBT * np.maximum(before, _LAYER_DOUBT * before.mean())
    for segment_doubt in (_SEGMENT_DOUBT * whole, 0.0):
        doubt = np.append(layer_doubt, segment_doubt) ** 2
        known = (belongs * doubt) @ belongs.T + np.diag((_TIME_DOUBT * seen) ** 2)
        change = doubt * (belongs.T @ np.linalg.solve(known, own - belongs[:, :-1] @ before))
        if change[-1] >= 0:
            break
    dearer = _dearer(row, float(change[-1]))
    left_s = max(whole - (dearer.segment_s - row.segment_s), _LEAST_SHARE * whole)
    ratios = np.maximum(before + change[:-1], _LEAST_SHARE * before) / before
    layers = {
        "layer_s": scaled(ratios * dearer.layer_s, sum(dearer.layer_s)),
        _field(row, busy): scaled(ratios * before, left_s),
    }
    return dearer.model_copy(update=layers)


def _scaled_to(row: ConfigCosts, table: CostTable, took: Took, busy: bool) -> ConfigCosts:
    """The costs of a mode with the layers scaled such that the whole network takes what it took."""
    part = HopPart(layers=(0, table.layer_count), engine=row.engine, batch=row.batch)
    (seconds,) = took[(part,)]
    field = _field(row, busy)
    return row.model_copy(update={field: scaled(np.array(getattr(row, field)), _own_s(row, table, part, seconds))})


def _field(row: ConfigCosts, busy: bool) -> str:
    return "layer_busy_s" if busy and row.layer_busy_s is not None else "layer_s"


def _own_s(row: ConfigCosts, table: CostTable, part: HopPart, seconds: float) -> float:
    """What of the seconds of a part its layers take."""
    edges = table.network.cut_bytes[part.start] + table.network.cut_bytes[part.stop]
    return max(seconds - row.beside_layers_s(edges), _LEAST_SHARE * seconds)


def _dearer(row: ConfigCosts, extra: float) -> ConfigCosts:
    """The costs with a segment dearer by so much, the whole network taking as long as before."""
    fields = [field for field in ("layer_s", "layer_busy_s") if getattr(row, field) is not None]
    extra = min(extra, (1 - _LEAST_SHARE) * min(sum(getattr(row, field)) for field in fields))
    changes: dict[str, object] = {"segment_s": row.segment_s + extra}
    for field in fields:
        layers = getattr(row, field)
        changes[field] = scaled(np.array(layers), sum(layers) - extra)
    return row.model_copy(update=changes)
