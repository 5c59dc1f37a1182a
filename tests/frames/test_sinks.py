"""Results as text, JSONL and `.npz`."""

import errno
import io
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from corepipe.errors import CorepipeError, FrameError, UsageError
from corepipe.frames import check_sink, may_hold_classes, open_sink, read_labels, top_k
from corepipe.frames import npz as npz_module
from corepipe.network.model import TensorInfo

SYNSETS = Path(__file__).parents[3] / "shared" / "images" / "synset_words.txt"
LABELS = ("cat", "dog", "owl")
LOGITS = np.array([[1.0, 3.0, 2.0]], np.float32)


def info(name, *shape):
    return TensorInfo(name, np.dtype(np.float32), shape)


def records(stream):
    def refuse(constant):
        raise AssertionError(constant)

    return [json.loads(line, parse_constant=refuse) for line in stream.getvalue().splitlines()]


def test_text():
    stream = io.StringIO()
    with open_sink(labels=LABELS, top_k=2, stdout=stream) as sink:
        sink.write(0, "a.jpg", {"logits": LOGITS})
        sink.fail(1, "b.jpg", "worker big died")
    assert stream.getvalue() == ("a.jpg\n  score 0.6652  dog\n  score 0.2447  owl\nb.jpg\n  failed: worker big died\n")
    assert not stream.closed


def test_text_of_other_outputs_and_odd_names():
    stream = io.StringIO()
    with open_sink("text", stdout=stream) as sink:
        sink.write(0, "a\x1b[2J\nb", {"boxes": np.array([[[1.5, np.nan]]]), "kept": np.zeros((0, 4), np.int64)})
    assert stream.getvalue() == (
        "a\\x1b[2J\\nb\n  boxes float64[1x1x2] min 1.5 max 1.5, 1 not finite\n  kept int64[0x4]\n"
    )


def test_text_that_the_terminal_cannot_show_is_escaped():
    raw = io.BytesIO()
    with open_sink(labels=("猫", "b", "c"), stdout=io.TextIOWrapper(raw, "ascii")) as sink:
        sink.write(0, "é", {"y": np.array([[9.0, 0, 0]])})
        assert raw.getvalue().startswith(b"\\xe9\n  score 0.9998  \\u732b\n")


def test_jsonl(tmp_path):
    path = tmp_path / "out.jsonl"
    with open_sink(path, labels=LABELS, outputs=[info("logits", 1, 3)], top_k=2) as sink:
        sink.write(0, "a.jpg", {"logits": LOGITS})
        sink.fail(None, "b.jpg", "damaged")
        assert path.read_text().count("\n") == 2
    first, second = records(io.StringIO(path.read_text()))
    assert first == {
        "frame": "a.jpg",
        "index": 0,
        "top": [{"class": 1, "label": "dog", "score": 0.665241}, {"class": 2, "label": "owl", "score": 0.244728}],
    }
    assert second == {"frame": "b.jpg", "index": None, "error": "damaged"}


def test_jsonl_of_several_outputs():
    stream = io.StringIO()
    with open_sink("-", stdout=stream) as sink:
        boxes = np.array([[[0.1, np.inf], [-1, np.nan]]], np.float32)
        sink.write(0, "a", {"boxes": boxes, "probs": np.array([[0.25, 0.75]]), "map": np.ones((1, 20, 20))})
        sink.write(1, "b", {"one": np.ones((1, 4)), "two": np.ones((1, 5)), "text": np.array(["x", None], object)})
    first, second = records(stream)
    assert first["top"] == [
        {"class": 1, "label": "class 1", "score": 0.75},
        {"class": 0, "label": "class 0", "score": 0.25},
    ]
    assert first["outputs"]["boxes"] == {
        "dtype": "float32",
        "shape": [1, 2, 2],
        "min": -1.0,
        "max": float(np.float32(0.1)),
        "mean": pytest.approx(-0.45),
        "not_finite": 2,
        "values": [[[0.1, None], [-1.0, None]]],
    }
    assert first["outputs"]["map"] == {"dtype": "float64", "shape": [1, 20, 20], "min": 1, "max": 1, "mean": 1}
    assert "top" not in second
    assert second["outputs"]["text"] == {"dtype": "object", "shape": [2], "values": ["x", "None"]}


