"""The commands as a user runs them, in processes of their own."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from corepipe.data import sample_frames


def corepipe(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "corepipe", *map(str, arguments)], capture_output=True, text=True, timeout=100, **options
    )


@pytest.fixture(scope="module")
def kept_costs(tmp_path_factory):
    """A cache folder for all tests of this file: measuring the same network once is enough."""
    return str(tmp_path_factory.mktemp("kept"))


@pytest.fixture(autouse=True)
def _kept_costs(_own_environment, kept_costs, monkeypatch):
    monkeypatch.setenv("COREPIPE_CACHE", kept_costs)


@pytest.fixture
def classifier(tmp_path):
    """A small image classifier with a dynamic batch, on disk."""
    generator = np.random.default_rng(0)
    weights = {
        "w1": generator.standard_normal((8, 3, 3, 3), np.float32) / 5,
        "w2": generator.standard_normal((16, 8, 3, 3), np.float32) / 8,
        "w3": generator.standard_normal((16, 10), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["a"], strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", "w3"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 96, 96])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = tmp_path / "classifier.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def photos(tmp_path):
    """Three photographs with an unreadable file in the middle."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, path in zip(("a.jpg", "b.jpg", "d.jpg"), sample_frames(), strict=False):
        (folder / name).write_bytes(path.read_bytes())
    (folder / "c.jpg").write_bytes(b"not a picture")
    return folder


