"""External tensor data, read so that a model can reach nothing but plain files beneath its own folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from onnx import ModelProto, TensorProto

from corepipe.errors import ModelError
from corepipe.network.check import all_tensors
from corepipe.network.graph import human_bytes, storage_bytes

_MAX_OPEN = 32


def load_external(model: ModelProto, folder: Path | None, name: str) -> None:
    """Bring all external data into the model.

    Every part of a location is opened relative to its parent and without following links, so neither symlinks
    nor a file swapped meanwhile lead out of the folder.

    Args:
        model: its external tensors get their `raw_data`; sizes must have been checked before.
        folder: where the model file lies; None for a model that came from no file.
        name: what messages call the model.

    Raises:
        ModelError: a location is refused, missing, unreadable or too short.
    """
    opened: dict[str, int] = {}
    try:
        for tensor in all_tensors(model):
            if tensor.data_location == TensorProto.EXTERNAL:
                _load_tensor(tensor, folder, name, opened)
            else:
                del tensor.external_data[:]
    finally:
        for handle in opened.values():
            os.close(handle)


def _load_tensor(tensor: TensorProto, folder: Path | None, name: str, opened: dict[str, int]) -> None:
    what = f"{name}: tensor {tensor.name!r}"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise ModelError(f"{what} keeps its data in the file {location!r}; give the model's path instead of a proto")
    needed = storage_bytes(tensor.data_type, tensor.dims)
    if needed is None or tensor.data_type == TensorProto.STRING:
        raise ModelError(f"{what} keeps data of element type {tensor.data_type} outside the model; export it again")
    offset = _number(entries.get("offset", "0"), what, "offset")
    length = _number(entries.get("length", str(needed)), what, "length")
    if length != needed:
        raise ModelError(f"{what} needs {needed} bytes, its external data has length {length}; export it again")
    if location not in opened:
        while len(opened) >= _MAX_OPEN:
            os.close(opened.pop(next(iter(opened))))
        opened[location] = _open_inside(folder, location, what)
    handle = opened[location]
    size = os.fstat(handle).st_size
    if offset + length > size:
        raise ModelError(
            f"{what} wants bytes {offset} to {offset + length} of {location!r}, which has only {human_bytes(size)} "
            f"({size} bytes); the file is incomplete, copy it again"
        )
    try:
        data = read_at(handle, offset, length)
    except OSError as error:
        raise ModelError(f"{what}: cannot read {location!r}: {error.strerror or error}") from None
    if len(data) != length:
        raise ModelError(f"{what}: {location!r} became shorter while it was read; copy it again")
    tensor.raw_data = data
    del tensor.external_data[:]
    tensor.ClearField("data_location")


def _number(text: str, what: str, field: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ModelError(f"{what}: external data has {field} {text[:40]!r}, which is no number of bytes")
    return int(text)


def _open_inside(folder: Path, location: str, what: str) -> int:
    """A handle on a plain file beneath `folder`."""
    parts = location.split("/")
    if parts[0] == "." and len(parts) > 1:
        parts = parts[1:]
    if location.startswith("/") or "\\" in location or "\0" in location:
        raise ModelError(f"{what}: external data {location!r} must be a relative path inside the model's folder")
    if any(part in ("", ".", "..") for part in parts):
        raise ModelError(f"{what}: external data {location!r} leads out of the model's folder, which is refused")
    at = -1
    try:
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        for part in parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = inner
        handle = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
    except FileNotFoundError:
        raise ModelError(
            f"{what}: external data file {location!r} is missing; put it next to the model in {str(folder)!r}"
        ) from None
    except OSError as error:
        link = any(os.path.islink(folder.joinpath(*parts[: i + 1])) for i in range(len(parts)))
        reason = "is or goes through a symbolic link, which is refused" if link else f"{error.strerror or error}"
        hint = "; replace the link by a copy of the file" if link else ""
        raise ModelError(f"{what}: external data {location!r}: {reason}{hint}") from None
    finally:
        if at >= 0:
            os.close(at)
    status = os.fstat(handle)
    problem = ""
    if not stat.S_ISREG(status.st_mode):
        problem = "is not a plain file"
    elif status.st_nlink > 1:
        problem = "is a hard link (it has more than one name), which is refused; replace it by a copy"
    if problem:
        os.close(handle)
        raise ModelError(f"{what}: external data {location!r} {problem}")
    return handle


def read_at(handle: int, offset: int, length: int) -> bytes:
    """`length` bytes of a file from `offset` on, fewer where it ends."""
    pieces: list[bytes] = []
    while length:
        piece = os.pread(handle, min(length, 2**30), offset)
        if not piece:
            break
        pieces.append(piece)
        offset, length = offset + len(piece), length - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
