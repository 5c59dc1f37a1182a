from __future__ import annotations

import json

import pytest
from rich.console import Console

from corepipe.api import engine_name
from corepipe.cost.calibration import Calibration, Measurement, SampleNetwork
from corepipe.cost.calibration_set import SET_VERSION, calibration_network
from corepipe.cost.predict.fit import fit
from corepipe.cost.predict.layout import samples
from corepipe.cost.predict.table import predict_table
from corepipe.cost.table import TableCluster, TableMachine
from corepipe.report.predict import prediction_json, render_calibration, render_prediction


@pytest.fixture(scope="module")
def small() -> Calibration:
    networks, measurements = [], []
    for index in (0, 3):
        seen = samples(calibration_network(index))
        seconds = tuple(1e-6 + s.flops / 5e10 for s in seen)
        networks.append(SampleNetwork(index=index, layers=seen))
        measurements += [
            Measurement(
                config=f"cpu{n}", network=index, layer_s=tuple(s / n for s in seconds), whole_s=sum(seconds) / n
            )
            for n in (1, 2)
        ]
    machine = TableMachine(
        description="two [cores]", fingerprint="f", clusters=(TableCluster(name="cpu", cores=(0, 1)),)
    )
    return fit(
        Calibration(
            machine=machine,
            engine=engine_name(),
            set_version=SET_VERSION,
            networks=tuple(networks),
            measurements=tuple(measurements),
        )
    )


def test_a_prediction_is_shown_with_intervals_and_warnings(small, chain):
    console = Console(record=True, width=160)
    prediction = predict_table(chain, small)
    render_prediction(prediction, console)
    text = console.export_text()
    assert "whole network" in text
    assert "cpu2" in text
    assert "two [cores]" in text
    assert text.count("(") > len(chain.layers)
    data = json.loads(json.dumps(prediction_json(prediction)))
    assert len(data["intervals"]["cpu1"]["low_s"]) == len(chain.layers)
    assert data["table"]["provenance"]["source"] == "predicted"


def test_a_calibration_is_shown_with_its_errors(small):
    console = Console(record=True, width=160)
    render_calibration(small.model_copy(update={"trustworthy": False}), console)
    text = console.export_text()
    assert "GFLOP/s" in text
    assert "too noisy" in text
    assert "2 synthetic networks" in text
