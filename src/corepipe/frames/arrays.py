"""Arrays as frames: `.npy` and `.npz` files and a pipe of `.npy` arrays, read frame by frame.

Nothing is unpickled, and nothing is allocated on the word of a header alone: the frame's shape must be the network's,
and the size that a header declares must be there in the file.
"""

from __future__ import annotations

import contextlib
import lzma
import math
import os
import stat
import zipfile
import zlib
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from corepipe.errors import FrameError
from corepipe.frames.images import natural_key
from corepipe.frames.model import Frame, FrameSource, plural, reason_of
from corepipe.network.model import TensorInfo

MAX_FRAME_BYTES = 2**30
"""Larger frames (and larger arrays in Fortran order, which have to be read whole) are refused."""

_UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
"""What reading a damaged zip member may raise (NotImplementedError is a RuntimeError)."""

_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class _Array:
    """One `.npy` array on a stream, handed out frame by frame.

    Args:
        stream: stands at the start of the array.
        where: names it in messages.
        expected: the input of the network that it is for, None to take the first axis for frames.
        available: bytes that `stream` holds, None where that is not known.
        lead: bytes of the array that were taken from `stream` already.

    Attributes:
        count: how many frames it holds.
        frame_shape: shape of one, the batch axis included where `expected` has one.

    Raises:
        FrameError: not such an array, an unsuitable type or shape, or larger than what is there.
    """

    def __init__(
        self,
        stream: IO[bytes],
        where: str,
        expected: TensorInfo | None,
        available: int | None = None,
        lead: bytes = b"",
    ) -> None:
        self.where = where
        self._stream = stream
        counted = _Counting(stream, lead)
        shape, fortran, self.dtype = _read_header(counted, where)
        self.count, self.frame_shape = _divide(shape, expected, self.dtype, where)
        self._frame_bytes = math.prod(self.frame_shape) * self.dtype.itemsize
        if not self.count or not self._frame_bytes:
            raise FrameError(f"{where}: holds no frame (shape {_times(shape)})")
        total = self.count * self._frame_bytes
        if available is not None and counted.taken + total != available:
            problem = "is truncated" if counted.taken + total > available else "goes on after its array"
            raise FrameError(
                f"{where}: {problem}: the header declares {total} bytes ({self.dtype}[{_times(shape)}]), "
                f"{available - counted.taken} follow"
            )
        fortran = fortran and len(shape) > 1
        if (total if fortran else self._frame_bytes) > MAX_FRAME_BYTES:
            what = "an array in Fortran order" if fortran else "one frame"
            hint = "; save np.ascontiguousarray(...)" if fortran else ""
            raise FrameError(f"{where}: {what} of more than {MAX_FRAME_BYTES >> 20} MiB{hint}")
        self._whole: NDArray[Any] | None = None
        if fortran:
            flat = np.empty(math.prod(shape), self.dtype)
            self._fill(flat, 0)
            self._whole = flat.reshape(shape, order="F").reshape(self.count, *self.frame_shape)
        self._next = 0

    def read(self) -> NDArray[Any]:
        """The next frame, C-contiguous.

        Raises:
            FrameError: the stream ends or is damaged before the end of the frame.
        """
        index = self._next
        self._next += 1
        if self._whole is not None:
            return np.ascontiguousarray(self._whole[index])
        frame = np.empty(self.frame_shape, self.dtype)
        self._fill(frame, index)
        return frame

    def _fill(self, array: NDArray[Any], index: int) -> None:
        """Read into a contiguous array."""
        view = array.reshape(-1).view(np.uint8).data
        done = 0
        try:
            while done < len(view):
                piece = self._stream.read(min(len(view) - done, 2**24))
                if not piece:
                    break
                view[done : done + len(piece)] = piece
                done += len(piece)
        except _UNREADABLE as error:
            raise FrameError(f"{self.where}: damaged in frame {index}: {reason_of(error)}") from None
        if done < len(view):
            raise FrameError(f"{self.where}: truncated in frame {index}: {done} of {len(view)} bytes are there")


class _Counting:
    """A stream for numpy's header readers that counts what they take, and can begin with bytes taken before."""

    def __init__(self, stream: IO[bytes], lead: bytes) -> None:
        self._stream = stream
        self._lead = lead
        self.taken = 0

    def read(self, size: int = 1, /) -> bytes:
        data, self._lead = self._lead[:size], self._lead[size:]
        if len(data) < size:
            data += self._stream.read(size - len(data))
        self.taken += len(data)
        return data


