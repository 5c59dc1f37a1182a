"""Where results go: text for people, JSONL, or an `.npz`."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np
from numpy.typing import NDArray

from corepipe.errors import CorepipeError, UsageError
from corepipe.frames.labels import Score, class_count, class_output, top_k
from corepipe.frames.model import display_name, reason_of
from corepipe.network.model import TensorInfo

MAX_VALUES = 256
"""JSONL holds the values of outputs up to this size, and of larger ones a summary."""

Outputs = Mapping[str, NDArray[Any]]


class Sink(ABC):
    """Takes the result or the failure of each frame; a context manager.

    Attributes:
        name: where it writes, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def write(self, index: int, frame: str, outputs: Outputs) -> None:
        """Add a result.

        Args:
            index: of the frame in its source, from 0.
            frame: its name.
            outputs: by output name.

        Raises:
            CorepipeError: it cannot be written (disk full, pipe closed).
        """
        self._write(index, frame, outputs)

    def fail(self, index: int | None, frame: str, message: str) -> None:
        """Record that a frame has no result.

        Args:
            index: of the frame, None if it never became one (an unreadable file).
            frame: its name.
            message: the reason.

        Raises:
            CorepipeError: it cannot be written.
        """
        self._fail(index, frame, message)

    @abstractmethod
    def _write(self, index: int, frame: str, outputs: Outputs) -> None: ...

    @abstractmethod
    def _fail(self, index: int | None, frame: str, message: str) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Finish what was written so far. May be called more than once.

        Raises:
            CorepipeError: it cannot be written.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except CorepipeError as failure:
            if error is None:
                raise
            error.add_note(str(failure))


@contextlib.contextmanager
def writing(name: str, if_full: str = "") -> Iterator[None]:
    """Turns errors of the system into one clear `CorepipeError` that names `name`, and says more of a full disk."""
    try:
        yield
    except BrokenPipeError:
        raise CorepipeError(f"{name}: the program that reads the results has gone") from None
    except OSError as error:
        more = if_full if error.errno == errno.ENOSPC else ""
        raise CorepipeError(f"{name}: cannot write results: {reason_of(error)}{more}") from None


class _LineSink(Sink):
    """Writes text to a file of its own, or to a stream that it leaves open.

    Args:
        path: the file; None for the stream.
        stream: None for the process's own standard output.
        labels: text of each class.
        count: how many classes to give.
        probabilities: outputs that are probabilities as they are.
        outputs: the network's; without them each frame tells which one holds class scores.
    """

    def __init__(
        self,
        path: Path | None,
        stream: TextIO | None,
        labels: Sequence[str] | None,
        count: int,
        probabilities: Container[str] = (),
        outputs: Sequence[TensorInfo] | None = None,
    ) -> None:
        super().__init__("<stdout>" if path is None else display_name(path))
        self._labels = labels
        self._count = count
        self._probabilities = probabilities
        self._declared = None if outputs is None else {t.name: t.shape for t in outputs}
        self._own = path is not None
        with writing(self.name):
            if path is not None:
                stream = path.open("w", encoding="utf-8")
        self._stream = stream or sys.stdout
        self._broken = False

    def _best(self, outputs: Outputs) -> tuple[str | None, list[Score]]:
        """The output that holds class scores, and its best ones."""
        best = class_output({n: a.shape for n, a in outputs.items() if self._may_be_scores(n, a)}, self._labels)
        if best is None:
            return None, []
        given = best in self._probabilities
        return best, top_k(outputs[best], self._count, self._labels, probabilities=given)

    def _may_be_scores(self, name: str, array: NDArray[Any]) -> bool:
        labels = self._labels
        if array.dtype.kind not in _kinds(labels):
            return False
        # Of an output whose shape depends on the frame, such as boxes, a single row is not one of class scores.
        fixed = self._declared is None or self._declared.get(name) is not None
        return fixed or (labels is not None and class_count(array.shape) == len(labels))

    def _emit(self, text: str) -> None:
        self._broken = True
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        with writing(self.name):
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
            self._stream.flush()
        self._broken = False

    def close(self) -> None:
        if not self._own or self._stream.closed:
            return
        if self._broken:
            # The text that could not be written is still buffered; the error for it was raised already.
            with contextlib.suppress(OSError):
                self._stream.close()
            return
        with writing(self.name):
            self._stream.close()


