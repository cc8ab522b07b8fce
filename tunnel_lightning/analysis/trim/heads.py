"""A head at every layer: fitted on training images, scaled on validation images, scored on test images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchmetrics.functional.classification import binary_calibration_error

from tunnel_lightning.analysis.context import Context
from tunnel_lightning.analysis.held import fit_heads, hold
from tunnel_lightning.analysis.limits import held_groups
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.store import Part
from tunnel_lightning.analysis.streamed import Plan, fit
from tunnel_lightning.measures import LinearHead
from tunnel_lightning.measures.functional.logistic import stratified_split
from tunnel_lightning.runs import NETWORK

HELD_OUT = 0.2
"""Share of the training images that stand in for validation images where a set has none."""
SCALED_ON = 5_000
"""Validation images that a temperature is fitted on at most: it is a single number."""
BINS = 15
"""Of the calibration error, as in Guo et al., 2017."""

Right = NDArray[np.bool_]


@dataclass
class Scored:
    """What the heads of one set know, by layer; raw pixels are ``input``, the network's own output is ``network``.

    Attributes:
        heads: float64, temperature folded in; not of the network.
        kinds: how each was fitted, ``ridge`` or ``logistic``.
        val: whether each validation image is answered right, shape [V].
        test: likewise each test image, shape [N].
        ece: calibration error of the answers on test images.
        temperature: what scores were divided by.
    """

    heads: dict[str, LinearHead] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    val: dict[str, Right] = field(default_factory=dict)
    test: dict[str, Right] = field(default_factory=dict)
    ece: dict[str, float] = field(default_factory=dict)
    temperature: dict[str, float] = field(default_factory=dict)

    def accuracy(self, split: str, name: str) -> float:
        """The share of a split's images that are answered right; NaN for a layer without a usable head."""
        right = (self.val if split == "val" else self.test).get(name)
        return float(right.mean()) if right is not None and len(right) else float("nan")

    def part(self) -> Part:
        """The same, to be kept."""
        arrays: dict[str, NDArray[Any]] = {}
        for name, head in self.heads.items():
            arrays |= {f"{name}|weight": head.weight.numpy(), f"{name}|bias": head.bias.numpy()}
        for split, found in (("val", self.val), ("test", self.test)):
            arrays |= {f"{name}|{split}": right for name, right in found.items()}
        return Part(
            arrays=arrays, extra={"ece": self.ece, "temperature": self.temperature, "kinds": self.kinds}
        )

    @classmethod
    def of(cls, part: Part) -> Scored:
        """What was kept."""
        made = cls(kinds=part.extra["kinds"], ece=part.extra["ece"], temperature=part.extra["temperature"])
        for key, array in part.arrays.items():
            name, _, kind = key.rpartition("|")
            if kind == "weight":
                made.heads[name] = LinearHead(
                    *(torch.from_numpy(a) for a in (array, part.arrays[f"{name}|bias"]))
                )
            elif kind in ("val", "test"):
                getattr(made, kind)[name] = array
        return made


def with_validation(images: ImageSet) -> tuple[ImageSet, str]:
    """A set that has validation images: its own, else a fixed fifth of its training images, the same of every class.

    Returns:
        The set, and a note where they were taken from the training images.

    Raises:
        ValueError: it has none, and its training images can't be divided.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> images = TensorDataset(torch.zeros(10, 1, 4, 4), torch.arange(10) % 2)
        >>> parted, note = with_validation(ImageSet.from_loaders("Mine", images, images))
        >>> parted.size("train"), parted.size("val"), note.partition(":")[0]
        (8, 2, 'Mine has no validation images')
    """
    if "val" in images.splits:
        try:
            if images.size("val"):
                return images, ""
        except ValueError:
            pass  # a datamodule whose val_dataloader gives nothing
    loader = images.loader("train")
    if not isinstance(loader, DataLoader):
        raise ValueError(
            f"{images.name} has no validation images to choose a cut on, and a {type(loader).__name__} can't be "
            "divided: give its datamodule a val_dataloader"
        )
    labels, numbers = images.labels("train"), images.numbers("train")
    kept, held = stratified_split(labels, HELD_OUT)
    if not len(kept) or not len(held):
        raise ValueError(
            f"{images.name} has {len(labels)} training images, too few to hold some out: give more"
        )
    make = partial(_some_of, loader)
    sources: dict[str, Callable[[], Any]] = {
        **images.sources,
        "train": partial(make, numbers[kept].sort().values.tolist(), True),
        "val": partial(make, numbers[held].sort().values.tolist(), False),
    }
    note = (
        f"{images.name} has no validation images: {len(held):,} of its {len(labels):,} training images, on which no "
        "head is fitted, stand in for them"
    )
    return replace(images, sources=sources), note


def _some_of(loader: DataLoader, numbers: Sequence[int], shuffle: bool) -> DataLoader:
    return DataLoader(
        Subset(loader.dataset, numbers),
        loader.batch_size or 128,
        shuffle=shuffle,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
    )


