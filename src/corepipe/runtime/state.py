"""What a stream holds, under one lock: the plans at work, how far its frames are, and who waits for either."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from corepipe.errors import CorepipeError, StreamClosedError, UsageError, WorkerError
from corepipe.runtime.delivery import Outcome
from corepipe.runtime.lane import Flight, Lane

_MANY = 4096


class Signal:
    """A pipe by which a thread that polls is told that there is something to see.

    Attributes:
        fd: readable once it is set; to be polled only.

    Raises:
        OSError: there are too many open files.
    """

    def __init__(self) -> None:
        self.fd, self._write = os.pipe()
        self._open = [self.fd, self._write]

    def set(self) -> None:
        """Tell."""
        os.write(self._write, b"x")

    def clear(self) -> None:
        """Take what was told; blocks where nothing was."""
        os.read(self.fd, _MANY)

    def close(self) -> None:
        """Close it; goes on where Ctrl-C cut it short."""
        while self._open:
            os.close(self._open.pop())


class State:
    """What the threads of a stream share: the user's, the collector and the one that ends futures.

    Attributes:
        owner: the process that opened the stream.
        lock: guards all of this and the lanes (but their pools); who has it may take it again.
        lanes: the plan at work last, before it those that still hold frames.
        window: how many frames may be between the oldest one whose result was not delivered and the newest.
        wake: set where the collector, or what it waits for, is to give up.
        changed: set where the collector has other lanes to watch, or may let one go.
        next_sequence: the number of the next frame.
        delivered: how many frames have been delivered.
        deliverer: the thread that ends futures.
        collector: the thread that takes results.
        generations: numbers for rounds of fences.
        restarts: how many workers were replaced.
        broken: why the stream ended by itself.
        closed: whether it was closed.

    Raises:
        OSError: there are too many open files.
    """

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.lock = threading.RLock()
        self.lanes: tuple[Lane, ...] = ()
        self.window = 0
        self.wake = Signal()
        try:
            self.changed = Signal()
        except OSError:
            self.wake.close()
            raise
        self.next_sequence = 0
        self.delivered = 0
        self.deliverer: threading.Thread | None = None
        self.collector: threading.Thread | None = None
        self.generations = itertools.count(1)
        self.restarts = 0
        self.broken: CorepipeError | None = None
        self.closed = False
        self._news = threading.Condition(self.lock)
        self._sleepers = 0
        """How many wait to be told; never fewer than do."""
        self._briefly = 0
        """How many wait for room in queues that stay short."""

    def check_owner(self) -> None:
        """Refuse a forked process, before it asks for the lock, which somebody may have held at that moment.

        Raises:
            UsageError: the stream was opened in another process.
        """
        if os.getpid() != self.owner:
            raise UsageError("a stream belongs to the process that opened it; open one in the forked process")

    def check_open(self) -> None:
        """Refuse what a stream that has ended cannot do.

        Raises:
            WorkerError: it ended by itself.
            StreamClosedError: it was closed.
        """
        if self.broken:
            raise WorkerError(str(self.broken)) from self.broken
        if self.closed:
            raise StreamClosedError("the stream is closed; open a new one")

    def set_lanes(self, *lanes: Lane) -> None:
        """Set the lanes, and the window by them."""
        window = max(lane.window for lane in lanes)
        self.lanes, self.window = lanes, window

    def release(self, lane: Lane, flight: Flight) -> None:
        """Free a slot; the caller tells whoever waits."""
        lane.release(flight)
        if lane is not self.lanes[-1] and not self.closed:
            self.changed.set()

    def sleep_until(self, reached: Callable[[], Any], timeout: float | None = None) -> bool:
        """Wait, with the lock, until that is so, as far as others tell; whether it is."""
        if (now := bool(reached())) or timeout == 0:
            return now
        self._sleepers += 1
        try:
            return bool(self._news.wait_for(reached, timeout))
        finally:
            self._sleepers -= 1

    def tell(self) -> None:
        """Wake up, with the lock, whoever waits: room, a result, or the end may be there."""
        if self._sleepers:
            self._news.notify_all()

    def has_room(self, *, deep: bool) -> bool:
        """Whether a frame can be taken; `deep` as for `Dispatcher.has_room`: for who only reads results in order."""
        if not self.lanes[-1].has_room(deep=deep and not self._briefly):
            return False
        filling = 0
        for lane in self.lanes:
            filling += lane.filling
        if self.next_sequence - self.delivered + filling < self.window:
            return True
        # Deliveries wait for a callback that submits, so that callback must not wait for deliveries.
        return threading.current_thread() is self.deliverer

    def has_room_now(self) -> bool:
        """The same for who feeds deep, and does not hold the lock.

        Raises:
            UsageError: this process was forked.
        """
        self.check_owner()
        with self.lock:
            return self.has_room(deep=True)

    def wait_for_room(self, timeout: float | None = None, *, deep: bool = False) -> bool:
        """Wait until a frame can be fed or the stream has ended; while others wait, who feeds deep leaves them room.

        Raises:
            UsageError: it would have to wait for ever, in the thread that makes room (in `on_record`).
        """
        with self.lock:
            if timeout is None and threading.current_thread() is self.collector and not self._moves(deep=deep):
                raise UsageError("the stream is full; on_record cannot wait for room: submit from another thread")
            self._briefly += not deep
            try:
                return self.sleep_until(lambda: self.broken or self.closed or self.has_room(deep=deep), timeout)
            finally:
                self._briefly -= not deep

    def _moves(self, *, deep: bool) -> bool:
        """Whether room is or comes without the collector: other threads that fill a slot make it, too."""
        return bool(self.broken or self.closed or self.lanes[-1].filling or self.has_room(deep=deep))

    def wait_for_room_or(self, oldest: Outcome, room_helps: bool) -> None:
        """Wait until the oldest frame has its result or, if that helps, another frame can be fed by who feeds deep.

        Raises:
            UsageError: this process was forked.
        """
        self.check_owner()
        with self.lock:
            self.sleep_until(lambda: oldest.ended or (room_helps and self.has_room(deep=True)))

    def waits_for(self, seconds: float) -> list[tuple[str, int, int]]:
        """For each plan with frames under way for so long the worker that the oldest is at, its process, the frame."""
        before = time.monotonic_ns() - int(seconds * 1e9)
        with self.lock:
            oldest = [(lane, flight) for lane in self.lanes for flight in lane.started()[:1]]
            return [(*lane.at_work(f), f.sequence) for lane, f in oldest if f.frames[-1].submitted_ns <= before]

    def pause(self, lane: Lane) -> None:
        """Hold new frames back."""
        with self.lock:
            lane.paused = True

    def resume(self, lane: Lane, restarted: int) -> None:
        """Run every frame under way again from its start, and take new ones, once so many workers were replaced."""
        with self.lock:
            self.restarts += restarted
            lane.paused = False
            for flight in lane.started():
                lane.start_again(flight)
            lane.start_if_idle()
            self.tell()
