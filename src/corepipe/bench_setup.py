"""What `corepipe bench` compares, and on which frames."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corepipe import plan as planners
from corepipe.cost.table import CostTable
from corepipe.data import sample_frames
from corepipe.errors import FrameError, PlanError, UnknownNameError, UsageError
from corepipe.frames import Preprocess, Skipped, check_frame, open_source
from corepipe.network.model import Network
from corepipe.plan.model import Plan
from corepipe.run import check_images, image_inputs

MAX_FRAMES = 16
"""Distinct frames kept in memory and fed again and again."""


def bench_names(
    clusters: Sequence[str], only: Sequence[str], own: Sequence[str] = (), baselines: Sequence[str] = ()
) -> list[str]:
    """What to compare: engines by themselves first, all cores, each cluster, replicas, the pipelined ones, the user's.

    Without `only`, a cluster that holds all cores is left out, being the same as `all-cores`, and so are the planners
    whose plans are hardly ever the best.

    Args:
        clusters: names of the machine's clusters.
        only: names to keep beside the user's own plans, any planner's among them; empty for the usual ones.
        own: names of the user's own plans.
        baselines: names of engines by themselves (`corepipe.baseline`).

    Raises:
        UnknownNameError: `only` names no plan.
        UsageError: two plans have the same name.
    """
    alone, first = [f"cluster:{name}" for name in clusters], [*baselines, "all-cores"]
    usual = [*first, *(alone if len(clusters) > 1 else []), "replicas", "pipe-it", "routes", planners.EXACT]
    others = [name for name in planners.PLANNERS if name not in usual]
    known = [*first, *alone, "replicas", "pipe-it", *others, "routes", planners.EXACT]
    for name in own:
        if name in usual or (name in only and name in known):
            raise UsageError(f"two plans are called {name!r}; rename the plan file")
    for name in only:
        if name not in known and name not in own:
            raise UnknownNameError("plan", name, [*known, *own])
    return [name for name in (*known, *own) if name in ((*only, *own) if only else (*usual, *own))]


def read_plans(files: Sequence[Path]) -> dict[str, Plan]:
    """Plan files by their stems.

    Raises:
        DocumentError: one is unreadable.
        UsageError: two have the same stem.
    """
    plans: dict[str, Plan] = {}
    for path in files:
        if path.stem in plans:
            raise UsageError(f"two plans are called {path.stem!r}; rename one of the files")
        plans[path.stem] = Plan.read(path)
    return plans


def bench_plans(
    table: CostTable,
    names: Sequence[str],
    own: Mapping[str, Plan],
    on_failure: Callable[[str, PlanError], None] | None = None,
) -> dict[str, Plan]:
    """The named plans: the user's own, or found on the cost table; all with the prediction and bound of that table.

    `routes-exact` is left out where it is no other plan than `routes`.

    Args:
        table: the costs.
        names: which plans.
        own: the user's, by name.
        on_failure: told of a plan that the table does not allow, which is left out; None to raise its error.

    Raises:
        PlanError: a plan of the user's does not fit the table; no plan is left.
    """
    bound_fps = None
    with contextlib.suppress(PlanError):
        bound_fps = planners.proved_bound(table, sizes={*table.batches, *(plan.batch for plan in own.values())})
    plans = {}
    failure: PlanError | None = None
    for name in names:
        if name in own:
            plans[name] = planners.rated(own[name], table, bound_fps)
            continue
        try:
            if name != planners.EXACT:
                plans[name] = planners.plan(table, name, bound=False).model_copy(update={"bound_fps": bound_fps})
            elif "routes" not in plans or plans["routes"].given_up is not None:
                plans[name] = planners.plan(table, "routes", tolerance=0.0)
        except PlanError as error:
            if on_failure is None:
                raise
            failure = error
            on_failure(name, error)
    if not plans and failure is not None:
        raise failure
    return plans


def bench_frames(
    network: Network, spec: str | None, on_skip: Callable[[Skipped], None] | None = None
) -> tuple[list[Mapping[str, NDArray[Any]]], str]:
    """Frames for a comparison, in memory, and a sentence that says what they are.

    Without `spec`: for image-like networks the photographs that come with corepipe, else seeded random numbers.
    `on_skip` is called for each frame that cannot be read.

    Raises:
        UsageError, FrameError: `spec` names nothing that can be read.
    """
    images = image_inputs(network, {})
    if spec is None and not images:
        return _random_frames(network), f"{MAX_FRAMES} frames of seeded random numbers"
    if spec is None:
        frames = [frame for path in sample_frames() for frame in _read(network, str(path), images)]
        how = next(iter(images.values())).describe()
        return frames, f"{len(frames)} photographs that come with corepipe, {how}; decoding is not timed here"
    frames = list(itertools.islice(_read(network, spec, images, on_skip), MAX_FRAMES))
    if not frames:
        raise FrameError(f"{spec}: no readable frame")
    return frames, f"{len(frames)} frames of {spec}; decoding is not timed here"


def _read(
    network: Network,
    spec: str,
    images: Mapping[str, Preprocess],
    on_skip: Callable[[Skipped], None] | None = None,
) -> Iterator[Mapping[str, NDArray[Any]]]:
    with open_source(spec, inputs=network.inputs, on_skip=on_skip) as source:
        for frame in source:
            if not frame.is_image:
                yield check_frame(frame.data, network.inputs, frame.name)
            else:
                check_images(spec, network, images)
                yield {name: prepare(np.asarray(frame.data)) for name, prepare in images.items()}


def _random_frames(network: Network) -> list[Mapping[str, NDArray[Any]]]:
    generator = np.random.default_rng(0)
    return [{t.name: _random(generator, t.dtype, t.shape or ()) for t in network.inputs} for _ in range(MAX_FRAMES)]


def _random(generator: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if dtype.kind == "f":
        return generator.standard_normal(shape, np.float32).astype(dtype)
    return generator.integers(0, 2, shape).astype(dtype)
