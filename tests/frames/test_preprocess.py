"""Images to tensors, held against a slow and plain reference."""

import itertools
import math
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from corepipe.errors import FrameError, UnknownNameError, UsageError
from corepipe.frames import Preprocess, check_frame, open_source, parse_options
from corepipe.network.model import TensorInfo

SHARED = Path(__file__).parents[3] / "shared"
F32 = np.dtype(np.float32)


def tensor(*shape, dtype=np.float32, name="data"):
    return TensorInfo(name, np.dtype(dtype), shape)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def reference(prepare, image):
    """Pixel by pixel, in float64; OpenCV only scales."""
    height, width = prepare.size
    have_h, have_w = image.shape[:2]

    def scaled(h, w):
        averaged = image
        if have_h >= 2 * h or have_w >= 2 * w:
            averaged = cv2.resize(image, (min(w, have_w), min(h, have_h)), interpolation=cv2.INTER_AREA)
        return cv2.resize(averaged, (w, h), interpolation=cv2.INTER_LINEAR)

    if prepare.resize == "stretch":
        image = scaled(height, width)
    elif prepare.resize == "letterbox":
        factor = min(height / have_h, width / have_w)
        h, w = (max(1, min(most, round(s * factor))) for s, most in ((have_h, height), (have_w, width)))
        framed = np.full((height, width, 3), 114, np.uint8)
        top, left = (height - h) // 2, (width - w) // 2
        framed[top : top + h, left : left + w] = scaled(h, w)
        image = framed
    else:
        cover = max(height / have_h, width / have_w)
        factor = cover * 256 / 224 if prepare.shorter is None else max(cover, prepare.shorter / min(have_h, have_w))
        image = scaled(max(height, round(have_h * factor)), max(width, round(have_w * factor)))
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        image = image[top : top + height, left : left + width]
    channels = {"rgb": (2, 1, 0), "bgr": (0, 1, 2), "gray": (0,)}[prepare.color]
    if prepare.color == "gray":
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[:, :, None]
    out = np.empty((len(channels), height, width))
    for k, c in enumerate(channels):
        for y in range(height):
            for x in range(width):
                out[k, y, x] = (float(image[y, x, c]) * prepare.scale - prepare.mean[k]) / prepare.std[k]
    out = out[None]
    return (out if prepare.layout == "nchw" else out.transpose(0, 2, 3, 1)).astype(prepare.dtype)


sizes = st.integers(1, 12)
numbers = st.floats(-2, 2, allow_nan=False).map(lambda v: round(v, 3))


@settings(max_examples=120, deadline=None)
@given(
    size=st.tuples(sizes, sizes),
    have=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    layout=st.sampled_from(["nchw", "nhwc"]),
    color=st.sampled_from(["rgb", "bgr", "gray"]),
    resize=st.sampled_from(["crop", "stretch", "letterbox"]),
    shorter=st.none() | st.integers(1, 20),
    scale=st.sampled_from([1, 1 / 255, 0.5]),
    mean=st.lists(numbers, min_size=3, max_size=3),
    std=st.lists(st.sampled_from([0.25, 1, 58.4]), min_size=3, max_size=3),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_reference(size, have, layout, color, resize, shorter, scale, mean, std, seed):
    count = 1 if color == "gray" else 3
    prepare = Preprocess(size, layout, color, scale, tuple(mean[:count]), tuple(std[:count]), resize, shorter)
    image = picture(*have, seed=seed)
    result = prepare(image)
    assert result.shape == prepare.shape
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, reference(prepare, image))
    slot = np.full(prepare.shape, np.nan, np.float32)
    assert prepare(image, slot) is slot
    np.testing.assert_array_equal(slot, result)


@settings(max_examples=60, deadline=None)
@given(
    have=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    resize=st.sampled_from(["crop", "stretch"]),
    shorter=st.none() | st.integers(1, 400),
    value=st.tuples(*[st.integers(0, 255)] * 3),
)
def test_an_even_image_stays_even_whatever_its_proportions(have, resize, shorter, value):
    assume(have[0] * have[1] < 200_000)
    image = np.full((*have, 3), value, np.uint8)
    prepare = Preprocess((9, 7), color="bgr", scale=1, resize=resize, shorter=shorter)
    expected = np.broadcast_to(np.array(value, np.float32)[None, :, None, None], prepare.shape)
    np.testing.assert_array_equal(prepare(image), expected)


