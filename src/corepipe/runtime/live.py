"""Frames from a live source, read in a thread of its own: what is too much waits, or is dropped or refused."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from corepipe.errors import CorepipeError, FrameError, StreamFullError, UnknownNameError
from corepipe.runtime.feeding import NoRoomError
from corepipe.runtime.threads import daemon, start

if TYPE_CHECKING:
    from corepipe.runtime.stream import Stream

WhenFull = Literal["wait", "drop-oldest", "error"]
"""What becomes of frames for which a stream has no room; `wait` holds the source up."""

OnError = Literal["raise", "return"]
"""Whether a frame's error is raised at its turn, or returned in place of its result."""

WAITING = 2
"""Frames (or slots of frames) that wait in front of a full stream, before the oldest of them is dropped."""

_MOST_UNREAD = 65_536
"""Frames that the reader has not taken, nearly all of them dropped; then the source waits after all."""

LOOK_S = 0.5
"""How often who waits for the source looks whether the stream is still open."""

_JOIN_S = 1.0


def check_choice(what: str, name: str, choices: object) -> None:
    """Refuse a word that is none of `WhenFull` or `OnError`.

    Raises:
        UnknownNameError: with the nearest one.
    """
    if name not in get_args(choices):
        raise UnknownNameError(what, name, get_args(choices))


def run_live(
    stream: Stream, frames: Iterable[Any], when_full: WhenFull, on_error: OnError
) -> Generator[Any, None, None]:
    """Results in the order of the frames; the source is read at its own pace, in a thread of its own.

    Args:
        stream: an open stream.
        frames: the source.
        when_full: what becomes of frames for which there is no room.
        on_error: whether an error is raised at its frame's turn or returned in place of the result. Frames that were
            dropped as the oldest are passed over where errors are raised.

    Raises:
        FrameError, StreamClosedError, WorkerError: as calling the stream does.
        Exception: what the source raised, after the results of the frames before it.
        KeyboardInterrupt: while it waited, after the results of the frames that the stream was given; at once the
            second time.
    """
    intake = _Intake(stream, frames, when_full, tell_drops=on_error == "return")
    handed_over: Future[Any] | None = None
    try:
        while True:
            # Ctrl-C may come at each call, and at `yield`: a result is forgotten once it was handed over.
            try:
                stream.state.check_owner()
                if handed_over is not None:
                    intake.forget(handed_over)
                    handed_over = None
                future = intake.next_ended()
                if future is None:
                    break
                error = future.exception()
                if error is None:
                    result = future.result()
                    handed_over = future
                    yield result
                elif on_error == "return" and isinstance(error, FrameError):
                    handed_over = future
                    yield error
                elif when_full == "drop-oldest" and isinstance(error, StreamFullError):
                    handed_over = future
                else:
                    raise error
            except KeyboardInterrupt as interrupt:
                if intake.stopped:
                    raise
                intake.end(interrupt)
    finally:
        if os.getpid() == stream.state.owner:  # else its threads are not here, and its lock may be held for ever
            intake.stop()


@dataclass(eq=False)
class _Taken:
    """A frame of the source; `ran` where the stream has it, or is about to."""

    future: Future[Any] = field(default_factory=Future)
    ran: bool = False


def _copied(frame: Any) -> Any:
    """A frame that waits: the source may fill the same arrays with the next one."""
    if callable(frame):
        return frame
    with contextlib.suppress(Exception):  # what is no array is refused when it is its turn
        if isinstance(frame, Mapping):
            return {name: np.array(array) for name, array in frame.items()}
        if isinstance(frame, list | tuple):
            return [np.array(array) for array in frame]
        return np.array(frame)
    return frame


