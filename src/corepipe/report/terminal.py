"""Text for a terminal: names come from files of somebody else's, and none may become markup, an emoji or a control."""

from __future__ import annotations

import contextlib

from rich.console import Console
from rich.table import Table
from rich.text import Text

from corepipe.report.html import visible


def plain(text: str, style: str = "") -> Text:
    """Text that shows just what it holds: brackets as they are, control characters as `\\u001b`."""
    return Text(visible(text, kept=""), style=style)


def say(console: Console, sentence: str) -> None:
    """Print a sentence as it is; the terminal breaks it where it is too long.

    What goes to stderr is lost where that is full: it is no reason to end what is said something about.
    """
    with contextlib.suppress(OSError) if console.stderr else contextlib.nullcontext():
        console.print(plain(sentence), soft_wrap=True)


def titled(title: str) -> Table:
    """An empty table below a title."""
    return Table(title=plain(title, "table.title"), title_justify="left")
