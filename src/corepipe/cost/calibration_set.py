"""What a calibration measures: synthetic networks whose layers span what current CNNs are made of.

Each network holds a few blocks of one kind, with sizes drawn at random, so that every layer runs between neighbours
as it does in a real network: alone, a layer would mostly measure the call and the layout changes at its ends. The
kinds cover convolutions (1x1 to 11x11, strided, dilated, asymmetric, grouped, depthwise), fully connected layers,
matrix products, pools, element-wise operators, normalisations, and what only moves data. No network of the zoo, of
the `onnx` package, or of any publication is among them.

All of it is float32 so far; another element type would be one more argument of `calibration_network`.
"""

from __future__ import annotations

import zlib

from corepipe.cost._blocks import KINDS, Draw
from corepipe.errors import UsageError
from corepipe.network.load import load_network
from corepipe.network.model import Network

SET_VERSION = 2
"""Raised when the same index gives another network: measurements of different versions do not mix."""


def calibration_network(index: int) -> Network:
    """Network `index` of the set; any number from 0 up, the kinds of block taking turns.

    Raises:
        UsageError: `index` is negative.
    """
    if index < 0:
        raise UsageError(f"calibration network {index}: give a number from 0 up")
    kinds = list(KINDS)
    kind = kinds[index % len(kinds)]
    seed = zlib.crc32(f"{SET_VERSION}-{index}".encode())
    graph = KINDS[kind](Draw(seed, f"calibration-{index}-{kind}"))
    return load_network(graph.model(), keep_strides=True)


def kind_count() -> int:
    """How many kinds of network there are: a set should be a multiple of it."""
    return len(KINDS)
