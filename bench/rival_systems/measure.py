"""Every setting tried briefly, then the best of each system against each other, interleaved."""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from rival_systems.catalogue import COREPIPE, Setting, missing
from rival_systems.host import ChildError, Contender, convert, run_aside

NEAR = 0.05
"""Settings this near to their system's best by the screening are measured in the interleaved run too."""

CLOSE = 0.2
SCREENINGS = 3
"""Settings this near to their system's best by one slice are tried so often, and judged by the median: a single slice
of a second may be that far off."""

HOPEFUL = 0.8
"""But not those of systems whose best is below this share of the best rival's."""

FEW_ROUNDS = 3
"""Such systems run in the first rounds only: their places are clear."""

_SPARE_BYTES = 3 * 2**30
"""Memory that must be free for another setting of a system that is loaded already."""

_SETTLE_S = 0.3
"""Seconds before a slice, in which threads that spin after a run go to sleep."""

_CALLS = 24
_LARGE_CALLS = 12
"""Calls in a slice at the least, at batch 1 and above, beside those that fill a pipeline or a queue."""

_CONVERTED = ("ncnn", "litert")


@dataclass(frozen=True)
class Times:
    """How long everything takes, in seconds, and how often."""

    rounds: int = 5
    slice_s: float = 2.0
    screen_s: float = 1.0
    load_s: float = 300.0
    costs_s: float = 1800.0


@dataclass
class Measured:
    """What came of one network.

    Attributes:
        rows: every setting in the interleaved run; `best` marks each system's.
        screening: every setting tried: its frames per second or the reason why it has none.
        absent: systems that have no figure at all on this network, with the reason.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    screening: list[dict[str, Any]] = field(default_factory=list)
    absent: list[dict[str, Any]] = field(default_factory=list)
    bound_fps: float | None = None


Say = Callable[[str], None]


def measure(
    settings: Sequence[Setting],
    own: Setting,
    folder: Path,
    batches: Sequence[int],
    times: Times,
    say: Say,
) -> Measured:
    """Measure one network whose files are in `folder`.

    Args:
        settings: the rivals' at batch 1.
        own: corepipe's.
        folder: see `prepare`.
        batches: the other sizes that rivals may choose.
        times: how long.
        say: is told of the progress.
    """
    result = Measured()
    _measure_costs(own, folder, times, say)
    usable = list(_usable(settings, folder, times, result))
    _screen(usable, folder, times, result, say)
    if batches:
        _screen(list(_batched(usable, batches, folder, times, result)), folder, times, result, say)
    _screen_again(usable, batches, folder, times, result, say)
    _screen([best.with_huge_pages() for best in _best(result, usable, batches)], folder, times, result, say)
    _screen_again(usable, batches, folder, times, result, say)
    _compete([(own, times.rounds), *_finalists(result, usable, batches, times.rounds)], folder, times, result, say)
    _note_absent(settings, own, result)
    return result


def _measure_costs(own: Setting, folder: Path, times: Times, say: Say) -> None:
    """Let corepipe measure and keep its costs while nothing else is loaded."""
    say("corepipe: costs")
    cpus, batches = own.processes[0], own.options.get("batches", (1,))
    if reason := run_aside("rival_systems.run_corepipe", [str(folder), json.dumps([cpus, batches])], times.costs_s):
        say(f"corepipe: {reason}")


def _usable(settings: Iterable[Setting], folder: Path, times: Times, result: Measured) -> Iterator[Setting]:
    """Those whose engine is installed and takes the network."""
    reasons: dict[str, str | None] = {}
    for setting in settings:
        engine = setting.engine
        if engine not in reasons:
            reasons[engine] = missing(engine)
            if reasons[engine] is None and engine in _CONVERTED:
                reasons[engine] = convert(engine, folder, 1, times.load_s)
        if (reason := reasons[engine]) is None:
            yield setting
        else:
            _note(result, setting, reason=reason)


def _batched(
    usable: Sequence[Setting], batches: Sequence[int], folder: Path, times: Times, result: Measured
) -> Iterator[Setting]:
    """Of each system and layout of cores the best setting at batch 1, with each larger batch."""
    by_words = {str(setting): setting for setting in usable}
    best: dict[tuple[str, str], tuple[float, Setting]] = {}
    for one in result.screening:
        setting = by_words.get(f"{one['system']} ({one['settings']})")
        if setting and one.get("throughput_fps") and setting.engine != "ncnn":
            key = (setting.system, setting.layout)
            best[key] = max(best.get(key, (0.0, setting)), (one["throughput_fps"], setting), key=lambda pair: pair[0])
    for batch in batches:
        reason = None
        if any(setting.engine == "litert" for _, setting in best.values()):
            reason = convert("litert", folder, batch, times.load_s)
        for _, setting in best.values():
            if setting.engine == "litert" and reason:
                _note(result, setting.with_batch(batch), reason=reason)
            else:
                yield setting.with_batch(batch)


def _screen(settings: Sequence[Setting], folder: Path, times: Times, result: Measured, say: Say) -> None:
    """One short slice of each setting, with nothing else loaded."""
    for number, setting in enumerate(settings, 1):
        say(f"screening {number}/{len(settings)}: {setting}")
        try:
            with contextlib.closing(Contender(setting, folder, times.load_s)) as contender:
                fps = contender.run(_seconds(contender, times.screen_s, _LARGE_CALLS))
                _note(result, setting, throughput_fps=round(fps, 4))
        except ChildError as error:
            _note(result, setting, reason=str(error))


def _screen_again(
    usable: Sequence[Setting], batches: Sequence[int], folder: Path, times: Times, result: Measured, say: Say
) -> None:
    """More slices of what may be its system's best, in turns: until all that are close have as many as it takes."""
    for number in range(1, SCREENINGS):
        by_system = _tried(result, usable, batches)
        close = [
            setting
            for tried in by_system.values()
            if _hopeful(tried, by_system)
            for fps, setting in tried
            if fps >= (1 - CLOSE) * tried[0][0] and len(_slices(result, setting)) == number
        ]
        _screen(close, folder, times, result, say)


