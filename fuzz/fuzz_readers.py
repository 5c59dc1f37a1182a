"""Coverage-guided fuzzing of what reads plans, tables, machines: `make fuzz`, or `fuzz_readers.py -runs=1000000`."""

from __future__ import annotations

import atheris
from fuzz_model import Counter, start, targets

import hostile_documents

NAMES = tuple(targets.READERS)


def main() -> None:
    """Fuzz all readers; the first byte of an input says which one it is for."""
    counter = Counter(50_000)

    def run(data: bytes) -> None:
        if data:
            counter.add(targets.run_reader(NAMES[data[0] % len(NAMES)], data[1:]))

    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        data = bytes(data)
        if seed % 3 == 0 or not data:
            return bytes(atheris.Mutate(data, longest))
        name = NAMES[data[0] % len(NAMES)]
        changed = data[:1] + hostile_documents.mutate(name, data[1:], seed)
        return changed if len(changed) <= longest else bytes(atheris.Mutate(data, longest))

    seeds = [bytes([i]) + seed for i, name in enumerate(NAMES) for seed in hostile_documents.SEEDS[name]]
    numbers = {name: bytes([i]) for i, name in enumerate(NAMES)}
    seeds += [numbers[name] + data for name, data in hostile_documents.hostile_inputs(500)]
    start("readers", run, mutate, seeds, 2**13)


if __name__ == "__main__":
    main()
