"""Routes in short, and plans of which only who runs which hop, and how often, matters."""

from __future__ import annotations

from corepipe.plan.model import Hop, Plan, PlanNetwork, Route, Worker

ROUTES = {
    "one worker": [(1, [(0, 0, 6)])],
    "pipeline": [(1, [(0, 0, 2), (1, 2, 6)])],
    "replicas": [(2, [(0, 0, 6)]), (1, [(1, 0, 6)])],
    "there and back": [(1, [(0, 0, 2), (1, 2, 4), (0, 4, 6)])],
    "mix": [(3, [(0, 0, 6)]), (1, [(1, 0, 3), (0, 3, 6)]), (0.5, [(0, 0, 1), (1, 1, 6)])],
}
"""For `make_plan`, of a network with six layers and two cores."""


def plan_of(routes):
    """A plan from routes written as [(rate, [worker, ...]), ...]; every hop is one layer, the last takes the rest."""
    layers = max(len(workers) for _, workers in routes)
    return Plan(
        planner="by hand",
        network=PlanNetwork(name="n", sha256="", layers=layers),
        workers=tuple(
            Worker(name=f"w{number}", config="cpu1", cores=(number,))
            for number in sorted({worker for _, workers in routes for worker in workers})
        ),
        routes=tuple(
            Route(
                rate_fps=rate,
                hops=tuple(
                    Hop(worker=f"w{worker}", layers=(at, layers if at + 1 == len(workers) else at + 1))
                    for at, worker in enumerate(workers)
                ),
            )
            for rate, workers in routes
        ),
    )
