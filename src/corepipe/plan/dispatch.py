"""Which route the next frame takes: the plan's rates as a smooth, repeatable order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from corepipe.errors import PlanError


def dispatch_order(rates: Sequence[float]) -> Iterator[int]:
    """Route indices for frame after frame, without end, each as often as its rate asks.

    The next frame goes to the route with the largest deficit: the frames it should have had by then less those it got
    (of equal ones, the first). The order depends on the rates alone.

    Args:
        rates: frames/s of each route, or anything in proportion to it.

    Raises:
        PlanError: a rate is negative or not finite, or none is above zero.

    Example:
        >>> from itertools import islice
        >>> list(islice(dispatch_order([20.0, 10.0]), 6))
        [0, 1, 0, 0, 1, 0]
    """
    shares = np.array(rates, float)
    if not shares.size or not np.isfinite(shares).all() or (shares < 0).any() or shares.sum() <= 0:
        raise PlanError(f"cannot dispatch frames at the rates {list(rates)}; each must be >= 0, at least one above 0")
    return _order(shares / shares.max())


def _order(weights: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Iterator[int]:
    shares = weights / weights.sum()
    given = np.zeros(len(shares))
    frames = 0
    while True:
        frames += 1
        route = int(np.argmax(np.where(shares > 0, frames * shares - given, -np.inf)))
        given[route] += 1
        yield route
