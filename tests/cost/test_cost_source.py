from __future__ import annotations

from dataclasses import replace

import pytest

from corepipe.api import engine_name
from corepipe.cache import TableCache
from corepipe.cost.calibration import PartialCalibration
from corepipe.cost.calibration_store import CalibrationStore, check_trust, mismatch, not_calibrated, read_calibration
from corepipe.cost.predict.table import predict_table
from corepipe.cost.profile import PartialProfile, table_machine
from corepipe.cost.source import choose_costs
from corepipe.cost.table import EngineName
from corepipe.errors import DocumentError, NotTrustworthyError, UsageError
from corepipe.topology.cpulist import format_cpu_list


@pytest.fixture
def cache(tmp_path):
    return TableCache(tmp_path / "cache")


@pytest.fixture
def mine(calibration, here):
    """A calibration that claims to be of this machine."""
    return calibration.model_copy(update={"machine": table_machine(here)})


def never():
    raise AssertionError("nothing should be measured")


def test_a_kept_profile_comes_first(chain, here, calibration, mine, cache):
    engine = engine_name()
    table = predict_table(chain, calibration).table
    cache.save(cache.path(chain, here, engine), table)
    CalibrationStore(cache).save(here, engine, mine)
    found = choose_costs(chain, here, [engine], never, cache=cache)
    assert found.table == table
    assert "kept profile" in found.source
    assert "predicted" in choose_costs(chain, here, [engine], never, cache=cache, predict=True).source


def test_then_a_calibration(chain, here, mine, cache):
    engine = engine_name()
    CalibrationStore(cache).save(here, engine, mine)
    found = choose_costs(chain, here, [engine], never, cache=cache)
    assert "predicted" in found.source
    noisy = mine.model_copy(update={"trustworthy": False, "spread": 0.3})
    CalibrationStore(cache).save(here, engine, noisy)
    assert "30.0%" in choose_costs(chain, here, [engine], never, cache=cache).source


def test_then_it_is_measured(chain, here, calibration, cache):
    table = predict_table(chain, calibration).table
    found = choose_costs(chain, here, [engine_name()], lambda: table, cache=cache)
    assert found.table is table
    assert "measured" in found.source


def test_a_kept_profile_comes_first_where_another_engine_s_refusal_is_old(chain, here, mine, calibration, cache):
    """Else plans would go by predictions of an engine that does not take the network."""
    engines = [engine_name(), EngineName(name="openvino", version="1")]
    table = predict_table(chain, calibration).table
    cache.save(cache.path(chain, here, engines[0]), table)
    for engine in engines:
        CalibrationStore(cache).save(here, engine, mine.model_copy(update={"engine": engine}))
    cache.keep_refusal(cache.path(chain, here, engines[1]), "no such element type", hold_s=0.0)
    found = choose_costs(chain, here, engines, lambda: table, cache=cache)
    assert found.table is table


def test_without_a_cache_it_is_measured(chain, here, mine, calibration, cache):
    CalibrationStore(cache).save(here, engine_name(), mine)
    table = predict_table(chain, calibration).table
    assert choose_costs(chain, here, [engine_name()], lambda: table, cache=cache, use_cache=False).table is table


def test_a_prediction_needs_a_calibration(chain, here, cache, calibration):
    with pytest.raises(UsageError, match="corepipe calibrate"):
        choose_costs(chain, here, [engine_name()], never, cache=cache, predict=True)
    given = choose_costs(chain, here, [engine_name()], never, cache=cache, calibration=calibration)
    assert given.table.machine == calibration.machine


def test_named_engines_that_were_not_calibrated_are_said(chain, here, mine, cache):
    engines = [engine_name(), EngineName(name="openvino", version="1")]
    CalibrationStore(cache).save(here, engines[0], mine)
    with pytest.raises(UsageError, match="corepipe calibrate --engine openvino"):
        choose_costs(chain, here, engines, never, cache=cache, predict=True, named=True)
    assert "predicted" in choose_costs(chain, here, engines, never, cache=cache, predict=True).source