class TextSink(_LineSink):
    """For people: the name of each frame, and under it the best classes or a summary of each output."""

    def _write(self, index: int, frame: str, outputs: Outputs) -> None:
        lines = [_clean(frame)]
        _, scores = self._best(outputs)
        if scores:
            lines += [f"  score {s.score:.4f}  {_clean(s.label)}" for s in scores]
        else:
            for name, array in outputs.items():
                facts = _summary(array)
                span = f" min {facts['min']:.4g} max {facts['max']:.4g}" if facts.get("min") is not None else ""
                bad = f", {facts['not_finite']} not finite" if facts.get("not_finite") else ""
                lines.append(f"  {_clean(name)} {facts['dtype']}[{'x'.join(map(str, array.shape))}]{span}{bad}")
        self._emit("\n".join(lines))

    def _fail(self, index: int | None, frame: str, message: str) -> None:
        self._emit(f"{_clean(frame)}\n  failed: {_clean(message)}")


class JsonlSink(_LineSink):
    """One JSON object a line for each frame.

    `{"frame": NAME, "index": I, "top": [{"class": 1, "label": "goldfish", "score": 0.98}, ...]}` where an output holds
    class scores; other outputs are under `"outputs": {NAME: {"dtype", "shape", "min", "max", "mean", "values"}}`,
    `values` only up to `MAX_VALUES` of them. A failed frame has `"error"` instead. What is not finite becomes null.
    """

    def _write(self, index: int, frame: str, outputs: Outputs) -> None:
        record: dict[str, Any] = {"frame": frame, "index": index}
        best, scores = self._best(outputs)
        if scores:
            record["top"] = [
                {
                    "class": s.class_index,
                    "label": s.label,
                    "score": round(s.score, 6) if math.isfinite(s.score) else None,
                }
                for s in scores
            ]
        rest = {name: array for name, array in outputs.items() if name != best}
        if rest:
            record["outputs"] = {
                name: _summary(a) | ({"values": _values(a)} if a.size <= MAX_VALUES else {}) for name, a in rest.items()
            }
        self._emit(json.dumps(record, allow_nan=False))

    def _fail(self, index: int | None, frame: str, message: str) -> None:
        self._emit(json.dumps({"frame": frame, "index": index, "error": message}))


