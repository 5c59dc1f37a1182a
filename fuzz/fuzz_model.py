"""Coverage-guided fuzzing of the model loader: `make fuzz`, or with libFuzzer's options `fuzz_model.py -runs=10000`."""

from __future__ import annotations

import collections
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["corepipe"]):
    import targets

import hostile_models

BUILD = Path(__file__).resolve().parents[1] / "build" / "fuzz"
OPTIONS = ("-timeout=3600", "-rss_limit_mb=6144", "-print_final_stats=1", "-verbosity=1")


def start(name: str, run: object, mutate: object, seeds: list[bytes], longest: int) -> None:
    """Fuzz until the options on the command line say stop, or something is found.

    Args:
        name: the folder under `build/fuzz` that keeps what was found to reach new code, and the crashes.
        run: takes bytes.
        mutate: as atheris wants it.
        seeds: what to begin with.
        longest: in bytes.
    """
    corpus = BUILD / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number:04}").write_bytes(seed)
    options = [f"-artifact_prefix={BUILD / name}-crash-", f"-max_len={longest}", *OPTIONS, *sys.argv[1:]]
    atheris.Setup([sys.argv[0], *options, str(corpus)], run, custom_mutator=mutate)
    targets.stop_when_hung()
    atheris.Fuzz()


class Counter:
    """Counts what became of the inputs, and says so now and then."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._ends: collections.Counter[str] = collections.Counter()

    def add(self, end: str) -> None:
        """One more."""
        self._ends[end] += 1
        total = self._ends.total()
        targets.alive()
        if total % self._every == 0:
            print(f"{total} inputs: {dict(self._ends.most_common())}", file=sys.stderr, flush=True)


def main() -> None:
    """Fuzz the loader."""
    with tempfile.TemporaryDirectory(prefix="corepipe-fuzz-") as name:
        folder, counter = Path(name), Counter(1000)
        hostile_models.prepare_folder(folder)

        def run(data: bytes) -> None:
            counter.add(targets.run_model(data, folder))

        def mutate(data: bytes, longest: int, seed: int) -> bytes:
            if seed % 5 == 0:
                return bytes(atheris.Mutate(data, longest))
            changed = hostile_models.mutate(bytes(data), seed)
            return changed if len(changed) <= longest else bytes(atheris.Mutate(data, longest))

        seeds = [model.SerializeToString() for model in hostile_models.valid_models().values()]
        seeds += [data for _, data in hostile_models.hostile_models(200)]
        start("models", run, mutate, seeds, 2**16)


if __name__ == "__main__":
    main()
