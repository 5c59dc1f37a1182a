"""Data that ships with corepipe: a few photographs, so that a demo needs no file and no download."""

from __future__ import annotations

from pathlib import Path

_FRAMES = Path(__file__).resolve().parent / "frames"


def sample_frames() -> list[Path]:
    """The embedded photographs, sorted by name: JPEG, shorter side 256 pixels, colour or grey.

    Author and licence of each (all public domain or CC0) are in `SOURCES.md` beside them.

    Example:
        >>> [path.stem for path in sample_frames()][:3]
        ['astronaut', 'brick', 'camera']
    """
    return sorted(_FRAMES.glob("*.jpg"))
