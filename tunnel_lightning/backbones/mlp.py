"""A deep fully connected network."""

from collections import OrderedDict
from itertools import pairwise

from torch import Tensor, nn

from .base import Backbone


class MLP(Backbone):
    """``depth`` hidden layers of one width with ReLU, then the head; no normalisation.

    The modules are ``layers.0.linear``, ``layers.0.act``, ..., ``head``. Weights start as He et al. (2015),
    eq. 10, which keeps the scale of the signal through any depth of ReLU layers; biases start at zero.

    Args:
        depth: number of hidden layers, the head not counted.
        width: units in each.
        num_classes: number of outputs.
        input_shape: channels, height and width of one image.

    Raises:
        ValueError: depth or width below 1.

    Example:
        >>> import torch
        >>> network = MLP(depth=12, width=64, num_classes=26, input_shape=(1, 16, 16))
        >>> network(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 26])
    """

    def __init__(
        self,
        depth: int = 12,
        width: int = 256,
        num_classes: int = 10,
        input_shape: tuple[int, int, int] = (3, 32, 32),
    ) -> None:
        super().__init__(num_classes, input_shape)
        if depth < 1 or width < 1:
            raise ValueError(f"MLP: depth is {depth} and width {width}; both must be at least 1.")
        channels, height, side = self.input_shape
        sizes = [channels * height * side] + [width] * depth
        self.layers = nn.Sequential(*(_layer(inputs, outputs) for inputs, outputs in pairwise(sizes)))
        self.head = nn.Linear(width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Output of the last hidden layer, [B, width]."""
        return self.layers(x.flatten(1))


def _layer(inputs: int, outputs: int) -> nn.Sequential:
    linear = nn.Linear(inputs, outputs)
    nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    nn.init.zeros_(linear.bias)
    return nn.Sequential(OrderedDict(linear=linear, act=nn.ReLU()))
