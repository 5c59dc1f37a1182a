"""Frames from a source through a stream into a sink: what `corepipe run` does."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corepipe.errors import CorepipeError, StreamFullError, UsageError
from corepipe.frames import Frame, FrameSource, Preprocess, Sink, check_frame
from corepipe.frames.model import plural
from corepipe.network.model import Network
from corepipe.runtime.live import WhenFull
from corepipe.runtime.stream import Stream


@dataclass
class RunSummary:
    """What a run did.

    Attributes:
        frames: results written; `failed` frames ended with an error, `skipped` could not be read.
        dropped: frames that were dropped or refused because the stream was full.
        seconds: from the first frame read to the last result written.
        read_s, prepare_s: seconds of this process's time spent in decoding, and in preprocessing into the slots.
        interrupted: whether the user stopped it; what was done until then is written.
    """

    frames: int = 0
    failed: int = 0
    dropped: int = 0
    skipped: int = 0
    seconds: float = 0.0
    read_s: float = 0.0
    prepare_s: float = 0.0
    interrupted: bool = False
    skipped_names: list[tuple[str, str]] = field(default_factory=list)

    def sentences(self) -> list[str]:
        """The summary for people."""
        done = self.frames + self.failed
        read = done + self.dropped
        rate = self.frames / self.seconds if self.seconds > 0 else 0.0
        text = (
            f"{plural(self.frames, 'frame')} in {self.seconds:.2f} s: {rate:.1f} frames/s, reading and preprocessing "
            f"included"
        )
        if done:
            text += (
                f" ({self.read_s / read * 1e3:.2f} ms a frame to read, {self.prepare_s / done * 1e3:.2f} ms to "
                f"preprocess, beside the workers)"
            )
        sentences = [text]
        if self.dropped:
            sentences.append(f"{plural(self.dropped, 'frame')} dropped because the cores could not keep up")
        if self.skipped:
            sentences.append(f"{plural(self.skipped, 'frame')} could not be read (named above)")
        if self.failed:
            sentences.append(f"{plural(self.failed, 'frame')} failed")
        if self.interrupted:
            sentences.append("interrupted: the results so far are written")
        return sentences


def image_inputs(network: Network, options: Mapping[str, Any]) -> dict[str, Preprocess]:
    """How to make each input of a network from an image.

    Args:
        network: its inputs tell size, layout and type.
        options: overrides, as `corepipe.frames.parse_options` gives them.

    Returns:
        By input name; empty where an input is not image-like.

    Raises:
        UsageError: an override does not fit the inputs.
    """
    found = {t.name: Preprocess.for_input(t, **options) for t in network.inputs}
    return {n: p for n, p in found.items() if p is not None} if all(found.values()) else {}


def run_frames(
    stream: Stream,
    source: FrameSource,
    sink: Sink,
    prepare: Mapping[str, Preprocess],
    limit: int | None = None,
    on_frame: Callable[[int], None] = lambda count: None,
    when_full: WhenFull = "wait",
    rate_fps: float | None = None,
) -> RunSummary:
    """Run every frame of a source; results are written in order as they come.

    Images are preprocessed straight into the stream's shared memory. Ctrl-C ends the run cleanly.

    Args:
        stream: an open stream.
        source: where frames come from.
        sink: where results go.
        prepare: how an image becomes each input, from `image_inputs`.
        limit: at most so many frames.
        on_frame: called with the number of frames done.
        when_full: what becomes of frames for which the stream has no room, as in `Stream.__call__`.
        rate_fps: take at most so many frames a second from the source.

    Raises:
        UsageError: the source gives images, but the network's inputs are not image-like.
        CorepipeError: the sink cannot be written, or the stream broke.
    """
    summary = RunSummary()
    names: deque[str] = deque()
    outputs = [t.name for t in stream.network.outputs]
    began = time.perf_counter()

    def feed() -> Iterator[Any]:
        due = began
        for frame in itertools.islice(source, limit):
            if rate_fps is not None:
                time.sleep(max(due - time.perf_counter(), 0.0))
                due = max(due + 1 / rate_fps, time.perf_counter())  # what was missed is not made up for
            names.append(frame.name)
            yield _writer(frame, stream.network, prepare, summary)

    try:
        live = source.live or rate_fps is not None
        for index, result in enumerate(stream(feed(), "return", when_full, live)):
            name = names.popleft()
            if isinstance(result, StreamFullError):
                sink.fail(index, name, str(result))
                summary.dropped += 1
            elif isinstance(result, CorepipeError):
                sink.fail(index, name, str(result))
                summary.failed += 1
            else:
                sink.write(index, name, result if isinstance(result, dict) else {outputs[0]: result})
                summary.frames += 1
            on_frame(index + 1)
    except KeyboardInterrupt:
        summary.interrupted = True
    summary.seconds = time.perf_counter() - began
    summary.read_s = source.read_s
    summary.skipped_names = [(name, reason) for name, reason in source.skipped]
    summary.skipped = len(summary.skipped_names)
    return summary


def _writer(
    frame: Frame, network: Network, prepare: Mapping[str, Preprocess], summary: RunSummary
) -> Callable[[dict[str, NDArray[Any]]], None]:
    """What fills the inputs from one frame; called by the stream with views of shared memory."""
    if frame.is_image and not prepare:
        wanted = ", ".join(f"{t.name} {t}" for t in network.inputs)
        raise UsageError(f"{frame.name} is an image, which does not fit the inputs ({wanted}); give .npy or .npz files")

    def write(views: dict[str, NDArray[Any]]) -> None:
        before = time.perf_counter()
        if frame.is_image:
            image = np.asarray(frame.data)
            for name, one in prepare.items():
                one(image, out=views[name])
        else:
            for name, array in check_frame(frame.data, network.inputs, frame.name).items():
                views[name][...] = array
        summary.prepare_s += time.perf_counter() - before

    return write
