from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_readmes_tables_are_those_of_the_result_files():
    result = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "readme.py"), "--check"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def boards():
    return json.loads((ROOT / "bench" / "results" / "boards-simulated.json").read_text())


@pytest.fixture
def readme(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    spec = importlib.util.spec_from_file_location("readme", ROOT / "bench" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_the_readme_says_of_pipe_its_gain_holds(boards, readme):
    gains = readme.hikey_gains(boards)
    assert len(gains) == 4
    for variant, by_plan in gains.items():
        assert all(by_plan[plan] > by_plan["pipe-it"] for plan in ("pipeline", "replicas", "routes")), variant
        assert (by_plan["pipe-it"] > boards["paper_pipe_it_gain"]) == ("no contention" in variant)


def test_all_cores_is_marked_where_its_ratio_was_not_measured(boards, readme):
    rows = [line.split("|") for line in readme.boards(boards).splitlines() if ", whole clusters only |" in line]
    marked = {(board.strip(), network.strip()) for _, board, network, _, _, all_cores, *_ in rows if "*" in all_cores}
    assert {network for board, network in marked if board.startswith("Khadas VIM3")} == {
        "inception-v3", "inception-v4", "inception-resnet-v2",
    }  # fmt: skip
    assert {network for board, network in marked if board.startswith("HiKey")} == {
        row["network"] for row in boards["rows"] if row["board"].startswith("HiKey")
    }