def _clean(text: str) -> str:
    """Text that cannot steer a terminal or break a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _summary(array: NDArray[Any]) -> dict[str, Any]:
    """dtype, shape and, for numbers, min, max and mean of the finite ones, and how many are not finite."""
    facts: dict[str, Any] = {"dtype": str(array.dtype), "shape": list(array.shape)}
    if array.dtype.kind not in "?biuf" or not array.size:
        return facts
    numbers = array.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    if finite.size:
        low, high = float(finite.min()), float(finite.max())
        # Scaled, because a sum of large numbers may overflow where their mean does not.
        scale = max(abs(low), abs(high)) or 1.0
        facts |= {"min": low, "max": high, "mean": float((finite / scale).mean()) * scale}
    else:
        facts |= dict.fromkeys(("min", "max", "mean"))
    if finite.size < numbers.size:
        facts["not_finite"] = int(numbers.size - finite.size)
    return facts


def _values(array: NDArray[Any]) -> Any:
    """The values as nested lists that JSON can hold, floats with the digits of their type."""
    if array.ndim:
        return [_values(array[i, ...]) for i in range(len(array))]
    if array.dtype.kind == "f":
        return float(str(array)) if np.isfinite(array) else None
    return array.item() if array.dtype.kind in "?biu" else str(array.item())


def open_sink(
    spec: str | os.PathLike[str] | None = None,
    *,
    outputs: Sequence[TensorInfo] | None = None,
    labels: Sequence[str] | None = None,
    top_k: int = 5,
    probabilities: Container[str] = (),
    stdout: TextIO | None = None,
) -> Sink:
    """Open what the user names as the place for results.

    Args:
        spec: None or `text` for text on the standard output, `-` for JSONL on the standard output, or a file: `.txt`,
            `.jsonl` (`.ndjson`) or `.npz`. An older file is replaced.
        outputs: the network's outputs; with them, labels that do not fit are refused at once, and what has no fixed
            shape holds no class scores, but with labels of as many. Without them each frame tells.
        labels: text of each class, see `read_labels`.
        top_k: how many classes to give.
        probabilities: names of outputs that a softmax or sigmoid makes (`Network.probabilities`); of others it is told
            frame by frame: none negative, sum 1.
        stdout: a stream instead of the process's own standard output.

    Raises:
        UsageError: unknown suffix, or labels or `top_k` that do not fit.
        CorepipeError: the file cannot be written.

    Example:
        >>> with open_sink("results.jsonl", labels=read_labels("synset_words.txt")) as sink:      # doctest: +SKIP
        ...     sink.write(0, "goldfish.jpg", {"logits": logits})
    """
    check_sink(spec, outputs=outputs, labels=labels, top_k=top_k, stdout=stdout)
    path = result_file(spec)
    if path is None:
        return (JsonlSink if spec == "-" else TextSink)(None, stdout, labels, top_k, probabilities, outputs)
    if path.suffix.lower() == ".txt":
        return TextSink(path, None, labels, top_k, probabilities, outputs)
    if path.suffix.lower() == ".npz":
        from corepipe.frames.npz import NpzSink

        return NpzSink(path)
    return JsonlSink(path, None, labels, top_k, probabilities, outputs)


def result_file(spec: str | os.PathLike[str] | None) -> Path | None:
    """The file that `open_sink` writes; None for the standard output."""
    return None if spec is None or spec in ("text", "-") else Path(os.path.expanduser(spec))


def may_hold_classes(outputs: Sequence[TensorInfo], labels: Sequence[str] | None = None) -> bool:
    """Whether one of a network's outputs is the one that holds class scores; without labels, one of known shape."""
    shapes = {t.name: t.shape for t in outputs if t.dtype.kind in _kinds(labels)}
    return (labels is not None and None in shapes.values()) or class_output(shapes, labels) is not None


def _kinds(labels: Sequence[str] | None) -> str:
    """Kinds of numbers that class scores may be: of integers labels must say so."""
    return "fiu" if labels else "f"


def check_sink(
    spec: str | os.PathLike[str] | None,
    *,
    outputs: Sequence[TensorInfo] | None = None,
    labels: Sequence[str] | None = None,
    top_k: int = 5,
    stdout: TextIO | None = None,
) -> None:
    """Refuse what `open_sink` would refuse, with nothing written; arguments and errors as there."""
    if top_k < 1:
        raise UsageError(f"top-k of {top_k}: give at least 1")
    if labels is not None and outputs is not None:
        _check_labels(outputs, labels)
    path = result_file(spec)
    if path is None:
        if stdout is None and sys.stdout is None:
            raise CorepipeError("<stdout>: cannot write results: the standard output is closed; name a file (-o)")
        return
    name = display_name(path)
    if os.path.isdir(path):
        raise UsageError(f"{name}: is a folder; name a file for the results, such as {name}/results.jsonl")
    if path.suffix.lower() not in (".txt", ".jsonl", ".ndjson", ".npz"):
        raise UsageError(
            f"{name}: results are written as .txt, .jsonl or .npz, or '-' for JSONL on the standard output"
        )


def _check_labels(outputs: Sequence[TensorInfo], labels: Sequence[str]) -> None:
    shapes = {t.name: t.shape for t in outputs}
    counts = {name: count for name, shape in shapes.items() if (count := class_count(shape))}
    fitting = [name for name, count in counts.items() if count == len(labels)]
    if len(fitting) == 1 or None in shapes.values():
        return
    if fitting:
        several = ", ".join(map(repr, fitting))
        raise UsageError(f"{len(labels)} labels fit {several}, and only one output can be named: leave the labels out")
    found = ", ".join(f"{name!r} has {count} classes" for name, count in counts.items())
    raise UsageError(f"{len(labels)} labels do not fit: {found or 'no output of the network holds class scores'}")
