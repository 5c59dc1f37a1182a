"""The thread that takes results, notices dead workers and brings the stream back after one.

A worker that dies takes no other frame's data with it: inputs and crossing tensors lie in the slots. So: hold new
frames back; send fences through the live workers until nothing moves any more (one round for each hop that a route may
have); whatever has not come back by then was lost with the dead worker; replace it and run those frames again.
"""

from __future__ import annotations

import logging
import select
import time
import weakref
from typing import TYPE_CHECKING

from corepipe.errors import CorepipeError, FrameError, WorkerError
from corepipe.runtime import messages
from corepipe.runtime.launch import readable

if TYPE_CHECKING:
    from corepipe.runtime.lane import Lane
    from corepipe.runtime.stream import Stream

MAX_KILLS = 2
"""A frame that was being worked on when a worker died this often fails."""

RESTART_TRIES = 5
"""How often a replacement for a dead worker is started before the stream ends; also how often one may die with no frame
at work, each time within `IDLE_S` of the last and before a frame of it ends."""

IDLE_S = 600.0

PATIENCE_S = 30.0
"""When nothing has ended for so long, the worker that the oldest frame waits for is named."""

_log = logging.getLogger("corepipe")


def collect(reference: weakref.ref[Stream]) -> None:
    """Body of the collecting thread.

    It holds the stream only while there is something to do, so that a stream nobody refers to can be closed.
    """
    failure: CorepipeError | None = None
    try:
        _collect(reference)
    except CorepipeError as error:
        failure = error.with_traceback(None)  # whose frames hold the stream
    except BaseException as error:
        failure = WorkerError(f"the stream's collector ended: {type(error).__name__}: {error}; open a new one")
    if failure is not None and (stream := reference()) is not None:
        # Without this thread every frame would wait forever.
        stream.results.give_up(failure)


def _collect(reference: weakref.ref[Stream]) -> None:
    watched: list[int] = []
    poller = select.poll()
    said = False
    while True:
        stream = reference()
        if stream is None or stream.closed:
            return
        if watched != (fds := _watched(stream)):
            watched, poller = fds, _poller(fds)
        del stream
        ready = {fd for fd, _ in poller.poll(PATIENCE_S * 1e3)}
        stream = reference()
        if stream is None or stream.closed:
            return
        if ready:
            said = False
        elif not said and not any(_dead(lane, ready, look=True) for lane in stream.lanes):
            for worker, pid, frame in stream.state.waits_for(PATIENCE_S):
                said = True
                _log.warning(
                    "worker %s (process %d) has not finished frame %d for %.0f s; if it is stopped or hangs, "
                    "`kill -9 %d` replaces it, and no frame is lost", worker, pid, frame, PATIENCE_S, pid,
                )  # fmt: skip
        if stream.state.changed.fd in ready:
            stream.state.changed.clear()
        for lane in stream.lanes:
            if lane.pool.results_fd in ready:
                take_results(stream, lane)
            if stream.closed:  # a callback may have closed it, and all that is watched
                return
            dead = _dead(lane, ready, look=not ready)
            if dead:
                _recover(stream, lane, dead)
                break  # what was ready before may have been taken meanwhile
        stream.let_go()


def take_results(stream: Stream, lane: Lane, generation: int = 0) -> set[int]:
    """Handle the messages that wait for the user's process; the workers whose fences of `generation` came back."""
    arrived = list(messages.receive(lane.pool.results_fd))
    stream.results.finish(
        lane, [(slot, frame, kind == messages.FAILED) for kind, _, _, slot, frame in arrived if kind != messages.FENCED]
    )
    return {slot for kind, _, _, slot, frame in arrived if kind == messages.FENCED and frame == generation}


def _watched(stream: Stream) -> list[int]:
    fds = [stream.state.wake.fd, stream.state.changed.fd]
    for lane in stream.lanes:
        fds += [lane.pool.results_fd, *(child.status_fd for child in lane.pool.children)]
    return fds


def _poller(fds: list[int]) -> select.poll:
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    return poller


def _dead(lane: Lane, ready: set[int], *, look: bool) -> set[int]:
    """The numbers of workers that have ended: by their status pipes, and by the system where that is to be asked."""
    dead = set()
    for number, child in enumerate(lane.pool.children):
        if child.status_fd in ready:
            child.reports()
        elif look:
            child.look()
        else:
            continue
        if child.ended:
            dead.add(number)
    return dead


