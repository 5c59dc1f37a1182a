"""One plan at work in a stream: its workers, its slots, and the frames in them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from corepipe.network.model import Network
from corepipe.plan.model import Plan
from corepipe.runtime import messages
from corepipe.runtime.arena import DYNAMIC_CAPACITY, Slot
from corepipe.runtime.delivery import Outcome
from corepipe.runtime.dispatch import Dispatcher, slot_bytes_of
from corepipe.runtime.pool import Pool, check_fits
from corepipe.runtime.whereabouts import Whereabouts
from corepipe.topology.model import Topology


class Submitted(NamedTuple):
    """A frame that was submitted."""

    sequence: int
    future: Future[Any] | Outcome
    submitted_ns: int
    own: bool = False
    """Whether only the stream itself knows the future."""


@dataclass
class Flight:
    """A slot under way.

    Attributes:
        route, slot: its route, and the number of the slot.
        frames: the frames in the slot, in order.
        kills: how many workers died on it.
        waiting: frames that came to grief together and now run one by one, each with its inputs; after those in the
            slot.
        started: whether it is on its way (or else still takes frames).
        deep: whether all its frames were fed where latency does not count.
        apart: whether its frame has the slot to itself: where frames share slots, what an earlier frame left beside it
            may be at fault.
    """

    route: int
    slot: int
    frames: list[Submitted] = field(default_factory=list)
    kills: int = 0
    waiting: list[tuple[Submitted, dict[str, NDArray[Any]]]] = field(default_factory=list)
    started: bool = False
    deep: bool = True
    apart: bool = False

    @property
    def sequence(self) -> int:
        """The number of its first frame."""
        return self.frames[0].sequence


class Lane:
    """A plan with its pool; a stream that changes its plan has two of them for as long as the old one holds frames.

    All but `pool` is guarded by the stream's lock.

    Attributes:
        number: how many plans the stream had before this one.
        plan: the plan, with the rates that are in force.
        free: the slots without frames.
        flights: the slots under way, by number.
        open: the slot that takes more frames.
        filling: how many slots are being filled in the user's threads.
        paused: whether new frames are held back while a worker is replaced.
        idle_deaths: how often workers died with no frame at work since a frame of theirs ended, and when last (seconds
            of `time.monotonic`).
        whereabouts: at which hop the slots under way are.

    Args:
        network, plan, topology: what runs, how, and where.
        number: see above.
        stop_fd: starting is given up when this becomes readable.

    Raises:
        PlanError: the plan does not fit the network or the machine.
        WorkerError: a worker could not start.
        TopologyError: the machine is not at hand.
    """

    def __init__(
        self, network: Network, plan: Plan, topology: Topology, number: int = 0, stop_fd: int | None = None
    ) -> None:
        self.number = number
        self.plan = plan
        topology.check_at_hand()
        check_fits(plan, network)
        cuts = [[DYNAMIC_CAPACITY if t.nbytes is None else t.nbytes for t in cut.tensors] for cut in network.cuts]
        slot_bytes = slot_bytes_of(plan, [sum(sizes) for sizes in cuts])
        self._dispatcher = Dispatcher(plan, plan.batch * network.cuts[-1].nbytes, slot_bytes)
        self.free = list(range(self._dispatcher.slots))
        self.flights: dict[int, Flight] = {}
        self.open: Flight | None = None
        self.filling = 0
        self.paused = False
        self.idle_deaths: dict[str, tuple[int, float]] = {}
        self._workers_of = [{hop.worker for hop in route.hops} for route in plan.routes]
        self.pool = Pool(network, plan, topology, self._dispatcher.slots, self._dispatcher.most_held, stop_fd)
        try:
            self.whereabouts = Whereabouts(plan, self.pool.arena)
        except BaseException:
            self.pool.close()
            raise

    @property
    def window(self) -> int:
        """Frames between the oldest undelivered one and the newest."""
        return self._dispatcher.window * self.plan.batch

    @property
    def empty(self) -> bool:
        """Whether no frame is in a slot or on its way into one."""
        return len(self.free) == self._dispatcher.slots

    def has_room(self, *, deep: bool) -> bool:
        """Whether another frame can be taken; `deep` as for `Dispatcher.has_room`."""
        if self.plan.batch > 1 and self.filling:
            return False
        return self.open is not None or not (self.paused or not self.free or not self._dispatcher.has_room(deep=deep))

    def take(self, *, deep: bool) -> Flight:
        """A flight for one more frame, which is to be put back or let go; call only when there is room."""
        flight = self.open or self._new_flight(deep)
        flight.deep = flight.deep and deep
        self.open = None
        self.filling += 1
        return flight

    def _new_flight(self, deep: bool) -> Flight:
        flight = Flight(self._dispatcher.choose(self.whereabouts.at_hops, deep=deep), self.free.pop())
        self._clear_times(flight)
        self.whereabouts.note(flight.slot, flight.route)  # it counts while it is filled: others choose meanwhile
        return flight

    def release(self, flight: Flight) -> None:
        """Free the slot of a flight that has ended, or that took no frame."""
        self.free.append(flight.slot)
        self.whereabouts.forget(flight.slot)
        self._dispatcher.done(flight.route, self._hop_s(flight))

    def _hop_s(self, flight: Flight) -> Sequence[float]:
        """What the hops of a flight took, where the dispatcher learns from it: it was full, and made them all."""
        if len(flight.frames) < self.plan.batch or not self._dispatcher.learns(flight.route):
            return ()
        times = [self.slot(flight).times(index) for index in range(len(self.plan.routes[flight.route].hops))]
        return [(ended - began) * 1e-9 for began, ended in times] if all(ended for _, ended in times) else ()

    def note_end(self, flight: Flight) -> None:
        """A frame has ended: its workers do work."""
        if self.idle_deaths:
            for worker in self._workers_of[flight.route]:
                self.idle_deaths.pop(worker, None)

    def set_rates(self, plan: Plan) -> None:
        """From now on the frames are shared out by the rates of `plan`, whose routes are those of this lane's."""
        self._dispatcher.set_rates(plan)
        self.plan = plan

    def start(self, flight: Flight) -> None:
        """Send a slot on its way; while workers are being replaced, it waits for that.

        Where Ctrl-C cuts this short, `started` tells whether the slot was sent: Python looks for signals after calls,
        and there is none between setting that and writing.
        """
        if flight is self.open:
            self.open = None
        if self.paused:
            flight.started = True
            return
        self.slot(flight).count = len(flight.frames)
        inbox = self.pool.inbox(self.plan.routes[flight.route].hops[0].worker)
        kind = messages.RUN_HOLD if flight.deep and self._dispatcher.holds(flight.route) else messages.RUN
        message = messages.pack(kind, 0, flight.route, flight.slot, flight.sequence)
        flight.started = True
        os.write(inbox, message)

    def start_again(self, flight: Flight) -> None:
        """Send a slot on its way from its first hop, whatever hops it has made."""
        self._clear_times(flight)  # also where it is held back: the frame before would blame this one
        self.start(flight)

    def start_next_apart(self, flight: Flight) -> None:
        """Send the next of the frames that run one by one on its way; copies of it fill the slot."""
        frame, inputs = flight.waiting.pop(0)
        flight.frames, flight.kills, flight.apart = [frame], 0, True
        slot = self.slot(flight)
        for name, array in inputs.items():
            for position in range(self.plan.batch):
                np.copyto(slot.view(name, position), array)
        self.start_again(flight)

    def start_if_idle(self) -> None:
        """Let a slot that is not full go if its workers have nothing else to do: more frames may never come."""
        if self.open is None:
            return
        mine = self._workers_of[self.open.route]
        if not any(f.started and mine & self._workers_of[f.route] for f in self.flights.values()):
            self.start(self.open)

    def _clear_times(self, flight: Flight) -> None:
        self.slot(flight).clear_times(len(self.plan.routes[flight.route].hops))

    def slot(self, flight: Flight) -> Slot:
        """The memory of a flight."""
        return self.pool.arena.slots[flight.slot]

    def at_work(self, flight: Flight) -> tuple[str, int]:
        """The worker that a flight is at, or waits for, and the worker's process."""
        hops, slot = self.plan.routes[flight.route].hops, self.slot(flight)
        worker = next((hop.worker for index, hop in enumerate(hops) if not slot.times(index)[1]), hops[-1].worker)
        return worker, self.pool.children[self.pool.number(worker)].pid

    def under_way(self) -> list[Flight]:
        """The slots with frames that have no result yet, oldest first."""
        return sorted(self.flights.values(), key=lambda flight: flight.sequence)

    def started(self) -> list[Flight]:
        """Those of them that were sent."""
        return [flight for flight in self.under_way() if flight.started]
