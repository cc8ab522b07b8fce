"""Networks around a network, for strategies that ask for more than scores."""

from __future__ import annotations

from torch import Tensor, nn

from tunnel_lightning.backbones import Backbone
from tunnel_lightning.continual.models import backbone_in


class Featured(nn.Module):
    """A network that can be asked for its features, as LFL does.

    Example:
        >>> import torch
        >>> from tunnel_lightning.backbones import MLP
        >>> mlp = MLP(depth=1, width=4)
        >>> Featured(mlp, mlp).get_features(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 4])
    """

    def __init__(self, model: nn.Module, backbone: Backbone) -> None:
        super().__init__()
        self.model = model
        assert backbone_in(model) is backbone

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``[B, outputs]`` of images ``[B, C, H, W]``."""
        return self.model(x)

    def get_features(self, x: Tensor) -> Tensor:
        """What the head reads, ``[B, D]``."""
        # Found anew: copies of this module have a backbone of their own.
        backbone = backbone_in(self.model)
        assert isinstance(backbone, Backbone)
        return backbone.features(x)


class Labelled(nn.Module):
    """A network that also takes task labels, and does not need them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, task_labels: Tensor | None = None) -> Tensor:
        """Scores ``[B, outputs]`` of images ``[B, C, H, W]``."""
        return self.model(x)


class Range(nn.Module):
    """From 0..1 to the range that each channel of some images has.

    Args:
        images: ``[N, C, H, W]``.

    Example:
        >>> import torch
        >>> of = Range(torch.tensor([-1.0, 3.0]).view(2, 1, 1, 1))
        >>> of(torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1)).flatten()
        tensor([-1.,  1.,  3.])
    """

    low: Tensor
    span: Tensor

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        low, high = images.amin((0, 2, 3))[:, None, None], images.amax((0, 2, 3))[:, None, None]
        self.register_buffer("low", low)
        self.register_buffer("span", high - low)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[B, C, H, W]``."""
        return self.low + self.span * x
