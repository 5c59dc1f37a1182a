"""Folders, images, patterns, videos and cameras as sources of frames."""

import contextlib
import glob
import os
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from corepipe.errors import FrameError, UsageError
from corepipe.frames import Frame, FrameSource, Skipped, open_source
from corepipe.frames import images as images_module
from corepipe.frames import sources as sources_module
from corepipe.frames.images import IMAGE_SUFFIXES, decode_image, image_size, natural_key
from corepipe.frames.video import CameraSource, _CaptureSource

IMAGENET = Path(__file__).parents[3] / "shared" / "images" / "imagenet"


def picture(height=24, width=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(suffix, image=None):
    good, data = cv2.imencode(suffix, picture() if image is None else image)
    assert good
    return data.tobytes()


@pytest.fixture
def folder(tmp_path):
    for number in (1, 2, 10):
        (tmp_path / f"frame{number}.png").write_bytes(encoded(".png", picture(seed=number)))
    return tmp_path


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 48))
    for i in range(30):
        writer.write(np.full((48, 64, 3), 8 * i, np.uint8))
    writer.release()
    return path


def test_folder_in_natural_order_without_what_is_no_image(folder):
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_bytes(b"junk")
    (folder / "more.png").mkdir()
    with open_source(folder) as source:
        assert source.length == 3
        frames = list(source)
    assert [f.name for f in frames] == ["frame1.png", "frame2.png", "frame10.png"]
    assert all(f.is_image for f in frames)
    np.testing.assert_array_equal(frames[2].data, picture(seed=10))
    assert source.skipped == []
    assert source.read_s > 0


