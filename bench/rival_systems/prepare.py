"""The files that all systems are given: the network for each batch, the frames, and what must come out.

python -m rival_systems.prepare ENGINE FOLDER BATCH    convert the network for an engine
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

Array = NDArray[Any]


def write_network(name: str, folder: Path, batches: tuple[int, ...]) -> None:
    """Write the network, by name or path, as ONNX for each batch, and `frames.npz` with frames and reference outputs.

    Raises:
        SystemExit: it has several inputs or outputs, which not every rival's converter takes.
    """
    import onnxruntime as ort

    from corepipe.bench_setup import bench_frames
    from corepipe.network import zoo
    from corepipe.network.load import open_network

    model = zoo.build(name) if name in zoo.NAMES else onnx.load(name)
    network = open_network(name)
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        raise SystemExit(f"{name}: the rivals are compared on networks of one input and one output")
    for batch in sorted({1, *batches}):
        for value in (*model.graph.input, *model.graph.output):
            if value.name in (network.inputs[0].name, network.outputs[0].name):
                value.type.tensor_type.shape.dim[0].dim_value = batch
        del model.graph.value_info[:]
        onnx.save(model, model_path(folder, batch))
    frames, words = bench_frames(network, None)
    arrays = [np.ascontiguousarray(frame[network.inputs[0].name]) for frame in frames]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model_path(folder, 1), options, providers=["CPUExecutionProvider"])
    outputs = [session.run(None, {network.inputs[0].name: array})[0] for array in arrays]
    np.savez(folder / "frames.npz", frames=np.concatenate(arrays), outputs=np.concatenate(outputs))
    (folder / "frames.json").write_text(json.dumps({"frames": words, "input": network.inputs[0].name}))


def model_path(folder: Path, batch: int) -> Path:
    """Where the network for a batch lies; it has the folder's name."""
    return folder / f"{folder.name}{'' if batch == 1 else f'-b{batch}'}.onnx"


def batches_of(frames: Array, batch: int) -> list[Array]:
    """The frames by turns in batches, at least two, so that no call finds its input in the nearest cache by itself."""
    count = max(2, -(-len(frames) // batch))
    order = np.arange(count * batch) % len(frames)
    return [np.ascontiguousarray(frames[order[i * batch : (i + 1) * batch]]) for i in range(count)]


def converted(engine: str, folder: Path, batch: int, channels_last: bool = False) -> Path:
    """Where the converted network lies."""
    if engine == "ncnn":
        return folder / "ncnn" / "network.ncnn.param"
    return folder / f"litert-b{batch}{'-last' if channels_last else ''}.tflite"


def convert(engine: str, folder: Path, batch: int) -> None:
    """Convert the network by the engine's own or a well-kept converter.

    Raises:
        SystemExit: with the converter's reason.
    """
    source = model_path(folder, batch)
    shape = [dim.dim_value for dim in onnx.load(source).graph.input[0].type.tensor_type.shape.dim]
    if engine == "ncnn":
        _pnnx(source, converted(engine, folder, batch).parent, shape)
    else:
        _litert(source, folder, batch, shape)


def _pnnx(source: Path, folder: Path, shape: list[int]) -> None:
    folder.mkdir(exist_ok=True)
    copy = folder / "network.onnx"
    copy.write_bytes(source.read_bytes())
    program = Path(sysconfig.get_path("scripts")) / "pnnx"
    command = [str(program), copy.name, f"inputshape=[{','.join(map(str, shape))}]", "fp16=0"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode or not (folder / "network.ncnn.param").exists():
        raise SystemExit(f"pnnx: {(done.stderr or done.stdout)[-300:]}")


def _litert(source: Path, folder: Path, batch: int, shape: list[int]) -> None:
    import litert_torch
    import onnx2torch
    import torch

    module = onnx2torch.convert(onnx.load(source)).eval()
    sample = torch.zeros(shape)
    litert_torch.convert(module, (sample,)).export(str(converted("litert", folder, batch)))
    last = litert_torch.to_channel_last_io(module, args=[0]).eval()
    sample = sample.permute(0, 2, 3, 1).contiguous()
    litert_torch.convert(last, (sample,)).export(str(converted("litert", folder, batch, channels_last=True)))


if __name__ == "__main__":
    convert(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
