"""Nodes whose parameters do not fit their inputs: a batch is refused by name, as everything that is not understood."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from corepipe.errors import BatchError
from corepipe.network.batch import batched
from corepipe.network.load import load_network

NONE = np.zeros(0, np.int64)
ZERO = np.zeros(1, np.int64)


@pytest.mark.parametrize(
    ("operator", "constants"),
    [
        ("Tile", {"repeats": NONE}),
        ("Slice", {"starts": ZERO, "ends": NONE, "axes": ZERO}),
        ("Slice", {"starts": NONE, "ends": ZERO, "axes": ZERO}),
        ("CumSum", {"axis": NONE}),
    ],
)
def test_refused_by_name(make_model, operator, constants):
    nodes = [helper.make_node(operator, ["x", *constants], ["t"]), helper.make_node("Relu", ["t"], ["y"])]
    network = load_network(make_model(nodes, {"x": [1, 4]}, ["y"], constants))
    with pytest.raises(BatchError, match=rf"'t' \({operator}\): .*"):
        batched(network, 2)


def test_a_slope_of_more_dims_than_the_input(make_model):
    nodes = [helper.make_node("PRelu", ["x", "slope"], ["y"])]
    network = load_network(make_model(nodes, {"x": [4]}, ["y"], {"slope": np.ones((2, 4), np.float32)}))
    with pytest.raises(BatchError, match="do not fit each other; export the model again"):
        batched(network, 2)
