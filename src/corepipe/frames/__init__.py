"""Frames in, results out: what `corepipe run` reads and writes.

Importing this package sets OpenCV to one thread and silences its log: decoding runs beside pinned workers, whose cores
a thread pool of its own would take.
"""

from corepipe.frames.labels import Score, read_labels, top_k
from corepipe.frames.model import Frame, FrameSource, Skipped
from corepipe.frames.preprocess import Preprocess, check_frame, parse_options
from corepipe.frames.sinks import Sink, check_sink, may_hold_classes, open_sink, result_file
from corepipe.frames.sources import open_source

__all__ = [
    "Frame",
    "FrameSource",
    "Preprocess",
    "Score",
    "Sink",
    "Skipped",
    "check_frame",
    "check_sink",
    "may_hold_classes",
    "open_sink",
    "open_source",
    "parse_options",
    "read_labels",
    "result_file",
    "top_k",
]
