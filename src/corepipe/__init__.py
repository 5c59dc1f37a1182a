"""CNN inference at the highest throughput that a CPU with unequal cores can give.

    import corepipe
    with corepipe.open("model.onnx") as stream:
        for output in stream(frames): ...

Names are loaded when they are first used: worker processes import only what they need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from corepipe.api import open as open
    from corepipe.cost.table import CostTable as CostTable
    from corepipe.errors import CorepipeError as CorepipeError
    from corepipe.network.model import Network as Network
    from corepipe.plan.model import Plan as Plan
    from corepipe.runtime.stream import Stream as Stream
    from corepipe.topology.model import Topology as Topology

_HOMES = {
    "CorepipeError": "corepipe.errors",
    "CostTable": "corepipe.cost.table",
    "Network": "corepipe.network.model",
    "Plan": "corepipe.plan.model",
    "Stream": "corepipe.runtime.stream",
    "Topology": "corepipe.topology.model",
    "open": "corepipe.api",
}

__all__ = ["CorepipeError", "CostTable", "Network", "Plan", "Stream", "Topology", "__version__", "open"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'corepipe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
