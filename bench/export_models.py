"""Exports current architectures to ONNX, with seeded random weights, as input for `corepipe bench`.

    python -m venv .venv-export
    .venv-export/bin/pip install -e ".[export]"
    .venv-export/bin/python bench/export_models.py FOLDER             # all of them
    .venv-export/bin/python bench/export_models.py FOLDER yolo dfine  # only these
    corepipe bench FOLDER/mobilenetv2.onnx

Made with torch 2.13, onnxscript 0.7 and transformers 5.23. Nothing is downloaded. Weights are random, but every layer
is active: convolutions and linear layers are drawn anew with LeCun's variance, and batch-norm statistics are those of a
few synthetic frames. Each file holds its weights, and is checked with ONNX Runtime against PyTorch on two frames (and
on a batch of three where the batch is dynamic): outputs finite, equal, and different for different frames.

| name | what | from | input |
|---|---|---|---|
| `yolo` | detector with CSP blocks and three heads in the manner of YOLOv8-n; outputs `p3`, `p4`, `p5` | here | 640 |
| `dfine` | D-FINE-N detector (arXiv 2410.13842), 100 queries; outputs `logits`, `pred_boxes` | transformers | 640 |
| `mobilenetv2` | MobileNetV2 1.0 (arXiv 1801.04381), **dynamic batch** | transformers | 224 |
| `efficientnet-b0` | EfficientNet-B0 (arXiv 1905.11946), squeeze and excitation | transformers | 224 |
| `regnety-800mf` | RegNetY-800MF (arXiv 2003.13678), grouped convolutions | transformers | 224 |
| `convnextv2-nano` | ConvNeXt V2-N (arXiv 2301.00808), 7x7 depthwise, LayerNorm, GRN | transformers | 224 |
| `mobilevit-s` | MobileViT-S (arXiv 2110.02178), convolutions and attention | transformers | 256 |

`dfine` picks its queries by TopK, and random weights give near ties: another order of rounding (other fusions, another
engine) can swap two rows of its outputs. The check here matches the rows; `yolo` has no such step.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import scipy.optimize
import torch
import transformers
from torch import Tensor, nn

OPSET = 18
CLASSES = 1000

# The exporter has no operator for the checks that transformers adds to a traced model.
os.environ["TRANSFORMERS_DISABLE_TORCH_CHECK"] = "1"
logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)


class Unit(nn.Sequential):
    """Convolution, batch normalisation, SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.SiLU())


class Csp(nn.Module):
    """Cross-stage partial block: half of the channels pass `depth` bottlenecks, and every step is kept."""

    def __init__(self, inputs: int, outputs: int, depth: int, shortcut: bool) -> None:
        super().__init__()
        half = outputs // 2
        self.shortcut = shortcut
        self.enter = Unit(inputs, outputs)
        self.steps = nn.ModuleList(nn.Sequential(Unit(half, half, 3), Unit(half, half, 3)) for _ in range(depth))
        self.leave = Unit((2 + depth) * half, outputs)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for step in self.steps:
            y = step(parts[-1])
            parts.append(parts[-1] + y if self.shortcut else y)
        return self.leave(torch.cat(parts, 1))


class PyramidPool(nn.Module):
    """Three max pools in a row, all of them kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = Unit(channels, channels // 2)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.leave = Unit(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.enter(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class Head(nn.Module):
    """Box distributions (4 x 16 channels) and class scores of one scale."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.box = nn.Sequential(Unit(channels, 64, 3), Unit(64, 64, 3), nn.Conv2d(64, 64, 1))
        self.score = nn.Sequential(Unit(channels, 80, 3), Unit(80, 80, 3), nn.Conv2d(80, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.box(x), self.score(x)], 1)


class Yolo(nn.Module):
    """Backbone, path-aggregation neck and three heads: raw outputs at strides 8, 16 and 32."""

    def __init__(self, classes: int = 80) -> None:
        super().__init__()
        self.stem = nn.Sequential(Unit(3, 16, 3, 2), Unit(16, 32, 3, 2), Csp(32, 32, 1, True))
        self.stage3 = nn.Sequential(Unit(32, 64, 3, 2), Csp(64, 64, 2, True))
        self.stage4 = nn.Sequential(Unit(64, 128, 3, 2), Csp(128, 128, 2, True))
        self.stage5 = nn.Sequential(Unit(128, 256, 3, 2), Csp(256, 256, 1, True), PyramidPool(256))
        self.up = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.down4 = Csp(384, 128, 1, False)
        self.down3 = Csp(192, 64, 1, False)
        self.reduce3, self.up4 = Unit(64, 64, 3, 2), Csp(192, 128, 1, False)
        self.reduce4, self.up5 = Unit(128, 128, 3, 2), Csp(384, 256, 1, False)
        self.heads = nn.ModuleList(Head(channels, classes) for channels in (64, 128, 256))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        c3 = self.stage3(self.stem(x))
        c4 = self.stage4(c3)
        c5 = self.stage5(c4)
        t4 = self.down4(torch.cat([self.up(c5), c4], 1))
        p3 = self.down3(torch.cat([self.up(t4), c3], 1))
        p4 = self.up4(torch.cat([self.reduce3(p3), t4], 1))
        p5 = self.up5(torch.cat([self.reduce4(p4), c5], 1))
        return tuple(head(p) for head, p in zip(self.heads, (p3, p4, p5), strict=True))


