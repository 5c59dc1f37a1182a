"""The thread that ends futures, so that their callbacks do not hold up the collector.

Futures that only the stream itself knows have no callbacks; where no other waits to be ended before them, the collector
ends them, which saves a frame the way through one more thread.
"""

from __future__ import annotations

import contextlib
import weakref
from concurrent.futures import Future, InvalidStateError
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from corepipe.errors import CorepipeError, WorkerError

if TYPE_CHECKING:
    from corepipe.runtime.stream import Stream


class Outcome:
    """A future for one thread that reads results in order: it waits for the stream, and nobody is called back.

    A `Future` has a lock and a condition of its own, which are entered several times a frame.
    """

    __slots__ = ("_error", "_result", "ended", "fed")

    def __init__(self) -> None:
        self.fed = False
        """Whether its frame was fed."""
        self.ended = False
        """Whether it has a result or an error."""
        self._result: Any = None
        self._error: CorepipeError | None = None

    def result(self) -> Any:
        """The result, once it has ended.

        Raises:
            CorepipeError: that is how it ended.
        """
        try:
            if self._error is not None:
                raise self._error
            return self._result
        finally:
            del self  # the error knows this call by its traceback, and is to hold nothing by it

    def exception(self) -> CorepipeError | None:
        """The error that it ended with, if any."""
        return self._error

    def set_result(self, result: Any) -> None:
        """End it with a result."""
        self._result = result
        self.ended = True

    def set_exception(self, error: CorepipeError) -> None:
        """End it with an error."""
        self._error = error
        self.ended = True


class Ended(NamedTuple):
    """A frame that has its result or its error; `own` as in `corepipe.runtime.lane.Submitted`."""

    future: Future[Any] | Outcome
    output: Any = None
    error: CorepipeError | None = None
    own: bool = False

    def end(self) -> None:
        """End the future; one that was cancelled stays so."""
        try:
            if self.error is not None:
                self.future.set_exception(self.error)
            else:
                self.future.set_result(self.output)
        except InvalidStateError:
            if isinstance(self.future, Future) and self.future.cancelled():
                # Who waits for several futures is only told of a cancelled one by this.
                with contextlib.suppress(Exception):
                    self.future.set_running_or_notify_cancel()


Deliveries = SimpleQueue[Ended | None]
"""What has ended, in the order of submission; None ends the thread."""


def deliver(reference: weakref.ref[Stream], deliveries: Deliveries) -> None:
    """Body of the delivering thread."""
    while _deliver_next(reference, deliveries):
        pass


def _deliver_next(reference: weakref.ref[Stream], deliveries: Deliveries) -> bool:
    """Deliver one; in a function of its own, so that nothing is held while waiting for the next.

    A callback that is held may refer to the stream, which could then never be collected.
    """
    ended = deliveries.get()
    if ended is None:
        return False
    failure = None
    try:
        ended.end()
    except BaseException as error:
        # Futures log what a callback raises, but let SystemExit and the like through.
        failure = WorkerError(f"a result's callback raised {type(error).__name__}: {error}; open a new stream")
    stream = reference()
    if stream is not None:
        stream.results.count_delivered()
        if failure is not None:
            stream.results.give_up(failure)
    return True
