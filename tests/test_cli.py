"""The commands as a user runs them, in processes of their own."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from commands import corepipe, one_message
from onnx import TensorProto, helper
from typer.testing import CliRunner

from corepipe.cli import app
from corepipe.cost.table import (
    ConfigCosts,
    CostTable,
    EngineName,
    Provenance,
    TableCluster,
    TableMachine,
    TableNetwork,
)
from corepipe.data import sample_frames
from corepipe.errors import FrameError, UsageError
from corepipe.follow.decide import Step
from corepipe.frames.model import plural
from corepipe.plan import Plan
from corepipe.report.recording import Recording

pytestmark = pytest.mark.usefixtures("kept_costs")

TABLE = {
    "schema_version": 1,
    "kind": "corepipe-cost-table",
    "network": {"name": "n", "sha256": "", "layers": ["a", "b"], "cut_bytes": [0, 0, 0]},
    "machine": {
        "description": "board",
        "fingerprint": "",
        "clusters": [{"name": "big", "cores": [0]}, {"name": "little", "cores": [1]}],
    },
    "engines": [{"name": "onnxruntime", "version": "1"}],
    "configs": [
        {"config": "big1", "layer_s": [0.5, 0.5]},
        {"config": "little1", "layer_s": [1.0, 1.0]},
        {"config": "all2", "layer_s": [0.4, 0.4]},
    ],
    "provenance": {"source": "made-up"},
}
PLAN = {
    "schema_version": 1,
    "kind": "corepipe-plan",
    "planner": "by hand",
    "network": {"name": "n", "sha256": "", "layers": 2},
    "workers": [{"name": "x", "config": "big1", "cores": [0]}, {"name": "y", "config": "little1", "cores": [1]}],
    "routes": [{"rate_fps": 1.0, "hops": [{"worker": "x", "layers": [0, 1]}, {"worker": "y", "layers": [1, 2]}]}],
}


def test_run_reads_photographs_and_names_what_it_skips(classifier, photos, tmp_path):
    out = tmp_path / "out.jsonl"
    result = corepipe("run", classifier, "--input", photos, "-o", out)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["frame"] for row in rows if "error" not in row or row["error"] is None] == ["a.jpg", "b.jpg", "d.jpg"]
    assert "skipped" in result.stderr
    assert "c.jpg" in result.stderr
    assert "3 frames" in result.stderr
    assert "1 part of the input could not be read" in result.stderr


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


def test_candidates_are_tried_and_the_fastest_is_written(classifier, photos, tmp_path):
    plan = tmp_path / "plan.json"
    result = corepipe("plan", classifier, "--try", "-o", plan)
    assert result.returncode == 0, result.stderr
    kept = re.search(r"Kept: (.+), at ([0-9.]+) frames/s", result.stderr)
    assert kept, result.stderr
    assert json.loads(plan.read_text())["planner"] == kept[1]
    result = corepipe("run", classifier, "--plan", plan, "--input", photos)
    assert result.returncode == 0, result.stderr


def test_trying_needs_this_machine_and_no_planner(classifier, board):
    _, path = board
    assert "--try" in one_message(corepipe("plan", "--table", path, "--try"), 2)
    assert "--predict" in one_message(corepipe("plan", classifier, "--try", "--predict"), 2)
    assert "leave out --planner" in one_message(corepipe("plan", classifier, "--try", "--planner", "pipe-it"), 2)


@pytest.fixture
def board(tmp_path):
    """The cost table of a board of two clusters, and its file."""
    table = CostTable(
        network=TableNetwork(name="classifier", sha256="", layers=("a", "b", "c"), cut_bytes=(8, 8, 8, 8)),
        machine=TableMachine(
            description="board",
            fingerprint="",
            clusters=(TableCluster(name="big", cores=(4, 5)), TableCluster(name="little", cores=(0, 1))),
        ),
        engines=(EngineName(name="onnxruntime", version="1"),),
        configs=(
            ConfigCosts(config="big1", layer_s=(1e-3, 2e-3, 3e-3)),
            ConfigCosts(config="big2", layer_s=(7e-4, 1e-3, 2e-3)),
            ConfigCosts(config="little1", layer_s=(2e-3, 3e-3, 9e-3)),
            ConfigCosts(config="all4", layer_s=(2e-3, 3e-3, 4e-3)),
        ),
        provenance=Provenance(source="made-up"),
    )
    path = tmp_path / "board.json"
    table.write(path)
    return table, path


def test_a_plan_for_another_board_keeps_to_the_cores_allowed(board, monkeypatch):
    monkeypatch.setattr("corepipe.cli.model._predicted", lambda network, machine: SimpleNamespace(table=board[0]))
    layer = SimpleNamespace(descriptor=SimpleNamespace(bytes_weights=4))
    monkeypatch.setattr("corepipe.cli.model.network_of", lambda model, shape: SimpleNamespace(layers=[layer] * 3))
    command = ["plan", "classifier", "--machine", "board.json", "--planner", "replicas", "--json", "-"]
    for arguments, cores in (([], {0, 1, 4, 5}), (["--cores", "0,4-5"], {0, 4, 5}), (["--cores", "1"], {1})):
        result = CliRunner().invoke(app, [*command, *arguments])
        assert result.exit_code == 0, result.output
        assert {core for worker in json.loads(result.stdout)["workers"] for core in worker["cores"]} == cores
    foreign = CliRunner().invoke(app, [*command, "--cores", "2"])
    assert "core 2 is not in the cost table's machine" in str(foreign.exception)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        *((["bench", "--simulate", "t.json"], option) for option in (
            ["--input", "x"], ["--rounds", "5"], ["--seconds", "1"], ["--shape", "x:1"], ["--cores", "0"],
            ["--no-cache"], ["--calibration", "c"], ["--force"],
        )),
        *((["plan", "squeezenet", "--machine", "c.json"], option) for option in (
            ["--no-cache"], ["--calibration", "c"], ["--force"],
        )),
        (["predict", "squeezenet", "--machine", "c.json"], ["--engine", "openvino"]),
        *((["bench", "squeezenet"], option) for option in (
            ["--frames", "5"], ["--slots", "5"], ["--jitter", "0.1"], ["--contention", "0.1"], ["--seed", "1"],
        )),
        *((["plan", "--table", "t.json"], option) for option in (
            ["--predict"], ["--machine", "m"], ["--calibration", "c"], ["--force"], ["--shape", "x:1"], ["--no-cache"],
        )),
        *((["run", "squeezenet", "--input", "x", "--plan", "p.json"], option) for option in (
            ["--planner", "routes"], ["--no-cache"], ["--calibration", "c"], ["--force"],
        )),
        (["plan", "squeezenet", "--predict"], ["--no-cache"]),
        (["profile", "squeezenet", "--quick"], ["--no-cache"]),
        (["plan", "squeezenet", "--planner", "replicas"], ["--tolerance", "0.1"]),
        *(([command, "squeezenet"], ["--force"]) for command in ("plan", "bench", "run")),
        (["run", "squeezenet", "-i", "frames.npy"], ["--scale", "2"]),
        *((["run", "squeezenet", "-o", "x.npz"], option) for option in (["--top", "3"], ["--labels", "l.txt"])),
        *(([command, "squeezenet", "--calibration", "c"], ["--no-cache"]) for command in ("plan", "bench", "run")),
    ],
)  # fmt: skip
def test_options_without_effect_are_refused(command, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("frames.npy", np.zeros((1, 3, 227, 227), np.float32))
    (tmp_path / "l.txt").write_text("".join(f"{number}\n" for number in range(1000)))
    result = CliRunner().invoke(app, [*command, *option])
    assert isinstance(result.exception, UsageError)
    assert f"{option[0]} has no effect with" in str(result.exception)


def invoke(*arguments):
    """The outcome of a command that works, in this process."""
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, f"{result.output} {result.exception}"
    return result


def test_a_plan_is_made_from_a_cost_table_and_simulated(board, tmp_path):
    _, table = board
    plan = tmp_path / "plan.json"
    assert f"corepipe simulate --table {table} --plan {plan}" in invoke("plan", "--table", table, "-o", plan).stderr
    invoke("simulate", "--table", table, "--plan", plan, "--frames", 200)
    made = invoke("plan", "--table", table, "--planner", "cluster:big", "--cores", "4", "--json", "-").stdout
    assert [worker["config"] for worker in json.loads(made)["workers"]] == ["big1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan"], "either a model, or --table"),
        (["plan", "squeezenet", "--table", "t.json"], "either a model, or --table"),
        (["plan", "--table", "t.json", "--memory-budget-mb", "3"], "needs the model"),
        (["simulate", "--table", "t.json", "--contention", "big:"], "contention 'big:'"),
        (["simulate", "--table", "t.json", "--contention", "0.1", "--contention", "big:0.1"], "for each of some"),
        (["simulate", "--table", "t.json", "--contention", "big:0", "--contention", "big:1"], "for each of some"),
    ],
)
def test_wrong_usage_is_told_before_any_file_is_read(arguments, words):
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, UsageError)
    assert words in str(result.exception)


@pytest.mark.parametrize("command", ["simulate --table", "bench --only replicas --simulate"])
def test_a_simulation_takes_its_options(board, command):
    def fps(*options):
        data = invoke(*command.split(), board[1], "--frames", 300, "--json", "-", *options).stdout
        return json.loads(data)["results"][0]["throughput_fps"]

    assert fps("--contention", 1) < fps("--contention", "little:1") < fps("--contention", 0)
    assert fps("--slots", 1) < fps()
    assert fps("--jitter", 0.3, "--seed", 1) == fps("--jitter", 0.3, "--seed", 1) != fps("--jitter", 0.3, "--seed", 2)


def test_pages_state_the_command_that_made_them(board, classifier, tmp_path, monkeypatch):
    np.save(tmp_path / "frames.npy", np.zeros((40, 3, 96, 96), np.float32))
    page = tmp_path / "page.html"
    for command in (
        ["simulate", "--table", board[1], "--frames", 200],
        ["bench", "--simulate", board[1], "--frames", 200],
        ["run", classifier, "--input", tmp_path / "frames.npy", "-o", tmp_path / "out.jsonl"],
    ):
        arguments = [*map(str, command), "--report", str(page)]
        monkeypatch.setattr(sys, "argv", ["corepipe", *arguments])
        invoke(*arguments)
        assert f"<dd>corepipe {' '.join(arguments)}</dd>" in page.read_text()
    assert "40 frames of" in page.read_text()


def test_the_page_of_a_run_needs_no_cost_table_and_two_frames(classifier, tmp_path):
    np.save(tmp_path / "frames.npy", np.zeros((9, 3, 96, 96), np.float32))
    plan, page = tmp_path / "plan.json", tmp_path / "page.html"
    invoke("plan", classifier, "-o", plan)
    run = ["run", classifier, "--input", tmp_path / "frames.npy", "--plan", plan, "-o", tmp_path / "out.jsonl"]
    invoke(*run, "--report", page)
    assert "no cost table" in page.read_text()
    result = CliRunner().invoke(app, [*map(str, run), "--limit", "1", "--report", str(page)])
    assert isinstance(result.exception, FrameError)
    assert "run more frames" in str(result.exception)


def test_a_bound_in_a_plan_file_proves_nothing(board, classifier, tmp_path):
    np.save(tmp_path / "frames.npy", np.zeros((9, 3, 96, 96), np.float32))
    page = tmp_path / "page.html"
    for made, used in (
        (["plan", "--table", board[1]], ["simulate", "--table", board[1], "--frames", 200]),
        (["plan", classifier], ["run", classifier, "--input", tmp_path / "frames.npy", "-o", tmp_path / "o.jsonl"]),
    ):
        plan = tmp_path / "plan.json"
        invoke(*made, "-o", plan)
        plan.write_text(json.dumps(json.loads(plan.read_text()) | {"bound_fps": 1e9}))
        invoke(*used, "--plan", plan, "--report", page)
        assert "1,000,000,000" not in page.read_text()


def test_the_trace_of_a_long_run_holds_its_beginning_and_names_the_rest(classifier, tmp_path, monkeypatch):
    np.save(tmp_path / "frames.npy", np.zeros((60, 3, 96, 96), np.float32))
    monkeypatch.setattr("corepipe.report.recording.Recording", lambda: Recording(5))
    arguments = ["run", classifier, "--input", tmp_path / "frames.npy", "-o", tmp_path / "out.jsonl"]
    result = CliRunner().invoke(app, [*map(str, arguments), "--trace", str(tmp_path / "t.json")])
    assert result.exit_code == 0, result.output
    trace = json.loads((tmp_path / "t.json").read_text())
    assert {0, 1, 2, 3, 4} <= {e["args"]["frame"] for e in trace["traceEvents"] if e["ph"] == "X"}
    assert "to 59)" in trace["otherData"]["contents"]
    assert trace["otherData"]["contents"] in result.stderr


def test_a_run_whose_plan_changes_says_so_and_shows_both(classifier, tmp_path, monkeypatch):
    """When it changes is decided elsewhere: here on the first look, to a plan that was made for this."""
    plan = tmp_path / "plan.json"
    assert CliRunner().invoke(app, ["plan", str(classifier), "--planner", "all-cores", "-o", str(plan)]).exit_code == 0
    steps = [Step("plan", Plan.read(plan), "the chip [got] hot")]
    monkeypatch.setattr("corepipe.follow.decide.PERIOD_S", 0.3)
    monkeypatch.setattr("corepipe.follow.decide.Decider.look", lambda *_: steps.pop() if steps else None)
    np.save(tmp_path / "frames.npy", np.zeros((400, 3, 96, 96), np.float32))
    arguments = ["run", classifier, "--input", tmp_path / "frames.npy", "-o", tmp_path / "out.jsonl", "--rate", "100"]
    arguments += ["--trace", tmp_path / "t.json", "--report", tmp_path / "page.html"]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert "the plan changes: the chip [got] hot" in result.stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 400
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    names = [e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "process_name"]
    assert [name for name in names if "all-cores" in name or "routes" in name] == names[:2]
    assert len({e["pid"] for e in events if e["ph"] == "X"}) == 2
    assert "plan: the chip [got] hot" in [e["name"] for e in events if e["ph"] == "i"]
    assert "all-cores 2" in (tmp_path / "page.html").read_text()


def test_frames_that_come_too_fast(classifier, tmp_path):
    assert "drop-oldest" in one_message(corepipe("run", classifier, "--when-full", "drop"), 2)
    np.save(tmp_path / "frames.npy", np.zeros((3000, 3, 96, 96), np.float32))
    run = ("run", classifier, "--input", tmp_path / "frames.npy", "-o", tmp_path / "out.jsonl")
    codes = {"drop-oldest": 0, "error": 1}
    for when_full, code in codes.items():
        result = corepipe(*run, "--when-full", when_full)
        assert result.returncode == code, result.stderr
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [row["index"] for row in rows] == list(range(3000))
        dropped = [row for row in rows if "the stream was full" in (row.get("error") or "")]
        assert 0 < len(dropped) < 3000
        assert f"{plural(len(dropped), 'frame')} dropped because the cores could not keep up" in result.stderr


def test_names_in_a_plan_are_text(classifier, photos, tmp_path):
    plan, table = tmp_path / "plan.json", tmp_path / "table.json"
    assert corepipe("plan", classifier, "-o", plan).returncode == 0
    assert corepipe("profile", classifier, "--json", table).returncode == 0
    data = json.loads(plan.read_text())
    name = data["workers"][0]["name"]
    data["planner"] = "by [hand]"
    plan.write_text(json.dumps(data).replace(json.dumps(name), json.dumps("x[/]\x1b[2J")))
    for command in (["run", classifier, "--input", photos], ["simulate", "--table", table]):
        result = corepipe(*command, "--plan", plan)
        assert result.returncode == 0, result.stderr
        assert "x[/]\\u001b[2J" in result.stdout + result.stderr
        assert "\x1b" not in result.stdout + result.stderr
    message = one_message(corepipe("run", classifier, "--input", photos, "--plan", "no[/]\x1b.json"), 1)
    assert "no[/]\\u001b.json: cannot read" in message


def test_bench_names_frames_that_it_cannot_read(classifier, photos):
    result = corepipe("bench", classifier, "--input", photos, "--only", "all-cores", "--rounds", 1, "--seconds", 0.1)
    assert result.returncode in (0, 3), result.stderr
    assert "skipped c.jpg" in result.stderr


@pytest.mark.parametrize("only", [["all-cores"], ["routes"], ["by-hand"]], ids=" ".join)
def test_bench_ends_with_the_command_that_runs_the_best_plan(classifier, photos, tmp_path, only):
    own = tmp_path / "by-hand.json"
    assert corepipe("plan", classifier, "--planner", "replicas", "-o", own).returncode == 0
    given = ["--shape", "image:1x3x96x96", "--engine", "onnxruntime"]
    names = [word for name in only for word in ("--only", name)]
    result = corepipe("bench", classifier, "--plan", own, *given, *names, "--rounds", 2, "--seconds", 0.1)
    assert result.returncode in (0, 3), result.stderr
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("To run it: "))
    words = shlex.split(line.removeprefix("To run it: "))
    assert words[:3] == ["corepipe", "run", str(classifier)]
    assert "--shape" in words
    done = corepipe(*(str(photos) if word == "FRAMES" else word for word in words[1:]))
    assert done.returncode == 0, done.stderr
    assert "3 frames" in done.stderr


def test_bench_writes_its_json(classifier, tmp_path):
    out = tmp_path / "bench.json"
    result = corepipe("bench", classifier, "--rounds", 2, "--seconds", 0.2, "--json", out)
    assert result.returncode in (0, 3), result.stderr
    data = json.loads(out.read_text())
    assert data["schema_version"] == 1
    names = [r["plan"] for r in data["results"]]
    assert names[0] == "engine:onnxruntime"
    assert {"all-cores", "replicas", "pipe-it", "routes"} <= set(names)
    assert data["best"] in names
    for r in data["results"]:
        assert r["outputs_equal"]
        assert r["throughput_fps"] > 0
        assert set(r["latency_ms"]) == {"p50", "p90", "p99"}
    assert "Best:" in result.stdout or "Nothing beats" in result.stdout


@pytest.mark.parametrize("command", [["bench", "--simulate"], ["simulate", "--table"]])
def test_a_bound_written_into_a_plan_file_is_not_shown_as_proved(command, tmp_path):
    table, plan, page = tmp_path / "t.json", tmp_path / "p.json", tmp_path / "page.html"
    table.write_text(json.dumps(TABLE))
    plan.write_text(json.dumps(PLAN | {"predicted_fps": 1e9, "bound_fps": 1e9}))
    result = corepipe(*command, table, "--plan", plan, "--report", page, "--json", tmp_path / "out.json")
    assert result.returncode == 0, result.stderr
    for one in json.loads((tmp_path / "out.json").read_text())["results"]:
        assert one["bound_fps"] == pytest.approx(1.5)
    assert "can exceed 1.500 frames/s" in page.read_text()
    assert "1,000,000,000" not in page.read_text()


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
        (["bench", "squeezenet", "--seconds", "inf"], 2, "--seconds inf is not a length of time"),
        (["plan", "squeezenet", "-o", "-"], 2, "name a file"),
        (["run", "squeezenet", "--trace", "-"], 2, "name a file"),
        (["bench", "squeezenet", "--report", "-"], 2, "name a file"),
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


def test_what_is_read_is_not_written_over(classifier, photos, tmp_path):
    model = classifier.read_bytes()
    table, frames, labels = tmp_path / "t.json", tmp_path / "f.npz", tmp_path / "l.txt"
    table.write_text(json.dumps(TABLE))
    np.savez(frames, np.zeros((2, 3, 96, 96), np.float32))
    labels.write_text("a\nb\n")
    before = {path: path.read_bytes() for path in (classifier, table, frames, labels)}
    for command in (
        ["plan", classifier, "-o", classifier],
        ["inspect", classifier, "--json", tmp_path / "." / classifier.name],
        ["simulate", "--table", table, "--json", table],
        ["run", classifier, "-i", frames, "-o", frames],
        ["run", classifier, "-i", photos, "--labels", labels, "-o", labels],
    ):
        assert "is read by this command" in one_message(corepipe(*command), 2)
    twice = ["run", classifier, "-i", photos, "--trace", tmp_path / "x.jsonl", "-o", tmp_path / "x.jsonl"]
    assert "is to hold two results" in one_message(corepipe(*twice), 2)
    assert {path: path.read_bytes() for path in before} == before
    assert classifier.read_bytes() == model


def test_an_older_result_stays_where_the_run_cannot_start(classifier, photos, tmp_path):
    out, plan = tmp_path / "out.jsonl", tmp_path / "p.json"
    out.write_text("precious\n")
    plan.write_text(json.dumps(PLAN))
    assert "plan" in one_message(corepipe("run", classifier, "-i", photos, "--plan", plan, "-o", out), 1)
    assert out.read_text() == "precious\n"


def test_where_an_input_ends_badly_page_and_trace_are_still_written(classifier, tmp_path):
    whole, cut = tmp_path / "whole.npy", tmp_path / "cut.npy"
    np.save(whole, np.zeros((300, 3, 96, 96), np.float32))
    plan, page, trace = tmp_path / "plan.json", tmp_path / "page.html", tmp_path / "trace.json"
    invoke("plan", classifier, "-o", plan)
    cut.write_bytes(whole.read_bytes()[:-1000])
    with cut.open("rb") as frames:
        run = ["run", classifier, "-i", "-", "--plan", plan, "-o", tmp_path / "o.jsonl"]
        result = corepipe(*run, "--report", page, "--trace", trace, stdin=frames)
    assert result.returncode == 1
    assert "299 frames in" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "299 frames of" in page.read_text()
    assert json.loads(trace.read_text())


def test_images_for_a_network_that_takes_none(make_chain, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("corepipe.api.find_costs", lambda *_, **__: pytest.fail("it measures"))
    path = tmp_path / "chain.onnx"
    path.write_bytes(make_chain().SerializeToString())
    result = CliRunner().invoke(app, ["run", str(path), "-i", str(photos)])
    assert isinstance(result.exception, UsageError)
    assert "images do not fit the inputs" in str(result.exception)


def test_a_plan_of_the_users_is_compared_whatever_else_is(board, tmp_path):
    plan = tmp_path / "mine.json"
    invoke("plan", "--table", board[1], "--planner", "replicas", "-o", plan)
    bench = ["bench", "--simulate", board[1], "--only", "routes", "--plan", plan, "--frames", 99]
    results = json.loads(invoke(*bench, "--json", "-").stdout)["results"]
    assert [one["plan"] for one in results] == ["routes", "mine"]


def test_wrong_words_are_refused_before_anything_is_measured(classifier, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("corepipe.api.find_costs", lambda *_, **__: pytest.fail("it measures"))
    for arguments, message in (
        (["run", classifier, "-i", photos, "-o", tmp_path / "r.csv"], "results are written as .txt, .jsonl or .npz"),
        (["plan", classifier, "--max-workers", "0"], "--max-workers 0: give more than zero"),
        (["plan", classifier, "--latency-budget-ms", "nan"], "--latency-budget-ms nan: give more than zero"),
    ):
        result = CliRunner().invoke(app, [*map(str, arguments)])
        assert isinstance(result.exception, UsageError)
        assert message in str(result.exception)


def test_the_frames_of_a_home_folder_are_not_replaced_by_results(classifier, tmp_path):
    np.savez(tmp_path / "f.npz", image=np.zeros((1, 3, 96, 96), np.float32))
    before = (tmp_path / "f.npz").read_bytes()
    at_home = {**os.environ, "HOME": str(tmp_path)}
    result = corepipe("run", classifier, "--input=~/f.npz", "--output=~/f.npz", env=at_home)
    assert "is read by this command" in one_message(result, 2)
    assert (tmp_path / "f.npz").read_bytes() == before
