"""A network with a tunnel by construction, and images whose raw pixels tell nothing: for the tests of ``trim``."""

import copy
from functools import cache

import torch
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tunnel_lightning.backbones import MLP

SHAPE = (1, 4, 4)


def images(n, seed, turned=False):
    """Images of four classes that differ in products of signs of two pairs of pixels, no linear function of them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(2, (n, *SHAPE), generator=generator) * 2.0 - 1
    x = x * (torch.arange(4) < 2) + 0.3 * torch.randn(n, *SHAPE, generator=generator)
    first, second = (x[:, 0, row, 0] * x[:, 0, row, 1] > 0 for row in ((2, 3) if turned else (0, 1)))
    return TensorDataset(x, 2 * first.long() + second.long())


class Signs(LightningDataModule):
    """Class by signs; without validation images if so wished."""

    name = "Signs"
    num_classes = 4

    def __init__(self, validation: bool = True, turned: bool = False, size: int = 600) -> None:
        super().__init__()
        self.validation, self.turned, self.size = validation, turned, size
        if turned:
            self.name = "Turned"

    def train_dataloader(self):
        return DataLoader(images(self.size, 0, self.turned), 100, shuffle=True)

    def val_dataloader(self):
        return DataLoader(images(300, 1, self.turned), 100) if self.validation else []

    def test_dataloader(self):
        return DataLoader(images(300, 2, self.turned), 100)


@cache
def _trained():
    torch.manual_seed(0)
    network = MLP(depth=4, width=32, num_classes=4, input_shape=SHAPE)
    x, y = images(600, 0).tensors
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(120):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network.eval()


def trained():
    """A copy of an MLP of four layers that learnt the signs."""
    return copy.deepcopy(_trained())


def shallow():
    """Its first layer and a head: nothing to cut away."""
    torch.manual_seed(0)
    return MLP(depth=1, width=32, num_classes=4, input_shape=SHAPE).eval()
