"""Results as an `.npz`: kept in unnamed files on disk until the end, then written in one step."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from corepipe.errors import CorepipeError, FrameError
from corepipe.frames.model import display_name
from corepipe.frames.sinks import Outputs, Sink, writing

_PIECE = 2**22
_MOST_OF_ERROR = 160
"""Characters of an error that are kept: in an array each takes as much as the longest."""


_Kind = tuple[np.dtype[Any], tuple[int, ...]]
"""Type and shape of an array."""


@dataclass(frozen=True)
class _Written:
    """A frame whose outputs are on disk, behind those of the frames before it."""

    index: int
    name: str
    kinds: dict[str, _Kind]


class NpzSink(Sink):
    """All results in one `.npz`.

    Entries: each output by its name, the frames along the first axis in place of a batch axis of 1 (where shapes differ
    from frame to frame: one entry `NAME/0`, `NAME/1` ... for each); `frame_names` and `frame_index`; `failed_names` and
    `failed_errors`. An output of such a name is put under `output:NAME`.

    The file appears when the sink is closed, with what there is by then; without any frame an older file stays.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(display_name(path))
        self._path = Path(os.path.realpath(path))
        self._spools: dict[str, IO[bytes]] = {}
        self._written: list[_Written] = []
        self._failed: list[tuple[str, str]] = []
        self._closed = False
        with writing(self.name), _unnamed_file(self._path.parent):
            pass
        if os.path.exists(path) and not os.access(path, os.W_OK):
            raise CorepipeError(f"{self.name}: cannot write results: the file is read-only")

    def _write(self, index: int, frame: str, outputs: Outputs) -> None:
        if self._closed:
            raise CorepipeError(f"{self.name}: the results are closed already")
        arrays = {name: _plain(array) for name, array in outputs.items()}
        if not self._written and not self._spools:
            with writing(self.name):
                self._spools = {name: _unnamed_file(self._path.parent) for name in arrays}
        if arrays.keys() != self._spools.keys():
            raise FrameError(f"{frame}: has outputs {', '.join(arrays)}, earlier frames {', '.join(self._spools)}")
        before = {name: spool.tell() for name, spool in self._spools.items()}
        with writing(self.name):
            try:
                for name, array in arrays.items():
                    _append(self._spools[name], array)
            except BaseException:
                for name, size in before.items():
                    self._spools[name].truncate(size)
                    self._spools[name].seek(size)
                raise
        self._written.append(_Written(index, frame, {name: (a.dtype, a.shape) for name, a in arrays.items()}))

    def _fail(self, index: int | None, frame: str, message: str) -> None:
        self._failed.append((frame, message if len(message) <= _MOST_OF_ERROR else f"{message[:_MOST_OF_ERROR]}..."))

    def close(self) -> None:
        """Write the file.

        Raises:
            CorepipeError: it cannot be written; an older file stays as it was.
        """
        if self._closed:
            return
        self._closed = True
        temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        try:
            if self._written or self._failed:
                with _uninterrupted(), writing(self.name, "; an .npz needs room for its outputs twice"):
                    self._save(temporary)
                    os.replace(temporary, self._path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
            for spool in self._spools.values():
                with contextlib.suppress(OSError):
                    spool.close()

    def _save(self, path: Path) -> None:
        facts: dict[str, NDArray[Any]] = {
            "frame_names": np.array([one.name for one in self._written], dtype=np.str_),
            "frame_index": np.array([one.index for one in self._written], dtype=np.int64),
            "failed_names": np.array([name for name, _ in self._failed], dtype=np.str_),
            "failed_errors": np.array([error for _, error in self._failed], dtype=np.str_),
        }
        with path.open("xb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                for name, spool in self._spools.items() if self._written else ():
                    kinds = [one.kinds[name] for one in self._written]
                    _save_output(archive, f"output:{name}" if name in facts else name, spool, kinds)
                for name, array in facts.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put Ctrl-C and the like off until the results are saved: nothing else holds them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if callable(signal.getsignal(number)):
            before[number] = signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for deferred, handler in before.items():
            signal.signal(deferred, handler)
        for one in came:
            signal.raise_signal(one)


def _unnamed_file(folder: Path) -> IO[bytes]:
    return tempfile.TemporaryFile(dir=folder, buffering=0)  # a buffer that a full disk does not take stays full


def _append(spool: IO[bytes], array: NDArray[Any]) -> None:
    data = array.reshape(-1).view(np.uint8).data
    while len(data):
        data = data[spool.write(data) :]


def _save_output(archive: zipfile.ZipFile, name: str, spool: IO[bytes], kinds: list[_Kind]) -> None:
    """One output: a single array if all its frames are alike, else an entry for each."""
    spool.seek(0)
    dtype, shape = kinds[0]
    if all(kind == (dtype, shape) for kind in kinds):
        stacked = shape[1:] if shape[:1] == (1,) else shape
        _save_array(archive, name, dtype, (len(kinds), *stacked), spool)
        return
    for i, (dtype, shape) in enumerate(kinds):
        _save_array(archive, f"{name}/{i}", dtype, shape, spool)


def _save_array(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], source: IO[bytes]
) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    left = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
        np.lib.format.write_array_header_1_0(entry, header)
        while left:
            piece = source.read(min(left, _PIECE))
            if not piece:
                raise OSError("a temporary file is shorter than what was written to it")
            entry.write(piece)
            left -= len(piece)


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """C-contiguous, and text instead of objects."""
    array = np.asarray(array)
    return np.array(array, dtype=np.str_ if array.dtype.hasobject else None, order="C", copy=None)
