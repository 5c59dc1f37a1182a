"""Which route the next frame takes: so that no worker waits in vain, and otherwise by the plan's rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from corepipe.errors import PlanError
from corepipe.plan.model import Plan, route_groups
from corepipe.runtime.messages import HOLD_S, MOST_HELD

_FRAMES_PER_HOP = 2
"""One frame in service and one waiting at each worker keep it busy."""

_FRAMES_PER_SHARED_HOP = 4
"""Hops that share a worker get in each other's way; with so many frames all workers are busy but for a percent or two
(random tables in the simulator, `bench/dispatch.py`)."""

_MAX_CREDIT = 2.0
"""Frames that a group, or a route of it, may be behind its rates: what it has missed by more is forgotten."""

_DEFICIT_WEIGHT = 0.1
"""What a frame behind the rates counts beside the work that a route meets: 1 for what routes meet on average. Small, so
that wrong rates give way; with less, good ones mix less well (`bench/dispatch.py`)."""

_FULL_SHARE = 0.5
"""A worker that has so many of its group's slots, waiting or at work, leaves too few for the others; of the slots that
there are but for held results, or of all those under way where that is more."""

_NEWS = 0.2
"""Share of the latest frame in what a hop is taken to last."""

_MOST_PASSED = 100
"""A route gets a frame after so many of its group's, or by its rate: who follows a plan learns nothing of others."""

_WRONG_RATES = 2
"""Times a group may take longer than its rates say without holding the others up."""

_MAX_WINDOW = 1024
_WINDOW_BYTES = 256 * 2**20
"""Results that wait for their turn take at most so many frames and bytes of the user's memory."""

_SPARE_BYTES = 64 * 2**20
"""About so much memory at the most takes what is there for results of which word waits."""

AtHops = Callable[[], Sequence[Sequence[int]]]
"""Tells how many slots of each route are at each of its hops, waiting or at work; there may be more figures behind."""


