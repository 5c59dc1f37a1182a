"""Whether a batched network gives what the single frames give, found out by running both.

This module loads no engine: whoever calls it hands over something that runs models, here or in another process.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corepipe.engine.base import Engine
from corepipe.errors import BatchError, UsageError
from corepipe.network.model import Network, Segment, TensorInfo

Arrays = Mapping[str, NDArray[Any]]

Run = Callable[[bytes, Sequence[str], Sequence[Arrays]], Sequence[Arrays]]
"""Compiles a serialized model once and runs it on several sets of inputs; the outputs of these names for each."""

TOLERANCE = 1e-4
"""Largest difference that counts as rounding, relative to the largest magnitude in the tensor."""

_TOLERANCE_HALF = 1e-2
_TOLERANCE_QUANTISED = 5e-2
_TELLING = 10
"""Times the tolerance by which any two frames must differ for a mix of them to be seen."""

_QUANTISING = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "QLinearAdd"})


@dataclass(frozen=True)
class BatchCheck:
    """What a check found that passed.

    Attributes:
        batch: number of frames.
        tensors: names of all that was compared, in the network's order: what crosses cuts, and the outputs.
        blind: those of them that are (nearly) the same for all frames, so that a mix of frames would not be seen.
        largest_error: largest difference from single frames, relative to the largest magnitude in the tensor.
    """

    batch: int
    tensors: tuple[str, ...]
    blind: tuple[str, ...]
    largest_error: float

    @property
    def void(self) -> bool:
        """Whether no tensor tells frames apart: the check says nothing then (constant weights, unsuitable frames)."""
        return len(self.blind) == len(self.tensors)


def runs_on(engine: Engine, threads: int = 1) -> Run:
    """A `Run` on an engine of this process."""

    def run(model: bytes, names: Sequence[str], frames: Sequence[Arrays]) -> list[Arrays]:
        compiled = engine.compile(model, threads)
        results: list[Arrays] = []
        for frame in frames:
            outputs: dict[str, NDArray[Any]] = {}
            inputs = {name: np.ascontiguousarray(value) for name, value in frame.items()}
            compiled.bind(inputs, {name: _keeper(outputs, name) for name in names})()
            results.append(outputs)
        return results

    return run


def check_batch(
    network: Network,
    many: Network,
    run: Run,
    *,
    start: int = 0,
    stop: int | None = None,
    frames: Sequence[Arrays] | None = None,
    seed: int = 0,
    tolerance: float | None = None,
) -> BatchCheck:
    """Run layers [start, stop) on frames one by one and on all of them at once, and compare what crosses every cut.

    The nodes are run as the network has them, nothing spelt out for an engine, so that everything that crosses is made.

    Args:
        network: takes one frame.
        many: the same network for several, as `batched` makes it.
        run: runs both models, each compiled once.
        start, stop: which layers; all by default.
        frames: inputs of layer `start` for each frame; by default random ones, which differ from frame to frame.
        seed: of random frames.
        tolerance: largest relative difference; by default `TOLERANCE`, more for half precision and quantised models.

    Raises:
        BatchError: a tensor differs; the first one is named.
        UsageError: the networks are not one network for one frame and for several, or `frames` are not as many.
        EngineError: from `run`.

    Example:
        >>> check = check_batch(one, four, runs_on(engine.get("onnxruntime")))  # doctest: +SKIP
        >>> check.void, check.largest_error                                     # doctest: +SKIP
        (False, 1.2e-07)
    """
    stop = len(network.layers) if stop is None else stop
    batch = _batch_of(network, many)
    singles, together = (n.segment(start, stop, as_written=True) for n in (network, many))
    if frames is None:
        frames = _random_frames(singles.inputs, batch, seed)
    if len(frames) != batch:
        raise UsageError(f"{network.name}: {len(frames)} frames for a batch of {batch}; give as many")
    compared = _expose(network, singles)
    _expose(many, together)
    limit = rounding(network, compared) if tolerance is None else tolerance
    joined = {t.name: np.concatenate([frame[t.name] for frame in frames]) for t in singles.inputs}
    given = [{t.name: frame[t.name] for t in singles.inputs} for frame in frames]
    names = [tensor.name for tensor in compared]
    want = run(singles.model.SerializeToString(), names, given)
    (got,) = run(together.model.SerializeToString(), names, [joined])
    blind, largest = [], 0.0
    for tensor in compared:
        values = [frame[tensor.name] for frame in want]
        error, scale = relative_error(got[tensor.name], np.concatenate(values) if values[0].ndim else np.array(values))
        if error > limit:
            raise BatchError(
                f"{network.name}: with {batch} frames at once {tensor.name!r} differs from single frames by "
                f"{error:.1e} of its largest value, {limit:.0e} is allowed: it mixes frames; give it one at a time"
            )
        if _least_distance(values) <= _TELLING * limit * scale:
            blind.append(tensor.name)
        largest = max(largest, error)
    return BatchCheck(batch, tuple(names), tuple(blind), largest)


def _batch_of(network: Network, many: Network) -> int:
    """How many frames `many` takes."""
    for one, other in zip(network.inputs, many.inputs, strict=False):
        if one.shape and other.shape and one.shape[0]:
            batch, rest = divmod(other.shape[0], one.shape[0])
            if batch and not rest and len(network.layers) == len(many.layers):
                return batch
    raise UsageError(f"{many.name} is not {network.name} for several frames; make it with `batched`")


def _random_frames(inputs: Sequence[TensorInfo], batch: int, seed: int) -> list[Arrays]:
    """Inputs in which every frame differs from every other: normal, 0..255 for bytes, 0..3 for other integers."""
    random = np.random.default_rng(seed)

    def values(tensor: TensorInfo) -> NDArray[Any]:
        shape = tensor.shape or ()
        if tensor.dtype.kind == "f":
            return random.standard_normal(shape).astype(tensor.dtype)
        if tensor.dtype.kind == "b":
            return random.random(shape) < 0.5
        return random.integers(0, 256 if tensor.dtype == np.uint8 else 4, shape).astype(tensor.dtype)

    return [{tensor.name: values(tensor) for tensor in inputs} for _ in range(batch)]


def _expose(network: Network, segment: Segment) -> list[TensorInfo]:
    """Make everything that crosses a cut inside the segment an output of it; all outputs, in the network's order."""
    graph = segment.model.graph
    declared = {value.name: value for value in graph.value_info}
    ends = {tensor.name for tensor in segment.outputs}
    crossing = {t.name: t for cut in network.cuts[segment.start + 1 : segment.stop] for t in cut.tensors}
    inner = [t for name, t in crossing.items() if name in declared and name not in ends and t.shape is not None]
    graph.output.extend(declared[tensor.name] for tensor in inner)
    shown = {tensor.name for tensor in inner}
    kept = [value for value in graph.value_info if value.name not in shown]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    return [*inner, *segment.outputs]


