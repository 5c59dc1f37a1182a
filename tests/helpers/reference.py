"""The oracle of the runtime: what the whole, unsplit model gives."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort


def frames_for(network, count, seed=1):
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(network.inputs[0].shape, np.float32) for _ in range(count)]


def named_frames(network, count, seed=1):
    """The same as who calls a stream may write them: by the name of their input."""
    return [{network.inputs[0].name: frame} for frame in frames_for(network, count, seed)]


def whole(network, frames):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(network.model.SerializeToString(), options)
    name = network.inputs[0].name
    return [session.run(None, {name: frame})[0] for frame in frames]


def by_onnxruntime(data, inputs):
    """All outputs of a serialized model by name."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def assert_same(output, expected, number):
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5, err_msg=f"frame {number}")


def assert_equal(outputs, expected):
    outputs = list(outputs)
    assert len(outputs) == len(expected)
    for number, (output, want) in enumerate(zip(outputs, expected, strict=True)):
        assert_same(output, want, number)
