"""A follower on a real stream: what it does to plan, frames and processes (not how fast it is; see bench/follow.py)."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from waiting import wait_until

from corepipe import plan as planners
from corepipe.cost.table import (
    ConfigCosts,
    CostTable,
    EngineName,
    HopCosts,
    Provenance,
    TableCluster,
    TableMachine,
    TableNetwork,
)
from corepipe.errors import PlanError
from corepipe.follow import Follower
from corepipe.follow import follower as following
from corepipe.runtime.stream import Stream


@pytest.fixture
def big_chain(make_chain):
    from corepipe.network.load import load_network

    return load_network(make_chain(layers=6, channels=16, side=160))


def table_for(network, topology, factors):
    """Costs that are right but for a factor on each of two cores, each a cluster's only one in the table."""
    cluster = topology.clusters[0]
    cores = tuple(core.id for core in cluster.cores[:2])
    layers = len(network.layers)
    return CostTable(
        network=TableNetwork(
            name=network.name, sha256=network.sha256, layers=tuple(x.name for x in network.layers),
            cut_bytes=(4,) * (layers + 1),
        ),
        machine=TableMachine(
            description="", fingerprint="", clusters=(TableCluster(name=cluster.name, cores=cores),)
        ),
        engines=(EngineName(name="onnxruntime", version="1"),),
        configs=(ConfigCosts(config=f"{cluster.name}1", layer_s=tuple(0.001 * f for f in factors)),),
        hop=HopCosts(fixed_s=1e-5, edge_s=1e-5),
        provenance=Provenance(source="measured"),
    )  # fmt: skip


@pytest.fixture
def quick(monkeypatch):
    for name, seconds in {
        "PERIOD_S": 0.05, "_DOUBT_PERIOD_S": 0.05, "_AGREEING_S": 0.15, "_URGENT_AGREEING_S": 0.05, "SETTLING_S": 0.3
    }.items():  # fmt: skip
        monkeypatch.setattr(f"corepipe.follow.decide.{name}", seconds)


def feed_until(condition, network, seconds=20):
    frame = np.ones(network.inputs[0].shape, np.float32)
    deadline = time.monotonic() + seconds
    yield from itertools.takewhile(lambda _: not condition() and time.monotonic() < deadline, itertools.repeat(frame))


def test_a_pipeline_cut_by_wrong_costs_is_replaced_and_no_frame_is_lost(big_chain, two_cores, quick):
    table = table_for(big_chain, two_cores, [1, 1, 1, 1, 1, 40])
    pipeline = planners.plan(table, "pipeline")
    assert pipeline.routes[0].hops[1].layers == (5, 6), "by these costs the last layer is a stage of its own"
    seen, told = [], []
    with Stream(big_chain, pipeline, two_cores, on_record=seen.append) as stream:
        follower = Follower(stream, table, on_change=told.append)
        outputs = list(stream(feed_until(lambda: follower.changes, big_chain)))
        outputs += list(stream(feed_until(lambda: seen[-1].plan == 1, big_chain)))
        assert told == follower.changes
        assert told[0].kind == "plan"
        assert "promises" in told[0].reason
        assert stream.plan is told[-1].plan
        assert len(outputs) == len(seen)
        assert all(np.array_equal(outputs[0], output) for output in outputs)
        assert {record.plan for record in seen} >= {0, 1}


def test_a_core_that_is_taken_away_is_done_without(big_chain, two_cores, quick):
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("masks are Linux's")
    table = table_for(big_chain, two_cores, [1] * 6)
    plan = planners.plan(table, "replicas-per-core")
    lost = plan.workers[1].cores[0]
    with Stream(big_chain, plan, two_cores) as stream:
        follower = Follower(stream, table)
        list(stream(feed_until(lambda: True, big_chain)))
        (thread,) = (t for t in threading.enumerate() if t.name == "corepipe-follower")
        left = set(os.sched_getaffinity(0)) - set(two_cores.cpus_of([lost]))
        # What the system does to each thread of a process whose core is taken offline.
        os.sched_setaffinity(thread.native_id, left)
        outputs = list(stream(feed_until(lambda: follower.changes, big_chain)))
        assert outputs
        assert f"core {lost}" in follower.changes[0].reason
        assert lost not in {core for worker in stream.plan.workers for core in worker.cores}
        list(stream(feed_until(lambda: len(stream.lanes) == 1, big_chain)))
        assert len(stream.lanes) == 1


def test_a_worker_waits_while_its_cores_are_tried(big_chain, two_cores, quick, monkeypatch):
    if not two_cores.pinnable:
        pytest.skip("cores are tried where threads can be bound to them")
    table = table_for(big_chain, two_cores, [1] * 6)
    row = table.configs[0]
    both = row.model_copy(update={"config": f"{row.core_config.cluster}2"})
    table = table.replaced(configs=(row, both))
    tried = []
    with Stream(big_chain, planners.plan(table, f"cluster:{row.core_config.cluster}"), two_cores) as stream:
        (pid,) = stream.worker_pids.values()

        def speeds(_, cores, pauses):
            (paused,) = pauses
            with paused:
                wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, 5)
                tried.append(tuple(cores))
            return {}

        monkeypatch.setattr(following, "core_speeds", speeds)
        Follower(stream, table, planner=lambda _: stream.plan)
        outputs = list(stream(feed_until(lambda: len(tried) > 1, big_chain)))
        assert len(tried) > 1, "the stream goes on after a try"
        assert set(tried) == {stream.plan.workers[0].cores}
        assert all(np.array_equal(outputs[0], output) for output in outputs)


