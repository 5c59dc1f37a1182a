from __future__ import annotations

import json
import os
import stat
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corepipe.cost.table import CostTable
from corepipe.document import check_writable, write_atomically
from corepipe.errors import CorepipeError, DocumentError, UsageError
from corepipe.plan.model import Plan

TABLE = {
    "schema_version": 1,
    "kind": "corepipe-cost-table",
    "network": {"name": "n", "sha256": "", "layers": ["a", "b"], "cut_bytes": [4, 8, 4]},
    "machine": {"description": "m", "fingerprint": "f", "clusters": [{"name": "big", "cores": [0, 1]}]},
    "engines": [{"name": "onnxruntime", "version": "1"}],
    "configs": [{"config": "big1", "layer_s": [1.0, 2.0]}, {"config": "big2", "layer_s": [0.6, 1.1]}],
    "provenance": {"source": "made-up"},
}
ROUTE = {"rate_fps": 1.0, "hops": [{"worker": "x", "layers": [0, 1]}, {"worker": "y", "layers": [1, 2]}]}
PLAN = {
    "schema_version": 1,
    "kind": "corepipe-plan",
    "planner": "by hand",
    "network": {"name": "n", "sha256": "", "layers": 2},
    "workers": [{"name": "x", "config": "big1", "cores": [0]}, {"name": "y", "config": "big1", "cores": [1]}],
    "routes": [ROUTE],
}


def changed(document, path, value):
    """A copy of a document with one value replaced (or, for ..., removed)."""
    copy = json.loads(json.dumps(document))
    *outer, last = path
    place = copy
    for key in outer:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return json.dumps(copy)


def test_documents_survive_a_round_trip():
    for kind, document in ((CostTable, TABLE), (Plan, PLAN)):
        one = kind.from_json(json.dumps(document))
        assert kind.from_json(one.to_json()) == one


def test_a_key_that_is_there_twice_is_refused():
    text = json.dumps(TABLE).replace('"description"', '"fingerprint": "g", "description"')
    with pytest.raises(DocumentError, match="the key 'fingerprint' is there twice"):
        CostTable.from_json(text)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["configs", 0, "layer_s"], [1.0], "needs 2 entries, has 1"),
        (["configs", 0, "layer_s"], [1.0, -2.0], "configs.0.layer_s.1"),
        (["configs", 0, "layer_s"], [1.0, float("nan")], "configs.0.layer_s.1"),
        (["configs", 0, "layer_s"], [1.0, float("inf")], "configs.0.layer_s.1"),
        (["configs", 0, "layer_s"], ..., "configs.0.layer_s"),
        (["configs", 0, "config"], "big3", "no such cores"),
        (["configs", 0, "config"], "big", "not a core config"),
        (["configs", 0, "config"], "big" + "9" * 5000, "not a core config"),
        (["configs", 1, "config"], "big1", "appears twice"),
        (["network", "cut_bytes"], [4, 4], "needs 3 entries"),
        (["configs", 0, "layer_s"], [1.0, 1e308], "configs.0.layer_s.1"),
        (["configs", 0, "segment_s_per_byte"], 2.0, "configs.0.segment_s_per_byte"),
        (["hop"], {"fixed_s": 1e7}, "hop.fixed_s"),
        (["network", "cut_bytes"], [4, 10**400, 4], "network.cut_bytes.1"),
        (["configs", 1], {"config": "big1", "engine": "another", "layer_s": [1.0, 2.0]}, "none of the engines"),
        (["configs", 1], {"config": "big1", "batch": 0, "layer_s": [1.0, 2.0]}, "configs.1.batch"),
        (["engines"], [{"name": "onnxruntime", "version": v} for v in "12"], "engines: one appears twice"),
        (["engines"], [], "engines"),
        (["network", "layers"], [], "network.layers"),
        (["machine", "clusters", 0, "cores"], [0, 0], "a core appears twice"),
        (["machine", "clusters", 0, "name"], "all", "the name 'all' is reserved"),
        (["schema_version"], 2, "schema_version 2"),
        (["kind"], "corepipe-plan", "expected a document of kind"),
        (["layerss"], [], "unknown key"),
    ],
)
def test_a_bad_cost_table_is_refused_with_the_place(path, value, message):
    with pytest.raises(DocumentError, match=message):
        CostTable.from_json(changed(TABLE, path, value), "t.json")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["routes", 0, "hops", 1, "layers"], [2, 3], "starts at layer 2, 1 was expected"),
        (["routes", 0, "hops", 1, "layers"], [1, 1], "hold nothing"),
        (["routes", 0, "hops", 0, "worker"], "z", "no worker is called 'z'"),
        (["network", "layers"], 3, "ends at layer 2"),
        (["workers", 1, "cores"], [0], "belongs to two workers"),
        (["workers", 1, "name"], "x", "a name appears twice"),
        (["routes", 0, "rate_fps"], 0.0, "above zero"),
        (["routes", 0, "rate_fps"], -1.0, "rate_fps"),
        (["routes", 0, "rate_fps"], 1e308, "rate_fps"),
        (["routes"], [{**ROUTE, "rate_fps": 100.0}, {**ROUTE, "rate_fps": 1e-310}], "less than 1e-12 of all rates"),
        (["workers", 0, "corse"], [0], "did you mean 'cores'"),
        (["workers", 0, "config"], "big4", "'x' has the config big4, but 1 cores; list 4"),
        (["workers", 0, "cores"], [0, 2], "'x' has the config big1, but 2 cores; list 1"),
        (["workers", 0, "config"], "nonsense", "'nonsense' is not a core config"),
        (["workers", 0, "config"], "big" + "9" * 5000, "is not a core config"),
    ],
)
def test_a_bad_plan_is_refused_with_the_place(path, value, message):
    with pytest.raises(DocumentError, match=message):
        Plan.from_json(changed(PLAN, path, value), "p.json")


