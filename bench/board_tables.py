"""Cost tables of boards that are not at hand, from what others measured on them.

**Khadas VIM3** (Amlogic A311D: 4 Cortex-A73 2.2 GHz = `big`, 2 Cortex-A53 1.8 GHz = `little`). Per-layer times of whole
clusters with the Arm Compute Library, fp32, batch 1, from the CSV files of Ehsan-aghapour/CO-UP-Profiling, read from
`../shared/boards` and never copied. Taken are the rows of metric `task` (the layers alone, not loading the image nor
postprocessing) of components `B` and `L` (not the GPU) at the highest frequency that the rows name for component and
host (in the files at hand: `max` and `max` everywhere); repeats are averaged. An entry of `Layer` is a layer here, and
every place between two entries a legal cut.

**HiKey 970** (Kirin 970: 4 Cortex-A73 2.36 GHz, 4 Cortex-A53 1.8 GHz). Only whole-network rates of whole clusters are
published (Wang et al., IEEE Design & Test 2020). A layer of the network as `corepipe.network.zoo` builds it is given
the time (FLOPs / F + bytes / B): F and B of a cluster are the non-negative least squares fit to the five networks'
rates (`fit_rates`; it is off by up to 22 %), and each network is then scaled so that its layers add up to its published
time exactly.

What neither has is filled in, `Fill` saying how:

- Workers on part of a cluster. On the VIM3 whole networks were measured on 1, 2, 3 and 4 big cores, kernels split over
  them (`VIM3_FPS`). *Alone*, every layer of a network takes as many times longer on n cores than on all as the network
  does; a little cluster scales as the big one; the HiKey's clusters scale as the VIM3's; a network without figures
  scales as the geometric mean of the five. What such workers reach *side by side* nobody measured. `SHARED`: what keeps
  4 cores from being 4 times as fast is shared by the cluster (memory, L2), so workers on all of its cores together
  are as fast as one worker over all, no faster. `FREE`: it comes from splitting kernels, so workers do not slow each
  other down at all. A real board lies between the two. `WHOLE`: whole clusters only, nothing filled in.
- A worker over both clusters: from the VIM3's measured B4 and B4+s2.
- Hand-over: 0.5 ms on either side of a hop, whatever crosses; nothing at the user's end.
- Contention between the clusters: none, unless `busy_factor` is given.
"""

from __future__ import annotations

import csv
import enum
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from corepipe.cost.table import (
    ConfigCosts,
    CostTable,
    EngineName,
    HopCosts,
    Provenance,
    TableCluster,
    TableMachine,
    TableNetwork,
)
from corepipe.errors import DocumentError
from corepipe.network import zoo
from corepipe.network.load import load_network
from corepipe.network.model import Network

DATA = Path(__file__).resolve().parents[2] / "shared" / "boards"
"""Where the CSV files are by default: `../shared/boards` beside the repository."""

HOP = HopCosts(fixed_s=1e-3)

VIM3_FPS: dict[str, tuple[float, float, float, float, float]] = {
    "alexnet": (5.24, 7.07, 8.58, 8.73, 7.32),
    "googlenet": (3.32, 5.75, 7.94, 8.93, 7.96),
    "mobilenet": (7.01, 11.5, 15.1, 16.9, 17.1),
    "resnet50": (1.38, 1.95, 2.39, 2.52, 2.57),
    "squeezenet": (5.83, 9.68, 12.8, 14.2, 12.7),
}
"""Measured frames/s of the whole network on a VIM3, kernels split over cores: B1, B2, B3, B4, B4+s2."""

HIKEY_FPS: dict[str, tuple[float, float]] = {
    "alexnet": (7.6, 2.2),
    "googlenet": (7.1, 3.0),
    "mobilenet": (17.7, 6.5),
    "resnet50": (2.8, 1.5),
    "squeezenet": (15.7, 6.8),
}
"""Published frames/s on a HiKey 970: B4, s4."""

_GRAPHS = {
    "Alex": "alexnet",
    "Google": "googlenet",
    "MobileV1": "mobilenet",
    "ResV1_50": "resnet50",
    "InceptionV3": "inception-v3",
    "InceptionV4": "inception-v4",
    "InceptionResnetV2": "inception-resnet-v2",
}
_COLUMNS = ("Graph", "Component", "Freq", "Freq_Host", "Layer", "Metric", "Time")


