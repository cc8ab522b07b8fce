"""A network as it was before it was trained."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from tunnel_lightning.analysis.base import Subject
from tunnel_lightning.analysis.weights import load_weights, read_weights
from tunnel_lightning.backbones import Backbone, rebuild
from tunnel_lightning.callbacks.run_folder import INITIAL_FILE
from tunnel_lightning.taps import untouched_rng


def untrained(subject: Subject, seed: int = 0) -> tuple[nn.Module, str]:
    """The subject's network before training, in evaluation mode, on the CPU, and where its weights are from.

    Of a run these are the weights its training began with, which `fit` keeps. Else they are drawn anew: a
    ``Backbone`` is made again, any other network is copied and every module in it that has ``reset_parameters`` (or
    timm's ``init_weights``) called.

    Args:
        subject: a trained network; it is not changed.
        seed: of weights that are drawn anew.

    Returns:
        The network (the counterpart of ``subject.network``), and ``initial weights of RUN`` or ``drawn anew``.

    Raises:
        ValueError: parameters that nothing in the network can draw anew; or the run's file is of another network.

    Example:
        >>> from tunnel_lightning.analysis.subject import subject_of
        >>> from tunnel_lightning.backbones import MLP
        >>> twin, origin = untrained(subject_of(MLP(depth=2, width=8)))
        >>> type(twin).__name__, origin
        ('MLP', 'drawn anew')
    """
    kept = subject.run / INITIAL_FILE if subject.run is not None else Path()
    with untouched_rng():
        torch.manual_seed(seed)
        if isinstance(subject.network, Backbone):
            twin: nn.Module = rebuild(subject.network.config)
        else:
            twin = copy.deepcopy(subject.network)
            if not kept.is_file():
                _draw(twin)
    twin.cpu().eval()
    if not kept.is_file():
        return twin, "drawn anew"
    load_weights([twin], read_weights(kept), kept)
    return twin, f"initial weights of {subject.run_id}"


def _draw(network: nn.Module) -> None:
    """Draw every parameter anew."""
    drawn: set[int] = set()
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
            drawn.update(id(p) for p in own)
    left = [name for name, p in network.named_parameters() if id(p) not in drawn]
    if left and callable(init := getattr(network, "init_weights", None)):
        init()
        left = []
    if left:
        raise ValueError(
            f"{type(network).__name__} can't be drawn anew: nothing in it says how {', '.join(left[:3])} "
            f"{'begins' if len(left) == 1 else 'begin'}; give it a reset_parameters method there"
        )
