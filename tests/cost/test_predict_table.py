from __future__ import annotations

import time

import numpy as np
import pytest

from corepipe.cost.calibration import Calibration
from corepipe.cost.predict.layout import samples
from corepipe.cost.predict.table import predict_table, predict_table_paper
from corepipe.cost.table import CostTable
from corepipe.errors import DocumentError
from corepipe.network.load import open_network
from corepipe.plan import evaluate, plan


@pytest.fixture(scope="module")
def network():
    return open_network("googlenet")


def test_a_predicted_table_is_whole_and_can_be_planned_with(calibration, network):
    began = time.process_time()
    prediction = predict_table(network, calibration)
    made = plan(prediction.table)
    assert time.process_time() - began < 5
    table = prediction.table
    assert made.throughput_fps > 0
    assert table.provenance.source == "predicted"
    assert [costs.config for costs in table.configs] == ["cpu1", "cpu2"]
    assert table.configs[0].layer_busy_s is not None
    assert table.configs[1].layer_busy_s is None
    assert CostTable.from_json(table.to_json()) == table
    assert table.hop == calibration.hop


def test_intervals_hold_the_predictions(calibration, network):
    prediction = predict_table(network, calibration)
    for costs in prediction.table.configs:
        interval = prediction.intervals[costs.config]
        assert np.all(np.array(interval.low_s) <= np.array(costs.layer_s))
        assert np.all(np.array(interval.high_s) >= np.array(costs.layer_s))
        whole = prediction.table.segment_s(costs.core_config, 0, len(network.layers), busy=False)
        assert interval.network_low_s <= whole * 1.000001
        assert interval.network_high_s >= whole * 0.999999


def test_predictions_are_near_the_made_up_truth(calibration, network, truth):
    table = predict_table(network, calibration).table
    true = np.array([truth(sample) for sample in samples(network)])
    assert np.abs(np.array(table.configs[0].layer_s) - true).sum() / true.sum() < 0.05


def test_the_papers_model_gives_a_table_of_the_same_form(calibration, network):
    table = predict_table_paper(network, calibration)
    assert [costs.config for costs in table.configs] == ["cpu1", "cpu2"]
    assert all(seconds > 0 for costs in table.configs for seconds in costs.layer_s)
    assert sum(table.configs[1].layer_s) < sum(table.configs[0].layer_s)
    assert evaluate(plan(table), table).throughput_fps > 0


def test_every_config_of_a_machine_of_several_clusters_is_predicted(made_up, network):
    calibration = made_up({"big": (4, 1.0), "little": (4, 3.0)})
    prediction = predict_table(network, calibration)
    names = [costs.config for costs in prediction.table.configs]
    assert names == [*(f"big{n}" for n in range(1, 5)), *(f"little{n}" for n in range(1, 5)), "all8"]
    whole = {c.config: sum(c.layer_s) for c in prediction.table.configs}
    assert whole["big1"] > whole["big2"] > whole["big3"] > whole["big4"]
    assert whole["little1"] == pytest.approx(3 * whole["big1"], rel=0.05)
    assert plan(prediction.table).throughput_fps > 0
    paper = predict_table_paper(network, calibration)
    assert [costs.config for costs in paper.configs] == names


def test_a_layer_that_was_never_seen_is_warned_of(made_up, network):
    few = made_up(networks=3)
    warnings = predict_table(network, few).warnings
    assert any("lrn" in warning for warning in warnings)
    assert len(set(warnings)) == len(warnings)


def test_a_calibration_survives_its_file(calibration, tmp_path):
    path = tmp_path / "machine.json"
    calibration.write(path)
    assert Calibration.read(path) == calibration
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(DocumentError, match="not valid JSON"):
        Calibration.read(path)
    path.write_text(text.replace('"layer_s": [', '"layer_s": [1.0, ', 1))
    with pytest.raises(DocumentError, match="layer_s needs"):
        Calibration.read(path)