def test_a_panorama_is_not_blown_up():
    image = picture(1, 100_000)
    image[0, 49_990:50_010] = 51
    assert (Preprocess((227, 227))(image) == np.float32(51 / 255)).all()
    large = np.full((1000, 1000, 3), 255, np.uint8)
    assert (Preprocess((227, 200), shorter=2**15)(large) == 1).all()
    assert Preprocess((227, 227), resize="letterbox")(image.transpose(1, 0, 2)).shape == (1, 3, 227, 227)


def test_the_middle_is_cut_out():
    image = np.zeros((256, 300, 3), np.uint8)
    image[14:241, 36:263] = 200
    prepare = Preprocess((227, 227), color="bgr", scale=1, mean=(104, 117, 123), shorter=256)
    np.testing.assert_array_equal(prepare(image)[0, 0], np.full((227, 227), 96, np.float32))
    image[13] = image[241] = 7
    assert (prepare(image)[0, 1] == 83).all()


def test_grey_and_alpha_images():
    prepare = Preprocess((8, 8), color="bgr", scale=1, resize="stretch")
    image = picture(8, 8)
    np.testing.assert_array_equal(prepare(np.dstack([image, image[:, :, 0]])), prepare(image))
    grey = image[:, :, 0]
    for form in (grey, grey[:, :, None]):
        np.testing.assert_array_equal(prepare(form), np.broadcast_to(grey.astype(np.float32), (1, 3, 8, 8)))
        single = Preprocess((8, 8), color="gray", scale=1, resize="stretch")(form)
        np.testing.assert_array_equal(single[0, 0], grey)


def test_views_are_read_as_they_are():
    image = picture(40, 60)
    prepare = Preprocess((16, 16))
    np.testing.assert_array_equal(prepare(image[::-1, ::2]), prepare(image[::-1, ::2].copy()))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.float16, np.float64])
def test_other_element_types(dtype):
    prepare = Preprocess.for_input(tensor(1, 3, 8, 8, dtype=dtype), color="bgr", resize="stretch")
    image = picture(8, 8)
    result = prepare(image)
    assert result.dtype == dtype
    if np.dtype(dtype).kind != "f":
        offset = 128 if dtype == np.int8 else 0
        np.testing.assert_array_equal(result[0].transpose(1, 2, 0).astype(int) + offset, image)


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8), None, "x"],
)
def test_what_is_no_image_is_refused(image):
    with pytest.raises(FrameError, match="not an image"):
        Preprocess((8, 8))(image)


def test_a_slot_that_does_not_fit_is_refused():
    prepare, image = Preprocess((8, 8)), picture(8, 8)
    read_only = np.empty((1, 3, 8, 8), np.float32)
    read_only.flags.writeable = False
    for out in (np.empty((3, 8, 8), np.float32), np.empty((1, 3, 8, 8)), read_only):
        with pytest.raises(FrameError, match="cannot write"):
            prepare(image, out)


