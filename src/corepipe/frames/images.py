"""Image files: safe decoding, and folders, globs and single files as sources."""

from __future__ import annotations

import logging
import os
import re
import stat
import struct
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from corepipe.errors import FrameError
from corepipe.frames.model import Frame, FrameSource, Skipped, display_name, plural, reason_of

_log = logging.getLogger("corepipe")

cv2.setNumThreads(1)
# OpenCV 4 has this function at the top, OpenCV 5 in a module; 0 is silence.
(getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel)(0)

IMAGE_SUFFIXES = (
    ".bmp", ".dib", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
"""Suffixes (lower case) of files that are taken for images."""

_UNREAD_SUFFIXES = (".avif", ".cr2", ".dng", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".nef", ".svg", ".tga")

MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded."""

MAX_FILE_BYTES = 2**30
"""Larger image files are refused before they are read."""


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG, PNG, BMP, WebP, TIFF or PNM file.

    EXIF orientation is applied, 16 bits become 8, grey becomes three equal channels, alpha is dropped.

    Args:
        data: the bytes of the file.

    Returns:
        height x width x 3, BGR.

    Raises:
        FrameError: not such a file, damaged, or larger than `MAX_PIXELS`; the message does not name the file.
    """
    if not data:
        raise FrameError("the file is empty")
    size = image_size(data)
    if size is None:
        raise FrameError("not an image of a known format (JPEG, PNG, BMP, WebP, TIFF, PNM)")
    width, height = size
    if width * height > MAX_PIXELS:
        raise FrameError(f"{width}x{height} pixels, more than {MAX_PIXELS // 1_000_000} megapixels; scale it down")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except (cv2.error, MemoryError):
        image = None
    if image is None or image.dtype != np.uint8 or image.ndim != 3 or not image.size:
        raise FrameError("damaged or truncated image, or of pixels that are not read (such as float TIFF)")
    return np.asarray(image, np.uint8)


def image_size(data: bytes) -> tuple[int, int] | None:
    """Width and height as the header of an image file declares them, None if it is no image of a known format."""
    try:
        for magic, read_size in _FORMATS:
            if re.match(magic, data, re.DOTALL):
                return read_size(data)
    except (struct.error, IndexError, ValueError):
        pass
    return None


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at = 2
    while True:
        at = data.index(b"\xff", at)
        marker = data[at + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD7:
            at += 1 if marker == 0xFF else 2
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]


def _png_size(data: bytes) -> tuple[int, int] | None:
    return struct.unpack_from(">II", data, 16) if data[12:16] == b"IHDR" else None


def _bmp_size(data: bytes) -> tuple[int, int]:
    if struct.unpack_from("<I", data, 14)[0] == 12:
        return struct.unpack_from("<HH", data, 18)
    width, height = struct.unpack_from("<ii", data, 18)
    return abs(width), abs(height)


def _webp_size(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _tiff_size(data: bytes) -> tuple[int, int] | None:
    order = "<" if data[:2] == b"II" else ">"
    at = struct.unpack_from(order + "I", data, 4)[0]
    sizes = {}
    for entry in range(struct.unpack_from(order + "H", data, at)[0]):
        tag, kind = struct.unpack_from(order + "HH", data, at + 2 + 12 * entry)
        if tag in (256, 257):
            sizes[tag] = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, at + 10 + 12 * entry)[0]
    return (sizes[256], sizes[257]) if len(sizes) == 2 else None


def _pnm_size(data: bytes) -> tuple[int, int] | None:
    match = re.match(rb"P[1-6](?:\s|#[^\n]*\n)+(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,9})\s", data[:4096])
    return (int(match[1]), int(match[2])) if match else None


_FORMATS: tuple[tuple[bytes, Callable[[bytes], tuple[int, int] | None]], ...] = (
    (rb"\xff\xd8\xff", _jpeg_size),
    (rb"\x89PNG\r\n\x1a\n", _png_size),
    (rb"RIFF.{4}WEBP", _webp_size),
    (rb"BM", _bmp_size),
    (rb"II\*\0|MM\0\*", _tiff_size),
    (rb"P[1-6]\s", _pnm_size),
)


def _read_file(path: Path) -> bytes:
    """The bytes of a regular file of sensible size; messages do not name it.

    Raises:
        FrameError: it cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise FrameError("not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise FrameError(f"larger than {MAX_FILE_BYTES >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise FrameError(f"cannot read: {reason_of(error)}") from None


class ImageSource(FrameSource):
    """Image files in the order given; unreadable ones are skipped.

    Args:
        name: what is read, for messages.
        files: what each frame is called, and its file.
        single: a lone file: not being able to read it is an error at once.
        on_skip: called for each file that is skipped.

    Raises:
        FrameError: a lone file cannot be read.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[tuple[str, Path]],
        *,
        single: bool = False,
        on_skip: Callable[[Skipped], None] | None = None,
    ) -> None:
        super().__init__(name, len(files), on_skip)
        self._files = files
        self._lone: NDArray[np.uint8] | None = None
        if single:
            try:
                self._lone = decode_image(_read_file(files[0][1]))
            except FrameError as error:
                raise FrameError(f"{name}: {error}") from None

    def _produce(self) -> Generator[Frame, None, None]:
        readable = 0
        for name, path in self._files:
            try:
                image = decode_image(_read_file(path)) if self._lone is None else self._lone
            except FrameError as error:
                self._skip(name, str(error))
                continue
            readable += 1
            yield Frame(name, image, is_image=True)
        if not readable:
            first = self.skipped[0]
            raise FrameError(
                f"{self.name}: none of its {plural(len(self._files), 'image')} can be read; "
                f"the first: {first.name}: {first.reason}"
            )


