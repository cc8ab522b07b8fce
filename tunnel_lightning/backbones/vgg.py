"""VGG for small images."""

import math
from collections import OrderedDict

from torch import Tensor, nn

from .base import Backbone

# Convolutions per stage, Simonyan & Zisserman (2015), table 1, columns A, B, D, E.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(Backbone):
    """VGG of Simonyan & Zisserman (2015) with one linear head after a global average pool.

    The depth in the name counts three fully connected layers of the original, so VGG-19 has 16 convolutions
    and the head. The modules are ``stages.0.0.conv``, ``.norm``, ``.act``, ..., ``head``; each stage ends
    with a 2x2 max-pool, left out once the map is one pixel wide or high (stage five of a 16x16 image, stages
    four and five of an 8x8 one), so an image of any size works.

    Args:
        depth: 11, 13, 16 or 19.
        width: channels of the first stage; the others have 2, 4, 8 and 8 times as many.
        batch_norm: normalise after each convolution.
        num_classes: number of outputs.
        input_shape: channels, height and width of one image.

    Raises:
        ValueError: another depth, or width below 1.

    Example:
        >>> import torch
        >>> network = VGG(depth=11, width=8, num_classes=26, input_shape=(1, 16, 16))
        >>> network(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 26])
    """

    def __init__(
        self,
        depth: int = 19,
        width: int = 64,
        batch_norm: bool = True,
        num_classes: int = 10,
        input_shape: tuple[int, int, int] = (3, 32, 32),
    ) -> None:
        super().__init__(num_classes, input_shape)
        if depth not in STAGES:
            raise ValueError(f"VGG: depth is {depth}; choose one of {', '.join(map(str, STAGES))}.")
        if width < 1:
            raise ValueError(f"VGG: width is {width}; it must be at least 1.")
        channels, *size = self.input_shape
        stages = []
        for convolutions, scale in zip(STAGES[depth], (1, 2, 4, 8, 8), strict=True):
            stage: list[nn.Module] = []
            for _ in range(convolutions):
                stage.append(_block(channels, width * scale, size, batch_norm))
                channels = width * scale
            if min(size) > 1:
                stage.append(nn.MaxPool2d(2))
                size = [side // 2 for side in size]
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Channel means of the last stage, [B, 8 width]."""
        return self.pool(self.stages(x)).flatten(1)


def _block(inputs: int, outputs: int, size: list[int], batch_norm: bool) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=not batch_norm)
    # He et al. (2015), with the fan-in that the map really has: of the nine taps only the mean number that
    # falls inside it. Counting nine, eight layers of 1x1 maps shrink the signal 3^8 times, and nothing trains
    # unless each is normalised.
    taps = math.prod((3 * side - 2) / side for side in size)
    nn.init.normal_(conv.weight, std=math.sqrt(2 / (inputs * taps)))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    block: OrderedDict[str, nn.Module] = OrderedDict(conv=conv)
    if batch_norm:
        block["norm"] = nn.BatchNorm2d(outputs)
    block["act"] = nn.ReLU()
    return nn.Sequential(block)