def _note(result: Measured, setting: Setting, **what: Any) -> None:
    result.screening.append({"system": setting.system, "settings": setting.words, **what})


def _slices(result: Measured, setting: Setting) -> list[float]:
    """What the screening of a setting gave, in frames per second."""
    named = [one for one in result.screening if (one["system"], one["settings"]) == (setting.system, setting.words)]
    return [one["throughput_fps"] for one in named if one.get("throughput_fps")]


def _known(usable: Sequence[Setting], batches: Sequence[int]) -> dict[str, Setting]:
    """By its words every setting that may have been tried."""
    plain = [s for one in usable for s in (one, *(one.with_batch(batch) for batch in batches))]
    return {str(s): s for one in plain for s in (one, one.with_huge_pages())}


def _hopeful(tried: Sequence[tuple[float, Setting]], by_system: dict[str, list[tuple[float, Setting]]]) -> bool:
    """Whether a system may turn out to be the best one."""
    return tried[0][0] >= HOPEFUL * max(each[0][0] for each in by_system.values())


def _seconds(contender: Contender, least_s: float, calls: int) -> float:
    return max(least_s, contender.filling_s + contender.call_s * calls)


def _tried(
    result: Measured, usable: Sequence[Setting], batches: Sequence[int]
) -> dict[str, list[tuple[float, Setting]]]:
    """Frames per second of each system's settings by the screening (the median), the best first."""
    by_system: dict[str, list[tuple[float, Setting]]] = {}
    for setting in _known(usable, batches).values():
        if slices := _slices(result, setting):
            by_system.setdefault(setting.system, []).append((statistics.median(slices), setting))
    for tried in by_system.values():
        tried.sort(key=lambda pair: -pair[0])
    return by_system


def _best(result: Measured, usable: Sequence[Setting], batches: Sequence[int]) -> list[Setting]:
    """Each system's best setting by the screening."""
    return [tried[0][1] for tried in _tried(result, usable, batches).values()]


