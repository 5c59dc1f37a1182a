"""Which cores this machine has and may use, their clusters, names and caches."""

from corepipe.topology.cpulist import format_cpu_list, parse_cpu_list
from corepipe.topology.detect import detect
from corepipe.topology.machine_file import ENVIRONMENT, to_toml
from corepipe.topology.model import Cache, Cluster, Core, CoreConfig, Topology

__all__ = [
    "ENVIRONMENT",
    "Cache",
    "Cluster",
    "Core",
    "CoreConfig",
    "Topology",
    "detect",
    "format_cpu_list",
    "parse_cpu_list",
    "to_toml",
]
