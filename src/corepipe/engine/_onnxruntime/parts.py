"""What a spelling knows of the model, and what it makes beside nodes: names, constants, weights of another shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

_MARK = "__corepipe_part_"


class Parts:
    """For all spellings of a model.

    Attributes:
        shapes: of the float32 inputs, outputs and tensors between all of whose axes are known.
        constants: dims of the float32 constants.
        sole: those of them that one node alone reads.
        made: new constants.
        reshaped: new dims of constants in `sole`.
    """

    def __init__(self, shapes: Mapping[str, list[int]], constants: Mapping[str, list[int]], sole: Set[str]) -> None:
        self.shapes = shapes
        self.constants = constants
        self.sole = sole
        self.made: list[TensorProto] = []
        self.reshaped: dict[str, list[int]] = {}
        self._nodes = 0

    def of(self, node: NodeProto) -> NodeParts:
        """For the spelling of one node."""
        self._nodes += 1
        return NodeParts(self, node, self._nodes)


class NodeParts:
    """For one node; the number tells nodes of the same name, or of none, apart."""

    def __init__(self, parts: Parts, node: NodeProto, number: int) -> None:
        self._parts = parts
        self._stem = f"{node.name}{_MARK}{number}_"

    def tensor(self, what: str) -> str:
        """A name for a tensor; begins with the node's, as ONNX Runtime's blocked kernels are called after tensors."""
        return self._stem + what

    def constant(self, what: str, kind: int, dims: Sequence[int], values: Sequence[float] | Sequence[int]) -> str:
        """The name of a new constant."""
        from onnx.helper import make_tensor

        self._parts.made.append(make_tensor(self.tensor(what), kind, dims, values))
        return self.tensor(what)

    def named(self, nodes: list[NodeProto]) -> list[NodeProto]:
        """The nodes, each with a name that tells for which one it stands."""
        for number, new in enumerate(nodes):
            new.name = f"{self._stem}{number}"
        return nodes


def node_of(name: str) -> str:
    """The node of the model that a node, or a kernel, of the spelt-out one stands for."""
    return name.rpartition(_MARK)[0] or name
