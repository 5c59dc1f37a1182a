"""ONNX's side: a node with the constants and tensors that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from corepipe.engine._ncnn.graph import Builder, Linear, Refused, Shape, Tensor, blob_shape


@dataclass
class Scope:
    """What is known where a node stands.

    Attributes:
        builder: takes the layers.
        opset: the version of ONNX's operators.
        constants: by name.
        tensors: those made so far, by name.
        uses: how many read a tensor; an output of the model is one more.
    """

    builder: Builder
    opset: int
    constants: dict[str, NDArray[Any]]
    tensors: dict[str, Tensor]
    uses: Mapping[str, int]


class Node:
    """A node of the model, and what it reads."""

    def __init__(self, proto: NodeProto, scope: Scope) -> None:
        self.kind = proto.op_type
        self.inputs = list(proto.input)
        self.outputs = list(proto.output)
        self.scope = scope
        self.builder = scope.builder
        self.opset = scope.opset
        self._attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute; text as `str`."""
        value = self._attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def has(self, index: int) -> bool:
        """Whether there is such an input."""
        return index < len(self.inputs) and self.inputs[index] != ""

    def constant(self, index: int) -> NDArray[Any] | None:
        """The value of an input that is constant; None where it is not, or not there."""
        return self.scope.constants.get(self.inputs[index]) if self.has(index) else None

    def floats(self, index: int, what: str) -> NDArray[np.float64]:
        """The value of an input that must be a constant of type float32."""
        value = self.constant(index)
        if value is None:
            raise Refused(f"its {what} is not constant")
        if value.dtype != np.float32:
            raise Refused(f"its {what} is {value.dtype}")
        return value.astype(np.float64)

    def integers(self, name: str, index: int = -1) -> tuple[int, ...] | None:
        """Integers from the attribute of that name, or else from a constant input; None where there is neither."""
        if name in self._attributes:
            return tuple(int(v) for v in np.atleast_1d(self._attributes[name]))
        if index < 0 or not self.has(index):
            return None
        value = self.constant(index)
        if value is None or value.dtype.kind != "i":
            raise Refused(f"its {name} are not constant integers")
        return tuple(int(v) for v in value.reshape(-1))

    def number(self, name: str, index: int, default: float) -> float:
        """A number from the attribute of that name, or else from a constant input."""
        if name in self._attributes:
            return float(self._attributes[name])
        if not self.has(index):
            return default
        value = self.floats(index, name)
        if value.size != 1:
            raise Refused(f"its {name} is not one number")
        return float(value.reshape(()))

    def tensor(self, index: int) -> Tensor:
        """An input; a constant is put into a blob."""
        if not self.has(index):
            raise Refused(f"it has no input {index}")
        value = self.constant(index)
        if value is None:
            return self.scope.tensors[self.inputs[index]]
        if value.dtype != np.float32:
            raise Refused(f"input {self.inputs[index]!r} is {value.dtype}")
        if not value.size:
            raise Refused(f"input {self.inputs[index]!r} has no elements")
        return self.builder.constant(value, blob_shape(value.shape))

    def gives(self, index: int) -> bool:
        """Whether anything reads such an output."""
        return index < len(self.outputs) and bool(self.outputs[index]) and self.outputs[index] in self.scope.uses

    def open(self, index: int) -> Linear | None:
        """What made an input, if this node is all that reads it and may be fused into it."""
        given = self.scope.tensors.get(self.inputs[index])
        return given.linear if given is not None and self.scope.uses[self.inputs[index]] == 1 else None

    def passed_on(self, index: int, shape: Shape | None = None) -> Tensor:
        """An input as it is, or in another shape."""
        given = self.tensor(index)
        alike = shape is None or shape == given.shape
        return replace(given, shape=given.shape if shape is None else shape, linear=self.open(index) if alike else None)

    def image(self, index: int = 0) -> Tensor:
        """An input of [1, channels, height, width], in a blob of [channels, height, width]."""
        given = self.tensor(index)
        if len(given.shape) != 4 or given.shape[0] != 1:
            raise Refused(f"its input is {list(given.shape)}, not one image")
        return self.builder.place(given, given.shape[1:])


def axis_of(value: int, rank: int) -> int:
    """A valid axis, counted from the front."""
    if not -rank <= value < rank:
        raise Refused(f"axis {value} of {rank}")
    return value % rank
