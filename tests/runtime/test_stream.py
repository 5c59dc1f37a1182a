from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import itertools
import os
import signal
import statistics
import sys
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from reference import assert_equal, frames_for, whole
from waiting import wait_until

from corepipe.errors import FrameError, PlanError, StreamClosedError, UsageError, WorkerError
from corepipe.network.load import load_network
from corepipe.runtime.pool import check_cores
from corepipe.runtime.stream import Stream
from corepipe.topology.model import Cluster

PLANS = {
    "one worker": [(1, [(0, 0, 6)])],
    "pipeline": [(1, [(0, 0, 2), (1, 2, 6)])],
    "replicas": [(2, [(0, 0, 6)]), (1, [(1, 0, 6)])],
    "there and back": [(1, [(0, 0, 2), (1, 2, 4), (0, 4, 6)])],
    "mix": [(3, [(0, 0, 6)]), (1, [(1, 0, 3), (0, 3, 6)]), (0.5, [(0, 0, 1), (1, 1, 6)])],
}


@pytest.mark.parametrize("routes", PLANS.values(), ids=PLANS.keys())
def test_outputs_equal_the_whole_model_in_order(chain, two_cores, make_plan, routes):
    frames = frames_for(chain, 60)
    with Stream(chain, make_plan(chain, routes), two_cores) as stream:
        assert_equal(stream(frames), whole(chain, frames))


@pytest.mark.parametrize("routes", [PLANS["pipeline"], PLANS["replicas"]], ids=["pipeline", "replicas"])
def test_workers_do_not_run_dry_while_a_slow_reader_takes_what_has_ended(chain, two_cores, make_plan, routes):
    taken, under_way = 0, []

    def source():
        nonlocal taken
        for frame in frames_for(chain, 24):
            taken += 1
            yield frame

    with Stream(chain, make_plan(chain, routes), two_cores) as stream:
        for number, _ in enumerate(stream(source())):
            time.sleep(0.03)  # all that is under way ends meanwhile
            under_way.append(taken - number - 1)
    assert min(under_way[1:16]) >= 1


def test_a_slow_source_does_not_hold_back_what_has_ended(chain, two_cores, make_plan):
    taken, lags = 0, []

    def source():
        nonlocal taken
        for number, frame in enumerate(frames_for(chain, 20)):
            time.sleep(0.05 if number >= 6 else 0.0)
            taken += 1
            yield frame

    with Stream(chain, make_plan(chain, PLANS["replicas"]), two_cores) as stream:
        for number, _ in enumerate(stream(source())):
            if number == 2:
                time.sleep(0.3)  # a hiccup, in which all that was fed ends
            lags.append(taken - number - 1)
    assert statistics.median(lags[-8:]) <= 2


def test_an_async_loop_that_is_left_does_not_wait_for_its_source(chain, two_cores, make_plan):
    release = threading.Event()

    def source():
        yield frames_for(chain, 1)[0]
        release.wait(60)

    async def first(stream):
        async for _ in stream.aiter(source()):
            break

    with Stream(chain, make_plan(chain, PLANS["replicas"]), two_cores) as stream:
        thread = threading.Thread(target=lambda: asyncio.run(first(stream)), daemon=True)
        thread.start()
        thread.join(20)
        waits = thread.is_alive()
        release.set()
    assert not waits


def test_an_async_loop_whose_stream_is_closed_tells_so_once(chain, two_cores, make_plan):
    said = []

    async def consume(stream):
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context["message"]))
        with pytest.raises(StreamClosedError):  # noqa: PT012
            async for _ in stream.aiter(itertools.cycle(frames_for(chain, 2))):
                stream.close()
        for _ in range(3):
            await asyncio.sleep(0.05)
            gc.collect()

    stream = Stream(chain, make_plan(chain, PLANS["replicas"]), two_cores)
    asyncio.run(consume(stream))
    assert said == []


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores can't be chosen here")
def test_workers_return_to_their_cores_where_the_system_forgets_them(chain, two_cores, make_plan):
    """As it does to all processes of a cpuset that is changed."""
    with Stream(chain, make_plan(chain, PLANS["replicas"]), two_cores) as stream:
        pid = next(iter(stream.worker_pids.values()))
        threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
        core = os.sched_getaffinity(pid)
        assert len(core) < len(two_cores.cpus)
        for thread in threads:
            os.sched_setaffinity(thread, two_cores.cpus)
        wait_until(lambda: all(os.sched_getaffinity(thread) == core for thread in threads), 10)


