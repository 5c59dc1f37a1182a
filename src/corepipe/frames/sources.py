"""Where frames come from: one function that understands what the user wrote."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from corepipe.errors import FrameError, UsageError
from corepipe.frames.arrays import NpySource, NpzSource, PipeSource
from corepipe.frames.images import (
    IMAGE_SUFFIXES,
    ImageSource,
    folder_source,
    is_image_name,
    natural_key,
    warn_of_images,
)
from corepipe.frames.model import Frame, FrameSource, Skipped, display_name, reason_of
from corepipe.frames.video import VIDEO_SUFFIXES, CameraSource, VideoSource, camera_number
from corepipe.network.model import TensorInfo

__all__ = ["Frame", "FrameSource", "Skipped", "open_source"]


def open_source(
    spec: str | os.PathLike[str],
    *,
    inputs: Sequence[TensorInfo] | None = None,
    stdin: BinaryIO | None = None,
    on_skip: Callable[[Skipped], None] | None = None,
) -> FrameSource:
    """Open what the user names as a source of frames.

    Args:
        spec: a folder of images, an image, a glob pattern of images, a video, `camera:0` or `/dev/video0`, an `.npy` or
            `.npz` file, or `-` for `.npy` arrays on the standard input.
        inputs: the network's inputs; they tell which axis of an array counts frames. Without them it is the first.
        stdin: what `-` reads, instead of the process's own standard input.
        on_skip: called at once for each frame that is skipped.

    Raises:
        UsageError: `spec` names nothing that exists or nothing of a known kind.
        FrameError: it exists, but cannot be read or holds no frame.

    Example:
        >>> with open_source("frames/") as source:                          # doctest: +SKIP
        ...     for frame in source:
        ...         print(frame.name, frame.data.shape)
    """
    text = os.fspath(spec)
    if text == "-":
        return _standard_input(stdin, inputs)
    number = camera_number(text)
    if number is not None:
        return CameraSource(number, on_skip)
    if not text or "\0" in text:
        raise UsageError(f"{text!r} is not an input; give a folder, a file, a pattern, 'camera:0' or '-'")
    if text.startswith("camera:"):
        raise UsageError(f"{text!r} is not a camera; write 'camera:' and its number, as in 'camera:0'")
    if "://" in text:
        raise UsageError(f"{text!r}: network addresses are not read; save it to a file, or pipe arrays into '-'")
    path = Path(os.path.expanduser(text))
    name = display_name(text)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if glob.has_magic(text):
            return _pattern_source(str(path), name, on_skip)
        raise UsageError(f"{name}: no such file or folder") from None
    except OSError as error:
        raise FrameError(f"{name}: cannot read: {reason_of(error)}") from None
    if stat.S_ISDIR(mode):
        return folder_source(path, name, on_skip)
    return _file_source(path, name, stat.S_ISREG(mode), inputs, on_skip)


def _file_source(
    path: Path,
    name: str,
    regular: bool,
    inputs: Sequence[TensorInfo] | None,
    on_skip: Callable[[Skipped], None] | None,
) -> FrameSource:
    """A file, by its suffix."""
    suffix = path.suffix.lower()
    short = display_name(path.name)
    if not regular:
        raise UsageError(f"{name}: neither a file nor a folder; pipe arrays into '-' instead")
    if suffix in IMAGE_SUFFIXES:
        return ImageSource(name, [(short, path)], single=True, on_skip=on_skip)
    if suffix in VIDEO_SUFFIXES:
        return VideoSource(path, short, on_skip)
    if suffix == ".npy":
        return NpySource(path, short, inputs)
    if suffix == ".npz":
        return NpzSource(path, short, inputs)
    raise UsageError(
        f"{name}: {f'files of kind {suffix!r}' if suffix else 'files without a suffix'} are not read; known: images "
        f"({', '.join(IMAGE_SUFFIXES)}), videos ({', '.join(VIDEO_SUFFIXES)}), .npy, .npz"
    )


def _pattern_source(pattern: str, name: str, on_skip: Callable[[Skipped], None] | None) -> FrameSource:
    """The images that match a glob pattern (`**` searches sub-folders)."""
    matches = [m for m in _matches(pattern) if not os.path.isdir(m)]
    images = sorted(filter(is_image_name, matches), key=natural_key)
    if not images:
        found = f"none of the {len(matches)} matching files is an image" if matches else "no file matches"
        raise UsageError(f"{name}: {found} (a pattern takes images: {', '.join(IMAGE_SUFFIXES)})")
    warn_of_images(name, matches)
    return ImageSource(name, [(display_name(m), Path(m)) for m in images], on_skip=on_skip)


def _matches(pattern: str) -> Iterator[str]:
    """What matches, in no order; with `**` no folder twice, as links may lead back to where they are."""
    if "**" not in pattern:
        yield from glob.iglob(pattern)
        return
    parts = Path(pattern).parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    yield from set(_below(os.path.join(*parts[:fixed]) if fixed else "", parts[fixed:], set()))


def _below(folder: str, parts: Sequence[str], seen: set[tuple[str, int]]) -> Iterator[str]:
    """Paths in a folder that match the parts of a pattern; `seen` are folders by the parts that were left for them."""
    here = (os.path.realpath(folder), len(parts))
    if here in seen:
        return
    seen.add(here)
    try:
        names = os.listdir(folder or ".")
    except OSError:
        return
    part, *rest = parts
    if part == "**":
        shown = [name for name in names if not name.startswith(".")]
        if rest:
            yield from _below(folder, rest, seen)
        else:
            yield from (os.path.join(folder, name) for name in shown)
        for name in shown:
            if os.path.isdir(path := os.path.join(folder, name)):
                yield from _below(path, parts, seen)
        return
    for name in fnmatch.filter(names, part):
        if name.startswith(".") and not part.startswith("."):
            continue
        path = os.path.join(folder, name)
        if not rest:
            yield path
        elif os.path.isdir(path):
            yield from _below(path, rest, seen)


def _standard_input(stream: BinaryIO | None, inputs: Sequence[TensorInfo] | None) -> FrameSource:
    if stream is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("'-' reads .npy arrays from the standard input: pipe them in")
        stream = sys.stdin.buffer
        # A thread that reads it may be left behind: at its end the interpreter would want the lock of sys.stdin itself.
        with contextlib.suppress(OSError):
            stream = os.fdopen(os.dup(stream.fileno()), "rb")
    return PipeSource(stream, inputs)
