"""Makes the tables of the README and the docs from the committed result files, never by hand.

python bench/readme.py            rewrite the tables between the markers in README.md and docs/*.md
python bench/readme.py --check    exit with 1 if they differ from the result files
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from rival_systems.catalogue import COREPIPE
from rival_systems.result import best_rival, geomeans, goals, networks_of, ratio, rows_of, systems_of

from corepipe.report.terminal import rate_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
AS_QUICK = "corepipe / bound, had hops been as quick as in the costs"
DIGITS = 3
"""Of rates in the tables."""

GAINING = ("pipe-it", "pipeline", "replicas", "routes")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = [(path, new) for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
             if (new := fill(path.read_text())) != path.read_text()]  # fmt: skip
    for path, new in stale:
        if options.check:
            print(f"{path.name} differs from the result files; run: python bench/readme.py", file=sys.stderr)
        else:
            path.write_text(new)
    return int(options.check and bool(stale))


def fill(text: str) -> str:
    """The text with the tables between `<!-- results:FILE -->` and `<!-- end -->` made anew."""

    def table(match: re.Match[str]) -> str:
        return f"<!-- results:{match[1]} -->\n{render(RESULTS / match[1])}\n<!-- end -->"

    return re.sub(r"<!-- results:(\S+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def render(path: Path) -> str:
    """A result file as a Markdown table with its environment."""
    data = json.loads(path.read_text())
    if "geomean" in data:
        return rivals(data)
    if "mean" in data:
        return prediction(data)
    if "networks" in data:
        return networks(data)
    return overhead(data) if "rounds" in data else boards(data)


def networks(data: dict[str, Any]) -> str:
    """The results of `bench/networks.py`."""
    plans = list(dict.fromkeys(row["plan"] for one in data["networks"] for row in one["results"]))
    lines = [f"| network | {' | '.join(plans)} | routes / bound |", "|---|" + "---|" * (len(plans) + 1)]
    for one in data["networks"]:
        rows = {row["plan"]: row for row in one["results"]}
        best = max(row["throughput_fps"] for row in rows.values())
        cells = [figure(rows[plan], best) if plan in rows else "-" for plan in plans]
        routes = rows.get("routes")
        share = f"{routes['throughput_fps'] / routes['bound_fps']:.2f}" if routes and routes.get("bound_fps") else "-"
        lines.append(f"| {one['model']['name']} | {' | '.join(cells)} | {share} |")
    env = data["networks"][0]["environment"]
    how = f"cores slowed by emulation (`--slow {data['slow']}`)" if data["emulated"] else "measured, nothing emulated"
    lines.append("")
    lines.append(
        f"Frames/s, median of interleaved slices (lowest to highest slice); `?` marks an unstable figure. "
        f"{how.capitalize()}; "
        f"{env['cpu']}, {env['cpus']} CPUs, {env['engine']}, fp32, batch 1, {env['date'][:10]}."
    )
    return "\n".join(lines)


def rivals(data: dict[str, Any]) -> str:
    """The results of `bench/rivals.py`: a line for each system, the geometric means, what is absent."""
    networks = {network: rows_of(data, network) for network in networks_of(data)}
    best = {network: max(row["throughput_fps"] for row in rows.values()) for network, rows in networks.items()}
    lines = [f"| system | {' | '.join(networks)} |", "|---|" + "---|" * len(networks)]
    for system in systems_of(data):
        cells = []
        for network, rows in networks.items():
            if system not in rows:
                cells.append("-")
                continue
            fps, (low, high) = rows[system]["throughput_fps"], rows[system]["spread_fps"]
            value = f"**{rate_text(fps, DIGITS)}**" if fps == best[network] else rate_text(fps, DIGITS)
            cells.append(f"{value} ({rate_text(low, DIGITS)}-{rate_text(high, DIGITS)})")
        lines.append(f"| {system} | {' | '.join(cells)} |")
    shares: dict[str, list[str]] = {"corepipe / best rival": [], "corepipe / bound": [], AS_QUICK: []}
    for network, rows in networks.items():
        own, rival, bound = rows.get(COREPIPE), best_rival(rows), data["bound_fps"][network]
        shares["corepipe / best rival"].append(f"{ratio(own, rival).median:.2f}" if own and rival else "-")
        shares["corepipe / bound"].append(f"{own['throughput_fps'] / bound:.2f}" if own and bound else "-")
        over = own.get("hops_over_costs") if own else None
        value = f"{own['throughput_fps'] / bound * over:.2f}" if own and bound and over else "-"
        shares[AS_QUICK].append(value)
    if set(shares[AS_QUICK]) == {"-"}:
        del shares[AS_QUICK]
    lines += [f"| {title} | {' | '.join(cells)} |" for title, cells in shares.items()]
    env = data["environment"]
    how = f"cores slowed by emulation (`--slow {data['slow']}`)" if data["emulated"] else "nothing emulated"
    batch = "batch 1" if data["batch"] == 1 else f"every system at its best batch up to {data['batch']}"
    names = {
        "routes/best_ort_session": "the best single ONNX Runtime session",
        "routes/best_rival": "the best rival of each network",
        "routes/best_rival_over_all": "the rival that is best over all",
    }
    found = geomeans(data)
    above = " (counted as 1 where costs were measured in a slower hour than the run)"
    means = [f"{value:.2f}x {name}" for key, name in names.items() if (value := found[key])]
    pairs = [(rows[COREPIPE], best_rival(rows)) for rows in networks.values() if COREPIPE in rows]
    quotients = [own["throughput_fps"] / rival["throughput_fps"] for own, rival in pairs if rival]
    if value := found["routes/bound"]:
        over = any(rows[COREPIPE]["throughput_fps"] > (data["bound_fps"][network] or math.inf)
                   for network, rows in networks.items() if COREPIPE in rows)  # fmt: skip
        means.append(f"{value:.2f} of the bound{above if over else ''}")
    missed = [text for text, met in goals({**data, "geomean": found}) if not met]
    parts = [f"{', '.join(run['networks'])} in a run that began {run['environment']['date'][:16].replace('T', ' ')}"
             for run in data.get("earlier_runs", ())]  # fmt: skip
    engines = ", ".join(f"{name} {version}" for name, version in env["versions"].items() if name != "corepipe")
    lines.append("")
    lines.append(
        f"Frames/s, median of interleaved slices (lowest to highest slice), every system with the best of its settings "
        f"(in the file); ratios are medians over the rounds of what they were in each. "
        f"By geometric mean corepipe reaches {', '.join(means) or 'no comparable figure'}. "
        + (
            f"Medians divided by medians give {statistics.geometric_mean(quotients):.2f}x the best rival. "
            if found["routes/best_rival"]
            else ""
        )
        + (f"Goals missed: {'; '.join(missed)}. " if missed else "")
        + "".join(f"Absent: {_absent(one)}. " for one in data["absent"])
        + "".join(f"Measured apart: {part} UTC. " for part in parts)
        + f"{how.capitalize()}; {env['cpu']}, {env['cpus']} CPUs, fp32, {batch}, {engines}, {env['date'][:10]}."
    )
    return "\n".join(lines)


def _absent(one: dict[str, Any]) -> str:
    where = f" on {', '.join(one['networks'])}" if "networks" in one else ""
    return f"{one['system']}{where} ({one['reason']})"


def prediction(data: dict[str, Any]) -> str:
    """The results of `bench/prediction.py`: the paper's model beside the better one."""
    measures = {"mape": "MAPE", "mape_above_1pct": "MAPE, layers > 1 %", "network_error": "network", "regret": "regret"}
    lines = [f"| network | {' | '.join(measures.values())} |", "|---|" + "---|" * len(measures)]
    for row in [*data["networks"], {"network": "**mean**", **data["mean"]}]:
        cells = [f"{row['paper'][key]:.1%} / {row['model'][key]:.1%}" for key in measures]
        lines.append(f"| {row['network']} | {' | '.join(cells)} |")
    lines += ["", "| cores | MAPE | network |", "|---|---|---|"]
    lines += [f"| {name} | {row['mape']:.1%} | {row['network_error']:.1%} |" for name, row in data["configs"].items()]
    lines += ["", "| kernels (one core) | share of the time | MAPE | bias |", "|---|---|---|---|"]
    for name, row in data["families"].items():
        lines.append(f"| {name} | {row['share']:.1%} | {row['mape']:.1%} | {row['bias']:+.1%} |")
    env, calibration = data["environment"], data["calibration"]
    how = "little core emulated" if data["emulated"] else "measured, nothing emulated"
    lines += [
        "",
        f"The paper's model / the better one; the other two tables are of the better one. {how.capitalize()}; "
        f"{env['cpu']}, {env['cpus']} CPUs, {env['engine']}, fp32, {env['date'][:10]}. Calibrated on "
        f"{calibration['layers']} layers of {calibration['networks']} synthetic networks, spread "
        f"{calibration['spread']:.1%}.",
    ]
    return "\n".join(lines)


