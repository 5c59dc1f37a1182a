"""Measured cost tables, kept in the user's cache folder: keyed by network, machine, engine version and batch."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, TypeVar

import platformdirs

from corepipe.cost.profile import MEASUREMENT_VERSION, PartialProfile
from corepipe.cost.table import CostTable, EngineName
from corepipe.document import Document
from corepipe.errors import DocumentError
from corepipe.network.model import Network
from corepipe.runtime.huge_pages import obstacle
from corepipe.topology.model import Topology

LOCK = ".measuring"
"""The file in the cache folder that a process locks while it measures."""

REFUSAL_S = 24 * 3600.0
"""How long a refusal holds: an engine that refused for want of memory, say, may take the network on another day."""
FAILURE_S = 3600.0
"""How long it holds that an engine died, or did not load."""

_CLOCK_S = 60.0
"""By so much clocks may differ; what is from further in the future is of a time that is not known."""

_log = logging.getLogger("corepipe")
_unwritable: set[Path] = set()
"""Folders of which it was said already."""


class Refusal(Document):
    """That an engine does not take a network, and why: in place of a table, so that it is not asked at each start."""

    KIND: ClassVar[str] = "corepipe-refusal"

    reason: str
    hold_s: float = REFUSAL_S


_Kept = TypeVar("_Kept", bound=Document)


class TableCache:
    """Cost tables on disk. A folder that cannot be written is no error: costs are then measured each time.

    Args:
        folder: where; by default `COREPIPE_CACHE`, else the user's cache folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        named = os.environ.get("COREPIPE_CACHE")
        self.folder = folder or Path(named or platformdirs.user_cache_dir("corepipe"))

    def path(self, network: Network, topology: Topology, engine: EngineName, batch: int = 1) -> Path:
        """Where the table of this network on this machine with this engine, so many frames at once, lies."""
        size = [] if batch == 1 else [f"b{batch}"]
        return self._path(".costs.json", network.name, network.sha256[:16], *machine_key(topology, engine), *size)

    def hop_path(self, topology: Topology, engine: EngineName) -> Path:
        """Where the hop costs of this machine with this engine lie; they are the same for all networks."""
        return self._path(".hop.json", *machine_key(topology, engine))

    def _path(self, suffix: str, *parts: str) -> Path:
        return self.folder / ("-".join(re.sub(r"[^A-Za-z0-9._]", "_", part)[:60] for part in parts) + suffix)

    def load(self, path: Path, network: Network | None = None) -> CostTable | None:
        """The table at `path`, None where there is none; a damaged one, or one of another network, is ignored.

        Args:
            path: from `path()`.
            network: whose costs are looked for; None takes those of any.
        """
        table = read_kept(CostTable, path)
        if table is None or network is None:
            return table
        if table.network.sha256 != network.sha256 or table.layer_count != len(network.layers):
            _log.warning("ignoring a cache file of another network: %s", path)
            return None
        return table

    def refusal(self, path: Path, *, beside_table: bool = False) -> str | None:
        """Why there is no table at `path` and will be none for now; None where that is not known, or there is one.

        Args:
            path: from `path()`.
            beside_table: whether an older table at `path` counts for nothing.
        """
        found = read_kept(Refusal, _refusal(path)) if beside_table or not os.path.exists(path) else None
        if found is None:
            return None
        return found.reason if self.age_s(_refusal(path)) < found.hold_s else None

    def age_s(self, path: Path) -> float:
        """Seconds since what is at `path` was kept; infinite where there is nothing, or the clock went back."""
        with contextlib.suppress(OSError):
            age_s = time.time() - path.stat().st_mtime
            return max(age_s, 0.0) if age_s > -_CLOCK_S else math.inf
        return math.inf

    def was_refused(self, path: Path) -> bool:
        """Whether there is no table at `path` as its engine refused the network, now or some time ago."""
        return os.path.exists(_refusal(path)) and not os.path.exists(path)

    def keep_refusal(self, path: Path, reason: str, hold_s: float = REFUSAL_S) -> None:
        """Keep for so many seconds that there is no table at `path`, as its engine refuses the network."""
        self._write(_refusal(path), Refusal(reason=reason, hold_s=hold_s))

    def kept_or_measured(
        self, path: Path, network: Network, measure: Callable[[], CostTable], *, within_s: float = math.inf
    ) -> CostTable:
        """The table at `path`, or else what `measure` finds, which is kept there.

        Args:
            path: from `path()`.
            network: whose costs they are.
            measure: measures them, while no other process does.
            within_s: a table that was kept so long ago at the most will do.
        """
        table = self._load_of(path, network, within_s)
        if table is not None:
            return table
        with self._measuring():
            # Another process may have measured the same meanwhile.
            table = self._load_of(path, network, within_s)
            if table is None:
                table = measure()
                self.save(path, table)
        return table

    def _load_of(self, path: Path, network: Network, within_s: float) -> CostTable | None:
        return self.load(path, network) if within_s == math.inf or self.age_s(path) < within_s else None

    @contextlib.contextmanager
    def _measuring(self) -> Iterator[None]:
        """While one process measures networks here, others with the same cache wait: they would disturb it.

        The lock goes with the process that holds it. Where the folder cannot be written there is none.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            yield
            return
        with os.fdopen(lock):
            with contextlib.suppress(OSError):  # some network file systems have no locks
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    _log.warning("another corepipe measures this machine; waiting until it has finished")
                    fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                # Closing it does not do where a process was forked meanwhile: that has the same lock.
                with contextlib.suppress(OSError):
                    fcntl.flock(lock, fcntl.LOCK_UN)

    def load_partial(self, path: Path, hop_path: Path, network: Network) -> PartialProfile:
        """What an interrupted profile of a network has left for the table at `path`, and the machine's hop costs."""
        found, hop = (read_kept(PartialProfile, one) or PartialProfile() for one in (_partial(path), hop_path))
        fitting = tuple(costs for costs in found.configs if len(costs.layer_s) == len(network.layers))
        return PartialProfile(configs=fitting, hop=hop.hop or found.hop)

    def was_begun(self, path: Path) -> bool:
        """Whether an interrupted profile has left something for the table at `path`, which is not there yet."""
        return os.path.exists(_partial(path)) and not os.path.exists(path)

    def save(self, path: Path, table: CostTable) -> None:
        """Keep a finished table and drop what is left of its making."""
        if self._write(path, table):
            with contextlib.suppress(OSError):
                _partial(path).unlink(missing_ok=True)
                _refusal(path).unlink(missing_ok=True)

    def forget(self, path: Path) -> None:
        """Drop the table at `path` and what is left of its making."""
        for one in (path, _partial(path)):
            with contextlib.suppress(OSError):
                one.unlink(missing_ok=True)

    def save_partial(self, path: Path, hop_path: Path, partial: PartialProfile) -> None:
        """Keep what has been measured so far, the hop costs for all networks."""
        if partial.hop is not None:
            self._write(hop_path, PartialProfile(hop=partial.hop))
        self._write(_partial(path), partial)

    def _write(self, path: Path, document: Document) -> bool:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            document.write(path, private=True)
        except (OSError, DocumentError) as error:
            if self.folder not in _unwritable:
                _unwritable.add(self.folder)
                _log.warning(
                    "cannot keep measured costs (%s); they will be measured again next time, unless COREPIPE_CACHE "
                    "names another folder",
                    error,
                )
            return False
        return True


def machine_key(topology: Topology, engine: EngineName) -> tuple[str, ...]:
    """What costs depend on; they differ by some percent where workers get no huge pages."""
    pages = ("small_pages",) if obstacle() else ()
    return (topology.fingerprint(), engine.name, engine.version, f"m{MEASUREMENT_VERSION}", *pages)


def read_kept(kind: type[_Kept], path: Path, what: str = "a cache file") -> _Kept | None:
    """A kept document, None where there is none; one that cannot be read is reported, in these words, and ignored."""
    try:
        return kind.read(path) if os.path.exists(path) else None
    except (OSError, DocumentError) as error:
        _log.warning("ignoring %s that cannot be used: %s", what, error)
        return None


def _partial(path: Path) -> Path:
    return _beside(path, ".partial.json")


def _refusal(path: Path) -> Path:
    return _beside(path, ".refusal.json")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name.replace(".costs.json", suffix))
