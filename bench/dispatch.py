"""What the dispatcher's rules are worth where routes share workers: everything here is SIMULATED.

    python bench/dispatch.py
    python bench/dispatch.py --tables 50 --seed 1

Plans are the best mixes of routes on random tables (`regret.random_table`), as far as routes share workers in them.
Their rates are the best ones, or each is 0.7 to 1.3 times that, as where cores are faster or slower than their costs
say. Frames/s of the simulator are relative to what the table promises for the best rates. The rules differ in what a
frame behind the rates counts beside the work that its route meets: the plan's rates alone, or that much.
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

RATES_ALONE = 1e9
WEIGHTS = tuple(dict.fromkeys((RATES_ALONE, dispatch._DEFICIT_WEIGHT, 0.0, 0.05, 0.2, 0.5)))

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
    """For rates and jitter: of each table what each weight reaches, as a share of what its best rates promise."""
    generator = np.random.default_rng(seed)
    found: dict[tuple[str, float], list[list[float]]] = {}
    for table, made in mixes(count, generator):
        promised = evaluate(made, table).throughput_fps
        for rates, one in (("best", made), ("wrong", with_wrong_rates(made, generator))):
            for jitter in JITTERS:
                shares = [_share(one, table, jitter, weight) / promised for weight in WEIGHTS]
                found.setdefault((rates, jitter), []).append(shares)
    return found


def _share(made: Plan, table: CostTable, jitter: float, weight: float) -> float:
    full = float("inf") if weight == RATES_ALONE else dispatch._FULL_SHARE
    with mock.patch.multiple(dispatch, _DEFICIT_WEIGHT=weight, _FULL_SHARE=full):
        return simulate(made, table, frames=FRAMES, jitter=jitter).throughput_fps


def render(found: dict[tuple[str, float], list[list[float]]], console: Console) -> None:
    """Means, and the worst table beside the rates alone."""
    shown = Table(title="simulated frames/s by what the best rates promise: mean (least relative to the rates alone)")
    for heading in ("rates", "jitter", *(_words(weight) for weight in WEIGHTS)):
        shown.add_column(heading, justify="right")
    for (rates, jitter), tables in found.items():
        cells = []
        for number in range(len(WEIGHTS)):
            least = min(shares[number] / shares[0] for shares in tables)
            cells.append(f"{statistics.fmean(shares[number] for shares in tables):.3f} ({least:.3f})")
        shown.add_row(rates, f"{jitter:g}", *cells)
    console.print(shown)


def _words(weight: float) -> str:
    if weight == RATES_ALONE:
        return "rates alone"
    return f"{weight:g}" + (" (in force)" if weight == dispatch._DEFICIT_WEIGHT else "")


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
