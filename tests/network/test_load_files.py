"""Files and names that are models, and those that are refused."""

from __future__ import annotations

import os

import onnx
import pytest
from model_files import refused

from corepipe.errors import ModelError, UnknownNameError
from corepipe.network.extract import extract_segment
from corepipe.network.load import Limits, open_network


def test_missing_file(tmp_path):
    refused(tmp_path / "absent.onnx", r"absent\.onnx: no such file")


def test_directory(tmp_path):
    refused(tmp_path, "is a directory")


def test_empty_file(tmp_path):
    (tmp_path / "m.onnx").touch()
    refused(tmp_path / "m.onnx", "is empty")


def test_pipe_is_not_opened_for_ever(tmp_path):
    os.mkfifo(tmp_path / "m.onnx")
    refused(tmp_path / "m.onnx", "not a plain file")


@pytest.mark.parametrize("field", ["node name", "operator", "tensor", "comment", "key"])
def test_names_that_are_no_text(small, tmp_path, field):
    node = small.graph.node[1]
    if field == "tensor":
        small.graph.node[0].output[0] = node.input[0] = "MARK"
    elif field == "key":
        small.metadata_props.add(key="MARK", value="")
    else:
        setattr(node, {"node name": "name", "operator": "op_type", "comment": "doc_string"}[field], "MARK")
    (tmp_path / "m.onnx").write_bytes(small.SerializeToString().replace(b"MARK", b"\xff\xfea "))
    refused(tmp_path / "m.onnx", "holds a name that is not text; the file is damaged")


@pytest.mark.parametrize("content", [b"hello world, this is no model", b"\x89PNG\r\n\x1a\n" * 9, bytes(100)])
def test_not_onnx(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    refused(tmp_path / "m.onnx", "not an ONNX model")


def test_lfs_pointer(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    refused(tmp_path / "m.onnx", "git lfs pull")


def test_truncated(tmp_path, small):
    (tmp_path / "m.onnx").write_bytes(small.SerializeToString()[:-40])
    refused(tmp_path / "m.onnx", "truncated")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path, small):
    onnx.save(small, tmp_path / "m.onnx")
    (tmp_path / "m.onnx").chmod(0)
    refused(tmp_path / "m.onnx", "Permission denied")


def test_no_permission_as_told_by_the_system(tmp_path, small, monkeypatch):
    def deny(*_arguments, **_options):
        raise PermissionError(13, "Permission denied")

    onnx.save(small, tmp_path / "m.onnx")
    monkeypatch.setattr(os, "open", deny)
    refused(tmp_path / "m.onnx", "cannot read the model: Permission denied")


def test_name_with_a_null(tmp_path):
    refused(f"{tmp_path}/a\0b.onnx", "cannot read the model")


def test_file_too_large(tmp_path, small):
    onnx.save(small, tmp_path / "m.onnx")
    refused(tmp_path / "m.onnx", "at most 100 B are allowed", limits=Limits(file_bytes=100))


def test_unknown_name_is_suggested():
    with pytest.raises(UnknownNameError, match="did you mean 'squeezenet'"):
        open_network("squeeznet")


@pytest.mark.parametrize("name", ["folder/net", "net.onnx"])
def test_what_looks_like_a_path_is_one(name):
    with pytest.raises(ModelError, match="no such file"):
        open_network(name)


def test_open_by_path(tmp_path, small):
    onnx.save(small, tmp_path / "plain")
    network = open_network(str(tmp_path / "plain"), {"x": (2, 3, 8, 8)})
    assert network.name == "plain"
    assert network.inputs[0].shape == (2, 3, 8, 8)


def test_a_file_without_suffix_is_found_by_name(tmp_path, small, monkeypatch):
    onnx.save(small, tmp_path / "net")
    monkeypatch.chdir(tmp_path)
    assert open_network("net").name == "net"


def test_a_name_that_is_not_utf8_is_made_so(tmp_path, small):
    try:
        (path := tmp_path / os.fsdecode(b"caf\xe9.onnx")).write_bytes(small.SerializeToString())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    network = open_network(str(path), {"x": (1, 3, 8, 8)})
    assert network.name == "caf\N{REPLACEMENT CHARACTER}"
    assert extract_segment(network, 0, len(network.layers)).model.graph.name.startswith(network.name)


def test_open_from_the_zoo():
    network = open_network("squeezenet")
    assert network.name == "squeezenet"
    assert network.flops > 1e8