class _Group:
    """Routes that share workers, directly or through other routes of the group."""

    def __init__(self, routes: list[int], shares: list[float], plan: Plan, most_spare: int) -> None:
        hops = [hop for route in routes for hop in plan.routes[route].hops]
        workers = {hop.worker for hop in hops}
        numbers = plan.worker_numbers
        self.routes = routes
        self._hop_s: list[Sequence[float]] = [()] * len(routes)
        self._guesses = [[float(hop.stop - hop.start) for hop in plan.routes[route].hops] for route in routes]
        self._worker_count = len(plan.workers)
        self._workers = [[numbers[hop.worker] for hop in plan.routes[route].hops] for route in routes]
        shared = len(hops) > len(workers)
        self._most_spare = min(_spare(plan, routes), most_spare)
        most_held = min(max(self._most_spare, 1), MOST_HELD)
        self.most_held = {plan.routes[route].hops[-1].worker: most_held for route in routes}
        self.slots = (_FRAMES_PER_SHARED_HOP if shared else _FRAMES_PER_HOP) * len(hops) + self._most_spare
        self.room = self.slots
        self.credit = 0.0
        self.set_rates(plan, shares)

    def set_rates(self, plan: Plan, shares: list[float]) -> None:
        """Go by the rates of a plan, of which `shares` has each route's share of all frames."""
        self.spare = min(self._most_spare, _spare(plan, self.routes))
        self.share = sum(shares[route] for route in self.routes)
        self._weights = [shares[route] / (self.share or 1.0) for route in self.routes]
        self._deficits = [0.0] * len(self.routes)
        self._rated = [index for index, weight in enumerate(self._weights) if weight > 0]
        # The first frames tell what the hops of each route take.
        self._passed = [0 if hop_s else math.inf for hop_s in self._hop_s]
        self._most_passed = [max(_MOST_PASSED, 1 / weight) if weight > 0 else 0.0 for weight in self._weights]

    def has_room(self, deep: bool) -> bool:
        """Whether it can take a frame."""
        return self.share > 0 and self.room > self._most_spare - (self.spare if deep else 0)

    def done(self, route: int, hop_s: Sequence[float]) -> None:
        """A frame has left its route, whose hops took so long; none where that is not known."""
        self.room += 1
        if hop_s:
            index = self.routes.index(route)
            known = self._hop_s[index] or hop_s
            self._hop_s[index] = [old + _NEWS * (new - old) for old, new in zip(known, hop_s, strict=True)]

    def next_route(self, at_hops: AtHops) -> int:
        """The route that meets the least work, its share of the group's frames considered; see `Dispatcher`."""
        if len(self.routes) == 1:
            return self.routes[0]
        for index in self._rated:
            self._deficits[index] = min(self._deficits[index] + self._weights[index], _MAX_CREDIT)
            self._passed[index] += 1
        overdue = [index for index in self._rated if self._passed[index] > self._most_passed[index]]
        merits = self._merits(at_hops())
        chosen = max(overdue or self._rated, key=merits.__getitem__)
        self._deficits[chosen] = max(self._deficits[chosen] - 1.0, -_MAX_CREDIT)
        self._passed[chosen] = 0
        return self.routes[chosen]

    def _merits(self, at_hops: Sequence[Sequence[int]]) -> list[tuple[bool, float, int]]:
        """For each route whether none of its workers has too many slots, and then how little work it meets."""
        hops_s = self._hop_s if all(self._hop_s[index] for index in self._rated) else self._guesses
        waiting, ahead_s = [0] * self._worker_count, [0.0] * self._worker_count
        for route, workers, hop_s in zip(self.routes, self._workers, hops_s, strict=True):
            slots = 0
            for worker, seconds, at_hop in zip(workers, hop_s, at_hops[route], strict=False):
                slots += at_hop
                waiting[worker] += at_hop
                ahead_s[worker] += slots * seconds
        work = [
            sum(ahead_s[worker] * seconds for worker, seconds in zip(workers, hop_s, strict=False))
            for workers, hop_s in zip(self._workers, hops_s, strict=True)
        ]
        usual = sum(weight * amount for weight, amount in zip(self._weights, work, strict=True)) or 1.0
        most = _FULL_SHARE * max(self.slots - self._most_spare, self.slots - self.room)
        return [
            (
                all(waiting[worker] < most for worker in workers),
                _DEFICIT_WEIGHT * self._deficits[index] - work[index] / usual,
                -index,
            )
            for index, workers in enumerate(self._workers)
        ]