def test_unreadable_images_in_the_middle_are_skipped_with_name_and_reason(folder):
    (folder / "frame3.png").write_bytes(b"")
    (folder / "frame4.jpg").write_text("this is text, not an image")
    (folder / "frame5.png").write_bytes(encoded(".png")[:300])
    (folder / "frame6.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "frame7.png")
    (folder / "frame8.png").symlink_to("frame8.png")
    told = []
    source = open_source(str(folder), on_skip=told.append)
    assert [f.name for f in source] == ["frame1.png", "frame2.png", "frame10.png"]
    assert told == source.skipped
    reasons = dict(source.skipped)
    assert list(reasons) == [f"frame{n}" for n in ("3.png", "4.jpg", "5.png", "6.png", "7.png", "8.png")]
    assert "empty" in reasons["frame3.png"]
    assert "not an image" in reasons["frame4.jpg"]
    assert "damaged" in reasons["frame5.png"]
    assert "No such file" in reasons["frame6.png"]
    assert "not a regular file" in reasons["frame7.png"]


def test_a_folder_of_nothing_but_unreadable_images_is_an_error(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "b.jpg").write_bytes(b"y")
    source = open_source(tmp_path)
    with pytest.raises(FrameError, match=r"none of its 2 images can be read; the first: a\.jpg: "):
        list(source)
    assert len(source.skipped) == 2


def test_truncated_jpeg_is_a_frame_or_a_skip(folder):
    (folder / "half.jpg").write_bytes(encoded(".jpg")[:-200])
    source = open_source(folder)
    names = [f.name for f in source]
    assert ("half.jpg" in names) != ("half.jpg" in dict(source.skipped))
    assert len(names) >= 3


def test_empty_folder_names_what_is_there(tmp_path):
    with pytest.raises(FrameError, match="no image in this folder; it is empty"):
        open_source(tmp_path)
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(FrameError, match=r"it holds clip\.mp4"):
        open_source(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(FrameError, match=r"sub-folders are not searched \(train\)"):
        open_source(tmp_path)


def test_photographs_are_turned_as_their_cameras_say(tmp_path):
    """A phone held upright writes a lying image, and that it is to be turned by a quarter to the right (6)."""
    lying = np.zeros((16, 32, 3), np.uint8)
    lying[:, :16] = 255
    plain = encoded(".jpg", lying)
    tag = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    about = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + tag + bytes(4)
    exif = b"\xff\xe1" + struct.pack(">H", len(about) + 2) + about
    (tmp_path / "phone.jpg").write_bytes(plain[:2] + exif + plain[2:])
    with open_source(tmp_path / "phone.jpg") as source:
        (frame,) = source
    assert frame.data.shape == (32, 16, 3)
    assert frame.data[:12].min() > 200
    assert frame.data[20:].max() < 50


def test_single_image(folder):
    source = open_source(folder / "frame2.png")
    (frame,) = source
    assert (frame.name, frame.data.shape, source.length) == ("frame2.png", (24, 32, 3), 1)
    bad = folder / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(FrameError, match=r"bad\.png: not an image"):
        open_source(bad)


def test_images_of_kinds_that_are_not_read_are_not_left_out_silently(folder, caplog):
    (folder / "IMG_1.HEIC").touch()
    (folder / "IMG_2.heic").touch()
    (folder / "labels.txt").touch()
    assert len(list(open_source(folder))) == 3
    assert "2 images left out, of kinds that are not read: IMG_1.HEIC, IMG_2.heic" in caplog.text
    caplog.clear()
    assert len(list(open_source(f"{folder}/*"))) == 3
    assert "2 images left out" in caplog.text


def test_links_that_lead_back_do_not_multiply_what_a_pattern_finds(folder):
    for name in ("self", "again"):
        (folder / name).symlink_to(".")
    (folder / "sub").mkdir()
    (folder / "sub/frame3.png").write_bytes(encoded(".png"))
    found = [os.path.relpath(f.name, folder) for f in open_source(f"{folder}/**/*.png")]
    assert found == ["frame1.png", "frame2.png", "frame10.png", "sub/frame3.png"]
    with pytest.raises(UsageError, match="no file matches"):
        open_source(f"{folder}/**/*.jpg")


@pytest.mark.parametrize(
    "pattern", ["**", "**/*.png", "**/b/*.png", "*/**/*.png", "**/**/*.png", "a/**", "**/.h/*.png", "[ab]/**/c*.png"]
)
def test_patterns_find_what_glob_finds(tmp_path, monkeypatch, pattern):
    for name in ("x.png", "a/c.png", "a/b/c1.png", "b/d.png", ".h/e.png", "a/.f.png", "b/a/b/c2.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    for prefix in ("", f"{tmp_path}/"):
        wanted = {m for m in glob.glob(prefix + pattern, recursive=True) if os.path.isfile(m)}
        found = [m for m in sources_module._matches(prefix + pattern) if os.path.isfile(m)]
        assert set(found) == wanted
        assert len(found) == len(wanted)


def test_pattern(folder):
    sub = folder / "sub"
    sub.mkdir()
    (sub / "x.JPG").write_bytes(encoded(".jpg"))
    (folder / "a.txt").touch()
    assert [Path(f.name).name for f in open_source(f"{folder}/*")] == ["frame1.png", "frame2.png", "frame10.png"]
    assert len(list(open_source(f"{folder}/**/*"))) == 4
    with pytest.raises(UsageError, match="no file matches"):
        open_source(f"{folder}/*.bmp")
    with pytest.raises(UsageError, match="none of the 1 matching files is an image"):
        open_source(f"{folder}/*.txt")


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    (tmp_path / "a[1].png").write_bytes(encoded(".png"))
    assert [f.name for f in open_source(tmp_path / "a[1].png")] == ["a[1].png"]


def test_names_that_are_not_utf8_can_be_printed(tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).write_bytes(encoded(".png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (frame,) = open_source(tmp_path)
    assert frame.name.encode() == "caf\N{REPLACEMENT CHARACTER}.png".encode()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("missing/folder", "no such file"),
        ("", "not an input"),
        ("a\0b", "not an input"),
        ("camera:one", "not a camera"),
        ("rtsp://host/stream", "network addresses"),
        ("model.onnx", r"files of kind '\.onnx' are not read"),
        ("README", "files without a suffix"),
        ("list.m3u8", "are not read"),
        ("README/x.png", "no such file"),
        ("~nobody-of-that-name/frames", "no such file"),
    ],
)
def test_bad_specs_are_wrong_usage(tmp_path, monkeypatch, spec, message):
    monkeypatch.chdir(tmp_path)
    for name in ("model.onnx", "README", "list.m3u8"):
        Path(name).touch()
    with pytest.raises(UsageError, match=message):
        open_source(spec)


def test_a_name_too_long_for_the_system_is_one_error():
    with pytest.raises(FrameError, match="cannot read"):
        open_source("x" * 5000)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(folder):
    (folder / "frame1.png").chmod(0)
    source = open_source(folder)
    assert len(list(source)) == 2
    assert "Permission denied" in source.skipped[0].reason
    folder.chmod(0)
    try:
        with pytest.raises(FrameError, match="Permission denied"):
            open_source(folder)
    finally:
        folder.chmod(0o700)


def test_refused_permission_is_one_error(folder, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(images_module.os, "scandir", refuse)
    with pytest.raises(FrameError, match="cannot list the folder: Permission denied"):
        open_source(folder)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(FrameError, match=r"frame1\.png: cannot read: Permission denied"):
        list(open_source(folder / "frame1.png"))


def test_closing_ends_iteration(folder):
    with open_source(folder) as source:
        next(source)
    source.close()
    assert list(source) == []


def test_closing_while_another_thread_reads_leaves_the_release_to_it():
    reading, go_on = threading.Event(), threading.Event()
    order = []

    class Slow(FrameSource):
        def _produce(self):
            reading.set()
            go_on.wait(10)
            order.append("read")
            yield Frame("a", picture(), is_image=True)

        def _release(self):
            order.append("released")

    source = Slow("slow", None)
    reader = threading.Thread(target=next, args=(source, None))
    reader.start()
    assert reading.wait(10)
    source.close()
    assert order == []
    go_on.set()
    reader.join(10)
    source.close()
    assert order == ["read", "released"]
    assert list(source) == []


def test_video(video):
    with open_source(video) as source:
        assert source.length == 30
        frames = list(source)
    assert [f.name for f in frames][:2] == ["clip.avi#0", "clip.avi#1"]
    assert len(frames) == 30
    assert frames[0].is_image
    assert frames[5].data.shape == (48, 64, 3)
    assert abs(frames[20].data.mean() - 160) < 5
    assert source.skipped == []


def test_a_video_whose_name_is_not_utf8_is_refused(video):
    """OpenCV may end the process at such a name."""
    try:
        moved = video.rename(os.fsdecode(os.fsencode(video.parent) + b"/caf\xe9.avi"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(FrameError, match="not UTF-8; rename it"):
        open_source(moved)


def test_video_that_breaks_off_gives_what_is_there_and_says_so(video):
    data = video.read_bytes()
    video.write_bytes(data[: len(data) * 2 // 3])
    with open_source(video) as source:
        frames = list(source)
    assert 5 < len(frames) < 28
    assert source.skipped == [
        Skipped(f"clip.avi#{len(frames)}", f"the video breaks off after {len(frames)} frames; it declares 30")
    ]


class Captured:
    """A capture that gives these, None being a read that fails; then it always fails."""

    def __init__(self, images):
        self.images = list(images)
        self.reads = 0

    def read(self):
        self.reads += 1
        image = self.images.pop(0) if self.images else None
        return image is not None, image

    def release(self):
        pass


def test_what_follows_a_part_of_a_video_that_cannot_be_decoded_is_read(video):
    with open_source(video) as source:
        source._capture = Captured([picture()] * 10 + [None] * 3 + [picture()] * 17)
        assert [f.name for f in source] == [f"clip.avi#{n}" for n in range(27)]
        assert source.skipped == [Skipped("clip.avi#10", "what comes before this frame cannot be decoded")]
        assert source._capture.reads < 100


def test_a_camera_that_stops_is_an_error_after_its_frames():
    captured = Captured([picture(), picture(), None, picture()])
    source = CameraSource.__new__(CameraSource)
    _CaptureSource.__init__(source, "camera:0", None, captured, None)
    frames = []
    with pytest.raises(FrameError, match=r"camera:0: gives no more pictures, after 3 frames; was it unplugged\?"):
        frames.extend(source)
    assert len(frames) == 3
    assert len(source.skipped) == 1


@pytest.mark.parametrize("content", [b"", b"junk" * 100, b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"])
def test_files_that_are_no_video(tmp_path, content):
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(FrameError, match=r"clip\.mp4: (not a video|the file is empty)"):
        open_source(path)


def test_libraries_keep_quiet(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"junk" * 100)
    code = (
        "import sys, contextlib, corepipe.frames as f\n"
        "for spec in (sys.argv[1], 'camera:63'):\n"
        "    with contextlib.suppress(Exception): f.open_source(spec)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "clip.mp4"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_opening_a_video_leaves_the_environment_as_it_was(video):
    before = dict(os.environ)
    open_source(video).close()
    assert dict(os.environ) == before


def test_missing_camera():
    if Path("/dev/video63").exists():
        pytest.skip("this machine has a camera 63")
    for spec in ("camera:63", "/dev/video63"):
        with pytest.raises(FrameError, match="camera:63: "):
            open_source(spec)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tiff", ".ppm"])
def test_every_format_is_measured_and_decoded(suffix):
    assert suffix in IMAGE_SUFFIXES
    image = cv2.GaussianBlur(picture(30, 41), (9, 9), 0)
    data = encoded(suffix, image)
    assert image_size(data) == (41, 30)
    assert np.abs(decode_image(data).astype(int) - image).mean() < 6
    for length in (0, 1, 3, 9, 17, 31):
        assert image_size(data[:length]) in (None, (41, 30))


def test_lossless_webp_and_grey_and_alpha_and_16_bit_become_bgr():
    image = picture()
    _, webp = cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, 101])
    np.testing.assert_array_equal(decode_image(webp.tobytes()), image)
    grey = image[:, :, 0]
    np.testing.assert_array_equal(decode_image(encoded(".png", grey)), np.repeat(grey[:, :, None], 3, axis=2))
    alpha = np.dstack([image, grey])
    np.testing.assert_array_equal(decode_image(encoded(".png", alpha)), image)
    deep = decode_image(encoded(".png", image.astype(np.uint16) * 257))
    assert deep.dtype == np.uint8
    np.testing.assert_array_equal(deep, image)


def png_of_size(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_an_image_that_declares_too_many_pixels_is_refused_before_decoding(folder, monkeypatch):
    (folder / "frame3.png").write_bytes(png_of_size(40_000, 40_000))
    source = open_source(folder)
    assert len(list(source)) == 3
    assert source.skipped == [Skipped("frame3.png", "40000x40000 pixels, more than 100 megapixels; scale it down")]
    monkeypatch.setattr(images_module, "MAX_FILE_BYTES", 10)
    with pytest.raises(FrameError, match="larger than"):
        list(open_source(folder / "frame1.png"))


def test_random_damage_never_escapes_as_another_error():
    rng = np.random.default_rng(1)
    for suffix in (".jpg", ".png", ".webp", ".tiff", ".bmp", ".ppm"):
        whole = np.frombuffer(encoded(suffix), np.uint8)
        for _ in range(30):
            data = whole[: rng.integers(1, len(whole) + 1)].copy()
            data[rng.integers(0, len(data), 3)] = rng.integers(0, 256, 3)
            with contextlib.suppress(FrameError):
                assert decode_image(data.tobytes()).ndim == 3


@pytest.mark.skipif(not IMAGENET.is_dir(), reason="no ../shared/images/imagenet")
def test_real_photographs():
    with open_source(f"{IMAGENET}/n0144*.jpg") as source:
        frames = list(source)
    assert len(frames) == source.length >= 1
    assert all(min(f.data.shape[:2]) == 256 for f in frames)
    assert source.skipped == []


def test_names_of_many_digits_can_be_sorted():
    names = ["9" * 5000, "f10", "f2", "1" * 5000]
    assert sorted(names, key=natural_key) == ["1" * 5000, "9" * 5000, "f2", "f10"]
