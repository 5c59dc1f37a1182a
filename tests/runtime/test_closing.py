"""Streams that are closed, left, forgotten or forked: what becomes of their frames, and of who reads them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import signal
import threading
import warnings
from pathlib import Path

import pytest
from reference import assert_equal, frames_for, whole
from route_plans import ROUTES
from waiting import wait_until

from corepipe.errors import StreamClosedError, UsageError
from corepipe.runtime.stream import Stream


def test_an_async_loop_that_is_left_does_not_wait_for_its_source(chain, two_cores, make_plan):
    release = threading.Event()

    def source():
        yield frames_for(chain, 1)[0]
        release.wait(60)

    async def first(stream):
        async for _ in stream.aiter(source()):
            break

    with Stream(chain, make_plan(chain, ROUTES["replicas"]), two_cores) as stream:
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

    stream = Stream(chain, make_plan(chain, ROUTES["replicas"]), two_cores)
    asyncio.run(consume(stream))
    assert said == []


def test_an_async_reader_learns_that_the_stream_was_closed(chain, two_cores, make_plan):
    async def read(stream):
        async def frames():
            yield frames_for(chain, 1)[0]
            await asyncio.sleep(30)

        async for _ in stream.aiter(frames()):
            closing.start()

    stream = Stream(chain, make_plan(chain, ROUTES["one worker"]), two_cores)
    closing = threading.Timer(0.3, stream.close)
    with pytest.raises(StreamClosedError):
        asyncio.run(read(stream))
    closing.join()


def test_closing_ends_frames_under_way_by_name(chain, two_cores, make_plan):
    stream = Stream(chain, make_plan(chain, ROUTES["pipeline"]), two_cores)
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
    stream = Stream(chain, make_plan(chain, ROUTES["pipeline"]), two_cores)
    stream.submit(frames_for(chain, 1)[0]).result(30)
    pids = list(stream.worker_pids.values())
    del stream
    # A thread of the stream may hold it for a moment while it delivers the result.
    wait_until(lambda: gc.collect() >= 0 and not any(map(is_running, pids)), 10)


def test_a_forked_child_leaves_the_workers_alone(chain, two_cores, make_plan):
    frames = frames_for(chain, 4)
    with Stream(chain, make_plan(chain, ROUTES["pipeline"]), two_cores) as stream:
        begun = [stream(itertools.cycle(frames), live=live) for live in (False, True)]
        for results in begun:
            next(results)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                for results in begun:
                    with pytest.raises(UsageError, match="forked process"):
                        list(itertools.islice(results, 1000))
                stream.close()
                uses = (
                    lambda: stream.submit(frames[0]),
                    lambda: stream(frames),
                    lambda: stream(frames, when_full="drop-oldest"),
                    lambda: stream.aiter(frames),
                    lambda: stream.set_rates(stream.plan),
                    lambda: stream.switch(stream.plan),
                )
                for use in uses:
                    with pytest.raises(UsageError, match="forked process"):
                        use()
                code = 0
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert_equal(stream(frames), whole(chain, frames))
        assert stream.restarts == 0
