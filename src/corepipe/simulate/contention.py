"""Contention as people write it."""

from __future__ import annotations

from collections.abc import Sequence

from corepipe.errors import UsageError
from corepipe.simulate.events import Contention


def parse_contention(texts: Sequence[str]) -> Contention | None:
    """Read one number for all clusters, or `CLUSTER:NUMBER` for some of them; None where nothing is given.

    Raises:
        UsageError: it is neither, or a cluster is given twice.

    Example:
        >>> parse_contention(["big:0.3", "little:0.1"])
        {'big': 0.3, 'little': 0.1}
    """
    found: dict[str, float] = {}
    for text in texts:
        cluster, _, number = text.rpartition(":")
        try:
            value = float(number)
        except ValueError:
            raise UsageError(f"contention {text!r}: give a number such as 0.3, or that of a cluster: big:0.3") from None
        if found and (not cluster or cluster in found or "" in found):
            raise UsageError(f"contention {text!r}: give one number for all clusters, or one for each of some")
        found[cluster] = value
    return found.get("", found or None)
