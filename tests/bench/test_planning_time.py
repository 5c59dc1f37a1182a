from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("planning_time")


def test_every_claim_is_held_against_with_and_without_a_latency_budget(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "CLAIMS", (bench.Claim({"big": 2, "little": 1}, 1e6),))
    target = tmp_path / "time.json"
    assert bench.main(["--json", str(target), "--layers", "6", "--repeat", "1"]) == 0
    rows = json.loads(target.read_text())["results"]
    assert len(rows) == 2 * bench.TABLES
    assert {row["latency_budget_ms"] is None for row in rows} == {True, False}
    assert all(row["gap"] < 1e-8 for row in rows)


def test_a_missed_claim_is_marked_and_fails(bench, monkeypatch, capsys):
    monkeypatch.setattr(bench, "CLAIMS", (bench.Claim({"big": 1, "little": 1}, 0.0),))
    assert bench.main(["--layers", "3", "--repeat", "1"]) == 1
    assert "MISSED" in capsys.readouterr().out
