"""Make chosen cores of this machine slower, for everyone who runs on them."""

from corepipe.emulate.command import run_command
from corepipe.emulate.emulation import Emulation, slowed
from corepipe.emulate.machine import slowed_topology
from corepipe.emulate.speeds import parse_slow

__all__ = ["Emulation", "parse_slow", "run_command", "slowed", "slowed_topology"]