def test_defaults_for_image_like_inputs():
    rgb = Preprocess.for_input(tensor(1, 3, 224, 200))
    assert (rgb.size, rgb.layout, rgb.color, rgb.resize) == ((224, 200), "nchw", "rgb", "crop")
    assert (rgb.scale, rgb.mean, rgb.std) == (1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert Preprocess.for_input(tensor(1, 224, 200, 3)).layout == "nhwc"
    assert Preprocess.for_input(tensor(1, 3, 224, 224), color="bgr").mean == (0.406, 0.456, 0.485)
    grey = Preprocess.for_input(tensor(1, 1, 28, 28))
    assert (grey.color, grey.scale, grey.mean, grey.std, grey.shorter) == ("gray", 1 / 255, (0,), (1,), 28)
    assert Preprocess.for_input(tensor(1, 3, 32, 32)).shorter == 32


def test_small_networks_see_the_whole_of_an_image_of_their_size():
    prepare = Preprocess.for_input(tensor(1, 1, 36, 60))
    image = np.zeros((36, 60, 3), np.uint8)
    image[:, 0] = image[0, :] = 255
    assert (prepare(image)[0, 0, :, 0] > 0.9).all()
    assert (prepare(image)[0, 0, 0, :] > 0.9).all()


def test_what_would_leave_few_values_of_whole_numbers_is_refused():
    pixels = tensor(1, 3, 224, 224, dtype=np.uint8)
    for options in ({"scale": 1 / 255}, {"mean": (104.0, 117.0, 123.0)}, {"std": (58.0,)}):
        with pytest.raises(UsageError, match="takes whole numbers"):
            Preprocess.for_input(pixels, **options)
    assert Preprocess.for_input(pixels, color="bgr").scale == 1
    assert Preprocess.for_input(tensor(1, 3, 224, 224, dtype=np.int8), mean=(128.0,)).mean == (128.0,) * 3


@pytest.mark.parametrize(
    "info",
    [
        tensor(1, 1000),
        tensor(2, 3, 224, 224),
        tensor(1, 4, 224, 224),
        tensor(1, 3, 4, 4),
        tensor(1, 3, 224, 224, dtype=bool),
        TensorInfo("data", F32, None),
    ],
)
def test_other_inputs_are_not_image_like(info):
    assert Preprocess.for_input(info) is None
    with pytest.raises(UsageError, match="is not an image"):
        Preprocess.for_input(info, scale=1.0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"scale": "1"}, (1, 0, 1)),
        ({"scale": "1/255"}, (1 / 255, 0, 1)),
        ({"mean": "104,117,123"}, (1, (104, 117, 123), 1)),
        ({"mean": "0.5", "std": "0.5"}, (1 / 255, 0.5, 0.5)),
        ({"mean": "127.5", "std": "127.5"}, (1, 127.5, 127.5)),
        ({"std": "255"}, (1, 0, 255)),
        ({"scale": "1", "mean": "104,117,123", "std": "1"}, (1, (104, 117, 123), 1)),
    ],
)
def test_options_as_written(options, expected):
    prepare = Preprocess.for_input(tensor(1, 3, 224, 224), **parse_options(**options))
    scale, mean, std = expected
    assert prepare.scale == scale
    assert prepare.mean == (mean if isinstance(mean, tuple) else (mean,) * 3)
    assert prepare.std == (std,) * 3


def test_parse_options():
    assert parse_options() == {}
    assert parse_options(layout="NHWC", color="BGR", resize="crop:256") == {
        "layout": "nhwc",
        "color": "bgr",
        "resize": "crop",
        "shorter": 256,
    }
    assert parse_options(mean="1, 2,3/2") == {"mean": (1, 2, 1.5)}


@pytest.mark.parametrize(
    "options",
    [
        {"mean": "a"},
        {"mean": ""},
        {"mean": "1,,2"},
        {"std": "nan"},
        {"scale": "1/0"},
        {"scale": "1/2/3"},
        {"scale": "inf"},
        {"scale": "1e999"},
        {"layout": "chw"},
        {"color": "hsv"},
        {"resize": "zoom"},
        {"resize": "crop:"},
        {"resize": "crop:-1"},
        {"resize": "stretch:9"},
        {"resize": "crop:0"},
        {"resize": "crop:99999999"},
        {"std": "0"},
        {"std": "1,2"},
        {"mean": "1,2,3,4"},
        {"color": "gray"},
        {"layout": "nhwc"},
        {"std": "1e-300"},
    ],
)
def test_bad_options_are_wrong_usage(options):
    with pytest.raises(UsageError):
        Preprocess.for_input(tensor(1, 3, 224, 224), **parse_options(**options))


def test_unknown_option_names_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'mean'"):
        Preprocess.for_input(tensor(1, 3, 224, 224), means=(1,))
    with pytest.raises(UnknownNameError, match="did you mean 'bgr'"):
        parse_options(color="bgrr")


def test_description_and_pickle():
    prepare = Preprocess.for_input(tensor(1, 3, 227, 227), **parse_options(mean="104,117,123", color="bgr"))
    assert prepare.describe() == (
        "images: centre crop 227x227 (scaled to cover 1.14x), bgr, (pixel * 1 - mean 104,117,123) / std 1, float32 nchw"
    )
    assert "pixel * 1/255 - mean 0.485,0.456,0.406" in Preprocess.for_input(tensor(1, 3, 9, 9)).describe()
    assert "pixel * 0 -" in Preprocess((8, 9), scale=0.0).describe()
    assert "pixel * 9.99989e-321 -" in Preprocess((8, 9), scale=1e-320).describe()
    assert "letterbox to 8x9" in Preprocess((8, 9), resize="letterbox").describe()
    assert "\n" not in prepare.describe()
    assert pickle.loads(pickle.dumps(prepare)) == prepare


