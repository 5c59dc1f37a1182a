"""How well costs are predicted from a calibration, on networks that it never saw: the paper's model and the better one.

    python bench/prediction.py                                    the zoo's five and the nine of the onnx package
    python bench/prediction.py FOLDER/*.onnx                      and these, see bench/export_models.py
    python bench/prediction.py --slow 1:0.4                       with an emulated LITTLE core (needs the privilege)
    python bench/prediction.py --json bench/results/prediction-NAME.json --plot prediction.png

Calibrates the machine if that was not done, and profiles each network if that was not done; both are kept in the
cache folder, so that running it again only fits and compares anew. A profile can be no more exact than the machine is
steady: on a virtual machine two of the same network, some minutes apart, differ by several percent. For each network:

- MAPE: the layers' absolute errors over their measured times, summed over all core configs, so weighted by time. The
  cost of being a segment, which a cost table keeps apart from the layers, counts for the layers by their shares;
- MAPE >1 %: the mean relative error of layers that take more than 1 % of the network;
- network: the error of the whole network's time, mean over core configs;
- regret: the throughput, by the measured costs, that is lost by planning on the predicted ones.

`--plot` needs matplotlib (`pip install matplotlib`).
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import light_networks
import numpy as np
from rich.console import Console
from rich.table import Table

from corepipe import api, plan
from corepipe.cost.calibrate import calibrate
from corepipe.cost.calibration import Calibration
from corepipe.cost.calibration_store import CalibrationStore, read_calibration
from corepipe.cost.predict.fit import fit
from corepipe.cost.predict.layout import samples
from corepipe.cost.predict.table import predict_table, predict_table_paper
from corepipe.cost.predict.terms import family
from corepipe.cost.table import CostTable
from corepipe.document import write_atomically
from corepipe.errors import CorepipeError
from corepipe.network.load import load_network, open_network
from corepipe.network.model import Network
from corepipe.network.zoo import NAMES
from corepipe.topology import Topology, detect

MODELS = ("paper", "model")
MEASURES = ("mape", "mape_above_1pct", "network_error", "regret")
GOAL = {"mape": 0.08, "network_error": 0.05, "regret": 0.02}

_log = Console(stderr=True)


@dataclass(frozen=True)
class Case:
    """One network: what was measured, and each model's table."""

    name: str
    network: Network
    measured: CostTable
    predicted: dict[str, CostTable]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="ONNX files besides the fourteen built-in ones")
    parser.add_argument("--only", action="append", help="only the networks of these names")
    parser.add_argument("--slow", help="CPUs and speeds as for `corepipe emulate`, such as 1:0.4")
    parser.add_argument("--calibration", type=Path, help="use this calibration instead of this machine's own")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--plot", type=Path, help="draw predicted against measured into this file")
    options = parser.parse_args()
    if options.slow:
        return _emulated(options.slow)
    try:
        topology = detect()
        calibration = _calibration(topology, options.calibration)
        cases = _cases(options.models, options.only, topology, calibration)
        document = result(cases, calibration, topology)
        show(document)
        if options.json:
            write_atomically(options.json, json.dumps(document, indent=1) + "\n")
        if options.plot:
            draw(cases, options.plot)
    except CorepipeError as error:
        _log.print(f"error: {error}", style="red", highlight=False, soft_wrap=True, markup=False)
        return error.exit_code
    return 0


def _emulated(slow: str) -> int:
    """Run this very command with slowed cores."""
    rest = [argument for argument in sys.argv[1:] if argument not in ("--slow", slow, f"--slow={slow}")]
    command = [sys.executable, "-m", "corepipe", "emulate", "--slow", slow, "--", sys.executable, __file__, *rest]
    return subprocess.run(command).returncode


def _calibration(topology: Topology, path: Path | None) -> Calibration:
    engine = api.engine_name()
    if path is not None:
        return fit(read_calibration(path, topology, engine))
    store = CalibrationStore()
    kept = store.load(topology, engine)
    if kept is not None:
        return fit(kept)
    made = calibrate(
        topology,
        engine,
        done=store.load_partial(topology, engine),
        on_progress=lambda share, text: _log.print(f"calibrating {share:4.0%}  {text}", highlight=False),
        on_partial=lambda partial: store.save_partial(topology, engine, partial),
    )
    store.save(topology, engine, made)
    return made