def is_image_name(name: str) -> bool:
    """Whether a file of that name is taken for an image."""
    return name.lower().endswith(IMAGE_SUFFIXES)


_KEY_DIGITS = 600
"""Longer numbers are compared in pieces: Python reads numbers of 640 digits wherever it limits them."""


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key that puts `frame2` before `frame10`."""
    parts = re.split(rf"(\d{{1,{_KEY_DIGITS}}})", name.casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def folder_source(path: Path, name: str, on_skip: Callable[[Skipped], None] | None = None) -> ImageSource:
    """The images of a folder in natural order, its sub-folders and hidden files left out.

    Raises:
        FrameError: the folder cannot be listed, or holds no image.
    """
    files, folders, others = [], [], []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if os.path.isdir(entry.path):  # `entry.is_dir()` raises for a link that leads in a circle
                    folders.append(entry.name)
                elif is_image_name(entry.name):
                    files.append(entry.name)
                else:
                    others.append(entry.name)
    except OSError as error:
        raise FrameError(f"{name}: cannot list the folder: {reason_of(error)}") from None
    if not files:
        hint = "it is empty"
        if folders:
            hint = (
                f"its sub-folders are not searched ({_some(folders)}): name one, or use a pattern such as '{name}/*/*'"
            )
        elif others:
            hint = f"it holds {_some(others)}"
        raise FrameError(f"{name}: no image in this folder; {hint} (images: {', '.join(IMAGE_SUFFIXES)})")
    warn_of_images(name, others)
    ordered = sorted(files, key=natural_key)
    return ImageSource(name, [(display_name(f), path / f) for f in ordered], on_skip=on_skip)


def warn_of_images(name: str, left_out: Iterable[str]) -> None:
    """Say which files that are left out of `name` are images, of kinds that are not read."""
    unread = [file for file in left_out if file.lower().endswith(_UNREAD_SUFFIXES)]
    if unread:
        count = plural(len(unread), "image")
        _log.warning("%s: %s left out, of kinds that are not read: %s", name, count, _some(unread))


def _some(names: list[str], most: int = 5) -> str:
    """A few names and how many more there are."""
    shown = [display_name(n) for n in sorted(names, key=natural_key)[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")
