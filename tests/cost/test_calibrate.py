from __future__ import annotations

import itertools

import pytest
from typer.testing import CliRunner

from corepipe.api import engine_name
from corepipe.cli import app
from corepipe.cost import calibrate as calibrating
from corepipe.cost import measuring, quick
from corepipe.cost.calibration import Calibration, Measurement
from corepipe.cost.calibration_set import SET_VERSION
from corepipe.cost.calibration_store import CalibrationStore
from corepipe.cost.measuring import WholeTime, core_configs
from corepipe.cost.profile import table_machine
from corepipe.cost.table import EngineName, HopCosts
from corepipe.errors import DocumentError, UsageError
from corepipe.network.load import open_network
from corepipe.plan import plan
from corepipe.topology.model import Cache, Cluster, Core, Topology

NETWORKS = 3


@pytest.fixture
def short(monkeypatch):
    """Short measurements: these tests look at what is measured, not at how exact it is."""
    for name, value in {"_SECONDS": 0.0, "_RUNS": 3, "_BATCH": 2}.items():
        monkeypatch.setattr(calibrating, name, value)
    monkeypatch.setattr(measuring, "PROFILE_RUNS", (3, 3))
    monkeypatch.setattr(quick, "_SECONDS", 0.0)
    monkeypatch.setattr(calibrating, "measure_hop", lambda topology: HopCosts(fixed_s=1e-5))


def test_an_engine_that_lacks_operators_of_the_set_is_refused_at_once(here):
    with pytest.raises(UsageError, match=r"ncnn cannot be calibrated.*those of onnxruntime and openvino"):
        calibrating.calibrate(here, EngineName(name="ncnn", version="1"))


def test_a_calibration_holds_every_config_alone_and_busy(here, short):
    shares = []
    calibration = calibrating.calibrate(
        here, engine_name(), networks=NETWORKS, on_progress=lambda share, text: shares.append(share)
    )
    configs = [str(config) for config in core_configs(here)]
    assert {m.config for m in calibration.measurements} == set(configs)
    assert len(calibration.measurements) == NETWORKS * len(configs)
    for measured in calibration.measurements:
        assert all(seconds > 0 for seconds in measured.layer_s)
        assert sum(measured.layer_s) == pytest.approx(measured.whole_s)
        count = int("".join(filter(str.isdigit, measured.config)))
        assert (measured.busy_layer_s is not None) == (count < len(here.cores))
    assert {c.config for c in calibration.conditions} == set(configs)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert calibration.spread >= 0


def test_an_interrupted_calibration_goes_on_where_it_stopped(two_cores, short, monkeypatch):
    kept = []

    def interrupt(partial):
        kept.append(partial)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrating.calibrate(two_cores, engine_name(), networks=NETWORKS, on_partial=interrupt)
    measured = []
    real = calibrating._measure
    monkeypatch.setattr(
        calibrating,
        "_measure",
        lambda indices, topology, config, engine: (
            measured.append((str(config), list(indices))) or real(indices, topology, config, engine)
        ),
    )
    calibration = calibrating.calibrate(two_cores, engine_name(), networks=NETWORKS, done=kept[0])
    configs = [str(config) for config in core_configs(two_cores)]
    assert (configs[0], [0, 1]) not in measured
    assert (configs[0], [2]) in measured
    assert {(m.config, m.network) for m in kept[0].measurements} <= {
        (m.config, m.network) for m in calibration.measurements
    }
    assert all(m.passes == 2 for m in calibration.measurements)


def nothing(config, index):
    return Measurement(config=str(config), network=index, layer_s=(1e-3,), whole_s=1e-3)


def test_what_was_quicker_the_second_time_counts(here, monkeypatch):
    config = here.core_configs()[0]
    slow = Measurement(config=str(config), network=0, layer_s=(1e-3, 2e-3), busy_layer_s=(2e-3, 2e-3), whole_s=3e-3,
                       busy_whole_s=4e-3)  # fmt: skip
    monkeypatch.setattr(calibrating, "time_whole", lambda *args: [WholeTime(1.5e-3, 5e-3, 0.0, 0.0)])
    (found,) = calibrating._measure_again([slow], here, config, "onnxruntime")
    assert found.layer_s == pytest.approx((0.5e-3, 1e-3))
    assert found.whole_s == 1.5e-3
    assert found.busy_layer_s == slow.busy_layer_s
    assert found.passes == 2


