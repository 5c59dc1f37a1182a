from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from corepipe.topology.model import Cluster, Core, Topology

BENCH = Path(__file__).resolve().parents[2] / "bench"

MACHINE = Topology(
    (
        Cluster(name="big", cores=(Core((0,)), Core((1,))), capacity=1.0),
        Cluster(name="little", cores=(Core((2,)), Core((3,))), capacity=0.4),
    )
)


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    yield
    for name in [name for name in sys.modules if name.startswith("rival_systems")]:
        del sys.modules[name]


def module(name):
    return importlib.import_module(name)


def row(system, fps, low, high):
    return {
        "system": system, "settings": "some", "throughput_fps": fps, "spread_fps": [low, high],
        "slices_fps": [low, fps, high],
        "idle_cpu_share": 0.0, "best": True,
    }  # fmt: skip


@pytest.fixture
def data():
    measured = module("rival_systems.measure").Measured
    rows = {
        "alexnet": [("onnxruntime default", 20, 19, 21), ("corepipe", 44, 43, 45), ("ncnn", 40, 39, 44)],
        "squeezenet": [("onnxruntime default", 60, 59, 61), ("corepipe", 90, 89, 91), ("ncnn", 100, 99, 101)],
    }
    return module("rival_systems.result").document(
        {
            network: measured(
                rows=[row(*one) for one in of],
                bound_fps=100.0,
                absent=[{"system": "litert", "reason": "not installed"}],
            )
            for network, of in rows.items()
        },
        emulated=True,
        batch=1,
    ) | {
        "slow": "1:0.4",
        "environment": {"cpu": "Some CPU", "cpus": 2, "date": "2026-11-24T00:00:00Z", "versions": {"ncnn": "1.0"}},
    }


def test_geometric_means_are_over_all_networks(data):
    means = data["geomean"]
    assert means["routes/best_rival"] == pytest.approx((44 / 40 * 90 / 100) ** 0.5, abs=1e-4)
    assert means["routes/best_ort_session"] == pytest.approx((44 / 20 * 90 / 60) ** 0.5, abs=1e-4)
    assert means["routes/bound"] == pytest.approx((0.44 * 0.9) ** 0.5, abs=1e-4)


def test_the_rival_that_is_best_over_all_networks_has_a_figure_on_each(data):
    def mean():
        return module("rival_systems.result").geomeans(data)["routes/best_rival_over_all"]

    assert mean() == pytest.approx((44 / 40 * 90 / 100) ** 0.5, abs=1e-4)  # ncnn, behind corepipe on one, ahead on one
    data["rows"] = [r for r in data["rows"] if (r["system"], r["network"]) != ("ncnn", "squeezenet")]
    assert mean() == pytest.approx((44 / 20 * 90 / 60) ** 0.5, abs=1e-4)


def test_each_goal_is_said_to_be_met_or_missed(data):
    met = {goal["goal"]: goal["met"] for goal in data["goals"]}
    assert [value for text, value in met.items() if "best_ort_session" in text] == [True]
    assert [value for text, value in met.items() if "best_rival" in text] == [False]
    assert [value for text, value in met.items() if text.startswith("alexnet")] == [True]
    assert [value for text, value in met.items() if text.startswith("squeezenet")] == [False]
    assert all("not behind" in text for text, value in met.items() if text.startswith("alexnet"))
    assert not any("not behind" in text for text in met if text.startswith("squeezenet"))


def test_what_exceeds_the_bound_does_not_make_up_for_what_is_below_it(data):
    data["bound_fps"] = {"alexnet": 22.0, "squeezenet": 100.0}
    assert module("rival_systems.result").geomeans(data)["routes/bound"] == pytest.approx(0.9**0.5, abs=1e-4)


def test_a_mean_lacking_a_network_is_not_given(data):
    result = module("rival_systems.result")
    data["rows"] = [r for r in data["rows"] if (r["system"], r["network"]) != ("corepipe", "alexnet")]
    assert set(result.geomeans(data).values()) == {None}
    data["geomean"] = result.geomeans(data)
    assert not any(met for text, met in result.goals(data) if not text.startswith("squeezenet"))


def test_what_is_absent_everywhere_is_listed_once(data):
    assert data["absent"] == [{"system": "litert", "reason": "not installed"}]


def test_the_readmes_table(data, tmp_path):
    path = tmp_path / "rivals-test.json"
    path.write_text(json.dumps(data))
    text = module("readme").render(path)
    lines = text.splitlines()
    assert lines[0] == "| system | alexnet | squeezenet |"
    assert "| corepipe | **44** (43-45) | 90 (89-91) |" in lines
    assert "| ncnn | 40 (39-44) | **100** (99-101) |" in lines
    assert "| corepipe / best rival | 1.10 | 0.90 |" in lines
    assert "had hops been as quick" not in text
    next(row for row in data["rows"] if row["system"] == "corepipe")["hops_over_costs"] = 1.5
    path.write_text(json.dumps(data))
    text = module("readme").render(path)
    assert "| corepipe / bound | 0.44 | 0.90 |" in text
    assert "| corepipe / bound, had hops been as quick as in the costs | 0.66 | - |" in text
    assert "Goals missed" in text
    assert "Absent: litert (not installed)" in text
    assert "Some CPU, 2 CPUs, fp32, batch 1, ncnn 1.0, 2026-11-24" in text


