"""corepipe against everything that its users would pick instead, side by side on this machine.

    python bench/rivals.py                                   this machine as it is, batch 1
    python bench/rivals.py --slow 1:0.4                      CPU 1 at 0.4 of its speed (emulated; needs the privilege)
    python bench/rivals.py --batch 4,8,16                    every system may batch
    python bench/rivals.py --cores 0-7 --slow 4-7:0.4        eight cores of a larger machine
    python bench/rivals.py --json bench/results/rivals-FILE.json    keep the result, and a plot beside it

The rivals come with `pip install '.[rivals,plots]'`; one that is missing is listed with the reason. Each runs in
processes of its own, with every setting of a small grid tried briefly and the best ones measured in turns with the
others; see docs/bench.md.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rival_systems import catalogue, prepare, result
from rival_systems.measure import Measured, Times, measure
from rival_systems.plot import plot

from corepipe.document import write_atomically
from corepipe.errors import UsageError
from corepipe.network.zoo import NAMES
from corepipe.report.bench import environment
from corepipe.topology import detect
from corepipe.topology.cpulist import format_cpu_list, parse_cpu_list

_log = Console(stderr=True, highlight=False)


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # rivals' processes too send nothing
    if options.cores:
        os.sched_setaffinity(0, options.cores)
    if options.slow:
        inside = [sys.executable, __file__, *_without_slow(arguments), "--slowed", options.slow]
        os.execv(sys.executable, [sys.executable, "-m", "corepipe", "emulate", "--slow", options.slow, "--", *inside])
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _new_cache() if options.no_cache else contextlib.nullcontext():
            data = run(options)
    except KeyboardInterrupt:
        _log.print("interrupted; nothing is left running")
        return 130
    result.show(data, Console(width=200))
    return 0


@contextlib.contextmanager
def _new_cache() -> Iterator[None]:
    """Costs are kept for this run only: several of its processes need them."""
    with tempfile.TemporaryDirectory(prefix="corepipe-rivals-cache-") as folder:
        os.environ["COREPIPE_CACHE"] = folder
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(NAMES), help="networks or ONNX files (default: the five)")
    parser.add_argument("--slow", help="CPUs and speeds as for `corepipe emulate`, such as 1:0.4")
    parser.add_argument("--slowed", help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=_cpus, help="the CPUs to use, such as 0-7 (default: all)")
    parser.add_argument(
        "--batch", type=_sizes, default=(), help="sizes that every system may choose beside 1, such as 4,8,16"
    )
    parser.add_argument("--only", action="append", default=[], help="rivals whose name begins so (default: all)")
    parser.add_argument("--rounds", type=int, default=Times.rounds)
    parser.add_argument("--seconds", type=float, default=Times.slice_s, help="length of a slice")
    parser.add_argument("--screen-seconds", type=float, default=Times.screen_s, help="length of a trial's slice")
    parser.add_argument("--timeout", type=float, default=Times.load_s, help="seconds to convert, load and compile")
    parser.add_argument("--json", type=Path, help="write the results to this file and a plot beside it (.png)")
    parser.add_argument("--with", dest="earlier", type=Path, help="a result that has the networks not measured now")
    parser.add_argument("--no-cache", action="store_true", help="measure corepipe's costs anew")
    return parser


def _cpus(text: str) -> tuple[int, ...]:
    """CPUs of this machine, ascending."""
    try:
        cpus = parse_cpu_list(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if absent := set(cpus) - os.sched_getaffinity(0):
        raise argparse.ArgumentTypeError(f"CPU {format_cpu_list(sorted(absent))} may not be used here")
    return cpus


def _sizes(text: str) -> tuple[int, ...]:
    """Batch sizes as in `4,8,16`, ascending and without 1, which is always tried."""
    sizes = {int(size) for size in text.split(",")}
    if min(sizes) < 1:
        raise ValueError
    return tuple(sorted(sizes - {1}))


def _without_slow(arguments: Sequence[str]) -> list[str]:
    """The arguments but `--slow`, which is in force already."""
    kept: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument == "--slow":
            next(left)
        elif not argument.startswith("--slow="):
            kept.append(argument)
    return kept


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every network, and write the file anew after each, so that nothing is lost if a later one fails."""
    topology = detect()
    batches = options.batch
    largest = max((1, *batches))
    kind = {"schema_version": 1, "emulated": topology.emulated, "slow": options.slowed, "batch": largest}
    earlier = json.loads(options.earlier.read_text()) if options.earlier else None
    if earlier is not None:
        result.check_alike(earlier, kind)
    settings = catalogue.settings(topology)
    wanted = tuple(options.only) or ("",)
    left_out = dict.fromkeys(s.system for s in settings if not s.system.startswith(wanted))
    settings = [s for s in settings if s.system.startswith(wanted)]
    own = catalogue.corepipe(topology, batches)
    times = Times(options.rounds, options.seconds, options.screen_seconds, options.timeout)
    about = {**environment(topology), "versions": catalogue.versions(catalogue.ENGINES), "command": _command(options)}
    measured: dict[str, Measured] = {}
    data: dict[str, Any] = {}
    for model in options.models:
        name = Path(model).stem
        with tempfile.TemporaryDirectory(prefix="corepipe-rivals-") as temporary:
            folder = Path(temporary) / name
            folder.mkdir()
            prepare.write_network(model, folder, batches)
            say = functools.partial(_say, name)
            measured[name] = measure(settings, own, folder, batches, times, say)
        measured[name].absent += [{"system": system, "reason": "left out by --only"} for system in left_out]
        data = result.document(measured, topology.emulated, largest) | {"environment": about, "slow": options.slowed}
        if earlier is not None:
            data = result.extended(earlier, data)
        say(f"corepipe {result.in_words(data, name)}")
        if options.json:
            write_atomically(options.json, json.dumps(data, indent=1) + "\n")
            if not plot(data, options.json.with_suffix(".png")):
                _log.print("no plot: matplotlib is not installed (pip install matplotlib)", markup=False)
    return data


def _say(network: str, text: str) -> None:
    _log.print(f"{network}: {text}", markup=False, soft_wrap=True)


def _command(options: argparse.Namespace) -> str:
    words = ["bench/rivals.py", *(Path(model).name for model in options.models if options.models != list(NAMES))]
    batch = ",".join(map(str, options.batch))
    cores = format_cpu_list(options.cores or ())
    given = [("cores", cores), ("slow", options.slowed), ("batch", batch), ("rounds", options.rounds)]
    given += [("seconds", options.seconds), ("screen-seconds", options.screen_seconds)]
    for name, value in (*given, *(("only", system) for system in options.only)):
        if value:
            words += [f"--{name}", str(value)]
    return shlex.join(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
