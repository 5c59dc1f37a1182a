"""Where a network's costs come from: a kept profile, else a calibration, else they are measured; and which it was."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from corepipe.cache import TableCache
from corepipe.cost.calibrate import MOST_SPREAD
from corepipe.cost.calibration import Calibration, PartialCalibration
from corepipe.cost.predict.table import Prediction, predict_table
from corepipe.cost.table import CostTable, EngineName, merged
from corepipe.errors import DocumentError, NotTrustworthyError, UsageError
from corepipe.network.model import Network
from corepipe.topology.model import Topology

_log = logging.getLogger("corepipe")


@dataclass(frozen=True)
class Costs:
    """A cost table and, in words, where it comes from."""

    table: CostTable
    source: str
    prediction: Prediction | None = None


class CalibrationStore:
    """Calibrations in the user's cache folder, one per machine and engine version, and what is left of a broken one."""

    def __init__(self, cache: TableCache | None = None) -> None:
        self._folder = (cache or TableCache()).folder

    def path(self, topology: Topology, engine: EngineName) -> Path:
        """Where this machine's calibration lies."""
        return self._folder / f"{topology.fingerprint()}-{engine.name}-{engine.version}.calibration.json"

    def load(self, topology: Topology, engine: EngineName) -> Calibration | None:
        """This machine's calibration; a damaged one is reported and ignored."""
        path = self.path(topology, engine)
        if not path.is_file():
            return None
        try:
            return Calibration.read(path)
        except DocumentError as error:
            _log.warning("ignoring a damaged calibration: %s", error)
            return None

    def save(self, topology: Topology, engine: EngineName, calibration: Calibration) -> Path:
        """Keep a calibration and drop what is left of its making.

        Raises:
            DocumentError: the file cannot be written.
        """
        path = self.path(topology, engine)
        self._make_folder()
        calibration.write(path)
        self._partial(topology, engine).unlink(missing_ok=True)
        return path

    def load_partial(self, topology: Topology, engine: EngineName) -> PartialCalibration | None:
        """What an interrupted calibration has left."""
        path = self._partial(topology, engine)
        if not path.is_file():
            return None
        try:
            return PartialCalibration.read(path)
        except DocumentError as error:
            _log.warning("ignoring what an interrupted calibration left: %s", error)
            return None

    def save_partial(self, topology: Topology, engine: EngineName, partial: PartialCalibration) -> None:
        """Keep what has been measured so far; a folder that cannot be written is no error."""
        try:
            self._make_folder()
            partial.write(self._partial(topology, engine))
        except (OSError, DocumentError) as error:
            _log.warning("cannot keep what was measured (%s); an interrupted calibration starts anew", error)

    def _partial(self, topology: Topology, engine: EngineName) -> Path:
        path = self.path(topology, engine)
        return path.with_name(path.name.replace(".calibration.json", ".partial-calibration.json"))

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise DocumentError(
                f"{self._folder}: cannot make the cache folder ({error.strerror}); name another in COREPIPE_CACHE"
            ) from None


def read_calibration(
    path: str | os.PathLike[str], topology: Topology | None, engine: EngineName | None, *, force: bool = False
) -> Calibration:
    """A calibration from a file, checked against the machine and engine that it is to be used on.

    Args:
        path: the file.
        topology: the machine; None where the file may be of another one (planning for a board from a laptop).
        engine: the engine with its version; None to take it as it is.
        force: accept another machine or version, with a warning in the log.

    Raises:
        DocumentError: the file is unreadable, cut short, or of another version of the format.
        UsageError: it is of another machine or engine version.
    """
    calibration = Calibration.read(path)
    wrong = mismatch(calibration, topology, engine)
    if wrong and not force:
        raise UsageError(f"{path}: {wrong}; run `corepipe calibrate` here, or use it all the same with --force")
    if wrong:
        _log.warning("%s: %s; used all the same", path, wrong)
    return calibration


def mismatch(calibration: Calibration, topology: Topology | None, engine: EngineName | None) -> str:
    """In what a calibration is not of this machine or engine; empty if it is."""
    found = []
    if topology is not None and calibration.machine.fingerprint != topology.fingerprint():
        found.append(
            f"the calibration is of another machine ({calibration.machine.description or 'unnamed'}, "
            f"{calibration.machine.fingerprint}; this one is {topology.machine or 'unnamed'}, {topology.fingerprint()})"
        )
    if engine is not None and calibration.engine != engine:
        found.append(
            f"the calibration is of {calibration.engine.name} {calibration.engine.version}, "
            f"here is {engine.name} {engine.version}"
        )
    return "; ".join(found)


def check_trust(calibration: Calibration) -> None:
    """Refuse silence about a noisy machine.

    Raises:
        NotTrustworthyError: the calibration's measurements vary too much; it was kept, and can be used.
    """
    if not calibration.trustworthy:
        raise NotTrustworthyError(
            f"the calibration is kept but not to be relied on: its measurements vary by {calibration.spread:.1%} "
            f"(at most {MOST_SPREAD:.0%} are fine); calibrate again with the machine idle"
        )


def find_costs(
    network: Network,
    topology: Topology,
    engines: Sequence[EngineName],
    measure: Callable[[], CostTable],
    *,
    batch: int = 1,
    cache: TableCache | None = None,
    use_cache: bool = True,
    predict: bool = False,
    calibration: Calibration | None = None,
) -> Costs:
    """The costs to plan with: a kept profile, else this machine's calibration, else they are measured.

    Args:
        network: what is to be planned.
        topology: where.
        engines: which engines, with their versions.
        measure: profiles the network, and keeps the result.
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
    if not predict and calibration is None and use_cache:
        paths = [cache.path(network, topology, engine, size) for engine in engines for size in sizes(batch)]
        kept = [cache.load(path, network) for path in paths if cache.refusal(path) is None]
        tables = [table for table in kept if table is not None]
        if tables and len(tables) == len(kept):
            # Tables of several modes were held against each other, which is kept beside them.
            table = tables[0] if len(tables) == 1 else measure()
            return Costs(table, f"costs: kept profile of {max(t.provenance.created for t in tables)}")
    chosen = [] if calibration is None else [calibration]
    if not chosen and (predict or use_cache):
        engines = [one for one in engines if cache.refusal(cache.path(network, topology, one)) is None] or engines
        found = [CalibrationStore(cache).load(topology, engine) for engine in engines]
        chosen = [one for one in found if one is not None]
        if not predict and (batch > 1 or len(chosen) < len(engines)):
            chosen = []
    if chosen:
        predictions = [predict_table(network, one) for one in chosen]
        doubt = "".join(f", which was noisy (spread {c.spread:.1%})" for c in chosen if not c.trustworthy)
        table = merged([prediction.table for prediction in predictions])
        return Costs(table, f"costs: predicted {table.provenance.note}{doubt}", predictions[0])
    if predict:
        raise UsageError("this machine was not calibrated; run `corepipe calibrate` once (some minutes)")
    table = measure()
    return Costs(table, f"costs: measured {table.provenance.created}")


def sizes(batch: int) -> tuple[int, ...]:
    """The numbers of frames at once that costs are measured for, where up to so many may be run at once."""
    return (1,) if batch == 1 else (1, batch)
