"""A plan on a cost table, event by event: what a board that is not at hand would do. See docs/simulation.md."""

from corepipe.simulate.bench import simulate_bench
from corepipe.simulate.events import DEFAULT_FRAMES, Contention, simulate
from corepipe.simulate.fits import check_fits
from corepipe.simulate.result import Simulation

__all__ = ["DEFAULT_FRAMES", "Contention", "Simulation", "check_fits", "simulate", "simulate_bench"]
