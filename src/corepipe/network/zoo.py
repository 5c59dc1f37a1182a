"""The five networks of the Pipe-it paper, built in code with seeded random weights: no file, no download.

Batch 1, float32, input `data` [1, 3, size, size], output `prob` [1, 1000] (softmax); dropout and heads for
training only are left out. Parameters are what training sets (of batch normalisation: scale and bias). MACs are
the multiply-adds of convolutions and fully connected layers for one frame; FLOPs are twice that.

| name | size | parameters | MACs |
|---|---|---|---|
| `alexnet` | 227 | 60,965,224 | 724,406,816 |
| `googlenet` | 224 | 6,998,552 | 1,582,671,872 |
| `mobilenet` | 224 | 4,231,976 | 568,740,352 |
| `resnet50` | 224 | 25,557,032 | 3,857,973,248 |
| `squeezenet` | 227 | 1,248,424 | 861,339,936 |

Which variant each is, and what was published about it:

- `alexnet`: Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks" (NIPS 2012), as
  Caffe's `bvlc_alexnet`: LRN before pooling, convolutions 2, 4 and 5 in two groups. 61 M parameters, 724 M MACs
  (Sze et al., arXiv 1703.09039, table II).
- `googlenet`: Szegedy et al., arXiv 1409.4842, as Caffe's `bvlc_googlenet`: LRN, no auxiliary heads. 7 M
  parameters (Sze et al.), a budget of 1.5 G MACs (Szegedy et al., section 1); Caffe's network counts 1.58 G.
- `mobilenet`: MobileNet v1, width 1.0, Howard et al., arXiv 1704.04861: 4.2 M parameters, 569 M MACs (table 4).
- `resnet50`: He et al., arXiv 1512.03385, version 1: the stride is in the first 1x1 convolution of a stage. 3.8 G
  MACs (table 1), 25.5 M parameters (Sze et al.). With the stride in the 3x3 one ("v1.5") it would be 4.1 G MACs.
  Of the 3.86 G of this network loading drops a tenth, which those strides skip (`corepipe.network.strides`).
- `squeezenet`: SqueezeNet v1.0, Iandola et al., arXiv 1602.07360: 1,248,424 parameters (table 1). The authors'
  Caffe network takes 227 x 227 and pads conv10 by 1; they give 1.72 GFLOPs an image, which is 0.86 G MACs.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx

from corepipe.errors import UnknownNameError, UsageError
from corepipe.network._zoo_builder import GraphBuilder, Tensor

NAMES = ("alexnet", "googlenet", "mobilenet", "resnet50", "squeezenet")
"""The networks that `build` knows."""

_CLASSES = 1000

_LOGIT_GAIN = 0.03
"""Of the last layer: keeps the softmax from saturating even for frames that were not normalised."""


def build(name: str, seed: int = 0) -> onnx.ModelProto:
    """One of the five networks, with weights drawn from `seed`.

    The weights are random, scaled for normalised frames (mean 0, standard deviation about 1): activations stay
    finite and varied, the output depends on the frame and the softmax is far from saturated. Frames of 0..255 work
    too, with a more peaked softmax.

    Args:
        name: one of `NAMES`.
        seed: at least 0; the same seed gives the same bytes (with the same versions of numpy and onnx).

    Returns:
        A model of IR version 8 and opset 17 that passes the ONNX checker; its weights are initializers.

    Raises:
        UnknownNameError: `name` is not one of `NAMES`.
        UsageError: `seed` is negative.

    Example:
        >>> model = build("squeezenet")
        >>> [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
        [1, 3, 227, 227]
    """
    if name not in _NETWORKS:
        raise UnknownNameError("network", name, NAMES)
    if seed < 0:
        raise UsageError(f"cannot build network {name!r} with seed {seed}: give a whole number from 0 up")
    size, write = _NETWORKS[name]
    builder = GraphBuilder(name, size, seed)
    return builder.finish(write(builder, builder.data))


def _alexnet(g: GraphBuilder, x: Tensor) -> Tensor:
    x = g.lrn(g.conv_relu(x, "conv1", 96, 11, stride=4), "norm1")
    x = g.max_pool(x, "pool1", 3, 2)
    x = g.lrn(g.conv_relu(x, "conv2", 256, 5, pad=2, groups=2), "norm2")
    x = g.max_pool(x, "pool2", 3, 2)
    x = g.conv_relu(x, "conv3", 384, 3, pad=1)
    x = g.conv_relu(x, "conv4", 384, 3, pad=1, groups=2)
    x = g.conv_relu(x, "conv5", 256, 3, pad=1, groups=2)
    x = g.flatten(g.max_pool(x, "pool5", 3, 2), "flat5")
    x = g.relu(g.fully_connected(x, "fc6", 4096))
    x = g.relu(g.fully_connected(x, "fc7", 4096))
    return g.fully_connected(x, "fc8", _CLASSES, gain=_LOGIT_GAIN)


_INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
"""Filters: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection (Szegedy et al., table 1)."""


def _googlenet(g: GraphBuilder, x: Tensor) -> Tensor:
    x = g.max_pool(g.conv_relu(x, "conv1", 64, 7, stride=2, pad=3), "pool1", 3, 2)
    x = g.conv_relu(g.lrn(x, "norm1"), "conv2_reduce", 64, 1)
    x = g.lrn(g.conv_relu(x, "conv2", 192, 3, pad=1), "norm2")
    x = g.max_pool(x, "pool2", 3, 2)
    for stage, filters in _INCEPTIONS.items():
        x = _inception(g, x, f"inception_{stage}", filters)
        if stage in ("3b", "4e"):
            x = g.max_pool(x, f"pool{stage[0]}", 3, 2)
    x = g.flatten(g.global_average(x, "pool5"), "flat5")
    return g.fully_connected(x, "fc", _CLASSES, gain=_LOGIT_GAIN)


def _inception(g: GraphBuilder, x: Tensor, name: str, filters: tuple[int, int, int, int, int, int]) -> Tensor:
    direct, reduce3, full3, reduce5, full5, projection = filters
    branches = (
        g.conv_relu(x, f"{name}.1x1", direct, 1),
        g.conv_relu(g.conv_relu(x, f"{name}.3x3_reduce", reduce3, 1), f"{name}.3x3", full3, 3, pad=1),
        g.conv_relu(g.conv_relu(x, f"{name}.5x5_reduce", reduce5, 1), f"{name}.5x5", full5, 5, pad=2),
        g.conv_relu(g.max_pool(x, f"{name}.pool", 3, 1, pad=1), f"{name}.pool_proj", projection, 1),
    )
    return g.concat(branches, f"{name}.concat")


_SEPARABLES = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip
"""Filters of the pointwise and stride of the depthwise convolution (Howard et al., table 1)."""


def _mobilenet(g: GraphBuilder, x: Tensor) -> Tensor:
    x = g.conv_norm(x, "conv1", 32, 3, stride=2, pad=1)
    for index, (filters, stride) in enumerate(_SEPARABLES, start=2):
        x = g.conv_norm(x, f"conv{index}.dw", x.channels, 3, stride=stride, pad=1, groups=x.channels)
        x = g.conv_norm(x, f"conv{index}.pw", filters, 1)
    x = g.flatten(g.global_average(x, "pool"), "flat")
    return g.fully_connected(x, "fc", _CLASSES, gain=_LOGIT_GAIN / 2)


def _resnet50(g: GraphBuilder, x: Tensor) -> Tensor:
    x = g.max_pool(g.conv_norm(x, "conv1", 64, 7, stride=2, pad=3), "pool1", 3, 2)
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=2):
        for index in range(blocks):
            stride = 2 if index == 0 and stage > 2 else 1
            x = _bottleneck(g, x, f"res{stage}{chr(ord('a') + index)}", width, stride, project=index == 0)
    x = g.flatten(g.global_average(x, "pool5"), "flat5")
    return g.fully_connected(x, "fc", _CLASSES, gain=_LOGIT_GAIN)


def _bottleneck(g: GraphBuilder, x: Tensor, name: str, width: int, stride: int, project: bool) -> Tensor:
    y = g.conv_norm(x, f"{name}.1", width, 1, stride=stride)
    y = g.conv_norm(y, f"{name}.2", width, 3, pad=1)
    y = g.conv_norm(y, f"{name}.3", 4 * width, 1, scale=0.5, relu=False)
    if project:
        x = g.conv_norm(x, f"{name}.shortcut", 4 * width, 1, stride=stride, relu=False)
    return g.relu(g.add(y, x, f"{name}.sum"))


_FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
"""Squeeze and expand filters of fire2 to fire9 (Iandola et al., table 1)."""


def _squeezenet(g: GraphBuilder, x: Tensor) -> Tensor:
    x = g.max_pool(g.conv_relu(x, "conv1", 96, 7, stride=2), "pool1", 3, 2)
    for index, (squeeze, expand) in enumerate(_FIRES, start=2):
        name = f"fire{index}"
        s = g.conv_relu(x, f"{name}.squeeze", squeeze, 1)
        branches = (
            g.conv_relu(s, f"{name}.expand1", expand, 1),
            g.conv_relu(s, f"{name}.expand3", expand, 3, pad=1),
        )
        x = g.concat(branches, f"{name}.concat")
        if index in (4, 8):
            x = g.max_pool(x, f"pool{index}", 3, 2)
    x = g.conv_relu(x, "conv10", _CLASSES, 1, pad=1, gain=4 * _LOGIT_GAIN)
    return g.flatten(g.global_average(x, "pool10"), "flat10")


_NETWORKS: dict[str, tuple[int, Callable[[GraphBuilder, Tensor], Tensor]]] = {
    "alexnet": (227, _alexnet),
    "googlenet": (224, _googlenet),
    "mobilenet": (224, _mobilenet),
    "resnet50": (224, _resnet50),
    "squeezenet": (227, _squeezenet),
}
