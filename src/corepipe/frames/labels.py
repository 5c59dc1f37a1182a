"""Class labels, and the best classes of a result."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from corepipe.errors import UsageError
from corepipe.frames.model import display_name, reason_of

MAX_LABEL_BYTES = 16 * 2**20
"""Larger label files are refused."""


class Score(NamedTuple):
    """A class and what the network gives it.

    Attributes:
        class_index: from 0.
        label: its text, `class 17` where none is known.
        score: softmax over the classes, or the output itself where that is a probability; NaN if that is no number.
    """

    class_index: int
    label: str
    score: float


def read_labels(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read labels, one a line; a WordNet id at the start of a line (`n01440764 tench, Tinca tinca`) is left out.

    Raises:
        UsageError: the file cannot be read, is not text, or is empty.
    """
    path, name = Path(path), display_name(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_LABEL_BYTES + 1)  # a device may have no end
        if len(data) > MAX_LABEL_BYTES:
            raise UsageError(f"{name}: too large for a file of labels")
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{name}: cannot read labels: {reason_of(error)}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{name}: not a file of labels (UTF-8 text, one label a line)") from None
    if "\0" in text:
        raise UsageError(f"{name}: not a file of labels (UTF-8 text, one label a line)")
    lines = [re.sub(r"^n\d{8}[ \t,]+(?=\S)", "", line).strip() for line in text.rstrip().split("\n")]
    if lines == [""]:
        raise UsageError(f"{name}: holds no labels")
    return tuple(lines)


def class_count(shape: Sequence[int] | None) -> int | None:
    """Number of classes of an output that can be class scores: `C` or `1 x C`, further axes of 1 allowed."""
    if not shape or (len(shape) > 1 and shape[0] != 1):
        return None
    count = math.prod(shape)
    classes = shape[0] if len(shape) == 1 else shape[1]
    return count if count == classes and count > 1 else None


def class_output(shapes: Mapping[str, Sequence[int] | None], labels: Sequence[str] | None) -> str | None:
    """The output that holds class scores: the only one with such a shape, or the only one with as many as `labels`."""
    found = {name: count for name, shape in shapes.items() if (count := class_count(shape))}
    if len(found) > 1 and labels:
        found = {name: count for name, count in found.items() if count == len(labels)}
    return next(iter(found)) if len(found) == 1 else None


def top_k(
    scores: NDArray[Any], k: int, labels: Sequence[str] | None = None, *, probabilities: bool = False
) -> list[Score]:
    """The `k` best classes, best first; equal ones in the order of their index, NaN last.

    Args:
        scores: any shape, one number for each class. Probabilities (none negative, sum 1) are taken as they are,
            anything else goes through a softmax.
        k: how many; fewer if there are fewer classes.
        labels: text of each class.
        probabilities: whether the network is known to end in a softmax or sigmoid: then all are taken as they are.
    """
    values = np.asarray(scores, dtype=np.float64).reshape(-1)
    shown = values if probabilities or not _are_logits(values) else _softmax(values)
    ranked = np.argsort(-np.where(np.isnan(values), -np.inf, values), kind="stable")[:k]
    return [Score(int(i), labels[i] if labels and i < len(labels) else f"class {i}", float(shown[i])) for i in ranked]


def _are_logits(values: NDArray[np.float64]) -> bool:
    return not (np.isfinite(values).all() and values.min() >= 0 and abs(values.sum() - 1) < 0.01)


def _softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN where an input is NaN or the sum is not a number."""
    if not values.size or np.isnan(values).all():
        return values
    with np.errstate(invalid="ignore"):
        powers = np.exp(values - np.nanmax(values))
        return np.asarray(powers / np.nansum(powers))
