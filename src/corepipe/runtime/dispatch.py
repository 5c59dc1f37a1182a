"""Which route the next frame takes: the plan's rates as a smooth order, that lets no worker wait in vain."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from corepipe.errors import PlanError
from corepipe.plan.model import Plan, route_groups
from corepipe.runtime.messages import HOLD_S

_FRAMES_PER_HOP = 2
"""One frame in service and one waiting at each worker keep it busy."""

_FRAMES_PER_SHARED_HOP = 4
"""Hops that share a worker get in each other's way; so many frames keep all workers busy within 1 % of the plan's rates
(150 random tables, bench/regret.py's kind, in the simulator)."""

_MAX_SPARE = 8
"""Frames by which the queue of a worker that runs whole frames may be longer, so that it can tell of several results
at once: see `HOLD_S`."""

_MAX_CREDIT = 2.0
"""Frames that a group, or a route of it, may be behind its rates: what it has missed by more is forgotten."""

_HUNGRY_FIRST, _HUNGRY_LATER = 2, 1
"""A worker with fewer slots is about to wait for more: at the first hop of a route, where what is fed comes at once,
and at later ones. Higher figures mix less well where the rates are right (`bench/dispatch.py`)."""

_FULL_SHARE = 0.5
"""A worker that has so many of its group's slots, waiting or at work, leaves too few for the others."""

_MOST_PASSED = 100
"""A route gets a frame after so many of its group's, or by its rate: who follows a plan learns nothing of others."""

_WRONG_RATES = 2
"""Times a group may take longer than its rates say without holding the others up."""

_MAX_WINDOW = 1024
_WINDOW_BYTES = 256 * 2**20
"""Results that wait for their turn take at most so many frames and bytes of the user's memory."""


class _Group:
    """Routes that share workers, directly or through other routes of the group."""

    def __init__(self, routes: list[int], shares: list[float], plan: Plan) -> None:
        hops = [hop for route in routes for hop in plan.routes[route].hops]
        workers = {hop.worker for hop in hops}
        numbers = plan.worker_numbers
        self.routes = routes
        self._workers = [[numbers[hop.worker] for hop in plan.routes[route].hops] for route in routes]
        shared = len(hops) > len(workers)
        self._most_spare = _spare(plan, routes) if len(hops) == 1 else 0
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
        self._passed = [0] * len(self.routes)
        self._most_passed = [max(_MOST_PASSED, 1 / weight) if weight > 0 else 0.0 for weight in self._weights]

    def has_room(self, deep: bool) -> bool:
        """Whether it can take a frame."""
        return self.share > 0 and self.room > self._most_spare - (self.spare if deep else 0)

    def next_route(self, waiting: Callable[[], Sequence[int]]) -> int:
        """The route that is furthest behind its share of the group's frames, of those that are wanted most."""
        if len(self.routes) == 1:
            return self.routes[0]
        for index in self._rated:
            self._deficits[index] = min(self._deficits[index] + self._weights[index], _MAX_CREDIT)
            self._passed[index] += 1
        overdue = [index for index in self._rated if self._passed[index] > self._most_passed[index]]
        chosen = max(overdue or self._wanted(waiting()), key=lambda index: (self._deficits[index], -index))
        self._deficits[chosen] = max(self._deficits[chosen] - 1.0, -_MAX_CREDIT)
        self._passed[chosen] = 0
        return self.routes[chosen]

    def _wanted(self, waiting: Sequence[int]) -> list[int]:
        """The routes that lead to no worker with too many slots, and of these those to one with too few."""
        most = _FULL_SHARE * self.slots
        clear = [i for i in self._rated if all(waiting[worker] < most for worker in self._workers[i])] or self._rated
        return [i for i in clear if self._feeds_hungry(i, waiting)] or clear

    def _feeds_hungry(self, index: int, waiting: Sequence[int]) -> bool:
        first, *later = self._workers[index]
        return waiting[first] < _HUNGRY_FIRST or any(waiting[worker] < _HUNGRY_LATER for worker in later)


class Dispatcher:
    """Largest deficit first: among the groups of routes that have room, and then among the routes of the group.

    Routes that share a worker form a group. Within it the rates are kept as long as every worker has something to do:
    they are what lets all be busy at once, and a route that took more than its rate would take the workers' time from
    the others. Frames that pile up at one, or do not come to another, tell that its speed is not what the rates were
    made for: routes that avoid the one come first, and of these those that feed the other. Little is lost by that: in
    the best mix no route is worse than another as long as all workers have something to do (they have the same reduced
    cost, which is 0, in the linear program).
    Groups have nothing in common, so one that turns out faster than its rates takes more frames, and one that turns
    out slower holds nobody up: each frame adds every group's share of the rates to its credit and takes 1 from the
    group that is chosen, while credits stay within bounds.

    Args:
        plan: the plan.
        output_bytes: size of one result.
    """

    def __init__(self, plan: Plan, output_bytes: int = 0) -> None:
        self._output_bytes = max(output_bytes, 1)
        self._groups = [_Group(routes, _shares(plan), plan) for routes in route_groups(plan)]
        self._group_of = {route: group for group in self._groups for route in group.routes}
        self.slots = sum(group.slots for group in self._groups)
        """Frames that can be under way at once."""
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
        """Whether word of this route's results may wait: its worker runs nothing else, and its queue is longer."""
        return self._group_of[route].spare > 0

    def choose(self, waiting: Callable[[], Sequence[int]], *, deep: bool) -> int:
        """The route for the next frame; it counts as under way until `done`. Call only when `has_room`.

        Args:
            waiting: tells how many slots are at each worker of the plan, waiting or at work; asked where routes share
                workers.
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
        return chosen.next_route(waiting)

    def done(self, route: int) -> None:
        """A frame has left its route."""
        self._group_of[route].room += 1


def _spare(plan: Plan, routes: list[int]) -> int:
    """How many slots with results a worker may hold back for `HOLD_S` at these routes' rates, up to `_MAX_SPARE`."""
    rate = sum(plan.routes[route].rate_fps for route in routes) / plan.batch
    return int(min(_MAX_SPARE, HOLD_S * rate))


def _shares(plan: Plan) -> list[float]:
    return [route.rate_fps / plan.throughput_fps for route in plan.routes]