def _read_header(stream: _Counting, where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran order, and dtype.

    Raises:
        FrameError: not the header of a numeric array.
    """
    try:
        version = np.lib.format.read_magic(stream)
    except _UNREADABLE:
        raise FrameError(f"{where}: not an .npy array (np.save makes one)") from None
    if version not in _HEADER_READERS:
        raise FrameError(f"{where}: .npy format {version[0]}.{version[1]} is not read; save a plain numeric array")
    try:
        shape, fortran, dtype = _HEADER_READERS[version](stream)
    except Exception as error:  # numpy evaluates the header as Python text and lets any error of that through
        raise FrameError(f"{where}: damaged .npy header: {reason_of(error)}") from None
    if dtype.hasobject:
        raise FrameError(f"{where}: holds Python objects, which are never unpickled; save a numeric array")
    if dtype.kind not in "?biuf":
        raise FrameError(f"{where}: elements of type {dtype} are not numbers; save a numeric array")
    if any(size < 0 for size in shape):
        raise FrameError(f"{where}: damaged .npy header: negative size in {shape}")
    return shape, fortran, dtype


def _divide(
    shape: tuple[int, ...], expected: TensorInfo | None, dtype: np.dtype[Any], where: str
) -> tuple[int, tuple[int, ...]]:
    """How many frames an array holds, and the shape of one.

    Raises:
        FrameError: it does not consist of frames of the expected shape.
    """
    if expected is None or expected.shape is None:
        if not shape:
            raise FrameError(f"{where}: a single number; the first axis must count the frames")
        return shape[0], shape[1:]
    want = expected.shape
    if shape == want or (want[:1] == (1,) and shape == want[1:]):
        return 1, want
    if shape and shape[1:] == want:
        return shape[0], want
    if want and want[0] and len(shape) == len(want) and shape[1:] == want[1:] and shape[0] % want[0] == 0:
        return shape[0] // want[0], want
    tail = "x".join(["N", *map(str, want[1:] if want[:1] == (1,) else want)])
    images = "; pictures of other sizes are read from image files" if len(want) == 4 else ""
    raise FrameError(
        f"{where}: {dtype}[{_times(shape)}] does not fit input {expected.name!r}, {expected}: give one frame of that "
        f"shape, or N of them as {tail}{images}"
    )


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _no_access(name: str, error: BaseException) -> NoReturn:
    raise FrameError(f"{name}: cannot read: {reason_of(error)}") from None


def _frame_name(name: str, index: int, count: int) -> str:
    return f"{name}#{index}" if count > 1 else name


class NpySource(FrameSource):
    """An `.npy` file: one frame, or frames along the first axis."""

    images = False

    def __init__(self, path: Path, name: str, inputs: Sequence[TensorInfo] | None) -> None:
        if inputs is not None and len(inputs) != 1:
            names = ", ".join(i.name for i in inputs)
            raise FrameError(
                f"{name}: an .npy file is for one input, the network has {len(inputs)} ({names}); "
                f"save an .npz with an entry for each"
            )
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            _no_access(name, error)
        try:
            status = os.fstat(self._file.fileno())
            size = status.st_size if stat.S_ISREG(status.st_mode) else None
            self._array = _Array(self._file, name, inputs[0] if inputs else None, size)
        except BaseException:
            self._file.close()
            raise
        super().__init__(name, self._array.count)

    def _release(self) -> None:
        self._file.close()

    def _produce(self) -> Generator[Frame, None, None]:
        count = self._array.count
        for index in range(count):
            yield Frame(_frame_name(self.name, index, count), self._array.read(), is_image=False)


class NpzSource(FrameSource):
    """An `.npz` file, in one of two forms.

    An entry for each input of the network, each one frame or frames along its first axis, as many in each. Or, for a
    network of one input, entries of any other names, in natural order of the names, each one frame or several.
    """

    images = False

    def __init__(self, path: Path, name: str, inputs: Sequence[TensorInfo] | None) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except OSError as error:
            _no_access(name, error)
        except _UNREADABLE as error:
            raise FrameError(f"{name}: not an .npz file: {reason_of(error)}") from None
        try:
            self._groups, count = self._plan(name, inputs)
        except BaseException:
            self._zip.close()
            raise
        super().__init__(name, count)

    def _plan(self, name: str, inputs: Sequence[TensorInfo] | None) -> tuple[list[dict[str, TensorInfo | None]], int]:
        """The entries that are read together, as groups to be read in turn, and the frames of all; headers checked."""
        keys = sorted((n[:-4] for n in self._zip.namelist() if n.endswith(".npy")), key=natural_key)
        if not keys:
            raise FrameError(f"{name}: holds no array (np.savez makes an .npz)")
        groups: list[dict[str, TensorInfo | None]]
        if inputs is None:
            groups = [dict.fromkeys(keys)]
        elif all(i.name in keys for i in inputs):
            groups = [{i.name: i for i in inputs}]
        elif len(inputs) == 1:
            groups = [{key: inputs[0]} for key in keys]
        else:
            wanted = ", ".join(i.name for i in inputs)
            raise FrameError(f"{name}: needs an entry for each input ({wanted}); it holds {', '.join(keys[:8])}")
        total = 0
        for group in groups:
            counts = {}
            for key, tensor in group.items():
                with contextlib.closing(self._member(name, key)) as stream:
                    counts[key] = self._array(stream, name, key, tensor).count
            if len(set(counts.values())) > 1:
                found = ", ".join(f"{key} {plural(n, 'frame')}" for key, n in counts.items())
                raise FrameError(f"{name}: its entries hold different numbers of frames: {found}")
            total += next(iter(counts.values()))
        return groups, total

    def _member(self, name: str, key: str) -> IO[bytes]:
        try:
            return self._zip.open(f"{key}.npy")
        except _UNREADABLE as error:
            raise FrameError(f"{name}: entry {key!r} cannot be read: {reason_of(error)}") from None

    def _array(self, stream: IO[bytes], name: str, key: str, tensor: TensorInfo | None) -> _Array:
        return _Array(stream, f"{name}: entry {key!r}", tensor, self._zip.getinfo(f"{key}.npy").file_size)

    def _release(self) -> None:
        self._zip.close()

    def _produce(self) -> Generator[Frame, None, None]:
        for group in self._groups:
            with contextlib.ExitStack() as stack:
                arrays = {}
                for key, tensor in group.items():
                    stream = stack.enter_context(contextlib.closing(self._member(self.name, key)))
                    arrays[key] = self._array(stream, self.name, key, tensor)
                count = next(iter(arrays.values())).count
                name = self.name if len(self._groups) == 1 else f"{self.name}:{next(iter(group))}"
                for index in range(count):
                    data = {}
                    for key, tensor in group.items():
                        data[tensor.name if tensor else key] = arrays[key].read()
                    yield Frame(_frame_name(name, index, count), data, is_image=False)


class PipeSource(FrameSource):
    """`.npy` arrays one after another on a stream, until it ends.

    For a network of one input each array is one frame, or frames along its first axis. For more inputs, one array for
    each input in the network's order makes a frame.
    """

    live = True
    images = False

    def __init__(self, stream: BinaryIO, inputs: Sequence[TensorInfo] | None) -> None:
        super().__init__("stdin", None)
        self._stream = stream
        self._inputs = inputs

    def _arrays(self) -> Iterator[bytes]:
        """The first byte of each array, until the stream ends."""
        while True:
            try:
                lead = self._stream.read(1)
            except _UNREADABLE as error:
                _no_access(self.name, error)
            if not lead:
                return
            yield lead

    def _produce(self) -> Generator[Frame, None, None]:
        frames = arrays = 0
        pending: dict[str, NDArray[Any]] = {}
        several = self._inputs is not None and len(self._inputs) > 1
        for lead in self._arrays():
            where = f"{self.name}: array {arrays}"
            expected = self._inputs[len(pending)] if self._inputs else None
            array = _Array(self._stream, where, expected, lead=lead)
            arrays += 1
            if several and self._inputs is not None and expected is not None:
                if array.count != 1:
                    raise FrameError(f"{where}: {array.count} frames in one array; with several inputs give one each")
                pending[expected.name] = array.read()
                if len(pending) == len(self._inputs):
                    yield Frame(f"{self.name}#{frames}", pending, is_image=False)
                    frames, pending = frames + 1, {}
                continue
            for _ in range(array.count):
                yield Frame(f"{self.name}#{frames}", array.read(), is_image=False)
                frames += 1
        if pending:
            raise FrameError(f"{self.name}: ends in the middle of frame {frames}; it has only {', '.join(pending)}")
        if not frames:
            raise FrameError(f"{self.name}: is empty; pipe .npy arrays into it")
