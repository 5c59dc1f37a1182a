"""What is fed with hostile input, and what counts as a finding: a foreign error, a warning, too much time or memory."""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from corepipe.cost.calibration import Calibration, PartialCalibration
from corepipe.cost.profile import PartialProfile
from corepipe.cost.table import CostTable
from corepipe.document import Document
from corepipe.emulate.speeds import parse_slow
from corepipe.errors import CorepipeError
from corepipe.network.batch import batched
from corepipe.network.load import load_network, parse_shape
from corepipe.plan.model import Plan
from corepipe.topology.cpulist import format_cpu_list, parse_cpu_list
from corepipe.topology.detect import detect
from corepipe.topology.machine_file import MachineFile, to_toml
from corepipe.topology.macos import read_macos
from corepipe.topology.model import CoreConfig, Topology
from corepipe.topology.overlay import file_topology

CPU_S, HANGS_S = 20.0, 120.0
"""Seconds of computing that one input may take, and after how many it is stopped; a paused machine does not count."""
PEAK_BYTES = 2**30


class Finding(Exception):
    """An input took too much time or memory, or what was read from it is not what it should be."""


@contextlib.contextmanager
def limits(seconds: float = CPU_S) -> Iterator[None]:
    """Raise a `Finding` where the block takes too much; end the process where it hangs. Warnings are errors."""
    memory = _peak(reset=True)
    with _timed(seconds):
        yield
    held = _peak() - memory
    if held > PEAK_BYTES:
        raise Finding(f"took {held >> 20} MiB")


@contextlib.contextmanager
def _timed(seconds: float) -> Iterator[None]:
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    took = time.process_time() - started
    if took > seconds:
        raise Finding(f"took {took:.1f} s of computing")


def stop_when_hung() -> None:
    """End the process, with a traceback, where no input was finished in `HANGS_S` seconds of computing."""
    # Python's own handlers wait for the code below Python to return; these do not.
    faulthandler.register(signal.SIGPROF, chain=True)
    alive()


def alive() -> None:
    """Start counting these seconds anew."""
    signal.setitimer(signal.ITIMER_PROF, HANGS_S)


def _peak(*, reset: bool = False) -> int:
    """Most bytes that this process held; reset to what it holds now."""
    if sys.platform != "linux":
        return 0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def run_model(data: bytes, folder: Path) -> str:
    """Load a model file, cut the network and extract its segments.

    Returns:
        `loaded`, or the type of the error by which it was refused.
    """
    path = folder / "model.onnx"
    path.write_bytes(data)
    with limits():
        try:
            network = load_network(path)
            edges = [0, *network.legal_cuts(), len(network.layers)]
            kept = sorted({edges[0], edges[len(edges) // 2], edges[-1]})
            for start, stop in itertools.pairwise(kept):
                network.segment(start, stop).model.SerializeToString()
            with contextlib.suppress(CorepipeError):
                batched(network, 2)
        except CorepipeError as error:
            _check_message(error)
            return type(error).__name__
    return "loaded"


def run_reader(name: str, data: bytes) -> str:
    """Give data to one of `READERS`; returns as `run_model`."""
    with _timed(CPU_S):
        try:
            READERS[name](data)
        except CorepipeError as error:
            _check_message(error)
            return type(error).__name__
    return "loaded"


def _check_message(error: CorepipeError) -> None:
    """An error says something, briefly, that can be printed."""
    text = str(error)
    if not text.strip() or len(text) > 20_000:
        raise Finding(f"the message of {type(error).__name__} has {len(text)} characters")
    text.encode("utf-8", "backslashreplace")


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


def _plan(data: bytes) -> None:
    _document(Plan)(data)
    plan = Plan.from_json(data)
    for worker in plan.workers:
        plan.segments_of(worker.name)


def _machine_file(data: bytes) -> None:
    path = _folder() / "machine.toml"
    path.write_bytes(data)
    file = MachineFile.read(path)
    for here in (None, _here()):
        with contextlib.suppress(CorepipeError):
            _check_topology(file_topology(file, "file", here, here.cpus if here else ()))


def _tree(data: bytes) -> None:
    root = Path(tempfile.mkdtemp(dir=_folder()))
    made: list[Path] = []
    try:
        for part in data.split(b"\0\0")[:64]:
            name, _, content = part.partition(b"=")
            path = root / "".join(c for c in name.decode("ascii", "ignore") if c.isprintable())[:200].strip("/.")
            if ".." in path.parts or path == root or path.exists():
                continue
            missing = [p for p in (path.parent, *path.parent.parents) if p.is_relative_to(root) and not p.exists()]
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                made += reversed(missing)
                path.write_bytes(content)
                made.append(path)
        _check_topology(detect(root))
    finally:
        for path in reversed(made):
            path.rmdir() if path.is_dir() else path.unlink()
        root.rmdir()


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

_kept: list[tempfile.TemporaryDirectory[str]] = []


def _folder() -> Path:
    """A folder for files that are read, in memory where there is such a place."""
    if not _kept:
        memory = Path("/dev/shm")
        _kept.append(tempfile.TemporaryDirectory(prefix="corepipe-fuzz-", dir=memory if memory.is_dir() else None))
    return Path(_kept[0].name)


def _here() -> Topology:
    """A machine that files are laid over."""
    text = 'schema_version = 1\n[[cluster]]\nname = "big"\ncores = [[0, 1], [2, 3]]\ncapacity = 1.0\n'
    text += '[[cluster]]\nname = "little"\ncpus = "4-7"\ncapacity = 0.4\n'
    return file_topology(MachineFile.from_toml(text), "here", None)
