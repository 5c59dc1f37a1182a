"""CNN inference at the highest throughput that a CPU with unequal cores can give.

    import corepipe
    with corepipe.open("model.onnx") as stream:
        for output in stream(frames): ...

Names are loaded when they are first used: worker processes import only what they need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from corepipe.api import open as open
    from corepipe.cost.table import CostTable as CostTable
    from corepipe.errors import CorepipeError as CorepipeError
    from corepipe.errors import EngineError as EngineError
    from corepipe.errors import FrameError as FrameError
    from corepipe.errors import ModelError as ModelError
    from corepipe.errors import PlanError as PlanError
    from corepipe.errors import StreamClosedError as StreamClosedError
    from corepipe.errors import StreamFullError as StreamFullError
    from corepipe.errors import UsageError as UsageError
    from corepipe.errors import WorkerError as WorkerError
    from corepipe.network.model import Network as Network
    from corepipe.plan.model import Plan as Plan
    from corepipe.runtime.stream import Stream as Stream
    from corepipe.topology.model import Topology as Topology

_HOMES = {
    "CorepipeError": "corepipe.errors",
    "CostTable": "corepipe.cost.table",
    "EngineError": "corepipe.errors",
    "FrameError": "corepipe.errors",
    "ModelError": "corepipe.errors",
    "Network": "corepipe.network.model",
    "Plan": "corepipe.plan.model",
    "PlanError": "corepipe.errors",
    "Stream": "corepipe.runtime.stream",
    "StreamClosedError": "corepipe.errors",
    "StreamFullError": "corepipe.errors",
    "Topology": "corepipe.topology.model",
    "UsageError": "corepipe.errors",
    "WorkerError": "corepipe.errors",
    "open": "corepipe.api",
}

__all__ = [
    "CorepipeError",
    "CostTable",
    "EngineError",
    "FrameError",
    "ModelError",
    "Network",
    "Plan",
    "PlanError",
    "Stream",
    "StreamClosedError",
    "StreamFullError",
    "Topology",
    "UsageError",
    "WorkerError",
    "__version__",
    "open",
]

if not TYPE_CHECKING:  # to a type checker, any name would be one

    def __getattr__(name):
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        raise AttributeError(f"module 'corepipe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
