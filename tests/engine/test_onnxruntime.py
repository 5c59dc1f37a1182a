"""ONNX Runtime's profiler, which writes to a file: where it cannot, no model is to be blamed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from corepipe.engine import onnxruntime as module
from corepipe.errors import WorkerError


def profile():
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return module.ENGINE.profile(model.SerializeToString(), 1, {"x": np.zeros((1, 4), np.float32)}, 2)


def test_no_temporary_folder(monkeypatch):
    def none(*_, **__):
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "mkdtemp", none)
    with pytest.raises(WorkerError, match=r"No usable temporary directory.*TMPDIR"):
        profile()


def test_a_full_temporary_folder(monkeypatch):
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: real(path)[:100])
    with pytest.raises(WorkerError, match=r"could not write to .*TMPDIR"):
        profile()


def test_nothing_is_left_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert len(profile()) == 2
    assert os.listdir(tmp_path) == []
