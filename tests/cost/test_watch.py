from __future__ import annotations

import pytest

from corepipe.cost import prober
from corepipe.cost.watch import Watch


class Cores:
    """A made-up machine with a clock of its own: `slow` is how many times longer the reference takes now."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slow = 1.0
        self.shared = 1.0

    def clock(self) -> float:
        return self.now

    def reference(self, threads: int):
        def run() -> None:
            self.now += 1e-3 * self.slow * (self.shared if threads > 1 else 1.0)

        return run

    def watch(self, threads: int = 2, expected_s: float | None = 1e-3) -> Watch:
        return Watch(threads, expected_s, clock=self.clock, reference=self.reference)


@pytest.fixture
def cores() -> Cores:
    return Cores()


def look(watch: Watch, busy: bool = False) -> float:
    level = watch.look()
    watch.note(level, busy)
    return level


def test_a_look_is_the_mean_of_the_reference(cores):
    watch = cores.watch()
    assert watch.look() == pytest.approx(1e-3)
    cores.slow = 30.0
    assert watch.look() == pytest.approx(30e-3)


def test_slow_moments_do_not_count(cores):
    watch = cores.watch()
    quiet = look(watch)
    cores.slow = 1.5
    disturbed = look(watch)
    assert quiet <= watch.limit(busy=False) < disturbed


def test_cores_that_share_from_the_start_are_found_out(cores):
    cores.shared = 1.9
    watch = cores.watch()
    assert look(watch) > watch.limit(busy=False)
    cores.shared = 1.0
    assert look(watch) <= watch.limit(busy=False)


def test_cores_that_always_share_are_taken_as_they_are(cores):
    cores.shared = 1.9
    watch = cores.watch()
    level = look(watch)
    while watch.wait(1.0):
        level = look(watch)
    assert level <= watch.limit(busy=False)
    assert not watch.wait(0.1)


def test_unequal_cores_are_only_compared_with_themselves(cores):
    cores.shared = 3.0
    watch = cores.watch(expected_s=None)
    assert look(watch) <= watch.limit(busy=False)


def test_busy_neighbours_have_a_best_of_their_own(cores):
    watch = cores.watch(1)
    quiet = look(watch)
    cores.slow = 1.35
    loaded = look(watch, busy=True)
    assert quiet <= watch.limit(busy=False) < loaded <= watch.limit(busy=True)


class Model:
    """Runs in 10 ms of made-up time, and in more where the cores are slow."""

    def __init__(self, cores: Cores, slow: list[float]) -> None:
        self._cores, self._slow = cores, iter(slow)

    def prepare(self) -> bool:
        return False

    def run(self) -> None:
        self._cores.slow = next(self._slow, 1.0)
        self._cores.now += 10e-3 * self._cores.slow

    def profile(self, runs: int, between) -> list[list[tuple[str, float]]]:
        found = []
        for number in range(runs):
            self.run()
            found.append([(str(number), 10e-3 * self._cores.slow)])
            between()
        return found


@pytest.fixture
def made_up_time(cores, monkeypatch):
    monkeypatch.setattr(prober.time, "perf_counter", cores.clock)
    return cores


def test_only_quiet_runs_are_reported(made_up_time):
    slow = [1.0] * 40 + [2.0] * 40
    (runs,), left_out = prober._time([[Model(made_up_time, slow)]], 5, 1.0, made_up_time.watch(1), False)
    seconds = [each for (each,) in runs]
    assert seconds == pytest.approx([10e-3] * len(seconds))
    assert 0.2 < left_out < 0.6


def test_a_disturbed_measurement_goes_on_until_it_is_quiet(made_up_time):
    watch = made_up_time.watch(1)
    look(watch)
    (runs,), left_out = prober._time([[Model(made_up_time, [2.0] * 60)]], 5, 0.5, watch, False)
    seconds = [each for (each,) in runs]
    assert seconds == pytest.approx([10e-3] * len(seconds))
    assert left_out > 0.3


def test_patience_ends(made_up_time):
    watch = made_up_time.watch(1)
    look(watch)
    (runs,), left_out = prober._time([[Model(made_up_time, [2.0] * 10_000)]], 5, 0.5, watch, False)
    seconds = [each for (each,) in runs]
    assert len(seconds) >= 5
    assert left_out == 1.0


def test_without_a_watch_everything_counts(made_up_time):
    (runs,), left_out = prober._time([[Model(made_up_time, [1.0, 2.0] * 10)]], 5, 0.1, None, False)
    seconds = [each for (each,) in runs]
    assert max(seconds) == pytest.approx(20e-3)
    assert min(seconds) == pytest.approx(10e-3)
    assert left_out == 0


def test_a_profile_leaves_disturbed_runs_and_the_warm_up_out(made_up_time):
    slow = [1.0] * 20 + [2.0] * 20
    runs, left_out = prober._profile(Model(made_up_time, slow), 38, made_up_time.watch(1), False)
    assert runs[0][0][0] == "2"
    assert all(seconds == pytest.approx(10e-3) for run in runs for _, seconds in run)
    assert 0.4 < left_out < 0.8
