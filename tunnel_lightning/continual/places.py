"""The layers a continual run is measured in: found once, then by name in whatever a strategy made of the network."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tunnel_lightning.backbones import Backbone
from tunnel_lightning.continual.models import Features, TaskView, backbone_in
from tunnel_lightning.taps import Tap, Taps, TapSpec, quiet
from tunnel_lightning.taps.quiet import untouched_rng
from tunnel_lightning.taps.resolve import ADDITION


def find_layers(model: nn.Module, spec: TapSpec, example: Tensor) -> list[Tap]:
    """The layers that ``spec`` asks for, in order of execution; the classifier, and what is inside it, left out.

    They are those of the plain backbone: heads that a strategy adds, one for each task perhaps, are none of them.

    Args:
        model: as handed to the strategy; untouched.
        spec: which layers.
        example: images ``[N, C, H, W]``; two are looked at.

    Raises:
        ValueError: ``spec`` finds none.

    Example:
        >>> from tunnel_lightning.backbones import MLP
        >>> [tap.name for tap in find_layers(MLP(depth=2, width=4), TapSpec(), torch.zeros(2, 3, 32, 32))]
        ['layers.0.linear', 'layers.1.linear']
    """
    network, head = backbone_in(model), ""
    example = like_parameters(example, network)
    view: nn.Module = TaskView(model, 0)
    if isinstance(network, Backbone):
        paths = {id(module): path for path, module in network.named_modules()}
        head = paths[id(network.head)]
        view = network = _with_plain_head(network, head, example)
    taps = Taps(network, spec)
    try:
        _look_once(taps, view, example)
        found = [tap for tap in taps.layers if tap.module != head]
    finally:
        taps.remove()
    if not found:
        raise ValueError(
            f"taps.layers: {', '.join(spec.patterns)} names the classifier alone; name a layer before."
        )
    return found


def _with_plain_head(network: Backbone, head: str, example: Tensor) -> Backbone:
    """A copy that ends in a linear layer, whatever its head has become: so its last layer is not taken for one."""
    network = copy.deepcopy(network)
    with quiet(network):
        width = network.features(example).shape[-1]
    parent, _, child = head.rpartition(".")
    with untouched_rng():
        plain = nn.Linear(width, 2).to(example)
    setattr(network.get_submodule(parent), child, plain)
    return network


def attach(model: nn.Module, layers: Sequence[Tap], spec: TapSpec, example: Tensor) -> Taps:
    """Taps on those layers, and no others, in the strategy's model as it is now; ready, and to be removed after use.

    Args:
        model: ``strategy.model``.
        layers: as `find_layers` found them.
        spec: as given to it.
        example: some images; two are looked at.

    Raises:
        ValueError: the model has lost a layer, or a layer its width.

    Example:
        >>> from tunnel_lightning.backbones import MLP
        >>> mlp, images = MLP(depth=2, width=4), torch.zeros(2, 3, 32, 32)
        >>> layers = find_layers(mlp, TapSpec(), images)
        >>> with attach(nn.Sequential(mlp), layers[:1], TapSpec(), images) as taps:
        ...     [tap.name for tap in taps.layers]
        ['layers.0.linear']
    """
    network = backbone_in(model)
    # Additions have no module to be named by.
    patterns = spec.patterns if ADDITION in spec.patterns else [tap.name for tap in layers]
    try:
        taps = Taps(network, TapSpec(patterns, spec.pool, spec.max_features, spec.seed))
    except ValueError as error:
        raise ValueError(f"The strategy's model lacks a layer that the backbone has: {error}") from error
    try:
        _look_once(taps, without_head(model), like_parameters(example, network))
        widths = {tap.name: tap.dim for tap in taps.layers}
        for tap in layers:
            if widths.get(tap.name) != tap.dim:
                raise ValueError(
                    f"Layer {tap.name!r} had {tap.dim} features in the backbone and has "
                    f"{widths.get(tap.name, 'none')} in the strategy's model, so the two can't be compared: "
                    "leave it out of taps.layers."
                )
    except BaseException:
        taps.remove()
        raise
    return taps


def _look_once(taps: Taps, view: nn.Module, example: Tensor) -> None:
    """Let the taps see one quiet forward pass over two images."""
    with quiet(view):
        taps.arm()
        try:
            view(example[:2] if len(example) > 1 else torch.cat([example, example]))
            taps.take()
        finally:
            taps.disarm()


def without_head(model: nn.Module) -> nn.Module:
    """What is called on images where no scores are needed, or none are to be had."""
    network = backbone_in(model)
    return Features(network) if isinstance(network, Backbone) else TaskView(model, 0)


def like_parameters(x: Tensor, network: nn.Module) -> Tensor:
    """Images where the network's weights are, in their type."""
    weight = next((p for p in network.parameters() if p.is_floating_point()), None)
    return x if weight is None else x.to(device=weight.device, dtype=weight.dtype)
