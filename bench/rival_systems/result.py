"""The result file of `bench/rivals.py`, and what it says: figures, geometric means, goals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from corepipe.report.terminal import rate_text
from rival_systems.catalogue import COREPIPE, ORT_SESSIONS
from rival_systems.measure import Measured

GOALS = {
    "emulated": {"routes/best_ort_session": 1.30, "routes/best_rival": 1.05, "routes/bound": 0.95},
    "as it is": {"routes/best_rival": 1.05, "routes/bound": 0.95},
    "batched": {"routes/best_rival": 1.10},
}
"""The least geometric means over the networks, by kind of measurement."""


BUSY = 0.02
"""A system that uses more of a core than this while others run is named."""


def document(measured: Mapping[str, Measured], emulated: bool, batch: int) -> dict[str, Any]:
    """The result file, without its environment.

    Args:
        measured: by network.
        emulated: whether cores were slowed.
        batch: the largest that was allowed.
    """
    rows, others, screening, absent = [], [], [], []
    for network, one in measured.items():
        for row in one.rows:
            listed = {"network": network, **{k: v for k, v in row.items() if k != "best"}}
            (rows if row["best"] else others).append(listed)
        screening += [{"network": network, **tried} for tried in one.screening]
        absent += [{"system": gone["system"], "network": network, "reason": gone["reason"]} for gone in one.absent]
    made = {
        "schema_version": 1,
        "emulated": emulated,
        "batch": batch,
        "rows": rows,
        "geomean": {},
        "bound_fps": {network: one.bound_fps for network, one in measured.items()},
        "absent": _merged(absent, list(measured)),
        "runners_up": others,
        "screening": screening,
        "spread": "lowest and highest slice; throughput is the median over the slices; ratios to rivals are medians "
        "over the rounds, in parentheses their first and third quartiles",
    }
    return _judged(made)


def _judged(made: dict[str, Any]) -> dict[str, Any]:
    """A result with its geometric means and goals."""
    made["geomean"] = geomeans(made)
    made["goals"] = [{"goal": text, "met": met} for text, met in goals(made)]
    return made


def check_alike(earlier: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Hold an earlier result against what is to be measured.

    Raises:
        SystemExit: they cannot stand in one table.
    """
    for key in ("schema_version", "emulated", "slow", "batch"):
        if earlier.get(key) != data[key]:
            raise SystemExit(f"the earlier result is of another {key}: {earlier.get(key)}, not {data[key]}")


