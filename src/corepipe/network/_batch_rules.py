"""For each operator, where the frames of a batch lie in what it makes: the rules that `batch` applies.

A tensor's frames lie along axis a where the batched tensor is what the single frames give, joined along a. A rule is
told the axes of the inputs and returns that of the outputs for which this holds again; it changes constants that hold
the number of frames, and refuses where there is no such axis. What is not listed is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from corepipe.network._batch_shapes import SHAPE_RULES
from corepipe.network._batch_step import Axis, Refusal, Step
from corepipe.network.graph import is_standard

Rule = Callable[[Step], int | Sequence[Axis]]
"""The axis of all outputs, or of each."""

RANDOM = frozenset({
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
})  # fmt: skip

_REASONS = {
    "NonMaxSuppression": "it numbers its results over all frames, and how many there are depends on the data; cut "
    "the model before it",
    "NonZero": "how much it makes depends on the data; cut the model before it",
    "Unique": "how much it makes depends on the data; cut the model before it",
    "Compress": "how much it makes depends on the data; cut the model before it",
    "DynamicQuantizeLinear": "it takes its scale from all frames together; quantise the model with fixed scales",
    "If": "which branch it takes may depend on the frame; export the model without control flow",
    "Loop": "how often it runs may depend on the frame; export the model without control flow",
    "Scan": "what it carries along may depend on the frame; export the model without control flow",
    "RoiAlign": "it numbers the frames that boxes belong to; cut the model before it",
    "MaxRoiPool": "it numbers the frames that boxes belong to; cut the model before it",
    "MaxUnpool": "its indices count over all frames",
    "Shape": "its result is the size of the batch, not a frame's",
    "Size": "its result is the size of the batch, not a frame's",
}


def rule_for(step: Step) -> Rule:
    """The rule of a node that reads frames.

    Raises:
        Refusal: there is none.
    """
    node = step.node
    kind = node.op_type if is_standard(node) else f"{node.domain}:{node.op_type}"
    rule = _RULES.get(kind) or SHAPE_RULES.get(kind)
    if rule is None:
        raise Refusal(_REASONS.get(kind, "it is not known whether this operator keeps frames apart"))
    return rule


def _each(step: Step) -> int:
    """Value by value, with parameters that do not depend on the frame."""
    return step.only(0)


def _frames_first(step: Step, *others: int) -> int:
    """Frame by frame along axis 0, as convolutions and pools do."""
    axis = step.only(0, *others)
    if axis != 0:
        raise Refusal(f"it takes frames along axis 0, here they lie along axis {axis}")
    return 0


def _images(*others: int) -> Rule:
    """Frame by frame along axis 0, of the first input and others."""

    def rule(step: Step) -> int:
        _frames_first(step, *others)
        for index in others:
            if step.has(index) and step.axes[index] is None:
                step.repeat(index, 0)
        return 0

    return rule


def _broadcast(step: Step, indices: Iterable[int] | None = None) -> int:
    """Value by value, of tensors that are broadcast to one shape."""
    used = [index for index in (indices or step.given) if step.has(index)]
    rank = max(len(step.shape(index)) for index in used)
    axis, size = -1, 0
    for index in used:
        own = step.axes[index]
        if own is None:
            continue
        place, length = own + rank - len(step.shape(index)), step.shape(index)[own]
        if axis not in (-1, place):
            raise Refusal(f"frames lie along axis {axis} of one input and {place} of another")
        if size not in (0, length):
            raise Refusal(f"one input has {size} rows for each frame and another {length}")
        axis, size = place, length
    if step.has_attribute("broadcast"):
        raise Refusal("its way of broadcasting is that of opset 6; convert the model to a newer one")
    for index in used:
        place = axis - rank + len(step.shape(index))
        if step.axes[index] is None and place >= 0:
            _fit(step, index, place, size)
    return axis


def _fit(step: Step, index: int, place: int, size: int) -> None:
    """Make an input that is the same for all frames fit a broadcast with frames of `size` rows along `place`."""
    length = step.shape(index)[place]
    if length == 1:
        return
    if length != size:
        raise Refusal(f"{step.node.input[index]!r} has {length} rows where each frame has {size}")
    step.repeat(index, place)


def _max_pool(step: Step) -> int:
    if any(step.node.output[1:]):
        raise Refusal("its indices count over all frames; export the model without them")
    return _frames_first(step)


def _batch_norm(step: Step) -> int:
    training = (
        step.integer("training_mode", 0) == 1
        or (step.opset < 7 and step.integer("is_test", 0) == 0)
        or (step.opset < 14 and any(step.node.output[1:]))
    )
    if training:
        raise Refusal("it is in training mode and takes its statistics from all frames; export it for inference")
    return _frames_first(step)


def _dropout(step: Step) -> int:
    flag = step.integers(2)
    if (step.opset >= 12 and step.has(2) and (flag is None or any(flag))) or (
        step.opset < 7 and step.integer("is_test", 0) == 0
    ):
        raise Refusal("it is in training mode; export the model for inference")
    return step.only(0)


def _softmax(step: Step) -> int:
    axis, rank = step.only(0), len(step.shape(0))
    over = step.axis(step.integer("axis", -1 if step.opset >= 13 else 1), rank)
    if axis == over or (step.opset < 13 and axis > over):
        raise Refusal(f"it normalises over axis {axis}, along which the frames lie")
    return axis


def _lrn(step: Step) -> int:
    axis = step.only(0)
    if axis == 1:
        raise Refusal("it normalises over axis 1, along which the frames lie")
    return axis


def _lp_norm(step: Step) -> int:
    axis = step.only(0)
    if axis == step.axis(step.integer("axis", -1), len(step.shape(0))):
        raise Refusal(f"it normalises over axis {axis}, along which the frames lie")
    return axis


def _mean_variance_norm(step: Step) -> int:
    axis, rank = step.only(0), len(step.shape(0))
    if axis in [step.axis(a, rank) for a in step.integer_list("axes") or (0, 2, 3)]:
        raise Refusal(f"it takes mean and variance over axis {axis}, along which the frames lie")
    return axis


def _layer_norm(step: Step) -> int:
    step.along(0)
    axis = _broadcast(step)
    if axis >= step.axis(step.integer("axis", -1), len(step.shape(0))):
        raise Refusal(f"it normalises over axis {axis}, along which the frames lie")
    return axis


def _quantise(step: Step) -> int:
    axis = step.only(0)
    scale, rank = step.shape(1), len(step.shape(0))
    if len(scale) > 1 or (scale not in ((), (1,)) and axis == step.axis(step.integer("axis", 1), rank)):
        raise Refusal("it has scales of its own for rows along the axis of the frames")
    return axis


def _q_linear(*values: int) -> Rule:
    """Value by value on quantised tensors, whose scales and zero points do not depend on the frame."""

    def rule(step: Step) -> int:
        if any(axis is not None for index, axis in enumerate(step.axes) if index not in values):
            raise Refusal("its scales depend on the frame")
        return _broadcast(step, values)

    return rule


def _product(left: int, right: int, *by_row: int) -> Rule:
    """A matrix product with numpy's rules; `by_row` are parameters that may differ from row to row of the left one."""

    def rule(step: Step) -> int:
        if any(axis is not None for index, axis in enumerate(step.axes) if index not in (left, right)):
            raise Refusal("its scales depend on the frame")
        parameters = [index for index in step.given if index not in (left, right)]
        one_by_one = by_row if step.axes[right] is None else parameters
        if any(index in parameters and step.shape(index) not in ((), (1,)) for index in one_by_one):
            raise Refusal("it has parameters of their own for rows or columns that belong to frames")
        if (
            step.integer("transA", 0)
            or step.integer("transB", 0)
            or step.integer("transBatchA", 0)
            or step.integer("transBatchB", 0)
        ):
            raise Refusal("it transposes its operands; export the model without fused operators")
        return _matmul(step, left, right)

    return rule


