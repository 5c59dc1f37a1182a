"""Modes held against each other: by a made-up machine whose true times are known, and once for real."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from cost_tables import made_up

from corepipe import api
from corepipe.cost import align as aligning
from corepipe.cost.profile import table_machine, table_network
from corepipe.cost.table import ConfigCosts, CostTable, EngineName, Mode, Provenance
from corepipe.errors import WorkerError
from corepipe.plan.division import Divider
from corepipe.plan.model import HopPart
from corepipe.topology.model import CoreConfig

ONE = CoreConfig("cpu", 1)


@pytest.fixture
def table(chain, here):
    """Engine `a` is better in front, `b` at the end, by so little that a change of engine hardly pays."""
    cluster = here.clusters[0].name
    layers = len(chain.layers)
    front = [1e-3] * (layers // 2) + [2e-3] * (layers - layers // 2)
    return CostTable(
        network=table_network(chain),
        machine=table_machine(here),
        engines=(EngineName(name="a", version="1"), EngineName(name="b", version="1")),
        configs=tuple(
            ConfigCosts(config=f"{cluster}1", engine=name, layer_s=tuple(seconds), segment_s=1e-5)
            for name, seconds in (("a", front), ("b", front[::-1]))
        ),
        provenance=Provenance(source="measured"),
    )


def truth(table, change_s, factor):
    """A machine on which a change of engine costs `change_s`, and engine `b` takes `factor` times the table's."""

    def time(network, topology, guessed, config, divisions):
        def seconds(division):
            return [
                (factor if part.mode.engine == "b" else 1.0)
                * table.segment_s(config, part.start, part.stop, mode=part.mode)
                + (change_s if part.start else 0.0)
                for part in division
            ]

        return {division: seconds(division) for division in divisions}, False

    return time


def whole(table, mode):
    config = next(iter(table.by_config))
    return table.segment_s(config, 0, table.layer_count, mode=mode, busy=False)


def best(table):
    config = next(iter(table.by_config))
    return Divider(table, config, busy=False).divide(0, table.layer_count)


def test_a_division_that_holds_what_it_promises_stays_the_best(chain, here, table, monkeypatch):
    monkeypatch.setattr(aligning, "_time", truth(table, 0.0, 1.0))
    aligned = aligning.align(chain, here, table)
    parts, seconds = best(aligned)
    assert [part.mode.engine for part in parts] == ["a", "b"]
    assert seconds == pytest.approx(best(table)[1])


def test_a_division_that_takes_longer_is_given_up_where_one_engine_is_quicker(chain, here, table, monkeypatch):
    monkeypatch.setattr(aligning, "_time", truth(table, 1.0, 1.0))
    aligned = aligning.align(chain, here, table)
    parts, seconds = best(aligned)
    assert len(parts) == 1
    for name in "ab":
        assert whole(aligned, Mode(name)) == pytest.approx(whole(table, Mode(name)))
    assert seconds == pytest.approx(whole(table, Mode("a")))


def test_every_mode_is_scaled_to_what_it_took_in_turns(chain, here, table, monkeypatch):
    monkeypatch.setattr(aligning, "_time", truth(table, 0.0, 0.5))
    aligned = aligning.align(chain, here, table)
    assert whole(aligned, Mode("a")) == pytest.approx(whole(table, Mode("a")))
    assert whole(aligned, Mode("b")) == pytest.approx(whole(table, Mode("b")) / 2, rel=1e-2)


def test_a_small_price_of_changing_is_found(chain, here, table, monkeypatch):
    monkeypatch.setattr(aligning, "_time", truth(table, 1e-4, 1.0))
    aligned = aligning.align(chain, here, table)
    parts, seconds = best(aligned)
    assert len(parts) == 2
    assert seconds == pytest.approx(best(table)[1] + 1e-4, rel=1e-2)