def extended(earlier: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """A result with the networks that another one holds and it does not; `earlier_runs` tells where those are from."""
    own = networks_of(data)
    kept = [network for network in networks_of(earlier) if network not in own]
    made = dict(data)
    for key in ("rows", "runners_up", "screening"):
        made[key] = [row for row in earlier[key] if row["network"] in kept] + data[key]
    made["bound_fps"] = {network: earlier["bound_fps"][network] for network in kept} | data["bound_fps"]
    absent = [
        {"system": one["system"], "network": network, "reason": one["reason"]}
        for of, networks in ((earlier, kept), (data, own))
        for one in of["absent"]
        for network in networks
        if network in one.get("networks", networks)
    ]
    made["absent"] = _merged(absent, [*kept, *own])
    before = [
        {**run, "networks": [network for network in run["networks"] if network in kept]}
        for run in earlier.get("earlier_runs", ())
    ]
    apart = {network for run in before for network in run["networks"]}
    last = {"networks": [n for n in kept if n not in apart], "environment": earlier["environment"]}
    made["earlier_runs"] = [run for run in (*before, last, *data.get("earlier_runs", ())) if run["networks"]]
    return _judged(made)


def _merged(absent: list[dict[str, Any]], networks: Sequence[str]) -> list[dict[str, Any]]:
    """Systems that are absent everywhere for the same reason once, without a network."""
    merged: dict[tuple[str, str], list[str]] = {}
    for one in absent:
        merged.setdefault((one["system"], one["reason"]), []).append(one["network"])
    listed = []
    for (system, reason), missing in merged.items():
        where = {} if len(missing) == len(networks) else {"networks": missing}
        listed.append({"system": system, **where, "reason": reason})
    return listed


def networks_of(data: Mapping[str, Any]) -> list[str]:
    """The networks in their order."""
    return list(data["bound_fps"])


def systems_of(data: Mapping[str, Any]) -> list[str]:
    """corepipe first, then the rivals in their order."""
    names = dict.fromkeys(row["system"] for row in data["rows"])
    return sorted(names, key=lambda name: name != COREPIPE)


def rows_of(data: Mapping[str, Any], network: str) -> dict[str, dict[str, Any]]:
    """A network's rows by system."""
    return {row["system"]: row for row in data["rows"] if row["network"] == network}


def best_rival(rows: Mapping[str, dict[str, Any]], among: Sequence[str] | None = None) -> dict[str, Any] | None:
    """The fastest row that is not corepipe's."""
    rivals = [row for name, row in rows.items() if name != COREPIPE and (among is None or name in among)]
    return max(rivals, key=lambda row: row["throughput_fps"], default=None)


@dataclass(frozen=True)
class Ratio:
    """Throughput over another system's: median, first and third quartile of what it was in each round.

    Taken round by round, it does not feel that the machine is faster in one minute than in another.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f}-{self.high:.3f})"


def ratio(own: Mapping[str, Any], rival: Mapping[str, Any]) -> Ratio:
    """Of two rows of the same network, in the rounds that both ran in, which are the first ones."""
    rounds = [a / b for a, b in zip(own["slices_fps"], rival["slices_fps"], strict=False)]
    low, median, high = statistics.quantiles(rounds, n=4, method="inclusive") if len(rounds) > 1 else rounds * 3
    return Ratio(median, low, high)


def geomeans(data: Mapping[str, Any]) -> dict[str, float | None]:
    """Geometric means over the networks of corepipe against others; None where a network has no figure.

    Against the best single ONNX Runtime session and the best rival of each network, against the one rival that is best
    over all networks (the least mean over rivals that have a figure on each), and against the bound; what exceeds it
    (the costs were measured in a slower hour) counts as 1.
    """
    ratios: dict[str, list[float]] = {"routes/best_ort_session": [], "routes/best_rival": [], "routes/bound": []}
    one_rival: dict[str, list[float]] = {}
    networks = networks_of(data)
    for network in networks:
        rows = rows_of(data, network)
        if COREPIPE not in rows:
            continue
        own = rows[COREPIPE]
        if session := best_rival(rows, ORT_SESSIONS):
            ratios["routes/best_ort_session"].append(ratio(own, session).median)
        if rival := best_rival(rows):
            ratios["routes/best_rival"].append(ratio(own, rival).median)
        for name in rows.keys() - {COREPIPE}:
            one_rival.setdefault(name, []).append(ratio(own, rows[name]).median)
        if bound := data["bound_fps"][network]:
            ratios["routes/bound"].append(min(own["throughput_fps"] / bound, 1.0))
    means = {name: _geomean(of) if of and len(of) == len(networks) else None for name, of in ratios.items()}
    overall = [_geomean(of) for of in one_rival.values() if len(of) == len(networks)]
    return means | {"routes/best_rival_over_all": min(overall, default=None)}


def _geomean(values: Sequence[float]) -> float:
    return round(statistics.geometric_mean(values), 4)


def goals(data: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """Each goal of this kind of measurement in words, and whether it is met."""
    kind = "batched" if data["batch"] > 1 else "emulated" if data["emulated"] else "as it is"
    for name, least in GOALS[kind].items():
        value = data["geomean"][name]
        yield f"{name} {'not measured' if value is None else f'{value:.3f}'}, goal {least:.2f}", (value or 0) >= least
    for network in networks_of(data):
        rows = rows_of(data, network)
        rival = best_rival(rows)
        if COREPIPE not in rows or rival is None:
            yield f"{network}: not measured", False
            continue
        share = ratio(rows[COREPIPE], rival)
        met = share.high >= 1
        yield f"{network}: {share} of {rival['system']}, {'not ' if met else ''}behind by more than the spread", met


def in_words(data: Mapping[str, Any], network: str) -> str:
    """A network's outcome in a line."""
    rows = rows_of(data, network)
    rival = best_rival(rows)
    if COREPIPE not in rows or rival is None:
        return "not compared"
    bound = data["bound_fps"][network]
    promise = f", bound {rate_text(bound)}" if bound else ""
    own = rows[COREPIPE]
    return f"{rate_text(own['throughput_fps'])} frames/s, {ratio(own, rival)} of {rival['system']}{promise}"


def show(data: Mapping[str, Any], console: Console) -> None:
    """The table, what is absent, and the goals, met or not."""
    networks = networks_of(data)
    how = "cores slowed by emulation" if data["emulated"] else "this machine as it is"
    table = Table(title=f"frames/s, batch up to {data['batch']}, {how}: median (lowest-highest slice)")
    table.add_column("system")
    for network in networks:
        table.add_column(network, justify="right")
    by_network = {network: rows_of(data, network) for network in networks}
    for system in systems_of(data):
        cells = []
        for network in networks:
            row = by_network[network].get(system)
            if row is None:
                cells.append("-")
                continue
            low, high = row["spread_fps"]
            cells.append(f"{rate_text(row['throughput_fps'])} ({rate_text(low)}-{rate_text(high)})\n{row['settings']}")
        table.add_row(system, *cells)
    table.add_section()
    table.add_row("bound", *(rate_text(data["bound_fps"][network] or math.nan) for network in networks))
    console.print(table)
    for one in data["absent"]:
        where = f" on {', '.join(one['networks'])}" if "networks" in one else ""
        console.print(f"absent: {one['system']}{where}: {one['reason']}", markup=False)
    for row in data["rows"]:
        if row["idle_cpu_share"] > BUSY:
            share = f"{row['idle_cpu_share']:.0%} of a core"
            console.print(f"{row['system']} on {row['network']} used {share} while others ran", markup=False)
    for name, value in data["geomean"].items():
        console.print(f"geometric mean {name}: {'-' if value is None else f'{value:.3f}'}", markup=False)
    for goal in data["goals"]:
        console.print(f"{'met   ' if goal['met'] else 'MISSED'} {goal['goal']}", markup=False)