def _matmul(step: Step, left: int, right: int) -> int:
    a, b = step.shape(left), step.shape(right)
    x, y = step.axes[left], step.axes[right]
    if x == len(a) - 1 or y == max(len(b) - 2, 0):
        raise Refusal("it sums over the axis along which the frames lie")
    if y is None and x == len(a) - 2:
        return len(step.made()) - (2 if len(b) > 1 else 1)
    if x is None and y == len(b) - 1:
        return len(step.made()) - 1
    rank = max(len(a), len(b)) - 2
    rows = [(i, at + rank - len(s) + 2, s[at]) for i, at, s in ((left, x, a), (right, y, b)) if at is not None]
    if len({(place, size) for _, place, size in rows}) > 1 or not 0 <= rows[0][1] < rank:
        raise Refusal("frames lie along different axes of its operands, or along their rows")
    _, axis, size = rows[0]
    for index, shape, at in ((left, a, x), (right, b, y)):
        place = axis - rank + len(shape) - 2
        if at is None and place >= 0:
            _fit(step, index, place, size)
    return axis


def _gemm(step: Step) -> int:
    axis = step.only(0, 2)
    if axis != (1 if step.integer("transA", 0) else 0):
        raise Refusal("it sums over the axis along which the frames lie")
    if step.axes[1] is not None:
        raise Refusal(f"{step.node.input[1]!r} takes the place of a parameter and depends on the frame")
    if step.has(2):
        added, size = step.shape(2), step.shape(0)[axis]
        if step.axes[2] is None and len(added) == 2:
            _fit(step, 2, 0, size)
        elif step.axes[2] is not None and (len(added) != 2 or step.axes[2] != 0 or added[0] != size):
            raise Refusal("what it adds does not lie as its result does")
    return 0


