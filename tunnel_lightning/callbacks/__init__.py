"""Callbacks that watch every layer of a network while any Trainer trains it."""

from tunnel_lightning.callbacks.base import LayerCallback
from tunnel_lightning.callbacks.layer_monitor import LayerMonitor
from tunnel_lightning.callbacks.probes import OnlineProbes, ProbeOptions
from tunnel_lightning.callbacks.ranks import RankMonitor, RankOptions
from tunnel_lightning.callbacks.run_folder import RunFolder
from tunnel_lightning.callbacks.schedule import Schedule
from tunnel_lightning.callbacks.transfer import TransferMonitor, TransferOptions
from tunnel_lightning.callbacks.weights import WeightChange, WeightOptions

__all__ = [
    "LayerCallback",
    "LayerMonitor",
    "OnlineProbes",
    "ProbeOptions",
    "RankMonitor",
    "RankOptions",
    "RunFolder",
    "Schedule",
    "TransferMonitor",
    "TransferOptions",
    "WeightChange",
    "WeightOptions",
]
