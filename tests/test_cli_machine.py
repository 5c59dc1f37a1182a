"""What commands look at before they run or measure: the machine, and where results are to go."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from corepipe.cli import app
from corepipe.cli.common import machine_at_hand, topology_of
from corepipe.errors import DocumentError, TopologyError
from corepipe.topology import ENVIRONMENT


def test_a_machine_that_is_not_at_hand(tmp_path, monkeypatch):
    file = tmp_path / "board.toml"
    file.write_text('[[cluster]]\nname = "big"\ncpus = "60000-60003"\n', encoding="utf-8")
    monkeypatch.setenv(ENVIRONMENT, str(file))
    assert len(topology_of(None).cores) == 4
    with pytest.raises(TopologyError, match="not at hand"):
        machine_at_hand(None)


def test_what_would_spoil_the_figures_is_said(tmp_path, monkeypatch, capsys, here):
    file = tmp_path / "slow.toml"
    file.write_text(
        f'override = true\nquota_cpus = 0.5\n[[cluster]]\nname = "big"\ncpus = [{here.cpus[0]}]\n', encoding="utf-8"
    )
    monkeypatch.setenv(ENVIRONMENT, str(file))
    assert machine_at_hand(None).at_hand
    said = capsys.readouterr()
    assert "warning: a cgroup quota grants 0.5 CPUs of time" in said.err
    assert not said.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("bench", "squeezenet", "--json"),
        ("bench", "squeezenet", "--report"),
        ("run", "squeezenet", "-i", "x", "-o"),
        ("run", "squeezenet", "-i", "x", "--trace"),
        ("plan", "squeezenet", "-o"),
        ("profile", "squeezenet", "--json"),
        ("calibrate", "--json"),
    ],
)
def test_an_unwritable_target_is_told_before_anything_else(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr("corepipe.topology.detect", lambda **_: pytest.fail("went on"))
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "nowhere" / "x.json")])
    assert isinstance(result.exception, DocumentError)
    assert "there is no folder" in str(result.exception)
