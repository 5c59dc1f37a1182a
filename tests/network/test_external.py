"""External data: only plain files beneath the model's folder, and all of what was promised."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from corepipe.errors import ModelError
from corepipe.network.load import Limits, load_network

WEIGHTS = np.arange(16, dtype=np.float32).reshape(4, 4)


def model_at(folder, make_model, **entries):
    """A model whose weight lies in another file, and the path it was saved to."""
    model = make_model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [1, 4]}, ["y"])
    tensor = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[4, 4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in ({"location": "w.bin"} | entries).items():
        tensor.external_data.add(key=key, value=str(value))
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "w.bin").write_bytes(b"\xff" * 8 + WEIGHTS.tobytes())
    (tmp_path / "outside.bin").write_bytes(WEIGHTS.tobytes())
    return inside


def refused(path, match, **options):
    with pytest.raises(ModelError, match=match):
        load_network(path, **options)


def weights_of(network):
    (tensor,) = network.model.graph.initializer
    assert tensor.data_location == TensorProto.DEFAULT
    assert not tensor.external_data
    return onnx.numpy_helper.to_array(tensor)


@pytest.mark.parametrize("location", ["w.bin", "./w.bin"])
def test_offset_and_length(folder, make_model, location):
    path = model_at(folder, make_model, location=location, offset=8, length=64)
    np.testing.assert_array_equal(weights_of(load_network(path)), WEIGHTS)


def test_in_a_folder_below(folder, make_model):
    (folder / "data").mkdir()
    (folder / "data" / "w").write_bytes(WEIGHTS.tobytes())
    np.testing.assert_array_equal(weights_of(load_network(model_at(folder, make_model, location="data/w"))), WEIGHTS)


def test_found_from_elsewhere_and_from_here(folder, make_model, monkeypatch):
    path = model_at(folder, make_model, offset=8)
    monkeypatch.chdir(folder.parent)
    load_network(path)
    monkeypatch.chdir(folder)
    load_network(path.name)


def test_digest_is_that_of_the_weights(folder, make_model):
    digest = load_network(model_at(folder, make_model, offset=8)).sha256
    assert load_network(model_at(folder, make_model, offset=4)).sha256 != digest


def test_missing(folder, make_model):
    refused(model_at(folder, make_model, location="gone.bin"), r"'gone\.bin' is missing; put it next to the model")


@pytest.mark.parametrize(
    "location", ["../outside.bin", "data/../../outside.bin", "..", ".", "a//b", "", "data/", "./../outside.bin"]
)
def test_traversal(folder, make_model, location):
    refused(model_at(folder, make_model, location=location), "leads out of the model's folder")


@pytest.mark.parametrize("location", ["C\\w.bin", "..\\outside.bin"])
def test_backslashes(folder, make_model, location):
    refused(model_at(folder, make_model, location=location), "must be a relative path")


def test_absolute(folder, make_model):
    refused(model_at(folder, make_model, location=folder / "w.bin"), "must be a relative path")


def test_symlink(folder, make_model):
    (folder / "link.bin").symlink_to(folder / "w.bin")
    refused(model_at(folder, make_model, location="link.bin"), "symbolic link, which is refused; replace")


def test_symlink_on_the_way(folder, make_model):
    (folder / "data").symlink_to(folder.parent)
    refused(model_at(folder, make_model, location="data/outside.bin"), "symbolic link")


def test_hard_link(folder, make_model):
    os.link(folder.parent / "outside.bin", folder / "hard.bin")
    refused(model_at(folder, make_model, location="hard.bin"), "hard link")


def test_directory(folder, make_model):
    (folder / "data").mkdir()
    refused(model_at(folder, make_model, location="data"), "not a plain file")


def test_pipe_is_not_waited_for(folder, make_model):
    os.mkfifo(folder / "pipe")
    refused(model_at(folder, make_model, location="pipe"), "not a plain file")


def test_file_on_the_way(folder, make_model):
    refused(model_at(folder, make_model, location="w.bin/w"), "Not a directory")


def test_name_too_long(folder, make_model):
    refused(model_at(folder, make_model, location="w" * 5000), "too long")


@pytest.mark.parametrize("offset", [9, 72, 10**15])
def test_too_short(folder, make_model, offset):
    refused(model_at(folder, make_model, offset=offset), "which has only 72 B")


def test_length_that_does_not_fit_the_dims(folder, make_model):
    refused(model_at(folder, make_model, length=32), "needs 64 bytes, its external data has length 32")


@pytest.mark.parametrize("entry", [{"offset": "-8"}, {"offset": "0x8"}, {"length": "9" * 40}, {"offset": "٣"}])
def test_numbers(folder, make_model, entry):
    refused(model_at(folder, make_model, **entry), "no number of bytes")


def test_one_file_read_many_times_counts_each_time(folder, make_model):
    refused(model_at(folder, make_model, offset=8), "constants take 64 B", limits=Limits(weight_bytes=63))


def test_proto_without_a_file(folder, make_model):
    model = onnx.load(model_at(folder, make_model, offset=8), load_external_data=False)
    refused(model, "give the model's path")


def test_many_files(tmp_path, make_model):
    count = 100
    names = [f"w{i}" for i in range(count)]
    nodes = [helper.make_node("Add", [f"t{i}", names[i]], [f"t{i + 1}"]) for i in range(count)]
    model = make_model(nodes, {"t0": [1]}, [f"t{count}"])
    for i, name in enumerate(names):
        tensor = model.graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=[1])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"{name}.bin")
        (tmp_path / f"{name}.bin").write_bytes(np.float32(i).tobytes())
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    network = load_network(tmp_path / "m.onnx")
    assert [float(onnx.numpy_helper.to_array(t)[0]) for t in network.model.graph.initializer] == list(range(count))
