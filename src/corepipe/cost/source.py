"""Where a network's costs come from: a kept profile, else a calibration, else they are measured; and which it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from corepipe.cache import TableCache
from corepipe.cost.calibration import Calibration
from corepipe.cost.calibration_store import CalibrationStore, not_calibrated
from corepipe.cost.predict.table import predict_table
from corepipe.cost.table import CostTable, EngineName, check_batch_size, merged
from corepipe.errors import UsageError
from corepipe.network.model import Network
from corepipe.topology.model import Topology


@dataclass(frozen=True)
class Costs:
    """A cost table and, in words, where it comes from."""

    table: CostTable
    source: str


def choose_costs(
    network: Network,
    topology: Topology,
    engines: Sequence[EngineName],
    measure: Callable[[], CostTable],
    *,
    named: bool = False,
    batch: int = 1,
    cache: TableCache | None = None,
    use_cache: bool = True,
    predict: bool = False,
    calibration: Calibration | None = None,
) -> Costs:
    """The costs to plan with: a kept profile (finished first if it was interrupted), else this machine's calibration,
    else they are measured.

    Args:
        network: what is to be planned.
        topology: where.
        engines: which engines, with their versions.
        measure: profiles the network, and keeps the result.
        named: whether the user named the engines: then none that is known to refuse the network is done without.
        batch: how many frames may be run at once; of more than one, costs are measured.
        cache: where profiles and calibrations are kept.
        use_cache: whether they may be read; without, the network is measured.
        predict: never measure, and pass over a kept profile.
        calibration: the one to predict with; by default this machine's, one for each engine.

    Raises:
        UsageError: a prediction is asked for and the machine was not calibrated, or of several frames at once.
        CorepipeError: measuring failed.
    """
    if batch > 1 and (predict or calibration is not None):
        raise UsageError("costs are predicted for one frame at a time: leave out the batch")
    cache = cache or TableCache()

    def refused(engine: EngineName, size: int = 1) -> bool:
        return not (named and size == 1) and cache.refusal(cache.path(network, topology, engine, size)) is not None

    if not predict and calibration is None and use_cache:
        modes = [(engine, size) for engine in engines for size in sizes(batch) if not refused(engine, size)]
        paths = [cache.path(network, topology, *mode) for mode in modes]
        kept = [cache.load(path, network) for path in paths]
        tables = [table for table in kept if table is not None]
        if tables and len(tables) == len(kept):
            # Tables of several modes were held against each other, which is kept beside them.
            table = tables[0] if len(tables) == 1 else measure()
            return Costs(table, f"costs: kept profile of {max(t.provenance.created for t in tables)}")
        missing = [path for path, table in zip(paths, kept, strict=True) if table is None]
        if any(map(cache.was_begun, paths)) or (tables and all(map(cache.was_refused, missing))):
            # It goes on where it was interrupted (with --no-cache, what was kept before is gone), and asks an engine
            # again whose refusal holds no more.
            table = measure()
            return Costs(table, f"costs: measured {table.provenance.created}")
    chosen = [] if calibration is None else [calibration]
    if not chosen and (predict or use_cache):
        engines = [engine for engine in engines if not refused(engine)] or engines
        found = [CalibrationStore(cache).load(topology, engine) for engine in engines]
        chosen = [one for one in found if one is not None]
        if not predict and (batch > 1 or len(chosen) < len(engines)):
            chosen = []
    unknown = [e for e in engines if e.name not in {one.engine.name for one in chosen}]
    if calibration is None and (predict or chosen) and unknown and (named or not chosen):
        raise UsageError(not_calibrated(topology, unknown[0]) + (", or leave that engine out" if chosen else ""))
    if chosen:
        table = merged([predict_table(network, one).table for one in chosen])
        doubt = "".join(f", which was noisy (spread {c.spread:.1%})" for c in chosen if not c.trustworthy)
        return Costs(table, f"costs: predicted {table.provenance.note}{doubt}")
    table = measure()
    return Costs(table, f"costs: measured {table.provenance.created}")


def sizes(batch: int) -> tuple[int, ...]:
    """The numbers of frames at once that costs are measured for, where up to so many may be run at once.

    Raises:
        UsageError: it is out of range.
    """
    check_batch_size(batch)
    return (1,) if batch == 1 else (1, batch)
