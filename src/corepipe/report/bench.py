"""The results of `corepipe bench` for people, in sentences, and as JSON."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from corepipe import __version__
from corepipe.api import engine_names
from corepipe.cost.table import CostTable, EngineName
from corepipe.network.model import Network
from corepipe.plan_results import STABLE_SPREAD, PlanResult, Trial
from corepipe.report.terminal import plain, rate_text, say, show, titled, width_of
from corepipe.topology.model import Topology

_OFF_BY = 0.9
"""A prediction is called off where measured and predicted differ by more than this ratio."""


DEFAULT = "all-cores"
"""The plan that does what the engine does by default."""

_STALE = 1.25
"""Beyond this ratio between measured and predicted, the costs themselves are in doubt."""


def best_result(results: Sequence[PlanResult]) -> PlanResult:
    """The fastest plan whose outputs are right."""
    return max(results, key=lambda r: (r.outputs_equal, r.throughput_fps))


def render_bench(results: Sequence[PlanResult], title: str, console: Console, *, simulated: bool = False) -> None:
    """A table of all plans and, in sentences, what it means.

    Args:
        results: an engine by itself first, or its default way.
        title: network and machine.
        console: where to print.
        simulated: whether nothing was run; there are no outputs and no memory then.
    """
    table = _bench_table(results, title, simulated, all_of_it=True)
    if narrow := width_of(table, console) > console.width:
        table = _bench_table(results, title, simulated, all_of_it=False)
    console.print(table)
    if narrow:
        say(console, "Latencies and memory are left out for want of width: widen the terminal, or use --json.")
    for sentence in describe(results, simulated=simulated):
        say(console, sentence)


def _bench_table(results: Sequence[PlanResult], title: str, simulated: bool, *, all_of_it: bool) -> Table:
    default, best = results[0], best_result(results)
    table = titled(title)
    more = ("p50 ms", "p90 ms", "p99 ms", "MB") if all_of_it else ()
    for heading in ("plan", "frames/s", "spread", "gain", "predicted", *more, "outputs"):
        table.add_column(heading, justify="left" if heading in ("plan", "outputs") else "right", overflow="fold")
    for result in results:
        further = [f"{value * 1e3:.1f}" for value in result.latency_s]
        further.append(f"{result.peak_rss_bytes / 1e6:.0f}" if result.peak_rss_bytes else "-")
        table.add_row(
            plain(result.name if result.same_as is None else f"{result.name} (= {result.same_as})"),
            *_throughput(result),
            f"{result.throughput_fps / default.throughput_fps:.2f}x",
            "-" if result.alone else rate_text(result.predicted_fps),
            *(further if all_of_it else ()),
            _outputs(result, simulated),
            style="bold" if result is best else None,
        )
    return table


def render_trial(trial: Trial, console: Console) -> None:
    """What each candidate did, and which one is kept."""
    chosen = trial.best
    table = titled(f"{chosen.plan.network.name}: candidates, tried on this machine")
    for heading in ("plan", "frames/s", "spread", "predicted", "outputs"):
        table.add_column(heading, justify="left" if heading in ("plan", "outputs") else "right")
    for result in (one for one in trial.results if one.same_as is None):
        table.add_row(
            plain(result.name),
            *_throughput(result),
            rate_text(result.predicted_fps),
            _outputs(result),
            style="bold" if result is chosen else None,
        )
    show(console, table)
    for name, error in trial.failures.items():
        say(console, f"Left out: {name}: {error}")
    if not all(result.stable for result in trial.results):
        say(console, "Figures marked ? are unstable: close other programs and try again.")
    say(console, f"Kept: {chosen.name}, at {rate_text(chosen.throughput_fps)} frames/s.")


def describe(results: Sequence[PlanResult], *, simulated: bool = False) -> list[str]:
    """What the results mean, in sentences."""
    default, best = results[0], best_result(results)
    what = "the engine's default way (all-cores" if default.name == DEFAULT else f"the first ({default.name}"
    if default.alone:
        what = f"the engine by itself ({default.name}"
    sentences = [f"Best: {best.name} at {rate_text(best.throughput_fps)} frames/s"]
    if best is not default:
        sentences[0] += (
            f", {best.throughput_fps / default.throughput_fps:.2f}x {what}, {rate_text(default.throughput_fps)})"
        )
    sentences[0] += "."
    if best.alone and any(not result.alone for result in results):
        wrong = any(r.throughput_fps > best.throughput_fps for r in results if not r.alone)
        what = "with equal outputs is" if wrong else "is"
        sentences[0] += f" No plan {what} faster here than the engine by itself, as it is by default."
    if default.name == DEFAULT and not simulated:
        sentences.append(
            f"{DEFAULT} runs as all plans here do, with what corepipe has of huge pages and quicker operators; the "
            f"engine by itself (engine:NAME) may be slower."
        )
    others = [r for r in results if r is not best and r.same_as != best.name and best.same_as != r.name]
    close = [r.name for r in others if r.outputs_equal and _overlap(best, r)]
    if close and not simulated:
        sentences.append(f"No clear winner between it and {', '.join(close)}: their spreads overlap.")
    sentences.append(bottleneck(best))
    sentences.extend(_bound(results))
    for result in results:
        if result.same_as is not None:
            continue
        if result.restarts:
            sentences.append(
                f"Workers of {result.name} died and were replaced ({result.restarts} in all): not trustworthy."
            )
        if result.short_slices:
            sentences.append(
                f"{result.name} finished too few frames in {result.short_slices} of {len(result.slices_fps)} slices, "
                f"so its figures are rough: use longer slices (--seconds)."
            )
        sentences.extend(_prediction_off(result, simulated))
    if any(not result.stable for result in results):
        advice = "" if simulated else "; close other programs, or see `corepipe doctor`"
        sentences.append(
            f"? marks an unstable figure: half the range of its slices is over {STABLE_SPREAD:.0%} of their median (or "
            f"there was only one){advice}."
        )
    if simulated:
        sentences.append("Simulated on the cost table: nothing was run, no output was computed.")
    else:
        sentences.extend(_outputs_in_words(results))
    return sentences


def _outputs_in_words(results: Sequence[PlanResult]) -> list[str]:
    """How far the outputs are from the whole model's, or which are too far."""
    equal = [result for result in results if result.outputs_equal]
    if not equal:
        return []
    sentences = []
    worst = max(result.largest_error for result in equal)
    whose = "All outputs"
    if len(equal) < len(results):
        whose = "All plans' outputs" if all(r.outputs_equal or r.alone for r in results) else "The other outputs"
        wrong = ", ".join(result.name for result in results if not result.outputs_equal)
        sentences.append(f"The outputs of {wrong} differ from the whole model's.")
    return [
        *sentences,
        f"{whose} equal the whole model's: largest difference {worst:.1e} of the largest magnitude "
        f"(tolerance {results[0].tolerance:g}).",
    ]


