"""Samples the frequency of cores while a plan runs, for the counter tracks of a trace."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MAX_SAMPLES = 20_000
"""Samples kept at most, all cores together; beyond them every second one goes and the interval doubles."""

_FREQUENCY = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_cur_freq"


@dataclass(frozen=True)
class CounterSample:
    """One value of a counter track; `at_ns` is on CLOCK_MONOTONIC (or a simulation's clock)."""

    track: str
    unit: str
    at_ns: int
    value: float


class FrequencySampler:
    """A thread that reads the current frequency of CPUs from cpufreq at regular times.

    Where the system does not tell (no cpufreq, as in most virtual machines; not Linux) it starts no thread and has no
    samples.

    Args:
        cpus: logical CPU numbers.
        interval_s: seconds between two readings.
        root: folder that holds `sys/`; another one for a saved tree.

    Example:
        >>> with FrequencySampler(topology.cpus) as sampler:                 # doctest: +SKIP
        ...     run()
        >>> write_trace("t.json", records, plan, simulated=False, counters=sampler.samples)   # doctest: +SKIP
    """

    def __init__(self, cpus: Iterable[int], *, interval_s: float = 0.05, root: Path = Path("/")) -> None:
        self._paths = {cpu: root / _FREQUENCY.format(cpu) for cpu in cpus}
        self._paths = {cpu: path for cpu, path in self._paths.items() if _read_mhz(path) is not None}
        self._interval_s = interval_s
        self._rounds: list[tuple[int, tuple[float | None, ...]]] = []
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> FrequencySampler:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to sample; nothing happens where no frequency can be read, or when it runs already."""
        if self._paths and self._thread is None:
            self._stopping.clear()
            self._thread = threading.Thread(target=self._run, name="corepipe-frequency", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End sampling; safe to call again."""
        if self._thread is not None:
            self._stopping.set()
            self._thread.join()
            self._thread = None

    @property
    def samples(self) -> tuple[CounterSample, ...]:
        """What was read so far, one track per CPU, in order of time."""
        return tuple(
            CounterSample(f"cpu{cpu}", "MHz", at_ns, mhz)
            for at_ns, values in list(self._rounds)
            for cpu, mhz in zip(self._paths, values, strict=True)
            if mhz is not None
        )

    def _run(self) -> None:
        while True:
            self._rounds.append((time.monotonic_ns(), tuple(map(_read_mhz, self._paths.values()))))
            if len(self._rounds) * len(self._paths) > MAX_SAMPLES:
                self._rounds = self._rounds[::2]
                self._interval_s *= 2
            if self._stopping.wait(self._interval_s):
                return


def _read_mhz(path: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text()) / 1000
    return None