def test_the_command_that_is_advised_is_one_that_helps(here):
    ort = engine_name()
    assert "run `corepipe calibrate --engine onnxruntime` once" in not_calibrated(here, ort)
    some = replace(here, restricted=True)
    cpus = format_cpu_list(here.cpus)
    assert f"run `corepipe calibrate --engine onnxruntime --cores {cpus}` once" in not_calibrated(some, ort)
    with pytest.raises(UsageError, match="ncnn cannot be calibrated"):
        not_calibrated(here, EngineName(name="ncnn", version="1"))


def test_costs_of_several_frames_at_once_are_not_predicted(chain, here, cache, mine):
    CalibrationStore(cache).save(here, engine_name(), mine)
    for how in ({"predict": True}, {"calibration": mine}):
        with pytest.raises(UsageError, match="leave out the batch"):
            choose_costs(chain, here, [engine_name()], never, cache=cache, batch=4, **how)


def test_a_calibration_of_elsewhere_is_named_and_refused(calibration, mine, here, tmp_path, caplog):
    path = tmp_path / "other.json"
    calibration.write(path)
    with pytest.raises(UsageError, match="another machine"):
        read_calibration(path, here, engine_name())
    assert read_calibration(path, here, engine_name(), force=True) == calibration
    assert "another machine" in caplog.text
    assert read_calibration(path, None, None) == calibration
    assert "1.0.0" in mismatch(mine, here, EngineName(name="onnxruntime", version="1.0.0"))
    assert mismatch(mine, here, engine_name()) == ""


def test_a_noisy_calibration_is_kept_and_marked(calibration):
    check_trust(calibration)
    with pytest.raises(NotTrustworthyError, match=r"12\.0%") as caught:
        check_trust(calibration.model_copy(update={"trustworthy": False, "spread": 0.12}))
    assert caught.value.exit_code == 3


def test_what_an_interrupted_calibration_left_is_found_again(here, calibration, mine, cache):
    store, engine = CalibrationStore(cache), engine_name()
    assert store.load(here, engine) is None
    assert store.load_partial(here, engine) is None
    partial = PartialCalibration(set_version=1, measurements=calibration.measurements[:2])
    store.save_partial(here, engine, partial)
    assert store.load_partial(here, engine) == partial
    store.save(here, engine, mine)
    assert store.load_partial(here, engine) is None
    assert store.load(here, engine) == mine


def test_damaged_files_are_reported_and_ignored(here, mine, cache, caplog):
    store, engine = CalibrationStore(cache), engine_name()
    path = store.save(here, engine, mine)
    path.write_text(path.read_text()[:1000])
    assert store.load(here, engine) is None
    assert "cannot be used" in caplog.text


def test_a_folder_that_cannot_be_made_is_an_error_with_advice(here, mine, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DocumentError, match="COREPIPE_CACHE"):
        CalibrationStore(TableCache(tmp_path / "file" / "cache")).save(here, engine_name(), mine)


def test_an_interrupted_profile_is_finished_before_anything_is_predicted(chain, here, mine, calibration, cache):
    engine = engine_name()
    CalibrationStore(cache).save(here, engine, mine)
    table = predict_table(chain, calibration).table
    path = cache.path(chain, here, engine)
    cache.save_partial(path, cache.hop_path(here, engine), PartialProfile(configs=table.configs[:1]))
    assert choose_costs(chain, here, [engine], lambda: table, cache=cache).table is table
    assert "predicted" in choose_costs(chain, here, [engine], never, cache=cache, predict=True).source


def test_what_a_calibration_lacks_is_said(chain, made_up):
    whole = made_up({"cpu": (4, 1.0)}, counts=(1, 2, 4))
    with pytest.raises(DocumentError, match="several cores of cpu; calibrate again"):
        predict_table(chain, whole.model_copy(update={"laws": ()}))
    with pytest.raises(DocumentError, match="calibrate again"):
        predict_table(chain, whole.model_copy(update={"conditions": ()}))