def overhead(data: dict[str, Any]) -> str:
    """The results of `bench/overhead.py --against`: this version's figures, each followed by the other's."""
    figures = {"user_us_per_frame": "user's process, us a frame", "worker_us_per_hop": "worker, us a hop"}
    figures |= {"frames_per_s": "frames/s"}
    head = [cell for words in figures.values() for cell in (words, "before")]
    lines = [f"| frame | hops | {' | '.join(head)} |", "|---|---|" + "---|" * len(head)]
    cases: dict[tuple[float, int], dict[str, Any]] = {}
    for row in data["rows"]:
        cases.setdefault((row["frame_kb"], row["hops"]), {})[row["version"]] = row
    for (kilobytes, hops), rows in cases.items():
        cells = [f"{rows[version][key]['median']:.0f}" for key in figures for version in ("this", "before")]
        lines.append(f"| {kilobytes:.0f} kB | {hops} | {' | '.join(cells)} |")
    env = data["environment"]
    lines += [
        "",
        f"Medians of {data['rounds']} rounds, versions in turns; {env['cpu']}, {env['cpus']} CPUs, {env['date'][:10]}.",
    ]
    return "\n".join(lines)


def figure(row: dict[str, Any], best: float) -> str:
    """One throughput with its spread; of a plan that is the same as another, which that is."""
    if row.get("same_as"):
        return f"= {row['same_as']}"
    low, high = row["throughput_spread_fps"]
    value = rate_text(row["throughput_fps"], DIGITS)
    value = f"**{value}**" if row["throughput_fps"] == best else value
    return f"{value} ({rate_text(low, DIGITS)}-{rate_text(high, DIGITS)}){'' if row['stable'] else ' ?'}"


