"""Which systems there are, and with which settings each is tried on a machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from corepipe.topology.model import Topology

COREPIPE = "corepipe"

ORT_SESSIONS = ("onnxruntime default", "onnxruntime all cores", "onnxruntime big cores")
"""The ways to use one ONNX Runtime session."""

ENGINES = {
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "ncnn": ("ncnn", "pnnx"),
    "litert": ("ai_edge_litert", "litert_torch", "onnx2torch", "torch"),
    "pytorch": ("torch", "onnx2torch"),
    COREPIPE: ("corepipe",),
}
"""The modules that each engine and its converter need."""

_DISTRIBUTIONS = {"ai_edge_litert": "ai-edge-litert", "litert_torch": "litert-torch"}

Cpus = tuple[int, ...]


@dataclass(frozen=True)
class Setting:
    """One way to run one system.

    Attributes:
        system: what users would call it; the column of the table.
        text: the setting in words.
        engine: one of `ENGINES`.
        layout: how the cores are shared out: `all`, `big`, `clusters` or `cores` (a process for each).
        processes: the logical CPUs of each process.
        options: for the engine.
        batch: frames of one call.
        huge_pages: whether the C library asks for huge pages.
    """

    system: str
    text: str
    engine: str
    layout: str
    processes: tuple[Cpus, ...]
    options: dict[str, Any] = field(default_factory=dict)
    batch: int = 1
    huge_pages: bool = False

    def __str__(self) -> str:
        return f"{self.system} ({self.words})"

    @property
    def words(self) -> str:
        """The setting with its batch and huge pages."""
        batch = f"batch {self.batch}" if self.batch > 1 else ""
        return ", ".join(filter(None, (self.text, batch, "huge pages" if self.huge_pages else "")))

    def with_batch(self, batch: int) -> Setting:
        """The same with another batch."""
        return replace(self, batch=batch)

    def with_huge_pages(self) -> Setting:
        """The same with huge pages."""
        return replace(self, huge_pages=True)


@dataclass(frozen=True)
class _Layout:
    name: str
    text: str
    processes: tuple[Cpus, ...]
    threads: tuple[int, ...]
    """Of each process; one for each core."""


def missing(engine: str) -> str | None:
    """Why an engine cannot be used here, None if it can."""
    lacking = [name for name in ENGINES[engine] if importlib.util.find_spec(name) is None]
    if not lacking:
        return None
    names = " ".join(_DISTRIBUTIONS.get(name, name) for name in lacking)
    return f"not installed: {names} (pip install '.[rivals]' in a clone, where there are builds for this machine)"


def versions(engines: Iterable[str]) -> dict[str, str]:
    """The installed distributions that engines and converters are made of."""
    from importlib.metadata import version

    modules = dict.fromkeys(module for engine in engines if not missing(engine) for module in ENGINES[engine])
    names = [_DISTRIBUTIONS.get(module, module) for module in modules]
    return {name: version(name) for name in names}


def settings(topology: Topology) -> list[Setting]:
    """Every setting of every rival that is tried at batch 1."""
    layouts = {layout.name: layout for layout in _layouts(topology)}
    return [*_onnxruntime(layouts), *_openvino(layouts), *_others(layouts)]


def _layouts(topology: Topology) -> Iterator[_Layout]:
    clusters, cores = topology.clusters, topology.cores
    yield _Layout("all", "all cores", (topology.cpus,), (len(cores),))
    if len(clusters) > 1:
        yield _Layout("big", "big cores only", (clusters[0].cpus,), (len(clusters[0].cores),))
        if len(cores) > len(clusters):
            threads = tuple(len(c.cores) for c in clusters)
            yield _Layout("clusters", "a process per cluster", tuple(c.cpus for c in clusters), threads)
    if len(cores) > 1:
        yield _Layout("cores", "a process per core", tuple(c.cpus for c in cores), (1,) * len(cores))


def _setting(system: str, layout: _Layout, text: str = "", engine: str = "", **options: Any) -> Setting:
    words = ", ".join(filter(None, (layout.text, text)))
    options.setdefault("threads", layout.threads)
    return Setting(system, words, engine or system.split()[0], layout.name, layout.processes, options)


def _onnxruntime(layouts: dict[str, _Layout]) -> Iterator[Setting]:
    everything = layouts["all"]
    yield _setting("onnxruntime default", everything, "no options", threads=(0,))
    for name, system in (("all", "onnxruntime all cores"), ("big", "onnxruntime big cores")):
        if name not in layouts:
            continue
        if layouts[name].threads == (1,):
            yield _setting(system, layouts[name], "1 thread")
            continue
        for spin in (True, False):
            words = "spinning" if spin else "not spinning"
            yield _setting(system, layouts[name], words, spin=spin)
            yield _setting(system, layouts[name], f"{words}, dynamic blocks", spin=spin, dynamic_blocks=4)
    system = "onnxruntime session per core"
    if "cores" in layouts:
        yield _setting(system, layouts["cores"])
        pinned = tuple(layouts["cores"].processes)
        yield _setting(system, everything, "a pinned thread with a session per core", pinned=pinned)
    if "clusters" in layouts:
        yield _setting(system, layouts["clusters"], spin=False)


def _openvino(layouts: dict[str, _Layout]) -> Iterator[Setting]:
    everything = layouts["all"]
    cores = everything.threads[0]
    for hint, in_flight in (("LATENCY", (0,)), ("THROUGHPUT", (1, 2))):
        for times in in_flight:
            words = "twice the requests" if times == 2 else ""
            for pin in (True, False):
                text = ", ".join(filter(None, (words, "" if pin else "not pinned")))
                hinted = {"PERFORMANCE_HINT": hint, **({} if pin else {"ENABLE_CPU_PINNING": "NO"})}
                yield _setting(f"openvino {hint}", everything, text, config=hinted, requests=times, threads=(0,))
    for streams in sorted({1, max(1, cores // 2), cores, 2 * cores}):
        threads = max(cores, streams)
        for pin in (True, False) if threads == cores else (False,):
            text = f"{streams} streams, {threads} threads, {'' if pin else 'not '}pinned"
            config = {"NUM_STREAMS": str(streams), "ENABLE_CPU_PINNING": "YES" if pin else "NO"}
            yield _setting("openvino tuned", everything, text, config=config, requests=2, threads=(threads,))
    for name in ("big", "clusters", "cores"):
        if name in layouts:
            config = {"NUM_STREAMS": "1", "ENABLE_CPU_PINNING": "NO"}
            yield _setting("openvino tuned", layouts[name], config=config, requests=0)


def _others(layouts: dict[str, _Layout]) -> Iterator[Setting]:
    for layout in layouts.values():
        yield _setting("ncnn", layout)
    for layout in layouts.values():
        yield _setting("litert", layout)
        yield _setting("litert", layout, "channels last", channels_last=True)
    for layout in layouts.values():
        for last in (True, False):
            words = "channels last" if last else ""
            yield _setting("pytorch eager", layout, words, compiled=False, channels_last=last)
    for layout in layouts.values():
        for freezing, last in ((True, True), (True, False), (False, False)):
            words = ", ".join(filter(None, ("freezing" if freezing else "", "channels last" if last else "")))
            yield _setting("pytorch compiled", layout, words, compiled=True, freezing=freezing, channels_last=last)


def corepipe(topology: Topology, batches: Sequence[int]) -> Setting:
    """corepipe itself, whose plan shares out the cores."""
    options = {"batches": tuple(batches) or (1,), "threads": (0,)}
    return Setting(COREPIPE, "routes", COREPIPE, "all", (topology.cpus,), options)