def _recover(stream: Stream, lane: Lane, dead: set[int]) -> None:
    stream.state.pause(lane)
    while newly_dead := _settle(stream, lane, dead):
        if stream.closed:
            return
        dead |= newly_dead
    at_work: set[str] = set()
    for flight in lane.started():
        slot = lane.slot(flight)
        for index, hop in enumerate(lane.plan.routes[flight.route].hops):
            began, ended = slot.times(index)
            if began and not ended and lane.pool.number(hop.worker) in dead:
                at_work.add(hop.worker)
                if lane.plan.batch > 1 and not flight.apart:
                    stream.results.run_apart(lane, flight)
                    break
                flight.kills += 1
                if flight.kills >= MAX_KILLS:
                    stream.results.fail(
                        lane,
                        flight,
                        FrameError(f"frame {flight.sequence}: worker {hop.worker} died {flight.kills} times on it"),
                    )
    while not stream.closed and lane.pool.results_fd in readable([lane.pool.results_fd]):
        take_results(stream, lane)
    if not stream.closed:
        with stream.state.lock:
            _count_idle(lane, dead, at_work)
        _replace(stream, lane, dead)


def _count_idle(lane: Lane, dead: set[int], at_work: set[str]) -> None:
    """Count workers that died with no frame at work, which no frame ends for.

    Raises:
        WorkerError: one does so again and again.
    """
    for child in (lane.pool.children[number] for number in dead):
        if child.name not in at_work:
            now_s = time.monotonic()
            count, last_s = lane.idle_deaths.get(child.name, (0, now_s))
            count = count + 1 if now_s - last_s < IDLE_S else 1
            lane.idle_deaths[child.name] = count, now_s
            if count > RESTART_TRIES:
                raise WorkerError(
                    f"worker {child.name} {child.describe_end()}, with no frame at work, as {RESTART_TRIES} before it; "
                    f"see `corepipe doctor`, or leave its engine out"
                )


def _replace(stream: Stream, lane: Lane, dead: set[int]) -> None:
    """Start replacements; one that does not come up is tried again some times."""
    for number in dead:
        child = lane.pool.children[number]
        _log.warning("worker %s %s; its frames run again on a new one", child.name, child.describe_end())
    for attempt in range(1, RESTART_TRIES + 1):
        try:
            lane.pool.restart(dead, stream.state.wake.fd)
            break
        except WorkerError as error:
            if stream.closed:
                return
            if attempt == RESTART_TRIES:
                raise
            _log.warning("%s; trying again", error)
    if not stream.closed:
        stream.state.resume(lane, len(dead))


def _name_silent(lane: Lane, numbers: set[int]) -> None:
    """Say which workers have not answered, for a recovery that waits for them."""
    for child in (lane.pool.children[number] for number in sorted(numbers)):
        _log.warning(
            "worker %s (process %d) has done nothing for %.0f s while a dead one is to be replaced; if it is stopped "
            "or hangs, `kill -9 %d` replaces it too, and no frame is lost",
            child.name, child.pid, PATIENCE_S, child.pid,
        )  # fmt: skip


def _settle(stream: Stream, lane: Lane, dead: set[int]) -> set[int]:
    """Wait until no message is under way among the live workers; returns workers that died meanwhile."""
    rounds = max(len(route.hops) for route in lane.plan.routes)
    live = [number for number in range(len(lane.plan.workers)) if number not in dead]
    for _ in range(rounds):
        generation = next(stream.state.generations)
        for number in live:
            lane.pool.send(number, messages.FENCE, frame=generation)
        missing = set(live)
        said, heard_s = False, time.monotonic()
        while missing:
            fds = [lane.pool.results_fd, *(lane.pool.children[number].status_fd for number in live)]
            others = {other.pool.results_fd: other for other in stream.lanes if other is not lane}
            signals = [stream.state.wake.fd, stream.state.changed.fd]
            ready = readable([*fds, *others, *signals], max(heard_s + PATIENCE_S - time.monotonic(), 0.0))
            if stream.state.changed.fd in ready:
                stream.state.changed.clear()  # the lanes are looked at again each time
            silent = time.monotonic() - heard_s >= PATIENCE_S
            if silent or not ready.isdisjoint(fds):
                heard_s = time.monotonic()
            for fd in ready & others.keys():
                if not stream.closed:
                    take_results(stream, others[fd])
            if stream.closed:
                return set(live)
            if lane.pool.results_fd in ready:
                missing -= take_results(stream, lane, generation)
                if stream.closed:
                    return set(live)
            if newly_dead := _dead(lane, ready, look=silent) - dead:
                return newly_dead
            if silent and missing and not said:
                said = True
                _name_silent(lane, missing)
    return set()
