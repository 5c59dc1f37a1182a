"""Graphs to load and a plain way to run them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from corepipe.network.model import Network, Segment

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"

Arrays = dict[str, np.ndarray]


def randomise(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """Give a graph of the onnx package weights: its own are all one value, so that its output never changes.

    Convolution and matrix weights are drawn He-scaled; what normalises (scale, variance) stays near 1, what
    shifts (bias, mean) near 0.
    """
    rng = np.random.default_rng(seed)
    graph = model.graph
    shapes = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    roles: dict[str, str] = {}
    names = {node.output[0]: node for node in graph.node if node.op_type == "ConstantOfShape"}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if node.op_type in ("Conv", "Gemm"):
                roles[name] = "weight" if index == 1 else "shift"
            elif node.op_type == "BatchNormalization":
                roles[name] = {1: "scale", 2: "shift", 3: "shift", 4: "scale"}.get(index, "")
            elif node.op_type in ("Unsqueeze", "Reshape"):
                user = next(n for n in graph.node if node.output[0] in n.input)
                roles[name] = {"Mul": "scale", "Gemm": "weight"}.get(user.op_type, "shift")
    kept = []
    for node in graph.node:
        if node.output[0] not in names:
            kept.append(node)
            continue
        shape = tuple(int(d) for d in shapes[node.input[0]])
        role = roles[node.output[0]]
        if role == "weight":
            values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif role == "scale":
            values = rng.uniform(0.8, 1.2, shape)
        else:
            values = rng.standard_normal(shape) * 0.05
        graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), node.output[0]))
    del graph.node[:]
    graph.node.extend(kept)
    return model


@functools.lru_cache(maxsize=2)
def _light(name: str) -> onnx.ModelProto:
    return randomise(onnx.load(LIGHT / f"light_{name}.onnx"))


@pytest.fixture(scope="session")
def light_model() -> Callable[[str], onnx.ModelProto]:
    """By name, such as `squeezenet`: a graph that the onnx package ships, with seeded random weights."""
    return _light


def run_model(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> Arrays:
    """Outputs by name on one thread of ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
    names = list(outputs) if outputs else [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def frame_for(network: Network, seed: int = 1) -> Arrays:
    """Random inputs that fit a network."""
    rng = np.random.default_rng(seed)
    frame: Arrays = {}
    for tensor in network.inputs:
        assert tensor.shape is not None
        if tensor.dtype.kind == "f":
            frame[tensor.name] = rng.standard_normal(tensor.shape).astype(tensor.dtype)
        elif tensor.dtype.kind == "b":
            frame[tensor.name] = rng.random(tensor.shape) < 0.5
        else:
            frame[tensor.name] = rng.integers(1, 5, tensor.shape).astype(tensor.dtype)
    return frame


def run_divided(network: Network, cuts: Sequence[int], frame: Arrays) -> Arrays:
    """The network's outputs, computed segment by segment."""
    alive, results = dict(frame), {}
    edges = [0, *cuts, len(network.layers)]
    for start, stop in itertools.pairwise(edges):
        segment = network.segment(start, stop)
        check_segment(network, segment)
        made = run_model(segment.model, {t.name: alive[t.name] for t in segment.inputs})
        alive |= made
        results |= made
        crossing = {t.name for t in network.cuts[stop].tensors}
        alive = {name: value for name, value in alive.items() if name in crossing}
    return {t.name: results[t.name] for t in network.outputs}


def check_segment(network: Network, segment: Segment) -> None:
    """A segment says what it takes and gives, by name, type and shape."""
    graph = segment.model.graph
    assert [v.name for v in graph.input] == [t.name for t in segment.inputs]
    assert [v.name for v in graph.output] == [t.name for t in segment.outputs]
    assert {t.name for t in segment.inputs} <= {t.name for t in network.cuts[segment.start].tensors}
    for value, tensor in zip((*graph.input, *graph.output), (*segment.inputs, *segment.outputs), strict=True):
        if tensor.shape is not None:
            assert tuple(d.dim_value for d in value.type.tensor_type.shape.dim) == tensor.shape


def assert_same(whole: Arrays, parts: Arrays, tolerance: float = 1e-4) -> None:
    """Equal but for rounding, measured against the largest value."""
    assert whole.keys() == parts.keys()
    for name, expected in whole.items():
        assert parts[name].shape == expected.shape
        assert parts[name].dtype == expected.dtype
        if expected.dtype.kind != "f":
            np.testing.assert_array_equal(parts[name], expected)
            continue
        scale = float(np.abs(expected).max(initial=0.0)) + 1e-6
        np.testing.assert_allclose(parts[name] / scale, expected / scale, rtol=0, atol=tolerance)


class Divider:
    """What tests do with a network: run it whole, run it in parts, compare."""

    frame_for = staticmethod(frame_for)
    run = staticmethod(run_model)
    run_divided = staticmethod(run_divided)
    assert_same = staticmethod(assert_same)

    def check(self, network: Network, *divisions: Sequence[int]) -> int:
        """Each division gives what the whole gives; returns how many were tried."""
        frame = frame_for(network)
        whole = run_model(network.model, frame)
        for cuts in divisions:
            assert_same(whole, run_divided(network, cuts, frame))
        return len(divisions)


@pytest.fixture(scope="session")
def divider() -> Divider:
    return Divider()


def build(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[Any] | None],
    outputs: Sequence[str],
    constants: Mapping[str, Any] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 8,
    **domains: int,
) -> onnx.ModelProto:
    """A float model of a few nodes; a constant may be an array or a list."""
    helper = onnx.helper
    floats = onnx.TensorProto.FLOAT
    initializers = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, floats, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, floats, None) for name in outputs],
        initializers,
    )
    opsets = [helper.make_opsetid("", opset)] + [helper.make_opsetid(d, v) for d, v in domains.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., onnx.ModelProto]:
    return build


@pytest.fixture
def small(make_model):
    """A convolution and an activation on a dynamic batch."""
    return make_model(
        [
            onnx.helper.make_node("Conv", ["x", "w", "b"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            onnx.helper.make_node("Relu", ["c"], ["y"]),
        ],
        {"x": ["N", 3, 8, 8]},
        ["y"],
        {"w": np.ones((4, 3, 3, 3), np.float32), "b": np.zeros(4, np.float32)},
    )