def test_check_frame_adds_the_batch_axis_and_widens():
    info = tensor(1, 2, 3)
    for array in (
        np.ones((2, 3), np.uint8),
        np.ones((1, 2, 3), np.float64),
        np.ones((1, 2, 3), ">f4"),
        np.ones((2, 3), np.int64),
        np.ones((2, 3), bool),
        np.asfortranarray(np.ones((2, 3), np.float32)),
        [[1.0] * 3] * 2,
    ):
        result = check_frame(array, [info], "f")["data"]
        assert (result.shape, result.dtype) == ((1, 2, 3), F32)
        assert (result == 1).all()
    fitting = np.ones((1, 2, 3), np.float32)
    assert check_frame({"data": fitting}, [info], "f")["data"] is fitting


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([2**24 + 1]), np.float32),
        (np.array([-1], np.int8), np.uint64),
        (np.array([256]), np.uint8),
        (np.array([1.0]), np.int64),
        (np.array([1e300]), np.float32),
        (np.array([1j]), np.float32),
        (np.array(["1"]), np.float32),
        (np.array([1]), bool),
        (np.array([None]), np.float32),
    ],
)
def test_values_that_would_be_lost_are_refused(array, dtype):
    with pytest.raises(
        FrameError, match=r"frame 3: input 'data': expected .*\[1\], found .*\[1\], whose values do not fit"
    ):
        check_frame(array, [tensor(1, dtype=dtype)], "frame 3")


def test_nan_and_infinity_pass():
    values = np.array([np.nan, np.inf, -np.inf, math.pi])
    result = check_frame(values, [tensor(1, 4)], "f")["data"]
    np.testing.assert_array_equal(result[0], values.astype(np.float32))


def test_check_frame_names_what_is_wrong():
    info = tensor(1, 2, 3)
    with pytest.raises(FrameError, match=r"x: input 'data': expected float32\[1x2x3\], found float64\[3x2\]"):
        check_frame(np.zeros((3, 2)), [info], "x")
    with pytest.raises(FrameError, match="expected float32"):
        check_frame(np.zeros((2, 2, 3)), [info], "x")
    pair = [tensor(1, name="image"), tensor(1, name="size")]
    with pytest.raises(FrameError, match="x: one array for 2 inputs"):
        check_frame(np.zeros(1), pair, "x")
    with pytest.raises(FrameError, match=r"x: no array for input 'size', expected float32\[1\]"):
        check_frame({"image": np.zeros(1)}, pair, "x")
    with pytest.raises(FrameError, match="x: unknown input 'imag'; did you mean 'image'"):
        check_frame({"imag": np.zeros(1), "size": np.zeros(1)}, pair, "x")
    with pytest.raises(FrameError, match="not an array"):
        check_frame([[1, 2], [3]], [info], "x")


def test_inputs_of_unknown_shape_take_any():
    result = check_frame(np.zeros((5, 6)), [TensorInfo("data", F32, None)], "x")
    assert result["data"].shape == (5, 6)


@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="no ../shared/models")
def test_a_trained_network_recognises_photographs():
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(SHARED / "models" / "squeezenet1.0-imagenet.onnx", options)
    written = {"color": "bgr", "scale": "1", "mean": "104,117,123", "std": "1", "resize": "crop:256"}
    prepare = Preprocess.for_input(tensor(1, 3, 227, 227), **parse_options(**written))
    synsets = [line.split()[0] for line in (SHARED / "images" / "synset_words.txt").read_text().splitlines()]
    with open_source(SHARED / "images" / "imagenet") as source:
        frames = list(itertools.islice(source, 0, 400, 10))
    right = 0
    for frame in frames:
        (logits,) = session.run(None, {"data": prepare(frame.data)})
        right += frame.name.startswith(synsets[int(logits.argmax())])
    assert right >= 20


def test_opencv_keeps_to_one_thread():
    assert cv2.getNumThreads() == 1


def test_a_crop_larger_than_the_shorter_side_says_what_it_does():
    assert "or as much as it takes to cover that" in Preprocess((227, 227), shorter=100).describe()
    assert "as much as" not in Preprocess((227, 227), shorter=256).describe()


@pytest.mark.parametrize("turned", [False, True], ids=["wide", "high"])
def test_a_side_that_shrinks_is_averaged_where_the_other_grows(turned):
    """Stripes of one pixel, 18 in each that is left: what averages sees grey, what samples sees black or white."""
    stripes = np.zeros((4, 18 * 16, 3), np.uint8)
    stripes[:, ::2] = 255
    image, size = (stripes.transpose(1, 0, 2), (16, 32)) if turned else (stripes, (32, 16))
    prepare = Preprocess(size, color="bgr", scale=1, resize="stretch")
    np.testing.assert_allclose(prepare(np.ascontiguousarray(image)), 127.5, atol=1)
