"""Tiny streams and networks that the tests of this room share: `from continual.toys import stream, mlp, sgd`.

Digits, 8x8 grey, a dozen images of a class: a run over five tasks takes a second.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tunnel_lightning.backbones import MLP, Backbone
from tunnel_lightning.continual.scenarios import Scenario, make_stream
from tunnel_lightning.continual.stream import Stream
from tunnel_lightning.data import Arrays, Digits


def digits(samples_per_class: int = 12, **options: Any) -> Digits:
    """Digits with few training images; 36 test images of each class."""
    return Digits(samples_per_class=samples_per_class, **options)


def stream(
    kind: str = "class_incremental",
    tasks: Any = 5,
    train_images: int = 24,
    test_images: int = 24,
    samples_per_class: int = 12,
    **scenario: Any,
) -> Stream:
    """Split digits: by default 5 tasks of 2 classes, 24 training images each; other kinds by name."""
    return make_stream(
        digits(samples_per_class),
        Scenario(kind=kind, tasks=tasks, **scenario),
        train_images=train_images,
        test_images=test_images,
    )


def mlp(stream: Stream, depth: int = 3, width: int = 16, seed: int = 0) -> MLP:
    """An MLP with an output for each class of the stream (of the largest task, for several heads)."""
    torch.manual_seed(seed)
    return MLP(depth=depth, width=width, num_classes=stream.outputs, input_shape=stream.input_shape)


class Normed(Backbone):
    """Two convolutions with BatchNorm and dropout: whatever a careless look would disturb."""

    def __init__(self, num_classes: int = 10, input_shape: tuple[int, int, int] = (1, 8, 8)) -> None:
        super().__init__(num_classes, input_shape)
        channels, height, width = self.input_shape
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.head = nn.Linear(4 * height * width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        return self.layers(x)


def normed(stream: Stream, seed: int = 0) -> Normed:
    """The network with BatchNorm and dropout, for a stream."""
    torch.manual_seed(seed)
    return Normed(num_classes=stream.outputs, input_shape=stream.input_shape)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """The optimizer of every test that does not say otherwise."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def pictures_in(folder: Path) -> Callable[..., Arrays]:
    """Makes a set of 40 coloured, oblong pictures of 4 classes that may be mirrored, with the options it is given."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 6, 8, 3), dtype=np.uint8), np.arange(40) % 4
    np.savez(folder / "pictures.npz", train_images=x, train_labels=y, test_images=x, test_labels=y)
    return partial(Arrays, str(folder / "pictures.npz"))


def whole(dataset: Any) -> tuple[Tensor, Tensor]:
    """All images and labels of a data set."""
    items = [dataset[at] for at in range(len(dataset))]
    return torch.stack([item[0] for item in items]), torch.tensor([item[1] for item in items])
