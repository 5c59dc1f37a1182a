"""The five networks of the Pipe-it paper: every plan side by side on this machine, as it is or with slowed cores.

    python bench/networks.py                                  this machine as it is
    python bench/networks.py --slow 1:0.4                     CPU 1 at 0.4 of its speed (emulated; needs the privilege)
    python bench/networks.py --json bench/results/FILE.json   keep the result

Runs `corepipe bench` for each network, so the figures are those that a user sees.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from corepipe.network.zoo import NAMES
from corepipe.report.terminal import rate_text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(NAMES), help="networks or ONNX files (default: the five)")
    parser.add_argument("--slow", help="CPUs and speeds as for `corepipe emulate`, such as 1:0.4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a slice")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--no-cache", action="store_true", help="measure the costs anew")
    options = parser.parse_args()
    results = [bench(model, options) for model in options.models]
    document = {"schema_version": 1, "emulated": bool(options.slow), "slow": options.slow, "networks": results}
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    show(results)
    return 0


def bench(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """One network's results, as `corepipe bench --json` writes them."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, "-m", "corepipe"]
        if options.slow:
            command += ["emulate", "--slow", options.slow, "--", *command]
        command += ["bench", model, "--rounds", str(options.rounds), "--seconds", str(options.seconds)]
        command += ["--json", str(out), *(["--no-cache"] if options.no_cache else [])]
        print(f"benchmarking {Path(model).name}", file=sys.stderr, flush=True)
        code = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
        if code not in (0, 3):
            raise SystemExit(f"bench of {model} failed with exit code {code}")
        result: dict[str, Any] = json.loads(out.read_text())
        words = "corepipe bench " + Path(model).name
        result["command"] = f"corepipe emulate --slow {options.slow} -- {words}" if options.slow else words
        return result


def show(results: list[dict[str, Any]]) -> None:
    """Frames/s of every plan on every network, and geometric means of the gains."""
    plans = list(dict.fromkeys(r["plan"] for result in results for r in result["results"]))
    table = Table(title="frames/s (measured / predicted)")
    table.add_column("network")
    for plan in plans:
        table.add_column(plan, justify="right")
    gains: dict[str, list[float]] = {plan: [] for plan in plans}
    for result in results:
        rows = {r["plan"]: r for r in result["results"]}
        base = rows["all-cores"]["throughput_fps"]
        cells = []
        for plan in plans:
            row = rows.get(plan)
            if row is None:
                cells.append("-")
                continue
            gains[plan].append(row["throughput_fps"] / base)
            mark = "" if row["stable"] else " ?"
            predicted = "-" if row["predicted_fps"] is None else rate_text(row["predicted_fps"])
            cells.append(f"{rate_text(row['throughput_fps'])} / {predicted}{mark}")
        table.add_row(result["model"]["name"], *cells)
    table.add_section()
    means = [math.exp(sum(map(math.log, g)) / len(g)) if g else math.nan for g in gains.values()]
    table.add_row("geometric mean gain", *(f"{mean:.2f}x" for mean in means))
    Console(width=160).print(table)


if __name__ == "__main__":
    sys.exit(main())
