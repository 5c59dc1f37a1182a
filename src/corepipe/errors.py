"""Every exception of corepipe's own, in one tree (a full stream's `submit` raises Python's `TimeoutError`).

    CorepipeError
    ├── UsageError            the caller asked for something that cannot be (exit code 2)
    │   └── UnknownNameError  an unknown network, cluster, plan or option name, with a suggestion
    ├── ModelError            the ONNX model: unreadable, refused, unsupported
    │   └── BatchError        the network cannot take several frames at once
    ├── DocumentError         a plan, cost table or machine file: unreadable or inconsistent
    ├── TopologyError         the machine cannot be described or cannot be used as asked
    ├── PlanError             no plan meets the request, or a plan does not fit network or machine
    ├── EngineError           a kernel library refused a segment or failed in a run
    ├── FrameError            one frame could not be read, had a wrong shape, or failed in a worker
    │   └── StreamFullError   it was dropped or refused because the stream was full
    ├── WorkerError           a worker process could not start or died for good
    ├── StreamClosedError     the stream was closed, or closed while frames were under way
    ├── EmulationError        slowing a core is not possible here
    └── NotTrustworthyError   measured, but too noisy to rely on (exit code 3)

Every message says what failed, on what, and what to do next, in one printable line: names in it may come from a file
that was made to harm.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_MESSAGE = 2000
"""Characters of a message; of a longer one the start and the end are shown."""


class CorepipeError(Exception):
    """Base of all corepipe errors; `exit_code` is what the command line returns for it."""

    exit_code = 1

    def __str__(self) -> str:
        return _one_line(super().__str__())


class UsageError(CorepipeError):
    """The caller asked for something that cannot be; the message names what would work."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is not known; `suggestion` holds the nearest known one, if any is near.

    Example:
        >>> str(UnknownNameError("network", "squeeznet", ["squeezenet", "alexnet"]))
        "unknown network 'squeeznet'; did you mean 'squeezenet'? (known: alexnet, squeezenet)"
    """

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        self.suggestion: str | None = near[0] if near else None
        self._given = (what, name, known)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        super().__init__(f"unknown {what} {name!r}{hint} (known: {', '.join(known) or 'none'})")

    def __reduce__(self) -> tuple[type[UnknownNameError], tuple[str, str, list[str]]]:
        return type(self), self._given


class ModelError(CorepipeError):
    """The ONNX model is unreadable, refused for safety, or uses something unsupported."""


class BatchError(ModelError):
    """The network mixes frames, or does not keep them along the first dim, so that it cannot take several at once."""


class DocumentError(CorepipeError):
    """A plan, cost table or machine file is unreadable, of another version, or inconsistent."""


class TopologyError(CorepipeError):
    """The machine cannot be described, or lacks or forbids the cores that were asked for."""


class PlanError(CorepipeError):
    """No plan meets the request, or a plan does not fit the network or the machine."""


class EngineError(CorepipeError):
    """A kernel library refused a segment or failed while running it."""


class FrameError(CorepipeError):
    """One frame could not be read, does not fit the network's inputs, or failed in a worker."""


class StreamFullError(FrameError):
    """One frame was dropped or refused because the stream was full; see `when_full` of `Stream.__call__`."""


class WorkerError(CorepipeError):
    """A worker process could not be started, or died and could not be restarted."""


class StreamClosedError(CorepipeError):
    """The stream is closed, or was closed before this frame's result was there."""


class EmulationError(CorepipeError):
    """A core cannot be slowed down here (missing privilege, unknown core, unsupported system)."""


class NotTrustworthyError(CorepipeError):
    """A measurement is too noisy to rely on; the figures were still given."""

    exit_code = 3


def _one_line(text: str) -> str:
    """The text without line ends and control characters, shortened in the middle."""
    half = MAX_MESSAGE // 2 - 3
    if len(text) > MAX_MESSAGE:
        text = f"{text[:half]} ... {text[-half:]}"
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " if c.isspace() else f"\\u{ord(c):04x}" for c in text)
    return text if len(text) <= MAX_MESSAGE else f"{text[:half]} ... {text[-half:]}"
