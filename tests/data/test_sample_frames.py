"""The embedded photographs: readable, small, varied, each with its source."""

from __future__ import annotations

import cv2

from corepipe.data import sample_frames


def test_sorted_existing_jpegs() -> None:
    frames = sample_frames()
    assert frames == sorted(frames)
    assert 6 <= len(frames) <= 8
    assert all(path.suffix == ".jpg" and path.is_file() for path in frames)


def test_small_and_of_the_expected_size() -> None:
    sizes = [path.stat().st_size for path in sample_frames()]
    assert max(sizes) <= 30_000
    assert sum(sizes) <= 200_000
    for path in sample_frames():
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        assert image is not None
        assert min(image.shape[:2]) == 256
        assert image.std() > 10


def test_every_frame_has_a_source() -> None:
    sources = (sample_frames()[0].parent / "SOURCES.md").read_text(encoding="utf-8")
    for path in sample_frames():
        line = next(line for line in sources.splitlines() if f"`{path.name}`" in line)
        assert "CC0" in line or "public domain" in line
