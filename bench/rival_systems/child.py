"""One process that runs one system: `python -m rival_systems.child SPEC`, with a line protocol over its pipes.

It says `{"ready": {...}}` once its outputs are checked and it is warm, or `{"failed": "reason"}`; then answers every
`{"seconds": S}` with `{"fps": F, "over_costs": C}`, and ends when its standard input does. What libraries print goes to
stderr.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from corepipe.runtime.child import pin
from rival_systems.prepare import batches_of
from rival_systems.rate import Slice

Array = NDArray[Any]

TOLERANCE = 1e-3
"""Largest difference from the reference that counts as equal, relative to the output's largest magnitude."""

_WARM_S = 0.5
_PR_SET_PDEATHSIG = 1


class Runner(Protocol):
    """One system, loaded.

    Attributes:
        filling: calls that are under way at once, and do not count at the beginning.
        about: what else goes into the result.
    """

    filling: int
    about: dict[str, Any]

    def infer(self, batch: Array) -> Array:
        """The outputs of one batch."""
        ...

    def run(self, batches: list[Array], seconds: float) -> Slice:
        """Run batches by turns for a while, as fast as it can."""
        ...


def main() -> None:
    # Its parent may be killed before it could end this process, which may be at work for minutes.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    spec = json.loads(sys.argv[1])
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    cpus = set(spec["cpus"])

    def say(**message: Any) -> None:
        print(json.dumps(message), file=replies, flush=True)

    try:
        folder, batch = Path(spec["folder"]), spec["batch"]
        stored = np.load(folder / "frames.npz")
        batches = batches_of(stored["frames"], batch)
        expected = batches_of(stored["outputs"], batch)
        runner: Runner = importlib.import_module(f"rival_systems.run_{spec['engine']}").load(spec, folder)
        error = float(np.max([_error(runner.infer(b), want) for b, want in zip(batches, expected, strict=True)]))
        if not error <= TOLERANCE:
            say(failed=f"its output is wrong: differs by {error:.1e} of the largest magnitude")
            return
        if spec.get("compiled"):
            pin(sorted(cpus), strict=True)
        warm = runner.run(batches, _WARM_S)
        if spec["engine"] != "corepipe" and (escaped := _escaped(cpus)):
            say(failed=f"{escaped} of its threads leave the cores that it was given")
            return
        call_s = 1 / warm.calls_per_s(runner.filling)
        filling_s = runner.filling * call_s
        ready = {"largest_relative_error": error, "call_s": call_s, "filling_s": filling_s, "about": runner.about}
        say(ready=ready)
        for line in sys.stdin:
            measured = runner.run(batches, json.loads(line)["seconds"])
            say(fps=measured.frames_per_s(runner.filling) * batch, over_costs=measured.over_costs)
    except Exception as error:
        text = str(error).strip().splitlines()
        say(failed=f"{type(error).__name__}: {text[0] if text else ''}"[:300])
        raise


def _error(got: Array, want: Array) -> float:
    if got.shape != want.shape:
        return float("inf")
    return float(np.max(np.abs(got - want)) / np.max(np.abs(want)))


def _escaped(cpus: set[int]) -> int:
    """How many threads may run elsewhere."""
    count = 0
    for task in os.listdir("/proc/self/task"):
        try:
            count += not os.sched_getaffinity(int(task)) <= cpus
        except ProcessLookupError:
            continue
    return count


if __name__ == "__main__":
    main()
