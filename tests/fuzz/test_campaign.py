"""A small campaign, always the same; and that a campaign sees what it is there to see."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parents[2] / "fuzz"

FAULTY = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {fuzz!r})
import worker
from targets import ENDS
from watched import Watched
folder = Path(sys.argv[2])
first, count = (int(a.partition("=")[2]) for a in sys.argv[3:5])
watched = Watched(folder / "models.watched", (*ENDS, worker.DEFECT))
for number in range(first, first + count):
    watched.begin(b"input %d" % number)
    if number == 2:
        os.abort()
    while number == 4:
        pass
    if number == 5:
        worker.note(folder, "models", "foreign error", "ValueError in a > b", "", watched.data)
    watched.end(worker.DEFECT if number == 5 else "loaded")
"""


@pytest.fixture
def campaign(monkeypatch):
    """The module, which finds those beside it."""
    monkeypatch.syspath_prepend(str(FUZZ))
    return importlib.import_module("campaign")


def test_a_sample_ends_in_success_or_in_errors_of_corepipe(tmp_path):
    command = [sys.executable, str(FUZZ / "campaign.py"), "--models=100", "--inputs=1500", "--guided=no", "--json=-"]
    done = subprocess.run([*command, f"--folder={tmp_path}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["findings"] == []
    for kind, count in (("models", 100), ("readers", 1500)):
        assert report[kind]["inputs"] == sum(report[kind]["ends"].values()) == count
        assert report[kind]["ends"]["loaded"] > count // 20


def test_crash_hang_and_foreign_error_are_found_and_the_rest_is_run(campaign, monkeypatch, tmp_path):
    (tmp_path / "worker.py").write_text(FAULTY.format(fuzz=str(FUZZ)))
    monkeypatch.setattr(campaign, "HERE", tmp_path)
    settings = campaign.Settings(tmp_path, seed=0, seconds=1.0, memory_mib=4096, guided=False)
    report = campaign.run("models", 8, settings)
    assert report.pop("seconds") > 0
    assert report == {"inputs": 8, "crashes": 1, "hangs": 1, "foreign_errors": 1, "ends": {"loaded": 5}}
    found = {finding["what"]: finding for finding in campaign.findings(tmp_path)}
    assert found["crash"]["summary"] == "ended with -6"
    kept = {what: (tmp_path / finding["file"]).read_bytes() for what, finding in found.items()}
    assert kept == {"crash": b"input 2", "hang": b"input 4", "foreign error": b"input 5"}


def test_a_process_that_cannot_make_its_inputs_is_no_finding(campaign, monkeypatch, tmp_path):
    (tmp_path / "worker.py").write_text("import os\nos.abort()\n")
    monkeypatch.setattr(campaign, "HERE", tmp_path)
    settings = campaign.Settings(tmp_path, seed=0, seconds=1.0, memory_mib=4096, guided=False)
    with pytest.raises(SystemExit, match=r"input 0 cannot be made \(-6\)"):
        campaign.run("models", 8, settings)


def test_the_same_seed_makes_the_same_inputs(campaign):
    models, documents = importlib.import_module("hostile_models"), importlib.import_module("hostile_documents")
    assert list(models.hostile_models(60, 3)) == list(models.hostile_models(60, 3))
    assert list(documents.hostile_inputs(60, 3)) == list(documents.hostile_inputs(60, 3))
    assert {kind for kind, _ in models.hostile_models(60)} == set(models.KINDS)