def test_layers_that_cost_nothing_stay_so(chain, here, table, monkeypatch):
    configs = tuple(row.model_copy(update={"layer_s": (0.0, *row.layer_s[1:-1], 0.0)}) for row in table.configs)
    monkeypatch.setattr(aligning, "_time", truth(table, 0.0, 1.0))
    aligned = aligning.align(chain, here, table.model_copy(update={"configs": configs}))
    for row in aligned.configs:
        assert np.isfinite(row.layer_s).all()
        assert row.layer_s[0] < 1e-3 * sum(row.layer_s)


def made_up_machine(seed, layers=20, profile_error=0.35, change_s=3e-4, drift=1.0):
    """True costs of three engines, the table that profiles wrong by layer gave, and what divisions take."""
    generator = np.random.default_rng(seed)
    network = generator.lognormal(0, 1, layers) * 1e-3
    names = ("a", "b", "c")
    true = {name: network * np.exp(0.4 * generator.standard_normal(layers)) for name in names}
    guessed = {}
    for name, seconds in true.items():
        profile = seconds * np.exp(profile_error * generator.standard_normal(layers))
        guessed[name] = profile * (seconds.sum() / profile.sum()) * (1 + 0.03 * generator.standard_normal())

    def table_of(costs):
        configs = [
            ConfigCosts(config="cpu1", engine=name, layer_s=tuple(costs[name]), segment_s=2e-5) for name in names
        ]
        return made_up(configs, {"cpu": 1}, cut_bytes=[0] * (layers + 1))

    real = table_of(true)

    def took(division):
        return [
            real.segment_s(ONE, part.start, part.stop, mode=part.mode) + (change_s if part.start else 0.0)
            for part in division
        ]

    def time(network, topology, guessed, config, divisions):
        noise = drift * (1 + 0.01 * generator.standard_normal(len(divisions)))
        return {d: [s * factor for s in took(d)] for d, factor in zip(divisions, noise, strict=True)}, False

    whole_s = min(sum(took((HopPart(layers=(0, layers), engine=name),))) for name in names)
    return table_of(guessed), took, time, whole_s


def test_what_parts_take_leads_to_divisions_that_pay(chain, here, monkeypatch):
    monkeypatch.setattr(aligning, "_fits", lambda network, divisions: True)
    before, after, promised = [], [], []
    for seed in range(20):
        table, took, time, whole_s = made_up_machine(seed)
        monkeypatch.setattr(aligning, "_time", time)
        before.append(sum(took(Divider(table, ONE, busy=False).divide(0, table.layer_count)[0])) / whole_s)
        parts, seconds = best(aligning.align(chain, here, table))
        after.append(sum(took(parts)) / whole_s)
        promised.append(seconds / sum(took(parts)))
    assert np.mean(after) < 0.9, "against the best engine alone"
    assert np.mean(after) < np.mean(before) - 0.03, "against the best division by the profiles alone"
    assert max(after) < 1.05
    assert 0.97 < np.mean(promised) < 1.03
    assert min(promised) > 0.85


@pytest.mark.parametrize("fits", [True, False])
def test_a_machine_that_is_slower_by_now_is_no_broken_promise(chain, here, monkeypatch, fits):
    monkeypatch.setattr(aligning, "_fits", lambda network, divisions: fits)
    after = {drift: [] for drift in (0.5, 1.0, 2.0)}
    for drift, found in after.items():
        for seed in range(20):
            table, took, time, whole_s = made_up_machine(seed, drift=drift)
            monkeypatch.setattr(aligning, "_time", time)
            parts, _ = best(aligning.align(chain, here, table))
            found.append(sum(took(parts)) / whole_s)
    means = [np.mean(found) for found in after.values()]
    assert max(means) - min(means) < 0.01
    assert max(means) < (0.9 if fits else 0.96)


