"""An engine by itself: it gives what the model gives, is measured beside plans, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import psutil
import pytest
from commands import corepipe
from cost_tables import of_machine
from reference import named_frames
from typer.testing import CliRunner

from corepipe import baseline
from corepipe import compare as comparing
from corepipe.baseline import ENGINES, Baseline, EngineAlone, baselines
from corepipe.bench_setup import bench_names, bench_plans
from corepipe.cli import app
from corepipe.errors import WorkerError
from corepipe.report.bench import bench_json, describe
from corepipe.report.page import page
from corepipe.topology import detect
from corepipe.topology.model import Cluster, Core, Topology


@pytest.fixture
def model(chain, tmp_path):
    path = tmp_path / "chain.onnx"
    onnx.save(chain.model, path)
    return str(path)


@pytest.fixture
def table(chain, here):
    """Made-up costs for this machine."""
    return of_machine(chain, here)


_IN_HALF_PRECISION = 5e-2
"""What OpenVINO by itself computes in on CPUs that have bfloat16."""


def descriptors():
    return set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()


@pytest.mark.parametrize("engine", ENGINES)
def test_it_gives_what_the_model_gives_and_counts_its_calls(chain, here, model, engine):
    if importlib.util.find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed")
    frames, before = named_frames(chain, 3), descriptors()
    alone = EngineAlone(Baseline(engine, model), chain, here, frames)
    (pid,) = alone.worker_pids.values()
    try:
        session = ort.InferenceSession(model)
        for frame, output in zip(frames, alone.outputs, strict=True):
            (want,) = session.run(None, frame)
            (got,) = output.values()
            tolerance = _IN_HALF_PRECISION if engine == "openvino" else 1e-3
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.abs(want).max())
        assert alone.frame_s > 0
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
    alone = EngineAlone(Baseline("onnxruntime", model), chain, detect(restrict_to=core.cpus), named_frames(chain, 3))
    try:
        alone.run(0.05, 5, 10.0)
        (pid,) = alone.worker_pids.values()
        for task in os.listdir(f"/proc/{pid}/task"):
            assert os.sched_getaffinity(int(task)) <= set(core.cpus)
    finally:
        alone.close()


@pytest.mark.parametrize(
    ("cpus", "pinnable", "expected"),
    [(8, True, (2, [0, 1, 2, 3], 2)), (4, True, (2, [], 0)), (8, False, (2, [], 2))],
)
def test_it_is_told_of_cores_and_kept_to_them_only_where_not_all_are_used(
    chain, model, monkeypatch, cpus, pinnable, expected
):
    class Started(Exception):
        pass

    def start(module, name, cpus, config, engines, fds, threads, strict):
        raise Started(threads, list(cpus), config["own_threads"])

    monkeypatch.setattr(baseline, "spawn", start)
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    cores = (Core(cpus=(0, 2)), Core(cpus=(1, 3)))  # two threads each
    topology = Topology(clusters=(Cluster("cpu", cores),), pinnable=pinnable)
    with pytest.raises(Started) as caught:
        EngineAlone(Baseline("onnxruntime", model), chain, topology, named_frames(chain, 3))
    assert caught.value.args == expected


def test_its_memory_is_the_engine_s():
    code = (
        "import sys, corepipe.runtime.bare; print(*{'onnx', 'pydantic', 'onnxruntime', 'openvino'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split() == []


def test_slices_are_as_long_as_slow_frames_need(chain, here, model, table, monkeypatch):
    asked = []

    class Slow(EngineAlone):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.frame_s = 2.0

        def run(self, seconds, least, most_s):
            asked.append((seconds, most_s))
            return super().run(0.0, least, 10.0)

    monkeypatch.setattr(comparing, "EngineAlone", Slow)
    only = [Baseline("onnxruntime", model)]
    (result,) = comparing.compare(chain, {}, here, table, named_frames(chain, 3), rounds=1, slice_s=0.1, baselines=only)
    ((seconds, most_s),) = asked
    assert most_s >= seconds >= 24 * 2.0
    assert result.short_slices == 0


def test_what_the_engine_refuses_is_said(chain, here, tmp_path):
    path = tmp_path / "damaged.onnx"
    path.write_bytes(b"no model")
    before = descriptors()
    with pytest.raises(WorkerError, match="engine:onnxruntime: onnxruntime refuses the model"):
        EngineAlone(Baseline("onnxruntime", str(path)), chain, here, named_frames(chain, 3))
    assert descriptors() <= before


def test_a_process_that_is_killed_is_an_error(chain, here, model):
    alone = EngineAlone(Baseline("onnxruntime", model), chain, here, named_frames(chain, 3))
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
        chain,
        plans,
        here,
        table,
        named_frames(chain, 3),
        rounds=2,
        slice_s=0.1,
        baselines=[Baseline("onnxruntime", model)],
    )
    alone, plan = results
    assert (alone.name, alone.alone, plan.name, plan.alone) == ("engine:onnxruntime", True, "all-cores", False)
    assert alone.outputs_equal
    assert math.isnan(alone.predicted_fps)
    assert 0 < alone.throughput_spread_fps[0] <= alone.throughput_fps
    assert alone.busy["all"] > 0.5
    assert alone.peak_rss_bytes > 10e6
    data = json.loads(json.dumps(bench_json(results, chain, here, table, "corepipe bench", "made up"), allow_nan=False))
    assert [(r["plan"], r["engine_alone"]) for r in data["results"]] == [(r.name, r.alone) for r in results]
    words = " ".join(describe(results))
    assert "engine:onnxruntime" in words
    assert "nan" not in words
    assert "All outputs equal" in words
    html = page(chain, here, table, results, {r.name: r.records for r in results})
    assert "engine:onnxruntime" in html
    assert html.count("planned ") == html.count("route 0, ") == 1  # of the plan alone
    only = " ".join(describe([alone]))
    assert "No plan" not in only
    differs = dataclasses.replace(alone, largest_error=0.5)
    words = " ".join(describe([differs, plan]))
    assert "The outputs of engine:onnxruntime differ" in words
    assert "All plans' outputs equal" in words
    assert "spreads overlap" not in words  # what is wrong wins nothing
    faster = dataclasses.replace(plan, largest_error=0.5, throughput_fps=10 * alone.throughput_fps)
    words = " ".join(describe([alone, faster]))
    assert "No plan with equal outputs is faster" in words
    assert "The outputs of all-cores differ" in words


def test_one_that_cannot_run_is_left_out(chain, here, tmp_path, table):
    path = tmp_path / "damaged.onnx"
    path.write_bytes(b"no model")
    failures = {}
    results = comparing.compare(
        chain, bench_plans(table, ["all-cores"], {}), here, table, named_frames(chain, 3), rounds=1, slice_s=0.01,
        baselines=[Baseline("onnxruntime", str(path))], on_failure=failures.__setitem__,
    )  # fmt: skip
    assert [r.name for r in results] == ["all-cores"]
    assert list(failures) == ["engine:onnxruntime"]


@pytest.mark.usefixtures("kept_costs")
def test_a_plan_s_failure_is_told_rather_than_an_engine_s(classifier, monkeypatch):
    def compare(*_, on_failure, correct_rates, **__):
        assert list(correct_rates) == ["routes"], "as `run` does; other plans run as they are"
        on_failure("engine:onnxruntime", WorkerError("the engine failed"))
        on_failure("routes", WorkerError("the plan failed"))
        return []

    monkeypatch.setattr(comparing, "compare", compare)
    result = CliRunner().invoke(app, ["bench", str(classifier), "--engine", "onnxruntime"])
    assert str(result.exception) == "the plan failed"


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
