"""A cost table for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from corepipe.cost.table import ConfigCosts, CostTable
from corepipe.report.terminal import plain, say, titled


def costs_name(costs: ConfigCosts, table: CostTable) -> str:
    """The core config, with the engine where there are several, and the batch where it is not 1."""
    name = costs.config if len(table.engines) == 1 else f"{costs.config} {costs.engine}"
    return name if costs.batch == 1 else f"{name} x{costs.batch}"


def engines_text(table: CostTable) -> str:
    """The engines with their versions."""
    return " and ".join(f"{engine.name} {engine.version}".rstrip() for engine in table.engines)


def render_costs(table: CostTable, console: Console) -> None:
    """Milliseconds of every layer on every core config, by engine and batch, and what a segment and a hop cost."""
    for mode in dict.fromkeys(costs.mode for costs in table.configs):
        _layers_of(table, [costs for costs in table.configs if costs.mode == mode], console)
    for costs in table.configs:
        say(
            console,
            f"{costs_name(costs, table)}: a segment costs {costs.segment_s * 1e6:.0f} us and "
            f"{costs.segment_s_per_byte * 1e12:.0f} us per MB at its cuts beside its layers; "
            f"spread {costs.spread:.1%}",
        )
    hop = table.hop
    say(
        console,
        f"hop: {hop.fixed_s * 1e6:.0f} us of work and {hop.per_byte_s * 1e12:.0f} us per MB, "
        f"{hop.edge_s * 1e6:.0f} us at either end of a route; latency {hop.latency_s * 1e6:.0f} us on an idle machine",
    )
    say(
        console,
        f"costs {table.provenance.source} with {engines_text(table)} on "
        f"{table.machine.description or 'this machine'}, {table.provenance.created}",
    )


def _layers_of(table: CostTable, configs: Sequence[ConfigCosts], console: Console) -> None:
    """Of one engine and batch."""
    view = titled(f"{table.network.name}: ms per layer, alone / with the other cores busy")
    view.add_column("#", justify="right", no_wrap=True)
    view.add_column("layer", overflow="ellipsis", max_width=40)
    for costs in configs:
        view.add_column(plain(costs_name(costs, table)), justify="right", overflow="fold")
    for index, name in enumerate(table.network.layers):
        cells = []
        for costs in configs:
            busy = costs.layer_busy_s
            alone = f"{costs.layer_s[index] * 1e3:.3f}"
            cells.append(alone if busy is None else f"{alone} / {busy[index] * 1e3:.3f}")
        view.add_row(str(index), plain(name), *cells)
    view.add_section()
    whole = [
        f"{table.segment_s(c.core_config, 0, table.layer_count, busy=False, mode=c.mode) * 1e3:.2f}"
        + (
            f" / {table.segment_s(c.core_config, 0, table.layer_count, mode=c.mode) * 1e3:.2f}"
            if c.layer_busy_s
            else ""
        )
        for c in configs
    ]
    view.add_row("", "whole network", *whole, style="bold")
    console.print(view)
