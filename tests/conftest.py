from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import settings
from onnx import TensorProto, helper, numpy_helper

from corepipe.data import sample_frames
from corepipe.network.load import load_network
from corepipe.network.model import Network
from corepipe.plan.model import Hop, Plan, PlanNetwork, Route, Worker
from corepipe.topology import Topology, detect

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before any test imports it

settings.register_profile("corepipe", derandomize=True, deadline=None)
settings.load_profile("corepipe")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in a shell's background job: child processes would inherit it and not know of Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_environment(tmp_path_factory, monkeypatch):
    """Nothing of the user's cache or machine file reaches a test; one engine, but where a test says otherwise."""
    monkeypatch.setenv("COREPIPE_ENGINES", "onnxruntime")
    monkeypatch.setenv("COREPIPE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("COREPIPE_MACHINE", raising=False)


@pytest.fixture
def many_files() -> Iterator[None]:
    """More than 1024 open files, so that new descriptors are beyond what select() can take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip("needs more open files than are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    held: list[int] = []
    try:
        while not held or held[-1] < 1024:
            held.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def here() -> Topology:
    """This machine."""
    return detect()


@pytest.fixture
def two_cores(here: Topology) -> Topology:
    """This machine, which has two cores at the least."""
    if len(here.cores) < 2:
        pytest.skip("needs two usable cores")
    return here


def chain_model(layers: int = 6, channels: int = 8, side: int = 16, seed: int = 0) -> onnx.ModelProto:
    """Convolutions in a row."""
    generator = np.random.default_rng(seed)
    shape = [1, channels, side, side]
    weights = [
        numpy_helper.from_array(generator.standard_normal((channels, channels, 3, 3), np.float32) / 8, f"w{i}")
        for i in range(layers)
    ]
    nodes = [
        helper.make_node("Conv", [f"t{i}", f"w{i}"], [f"t{i + 1}"], name=f"conv{i}", pads=[1] * 4)
        for i in range(layers)
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("t0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"t{layers}", TensorProto.FLOAT, shape)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@pytest.fixture
def make_chain() -> Callable[..., onnx.ModelProto]:
    """Makes a model of convolutions in a row."""
    return chain_model


@pytest.fixture
def chain() -> Network:
    """Six convolutions in a row."""
    return load_network(chain_model())


@pytest.fixture
def make_plan(here: Topology) -> Callable[..., Plan]:
    """Makes a plan from routes written as [(rate, [(core index, start, stop), ...]), ...]."""
    cluster_of = {core.id: c.name for c in here.clusters for core in c.cores}
    ids = [core.id for core in here.cores]

    def make(network: Network, routes: Sequence[tuple[float, Sequence[tuple[int, int, int]]]]) -> Plan:
        used = sorted({core for _, hops in routes for core, _, _ in hops})
        workers = {
            core: Worker(name=f"w{core}", config=f"{cluster_of[ids[core]]}1", cores=(ids[core],)) for core in used
        }
        return Plan(
            planner="by hand",
            network=PlanNetwork(name=network.name, sha256=network.sha256, layers=len(network.layers)),
            workers=tuple(workers.values()),
            routes=tuple(
                Route(
                    rate_fps=rate,
                    hops=tuple(Hop(worker=workers[core].name, layers=(start, stop)) for core, start, stop in hops),
                )
                for rate, hops in routes
            ),
        )

    return make


def process_exists(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def is_running() -> Callable[[int], bool]:
    """Whether a process runs."""
    if not os.path.isdir("/proc/self"):
        pytest.skip("needs /proc")
    return process_exists


@pytest.fixture(scope="module")
def kept_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cache folder for all tests of a file: measuring the same network once is enough."""
    return str(tmp_path_factory.mktemp("kept"))


@pytest.fixture
def kept_costs(_own_environment: None, kept_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test of a file has measured the next ones find."""
    monkeypatch.setenv("COREPIPE_CACHE", kept_folder)


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """A small image classifier with a dynamic batch, on disk."""
    generator = np.random.default_rng(0)
    weights = {
        "w1": generator.standard_normal((8, 3, 3, 3), np.float32) / 5,
        "w2": generator.standard_normal((16, 8, 3, 3), np.float32) / 8,
        "w3": generator.standard_normal((16, 10), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["a"], strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", "w3"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 96, 96])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = tmp_path / "classifier.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photographs with an unreadable file in the middle."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, path in zip(("a.jpg", "b.jpg", "d.jpg"), sample_frames(), strict=False):
        (folder / name).write_bytes(path.read_bytes())
    (folder / "c.jpg").write_bytes(b"not a picture")
    return folder