class Dispatcher:
    """The group of routes that is furthest behind its rates, of those with room; in it the route to the least work.

    Routes that share a worker form a group. Within it a frame takes the route that meets the least work: the sum over
    workers of the route's seconds there, as the last frames took them, times the seconds that slots under way still
    have to do there. So routes to a worker that runs out of work come first, whatever the speeds are just now: this is
    back-pressure, or MaxWeight (Tassiulas and Ephremides, "Stability Properties of Constrained Queueing Systems",
    1992). At the best rates for these speeds all routes in use meet equally much (what is still to be done takes the
    part of the prices in the linear program), so rates decide between routes that are nearly equal. Until every route
    has been seen, hops are taken to last as long as they have layers. Routes over a worker that has half of the group's
    slots, and may stand still, come last.
    Groups have nothing in common, so one that turns out faster than its rates takes more frames, and one that turns
    out slower holds nobody up: each frame adds every group's share of the rates to its credit and takes 1 from the
    group that is chosen, while credits stay within bounds.

    Args:
        plan: the plan.
        output_bytes: size of the results in a slot.
        slot_bytes: size of a slot, see `slot_bytes_of`.
    """

    def __init__(self, plan: Plan, output_bytes: int = 0, slot_bytes: int = 0) -> None:
        self._output_bytes = max(output_bytes, 1)
        groups = route_groups(plan)
        most_spare = _SPARE_BYTES // (len(groups) * max(slot_bytes, 1))
        self._groups = [_Group(routes, _shares(plan), plan, most_spare) for routes in groups]
        self._group_of = {route: group for group in self._groups for route in group.routes}
        self.slots = sum(group.slots for group in self._groups)
        """Frames that can be under way at once."""
        self.most_held = {worker: most for group in self._groups for worker, most in group.most_held.items()}
        """Of how many results a worker at the end of routes may hold word back: there are slots for so many."""
        self.window = self._window_of(plan)
        """Frames between the oldest undelivered one and the newest: by Little's law, what the other groups finish while
        the slowest group works off what is queued in it and word of that is held back. Rates may be wrong by half."""

    def _window_of(self, plan: Plan) -> int:
        groups = [group for group in self._groups if group.share > 0]
        others = max(group.slots / group.share for group in groups)
        if len(groups) > 1:
            held = HOLD_S * plan.throughput_fps / plan.batch if any(group.spare for group in groups) else 0.0
            others = _WRONG_RATES * others + held
        window = self.slots + math.ceil(others)
        return max(self.slots, min(window, _MAX_WINDOW, _WINDOW_BYTES // self._output_bytes))

    def set_rates(self, plan: Plan) -> None:
        """Go by the rates of a plan of the same routes.

        Raises:
            PlanError: one has a rate now and had none at first.
        """
        shares = _shares(plan)
        if [route for route, share in enumerate(shares) if share > 0 and route not in self._group_of]:
            raise PlanError("these rates use a route that this plan does not have; switch to the other plan instead")
        for group in self._groups:
            group.set_rates(plan, shares)
        self.window = self._window_of(plan)

    def has_room(self, *, deep: bool) -> bool:
        """Whether any route can take a frame.

        Args:
            deep: whether queues may be as long as is best for the throughput; else they stay short, for the latency.
        """
        for group in self._groups:  # noqa: SIM110 (asked several times a frame; `any` takes thrice as long)
            if group.has_room(deep):
                return True
        return False

    def holds(self, route: int) -> bool:
        """Whether word of this route's results may wait, as there are frames enough for its workers beside those."""
        return self._group_of[route].spare > 0

    def learns(self, route: int) -> bool:
        """Whether it is of use to tell `done` what the hops of this route took."""
        return len(self._group_of[route].routes) > 1

    def choose(self, at_hops: AtHops, *, deep: bool) -> int:
        """The route for the next frame; it counts as under way until `done`. Call only when `has_room`.

        Args:
            at_hops: asked where routes share workers.
            deep: as for `has_room`.
        """
        chosen: _Group | None = None
        for group in self._groups:
            group.credit = min(group.credit + group.share, _MAX_CREDIT)
            if group.has_room(deep) and (chosen is None or group.credit > chosen.credit):
                chosen = group
        assert chosen is not None, "there is no room"
        chosen.credit = max(chosen.credit - 1.0, -_MAX_CREDIT)
        chosen.room -= 1
        return chosen.next_route(at_hops)

    def done(self, route: int, hop_s: Sequence[float] = ()) -> None:
        """A frame has left its route, whose hops took so many seconds; none where that is not known, or of no use."""
        self._group_of[route].done(route, hop_s)


def slot_bytes_of(plan: Plan, cut_bytes: Sequence[int]) -> int:
    """About what a slot of a plan holds, by what a frame holds at each cut of the network: what lies between hops."""
    hops = [hop for route in plan.routes if route.rate_fps > 0 for hop in route.hops]
    return plan.batch * sum(cut_bytes[cut] for cut in {cut for hop in hops for cut in (hop.start, hop.stop)})


def _spare(plan: Plan, routes: list[int]) -> int:
    """How many slots with results may be held back by the workers at the end of these routes, at the routes' rates."""
    rate = sum(plan.routes[route].rate_fps for route in routes) / plan.batch
    ends = {plan.routes[route].hops[-1].worker for route in routes}
    return int(min(MOST_HELD * len(ends), HOLD_S * rate))


def _shares(plan: Plan) -> list[float]:
    return [route.rate_fps / plan.throughput_fps for route in plan.routes]
