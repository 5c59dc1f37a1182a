"""`.npy`, `.npz` and piped arrays as sources of frames."""

import io
import pickle
import zipfile

import numpy as np
import pytest

from corepipe.errors import FrameError, UsageError
from corepipe.frames import arrays as arrays_module
from corepipe.frames import check_frame, open_source
from corepipe.network.model import TensorInfo

F32 = np.dtype(np.float32)
INPUT = TensorInfo("data", F32, (1, 3, 4, 5))
PAIR = (TensorInfo("a", F32, (1, 2)), TensorInfo("b", np.dtype(np.int64), (1, 3)))


def numbers(*shape, dtype=np.float32):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def npy_bytes(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def header_of(shape, descr="<f4", order=False, version=(1, 0)):
    buffer = io.BytesIO()
    body = {"descr": descr, "fortran_order": order, "shape": shape}
    if version == (2, 0):
        np.lib.format.write_array_header_2_0(buffer, body)
    else:
        np.lib.format.write_array_header_1_0(buffer, body)
    return buffer.getvalue()


def save(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    return path


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ((1, 3, 4, 5), 1),
        ((3, 4, 5), 1),
        ((7, 3, 4, 5), 7),
        ((7, 1, 3, 4, 5), 7),
    ],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_input_shape_decides_which_axis_counts_frames(tmp_path, shape, count, order):
    array = numbers(*shape)
    source = open_source(save(tmp_path / "x.npy", np.asarray(array, order=order)), inputs=[INPUT])
    assert source.length == count
    frames = list(source)
    assert not frames[0].is_image
    assert [f.name for f in frames] == (["x.npy"] if count == 1 else [f"x.npy#{i}" for i in range(count)])
    assert all(f.data.flags.c_contiguous for f in frames)
    np.testing.assert_array_equal(np.concatenate([f.data for f in frames]), array.reshape(-1, 3, 4, 5))


def test_a_fixed_batch_takes_groups(tmp_path):
    tensor = TensorInfo("x", F32, (4, 2))
    frames = list(open_source(save(tmp_path / "x.npy", numbers(12, 2)), inputs=[tensor]))
    assert [f.data.shape for f in frames] == [(4, 2)] * 3
    with pytest.raises(FrameError, match="does not fit"):
        open_source(save(tmp_path / "x.npy", numbers(10, 2)), inputs=[tensor])


def test_without_inputs_the_first_axis_counts(tmp_path):
    frames = list(open_source(save(tmp_path / "x.npy", numbers(3, 2))))
    assert [f.data.tolist() for f in frames] == [[0, 1], [2, 3], [4, 5]]
    scalars = list(open_source(save(tmp_path / "x.npy", numbers(3))))
    assert [f.data.shape for f in scalars] == [()] * 3
    with pytest.raises(FrameError, match="a single number"):
        open_source(save(tmp_path / "x.npy", np.float32(1)))


def test_other_versions_and_byte_orders(tmp_path):
    content = header_of((2, 3, 4, 5), ">i2", version=(2, 0)) + numbers(2, 3, 4, 5, dtype=">i2").tobytes()
    frames = list(open_source(save(tmp_path / "x.npy", content), inputs=[INPUT]))
    checked = check_frame(frames[1].data, [INPUT], frames[1].name)["data"]
    assert checked.dtype == F32
    assert checked.dtype.isnative
    np.testing.assert_array_equal(checked, numbers(2, 3, 4, 5)[1:])


OBJECTS = io.BytesIO()
np.save(OBJECTS, np.array([{}, None], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an .npy array"),
        (b"\x93NUM", "not an .npy array"),
        (b"GIF89a........", "not an .npy array"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4'\n\n", "damaged .npy header"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "damaged .npy header"),
        (b"\x93NUMPY\x09\x00\x10\x00", "format 9.0 is not read"),
        (OBJECTS.getvalue(), "never unpickled"),
        (npy_bytes(np.array(["a", "b"])), "not numbers"),
        (npy_bytes(np.zeros(3, [("a", "f4")])), "not numbers"),
        (npy_bytes(np.zeros(3, np.complex64)), "not numbers"),
        (
            npy_bytes(numbers(2, 3, 9, 9)),
            r"float32\[2x3x9x9\] does not fit input 'data', float32\[1x3x4x5\]: .*Nx3x4x5",
        ),
        (npy_bytes(numbers(0, 3, 4, 5)), "holds no frame"),
        (header_of((2**40, 3, 4, 5)), "truncated: the header declares 263882790666240 bytes"),
        (header_of((-1, 3, 4, 5)), "damaged .npy header"),
        (npy_bytes(numbers(2, 3, 4, 5))[:-1], "is truncated"),
        (npy_bytes(numbers(2, 3, 4, 5)) * 2, "goes on after its array"),
    ],
)
def test_bad_npy_files(tmp_path, content, message):
    with pytest.raises(FrameError, match=rf"x\.npy: .*{message}"):
        open_source(save(tmp_path / "x.npy", content), inputs=[INPUT])


def test_frames_without_a_byte_are_refused(tmp_path):
    with pytest.raises(FrameError, match="holds no frame"):
        open_source(save(tmp_path / "x.npy", header_of((10**18, 0))))


def test_large_frames_are_refused_before_they_are_allocated(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays_module, "MAX_FRAME_BYTES", 100)
    with pytest.raises(FrameError, match="one frame of more than"):
        open_source(save(tmp_path / "x.npy", numbers(2, 30)))
    with pytest.raises(FrameError, match=r"Fortran order of more than.*ascontiguousarray"):
        open_source(save(tmp_path / "x.npy", np.asfortranarray(numbers(20, 3))))


def test_npy_is_for_one_input(tmp_path):
    with pytest.raises(FrameError, match=r"the network has 2 \(a, b\); save an \.npz"):
        open_source(save(tmp_path / "x.npy", numbers(1, 2)), inputs=PAIR)


def test_npz_with_an_entry_for_each_input(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, b=numbers(4, 3, dtype=np.int64), a=numbers(4, 2), other=numbers(1))
    with open_source(path, inputs=PAIR) as source:
        assert source.length == 4
        frames = list(source)
    assert [f.name for f in frames] == [f"x.npz#{i}" for i in range(4)]
    assert list(frames[3].data) == ["a", "b"]
    np.testing.assert_array_equal(frames[3].data["b"], [[9, 10, 11]])
    np.testing.assert_array_equal(frames[3].data["a"], [[6, 7]])


def test_npz_with_an_entry_for_each_frame(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, f10=numbers(3, 4, 5), f2=numbers(1, 3, 4, 5), f1=numbers(2, 3, 4, 5))
    source = open_source(path, inputs=[INPUT])
    assert source.length == 4
    frames = list(source)
    assert [f.name for f in frames] == ["x.npz:f1#0", "x.npz:f1#1", "x.npz:f2", "x.npz:f10"]
    assert all(f.data["data"].shape == (1, 3, 4, 5) for f in frames)


def test_npz_without_inputs(tmp_path):
    np.savez(tmp_path / "x.npz", a=numbers(2, 3), b=numbers(2, 1))
    frames = list(open_source(tmp_path / "x.npz"))
    assert {k: v.tolist() for k, v in frames[1].data.items()} == {"a": [3, 4, 5], "b": [1]}


def test_npz_errors(tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(b"PK")
    with pytest.raises(FrameError, match=r"not an \.npz file"):
        open_source(path)
    np.savez(path)
    with pytest.raises(FrameError, match="holds no array"):
        open_source(path)
    np.savez(path, a=numbers(2, 2))
    with pytest.raises(FrameError, match=r"needs an entry for each input \(a, b\); it holds a"):
        open_source(path, inputs=PAIR)
    np.savez(path, a=numbers(2, 2), b=numbers(3, 3, dtype=np.int64))
    with pytest.raises(FrameError, match="different numbers of frames: a 2 frames, b 3 frames"):
        open_source(path, inputs=PAIR)
    with pytest.raises(UsageError, match="no such file"):
        open_source(tmp_path / "y.npz")


def test_npz_never_unpickles(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("data.npy", header_of((1,), "|O") + pickle.dumps(Bomb()))
    with pytest.raises(FrameError, match="never unpickled"):
        open_source(tmp_path / "x.npz", inputs=[INPUT])


def test_an_npz_that_inflates_without_end_is_read_frame_by_frame(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("data.npy", "w") as entry:
        entry.write(header_of((50_000, 3, 4, 5)))
        for _ in range(500):
            entry.write(bytes(100 * 240))
    with open_source(path, inputs=[INPUT]) as source:
        assert source.length == 50_000
        assert next(source).data["data"].nbytes == 240
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.npy", header_of((2**40, 3, 4, 5)))
    with pytest.raises(FrameError, match="truncated"):
        open_source(path, inputs=[INPUT])


def test_npz_damaged_in_the_middle(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, data=numbers(400, 3, 4, 5))
    content = bytearray(path.read_bytes())
    content[50_000] ^= 255
    path.write_bytes(content)
    source = open_source(path, inputs=[INPUT])
    with pytest.raises(FrameError, match=r"entry 'data': damaged in frame \d+: Bad CRC-32"):
        list(source)


def test_encrypted_npz_is_one_error(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, data=numbers(1, 3, 4, 5))
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    content[6] |= 1
    path.write_bytes(content)
    with pytest.raises(FrameError, match="entry 'data' cannot be read"):
        open_source(path, inputs=[INPUT])


def piped(*parts, inputs=(INPUT,)):
    content = b"".join(p if isinstance(p, bytes) else npy_bytes(p) for p in parts)
    return open_source("-", stdin=io.BytesIO(content), inputs=inputs)


def test_pipe_of_arrays():
    source = piped(numbers(3, 4, 5), numbers(1, 3, 4, 5), numbers(2, 3, 4, 5), np.asfortranarray(numbers(3, 4, 5)))
    assert source.length is None
    frames = list(source)
    assert [f.name for f in frames] == [f"stdin#{i}" for i in range(5)]
    np.testing.assert_array_equal(frames[3].data, numbers(2, 3, 4, 5)[1:])
    np.testing.assert_array_equal(frames[4].data, numbers(1, 3, 4, 5))


def test_pipe_for_several_inputs():
    a, b = numbers(2), numbers(1, 3, dtype=np.int64)
    frames = list(piped(a, b, a + 1, b + 1, inputs=PAIR))
    assert len(frames) == 2
    np.testing.assert_array_equal(frames[1].data["b"], [[1, 2, 3]])
    with pytest.raises(FrameError, match="ends in the middle of frame 1; it has only a"):
        list(piped(a, b, a, inputs=PAIR))
    with pytest.raises(FrameError, match="2 frames in one array"):
        list(piped(numbers(2, 2), b, inputs=PAIR))


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (npy_bytes(numbers(3, 4, 5))[:5], "array 1: not an .npy array"),
        (npy_bytes(numbers(3, 4, 5))[:90], "array 1: damaged .npy header"),
        (npy_bytes(numbers(3, 4, 5))[:-7], "array 1: truncated in frame 0: 233 of 240 bytes are there"),
        (header_of((2**50, 3, 4, 5)) + bytes(240), "array 1: truncated in frame 1: 0 of 240 bytes"),
        (b"something else", "array 1: not an .npy array"),
        (numbers(3, 4, 6), "array 1: .*does not fit"),
    ],
)
def test_a_pipe_that_breaks_gives_the_frames_before(rest, message):
    source = piped(numbers(3, 4, 5), rest)
    next(source)
    with pytest.raises(FrameError, match=f"stdin: {message}"):
        list(source)


def test_empty_pipe_and_terminal(monkeypatch):
    with pytest.raises(FrameError, match="stdin: is empty"):
        list(piped())

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    with pytest.raises(UsageError, match="pipe them in"):
        open_source("-")
