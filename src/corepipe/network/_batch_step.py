"""One node of a network that is being batched: what its rule may ask, and what it may change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from onnx import NodeProto

from corepipe.network.graph import UNKNOWN, TensorType, attribute, int_attribute, ints_attribute

Axis = int | None
"""Along which axis the frames lie in a tensor, one behind the other; None: it is the same for all frames."""


class Refusal(Exception):
    """Why a node does not keep frames apart; the driver adds which node it is."""


class Constants(Protocol):
    """What the driver knows of constants and of what does not depend on the frames."""

    def integers(self, name: str) -> list[int] | None:
        """Values of a constant, flat; None where the tensor is no constant of integers."""
        ...

    def floats(self, name: str) -> list[float] | None:
        """Values of a constant, flat; None where the tensor is no constant of floats."""
        ...

    def with_integers(self, name: str, values: Sequence[int], shape: Sequence[int] | None = None) -> str:
        """Name of a constant like `name` with other values, and another shape if one is given."""
        ...

    def repeated(self, name: str, axis: int, node: NodeProto) -> str:
        """Name of a tensor that holds `name` once for each frame, along `axis`, for `node` to read."""
        ...


class Step:
    """A node and where the frames lie in its inputs.

    Shapes are those for one frame: along the axis of the frames, the batched tensor is `batch` times as long.

    Attributes:
        node: the batched network's; rules change its inputs and attributes.
        batch: number of frames.
        opset: of the standard operators.
        axes: axis of each input; None also for an input that is left out.
    """

    def __init__(
        self,
        node: NodeProto,
        batch: int,
        opset: int,
        types: dict[str, TensorType],
        axes: dict[str, int],
        constants: Constants,
    ) -> None:
        self.node = node
        self.batch = batch
        self.opset = opset
        self.axes: list[Axis] = [axes.get(name) for name in node.input]
        self._types = types
        self._constants = constants

    def has(self, index: int) -> bool:
        """Whether the input is given."""
        return index < len(self.node.input) and bool(self.node.input[index])

    @property
    def given(self) -> list[int]:
        """Indices of the inputs that are given."""
        return [index for index in range(len(self.node.input)) if self.has(index)]

    def shape(self, index: int) -> tuple[int, ...]:
        """Shape of an input."""
        return self._shape(self.node.input[index])

    def made(self, index: int = 0) -> tuple[int, ...]:
        """Shape of an output."""
        return self._shape(self.node.output[index])

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = self._types.get(name, UNKNOWN).shape
        if shape is None:
            raise Refusal(f"the shape of {name!r} depends on the data")
        return shape

    def integers(self, index: int) -> list[int] | None:
        """Values of a constant input; None where it is not given or not constant."""
        return self._constants.integers(self.node.input[index]) if self.has(index) else None

    def floats(self, index: int, name: str) -> list[float] | None:
        """Values of a constant input or else of the attribute `name`; None where there are none, or not constant."""
        if self.has(index):
            return self._constants.floats(self.node.input[index])
        value = attribute(self.node, name)
        return [float(v) for v in value] if isinstance(value, (list, tuple)) else None

    def replace(self, index: int, values: Sequence[int], shape: Sequence[int] | None = None) -> None:
        """Give the node other values for a constant input, and another shape if one is given."""
        self.node.input[index] = self._constants.with_integers(self.node.input[index], values, shape)

    def repeat(self, index: int, axis: int) -> None:
        """Make an input that is the same for all frames hold a copy for each, along `axis`."""
        self.node.input[index] = self._constants.repeated(self.node.input[index], axis, self.node)

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        return int_attribute(self.node, name, default)

    def integer_list(self, name: str) -> tuple[int, ...]:
        """A list attribute; empty where there is none."""
        return ints_attribute(self.node, name)

    def text(self, name: str) -> str:
        """A string attribute; empty where there is none."""
        value = attribute(self.node, name)
        return value.decode(errors="replace") if isinstance(value, bytes) else ""

    def has_attribute(self, name: str) -> bool:
        """Whether an attribute is given."""
        return any(item.name == name for item in self.node.attribute)

    def axis(self, value: int, rank: int) -> int:
        """An axis counted from the front."""
        return value + rank if value < 0 else value

    def along(self, index: int = 0) -> int:
        """The axis of the frames in an input that must depend on them.

        Raises:
            Refusal: it is the same for all frames, and another input is not.
        """
        found = self.axes[index] if index < len(self.axes) else None
        if found is None:
            changing = next(self.node.input[i] for i, axis in enumerate(self.axes) if axis is not None)
            raise Refusal(f"{changing!r} takes the place of a parameter and depends on the frame")
        return found

    def only(self, *indices: int) -> int:
        """The axis of the frames, where just these inputs may depend on them, the first for certain.

        Raises:
            Refusal: another input depends on the frame, or the axes differ.
        """
        axis = self.along(indices[0])
        for index, other in enumerate(self.axes):
            if other is not None and index not in indices:
                raise Refusal(f"{self.node.input[index]!r} takes the place of a parameter and depends on the frame")
            if other is not None and other != axis:
                raise Refusal(f"frames lie along axis {axis} of one input and {other} of another")
        return axis


def scaled(shape: Sequence[int], axis: int, batch: int) -> tuple[int, ...]:
    """The shape of `batch` frames along `axis`."""
    return (*shape[:axis], shape[axis] * batch, *shape[axis + 1 :])


def same_place(old: Sequence[int], axis: int, new: Sequence[int]) -> int:
    """Where frames lie after a reshape, so that the order of all values stays the same.

    Frames along axis a are repeated in the order of memory with the values of the axes before it: there must be as
    many of them before the new axis. Of several such axes (sizes are 1) the first is taken if that is axis 0, else
    `axis` itself.

    Raises:
        Refusal: there is no such axis.

    Example:
        >>> same_place((1, 256, 6, 6), 0, (1, 9216)), same_place((49, 1, 64), 1, (49, 8, 8))
        (0, 1)
    """
    before = math.prod(old[:axis])
    found = [k for k in range(len(new)) if math.prod(new[:k]) == before]
    if not found or 0 in old:
        raise Refusal(f"from {list(old)} to {list(new)} it takes apart what belongs to one frame")
    return axis if 0 not in found and axis in found else found[0]