class Fields(nn.Module):
    """A transformers model whose outputs are the named fields, as plain tensors."""

    def __init__(self, model: nn.Module, *fields: str) -> None:
        super().__init__()
        self.model = model
        self.fields = fields

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        result = self.model(pixel_values=images)
        return tuple(getattr(result, field) for field in self.fields)


def dfine() -> nn.Module:
    """D-FINE-N as in the conversion of the published checkpoint, with 100 queries instead of 300."""
    backbone = transformers.HGNetV2Config(
        hidden_sizes=[128, 256, 512, 1024], stem_channels=[3, 16, 16], stage_in_channels=[16, 64, 256, 512],
        stage_mid_channels=[16, 32, 64, 128], stage_out_channels=[64, 256, 512, 1024], stage_num_blocks=[1, 1, 2, 1],
        stage_numb_of_layers=[3, 3, 3, 3], use_learnable_affine_block=True, out_indices=[3, 4],
    )  # fmt: skip
    config = transformers.DFineConfig(
        backbone_config=backbone, freeze_backbone_batch_norms=False, num_labels=80, num_queries=100,
        num_feature_levels=2, encoder_in_channels=[512, 1024], encoder_hidden_dim=128, encoder_ffn_dim=512,
        encode_proj_layers=[1], d_model=128, decoder_ffn_dim=512, decoder_layers=3, decoder_n_points=[6, 6],
        decoder_in_channels=[128, 128], feat_strides=[16, 32], depth_mult=0.5, hidden_expansion=0.34,
        anchor_image_size=[640, 640],
    )  # fmt: skip
    return Fields(transformers.DFineForObjectDetection(config), "logits", "pred_boxes")


def mobilenetv2() -> nn.Module:
    config = transformers.MobileNetV2Config(num_labels=CLASSES, tf_padding=False)
    return Fields(transformers.MobileNetV2ForImageClassification(config), "logits")


def efficientnet_b0() -> nn.Module:
    config = transformers.EfficientNetConfig(
        image_size=224, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, num_labels=CLASSES
    )
    model = transformers.EfficientNetForImageClassification(config)
    # transformers averages with a window of 1280 x 1280, clipped to the 7 x 7 map: the same, but no engine expects it.
    model.efficientnet.pooler = nn.AdaptiveAvgPool2d(1)
    return Fields(model, "logits")


def regnety() -> nn.Module:
    config = transformers.RegNetConfig(
        depths=[1, 3, 8, 2], hidden_sizes=[64, 128, 320, 768], groups_width=16, num_labels=CLASSES
    )
    return Fields(transformers.RegNetForImageClassification(config), "logits")


def convnextv2() -> nn.Module:
    config = transformers.ConvNextV2Config(depths=[2, 2, 8, 2], hidden_sizes=[80, 160, 320, 640], num_labels=CLASSES)
    return Fields(transformers.ConvNextV2ForImageClassification(config), "logits")


def mobilevit() -> nn.Module:
    config = transformers.MobileViTConfig(num_labels=CLASSES)
    return Fields(transformers.MobileViTForImageClassification(config), "logits")


@dataclass(frozen=True)
class Entry:
    make: Callable[[], nn.Module]
    size: int
    outputs: tuple[str, ...] = ("logits",)
    dynamic_batch: bool = False
    rows_may_swap: bool = False


ENTRIES = {
    "yolo": Entry(Yolo, 640, ("p3", "p4", "p5")),
    "dfine": Entry(dfine, 640, ("logits", "pred_boxes"), rows_may_swap=True),
    "mobilenetv2": Entry(mobilenetv2, 224, dynamic_batch=True),
    "efficientnet-b0": Entry(efficientnet_b0, 224),
    "regnety-800mf": Entry(regnety, 224),
    "convnextv2-nano": Entry(convnextv2, 224),
    "mobilevit-s": Entry(mobilevit, 256),
}


