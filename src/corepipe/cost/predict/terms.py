"""What a layer's time is made of: work that has a physical meaning, in units of it.

`terms` turns a layer into amounts (multiply-adds as the kernel does them, padding included; bytes through a cache
level; elements of a function; kernel calls), and a fit finds the seconds of each unit. How kernels work follows the
sources of ONNX Runtime's MLAS: `snchwc.cpp` (blocked convolutions and pools: sets of four filter blocks, six output
positions at once, the leftover ones singly), `convolve.cpp` (im2col and matrix product) and `sgemm.cpp`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from corepipe.cost.calibration import Sample

FLOAT_BYTES = 4

CROSSING = "crossing.bytes"
"""The term of bytes that another core of the same worker may have written: nothing on one core."""


@dataclass(frozen=True)
class Tiling:
    """How many values a kernel works on at once.

    Attributes:
        block: channels in a block, the width of a vector register.
        outputs: output positions that are computed together.
        filters: filter blocks that are computed together.
    """

    name: str
    block: int
    outputs: int
    filters: int = 4


@dataclass(frozen=True)
class Caches:
    """What a core has of caches.

    Attributes:
        own: bytes of its own cache.
        shared: bytes that it effectively has of the cache that all cores share.
        others_rate: bytes/s that others push through the shared cache.
    """

    own: float
    shared: float
    others_rate: float = 0.0


TILINGS = {
    tiling.name: tiling
    for tiling in (Tiling("16x6", 16, 6), Tiling("8x3", 8, 3), Tiling("16x2", 16, 2), Tiling("4x3", 4, 3))
}
"""By vector width: AVX-512, AVX2, NEON with blocks of 16, SSE."""

MATMULS = frozenset({"MatMul", "Gemm", "FusedMatMul", "FusedGemm"})
_MOVES = frozenset({"Concat", "Split", "Slice", "Gather", "Pad", "Expand", "Tile", "DepthToSpace", "SpaceToDepth"})
_FREE = frozenset({
    "BatchNormalization", "Relu", "Reshape", "Flatten", "Identity", "Dropout", "Squeeze", "Unsqueeze", "Constant",
    "Cast", "Shape",
})  # fmt: skip
_THINNING = "AveragePool"
"""Beside the main operator of a layer of another kind it only thins out; see `corepipe.network.strides`."""
_FUSED = {"Clip": "clip", "LeakyRelu": "leaky", "Sigmoid": "sigmoid", "Tanh": "tanh", "HardSigmoid": "clip"}
_FUNCTIONS = {
    "Sigmoid": "sigmoid", "Tanh": "tanh", "Erf": "erf", "Exp": "exp", "Log": "exp", "Sqrt": "sqrt", "Pow": "pow",
    "Div": "div", "HardSwish": "hardswish", "HardSigmoid": "clip", "LeakyRelu": "leaky", "Clip": "clip", "Gelu": "erf",
    "QuickGelu": "silu", "Softplus": "exp", "Elu": "exp", "Mish": "exp", "Sin": "sin", "Cos": "sin",
}  # fmt: skip
_SEVERAL = {"Softmax": "softmax", "LogSoftmax": "softmax", "LRN": "lrn"}


class Terms(dict[str, float]):
    """Amounts by name of the term."""

    def more(self, name: str, amount: float) -> None:
        """Add to a term; nothing is kept of zero."""
        if amount > 0:
            self[name] = self.get(name, 0.0) + amount

    def pass_over(self, name: str, amount: float, caches: Caches) -> None:
        """Add what of `amount` bytes, read and written at once, does not fit into the caches."""
        memory = _far(amount, caches.shared)
        self.more(f"{name}.far_bytes", amount * max(_far(amount, caches.own) - memory, 0.0))
        self.more(f"{name}.memory_bytes", amount * memory)


def family(sample: Sample) -> str:
    """The kind of kernel that does most of a layer."""
    main = _main(sample)
    if main in MATMULS:
        return "vector-matrix" if sample.m * sample.groups <= 1 else "matrix"
    if sample.kind == "depthwise":
        return "depthwise" if sample.blocked else "im2col"
    if main == "Conv":
        if not sample.blocked:
            return "im2col"
        if sample.groups > 1:
            return "grouped"
        if _channels_in(sample) < 16:
            return "image-conv"
        return "pointwise" if _volume(sample) == 1 else "conv"
    if sample.kind == "pool":
        return "pool"
    if main in _SEVERAL:
        return _SEVERAL[main]
    if sample.kind == "normalisation":
        return "normalisation"
    if main.startswith(("Reduce", "Arg")):
        return "reduce"
    if main in ("Transpose", "Resize", "Upsample"):
        return main.lower()
    if main in _MOVES:
        return "move"
    return "elementwise" if sample.kind == "elementwise" else "other"


def terms(sample: Sample, tiling: Tiling, caches: Caches, frame_s: float = 0.0) -> Terms:
    """The amounts of work of a layer.

    Args:
        sample: the layer.
        tiling: of the engine's blocked convolutions on this machine.
        caches: of the core.
        frame_s: seconds from one use of a weight to the next: those of the whole network.
    """
    found = Terms()
    kind = family(sample)
    distance = sample.footprint + frame_s * caches.others_rate
    found.more("call", sample.reorders + (kind != "transpose" or sample.moves))
    found.more("reorder.bytes", 2 * sample.reorder_bytes)
    found.pass_over("copying", 2 * sample.reorder_bytes, caches)
    _before(found, sample, caches)
    if kind in ("conv", "pointwise", "grouped", "image-conv"):
        _convolution(found, kind, sample, tiling, caches)
    elif kind == "depthwise":
        _depthwise(found, sample, tiling)
    elif kind == "im2col":
        patches = sample.m * sample.k * sample.groups * FLOAT_BYTES if _volume(sample) > 1 else 0
        found.more("im2col.bytes", patches)
        found.more("im2col.macs", _padded(sample.n, 16) * sample.m * sample.k * sample.groups)
        found.more("im2col.groups", sample.groups)
    elif kind in ("matrix", "vector-matrix"):
        _matrix(found, kind, sample, caches, distance)
    elif kind == "pool":
        _pool(found, sample)
    else:
        _other(found, kind, sample)
    _tail(found, sample, caches)
    if kind != "vector-matrix":
        _stream(found, "weights", sample.bytes_weights, distance, caches)
    computing = kind in ("conv", "pointwise", "grouped", "image-conv", "depthwise", "im2col", "matrix")
    moved = sample.bytes_in + sample.bytes_out
    found.more(CROSSING, sample.bytes_in)
    if kind != "transpose" or sample.moves:
        found.pass_over("computing" if computing else "copying", moved, caches)
    return found


def _far(working_set: float, cache: float) -> float:
    """Which share of a working set comes from beyond a cache: none up to half of the cache, all from twice of it."""
    return min(max(0.5 + math.log2(max(working_set, 1.0) / cache) / 2, 0.0), 1.0)


def _stream(found: Terms, name: str, amount: float, distance: float, caches: Caches) -> None:
    """Bytes that are read once per frame: where they come from depends on the bytes that pass in between."""
    far, memory = _far(distance, caches.own), _far(distance, caches.shared)
    found.more(f"{name}.far_bytes", amount * max(far - memory, 0.0))
    found.more(f"{name}.memory_bytes", amount * memory)


def _before(found: Terms, sample: Sample, caches: Caches) -> None:
    """Operators before the main one: kernels of their own that move what the main one reads."""
    for name in sample.op_types[: sample.op_types.index(_main(sample))]:
        if name == _THINNING:
            _thin(found, sample.bytes_in, caches)
        elif name not in _FREE:
            found.more("call", 1)
            found.more("move.bytes", 2 * sample.bytes_in)
            found.pass_over("copying", 2 * sample.bytes_in, caches)


def _thin(found: Terms, bytes_in: float, caches: Caches) -> None:
    """A pool over single pixels, which reads about a quarter and writes as much."""
    found.more("call", 1)
    found.more("move.bytes", bytes_in / 2)
    found.pass_over("copying", bytes_in / 2, caches)


def _convolution(found: Terms, kind: str, sample: Sample, tiling: Tiling, caches: Caches) -> None:
    block, volume = tiling.block, _volume(sample)
    if kind == "grouped":
        kind = "pointwise" if volume == 1 else "conv"
    groups = sample.groups
    per_group = max(1, sample.k // volume)
    inputs = per_group if kind == "image-conv" else _padded(per_group, block)
    blocks = math.ceil(sample.n / block)
    macs_per_block = float(sample.m) * inputs * volume * block * groups
    found.more(f"{kind}.macs", macs_per_block * blocks)
    left = blocks % tiling.filters
    if left:
        found.more(f"{kind}.left{left}_macs", macs_per_block * left)
    found.more("conv.single_macs", macs_per_block * blocks * _single(sample, tiling))
    passes = inputs if kind == "image-conv" else math.ceil(inputs / (128 if volume == 1 else block))
    written = float(sample.m) * blocks * block * groups * FLOAT_BYTES
    live = sample.m * min(blocks, tiling.filters) * block * FLOAT_BYTES
    found.more(f"{kind}.{'far' if live > caches.own / 2 else 'near'}_sums", written * max(passes - 1, 0))
    found.more(f"{kind}.outputs", float(sample.m) * blocks * block * groups)
    sets = math.ceil(blocks / tiling.filters) * groups
    rows = math.sqrt(sample.m)
    found.more("conv.rows", rows * sets * (passes if volume > 1 else 1))
    found.more("conv.inputs", (sets - 1) / groups * sample.bytes_in if sets > groups else 0)


def _single(sample: Sample, tiling: Tiling) -> float:
    """The share of output positions that are computed singly: left over in a row, or next to padding."""
    width = max(1, math.isqrt(sample.m))
    pad = (sample.kernel[-1] - 1) if sample.kernel else 0
    if _volume(sample) == 1 and all(stride == 1 for stride in sample.strides):
        return (sample.m % tiling.outputs) / max(sample.m, 1)  # 0 where the input's shape depends on the data
    edge = min(width, math.ceil(pad / max(sample.strides[-1], 1)) if sample.strides else pad)
    return (edge + (width - edge) % tiling.outputs) / width


def _depthwise(found: Terms, sample: Sample, tiling: Tiling) -> None:
    channels = _padded(sample.groups, tiling.block)
    macs = float(sample.m) * channels * _volume(sample)
    found.more("depthwise.macs", macs)
    found.more("depthwise.single_macs", macs * _single(sample, tiling))
    found.more("depthwise.outputs", float(sample.m) * channels)
    found.more("depthwise.rows", math.sqrt(sample.m) * channels / tiling.block)


def _matrix(found: Terms, kind: str, sample: Sample, caches: Caches, distance: float) -> None:
    weights = sample.k * sample.n * sample.groups * FLOAT_BYTES
    if kind == "vector-matrix":
        found.more("vector-matrix.bytes", weights)
        _stream(found, "vector-matrix", weights, distance, caches)
        return
    macs = float(sample.m) * sample.k * _padded(sample.n, 16) * sample.groups
    found.more("matrix.macs", macs)
    found.more("matrix.single_macs", macs * (sample.m % 12) / max(sample.m, 1))
    if sample.bytes_weights < weights:
        found.more("matrix.packed_bytes", weights)
    found.more("matrix.products", sample.groups)


def _pool(found: Terms, sample: Sample) -> None:
    kind = _main(sample)
    if kind.startswith("Global"):
        found.more("pool.global_bytes", sample.bytes_in)
        return
    elements = sample.bytes_out / FLOAT_BYTES
    window = math.prod(sample.kernel) if sample.kernel else 1
    place = f"{kind.lower()}.{'blocked' if sample.blocked else 'plain'}"
    found.more(f"{place}_window", elements * window)
    found.more(f"{place}_outputs", elements)


def _other(found: Terms, kind: str, sample: Sample) -> None:
    main = _main(sample)
    elements = sample.bytes_out / FLOAT_BYTES
    moved = sample.bytes_in + sample.bytes_out
    if kind in ("lrn", "softmax", "normalisation"):
        found.more(f"{main.lower()}.elements", elements)
    elif kind == "reduce":
        found.more(f"{main.lower()}.bytes", sample.bytes_in)
    elif kind == "transpose":
        found.more("transpose.bytes", moved if sample.moves else 0)
        found.more("transpose.copies", sample.copies)
    elif kind in ("resize", "upsample"):
        found.more("resize.bytes", moved)
    elif kind == "move":
        found.more("move.bytes", moved)
    else:
        found.more("elementwise.bytes", moved)
        if main in _FUNCTIONS:
            found.more(f"{_FUNCTIONS[main]}.elements", elements)


def _tail(found: Terms, sample: Sample, caches: Caches) -> None:
    """What follows the main operator: for nothing, in the kernel's last pass, or in kernels of its own."""
    elements = sample.bytes_out / FLOAT_BYTES

    def own_kernel() -> None:
        found.more("call", 1)
        found.more("elementwise.bytes", 2 * sample.bytes_out)
        found.pass_over("copying", 2 * sample.bytes_out, caches)

    names = list(sample.op_types)
    main = names.index(_main(sample))
    convolution = names[main] == "Conv"
    fusing = convolution or names[main] in MATMULS
    rest = names[main + 1 :]
    at = 0
    while at < len(rest):
        name, after = rest[at], rest[at + 1] if at + 1 < len(rest) else ""
        at += 1
        if name == "Sigmoid" and after == "Mul":
            own_kernel()
            found.more("silu.elements", elements)
            at += 1
            fusing = False
        elif name == _THINNING:
            _thin(found, 4 * sample.bytes_out, caches)
        elif name in _FREE or (name in ("Mul", "Div") and at == 1 and names[main] in MATMULS):
            continue
        elif name in ("Add", "Sum") and fusing:
            if convolution:
                found.more("residual.bytes", elements * FLOAT_BYTES)
        elif name in _FUSED and convolution and fusing:
            found.more(f"fused.{_FUSED[name]}", elements)
            fusing = False
        else:
            fusing = False
            own_kernel()
            if name in _FUNCTIONS:
                found.more(f"{_FUNCTIONS[name]}.elements", elements)


def _main(sample: Sample) -> str:
    """The operator that the descriptor's kind comes from."""
    names = sample.op_types
    wanted = {
        "conv": ("Conv",), "grouped": ("Conv",), "depthwise": ("Conv",), "fully-connected": tuple(MATMULS),
    }.get(sample.kind)  # fmt: skip
    if wanted:
        return next((name for name in names if name in wanted), names[0])
    if sample.kind == "pool":
        return next((name for name in names if name.endswith("Pool")), names[0])
    if sample.kind == "normalisation":
        return next((name for name in names if name.endswith(("Normalization", "Softmax", "LRN"))), names[0])
    passed = _FREE - {"BatchNormalization"} | {_THINNING}
    return next((name for name in names if name not in passed), names[0])


def _volume(sample: Sample) -> int:
    return math.prod(sample.kernel) if sample.kernel else 1


def _channels_in(sample: Sample) -> int:
    return sample.k // _volume(sample) * sample.groups


def _padded(value: float, multiple: int) -> int:
    return math.ceil(value / multiple) * multiple
