"""Frames from a source through a stream into a sink: what `corepipe run` does."""

from __future__ import annotations

import itertools
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corepipe.errors import CorepipeError, StreamFullError, UsageError
from corepipe.frames import Frame, FrameSource, Preprocess, Sink, check_frame
from corepipe.frames.model import plural
from corepipe.network.model import Network
from corepipe.runtime.live import WhenFull
from corepipe.runtime.stream import Stream

_NUMBER = re.compile(r"^frame \d+: ")
"""The stream's own, which counts neither dropped frames nor those that do not fit."""


@dataclass
class RunSummary:
    """What a run did.

    Attributes:
        frames: results written; `failed` frames ended with an error, `skipped` parts of the input could not be read: an
            image, or all that a video lacks at one place.
        dropped: frames that were dropped or refused because the stream was full.
        seconds: from the first frame read to the last result written.
        read_s, prepare_s: seconds of this process's time spent in decoding, and in preprocessing into the slots.
        interrupted: whether the user stopped it; what was done until then is written.
        failure: what ended it before the source did; what was done until then is written.
    """

    frames: int = 0
    failed: int = 0
    dropped: int = 0
    skipped: int = 0
    seconds: float = 0.0
    read_s: float = 0.0
    prepare_s: float = 0.0
    interrupted: bool = False
    failure: CorepipeError | None = None

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
            sentences.append(f"{plural(self.skipped, 'part')} of the input could not be read (named above)")
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


def check_images(name: str, network: Network, prepare: Mapping[str, Preprocess]) -> None:
    """Refuse images for a network that takes none.

    Args:
        name: of the images, for the message.
        network: the network.
        prepare: from `image_inputs`.

    Raises:
        UsageError: the network's inputs are not image-like.
    """
    if not prepare:
        wanted = ", ".join(f"{t.name} {t}" for t in network.inputs)
        raise UsageError(f"{name}: images do not fit the inputs of {network.name} ({wanted}); give .npy or .npz files")


def run_frames(
    stream: Stream,
    source: FrameSource,
    sink: Sink,
    prepare: Mapping[str, Preprocess],
    limit: int | None = None,
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
        when_full: what becomes of frames for which the stream has no room, as in `Stream.__call__`.
        rate_fps: take at most so many frames a second from the source.

    Returns:
        What was done; where the sink cannot be written, the source cannot be read further or the stream broke, with
        that as `failure`.
    """
    summary = RunSummary()
    names: deque[str] = deque()
    outputs = [t.name for t in stream.network.outputs]
    began = time.perf_counter()

    def feed() -> Iterator[Any]:
        due = began
        frames = iter(source)
        for _ in itertools.count() if limit is None else range(limit):
            if source.live:  # a frame of a camera that is taken and waits is old when it is run
                due = _wait(due, rate_fps)
            if (frame := next(frames, None)) is None:
                return
            if not source.live:
                due = _wait(due, rate_fps)
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
                sink.fail(index, name, _NUMBER.sub("", str(result)))
                summary.failed += 1
            else:
                sink.write(index, name, result if isinstance(result, dict) else {outputs[0]: result})
                summary.frames += 1
    except KeyboardInterrupt:
        summary.interrupted = True
    except CorepipeError as error:
        summary.failure = error
    summary.seconds = time.perf_counter() - began
    summary.read_s = source.read_s
    summary.skipped = len(source.skipped)
    return summary


def _wait(due: float, rate_fps: float | None) -> float:
    """Wait until the next frame is due at a rate; returns when the one after it is."""
    if rate_fps is None:
        return due
    time.sleep(max(due - time.perf_counter(), 0.0))
    return max(due + 1 / rate_fps, time.perf_counter())  # what was missed is not made up for


def _writer(
    frame: Frame, network: Network, prepare: Mapping[str, Preprocess], summary: RunSummary
) -> Callable[[dict[str, NDArray[Any]]], None]:
    """What fills the inputs from one frame; called by the stream with views of shared memory."""
    if frame.is_image:
        check_images(frame.name, network, prepare)

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
