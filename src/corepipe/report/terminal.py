"""Text for a terminal: names come from files of somebody else's, and none may become markup, an emoji or a control."""

from __future__ import annotations

import contextlib
import errno
import os

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from corepipe.report.html import visible

WIDEST = 10_000
"""Characters of a line where no terminal cuts it: tables take what they need."""


class Output(Console):
    """A console whose reader may go away: rich would end the program then, and take its standard output from it."""

    def on_broken_pipe(self) -> None:
        """Of stdout an error, as any other that it has; of stderr nothing but silence."""
        if not self.stderr:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        self.quiet = True


def plain(text: str, style: str = "") -> Text:
    """Text that shows just what it holds: brackets as they are, control characters as `\\u001b`."""
    return Text(visible(text, kept=""), style=style)


def rate_text(fps: float, digits: int = 4) -> str:
    """Frames/s with so many significant digits, or all before the point."""
    return f"{fps:.{digits}g}" if fps < 10**digits - 0.5 else f"{fps:.0f}"


def say(console: Console, sentence: str) -> None:
    """Print a sentence as it is; the terminal breaks it where it is too long."""
    show(console, plain(sentence), soft_wrap=True)


def show(console: Console, what: RenderableType, *, soft_wrap: bool | None = None) -> None:
    """Print a table or text.

    What goes to stderr is lost where that is full: it is no reason to end what is said something about.
    """
    with contextlib.suppress(OSError) if console.stderr else contextlib.nullcontext():
        console.print(what, soft_wrap=soft_wrap)


def width_of(table: Table, console: Console) -> int:
    """Characters that a table takes where it is not cut."""
    return Measurement.get(console, console.options.update(max_width=WIDEST), table).maximum


def titled(title: str) -> Table:
    """An empty table below a title."""
    return Table(title=plain(title, "table.title"), title_justify="left")
