"""The zoo: published sizes counted anew from the graph, runnable, input-dependent, reproducible."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import onnx
import onnxruntime
import pytest

from corepipe.errors import UnknownNameError, UsageError
from corepipe.network import zoo

# Input size, parameters (batch-norm statistics not counted), multiply-adds as published or as counted by others.
PUBLISHED = {
    "alexnet": (227, 60_965_224, 724e6),
    "googlenet": (224, 6_998_552, 1.58e9),
    "mobilenet": (224, 4_231_976, 569e6),
    "resnet50": (224, 25_557_032, 3.86e9),
    "squeezenet": (227, 1_248_424, 0.861e9),
}
OPERATORS = {
    "alexnet": {"Conv": 5, "Relu": 7, "LRN": 2, "MaxPool": 3, "Gemm": 3},
    "googlenet": {"Conv": 57, "Relu": 57, "LRN": 2, "MaxPool": 13, "Concat": 9, "Gemm": 1},
    "mobilenet": {"Conv": 27, "BatchNormalization": 27, "Relu": 27, "Gemm": 1},
    "resnet50": {"Conv": 53, "BatchNormalization": 53, "Relu": 49, "Add": 16, "MaxPool": 1, "Gemm": 1},
    "squeezenet": {"Conv": 26, "Relu": 26, "MaxPool": 3, "Concat": 8, "GlobalAveragePool": 1},
}


@pytest.fixture(scope="module", params=zoo.NAMES)
def network(request: pytest.FixtureRequest) -> tuple[str, onnx.ModelProto]:
    return request.param, zoo.build(request.param)


def shapes_of(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Shapes by the ONNX library's own inference, the weights given by their shapes only."""
    bare = onnx.ModelProto()
    bare.opset_import.extend(model.opset_import)
    bare.ir_version = model.ir_version
    bare.graph.node.extend(model.graph.node)
    bare.graph.input.extend(model.graph.input)
    bare.graph.output.extend(model.graph.output)
    for weight in model.graph.initializer:
        value = onnx.helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims))
        bare.graph.input.append(value)
    graph = onnx.shape_inference.infer_shapes(bare, strict_mode=True, check_type=True).graph
    return {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }


def multiply_adds(model: onnx.ModelProto) -> int:
    shapes, total = shapes_of(model), 0
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            filters = shapes[node.input[1]]
            positions = math.prod(shapes[node.output[0]][2:])
            total += math.prod(filters) * positions
    return total


def frames(size: int, count: int) -> list[np.ndarray]:
    """Normalised frames with structure at several scales, each another."""
    random = np.random.default_rng(7)
    result = []
    for _ in range(count):
        frame = random.standard_normal((1, 3, size, size), dtype=np.float32) * 0.3
        for cells in (2, 5, 16):
            coarse = random.standard_normal((1, 3, cells, cells), dtype=np.float32)
            index = np.arange(size) * cells // size
            frame += coarse[:, :, index][:, :, :, index]
        result.append((frame - frame.mean()) / frame.std())
    return result


def digest(model: onnx.ModelProto) -> str:
    total = hashlib.sha256()
    for weight in model.graph.initializer:
        total.update(weight.name.encode() + weight.raw_data)
    bare = onnx.ModelProto()
    bare.graph.node.extend(model.graph.node)
    total.update(bare.SerializeToString(deterministic=True))
    return total.hexdigest()


def test_names_are_those_of_the_paper() -> None:
    assert zoo.NAMES == ("alexnet", "googlenet", "mobilenet", "resnet50", "squeezenet")
    assert set(zoo.NAMES) == set(PUBLISHED)


def test_passes_the_checker(network: tuple[str, onnx.ModelProto]) -> None:
    _, model = network
    onnx.checker.check_model(model)
    assert all(weight.data_type == onnx.TensorProto.FLOAT for weight in model.graph.initializer)
    assert not any(weight.external_data for weight in model.graph.initializer)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)


def test_input_and_output(network: tuple[str, onnx.ModelProto]) -> None:
    name, model = network
    size = PUBLISHED[name][0]
    shapes = shapes_of(model)
    assert [value.name for value in model.graph.input] == ["data"]
    assert [value.name for value in model.graph.output] == ["prob"]
    assert shapes["data"] == [1, 3, size, size]
    assert shapes["prob"] == [1, 1000]


def test_every_weight_is_used(network: tuple[str, onnx.ModelProto]) -> None:
    _, model = network
    used = [name for node in model.graph.node for name in node.input]
    assert all(used.count(weight.name) == 1 for weight in model.graph.initializer)


def test_parameters_are_as_published(network: tuple[str, onnx.ModelProto]) -> None:
    name, model = network
    statistics = {
        tensor for node in model.graph.node if node.op_type == "BatchNormalization" for tensor in node.input[3:]
    }
    trained = [weight for weight in model.graph.initializer if weight.name not in statistics]
    assert sum(math.prod(weight.dims) for weight in trained) == PUBLISHED[name][1]


def test_multiply_adds_are_as_published(network: tuple[str, onnx.ModelProto]) -> None:
    name, model = network
    assert multiply_adds(model) == pytest.approx(PUBLISHED[name][2], rel=0.005)


def test_docstring_gives_the_exact_figures(network: tuple[str, onnx.ModelProto]) -> None:
    name, model = network
    size, parameters, _ = PUBLISHED[name]
    assert f"| `{name}` | {size} | {parameters:,} | {multiply_adds(model):,} |" in (zoo.__doc__ or "")


def test_operators(network: tuple[str, onnx.ModelProto]) -> None:
    name, model = network
    types = [node.op_type for node in model.graph.node]
    assert {op_type: types.count(op_type) for op_type in OPERATORS[name]} == OPERATORS[name]


def test_outputs_are_finite_and_depend_on_the_frame(network: tuple[str, onnx.ModelProto]) -> None:
    name, model = network
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = [session.run(None, {"data": frame})[0][0] for frame in frames(PUBLISHED[name][0], 3)]
    for prob in outputs:
        assert np.isfinite(prob).all()
        assert prob.sum() == pytest.approx(1.0, abs=1e-4)
        assert prob.max() < 0.1
        assert np.log(prob).std() > 0.005
    logits = [np.log(prob) - np.log(prob).mean() for prob in outputs]
    for index, one in enumerate(logits):
        for other in logits[index + 1 :]:
            assert np.corrcoef(one, other)[0, 1] < 0.98
            assert np.abs(one - other).max() > 0.01


def test_same_seed_same_model_other_seed_other_weights(network: tuple[str, onnx.ModelProto]) -> None:
    name, model = network
    assert digest(zoo.build(name, seed=0)) == digest(model)
    other = zoo.build(name, seed=1)
    assert list(other.graph.node) == list(model.graph.node)
    same = [a.raw_data == b.raw_data for a, b in zip(other.graph.initializer, model.graph.initializer, strict=True)]
    assert not any(same)


def test_same_seed_same_bytes() -> None:
    assert zoo.build("squeezenet", 5).SerializeToString() == zoo.build("squeezenet", 5).SerializeToString()


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown network 'squeeznet'; did you mean 'squeezenet'") as caught:
        zoo.build("squeeznet")
    assert caught.value.suggestion == "squeezenet"


@pytest.mark.parametrize("name", ["", "SqueezeNet", "vgg19"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(UnknownNameError, match="known: alexnet, googlenet, mobilenet, resnet50, squeezenet"):
        zoo.build(name)


def test_negative_seed_is_refused() -> None:
    with pytest.raises(UsageError, match="seed -1"):
        zoo.build("squeezenet", seed=-1)
