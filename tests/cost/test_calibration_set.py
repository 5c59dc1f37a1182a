from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from corepipe.cost.calibration_set import calibration_network, kind_count
from corepipe.cost.predict.layout import samples
from corepipe.cost.predict.terms import family
from corepipe.errors import UsageError

WANTED = {
    "conv", "pointwise", "image-conv", "grouped", "depthwise", "im2col", "matrix", "vector-matrix", "pool", "lrn",
    "softmax", "normalisation", "reduce", "transpose", "resize", "move", "elementwise",
}  # fmt: skip


@pytest.fixture(scope="module")
def networks():
    return [calibration_network(index) for index in range(2 * kind_count())]


def test_the_kinds_cover_what_current_networks_use(networks):
    seen = [sample for network in networks for sample in samples(network)]
    assert {family(sample) for sample in seen} >= WANTED
    operators = {op for sample in seen for op in sample.op_types}
    assert {"Conv", "Gemm", "MatMul", "MaxPool", "Concat", "Add", "Sigmoid", "Resize", "Softmax"} <= operators
    kernels = {sample.kernel for sample in seen if "Conv" in sample.op_types}
    assert {(1, 1), (3, 3)} <= kernels
    assert any(max(sample.strides, default=1) > 1 for sample in seen)


def test_layers_come_several_to_a_network(networks):
    assert all(len(network.layers) >= 3 for network in networks)
    assert len({network.name for network in networks}) == len(networks)


def test_the_same_index_gives_the_same_network():
    first, again = calibration_network(7), calibration_network(7)
    assert first.sha256 == again.sha256
    assert calibration_network(7 + kind_count()).sha256 != first.sha256


def test_a_negative_index_is_refused():
    with pytest.raises(UsageError, match="-1"):
        calibration_network(-1)


def test_outputs_are_ordinary_numbers(networks):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    for network in sorted(networks, key=lambda n: n.flops + 20 * n.weight_bytes)[:12]:
        session = onnxruntime.InferenceSession(
            network.model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
        )
        shape = network.inputs[0].shape
        frame = np.random.default_rng(0).standard_normal(shape, np.float32)
        (output,) = session.run(None, {network.inputs[0].name: frame})
        assert output.shape == network.outputs[0].shape
        assert np.isfinite(output).all()
