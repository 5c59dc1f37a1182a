"""The rules of operators that move, join, take apart and reduce: those that may move the frames' axis or lose it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from corepipe.network._batch_step import Refusal, Step, same_place, scaled

_LAST = 2**31 - 1


def _reshape(step: Step) -> int:
    axis, old, new = step.only(0), step.shape(0), step.made()
    place = same_place(old, axis, new)
    wanted = scaled(new, place, step.batch)
    if step.opset < 5:
        raise Refusal("its target shape is an attribute, as in opset 4; convert the model to a newer one")
    target = step.integers(1)
    if target is None:
        raise Refusal("its target shape is computed while it runs; export the model with constant shapes")
    if _target(target, scaled(old, axis, step.batch), step.integer("allowzero", 0) == 1) != wanted:
        step.replace(1, wanted)
    return place


def _target(target: Sequence[int], old: Sequence[int], zeros: bool) -> tuple[int, ...]:
    """The shape that a reshape of `old` to `target` makes, 0 and -1 resolved."""
    sizes = [old[i] if size == 0 and not zeros and i < len(old) else size for i, size in enumerate(target)]
    rest = math.prod(size for size in sizes if size != -1)
    return tuple(math.prod(old) // max(rest, 1) if size == -1 else size for size in sizes)


def _flatten(step: Step) -> int:
    axis, old = step.only(0), step.shape(0)
    split = step.axis(step.integer("axis", 1), len(old))
    between = old[:axis] if axis < split else old[split:axis]
    if math.prod(between) != 1:
        raise Refusal(f"from {list(old)} to {list(step.made())} it takes apart what belongs to one frame")
    return 0 if axis < split else 1


def _axes(step: Step, index: int, rank: int) -> list[int] | None:
    """The axes that an attribute or, in newer opsets, an input names; None where there are none.

    Raises:
        Refusal: they are computed while it runs.
    """
    found: Sequence[int] | None = step.integer_list("axes")
    if step.has(index):
        found = step.integers(index)
        if found is None:
            raise Refusal("its axes are computed while it runs; export the model with constant axes")
    return sorted(step.axis(a, rank) for a in found) if found else None


def _squeeze(step: Step) -> int:
    axis, old = step.only(0), step.shape(0)
    axes = _axes(step, 1, len(old))
    dropped = [k for k, size in enumerate(old) if size == 1] if axes is None else axes
    if axis in dropped:
        raise Refusal(f"it drops axis {axis}, along which the frames lie; name the axes to drop in the model")
    return axis - sum(k < axis for k in dropped)


def _unsqueeze(step: Step) -> int:
    axis, rank = step.only(0), len(step.made())
    new = _axes(step, 1, rank) or []
    return [k for k in range(rank) if k not in new][axis]


def _transpose(step: Step) -> int:
    axis, rank = step.only(0), len(step.shape(0))
    order = step.integer_list("perm") or tuple(range(rank))[::-1]
    return order.index(axis)


def _aligned(step: Step, indices: Iterable[int]) -> int:
    """The axis of inputs that have to agree in it; those that are the same for all frames are repeated."""
    indices = list(indices)
    found = {(step.axes[i], step.shape(i)[axis]) for i in indices if (axis := step.axes[i]) is not None}
    if len(found) > 1:
        raise Refusal("frames lie along different axes of its inputs, or have different numbers of rows")
    ((axis, size),) = found
    assert axis is not None
    for index in indices:
        if step.axes[index] is None:
            if step.shape(index)[axis : axis + 1] != (size,):
                raise Refusal(f"{step.node.input[index]!r} does not have the {size} rows that each frame has")
            step.repeat(index, axis)
    return axis


def _concat(step: Step) -> int:
    axis = _aligned(step, step.given)
    if axis == step.axis(step.integer("axis", 1), len(step.made())):
        raise Refusal(f"it joins along axis {axis}, along which the frames lie: they would be mixed")
    return axis


def _split(step: Step) -> int:
    axis = step.only(0)
    if axis == step.axis(step.integer("axis", 0), len(step.shape(0))):
        raise Refusal(f"it splits axis {axis}, along which the frames lie")
    return axis


def _slice(step: Step) -> int:
    axis, old = step.only(0), step.shape(0)
    if step.opset < 10:
        axes: Sequence[int] = step.integer_list("axes") or range(len(step.integer_list("starts")))
        if axis in [step.axis(a, len(old)) for a in axes]:
            raise Refusal(f"it takes a part of axis {axis}, along which the frames lie")
        return axis
    count = step.shape(1)[0]
    named = step.integers(3) if step.has(3) else range(count)
    if named is None:
        raise Refusal("its axes are computed while it runs; export the model with constant axes")
    named = [step.axis(a, len(old)) for a in named]
    if axis not in named:
        return axis
    index, size = named.index(axis), old[axis]
    firsts, lasts = step.integers(1), step.integers(2)
    strides = step.integers(4) if step.has(4) else [1] * count
    if firsts is None or lasts is None or strides is None:
        raise Refusal("where it cuts is computed while it runs; export the model with constant slices")
    first = firsts[index] + size if firsts[index] < 0 else firsts[index]
    if first > 0 or lasts[index] < size or strides[index] != 1:
        raise Refusal(f"it takes a part of axis {axis}, along which the frames lie")
    if firsts[index] != 0:
        step.replace(1, [*firsts[:index], 0, *firsts[index + 1 :]])
    if lasts[index] < size * step.batch:
        step.replace(2, [*lasts[:index], _LAST, *lasts[index + 1 :]])
    return axis


def _gather(step: Step) -> int:
    rank, data, indices = len(step.shape(0)), step.axes[0], step.axes[1]
    over = step.axis(step.integer("axis", 0), rank)
    if data is None and indices is not None:
        return over + indices
    axis = step.only(0)
    if axis != over:
        return axis if axis < over else axis + len(step.shape(1)) - 1
    picked, shape, size = step.integers(1), step.shape(1), step.shape(0)[axis]
    if picked is None or not shape:
        raise Refusal(f"it picks from axis {axis}, along which the frames lie")
    step.replace(1, [i % size + size * f for f in range(step.batch) for i in picked], scaled(shape, 0, step.batch))
    return axis


def _gather_elements(step: Step) -> int:
    axis = _aligned(step, (0, 1))
    if axis == step.axis(step.integer("axis", 0), len(step.shape(0))):
        raise Refusal(f"it picks from axis {axis}, along which the frames lie")
    return axis


def _gather_nd(step: Step) -> int:
    batched, indices = step.integer("batch_dims", 0), step.axes[1]
    if batched == 0 and step.axes[0] is None and indices is not None and indices < len(step.shape(1)) - 1:
        return indices
    axis = _aligned(step, (0, 1)) if batched else -1
    if not 0 <= axis < batched:
        raise Refusal("it picks from the axis along which the frames lie")
    return axis


def _pad(step: Step) -> int:
    axis, rank = step.only(0), len(step.shape(0))
    pads = step.integers(1) if step.opset >= 11 else list(step.integer_list("pads") or step.integer_list("paddings"))
    axes: Sequence[int] | None = step.integers(3) if step.has(3) else range(rank)
    if pads is None or axes is None:
        raise Refusal("how much it pads is computed while it runs; export the model with constant sizes")
    named = [step.axis(a, rank) for a in axes]
    if axis in named and (pads[named.index(axis)] or pads[named.index(axis) + len(named)]):
        raise Refusal(f"it pads axis {axis}, along which the frames lie")
    return axis


def _reduce(step: Step) -> int:
    axis, rank = step.only(0), len(step.shape(0))
    axes = _axes(step, 1, rank)
    if axes is None and step.integer("noop_with_empty_axes", 0) == 1:
        return axis
    return _reduced(step, axis, list(range(rank)) if axes is None else axes)


def _arg_reduce(step: Step) -> int:
    return _reduced(step, step.only(0), [step.axis(step.integer("axis", 0), len(step.shape(0)))])


def _reduced(step: Step, axis: int, axes: Sequence[int]) -> int:
    if axis in axes:
        raise Refusal(f"it reduces axis {axis}, along which the frames lie: they would be mixed")
    return axis if step.integer("keepdims", 1) else axis - sum(k < axis for k in axes)


def _top_k(step: Step) -> int:
    axis = step.only(0)
    if axis == step.axis(step.integer("axis", -1), len(step.shape(0))):
        raise Refusal(f"it sorts along axis {axis}, along which the frames lie")
    return axis


def _cum_sum(step: Step) -> int:
    axis, over = step.only(0), step.integers(1)
    if over is None or axis == step.axis(over[0], len(step.shape(0))):
        raise Refusal(f"it sums up along axis {axis}, along which the frames lie")
    return axis


def _one_hot(step: Step) -> int:
    axis = step.only(0)
    return axis if axis < step.axis(step.integer("axis", -1), len(step.made())) else axis + 1


def _trilu(step: Step) -> int:
    axis = step.only(0)
    if axis >= len(step.shape(0)) - 2:
        raise Refusal("it takes a triangle of the axis along which the frames lie")
    return axis


def _expand(step: Step) -> int:
    old, new = step.shape(0), step.made()
    axis = step.only(0)
    place = axis + len(new) - len(old)
    target = step.integers(1)
    if target is None:
        raise Refusal("its target shape is computed while it runs; export the model with constant shapes")
    if new[place] != old[axis]:
        raise Refusal(f"it repeats axis {axis}, along which the frames lie")
    index = place - len(new) + len(target)
    if index >= 0 and target[index] != 1:
        step.replace(1, [*target[:index], new[place] * step.batch, *target[index + 1 :]])
    return place


def _tile(step: Step) -> int:
    axis, repeats = step.only(0), step.integers(1)
    if step.opset < 6 or repeats is None or repeats[axis] != 1:
        raise Refusal(f"it repeats axis {axis}, along which the frames lie")
    return axis


def _resize(step: Step) -> int:
    axis, old, new = step.only(0), step.shape(0), step.made()
    if old[axis] != new[axis] or step.text("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise Refusal(f"it crops or resizes axis {axis}, along which the frames lie")
    sizes = step.integers(3)
    if step.has(3) and sizes is None:
        raise Refusal("its sizes are computed while it runs; export the model with constant sizes")
    named = [step.axis(a, len(old)) for a in step.integer_list("axes")] or list(range(len(old)))
    if axis not in named:
        return axis
    index = named.index(axis)
    if not sizes:
        # A scale of 1.4 would leave one row one row, and mix those of two frames.
        scales = step.floats(2 if step.node.op_type == "Resize" and step.opset >= 11 else 1, "scales")
        if scales is None or scales[index] != 1:
            raise Refusal(f"it resizes axis {axis}, along which the frames lie")
    else:
        step.replace(3, [*sizes[:index], old[axis] * step.batch, *sizes[index + 1 :]])
    return axis


SHAPE_RULES: dict[str, Callable[[Step], int]] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Pad": _pad,
    **dict.fromkeys(
        ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
         "ReduceProd", "ReduceSum", "ReduceSumSquare"), _reduce,
    ),
    "ArgMax": _arg_reduce,
    "ArgMin": _arg_reduce,
    "TopK": _top_k,
    "CumSum": _cum_sum,
    "OneHot": _one_hot,
    "Trilu": _trilu,
    "Expand": _expand,
    "Tile": _tile,
    "Resize": _resize,
    "Upsample": _resize,
}  # fmt: skip
