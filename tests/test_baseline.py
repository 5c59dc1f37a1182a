"""An engine by itself: it gives what the model gives, is measured beside plans, and leaves nothing behind."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal

import numpy as np
import onnx
import onnxruntime as ort
import psutil
import pytest
from commands import corepipe
from cost_tables import of_machine

from corepipe import compare as comparing
from corepipe.baseline import ENGINES, Baseline, EngineAlone, baselines
from corepipe.bench_setup import bench_names, bench_plans
from corepipe.errors import WorkerError
from corepipe.report.bench import bench_json, describe
from corepipe.report.page import page
from corepipe.topology import detect


@pytest.fixture
def model(chain, tmp_path):
    path = tmp_path / "chain.onnx"
    onnx.save(chain.model, path)
    return str(path)


@pytest.fixture
def table(chain, here):
    """Made-up costs for this machine."""
    return of_machine(chain, here)


def frames_of(network, count=3):
    generator = np.random.default_rng(0)
    return [{"t0": generator.standard_normal(network.inputs[0].shape, np.float32)} for _ in range(count)]


def descriptors():
    return set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()


@pytest.mark.parametrize("engine", ENGINES)
def test_it_gives_what_the_model_gives_and_counts_its_calls(chain, here, model, engine):
    if importlib.util.find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed")
    frames, before = frames_of(chain), descriptors()
    alone = EngineAlone(Baseline(engine, model), chain, here, frames)
    (pid,) = alone.worker_pids.values()
    try:
        session = ort.InferenceSession(model)
        for frame, output in zip(frames, alone.outputs, strict=True):
            (want,) = session.run(None, frame)
            (got,) = output.values()
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3 * np.abs(want).max())
        calls = alone.run(0.05, 5, 10.0)
        assert len(calls) >= 5
        assert calls[-1][1] - calls[0][0] >= 0.05e9
        assert all(began <= ended for began, ended in calls)
        assert len(alone.run(0.0, 7, 10.0)) == 7
        assert len(alone.run(1.0, 10**9, 0.0)) == 1
    finally:
        alone.close()
    alone.close()
    assert not psutil.pid_exists(pid)
    assert descriptors() <= before


def test_a_network_of_the_zoo_needs_no_file(here):
    from corepipe.network.load import open_network

    network = open_network("squeezenet")
    frame = {network.inputs[0].name: np.zeros(network.inputs[0].shape, np.float32)}
    alone = EngineAlone(Baseline("onnxruntime", "squeezenet"), network, here, [frame])
    try:
        assert alone.outputs[0][network.outputs[0].name].shape == network.outputs[0].shape
    finally:
        alone.close()


def test_it_stays_on_the_cores_that_are_to_be_used(chain, two_cores, model):
    core = two_cores.cores[0]
    alone = EngineAlone(Baseline("onnxruntime", model), chain, detect(restrict_to=core.cpus), frames_of(chain))
    try:
        alone.run(0.05, 5, 10.0)
        (pid,) = alone.worker_pids.values()
        for task in os.listdir(f"/proc/{pid}/task"):
            assert os.sched_getaffinity(int(task)) <= set(core.cpus)
    finally:
        alone.close()


def test_what_the_engine_refuses_is_said(chain, here, tmp_path):
    path = tmp_path / "damaged.onnx"
    path.write_bytes(b"no model")
    before = descriptors()
    with pytest.raises(WorkerError, match="engine:onnxruntime: onnxruntime refuses the model"):
        EngineAlone(Baseline("onnxruntime", str(path)), chain, here, frames_of(chain))
    assert descriptors() <= before


def test_a_process_that_is_killed_is_an_error(chain, here, model):
    alone = EngineAlone(Baseline("onnxruntime", model), chain, here, frames_of(chain))
    try:
        (pid,) = alone.worker_pids.values()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match="engine:onnxruntime was killed by signal 9"):
            alone.run(0.1, 1, 1.0)
    finally:
        alone.close()


def test_it_is_measured_beside_plans(chain, here, model, table):
    plans = bench_plans(table, ["all-cores"], {})
    results = comparing.compare(
        chain, plans, here, table, frames_of(chain), rounds=2, slice_s=0.1, baselines=[Baseline("onnxruntime", model)]
    )
    alone, plan = results
    assert (alone.name, alone.alone, plan.name, plan.alone) == ("engine:onnxruntime", True, "all-cores", False)
    assert alone.outputs_equal
    assert math.isnan(alone.predicted_fps)
    assert 0 < alone.throughput_spread_fps[0] <= alone.throughput_fps
    assert alone.busy["all"] > 0.5
    assert alone.peak_rss_bytes > 10e6
    data = json.loads(json.dumps(bench_json(results, chain, here, table, ["corepipe"], "made up"), allow_nan=False))
    assert [(r["plan"], r["engine_alone"]) for r in data["results"]] == [(r.name, r.alone) for r in results]
    words = " ".join(describe(results))
    assert "engine:onnxruntime" in words
    assert "nan" not in words
    assert "engine:onnxruntime" in page(chain, here, table, results, {r.name: r.records for r in results})


def test_one_that_cannot_run_is_left_out(chain, here, tmp_path, table):
    path = tmp_path / "damaged.onnx"
    path.write_bytes(b"no model")
    failures = {}
    results = comparing.compare(
        chain, bench_plans(table, ["all-cores"], {}), here, table, frames_of(chain), rounds=1, slice_s=0.01,
        baselines=[Baseline("onnxruntime", str(path))], on_failure=failures.__setitem__,
    )  # fmt: skip
    assert [r.name for r in results] == ["all-cores"]
    assert list(failures) == ["engine:onnxruntime"]


def test_names():
    alone = list(baselines(["onnxruntime", "ncnn"], "squeezenet"))
    assert bench_names(["cpu"], (), (), alone)[:2] == ["engine:onnxruntime", "all-cores"]
    assert bench_names(["cpu"], ["engine:openvino"], (), ["engine:openvino"]) == ["engine:openvino"]


@pytest.mark.usefixtures("kept_costs")
def test_only_the_engine(classifier):
    words = ["--only", "engine:onnxruntime", "--rounds", 2, "--seconds", 0.1, "--engine", "onnxruntime"]
    result = corepipe("bench", classifier, *words)
    assert result.returncode in (0, 3), result.stderr
    assert "Best: engine:onnxruntime" in result.stdout
    assert "To run it" not in result.stdout
