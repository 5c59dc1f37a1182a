"""Top-1 on labelled images: every plan against the whole, unsplit model, image by image.

    python bench/top1.py [--shared FOLDER]

Reads trained models and labelled images from a folder (by default `../shared` beside the project), feeds the files
through `corepipe`'s own reading and preprocessing into a stream of each plan, and says on how many images the class
differs from the whole model's, run by ONNX Runtime alone in this process.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort

from corepipe import plan as planners
from corepipe.api import costs
from corepipe.frames import open_source, parse_options
from corepipe.network.load import open_network
from corepipe.run import image_inputs
from corepipe.runtime.stream import Stream
from corepipe.topology import detect

ROOT = Path(__file__).resolve().parents[1]
PLANS = ("all-cores", "replicas", "pipe-it", "pipeline", "routes")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    shared = parser.parse_args().shared
    if not shared.is_dir():
        print(f"{shared} is not there: no labelled images, nothing to do", file=sys.stderr)
        return 1
    synsets = [line.split()[0] for line in (shared / "images/synset_words.txt").read_text().splitlines()]
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    wrong = compare(
        shared / "models/squeezenet1.0-imagenet.onnx",
        shared / "images/imagenet",
        parse_options(color="bgr", scale="1", mean="104,117,123", resize="crop:256"),
        lambda name: synsets.index(name.split("_")[0]),
    )
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(shared / "images/cifar10.zip") as archive:
        flat = Path(folder)
        for member in archive.namelist():
            parts = Path(member).parts
            if "test" in parts and not member.endswith("/"):
                (flat / f"{parts[-2]}_{parts[-1]}").write_bytes(archive.read(member))
        wrong += compare(
            shared / "models/resnet8-cifar10.onnx",
            flat,
            parse_options(color="rgb", scale="1", mean="0"),
            lambda name: classes.index(name.split("_")[0]),
        )
    return int(wrong > 0)


def compare(model: Path, folder: Path, options: dict[str, object], label: Callable[[str], int]) -> int:
    """Print, for each plan, its top-1 and on how many images it differs; returns the sum of the latter."""
    network, topology = open_network(model), detect()
    prepare = next(iter(image_inputs(network, options).values()))
    session = ort.InferenceSession(network.model.SerializeToString())
    names, labels, whole = [], [], []
    for name, array in images(folder, prepare):
        names.append(name)
        labels.append(label(name))
        whole.append(int(session.run(None, {network.inputs[0].name: array})[0].argmax()))
    right = np.mean(np.array(labels) == np.array(whole))
    print(f"{network.name}: {len(names)} images, whole model: top-1 {right:.1%}")
    table = costs(network, topology)
    differing = 0
    for planner in PLANS:
        with Stream(network, planners.plan(table, planner), topology) as stream:
            found = [int(output.argmax()) for output in stream(array for _, array in images(folder, prepare))]
        differ = sum(a != b for a, b in zip(found, whole, strict=True))
        print(f"  {planner}: top-1 {np.mean(np.array(found) == np.array(labels)):.1%}, {differ} differ")
        differing += differ
    return differing


def images(folder: Path, prepare: Callable[[np.ndarray], np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and input tensors of a folder's images."""
    with open_source(folder) as source:
        for frame in source:
            yield frame.name, prepare(np.asarray(frame.data))


if __name__ == "__main__":
    sys.exit(main())