def bench_json(
    results: Sequence[PlanResult],
    network: Network,
    topology: Topology,
    table: CostTable,
    command: str,
    frames: str,
) -> dict[str, Any]:
    """The results with their environment; see docs/bench.md for the keys."""
    return {
        "schema_version": 1,
        "command": command,
        "environment": environment(topology, table.engines),
        "model": {
            "name": network.name,
            "sha256": network.sha256,
            "layers": len(network.layers),
            "flops": network.flops,
            "weight_bytes": network.weight_bytes,
        },
        "topology": {
            "machine": topology.machine,
            "emulated": topology.emulated,
            "clusters": [
                {"name": c.name, "cores": [k.id for k in c.cores], "core_name": c.core_name, "capacity": c.capacity}
                for c in topology.clusters
            ],
        },
        "costs": table.provenance.model_dump(),
        "frames": frames,
        "results": results_json(results),
        "best": best_result(results).name,
    }


def results_json(results: Sequence[PlanResult]) -> list[dict[str, Any]]:
    """One object for each plan."""
    return [
        {
            "plan": r.name,
            "throughput_fps": r.throughput_fps,
            "throughput_spread_fps": list(r.throughput_spread_fps),
            "engine_alone": r.alone,
            "predicted_fps": None if r.alone else r.predicted_fps,
            "bound_fps": r.plan.bound_fps,
            "latency_ms": dict(zip(("p50", "p90", "p99"), (v * 1e3 for v in r.latency_s), strict=True)),
            "peak_rss_mb": r.peak_rss_bytes / 1e6,
            "stable": r.stable,
            "restarts": r.restarts,
            "same_as": r.same_as,
            "outputs_equal": r.outputs_equal,
            "largest_relative_error": r.largest_error if math.isfinite(r.largest_error) else None,
            "tolerance": r.tolerance,
            "bottleneck": r.bottleneck,
            "busy": r.busy,
            "hops": [
                {
                    "worker": h.worker,
                    "layers": [h.start, h.stop],
                    "predicted_ms": None if r.alone else h.predicted_s * 1e3,
                    "measured_ms": h.measured_s * 1e3,
                }
                for h in r.hops
            ],
        }
        for r in results
    ]