def heads_of(context: Context, images: ImageSet) -> Scored:
    """Fit a head at every layer and score it, layers in groups that fit into the memory limit.

    Of several kinds of heads, on the network's own set, each layer gets the one that answers more validation images
    right; on others all are of the first kind. Ridge heads are solved from the moments of one pass over all training
    images, logistic ones are converged on a sample. The scores of a head are divided by the temperature that makes
    validation labels likeliest, which changes no answer and makes their softmax a probability (Guo et al., "On
    Calibration of Modern Neural Networks", ICML 2017, section 4.2).

    Args:
        context: the network, with kinds of heads (``ridge``, ``logistic``) as its only measures.
        images: the set; it has validation images.
    """
    options, found, own = context.options, Scored(), images is context.own
    limit, network = options.eval_images, context.subject.matches and own
    for kind in options.wants("ridge", "logistic")[: None if own else 1]:
        for group in _groups(context, images, kind):
            fitted = _fitted(context, images, kind, group)
            seen = Answers(fitted, network and not found.val, keep=SCALED_ON)
            context.run(images, "val", limit, observers=[seen])
            for name, right in seen.right().items():
                if name in found.val and right.sum() <= found.val[name].sum():
                    continue
                found.val[name] = right
                if name != NETWORK:
                    scale = found.temperature[name] = temperature(seen.scores[name], seen.target)
                    found.heads[name] = LinearHead(fitted[name].weight / scale, fitted[name].bias / scale)
                    found.kinds[name] = kind
    for name in [name for name, head in found.heads.items() if not bool(head.weight.isfinite().all())]:
        for kept in (found.heads, found.kinds, found.val, found.temperature):
            kept.pop(name)
        if name != "input":
            why = "its features are constant or not finite"
            context.note(f"{images.name}: no head can be fitted at layer {name!r}, {why}")
    seen = Answers(found.heads, network)
    context.run(images, "test", limit, observers=[seen])
    found.test, found.ece = seen.right(), seen.calibration()
    return found


def _groups(context: Context, images: ImageSet, kind: str) -> list[list[str]]:
    """Layers whose heads are fitted at once."""
    if kind == "logistic":
        return held_groups(context, images)
    options, classes = context.options, images.num_classes
    plan = Plan(images, images.size("train", options.fit_images))
    scores = 4 * classes * min(SCALED_ON, images.size("val", options.eval_images))
    return context.groups(lambda dim: plan.nbytes(dim) + scores + 8 * classes * dim, working=plan.working)


def _fitted(context: Context, images: ImageSet, kind: str, group: Sequence[str]) -> dict[str, LinearHead]:
    if kind == "ridge":
        plan = Plan(images, images.size("train", context.options.fit_images))
        fitted = fit(context, plan, group).ridge
    else:
        sample = hold(context, images, group, "train")
        with context.timed(kind):
            fitted, _ = fit_heads(context, kind, sample, images)
        sample.close()
    return {name: LinearHead(head.weight.cpu(), head.bias.cpu()) for name, head in fitted.items()}


class Answers:
    """What heads answer, image by image: an observer of a pass.

    Args:
        heads: by layer.
        network: whether the network's own answers are gathered, too.
        keep: scores of so many images are kept in :attr:`scores`, as they come.
    """

    def __init__(self, heads: Mapping[str, LinearHead], network: bool, keep: int = 0) -> None:
        self.heads, self.network, self.keep = heads, network, keep
        self._right: dict[str, list[Tensor]] = {}
        self._sure: dict[str, list[Tensor]] = {}
        self._scores: dict[str, list[Tensor]] = {}
        self._target: list[Tensor] = []
        self._seen = 0

    def update(self, features: Mapping[str, Tensor], target: Tensor, output: Tensor | None) -> None:
        """Add a batch."""
        room = max(0, self.keep - self._seen)
        self._seen += len(target)
        self._target.append(target[:room].cpu())
        for name, scores in self._of(features, output):
            sure, answer = scores.softmax(1).max(1)
            for kept, values in ((self._right, answer == target), (self._sure, sure)):
                kept.setdefault(name, []).append(values.cpu())
            if room:
                self._scores.setdefault(name, []).append(scores[:room].cpu())

    def _of(self, features: Mapping[str, Tensor], output: Tensor | None) -> Iterable[tuple[str, Tensor]]:
        for name, (weight, bias) in self.heads.items():
            x = features[name]
            yield name, LinearHead(weight.to(x.device), bias.to(x.device))(x).float()
        if self.network and output is not None:
            yield NETWORK, output.float()

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Nothing to sum: a trim is made by one process."""

    @property
    def scores(self) -> dict[str, Tensor]:
        """The scores that are kept, ``[K, C]``."""
        return {name: torch.cat(rows) for name, rows in self._scores.items()}

    @property
    def target(self) -> Tensor:
        """The labels of the same images, int64 ``[K]``."""
        return torch.cat(self._target) if self._target else torch.zeros(0, dtype=torch.int64)

    def right(self) -> dict[str, Right]:
        """Whether each image is answered right, shape [N]."""
        return {name: torch.cat(rows).numpy() for name, rows in self._right.items()}

    def calibration(self) -> dict[str, float]:
        """The expected calibration error of the answers, in 15 bins of equal width."""
        return {
            name: float(binary_calibration_error(torch.cat(sure), torch.cat(self._right[name]).int(), BINS))
            for name, sure in self._sure.items()
            if bool(torch.cat(sure).isfinite().all())
        }


def temperature(scores: Tensor, target: Tensor) -> float:
    """What to divide scores by so that the labels are likeliest under their softmax.

    Args:
        scores: ``[N, C]``.
        target: class indices ``[N]``.

    Returns:
        The temperature, between 1e-4 and 1e4; 1 for scores that are not finite or equal throughout.

    Example:
        >>> scores = torch.tensor([[3.0, 0.0], [3.0, 0.0], [3.0, 0.0], [3.0, 0.0]])
        >>> found = temperature(scores, torch.tensor([0, 0, 0, 1]))  # right 3 times in 4
        >>> f"{torch.softmax(scores[0] / found, 0)[0]:.3f}"
        '0.750'
    """
    rows = scores.double()
    if not len(rows) or not bool(rows.isfinite().all()) or bool((rows == rows[:, :1]).all()):
        return 1.0

    def loss(log: float) -> float:
        return float(F.cross_entropy(rows / np.exp(log), target))

    ends = np.log(1e-4), np.log(1e4)
    return float(np.exp(minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-4}).x))
