"""Calibrations on disk: this machine's in the cache folder, others from files; and whether they are to be relied on."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from corepipe.cache import TableCache, machine_key, read_kept
from corepipe.cost.calibrate import MOST_SPREAD, check_calibrated
from corepipe.cost.calibration import Calibration, PartialCalibration
from corepipe.cost.table import EngineName
from corepipe.errors import DocumentError, NotTrustworthyError, UsageError
from corepipe.topology.cpulist import format_cpu_list
from corepipe.topology.model import Topology

_log = logging.getLogger("corepipe")


def not_calibrated(topology: Topology, engine: EngineName) -> str:
    """What to say where a calibration is missing, with the command that makes it.

    Raises:
        UsageError: the engine cannot be calibrated.
    """
    check_calibrated(engine)
    what, cores = "this machine was", ""
    if topology.restricted:
        what, cores = "these cores by themselves were", f" --cores {format_cpu_list(topology.cpus)}"
    return (
        f"{what} not calibrated with {engine.name}; run `corepipe calibrate --engine {engine.name}{cores}` once (some "
        f"minutes)"
    )


class CalibrationStore:
    """Calibrations in the user's cache folder, and what is left of a broken one.

    There is one per machine, engine version and way of measuring.
    """

    def __init__(self, cache: TableCache | None = None) -> None:
        self._folder = (cache or TableCache()).folder
        self._said_unwritable = False

    def path(self, topology: Topology, engine: EngineName) -> Path:
        """Where this machine's calibration lies."""
        return self._folder / f"{'-'.join(machine_key(topology, engine))}.calibration.json"

    def load(self, topology: Topology, engine: EngineName) -> Calibration | None:
        """This machine's calibration; a damaged one is reported and ignored."""
        return read_kept(Calibration, self.path(topology, engine), "a calibration")

    def save(self, topology: Topology, engine: EngineName, calibration: Calibration) -> Path:
        """Keep a calibration and drop what is left of its making.

        Raises:
            DocumentError: the file cannot be written.
        """
        path = self.path(topology, engine)
        self._make_folder()
        calibration.write(path, private=True)
        self._partial(topology, engine).unlink(missing_ok=True)
        return path

    def check_writable(self) -> None:
        """Check that a calibration can be kept, before the minutes that it takes to make one.

        Raises:
            DocumentError: the folder cannot be made, or not be written to.
        """
        self._make_folder()
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise DocumentError(f"{self._folder}: cannot write to the cache folder; name another in COREPIPE_CACHE")

    def load_partial(self, topology: Topology, engine: EngineName) -> PartialCalibration | None:
        """What an interrupted calibration has left."""
        return read_kept(PartialCalibration, self._partial(topology, engine), "a part of a calibration")

    def save_partial(self, topology: Topology, engine: EngineName, partial: PartialCalibration) -> None:
        """Keep what has been measured so far; a folder that cannot be written is no error."""
        try:
            self._make_folder()
            partial.write(self._partial(topology, engine), private=True)
        except (OSError, DocumentError) as error:
            if not self._said_unwritable:
                _log.warning("cannot keep what was measured (%s); an interrupted calibration starts anew", error)
            self._said_unwritable = True

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
    check_calibration(calibration, path, topology, engine, force=force)
    return calibration


def check_calibration(
    calibration: Calibration,
    path: str | os.PathLike[str],
    topology: Topology | None,
    engine: EngineName | None,
    *,
    force: bool = False,
) -> None:
    """Check a calibration that was read; arguments as for `read_calibration`.

    Raises:
        UsageError: it is of another machine or engine version.
    """
    wrong = mismatch(calibration, topology, engine)
    if wrong and not force:
        raise UsageError(f"{path}: {wrong}; run `corepipe calibrate` here, or use it all the same with --force")
    if wrong:
        _log.warning("%s: %s; used all the same", path, wrong)


def mismatch(calibration: Calibration, topology: Topology | None, engine: EngineName | None) -> str:
    """In what a calibration is not of this machine or engine; empty if it is."""
    found = []
    if topology is not None and calibration.machine.fingerprint != topology.fingerprint():
        made, here = calibration.machine, topology.fingerprint()
        found.append(
            f"the calibration is of another machine, or of other cores of it ({made.description or 'unnamed'}, "
            f"{made.fingerprint}; this one is {topology.machine or 'unnamed'}, {here})"
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
