"""What is fed with hostile input: each target succeeds, refuses with one of corepipe's own errors, or has a defect."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import hostile_documents
import hostile_models
from onnx import parser

from corepipe import errors
from corepipe.cost.calibration import Calibration, PartialCalibration
from corepipe.cost.profile import PartialProfile
from corepipe.cost.table import CostTable
from corepipe.document import Document
from corepipe.emulate.speeds import parse_slow
from corepipe.errors import CorepipeError
from corepipe.network.batch import batched
from corepipe.network.load import load_network, open_network, parse_shape
from corepipe.network.model import Network
from corepipe.plan.model import Plan, evaluate
from corepipe.runtime.pool import check_cores, check_fits
from corepipe.topology.cpulist import format_cpu_list, parse_cpu_list
from corepipe.topology.detect import detect
from corepipe.topology.machine_file import MachineFile, to_toml
from corepipe.topology.macos import read_macos
from corepipe.topology.model import CoreConfig, Topology
from corepipe.topology.overlay import file_topology

_REFUSALS = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, CorepipeError)]
ENDS = ("loaded", *sorted(kind.__name__ for kind in _REFUSALS))
"""How an input can end where nothing is wrong: it is taken, or refused by one of these."""

_CUT_LAYERS = 2000
"""Larger networks are loaded only: what follows would take as long again, with nothing new to see."""


class Finding(Exception):
    """What was read is not what it should be, or the message of a refusal is not one short printable line."""


def run_model(data: bytes) -> str:
    """Load a model file, cut the network, extract its segments, and load it for two frames.

    Returns:
        One of `ENDS`.

    Raises:
        Exception: anything but a `CorepipeError` is a defect, warnings included.
    """
    path = _model_folder() / "model.onnx"
    path.write_bytes(data)
    return _end_of(lambda: _load(path))


def run_reader(name: str, data: bytes) -> str:
    """Give data to one of `READERS`; returns and raises as `run_model`."""
    return _end_of(lambda: READERS[name](data))


def _end_of(run: Callable[[], object]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            run()
        except CorepipeError as error:
            _check_message(error)
            return type(error).__name__
    return "loaded"


def _load(path: Path) -> None:
    network = open_network(path)
    if len(network.layers) > _CUT_LAYERS:
        return
    edges = [0, *network.legal_cuts(), len(network.layers)]
    kept = sorted({edges[0], edges[len(edges) // 2], edges[-1]})
    for start, stop in itertools.pairwise(kept):
        network.segment(start, stop).model.SerializeToString()
    with contextlib.suppress(CorepipeError):
        batched(network, 2)


def _check_message(error: CorepipeError) -> None:
    text = str(error)
    if not text.strip() or len(text) > errors.MAX_MESSAGE or not text.isprintable():
        raise Finding(f"the message of {type(error).__name__} is no short printable line ({len(text)} characters)")


def _document(kind: type[Document]) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        document = kind.from_json(data)
        if kind.from_json(document.to_json()) != document:
            raise Finding(f"a {kind.KIND} is not the same when written and read again")

    return read


def _cost_table(data: bytes) -> None:
    _document(CostTable)(data)
    table = CostTable.from_json(data)
    table.legal_cuts()
    for config, rows in table.by_config.items():
        for costs in rows:
            table.segment_s(config, 0, table.layer_count, mode=costs.mode)
    evaluate(Plan.from_json(hostile_documents.SEEDS["plan"][0]), table)


def _plan(data: bytes) -> None:
    _document(Plan)(data)
    plan = Plan.from_json(data)
    for worker in plan.workers:
        plan.segments_of(worker.name)
    table = CostTable.from_json(hostile_documents.SEEDS["cost-table"][0])
    for check in (
        lambda: check_fits(plan, _network()),
        lambda: check_cores(plan, _here()),
        lambda: evaluate(plan, table),
    ):
        _end_of(check)


def _machine_file(data: bytes) -> None:
    path = _folder() / "machine.toml"
    path.write_bytes(data)
    file = MachineFile.read(path)
    for here in (None, _here()):
        with contextlib.suppress(CorepipeError):
            _check_topology(file_topology(file, "file", here, here.cpus if here else ()))


def _tree(data: bytes) -> None:
    root = Path(tempfile.mkdtemp(dir=_folder()))
    try:
        for part in data.split(b"\0\0")[:64]:
            name, _, content = part.partition(b"=")
            path = root / "".join(c for c in name.decode("ascii", "ignore") if c.isprintable())[:200].strip("/.")
            if _is_free(path, root):
                with contextlib.suppress(OSError):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    _make(path, content)
        _check_topology(detect(root))
    finally:
        shutil.rmtree(root)


def _is_free(path: Path, root: Path) -> bool:
    """Whether something can be put there without leaving the tree: no link may lead out of it."""
    if ".." in path.parts or path == root or os.path.lexists(path):
        return False
    return os.path.realpath(path.parent) == str(path.parent)


def _make(path: Path, content: bytes) -> None:
    """A file, or what the content says is to stand in its place."""
    if content == hostile_documents.PIPE:
        os.mkfifo(path)
    elif content == hostile_documents.FOLDER:
        path.mkdir()
    elif content.startswith(hostile_documents.LINK):
        path.symlink_to(
            content.removeprefix(hostile_documents.LINK).replace(b"\0", b"").decode("ascii", "ignore") or "."
        )
    else:
        path.write_bytes(content)


def _check_topology(topology: Topology) -> None:
    """It can be planned for, and written down and read again."""
    if len(set(topology.cpus)) != len(topology.cpus):
        raise Finding("a CPU is in two places")
    for config in topology.core_configs():
        if CoreConfig.parse(str(config)) != config:
            raise Finding(f"{config} is read as another")
    topology.fingerprint()
    again = file_topology(MachineFile.from_toml(to_toml(topology)), "again", None)
    if [c.cpus for c in again.clusters] != [c.cpus for c in topology.clusters]:
        raise Finding("a topology has other clusters when written and read again")


def _sysctl(data: bytes) -> None:
    _check_topology(read_macos(lambda _: data.decode("utf-8", "replace")))


def _cpu_list(data: bytes) -> None:
    cpus = parse_cpu_list(data.decode("utf-8", "replace"))
    if parse_cpu_list(format_cpu_list(cpus)) != cpus:
        raise Finding("a CPU list is not the same when written and read again")


def _options(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for read in (CoreConfig.parse, parse_shape, parse_slow):
        with contextlib.suppress(CorepipeError):
            read(text)


READERS: dict[str, Callable[[bytes], None]] = {
    "plan": _plan,
    "cost-table": _cost_table,
    "calibration": _document(Calibration),
    "partial-calibration": _document(PartialCalibration),
    "partial-profile": _document(PartialProfile),
    "machine-file": _machine_file,
    "tree": _tree,
    "sysctl": _sysctl,
    "cpu-list": _cpu_list,
    "options": _options,
}
"""By name, what takes bytes and raises only corepipe's own errors."""


@functools.cache
def _folder() -> Path:
    """A folder for files that are read; the campaign removes it, as this process may not come to it."""
    return Path(tempfile.mkdtemp(prefix="corepipe-fuzz-")).resolve()


@functools.cache
def _model_folder() -> Path:
    folder = _folder() / "models"
    folder.mkdir()
    hostile_models.prepare_folder(folder)
    return folder


@functools.cache
def _network() -> Network:
    """One that the plan to start from fits."""
    return load_network(parser.parse_model(hostile_documents.PLANNED_NETWORK))


@functools.cache
def _here() -> Topology:
    """A machine that files are laid over."""
    text = 'schema_version = 1\n[[cluster]]\nname = "big"\ncores = [[0, 1], [2, 3]]\ncapacity = 1.0\n'
    text += '[[cluster]]\nname = "little"\ncpus = "4-7"\ncapacity = 0.4\n'
    return file_topology(MachineFile.from_toml(text), "here", None)
