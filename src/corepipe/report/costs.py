"""A cost table for people."""

from __future__ import annotations

from rich.console import Console

from corepipe.cost.table import CostTable
from corepipe.report.terminal import plain, say, titled


def render_costs(table: CostTable, console: Console) -> None:
    """Milliseconds of every layer on every core config, and what a segment and a hop cost."""
    view = titled(f"{table.network.name}: ms per layer, alone / with the other cores busy")
    view.add_column("#", justify="right")
    view.add_column("layer", overflow="ellipsis", max_width=40)
    for costs in table.configs:
        view.add_column(plain(costs.config), justify="right")
    for index, name in enumerate(table.network.layers):
        cells = []
        for costs in table.configs:
            busy = costs.layer_busy_s
            alone = f"{costs.layer_s[index] * 1e3:.3f}"
            cells.append(alone if busy is None else f"{alone} / {busy[index] * 1e3:.3f}")
        view.add_row(str(index), plain(name), *cells)
    view.add_section()
    whole = [
        f"{table.segment_s(c.core_config, 0, table.layer_count, busy=False) * 1e3:.2f}"
        + (f" / {table.segment_s(c.core_config, 0, table.layer_count) * 1e3:.2f}" if c.layer_busy_s else "")
        for c in table.configs
    ]
    view.add_row("", "whole network", *whole, style="bold")
    console.print(view)
    for costs in table.configs:
        say(
            console,
            f"{costs.config}: a segment costs {costs.segment_s * 1e6:.0f} us and {costs.segment_s_per_byte * 1e12:.0f} "
            f"us per MB at its cuts beside its layers; spread {costs.spread:.1%}",
        )
    hop = table.hop
    say(
        console,
        f"hop: {hop.fixed_s * 1e6:.0f} us of work and {hop.per_byte_s * 1e12:.0f} us per MB, "
        f"{hop.edge_s * 1e6:.0f} us at either end of a route; latency {hop.latency_s * 1e6:.0f} us on an idle machine",
    )
    say(
        console,
        f"costs {table.provenance.source} with {table.engine.name} {table.engine.version} on "
        f"{table.machine.description or 'this machine'}, {table.provenance.created}",
    )