def test_labels_choose_between_outputs_of_class_scores():
    stream = io.StringIO()
    with open_sink("-", labels=LABELS, stdout=stream) as sink:
        sink.write(0, "a", {"features": np.ones((1, 7)), "logits": LOGITS})
    (record,) = records(stream)
    assert record["top"][0]["label"] == "dog"
    assert list(record["outputs"]) == ["features"]


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=5),
        hnp.arrays(
            st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_]),
            hnp.array_shapes(min_dims=0, max_dims=3, max_side=4, min_side=0),
        ),
        max_size=3,
    ),
    st.text(max_size=8),
)
def test_jsonl_is_always_valid(outputs, name):
    stream, text = io.StringIO(), io.StringIO()
    open_sink("-", stdout=stream).write(0, name, outputs)
    (record,) = records(stream)
    assert record["frame"] == name
    open_sink(stdout=text).write(0, name, outputs)
    assert text.getvalue().count("\n") <= 1 + max(5, len(outputs))


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(2, 20), elements=st.floats(-1000, 1000, width=32)),
    st.integers(1, 25),
)
def test_top_k_agrees_with_sorting(values, k):
    best = top_k(values[None], k)
    assert [s.class_index for s in best] == sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    assert all(0 <= s.score <= 1 for s in best)


def test_scores_of_a_sigmoid_are_given_as_they_are_in_every_frame():
    """Their sum tells nothing: one frame would be taken for probabilities, the next for logits."""
    for scores in (np.array([[0.62, 0.37, 0.01]]), np.array([[0.90, 0.85, 0.0]])):
        stream = io.StringIO()
        with open_sink("-", labels=LABELS, top_k=1, probabilities={"y"}, stdout=stream) as sink:
            sink.write(0, "a", {"y": scores})
        assert records(stream)[0]["top"][0]["score"] == scores.max()


def test_top_k_keeps_probabilities_and_survives_what_is_not_finite():
    probabilities = np.array([0.125, 0.5, 0.375], np.float16)
    assert [s.score for s in top_k(probabilities, 3)] == [0.5, 0.375, 0.125]
    assert [s.class_index for s in top_k(np.array([np.nan, 1, np.inf]), 3)] == [2, 1, 0]
    assert [s.class_index for s in top_k(np.full(3, np.nan), 2)] == [0, 1]
    stream = io.StringIO()
    open_sink("-", stdout=stream).write(0, "a", {"y": np.array([[np.nan, np.nan]])})
    assert records(stream)[0]["top"][0]["score"] is None


def test_npz_round_trip(tmp_path):
    path = tmp_path / "out.npz"
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 1, 3)).astype(np.float32)
    maps = rng.integers(0, 9, (5, 2, 4, 4))
    with open_sink(path) as sink:
        for i in range(5):
            sink.write(2 * i, f"f{i}", {"logits": logits[i], "/model/maps:0": np.asfortranarray(maps[i])})
            sink.fail(2 * i + 1, f"bad{i}", "né")
        assert not path.exists()
    with np.load(path, allow_pickle=False) as data:
        np.testing.assert_array_equal(data["logits"], logits[:, 0])
        np.testing.assert_array_equal(data["/model/maps:0"], maps)
        assert data["frame_names"].tolist() == [f"f{i}" for i in range(5)]
        assert data["frame_index"].tolist() == [0, 2, 4, 6, 8]
        assert data["failed_names"].tolist() == [f"bad{i}" for i in range(5)]
        assert data["failed_errors"].tolist() == ["né"] * 5
    assert os.listdir(tmp_path) == ["out.npz"]