@pytest.mark.parametrize(("available", "rounds"), [(1 << 40, 2), (0, 1)])
def test_no_more_is_loaded_at_once_than_memory_takes(chain, here, monkeypatch, available, rounds):
    timed = []
    table, _, time, _ = made_up_machine(seed=0, layers=len(chain.layers))

    def counted(network, topology, guessed, config, divisions):
        timed.append(divisions)
        return time(network, topology, guessed, config, divisions)

    monkeypatch.setattr(aligning, "_time", counted)
    monkeypatch.setattr(aligning, "available_memory", lambda: available)
    aligning.align(chain, here, table)
    assert len(timed) == rounds


def test_times_are_those_of_one_frame_however_many_run_at_once(chain, here, monkeypatch):
    class Process(contextlib.nullcontext):
        def __init__(self, topology, name, cores, segments, engine, **options):
            super().__init__(self)

        def time_each(self, chains, seconds, *, busy):
            return [[[6.0] * len(one)] * 5 for one in chains]

    monkeypatch.setattr(aligning, "MeasuringProcess", Process)
    monkeypatch.setattr(aligning, "loads", lambda *args: [])
    config, layers = CoreConfig(here.clusters[0].name, 1), len(chain.layers)
    rows = [ConfigCosts(config=str(config), batch=n, layer_s=(1.0,) * layers) for n in (1, 2, 3, 6)]
    table = made_up(rows, {config.cluster: 1}, cut_bytes=[0] * (layers + 1)).for_frames(6)
    divisions = [(HopPart(layers=(0, layers), batch=n),) for n in (1, 2, 3, 6)]
    mixed = (HopPart(layers=(0, 2), batch=2), HopPart(layers=(2, layers), batch=6))
    took, busy = aligning._time(chain, here, table, config, [*divisions, mixed])
    assert [took[division] for division in divisions] == [[6.0], [3.0], [2.0], [1.0]]
    assert took[mixed] == [3.0, 1.0]
    assert not busy


def test_costs_of_two_engines_are_measured_merged_and_kept(chain, here, monkeypatch):
    pytest.importorskip("openvino")
    first = api.costs(chain, here, engines=["onnxruntime", "openvino"])
    one = CoreConfig(here.clusters[0].name, 1)
    assert [costs.engine for costs in first.by_config[one]] == ["onnxruntime", "openvino"]
    monkeypatch.setattr(api, "align", None)
    monkeypatch.setattr(api, "profile", None)
    assert api.costs(chain, here, engines=["onnxruntime", "openvino"]) == first
    assert [e.name for e in api.costs(chain, here).engines] == ["onnxruntime"]


def test_what_could_not_be_held_against_each_other_is_not_tried_at_each_start(chain, here, monkeypatch, caplog):
    tried = []

    def fail(*_, **__):
        tried.append(1)
        raise WorkerError("too little memory")

    pytest.importorskip("openvino")
    monkeypatch.setattr(api, "align", fail)
    both = ["onnxruntime", "openvino"]
    first = api.costs(chain, here, engines=both)
    assert "plans may be off: too little memory" in caplog.text
    assert api.costs(chain, here, engines=both) == first
    assert api.find_costs(chain, here, engines=both).table == first
    assert len(tried) == 1
    assert "at an earlier start" in caplog.text
    api.costs(chain, here, engines=both, use_cache=False)
    assert len(tried) == 2


def test_an_engine_that_refuses_the_network_is_left_out(here, make_plan, chain, monkeypatch, caplog):
    from corepipe.errors import EngineError

    real = api.profile

    def profile(network, topology, engine, **options):
        if engine.name == "openvino":
            raise EngineError("openvino refuses the model: too odd")
        return real(network, topology, engine, **options)

    pytest.importorskip("openvino")
    monkeypatch.setattr(api, "profile", profile)
    monkeypatch.setenv("COREPIPE_ENGINES", "onnxruntime,openvino")
    assert [e.name for e in api.costs(chain, here).engines] == ["onnxruntime"]
    assert "too odd" in caplog.text
    with pytest.raises(EngineError, match="too odd"):
        api.costs(chain, here, engines=["onnxruntime", "openvino"])
