"""From an image to an input tensor."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as _field
from functools import cached_property
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from corepipe.errors import FrameError, UnknownNameError, UsageError
from corepipe.frames.options import COLORS, LAYOUTS, RESIZES, parse_options
from corepipe.network.inputs import check_frame
from corepipe.network.model import TensorInfo

__all__ = ["Preprocess", "check_frame", "parse_options"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Of red, green and blue on the scale 0 to 1."""
IMAGENET_STD = (0.229, 0.224, 0.225)

CROP_RATIO = 256 / 224
"""Without another size, an image to be cropped is first scaled to this many times the crop."""

LETTERBOX_GREY = 114
"""Pixel value of the bars that `letterbox` adds."""

_SMALL = 64
"""Up to this many pixels a side, networks look at the whole image (CIFAR, MNIST), not at its middle."""

_MOST_ALIKE = 32
"""Where more of the 256 pixel values become one in an integer input, they were rounded or cut off by mistake."""

_MAX_SCALED_PIXELS = 16_000_000
"""An image that would grow beyond this on its way to a crop (a line of pixels, say) loses its far ends first."""


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes an input tensor: each value is `(pixel * scale - mean) / std`, pixels being 0 to 255.

    Attributes:
        size: height and width of the tensor.
        layout: `nchw` or `nhwc`.
        color: order of the channels, and of `mean` and `std`: `rgb`, `bgr`, or `gray` for a single channel.
        scale: pixels are multiplied by this first.
        mean, std: one number, or one for each channel.
        resize: `crop` scales the image so that it covers `size` with some margin and cuts out the middle; `stretch`
            ignores proportions; `letterbox` fits the whole image in and fills the rest with grey.
        shorter: for `crop`: length of the image's shorter side before cutting; None for `CROP_RATIO` times `size`.
        dtype: element type of the tensor; for integers values are rounded and clipped.

    Raises:
        UsageError: a value that cannot be.

    Example:
        >>> prepare = Preprocess((227, 227), color="bgr", scale=1, mean=(104, 117, 123), std=(1,))
        >>> prepare(np.zeros((300, 400, 3), np.uint8)).shape
        (1, 3, 227, 227)
    """

    size: tuple[int, int]
    layout: Literal["nchw", "nhwc"] = "nchw"
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resize: Literal["crop", "stretch", "letterbox"] = "crop"
    shorter: int | None = None
    dtype: np.dtype[Any] = _field(default=np.dtype(np.float32))

    def __post_init__(self) -> None:
        for what, value, known in (
            ("layout", self.layout, LAYOUTS),
            ("color", self.color, COLORS),
            ("resize", self.resize, RESIZES),
        ):
            if value not in known:
                raise UnknownNameError(what, str(value), known)
        if len(self.size) != 2 or min(self.size) < 1:
            raise UsageError(f"size {self.size}: give a height and a width of at least 1")
        if self.shorter is not None and not 1 <= self.shorter <= 2**15:
            raise UsageError(f"crop:{self.shorter}: give the length of the shorter side in pixels, 1 to {2**15}")
        for what in ("mean", "std"):
            values = tuple(float(v) for v in getattr(self, what))
            if len(values) not in (1, self.channels):
                raise UsageError(f"{what} has {len(values)} numbers; give 1 or {self.channels} for {self.color}")
            object.__setattr__(self, what, values * (self.channels // len(values)))
        object.__setattr__(self, "dtype", np.dtype(self.dtype))
        if self.dtype.kind not in "iuf":
            raise UsageError(f"an image cannot become a tensor of {self.dtype}")
        if 0 in self.std or not np.isfinite(self._table).all():
            numbers = f"scale {self.scale:g}, mean {_join(self.mean)}, std {_join(self.std)}"
            raise UsageError(f"{numbers}: these do not give finite values of {self.dtype}")

    @property
    def channels(self) -> int:
        """1 for `gray`, else 3."""
        return 1 if self.color == "gray" else 3

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the tensor, its batch axis of 1 included."""
        if self.layout == "nchw":
            return (1, self.channels, *self.size)
        return (1, *self.size, self.channels)

    @cached_property
    def _table(self) -> NDArray[Any]:
        """The tensor value of every pixel value: channels x 256."""
        mean, std = np.array(self.mean)[:, None], np.array(self.std)[:, None]
        with np.errstate(all="ignore"):
            values: NDArray[Any] = (np.arange(256.0) * self.scale - mean) / std
            if self.dtype.kind in "iu":
                if not np.isfinite(values).all():
                    return values
                limits = np.iinfo(self.dtype)
                values = np.clip(np.rint(values), limits.min, limits.max)
            return values.astype(self.dtype)

    @classmethod
    def for_input(cls, tensor: TensorInfo, **overrides: Any) -> Preprocess | None:
        """What an image-like input most likely wants, except for what is given.

        Image-like is 1 x C x H x W or 1 x H x W x C with C of 1 or 3 and sides of 8 or more. Then: RGB (gray for one
        channel), 0 to 1, ImageNet's mean and std (none for gray), centre crop. Integer inputs get plain pixels. If any
        of `scale`, `mean` and `std` is given, the others become neutral: mean 0, std 1, and scale 1/255 if all means
        and stds given are at most 1 and the input is of floating point, else 1.

        Args:
            tensor: an input of the network.
            **overrides: fields of `Preprocess`, as `parse_options` gives them.

        Returns:
            None if the input is not image-like and nothing is overridden.

        Raises:
            UsageError: an override that cannot be, or any for an input that is not image-like.
        """
        known = {"layout", "color", "scale", "mean", "std", "resize", "shorter"}
        for key in overrides:
            if key not in known:
                raise UnknownNameError("preprocessing option", key, known)
        found = _image_axes(tensor, overrides.get("layout"))
        if found is None:
            if not overrides:
                return None
            layout = f" in layout {overrides['layout']}" if "layout" in overrides else ""
            raise UsageError(
                f"input {tensor.name!r}, {tensor}, is not an image{layout}: preprocessing options do not apply; "
                f"feed arrays (.npy, .npz) instead"
            )
        layout, size, channels = found
        color = overrides.get("color", "gray" if channels == 1 else "rgb")
        if color in COLORS and (color == "gray") != (channels == 1):
            raise UsageError(
                f"input {tensor.name!r}, {tensor}, has {channels} channel(s), which color {color!r} has not"
            )
        options = {"size": size, "layout": layout, "color": color, "dtype": tensor.dtype}
        if max(size) <= _SMALL:
            options["shorter"] = min(size)  # scaled to cover the input, no more
        made = cls(**(options | _normalisation(tensor.dtype, color, overrides) | overrides))
        if tensor.dtype.kind in "iu" and any(max(Counter(v).values()) > _MOST_ALIKE for v in made._table.tolist()):
            raise UsageError(
                f"input {tensor.name!r}, {tensor}, takes whole numbers, and by this scale, mean and std many pixels "
                f"become the same; leave them out where it takes plain pixels"
            )
        return made

    def describe(self) -> str:
        """One line that says all of it."""
        height, width = self.size
        if self.resize == "crop":
            margin = f"shorter side to {self.shorter}" if self.shorter else f"scaled to cover {CROP_RATIO:.3g}x"
            if self.shorter and self.shorter < max(self.size):
                margin += ", or as much as it takes to cover that"
            how = f"centre crop {height}x{width} ({margin})"
        else:
            how = f"{self.resize} to {height}x{width}"
        inverse = 1 / self.scale if self.scale else math.inf
        whole = abs(self.scale) < 1 and math.isfinite(inverse) and math.isclose(inverse, round(inverse), rel_tol=1e-12)
        scale = f"1/{round(inverse)}" if whole else f"{self.scale:g}"
        return (
            f"images: {how}, {self.color}, (pixel * {scale} - mean {_join(self.mean)}) / std {_join(self.std)}, "
            f"{self.dtype} {self.layout}"
        )

    def __call__(self, image: NDArray[np.uint8], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Make the tensor of one image.

        Args:
            image: height x width x 3 (BGR), or x 4 (BGR and alpha, which is dropped), or height x width (grey).
            out: a writable array of `shape` and `dtype` to write into, such as a slot of shared memory.

        Returns:
            `out`, or a new C-contiguous array.

        Raises:
            FrameError: not such an image, or `out` does not fit.
        """
        image = _as_bgr(image)
        if out is None:
            out = np.empty(self.shape, self.dtype)
        elif out.shape != self.shape or out.dtype != self.dtype or not out.flags.writeable:
            raise FrameError(
                f"cannot write an image as {self.dtype}{list(self.shape)} into {out.dtype}{list(out.shape)}"
            )
        image = self._fit(image)
        if self.color == "gray":
            image = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)[:, :, None]
        elif self.color == "rgb":
            image = image[:, :, ::-1]
        target = out[0] if self.layout == "nchw" else out[0].transpose(2, 0, 1)
        for channel in range(self.channels):
            np.take(self._table[channel], image[:, :, channel], out=target[channel], mode="clip")
        return out

    def _fit(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The image brought to `size`."""
        (have_h, have_w), (height, width) = image.shape[:2], self.size
        if self.resize == "stretch":
            return _scaled(image, height, width)
        if self.resize == "letterbox":
            factor = min(height / have_h, width / have_w)
            inner_h = max(1, min(height, round(have_h * factor)))
            inner_w = max(1, min(width, round(have_w * factor)))
            top, left = (height - inner_h) // 2, (width - inner_w) // 2
            framed = np.full((height, width, 3), LETTERBOX_GREY, np.uint8)
            framed[top : top + inner_h, left : left + inner_w] = _scaled(image, inner_h, inner_w)
            return framed
        cover = max(height / have_h, width / have_w)
        factor = cover * CROP_RATIO if self.shorter is None else max(cover, self.shorter / min(have_h, have_w))
        if have_h * have_w * factor**2 > _MAX_SCALED_PIXELS:
            image = _trimmed(image, height / factor, width / factor)
        scaled_h = max(height, round(image.shape[0] * factor))
        scaled_w = max(width, round(image.shape[1] * factor))
        top, left = (scaled_h - height) // 2, (scaled_w - width) // 2
        return _scaled(image, scaled_h, scaled_w)[top : top + height, left : left + width]


def _scaled(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Bilinear, averaged over areas where the image shrinks to half or less."""
    have_h, have_w = image.shape[:2]
    if (have_h, have_w) == (height, width):
        return image
    if have_h < 2 * height and have_w < 2 * width:
        return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    # OpenCV averages only where no side grows: one that does grows afterwards.
    inner_h, inner_w = min(have_h, height), min(have_w, width)
    averaged = np.asarray(cv2.resize(image, (inner_w, inner_h), interpolation=cv2.INTER_AREA), np.uint8)
    return _scaled(averaged, height, width)


def _trimmed(image: NDArray[np.uint8], height: float, width: float) -> NDArray[np.uint8]:
    """The middle of an image, well beyond the given sides in its own pixels."""
    for axis, side in enumerate((height, width)):
        have, keep = image.shape[axis], math.ceil(2 * side) + 16
        keep += (have - keep) % 2
        if have > keep:
            start = (have - keep) // 2
            image = image[start : start + keep] if axis == 0 else image[:, start : start + keep]
    return image


def _as_bgr(image: NDArray[Any]) -> NDArray[np.uint8]:
    good = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size > 0
    if good and image.ndim == 3 and image.shape[2] in (1, 3, 4):
        return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[:, :, :3]
    if good and image.ndim == 2:
        return np.repeat(image[:, :, None], 3, axis=2)
    found = f"{image.dtype}{list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
    raise FrameError(f"not an image: {found}; expected uint8 of height x width x 3")


def _image_axes(tensor: TensorInfo, layout: str | None) -> tuple[str, tuple[int, int], int] | None:
    """Layout, (height, width) and channels of an image-like input."""
    shape = tensor.shape
    if shape is None or len(shape) != 4 or shape[0] != 1 or tensor.dtype.kind not in "iuf":
        return None
    for name, (height, width, channels) in (("nchw", (2, 3, 1)), ("nhwc", (1, 2, 3))):
        sides = (shape[height], shape[width])
        if layout in (None, name) and shape[channels] in (1, 3) and min(sides) >= 8:
            return name, sides, shape[channels]
    if layout is not None and layout not in LAYOUTS:
        raise UnknownNameError("layout", layout, LAYOUTS)
    return None


def _normalisation(dtype: np.dtype[Any], color: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Scale, mean and std where not all are given."""
    if any(key in given for key in ("scale", "mean", "std")):
        numbers = [abs(v) for key in ("mean", "std") for v in given.get(key, ())]
        unit = bool(numbers) and max(numbers) <= 1 and dtype.kind == "f"
        return {"scale": 1 / 255 if unit else 1.0, "mean": (0.0,), "std": (1.0,)}
    if dtype.kind != "f":
        return {"scale": 1.0, "mean": (128.0 if dtype == np.int8 else 0.0,), "std": (1.0,)}
    if color == "gray":
        return {"scale": 1 / 255, "mean": (0.0,), "std": (1.0,)}
    order = slice(None) if color == "rgb" else slice(None, None, -1)
    return {"scale": 1 / 255, "mean": IMAGENET_MEAN[order], "std": IMAGENET_STD[order]}


def _join(values: Sequence[float]) -> str:
    return ",".join(f"{v:g}" for v in (values[:1] if len(set(values)) == 1 else values))
