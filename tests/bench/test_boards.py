from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import pytest

from corepipe.errors import DocumentError
from corepipe.plan import plan
from corepipe.topology.model import CoreConfig

BENCH = Path(__file__).resolve().parents[2] / "bench"
DATA = BENCH.parents[1] / "shared" / "boards"
HEADER = "Graph,Component,Freq,Freq_Host,Layer,Metric,Time,Power\n"


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("board_tables")


@pytest.fixture
def boards(tables):
    return importlib.import_module("boards")


@pytest.fixture
def vim3(tables):
    if not list(DATA.glob("vim3-layers-*.csv")):
        pytest.skip("needs the per-layer tables in ../shared/boards")
    return lambda fill: tables.vim3_tables(fill, DATA)


def write_rows(folder, rows):
    (folder / "vim3-layers-1.csv").write_text(HEADER + "".join(f"{row}\n" for row in rows))


def test_routes_reach_the_design_with_whole_clusters_on_the_vim3(boards, tables, vim3):
    rows = boards.rows_of(vim3(tables.Fill.WHOLE), frames=500)
    compared = boards.against_design(rows)
    assert {network for network, *_ in compared} == set(boards.DESIGN_ROUTES)
    for network, reached, wanted, enough in compared:
        assert enough, f"{network}: {reached:.4f} instead of {wanted}"
    for row in rows:
        assert row.fps["routes"] == pytest.approx(row.bound_fps, rel=1e-9)
        assert row.fps["pipe-it"] <= row.fps["pipeline"] <= row.fps["routes"] * (1 + 1e-9)
        assert row.fps["replicas"] <= row.fps["routes"]


def test_any_cores_hold_the_whole_clusters_among_their_plans(tables, vim3):
    for network, table in vim3(tables.Fill.WHOLE).items():
        least = plan(table, "routes").predicted_fps
        for fill in (tables.Fill.SHARED, tables.Fill.FREE):
            assert plan(vim3(fill)[network], "routes").predicted_fps >= least * (1 - 1e-9)


def test_filled_in_costs_follow_the_stated_rules(tables, vim3):
    alone = {fill: vim3(fill)["googlenet"] for fill in tables.Fill}
    fps = tables.VIM3_FPS["googlenet"]
    for fill in (tables.Fill.SHARED, tables.Fill.FREE):
        costs = {config: rows[0] for config, rows in alone[fill].by_config.items()}
        whole = costs[CoreConfig("big", 4)]
        assert whole.layer_s == pytest.approx(alone[tables.Fill.WHOLE].costs_of(CoreConfig("big", 4)).layer_s)
        for count in (1, 2, 3):
            part = costs[CoreConfig("big", count)]
            assert sum(part.layer_s) == pytest.approx(sum(whole.layer_s) * fps[3] / fps[count - 1])
            together = 4 / count if fill is tables.Fill.SHARED else fps[3] / fps[count - 1]
            assert sum(part.layer_busy_s) == pytest.approx(sum(whole.layer_s) * together)
        assert sum(costs[CoreConfig("all", 6)].layer_s) == pytest.approx(sum(whole.layer_s) * fps[3] / fps[4])
    assert not [config for config in alone[tables.Fill.WHOLE].by_config if config.count < 2]


def test_the_hikey_model_has_the_published_rates(tables):
    made = tables.hikey970_tables(tables.Fill.WHOLE)
    assert set(made) == set(tables.HIKEY_FPS)
    for network, table in made.items():
        for cluster, fps in zip(("big", "little"), tables.HIKEY_FPS[network], strict=True):
            assert plan(table, f"cluster:{cluster}").predicted_fps == pytest.approx(fps)


def test_repeats_are_averaged_and_only_the_highest_frequency_counts(tables, tmp_path):
    rows = [f"Net,{c},{freq},max,{layer},task,{ms},0" for c in "BL" for layer in (0, 1)
            for freq, ms in (("max", 2), ("max", 4), ("1000", 50))]  # fmt: skip
    write_rows(tmp_path, [*rows, "Net,B,max,max,0,in,99,0", "Net,G,max,max,0,task,99,0"])
    assert tables.read_layers(tmp_path) == {"net": {"B": [3e-3, 3e-3], "L": [3e-3, 3e-3]}}


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        (["Net,B,max,max,0,task,nan,0"], "line 2: layer '0' takes 'nan' ms"),
        (["Net,B,max,max,0,task,-1,0"], "takes '-1' ms"),
        (["Net,B,max,max,x,task,1,0"], "layer 'x'"),
        (["Net,B,max,max,1,task,1,0"], "lacks layers"),
        (["Net,B,max,max,0,task,1,0"], "the same layers for components B and L"),
    ],
)
def test_unusable_rows_are_named(tables, tmp_path, rows, named):
    write_rows(tmp_path, rows)
    with pytest.raises(DocumentError, match=named):
        tables.read_layers(tmp_path)


def test_absent_data_is_named(boards, tables, tmp_path, capsys):
    with pytest.raises(DocumentError, match="--data FOLDER"):
        tables.read_layers(tmp_path / "none")
    (tmp_path / "vim3-layers-1.csv").write_text("Graph,Time\n")
    assert boards.main(["--data", str(tmp_path)]) == 1
    assert "no column 'Component'" in capsys.readouterr().err


def test_the_json_has_the_agreed_form(boards, tables, monkeypatch, tmp_path):
    made = tables.hikey970_tables(tables.Fill.WHOLE)
    monkeypatch.setattr(tables, "hikey970_tables", lambda fill, **_: {"alexnet": made["alexnet"]})
    monkeypatch.setattr(tables, "DATA", tmp_path / "none")
    target = tmp_path / "boards.json"
    assert boards.main(["--json", str(target), "--frames", "300"]) == 0
    written = json.loads(target.read_text())
    assert written["schema_version"] == 1
    assert written["simulated"] is True
    for row in written["rows"]:
        assert {"big", "pipe-it", "pipeline", "replicas", "routes"} <= set(row["fps"])
        assert all(math.isfinite(fps) and fps <= row["bound_fps"] * (1 + 1e-6) for fps in row["fps"].values())
    assert str(tmp_path) not in target.read_text()