def test_costs_too_small_to_have_an_inverse_are_nothing():
    table = CostTable.from_json(changed(TABLE, ["configs", 0, "layer_s"], [1e-310, 1e-11]))
    assert table.configs[0].layer_s == (0.0, 1e-11)


@given(st.binary(max_size=300))
def test_rubbish_is_a_document_error(data):
    with pytest.raises(DocumentError):
        Plan.from_json(data)


@given(st.integers(0, len(json.dumps(PLAN)) - 1), st.characters(codec="ascii"))
def test_a_changed_byte_is_read_or_refused(position, character):
    text = json.dumps(PLAN)
    try:
        Plan.from_json(text[:position] + character + text[position + 1 :])
    except CorepipeError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("name", [b'"\\ud800"', b'"a\\udc00b"', b'"\xed\xa0\x80"', b'"\xff"'])
def test_text_that_is_no_unicode_is_refused(name):
    plan = changed(PLAN, ["planner"], "NAME").encode()
    with pytest.raises(DocumentError, match="not valid JSON"):
        Plan.from_json(plan.replace(b'"NAME"', name))


def test_half_a_character_in_a_string_is_refused():
    with pytest.raises(DocumentError, match="not valid JSON"):
        Plan.from_json('{"planner": "\ud800"}')


def test_characters_beyond_ascii_are_read():
    for planner in ("ř", "\U0001f600"):
        plan = Plan.from_json(changed(PLAN, ["planner"], planner))
        assert plan.planner == planner
        assert Plan.from_json(plan.to_json()) == plan


def test_a_long_key_is_not_repeated_in_full():
    with pytest.raises(DocumentError) as caught:
        Plan.from_json(changed(PLAN, ["k" * 100_000], 1), "p.json")
    assert len(str(caught.value)) <= 2000


def test_a_file_without_end_is_not_read_whole():
    with pytest.raises(DocumentError, match="/dev/zero: larger than 64 MiB, not a corepipe-plan"):
        Plan.read("/dev/zero")


def test_a_path_that_cannot_be_is_refused(tmp_path):
    with pytest.raises(DocumentError, match="cannot read corepipe-plan: embedded null byte; check the path"):
        Plan.read(f"{tmp_path}/a\0b.json")


def test_deep_nesting_is_refused():
    with pytest.raises(DocumentError, match="not valid JSON"):
        CostTable.from_json("[" * 100_000)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    write_atomically(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DocumentError, match="No space left on device"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_reading_what_is_not_there(tmp_path):
    with pytest.raises(DocumentError, match="No such file"):
        Plan.read(tmp_path / "none.json")
    with pytest.raises(DocumentError, match="Is a directory"):
        Plan.read(tmp_path)


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "1.json").write_text("old", encoding="utf-8")
    link = tmp_path / "latest.json"
    link.symlink_to("1.json")
    write_atomically(link, "new")
    assert link.is_symlink()
    assert (tmp_path / "1.json").read_text(encoding="utf-8") == "new"


def test_a_pipe_is_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        check_writable(pipe)
        write_atomically(pipe, "text")
        assert os.read(reader, 100) == b"text"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_an_open_file_is_written_to(tmp_path):
    with (tmp_path / "out").open("w+", encoding="utf-8") as file:
        path = f"/dev/fd/{file.fileno()}"
        check_writable(path)
        write_atomically(path, "text")
        file.seek(0)
        assert file.read() == "text"


def test_what_cannot_be_written_is_told_before(tmp_path):
    check_writable(None, "-", tmp_path / "new.json", os.devnull)
    assert not (tmp_path / "new.json").exists()
    with pytest.raises(DocumentError, match="there is no folder"):
        check_writable(tmp_path / "nowhere" / "new.json")
    with pytest.raises(DocumentError, match="is a directory"):
        check_writable(tmp_path)
    with pytest.raises(DocumentError, match="there is no folder"):
        check_writable(tmp_path / ("d" * 300) / "new.json")
    with pytest.raises(UsageError, match="is empty"):
        check_writable("")
    with pytest.raises(DocumentError, match="Is a directory"):
        write_atomically(tmp_path, "text")


def test_a_closed_standard_output_is_told_before(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    check_writable(None)
    with pytest.raises(DocumentError, match="standard output is closed"):
        check_writable(None, "-")


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DocumentError, match="permission denied"):
        check_writable(tmp_path / "new.json")
