"""What `import corepipe` offers, and what the command line is made of: costs, a plan, a stream."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from corepipe import engine
from corepipe import plan as planners
from corepipe.cache import FAILURE_S, TableCache
from corepipe.cost.align import align
from corepipe.cost.calibration import Calibration
from corepipe.cost.calibration_store import check_calibration
from corepipe.cost.measuring import Progress
from corepipe.cost.profile import PartialProfile, profile
from corepipe.cost.source import Costs, choose_costs, sizes
from corepipe.cost.table import CostTable, EngineName, HopCosts, merged
from corepipe.errors import BatchError, EngineError, UnknownNameError, UsageError, WorkerError
from corepipe.follow import Follower
from corepipe.network.batch import batched
from corepipe.network.batch_check import check_batch, runs_on
from corepipe.network.load import open_network
from corepipe.network.model import Network
from corepipe.plan.model import Plan
from corepipe.runtime.stream import Stream
from corepipe.topology import Topology, detect
from corepipe.topology.linux import cooling_devices_at_work
from corepipe.topology.model import ALL_CORES

_log = logging.getLogger("corepipe")

NOISY = 0.1
"""A table whose runs spread more than this (half the interquartile range over the median) is called noisy."""

_BUILDS = {"onnxruntime": ("onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-qnn")}
"""Other distributions that hold the same library."""


def open(
    model: str | os.PathLike[str],
    plan: Plan | str | os.PathLike[str] | None = None,
    *,
    planner: str = planners.BEST,
    shapes: Mapping[str, Sequence[int]] | None = None,
    cores: Iterable[int] | None = None,
    engines: Sequence[str] | None = None,
    batch: int = 1,
    use_cache: bool = True,
    follow: bool = True,
) -> Stream:
    """Open a model as a stream of frames over this machine's cores.

    The first time, the network's layers are measured with every engine on every core config (up to some minutes, which
    a warning in the log says), or predicted where each of the engines was calibrated, for single frames; measured costs
    are kept in the user's cache folder.

    Args:
        model: path of an ONNX file, or the name of a network of the zoo.
        plan: a plan, or the path of one; by default the best plan by the measured costs.
        planner: which search finds the plan; see `corepipe plan --help`.
        shapes: fixed shapes for inputs with dynamic dimensions (a dynamic batch becomes 1 by itself).
        cores: the logical CPUs that may be used; by default all that this process may use.
        engines: the engines that may be used, such as `["onnxruntime"]`; by default all that are installed.
        batch: how many frames may be run at once, where that pays: more throughput, more latency.
        use_cache: whether kept costs and the machine's calibration may be used.

            `planner`, `engines`, `batch` and `use_cache` are for finding a plan, and cannot be given with one.
        follow: whether the plan is corrected while it runs where cores turn out slower or faster than their costs say
            (throttling, other programs, a lost core); a plan that is given or of another planner stays as it is.

    Returns:
        A stream; close it, or use it in a `with` statement.

    Raises:
        UsageError: an option has no effect with a plan that is given.
        CorepipeError: the model, plan or machine is not usable; the message says what to do.

    Example:
        >>> with corepipe.open("squeezenet") as stream:                      # doctest: +SKIP
        ...     for output in stream(frames):
        ...         print(output.argmax())
    """
    if plan is not None:
        void = {"planner": planner != planners.BEST, "engines": engines is not None, "batch": batch != 1}
        for name, given in (void | {"use_cache": not use_cache}).items():
            if given:
                raise UsageError(f"{name} has no effect with a plan, which was found before; leave it out")
    network = open_network(model, shapes)
    topology = detect(restrict_to=cores)
    if plan is None:
        planners.check_planner(planner, (cluster.name for cluster in topology.clusters))
        table = find_costs(
            network, topology, engines=engines, batch=batch, use_cache=use_cache, on_progress=_said(network, topology)
        ).table
        stream = Stream(network, planners.plan(table, planner, bound=False), topology)
        if follow and planner == planners.BEST:
            try:
                Follower(stream, table)
            except BaseException:
                stream.close()
                raise
        return stream
    return Stream(network, plan if isinstance(plan, Plan) else Plan.read(plan), topology)


def measuring(network: Network) -> str:
    """What is said when the costs of a network begin to be measured."""
    return f"measuring the costs of {network.name} on this machine, for some minutes perhaps"


def _said(network: Network, topology: Topology) -> Progress:
    """Log that costs are measured when the first of them are, and what would spoil them."""

    @functools.cache
    def say() -> None:
        _log.warning("%s", measuring(network))
        for warning in topology.warnings:
            _log.warning("%s", warning)

    return lambda share, text: say()


ALIGNED_S = 1800.0
"""Where plans are tried, engines that were held against each other longer ago are so anew: what memory and clock give
differs from hour to hour, and not for all engines alike."""


def engine_name(name: str = "onnxruntime") -> EngineName:
    """An engine with its installed version, without importing it into this process.

    Raises:
        EngineError: it is not installed.
        UnknownNameError: there is no such engine.
    """
    if name not in engine.names():
        raise UnknownNameError("engine", name, engine.names())
    for distribution in (name, *_BUILDS.get(name, ())):
        with contextlib.suppress(PackageNotFoundError):
            return EngineName(name=name, version=version(distribution))
    raise EngineError(f"engine {name} is not installed; install it with: pip install {name}")


def engine_names(names: Sequence[str] | None = None) -> tuple[EngineName, ...]:
    """Engines with their installed versions, the default one first.

    Args:
        names: which; None for those that the environment variable COREPIPE_ENGINES names, else all installed ones.

    Raises:
        EngineError: one is not installed.
        UnknownNameError: there is no such engine.
    """
    if names is None:
        names = os.environ.get("COREPIPE_ENGINES", "").replace(",", " ").split()
    if names:
        return tuple(engine_name(name) for name in dict.fromkeys(names))
    found = []
    for name in engine.names():
        with contextlib.suppress(EngineError):
            found.append(engine_name(name))
    return tuple(found) or (engine_name(),)


def costs(
    network: Network,
    topology: Topology,
    *,
    engines: Sequence[str] | None = None,
    batch: int = 1,
    use_cache: bool = True,
    aligned_within_s: float = math.inf,
    on_progress: Progress = lambda share, text: None,
) -> CostTable:
    """The cost table of a network on this machine: from the cache, else measured now and kept.

    Args:
        network: what to measure.
        topology: where.
        engines: on which engines; None for all, see `engine_names`, of which those are left out that refuse it or die.
        batch: run frame by frame, and also so many frames at once, where an engine can.
        use_cache: whether kept costs may be used.
        aligned_within_s: engines and batches are held against each other anew where that was longer ago.
        on_progress: told of the progress.

    Raises:
        EngineError: an engine that was named refuses the network, or all do.
        BatchError: the network does not allow batches.
        CorepipeError: measuring failed.
    """
    modes = [(name, size) for name in engine_names(engines) for size in sizes(batch)]
    cache = TableCache()
    tables: list[CostTable] = []
    refusals: list[EngineError] = []
    died: list[tuple[Path, WorkerError]] = []
    gone: set[str] = set()
    """Engines that did not take the network frame by frame."""

    @functools.cache
    def check() -> None:
        """Before anything is measured, and once."""
        if batch > 1:
            try:
                check_batch(network, batched(network, batch), runs_on(engine.get(engine.names()[0])))
            except EngineError as error:  # of these frames together, not of the network
                raise BatchError(f"{network.name} cannot be run on {batch} frames at once: {error}") from None

    @functools.cache
    def forget() -> None:
        """Before the first of the new costs is kept: what was kept before them would be taken for a part of them."""
        cache.forget(cache.hop_path(topology, engine_name()))
        for mode in modes:
            cache.forget(cache.path(network, topology, *mode))

    for number, (name, size) in enumerate(modes):

        def told(share: float, text: str, number: int = number, name: EngineName = name, size: int = size) -> None:
            where = f", {name.name}" if len(modes) > 1 else ""
            together = f", {size} frames at once" if size > 1 else ""
            on_progress((number + share) / len(modes), text + where + together)

        if name.name in gone:
            continue
        path = cache.path(network, topology, name, size)
        hop = tables[0].hop if tables else None
        known = cache.refusal(path) if use_cache else None
        try:
            if known is not None:
                raise EngineError(f"{known} (as it did at an earlier start; --no-cache asks again)")
            tables.append(_costs(network, topology, name, size, use_cache, told, check, forget, hop))
        except WorkerError as error:  # the engine died or does not load, or there is too little memory
            if size == 1 and engines is not None:
                raise
            died.append((path, error))
            if size == 1:
                gone.add(name.name)
            together = f" with {size} frames at once" if size > 1 else ""
            _log.warning("plans do without %s%s: %s", name.name, together, error)
        except EngineError as error:
            if known is None:
                cache.keep_refusal(path, str(error))
            if size > 1 and tables:
                _log.log(
                    logging.INFO if known else logging.WARNING,
                    "plans do without %s with %d frames at once: %s", name.name, size, error,
                )  # fmt: skip
                continue
            if engines is not None:
                raise
            refusals.append(error)
            gone.add(name.name)
            _log.log(logging.INFO if known else logging.WARNING, "plans do without %s: %s", name.name, error)
    if not tables:
        raise died[0][1] if died else refusals[0]
    for path, death in died:  # where no engine is left, each start tries them
        cache.keep_refusal(path, str(death), FAILURE_S)
    within_s = aligned_within_s if use_cache else 0.0
    return _aligned(network, topology, tables, within_s, lambda share, text: on_progress(1.0, text))


def _aligned(
    network: Network, topology: Topology, tables: Sequence[CostTable], within_s: float, on_progress: Progress
) -> CostTable:
    """One table of several engines or batches, held against each other by measuring, unless they were in that time."""
    table = merged(tables)
    if len(tables) == 1:
        return table
    cache = TableCache()
    modes = [(*one.configs[0].mode, one.engines[0].version, one.provenance.created) for one in tables]
    together = EngineName(
        name="+".join(engine.name for engine in table.engines),
        version=hashlib.sha256(repr(modes).encode()).hexdigest()[:16],
    )
    path = cache.path(network, topology, together, table.batches[-1])
    if within_s > 0 and cache.age_s(path) >= within_s and (known := cache.refusal(path, beside_table=True)) is not None:
        _log.warning("%s (as at an earlier start; --no-cache tries again)", known)
        return cache.load(path, network) or table
    try:
        return cache.kept_or_measured(
            path,
            network,
            lambda: align(network, topology, table, on_progress=on_progress),
            within_s=within_s,
        )
    except (WorkerError, EngineError) as error:  # the whole network in every mode may be more than the memory takes
        text = f"{network.name}: its engines were not held against each other, plans may be off: {error}"
        cache.keep_refusal(path, text, FAILURE_S)
        _log.warning("%s", text)
        return cache.load(path, network) or table


def _costs(
    network: Network,
    topology: Topology,
    name: EngineName,
    batch: int,
    use_cache: bool,
    on_progress: Progress,
    check: Callable[[], None],
    forget: Callable[[], None],
    hop: HopCosts | None,
) -> CostTable:
    """The cost table of one engine and batch.

    Args:
        hop: what was measured of hops before, for where none are kept; they cost the same whatever the engine.
        check: called before it is measured.
        forget: called before something is kept where kept costs may not be used.
    """
    cache = TableCache()
    path, hop_path = cache.path(network, topology, name, batch), cache.hop_path(topology, engine_name())
    cooling: set[str] = set()

    def keep(partial: PartialProfile) -> None:
        cooling.update(cooling_devices_at_work())
        if not use_cache:
            forget()
        cache.save_partial(path, hop_path, partial)

    def measure() -> CostTable:
        check()
        done = cache.load_partial(path, hop_path, network) if use_cache else PartialProfile()
        table = profile(
            network,
            topology,
            name,
            batch=batch,
            done=PartialProfile(configs=done.configs, hop=done.hop or hop),
            on_progress=on_progress,
            on_partial=keep,
        )
        # All cores at once wait at barriers for unequal ones: that spreads by itself.
        noisy = [c.config for c in table.configs if c.spread > NOISY and c.core_config.cluster != ALL_CORES]
        if noisy:
            _log.warning(
                "the costs of %s were measured on %s while the machine was busy: plans may be off; close other "
                "programs and measure anew with --no-cache",
                network.name,
                ", ".join(noisy),
            )
        if cooling:
            _log.warning(
                "the chip slowed down (%s) while the costs of %s were measured, which are those of a hot chip: cool "
                "it, or lower its highest frequency, and measure anew with --no-cache",
                ", ".join(sorted(cooling)),
                network.name,
            )
        return table

    return cache.kept_or_measured(path, network, measure, within_s=math.inf if use_cache else 0.0)


def find_costs(
    network: Network,
    topology: Topology,
    *,
    engines: Sequence[str] | None = None,
    batch: int = 1,
    use_cache: bool = True,
    predict: bool = False,
    measured: bool = False,
    calibration: str | os.PathLike[str] | None = None,
    force: bool = False,
    aligned_within_s: float = math.inf,
    on_progress: Progress = lambda share, text: None,
) -> Costs:
    """The costs to plan with: kept ones, else predicted ones where this machine was calibrated, else measured now.

    A profile that was begun and interrupted is finished rather than predicted.

    Args:
        network: what is to be planned.
        topology: where.
        engines: which engines plans may use; None for all, see `engine_names`.
        batch: how many frames may be run at once.
        use_cache: whether kept costs and the machine's calibration may be used.
        predict: never measure, and pass over kept costs.
        measured: never predict.
        calibration: predict with the calibration in this file, which must be of this machine and engine version.
        force: use it even if it is not.
        aligned_within_s: as for `costs`.
        on_progress: told of the progress of measuring.

    Raises:
        UsageError: a prediction is asked for and the machine was not calibrated, or `calibration` is of another one.
        CorepipeError: measuring failed.
    """

    def measure() -> CostTable:
        return costs(
            network, topology, engines=engines, batch=batch, use_cache=use_cache,
            aligned_within_s=aligned_within_s, on_progress=on_progress,
        )  # fmt: skip

    if measured:
        table = measure()
        return Costs(table, f"costs: measured {table.provenance.created}")
    found = engine_names(engines)
    chosen = None
    if calibration is not None:
        chosen = Calibration.read(calibration)
        known = next((one for one in found if one.name == chosen.engine.name), found[0])
        check_calibration(chosen, calibration, topology, known, force=force)
    return choose_costs(
        network,
        topology,
        found,
        measure,
        named=engines is not None,
        batch=batch,
        use_cache=use_cache,
        predict=predict,
        calibration=chosen,
    )
