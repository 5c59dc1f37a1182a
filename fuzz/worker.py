"""The process under test: runs inputs of one kind, guided by coverage or from seeded dice; started by `campaign.py`."""

from __future__ import annotations

import argparse
import collections
import hashlib
import importlib
import json
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_documents
import hostile_models
from watched import Watched

KEPT = 10
"""Inputs with the same defect that are kept; there may be thousands."""
FOUND = "found.jsonl"
DEFECT = "defect"

Run = Callable[[bytes], None]


def main() -> None:
    """Run what the command line says."""
    options = _options()
    resource.setrlimit(resource.RLIMIT_AS, (options.memory_mib << 20, options.memory_mib << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    targets = _targets(options.guided)
    names = tuple(targets.READERS)
    run = _runner(options, targets, names)
    if options.guided:
        _run_guided(options, names, run)
        return
    for number in range(options.first, options.first + options.count):
        run(_made(options.kind, names, number, options.seed))


def _targets(guided: bool) -> Any:
    """The targets, and corepipe with them; told apart branch by branch where coverage is to guide."""
    if guided:
        import atheris

        with atheris.instrument_imports(include=["corepipe"]):
            return importlib.import_module("targets")
    return importlib.import_module("targets")


def _runner(options: argparse.Namespace, targets: Any, names: tuple[str, ...]) -> Run:
    """What runs an input and notes how it ended."""
    seen: collections.Counter[str] = collections.Counter()
    watched = Watched(options.folder / f"{options.kind}.watched", (*targets.ENDS, DEFECT))

    def end_of(data: bytes) -> str:
        if options.kind == "models":
            return str(targets.run_model(data))
        # The first byte of a reader's input says which reader it is for.
        return str(targets.run_reader(names[(data or b"\0")[0] % len(names)], data[1:]))

    def run(data: bytes) -> None:
        watched.begin(data)
        try:
            how = end_of(data)
        except Exception as error:
            summary, how = describe(error), DEFECT
            seen[summary] += 1
            kept = data if seen[summary] <= KEPT else None
            note(options.folder, options.kind, "foreign error", summary, traceback.format_exc(), kept)
        watched.end(how)

    return run


def describe(error: Exception) -> str:
    """The same for the same defect: type, message without what varies, and where it was raised."""
    frames = [f"{Path(f.filename).name}:{f.name}" for f in traceback.extract_tb(error.__traceback__)[-3:]]
    return f"{type(error).__name__} in {' > '.join(frames)}: {str(error)[:120]}"


def note(folder: Path, kind: str, what: str, summary: str, details: str, data: bytes | None) -> None:
    """Keep a finding: a line about it, and the input as a file.

    Args:
        folder: where findings go.
        kind: `models` or `readers`.
        what: `foreign error`, `crash` or `hang`.
        summary: one line.
        details: such as a traceback.
        data: the input; None where enough like it are kept.
    """
    line = {"kind": kind, "what": what, "summary": summary}
    if data is not None:
        file = folder / f"{kind}-{what.replace(' ', '-')}-{hashlib.sha256(data).hexdigest()[:16]}"
        file.write_bytes(data)
        line |= {"file": file.name, "details": details[-4000:]}
    with (folder / FOUND).open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(line) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("models", "readers"))
    parser.add_argument("folder", type=Path)
    for name in ("first", "count", "seed", "memory-mib"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--guided", action="store_true")
    return parser.parse_args()


def _made(kind: str, names: tuple[str, ...], number: int, seed: int) -> bytes:
    if kind == "models":
        return hostile_models.hostile_model(number, seed)[1]
    name, data = hostile_documents.hostile_input(number, seed)
    return bytes([names.index(name)]) + data


def _run_guided(options: argparse.Namespace, names: tuple[str, ...], run: Run) -> None:
    """Let libFuzzer choose the inputs; it ends the process."""
    import atheris

    corpus = options.folder / f"{options.kind}-corpus"
    corpus.mkdir(exist_ok=True)
    for number in range(options.first, options.first + min(options.count // 5 + 1, 400)):
        (corpus / f"seed-{number:06}").write_bytes(_made(options.kind, names, number, options.seed))
    longest = 2**16 if options.kind == "models" else 2**13

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        data = bytes(data)
        if seed % 4 == 0 or not data:
            return bytes(atheris.Mutate(data, most))
        if options.kind == "models":
            changed = hostile_models.mutate(data, seed)
        else:
            changed = data[:1] + hostile_documents.mutate(names[data[0] % len(names)], data[1:], seed)
        return changed if len(changed) <= most else bytes(atheris.Mutate(data, most))

    # Time and memory are watched from outside: libFuzzer's own limits would end the campaign at the first finding.
    flags = ["-timeout=100000", "-rss_limit_mb=0", "-verbosity=0", f"-artifact_prefix={options.folder}/libfuzzer-"]
    flags += [f"-runs={options.count}", f"-max_len={longest}", f"-seed={options.seed + options.first + 1}"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], run, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
