"""What strided 1x1 convolutions skip is not computed: their stride moves up to the convolutions that they read.

A 1x1 convolution with a stride of 2 reads a quarter of an image. Where nothing reads the other three quarters, the
convolution that makes the image need not compute them, nor what lies between: it takes the stride over, and the 1x1
convolution reads all that is left. Through a residual sum the same goes, once the other summand is thinned out as well.
So a residual network that strides in the first 1x1 convolution of a stage (He et al., arXiv 1512.03385, version 1, and
all that is exported from Caffe or Keras) computes the end of each stage at a quarter of its positions, and hands a
quarter of the bytes to the next. Numbers that are computed are the same sums as before.

OpenVINO does so too (its StridesOptimization); ONNX Runtime and ncnn compute everything.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from onnx import ModelProto, NodeProto, TensorProto, helper

from corepipe.network.describe import POINTWISE
from corepipe.network.graph import (
    UNKNOWN,
    TensorType,
    all_nodes,
    attribute,
    int_attribute,
    ints_attribute,
    is_standard,
    opset_of,
    reads,
    replace_nodes,
    set_type,
    shape_of,
    subgraphs,
)

Step = tuple[int, int]
"""Every how many rows and columns of an image are read."""

_Types = dict[str, TensorType]

_ALL: Step = (1, 1)

_LEAST_OPSET = 7
"""ONNX Runtime has no pools of earlier ones, and operators broadcast otherwise there."""

_LARGEST = 2**31 - 1


def move_strides_up(model: ModelProto, types: _Types, most_nodes: int) -> frozenset[str]:
    """Compute images at those positions only that are read.

    Args:
        model: folded, in topological order; changed in place. Images that are thinned out keep their names; a thinned
            copy of one that is also read whole is named after it, with `__every<rows>x<columns>` behind.
        types: by tensor name; brought up to date.
        most_nodes: how many nodes the graph may have; where it would have more, nothing is changed.

    Returns:
        The names of the nodes that make thinned copies, and nothing else.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    steps = _steps(list(graph.node), {value.name for value in graph.output}, constants, types)
    if not steps or opset_of(model) < _LEAST_OPSET:
        return frozenset()
    wanted = dict.fromkeys(
        (node.input[index], steps[node.output[0]])
        for node in graph.node
        if node.output[0] in steps and not _convolves_images(node, types)
        for index in _images(node, types)
        if node.input[index] not in steps
    )
    if len(graph.node) + len(wanted) > most_nodes:
        return frozenset()

    taken = _names(model) | types.keys()
    copies = {(image, step): _thin(image, step, taken) for image, step in wanted}
    placed: set[str] = set()
    nodes: list[NodeProto] = []
    for node in graph.node:
        step = steps.get(node.output[0], _ALL)
        if _convolves_images(node, types):
            _set_strides(node, types, made=step, read=steps.get(node.input[0], _ALL))
        elif step != _ALL:
            for index in _images(node, types):
                pool = copies.get((node.input[index], step))
                if pool is None:
                    continue
                if pool.name not in placed:
                    placed.add(pool.name)
                    nodes.append(pool)
                node.input[index] = pool.output[0]
        nodes.append(node)
    replace_nodes(graph, nodes)
    for (image, step), pool in copies.items():
        types[pool.output[0]] = _every(types[image], step)
        set_type(graph.value_info.add(name=pool.output[0]), types[pool.output[0]])
    for image, step in steps.items():
        types[image] = _every(types[image], step)
    for value in graph.value_info:
        if value.name in steps:
            set_type(value, types[value.name])
    return frozenset(placed)


def _steps(nodes: list[NodeProto], ends: Collection[str], constants: Collection[str], types: _Types) -> dict[str, Step]:
    """The step at which each image is read by all that read it, where that is more than 1 and saves anything."""
    steps: dict[str, Step] = {}
    if not any(_reads_single_pixels(node, types) and _strides(node) != _ALL for node in nodes):
        return steps
    asked: dict[str, set[Step]] = {name: {_ALL} for name in ends}
    for node in reversed(nodes):
        (step, *others) = asked.get(node.output[0], {_ALL})
        if others or not _can_thin(node, step, constants, types):
            step = _ALL
        if step != _ALL:
            steps[node.output[0]] = step
        asks = dict.fromkeys(reads(node), _ALL)
        if _reads_single_pixels(node, types):
            asks[node.input[0]] = _times(step, _strides(node))
        elif step != _ALL and not _convolves_images(node, types):
            asks |= {node.input[index]: step for index in _images(node, types)}
        for name, one in asks.items():
            asked.setdefault(name, set()).add(one)

    saves = set()
    for node in nodes:
        if node.output[0] not in steps:
            continue
        if _convolves_images(node, types) or any(node.input[index] in saves for index in _images(node, types)):
            saves.add(node.output[0])
        else:  # nothing that is computed would get less, but this operator alone
            del steps[node.output[0]]
    return steps


