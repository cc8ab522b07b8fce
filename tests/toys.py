"""A small foreign LightningModule with everything that could be disturbed, and data for it."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, Dataset

CLASSES = 5


class Images(Dataset):
    """Random images in clusters; with ``jitter`` each read draws from torch's, numpy's and python's generators."""

    def __init__(self, n: int, seed: int, jitter: bool = False, classes: int = CLASSES) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.y = torch.arange(n) % classes
        centres = torch.randn(classes, 1, 8, 8, generator=torch.Generator().manual_seed(99 + classes))
        self.x = centres[self.y] + 0.5 * torch.randn(n, 1, 8, 8, generator=generator)
        self.jitter = jitter

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.x[index]
        if self.jitter:
            x = x + 0.1 * torch.randn(()) + 0.1 * np.random.randn() + 0.1 * random.random()
            x = x.float()
        return x, self.y[index]


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.Dropout(0.2),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 64, 16),
            nn.Dropout(0.5),
            nn.ReLU(),
            nn.Linear(16, CLASSES),
        )


class Lit(LightningModule):
    """Anyone's module: it knows nothing of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Data(LightningDataModule):
    name = "Clusters"
    num_classes = CLASSES

    def __init__(self, jitter: bool = True) -> None:
        super().__init__()
        self.jitter = jitter

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Images(160, 0, self.jitter), batch_size=32, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Images(60, 1), batch_size=32)


class OtherData(LightningDataModule):
    name = "Other"
    num_classes = 3

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Images(60, 2, classes=3), batch_size=32, shuffle=True)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(Images(45, 3, classes=3), batch_size=32)
