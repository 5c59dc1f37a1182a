"""Video files and cameras as sources."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import cv2

from corepipe.errors import FrameError
from corepipe.frames.images import MAX_PIXELS
from corepipe.frames.model import Frame, FrameSource, Skipped, display_name, plural

VIDEO_SUFFIXES = (
    ".264", ".3gp", ".asf", ".avi", ".flv", ".h264", ".h265", ".hevc", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov",
    ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv", ".y4m",
)  # fmt: skip
"""Suffixes (lower case) of files that are taken for videos; playlists are not among them."""

_FFMPEG_SETTINGS = {
    "OPENCV_FFMPEG_LOGLEVEL": "-8",
    "OPENCV_FFMPEG_CAPTURE_OPTIONS": "protocol_whitelist;file",
    "OPENCV_FFMPEG_THREADS": "1",
}
"""FFmpeg keeps quiet and off the workers' cores, and a video file cannot make it open a network address."""

_FAILED_READS = 64
"""After so many in a row a video has ended, whatever it declares."""
_FAILED_GRABS = 1
"""The same of a camera: each may take the ten seconds after which OpenCV gives up."""


@contextlib.contextmanager
def _ffmpeg_settings() -> Iterator[None]:
    """Settings that OpenCV takes from nowhere but the environment; the user's own are left alone."""
    added = {key: value for key, value in _FFMPEG_SETTINGS.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


class _CaptureSource(FrameSource):
    """Frames of a `cv2.VideoCapture`, named `NAME#0`, `NAME#1` and so on."""

    def __init__(
        self,
        name: str,
        length: int | None,
        capture: cv2.VideoCapture,
        on_skip: Callable[[Skipped], None] | None,
    ) -> None:
        super().__init__(name, length, on_skip)
        self._capture = capture

    def _release(self) -> None:
        self._capture.release()

    def _patience(self, count: int) -> int:
        """How many reads may fail in a row after `count` frames before that is the end."""
        raise NotImplementedError

    def _ended(self, count: int, lost: int) -> None:
        """Judge an end after `count` frames, `lost` more having failed on the way."""

    def _produce(self) -> Generator[Frame, None, None]:
        count = failed = lost = 0
        while not self._closed:
            try:
                good, image = self._capture.read()
            except (cv2.error, MemoryError):
                good = False
            if not good or image is None:
                failed += 1
                if failed > self._patience(count + lost):
                    break
                continue
            if failed:
                self._skip(f"{self.name}#{count}", "what comes before this frame cannot be decoded")
                lost += failed
                failed = 0
            if image.ndim == 2:
                image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
            yield Frame(f"{self.name}#{count}", image, is_image=True)
            count += 1
        self._ended(count, lost)


class VideoSource(_CaptureSource):
    """A video file. What of it cannot be decoded, or where it breaks off, is recorded in `skipped`.

    Raises:
        FrameError: it cannot be opened, or its pictures are larger than `MAX_PIXELS`.
    """

    def __init__(self, path: Path, name: str, on_skip: Callable[[Skipped], None] | None = None) -> None:
        try:
            with path.open("rb") as file:
                empty = not file.read(1)
        except OSError as error:
            raise FrameError(f"{name}: cannot read: {error.strerror or error}") from None
        if empty:
            raise FrameError(f"{name}: the file is empty")
        file_name = os.path.realpath(path)
        if display_name(file_name) != file_name:
            raise FrameError(f"{name}: OpenCV opens no file whose path is not UTF-8; rename it, or its folder")
        with _ffmpeg_settings():
            capture = cv2.VideoCapture(file_name)
        if not capture.isOpened():
            raise FrameError(f"{name}: not a video that OpenCV can open (damaged, or an unknown container or codec)")
        width, height = (int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > MAX_PIXELS:
            capture.release()
            raise FrameError(f"{name}: pictures of {width}x{height} pixels are too large; scale the video down")
        declared = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        super().__init__(name, int(declared) if 0 < declared < 1e9 else None, capture, on_skip)

    def _patience(self, count: int) -> int:
        return _FAILED_READS if self.length is not None and count < self.length else 0

    def _ended(self, count: int, lost: int) -> None:
        if not count:
            raise FrameError(f"{self.name}: no frame of this video can be decoded")
        # Containers without an index estimate their length; being off by a few frames is no sign of damage.
        if self.length is not None and self.length - count - lost > max(2, self.length // 50):
            self._skip(
                f"{self.name}#{count}",
                f"the video breaks off after {plural(count, 'frame')}; it declares {self.length}",
            )


class CameraSource(_CaptureSource):
    """A camera by number; it never ends by itself.

    Raises:
        FrameError: there is no such camera, or it cannot be opened; later, where it gives no more pictures.
    """

    live = True

    def __init__(self, number: int, on_skip: Callable[[Skipped], None] | None = None) -> None:
        name, device = f"camera:{number}", Path(f"/dev/video{number}")
        if sys.platform in ("linux", "android"):
            if not os.path.exists(device):
                found = sorted(p.name for p in Path("/dev").glob("video[0-9]*"))
                raise FrameError(f"{name}: no {device} on this machine (cameras: {', '.join(found) or 'none'})")
            if not os.access(device, os.R_OK | os.W_OK):
                raise FrameError(f"{name}: no permission to use {device}; join the group 'video'")
        capture = cv2.VideoCapture(number)
        if not capture.isOpened():
            raise FrameError(f"{name}: cannot be opened; is it connected, and not in use by another program?")
        super().__init__(name, None, capture, on_skip)

    def _patience(self, count: int) -> int:
        return _FAILED_GRABS if count else 0

    def _ended(self, count: int, lost: int) -> None:
        if self._closed:
            return
        if not count:
            raise FrameError(f"{self.name}: gives no picture; is it in use by another program?")
        raise FrameError(f"{self.name}: gives no more pictures, after {plural(count, 'frame')}; was it unplugged?")


def camera_number(spec: str) -> int | None:
    """The camera that `camera:0` or `/dev/video0` names, None for any other text."""
    match = re.fullmatch(r"(?:camera:|/dev/video)(\d{1,3})", spec)
    return int(match[1]) if match else None
