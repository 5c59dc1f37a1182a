"""Frames through a stream, fed and read in every way: what comes out equals the whole model's outputs."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import statistics
import threading
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from reference import assert_equal, frames_for, whole
from route_plans import ROUTES
from waiting import wait_until

from corepipe.errors import FrameError
from corepipe.network.load import load_network
from corepipe.runtime.stream import Stream


@pytest.mark.parametrize("routes", ROUTES.values(), ids=ROUTES.keys())
def test_outputs_equal_the_whole_model_in_order(chain, two_cores, make_plan, routes):
    frames = frames_for(chain, 60)
    with Stream(chain, make_plan(chain, routes), two_cores) as stream:
        assert_equal(stream(frames), whole(chain, frames))


@pytest.mark.parametrize("routes", [ROUTES["pipeline"], ROUTES["replicas"]], ids=["pipeline", "replicas"])
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

    with Stream(chain, make_plan(chain, ROUTES["replicas"]), two_cores) as stream:
        for number, _ in enumerate(stream(source())):
            if number == 2:
                time.sleep(0.3)  # a hiccup, in which all that was fed ends
            lags.append(taken - number - 1)
    assert statistics.median(lags[-8:]) <= 2


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

    with Stream(chain, make_plan(chain, ROUTES["replicas"]), two_cores) as stream:
        futures = [stream.submit(frame) for frame in frames]
        assert_equal([future.result(30) for future in futures], expected)
        assert_equal(asyncio.run(gather(stream)), expected)


def test_frames_go_round_a_worker_that_stands_still(chain, two_cores, make_plan):
    frames = frames_for(chain, 20)
    with Stream(chain, make_plan(chain, [(1, [(0, 0, 6)]), (1, [(1, 0, 3), (0, 3, 6)])]), two_cores) as stream:
        os.kill(stream.worker_pids["w1"], signal.SIGSTOP)
        futures = [stream.submit(frame, timeout=30) for frame in frames]
        # Half of the slots, not 10 frames.
        wait_until(lambda: stream.lanes[-1].whereabouts.at_hops() == [[0, 0, 0], [6, 0, 0]])
        os.kill(stream.worker_pids["w1"], signal.SIGCONT)
        assert_equal([future.result(30) for future in futures], whole(chain, frames))


def test_frames_that_are_being_filled_count_where_they_are_to_go(chain, two_cores, make_plan):
    with Stream(chain, make_plan(chain, [(1, [(0, 0, 6)]), (1, [(1, 0, 3), (0, 3, 6)])]), two_cores) as stream:
        seen, go_on = [], threading.Barrier(5)

        def fill(inputs):
            go_on.wait(30)
            seen.append(stream.lanes[-1].whereabouts.at_hops())
            go_on.wait(30)
            np.copyto(*inputs.values(), frames_for(chain, 1)[0])

        threads = [threading.Thread(target=lambda: stream.submit(fill).result(30)) for _ in range(4)]
        for thread in threads:
            thread.start()
        go_on.wait(30)
        go_on.wait(30)
        for thread in threads:
            thread.join(30)
        assert [sum(map(sum, at_hops)) for at_hops in seen] == [4] * 4


def test_a_frame_may_be_written_in_place(chain, two_cores, make_plan):
    (frame,) = frames_for(chain, 1)
    with Stream(chain, make_plan(chain, ROUTES["pipeline"]), two_cores) as stream:
        future = stream.submit(lambda views: np.copyto(views["t0"], frame))
        assert_equal([future.result(30)], whole(chain, [frame]))


def test_a_full_stream_holds_the_feeder_back(chain, two_cores, make_plan):
    frames = frames_for(chain, 1) * 500
    with Stream(chain, make_plan(chain, ROUTES["pipeline"]), two_cores) as stream:
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

    with Stream(chain, make_plan(chain, ROUTES["replicas"]), two_cores) as stream:
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
    with Stream(chain, make_plan(chain, ROUTES["pipeline"]), two_cores) as stream:
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
        wait_until(lambda: stream.lanes[-1].whereabouts.at_hops() == [[0, 0]])


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


def test_the_mix_of_routes_follows_the_rates_while_no_worker_lacks_frames_for_another(chain, two_cores, make_plan):
    plan = make_plan(chain, [(6, [(0, 0, 6)]), (1, [(1, 0, 3), (0, 3, 6)]), (3, [(1, 0, 6)])])
    records = []
    with Stream(chain, plan, two_cores, on_record=records.append) as stream:
        for frame in frames_for(chain, 1) * 100:
            list(stream([frame]))
    shares = [sum(record.route == route for record in records) / 100 for route in range(3)]
    assert shares == pytest.approx([0.6, 0.1, 0.3], abs=0.02)


def test_results_before_a_source_fails_are_delivered(chain, two_cores, make_plan):
    frames = frames_for(chain, 7)

    def source():
        yield from frames
        raise OSError("the camera is gone")

    got = []
    with Stream(chain, make_plan(chain, ROUTES["pipeline"]), two_cores) as stream:
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

    with Stream(chain, make_plan(chain, ROUTES["pipeline"]), two_cores) as stream:
        assert_equal(asyncio.run(run(stream)), whole(chain, frames))
