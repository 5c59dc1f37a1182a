"""The interface of a kernel library: compile a segment, bind it to memory, run it, profile it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from corepipe.errors import CorepipeError, EngineError

DynamicOutput = Callable[[NDArray[Any]], None]
"""Takes an output whose shape is known only after the run; the array is the engine's own, good until the next run."""


@dataclass(frozen=True)
class KernelTime:
    """One kernel call: the node that the engine ran (its own name for it) and its seconds."""

    node: str
    seconds: float


class Compiled(Protocol):
    """A segment that is ready to run with a fixed number of threads."""

    def bind(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any] | DynamicOutput]
    ) -> Callable[[], None]:
        """A call that runs the segment from and into this very memory, without copies where the engine can.

        Args:
            inputs: C-contiguous arrays of the input shapes, read at each call and never written.
            outputs: C-contiguous arrays of the output shapes, written at each call, or a `DynamicOutput`.

        Raises:
            EngineError: shapes or types do not fit; from the returned call: the run failed.
        """
        ...


class Engine(Protocol):
    """A kernel library."""

    name: str

    def dedicate(self, threads: int, alone: bool = True) -> None:
        """Let all models of this process share `threads` threads, where the library can.

        For a process that compiles nothing with another number of threads; before it compiles anything.

        Args:
            threads: how many.
            alone: whether no other engine runs in the process; else none may keep threads spinning after a run.
        """
        ...

    def compile(self, model: bytes, threads: int) -> Compiled:
        """Prepare a serialized ONNX model for `threads` threads that stay on the caller's cores.

        Raises:
            EngineError: the library refuses the model.
        """
        ...

    def profile(
        self,
        model: bytes,
        threads: int,
        inputs: Mapping[str, NDArray[Any]],
        runs: int,
        between: Callable[[], None] = lambda: None,
    ) -> Sequence[Sequence[KernelTime]]:
        """Run the model `runs` times under the library's own profiler; kernel calls in order, for each run.

        `between` is called after each run.

        Raises:
            EngineError: the library refuses the model or has no profile to give.
        """
        ...


def on_x86() -> bool:
    """Whether this is a 64-bit x86 CPU."""
    return platform.machine().lower() in ("x86_64", "amd64")


def check_memory(
    engine: str, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any] | DynamicOutput]
) -> None:
    """Hold arrays against what every library takes on trust: it is given addresses.

    Raises:
        EngineError: an array is not contiguous or not in the machine's byte order, or an output is read-only.
    """
    for arrays, written in ((inputs, False), (outputs, True)):
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):
                continue
            fault = ""
            if not array.flags.c_contiguous:
                fault = "is not contiguous"
            elif not array.dtype.isnative:
                fault = "is not in this machine's byte order"
            elif written and not array.flags.writeable:
                fault = "is read-only"
            if fault:
                raise EngineError(f"{engine}: cannot bind {name!r}: its memory {fault}")


@contextmanager
def as_engine_error(what: str) -> Iterator[None]:
    """Make an `EngineError` that starts with `what` of anything that a library raises; corepipe's own errors pass."""
    try:
        yield
    except CorepipeError:
        raise
    except Exception as error:
        raise EngineError(f"{what}: {brief(str(error), type(error).__name__)}") from None


def brief(text: str, otherwise: str) -> str:
    """The first line of a library's message, or `otherwise` where it is empty."""
    lines = text.strip().splitlines()
    return (lines[0].strip() if lines else otherwise)[:300]
