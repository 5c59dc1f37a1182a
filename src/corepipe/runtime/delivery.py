"""The thread that ends futures, so that their callbacks hold up neither the collector nor whoever closes the stream.

Futures that only the stream itself knows have no callbacks; where no other waits to be ended before them, the collector
ends them, which saves a frame the way through one more thread.
"""

from __future__ import annotations

import contextlib
import weakref
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from corepipe.errors import CorepipeError, WorkerError

if TYPE_CHECKING:
    from corepipe.runtime.stream import Stream


@dataclass(frozen=True)
class Ended:
    """A frame that has its result or its error; `own` as in `corepipe.runtime.stream.Submitted`."""

    future: Future[Any]
    output: Any = None
    error: CorepipeError | None = None
    own: bool = False

    def end(self) -> None:
        """End the future; one that was cancelled stays so."""
        with contextlib.suppress(InvalidStateError):
            if self.error is not None:
                self.future.set_exception(self.error)
            else:
                self.future.set_result(self.output)


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
        stream.delivered()
        if failure is not None:
            stream.give_up(failure)
    return True