def _cases(
    paths: Sequence[str], only: Sequence[str] | None, topology: Topology, calibration: Calibration
) -> list[Case]:
    networks = {name: lambda name=name: open_network(name) for name in NAMES}
    networks |= {name: lambda name=name: load_network(light_networks.load(name)) for name in light_networks.names()}
    networks |= {Path(path).stem: lambda path=path: open_network(path) for path in paths}
    if not light_networks.names():
        _log.print("absent: the nine graphs of the onnx package (installed without its test data)")
    cases = []
    for name, load in networks.items():
        if only and name not in only:
            continue
        try:
            network = load()
        except CorepipeError as error:
            _log.print(f"absent: {name}: {error}", highlight=False, soft_wrap=True, markup=False)
            continue
        _log.print(f"{name}: {len(network.layers)} layers", highlight=False)
        measured = api.costs(network, topology)
        predicted = {
            "paper": predict_table_paper(network, calibration),
            "model": predict_table(network, calibration).table,
        }
        cases.append(Case(name, network, measured, predicted))
    return cases


def judge(measured: CostTable, predicted: CostTable) -> dict[str, float]:
    """The four measures, as fractions."""
    off, total, large, whole = 0.0, 0.0, [], []
    for costs in measured.configs:
        span = (costs.core_config, 0, measured.layer_count)
        took = measured.segment_s(*span, busy=False)
        expected = predicted.segment_s(*span, busy=False)
        seconds = _shares(costs.layer_s) * took
        guess = _shares(predicted.costs_of(costs.core_config).layer_s) * expected
        off += float(np.abs(guess - seconds).sum())
        total += float(seconds.sum())
        counts = seconds > 0.01 * seconds.sum()
        large += list(np.abs(guess / seconds - 1)[counts])
        whole.append(abs(expected / took - 1))
    best = plan.evaluate(plan.plan(measured), measured).throughput_fps
    chosen = plan.evaluate(plan.plan(predicted), measured).throughput_fps
    return {
        "mape": off / total,
        "mape_above_1pct": float(np.mean(large)),
        "network_error": statistics.mean(whole),
        "regret": max(0.0, 1 - chosen / best),
    }


def _shares(seconds: Sequence[float]) -> np.ndarray:
    """Of all layers' time."""
    values = np.array(seconds)
    return values / values.sum()


def by_family(cases: Sequence[Case], block: int) -> dict[str, dict[str, float]]:
    """For each family of kernels: its share of all measured time, and the better model's error and bias, one core."""
    rows: dict[str, list[tuple[float, float]]] = {}
    for case in cases:
        costs = case.measured.configs[0]
        span = (costs.core_config, 0, case.measured.layer_count)
        table = case.predicted["model"]
        ratio = table.segment_s(*span, busy=False) / case.measured.segment_s(*span, busy=False)
        guess = _shares(table.costs_of(costs.core_config).layer_s) * ratio
        for sample, seconds, predicted in zip(samples(case.network, block), _shares(costs.layer_s), guess, strict=True):
            rows.setdefault(family(sample), []).append((seconds, predicted))
    every = sum(share for values in rows.values() for share, _ in values)
    return {
        name: {
            "share": sum(m for m, _ in values) / every,
            "mape": sum(abs(p - m) for m, p in values) / sum(m for m, _ in values),
            "bias": sum(p - m for m, p in values) / sum(m for m, _ in values),
        }
        for name, values in sorted(rows.items(), key=lambda item: -sum(abs(p - m) for m, p in item[1]))
    }


def by_config(cases: Sequence[Case]) -> dict[str, dict[str, float]]:
    """For each core config, alone and busy: the better model's mean MAPE and error of the whole network."""
    rows: dict[str, list[tuple[float, float]]] = {}
    for case in cases:
        for costs in case.measured.configs:
            predicted = case.predicted["model"].costs_of(costs.core_config)
            span = (costs.core_config, 0, case.measured.layer_count)
            for busy in (False, True):
                layers = costs.layer_busy_s if busy else costs.layer_s
                guessed = predicted.layer_busy_s if busy else predicted.layer_s
                if layers is None or guessed is None:
                    continue
                took = case.measured.segment_s(*span, busy=busy)
                expected = case.predicted["model"].segment_s(*span, busy=busy)
                off = np.abs(_shares(guessed) * expected - _shares(layers) * took).sum() / took
                name = f"{costs.config}{' busy' if busy else ''}"
                rows.setdefault(name, []).append((float(off), abs(expected / took - 1)))
    return {
        name: {
            "mape": statistics.mean(off for off, _ in values),
            "network_error": statistics.mean(whole for _, whole in values),
        }
        for name, values in rows.items()
    }


