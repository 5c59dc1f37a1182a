from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corepipe.cost.calibration import Sample
from corepipe.cost.predict.terms import CROSSING, TILINGS, Caches, family, terms

TILING = TILINGS["16x6"]
CACHES = Caches(2**20, 2**25)


def conv(side=14, filters=64, channels=64, kernel=3, groups=1, **more):
    m, k = side * side, channels // groups * kernel * kernel
    given = {
        "kind": "conv", "op_types": ("Conv", "Relu"), "m": m, "n": filters // groups, "k": k, "groups": groups,
        "flops": 2 * m * filters * k, "bytes_in": 4 * m * channels, "bytes_out": 4 * m * filters,
        "bytes_weights": 4 * filters * k, "kernel": (kernel, kernel), "strides": (1, 1), "dilations": (1, 1),
        "blocked": True,
    }  # fmt: skip
    return Sample(**(given | more))


@given(
    side=st.integers(1, 300),
    filters=st.integers(1, 2048),
    channels=st.integers(1, 512).map(lambda c: 4 * c),
    kernel=st.sampled_from([1, 3, 5, 7]),
    tiling=st.sampled_from(list(TILINGS.values())),
    blocked=st.booleans(),
)
def test_amounts_are_positive_and_at_least_the_arithmetic(side, filters, channels, kernel, tiling, blocked):
    sample = conv(side, filters, channels, kernel, blocked=blocked)
    found = terms(sample, tiling, CACHES)
    assert all(amount > 0 for amount in found.values())
    assert found["call"] == 1
    computed = sum(amount for name, amount in found.items() if name.endswith(".macs"))
    assert computed >= sample.flops / 2 * 0.999


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_whose_input_depends_on_the_data_costs_next_to_nothing(kernel):
    """Its sizes are not known, and count as 0."""
    found = terms(conv(side=0, kernel=kernel, k=0, bytes_weights=0), TILING, CACHES)
    assert found["call"] == 1


def test_filters_are_padded_to_a_block():
    assert terms(conv(filters=49), TILING, CACHES)["conv.macs"] == terms(conv(filters=64), TILING, CACHES)["conv.macs"]
    assert terms(conv(filters=64), TILING, CACHES)["conv.macs"] < terms(conv(filters=65), TILING, CACHES)["conv.macs"]


def test_a_batch_norm_and_a_relu_cost_nothing_and_other_tails_do():
    plain = terms(conv(op_types=("Conv",)), TILING, CACHES)
    assert terms(conv(op_types=("Conv", "BatchNormalization", "Relu")), TILING, CACHES) == plain
    assert "fused.clip" in terms(conv(op_types=("Conv", "Clip")), TILING, CACHES)
    silu = terms(conv(op_types=("Conv", "Sigmoid", "Mul")), TILING, CACHES)
    assert silu["call"] == plain["call"] + 1
    assert silu["silu.elements"] == 14 * 14 * 64
    assert "residual.bytes" in terms(conv(op_types=("Conv", "Add", "Relu")), TILING, CACHES)


def test_weights_come_from_memory_when_much_passes_in_between():
    fully = Sample(
        kind="fully-connected", op_types=("Gemm",), m=1, n=1000, k=1024, flops=2048000, bytes_in=4096, bytes_out=4000,
        bytes_weights=4100000, footprint=2**18,
    )  # fmt: skip
    assert family(fully) == "vector-matrix"
    near = terms(fully, TILING, CACHES)
    far = terms(fully.model_copy(update={"footprint": 2**28}), TILING, CACHES)
    assert set(near) == {"call", "vector-matrix.bytes", CROSSING}
    assert far["vector-matrix.memory_bytes"] == near["vector-matrix.bytes"]
    shared = Caches(2**20, 2**25, others_rate=1e10)
    assert "vector-matrix.memory_bytes" in terms(fully, TILING, shared, frame_s=0.02)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({}, "conv"),
        ({"kernel": 1}, "pointwise"),
        ({"k": 27}, "image-conv"),
        ({"groups": 4}, "grouped"),
        ({"kind": "depthwise", "groups": 64, "n": 1, "k": 9}, "depthwise"),
        ({"blocked": False}, "im2col"),
        ({"kind": "pool", "op_types": ("MaxPool",), "m": 0, "n": 0, "k": 0}, "pool"),
        ({"kind": "normalisation", "op_types": ("LRN",)}, "lrn"),
        ({"kind": "normalisation", "op_types": ("Concat", "BatchNormalization", "Relu")}, "normalisation"),
        ({"kind": "other", "op_types": ("ReduceMean",)}, "reduce"),
        ({"kind": "other", "op_types": ("GridSample",)}, "other"),
    ],
)
def test_families(change, name):
    assert family(conv(**change)) == name
    assert terms(conv(**change), TILING, CACHES)