def test_what_is_of_another_set_is_measured_again(two_cores, short, monkeypatch):
    monkeypatch.setattr(calibrating, "_measure", lambda indices, *args: [nothing(args[1], i) for i in indices])
    monkeypatch.setattr(calibrating, "_measure_again", lambda measurements, *args: measurements)
    asked = []
    monkeypatch.setattr(calibrating, "build", lambda topology, engine, partial, count: asked.append(partial))
    old = calibrating.PartialCalibration(set_version=SET_VERSION + 1, hop=HopCosts(fixed_s=1.0))
    calibrating.calibrate(two_cores, engine_name(), networks=1, done=old)
    assert asked[0].set_version == SET_VERSION
    assert asked[0].hop == HopCosts(fixed_s=1e-5)


def test_a_noisy_machine_is_marked(here, short, monkeypatch):
    monkeypatch.setattr(calibrating, "MOST_SPREAD", -1.0)
    assert not calibrating.calibrate(here, engine_name(), networks=1).trustworthy


def machine(**clusters):
    ids = iter(range(64))
    return Topology(
        tuple(
            Cluster(name, tuple(Core((next(ids),)) for _ in range(size)), caches=caches)
            for name, (size, caches) in clusters.items()
        )
    )


def test_counts_between_are_left_out_on_large_clusters():
    topology = machine(big=(6, ()), little=(3, ()))
    names = [str(config) for config in calibrating.measured_configs(topology)]
    assert names == ["big1", "big2", "big6", "little1", "little2", "little3", "all9"]


def test_a_cores_own_cache_is_its_share_of_the_smallest():
    big = (Cache(1, 65536, 1), Cache(2, 524288, 1), Cache(3, 2**21, 6))
    little = (Cache(1, 32768, 1), Cache(2, 2**20, 4))
    assert calibrating.own_cache_bytes(machine(big=(2, big), little=(4, little))) == 2**18
    assert calibrating.own_cache_bytes(machine(cpu=(2, ()))) == 0


def test_a_quick_profile_measures_distinct_layers_only(here, short, calibration):
    network = open_network("squeezenet")
    if [c.name for c in here.clusters] != ["cpu"] or len(here.cores) != 2:
        pytest.skip("the made-up calibration is of two equal cores")
    mine = calibration.model_copy(update={"machine": table_machine(here)})
    found = quick.profile_quick(network, here, engine_name(), mine)
    measured, total = found.distinct
    assert measured < total == len(network.layers)
    assert plan(found.table).throughput_fps > 0
    assert str(measured) in found.table.provenance.note
    same = quick.first_of_kind(quick.samples(network))
    seconds = found.table.configs[0].layer_s
    assert all(seconds[i] == pytest.approx(seconds[first]) for i, first in enumerate(same))


@pytest.mark.parametrize("wanted", [[0], [0, 1, 2], [3, 10, 11, 20], list(range(39))])
def test_quick_segments_hold_what_is_wanted_and_do_not_overlap(wanted):
    network = open_network("squeezenet")
    spans = quick.spans_of(network, wanted)
    assert all(any(start <= index < stop for start, stop in spans) for index in wanted)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(spans))
    edges = {0, *network.legal_cuts(), len(network.layers)}
    assert all(edge in edges for span in spans for edge in span)


def test_a_cache_folder_that_cannot_be_written_is_told_before_measuring(here, calibration, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("COREPIPE_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(calibrating, "calibrate", lambda *_, **__: pytest.fail("it measured"))
    result = CliRunner().invoke(app, ["calibrate"])
    assert isinstance(result.exception, DocumentError)
    assert "cannot make the cache folder" in str(result.exception)
    monkeypatch.setattr(calibrating, "calibrate", lambda *_, **__: calibration)
    file = tmp_path / "mine.json"
    result = CliRunner().invoke(app, ["calibrate", "--json", str(file)])
    assert result.exit_code == 0
    assert "warning: " in result.stderr
    assert Calibration.read(file) == calibration


def test_the_command_says_which_engines_are_still_measured(here, calibration, tmp_path, monkeypatch):
    monkeypatch.setenv("COREPIPE_CACHE", str(tmp_path))
    monkeypatch.setattr(calibrating, "calibrate", lambda *_, **__: calibration)
    both = (engine_name(), EngineName(name="ncnn", version="1"))
    monkeypatch.setattr("corepipe.api.engine_names", lambda names=None: both)
    result = CliRunner().invoke(app, ["calibrate"])
    assert result.exit_code == 0
    assert "networks are still measured where plans may use ncnn too; --engine onnxruntime predicts" in result.stderr
    CalibrationStore().save(here, both[1], calibration)
    assert "still measured" not in CliRunner().invoke(app, ["calibrate"]).stderr