def result(cases: Sequence[Case], calibration: Calibration, topology: Topology) -> dict[str, Any]:
    """Everything that is kept of a run."""
    networks = []
    for case in cases:
        row: dict[str, Any] = {"network": case.name, "held_out": True, "layers": case.measured.layer_count}
        for name in MODELS:
            row[name] = judge(case.measured, case.predicted[name])
        row["spread"] = max(costs.spread for costs in case.measured.configs)
        networks.append(row)
    mean = {
        name: {measure: statistics.mean(row[name][measure] for row in networks) for measure in MEASURES}
        for name in MODELS
    }
    first = calibration.conditions[0]
    return {
        "schema_version": 1,
        "emulated": topology.emulated,
        "environment": {
            "cpu": topology.machine,
            "cpus": len(topology.cpus),
            "engine": f"{calibration.engine.name} {calibration.engine.version}",
            "system": platform.platform(),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
        "calibration": {
            "created": calibration.created,
            "networks": len(calibration.networks),
            "layers": sum(len(network.layers) for network in calibration.networks),
            "spread": calibration.spread,
            "trustworthy": calibration.trustworthy,
            "error_of_left_out_layers": {
                f"{c.config}{' busy' if c.busy else ''}": c.error for c in calibration.conditions
            },
            "terms": len(first.coefficients),
        },
        "goal": GOAL,
        "networks": networks,
        "mean": mean,
        "configs": by_config(cases),
        "families": by_family(cases, calibration.channel_block),
    }


def show(document: dict[str, Any]) -> None:
    """Both models side by side, then where the better one errs."""
    table = Table(title="paper's model / better model (goal: MAPE 8 %, network 5 %, regret 2 %)", title_justify="left")
    for heading in ("network", "MAPE", "MAPE >1 %", "network", "regret", "spread"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for row in document["networks"]:
        table.add_row(row["network"], *_pairs(row), f"{row['spread']:.1%}")
    table.add_section()
    table.add_row("mean", *_pairs(document["mean"]), "", style="bold")
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    configs = Table(title="the better model by core config", title_justify="left")
    for heading in ("cores", "MAPE", "network"):
        configs.add_column(heading, justify="left" if heading == "cores" else "right")
    for name, row in document["configs"].items():
        configs.add_row(name, f"{row['mape']:.1%}", f"{row['network_error']:.1%}")
    console.print(configs)
    sits = Table(title="where the better model errs (one core, all networks alike)", title_justify="left")
    for heading in ("kernels", "share of time", "MAPE", "bias", "adds to MAPE"):
        sits.add_column(heading, justify="left" if heading == "kernels" else "right")
    for name, row in document["families"].items():
        sits.add_row(
            name,
            f"{row['share']:.1%}",
            f"{row['mape']:.1%}",
            f"{row['bias']:+.1%}",
            f"{row['share'] * row['mape']:.2%}",
        )
    console.print(sits)


def _pairs(row: dict[str, Any]) -> list[str]:
    return [f"{row['paper'][measure]:.1%} / {row['model'][measure]:.1%}" for measure in MEASURES]


def draw(cases: Sequence[Case], path: Path) -> None:
    """Predicted against measured times of all layers, one core, both models."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        _log.print("no plot: matplotlib is not installed (pip install matplotlib)")
        return
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2, sharex=True, sharey=True), MODELS, strict=True):
        spans = []
        for case in cases:
            costs = case.measured.configs[0]
            x = np.array(costs.layer_s) * 1e3
            y = np.array(case.predicted[name].costs_of(costs.core_config).layer_s) * 1e3
            axes.scatter(x, y, s=9, alpha=0.6, linewidths=0, label=case.name)
            spans += [x.max(), y.max()]
        edges = [2e-3, 1.5 * max(spans)]
        axes.plot(edges, edges, color="black", linewidth=0.8)
        axes.set(
            xscale="log", yscale="log", xlim=edges, ylim=edges, xlabel="measured, ms", ylabel="predicted, ms",
            title={"paper": "the paper's regression", "model": "the better model"}[name],
        )  # fmt: skip
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