def test_npz_of_outputs_whose_shape_changes(tmp_path):
    path = tmp_path / "out.npz"
    with open_sink(path) as sink:
        for i in range(3):
            sink.write(i, f"f{i}", {"boxes": np.full((i, 4), i), "n": np.int64(i), "frame_names": np.ones((1, 1))})
    with np.load(path) as data:
        assert [data[f"boxes/{i}"].shape for i in range(3)] == [(0, 4), (1, 4), (2, 4)]
        assert (data["boxes/2"] == 2).all()
        assert data["n"].tolist() == [0, 1, 2]
        assert data["output:frame_names"].shape == (3, 1)


def test_npz_of_text_outputs(tmp_path):
    with open_sink(tmp_path / "out.npz") as sink:
        for word in ("a", "longer"):
            sink.write(0, word, {"label": np.array([word], object)})
    with np.load(tmp_path / "out.npz", allow_pickle=False) as data:
        assert data["label/1"].tolist() == ["longer"]


def test_npz_keeps_what_is_there_when_interrupted(tmp_path):
    path = tmp_path / "out.npz"

    def interrupted():
        with open_sink(path) as sink:
            sink.write(0, "a", {"y": LOGITS})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with np.load(path) as data:
        np.testing.assert_array_equal(data["y"], LOGITS)


def test_npz_without_frames_leaves_the_older_file(tmp_path):
    path = tmp_path / "out.npz"
    path.write_bytes(b"old")
    open_sink(path).close()
    assert path.read_bytes() == b"old"
    with open_sink(path) as sink:
        sink.fail(0, "a", "broken")
    with np.load(path) as data:
        assert data["failed_names"].tolist() == ["a"]


def test_npz_refuses_outputs_that_change(tmp_path):
    with open_sink(tmp_path / "out.npz") as sink:
        sink.write(0, "a", {"y": LOGITS})
        with pytest.raises(FrameError, match="b: has outputs z, earlier frames y"):
            sink.write(1, "b", {"z": LOGITS})
    with pytest.raises(CorepipeError, match="closed already"):
        sink.write(2, "c", {"y": LOGITS})


class FullDisk(io.BytesIO):
    def write(self, data):
        if self.tell() + len(data) > 60:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_npz_on_a_full_disk_keeps_the_complete_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(npz_module, "_unnamed_file", lambda _folder: FullDisk())
    path = tmp_path / "out.npz"

    def run():
        with open_sink(path) as sink:
            for i in range(10):
                sink.write(i, f"f{i}", {"small": np.ones((1, 1), np.uint8), "large": LOGITS + i})

    with pytest.raises(CorepipeError, match=r"out\.npz: cannot write results: No space left on device"):
        run()
    with np.load(path) as data:
        assert data["frame_names"].tolist() == [f"f{i}" for i in range(5)]
        np.testing.assert_array_equal(data["large"][4], LOGITS[0] + 4)


def test_an_npz_is_saved_before_ctrl_c_ends_the_run(tmp_path, monkeypatch):
    def save_slowly(*args):
        signal.raise_signal(signal.SIGINT)
        save(*args)

    save = npz_module._save_output
    monkeypatch.setattr(npz_module, "_save_output", save_slowly)
    sink = open_sink(tmp_path / "out.npz")
    sink.write(0, "a", {"y": LOGITS})
    with pytest.raises(KeyboardInterrupt):
        sink.close()
    with np.load(tmp_path / "out.npz") as data:
        np.testing.assert_array_equal(data["y"], LOGITS)


