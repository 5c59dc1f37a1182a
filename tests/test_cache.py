from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import stat
import subprocess
import sys

import onnx
import pytest
from waiting import wait_until

from corepipe import api
from corepipe.cache import FAILURE_S, LOCK, TableCache
from corepipe.cost import profile as profiling
from corepipe.cost.table import EngineName, HopCosts
from corepipe.errors import BatchError, EngineError, WorkerError
from corepipe.network.load import load_network, open_network


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(profiling, "_SECONDS", 0.01)
    monkeypatch.setattr(profiling, "measure_hop", lambda topology: HopCosts())


@pytest.fixture
def measured(monkeypatch):
    """The configs that were really measured."""
    seen = []
    real = profiling._measure_config
    monkeypatch.setattr(profiling, "_measure_config", lambda *args: seen.append(str(args[2])) or real(*args))
    return seen


def test_costs_are_measured_once_and_kept_privately(chain, here, measured):
    first = api.costs(chain, here)
    again = api.costs(chain, here)
    assert first == again
    assert len(measured) == len(profiling.profiled_configs(here))
    folder = TableCache().folder
    assert {path.name.rsplit(".", 2)[1] for path in folder.iterdir() if path.name != LOCK} == {"costs", "hop"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    api.costs(chain, here, use_cache=False)
    assert len(measured) == 2 * len(profiling.profiled_configs(here))


def test_a_chip_that_slows_down_while_it_is_measured_is_told_of(chain, here, monkeypatch, caplog):
    monkeypatch.setattr(api, "cooling_devices_at_work", lambda: ("thermal-cpufreq-1", "thermal-cpufreq-0"))
    api.costs(chain, here, engines=["onnxruntime"])
    assert "slowed down (thermal-cpufreq-0, thermal-cpufreq-1)" in caplog.text
    assert "--no-cache" in caplog.text
    caplog.clear()
    monkeypatch.setattr(api, "cooling_devices_at_work", lambda: ())
    api.costs(chain, here, engines=["onnxruntime"], use_cache=False)
    assert "slowed down" not in caplog.text


@pytest.fixture
def failing_ncnn(monkeypatch):
    """ONNX Runtime and an ncnn whose measuring fails with an error; gives the configs that it was asked for."""

    def install(error, *, first=False):
        names = (api.engine_name(), EngineName(name="ncnn", version="0"))[:: -1 if first else 1]
        monkeypatch.setattr(api, "engine_names", lambda engines=None: names)
        real, asked = profiling._measure_config, []

        def measure(network, topology, config, engine):
            if engine == "ncnn":
                asked.append(config)
                raise error
            return real(network, topology, config, engine)

        monkeypatch.setattr(profiling, "_measure_config", measure)
        return asked

    return install


def test_an_engine_that_dies_is_done_without(chain, here, failing_ncnn, caplog):
    """Its library does not load here, or the memory is too small for it: that may be otherwise at the next start."""
    asked = failing_ncnn(WorkerError("probe: killed by signal 9"))
    table = api.costs(chain, here)
    assert [one.name for one in table.engines] == ["onnxruntime"]
    assert "plans do without ncnn: probe: killed by signal 9" in caplog.text
    asked.clear()
    assert api.costs(chain, here) == table
    assert not asked, "it would die again at each start"
    (refusal,) = TableCache().folder.glob("*.refusal.json")
    os.utime(refusal, (0, os.stat(refusal).st_mtime - 2 * FAILURE_S))
    api.costs(chain, here)
    assert asked
    with pytest.raises(EngineError, match=r"killed by signal 9 .*--no-cache asks again"):
        api.costs(chain, here, engines=["onnxruntime", "ncnn"])
    with pytest.raises(WorkerError, match="killed"):
        api.costs(chain, here, engines=["onnxruntime", "ncnn"], use_cache=False)


def test_where_the_first_engine_dies_the_others_serve(chain, here, failing_ncnn, caplog):
    asked = failing_ncnn(WorkerError("probe: killed by signal 9"), first=True)
    for count in (1, 1):
        assert [one.name for one in api.costs(chain, here).engines] == ["onnxruntime"]
        assert len(asked) == count, "it would die again at each start"
    assert caplog.text.count("plans do without ncnn: probe: killed by signal 9") == 1


def test_where_every_engine_dies_each_start_tries_them(chain, here, failing_ncnn, monkeypatch):
    """The memory may be enough by then."""
    asked = failing_ncnn(WorkerError("probe: killed by signal 9"))
    monkeypatch.setattr(api, "engine_names", lambda engines=None: (EngineName(name="ncnn", version="0"),))
    for count in (1, 2):
        with pytest.raises(WorkerError, match="killed by signal 9"):
            api.costs(chain, here)
        assert len(asked) == count


def test_an_engine_that_refuses_is_not_asked_again_for_a_day(chain, here, failing_ncnn, caplog):
    asked = failing_ncnn(EngineError("it has no such layer"))
    first = api.find_costs(chain, here)
    assert "measured" in first.source
    assert caplog.text.count("plans do without ncnn: it has no such layer") == 1
    again = api.find_costs(chain, here)
    assert "kept profile" in again.source
    assert again.table == first.table
    assert api.costs(chain, here) == first.table
    assert len(asked) == 1
    assert caplog.text.count("plans do without ncnn") == 1
    for named in (api.costs, api.find_costs):  # who names engines gets all of them, or is told
        with pytest.raises(EngineError, match=r"no such layer .*--no-cache asks again"):
            named(chain, here, engines=["onnxruntime", "ncnn"])
    api.costs(chain, here, use_cache=False)
    assert len(asked) == 2
    (refusal,) = TableCache().folder.glob("*.refusal.json")
    os.utime(refusal, (1e9, 1e9))
    api.costs(chain, here)
    assert len(asked) == 3


def test_an_engine_that_refuses_frame_by_frame_is_not_asked_for_more(chain, here, failing_ncnn, caplog):
    asked = failing_ncnn(EngineError("it has no such layer"))
    api.costs(chain, here, batch=4)
    assert len(asked) == 1
    assert caplog.text.count("plans do without ncnn") == 1


def test_a_named_engine_that_refuses_ends_it_before_others_are_measured(chain, here, failing_ncnn, measured):
    failing_ncnn(EngineError("it has no such layer"), first=True)
    with pytest.raises(EngineError, match="no such layer"):
        api.costs(chain, here, engines=["ncnn", "onnxruntime"])
    assert not measured


def test_hop_costs_are_measured_once_where_they_cannot_be_kept(chain, here, monkeypatch):
    count = []
    monkeypatch.setattr(profiling, "measure_hop", lambda topology: count.append(1) or HopCosts())
    monkeypatch.setattr(TableCache, "_write", lambda *_: False)
    api.costs(chain, here, batch=2, engines=["onnxruntime"])
    assert len(count) == 1


def test_engines_are_held_against_each_other_anew_where_that_was_long_ago(chain, here, measured, monkeypatch, caplog):
    count = itertools.count(1)

    def align(network, topology, table, *, on_progress):
        number = next(count)
        if number == 4:
            raise WorkerError("killed for its memory")
        return table.replaced(provenance=table.provenance.model_copy(update={"note": f"aligned {number}"}))

    def notes(**options):
        return api.find_costs(chain, here, engines=["onnxruntime"], batch=2, **options).table.provenance.note

    monkeypatch.setattr(api, "align", align)
    assert notes() == notes() == notes(aligned_within_s=60.0) == "aligned 1"
    for path in TableCache().folder.glob("*.costs.json"):
        os.utime(path, (0, path.stat().st_mtime - 100))
    assert notes() == "aligned 1"
    assert notes(aligned_within_s=60.0) == notes(aligned_within_s=60.0) == notes() == "aligned 2"
    before = len(measured)
    assert notes(use_cache=False) == "aligned 3"
    assert len(measured) > before
    for path in TableCache().folder.glob("*.costs.json"):
        os.utime(path, (0, path.stat().st_mtime - 100))
    for _ in range(2):
        assert notes(aligned_within_s=60.0) == "aligned 3", "what is kept will do where it cannot be done"
    assert "were not held against each other" in caplog.text
    assert next(count) == 5, "it would fail again at each start"


def test_what_is_from_the_future_is_of_a_time_that_is_not_known(chain, here, measured):
    kept = api.costs(chain, here)
    cache = TableCache()
    path = cache.path(chain, here, api.engine_name())
    assert 0 <= cache.age_s(path) < 60
    later_s = path.stat().st_mtime + 1e6
    os.utime(path, (later_s, later_s))
    assert cache.age_s(path) == math.inf
    assert api.costs(chain, here) == kept


def test_of_two_that_wait_to_measure_the_second_takes_what_the_first_kept(chain, here, measured, monkeypatch):
    kept = api.costs(chain, here)
    cache = TableCache()
    path = cache.path(chain, here, api.engine_name())
    os.utime(path, (0, path.stat().st_mtime - 100))

    @contextlib.contextmanager
    def waited(self):
        cache.save(path, kept)  # as the other process does meanwhile
        yield

    monkeypatch.setattr(TableCache, "_measuring", waited)
    assert cache.kept_or_measured(path, chain, lambda: pytest.fail("measured again"), within_s=60.0) == kept


def test_a_batch_that_fails_is_not_kept_as_a_refusal_of_the_network(chain, here, measured, monkeypatch):
    def fail(*_):
        raise EngineError("out of memory")

    monkeypatch.setattr(api, "check_batch", fail)
    with pytest.raises(BatchError, match="4 frames at once: out of memory"):
        api.costs(chain, here, batch=4)
    assert api.costs(chain, here).layer_count == len(chain.layers)


def test_a_table_that_is_kept_outweighs_a_later_refusal(chain, here, measured):
    kept = api.costs(chain, here)
    cache = TableCache()
    cache.keep_refusal(cache.path(chain, here, api.engine_name()), "out of memory for once")
    assert api.find_costs(chain, here).table == kept


def test_a_network_that_mixes_frames_is_refused_before_anything_is_measured(here, measured, monkeypatch):
    def refuse(*_):
        raise BatchError("it mixes frames")

    monkeypatch.setattr(api, "check_batch", refuse)
    with pytest.raises(BatchError):
        api.costs(open_network("squeezenet"), here, batch=4)
    assert measured == []


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\xff" * 99])
def test_a_damaged_cache_file_is_reported_and_measured_again(chain, here, measured, damage, caplog):
    first = api.costs(chain, here)
    path = TableCache().path(chain, here, api.engine_name())
    path.write_bytes(damage(path.read_bytes()))
    second = api.costs(chain, here)
    assert "cannot be used" in caplog.text
    assert second.network == first.network
    assert TableCache().load(path) == second


def test_a_cache_folder_that_cannot_be_written_is_no_error(chain, here, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COREPIPE_CACHE", str(tmp_path / "file" / "cache"))
    assert api.costs(chain, here).configs
    assert "cannot keep measured costs" in caplog.text


def test_a_cache_folder_that_may_not_be_searched_is_no_error(chain, here, tmp_path, monkeypatch, caplog):
    """As one that another user made; `pathlib` lets "permission denied" through where it is asked what exists."""
    folder, stat_of = tmp_path / "cache", os.stat

    def refuse(path, *arguments, **options):
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(str(folder) + os.sep):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return stat_of(path, *arguments, **options)

    monkeypatch.setenv("COREPIPE_CACHE", str(folder))
    monkeypatch.setattr(os, "stat", refuse)
    assert api.find_costs(chain, here).table.configs
    assert api.costs(chain, here).configs


@pytest.fixture
def interrupted_costs(monkeypatch):
    """Asks for costs, and interrupts the measuring as soon as the first part is kept."""

    def interrupted(*arguments, **options):
        real = TableCache.save_partial

        def save_and_interrupt(self, *args):
            real(self, *args)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(TableCache, "save_partial", save_and_interrupt)
            with pytest.raises(KeyboardInterrupt):
                api.costs(*arguments, **options)

    return interrupted


def test_an_interrupted_profile_is_resumed_from_the_cache(chain, two_cores, measured, interrupted_costs):
    interrupted_costs(chain, two_cores)
    assert len(measured) == 1
    api.costs(chain, two_cores)
    assert len(measured) == len(profiling.profiled_configs(two_cores))
    assert not [name for name in os.listdir(TableCache().folder) if "partial" in name]


def test_costs_measured_anew_are_gone_on_with_after_an_interruption(chain, two_cores, measured, interrupted_costs):
    stale = api.costs(chain, two_cores)
    of_one = len(measured)
    interrupted_costs(chain, two_cores, use_cache=False)
    assert len(measured) == of_one + 1
    assert api.costs(chain, two_cores) != stale
    assert len(measured) == 2 * of_one, "what was measured before the interruption is not measured again"


def test_a_damaged_hop_file_is_made_anew(chain, here, measured):
    api.costs(chain, here)
    path = TableCache().hop_path(here, api.engine_name())
    path.write_text("rubbish")
    TableCache().path(chain, here, api.engine_name()).unlink()
    api.costs(chain, here)
    assert TableCache().load_partial(path.with_suffix(".none"), path, chain).hop is not None


def test_what_another_network_has_left_is_not_gone_on_with(chain, two_cores, measured, make_chain, interrupted_costs):
    interrupted_costs(chain, two_cores)
    cache, other = TableCache(), load_network(make_chain(layers=3))
    paths = [cache.path(network, two_cores, api.engine_name()) for network in (chain, other)]
    kept, taken = (path.with_name(path.name.replace(".costs.", ".partial.")) for path in paths)
    os.replace(kept, taken)
    assert api.costs(other, two_cores).layer_count == 3
    assert len(measured) == 1 + len(profiling.profiled_configs(two_cores))


def test_a_very_long_network_name_is_no_error(make_chain, here, tmp_path, measured):
    path = tmp_path / ("n" * 200 + ".onnx")
    path.write_bytes(make_chain().SerializeToString())
    assert api.costs(open_network(path), here).configs


def test_a_cache_file_of_another_network_is_ignored(chain, here, measured, make_chain, caplog):
    api.costs(chain, here)
    count = len(measured)
    other = load_network(make_chain(seed=1))
    cache = TableCache()
    os.replace(cache.path(chain, here, api.engine_name()), cache.path(other, here, api.engine_name()))
    assert api.costs(other, here).network.sha256 == other.sha256
    assert len(measured) == 2 * count
    assert "of another network" in caplog.text


MEASURE = """
import sys
from corepipe import api
from corepipe.cost import profile as profiling
from corepipe.cost.table import HopCosts
from corepipe.network.load import open_network
from corepipe.topology import detect
profiling._SECONDS = 0.3
profiling.measure_hop = lambda topology: HopCosts()
network, here = open_network(sys.argv[1]), detect()
print("ready", flush=True)
sys.stdin.readline()
print(api.costs(network, here).to_json())
"""


def measuring(tmp_path, make_chain):
    onnx.save(make_chain(layers=2), tmp_path / "chain.onnx")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "chain.onnx")]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_that_measure_the_same_take_turns_and_agree(tmp_path, make_chain):
    processes = [measuring(tmp_path, make_chain) for _ in range(2)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    (one, said), (other, also_said) = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said + also_said
    assert one == other, "the second one takes what the first one measured"
    assert (said + also_said).count("another corepipe measures this machine") == 1
    assert not [path for path in TableCache().folder.iterdir() if path.name.startswith(".") and path.name != LOCK]


def test_a_process_that_is_killed_while_it_measures_leaves_no_lock(tmp_path, make_chain):
    first = measuring(tmp_path, make_chain)
    first.stdin.write("\n")
    first.stdin.flush()
    wait_until((TableCache().folder / LOCK).exists, 20)
    first.kill()
    first.communicate()
    second = measuring(tmp_path, make_chain)
    assert second.communicate("\n", timeout=60)[0]
    assert second.returncode == 0


def test_a_full_disk_is_told_and_leaves_nothing_half_written(chain, here, monkeypatch, caplog):
    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert api.costs(chain, here).configs
    assert "No space left on device" in caplog.text
    assert [path.name for path in TableCache().folder.iterdir()] == [LOCK]
