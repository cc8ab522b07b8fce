"""ResNets of basic blocks for small images."""

from collections import OrderedDict

from torch import Tensor, nn

from .base import Backbone


class ResNet(Backbone):
    """ResNet of basic blocks, He et al. (2016), with a small-image stem: 3x3, stride 1, no max-pool.

    Depths 18 and 34 are the ImageNet layouts of table 1 (four stages, width 64); a depth of 6n + 2 (8, 14,
    20, 32, 50, 56, 110, ...) is the CIFAR layout of section 4.2 (three stages of n blocks, width 16), with
    projection shortcuts. The modules are ``stem.conv``, ``.norm``, ``.act``; ``stages.0.0.conv1``,
    ``.norm1``, ``.act1``, ``.conv2``, ``.norm2``, ``.act2``, and ``.shortcut.conv``, ``.shortcut.norm`` where
    the shape changes; ``head``.

    Args:
        depth: 18, 34 or 6n + 2.
        width: channels of the first stage, doubled by each further one; by default 64, or 16 in the CIFAR
            layout.
        residual: add the shortcuts; False is the plain network of the same layers.
        num_classes: number of outputs.
        input_shape: channels, height and width of one image; any size works.

    Raises:
        ValueError: another depth, or width below 1.

    Example:
        >>> import torch
        >>> network = ResNet(depth=8, num_classes=26, input_shape=(1, 16, 16))
        >>> network(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 26])
    """

    def __init__(
        self,
        depth: int = 18,
        width: int | None = None,
        residual: bool = True,
        num_classes: int = 10,
        input_shape: tuple[int, int, int] = (3, 32, 32),
    ) -> None:
        super().__init__(num_classes, input_shape)
        if depth in (18, 34):
            blocks = [2, 2, 2, 2] if depth == 18 else [3, 4, 6, 3]
            width = 64 if width is None else width
        elif depth >= 8 and depth % 6 == 2:
            blocks = [(depth - 2) // 6] * 3
            width = 16 if width is None else width
        else:
            raise ValueError(f"ResNet: depth is {depth}; choose 18, 34 or 6n + 2 (8, 14, 20, 26, 32, ...).")
        if width < 1:
            raise ValueError(f"ResNet: width is {width}; it must be at least 1.")
        self.stem = nn.Sequential(
            OrderedDict(
                conv=_conv3x3(self.input_shape[0], width, stride=1), norm=nn.BatchNorm2d(width), act=nn.ReLU()
            )
        )
        channels, stages = width, []
        for number, count in enumerate(blocks):
            outputs = width * 2**number
            stage = []
            for position in range(count):
                stride = 2 if number > 0 and position == 0 else 1
                stage.append(BasicBlock(channels, outputs, stride, residual))
                channels = outputs
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Channel means of the last stage, [B, channels]."""
        return self.pool(self.stages(self.stem(x))).flatten(1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and, if residual, the shortcut around them; [B, C, H, W] to [B, C', H', W'].

    Example:
        >>> import torch
        >>> BasicBlock(4, 8, stride=2)(torch.zeros(1, 4, 8, 8)).shape
        torch.Size([1, 8, 4, 4])
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, residual: bool = True) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.act1 = nn.ReLU()
        self.conv2 = _conv3x3(outputs, outputs, stride=1)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.residual = residual
        self.shortcut: nn.Sequential | None = None
        if residual and (stride != 1 or inputs != outputs):
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            self.shortcut = nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(outputs)))
        self.act2 = nn.ReLU()  # last, so that modules stand in the order they run

    def forward(self, x: Tensor) -> Tensor:
        """The block's output after its last activation."""
        y = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        if self.residual:
            y = y + (x if self.shortcut is None else self.shortcut(x))
        return self.act2(y)


def _conv3x3(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return conv