class Fill(enum.Enum):
    """How workers on part of a cluster are filled in; the value is said in the board's name."""

    WHOLE = "whole clusters only"
    SHARED = "any cores, cluster shared"
    FREE = "any cores, no contention"


def vim3_tables(
    fill: Fill, folder: Path = DATA, *, hop: HopCosts = HOP, busy_factor: float = 1.0
) -> dict[str, CostTable]:
    """Cost tables of the VIM3 by network.

    Args:
        fill: see above.
        folder: where the CSV files are.
        hop: what handing over costs.
        busy_factor: how many times longer a segment takes while the other workers work.

    Raises:
        DocumentError: the folder has no such files, or one is not as expected.
    """
    tables = {}
    for network, layers in read_layers(folder).items():
        count = len(layers["B"])
        described = TableNetwork(
            name=network,
            sha256="",
            layers=tuple(f"part{i}" for i in range(count)),
            cut_bytes=(0,) * (count + 1),
        )
        tables[network] = _table(
            "Khadas VIM3", described, {"big": (4, layers["B"]), "little": (2, layers["L"])}, fill, hop, busy_factor,
            "layers of whole clusters measured by Ehsan-aghapour/CO-UP-Profiling",
        )  # fmt: skip
    return tables


def hikey970_tables(fill: Fill, *, hop: HopCosts = HOP, busy_factor: float = 1.0) -> dict[str, CostTable]:
    """Modelled cost tables of the HiKey 970 by network; arguments as for `vim3_tables`."""
    networks = {name: load_network(zoo.build(name), keep_strides=True) for name in HIKEY_FPS}
    rates = [fit_rates(networks, {name: fps[cluster] for name, fps in HIKEY_FPS.items()}) for cluster in (0, 1)]
    tables = {}
    for name, network in networks.items():
        layers = []
        for cluster, per_unit in enumerate(rates):
            seconds = _work(network) @ per_unit
            layers.append(seconds / (seconds.sum() * HIKEY_FPS[name][cluster]))
        legal = set(network.legal_cuts())
        described = TableNetwork(
            name=name,
            sha256="",
            layers=tuple(layer.name for layer in network.layers),
            cut_bytes=tuple(cut.nbytes for cut in network.cuts),
            illegal_cuts=tuple(cut for cut in range(1, len(network.layers)) if cut not in legal),
        )
        tables[name] = _table(
            "HiKey 970 (model)", described, {"big": (4, layers[0]), "little": (4, layers[1])}, fill, hop, busy_factor,
            "model fitted to whole-cluster rates published by Wang et al., IEEE Design & Test 2020",
        )  # fmt: skip
    return tables