class _Intake:
    """Reads the source, keeps the newest frames, and gives the stream what it and the reader have room for."""

    def __init__(self, stream: Stream, frames: Iterable[Any], when_full: WhenFull, *, tell_drops: bool) -> None:
        self._stream = stream
        self._tell_drops = tell_drops
        self._waits = when_full == "wait"
        self._drops = when_full == "drop-oldest"
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._unread: deque[_Taken] = deque()
        self._waiting: deque[tuple[Any, _Taken]] = deque()
        self._most_waiting = WAITING * stream.plan.batch
        self._running = 0
        """Frames that the stream was given, or is about to be, and whose results the reader has not taken."""
        self._ended = False
        self.stopped = False
        self._failure: BaseException | None = None
        self._threads = [daemon("corepipe-intake", self._read, frames)]
        if self._drops:
            self._threads.append(daemon("corepipe-intake", self._feed))
        self._unstarted = deque(self._threads)

    def next_ended(self) -> Future[Any] | None:
        """The future of the next frame that is not forgotten, ended; None after the last one.

        The first call starts the reading, so that who calls has all that may interrupt it in one place.

        Raises:
            StreamClosedError, WorkerError: the stream ended while the source had nothing.
            WorkerError: no thread could be had to read the source.
            Exception: what the source raised.
        """
        while self._unstarted and not self.stopped:
            start(self._unstarted.popleft())
        with self._lock:
            while not self._changed.wait_for(lambda: self._unread or self._ended, LOOK_S):
                self._stream.state.check_open()  # the source may have nothing for long
            if not self._unread:
                if self._failure is not None:
                    raise self._failure
                return None
            taken = self._unread[0]
        taken.future.exception()
        return taken.future

    def forget(self, future: Future[Any]) -> None:
        """The reader has this one, which was the next; safe to call again where Ctrl-C cut it short."""
        with self._lock:
            if self._unread and self._unread[0].future is future:
                self._running -= self._unread[0].ran
                self._unread[0].ran = False
                self._unread.popleft()
            self._changed.notify_all()

    def end(self, why: KeyboardInterrupt) -> None:
        """Read no more: frames that the stream was not given are forgotten, and `why` comes after the others."""
        with self._lock:
            self.stopped = self._ended = True
            self._failure = self._failure or why
            self._waiting.clear()
            self._unread = deque(taken for taken in self._unread if taken.ran or taken.future.done())
            self._changed.notify_all()

    def stop(self) -> None:
        """Read no more; a source that is waited for is left to its thread."""
        with self._lock:
            self.stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(_JOIN_S)

    def _read(self, frames: Iterable[Any]) -> None:
        try:
            for frame in frames:
                with self._lock:
                    self._changed.wait_for(lambda: self.stopped or len(self._unread) < _MOST_UNREAD)
                    if self.stopped:
                        return
                if self._drops:
                    self._put(frame)
                else:
                    self._offer(frame)
        except BaseException as error:
            self._failure = self._failure or error
        finally:
            with self._lock:
                self._ended = True
                self._changed.notify_all()

    def _put(self, frame: Any) -> None:
        """Let a frame wait, the oldest that waits making room for it.

        Threads are woken only where one may wait for this frame: under overload that would be at each dropped one,
        on cores that have no time for it.
        """
        frame = _copied(frame)
        with self._lock:
            if self.stopped:
                return
            taken = _Taken()
            awaited = not self._unread or not self._waiting
            self._unread.append(taken)
            self._waiting.append((frame, taken))
            if len(self._waiting) > self._most_waiting:
                _, oldest = self._waiting.popleft()
                self._stream.dropped += 1
                if self._tell_drops or self._unread[0] is oldest:  # the reader may wait for the first one already
                    oldest.future.set_exception(StreamFullError("dropped: the stream was full, and newer frames came"))
                else:
                    self._unread.remove(oldest)
            if awaited:
                self._changed.notify_all()

    def _offer(self, frame: Any) -> None:
        """Submit a frame if there is room, or once there is."""
        taken = _Taken()
        with self._lock:
            if self._waits:
                self._changed.wait_for(lambda: self.stopped or self._reader_has_room())
            if self.stopped:
                return
            taken.ran = self._reader_has_room()
            self._running += taken.ran
            self._unread.append(taken)
            if len(self._unread) == 1:
                self._changed.notify_all()
        try:
            if not taken.ran:
                raise NoRoomError
            self._stream.feeding.submit(frame, taken.future, None if self._waits else 0, own=True)
        except NoRoomError:
            self._stream.dropped += 1
            with self._lock:
                self._running -= taken.ran
                taken.ran = False
            self._fail(taken, StreamFullError("refused: the stream was full"))
        except BaseException as error:
            self._fail(taken, error)
            if not isinstance(error, CorepipeError):
                raise

    @staticmethod
    def _fail(taken: _Taken, error: BaseException) -> None:
        """End a frame that the stream did not take."""
        with contextlib.suppress(InvalidStateError):  # the stream ended it
            taken.future.set_exception(error)

    def _feed(self) -> None:
        """Submit the frames that wait, one after the other, as there is room."""
        while True:
            self._stream.state.wait_for_room()
            with self._lock:
                self._changed.wait_for(
                    lambda: self.stopped or (self._reader_has_room() and (self._waiting or self._ended))
                )
                if self.stopped or not self._waiting:
                    return
                frame, taken = self._waiting.popleft()
                taken.ran = True
                self._running += 1
            try:
                self._stream.feeding.submit(frame, taken.future, own=True)
            except BaseException as error:
                self._fail(taken, error)

    def _reader_has_room(self) -> bool:
        return self._running < self._stream.window
