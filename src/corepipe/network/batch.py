"""The same network for several frames at once: every cut's tensors hold the frames one behind the other.

The graph is walked once, with a rule for each operator (`_batch_rules`) that says along which axis frames lie in what
it makes. A tensor's frames lie along axis a where the batched tensor equals what single frames give, joined along a:
so that a walk to the end proves that no frame reaches into another. What the rules say is held against shape
inference, node by node.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from corepipe.errors import BatchError, ModelError, UsageError
from corepipe.network._batch_rules import RANDOM, rule_for
from corepipe.network._batch_step import Axis, Refusal, Step, scaled
from corepipe.network.check import DEFAULT_LIMITS, Limits, title
from corepipe.network.describe import describe
from corepipe.network.graph import (
    INTEGER_TYPES,
    UNKNOWN,
    TensorType,
    human_bytes,
    is_standard,
    opset_of,
    reads,
    set_type,
    storage_bytes,
    subgraphs,
    type_of,
    types_of,
)
from corepipe.network.infer import Inference, tensor_type
from corepipe.network.model import Cut, Layer, Network, TensorInfo


def batched(network: Network, batch: int, limits: Limits = DEFAULT_LIMITS) -> Network:
    """A network for `batch` frames at once, with the layers, names, nodes and cuts of `network`.

    Every input, output and tensor in a cut has its first dim multiplied by `batch`: frame f has the rows from f * n to
    (f + 1) * n, where n is the first dim for one frame. Constants that hold the number of frames (target shapes, sizes,
    ends of slices) are replaced; all others are shared with `network`. Descriptors are those of the larger shapes.

    Args:
        network: left as it is.
        batch: number of frames, at least 1; for 1 the result is `network` itself.
        limits: what tensors may ask for.

    Raises:
        UsageError: `batch` is not positive.
        BatchError: the network does not keep frames apart, or not along the first dim of all that crosses cuts; the
            message names the node or tensor.

    Example:
        >>> four = batched(open_network("squeezenet"), 4)  # doctest: +SKIP
        >>> four.inputs[0].shape                           # doctest: +SKIP
        (4, 3, 227, 227)
    """
    if batch < 1:
        raise UsageError(f"{network.name}: a batch of {batch} frames; give at least 1")
    return network if batch == 1 else _Batcher(network, batch, limits).run()


_MISFIT = "its inputs and attributes do not fit each other; export the model again"


class _Batcher:
    """One network being batched; it is what `Constants` asks for."""

    def __init__(self, network: Network, batch: int, limits: Limits) -> None:
        self.network = network
        self.batch = batch
        self.limits = limits
        source = network.body
        self.body = ModelProto(ir_version=source.ir_version, producer_name=source.producer_name)
        self.body.opset_import.extend(source.opset_import)
        self.body.functions.extend(source.functions)
        self.body.graph.name = source.graph.name
        self.body.graph.node.extend(source.graph.node)
        self.opset = opset_of(source)
        self.constants = {tensor.name: tensor for tensor in network.constants}
        graph = source.graph
        self.old = types_of(graph)
        for name, tensor in self.constants.items():
            self.old[name] = TensorType(tensor.data_type, tuple(tensor.dims))
        self.axes: dict[str, int] = {}
        self.new: dict[str, TensorType] = dict(self.old)
        self.made: dict[str, TensorProto] = {}
        self.repeated_bytes = 0
        self.repeats: dict[tuple[str, int], str] = {}
        self.maker: dict[str, NodeProto] = {}
        self.readers: dict[str, int] = {}
        for node in graph.node:
            for name in reads(node):
                self.readers[name] = self.readers.get(name, 0) + 1
        self.ends = {value.name for value in graph.output}
        self.wanted = self.readers.keys() | self.ends
        self.taken = self.constants.keys() | {value.name for value in graph.input}
        self.taken.update(output for node in graph.node for output in node.output)
        self.inference = Inference(self.body, network.name, limits)

    def run(self) -> Network:
        """Walk over the nodes once."""
        for tensor in self.network.inputs:
            if not tensor.shape:
                self._refuse(
                    f"the input {tensor.name!r} has no first dim to put frames along; export the model with a batch dim"
                )
            self._place(tensor.name, 0)
        for node in self.body.graph.node:
            self._walk(node)
            self.maker.update((output, node) for output in node.output if output)
        cuts = tuple(Cut(cut.index, tuple(self._crossing(cut, t) for t in cut.tensors)) for cut in self.network.cuts)
        for cut in cuts:
            if cut.nbytes > self.limits.live_bytes:
                self._refuse(
                    f"{human_bytes(cut.nbytes)} would be alive before layer {cut.index}, at most "
                    f"{human_bytes(self.limits.live_bytes)} are allowed; take fewer frames"
                )
        return self._assemble(cuts)

    def _refuse(self, reason: str) -> NoReturn:
        raise BatchError(f"{self.network.name} cannot take {self.batch} frames at once: {reason}")

    def _place(self, name: str, axis: int) -> None:
        """Note where the frames lie in a tensor."""
        old = self.old[name]
        assert old.shape is not None
        self.axes[name] = axis
        self.new[name] = TensorType(old.elem_type, scaled(old.shape, axis, self.batch))

    def _walk(self, node: NodeProto) -> None:
        if _draws(node):
            self._refuse(f"node {title(node)} draws random numbers, which differ with the batch; export it without")
        if not any(name in self.axes for name in reads(node)):
            return
        step = Step(node, self.batch, self.opset, self.old, self.axes, self)
        try:
            places = _places(step)
            found = [places] * len(node.output) if isinstance(places, int) else list(places)
            for output, axis in zip(node.output, found, strict=False):
                if not output or axis is None:
                    continue
                shape = self.old.get(output, UNKNOWN).shape
                if shape is not None and not 0 <= axis < len(shape):
                    raise Refusal(_MISFIT)
                if shape is not None:
                    self._place(output, axis)
                elif output in self.wanted:
                    raise Refusal(f"the shape of {output!r} depends on the data")
            self._verify(node)
        except Refusal as reason:
            hint = "" if ";" in str(reason) else "; change the model there, or give it one frame at a time"
            self._refuse(f"node {title(node)}: {reason}{hint}")

    def _verify(self, node: NodeProto) -> None:
        """Hold the rule's shapes against those that inference finds for the changed node."""
        if not is_standard(node):
            return
        types = {n: tensor_type(self.new[n].elem_type, self.new[n].shape) for n in reads(node) if n in self.new}
        values = {n: self.made[n] if n in self.made else self.constants[n] for n in types if self._is_constant(n)}
        try:
            inferred = self.inference.outputs(node, types, values)
        except ModelError as error:
            raise Refusal(f"{error}; take fewer frames") from None
        for output in [o for o in node.output if o in self.wanted or o in self.axes]:
            found, wanted = type_of(inferred[output]) if output in inferred else UNKNOWN, self.new[output]
            if found.shape != wanted.shape:
                raise Refusal(
                    f"it makes {list(found.shape) if found.shape is not None else 'an unknown shape'} of {output!r} "
                    f"instead of {list(wanted.shape or ())}"
                )

    def _is_constant(self, name: str) -> bool:
        return name in self.made or name in self.constants

    def _values(self, name: str) -> NDArray[np.generic] | None:
        tensor = self.made.get(name) or self.constants.get(name)
        return None if tensor is None else np.asarray(onnx.numpy_helper.to_array(tensor))

    def integers(self, name: str) -> list[int] | None:
        """See `Constants`."""
        values = self._values(name) if self.old.get(name, UNKNOWN).elem_type in INTEGER_TYPES else None
        return None if values is None else [int(v) for v in values.ravel()]

    def floats(self, name: str) -> list[float] | None:
        """See `Constants`."""
        values = self._values(name) if self.old.get(name, UNKNOWN).elem_type == TensorProto.FLOAT else None
        return None if values is None else [float(v) for v in values.ravel()]

    def with_integers(self, name: str, values: Sequence[int], shape: Sequence[int] | None = None) -> str:
        """See `Constants`."""
        tensor = self.constants[name]
        dims = tuple(tensor.dims if shape is None else shape)
        array = np.asarray(values, onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).reshape(dims)
        return self._add(name, array, TensorType(tensor.data_type, dims))

    def repeated(self, name: str, axis: int, node: NodeProto) -> str:
        """See `Constants`."""
        kind = self.old[name]
        assert kind.shape is not None
        wanted = scaled(kind.shape, axis, self.batch)
        if (name, axis) in self.repeats:
            return self.repeats[name, axis]
        values = self._values(name)
        if values is not None:
            size = storage_bytes(kind.elem_type, wanted) or 0
            self.repeated_bytes += size
            if size > self.limits.tensor_bytes or self.repeated_bytes > self.limits.weight_bytes:
                total = human_bytes(self.repeated_bytes)
                raise Refusal(f"{name!r} and others, repeated for each frame, take {total}; take fewer frames")
            repeats = [self.batch if k == axis else 1 for k in range(values.ndim)]
            added = self._add(name, np.tile(values, repeats), TensorType(kind.elem_type, wanted))
            self.old[added], self.axes[added] = kind, axis
            self.repeats[name, axis] = added
            return added
        maker = self.maker.get(name)
        alone = self.readers[name] == 1 and list(node.input).count(name) == 1 and name not in self.ends
        if maker is None or not alone or maker.op_type != "ConstantOfShape" or self.integers(maker.input[0]) is None:
            raise Refusal(f"{name!r} is the same for all frames and would have to be repeated for each")
        maker.input[0] = self.with_integers(maker.input[0], wanted)
        self._place(name, axis)
        return name

    def _add(self, name: str, values: NDArray[np.generic], kind: TensorType) -> str:
        """Add a constant, or find the same one added before."""
        tensor = onnx.numpy_helper.from_array(values)
        if kind.elem_type != tensor.data_type:
            raise Refusal(f"{name!r} would have to be repeated for each frame, and its element type is not supported")
        number = 0
        while True:
            tensor.name = f"{name}__batch{self.batch}" + (f"_{number}" if number else "")
            if tensor.name not in self.taken:
                break
            if self.made.get(tensor.name) == tensor:
                return tensor.name
            number += 1
        self.taken.add(tensor.name)
        self.made[tensor.name] = tensor
        self.old[tensor.name] = self.new[tensor.name] = kind
        return tensor.name

    def _crossing(self, cut: Cut, tensor: TensorInfo) -> TensorInfo:
        """A tensor of a cut for all frames."""
        last = len(self.network.layers)
        where = f"crosses the cut before layer {cut.index}" if 0 < cut.index < last else "is an output"
        if tensor.shape is None:
            self._refuse(f"{tensor.name!r} {where}, and its shape depends on the data; cut the model before it")
        axis = self.axes.get(tensor.name)
        if axis is None:
            self._refuse(f"{tensor.name!r} {where} and does not depend on the frame; remove it from the model")
        if axis != 0:
            self._refuse(
                f"{tensor.name!r} {where} with its frames along axis {axis}; export the model with the batch in front"
            )
        return self.new[tensor.name].info(tensor.name)

    def _assemble(self, cuts: Sequence[Cut]) -> Network:
        graph, source = self.body.graph, self.network.body.graph
        read = {name for node in graph.node for name in reads(node)}
        graph.initializer.extend(tensor for name, tensor in self.made.items() if name in read)
        shared = {name: tensor for name, tensor in self.constants.items() if name in read}
        held = sum(storage_bytes(t.data_type, t.dims) or 0 for t in (*graph.initializer, *shared.values()))
        if held > self.limits.weight_bytes:
            self._refuse(f"its constants would take {human_bytes(held)}; take fewer frames")
        for values, old in (
            (graph.input, source.input), (graph.output, source.output), (graph.value_info, source.value_info),
        ):  # fmt: skip
            for value in old:
                values.append(self._typed(value))
        names = self.constants.keys() | self.made.keys()
        ends = {value.name for value in graph.output}
        layers = []
        for layer in self.network.layers:
            nodes = [graph.node[i] for i in layer.nodes]
            crossing = {t.name for t in cuts[layer.index + 1].tensors} | ends
            leaving = [name for name in layer.outputs if name in crossing]
            descriptor = describe(nodes, self.new, names, leaving)
            layers.append(Layer(layer.index, layer.name, layer.nodes, descriptor, layer.outputs))
        inputs = tuple(self.new[t.name].info(t.name) for t in self.network.inputs)
        outputs = tuple(self.new[t.name].info(t.name) for t in self.network.outputs)
        digest = hashlib.sha256(f"corepipe batch {self.network.sha256}\n".encode())
        digest.update(self.body.SerializeToString(deterministic=True))
        return Network(
            self.network.name, digest.hexdigest(), self.body, inputs, outputs, tuple(layers), tuple(cuts), shared
        )

    def _typed(self, value: ValueInfoProto) -> ValueInfoProto:
        """What a tensor is declared as, with the shape for all frames."""
        copy = ValueInfoProto()
        copy.CopyFrom(value)
        if value.name in self.axes:
            set_type(copy, self.new[value.name])
        return copy


def _draws(node: NodeProto) -> bool:
    """Whether a node, or one inside it, draws random numbers."""
    return (is_standard(node) and node.op_type in RANDOM) or any(
        _draws(inner) for graph in subgraphs(node) for inner in graph.node
    )


def _places(step: Step) -> int | Sequence[Axis]:
    """Where the frames lie in what a node makes."""
    try:
        return rule_for(step)(step)
    except (LookupError, ValueError, ArithmeticError, StopIteration):
        # The rules take a node's parameters to fit its inputs, and loading a model does not check all of them.
        raise Refusal(_MISFIT) from None
