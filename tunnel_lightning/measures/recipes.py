"""The papers' own linear probes, trained by minibatches on features held in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunnel_lightning.measures.functional.ridge import LinearHead, nan_head
from tunnel_lightning.taps.precision import full_precision


@dataclass(frozen=True)
class Recipe:
    """How a paper trains its linear probes. Features are taken as they are, and the last epoch's weights count.

    Attributes:
        optimizer: ``"adam"``, ``"adamw"`` or ``"sgd"``.
        lr: learning rate, constant.
        batch: samples a step.
        epochs: passes over the fit samples.
        fit_share: share of the samples that is trained on; the rest goes unused.
        weight_decay: the optimizer's own.
        momentum: of SGD.
        norm_penalty: factor of the norm of the weights (not squared, without bias) in the loss.
        label_smoothing: share of every target spread over all classes.
        init_std: deviation of normal initial weights, with zero bias; ``None`` is torch's own initialisation.
    """

    optimizer: str
    lr: float
    batch: int
    epochs: int
    fit_share: float = 1.0
    weight_decay: float = 0.0
    momentum: float = 0.0
    norm_penalty: float = 0.0
    label_smoothing: float = 0.0
    init_std: float | None = None

    def nbytes(self, dim: int, num_classes: int) -> int:
        """Bytes at most that one layer ``[N, D]`` takes in :func:`train_heads`, whatever N, its features left out.

        The weights, their gradient, what the optimizer keeps and the head in double precision; and of one batch the
        rows, twice, and arrays of the scores.

        Example:
            >>> RECIPES["harun"].nbytes(2048, 10)
            2865152
        """
        return 36 * dim * num_classes + self.batch * (8 * dim + 24 * num_classes)


RECIPES = {
    "masarczyk": Recipe("adam", lr=1e-3, batch=512, epochs=30, fit_share=0.8, norm_penalty=1e-3),
    "harun": Recipe("adamw", lr=1e-3, batch=128, epochs=30, label_smoothing=0.1, init_std=0.01),
    "nguyen": Recipe("sgd", lr=0.01, batch=128, epochs=300, momentum=0.9),
}
"""By first author.

- ``masarczyk``: Masarczyk et al., 2023 (arXiv:2305.19753), as their released code does it: 80 % of the samples
  are trained on, the other 20 % would choose an epoch, but the last one is scored.
- ``harun``: Harun et al., 2024 (arXiv:2405.15018), for convolutional networks. They take ``lr=1e-2,
  weight_decay=1e-4, batch=512`` for vision transformers, ``batch=512, lr=5e-4`` for some of ImageNet-1k:
  ``dataclasses.replace`` makes those.
- ``nguyen``: Nguyen et al., 2021 (arXiv:2010.15327). Without their random crops and flips, which held features
  cannot have; they keep the best epoch by the test set, here the last one counts.