def boards(data: dict[str, Any]) -> str:
    """The results of `bench/boards.py`."""
    rows = [row for row in data["rows"] if "whole clusters" in row["board"]]
    plans = list(rows[0]["fps"])
    lines = [f"| board | network | {' | '.join(plans)} | bound |", "|---|---|" + "---|" * (len(plans) + 1)]
    for row in rows:
        measured = row["board"].startswith("Khadas VIM3") and row["network"] in data["measured_vim3_fps"]
        marks = {} if measured else {"all-cores": " *"}
        cells = [rate_text(row["fps"].get(plan, math.nan), DIGITS) + marks.get(plan, "") for plan in plans]
        lines.append(
            f"| {row['board']} | {row['network']} | {' | '.join(cells)} | {rate_text(row['bound_fps'], DIGITS)} |"
        )
    lines += [
        "",
        "Frames/s by cost tables whose workers are whole clusters, simulated, not measured here; more in the file. "
        "`all-cores` is the big cluster's rate times what all cores were measured to give by it on a VIM3; `*` marks "
        "where that ratio is of other networks or, on the HiKey 970, of another chip: modelled.",
        "",
        f"| HiKey 970 (model), mean gain over the best single cluster | {' | '.join(GAINING)} |",
        "|---|" + "---|" * len(GAINING),
    ]
    for variant, gains in hikey_gains(data).items():
        lines.append(f"| {variant} | {' | '.join(f'{gains[plan]:+.0%}' for plan in GAINING)} |")
    lines.append(f"| *measured* on the board, by Pipe-it's paper | {data['paper_pipe_it_gain']:+.0%} |" + " - |" * 3)
    return "\n".join(lines)


def hikey_gains(data: dict[str, Any]) -> dict[str, dict[str, float]]:
    """For each way to fill in the HiKey 970's table: the mean gain of each plan over the best single cluster."""
    found: dict[str, dict[str, list[float]]] = {}
    for key, rows in data.items():
        loaded = re.fullmatch(r"rows_with_segments_(.*)x_under_load", key)
        for row in rows if key == "rows" or loaded else ():
            board, _, variant = row["board"].partition(", ")
            if board.startswith("HiKey 970"):
                variant += f", segments {loaded[1]} times under load" if loaded else ""
                best = max(row["fps"]["big"], row["fps"]["little"])
                for plan in GAINING:
                    found.setdefault(variant, {}).setdefault(plan, []).append(row["fps"][plan] / best - 1)
    return {variant: {plan: statistics.mean(of) for plan, of in gains.items()} for variant, gains in found.items()}


if __name__ == "__main__":
    sys.exit(main())
