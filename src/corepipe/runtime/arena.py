"""Anonymous shared memory, divided into slots for the frames under way: one in each, or as many as a plan's batch.

A slot holds every tensor that enters, crosses or leaves on any route, at fixed places, those of its frames side by
side; a frame keeps its slot from the moment it is fed until its result is copied out. So a hop moves no tensor: the
next worker reads where the last one wrote. The memory has no name in the file system: when the last process that holds
it ends, it is gone.

Slot: header (error text, times of each hop, number of frames) | tensors, each aligned to `ALIGNMENT`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import math
import mmap
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from corepipe.engine.base import DynamicOutput
from corepipe.errors import FrameError, WorkerError

if TYPE_CHECKING:
    from corepipe.network.model import TensorInfo

ALIGNMENT = 128
MAX_HOPS = 255
"""Of a route: messages have a byte for it."""

MAX_RANK = 15
DYNAMIC_CAPACITY = 16 * 2**20
"""Bytes reserved for an output whose shape depends on the data (address space; memory only as it is written)."""

_MFD_CLOEXEC = 1
_NO_SUCH_CALL = (errno.ENOSYS, errno.EPERM)
_SHARED = "/dev/shm"
"""Memory that looks like files, where there is no call for nameless memory."""

_PAGE = 4096
_ERROR_BYTES = 1024
_TIMES_OFFSET = _ERROR_BYTES
_TIME_BYTES = 8
_COUNT_OFFSET = _TIMES_OFFSET + MAX_HOPS * 2 * _TIME_BYTES
_HEADER = _COUNT_OFFSET + 8
_SHAPE_BYTES = (MAX_RANK + 1) * 8


def _align(offset: int, to: int = ALIGNMENT) -> int:
    return -(-offset // to) * to


@dataclass(frozen=True)
class Place:
    """Where one tensor lies in a slot.

    Attributes:
        shape: of one frame; None means that it is stored in front of the tensor.
        capacity: bytes of one frame.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None
    offset: int
    capacity: int