def test_the_plot(data, tmp_path):
    pytest.importorskip("matplotlib")
    assert module("rival_systems.plot").plot(data, tmp_path / "rivals.png")
    assert (tmp_path / "rivals.png").stat().st_size > 1000


def test_every_layout_of_cores_is_tried():
    settings = module("rival_systems.catalogue").settings(MACHINE)
    ncnn = {s.layout: (s.processes, s.options["threads"]) for s in settings if s.system == "ncnn"}
    assert ncnn == {
        "all": (((0, 1, 2, 3),), (4,)),
        "big": (((0, 1),), (2,)),
        "clusters": (((0, 1), (2, 3)), (2, 2)),
        "cores": (((0,), (1,), (2,), (3,)), (1, 1, 1, 1)),
    }
    assert len({str(s) for s in settings}) == len(settings)
    assert all(len(s.processes) == len(s.options["threads"]) for s in settings)


def test_on_alike_cores_there_are_no_big_ones():
    alike = Topology((dataclasses.replace(MACHINE.clusters[0], name="cpu"),))
    settings = module("rival_systems.catalogue").settings(alike)
    assert {s.layout for s in settings} == {"all", "cores"}


def test_the_rate_leaves_out_lead_filling_and_the_end():
    rate = module("rival_systems.rate")
    second = 10**9
    calls = [second // 100, *(second + i * second // 10 for i in range(21)), 10 * second]
    assert rate.Slice(0, 3 * second, calls).calls_per_s() == pytest.approx(10)
    assert rate.Slice(0, 3 * second, calls[2:]).calls_per_s(filling=3) == pytest.approx(10)


def test_lanes_that_end_their_calls_together_are_counted_by_themselves():
    rate = module("rival_systems.rate")
    ends = [10**9 + i * 10**8 for i in range(6)]
    together = rate.Slice(0, 2 * 10**9, [*ends, *ends], [0] * 6 + [1] * 6)
    assert together.calls_per_s() == pytest.approx(20)
    assert dataclasses.replace(together, lanes=None).calls_per_s() == pytest.approx(22)
    few = dataclasses.replace(together, lanes=[0] * 11 + [1])
    assert few.calls_per_s() == pytest.approx(22)


def test_calls_of_several_frames_count_as_many():
    rate = module("rival_systems.rate")
    ends = [10**9 + i * 10**8 for i in range(11)]
    slots = rate.Slice(0, 2 * 10**9, ends, sizes=[1] + [8] * 10)
    assert slots.calls_per_s() == pytest.approx(10)
    assert slots.frames_per_s() == pytest.approx(80)
    two = rate.Slice(0, 2 * 10**9, [*ends, *ends], [0] * 11 + [1] * 11, [1] + [8] * 10 + [4] * 11)
    assert two.frames_per_s() == pytest.approx(80 + 40)


def test_work_on_calls_counts_where_several_are_worked_on_at_once():
    """Twenty calls of a tenth of a second each, which end in bursts of five."""
    rate = module("rival_systems.rate")
    tenth = 10**8
    spans = [[((2 + n) * tenth, (3 + n) * tenth)] for n in range(20)]
    ends = [(2 + 5 * (n // 5 + 1)) * tenth for n in range(20)]
    for ended in (17, 19, 21):
        one = rate.Slice(0, ended * tenth, ends, spans=spans)
        assert one.calls_per_s() == pytest.approx(10)
        assert dataclasses.replace(one, sizes=[4] * 20).frames_per_s() == pytest.approx(40)
        assert dataclasses.replace(one, spans=None).calls_per_s() != pytest.approx(10, rel=0.1)
    halves = [[(a, (a + b) // 2), ((a + b) // 2, b)] for ((a, b),) in spans]
    assert rate.Slice(0, 17 * tenth, ends, spans=halves).calls_per_s() == pytest.approx(10)


def test_a_rate_of_too_few_calls_is_still_one():
    rate = module("rival_systems.rate")
    assert rate.Slice(0, 10**9, [2 * 10**9]).calls_per_s() == pytest.approx(0.5)
    ends = [2 * 10**8 + 10**7 * i for i in range(12)] + [9 * 10**8, 9 * 10**8 + 1000]
    assert rate.Slice(0, 10**9, ends).calls_per_s(filling=12) == pytest.approx(14 / 0.9, rel=1e-3)


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_batches_hold_the_frames_by_turns(batch):
    frames = np.arange(8, dtype=np.float32).reshape(8, 1)
    batches = module("rival_systems.prepare").batches_of(frames, batch)
    assert len(batches) >= 2
    assert [int(x) for b in batches for x in b[:, 0]] == [i % 8 for i in range(batch * len(batches))]


def test_slow_is_taken_out_for_the_emulated_run():
    rivals = module("rivals")
    assert rivals._without_slow(["alexnet", "--slow", "1:0.4", "--batch", "8"]) == ["alexnet", "--batch", "8"]
    assert rivals._without_slow(["--slow=1:0.4"]) == []


@pytest.fixture
def small_model(tmp_path):
    import onnx

    from corepipe.network._zoo_builder import GraphBuilder

    builder = GraphBuilder("small", 16, 0)
    x = builder.flatten(builder.global_average(builder.conv_relu(builder.data, "c", 1000, 3), "p"), "f")
    path = tmp_path / "small.onnx"
    onnx.save(builder.finish(x), path)
    return path


def test_a_small_network_is_measured_and_checked(small_model, tmp_path):
    catalogue, measure = module("rival_systems.catalogue"), module("rival_systems.measure")
    from corepipe.topology import detect

    prepare = module("rival_systems.prepare")
    prepare.write_network(str(small_model), tmp_path, (2,))
    here = detect()
    setting = next(s for s in catalogue.settings(here) if s.system == "onnxruntime all cores")
    broken = dataclasses.replace(setting, system="broken", engine="nosuch")
    catalogue.ENGINES["nosuch"] = ()
    times = measure.Times(rounds=1, slice_s=0.1, screen_s=0.1, load_s=60, costs_s=60)
    no_corepipe = dataclasses.replace(broken, system="corepipe")
    result = measure.measure([setting, broken], no_corepipe, tmp_path, (2,), times, lambda text: None)
    assert {r["system"] for r in result.rows} == {"onnxruntime all cores"}
    assert {r["batch"] for r in result.rows} <= {1, 2}
    tries = Counter(one["settings"] for one in result.screening if one.get("throughput_fps"))
    assert any("huge pages" in words for words in tries)
    assert max(tries.values()) == measure.SCREENINGS, "what is close to the best is tried again"
    assert {(one["settings"], one.get("throughput_fps", 0) > 0) for one in result.screening} >= {
        (setting.words, True), (setting.with_batch(2).words, True),
    }  # fmt: skip
    assert {one["system"] for one in result.absent} == {"broken", "corepipe"}
    assert all("ModuleNotFoundError" in one["reason"] for one in result.absent)


def test_a_wrong_output_is_not_timed(small_model, tmp_path):
    catalogue, host = module("rival_systems.catalogue"), module("rival_systems.host")
    from corepipe.topology import detect

    module("rival_systems.prepare").write_network(str(small_model), tmp_path, ())
    stored = dict(np.load(tmp_path / "frames.npz"))
    np.savez(tmp_path / "frames.npz", frames=stored["frames"], outputs=stored["outputs"] * 1.1)
    setting = next(s for s in catalogue.settings(detect()) if s.engine == "onnxruntime")
    with pytest.raises(host.ChildError, match="output is wrong"):
        host.Contender(setting, tmp_path, 60)


def test_ratios_are_taken_round_by_round():
    result = module("rival_systems.result")
    own = row("corepipe", 20, 10, 30)
    of = result.ratio(own, row("ncnn", 22, 11, 33))
    assert (of.low, of.median, of.high) == pytest.approx((10 / 11,) * 3)
    assert result.ratio(own, row("ncnn", 20, 20, 20)).low < 1 < result.ratio(own, row("ncnn", 20, 20, 20)).high


def test_networks_of_an_earlier_run_are_kept_and_told_of(data):
    result, readme = module("rival_systems.result"), module("readme")
    later = copy.deepcopy(data)
    for key in ("rows", "runners_up", "screening"):
        later[key] = [row for row in later[key] if row["network"] == "squeezenet"]
    later["bound_fps"] = {"squeezenet": 95.0}
    later["environment"] = data["environment"] | {"date": "2026-11-25T00:00:00Z"}
    both = result.extended(data, later)
    assert result.networks_of(both) == ["alexnet", "squeezenet"]
    assert both["bound_fps"] == {"alexnet": 100.0, "squeezenet": 95.0}
    third = {**later, "bound_fps": {"googlenet": 90.0}, "rows": [], "runners_up": [], "screening": [], "absent": []}
    runs = [run["networks"] for run in result.extended(both, third)["earlier_runs"]]
    assert runs == [["alexnet"], ["squeezenet"]]
    nested = result.extended({**third, "bound_fps": {"resnet50": 80.0}}, both)
    assert [run["networks"] for run in nested["earlier_runs"]] == [["resnet50"], ["alexnet"]]
    assert len(both["rows"]) == len(data["rows"])
    assert both["absent"] == data["absent"]
    assert both["geomean"] == result.geomeans(both) != data["geomean"]
    assert both["earlier_runs"] == [{"networks": ["alexnet"], "environment": data["environment"]}]
    assert "Measured apart: alexnet in a run that began 2026-11-24 00:00 UTC" in readme.rivals(both)
    assert "Measured apart" not in readme.rivals(data)
    with pytest.raises(SystemExit, match="another slow"):
        result.check_alike(data | {"slow": None}, later)
