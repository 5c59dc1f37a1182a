"""A frame, and what every source of frames has in common."""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

from numpy.typing import NDArray


@dataclass(frozen=True, eq=False, slots=True)
class Frame:
    """One thing to run the network on.

    Attributes:
        name: unique within its source: a file name, or a file name and a number (`clip.avi#17`).
        data: an image (height x width x 3, uint8, BGR), an array for the only input of the network, or arrays by
            input name.
        is_image: whether `data` is an image that still has to be preprocessed.
    """

    name: str
    data: NDArray[Any] | dict[str, NDArray[Any]]
    is_image: bool


class Skipped(NamedTuple):
    """What a source could not read, and why."""

    name: str
    reason: str


class FrameSource(ABC, Iterator[Frame]):
    """Frames from a file, a folder, a camera or a pipe: an iterator to be used once, and a context manager.

    It closes itself at its end.

    Attributes:
        name: what is read, for messages.
        length: number of frames that are expected, None where it cannot be told beforehand. Containers of video only
            estimate it.
        live: whether it may let its reader wait for the next frame.
        images: whether its frames are images, rather than arrays that fit the network as they are.
        skipped: what could not be read so far; reading went on after it.
        read_s: seconds spent so far in reading and decoding.
    """

    live = False
    images = True

    def __init__(self, name: str, length: int | None, on_skip: Callable[[Skipped], None] | None = None) -> None:
        self.name = name
        self.length = length
        self.skipped: list[Skipped] = []
        self.read_s = 0.0
        self._on_skip = on_skip
        self._frames: Generator[Frame, None, None] | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._finished = False

    @abstractmethod
    def _produce(self) -> Generator[Frame, None, None]:
        """Yield the frames."""

    def _release(self) -> None:
        """Free what the constructor opened; called once."""

    def _skip(self, name: str, reason: str) -> None:
        record = Skipped(name, reason)
        self.skipped.append(record)
        if self._on_skip:
            self._on_skip(record)

    def __next__(self) -> Frame:
        """The next frame.

        Raises:
            FrameError: the source breaks off in a way that cannot be passed over, or held nothing readable.
        """
        if self._closed:
            raise StopIteration
        start = time.perf_counter()
        try:
            with self._lock:
                if self._frames is None:
                    self._frames = self._produce()
                return next(self._frames)
        except BaseException:
            self._closed = True
            raise
        finally:
            self.read_s += time.perf_counter() - start
            if self._closed:
                self._finish()

    def close(self) -> None:
        """Let go of files and devices; iteration ends.

        May be called more than once, and while another thread is in `__next__`: that thread lets go then.
        """
        self._closed = True
        self._finish()

    def _finish(self) -> None:
        if not self._lock.acquire(blocking=False):
            return
        try:
            if not self._finished:
                self._finished = True
                if self._frames is not None:
                    self._frames.close()
                self._release()
        finally:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def display_name(path: str | os.PathLike[str]) -> str:
    """A path as text that can be printed everywhere: bytes that are not UTF-8 are replaced."""
    return os.fsencode(path).decode("utf-8", "replace")


def plural(count: int, noun: str) -> str:
    """`1 frame`, `2 frames`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def reason_of(error: BaseException) -> str:
    """An error of the system or of a library in one line, without the path that the caller adds."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
