"""Holds the modes of a cost table against each other, and the best divisions among them against their prediction.

Each mode of a table was measured at another moment, and what it costs to change from one engine to another is not in
any of them. The best division is the one whose costs happen to be underrated most. So on each config the whole network
in every mode, and the best divisions, are timed in one process, taking turns: every mode is scaled to what it took,
and where a division takes longer than its parts, a segment costs more than the table says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np

from corepipe.cost.measuring import MeasuringProcess, Progress, cores_of, loaded, loads, scaled, typical
from corepipe.cost.table import ConfigCosts, CostTable
from corepipe.network.batch import batched
from corepipe.network.model import Network
from corepipe.plan.division import Divider
from corepipe.plan.model import HopPart, parts_s
from corepipe.topology.model import CoreConfig, Topology

Division = tuple[HopPart, ...]

_SECONDS_EACH = 0.7
_ROUNDS = 2
_LEAST_SHARE = 0.1
"""Of a network's time stays with its layers, however much its segments cost."""


def align(
    network: Network,
    topology: Topology,
    table: CostTable,
    *,
    on_progress: Progress = lambda share, text: None,
) -> CostTable:
    """The table with its modes scaled, and its segments' costs raised, to what divisions really take.

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
    layers = (0, table.layer_count)
    whole = {row.mode: (HopPart(layers=layers, engine=row.engine, batch=row.batch),) for row in table.by_config[config]}
    divisions: list[Division] = list(whole.values())
    for _ in range(_ROUNDS):
        best, _ = Divider(table, config, busy=True).divide(*layers)
        if best in divisions:
            break
        divisions.append(best)
        took, busy = _time(network, topology, table, config, divisions)
        seconds = dict(zip(divisions, took, strict=True))
        rows = [_scaled_to(row, table, seconds[whole[row.mode]], busy) for row in table.by_config[config]]
        table = _with(table, config, rows)
        extra = max(
            (seconds[division] - parts_s(division, config, table, busy=busy)) / (len(division) - 1)
            for division in divisions
            if len(division) > 1
        )
        table = _with(table, config, [_dearer(row, max(extra, 0.0)) for row in rows])
    return table.by_config[config]


def _with(table: CostTable, config: CoreConfig, rows: Sequence[ConfigCosts]) -> CostTable:
    others = [costs for costs in table.configs if costs.core_config != config]
    return table.replaced(configs=(*others, *rows))


def _time(
    network: Network, topology: Topology, table: CostTable, config: CoreConfig, divisions: Sequence[Division]
) -> tuple[list[float], bool]:
    """Seconds of one frame in each division, in turns, with the other cores busy where there are any; and whether.

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
        times = prober.time(chains, _SECONDS_EACH * len(chains), busy=bool(others))
    return [typical(seconds) / table.frames for seconds in times], bool(others)


def _scaled_to(row: ConfigCosts, table: CostTable, seconds: float, busy: bool) -> ConfigCosts:
    """The costs with the layers scaled such that the whole network takes so long."""
    fixed = row.segment_s + row.segment_s_per_byte * (table.network.cut_bytes[0] + table.network.cut_bytes[-1])
    own = max(seconds - fixed, _LEAST_SHARE * seconds)
    field = "layer_busy_s" if busy and row.layer_busy_s is not None else "layer_s"
    return row.model_copy(update={field: scaled(np.array(getattr(row, field)), own)})


def _dearer(row: ConfigCosts, extra: float) -> ConfigCosts:
    """The costs with a segment dearer by so much, the whole network taking as long as before."""
    fields = [field for field in ("layer_s", "layer_busy_s") if getattr(row, field) is not None]
    extra = min(extra, (1 - _LEAST_SHARE) * min(sum(getattr(row, field)) for field in fields))
    changes: dict[str, object] = {"segment_s": row.segment_s + extra}
    for field in fields:
        layers = getattr(row, field)
        changes[field] = scaled(np.array(layers), sum(layers) - extra)
    return row.model_copy(update=changes)