def simulated_json(results: Sequence[PlanResult], table: CostTable, command: str) -> dict[str, Any]:
    """The same for results that were simulated on a cost table."""
    return {
        "schema_version": 1,
        "command": command,
        "simulated": True,
        "environment": {"corepipe": __version__, "machine": table.machine.description},
        "model": {"name": table.network.name, "sha256": table.network.sha256, "layers": table.layer_count},
        "topology": {"clusters": [c.model_dump(mode="json") for c in table.machine.clusters]},
        "costs": table.provenance.model_dump(),
        "results": results_json(results),
        "best": best_result(results).name,
    }


def environment(topology: Topology, engines: Sequence[EngineName] | None = None) -> dict[str, Any]:
    """What a reader needs to judge a measurement.

    Args:
        topology: the machine.
        engines: those that plans could use; None for all that are installed.
    """
    return {
        "corepipe": __version__,
        "engine": ", ".join(f"{engine.name} {engine.version}" for engine in engines or engine_names()),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": topology.machine,
        "cpus": len(topology.cpus),
        "emulated": topology.emulated,
        "load_average": _load_average(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _load_average() -> list[float] | None:
    """None where the system does not tell."""
    try:
        return list(os.getloadavg())
    except (AttributeError, OSError):
        return None


def _overlap(one: PlanResult, other: PlanResult) -> bool:
    return one.throughput_spread_fps[0] <= other.throughput_spread_fps[1]


def _throughput(result: PlanResult) -> tuple[str, str]:
    """The figure, marked where it is unstable, and its spread."""
    low, high = result.throughput_spread_fps
    return rate_text(result.throughput_fps) + ("" if result.stable else " ?"), f"{rate_text(low)}-{rate_text(high)}"


def _outputs(result: PlanResult, simulated: bool = False) -> str:
    if simulated:
        return "simulated"
    return "equal" if result.outputs_equal else f"DIFFER by {result.largest_error:.1e}"


def machine_title(topology: Topology) -> str:
    """The machine in a few words."""
    clusters = " + ".join(f"{len(c.cores)} {c.core_name or c.name}" for c in topology.clusters)
    emulated = ", cores slowed by emulation" if topology.emulated else ""
    return f"{topology.machine or 'this machine'} ({clusters}{emulated})"


def bottleneck(result: PlanResult) -> str:
    """Which worker of a plan was busiest, and how busy the others were."""
    name = result.bottleneck
    rest = [f"{other} {share:.0%}" for other, share in result.busy.items() if other != name]
    beside = f"; beside it {', '.join(rest)}" if rest else ""
    return f"Bottleneck of {result.name}: worker {name}, computing {result.busy[name]:.0%} of the time{beside}."


def _bound(results: Sequence[PlanResult]) -> list[str]:
    """What no plan can exceed by the cost table, and how far the predictions are below that."""
    bound = next((r.plan.bound_fps for r in results if r.plan.bound_fps), None)
    if bound is None:
        return []
    plans = [r for r in results if r.same_as is None and not r.alone]
    gaps = ", ".join(f"{r.name} {max(0.0, 1 - r.predicted_fps / bound):.1%}" for r in plans)
    return [f"By the cost table no plan can exceed {rate_text(bound)} frames/s; predictions below that: {gaps}."]


def _prediction_off(result: PlanResult, simulated: bool) -> list[str]:
    """Which stage makes the difference where a plan is slower or faster than the table says."""
    if result.alone:
        return []
    ratio = result.throughput_fps / result.predicted_fps
    if _OFF_BY <= ratio <= 1 / _OFF_BY:
        return []
    worst = max(result.hops, key=lambda h: abs(h.measured_s - h.predicted_s), default=None)
    sentence = f"{result.name} reaches {ratio:.0%} of its prediction"
    if worst is not None and not _OFF_BY * worst.predicted_s <= worst.measured_s <= worst.predicted_s / _OFF_BY:
        sentence += (
            f"; the stage that differs most is layers {worst.start}-{worst.stop - 1} on {worst.worker}: "
            f"{worst.measured_s * 1e3:.2f} ms instead of {worst.predicted_s * 1e3:.2f} ms"
        )
    else:
        sentence += "; its stages take what was predicted, the time goes between them"
    if not simulated and not 1 / _STALE <= ratio <= _STALE:
        sentence += "; the costs may be out of date or were measured on a busy machine: try --no-cache"
    return [sentence + "."]
