"""Batched networks give what single frames give; what would mix frames is refused, or found out by running."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from corepipe import engine
from corepipe.errors import BatchError, ModelError, UsageError
from corepipe.network import batch
from corepipe.network._batch_step import Refusal, same_place
from corepipe.network.batch import batched
from corepipe.network.batch_check import BatchCheck, check_batch, runs_on
from corepipe.network.check import Limits
from corepipe.network.load import load_network, open_network
from corepipe.network.model import Network

LIGHT = [
    "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19",
    "zfnet512",
]  # fmt: skip
FLOATS = TensorProto.FLOAT

node = helper.make_node


@pytest.fixture(scope="module")
def run():
    return runs_on(engine.get("onnxruntime"))


def bytes_of(network: Network) -> bytes:
    return network.model.SerializeToString(deterministic=True)


def check_structure(network: Network, many: Network, batch: int) -> None:
    """Everything but the first dim of what crosses is the same."""
    assert many.name == network.name
    assert many.sha256 != network.sha256
    assert [layer.name for layer in many.layers] == [layer.name for layer in network.layers]
    assert [layer.nodes for layer in many.layers] == [layer.nodes for layer in network.layers]
    assert [layer.outputs for layer in many.layers] == [layer.outputs for layer in network.layers]
    assert [layer.descriptor.op_types for layer in many.layers] == [la.descriptor.op_types for la in network.layers]
    nodes, olds = many.model.graph.node, network.model.graph.node
    assert [(n.name, n.op_type, list(n.output)) for n in nodes] == [(n.name, n.op_type, list(n.output)) for n in olds]
    ends = [(many.inputs, network.inputs), (many.outputs, network.outputs)]
    cuts = [(new.tensors, old.tensors) for new, old in zip(many.cuts, network.cuts, strict=True)]
    for news, olds in ends + cuts:
        for new, old in zip(news, olds, strict=True):
            assert (new.name, new.dtype) == (old.name, old.dtype)
            assert new.shape == (old.shape[0] * batch, *old.shape[1:])
    if many.weight_bytes < 2**25:
        onnx.checker.check_model(many.segment(0, len(many.layers)).model, full_check=True)


def frames_of(network: Network, batch: int, divider) -> list[dict[str, np.ndarray]]:
    return [divider.frame_for(network, seed=seed) for seed in range(batch)]


def join(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def check_equal(network: Network, batch: int, divider, run) -> BatchCheck:
    """The batched network, and its parts at every legal cut, give the single frames' outputs side by side."""
    before = bytes_of(network)
    many = batched(network, batch)
    check_structure(network, many, batch)
    frames = frames_of(network, batch, divider)
    want = join([divider.run(network.model, frame) for frame in frames])
    together = join(frames)
    divider.assert_same(want, divider.run(many.model, together))
    divider.assert_same(want, divider.run_divided(many, many.legal_cuts(), together))
    assert bytes_of(network) == before
    return check_batch(network, many, run)


