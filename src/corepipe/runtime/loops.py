"""Results in the order of the frames, for who reads them in a loop: `for` and `async for`."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator, Iterable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from corepipe.errors import CorepipeError, FrameError
from corepipe.runtime.delivery import Outcome
from corepipe.runtime.live import LOOK_S, OnError
from corepipe.runtime.threads import daemon, start

if TYPE_CHECKING:
    from corepipe.runtime.stream import Stream


def run_in_order(stream: Stream, frames: Iterable[Any], on_error: OnError) -> Generator[Any, None, None]:
    """Results in the order of the frames; the source is read in the caller's thread, as there is room.

    Args:
        stream: an open stream.
        frames: the source.
        on_error: whether a frame's error is raised at its turn or returned in place of the result.

    Raises:
        FrameError, StreamClosedError, WorkerError: as calling the stream does.
        Exception: what the source raised, after the results of the frames before it.
        KeyboardInterrupt: while it waited, after the results of the frames that are under way; at once the second time.
    """
    source = iter(frames)
    waiting: deque[Outcome] = deque()
    more = True
    reading_s = 0.0
    failure: Exception | KeyboardInterrupt | None = None
    while more or waiting:
        # Ctrl-C may come at each call, and at `yield`: no frame that was fed is without its place in the row then.
        try:
            if waiting:
                if not waiting[0].ended:
                    stream.state.wait_for_room_or(waiting[0], more and len(waiting) < stream.window)
                if waiting[0].ended:
                    given = time.perf_counter()
                    result = _outcome(waiting[0], on_error)
                    del waiting[0]
                    yield result
                    # A slow reader must not let workers run dry while it takes what has ended; a slow source not hold
                    # that back.
                    slow = time.perf_counter() - given > reading_s
                    if not (slow and more and len(waiting) < stream.window and stream.state.has_room_now()):
                        continue
            if more:
                asked = time.perf_counter()
                try:
                    frame = next(source)
                except StopIteration:
                    more = False
                    continue
                except Exception as error:
                    more, failure = False, error
                    continue
                reading_s = time.perf_counter() - asked
                waiting.append(Outcome())
                try:
                    stream.feeding.submit(frame, waiting[-1], own=True, deep=True)
                except FrameError as error:
                    waiting[-1].set_exception(error)
                except Exception as error:
                    more, failure = False, error
                    _forget_unfed(waiting)
        except KeyboardInterrupt as error:
            if isinstance(failure, KeyboardInterrupt):
                raise
            more, failure = False, error
            _forget_unfed(waiting)
    if failure is not None:
        raise failure


async def run_async(
    stream: Stream, frames: Iterable[Any] | AsyncIterable[Any], on_error: OnError
) -> AsyncGenerator[Any, None]:
    """The same for asyncio; the source is read, and frames are fed, in other threads.

    Args:
        stream, frames, on_error: as for `run_in_order`.

    Raises:
        FrameError, StreamClosedError, WorkerError, Exception: as for `run_in_order`.
        WorkerError: no thread could be had to read the source.
    """
    room = asyncio.Semaphore(stream.window)
    aside = _Aside()
    fed: asyncio.Queue[Future[Any] | None] = asyncio.Queue()

    async def feed() -> None:
        try:
            async for frame in _as_async(frames, aside):
                await room.acquire()
                try:
                    fed.put_nowait(await aside.call(stream.submit, frame))
                except FrameError as error:
                    fed.put_nowait(_failed(error))
        finally:
            fed.put_nowait(None)

    feeder = asyncio.create_task(feed())
    try:
        while (future := await _next_fed(stream, fed)) is not None:
            with contextlib.suppress(CorepipeError):
                await asyncio.wrap_future(future)
            room.release()
            yield _outcome(future, on_error)
        await feeder
    finally:
        aside.close()
        feeder.cancel()
        feeder.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody else asks for it any more


class _Aside:
    """A thread for calls that may wait: one that is never answered does not keep the program from ending."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        start(daemon("corepipe-feeder", self._serve))

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns, or raises; one call after the other."""
        future: Future[Any] = Future()
        self._calls.put((future, partial(contextvars.copy_context().run, function, *arguments)))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the thread once its present call returns; calls that have not begun by then must have been cancelled."""
        self._calls.put(None)

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            future, function = call
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)


async def _next_fed(stream: Stream, fed: asyncio.Queue[Future[Any] | None]) -> Future[Any] | None:
    """What was fed next, once something was; the stream may end before that.

    Raises:
        StreamClosedError, WorkerError: it did.
    """
    while fed.empty():
        try:
            async with asyncio.timeout(LOOK_S):
                return await fed.get()
        except TimeoutError:
            stream.state.check_open()
    return fed.get_nowait()


def _forget_unfed(waiting: deque[Outcome]) -> None:
    """Leave out the last one if its frame was not fed."""
    if waiting and not (waiting[-1].fed or waiting[-1].ended):
        waiting.pop()


def _failed(error: CorepipeError) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def _outcome(future: Future[Any] | Outcome, on_error: OnError) -> Any:
    if on_error == "return":
        error = future.exception()
        if isinstance(error, FrameError):
            return error
    return future.result()


async def _as_async(frames: Iterable[Any] | AsyncIterable[Any], aside: _Aside) -> AsyncIterator[Any]:
    if isinstance(frames, AsyncIterable):
        async for frame in frames:
            yield frame
        return
    source, end = iter(frames), object()
    while (frame := await aside.call(next, source, end)) is not end:
        yield frame