def _recurrent(step: Step) -> Sequence[Axis]:
    first = step.integer("layout", 0) == 1
    batch = 0 if first else 1
    if step.along(0) != batch or any(step.axes[i] is not None for i in (1, 2, 3, 7) if step.has(i)):
        raise Refusal("its frames do not lie along its batch axis, or its weights depend on the frame")
    for index, axis in ((4, 0), (5, batch), (6, batch)):
        if step.has(index) and step.axes[index] is None:
            step.repeat(index, axis)
        elif step.has(index) and step.axes[index] != axis:
            raise Refusal("frames lie along another axis of its first state")
    return [0 if first else 2, batch, batch]


def _einsum(step: Step) -> int:
    equation = step.text("equation").replace(" ", "")
    terms, arrow, result = equation.partition("->")
    operands = terms.split(",")
    if not arrow or "." in equation or len(operands) != len(step.node.input):
        raise Refusal(f"the equation {equation!r} is not spelt out")
    marks = {operands[i][axis] for i, axis in enumerate(step.axes) if axis is not None}
    mark = marks.pop()
    if marks or result.count(mark) != 1:
        raise Refusal(f"the equation {equation!r} sums over the axis of the frames, or joins different ones")
    sizes = {step.shape(i)[axis] for i, axis in enumerate(step.axes) if axis is not None}
    for index, (term, axis) in enumerate(zip(operands, step.axes, strict=True)):
        if mark not in term:
            continue
        if term.count(mark) > 1 or {step.shape(index)[term.index(mark)]} != sizes:
            raise Refusal(f"the equation {equation!r} takes a diagonal or broadcasts the axis of the frames")
        if axis is None:
            step.repeat(index, term.index(mark))
    return result.index(mark)


def _names(rule: Rule, text: str, domain: str = "") -> dict[str, Rule]:
    return {f"{domain}:{name}" if domain else name: rule for name in text.split()}


_MICROSOFT = "com.microsoft"

_RULES: dict[str, Rule] = {
    **_names(
        _each,
        "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu "
        "HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink "
        "Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu",
    ),
    **_names(_each, "Gelu QuickGelu QLinearLeakyRelu QLinearSigmoid", _MICROSOFT),
    **_names(
        _broadcast,
        "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean "
        "Min Mod Mul Or PRelu Pow Sub Sum Where Xor",
    ),
    **_names(_broadcast, "BiasGelu FastGelu", _MICROSOFT),
    **_names(_q_linear(0, 3), "QLinearAdd QLinearMul", _MICROSOFT),
    **_names(
        _images(),
        "AveragePool Col2Im Conv ConvInteger ConvTranspose DepthToSpace GlobalAveragePool GlobalLpPool GlobalMaxPool "
        "GroupNormalization InstanceNormalization LpPool QLinearConv SpaceToDepth",
    ),
    **_names(_images(), "NhwcMaxPool QLinearAveragePool QLinearConv QLinearGlobalAveragePool", _MICROSOFT),
    **_names(_images(3), "FusedConv", _MICROSOFT),
    **_names(_images(2, 4), "DeformConv"),
    **_names(_images(1), "GridSample"),
    "MaxPool": _max_pool,
    "BatchNormalization": _batch_norm,
    "Dropout": _dropout,
    **_names(_softmax, "Softmax LogSoftmax Hardmax"),
    "LRN": _lrn,
    "LpNormalization": _lp_norm,
    "MeanVarianceNormalization": _mean_variance_norm,
    **_names(_layer_norm, "LayerNormalization RMSNormalization"),
    **_names(_layer_norm, "SkipLayerNormalization", _MICROSOFT),
    **_names(_quantise, "QuantizeLinear DequantizeLinear"),
    "MatMul": _product(0, 1),
    "MatMulInteger": _product(0, 1, 2),
    "QLinearMatMul": _product(0, 3, 1, 2),
    **_names(_product(0, 1), "FusedMatMul", _MICROSOFT),
    "Gemm": _gemm,
    **_names(_gemm, "FusedGemm", _MICROSOFT),
    **_names(_recurrent, "GRU LSTM RNN"),
    "Einsum": _einsum,
}
