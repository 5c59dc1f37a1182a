from __future__ import annotations

import numpy as np
import pytest

from corepipe.cost.calibration_set import calibration_network, kind_count
from corepipe.cost.predict.fit import fit
from corepipe.cost.predict.layout import samples
from corepipe.cost.predict.model import Predictor
from corepipe.cost.predict.terms import CROSSING
from corepipe.errors import DocumentError
from corepipe.topology.model import CoreConfig


@pytest.fixture(scope="module")
def unseen():
    """Layers of networks that no made-up calibration holds."""
    found = [s for index in (0, 1, 4, 7, 12) for s in samples(calibration_network(kind_count() * 3 + index))]
    return [sample for sample in found if sample.kind != "other"]


def errors(calibration, config, unseen, truth, cores=1, slow=1.0, busy=False):
    predictor = Predictor(calibration)
    condition = predictor.condition(CoreConfig.parse(config), busy=busy)
    made = predictor.layers(unseen, condition).seconds
    true = np.array([truth(sample, cores, slow) for sample in unseen])
    return np.abs(made - true) / true


def test_a_machine_that_follows_the_model_is_found_again(calibration, unseen, truth):
    assert calibration.tiles == "16x6"
    assert np.median(errors(calibration, "cpu1", unseen, truth)) < 0.02
    assert np.median(errors(calibration, "cpu2", unseen, truth, cores=2)) < 0.05
    assert np.median(errors(calibration, "cpu1", unseen, truth, slow=1.25, busy=True)) < 0.03


def test_the_error_that_a_calibration_states_is_small_where_the_model_is_true(calibration):
    # Of the 23 kinds each is there once: what is left out of a fit has partly no like in the rest.
    assert all(condition.error < 0.15 for condition in calibration.conditions)


def test_noise_is_averaged_out_and_shows_in_the_intervals(made_up, unseen, truth):
    noisy = made_up(noise=0.1)
    assert np.median(errors(noisy, "cpu1", unseen, truth)) < 0.06
    condition = Predictor(noisy).condition(CoreConfig("cpu", 1))
    assert condition.low["all"] < 0.95
    assert condition.high["all"] > 1.05


def test_no_term_is_negative(made_up):
    for condition in made_up(noise=0.3).conditions:
        assert all(value >= 0 for value in condition.coefficients.values())


def test_counts_that_were_not_measured_follow_the_law(made_up, unseen, truth):
    calibration = made_up({"big": (4, 1.0), "little": (4, 3.0)}, counts=(1, 2, 4))
    law = calibration.laws[0]
    assert law.serial == pytest.approx(0.1, abs=0.05)
    assert law.memory_cores == pytest.approx(2.5, abs=0.8)
    assert np.median(errors(calibration, "big3", unseen, truth, cores=3)) < 0.1
    assert np.median(errors(calibration, "little3", unseen, truth, cores=3, slow=3.0)) < 0.1
    predictor = Predictor(calibration)
    assert predictor.condition(CoreConfig("big", 3), busy=True) is not None
    assert predictor.condition(CoreConfig("big", 5)) is None
    assert predictor.condition(CoreConfig("prime", 1)) is None
    assert predictor.condition(CoreConfig("all", 8), busy=True) is None


def test_busy_cores_of_one_worker_still_read_of_each_other(made_up, unseen, truth):
    calibration = made_up({"big": (4, 1.0), "little": (4, 3.0)}, counts=(1, 2, 4))
    assert np.median(errors(calibration, "big2", unseen, truth, cores=2)) < 0.05
    assert np.median(errors(calibration, "big2", unseen, truth, cores=2, slow=1.25, busy=True)) < 0.05
    crossing = {c.busy: c.coefficients.get(CROSSING, 0.0) for c in calibration.conditions if c.config == "big2"}
    assert crossing[True] == pytest.approx(1.25 * crossing[False], rel=0.1)


def test_a_core_type_without_measurements_is_named(calibration):
    others = tuple(m for m in calibration.measurements if m.config != "cpu1")
    with pytest.raises(DocumentError, match="cpu1"):
        fit(calibration.model_copy(update={"measurements": others}))


def test_layers_outside_what_was_seen_are_doubted(calibration, unseen):
    predictor = Predictor(calibration)
    layer = next(s for s in unseen if s.kind == "conv")
    assert predictor.doubts(layer.model_copy(update={"op_types": ("Conv", "GridSample")})) == [
        "operator GridSample was not calibrated"
    ]
    assert "float16" in predictor.doubts(layer.model_copy(update={"dtype": "float16"}))[0]
    huge = layer.model_copy(update={"flops": 10**15})
    assert "outside the calibrated" in predictor.doubts(huge)[0]
    condition = predictor.condition(CoreConfig("cpu", 1))
    sure, unsure = predictor.layers([layer], condition), predictor.layers([huge], condition)
    assert unsure.high[0] - unsure.low[0] > sure.high[0] - sure.low[0]


def test_an_unfitted_calibration_is_refused(calibration):
    with pytest.raises(DocumentError, match="calibrate again"):
        Predictor(calibration.model_copy(update={"conditions": ()}))