@st.composite
def random_routes(draw):
    def route():
        cuts = sorted(draw(st.sets(st.integers(1, 5), max_size=4)))
        edges = [0, *cuts, 6]
        return [(draw(st.integers(0, 1)), a, b) for a, b in itertools.pairwise(edges)]

    return [(draw(st.floats(0.1, 10)), route()) for _ in range(draw(st.integers(1, 3)))]


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(routes=random_routes())
def test_any_routes_give_the_whole_models_outputs(chain, two_cores, make_plan, routes):
    frames = frames_for(chain, 12)
    with Stream(chain, make_plan(chain, routes), two_cores) as stream:
        assert_equal(stream(frames), whole(chain, frames))


def test_futures_and_asyncio_give_the_same(chain, two_cores, make_plan):
    frames = frames_for(chain, 20)
    expected = whole(chain, frames)

    async def gather(stream):
        return [output async for output in stream.aiter(frames)]

    with Stream(chain, make_plan(chain, PLANS["replicas"]), two_cores) as stream:
        futures = [stream.submit(frame) for frame in frames]
        assert_equal([future.result(30) for future in futures], expected)
        assert_equal(asyncio.run(gather(stream)), expected)


def test_frames_go_round_a_worker_that_stands_still(chain, two_cores, make_plan):
    frames = frames_for(chain, 20)
    with Stream(chain, make_plan(chain, [(1, [(0, 0, 6)]), (1, [(1, 0, 3), (0, 3, 6)])]), two_cores) as stream:
        os.kill(stream.worker_pids["w1"], signal.SIGSTOP)
        futures = [stream.submit(frame, timeout=30) for frame in frames]
        wait_until(lambda: stream.lanes[-1].whereabouts.at_workers() == [0, 6])  # half of the slots, not 10 frames
        os.kill(stream.worker_pids["w1"], signal.SIGCONT)
        assert_equal([future.result(30) for future in futures], whole(chain, frames))


def test_frames_that_are_being_filled_count_where_they_are_to_go(chain, two_cores, make_plan):
    with Stream(chain, make_plan(chain, [(1, [(0, 0, 6)]), (1, [(1, 0, 3), (0, 3, 6)])]), two_cores) as stream:
        seen, go_on = [], threading.Barrier(5)

        def fill(inputs):
            go_on.wait(30)
            seen.append(stream.lanes[-1].whereabouts.at_workers())
            go_on.wait(30)
            np.copyto(*inputs.values(), frames_for(chain, 1)[0])

        threads = [threading.Thread(target=lambda: stream.submit(fill).result(30)) for _ in range(4)]
        for thread in threads:
            thread.start()
        go_on.wait(30)
        go_on.wait(30)
        for thread in threads:
            thread.join(30)
        assert seen == [[2, 2]] * 4


def test_a_future_that_was_cancelled_is_not_waited_for(chain, two_cores, make_plan):
    with Stream(chain, make_plan(chain, PLANS["one worker"]), two_cores) as stream:
        os.kill(stream.worker_pids["w0"], signal.SIGSTOP)
        first, second = (stream.submit(frame) for frame in frames_for(chain, 2))
        assert first.cancel()
        os.kill(stream.worker_pids["w0"], signal.SIGCONT)
        done, left = concurrent.futures.wait([first, second], timeout=30)
        assert (done, left) == ({first, second}, set())
        assert list(concurrent.futures.as_completed([first], timeout=30)) == [first]


