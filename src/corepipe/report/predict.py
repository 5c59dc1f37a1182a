"""A predicted cost table, and a calibration, for people."""

from __future__ import annotations

from rich.console import Console

from corepipe.cost.calibration import Calibration
from corepipe.cost.predict.table import Prediction
from corepipe.report.costs import engines_text
from corepipe.report.terminal import plain, say, titled
from corepipe.topology.model import CoreConfig


def render_prediction(prediction: Prediction, console: Console) -> None:
    """Milliseconds of every layer on every core config, with the interval that holds 8 of 10 comparable layers."""
    table = prediction.table
    view = titled(f"{table.network.name}: predicted ms per layer (10 % to 90 %)")
    view.add_column("#", justify="right")
    view.add_column("layer", overflow="ellipsis", max_width=40)
    for costs in table.configs:
        view.add_column(plain(costs.config), justify="right")
    for index, name in enumerate(table.network.layers):
        cells = []
        for costs in table.configs:
            interval = prediction.intervals[costs.config]
            cells.append(_cell(costs.layer_s[index], interval.low_s[index], interval.high_s[index], 3))
        view.add_row(str(index), plain(name), *cells)
    view.add_section()
    whole = []
    for costs in table.configs:
        interval = prediction.intervals[costs.config]
        seconds = table.segment_s(costs.core_config, 0, table.layer_count, busy=False)
        whole.append(_cell(seconds, interval.network_low_s, interval.network_high_s, 2))
    view.add_row("", "whole network", *whole, style="bold")
    console.print(view)
    busy = [
        f"{c.config} {table.segment_s(c.core_config, 0, table.layer_count) * 1e3:.2f} ms"
        for c in table.configs
        if c.layer_busy_s is not None
    ]
    if busy:
        say(console, f"whole network with the other cores busy: {', '.join(busy)}")
    for warning in prediction.warnings:
        say(console, f"outside what was calibrated: {warning}")
    say(
        console,
        f"predicted {table.provenance.note} with {engines_text(table)} on "
        f"{table.machine.description or 'an unnamed machine'}; nothing was run",
    )


def prediction_json(prediction: Prediction) -> dict[str, object]:
    """The prediction as plain data: the cost table, intervals in seconds, warnings."""
    return {
        "schema_version": 1,
        "table": prediction.table.model_dump(mode="json", exclude_none=True),
        "intervals": {
            config: {
                "low_s": list(interval.low_s),
                "high_s": list(interval.high_s),
                "network_low_s": interval.network_low_s,
                "network_high_s": interval.network_high_s,
            }
            for config, interval in prediction.intervals.items()
        },
        "warnings": list(prediction.warnings),
    }


def render_calibration(calibration: Calibration, console: Console) -> None:
    """What a calibration found of each core config: speed and how well it predicts layers left out of the fit."""
    view = titled(f"calibration of {calibration.machine.description or 'this machine'}")
    for heading in ("cores", "3x3 GFLOP/s", "1x1 GFLOP/s", "call us", "a cut us", "error of left-out layers"):
        view.add_column(heading, justify="left" if heading == "cores" else "right")
    for condition in calibration.conditions:
        rate = condition.coefficients
        view.add_row(
            plain(condition.config + (", others busy" if condition.busy else "")),
            _rate(rate.get("conv.macs")),
            _rate(rate.get("pointwise.macs")),
            f"{rate.get('call', 0.0) * 1e6:.1f}",
            f"{condition.segment_s * 1e6:.0f}",
            f"{condition.error:.1%}",
        )
    console.print(view)
    for law in calibration.laws:
        size = next(len(c.cores) for c in calibration.machine.clusters if c.name == law.cluster)
        if size > 1:
            say(
                console,
                f"{law.cluster}: {law.serial:.0%} of the computing does not divide over cores; the bandwidth serves "
                f"{law.memory_cores:.1f} cores",
            )
    layers = sum(len(network.layers) for network in calibration.networks)
    config = str(CoreConfig(calibration.machine.clusters[0].name, 1))
    say(
        console,
        f"{layers} layers of {len(calibration.networks)} synthetic networks; spread {calibration.spread:.1%}"
        f"{'' if calibration.trustworthy else ' (too noisy to rely on)'}; kernels as {calibration.tiles} on {config}, "
        f"{calibration.engine.name} {calibration.engine.version}, {calibration.created}",
    )


def _cell(seconds: float, low: float, high: float, digits: int) -> str:
    return f"{seconds * 1e3:.{digits}f} ({low * 1e3:.{digits}f}-{high * 1e3:.{digits}f})"


def _rate(seconds_per_mac: float | None) -> str:
    return "-" if not seconds_per_mac else f"{2e-9 / seconds_per_mac:.0f}"
