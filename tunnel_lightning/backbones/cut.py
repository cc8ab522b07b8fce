"""A network up to one of its layers, with a linear head there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Backbone, rebuild
from .graph import cut_graph, find
from .rows import Pooled, Rows


class Centred(nn.Linear):
    """A linear layer that takes a point near the data away first, then maps: ``(x - centre) W^T + b``.

    In float32 ``x W^T + b`` cancels where the data's mean dwarfs its deviation; this does not.

    Args:
        in_features: columns of x [B, in_features].
        out_features: columns of the result.

    Attributes:
        centre: the point, [in_features]; 0 until it is set.

    Example:
        >>> layer = Centred(2, 1)
        >>> layer.centre.fill_(3.0).tolist()
        [3.0, 3.0]
        >>> torch.equal(layer(torch.full((1, 2), 3.0))[0], layer.bias)
        True
    """

    centre: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer("centre", torch.zeros(in_features))

    def forward(self, input: Tensor) -> Tensor:
        """[B, out_features] of x [B, in_features]."""
        return F.linear(input - self.centre, self.weight, self.bias)


class Shifted(nn.Module):
    """Each channel of the images [B, C, ...] less ``mean``, over ``std``.

    Args:
        mean: of each channel.
        std: likewise, all positive.

    Raises:
        ValueError: not one of both for each channel, or a deviation that is not positive.

    Example:
        >>> Shifted([0.5], [0.25])(torch.ones(1, 1, 1, 1)).item()
        2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise ValueError(
                f"mean is {mean} and std {std}; give one mean and one positive std for each channel."
            )
        # Not in the state: whoever makes the module again gives them again.
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images of the same shape."""
        return (x - self.mean) / self.std


class Cut(Backbone):
    """A network up to the output of one of its layers, pooled, with a linear head.

    What is not needed for that output is not there: a cut inside a residual block has neither the shortcut nor what
    follows. The modules that stay have the paths they have in the network, under ``body``. Weights are fresh;
    ``tunnel_lightning.surgery.cut`` makes one of a trained network and a probe.

    Args:
        network: class path and arguments of the whole network, as ``Backbone.config`` has them; its class must be
            imported, and nothing is downloaded.
        layer: where to cut, a tap's name in that network; ``relu#2`` is the second call of a module that runs several
            times.
        pool: how the layer's output becomes features, as in ``TapSpec``: ``2x2``, ``avg``, ``flatten``, ``token``.
        columns: which of these features the head reads, by number; None for all.
        centred: the head takes a point near the data away first (`Centred`), which float32 needs where the features'
            mean dwarfs their deviation.
        mean: taken away from each channel of the images before all else; None for nothing.
        std: each channel is divided by it then.
        num_classes: number of outputs, of the head here; the network's own is gone.
        input_shape: channels, height and width of one image.

    Attributes:
        body: what is left of the network; of a network that only torch.export can follow it stays in evaluation
            mode (see ``graph.cut_graph``).
        rows: its pooling.
        head: the linear head.

    Raises:
        ValueError: no such layer (near names are given), a network that can't be followed, images of another shape
            than the network's, or a ``pool`` or ``columns`` that are not there.

    Example:
        >>> from tunnel_lightning.backbones import ResNet
        >>> whole = ResNet(depth=8, width=4, num_classes=10, input_shape=(1, 8, 8))
        >>> cut = Cut(whole.config, "stages.1.0.conv1", num_classes=10, input_shape=(1, 8, 8))
        >>> cut(torch.zeros(2, 1, 8, 8)).shape, cut.head.in_features
        (torch.Size([2, 10]), 32)
        >>> [path for path, module in cut.body.named_modules() if isinstance(module, nn.Conv2d)]
        ['stem.conv', 'stages.0.0.conv1', 'stages.0.0.conv2', 'stages.1.0.conv1']
    """

    def __init__(
        self,
        network: dict[str, Any],
        layer: str,
        pool: Pooled = "2x2",
        columns: list[int] | None = None,
        centred: bool = False,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        num_classes: int = 10,
        input_shape: tuple[int, int, int] = (3, 32, 32),
    ) -> None:
        super().__init__(num_classes, input_shape)
        self.shift = shift_of(mean, std, self.input_shape[0])
        whole = _whole(network, num_classes, self.input_shape)
        # Two images: a leading size of one could not be told from a batch. Numbers of their own: no state moves.
        example = torch.randn(2, *self.input_shape, generator=torch.Generator().manual_seed(0))
        place = find(whole, layer, example)
        module = whole.get_submodule(place.path)
        self.rows = Rows.of(pool, whole, module, place.value.shape, len(example), columns)
        self.body = cut_graph(whole, place, example)
        width = self.rows(place.value).shape[1]
        self.head = Centred(width, num_classes) if centred else nn.Linear(width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """What the head reads, [B, D]: the layer's output, pooled."""
        return self.rows(self.body(self.shift(x)))


def shift_of(mean: list[float] | None, std: list[float] | None, channels: int) -> nn.Module:
    """`Shifted`, or nothing to do.

    Raises:
        ValueError: one without the other, or not one for each channel.
    """
    if mean is None and std is None:
        return nn.Identity()
    if mean is None or std is None or len(mean) != channels:
        raise ValueError(
            f"mean is {mean} and std {std}; give both, one for each of {channels} channels, or neither."
        )
    return Shifted(mean, std)


def _whole(network: Mapping[str, Any], num_classes: int, input_shape: tuple[int, int, int]) -> Backbone:
    if not isinstance(network, Mapping) or not {"class_path", "init_args"} <= set(network):
        raise ValueError("Cut: network must have class_path and init_args, as Backbone.config gives them.")
    # A config file leaves out what the data gives.
    given = {"num_classes": num_classes, "input_shape": list(input_shape), **network["init_args"]}
    if tuple(given["input_shape"]) != input_shape:
        raise ValueError(
            f"Cut: input_shape is {list(input_shape)}, but the network takes images {list(given['input_shape'])}; "
            "give it those."
        )
    return rebuild({"class_path": network["class_path"], "init_args": given})
