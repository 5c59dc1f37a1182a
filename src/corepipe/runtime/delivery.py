"""The thread that ends futures, so that their callbacks hold up neither the collector nor whoever closes the stream."""

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
    """A frame that has its result or its error."""

    future: Future[Any]
    output: Any = None
    error: CorepipeError | None = None


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
        with contextlib.suppress(InvalidStateError):
            if ended.error is not None:
                ended.future.set_exception(ended.error)
            else:
                ended.future.set_result(ended.output)
    except BaseException as error:
        # Futures log what a callback raises, but let SystemExit and the like through.
        failure = WorkerError(f"a result's callback raised {type(error).__name__}: {error}; open a new stream")
    stream = reference()
    if stream is not None:
        stream.delivered()
        if failure is not None:
            stream.give_up(failure)
    return True
