"""What a spelling knows of the model, and what it makes beside nodes: names, constants, weights of another shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

PART = "__part_"


class Parts:
    """For all spellings of a model.

    Attributes:
        shapes: of the float32 tensors that are computed, where all axes are known.
        weights: dims of the float32 constants that one node alone reads.
        constants: those that were made.
        dims: the new ones of `weights`.
    """

    def __init__(self, shapes: Mapping[str, list[int]], weights: Mapping[str, list[int]]) -> None:
        self.shapes = shapes
        self.weights = weights
        self.constants: list[TensorProto] = []
        self.dims: dict[str, list[int]] = {}

    def constant(self, name: str, kind: int, dims: Sequence[int], values: Sequence[float] | Sequence[int]) -> str:
        """The name of a new constant."""
        from onnx.helper import make_tensor

        self.constants.append(make_tensor(name, kind, dims, values))
        return name


def part(node: NodeProto, what: str) -> str:
    """The name of a tensor that is made for a node; ONNX Runtime's blocked kernels are named after it."""
    return f"{node.output[0]}{PART}{what}"


def named(node: NodeProto, nodes: list[NodeProto]) -> list[NodeProto]:
    """The nodes that stand for one, each with a name that tells."""
    for new in nodes:
        new.name = f"{node.name}{PART}{new.output[0].rpartition(PART)[2]}"
    return nodes
