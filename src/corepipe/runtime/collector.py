"""The thread that takes results, notices dead workers and brings the stream back after one.

A worker that dies takes no other frame's data with it: inputs and crossing tensors lie in the slots. So: hold new
frames back; send fences through the live workers until nothing moves any more (one round for each hop that a route may
have); whatever has not come back by then was lost with the dead worker; replace it and run those frames again.
"""

from __future__ import annotations

import logging
import select
import weakref
from typing import TYPE_CHECKING

from corepipe.errors import CorepipeError, FrameError, WorkerError
from corepipe.runtime import messages

if TYPE_CHECKING:
    from corepipe.runtime.stream import Stream

MAX_KILLS = 2
"""A frame that was being worked on when a worker died this often fails."""

RESTART_TRIES = 3
"""How often a replacement for a dead worker is started before the stream ends."""

_log = logging.getLogger("corepipe")


def collect(reference: weakref.ref[Stream]) -> None:
    """Body of the collecting thread.

    It holds the stream only while there is something to do, so that a stream nobody refers to can be closed.
    """
    watched: list[int] = []
    poller = select.poll()
    while True:
        stream = reference()
        if stream is None or stream.closed:
            return
        if watched != (fds := _watched(stream)):
            watched, poller = fds, _poller(fds)
        del stream
        ready = {fd for fd, _ in poller.poll()}
        stream = reference()
        if stream is None or stream.closed:
            return
        try:
            if stream.pool.results_fd in ready:
                take_results(stream)
            dead = _dead(stream, ready)
            if dead:
                _recover(stream, dead)
        except CorepipeError as error:
            stream.give_up(error)
            return
        except BaseException as error:
            # Without this thread every frame would wait forever.
            stream.give_up(
                WorkerError(f"the stream's collector ended: {type(error).__name__}: {error}; open a new one")
            )
            return


def take_results(stream: Stream, generation: int = 0) -> int:
    """Handle the messages that wait for the user's process; returns how many fences of `generation` came back."""
    fenced = 0
    for kind, _, _, slot, frame in messages.receive(stream.pool.results_fd):
        if kind == messages.FENCED:
            fenced += frame == generation
        else:
            stream.finish(slot, frame, failed=kind == messages.FAILED)
    return fenced


def _watched(stream: Stream) -> list[int]:
    return [stream.wake_fd, stream.pool.results_fd, *(child.status_fd for child in stream.pool.children)]


def _poller(fds: list[int]) -> select.poll:
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    return poller


def _wait(fds: list[int], timeout_ms: int | None = None) -> set[int]:
    return {fd for fd, _ in _poller(fds).poll(timeout_ms)}


def _dead(stream: Stream, ready: set[int]) -> set[int]:
    """The numbers of workers whose status pipe has closed."""
    dead = set()
    for number, child in enumerate(stream.pool.children):
        if child.status_fd in ready:
            child.reports()
            if child.ended:
                dead.add(number)
    return dead


def _recover(stream: Stream, dead: set[int]) -> None:
    stream.pause()
    while newly_dead := _settle(stream, dead):
        if stream.closed:
            return
        dead |= newly_dead
    for flight in stream.flights_under_way():
        times = stream.pool.arena.slots[flight.slot].times
        for index, hop in enumerate(stream.plan.routes[flight.route].hops):
            began, ended = times[index]
            if began and not ended and stream.pool.number(hop.worker) in dead:
                if stream.plan.batch > 1 and not flight.apart:
                    stream.run_apart(flight)
                    break
                flight.kills += 1
                if flight.kills >= MAX_KILLS:
                    stream.fail(
                        flight,
                        FrameError(f"frame {flight.sequence}: worker {hop.worker} died {flight.kills} times on it"),
                    )
    while stream.pool.results_fd in _wait([stream.pool.results_fd], 0):
        take_results(stream)
    _replace(stream, dead)


def _replace(stream: Stream, dead: set[int]) -> None:
    """Start replacements; one that does not come up is tried again some times."""
    for number in dead:
        child = stream.pool.children[number]
        _log.warning("worker %s %s; its frames run again on a new one", child.name, child.describe_end())
    for attempt in range(1, RESTART_TRIES + 1):
        try:
            stream.pool.restart(dead, stream.wake_fd)
            break
        except WorkerError as error:
            if stream.closed:
                return
            if attempt == RESTART_TRIES:
                raise
            _log.warning("%s; trying again", error)
    if not stream.closed:
        stream.resume(len(dead))


def _settle(stream: Stream, dead: set[int]) -> set[int]:
    """Wait until no message is under way among the live workers; returns workers that died meanwhile."""
    rounds = max(len(route.hops) for route in stream.plan.routes)
    live = [number for number in range(len(stream.plan.workers)) if number not in dead]
    for _ in range(rounds):
        generation = stream.next_generation()
        for number in live:
            stream.pool.send(number, messages.FENCE, frame=generation)
        missing = len(live)
        while missing:
            fds = [stream.pool.results_fd, *(stream.pool.children[number].status_fd for number in live)]
            ready = _wait([*fds, stream.wake_fd])
            if stream.closed:
                return set(live)
            if stream.pool.results_fd in ready:
                missing -= take_results(stream, generation)
            if newly_dead := _dead(stream, ready) - dead:
                return newly_dead
    return set()
