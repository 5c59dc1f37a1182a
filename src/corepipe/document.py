"""Versioned JSON documents (cost tables, plans): strict to read, pleasant to edit, safe to write."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from corepipe.errors import CorepipeError, DocumentError, UnknownNameError, UsageError

MAX_DOCUMENT_BYTES = 64 * 2**20
"""Larger files are refused before they are parsed."""

_OPEN_FILES = ("/dev/std", "/dev/fd/", "/proc/")


class Part(BaseModel):
    """A piece of a document: immutable, unknown keys refused, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Document(Part):
    """A whole file: a `Part` with a `schema_version` and a `kind` of its own."""

    KIND: ClassVar[str]
    SCHEMA_VERSION: ClassVar[int] = 1

    def to_json(self) -> str:
        """The document as indented JSON, lists of numbers on one line each."""
        body = self.model_dump(mode="json", exclude_none=True)
        return _format({"schema_version": self.SCHEMA_VERSION, "kind": self.KIND, **body}) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "<text>") -> Self:
        """Parse and check a document.

        Raises:
            DocumentError: not JSON, of another kind or version, or a value is missing or out of range;
                the message names the place in the document and `source`.
        """
        what = cls.KIND
        try:
            data = _parse(text)
        except (ValueError, RecursionError) as error:
            raise DocumentError(f"{source}: not a {what}: not valid JSON ({error})") from None
        if not isinstance(data, dict):
            raise DocumentError(f"{source}: not a {what}: the top level must be an object")
        kind, version = data.pop("kind", None), data.pop("schema_version", None)
        if kind != what:
            raise DocumentError(f"{source}: expected a document of kind {what!r}, found {kind!r}")
        if version != cls.SCHEMA_VERSION:
            raise DocumentError(
                f"{source}: {what} has schema_version {version!r}, this corepipe reads {cls.SCHEMA_VERSION}; "
                f"make it anew with this version"
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise DocumentError(f"{source}: invalid {what}: {_explain(error, cls)}") from None
        except CorepipeError as error:
            raise DocumentError(f"{source}: invalid {what}: {error}") from None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a document from a file.

        Raises:
            DocumentError: the file cannot be read, is too large, or `from_json` refuses it.
        """
        return cls.from_json(read_limited(path, MAX_DOCUMENT_BYTES, cls.KIND), str(path))

    def write(self, path: str | os.PathLike[str], *, private: bool = False) -> None:
        """Write the document atomically.

        Args:
            path: the file.
            private: whether only this user may read it.

        Raises:
            DocumentError: the file cannot be written; an older file at `path` is left as it was.
        """
        write_atomically(path, self.to_json(), private=private)


def read_limited(path: str | os.PathLike[str], limit: int, what: str) -> bytes:
    """A file, pipe or device, of which no more than the limit is read: a device may have no end.

    Args:
        path: the file.
        limit: in bytes.
        what: it ought to be, for messages.

    Raises:
        DocumentError: it cannot be read, or is larger.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:
        # A path with a NUL in it is a ValueError.
        reason = getattr(error, "strerror", None) or error
        raise DocumentError(f"{path}: cannot read {what}: {reason}; check the path") from None
    if len(data) > limit:
        raise DocumentError(f"{path}: larger than {limit >> 20} MiB, not a {what}; check the path")
    return data


def write_atomically(path: str | os.PathLike[str], text: str, *, private: bool = False) -> None:
    """Replace `path` by `text` in one step, so that a reader sees the old or the new file, never a part.

    A symbolic link stays one, what it leads to is replaced. Pipes, devices and open files (`/dev/stdout`)
    are written to.

    Raises:
        DocumentError: the folder or file cannot be written (the reason is in the message).
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}")
    mode = 0o600 if private else 0o666
    try:
        if _is_stream(path):
            with open(path, "a", encoding="utf-8") as file:
                file.write(text)
            return
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise DocumentError(f"{path}: cannot write: {error.strerror or error}") from None


_Path = str | os.PathLike[str]


def check_writable(
    *paths: _Path | None,
    files: Iterable[_Path | None] = (),
    in_place: Iterable[_Path | None] = (),
    inputs: Iterable[_Path | None] = (),
) -> None:
    """Check that files can be written, before the work whose results they are to hold.

    Args:
        *paths: others than None; `-` is stdout.
        files: others, which cannot be stdout.
        in_place: others, which are not replaced but written as they are.
        inputs: what that work reads.

    Raises:
        DocumentError: the path is a directory, or its folder does not exist or may not be written to; stdout is closed.
        UsageError: the path is empty, the file is read, or written twice, or is `-` where that is not stdout.
    """
    replaced: list[_Path] = [path for path in files if path is not None]
    rewritten: list[_Path] = [path for path in in_place if path is not None]
    if any(os.fspath(path) == "-" for path in replaced):
        raise UsageError("'-': only text and JSON go to the standard output; name a file for this")
    outputs = [*(path for path in paths if path is not None and os.fspath(path) != "-"), *replaced, *rewritten]
    if any(os.fspath(path) == "" for path in outputs):
        raise UsageError("the name of a file to write is empty")
    if sys.stdout is None and any(path is not None and os.fspath(path) == "-" for path in paths):
        raise DocumentError("<stdout>: cannot write: the standard output is closed; name a file")
    _check_apart(outputs, [path for path in inputs if path is not None])
    for path in outputs:
        folder = Path(os.path.realpath(path)).parent
        if os.path.isdir(path):
            raise DocumentError(f"{path}: cannot write: is a directory")
        if _is_stream(path) or (path in rewritten and os.path.exists(path)):
            writable = os.access(path, os.W_OK)
        elif not os.path.isdir(folder):
            raise DocumentError(f"{path}: cannot write: there is no folder {folder}")
        else:
            writable = os.access(folder, os.W_OK | os.X_OK)
        if not writable:
            raise DocumentError(f"{path}: cannot write: permission denied")


def _check_apart(outputs: Sequence[_Path], inputs: Sequence[_Path]) -> None:
    taken = {os.path.realpath(path): "is read by this command, and would be lost" for path in inputs}
    for output in outputs:
        if _is_stream(output):
            continue
        if what := taken.get(os.path.realpath(output)):
            raise UsageError(f"{output}: {what}; name another file")
        taken[os.path.realpath(output)] = "is to hold two results"


def _is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether a path is to be written to as it is: no plain file, or one that is open already."""
    if os.path.abspath(path).startswith(_OPEN_FILES):
        return True
    return os.path.exists(path) and not os.path.isfile(path)


def _parse(text: str | bytes) -> Any:
    """What JSON says; NaN and infinity become text, which no field takes.

    Raises:
        ValueError: it is not JSON, or holds text that is not Unicode.
        RecursionError: it is too deep.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text))
    data = json.loads(text, parse_constant=lambda c: c, object_pairs_hook=_without_repetition)
    if "\\u" in text or not text.isascii():
        # An escape can stand for half a character: it could be read, but not checked or written.
        json.dumps(data, ensure_ascii=False).encode()
    return data


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice")
        found[key] = value
    return found


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem in words, with its place and, for an unknown key, the nearest known one."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "top level"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _keys_at(model, first["loc"][:-1])
        return f"{UnknownNameError('key', str(first['loc'][-1]), known)} at {place}{more}"
    return f"{place}: {first['msg']}{more}"


def _keys_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys that are allowed at a place in a document (empty where it cannot be told)."""
    current: Any = model
    for part in loc:
        if isinstance(part, int):
            continue
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:
            return []
        current = _inner_model(field.annotation)
    return list(getattr(current, "model_fields", {}))


def _inner_model(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        inner = _inner_model(argument)
        if inner is not None:
            return inner
    return None


def _format(value: Any, indent: str = "") -> str:
    inner = indent + "  "
    if isinstance(value, dict) and value:
        if all(not isinstance(v, dict | list) for v in value.values()):
            flat = json.dumps(value)
            if len(flat) + len(indent) <= 100:
                return flat
        items = [f"{inner}{json.dumps(k)}: {_format(v, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
        return "[\n" + ",\n".join(inner + _format(v, inner) for v in value) + f"\n{indent}]"
    return json.dumps(value)
