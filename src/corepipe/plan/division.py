"""How one worker runs a row of layers best: divided among its modes (engines, and frames run at once).

A worker that holds several engines may change from one to the other at any legal cut. That costs no hop, but each part
is a segment with the costs of one. Dynamic programming over (cut, mode); with one mode there is nothing to choose.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from corepipe.cost.table import CostTable
from corepipe.plan.model import HopPart
from corepipe.topology.model import CoreConfig

Floats = NDArray[np.float64]


class Divider:
    """The best divisions on one core config.

    Args:
        table: the costs.
        config: one of its core configs.
        busy: with the costs of busy other cores (where they were measured).
        cuts: P cuts from 0 to the number of layers; parts end at these only. None for all legal ones.
    """

    def __init__(self, table: CostTable, config: CoreConfig, *, busy: bool, cuts: Sequence[int] | None = None) -> None:
        rows = [row for row in table.by_config[config] if table.frames % row.batch == 0]
        self.cuts = tuple(cuts) if cuts is not None else (0, *table.legal_cuts(), table.layer_count)
        self._modes = [row.mode for row in rows]
        at = np.array(self.cuts)
        cut_bytes = np.array(table.network.cut_bytes, float)[at]
        seconds = [row.layer_busy_s if busy and row.layer_busy_s is not None else row.layer_s for row in rows]
        self._total = np.array([np.concatenate([[0.0], np.cumsum(s)])[at] for s in seconds])
        self._ends = np.array([row.segment_s_per_byte * cut_bytes for row in rows])
        self._fixed = np.array([row.segment_s for row in rows])

    def seconds(self) -> Floats:
        """Seconds of the best division between any two cuts, shape (P, P): [j, i] from cut i to cut j, without hops.

        Infinite where i >= j.
        """
        count = len(self.cuts)
        below = np.tril(np.ones((count, count), bool), -1)
        found = np.full((count, count), np.inf)
        if len(self._modes) == 1:
            total, ends = self._total[0], self._ends[0]
            whole = (total[:, None] - total) + (ends[:, None] + ends) + self._fixed[0]
            found[below] = np.maximum(whole[below], 0.0)
            return found
        # open_s[m, i]: seconds from cut i to the present one, the last part being in mode m and still open.
        open_s = np.full((len(self._modes), count), np.inf)
        for stop in range(count):
            if stop:
                open_s += (self._total[:, stop] - self._total[:, stop - 1])[:, None]
                found[stop, :stop] = np.maximum((open_s[:, :stop] + self._ends[:, stop, None]).min(axis=0), 0.0)
            began = self._fixed + self._ends[:, stop]
            changed = np.append(found[stop, :stop], 0.0)
            open_s[:, : stop + 1] = np.minimum(open_s[:, : stop + 1], changed + began[:, None])
        return found

    def divide(self, start: int, stop: int) -> tuple[tuple[HopPart, ...], float]:
        """The best division of layers `start` to `stop - 1`, of equal ones that with the fewest parts, and its seconds.

        Args:
            start, stop: two of the cuts, start < stop.
        """
        first, last = self.cuts.index(start), self.cuts.index(stop)
        modes = range(len(self._modes))
        began = self._fixed + self._ends[:, first]
        # For each mode: seconds with the last part still open, the number of parts, and where each part began.
        state: list[tuple[float, int, tuple[tuple[int, int], ...]]] = [
            (float(began[m]), 1, ((first, m),)) for m in modes
        ]
        for cut in range(first + 1, last + 1):
            step = self._total[:, cut] - self._total[:, cut - 1]
            state = [(s + float(step[m]), parts, path) for m, (s, parts, path) in enumerate(state)]
            closed = [(s + float(self._ends[m, cut]), parts, path) for m, (s, parts, path) in enumerate(state)]
            best = min(closed)
            if cut == last:
                break
            began = self._fixed + self._ends[:, cut]
            state = [min(state[m], (best[0] + float(began[m]), best[1] + 1, (*best[2], (cut, m)))) for m in modes]
        seconds, _, path = best
        edges = [*(self.cuts[cut] for cut, _ in path), stop]
        parts = tuple(
            HopPart(layers=(edges[k], edges[k + 1]), engine=self._modes[m].engine, batch=self._modes[m].batch)
            for k, (_, m) in enumerate(path)
        )
        return parts, max(seconds, 0.0)


def divided_s(table: CostTable, config: CoreConfig, start: int, stop: int, *, busy: bool = True) -> float:
    """Seconds of the best division of layers `start` to `stop - 1` on one config, without hops."""
    return Divider(table, config, busy=busy).divide(start, stop)[1]


def divided_load_s(table: CostTable, config: CoreConfig, start: int, stop: int, *, busy: bool = True) -> float:
    """The same with the worker's half of the hops at both ends."""
    return divided_s(table, config, start, stop, busy=busy) + table.half_hop_s(start) + table.half_hop_s(stop)