class Random:
    """A random convolutional network, written node by node; `lead` is the first dim of its input."""

    def __init__(self, draw, lead: int) -> None:
        self.draw = draw
        self.lead = lead
        self.random = np.random.default_rng(draw(st.integers(0, 999)))
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.open = {"x": (lead, 4, 8, 8)}

    def add(self, kind: str, inputs: Sequence[str], shape: Sequence[int], **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(node(kind, list(inputs), [name], **attributes))
        self.open[name] = tuple(shape)
        return name

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def weights(self, *shape: int) -> str:
        return self.constant(self.random.standard_normal(shape) / np.sqrt(np.prod(shape[1:])))

    def grow(self) -> None:
        """Add one operator, or a few that belong together, to one of the tensors."""
        name = self.draw(st.sampled_from(sorted(n for n, shape in self.open.items() if len(shape) == 4)))
        n, c, h, w = shape = self.open[name]
        kind = self.draw(st.sampled_from([
            "conv", "depthwise", "norm", "relu", "pool", "average", "concat", "add", "shuffle", "shuffle -1", "pad",
            "softmax", "resize", "channels", "gate", "sequence",
        ]))  # fmt: skip
        if kind == "conv":
            size = self.draw(st.sampled_from([1, 3]))
            filters = self.draw(st.sampled_from([4, 8]))
            self.add("Conv", [name, self.weights(filters, c, size, size)], (n, filters, h, w), pads=[size // 2] * 4)
        elif kind == "depthwise":
            self.add("Conv", [name, self.weights(c, 1, 3, 3)], shape, pads=[1] * 4, group=c)
        elif kind == "norm":
            values = [self.constant(self.random.uniform(0.5, 1.5, c)) for _ in range(4)]
            self.add("BatchNormalization", [name, *values], shape)
        elif kind == "relu":
            self.add("Relu", [name], shape)
        elif kind in ("pool", "average") and h > 2:
            op = "MaxPool" if kind == "pool" else "AveragePool"
            self.add(op, [name], (n, c, h // 2, w // 2), kernel_shape=[2, 2], strides=[2, 2])
        elif kind in ("concat", "add"):
            twins = sorted(k for k, v in self.open.items() if len(v) == 4 and v[2:] == (h, w))
            other = self.draw(st.sampled_from(twins))
            if kind == "concat" and c + self.open[other][1] <= 16:
                self.add("Concat", [name, other], (n, c + self.open[other][1], h, w), axis=1)
            elif kind == "add" and self.open[other] == shape:
                self.add("Add", [name, other], shape)
        elif kind.startswith("shuffle"):
            apart = [n, 2, c // 2, h, w] if kind == "shuffle" else [n, 2, -1, h, w]
            apart = self.add("Reshape", [name, self.constant(apart, np.int64)], (n, 2, c // 2, h, w))
            moved = self.add("Transpose", [apart], (n, c // 2, 2, h, w), perm=[0, 2, 1, 3, 4])
            self.add("Reshape", [moved, self.constant([n, c, h, w], np.int64)], shape)
        elif kind == "pad":
            padded = self.add("Pad", [name, self.constant([0, 0, 1, 1, 0, 0, 1, 1], np.int64)], (n, c, h + 2, w + 2))
            self.add("Conv", [padded, self.weights(c, c, 3, 3)], shape)
        elif kind == "softmax":
            self.add("Softmax", [name], shape, axis=self.draw(st.sampled_from([1, 2, -1])))
        elif kind == "resize" and h <= 4:
            sizes = self.constant([n, c, 2 * h, 2 * w], np.int64)
            self.add("Resize", [name, "", "", sizes], (n, c, 2 * h, 2 * w), mode="nearest")
        elif kind == "channels" and c >= 4:
            half = [self.constant(values, np.int64) for values in ([0, 0], [n, c // 2], [0, 1])]
            self.add("Slice", [name, *half], (n, c // 2, h, w))
        elif kind == "gate":
            pooled = self.add("GlobalAveragePool", [name], (n, c, 1, 1))
            self.add("Mul", [name, self.add("Sigmoid", [pooled], (n, c, 1, 1))], shape)
        elif kind == "sequence":
            flat = self.add("Reshape", [name, self.constant([n, c, h * w], np.int64)], (n, c, h * w))
            turned = self.add("Transpose", [flat], (n, h * w, c), perm=[0, 2, 1])
            scores = self.add("Softmax", [self.add("MatMul", [turned, flat], (n, h * w, h * w))], (n, h * w, h * w))
            mixed = self.add("MatMul", [flat, scores], (n, c, h * w))
            self.add("Reshape", [mixed, self.constant([0, c, h, w], np.int64)], shape)

    def finish(self) -> onnx.ModelProto:
        """Flatten the last image in one of the ways that exporters write, with a classifier behind it."""
        name = [k for k, v in self.open.items() if len(v) == 4][-1]
        n, c, h, w = self.open[name]
        size = c * h * w
        how = self.draw(st.sampled_from(["flatten", "numbers", "rest", "any", "torch", "squeeze"]))
        if how == "squeeze":
            pooled = self.add("GlobalAveragePool", [name], (n, c, 1, 1))
            size = c
            flat = self.add("Squeeze", [pooled, self.constant([2, 3], np.int64)], (n, c))
        elif how == "flatten":
            flat = self.add("Flatten", [name], (n, size), axis=1)
        elif how == "torch":
            shape = self.add("Shape", [name], (4,))
            first = self.add("Gather", [shape, self.constant([0], np.int64)], (1,))
            target = self.add("Concat", [first, self.constant([-1], np.int64)], (2,), axis=0)
            flat = self.add("Reshape", [name, target], (n, size))
        else:
            target = {"numbers": [n, size], "rest": [n, -1], "any": [-1, size]}[how]
            flat = self.add("Reshape", [name, self.constant(target, np.int64)], (n, size))
        logits = self.add("Gemm", [flat, self.weights(10, size), self.weights(10)], (n, 10), transB=1)
        if self.draw(st.booleans()):
            logits = self.add("Softmax", [logits], (n, 10))
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("x", FLOATS, self.open["x"])],
            [helper.make_tensor_value_info(logits, FLOATS, None)],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@st.composite
def random_models(draw) -> onnx.ModelProto:
    made = Random(draw, draw(st.sampled_from([1, 1, 1, 2])))
    for _ in range(draw(st.integers(2, 10))):
        made.grow()
    return made.finish()


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(random_models(), st.integers(2, 4))
def test_random_graphs(divider, run, model, batch):
    check_equal(load_network(model), batch, divider, run)


@pytest.mark.parametrize("name", ["squeezenet", "alexnet"])
def test_the_zoo(name, divider, run):
    network = open_network(name)
    many = batched(network, 3)
    check_structure(network, many, 3)
    assert many.flops == 3 * network.flops
    check = check_batch(network, many, run)
    assert not check.blind
    assert check.tensors[-1] == "prob"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["googlenet", "mobilenet", "resnet50", "squeezenet"])
def test_the_zoo_in_parts(name, divider, run):
    assert not check_equal(open_network(name), 2, divider, run).blind


@pytest.mark.parametrize("name", ["shufflenet", "squeezenet"])
def test_a_graph_of_the_onnx_package(name, light_model, run):
    network = load_network(light_model(name))
    many = batched(network, 2)
    check_structure(network, many, 2)
    assert not check_batch(network, many, run).void


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", LIGHT)
def test_the_graphs_of_the_onnx_package(name, light_model, run):
    network = load_network(light_model(name))
    many = batched(network, 2)
    check_structure(network, many, 2)
    assert not check_batch(network, many, run).void


def test_segments_can_be_checked_alone(run):
    network = open_network("squeezenet")
    check = check_batch(network, batched(network, 2), run, start=3, stop=9)
    made = {t.name for cut in network.cuts[4:10] for t in cut.tensors} - {t.name for t in network.cuts[3].tensors}
    assert set(check.tensors) == made
    assert not check.blind


def test_weights_are_not_copied():
    network = open_network("squeezenet")
    many = batched(network, 4)
    weights = {t.name: t for t in network.model.graph.initializer}
    assert all(tensor is weights[name] for name, tensor in many.shared.items())
    assert sum(len(t.raw_data) for t in many.body.graph.initializer) < 1000
    assert {t.name for t in many.model.graph.initializer} == set(weights)
    assert many.weight_bytes == network.weight_bytes


def test_a_batch_of_one_is_the_network(chain):
    assert batched(chain, 1) is chain


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_of_none(chain, batch):
    with pytest.raises(UsageError, match="at least 1"):
        batched(chain, batch)


def test_a_batch_of_a_batch(chain, divider, run):
    twice = batched(batched(chain, 2), 2)
    check_structure(chain, twice, 4)
    assert not check_batch(chain, twice, run).blind
    assert twice.inputs == batched(chain, 4).inputs


def test_the_same_every_time(chain):
    assert batched(chain, 2).sha256 == batched(chain, 2).sha256
    assert len({batched(chain, batch).sha256 for batch in (1, 2, 3)}) == 3


def test_too_large(chain):
    with pytest.raises(BatchError, match=r"cannot take 1000 frames at once: node 'conv0' .*take fewer frames"):
        batched(chain, 1000, Limits(tensor_bytes=2**20))
    with pytest.raises(BatchError, match="alive before layer 0, at most"):
        batched(chain, 100, Limits(live_bytes=2**19))


def test_it_is_a_model_error(chain):
    assert issubclass(BatchError, ModelError)


CONV = numpy_helper.to_array(
    numpy_helper.from_array(np.random.default_rng(0).standard_normal((4, 4, 1, 1)).astype(np.float32))
)
RANDOM = np.random.default_rng(1)


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


ALLOWED: dict[str, tuple[list[onnx.NodeProto], dict[str, list[int]], dict[str, np.ndarray]]] = {
    "class token": (
        [node("Concat", ["token", "x"], ["y"], axis=1)], {"x": [1, 5, 6]}, {"token": floats(1, 1, 6)},
    ),
    "position embedding": ([node("Add", ["x", "p"], ["y"])], {"x": [1, 5, 6]}, {"p": floats(1, 5, 6)}),
    "rows added to rows": ([node("Add", ["x", "p"], ["y"])], {"x": [2, 5]}, {"p": floats(2, 5)}),
    "expand": ([node("Expand", ["x", "s"], ["y"])], {"x": [2, 1, 6]}, {"s": ints(2, 4, 6)}),
    "expand to a higher rank": ([node("Expand", ["x", "s"], ["e"]), node("Squeeze", ["e", "a"], ["y"])],
                                {"x": [1, 6]}, {"s": ints(1, 1, 6), "a": ints(0)}),
    "last row of one": ([node("Slice", ["x", "b", "e", "a"], ["y"])], {"x": [1, 6]},
                        {"b": ints(-1, 1), "e": ints(1, 5), "a": ints(0, 1)}),
    "slice by names of axes": ([node("Slice", ["x", "b", "e", "a"], ["y"])], {"x": [2, 6]},
                               {"b": ints(1), "e": ints(5), "a": ints(-1)}),
    "resize to sizes": ([node("Resize", ["x", "", "", "s"], ["y"], mode="linear")], {"x": [1, 3, 4, 4]},
                        {"s": ints(1, 3, 7, 8)}),
    "resize by scales": ([node("Resize", ["x", "", "s"], ["y"], mode="nearest")], {"x": [2, 3, 4, 4]},
                         {"s": np.array([1, 1, 2, 1.5], np.float32)}),
    "gather a channel": ([node("Gather", ["x", "i"], ["y"], axis=1)], {"x": [1, 4, 5]}, {"i": np.array(2)}),
    "gather rows": ([node("Gather", ["x", "i"], ["y"], axis=2)], {"x": [1, 4, 5]}, {"i": ints(4, 0, 0)}),
    "gather rows of frames": ([node("Gather", ["x", "i"], ["y"])], {"x": [3, 4]}, {"i": ints(-1, 0)[:, None]}),
    "strided view": (
        [node("Reshape", ["x", "s"], ["r"]), node("Gather", ["r", "i"], ["y"])], {"x": [1, 3, 4]},
        {"s": ints(-1), "i": np.arange(12).reshape(1, 3, 4).transpose(0, 2, 1)},
    ),
    "gather elements": ([node("GatherElements", ["x", "i"], ["y"], axis=1)], {"x": [1, 4]}, {"i": ints(3, 1)[None]}),
    "embedding": ([node("Cast", ["x"], ["n"], to=TensorProto.INT64), node("Gather", ["w", "n"], ["y"])],
                  {"x": [1, 7]}, {"w": floats(9, 4)}),
    "tile": ([node("Tile", ["x", "r"], ["y"])], {"x": [1, 2, 3]}, {"r": ints(1, 2, 1)}),
    "pad": ([node("Pad", ["x", "p"], ["y"], mode="reflect")], {"x": [1, 2, 4]}, {"p": ints(0, 0, 1, 0, 0, 2)}),
    "reduce and keep": ([node("ReduceMean", ["x"], ["y"], axes=[-1, 2])], {"x": [1, 2, 3, 4]}, {}),
    "reduce and drop": ([node("ReduceSum", ["x", "a"], ["y"], keepdims=0)], {"x": [2, 2, 3]}, {"a": ints(1)}),
    "arg max": ([node("ArgMax", ["x"], ["i"], axis=1), node("Cast", ["i"], ["y"], to=FLOATS)], {"x": [1, 9]}, {}),
    "top k": ([node("TopK", ["x", "k"], ["y", "i"])], {"x": [1, 9]}, {"k": ints(3)}),
    "cumulative sum": ([node("CumSum", ["x", "a"], ["y"])], {"x": [1, 9]}, {"a": np.array(1)}),
    "triangle": ([node("Trilu", ["x"], ["y"])], {"x": [1, 4, 4]}, {}),
    "layer norm": ([node("LayerNormalization", ["x", "s", "b"], ["y"])], {"x": [1, 5, 6]},
                   {"s": floats(6), "b": floats(6)}),
    "instance norm": ([node("InstanceNormalization", ["x", "s", "b"], ["y"])], {"x": [1, 3, 4, 4]},
                      {"s": floats(3), "b": floats(3)}),
    "mean and variance of spatial dims": ([node("MeanVarianceNormalization", ["x"], ["y"], axes=[2, 3])],
                                          {"x": [1, 3, 4, 4]}, {}),
    "lp norm": ([node("LpNormalization", ["x"], ["y"], axis=1)], {"x": [1, 9]}, {}),
    "lrn": ([node("LRN", ["x"], ["y"], size=3)], {"x": [1, 5, 3, 3]}, {}),
    "depth to space": ([node("DepthToSpace", ["x"], ["y"], blocksize=2)], {"x": [1, 8, 2, 2]}, {}),
    "transposed convolution": ([node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])], {"x": [1, 4, 3, 3]},
                               {"w": floats(4, 2, 3, 3)}),
    "grid sample": ([node("GridSample", ["x", "g"], ["y"])], {"x": [1, 2, 4, 4]},
                    {"g": RANDOM.uniform(-1, 1, (1, 3, 3, 2)).astype(np.float32)}),
    "matrix of constants on the left": ([node("MatMul", ["w", "x"], ["y"])], {"x": [1, 5, 6]}, {"w": floats(3, 5)}),
    "vector on the right": ([node("MatMul", ["x", "w"], ["y"])], {"x": [2, 5, 6]}, {"w": floats(6)}),
    "matrices for each row": ([node("MatMul", ["x", "w"], ["y"])], {"x": [2, 5, 6]}, {"w": floats(2, 6, 3)}),
    "product of frames": ([node("MatMul", ["x", "z"], ["y"])], {"x": [1, 5, 6], "z": [1, 6, 3]}, {}),
    "rows added to a gemm": ([node("Gemm", ["x", "w", "c"], ["y"])], {"x": [2, 5]},
                             {"w": floats(5, 3), "c": floats(2, 3)}),
    "one row added to a gemm": ([node("Gemm", ["x", "w", "c"], ["y"])], {"x": [2, 5]},
                                {"w": floats(5, 3), "c": floats(1, 3)}),
    "einsum": ([node("Einsum", ["x", "w"], ["y"], equation="bij,jk->bik")], {"x": [1, 5, 6]}, {"w": floats(6, 3)}),
    "einsum with rows": ([node("Einsum", ["x", "w"], ["y"], equation="bij,bj->bi")], {"x": [2, 5, 6]},
                         {"w": floats(2, 6)}),
    "axes swapped and back": (
        [node("Unsqueeze", ["x", "a"], ["u"]), node("Reshape", ["u", "s"], ["y"])], {"x": [1, 3, 4]},
        {"a": ints(0), "s": ints(1, 12)},
    ),
    "split": ([node("Split", ["x"], ["p", "q"], axis=1), node("Sub", ["q", "p"], ["y"])], {"x": [1, 6]}, {}),
    "quantised": (
        [node("QuantizeLinear", ["x", "s", "o"], ["q"]), node("DequantizeLinear", ["q", "s", "o"], ["y"])],
        {"x": [1, 4, 3, 3]}, {"s": np.array([0.1] * 4, np.float32), "o": np.zeros(4, np.uint8)},
    ),
    "many rows for each frame": (
        [node("Reshape", ["x", "s"], ["r"]), node("MatMul", ["r", "w"], ["m"]), node("Reshape", ["m", "t"], ["y"])],
        {"x": [1, 5, 6]}, {"s": ints(5, 6), "w": floats(6, 3), "t": ints(1, 5, 3)},
    ),
    "constant of a shape": (
        [node("ConstantOfShape", ["s"], ["c"], value=numpy_helper.from_array(np.ones(1, np.float32))),
         node("Concat", ["x", "c"], ["y"], axis=1)],
        {"x": [1, 4]}, {"s": ints(1, 300_000)},
    ),
    "two inputs": ([node("Mul", ["x", "z"], ["y"])], {"x": [1, 3, 4, 4], "z": [1, 3, 1, 1]}, {}),
    "same for all, broadcast": ([node("Where", ["c", "x", "z"], ["y"])], {"x": [1, 4]},
                                {"c": np.array([True, False, True, False]), "z": np.float32(7)}),
}  # fmt: skip


@pytest.mark.parametrize("name", ALLOWED)
def test_allowed(name, make_model, divider, run):
    nodes, inputs, constants = ALLOWED[name]
    network = load_network(make_model(nodes, inputs, ["y"], constants))
    assert not check_equal(network, 3, divider, run).blind


RECURRENT = {
    "w": floats(1, 16, 3), "r": floats(1, 16, 4), "h": floats(1, 1, 4), "c": floats(1, 1, 4), "a": ints(0),
}  # fmt: skip


def test_recurrent(make_model, divider, run):
    nodes = [
        node("Unsqueeze", ["x", "a"], ["t"]),
        node("LSTM", ["t", "w", "r", "", "", "h", "c"], ["", "l", ""], hidden_size=4),
        node("Squeeze", ["l", "a"], ["y"]),
    ]
    network = load_network(make_model(nodes, {"x": [1, 3]}, ["y"], RECURRENT))
    assert not check_equal(network, 3, divider, run).blind


def test_recurrent_with_frames_elsewhere(make_model):
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node("LSTM", ["t", "w", "r", "", "", "h", "c"], ["", "l", ""], hidden_size=4),
        node("Squeeze", ["l", "a"], ["y"]),
    ]
    network = load_network(make_model(nodes, {"x": [1, 50, 3]}, ["y"], RECURRENT))
    with pytest.raises(BatchError, match="'t' crosses the cut before layer 1 with its frames along axis 1"):
        batched(network, 2)
    sequence_first = load_network(make_model(nodes[1:], {"t": [1, 1, 3]}, ["y"], RECURRENT))
    with pytest.raises(BatchError, match="do not lie along its batch axis"):
        batched(sequence_first, 2)


REFUSED: dict[str, tuple[list[onnx.NodeProto], dict[str, list[int]], dict[str, np.ndarray], str]] = {
    "softmax over frames": ([node("Softmax", ["x"], ["y"], axis=0)], {"x": [1, 4]}, {}, "normalises over axis 0"),
    "mean over frames": ([node("ReduceMean", ["x"], ["y"], axes=[0])], {"x": [1, 4]}, {}, "reduces axis 0"),
    "mean over all": ([node("ReduceMean", ["x"], ["y"])], {"x": [1, 4]}, {}, "reduces axis 0"),
    "mean and variance by default": ([node("MeanVarianceNormalization", ["x"], ["y"])], {"x": [1, 3, 4, 4]}, {},
                                     "mean and variance over axis 0"),
    "arg max by default": ([node("ArgMax", ["x"], ["i"]), node("Cast", ["i"], ["y"], to=FLOATS)], {"x": [1, 4]}, {},
                           "reduces axis 0"),
    "training": ([node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y", "n", "w"], training_mode=1)],
                 {"x": [1, 3, 4, 4]}, dict.fromkeys("sbmv", np.ones(3, np.float32)), "training mode"),
    "dropout in training": ([node("Dropout", ["x", "r", "t"], ["y"])], {"x": [1, 4]},
                            {"r": np.float32(0.5), "t": np.array(True)}, "training mode"),
    "transpose at the end": ([node("Transpose", ["x"], ["y"], perm=[1, 0])], {"x": [1, 4]}, {},
                             "'y' is an output with its frames along axis 1"),
    "transpose across a cut": ([node("Transpose", ["x"], ["t"], perm=[1, 0]), node("Relu", ["t"], ["r"]),
                                node("Transpose", ["r"], ["y"])], {"x": [1, 99]}, {}, "crosses the cut before layer"),
    "frames merged with channels": ([node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
                                     node("Reshape", ["t", "s"], ["y"])], {"x": [2, 3, 4]}, {"s": ints(2, 12)},
                                    "takes apart what belongs to one frame"),
    "rows merged over frames": ([node("Gemm", ["x", "w"], ["y"], transA=1)], {"x": [5, 6]}, {"w": floats(5, 3)},
                                "sums over the axis"),
    "a vector": ([node("Softmax", ["x"], ["y"])], {"x": [4]}, {}, "normalises over axis 0"),
    "a scalar": ([node("Relu", ["x"], ["y"])], {"x": []}, {}, "no first dim"),
    "squeezed away": ([node("GlobalAveragePool", ["x"], ["p"]), node("Squeeze", ["p"], ["y"])], {"x": [1, 3, 4, 4]},
                      {}, "drops axis 0"),
    "picked from frames": ([node("Gather", ["x", "i"], ["y"], axis=0)], {"x": [1, 4]}, {"i": np.array(0)},
                           "picks from axis 0"),
    "part of the rows": ([node("Slice", ["x", "b", "e", "a"], ["y"])], {"x": [2, 4]},
                         {"b": ints(0), "e": ints(1), "a": ints(0)}, "takes a part of axis 0"),
    "rows backwards": ([node("Slice", ["x", "b", "e", "a", "s"], ["y"])], {"x": [2, 4]},
                       {"b": ints(-1), "e": ints(-9), "a": ints(0), "s": ints(-1)}, "takes a part of axis 0"),
    "joined along frames": ([node("Concat", ["x", "x"], ["y"], axis=0)], {"x": [1, 4]}, {}, "joins along axis 0"),
    "split along rows": ([node("Split", ["x"], ["y", "z"], axis=0)], {"x": [2, 4]}, {}, "splits axis 0"),
    "repeated": ([node("Tile", ["x", "r"], ["y"])], {"x": [1, 4]}, {"r": ints(2, 1)}, "repeats axis 0"),
    "expanded": ([node("Expand", ["x", "s"], ["y"])], {"x": [1, 4]}, {"s": ints(3, 4)}, "repeats axis 0"),
    "padded": ([node("Pad", ["x", "p"], ["y"])], {"x": [1, 4]}, {"p": ints(0, 0, 1, 0)}, "pads axis 0"),
    "resized by less than a row": ([node("Resize", ["x", "", "s"], ["y"])], {"x": [1, 3, 4, 4]},
                                   {"s": np.array([1.4, 1, 2, 2], np.float32)}, "resizes axis 0"),
    "summed up": ([node("CumSum", ["x", "a"], ["y"])], {"x": [1, 4]}, {"a": np.array(0)}, "sums up along axis 0"),
    "sorted": ([node("TopK", ["x", "k"], ["y", "i"], axis=0)], {"x": [3, 4]}, {"k": ints(1)}, "sorts along axis 0"),
    "filter from the frame": ([node("Conv", ["x", "z"], ["y"])], {"x": [1, 4, 3, 3], "z": [1, 4, 1, 1]}, {},
                              "'z' takes the place of a parameter"),
    "frames in a bias": ([node("Add", ["x", "z"], ["y"])], {"x": [1, 3, 4], "z": [1, 4]}, {},
                         "frames lie along axis 0 of one input and 1 of another"),
    "more rows than a frame has": ([node("Add", ["x", "p"], ["y"])], {"x": [1, 4]}, {"p": floats(3, 4)},
                                   "'p' has 3 rows where each frame has 1"),
    "how many depends on the data": ([node("NonZero", ["x"], ["n"]), node("Cast", ["n"], ["y"], to=FLOATS)],
                                     {"x": [1, 4]}, {}, "depends on the data; cut the model before it"),
    "non-maximum suppression": (
        [node("NonMaxSuppression", ["x", "z"], ["n"]), node("Cast", ["n"], ["y"], to=FLOATS)],
        {"x": [1, 6, 4], "z": [1, 1, 6]}, {}, "numbers its results over all frames"),
    "random numbers": ([node("RandomNormalLike", ["x"], ["r"]), node("Add", ["x", "r"], ["y"])], {"x": [1, 4]}, {},
                       "draws random numbers"),
    "does not depend on the frame": ([node("Relu", ["x"], ["z"]), node("Identity", ["c"], ["y"])], {"x": [1, 4]},
                                     {"c": floats(1, 4)}, "does not depend on the frame"),
    "scales of the frame": ([node("DynamicQuantizeLinear", ["x"], ["q", "s", "o"]),
                             node("DequantizeLinear", ["q", "s", "o"], ["y"])], {"x": [1, 4]}, {},
                            "takes its scale from all frames together"),
    "a sequence": ([node("SplitToSequence", ["x"], ["s"], axis=1), node("ConcatFromSequence", ["s"], ["y"], axis=1)],
                   {"x": [1, 4]}, {}, "not known whether this operator keeps frames apart"),
    "indices of a pool": ([node("MaxPool", ["x"], ["p", "i"], kernel_shape=[2, 2]),
                           node("Cast", ["i"], ["y"], to=FLOATS)], {"x": [1, 3, 4, 4]}, {}, "count over all frames"),
    "einsum over frames": ([node("Einsum", ["x", "w"], ["y"], equation="bj,bk->jk")], {"x": [2, 5]},
                           {"w": floats(2, 6)}, "sums over the axis of the frames"),
    "constant joined twice": (
        [node("ConstantOfShape", ["s"], ["c"], value=numpy_helper.from_array(np.ones(1, np.float32))),
         node("Concat", ["c", "x", "c"], ["y"], axis=1)],
        {"x": [1, 4]}, {"s": ints(1, 300_000)}, "'c' is the same for all frames and would have to be repeated",
    ),
    "constant read twice": (
        [node("ConstantOfShape", ["s"], ["c"], value=numpy_helper.from_array(np.ones(1, np.float32))),
         node("Concat", ["x", "c"], ["z"], axis=1), node("Add", ["z", "z"], ["d"]), node("Relu", ["c"], ["e"]),
         node("Concat", ["d", "e"], ["y"], axis=1)],
        {"x": [1, 4]}, {"s": ints(1, 300_000)}, "would have to be repeated for each|does not depend on the frame"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, make_model):
    nodes, inputs, constants, message = REFUSED[name]
    network = load_network(make_model(nodes, inputs, ["y"], constants))
    before = bytes_of(network)
    with pytest.raises(BatchError, match=message) as caught:
        batched(network, 2)
    assert "cannot take 2 frames at once" in str(caught.value)
    assert ";" in str(caught.value)
    assert bytes_of(network) == before


def test_control_flow_is_refused(make_model):
    inner = [helper.make_tensor_value_info(name, FLOATS, [1, 4]) for name in "tu"]
    then = helper.make_graph([node("Relu", ["x"], ["t"])], "then", [], inner[:1])
    other = helper.make_graph([node("Neg", ["x"], ["u"])], "else", [], inner[1:])
    nodes = [
        node("ReduceSum", ["x"], ["s"], keepdims=0),
        node("Cast", ["s"], ["c"], to=TensorProto.BOOL),
        node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    model = make_model(nodes, {"x": [1, 4]}, ["y"])
    with pytest.raises(BatchError, match="ReduceSum"):
        batched(load_network(model), 2)
    model = make_model(nodes[2:], {"x": [1, 4]}, ["y"])
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, [1]))
    with pytest.raises(BatchError, match=r"\(If\): which branch"):
        batched(load_network(model), 2)


@pytest.mark.parametrize(
    ("old", "axis", "new", "place"),
    [
        ((1, 256, 6, 6), 0, (1, 9216), 0),
        ((1, 256, 6, 6), 0, (9216,), 0),
        ((2, 6), 0, (4, 3), 0),
        ((49, 1, 64), 1, (49, 8, 8), 1),
        ((49, 1, 64), 1, (7, 7, 64), 2),
        ((3, 1, 4), 1, (3, 1, 1, 4), 1),
    ],
)
def test_where_frames_lie_after_a_reshape(old, axis, new, place):
    assert same_place(old, axis, new) == place
    frames = [np.random.default_rng(seed).standard_normal(old) for seed in range(3)]
    wanted = [*new[:place], -1, *new[place + 1 :]]
    reshaped = np.concatenate(frames, axis).reshape(wanted)
    np.testing.assert_array_equal(reshaped, np.concatenate([f.reshape(new) for f in frames], place))


def test_a_reshape_across_frames_has_no_place():
    with pytest.raises(Refusal, match="takes apart"):
        same_place((3, 1, 4), 1, (2, 6))


MIXING: dict[str, list[onnx.NodeProto]] = {
    "softmax": [node("Softmax", ["c"], ["y"], axis=0)],
    "mean": [node("MaxPool", ["c"], ["p"], kernel_shape=[1, 1]), node("Softmax", ["p"], ["m"], axis=0),
             node("Add", ["m", "p"], ["y"])],
    "batch statistics": [node("MeanVarianceNormalization", ["c"], ["y"], axes=[0, 2, 3])],
    "sum": [node("CumSum", ["c", "a"], ["y"])],
    "rows": [node("Transpose", ["c"], ["t"], perm=[2, 3, 1, 0]), node("Reshape", ["t", "s"], ["y"])],
    "scale": [node("DynamicQuantizeLinear", ["c"], ["q", "k", "o"]), node("DequantizeLinear", ["q", "k", "o"], ["y"])],
}  # fmt: skip


@pytest.mark.parametrize("name", MIXING)
@pytest.mark.parametrize("many", [2, 4])
def test_running_finds_mixed_frames(name, many, make_model, run, monkeypatch):
    constants = {"w": CONV, "a": np.array(0), "s": ints(-1, 4, 5, 5)}
    model = make_model([node("Conv", ["x", "w"], ["c"]), *MIXING[name]], {"x": [1, 4, 5, 5]}, ["y"], constants)
    network = load_network(model)
    with pytest.raises(BatchError):
        batched(network, many)
    monkeypatch.setattr(batch, "rule_for", lambda _: lambda step: [0, None, None])
    monkeypatch.setattr(batch._Batcher, "_verify", lambda self, node: None)
    wrong = batched(network, many)
    tolerance = 1e-3 if name == "scale" else None
    with pytest.raises(BatchError, match=r"differs from single frames by .* mixes frames"):
        check_batch(network, wrong, run, tolerance=tolerance)


def test_running_finds_frames_among_channels(make_model, run):
    nodes = [
        node("Reshape", ["x", "s"], ["r"]),
        node("Softmax", ["r"], ["p"], axis=1),
        node("Reshape", ["p", "t"], ["y"]),
    ]
    network = load_network(
        make_model(nodes, {"x": [1, 4, 5, 5]}, ["y"], {"s": ints(1, 2, 10, 5), "t": ints(-1, 4, 5, 5)})
    )
    many = batched(network, 3)
    assert not check_batch(network, many, run).blind
    (target,) = [t for t in many.body.graph.initializer if t.dims == [4]]
    target.CopyFrom(numpy_helper.from_array(ints(1, 6, 10, 5), target.name))
    for value in many.body.graph.value_info:
        value.type.tensor_type.ClearField("shape")
    with pytest.raises(BatchError, match="mixes frames"):
        check_batch(network, many, run)


def test_running_finds_swapped_frames(chain, run):
    many = batched(chain, 3)

    def swaps(model, names, frames):
        results = run(model, names, frames)
        return [{n: v[[1, 0, 2]] if len(v) == 3 else v for n, v in result.items()} for result in results]

    with pytest.raises(BatchError, match="'t1' differs"):
        check_batch(chain, many, swaps)


def test_constant_outputs_make_a_check_void(make_model, run):
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Relu", ["c"], ["y"])]
    dead = make_model(nodes, {"x": [1, 4, 3, 3]}, ["y"], {"w": np.zeros((2, 4, 1, 1), np.float32)})
    network = load_network(dead)
    check = check_batch(network, batched(network, 2), run)
    assert check.void
    assert check.blind == check.tensors == ("y",)


def test_what_crosses_cuts_is_compared_where_outputs_tell_nothing(make_model, run):
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("MaxPool", ["c"], ["p"], kernel_shape=[1, 1]),
        node("Softmax", ["p"], ["s"], axis=1),
        node("ReduceSum", ["s", "a"], ["y"]),
    ]
    network = load_network(make_model(nodes, {"x": [1, 4, 3, 3]}, ["y"], {"w": CONV, "a": ints(1)}))
    check = check_batch(network, batched(network, 2), run)
    assert check.blind == ("y",)
    assert not check.void


def test_equal_frames_make_a_check_void(chain, run, divider):
    frames = [divider.frame_for(chain)] * 2
    assert check_batch(chain, batched(chain, 2), run, frames=frames).void


def test_checks_of_what_does_not_belong_together(chain, run, divider):
    many = batched(chain, 2)
    with pytest.raises(UsageError, match="3 frames for a batch of 2"):
        check_batch(chain, many, run, frames=frames_of(chain, 3, divider))
    with pytest.raises(UsageError, match="make it with `batched`"):
        check_batch(many, chain, run)


def test_bytes_and_integers(run):
    nodes = [node("Cast", ["x"], ["f"], to=FLOATS), node("GlobalAveragePool", ["f"], ["y"])]
    for kind in (TensorProto.UINT8, TensorProto.INT32, TensorProto.BOOL):
        inputs = [helper.make_tensor_value_info("x", kind, [1, 2, 3, 3])]
        graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", FLOATS, None)])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        network = load_network(model)
        assert not check_batch(network, batched(network, 2), run).blind


def test_every_division_of_a_batched_network(chain, divider):
    many = batched(chain, 3)
    inner = range(1, len(many.layers))
    assert divider.check(many, *itertools.combinations(inner, 2), *([cut] for cut in inner))