def _can_thin(node: NodeProto, step: Step, constants: Collection[str], types: _Types) -> bool:
    """Whether a node can make every `step`-th pixel of its image alone."""
    if step == _ALL or not _is_image(types.get(node.output[0], UNKNOWN)):
        return False
    if any(size < s for size, s in zip(shape_of(types, node.output[0])[2:], step, strict=True)):
        return False
    if _convolves_images(node, types):
        return _can_stride(node) and max(_times(step, _strides(node))) <= _LARGEST
    return _is_pointwise(node, constants, types)


def _is_pointwise(node: NodeProto, constants: Collection[str], types: _Types) -> bool:
    """Whether a node makes each pixel of an image from the same one of others, and from numbers for each channel."""
    if not is_standard(node) or any(node.output[1:]):
        return False
    if node.op_type == "BatchNormalization":
        if int_attribute(node, "training_mode", 0) or not _is_image(types.get(node.input[0], UNKNOWN)):
            return False
        return all(len(shape_of(types, name)) == 1 for name in node.input[1:])
    if node.op_type not in POINTWISE:
        return False
    images = _images(node, types)
    for index, name in enumerate(node.input):
        if index in images:
            if name in constants or not _is_image(types[name]):
                return False
        elif name and (types.get(name, UNKNOWN).shape is None or math.prod(shape_of(types, name)[-2:]) != 1):
            return False
    return bool(images)


def _images(node: NodeProto, types: _Types) -> list[int]:
    """Which inputs of an operator have a pixel for each one of its result."""
    if node.op_type == "BatchNormalization":
        return [0]
    size = shape_of(types, node.output[0])[-2:]
    return [index for index, name in enumerate(node.input) if name and shape_of(types, name)[-2:] == size]


def _convolves_images(node: NodeProto, types: _Types) -> bool:
    """Whether a node is a convolution whose sizes are all known."""
    if node.op_type != "Conv" or not is_standard(node):
        return False
    ends = (types.get(name, UNKNOWN) for name in (node.input[0], node.output[0]))
    return all(map(_is_image, ends)) and len(shape_of(types, node.input[1])) == 4


def _can_stride(node: NodeProto) -> bool:
    """Whether it is known what a convolution looks at: engines differ where padding follows the stride."""
    return not _pads_by_stride(node) or (_strides(node) == _ALL and not _is_dilated(node))


def _reads_single_pixels(node: NodeProto, types: _Types) -> bool:
    if not _convolves_images(node, types) or not _can_stride(node):
        return False
    return shape_of(types, node.input[1])[2:] == (1, 1) and not any(ints_attribute(node, "pads"))


def _pads_by_stride(node: NodeProto) -> bool:
    return attribute(node, "auto_pad") in (b"SAME_LOWER", b"SAME_UPPER")


def _is_dilated(node: NodeProto) -> bool:
    return any(d != 1 for d in ints_attribute(node, "dilations"))


def _strides(node: NodeProto) -> Step:
    rows, columns = ints_attribute(node, "strides") or _ALL
    return rows, columns


def _times(one: Step, other: Step) -> Step:
    return one[0] * other[0], one[1] * other[1]


def _is_image(kind: TensorType) -> bool:
    return kind.elem_type == TensorProto.FLOAT and kind.shape is not None and len(kind.shape) == 4 and all(kind.shape)


def _set_strides(node: NodeProto, types: _Types, made: Step, read: Step) -> None:
    """Let a convolution make every `made`-th pixel, of an image of which every `read`-th is left."""
    if made == read == _ALL:
        return
    rows, columns = _times(_strides(node), made)
    changed = {"strides": [rows // read[0], columns // read[1]]}
    if _pads_by_stride(node):  # as it is with a stride of 1
        more = [size - 1 for size in shape_of(types, node.input[1])[2:]]
        less, rest = [m // 2 for m in more], [m - m // 2 for m in more]
        upper = attribute(node, "auto_pad") == b"SAME_UPPER"
        changed["pads"] = less + rest if upper else rest + less
    for index in reversed(range(len(node.attribute))):
        if node.attribute[index].name in (*changed, "auto_pad" if "pads" in changed else ""):
            del node.attribute[index]
    node.attribute.extend(helper.make_attribute(key, value) for key, value in changed.items())


def _every(kind: TensorType, step: Step) -> TensorType:
    frames, channels, rows, columns = kind.shape or (0, 0, 0, 0)
    return TensorType(kind.elem_type, (frames, channels, -(-rows // step[0]), -(-columns // step[1])))


def _thin(image: str, step: Step, taken: set[str]) -> NodeProto:
    """Every `step`-th row and column of an image, by a pool over single pixels: engines run it beside convolutions."""
    name = f"{image}__every{step[0]}x{step[1]}"
    while name in taken:
        name += "_"
    taken.add(name)
    return helper.make_node("AveragePool", [image], [name], name, kernel_shape=[1, 1], strides=list(step))


def _names(model: ModelProto) -> set[str]:
    """What nodes and tensors are called, in subgraphs too."""
    found: set[str] = set()
    for node in all_nodes(model.graph.node):
        found.update(node.input, node.output, [node.name])
        for graph in subgraphs(node):
            found.update(value.name for value in (*graph.input, *graph.initializer, *graph.output))
    return found
