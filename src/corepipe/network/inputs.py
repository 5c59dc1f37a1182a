"""Arrays that come from the user, held against the network's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corepipe.errors import FrameError, UnknownNameError
from corepipe.network.model import TensorInfo


def check_frame(
    data: NDArray[Any] | Mapping[str, NDArray[Any]], inputs: Sequence[TensorInfo], name: str
) -> dict[str, NDArray[Any]]:
    """Arrays as the network wants them: a missing batch axis of 1 added, types widened where nothing is lost.

    Floating-point types turn into one another (float64 to float32 is rounded); integers turn into any type that holds
    their values.

    Args:
        data: an array for the only input, or arrays by input name.
        inputs: the network's inputs.
        name: of the frame, for messages.

    Returns:
        By input name, in the network's order: arrays of exactly the inputs' shapes and types. Arrays that fit already
        are passed on without a copy, contiguous or not.

    Raises:
        FrameError: an input is missing, unknown, or of another shape or type.
    """
    if not isinstance(data, Mapping):
        if len(inputs) != 1:
            wanted = ", ".join(f"{i.name!r} {i}" for i in inputs)
            raise FrameError(f"{name}: one array for {len(inputs)} inputs; give a dict of arrays for {wanted}")
        data = {inputs[0].name: data}
    wanted_names = {i.name for i in inputs}
    for unknown in data.keys() - wanted_names:
        raise FrameError(f"{name}: {UnknownNameError('input', str(unknown), wanted_names)}")
    result = {}
    for tensor in inputs:
        if tensor.name not in data:
            raise FrameError(f"{name}: no array for input {tensor.name!r}, expected {tensor}")
        result[tensor.name] = _fitted(data[tensor.name], tensor, name)
    return result


def _fitted(array: NDArray[Any], tensor: TensorInfo, name: str) -> NDArray[Any]:
    """One array as an input wants it."""
    try:
        array = np.asarray(array)
    except Exception as error:  # of what only looks like an array: a tensor on a GPU, say
        raise FrameError(f"{name}: input {tensor.name!r}: not an array: {error}") from None
    shape = tensor.shape
    if shape is not None and array.shape != shape:
        if shape[:1] != (1,) or array.shape != shape[1:]:
            raise FrameError(f"{name}: input {tensor.name!r}: expected {tensor}, found {_as_tensor(array)}")
        array = array[None]
    if array.dtype != tensor.dtype:
        cast = _cast(array, tensor.dtype)
        if cast is None:
            raise FrameError(
                f"{name}: input {tensor.name!r}: expected {tensor}, found {_as_tensor(array)}, whose values do not fit"
            )
        array = cast
    return array


def _as_tensor(array: NDArray[Any]) -> TensorInfo:
    """What an array is, for messages."""
    return TensorInfo("", array.dtype, array.shape)


def _cast(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """The array as `dtype`, None where values would be lost."""
    if array.dtype.kind not in "?biuf" or dtype.kind not in "?biuf":
        return None
    if np.can_cast(array.dtype, dtype, "safe"):
        return array.astype(dtype, order="C")
    with np.errstate(all="ignore"):
        cast = array.astype(dtype)
        if array.dtype.kind == "f":
            same_kind = dtype.kind == "f" and bool((np.isfinite(cast) == np.isfinite(array)).all())
            return cast if same_kind else None
        if dtype.kind == "f":
            return cast if bool((cast.astype(array.dtype) == array).all()) else None
    if dtype.kind == "b":
        return None
    limits = np.iinfo(dtype)
    fits = not array.size or limits.min <= int(array.min()) <= int(array.max()) <= limits.max
    return cast if fits else None
