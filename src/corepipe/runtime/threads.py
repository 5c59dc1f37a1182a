"""The threads of a stream in the user's process."""

from __future__ import annotations

import threading
from collections.abc import Callable

from corepipe.errors import WorkerError


def daemon(name: str, target: Callable[..., object], *arguments: object) -> threading.Thread:
    """A thread that is to run `target`, and does not keep the process alive."""
    return threading.Thread(target=target, args=arguments, name=name, daemon=True)


def start(thread: threading.Thread) -> threading.Thread:
    """Start a thread.

    Raises:
        WorkerError: the system has none left.
    """
    try:
        thread.start()
    except RuntimeError as error:
        raise WorkerError(f"{thread.name}: {error}; close other programs or use fewer workers") from None
    return thread