def test_closing_does_not_wait_for_a_callback_for_ever(chain, two_cores, make_plan, monkeypatch, caplog):
    monkeypatch.setattr("corepipe.runtime.stream._CALLBACK_S", 0.1)
    go_on, called = threading.Event(), threading.Event()
    stream = Stream(chain, make_plan(chain, PLANS["one worker"]), two_cores)
    os.kill(stream.worker_pids["w0"], signal.SIGSTOP)
    future = stream.submit(frames_for(chain, 1)[0])
    future.add_done_callback(lambda _: (called.set(), go_on.wait(30)))
    os.kill(stream.worker_pids["w0"], signal.SIGCONT)
    assert called.wait(30)
    stream.close()
    assert "has not returned" in caplog.text
    go_on.set()
    stream._deliverer.join(30)


def test_each_future_has_an_error_of_its_own(chain, two_cores, make_plan):
    """One that is raised for several frames would gather the tracebacks of all."""
    with Stream(chain, make_plan(chain, PLANS["one worker"]), two_cores) as stream:
        os.kill(stream.worker_pids["w0"], signal.SIGSTOP)
        futures = [stream.submit(frame) for frame in frames_for(chain, 2)]
    errors = [future.exception(30) for future in futures]
    assert all(isinstance(error, StreamClosedError) for error in errors)
    assert errors[0] is not errors[1]


def test_an_async_reader_learns_that_the_stream_was_closed(chain, two_cores, make_plan):
    async def read(stream):
        async def frames():
            yield frames_for(chain, 1)[0]
            await asyncio.sleep(30)

        async for _ in stream.aiter(frames()):
            closing.start()

    stream = Stream(chain, make_plan(chain, PLANS["one worker"]), two_cores)
    closing = threading.Timer(0.3, stream.close)
    with pytest.raises(StreamClosedError):
        asyncio.run(read(stream))
    closing.join()


