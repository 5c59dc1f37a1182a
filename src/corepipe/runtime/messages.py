"""The control messages between the user's process and the workers, and among the workers.

Each process reads one pipe, its inbox, that all others may write to. A write, of up to `MOST_HELD` messages, is smaller
than PIPE_BUF, so writes are atomic, and no more messages can be under way than there are frames, so writes never block.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

_FORMAT = struct.Struct("<BBHIQ")
_READ_BYTES = _FORMAT.size * 256

HOLD_S = 0.2
"""Where latency does not count, word of a result may wait about so long for that of later ones."""

MOST_HELD = 64
"""Word of so many results at the most waits at a worker."""

MOST_PASSED = 1.8
"""By how many times the slots a frame may be older than the newest one before a worker takes it ahead of shorter hops.

Else a long hop is passed until the window of undelivered results is full, and nothing is fed (up to 26 % of the
throughput of mixes for random tables, in the simulator; with 1.2 times up to 17 %)."""

RUN = 1
"""Run hop `hop` of route `route` for the frame in `slot`."""
DONE = 2
"""To the user's process: the frame in `slot` has its result."""
FAILED = 3
"""To the user's process: the frame in `slot` failed; the slot holds the error text."""
FENCE = 4
"""To a worker: answer with FENCED when everything that was sent before is done."""
FENCED = 5
"""To the user's process: the answer; `slot` holds the worker's number."""
STOP = 6
"""To a worker: end."""
RUN_HOLD = 7
"""As RUN, and word of the result may wait, see `HOLD_S`."""


pack = _FORMAT.pack
"""One message (kind, hop, route, slot, frame) as bytes."""


def send(fd: int, kind: int, hop: int = 0, route: int = 0, slot: int = 0, frame: int = 0) -> None:
    """Write one message."""
    os.write(fd, pack(kind, hop, route, slot, frame))


def receive(fd: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Wait for messages; gives (kind, hop, route, slot, frame) for all that are there; none at end of file."""
    return _FORMAT.iter_unpack(os.read(fd, _READ_BYTES))