def _finalists(
    result: Measured, usable: Sequence[Setting], batches: Sequence[int], rounds: int
) -> list[tuple[Setting, int]]:
    """Each system's best setting by the screening, then those near to it, and the rounds that each runs in."""
    by_system = _tried(result, usable, batches)
    winners, near = [], []
    for tried in by_system.values():
        hopeful = _hopeful(tried, by_system)
        winners.append((tried[0][1], rounds if hopeful else min(rounds, FEW_ROUNDS)))
        if hopeful:
            near += [(setting, rounds) for fps, setting in tried[1:] if fps >= (1 - NEAR) * tried[0][0]]
    return [*winners, *near]


def _compete(settings: Iterable[tuple[Setting, int]], folder: Path, times: Times, result: Measured, say: Say) -> None:
    """Rounds of slices, each in an order of its own, all processes loaded at once."""
    with contextlib.ExitStack() as opened:
        contenders: list[Contender] = []
        rounds: dict[Contender, int] = {}
        for setting, its_rounds in settings:
            again = any(setting.system == one.setting.system for one in contenders)
            if again and psutil.virtual_memory().available < _SPARE_BYTES:
                say(f"no memory left for {setting}")
                continue
            say(f"loading {setting}")
            try:
                contender = Contender(setting, folder, times.costs_s if setting.system == COREPIPE else times.load_s)
            except ChildError as error:
                _note(result, setting, reason=str(error))
                continue
            opened.callback(contender.close)
            contenders.append(contender)
            rounds[contender] = its_rounds
        for number in range(times.rounds):
            running = [contender for contender in contenders if number < rounds[contender]]
            for contender in random.Random(number).sample(running, len(running)):
                say(f"round {number + 1}/{times.rounds}: {contender.setting}")
                try:
                    _slice(contender, contenders, times)
                except ChildError as error:
                    _note(result, contender.setting, reason=str(error))
                    contender.close()
                    contender.slices.clear()
                    contenders.remove(contender)
        result.rows = [_row(contender) for contender in contenders]
        for contender in contenders:
            if contender.setting.system == COREPIPE:
                result.bound_fps = contender.about.get("bound_fps")
    for system in dict.fromkeys(row["system"] for row in result.rows):
        rows = [row for row in result.rows if row["system"] == system]
        max(rows, key=lambda row: row["throughput_fps"])["best"] = True


def _slice(contender: Contender, contenders: Sequence[Contender], times: Times) -> None:
    time.sleep(_SETTLE_S)
    others = [other for other in contenders if other is not contender]
    before, began = [other.cpu_s() for other in others], time.monotonic()
    calls = _CALLS if contender.about.get("batch", contender.setting.batch) == 1 else _LARGE_CALLS
    contender.slices.append(contender.run(_seconds(contender, times.slice_s, calls)))
    took = time.monotonic() - began
    for other, used in zip(others, before, strict=True):
        other.idle_share = max(other.idle_share, (other.cpu_s() - used) / took)


def _row(contender: Contender) -> dict[str, Any]:
    setting = contender.setting
    extra = {k: v for k, v in contender.about.items() if k != "settings"}
    if contender.over_costs:
        extra["hops_over_costs"] = round(statistics.median(contender.over_costs), 4)
    return {
        "system": setting.system,
        "settings": contender.about.get("settings", setting.words),
        "batch": setting.batch,
        "throughput_fps": round(statistics.median(contender.slices), 4),
        "spread_fps": [round(min(contender.slices), 4), round(max(contender.slices), 4)],
        "slices_fps": [round(fps, 4) for fps in contender.slices],
        "best": False,
        "largest_relative_error": contender.largest_error,
        "idle_cpu_share": round(contender.idle_share, 4),
        **extra,
    }


def _note_absent(settings: Sequence[Setting], own: Setting, result: Measured) -> None:
    for system in dict.fromkeys(setting.system for setting in (own, *settings)):
        if any(row["system"] == system for row in result.rows):
            continue
        reasons = [one["reason"] for one in result.screening if one["system"] == system and "reason" in one]
        result.absent.append({"system": system, "reason": "; ".join(dict.fromkeys(reasons)) or "not measured"})