def rounding(network: Network, tensors: Sequence[TensorInfo]) -> float:
    """What rounding may amount to in tensors of a network, relative to the largest magnitude in one.

    A step of a quantised tensor is 1/255 of its range, and sums that differ in the last place may fall on either side.
    """
    if any(op in _QUANTISING for layer in network.layers for op in layer.descriptor.op_types):
        return _TOLERANCE_QUANTISED
    return _TOLERANCE_HALF if any(t.dtype == np.float16 for t in tensors) else TOLERANCE


def relative_error(got: NDArray[Any], want: NDArray[Any]) -> tuple[float, float]:
    """The largest difference of two tensors, relative to the largest finite magnitude wanted; and that magnitude.

    The difference is infinite where the shapes differ, or where one value is finite and the other is not.
    """
    if got.shape != want.shape:
        return math.inf, 0.0
    found, expected = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(expected)
    scale = float(np.abs(expected[finite]).max(initial=0.0))
    with np.errstate(invalid="ignore"):
        same = (found == expected) | (np.isnan(found) & np.isnan(expected))
        difference = np.where(same, 0.0, np.abs(found - expected))
    largest = float(difference.max(initial=0.0))
    if math.isnan(largest):
        return math.inf, scale
    return largest / scale if scale and largest else largest, scale


def _least_distance(values: Sequence[NDArray[Any]]) -> float:
    """The largest difference in any value, of the two frames that are most alike; 0 where frames are not finite."""
    least = math.inf
    for one, other in itertools.combinations(values, 2):
        with np.errstate(invalid="ignore"):
            apart = np.abs(one.astype(np.float64) - other.astype(np.float64))
        least = min(least, float(apart[np.isfinite(apart)].max(initial=0.0)))
    return least


def _keeper(outputs: dict[str, NDArray[Any]], name: str) -> Callable[[NDArray[Any]], None]:
    def keep(array: NDArray[Any]) -> None:
        outputs[name] = array.copy()

    return keep
