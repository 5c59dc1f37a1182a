"""The plot of a result file: every system relative to the best rival, for each network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rival_systems.catalogue import COREPIPE
from rival_systems.result import best_rival, networks_of, rows_of, systems_of


def plot(data: Mapping[str, Any], path: Path) -> bool:
    """Write the picture; False where matplotlib is missing."""
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError:
        return False
    networks, systems = networks_of(data), systems_of(data)
    figure = Figure(figsize=(max(8.0, 3.6 + 2.2 * len(networks)), 4.6), layout="constrained")
    axes = figure.subplots()
    width = 0.85 / max(1, len(systems))
    shades = colormaps["tab20"]
    for number, system in enumerate(systems):
        places, heights, errors = [], [], ([], [])
        for index, network in enumerate(networks):
            rows = rows_of(data, network)
            rival = best_rival(rows)
            if system not in rows or rival is None:
                continue
            best = rival["throughput_fps"]
            fps, (low, high) = rows[system]["throughput_fps"], rows[system]["spread_fps"]
            places.append(index + (number - (len(systems) - 1) / 2) * width)
            heights.append(fps / best)
            errors[0].append((fps - low) / best)
            errors[1].append((high - fps) / best)
        color = "black" if system == COREPIPE else shades((number - 1) % 20)
        axes.bar(places, heights, width, yerr=errors, label=system, color=color, error_kw={"linewidth": 0.8})
    axes.axhline(1, color="gray", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(networks)), networks)
    axes.set_ylabel("frames/s relative to the best rival")
    how = "cores slowed by emulation" if data["emulated"] else "nothing emulated"
    figure.suptitle(f"{data['environment']['cpu']}, {how}, fp32, batch up to {data['batch']}", fontsize=10)
    figure.legend(loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=130)
    return True
