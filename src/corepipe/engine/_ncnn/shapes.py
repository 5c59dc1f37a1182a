"""What moves elements: views, transpositions, parts and joins; and softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence

from corepipe.engine._ncnn.graph import Refused, Shape, Tensor
from corepipe.engine._ncnn.node import Node, axis_of

_OFFSETS = {1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (2, 13, 1, 0)}
_EXTENTS = {1: (3,), 2: (4, 3), 3: (5, 4, 3), 4: (5, 14, 4, 3)}
"""Crop's parameters for the axes of a blob."""

_ORDERS = {
    2: "wh hw",
    3: "whc hwc wch cwh hcw chw",
    4: "whdc hwdc wdhc dwhc hdwc dhwc whcd hwcd wchd cwhd hcwd chwd "
    "wdch dwch wcdh cwdh dcwh cdwh hdcw dhcw hcdw chdw dchw cdhw",
}
"""Permute's order types: which axis becomes the last, the last but one and so on."""


def identity(node: Node) -> Tensor:
    """Identity, and Dropout where nothing is trained."""
    if node.kind == "Dropout":
        training = node.constant(2)
        if node.gives(1) or (node.has(2) and (training is None or training.any())):
            raise Refused("its mask, or training")
    return node.passed_on(0)


def flatten(node: Node) -> Tensor:
    """Flatten."""
    shape = node.tensor(0).shape
    axis = int(node.attribute("axis", 1))
    if not -len(shape) <= axis <= len(shape):
        raise Refused(f"axis {axis}")
    axis += len(shape) if axis < 0 else 0
    return node.passed_on(0, (math.prod(shape[:axis]), math.prod(shape[axis:])))


def reshape(node: Node) -> Tensor:
    """Reshape to a constant shape."""
    wanted, shape = node.integers("shape", 1), node.tensor(0).shape
    if wanted is None:
        raise Refused("it has no shape")
    if not node.attribute("allowzero", 0):
        wanted = tuple(shape[i] if size == 0 else size for i, size in enumerate(wanted))
    if wanted.count(-1) == 1:
        rest = -math.prod(wanted)
        wanted = tuple(math.prod(shape) // max(rest, 1) if size == -1 else size for size in wanted)
    if any(size < 1 for size in wanted) or math.prod(wanted) != math.prod(shape):
        raise Refused(f"{list(shape)} does not fit {list(wanted)}")
    return node.passed_on(0, wanted)


def squeeze(node: Node) -> Tensor:
    """Squeeze."""
    shape, axes = node.tensor(0).shape, node.integers("axes", 1)
    gone = {i for i, size in enumerate(shape) if size == 1} if axes is None else {axis_of(a, len(shape)) for a in axes}
    if any(shape[i] != 1 for i in gone):
        raise Refused("an axis that is not 1")
    return node.passed_on(0, tuple(size for i, size in enumerate(shape) if i not in gone))


def unsqueeze(node: Node) -> Tensor:
    """Unsqueeze."""
    shape, axes = node.tensor(0).shape, node.integers("axes", 1)
    if axes is None:
        raise Refused("it has no axes")
    rank = len(shape) + len(axes)
    new = {axis_of(a, rank) for a in axes}
    if len(new) != len(axes):
        raise Refused("an axis given twice")
    rest = iter(shape)
    return node.passed_on(0, tuple(1 if i in new else next(rest) for i in range(rank)))


def transpose(node: Node) -> Tensor:
    """Transpose, of up to four groups of axes that stay together; where it shuffles channels, as that."""
    given = node.tensor(0)
    rank = len(given.shape)
    order = node.integers("perm") or tuple(range(rank))[::-1]
    if sorted(order) != list(range(rank)):
        raise Refused("its perm")
    shape = tuple(given.shape[axis] for axis in order)
    sizes, turned = _grouped(given.shape, order)
    if len(sizes) < 2:
        return node.passed_on(0, shape)
    if len(sizes) > 4:
        raise Refused(f"{len(sizes)} axes")
    blob = given.blob_shape
    if turned == (1, 0, 2) and len(blob) == 3 and blob[0] == sizes[0] * sizes[1]:
        return node.builder.compute("ShuffleChannel", given, {0: sizes[0]}, shape=shape)
    letters = {2: "hw", 3: "chw", 4: "cdhw"}[len(sizes)]
    kind = _ORDERS[len(sizes)].split().index("".join(letters[axis] for axis in reversed(turned)))
    made = tuple(sizes[axis] for axis in turned)
    return node.builder.compute("Permute", node.builder.place(given, sizes), {0: kind}, shape=shape, blob_shape=made)


def _grouped(shape: Shape, order: Sequence[int]) -> tuple[Shape, tuple[int, ...]]:
    """The same transposition of fewer axes: those of 1 left out, those that stay neighbours joined."""
    groups: list[list[int]] = []
    for axis in order:
        if shape[axis] == 1:
            continue
        skipped = groups and all(shape[i] == 1 for i in range(groups[-1][-1] + 1, axis)) and axis > groups[-1][-1]
        if skipped:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    places = sorted(range(len(groups)), key=lambda i: groups[i][0])
    sizes = tuple(math.prod(shape[axis] for axis in groups[i]) for i in places)
    return sizes, tuple(places.index(i) for i in range(len(groups)))


def concat(node: Node) -> Tensor:
    """Concat."""
    tensors = [node.tensor(i) for i in range(len(node.inputs))]
    shapes = [tensor.shape for tensor in tensors]
    axis = axis_of(int(node.attribute("axis", 1)), len(shapes[0]))
    if len({(*s[:axis], *s[axis + 1 :]) for s in shapes}) != 1 or len({len(s) for s in shapes}) != 1:
        raise Refused("its inputs do not fit each other")
    shape = (*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1 :])
    if len(tensors) == 1:
        return node.passed_on(0)
    strip = _strip(shapes[0], axis)
    placed = [node.builder.place(tensor, tensor.shape[strip:]) for tensor in tensors]
    layer = node.builder.add("Concat", [tensor.blob for tensor in placed], {0: axis - strip})
    return Tensor(layer.tops[0], shape, shape[strip:])


