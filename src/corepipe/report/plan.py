"""A plan for people."""

from __future__ import annotations

from rich.console import Console

from corepipe.cost.table import CostTable
from corepipe.plan.explain import explain
from corepipe.plan.model import Hop, Plan, evaluate
from corepipe.report.terminal import plain, rate_text, say, titled


def hop_text(hop: Hop, plan: Plan) -> str:
    """The worker and its layers; with engines and batches but where all runs on ONNX Runtime, frame by frame."""
    parts = plan.parts_of(hop)
    if plan.engines == ("onnxruntime",) and len(parts) == 1 and parts[0].batch == 1:
        return f"{hop.worker} [{hop.start}-{hop.stop - 1}]"
    texts = (
        f"{part.start}-{part.stop - 1} {part.engine}" + (f" x{part.batch}" if part.batch > 1 else "") for part in parts
    )
    return f"{hop.worker} [{', '.join(texts)}]"


def render_plan(plan: Plan, table: CostTable, console: Console, *, limited: bool = False) -> None:
    """The routes with their rates, the load of each worker, and why the plan is as it is."""
    evaluation = evaluate(plan, table)
    routes = titled(f"{plan.network.name}: {plan.planner}")
    routes.add_column("route", justify="right")
    routes.add_column("frames/s", justify="right")
    routes.add_column(plain("hops: worker [layers]"))
    for number, route in enumerate(plan.routes):
        hops = "  ->  ".join(hop_text(hop, plan) for hop in route.hops)
        routes.add_row(str(number), rate_text(route.rate_fps), plain(hops))
    console.print(routes)
    width = 30
    for worker in plan.workers:
        load = evaluation.load[worker.name]
        cores = ",".join(map(str, worker.cores))
        bar = "█" * round(load * width)
        console.print(plain(f"{worker.name:>12} cores {cores:<12} {bar:<{width}} {load:4.0%}"))
    for sentence in explain(plan, table, limited=limited):
        say(console, sentence)
