"""What `corepipe inspect` shows."""

from __future__ import annotations

import io
import json

import pytest
from onnx import TensorProto, helper
from rich.console import Console

from corepipe.network.load import load_network
from corepipe.report.inspect import inspect_json, render_inspect


@pytest.fixture(scope="module")
def network(light_model):
    return load_network(light_model("squeezenet"))


def rendered(network, width=200):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    render_inspect(network, console)
    return console.file.getvalue()


def test_table(network):
    text = rendered(network)
    lines = text.splitlines()
    assert "39 layers, 38 of 38 inner cuts usable, 0.704 GFLOPs, 4.94 MB of constants" in lines[0]
    (row,) = [line for line in lines if line.split()[:2] == ["4", "n7"]]
    for part in ("conv", "Conv+Relu", "float32[1x64x55x55]", "3025", "64", "144", "55.95", "1.55 MB x2"):
        assert part in row
    assert "total" in text
    assert "704.0" in text


def test_narrow_terminal(network):
    assert max(map(len, rendered(network, width=100).splitlines())) <= 100


def test_names_are_not_markup(make_model):
    model = make_model([helper.make_node("Relu", ["[bold]x"], ["[/red]y"])], {"[bold]x": [1]}, ["[/red]y"])
    text = rendered(load_network(model))
    assert "[bold]x float32[1]" in text
    assert "[/red]y" in text


def test_cuts_that_cannot_be_used(make_model):
    nodes = [helper.make_node("NonZero", ["x"], ["n"]), helper.make_node("Transpose", ["n"], ["y"])]
    model = make_model(nodes, {"x": [4]}, [])
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.INT64, None))
    network = load_network(model)
    assert "0 of 1 inner cuts usable" in rendered(network)
    assert inspect_json(network)["cuts"][1] == {
        "index": 1,
        "legal": False,
        "bytes": 0,
        "tensors": [{"name": "n", "dtype": "int64", "shape": None, "bytes": None}],
    }


def test_json(network):
    report = json.loads(json.dumps(inspect_json(network), allow_nan=False))
    assert report["model"]["sha256"] == network.sha256
    assert report["model"]["inputs"] == [
        {"name": "data_0", "dtype": "float32", "shape": [1, 3, 224, 224], "bytes": 602112}
    ]
    assert len(report["layers"]) == 39
    assert len(report["cuts"]) == 40
    assert report["layers"][4]["gemm"] == {"m": 3025, "n": 64, "k": 144, "groups": 1}
    assert report["cuts"][5]["bytes"] == sum(t["bytes"] for t in report["cuts"][5]["tensors"])
    assert sum(layer["flops"] for layer in report["layers"]) == report["model"]["flops"]