@pytest.fixture
def set_online(two_cores):
    """Takes a core of this machine offline and back; where the tester allows it, since others' programs run on it."""
    files = {
        core.id: [Path(f"/sys/devices/system/cpu/cpu{cpu}/online") for cpu in core.cpus] for core in two_cores.cores
    }
    if os.environ.get("COREPIPE_TEST_OFFLINE") != "1":
        pytest.skip("takes a core of this machine offline: set COREPIPE_TEST_OFFLINE=1 to allow it")

    def write(core, online):
        for file in files[core]:
            if file.read_text().strip() != str(int(online)):
                file.write_text(str(int(online)))

    yield write
    for core in two_cores.cores:
        with contextlib.suppress(FileNotFoundError):  # the first one often cannot be taken offline
            write(core.id, True)


@pytest.mark.slow
def test_a_core_that_really_goes_offline_is_done_without_and_used_again(big_chain, two_cores, set_online, quick):
    table = table_for(big_chain, two_cores, [1] * 6)
    plan = planners.plan(table, "replicas-per-core")
    lost = plan.workers[1].cores[0]
    frames = [np.full(big_chain.inputs[0].shape, number, np.float32) for number in range(7)]
    outputs = []

    def used(plan):
        return {core for worker in plan.workers for core in worker.cores}

    with Stream(big_chain, plan, two_cores) as stream:
        expected = list(stream(frames))
        follower = Follower(stream, table)

        def run_until(condition):
            deadline = time.monotonic() + 30
            while not condition() and time.monotonic() < deadline:
                outputs.extend(stream(frames))
            assert condition()

        run_until(lambda: len(outputs) > 200)
        set_online(lost, False)
        run_until(lambda: follower.changes)
        assert f"core {lost}" in follower.changes[0].reason
        assert lost not in used(stream.plan)
        run_until(lambda: len(stream.lanes) == 1)
        set_online(lost, True)
        run_until(lambda: lost in used(stream.plan))
        run_until(lambda: len(stream.lanes) == 1)
        for number, worker in enumerate(stream.plan.workers):
            pid = stream.pool.children[number].pid
            assert os.sched_getaffinity(pid) == set(two_cores.cpus_of(worker.cores))
    for number, output in enumerate(outputs):
        assert np.array_equal(output, expected[number % len(frames)]), "no frame is lost, out of order or wrong"


def test_a_worker_whose_core_is_gone_comes_up_on_those_that_are_left(big_chain, two_cores, make_plan, monkeypatch):
    with Stream(big_chain, make_plan(big_chain, [(1, [(1, 0, 6)])]), two_cores) as stream:
        monkeypatch.setattr(type(two_cores), "cpus_of", lambda self, cores: (4000,))
        before = stream.worker_pids["w1"]
        os.kill(before, 9)
        wait_until(lambda: stream.restarts, 20)
        monkeypatch.undo()
        assert os.sched_getaffinity(stream.worker_pids["w1"]) == os.sched_getaffinity(0)
        assert list(stream([np.ones(big_chain.inputs[0].shape, np.float32)]))


def test_a_plan_that_cannot_be_had_leaves_the_stream_at_work(big_chain, two_cores, quick, caplog):
    table = table_for(big_chain, two_cores, [1, 1, 1, 1, 1, 40])

    def refuse(_):
        raise PlanError("no plan today")

    with Stream(big_chain, planners.plan(table, "pipeline"), two_cores) as stream:
        follower = Follower(stream, table, planner=refuse)
        assert list(stream(feed_until(lambda: "no plan today" in caplog.text, big_chain)))
        assert "no plan today" in caplog.text
        assert follower.changes == []
        assert list(stream(feed_until(lambda: False, big_chain, seconds=0.2)))


def test_no_other_plan_is_loaded_where_memory_is_short(big_chain, two_cores, quick, caplog, monkeypatch):
    table = table_for(big_chain, two_cores, [1, 1, 1, 1, 1, 40])
    monkeypatch.setattr(following, "available_memory", lambda: 1 << 20)
    with Stream(big_chain, planners.plan(table, "pipeline"), two_cores) as stream:
        follower = Follower(stream, table)
        assert list(stream(feed_until(lambda: "are available" in caplog.text, big_chain)))
        assert "1 MiB are available" in caplog.text
        assert follower.changes == []


def test_a_stream_that_its_user_switches_is_followed_from_there(big_chain, two_cores, quick, caplog, monkeypatch):
    table = table_for(big_chain, two_cores, [1] * 6)
    wide, narrow = (planners.plan(table, name) for name in ("replicas-per-core", "pipeline"))
    with Stream(big_chain, wide, two_cores) as stream:
        follower = Follower(stream, table, planner=lambda _: wide)
        list(stream(feed_until(lambda: False, big_chain, seconds=0.5)))
        told, seen = [], []
        monkeypatch.setattr(follower._decider, "switched", lambda: told.append(True))
        stream.switch(narrow)

        def followed():
            number, observer = follower._watched
            if number == stream.lanes[-1].number >= 1:
                seen.extend(observer.seen(time.monotonic_ns()).hop_s)
            return seen

        list(stream(feed_until(followed, big_chain)))
        assert seen
        assert told == [True]
        assert "not followed" not in caplog.text


def test_the_follower_ends_with_its_stream(big_chain, two_cores, quick):
    def followers():
        return [thread for thread in threading.enumerate() if thread.name == "corepipe-follower"]

    table = table_for(big_chain, two_cores, [1] * 6)
    stream = Stream(big_chain, planners.plan(table), two_cores)
    Follower(stream, table)
    assert followers()
    stream.close()
    forgotten = Stream(big_chain, planners.plan(table), two_cores)
    Follower(forgotten, table)
    del forgotten
    gc.collect()
    wait_until(lambda: not followers(), 10)