def fit_rates(
    networks: Mapping[str, Network], fps: Mapping[str, float]
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Seconds per FLOP and per byte, shape (2,), whose sums come nearest to measured rates in relative terms."""
    totals = np.array([_work(networks[name]).sum(axis=0) * fps[name] for name in fps])
    scale = totals.max(axis=0)
    solution, _ = nnls(totals / scale, np.ones(len(totals)))
    return np.asarray(solution / scale)


def read_layers(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Seconds of each layer by network and component (`B`, `L`), repeats averaged.

    Raises:
        DocumentError: no files, a column or layer is missing, or a time is not a positive number.
    """
    files = sorted(folder.glob("vim3-layers-*.csv")) if folder.is_dir() else []
    if not files:
        raise DocumentError(f"{folder}: no vim3-layers-*.csv here; give the folder that has them with --data FOLDER")
    times: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for graph, component, layer, seconds in _at_full_speed([row for file in files for row in _rows(file)]):
        times[_GRAPHS.get(graph, graph.lower()), component][layer].append(seconds)
    found: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for (network, component), layers in times.items():
        if sorted(layers) != list(range(len(layers))):
            raise DocumentError(f"{folder}: {network} on {component} lacks layers; it has {sorted(layers)}")
        found[network][component] = [statistics.mean(layers[i]) for i in range(len(layers))]
    for network, components in found.items():
        if set(components) != {"B", "L"} or len(components["B"]) != len(components["L"]):
            raise DocumentError(f"{folder}: {network} needs the same layers for components B and L")
    return dict(sorted(found.items()))


def speedup(network: str, cores: int) -> float:
    """How much faster the VIM3's whole big cluster is than so many of its cores, kernels split over them."""
    known = [VIM3_FPS[network]] if network in VIM3_FPS else list(VIM3_FPS.values())
    return math.exp(statistics.mean(math.log(fps[3] / fps[cores - 1]) for fps in known))


def all_cores_ratio(network: str) -> float:
    """Frames/s over both clusters of the VIM3, kernels split over all cores, by those of its big cluster alone."""
    known = [VIM3_FPS[network]] if network in VIM3_FPS else list(VIM3_FPS.values())
    return math.exp(statistics.mean(math.log(fps[4] / fps[3]) for fps in known))


def _table(
    board: str,
    network: TableNetwork,
    clusters: Mapping[str, tuple[int, Sequence[float]]],
    fill: Fill,
    hop: HopCosts,
    busy_factor: float,
    source: str,
) -> CostTable:
    numbers = iter(range(64))
    configs = []
    for name, (cores, whole) in clusters.items():
        for count in range(1 if fill is not Fill.WHOLE else cores, cores + 1):
            # A cluster of two cores scales from one to two as the VIM3's big cluster does.
            slower = speedup(network.name, count) / speedup(network.name, cores)
            busy = (cores / count if fill is Fill.SHARED else slower) * busy_factor
            configs.append(
                ConfigCosts(
                    config=f"{name}{count}",
                    engine="armcl",
                    layer_s=tuple(float(s) * slower for s in whole),
                    layer_busy_s=tuple(float(s) * busy for s in whole),
                )
            )
    total = sum(cores for cores, _ in clusters.values())
    fastest = next(iter(clusters.values()))[1]
    ratio = all_cores_ratio(network.name)
    configs.append(ConfigCosts(config=f"all{total}", engine="armcl", layer_s=tuple(float(s) / ratio for s in fastest)))
    return CostTable(
        network=network,
        machine=TableMachine(
            description=f"{board}, {fill.value}",
            fingerprint="",
            clusters=tuple(
                TableCluster(name=name, cores=tuple(next(numbers) for _ in range(cores)))
                for name, (cores, _) in clusters.items()
            ),
        ),
        engines=(EngineName(name="armcl", version=""),),
        configs=tuple(configs),
        hop=hop,
        provenance=Provenance(source="board", note=f"{source}; the rest filled in, see bench/board_tables.py"),
    )


def _work(network: Network) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """FLOPs and bytes of each layer, shape (L, 2)."""
    return np.array(
        [(d.flops, d.bytes_in + d.bytes_out + d.bytes_weights) for d in (layer.descriptor for layer in network.layers)],
        float,
    )


def _rows(file: Path) -> list[tuple[str, str, str, str, int, float]]:
    """Graph, component, its frequency, the host's, layer and seconds of the rows that count."""
    rows = []
    with file.open(newline="") as handle:
        reader = csv.DictReader(handle)
        missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise DocumentError(f"{file}: no column {missing[0]!r}; expected {', '.join(_COLUMNS)}")
        for row in reader:
            if row["Metric"] != "task" or row["Component"] not in ("B", "L"):
                continue
            try:
                layer, seconds = int(row["Layer"]), float(row["Time"]) / 1e3
            except (TypeError, ValueError):
                layer, seconds = 0, math.nan
            if not (math.isfinite(seconds) and seconds > 0):
                raise DocumentError(
                    f"{file}, line {reader.line_num}: layer {row['Layer']!r} takes {row['Time']!r} ms; expected a "
                    f"layer number and a time above 0"
                )
            rows.append((row["Graph"], row["Component"], row["Freq"], row["Freq_Host"], layer, seconds))
    return rows


def _at_full_speed(
    rows: Sequence[tuple[str, str, str, str, int, float]],
) -> list[tuple[str, str, int, float]]:
    """Graph, component, layer and seconds of the rows at the highest frequencies of each graph and component."""
    highest: dict[tuple[str, str], tuple[float, float]] = {}
    for graph, component, own, host, _, _ in rows:
        speeds = (_speed(own), _speed(host))
        highest[graph, component] = max(highest.get((graph, component), speeds), speeds)
    return [
        (graph, component, layer, seconds)
        for graph, component, own, host, layer, seconds in rows
        if (_speed(own), _speed(host)) == highest[graph, component]
    ]


def _speed(text: str) -> float:
    """A frequency column as a number; `max` is above every number, what is neither below."""
    if text == "max":
        return math.inf
    try:
        return float(text)
    except ValueError:
        return -math.inf