def frames(count: int, size: int, seed: int) -> Tensor:
    """Normalised frames [count, 3, size, size] with structure at several scales."""
    random = torch.Generator().manual_seed(seed)
    result = 0.3 * torch.randn(count, 3, size, size, generator=random)
    for cells in (2, 5, 16, 40):
        coarse = torch.randn(count, 3, cells, cells, generator=random)
        result += nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return (result - result.mean((1, 2, 3), keepdim=True)) / result.std((1, 2, 3), keepdim=True)


def randomise(model: nn.Module, size: int, seed: int) -> None:
    """Draws the weights anew, so that no branch starts at zero, and measures the batch-norm statistics."""
    torch.manual_seed(seed)
    norms = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.05)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, std=0.1)
            module.reset_running_stats()
            module.momentum = None
            norms.append(module)
        elif type(module).__name__ == "ConvNextV2GRN":
            nn.init.normal_(module.weight, std=0.2)
            nn.init.normal_(module.bias, std=0.05)
    model.eval()
    for norm in norms:
        norm.train()
    with torch.no_grad():
        for step in range(2):
            model(frames(4, size, seed + 1 + step))
    model.eval()


def export(model: nn.Module, entry: Entry, path: Path) -> None:
    example = frames(2 if entry.dynamic_batch else 1, entry.size, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (example,), str(path), input_names=["images"], output_names=list(entry.outputs),
            opset_version=OPSET, dynamo=True, external_data=False, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},) if entry.dynamic_batch else None,
        )  # fmt: skip


def match_rows(actual: list[np.ndarray], expected: list[np.ndarray]) -> list[np.ndarray]:
    """The rows (axis 1) of all `actual` outputs in the order that comes nearest to `expected`, batch 1."""
    ours, theirs = (np.concatenate(outputs, axis=2)[0] for outputs in (actual, expected))
    distance = np.abs(theirs[:, None] - ours[None]).max(axis=2)
    _, order = scipy.optimize.linear_sum_assignment(distance)
    return [output[:, order] for output in actual]


def check(model: nn.Module, entry: Entry, path: Path) -> list[str]:
    """What is wrong with the exported file (nothing: an empty list); prints the greatest difference."""
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    problems, seen = [], []
    for batch, seed in ((1, 100), (1, 101), *([(3, 102)] if entry.dynamic_batch else [])):
        images = frames(batch, entry.size, seed)
        with torch.no_grad():
            expected = [tensor.numpy() for tensor in model(images)]
        actual = session.run(list(entry.outputs), {"images": images.numpy()})
        if entry.rows_may_swap:
            actual = match_rows(actual, expected)
        for name, ours, theirs in zip(entry.outputs, actual, expected, strict=True):
            difference = float(np.abs(ours - theirs).max() / (np.abs(theirs).max() + 1e-9))
            print(f"    {name}{list(ours.shape)} std {ours.std():.3g}, from PyTorch {difference:.1e}")
            if not np.isfinite(ours).all():
                problems.append(f"{name}: not finite")
            if difference > 1e-3:
                problems.append(f"{name}: differs from PyTorch by {difference:.1e} of its greatest value")
        seen.append(actual)
    for name, one, other in zip(entry.outputs, *seen[:2], strict=True):
        change = float((one - other).std() / (one.std() + 1e-9))
        if change < 0.02:
            problems.append(f"{name}: hardly depends on the frame (changes by {change:.1e} of its spread)")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description="Export current architectures to ONNX with random weights.")
    parser.add_argument("folder", type=Path, help="where the .onnx files go (created)")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ENTRIES)} (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default 0)")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(ENTRIES))
    if unknown:
        parser.error(f"unknown name {unknown[0]!r} (known: {', '.join(ENTRIES)})")
    options.folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in options.names or ENTRIES:
        entry, path, start = ENTRIES[name], options.folder / f"{name}.onnx", time.perf_counter()
        torch.manual_seed(options.seed)
        model = entry.make()
        randomise(model, entry.size, options.seed)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        export(model, entry, path)
        print(
            f"{path.name}: {parameters / 1e6:.2f} M parameters, {path.stat().st_size / 1e6:.1f} MB,"
            f" {len(onnx.load(path).graph.node)} nodes, {time.perf_counter() - start:.0f} s"
        )
        problems = check(model, entry, path)
        failed += bool(problems)
        for problem in problems:
            print(f"    WRONG {problem}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
