"""The linear program of the routes, by column generation: the best mix of routes on a given set of workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from corepipe.errors import PlanError
from corepipe.plan.build import Grid
from corepipe.plan.paths import Path, Paths

Floats = NDArray[np.float64]

PROOF_GAP = 1e-10
"""Relative distance between mix and bound at which a mix counts as optimal."""

_MAX_ROUNDS = 1000
_MAX_NEWTON_STEPS = 60
_MAX_START_COLUMNS = 500


@dataclass(frozen=True)
class Mix:
    """The best mix of routes on a set of workers.

    Attributes:
        workers: how many workers of each config, shape (T,).
        fps: throughput of the mix.
        prices: shape (T,), frames for a second of a worker of each config; no route over these workers costs less than
            1, so none of their mixes exceeds `prices @ workers`. 0 for configs without a worker.
        routes: (frames/s, route over configs) of those in use.
        loads: for each config the seconds per second that its workers are busy together, shape (T,).
    """

    workers: Floats
    fps: float
    prices: Floats
    routes: tuple[tuple[float, Path], ...]
    loads: Floats


class RouteProgram:
    """Column generation on one set of workers after the other, with a common pool of routes.

    P. C. Gilmore and R. E. Gomory, "A Linear Programming Approach to the Cutting-Stock Problem" (1961), with routes for
    patterns: solve with the routes at hand, take the dual price of each row, and let the cheapest route at those prices
    enter if it costs less than 1. Workers of one config are alike, so there is one row for them all, with their number
    as its right side.

    Args:
        grid: the costs.
        latency_budget_s: routes that take longer, unloaded, are left out.
    """

    def __init__(self, grid: Grid, latency_budget_s: float | None = None) -> None:
        self.grid = grid
        self.paths = Paths(grid, latency_budget_s)
        count, last = len(grid.configs), len(grid.cuts) - 1
        self._scale = float(grid.loads[:, last, 0].min())
        self._every = np.arange(count)
        self._pool: list[Path] = []
        self._index: dict[Path, int] = {}
        self._loads = np.zeros((0, count))
        self._uses = np.zeros((0, count), bool)
        self._hops = np.zeros(0)
        self._guide = np.ones(count)
        self._add([path for t in range(count) if self.paths.in_time(path := ((t, 0, last),))])

    def solve(self, workers: Floats, *, floor_fps: float = 0.0, hop_price: float = 0.0) -> Mix:
        """The best mix of routes on a set of workers.

        Args:
            workers: how many of each config, shape (T,).
            floor_fps: stop as soon as it is proved that the mix cannot exceed this.
            hop_price: how much of a frame each hop of a route counts against it; then the prices bound nothing.
        """
        active = np.flatnonzero(workers > 0)
        weights = np.eye(len(self.grid.configs))[active]
        prices, rates, columns = self._generate(weights, workers[active], active, floor_fps, hop_price)
        used = [(float(rate), int(column)) for rate, column in zip(rates, columns, strict=True) if rate > 0]
        loads = sum((rate * self._loads[column] for rate, column in used), np.zeros(len(self.grid.configs)))
        routes = tuple((rate, self._pool[column]) for rate, column in used)
        return Mix(workers, float(rates.sum()), prices @ weights, routes, loads)

    def relaxed_prices(self, max_workers: int | None = None) -> Floats:
        """Prices that bound every set of workers: those of parting a cluster's cores into fractions of workers.

        Returns:
            Shape (T,): a price per core of each cluster, times the config's cores; all 0 if no route is in time.
        """
        rows, limits = [], []
        for name, cores in self.grid.cluster_cores.items():
            row = [config.count if config.cluster == name else 0 for config in self.grid.configs]
            if any(row):
                rows.append(row)
                limits.append(cores)
        if max_workers is not None:
            rows.append([1] * len(self.grid.configs))
            limits.append(max_workers)
        weights = np.array(rows, float)
        prices, _, _ = self._generate(weights, np.array(limits, float), self._every)
        self._guide = np.asarray(prices @ weights)
        return self._guide

    def lifted(self, mix: Mix, reference: Floats) -> Floats:
        """A mix's prices with prices for the configs that it has no worker of, so that they bound every set.

        Prices of a reference that is valid for all configs are scaled until no route over any configs costs less
        than 1 (Newton's method on a concave, piecewise linear function).

        Returns:
            Prices y, shape (T,), such that no mix on workers n exceeds y @ n.
        """
        absent = mix.workers <= 0
        if not absent.any():
            return mix.prices
        spare = np.where(absent, np.maximum(reference, 1e-6 * reference.max()), 0.0)
        factor, prices = 1.0, mix.prices + spare
        for _ in range(_MAX_NEWTON_STEPS):
            cost, found = self.paths.cheapest(prices, self._every)
            if not found:
                return prices
            load = self.paths.load(found[0])
            rest = float(spare @ load)
            if rest <= 0:
                break
            step = max((1 - float(mix.prices @ load)) / rest, 0.0)
            if abs(step - factor) <= 1e-12 * factor:
                break
            factor, prices = step, mix.prices + step * spare
        cost, _ = self.paths.cheapest(prices, self._every)
        return prices / cost if cost > 0 else np.full(len(prices), np.inf)

    def _generate(
        self,
        weights: Floats,
        limits: Floats,
        active: NDArray[np.intp],
        floor_fps: float = 0.0,
        hop_price: float = 0.0,
    ) -> tuple[Floats, Floats, NDArray[np.intp]]:
        """Maximise the sum of the rates such that weights @ (loads of the configs) <= limits.

        Returns:
            The price of each row, at which no route costs less than 1; the rates; the columns that they belong to.
        """
        columns = self._at_hand(active)
        if not len(columns):
            _, quickest = self.paths.quickest(active)
            if not self.paths.in_time(quickest):
                return np.zeros(len(limits)), np.zeros(0), columns
            columns = np.array(self._add([quickest]), np.intp)
        best, bound = np.zeros(len(limits)), np.inf
        for _ in range(_MAX_ROUNDS):
            gains = 1 - hop_price * self._hops[columns]
            rates, duals = _solve_lp(weights @ self._loads[columns].T / self._scale, limits, gains)
            cost, found = self.paths.cheapest(duals @ weights / self._scale, active, hop_price)
            if cost > 0 and float(duals @ limits) / cost < bound:
                best, bound = duals / cost, float(duals @ limits) / cost
            if cost >= 1 - PROOF_GAP or bound <= float(gains @ rates) * (1 + PROOF_GAP):
                break
            if not hop_price and bound < floor_fps * self._scale:
                break
            fresh = np.setdiff1d(self._add(found), columns)
            if not len(fresh):
                break
            columns = np.concatenate([columns, fresh])
        return best / self._scale, rates / self._scale, columns

    def _at_hand(self, active: NDArray[np.intp]) -> NDArray[np.intp]:
        """The routes of the pool that use only these configs, where there are many the cheapest at usual prices."""
        absent = np.setdiff1d(self._every, active)
        fits = np.flatnonzero(~self._uses[:, absent].any(axis=1))
        if len(fits) > _MAX_START_COLUMNS:
            cheapest = np.argpartition(self._loads[fits] @ self._guide, _MAX_START_COLUMNS)
            fits = np.sort(fits[cheapest[:_MAX_START_COLUMNS]])
        return fits

    def _add(self, paths: Sequence[Path]) -> list[int]:
        """Put routes into the pool where they are new; their indices."""
        new = [path for path in dict.fromkeys(paths) if path not in self._index]
        if new:
            for path in new:
                self._index[path] = len(self._pool)
                self._pool.append(path)
            self._loads = np.vstack([self._loads, [self.paths.load(path) for path in new]])
            uses = [np.isin(self._every, [t for t, _, _ in path]) for path in new]
            self._uses = np.vstack([self._uses, uses])
            self._hops = np.append(self._hops, [len(path) for path in new])
        return [self._index[path] for path in paths]


def _solve_lp(rows: Floats, limits: Floats, gains: Floats) -> tuple[Floats, Floats]:
    """Maximise gains @ x with rows @ x <= limits, x >= 0: x (a vertex) and the dual price of each row."""
    result = linprog(
        -gains,
        A_ub=rows,
        b_ub=limits,
        method="highs-ds",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if result.x is None:
        raise PlanError(f"the linear program of the routes could not be solved: {result.message}")
    return np.maximum(result.x, 0.0), np.maximum(-result.ineqlin.marginals, 0.0)
