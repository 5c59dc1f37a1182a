"""The nine CNN graphs that the `onnx` package ships, with seeded random weights.

Their own weights are all one value, so that the output does not depend on the input.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"

_ROLES = {
    "Conv": {1: "weight"}, "Gemm": {1: "weight"},
    "BatchNormalization": {1: "scale", 4: "scale"},
}  # fmt: skip


def names() -> list[str]:
    """What `load` knows, such as `light_resnet50`; empty where the package came without its test data."""
    return sorted(path.stem for path in FOLDER.glob("light_*.onnx"))


def load(name: str, seed: int = 0) -> onnx.ModelProto:
    """A graph with He-scaled weights; what normalises stays near 1, what shifts near 0."""
    model = onnx.load(FOLDER / f"{name}.onnx")
    model.graph.name = name
    random = np.random.default_rng(seed)
    graph = model.graph
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    fills = {node.output[0]: node for node in graph.node if node.op_type == "ConstantOfShape"}
    for output, node in fills.items():
        shape = tuple(int(size) for size in shapes[node.input[0]])
        values = _values(random, shape, _role(list(graph.node), output))
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), output))
    kept = [node for node in graph.node if node.output[0] not in fills]
    del graph.node[:]
    graph.node.extend(kept)
    return model


def _role(nodes: list[NodeProto], tensor: str) -> str:
    """What a constant is to the operator that reads it."""
    for node in nodes:
        if tensor not in node.input:
            continue
        if node.op_type in ("Unsqueeze", "Reshape"):
            user = next(other for other in nodes if node.output[0] in other.input)
            return {"Mul": "scale", "Gemm": "weight"}.get(user.op_type, "shift")
        return _ROLES.get(node.op_type, {}).get(list(node.input).index(tensor), "shift")
    return "shift"


def _values(random: np.random.Generator, shape: tuple[int, ...], role: str) -> np.ndarray:
    if role == "weight":
        return random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    if role == "scale":
        return random.uniform(0.8, 1.2, shape)
    return random.standard_normal(shape) * 0.05
