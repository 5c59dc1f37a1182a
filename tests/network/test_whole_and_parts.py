"""Divided networks give what the whole gives: real graphs, every legal cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from corepipe.network.load import load_network
from corepipe.network.model import Network

SHARED = Path(__file__).parents[3] / "shared" / "models"
LIGHT = [
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
]
TRAINED = ["squeezenet1.0-imagenet", "resnet8-cifar10"]


def load(name, light_model) -> Network:
    if name in LIGHT:
        return load_network(light_model(name))
    path = SHARED / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path.name} is not here (../shared/models)")
    return load_network(path)


def test_the_nine_graphs_of_the_onnx_package_are_all_listed():
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    assert sorted(path.stem.removeprefix("light_") for path in folder.glob("*.onnx")) == LIGHT


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", *TRAINED])
def test_some_cuts(name, light_model, divider):
    network = load(name, light_model)
    legal = network.legal_cuts()
    third = len(legal) // 3
    divider.check(network, [legal[third]], [legal[2 * third]], [legal[0], legal[third], legal[-1]])


def test_outputs_depend_on_the_input(light_model, divider):
    network = load("squeezenet", light_model)
    first = divider.run(network.model, divider.frame_for(network, seed=1))
    second = divider.run(network.model, divider.frame_for(network, seed=2))
    name = network.outputs[0].name
    assert np.abs(first[name] - second[name]).max() > 1e-3 * np.abs(first[name]).max()


def test_folding_does_not_change_the_result(light_model, divider):
    model = light_model("shufflenet")
    network = load_network(model)
    frame = divider.frame_for(network)
    session_model = onnx.ModelProto()
    session_model.CopyFrom(model)
    session_model.ir_version = 8
    constants = {t.name for t in model.graph.initializer}
    inputs = [v for v in model.graph.input if v.name not in constants]
    del session_model.graph.input[:]
    session_model.graph.input.extend(inputs)
    divider.assert_same(divider.run(session_model, frame), divider.run(network.model, frame))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [*LIGHT, *TRAINED])
def test_every_legal_cut(name, light_model, divider):
    network = load(name, light_model)
    legal = network.legal_cuts()
    assert len(legal) == len(network.layers) - 1
    assert divider.check(network, *([cut] for cut in legal)) == len(legal)
