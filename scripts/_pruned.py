"""The methods that scripts/compare_pruning.py compares: each makes smaller networks of a trained one."""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.optim import SGD

from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.trim.heads import temperature
from tunnel_lightning.backbones import MLP, Backbone, ResNet
from tunnel_lightning.measures import LinearHead
from tunnel_lightning.measures.functional import linear_cka
from tunnel_lightning.module import Classifier, WarmupCosine

Batches = Sequence[tuple[Tensor, Tensor]]


@torch.no_grad()
def features_of(network: Backbone, batches: Batches) -> tuple[Tensor, Tensor]:
    """What the head reads, [N, D], and the labels."""
    network.eval()
    return torch.cat([network.features(x) for x, _ in batches]), torch.cat([y for _, y in batches])


@torch.no_grad()
def accuracy(network: nn.Module, batches: Batches) -> float:
    """Share of right answers."""
    network.eval()
    right = sum(int((network(x).argmax(1) == y).sum()) for x, y in batches)
    return right / sum(len(y) for _, y in batches)


def structured(network: Backbone, ratio: float, example: Tensor) -> Backbone:
    """Channels (units) of least magnitude out of every layer, by Torch-Pruning; the head keeps its outputs.

    Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, with its group magnitude importance.
    """
    import torch_pruning as tp  # pip install torch-pruning

    pruned = copy.deepcopy(network).eval()
    pruner = tp.pruner.MagnitudePruner(
        pruned,
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=[pruned.head],
    )
    pruner.step()
    return pruned


def removable(network: Backbone) -> list[str]:
    """Modules that can become the identity: hidden layers of equal widths, residual blocks without projection."""
    if isinstance(network, MLP):
        return [f"layers.{k}" for k in range(1, len(network.layers))]
    if isinstance(network, ResNet):
        return [
            f"stages.{i}.{j}"
            for i, stage in enumerate(network.stages)
            for j, block in enumerate(stage)  # type: ignore[arg-type]
            if block.residual and block.shortcut is None
        ]
    raise SystemExit(
        f"layers of {type(network).__name__} can't be removed here: give a run of an MLP or a ResNet"
    )


def without(network: Backbone, paths: Sequence[str]) -> Backbone:
    """A copy in which these modules are the identity."""
    made = copy.deepcopy(network)
    for path in paths:
        parent, _, name = path.rpartition(".")
        setattr(made.get_submodule(parent), name, nn.Identity())
    return made


def by_cka(network: Backbone, batches: Batches, most: int) -> Iterator[tuple[str, float, Backbone]]:
    """Remove one layer after another, each time the one without which the final representation changes least.

    As Pons et al. (ICPR 2024) and Mugnaini et al. do, as far as their abstracts tell: linear CKA of the final
    representation with that of the whole network, here in its unbiased form, on training images.
    """
    reference, _ = features_of(network, batches)
    gone: list[str] = []
    while len(gone) < most:
        found = []
        for path in removable(network):
            if path not in gone:
                rows, _ = features_of(without(network, [*gone, path]), batches)
                found.append((float(linear_cka(rows, reference)), path))
        cka, path = max(found)
        gone.append(path)
        yield path, cka, without(network, gone)


def refitted(network: Backbone, head: LinearHead) -> Backbone:
    """A copy with another head."""
    made = copy.deepcopy(network)
    with torch.no_grad():
        made.head.weight.copy_(head.weight)
        made.head.bias.copy_(head.bias)
    return made


def scaled(network: Backbone, batches: Batches) -> Backbone:
    """A copy whose scores are divided by the temperature that fits these images: a ridge head's are small."""
    made = copy.deepcopy(network).eval()
    with torch.no_grad():
        scores, target = torch.cat([made(x) for x, _ in batches]), torch.cat([y for _, y in batches])
        by = temperature(scores, target)
        made.head.weight /= by
        made.head.bias /= by
    return made


def tuned(
    starts: Sequence[Backbone],
    images: ImageSet,
    steps: int,
    lrs: Sequence[float],
    score: Callable[[nn.Module], float],
    precision: str,
) -> tuple[Backbone, float, float]:
    """Train for so many steps from each start and at each learning rate, which falls to 0 along half a cosine.

    Returns:
        The network that is best on validation images, its learning rate and its validation accuracy.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    found = []
    for network, lr in product(starts, lrs):
        torch.manual_seed(0)
        made = copy.deepcopy(network).train()
        classifier = Classifier(made, partial(SGD, lr=lr, momentum=0.9), WarmupCosine)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                max_steps=steps, accelerator="cpu", logger=False, precision=precision, default_root_dir=folder,  # type: ignore[arg-type]
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            trainer.fit(classifier, images.loader("train"))
        found.append((score(made.eval()), lr, made))
    value, lr, made = max(found, key=lambda each: each[0])
    return made, lr, value