def test_npz_that_cannot_be_put_in_place_leaves_nothing_behind(tmp_path, monkeypatch):
    def refuse(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    sink = open_sink(tmp_path / "out.npz")
    sink.write(0, "a", {"y": LOGITS})
    monkeypatch.setattr(npz_module.os, "replace", refuse)
    with pytest.raises(CorepipeError, match="No space left"):
        sink.close()
    sink.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("name", ["out.txt", "out.jsonl"])
def test_lines_on_a_full_disk(tmp_path, name):
    (tmp_path / name).symlink_to("/dev/full")

    def run():
        with open_sink(tmp_path / name) as sink:
            sink.write(0, "a", {"y": LOGITS})

    with pytest.raises(CorepipeError, match=rf"{name}: cannot write results: No space left") as caught:
        run()
    assert type(caught.value) is CorepipeError


def test_a_reader_that_has_gone():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb", buffering=0) as raw:
        stream = io.TextIOWrapper(raw, "utf-8", write_through=True)
        sink = open_sink("-", stdout=stream)
        with pytest.raises(CorepipeError, match="<stdout>: the program that reads the results has gone"):
            sink.write(0, "a", {"y": LOGITS})
        stream.detach()


@pytest.mark.parametrize("name", ["no/such/out.txt", "no/such/out.jsonl", "no/such/out.npz"])
def test_a_folder_that_is_not_there(tmp_path, name):
    with pytest.raises(CorepipeError, match="cannot write results: No such file"):
        open_sink(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("name", ["out.txt", "out.jsonl", "out.npz"])
def test_no_permission(tmp_path, name):
    tmp_path.chmod(0o500)
    with pytest.raises(CorepipeError, match="Permission denied"):
        open_sink(tmp_path / name)


def test_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="is a folder"):
        open_sink(tmp_path)
    with pytest.raises(UsageError, match=r"written as \.txt, \.jsonl or \.npz"):
        open_sink(tmp_path / "out.csv")
    with pytest.raises(UsageError, match="at least 1"):
        open_sink(top_k=0)
    with pytest.raises(UsageError, match="3 labels do not fit: 'y' has 4 classes"):
        open_sink(labels=LABELS, outputs=[info("y", 1, 4, 1, 1)])
    with pytest.raises(UsageError, match="no output of the network holds class scores"):
        open_sink(labels=LABELS, outputs=[info("y", 1, 3, 7, 7)])
    open_sink(labels=LABELS, outputs=[info("y", 1, 3)])


def test_labels_plain_and_with_wordnet_ids(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeffcat\r\n\r\nn01440764 tench, Tinca tinca\nn01440764\n  née \n\n\n".encode())
    assert read_labels(path) == ("cat", "", "tench, Tinca tinca", "n01440764", "née")


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\x00", b"a\0b", None])
def test_bad_labels(tmp_path, content):
    path = tmp_path / "labels.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"labels\.txt: "):
        read_labels(path)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="there is no /dev/zero")
def test_labels_without_end():
    with pytest.raises(UsageError, match="too large"):
        read_labels("/dev/zero")


@pytest.mark.skipif(not SYNSETS.exists(), reason="no ../shared/images/synset_words.txt")
def test_real_labels():
    labels = read_labels(SYNSETS)
    assert len(labels) == 1000
    assert labels[:2] == ("tench, Tinca tinca", "goldfish, Carassius auratus")


def test_npz_through_a_link(tmp_path):
    (tmp_path / "link.npz").symlink_to("out.npz")
    with open_sink(tmp_path / "link.npz") as sink:
        sink.write(0, "f", {"y": np.ones(1)})
    assert (tmp_path / "link.npz").is_symlink()
    assert (tmp_path / "out.npz").is_file()


def test_labels_that_fit_several_outputs_are_refused():
    heads = [TensorInfo(name, np.dtype(np.float32), (1, 3)) for name in ("main", "auxiliary")]
    with pytest.raises(UsageError, match="3 labels fit 'main', 'auxiliary'"):
        check_sink(None, outputs=heads, labels=("a", "b", "c"))
    check_sink(None, outputs=[heads[0], TensorInfo("boxes", np.dtype(np.float32), (1, 9, 4))], labels=("a", "b", "c"))


DETECTIONS = {
    "boxes": np.zeros((1, 4), np.float32), "scores": np.ones(1, np.float32), "kinds": np.array([3], np.int64),
}  # fmt: skip


def tops(outputs, frames, **options):
    """The classes of each frame's JSONL."""
    stream = io.StringIO()
    with open_sink("-", stdout=stream, outputs=outputs, **options) as sink:
        for index, frame in enumerate(frames):
            sink.write(index, "f", frame)
    return [json.loads(line).get("top") for line in stream.getvalue().splitlines()]


def test_the_numbers_of_a_box_are_not_classes_where_there_is_one_box():
    outputs = [TensorInfo(name, array.dtype, None) for name, array in DETECTIONS.items()]
    assert tops(outputs, [DETECTIONS]) == [None]
    assert tops([info("y", 1, 3)], [{"y": LOGITS}])[0][0]["class"] == 1


def test_integers_are_classes_only_where_labels_say_so():
    outputs, frame = [TensorInfo("y", np.dtype(np.int64), (1, 3))], {"y": np.array([[1, 5, 2]])}
    assert tops(outputs, [frame]) == [None]
    assert tops(outputs, [frame], labels=LABELS)[0][0]["label"] == "dog"


def test_labels_tell_of_scores_whose_shape_is_not_known():
    outputs = [TensorInfo("y", np.dtype(np.float32), None)]
    assert tops(outputs, [{"y": LOGITS}, {"y": LOGITS[:, :2]}], labels=LABELS)[1] is None
    assert tops(outputs, [{"y": LOGITS}], labels=LABELS)[0][0]["label"] == "dog"


def test_npz_whose_first_frame_finds_the_disk_full(tmp_path, monkeypatch):
    monkeypatch.setattr(npz_module, "_unnamed_file", lambda _folder: FullDisk())
    sink = open_sink(tmp_path / "out.npz")
    sink.fail(0, "bad", "refused")
    with pytest.raises(CorepipeError, match="No space left"):
        sink.write(1, "a", {"y": np.zeros((1, 100), np.float32)})
    sink.close()
    with np.load(tmp_path / "out.npz") as data:
        assert data["failed_names"].tolist() == ["bad"]
        assert "y" not in data


def test_npz_holds_whole_frames_where_one_was_interrupted(tmp_path, monkeypatch):
    sink = open_sink(tmp_path / "out.npz")
    sink.write(0, "a", {"y": LOGITS, "z": LOGITS})
    written = []

    def interrupted(spool, array):
        written.append(array)
        append(spool, array)
        if len(written) == 2:
            raise KeyboardInterrupt

    append = npz_module._append
    monkeypatch.setattr(npz_module, "_append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sink.write(1, "b", {"y": LOGITS, "z": LOGITS})
    sink.close()
    with np.load(tmp_path / "out.npz") as data:
        assert data["frame_names"].tolist() == ["a"]
        assert data["y"].shape == data["z"].shape == (1, 3)


def test_npz_goes_on_behind_the_last_whole_frame_once_there_is_room(tmp_path, monkeypatch):
    disks = []

    def disk(_folder):
        disks.append(FullDisk())
        return disks[-1]

    monkeypatch.setattr(npz_module, "_unnamed_file", disk)
    small, large = LOGITS, np.arange(12, dtype=np.float32).reshape(1, 12)
    with open_sink(tmp_path / "out.npz") as sink:
        sink.write(0, "a", {"small": small, "large": large})
        with pytest.raises(CorepipeError, match="No space left"):
            sink.write(1, "b", {"small": small + 1, "large": large})
        monkeypatch.setattr(FullDisk, "write", io.BytesIO.write)
        sink.write(2, "c", {"small": small + 2, "large": large + 2})
    with np.load(tmp_path / "out.npz") as data:
        assert data["frame_names"].tolist() == ["a", "c"]
        np.testing.assert_array_equal(data["small"], [small[0], small[0] + 2])
        np.testing.assert_array_equal(data["large"], [large[0], large[0] + 2])


def test_classes_may_be_chosen_from_where_the_sink_shows_them():
    beside = [info("y", 1, 3), TensorInfo("order", np.dtype(np.int64), (1, 5))]
    assert may_hold_classes(beside)
    assert not may_hold_classes(beside[1:])
    assert may_hold_classes(beside[1:], ("a",) * 5)
    assert not may_hold_classes([TensorInfo("boxes", np.dtype(np.float32), None)])
