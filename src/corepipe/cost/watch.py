"""Tells when a measuring process gets less of its cores than it should, so that such runs do not count."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from corepipe import engine

REFERENCE_ENGINE = "onnxruntime"

_CHANNELS, _SIDE = 64, 28
"""Of the reference: half a millisecond on a desktop core; weights and maps fit into a core's own cache."""

_LOOK_S, _SETTLE_S = 8e-3, 1.5e-3
_DISTURBED = 1.3
_SHARED = 1.4
_PATIENCE_S = 8.0

Clock = Callable[[], float]


class Watch:
    """Looks, between measurements, how fast a reference runs on the same threads.

    Two CPUs of a virtual machine are, for moments or for minutes, two threads of one physical core, and other programs
    or machines take a share: nothing in the system tells. The reference does, and what ran while it was slow does not
    count.

    The reference of several threads holds a share for each of them, so on equal cores it takes as long as one share on
    one thread. Where it never does, the cores really do share something, and what is found is taken as it is.

    Args:
        threads: of the measured models.
        expected_s: seconds of the reference of one thread on one of the cores; measured here if there is one thread.
            None where cores of several kinds are compared with themselves only.
        clock: seconds, for tests.
        reference: runs the reference once, given a number of threads; for tests.
    """

    def __init__(
        self,
        threads: int,
        expected_s: float | None = None,
        *,
        clock: Clock = time.perf_counter,
        reference: Callable[[int], Callable[[], None]] | None = None,
    ) -> None:
        self._clock = clock
        self._run = (reference or _reference)(threads)
        self._run()
        self.expected_s = min(self.look() for _ in range(3)) if threads == 1 else expected_s
        self._best = {False: float("inf"), True: float("inf")}
        self._patience = _PATIENCE_S

    def look(self) -> float:
        """Mean seconds of the reference, over enough runs to even out slices of a shared core."""
        began = self._clock()
        self._run()
        while self._clock() - began < _SETTLE_S:
            self._run()
        began, count = self._clock(), 0
        while True:
            self._run()
            count += 1
            took = self._clock() - began
            if took >= _LOOK_S:
                return took / count

    def note(self, level: float, busy: bool) -> None:
        """Take a look's result into account for what can be expected, with the other cores busy or not."""
        self._best[busy] = min(self._best[busy], level)

    def limit(self, busy: bool) -> float:
        """Up to which result of a look the runs beside it count."""
        own = _DISTURBED * self._best[busy]
        return own if self.expected_s is None or self._patience <= 0 else min(own, _SHARED * self.expected_s)

    def wait(self, seconds: float) -> bool:
        """Whether it is worth measuring so much longer in the hope for better moments; the patience is used up."""
        if self._patience <= 0:
            return False
        self._patience -= seconds
        return True


def _reference(threads: int) -> Callable[[], None]:
    shape = [threads, _CHANNELS, _SIDE, _SIDE]
    weight = np.random.default_rng(0).standard_normal((_CHANNELS, _CHANNELS, 3, 3), np.float32) / np.float32(24)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)],
        "reference",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    compiled = engine.get(REFERENCE_ENGINE).compile(model.SerializeToString(), threads)
    return compiled.bind({"x": np.ones(shape, np.float32)}, {"y": np.empty(shape, np.float32)})
