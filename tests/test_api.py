"""Five seconds of everything: the API of three lines."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import corepipe
from corepipe import api
from corepipe.cost import profile as profiling
from corepipe.errors import UsageError, WorkerError


def test_the_three_lines(make_chain, tmp_path, monkeypatch):
    monkeypatch.setattr(profiling, "_SECONDS", 0.02)
    path = tmp_path / "chain.onnx"
    path.write_bytes(make_chain().SerializeToString())
    frames = [np.full((1, 8, 16, 16), value, np.float32) for value in range(5)]
    with corepipe.open(path) as stream:
        outputs = list(stream(frames))
    assert [output.shape for output in outputs] == [(1, 8, 16, 16)] * 5
    assert not outputs[0].any()
    np.testing.assert_allclose(outputs[2], 2 * outputs[1], rtol=1e-5)


def test_nothing_is_left_running_where_the_plan_cannot_be_followed(make_chain, tmp_path, monkeypatch):
    monkeypatch.setattr(profiling, "_SECONDS", 0.02)
    path = tmp_path / "chain.onnx"
    path.write_bytes(make_chain().SerializeToString())
    opened = []

    def follower(stream, _):
        opened.append(stream)
        raise WorkerError("the system has no thread left")

    monkeypatch.setattr(api, "Follower", follower)
    with pytest.raises(WorkerError, match="no thread left"):
        corepipe.open(path)
    (stream,) = opened
    assert stream.closed


def test_a_network_of_the_zoo_by_name_with_a_plan(here):
    with corepipe.open("squeezenet", planner="all-cores") as stream:
        output = stream.submit(np.zeros((1, 3, 227, 227), np.float32)).result(60)
    assert output.sum() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("option", [{"planner": "rout"}, {"engines": ["ncnn"]}, {"batch": 8}, {"use_cache": False}])
def test_options_without_effect_on_a_plan_are_refused(option):
    with pytest.raises(UsageError, match=f"{next(iter(option))} has no effect with a plan"):
        corepipe.open("squeezenet", plan="plan.json", **option)


def test_the_public_names_exist():
    for name in corepipe.__all__:
        assert getattr(corepipe, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        corepipe.nonsense  # noqa: B018


def test_importing_corepipe_loads_no_numeric_library():
    heavy = "{'numpy', 'onnx', 'onnxruntime', 'cv2'}"
    code = f"import sys, corepipe, corepipe.runtime.child; print(*sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_workers_of_onnxruntime_do_not_load_onnx():
    code = (
        "import sys, corepipe.runtime.worker; from corepipe import engine; engine.get('onnxruntime'); "
        "print('onnx' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
