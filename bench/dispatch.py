"""What the dispatcher's rules are worth where routes share workers: everything here is SIMULATED.

    python bench/dispatch.py
    python bench/dispatch.py --tables 50 --seed 1

Plans are the best mixes of routes on random tables (`regret.random_table`), as far as routes share workers in them.
Their rates are the best ones, or each is 0.7 to 1.3 times that, as where cores are faster or slower than their costs
say. Frames/s of the simulator are relative to what the table promises for the best rates. The rules: routes to a worker
that is about to wait come first (fewer frames at it than `first`, where a route begins there, or `later`), those over a
worker that holds a share of the group's slots (`full`) last; and the plan's rates alone.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Iterator, Sequence
from unittest import mock

import numpy as np
import regret
from rich.console import Console
from rich.table import Table

from corepipe.cost.table import CostTable
from corepipe.plan import Plan, evaluate, plan
from corepipe.plan.model import route_groups
from corepipe.runtime import dispatch
from corepipe.simulate import simulate

NEVER = (0, 0, float("inf"))
IN_FORCE = (dispatch._HUNGRY_FIRST, dispatch._HUNGRY_LATER, dispatch._FULL_SHARE)
RULES = tuple(dict.fromkeys((NEVER, IN_FORCE, (1, 1, 0.5), (2, 2, 0.5), (3, 1, 0.5), (2, 1, 0.34), (2, 1, 0.67))))
"""First, later, full."""

JITTERS = (0.0, 0.05, 0.2)
FRAMES = 1500


def mixes(count: int, generator: np.random.Generator) -> Iterator[tuple[CostTable, Plan]]:
    """Tables with their best plans, whose routes share workers."""
    tables = (regret.random_table(generator) for _ in itertools.count())
    found = ((table, plan(table, tolerance=0.0, bound=False)) for table in tables)
    sharing = (one for one in found if any(len(group) > 1 for group in route_groups(one[1])))
    return itertools.islice(sharing, count)


def with_wrong_rates(made: Plan, generator: np.random.Generator) -> Plan:
    """Each rate 0.7 to 1.3 times what it is."""
    factors = generator.uniform(0.7, 1.3, len(made.routes))
    routes = (r.model_copy(update={"rate_fps": r.rate_fps * f}) for r, f in zip(made.routes, factors, strict=True))
    return made.model_copy(update={"routes": tuple(routes)})


def measure(count: int, seed: int) -> dict[tuple[str, float], list[list[float]]]:
    """For rates and jitter: of each table what each rule reaches, as a share of what its best rates promise."""
    generator = np.random.default_rng(seed)
    found: dict[tuple[str, float], list[list[float]]] = {}
    for table, made in mixes(count, generator):
        promised = evaluate(made, table).throughput_fps
        for rates, one in (("best", made), ("wrong", with_wrong_rates(made, generator))):
            for jitter in JITTERS:
                shares = [_share(one, table, jitter, rule) / promised for rule in RULES]
                found.setdefault((rates, jitter), []).append(shares)
    return found


def _share(made: Plan, table: CostTable, jitter: float, rule: tuple[int, int, float]) -> float:
    first, later, full = rule
    with mock.patch.multiple(dispatch, _HUNGRY_FIRST=first, _HUNGRY_LATER=later, _FULL_SHARE=full):
        return simulate(made, table, frames=FRAMES, jitter=jitter).throughput_fps


def render(found: dict[tuple[str, float], list[list[float]]], console: Console) -> None:
    """Means, and the worst table beside the rates alone."""
    shown = Table(title="simulated frames/s by what the best rates promise: mean (least relative to the rates alone)")
    for heading in ("rates", "jitter", *(_words(rule) for rule in RULES)):
        shown.add_column(heading, justify="right")
    for (rates, jitter), tables in found.items():
        cells = []
        for number in range(len(RULES)):
            least = min(shares[number] / shares[0] for shares in tables)
            cells.append(f"{statistics.fmean(shares[number] for shares in tables):.3f} ({least:.3f})")
        shown.add_row(rates, f"{jitter:g}", *cells)
    console.print(shown)


def _words(rule: tuple[int, int, float]) -> str:
    if rule == NEVER:
        return "rates alone"
    return "{}, {}, {:g}".format(*rule) + (" (in force)" if rule == IN_FORCE else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=30, help="how many plans (default: 30; some seconds each)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    render(measure(options.tables, options.seed), Console(width=160))
    return 0


if __name__ == "__main__":
    sys.exit(main())