def test_a_program_without_an_interpreter_starts_no_workers(chain, two_cores, make_plan, monkeypatch):
    """Each would be the program again."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(WorkerError, match="has none to start"):
        Stream(chain, make_plan(chain, PLANS["one worker"]), two_cores)


def test_a_frame_may_be_written_in_place(chain, two_cores, make_plan):
    (frame,) = frames_for(chain, 1)
    with Stream(chain, make_plan(chain, PLANS["pipeline"]), two_cores) as stream:
        future = stream.submit(lambda views: np.copyto(views["t0"], frame))
        assert_equal([future.result(30)], whole(chain, [frame]))


def test_every_thread_of_a_worker_stays_on_its_core(chain, two_cores, make_plan):
    plan = make_plan(chain, PLANS["pipeline"])
    with Stream(chain, plan, two_cores) as stream:
        for worker in plan.workers:
            for task in Path(f"/proc/{stream.worker_pids[worker.name]}/task").iterdir():
                allowed = os.sched_getaffinity(int(task.name))
                assert allowed == set(two_cores.cpus_of(worker.cores))


def test_a_full_stream_holds_the_feeder_back(chain, two_cores, make_plan):
    frames = frames_for(chain, 1) * 500
    with Stream(chain, make_plan(chain, PLANS["pipeline"]), two_cores) as stream:
        os.kill(stream.worker_pids["w1"], signal.SIGSTOP)
        accepted = []

        def feed():
            for frame in frames:
                accepted.append(stream.submit(frame, timeout=0.3))

        with pytest.raises(TimeoutError):
            feed()
        assert 0 < len(accepted) < 20
        os.kill(stream.worker_pids["w1"], signal.SIGCONT)
        assert_equal([future.result(30) for future in accepted], whole(chain, frames[: len(accepted)]))


def test_who_feeds_one_frame_finds_room_beside_who_feeds_a_stream(two_cores, make_plan, make_chain):
    network = load_network(make_chain(layers=6, channels=16, side=96))
    frames = frames_for(network, 2)
    expected = whole(network, frames)
    ended = threading.Event()
    # Rates that promise short hops, so that the queue may be longer; more than the cores can give, so that it fills.
    with Stream(network, make_plan(network, [(1000, [(0, 0, 6)])]), two_cores) as stream:
        outputs = []
        feeder = threading.Thread(
            target=lambda: outputs.extend(
                stream(itertools.takewhile(lambda _: not ended.is_set(), itertools.repeat(frames[0])))
            )
        )
        feeder.start()
        try:
            for _ in range(5):
                assert_equal([stream.submit(frames[1], timeout=10).result(10)], expected[1:])
        finally:
            ended.set()
            feeder.join(30)
        assert outputs
        assert_equal(outputs[-3:], [expected[0]] * min(3, len(outputs)))


def test_a_slow_reader_stops_the_feeding(chain, two_cores, make_plan):
    taken = 0

    def source():
        nonlocal taken
        for frame in frames_for(chain, 1) * 400:
            taken += 1
            yield frame

    with Stream(chain, make_plan(chain, PLANS["replicas"]), two_cores) as stream:
        results = stream(source())
        next(results)
        time.sleep(0.5)
        assert taken < 50
        assert sum(1 for _ in results) == 399


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((1, 3, 16, 16), np.float32), "expected float32"),
        (np.zeros((1, 8, 16, 16), np.complex64), "expected float32"),
        ({"other": np.zeros((1, 8, 16, 16), np.float32)}, "no array for input|unknown input"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused_and_nothing_is_lost(chain, two_cores, make_plan, frame, message):
    good = frames_for(chain, 10)
    with Stream(chain, make_plan(chain, PLANS["pipeline"]), two_cores) as stream:
        for _ in range(20):
            with pytest.raises(FrameError, match=message):
                stream.submit(frame)
        assert_equal(stream(good), whole(chain, good))
        mixed = list(stream([good[0], frame, good[1]], on_error="return"))
        assert isinstance(mixed[1], FrameError)
        assert_equal([mixed[0], mixed[2]], whole(chain, good[:2]))


def gather_model(shift=0):
    """Picks table entries, the first by index `shift`; fails on a frame that holds an index out of range."""
    nodes = [
        helper.make_node("Sub", ["indices", "shift"], ["shifted"]),
        helper.make_node("Gather", ["table", "shifted"], ["picked"]),
    ]
    graph = helper.make_graph(
        nodes,
        "gather",
        [helper.make_tensor_value_info("indices", TensorProto.INT64, [3])],
        [helper.make_tensor_value_info("picked", TensorProto.FLOAT, [3])],
        [
            helper.make_tensor("table", TensorProto.FLOAT, [4], [0.0, 10.0, 20.0, 30.0]),
            helper.make_tensor("shift", TensorProto.INT64, [1], [shift]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def test_a_frame_that_fails_in_a_worker_fails_alone_and_by_name(two_cores, make_plan):
    network = load_network(gather_model())
    plan = make_plan(network, [(1, [(0, 0, len(network.layers))])])
    frames = [np.array(i, np.int64) for i in ([0, 1, 2], [1, 99, 1], [3, 3, 3])]
    with Stream(network, plan, two_cores) as stream:
        first, bad, last = stream(frames, on_error="return")
        assert_equal([first, last], [np.array([0, 10, 20], np.float32), np.array([30, 30, 30], np.float32)])
        assert isinstance(bad, FrameError)
        assert "frame 1" in str(bad)
        with pytest.raises(FrameError, match="frame 4"):
            list(stream(frames))
        wait_until(lambda: stream.lanes[-1].whereabouts.at_workers() == [0])


def test_a_model_that_fails_on_zeros_runs_frames_that_it_takes(two_cores, make_plan):
    network = load_network(gather_model(shift=100))
    plan = make_plan(network, [(1, [(0, 0, len(network.layers))])])
    with Stream(network, plan, two_cores) as stream:
        good, bad = stream([np.array(i, np.int64) for i in ([100, 101, 103], [0, 0, 0])], on_error="return")
        assert_equal([good], [np.array([0, 10, 30], np.float32)])
        assert isinstance(bad, FrameError)


def test_an_output_of_unknown_shape(two_cores, make_plan):
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("NonZero", ["y"], ["z"])],
        "nonzero",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("z", TensorProto.INT64, [1, None])],
    )
    network = load_network(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10))
    plan = make_plan(network, [(1, [(0, 0, len(network.layers))])])
    with Stream(network, plan, two_cores) as stream:
        outputs = list(stream([np.array(x, np.float32) for x in ([1, 0, 1, 1], [0, 0, 0, -1], [0, 5, 0, 0])]))
    assert [output.tolist() for output in outputs] == [[[0, 2, 3]], [[]], [[1]]]


@pytest.mark.parametrize("victim", ["w0", "w1"])
def test_a_killed_worker_is_replaced_and_its_frames_run_again(chain, two_cores, make_plan, victim):
    frames = frames_for(chain, 40)
    open_before = len(os.listdir("/proc/self/fd"))
    with Stream(chain, make_plan(chain, PLANS["there and back"]), two_cores) as stream:
        futures = []
        for number, frame in enumerate(frames):
            if number in (5, 25):
                os.kill(stream.worker_pids[victim], signal.SIGKILL)
            futures.append(stream.submit(frame))
        assert_equal([future.result(60) for future in futures], whole(chain, frames))
        assert stream.restarts == 2
    assert len(os.listdir("/proc/self/fd")) <= open_before


def test_a_worker_is_replaced_with_any_number_of_open_files(chain, two_cores, make_plan, many_files):
    frames = frames_for(chain, 4)
    with Stream(chain, make_plan(chain, PLANS["one worker"]), two_cores) as stream:
        os.kill(stream.worker_pids["w0"], signal.SIGKILL)
        assert_equal(stream(frames), whole(chain, frames))


def test_a_frame_that_kills_its_worker_twice_fails_alone(two_cores, make_plan, make_chain):
    network = load_network(make_chain(layers=2, channels=64, side=512))
    frames = frames_for(network, 3)
    plan = make_plan(network, [(1, [(0, 0, 2)])])
    with Stream(network, plan, two_cores) as stream:
        deadly = stream.submit(frames[0])
        for _ in range(2):
            wait_until(lambda: stream.pool.arena.slots[stream.lanes[-1].under_way()[0].slot].times(0)[0] > 0)
            restarts = stream.restarts
            os.kill(stream.worker_pids["w0"], signal.SIGKILL)
            wait_until(lambda before=restarts: stream.restarts > before)
        with pytest.raises(FrameError, match="died 2 times"):
            deadly.result(30)
        assert stream.lanes[-1].whereabouts.at_workers() == [0]
        assert_equal(stream(frames[1:]), whole(network, frames[1:]))


def test_closing_ends_frames_under_way_by_name(chain, two_cores, make_plan):
    stream = Stream(chain, make_plan(chain, PLANS["pipeline"]), two_cores)
    pids = list(stream.worker_pids.values())
    os.kill(stream.worker_pids["w1"], signal.SIGSTOP)
    future = stream.submit(frames_for(chain, 1)[0])
    stream.close()
    stream.close()
    assert isinstance(future.exception(0), StreamClosedError)
    with pytest.raises(StreamClosedError):
        stream.submit(frames_for(chain, 1)[0])
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_forgotten_stream_is_closed(chain, two_cores, make_plan, is_running):
    stream = Stream(chain, make_plan(chain, PLANS["pipeline"]), two_cores)
    stream.submit(frames_for(chain, 1)[0]).result(30)
    pids = list(stream.worker_pids.values())
    del stream
    # A thread of the stream may hold it for a moment while it delivers the result.
    wait_until(lambda: gc.collect() >= 0 and not any(map(is_running, pids)), 10)


def test_a_plan_for_another_network_or_machine_is_refused(chain, two_cores, make_plan, make_chain):
    other = load_network(make_chain(seed=7))
    with pytest.raises(PlanError, match="make it anew"):
        Stream(other, make_plan(chain, PLANS["pipeline"]), two_cores)
    plan = make_plan(chain, PLANS["one worker"])
    far = plan.model_copy(update={"workers": (plan.workers[0].model_copy(update={"cores": (4095,)}),)})
    with pytest.raises(PlanError, match="core 4095"):
        Stream(chain, far, two_cores)


def test_a_worker_whose_config_names_another_cluster_is_refused(chain, two_cores, make_plan):
    first, *others = two_cores.cores
    split = replace(two_cores, clusters=(Cluster("big", (first,)), Cluster("little", tuple(others))))
    plan = make_plan(chain, PLANS["one worker"])
    (worker,) = plan.workers

    def of(config):
        return plan.model_copy(update={"workers": (worker.model_copy(update={"config": config}),)})

    check_cores(of("big1"), split)
    check_cores(of("all1"), split)
    with pytest.raises(PlanError, match=f"names core {first.id}, cluster little has {others[0].id}"):
        Stream(chain, of("little1"), split)
    with pytest.raises(PlanError, match="unknown cluster 'medium'"):
        Stream(chain, of("medium1"), split)


def test_the_mix_of_routes_follows_the_rates_while_no_worker_lacks_frames_for_another(chain, two_cores, make_plan):
    plan = make_plan(chain, [(6, [(0, 0, 6)]), (1, [(1, 0, 3), (0, 3, 6)]), (3, [(1, 0, 6)])])
    records = []
    with Stream(chain, plan, two_cores, on_record=records.append) as stream:
        for frame in frames_for(chain, 1) * 100:
            list(stream([frame]))
    shares = [sum(record.route == route for record in records) / 100 for route in range(3)]
    assert shares == pytest.approx([0.6, 0.1, 0.3], abs=0.02)


def test_a_forked_child_leaves_the_workers_alone(chain, two_cores, make_plan):
    frames = frames_for(chain, 4)
    with Stream(chain, make_plan(chain, PLANS["pipeline"]), two_cores) as stream:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                stream.close()
                try:
                    stream.submit(frames[0])
                except UsageError:
                    code = 0
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert_equal(stream(frames), whole(chain, frames))
        assert stream.restarts == 0


def test_closing_does_not_hold_the_streams_lock_while_callbacks_run(chain, two_cores, make_plan):
    lock = threading.Lock()
    stream = Stream(chain, make_plan(chain, PLANS["pipeline"]), two_cores)
    os.kill(stream.worker_pids["w0"], signal.SIGSTOP)

    def callback(_):
        with lock:
            pass

    for frame in frames_for(chain, 3):
        stream.submit(frame).add_done_callback(callback)
    with lock:
        closing = threading.Thread(target=stream.close)
        closing.start()
        time.sleep(0.2)
        with pytest.raises(StreamClosedError):
            stream.submit(frames_for(chain, 1)[0], timeout=5)
    closing.join(20)
    assert not closing.is_alive()


def test_a_callback_may_submit_when_another_thread_took_its_room(chain, two_cores, make_plan):
    frame = frames_for(chain, 1)[0]
    accepted = []
    with Stream(chain, make_plan(chain, PLANS["pipeline"]), two_cores) as stream:
        os.kill(stream.worker_pids["w1"], signal.SIGSTOP)
        with contextlib.suppress(TimeoutError):
            while True:
                accepted.append(stream.submit(frame, timeout=0.3))
        full = len(accepted)

        def again(_):
            wait_until(lambda: len(accepted) > full)
            accepted.append(stream.submit(frame))

        accepted[0].add_done_callback(again)
        os.kill(stream.worker_pids["w1"], signal.SIGCONT)
        accepted.append(stream.submit(frame))
        wait_until(lambda: len(accepted) == full + 2, 10)
        assert_equal([future.result(30) for future in accepted], whole(chain, [frame]) * len(accepted))


def test_a_callback_may_submit_while_a_worker_is_replaced(chain, two_cores, make_plan):
    frame = frames_for(chain, 1)[0]
    futures = []
    with Stream(chain, make_plan(chain, PLANS["pipeline"]), two_cores) as stream:
        first, last = stream.worker_pids["w0"], stream.worker_pids["w1"]
        os.kill(last, signal.SIGSTOP)
        for _ in range(3):
            futures.append(stream.submit(frame))
            futures[-1].add_done_callback(lambda _: futures.append(stream.submit(frame)))
        slots = [stream.pool.arena.slots[flight.slot] for flight in stream.lanes[-1].under_way()]
        wait_until(lambda: all(slot.times(0)[1] for slot in slots))
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: stream.lanes[-1].paused)
        os.kill(last, signal.SIGCONT)
        wait_until(lambda: len(futures) == 6, 10)
        assert_equal([future.result(30) for future in futures], whole(chain, [frame]) * 6)
        assert stream.restarts == 1


def test_a_callback_that_waits_does_not_stop_the_collector(chain, two_cores, make_plan):
    frame = frames_for(chain, 1)[0]
    records, go = [], threading.Event()
    with Stream(chain, make_plan(chain, PLANS["pipeline"]), two_cores, on_record=records.append) as stream:
        stream.submit(frame).add_done_callback(lambda _: go.wait(30))
        last = stream.submit(frame)
        wait_until(lambda: len(records) == 2, 10)
        go.set()
        last.result(30)


def test_a_callback_may_close_the_stream(chain, two_cores, make_plan, is_running):
    frame = frames_for(chain, 1)[0]
    stream = Stream(chain, make_plan(chain, PLANS["pipeline"]), two_cores)
    pids = list(stream.worker_pids.values())
    stream.submit(frame).add_done_callback(lambda _: stream.close())
    wait_until(lambda: stream.closed and not any(map(is_running, pids)))


def test_a_callback_that_exits_ends_the_stream_by_name(chain, two_cores, make_plan):
    def leave(_):
        raise SystemExit(1)

    with Stream(chain, make_plan(chain, PLANS["pipeline"]), two_cores) as stream:
        stream.submit(frames_for(chain, 1)[0]).add_done_callback(leave)
        wait_until(lambda: stream.state.broken is not None)
        with pytest.raises(WorkerError, match="SystemExit"):
            stream.submit(frames_for(chain, 1)[0])


def test_on_record_may_close_the_stream_while_other_results_wait(chain, two_cores, make_plan):
    seen = []

    def on_record(record):
        seen.append(record.frame)
        if len(seen) == 1:
            time.sleep(0.5)  # the other results arrive together
        else:
            stream.close()

    stream = Stream(chain, make_plan(chain, PLANS["replicas"]), two_cores, on_record=on_record)
    futures = [stream.submit(frame) for frame in frames_for(chain, 4)]
    for future in futures:
        with contextlib.suppress(StreamClosedError):
            future.result(30)
    with pytest.raises(StreamClosedError):
        stream.submit(frames_for(chain, 1)[0])
    assert len(seen) == 2


def test_a_failing_on_record_is_logged_and_dropped(chain, two_cores, make_plan, caplog):
    frames = frames_for(chain, 5)
    with Stream(chain, make_plan(chain, PLANS["pipeline"]), two_cores, on_record=lambda record: 1 / 0) as stream:
        assert_equal(stream(frames), whole(chain, frames))
    assert "on_record failed for frame 0" in caplog.text


def test_results_before_a_source_fails_are_delivered(chain, two_cores, make_plan):
    frames = frames_for(chain, 7)

    def source():
        yield from frames
        raise OSError("the camera is gone")

    got = []
    with Stream(chain, make_plan(chain, PLANS["pipeline"]), two_cores) as stream:
        results = stream(source())
        with pytest.raises(OSError, match="the camera is gone"):
            got.extend(results)
    assert_equal(got, whole(chain, frames))


def test_asyncio_gives_a_result_before_the_next_frame_comes(chain, two_cores, make_plan):
    frames = frames_for(chain, 3)

    async def run(stream):
        seen = asyncio.Event()

        async def slow():
            for frame in frames:
                yield frame
                await asyncio.wait_for(seen.wait(), 10)
                seen.clear()

        outputs = []
        async for output in stream.aiter(slow()):
            outputs.append(output)
            seen.set()
        return outputs

    with Stream(chain, make_plan(chain, PLANS["pipeline"]), two_cores) as stream:
        assert_equal(asyncio.run(run(stream)), whole(chain, frames))


def test_closing_while_a_replacement_starts_does_not_wait_for_it(chain, two_cores, make_plan, monkeypatch):
    stream = Stream(chain, make_plan(chain, PLANS["pipeline"]), two_cores)
    monkeypatch.setattr("corepipe.runtime.launch._BOOT", "import time; time.sleep(60)  # {path} {fd}")
    os.kill(stream.worker_pids["w0"], signal.SIGKILL)
    first = stream.worker_pids["w0"]
    wait_until(lambda: stream.worker_pids["w0"] != first)
    before = time.monotonic()
    stream.close()
    assert time.monotonic() - before < 10


def test_a_replacement_that_does_not_come_up_is_tried_again(chain, two_cores, make_plan, monkeypatch):
    frames = frames_for(chain, 5)
    with Stream(chain, make_plan(chain, PLANS["pipeline"]), two_cores) as stream:
        real = stream.pool._start
        failures = iter([WorkerError("no memory"), WorkerError("no memory")])

        def start(worker, again):
            for failure in failures:
                raise failure
            return real(worker, again)

        monkeypatch.setattr(stream.pool, "_start", start)
        os.kill(stream.worker_pids["w1"], signal.SIGKILL)
        assert_equal([stream.submit(frame).result(30) for frame in frames], whole(chain, frames))


def test_a_path_object_on_the_search_path_does_no_harm(chain, two_cores, make_plan, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path, tmp_path])
    frames = frames_for(chain, 1)
    with Stream(chain, make_plan(chain, PLANS["one worker"]), two_cores) as stream:
        assert_equal(stream(frames), whole(chain, frames))


def test_a_worker_that_hangs_is_named_once_and_can_be_replaced(chain, two_cores, make_plan, monkeypatch, caplog):
    monkeypatch.setattr("corepipe.runtime.collector.PATIENCE_S", 0.3)
    frame = np.ones(chain.inputs[0].shape, np.float32)
    with Stream(chain, make_plan(chain, [(1, [(0, 0, 3), (1, 3, 6)])]), two_cores) as stream:
        (expected,) = stream([frame])
        caplog.clear()  # the first frame may take long on a busy machine
        time.sleep(0.7)
        assert "has not finished" not in caplog.text, "nothing is under way"
        name, pid = list(stream.worker_pids.items())[1]
        os.kill(pid, signal.SIGSTOP)
        futures = [stream.submit(frame) for _ in range(3)]
        time.sleep(1.5)
        assert caplog.text.count(f"worker {name} (process {pid}) has not finished frame 1 ") == 1
        os.kill(pid, signal.SIGKILL)
        for future in futures:
            assert np.array_equal(future.result(20), expected)


def test_a_worker_that_hangs_while_another_is_replaced_is_named(chain, two_cores, make_plan, monkeypatch, caplog):
    monkeypatch.setattr("corepipe.runtime.collector.PATIENCE_S", 0.3)
    frame = np.ones(chain.inputs[0].shape, np.float32)
    with Stream(chain, make_plan(chain, [(1, [(0, 0, 3), (1, 3, 6)])]), two_cores) as stream:
        (expected,) = stream([frame])
        (_, dead), (name, hung) = stream.worker_pids.items()
        os.kill(hung, signal.SIGSTOP)
        os.kill(dead, signal.SIGKILL)
        wait_until(lambda: f"worker {name} (process {hung}) has done nothing" in caplog.text, 20)
        time.sleep(1)
        assert caplog.text.count("has done nothing") == 1
        os.kill(hung, signal.SIGKILL)
        assert np.array_equal(stream.submit(frame).result(30), expected)


def test_ctrl_c_waits_for_the_frames_under_way(chain, two_cores, make_plan):
    frame = np.ones(chain.inputs[0].shape, np.float32)

    def feed():
        yield from [frame] * 5
        raise KeyboardInterrupt

    with Stream(chain, make_plan(chain, [(1, [(0, 0, 6)])]), two_cores) as stream:
        outputs = []
        with pytest.raises(KeyboardInterrupt):
            outputs.extend(stream(feed()))
        assert len(outputs) == 5
