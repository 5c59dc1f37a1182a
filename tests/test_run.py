"""What `corepipe run` does between a source and a sink."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from corepipe import run as running
from corepipe.errors import CorepipeError, FrameError
from corepipe.frames import Frame
from corepipe.network.model import TensorInfo
from corepipe.run import run_frames

INFO = TensorInfo("x", np.dtype(np.float32), (1, 2))


def stream(frames, on_error, when_full, live):
    """Runs frames one by one: each result is its input."""
    for write in frames:
        views = {"x": np.zeros((1, 2), np.float32)}
        write(views)
        yield views["x"]


class Told(list):
    """A sink, and a list of what it was told."""

    def write(self, index, name, outputs):
        self.append((name, float(outputs["x"].sum())))

    def fail(self, index, name, message):
        self.append((name, message))


@pytest.fixture
def network_stream(monkeypatch):
    monkeypatch.setattr(stream, "network", SimpleNamespace(inputs=(INFO,), outputs=(INFO,)), raising=False)
    return stream


class Source:
    """Frames, with a note of when each is taken."""

    live, images, name = True, False, "source"
    read_s = 0.0
    skipped = ()

    def __init__(self, count, events, error=None):
        self.count, self.events, self.error = count, events, error

    def __iter__(self):
        for number in range(self.count):
            self.events.append("taken")
            yield Frame(f"f{number}", np.full((1, 2), number, np.float32), is_image=False)
        if self.error is not None:
            raise self.error


def waited(monkeypatch, events):
    """The seconds that are waited for, which pass at once."""
    waits = []

    def sleep(seconds):
        events.append("waited")
        waits.append(seconds)

    monkeypatch.setattr(running.time, "sleep", sleep)
    return waits


def test_frames_are_taken_at_a_rate_and_not_kept_waiting(network_stream, monkeypatch):
    events = []
    waits = waited(monkeypatch, events)
    run_frames(network_stream, Source(3, events), Told(), {}, limit=2, rate_fps=0.01)
    assert events == ["waited", "taken"] * 2
    assert waits == [0, pytest.approx(100, abs=10)]


def test_the_end_of_a_file_is_not_waited_for(network_stream, monkeypatch):
    events = []
    source = Source(2, events)
    source.live = False
    waits = waited(monkeypatch, events)
    run_frames(network_stream, source, Told(), {}, rate_fps=0.01)
    assert events == ["taken", "waited"] * 2
    assert waits == [0, pytest.approx(100, abs=10)]


def test_what_was_done_before_a_failure_is_summed_up(network_stream):
    told = Told()
    summary = run_frames(network_stream, Source(3, [], FrameError("the file is cut short")), told, {})
    assert told == [("f0", 0.0), ("f1", 2.0), ("f2", 4.0)]
    assert summary.frames == 3
    assert isinstance(summary.failure, CorepipeError)
    assert summary.sentences()[0].startswith("3 frames in ")