"""


def train_heads(
    features: Mapping[str, Tensor],
    target: Tensor,
    num_classes: int,
    recipe: Recipe,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, LinearHead]:
    """Train a softmax probe on every layer: one loop, one optimizer, layers of equal width as one batch.

    Random numbers come from generators of their own, seeded alike for each layer: a layer's head does not
    depend on which other layers are trained beside it, and the global random state is neither read nor changed.

    Args:
        features: ``[N, D]`` by layer, all on one device.
        target: class indices ``[N]``.
        num_classes: C.
        recipe: one of ``RECIPES``, or another.
        seed: of the initial weights, the split and the order of the samples.
        progress: called after every epoch with the epochs done and their number.

    Returns:
        By layer, in the order given; NaN throughout for layers with constant or non-finite features.

    Raises:
        ValueError: no samples to train on, or an unknown optimizer.

    Example:
        >>> x = torch.cat([torch.zeros(50, 2), torch.ones(50, 2)])
        >>> y = torch.arange(100) // 50
        >>> heads = train_heads({"a": x, "b": x.new_ones(100, 3)}, y, 2, RECIPES["harun"])
        >>> float((heads["a"](x).argmax(1) == y).double().mean()), heads["b"].bias.isnan().all()
        (1.0, tensor(True))
    """
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randperm(len(target), generator=generator)[: int(recipe.fit_share * len(target))]
    if not len(samples):
        raise ValueError(f"no samples to train probes on: {len(target)} given, fit_share={recipe.fit_share}")
    widths = dict.fromkeys(layer.shape[1] for layer in features.values())
    groups = [
        _Heads({name: x for name, x in features.items() if x.shape[1] == width}, num_classes, recipe, seed)
        for width in widths
    ]
    optimizer = _optimizer(
        recipe, [parameter for group in groups for parameter in (group.weight, group.bias)]
    )
    device = groups[0].weight.device if groups else target.device
    target = target.to(device)
    for epoch in range(recipe.epochs):
        order = samples[torch.randperm(len(samples), generator=generator)].to(device)
        for batch in order.split(recipe.batch):
            for group in groups:
                group.backward(batch, target[batch])
            optimizer.step()
        if progress is not None:
            progress(epoch + 1, recipe.epochs)
    found = {name: head for group in groups for name, head in group.heads().items()}
    return {name: found[name] for name in features}


def _optimizer(recipe: Recipe, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "fused": True}
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, **options)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **options)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=recipe.momentum, **options)
    raise ValueError(f"no optimizer {recipe.optimizer!r} for probes: choose adam, adamw or sgd")


class _Heads:
    """The heads of all layers of one width: weight ``[L, C, D]`` and bias ``[L, C]``."""

    def __init__(self, features: dict[str, Tensor], num_classes: int, recipe: Recipe, seed: int) -> None:
        self.features = features
        self.recipe = recipe
        first = next(iter(features.values()))
        bound = 1 / math.sqrt(first.shape[1])
        generator = torch.Generator().manual_seed(seed)
        weight, bias = torch.zeros(num_classes, first.shape[1]), torch.zeros(num_classes)
        if recipe.init_std is None:
            for part in (weight, bias):
                nn.init.uniform_(part, -bound, bound, generator=generator)
        else:
            nn.init.normal_(weight, std=recipe.init_std, generator=generator)
        self.weight, self.bias = (
            nn.Parameter(part.to(first.device).repeat(len(features), *[1] * part.ndim))
            for part in (weight, bias)
        )

    @torch.no_grad()
    def backward(self, batch: Tensor, target: Tensor) -> None:
        """Set the gradients of the loss on the samples of one batch, summed over layers.

        By hand, as in ``ProbeBank``: autograd takes the weights' product the slow way round.
        """
        smoothing, num_classes = self.recipe.label_smoothing, self.weight.shape[1]
        with full_precision(self.weight.device):
            x = torch.stack([layer[batch] for layer in self.features.values()]).float()
            p = torch.baddbmm(self.bias[:, None], x, self.weight.transpose(1, 2)).softmax(2)
            goal = nn.functional.one_hot(target, num_classes) * (1 - smoothing) + smoothing / num_classes
            error = p.sub_(goal).div_(len(batch))
            weight = torch.bmm(error.transpose(1, 2), x)
        if self.recipe.norm_penalty:
            norm = torch.linalg.vector_norm(self.weight, dim=(1, 2), keepdim=True)
            weight += self.recipe.norm_penalty * self.weight / norm
        self.weight.grad, self.bias.grad = weight, error.sum(1)

    def heads(self) -> dict[str, LinearHead]:
        """By layer, in float64."""
        found = {}
        for i, (name, layer) in enumerate(self.features.items()):
            num_classes, dim = self.weight.shape[1:]
            head = LinearHead(self.weight[i].detach().double(), self.bias[i].detach().double())
            finite = torch.isfinite(head.weight).all() & torch.isfinite(head.bias).all()
            varies = (layer.amax(0) != layer.amin(0)).any()
            found[name] = head if finite & varies else nan_head(num_classes, dim, layer.device)
        return found