def split(node: Node) -> list[Tensor]:
    """Split."""
    given = node.tensor(0)
    axis = axis_of(int(node.attribute("axis", 0)), len(given.shape))
    size, parts = given.shape[axis], node.integers("split", 1)
    if parts is None:
        count = len(node.outputs)
        each = -(-size // count)
        parts = tuple(min(each, size - i * each) for i in range(count))
    if sum(parts) != size or min(parts) < 1 or len(parts) != len(node.outputs):
        raise Refused("its parts do not fit its input")
    if len(parts) == 1:
        return [node.passed_on(0)]
    strip = _strip(given.shape, axis)
    placed = node.builder.place(given, given.shape[strip:])
    layer = node.builder.add("Slice", [placed.blob], {0: parts, 1: axis - strip}, tops=len(parts))
    shapes = [(*given.shape[:axis], part, *given.shape[axis + 1 :]) for part in parts]
    return [Tensor(blob, shape, shape[strip:]) for blob, shape in zip(layer.tops, shapes, strict=True)]


def _strip(shape: Shape, axis: int) -> int:
    """How many leading axes to leave out of the blob, so that `axis` stays."""
    strip = int(len(shape) > 1 and shape[0] == 1 and axis > 0)
    if len(shape) - strip > 4:
        raise Refused(f"{len(shape)} axes")
    return strip


def cut(node: Node) -> Tensor:
    """Slice by steps of 1."""
    given = node.tensor(0)
    rank = len(given.shape)
    starts, ends = node.integers("starts", 1), node.integers("ends", 2)
    axes, steps = node.integers("axes", 3), node.integers("steps", 4)
    if starts is None or ends is None or len(starts) != len(ends):
        raise Refused("it has no starts and ends")
    axes = axes or tuple(range(len(starts)))
    if len(axes) != len(starts) or any(step != 1 for step in steps or ()):
        raise Refused("steps other than 1")
    first, last = [0] * rank, list(given.shape)
    for axis, start, end in zip(axes, starts, ends, strict=True):
        index = axis_of(axis, rank)
        first[index], last[index], _ = slice(start, end).indices(given.shape[index])
    shape = tuple(stop - start for start, stop in zip(first, last, strict=True))
    if min(shape) < 1:
        raise Refused("nothing is left")
    if shape == given.shape:
        return node.passed_on(0)
    strip = int(rank > 1 and given.shape[0] == 1)
    if rank - strip > 4:
        raise Refused(f"{rank} axes")
    params = {
        **dict(zip(_OFFSETS[rank - strip], first[strip:], strict=True)),
        **dict(zip(_EXTENTS[rank - strip], shape[strip:], strict=True)),
    }
    placed = node.builder.place(given, given.shape[strip:])
    return node.builder.compute("Crop", placed, params, shape=shape, blob_shape=shape[strip:])


def softmax(node: Node) -> Tensor:
    """Softmax over one axis."""
    given = node.tensor(0)
    shape, rank = given.shape, len(given.shape)
    axis = axis_of(int(node.attribute("axis", -1 if node.opset >= 13 else 1)), rank)
    after = shape[axis + 1 :]
    if node.opset < 13:
        # Over all axes from this one on.
        before, size, rest = math.prod(shape[:axis]), math.prod(shape[axis:]), 1
    else:
        before, size, rest = math.prod(shape[:axis]), shape[axis], math.prod(after)
    blob: Shape = tuple(n for n in (before, size, rest) if n > 1) or (1,)
    if size == 1:
        raise Refused("over one element")
    place = int(before > 1)
    placed = node.builder.place(given, blob)
    return node.builder.compute("Softmax", placed, {0: place, 1: 1}, shape=shape)


OPERATORS = {
    "Identity": identity, "Dropout": identity, "Flatten": flatten, "Reshape": reshape, "Squeeze": squeeze,
    "Unsqueeze": unsqueeze, "Transpose": transpose, "Concat": concat, "Split": split, "Slice": cut,
    "Softmax": softmax,
}  # fmt: skip
