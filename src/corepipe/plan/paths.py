"""The cheapest route at given prices of the workers: shortest paths over (cut, worker config)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from corepipe.plan.build import Grid

Path = tuple[tuple[int, int, int], ...]
"""A route over configs: (index of the config, index of the cut where the hop starts, of that where it stops)."""

Floats = NDArray[np.float64]

_PRICE_STEPS = 16


@dataclass(frozen=True)
class Paths:
    """Shortest paths over a grid, with or without a limit on their latency.

    Attributes:
        grid: the costs.
        latency_budget_s: routes that take longer, unloaded, do not count; None for no limit.
    """

    grid: Grid
    latency_budget_s: float | None = None

    def cheapest(self, prices: Floats, active: NDArray[np.intp], hop_price: float = 0.0) -> tuple[float, list[Path]]:
        """The cheapest route when a second on config t costs prices[t].

        Args:
            prices: >= 0, shape (T,).
            active: indices of the configs that may be used.
            hop_price: what every hop costs on top.

        Returns:
            The cost of the cheapest route (infinite where none meets the latency budget), and good routes, that one
            first; the others are the cheapest for each config that they may end on.
        """
        priced = prices[active][:, None, None] * self._loads[active] + hop_price
        cost, paths = self._unlimited(priced, active)
        if self.latency_budget_s is None or self.latency_s(paths[0]) <= self.latency_budget_s:
            return cost, [p for p in paths if self.in_time(p)]
        return self._limited(priced, active)

    def load(self, path: Path) -> Floats:
        """Seconds of each config for one frame of a route, shape (T,)."""
        load = np.zeros(len(self.grid.configs))
        for t, start, stop in path:
            load[t] += self.grid.loads[t, stop, start]
        return load

    def latency_s(self, path: Path) -> float:
        """Seconds that one frame of a route takes when it waits for no other frame."""
        work = sum(float(self.grid.loads[t, stop, start]) for t, start, stop in path)
        return work + (len(path) - 1) * self.grid.table.hop.latency_s

    def in_time(self, path: Path) -> bool:
        """Whether a route meets the latency budget."""
        return self.latency_budget_s is None or self.latency_s(path) <= self.latency_budget_s

    def quickest(self, active: NDArray[np.intp]) -> tuple[float, Path]:
        """The route with the lowest latency, and that latency in seconds."""
        hop = self.grid.table.hop.latency_s
        cost, paths = self._unlimited(self.grid.loads[active] + hop, active)
        return cost - hop, paths[0]

    @cached_property
    def _loads(self) -> Floats:
        """The loads with 0 in place of infinity, for places that no path looks at."""
        return np.where(np.isfinite(self.grid.loads), self.grid.loads, 0.0)

    def _unlimited(self, priced: Floats, active: NDArray[np.intp]) -> tuple[float, list[Path]]:
        step: Floats = priced.min(axis=0)
        last = step.shape[0] - 1
        cost = np.zeros(last + 1)
        came_from = np.zeros(last + 1, np.intp)
        for stop in range(1, last + 1):
            reached = cost[:stop] + step[stop, :stop]
            came_from[stop] = k = int(reached.argmin())
            cost[stop] = reached[k]
        endings = cost[:last] + priced[:, last, :last]
        starts = endings.argmin(axis=1)
        order = np.argsort(endings[np.arange(len(active)), starts], kind="stable")
        paths = []
        for t in order:
            hops = [(int(active[t]), int(starts[t]), last)]
            while hops[-1][1] > 0:
                stop = hops[-1][1]
                start = int(came_from[stop])
                hops.append((int(active[priced[:, stop, start].argmin()]), start, stop))
            paths.append(merged(tuple(reversed(hops))))
        return float(cost[last]), paths

    @cached_property
    def _seconds_left(self) -> Floats:
        """For each cut the least latency, hops between workers included, from there to the end."""
        return _left(self.grid.loads.min(axis=0) + self.grid.table.hop.latency_s)

    def _limited(self, priced: Floats, active: NDArray[np.intp]) -> tuple[float, list[Path]]:
        """The cheapest route in time, by labels (cost, latency) at every cut of which none is worse in both.

        The label-setting method for the shortest path with a resource limit: exact, though the number of labels has no
        polynomial bound. Labels that cannot beat a good route, found with a price on time, are left out; the same price
        bounds what a label can come to (Lagrange).
        """
        assert self.latency_budget_s is not None
        hop = self.grid.table.hop.latency_s
        seconds = self._loads[active] + hop
        found, price = self._in_time_at_a_price(priced, seconds, active)
        if not found:
            return np.inf, []
        position = {int(t): k for k, t in enumerate(active)}
        costs_found = [sum(float(priced[position[t], stop, start]) for t, start, stop in path) for path in found]
        best = min(costs_found)
        allowed = self.latency_budget_s * (1 + 1e-12) + hop
        last = priced.shape[1] - 1
        cost_left = _left(priced.min(axis=0))
        priced_left = _left((priced + price * seconds).min(axis=0)) - price * allowed
        cost, time = [np.zeros(1)], [np.zeros(1)]
        origin: list[NDArray[np.intp]] = [np.zeros((1, 3), np.intp)]
        for stop in range(1, last + 1):
            start = np.repeat(np.arange(stop), [len(c) for c in cost])
            label = np.concatenate([np.arange(len(c)) for c in cost])
            costs = np.concatenate(cost) + priced[:, stop, start]
            times = np.concatenate(time) + seconds[:, stop, start]
            t, k = np.nonzero(
                (times + self._seconds_left[stop] <= allowed)
                & (costs + cost_left[stop] < best)
                & (costs + price * times + priced_left[stop] < best)
            )
            costs, times = costs[t, k], times[t, k]
            order = np.lexsort((costs, times))
            ordered = costs[order]
            better = np.ones(len(order), bool)
            better[1:] = ordered[1:] < np.minimum.accumulate(ordered)[:-1]
            kept = order[better]
            cost.append(costs[kept])
            time.append(times[kept])
            origin.append(np.stack([active[t[kept]], start[k[kept]], label[k[kept]]], axis=1))
        if not len(cost[last]):
            return best, [found[i] for i in np.argsort(costs_found, kind="stable")]
        hops, stop, at = [], last, int(cost[last].argmin())
        best = float(cost[last][at])
        while stop > 0:
            config, first, at = (int(v) for v in origin[stop][at])
            hops.append((config, first, stop))
            stop = first
        return best, [merged(tuple(reversed(hops))), *found]

    def _in_time_at_a_price(
        self, priced: Floats, seconds: Floats, active: NDArray[np.intp]
    ) -> tuple[list[Path], float]:
        """Routes in time that are cheapest when a second of latency has a price, and the least such price found."""
        _, quickest = self.quickest(active)
        if not self.in_time(quickest):
            return [], 0.0
        found = [quickest]
        low, high = 0.0, np.inf
        price = float(priced.max() / seconds.max())
        for _ in range(_PRICE_STEPS):
            _, paths = self._unlimited(priced + price * seconds, active)
            if self.in_time(paths[0]):
                found.append(paths[0])
                high = price
            else:
                low = price
            price = 4 * price if np.isinf(high) else (low + high) / 2
        return list(dict.fromkeys(found)), high if np.isfinite(high) else 0.0


def _left(step: Floats) -> Floats:
    """For each cut the least cost from there to the end, if step[stop, start] is what a hop costs."""
    left = np.zeros(step.shape[0])
    for start in range(len(left) - 2, -1, -1):
        left[start] = (step[start + 1 :, start] + left[start + 1 :]).min()
    return left


def merged(path: Path) -> Path:
    """The same route with neighbouring hops on one config made one; that never costs more."""
    hops = [path[0]]
    for t, start, stop in path[1:]:
        if t == hops[-1][0]:
            hops[-1] = (t, hops[-1][1], stop)
        else:
            hops.append((t, start, stop))
    return tuple(hops)
