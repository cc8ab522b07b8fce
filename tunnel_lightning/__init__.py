"""See, while a network trains and after, what every one of its layers knows.

Names are loaded on first use, so that ``import tunnel_lightning`` alone costs nothing.

Example:
    >>> from tunnel_lightning import Classifier, LayerMonitor  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Classifier": "tunnel_lightning.module",
    "LayerMonitor": "tunnel_lightning.callbacks",
    "OnlineProbes": "tunnel_lightning.callbacks",
    "RankMonitor": "tunnel_lightning.callbacks",
    "Schedule": "tunnel_lightning.callbacks",
    "TransferMonitor": "tunnel_lightning.callbacks",
    "WeightChange": "tunnel_lightning.callbacks",
    "TapSpec": "tunnel_lightning.taps",
    "Profile": "tunnel_lightning.analysis.profile",
    "analyze": "tunnel_lightning.analysis.profile",
    "load_analysis": "tunnel_lightning.runs",
    "measure": "tunnel_lightning.measures.base",
    "load_run": "tunnel_lightning.runs",
}
__all__ = [
    "Classifier",
    "LayerMonitor",
    "OnlineProbes",
    "Profile",
    "RankMonitor",
    "Schedule",
    "TapSpec",
    "TransferMonitor",
    "WeightChange",
    "__version__",
    "analyze",
    "load_analysis",
    "load_run",
    "measure",
]

if TYPE_CHECKING:
    from tunnel_lightning.analysis.profile import Profile, analyze
    from tunnel_lightning.callbacks import (
        LayerMonitor,
        OnlineProbes,
        RankMonitor,
        Schedule,
        TransferMonitor,
        WeightChange,
    )
    from tunnel_lightning.measures.base import measure
    from tunnel_lightning.module import Classifier
    from tunnel_lightning.runs import load_analysis, load_run
    from tunnel_lightning.taps import TapSpec


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tunnel_lightning' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
