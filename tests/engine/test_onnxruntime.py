"""ONNX Runtime's profiler, which writes to a file: where it cannot, no model is to be blamed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from corepipe.cost.measuring import layer_seconds, name_by_layer
from corepipe.engine import onnxruntime as module
from corepipe.errors import WorkerError
from corepipe.network.load import load_network


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


def test_names_that_would_spoil_its_profile():
    """It writes them as they are; on x86 blocked convolutions are named after their outputs."""
    names = ["x", 'a "name"', "a\\name", "a\ttab", "y"]
    weights = [numpy_helper.from_array(np.full((16, 16, 3, 3), 0.01, np.float32), f"w{i}") for i in range(4)]
    nodes = [
        helper.make_node("Conv", [names[i], f"w{i}"], [names[i + 1]], kernel_shape=[3, 3], pads=[1] * 4)
        for i in range(4)
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 16, 8, 8]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    network = load_network(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    named = name_by_layer(network, network.segment(0, len(network.layers)))
    frame = {"x": np.ones((1, 16, 8, 8), np.float32)}
    runs = module.ENGINE.profile(named.model.SerializeToString(), 1, frame, 2)
    seconds = layer_seconds(network, [[(kernel.node, kernel.seconds) for kernel in run] for run in runs])
    assert len(seconds) == 4
    assert min(seconds) > 1e-8


@pytest.mark.parametrize("users", [None, "0"])
def test_a_process_that_loads_it_sends_no_telemetry_but_where_the_user_says_so(monkeypatch, users):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    if users is not None:
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", users)
    script = (
        "import os, sys; from corepipe import engine\n"
        "sys.addaudithook(lambda event, args: event == 'import' and args[0] == 'onnxruntime'"
        " and (print(os.environ['ORT_DISABLE_TELEMETRY'], flush=True), os._exit(0)))\n"
        "engine.get('onnxruntime')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == f"{users or 1}\n", done.stderr
