"""Costs from a few measured layers: what is planned with is what was found."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from corepipe.api import engine_name
from corepipe.cost import quick
from corepipe.cost.predict.table import predict_table
from corepipe.plan import evaluate, plan


def test_plans_go_by_the_corrected_costs(chain, calibration, monkeypatch):
    """A machine that takes three times as long as was predicted."""

    def slower(network, topology, config, engine, spans, costs):
        return {index: 3 * seconds for index, seconds in enumerate(costs.layer_s)}

    monkeypatch.setattr(quick, "_measure", slower)
    machine = SimpleNamespace(clusters=(SimpleNamespace(name="cpu"),))
    predicted = predict_table(chain, calibration).table
    found = quick.profile_quick(chain, machine, engine_name(), calibration).table
    for costs in predicted.configs:
        config = costs.core_config
        np.testing.assert_allclose(found.costs_of(config).layer_s, 3 * np.array(costs.layer_s))
        assert found.segment_s(config, 0, found.layer_count) > 2 * predicted.segment_s(config, 0, found.layer_count)
    made = plan(found)
    assert made.predicted_fps == pytest.approx(evaluate(made, found).throughput_fps)
    assert made.bound_fps < plan(predicted).bound_fps
