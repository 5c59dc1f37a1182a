"""The command line: reads options, calls the library, prints. Results on stdout, progress and log on stderr."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.text import Text

from corepipe import __version__
from corepipe.cli import frames, machine, model, simulated
from corepipe.cli.common import Interrupted, app, log
from corepipe.errors import CorepipeError
from corepipe.report.html import visible
from corepipe.report.terminal import plain

__all__ = ["app", "frames", "machine", "main", "model", "simulated"]


_ORDER = ("doctor", "inspect", "profile", "calibrate", "predict", "plan", "bench", "run", "simulate", "emulate")
app.registered_commands.sort(key=lambda command: _ORDER.index(getattr(command.callback, "__name__", "")))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"corepipe {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Options of all commands."""


class _Visible(logging.Formatter):
    """Shows what a name in a message holds."""

    def format(self, record: logging.LogRecord) -> str:
        """The message, control characters as `\\u001b`."""
        return visible(super().format(record))


_INTERRUPTED = 130
_NO_OUTPUT = (errno.ENOSPC, errno.EPIPE, errno.EIO, errno.EBADF)
"""What printing ends with where nobody takes it; files are opened under their own names."""

_FILES = 8192
"""As many as any system allows that has such a limit."""

_stopped_by: list[int] = []


def _stop(number: int, frame: FrameType | None) -> None:
    """What service managers, `timeout` or a closed terminal send ends a command as Ctrl-C does; the first one only."""
    if not _stopped_by:
        _stopped_by.append(number)
        raise KeyboardInterrupt


def main() -> None:
    """Entry point: errors become one message and an exit code (1 failed, 2 wrong usage, 3 not trustworthy)."""
    _fill_standard_descriptors()
    _allow_more_files()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _stop)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        _run()
    except SystemExit as error:
        if error.code == _INTERRUPTED and _stopped_by:
            raise SystemExit(128 + _stopped_by[0]) from None
        raise
    finally:
        _drop_unwritten()


def _fill_standard_descriptors() -> None:
    """Where a standard stream was closed, the next file would take its number, and children not be given that file."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


def _allow_more_files() -> None:
    """Some systems let a process open 256 files unless it asks for more: too few for several plans of many workers."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _run() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Visible("corepipe: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    try:
        app(prog_name="corepipe")
    except CorepipeError as error:
        _fail(str(error), error.exit_code)
    except Interrupted as error:
        _fail(str(error), _INTERRUPTED)
    except KeyboardInterrupt:
        _fail("interrupted", _INTERRUPTED)
    except MemoryError:
        _fail("out of memory; use a smaller model or fewer workers", 1)
    except OSError as error:
        if error.errno not in _NO_OUTPUT:
            _fail_as_bug(error)
        _fail(f"standard output: {error.strerror}", 1)
    except Exception as error:
        _fail_as_bug(error)


def _fail_as_bug(error: Exception) -> NoReturn:
    if os.environ.get("COREPIPE_DEBUG"):
        raise error
    _fail(f"this is a bug in corepipe: {type(error).__name__}: {error} (COREPIPE_DEBUG=1 shows where)", 1)


def _drop_unwritten() -> None:
    """Let what cannot be written go: Python would try again at its end, complain, and end with a code of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, stream.fileno())
                os.close(nothing)


def _fail(message: str, code: int) -> NoReturn:
    with contextlib.suppress(OSError):
        log.print(Text.assemble(("error: ", "bold red"), plain(message)), soft_wrap=True)
    sys.exit(code)
