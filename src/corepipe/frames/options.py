"""Preprocessing options as they are written on the command line."""

from __future__ import annotations

import math
from typing import Any

from corepipe.errors import UnknownNameError, UsageError

LAYOUTS = ("nchw", "nhwc")
COLORS = ("rgb", "bgr", "gray")
RESIZES = ("crop", "stretch", "letterbox")


def parse_options(
    *,
    mean: str | None = None,
    std: str | None = None,
    scale: str | None = None,
    layout: str | None = None,
    color: str | None = None,
    resize: str | None = None,
) -> dict[str, Any]:
    """Command-line texts as overrides for `Preprocess.for_input`; what is None is left out.

    Args:
        mean: numbers with commas between; a number may be a fraction.
        std: likewise.
        scale: a number or a fraction, such as `1/255`.
        layout: `nchw` or `nhwc`.
        color: `rgb`, `bgr` or `gray`.
        resize: `crop`, `crop:256` (length of the shorter side), `stretch` or `letterbox`.

    Raises:
        UsageError: a text that cannot be read, naming the option.
    """
    options: dict[str, Any] = {}
    if mean is not None:
        options["mean"] = _numbers("--mean", mean)
    if std is not None:
        options["std"] = _numbers("--std", std)
    if scale is not None:
        options["scale"] = _number("--scale", scale)
    for what, text, known in (("layout", layout, LAYOUTS), ("color", color, COLORS)):
        if text is not None:
            if text.lower() not in known:
                raise UnknownNameError(what, text, known)
            options[what] = text.lower()
    if resize is not None:
        method, _, length = resize.lower().partition(":")
        if method not in RESIZES:
            raise UnknownNameError("resize method", resize, RESIZES)
        options["resize"] = method
        if length or resize.endswith(":"):
            if method != "crop" or not length.isascii() or not length.isdecimal():
                raise UsageError(f"--resize {resize!r}: only 'crop' takes a length, as in 'crop:256'")
            options["shorter"] = int(length)
    return options


def _number(option: str, text: str) -> float:
    over, slash, under = text.partition("/")
    try:
        value = float(over) / float(under) if slash else float(over)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{option} {text!r}: not a number; write it like 0.5 or 1/255")
    return value


def _numbers(option: str, text: str) -> tuple[float, ...]:
    return tuple(_number(option, part.strip()) for part in text.split(","))