@dataclass(frozen=True)
class Layout:
    """Where everything lies: the same in the parent and in every worker."""

    slots: int
    slot_bytes: int
    places: tuple[Place, ...]
    frames: int = 1
    """Frames in a slot."""

    @classmethod
    def of(cls, tensors: Sequence[TensorInfo], slots: int, frames: int = 1) -> Layout:
        """A layout for these tensors (names unique), `slots` times; all shapes are known where `frames` is above 1."""
        places = []
        offset = _align(_HEADER)
        for tensor in tensors:
            capacity = DYNAMIC_CAPACITY if tensor.nbytes is None else tensor.nbytes
            places.append(Place(tensor.name, str(tensor.dtype), tensor.shape, offset, capacity))
            offset = _align(offset + frames * capacity + (_SHAPE_BYTES if tensor.shape is None else 0))
        return cls(slots, _align(offset, _PAGE), tuple(places), frames)

    @property
    def nbytes(self) -> int:
        """Size of the whole arena."""
        return self.slots * self.slot_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a worker's start message."""
        return {
            "slots": self.slots,
            "slot_bytes": self.slot_bytes,
            "frames": self.frames,
            "places": [[p.name, p.dtype, p.shape, p.offset, p.capacity] for p in self.places],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Layout:
        """The inverse of `to_dict`."""
        places = tuple(Place(n, d, None if s is None else tuple(s), o, c) for n, d, s, o, c in data["places"])
        return cls(data["slots"], data["slot_bytes"], places, data["frames"])


def anonymous_file(size: int, what: str) -> int:
    """A descriptor of nameless memory of `size` bytes, to be shared with child processes.

    Raises:
        WorkerError: the system has no room for it.
    """
    with or_worker_error(f"cannot get {size >> 20} MiB of shared memory for {what}"), contextlib.ExitStack() as undo:
        fd = _memory_file(f"corepipe-{what}")
        if fd is None:
            folder = _SHARED if _has_room(_SHARED, size) else tempfile.gettempdir()
            if not _has_room(folder, size):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with tempfile.TemporaryFile(prefix="corepipe-", dir=folder) as file:
                fd = os.dup(file.fileno())
        undo.callback(os.close, fd)
        os.ftruncate(fd, max(size, 1))
        undo.pop_all()
    return fd


def _has_room(folder: str, size: int) -> bool:
    """Whether a file of that size can be made there: containers may have a small one, and writing past it is fatal."""
    try:
        system = os.statvfs(folder)
    except OSError:
        return False
    return os.access(folder, os.W_OK) and system.f_bavail * system.f_frsize >= size


def _memory_file(name: str) -> int | None:
    """A descriptor of nameless memory; None where the system has none, or a container's rules forbid it."""
    if hasattr(os, "memfd_create"):
        try:
            return os.memfd_create(name, os.MFD_CLOEXEC)
        except OSError as error:
            if error.errno in _NO_SUCH_CALL:
                return None
            raise
    if sys.platform not in ("linux", "android"):
        return None
    create = getattr(ctypes.CDLL(None, use_errno=True), "memfd_create", None)  # this Python was built where it lacked
    if create is None:
        return None
    fd: int = create(name.encode(), _MFD_CLOEXEC)
    if fd >= 0:
        return fd
    number = ctypes.get_errno()
    if number in _NO_SUCH_CALL:
        return None
    raise OSError(number, os.strerror(number))


@contextlib.contextmanager
def or_worker_error(what: str) -> Iterator[None]:
    """Where the system lacks what is needed, say what failed.

    Raises:
        WorkerError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        advice = ""
        if error.errno in (errno.ENOMEM, errno.EAGAIN, errno.ENOSPC):
            advice = "; close other programs or use fewer workers"
        if error.errno in (errno.EMFILE, errno.ENFILE):
            advice = "; allow more open files (ulimit -n) or use fewer workers"
        file = f" ({error.filename})" if isinstance(error.filename, str) else ""
        raise WorkerError(f"{what}: {error.strerror or error}{file}{advice}") from None


class Slot:
    """The memory of a frame, or of some that share a slot, as numpy views."""

    def __init__(self, memory: mmap.mmap, base: int, layout: Layout) -> None:
        self._memory = memory
        self._base = base
        self._places = {place.name: place for place in layout.places}
        self._views: dict[tuple[str, int, int], NDArray[Any]] = {}
        # Read and written for every frame: of one integer this takes a fraction of what numpy does.
        self._times = memoryview(memory)[base + _TIMES_OFFSET : base + _COUNT_OFFSET].cast("q")
        self._count = memoryview(memory)[base + _COUNT_OFFSET : base + _HEADER].cast("q")

    @property
    def count(self) -> int:
        """How many frames it holds; those after them are to be ignored."""
        return self._count[0]

    @count.setter
    def count(self, count: int) -> None:
        self._count[0] = count

    def times(self, hop: int) -> tuple[int, int]:
        """Start and end of a hop in nanoseconds of CLOCK_MONOTONIC; 0 where it has not happened."""
        return self._times[2 * hop], self._times[2 * hop + 1]

    def clear_times(self, hops: int) -> None:
        """Forget the first `hops` hops of earlier frames."""
        for index in range(2 * hops):
            self._times[index] = 0

    def begin(self, hop: int, now_ns: int) -> None:
        """A hop starts; it has not ended, whatever was there."""
        self._times[2 * hop + 1] = 0
        self._times[2 * hop] = now_ns

    def end(self, hop: int, now_ns: int) -> None:
        """A hop has ended."""
        self._times[2 * hop + 1] = now_ns

    def view(self, name: str, first: int = 0, frames: int = 1) -> NDArray[Any]:
        """The tensor's memory as an array; of a dynamic tensor, what was last stored.

        Args:
            name: the tensor.
            first: the frame in the slot.
            frames: how many from there on, side by side along the first axis.
        """
        key = name, first, frames
        known = self._views.get(key)
        if known is not None:
            return known
        place = self._places[name]
        start, shape = self._base + place.offset + first * place.capacity, place.shape
        if shape is None:
            header = np.frombuffer(self._memory, np.int64, MAX_RANK + 1, start)
            shape = tuple(int(d) for d in header[1 : 1 + int(header[0])])
            return self._array(place.dtype, shape, start + _SHAPE_BYTES)
        if frames > 1:
            shape = (frames * shape[0], *shape[1:])
        self._views[key] = view = self._array(place.dtype, shape, start)
        return view

    def _array(self, dtype: str, shape: tuple[int, ...], start: int) -> NDArray[Any]:
        return np.frombuffer(self._memory, np.dtype(dtype), math.prod(shape), start).reshape(shape)

    def target(self, name: str, first: int = 0, frames: int = 1) -> NDArray[Any] | DynamicOutput:
        """Where an engine is to write the tensor: memory, or a function that stores it; arguments as for `view`."""
        if self._places[name].shape is not None:
            return self.view(name, first, frames)
        return lambda array: self._store(name, array)

    def _store(self, name: str, array: NDArray[Any]) -> None:
        place = self._places[name]
        if array.nbytes > place.capacity or array.ndim > MAX_RANK:
            raise FrameError(
                f"output {name!r} came out as {array.shape}, over the {place.capacity >> 20} MiB kept for an output "
                f"of unknown shape; fix its shape in the model"
            )
        if str(array.dtype) != place.dtype:
            raise FrameError(f"output {name!r} came out as {array.dtype}, the model declares {place.dtype}")
        start = self._base + place.offset
        header = np.frombuffer(self._memory, np.int64, MAX_RANK + 1, start)
        header[0] = array.ndim
        header[1 : 1 + array.ndim] = array.shape
        data = np.frombuffer(self._memory, array.dtype, array.size, start + _SHAPE_BYTES)
        data[:] = array.reshape(-1)

    @property
    def error(self) -> str:
        """The text that a worker left when it failed on this frame."""
        raw = self._memory[self._base : self._base + _ERROR_BYTES]
        return raw.split(b"\0", 1)[0].decode(errors="replace")

    @error.setter
    def error(self, text: str) -> None:
        raw = text.encode()[: _ERROR_BYTES - 1]
        self._memory[self._base : self._base + len(raw) + 1] = raw + b"\0"


class Arena:
    """All slots, mapped into this process."""

    def __init__(self, layout: Layout, fd: int) -> None:
        self.fd = fd
        self.layout = layout
        with or_worker_error(f"cannot map {layout.nbytes >> 20} MiB of shared memory"):
            memory = mmap.mmap(fd, layout.nbytes)
        self.slots = tuple(Slot(memory, i * layout.slot_bytes, layout) for i in range(layout.slots))
        self.ended_ns: NDArray[np.int64] = np.ndarray(
            (layout.slots, MAX_HOPS),
            np.int64,
            memory,
            offset=_TIMES_OFFSET + _TIME_BYTES,  # start and end take turns
            strides=(layout.slot_bytes, 2 * _TIME_BYTES),
        )
        """When each hop of the frames in each slot ended (see `Slot.times`), shape (slots, MAX_HOPS)."""

    @classmethod
    def create(cls, layout: Layout) -> Arena:
        """New memory for a layout.

        Raises:
            WorkerError: there is no room for it.
        """
        with contextlib.ExitStack() as undo:
            fd = anonymous_file(layout.nbytes, "slots")
            undo.callback(os.close, fd)
            arena = cls(layout, fd)
            undo.pop_all()
        return arena

    @property
    def held_bytes(self) -> int:
        """The memory that it really takes: of what nobody has written to there is none."""
        return os.fstat(self.fd).st_blocks * 512

    def close(self) -> None:
        """Give the memory back as soon as nobody holds a view of it. Safe to call again."""
        self.slots, self.ended_ns = (), np.empty((0, MAX_HOPS), np.int64)
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