def one_message(result, code):
    """The single message of a failed command."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_run_reads_photographs_and_names_what_it_skips(classifier, photos, tmp_path):
    out = tmp_path / "out.jsonl"
    result = corepipe("run", classifier, "--input", photos, "-o", out)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["frame"] for row in rows if "error" not in row or row["error"] is None] == ["a.jpg", "b.jpg", "d.jpg"]
    assert "skipped" in result.stderr
    assert "c.jpg" in result.stderr
    assert "3 frames" in result.stderr
    assert "1 skipped" in result.stderr


def test_run_without_an_input_reads_the_photographs_that_come_along(classifier, tmp_path):
    plan, out = tmp_path / "plan.json", tmp_path / "out.jsonl"
    assert corepipe("plan", classifier, "-o", plan).returncode == 0
    result = corepipe("run", classifier, "--plan", plan, "-o", out)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["frame"] for row in rows] == [path.name for path in sample_frames()]
    assert "photographs that come with corepipe" in result.stderr


def test_run_without_an_input_asks_for_one_where_photographs_do_not_fit(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "vector",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    (tmp_path / "vector.onnx").write_bytes(model.SerializeToString())
    assert "give frames with --input" in one_message(corepipe("run", "vector.onnx", cwd=tmp_path), 2)


def test_run_gives_what_the_whole_model_gives(classifier, photos, tmp_path):
    import onnxruntime as ort

    arrays = np.random.default_rng(0).standard_normal((5, 3, 96, 96)).astype(np.float32)
    np.save(tmp_path / "frames.npy", arrays)
    result = corepipe("run", classifier, "--input", tmp_path / "frames.npy", "-o", tmp_path / "out.npz")
    assert result.returncode == 0, result.stderr
    want = ort.InferenceSession(classifier).run(None, {"image": arrays})[0]
    with np.load(tmp_path / "out.npz") as got:
        np.testing.assert_allclose(got["logits"].reshape(5, 10), want, rtol=1e-4, atol=1e-5)


def test_run_reads_a_video(classifier, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (128, 96))
    for level in range(7):
        writer.write(np.full((96, 128, 3), level * 30, np.uint8))
    writer.release()
    result = corepipe("run", classifier, "--input", tmp_path / "v.avi", "-o", "-")
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 7


def test_a_plan_is_written_edited_and_run(classifier, photos, tmp_path):
    plan = tmp_path / "plan.json"
    result = corepipe("plan", classifier, "-o", plan, "--planner", "pipe-it")
    assert result.returncode == 0, result.stderr
    assert json.loads(plan.read_text())["planner"] == "pipe-it"
    result = corepipe("run", classifier, "--plan", plan, "--input", photos)
    assert result.returncode == 0, result.stderr
    edited = json.loads(plan.read_text())
    edited["routes"][0]["hops"][0]["layers"][0] = 1
    plan.write_text(json.dumps(edited))
    message = one_message(corepipe("run", classifier, "--plan", plan, "--input", photos), 1)
    assert "starts at layer 1, 0 was expected" in message


def test_bench_names_frames_that_it_cannot_read(classifier, photos):
    result = corepipe("bench", classifier, "--input", photos, "--only", "all-cores", "--rounds", 1, "--seconds", 0.1)
    assert result.returncode in (0, 3), result.stderr
    assert "skipped c.jpg" in result.stderr


def test_bench_writes_its_json(classifier, tmp_path):
    out = tmp_path / "bench.json"
    result = corepipe("bench", classifier, "--rounds", 2, "--seconds", 0.2, "--json", out)
    assert result.returncode in (0, 3), result.stderr
    data = json.loads(out.read_text())
    assert data["schema_version"] == 1
    names = [r["plan"] for r in data["results"]]
    assert names[0] == "all-cores"
    assert {"replicas", "pipe-it", "routes"} <= set(names)
    assert data["best"] in names
    for r in data["results"]:
        assert r["outputs_equal"]
        assert r["throughput_fps"] > 0
        assert set(r["latency_ms"]) == {"p50", "p90", "p99"}
    assert "Best:" in result.stdout or "Nothing beats" in result.stdout


@pytest.mark.parametrize("command", ["doctor", "inspect", "profile", "plan"])
def test_commands_print_tables_and_json(command, classifier):
    model = [] if command == "doctor" else [classifier]
    result = corepipe(command, *model)
    assert result.returncode == 0, result.stderr
    assert result.stdout
    result = corepipe(command, *model, "--json", "-")
    assert result.returncode == 0, result.stderr
    json.loads(result.stdout)


def test_one_core_is_enough(classifier, photos):
    cpu = str(min(os.sched_getaffinity(0)))
    result = corepipe("bench", classifier, "--cores", cpu, "--rounds", 1, "--seconds", 0.1)
    assert result.returncode in (0, 3), result.stderr
    result = corepipe("run", classifier, "--cores", cpu, "--input", photos)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["bench", "squeeznet"], 2, "did you mean 'squeezenet'"),
        (["bench", "missing.onnx"], 1, "missing.onnx"),
        (["bench", "squeezenet", "--only", "route"], 2, "did you mean 'routes'"),
        (["plan", "squeezenet", "--planner", "rotues"], 2, "did you mean 'routes'"),
        (["inspect", "squeezenet", "--shape", "data:1x3"], 2, "data"),
        (["inspect", "squeezenet", "--shape", "nonsense"], 2, "nonsense"),
        (["doctor", "--cores", "4095"], 1, "4095"),
        (["doctor", "--cores", "x"], 2, "x"),
        (["run", "squeezenet", "--input", "nowhere/"], 2, "nowhere"),
        (["run", "squeezenet", "--input", "nowhere/", "--mean", "a"], 2, "--mean"),
        (["emulate", "--slow", "1:7", "--", "true"], 1, "7"),
    ],
)
def test_wrong_usage_gives_one_message(arguments, code, words, tmp_path):
    assert words in one_message(corepipe(*arguments, cwd=tmp_path), code)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty"), (b"GIF89a hello", "ONNX"), (os.urandom(500), "ONNX")],
)
def test_files_that_are_no_model(content, words, tmp_path):
    (tmp_path / "m.onnx").write_bytes(content)
    assert words in one_message(corepipe("bench", "m.onnx", cwd=tmp_path), 1)


def test_unknown_options_are_wrong_usage():
    result = corepipe("bench", "--nonsense")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_output_into_a_closed_pipe_is_quiet(classifier):
    process = subprocess.run(
        f"{sys.executable} -m corepipe inspect {classifier} --json - | head -c 10",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in process.stderr
    assert "Broken pipe" not in process.stderr


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@pytest.mark.parametrize("extra", [[], ["--no-cache"]])
def test_ctrl_c_while_measuring_says_how_to_go_on(extra, tmp_path, monkeypatch):
    monkeypatch.setenv("COREPIPE_CACHE", str(tmp_path))
    arguments = [sys.executable, "-m", "corepipe", "profile", "resnet50", *extra]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: psutil.Process(process.pid).children())
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert out == ""
    assert err.startswith("error: interrupted; what was measured is kept: start again")
    assert ("without --no-cache" in err) == bool(extra)
    assert len(err.splitlines()) == 1


def test_ctrl_c_keeps_the_results_so_far(classifier, tmp_path, two_cores):
    out = tmp_path / "out.jsonl"
    assert corepipe("plan", classifier, "-o", tmp_path / "p.json").returncode == 0
    fifo = tmp_path / "frames"
    os.mkfifo(fifo)
    process = subprocess.Popen(
        f"exec {sys.executable} -m corepipe run {classifier} --plan {tmp_path / 'p.json'} --input - -o {out} < {fifo}",
        shell=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    array = io.BytesIO()
    np.save(array, np.zeros((3, 96, 96), np.float32))
    with open(fifo, "wb") as pipe:
        pipe.write(array.getvalue() * 30)
        pipe.flush()
        wait_until(lambda: out.exists() and out.stat().st_size > 2000)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted" in err
    assert len(out.read_text().splitlines()) > 10
