"""Several frames in a slot, and hops in several parts: against the whole, unsplit model."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from reference import assert_equal, frames_for, whole

from corepipe.errors import FrameError, PlanError
from corepipe.network.load import load_network
from corepipe.plan.model import HopPart
from corepipe.runtime.stream import Stream


def shared(plan, batch, parts=None):
    """A plan with `batch` frames in a slot; parts by layers of the hop, (start, stop, batch) each."""

    def divided(hop):
        if parts is None or hop.layers not in parts:
            return hop
        listed = tuple(HopPart(layers=(start, stop), batch=size) for start, stop, size in parts[hop.layers])
        return hop.model_copy(update={"parts": listed})

    routes = tuple(
        route.model_copy(update={"hops": tuple(divided(hop) for hop in route.hops)}) for route in plan.routes
    )
    data = plan.model_copy(update={"batch": batch, "routes": routes})
    return type(plan).from_json(data.to_json())


@st.composite
def divided_plans(draw):
    """Routes, slot size, and parts for each hop."""
    batch = draw(st.sampled_from([1, 2, 4]))
    routes, parts = [], {}
    for _ in range(draw(st.integers(1, 2))):
        edges = [0, *sorted(draw(st.sets(st.integers(1, 5), max_size=2))), 6]
        hops = list(itertools.pairwise(edges))
        routes.append((draw(st.floats(0.2, 5)), [(draw(st.integers(0, 1)), a, b) for a, b in hops]))
        for a, b in hops:
            inner = sorted(draw(st.sets(st.integers(a + 1, b - 1), max_size=2))) if b - a > 1 else []
            cuts = [a, *inner, b]
            sizes = [size for size in (1, 2, 4) if batch % size == 0]
            parts[a, b] = [(x, y, draw(st.sampled_from(sizes))) for x, y in itertools.pairwise(cuts)]
    return batch, routes, parts


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(divided=divided_plans(), count=st.integers(1, 23))
def test_any_division_gives_the_whole_models_outputs_in_order(chain, two_cores, make_plan, divided, count):
    batch, routes, parts = divided
    frames = frames_for(chain, count)
    with Stream(chain, shared(make_plan(chain, routes), batch, parts), two_cores) as stream:
        assert_equal(stream(frames), whole(chain, frames))
        assert_equal(stream(frames[:1]), whole(chain, frames[:1]))


PIPELINE = [(1, [(0, 0, 2), (1, 2, 6)])]


def test_a_frame_alone_does_not_wait_for_others(chain, two_cores, make_plan):
    (frame,) = frames_for(chain, 1)
    with Stream(chain, shared(make_plan(chain, PIPELINE), 4), two_cores) as stream:
        assert_equal([stream.submit(frame).result(30)], whole(chain, [frame]))
        futures = [stream.submit(frame) for _ in range(6)]
        assert_equal([future.result(30) for future in futures], whole(chain, [frame] * 6))


def test_a_full_stream_lets_frames_share_slots(chain, two_cores, make_plan):
    records = []
    plan = shared(make_plan(chain, [(1, [(0, 0, 6)])]), 4, {(0, 6): [(0, 6, 4)]})
    with Stream(chain, plan, two_cores, on_record=records.append) as stream:
        frames = frames_for(chain, 400)
        assert_equal(stream(frames), whole(chain, frames))
    assert sorted(record.frame for record in records) == list(range(400))
    moments = {record.done_ns for record in records}
    assert len(moments) <= 200, "frames that share a slot are done at one moment"
    ordered = sorted(records, key=lambda record: record.frame)
    for earlier, later in itertools.pairwise(ordered):
        assert earlier.hops[0].ended_ns <= later.hops[0].started_ns, "their shares of its time do not overlap"


def gather_model():
    """Conv-free network that fails on an index out of range, with a batch axis."""
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["indices", "zero"], ["shifted"]),
            helper.make_node("Gather", ["table", "shifted"], ["picked"]),
        ],
        "gather",
        [helper.make_tensor_value_info("indices", TensorProto.INT64, [1, 3])],
        [helper.make_tensor_value_info("picked", TensorProto.FLOAT, [1, 3])],
        [
            numpy_helper.from_array(np.array([0.0, 10.0, 20.0, 30.0], np.float32), "table"),
            numpy_helper.from_array(np.array([0], np.int64), "zero"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@pytest.mark.parametrize("size", [1, 4])
def test_a_frame_that_fails_beside_others_fails_alone(two_cores, make_plan, size):
    network = load_network(gather_model())
    count = len(network.layers)
    plan = shared(make_plan(network, [(1, [(0, 0, count)])]), 4, {(0, count): [(0, count, size)]})
    rows = [[0, 1, 2], [1, 1, 1], [2, 99, 2], [3, 3, 3], [0, 0, 0], [1, -50, 1]]
    frames = [np.array([row], np.int64) for row in rows]
    bad = {2, 5}
    with Stream(network, plan, two_cores) as stream:
        for _ in range(3):
            results = list(stream(frames, on_error="return"))
            for number, (row, result) in enumerate(zip(rows, results, strict=True)):
                if number in bad:
                    assert isinstance(result, FrameError)
                else:
                    np.testing.assert_array_equal(result, [[10.0 * i for i in row]])


@pytest.mark.parametrize("victim", ["w0", "w1"])
def test_a_killed_worker_is_replaced_and_the_frames_of_its_slots_run_again(chain, two_cores, make_plan, victim):
    frames = frames_for(chain, 60)
    plan = shared(make_plan(chain, PIPELINE), 4, {(2, 6): [(2, 4, 2), (4, 6, 4)]})
    with Stream(chain, plan, two_cores) as stream:
        futures = []
        for number, frame in enumerate(frames):
            if number in (6, 33):
                os.kill(stream.worker_pids[victim], signal.SIGKILL)
            futures.append(stream.submit(frame))
        assert_equal([future.result(60) for future in futures], whole(chain, frames))
        assert stream.restarts == 2


def test_frames_whose_slot_killed_a_worker_run_one_by_one(two_cores, make_plan, make_chain):
    network = load_network(make_chain(layers=2, channels=64, side=512))
    frames = frames_for(network, 4)
    plan = shared(make_plan(network, [(1, [(0, 0, 2)])]), 2)
    with Stream(network, plan, two_cores) as stream:
        futures = [stream.submit(frame) for frame in frames]
        deadline = time.monotonic() + 30
        while not any(len(f.frames) == 2 and working(stream, f) for f in stream.lanes[-1].under_way()):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        os.kill(stream.worker_pids["w0"], signal.SIGKILL)
        while stream.restarts == 0:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert any(flight.waiting or len(flight.frames) == 1 for flight in stream.lanes[-1].under_way())
        assert_equal([future.result(60) for future in futures], whole(network, frames))


def test_a_slot_that_is_being_filled_has_no_part_in_a_workers_death(two_cores, make_plan, monkeypatch):
    network = load_network(gather_model())
    good, bad = np.array([[0, 1, 2]], np.int64), np.array([[2, 99, 2]], np.int64)
    apart = []
    with Stream(network, shared(make_plan(network, [(1, [(0, 0, len(network.layers))])]), 2), two_cores) as stream:
        pid = stream.worker_pids["w0"]
        # Two slots whose last frames failed: their times say that work was begun in them and never ended.
        os.kill(pid, signal.SIGSTOP)
        futures = [stream.submit(bad) for _ in range(3)]
        os.kill(pid, signal.SIGCONT)
        assert all(isinstance(future.exception(30), FrameError) for future in futures)
        monkeypatch.setattr(stream.results, "run_apart", lambda lane, flight: apart.append(flight))
        os.kill(pid, signal.SIGSTOP)
        under_way = [stream.submit(good), stream.submit(good)]
        assert [flight.started for flight in stream.lanes[-1].under_way()] == [True, False]
        os.kill(pid, signal.SIGKILL)
        for future in under_way:
            np.testing.assert_array_equal(future.result(30), [[0.0, 10.0, 20.0]])
        assert stream.restarts == 1
        assert not apart


def working(stream, flight):
    began, ended = stream.pool.arena.slots[flight.slot].times(0)
    return flight.started and began > 0 and ended == 0


def test_a_refused_frame_leaves_the_others_of_its_slot(chain, two_cores, make_plan):
    frames = frames_for(chain, 7)
    with Stream(chain, shared(make_plan(chain, PIPELINE), 4), two_cores) as stream:
        futures = []
        for frame in frames:
            with pytest.raises(FrameError):
                stream.submit(np.zeros((1, 2, 3), np.float32))
            futures.append(stream.submit(frame))
        assert_equal([future.result(30) for future in futures], whole(chain, frames))


def test_many_threads_and_callbacks_may_submit(chain, two_cores, make_plan):
    frames = frames_for(chain, 24)
    expected = whole(chain, frames)
    results, again = {}, {}
    with Stream(chain, shared(make_plan(chain, PIPELINE), 4), two_cores) as stream:

        def feed(numbers):
            for number in numbers:
                future = stream.submit(frames[number])
                future.add_done_callback(
                    lambda _, number=number: again.setdefault(number, stream.submit(frames[number]))
                )
                results[number] = future

        threads = [threading.Thread(target=feed, args=(range(start, 24, 3),)) for start in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert_equal([results[number].result(30) for number in range(24)], expected)
        assert_equal([again[number].result(30) for number in range(24)], expected)


def test_closing_ends_frames_in_an_open_slot(chain, two_cores, make_plan):
    stream = Stream(chain, shared(make_plan(chain, PIPELINE), 4), two_cores)
    futures = [stream.submit(frame) for frame in frames_for(chain, 7)]
    stream.close()
    assert all(future.done() for future in futures)


def test_frames_of_unknown_shape_cannot_share_a_slot(two_cores, make_plan):
    graph = helper.make_graph(
        [helper.make_node("NonZero", ["x"], ["z"])],
        "nonzero",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("z", TensorProto.INT64, [1, None])],
    )
    network = load_network(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10))
    plan = shared(make_plan(network, [(1, [(0, 0, 1)])]), 2)
    with pytest.raises(PlanError, match="cannot share a slot"):
        Stream(network, plan, two_cores)


def test_engines_may_be_mixed_within_a_hop(chain, two_cores, make_plan):
    pytest.importorskip("openvino")
    plan = make_plan(chain, PIPELINE)
    hops = plan.routes[0].hops
    parts = tuple(
        HopPart(layers=(i, i + 1), engine=("onnxruntime", "openvino")[i % 2])
        for i in range(hops[1].start, hops[1].stop)
    )
    route = plan.routes[0].model_copy(update={"hops": (hops[0], hops[1].model_copy(update={"parts": parts}))})
    frames = frames_for(chain, 30)
    with Stream(chain, plan.model_copy(update={"routes": (route,)}), two_cores) as stream:
        assert_equal(stream(frames), whole(chain, frames))
