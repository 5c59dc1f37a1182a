"""The life of a frame in pieces, and names of segments: what a trace and a page both show."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from corepipe.runtime.record import FrameRecord, HopTime


def hops_done(record: FrameRecord) -> tuple[HopTime, ...]:
    """The hops that a frame finished: a frame that failed has none from the one that failed on."""
    return tuple(itertools.takewhile(lambda hop: 0 < hop.ended_ns >= hop.started_ns, record.hops))


def waits(record: FrameRecord) -> Iterator[tuple[str, int, int]]:
    """For each finished hop: its worker, and from when until when the frame waited for it, in ns."""
    since = record.submitted_ns
    for hop in hops_done(record):
        yield hop.worker, since, max(since, hop.started_ns)
        since = max(since, hop.ended_ns)


def layers_text(start: int, stop: int) -> str:
    """`layer 4` or `layers 0-12` for layers [start, stop)."""
    return f"layer {start}" if stop == start + 1 else f"layers {start}-{stop - 1}"


def segment_name(start: int, stop: int, layers: Sequence[str]) -> str:
    """`layers 0-12: conv1 .. fire4/concat` (without the names where they are not known)."""
    text = layers_text(start, stop)
    if not layers:
        return text
    first, last = shorten(layers[start]), shorten(layers[stop - 1])
    return f"{text}: {first}" if stop == start + 1 else f"{text}: {first} .. {last}"


def shorten(name: str, longest: int = 60) -> str:
    """A name that a model's author may have made of any length, cut in its middle."""
    half = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[-half:]}"
