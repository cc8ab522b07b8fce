"""The images an analysis is made on: the same ones, in the same order and batches, in every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from tunnel_lightning.callbacks.batches import first_of, fixed_batches, images_of, target_of
from tunnel_lightning.data import ImageLoader
from tunnel_lightning.taps import untouched_rng

SPLITS = ("train", "val", "test")
T = TypeVar("T")


@dataclass
class ImageSet:
    """A set of labelled images, read alike in every pass: unaugmented, in a fixed order, in fixed batches.

    The order is random, the same each time: a set that lies class after class would else give batches of one class,
    and what is averaged over batches (minibatch CKA) would be similarity within a class. Only someone else's loader
    with a ``fixed`` method of its own keeps its order and its batches, which :meth:`check` notes.

    Images that a set of someone else's draws at random on each reading are drawn again in each pass.

    Attributes:
        name: its name in tables.
        num_classes: labels run from 0 to this less one.
        class_names: their names.
        sources: for each split that is there, what gives its loader; called once, when it is first needed.
        batch_size: images of a batch at the most; all are as good as equal. What is averaged over batches (minibatch
            CKA) depends on it, so it is the analysis's own and not the loader's.

    Example:
        >>> from tunnel_lightning.data import Digits
        >>> digits = ImageSet.of(Digits())
        >>> [len(y) for x, y in digits.batches("test")], digits.size("test", 10)
        ([180, 179], 10)
    """

    name: str
    num_classes: int
    class_names: list[str]
    sources: Mapping[str, Callable[[], Any]]
    batch_size: int = 256
    _loaders: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, data: LightningDataModule, batch_size: int = 256) -> ImageSet:
        """The set of a datamodule; without ``num_classes`` of its own it has as many as its labels say.

        Raises:
            ValueError: it gives no training images.
        """
        data.prepare_data()
        data.setup("fit")
        data.setup("test")
        there = {
            split: partial(_loader_of, data, split)
            for split in SPLITS
            if getattr(type(data), f"{split}_dataloader")
            is not getattr(LightningDataModule, f"{split}_dataloader")
        }
        name = getattr(data, "name", None) or type(data).__name__
        return cls._complete(
            cls(name, 0, [], there, batch_size),
            getattr(data, "num_classes", None),
            getattr(data, "class_names", None),
        )

    @classmethod
    def from_loaders(
        cls,
        name: str,
        train: Any,
        test: Any,
        num_classes: int | None = None,
        batch_size: int = 256,
    ) -> ImageSet:
        """The set of two plain loaders or map-style data sets.

        Args:
            name: its name in tables.
            train: training images, a ``DataLoader`` or a ``Dataset`` of (image, label).
            test: test images.
            num_classes: by default one more than the largest training label, which takes a pass over a data
                set that keeps no list of its labels.
            batch_size: images of a batch.

        Raises:
            ValueError: labels that are no class indices.

        Example:
            >>> images = TensorDataset(torch.zeros(6, 1, 4, 4), torch.arange(6) % 3)
            >>> ImageSet.from_loaders("Mine", images, images).num_classes
            3
        """
        sources = {split: partial(_as_loader, given) for split, given in (("train", train), ("test", test))}
        made = cls(name, 0, [], sources, batch_size)
        names = getattr(getattr(made.loader("train"), "dataset", None), "classes", None)
        return cls._complete(made, num_classes, names)

    @classmethod
    def _complete(cls, made: ImageSet, num_classes: int | None, names: Sequence[str] | None) -> ImageSet:
        if num_classes is None:
            labels = made.labels("train")
            made.num_classes = 1 + int(labels.max()) if len(labels) else 0
        else:
            made.num_classes = int(num_classes)
        fits = names is not None and len(names) == made.num_classes
        made.class_names = [str(each) for each in (names if fits and names else range(made.num_classes))]
        return made

    @property
    def splits(self) -> list[str]:
        """The splits that are there."""
        return list(self.sources)

    @property
    def example(self) -> Tensor:
        """Two training images, float ``[2, C, H, W]``."""
        with untouched_rng():
            for x, _ in self.batches("train", 2):
                return x
        raise ValueError(f"{self.name} has no training images: give other data")

    @property
    def image_shape(self) -> tuple[int, ...]:
        """``(C, H, W)`` of its images."""
        return tuple(self.example.shape[1:])

    def loader(self, split: str) -> Any:
        """The loader of a split, as its owner made it.

        Raises:
            ValueError: there is no such split.
        """
        if split not in self._loaders:
            made = self.sources[split]() if split in self.sources else None
            if made is None:
                raise ValueError(f"{self.name} has no {split} images: give it a {split}_dataloader")
            self._loaders[split] = made
        return self._loaders[split]

    def batches(self, split: str, n: int | None = None) -> Batches:
        """Batches of images float ``[B, C, H, W]`` and labels int64 ``[B]``.

        Args:
            split: ``train``, ``val`` or ``test``.
            n: so many images, spread evenly over the split; None for all.

        Raises:
            ValueError: there is no such split, or its loader can't be read by index.
        """
        return Batches(self._fixed(split, n), self.num_classes, f"{self.name} ({split})")

    def numbers(self, split: str, n: int | None = None) -> Tensor:
        """Places in the set, int64 ``[N]``, of the images that ``batches`` of the same arguments give."""
        fixed = self._fixed(split, n)
        if isinstance(fixed, ImageLoader):
            return fixed.numbers
        if isinstance(fixed, DataLoader):
            return torch.as_tensor(fixed.dataset.indices)  # type: ignore[attr-defined]
        return torch.arange(self.size(split, n))

    def size(self, split: str, n: int | None = None) -> int:
        """Images that ``batches`` of the same arguments give."""
        fixed = self._fixed(split, n)
        if isinstance(fixed, ImageLoader):
            return fixed.num_images
        if isinstance(fixed, DataLoader):
            return len(fixed.dataset)  # type: ignore[arg-type]
        return len(self.labels(split, n))

    def labels(self, split: str, n: int | None = None) -> Tensor:
        """Labels int64 ``[N]`` of the images that ``batches`` of the same arguments give.

        They come from the set's own list of labels where it keeps one, else from a pass over its images.
        """
        fixed = self._fixed(split, n)
        if isinstance(fixed, ImageLoader):
            return fixed.labels[fixed.numbers]
        listed = _listed_labels(fixed.dataset) if isinstance(fixed, DataLoader) else None
        if listed is not None:
            return listed
        with untouched_rng():  # anyone's data set may draw while it is read
            return torch.cat([y for _, y in self.batches(split, n)] or [torch.zeros(0, dtype=torch.int64)])

    def check(self, n: int | None = None, option: str = "--fit_images") -> list[str]:
        """Refuse a set that no probe can be fitted on, and say what a reader must know of it.

        Args:
            n: training images that will be used; None for all.
            option: what sets this number, for the sentences.

        Returns:
            Notes: classes without training images, and images that can't be mixed.

        Raises:
            ValueError: fewer training images than classes, no test images, or labels that are no class indices.
        """
        labels = self.labels("train", n)
        _check_labels(labels, self.num_classes, f"{self.name} (train)")
        counts = torch.bincount(labels, minlength=self.num_classes)
        some = int(counts.sum())
        of_more = (some < self.num_classes or not counts.all()) and some < self.size("train")
        if some < self.num_classes:
            cure = f"raise {option}" if of_more else "give more images, or fewer classes"
            raise ValueError(
                f"{self.name}: {some} training images are fewer than its {self.num_classes} classes, so no probe "
                f"can be fitted: {cure}"
            )
        if "test" in self.sources and not self.size("test"):
            raise ValueError(f"{self.name} has no test images, so nothing can be scored on it: give it some")
        notes = []
        empty = [name for name, count in zip(self.class_names, counts.tolist(), strict=True) if not count]
        if empty:
            named = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
            among = f" among the {some} of {option}" if of_more else ""
            notes.append(
                f"{self.name} has no training images of {len(empty)} of {self.num_classes} classes ({named}){among}"
            )
        if not isinstance(self._fixed("train", n), (ImageLoader, DataLoader)):
            notes.append(
                f"{self.name} gives its images in an order and in batches of its own: where they lie class after "
                "class, the similarity of layers (CKA) is that within a class"
            )
        return notes

    def _fixed(self, split: str, n: int | None) -> Any:
        """A loader of the images, mixed, in batches of this set's size; one of someone else's kind as it is."""
        loader = self.loader(split)
        if isinstance(loader, ImageLoader):
            ours = loader.fixed(n, order=mixed)
            ours.batch_size = even(ours.num_images, self.batch_size)
            return ours
        fixed: Any = fixed_batches(loader, n)
        if not isinstance(fixed, DataLoader):
            return fixed
        chosen: Any = fixed.dataset
        if not isinstance(chosen, Subset):  # a loader's own `fixed` may give anything
            chosen = Subset(chosen, range(len(chosen)))
        return DataLoader(
            Subset(chosen.dataset, [chosen.indices[i] for i in mixed(len(chosen)).tolist()]),
            even(len(chosen), self.batch_size),
            collate_fn=fixed.collate_fn,
            pin_memory=fixed.pin_memory,
            num_workers=getattr(loader, "num_workers", 0),
            worker_init_fn=getattr(loader, "worker_init_fn", None),
            # else a base seed is taken from the global random state
            generator=torch.Generator(),
        )


class Batches:
    """What :meth:`ImageSet.batches` gives: may be read again, and has a length.

    Args:
        loader: a loader of anyone's batches.
        num_classes: labels must be below it; 0 for not yet known.
        where: the set's name, for errors.
    """

    def __init__(self, loader: Any, num_classes: int, where: str) -> None:
        self.loader, self.num_classes, self.where = loader, num_classes, where

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float ``[B, C, H, W]`` and labels int64 ``[B]``.

        Raises:
            ValueError: labels that are no class indices, or too large.
        """
        for batch in self.loader:
            x, y = images_of(batch).float(), target_of(batch)
            _check_labels(y, self.num_classes, self.where)
            yield x, y.long()


def mixed(count: int) -> Tensor:
    """An order of so many images, int64 ``[count]``: random, and the same each time.

    Example:
        >>> bool((mixed(100) == mixed(100)).all()), mixed(100)[:3].tolist() == [0, 1, 2]
        (True, False)
    """
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def even(count: int, batch_size: int) -> int:
    """The size of batches no larger than asked that are as good as equal.

    A last batch of few images would weigh as much as the others in a mean over batches, and what is biased by few
    images (the share of the first component) would be off in it.

    Example:
        >>> even(1_040, 256), even(2_560, 256), even(10, 256)
        (208, 256, 10)
    """
    return max(1, -(-count // max(1, -(-count // batch_size))))


def shard(batches: Iterable[T], rank: int, world: int) -> Iterator[T]:
    """The share of one process: whole batches, ``rank``, ``rank + world``, ...

    Sums over batches are then the same sums on one process and on many. Every process reads all batches and
    leaves out the others'.

    Example:
        >>> list(shard("abcde", 1, 2))
        ['b', 'd']
    """
    return islice(batches, rank, None, world)


def distinct(sets: Sequence[ImageSet]) -> list[ImageSet]:
    """The sets, with ``-2``, ``-3``, ... behind the name of each that an earlier one has too.

    Example:
        >>> one = TensorDataset(torch.zeros(2, 1, 4, 4), torch.arange(2))
        >>> [each.name for each in distinct([ImageSet.from_loaders("A", one, one) for _ in range(3)])]
        ['A', 'A-2', 'A-3']
    """
    found: dict[str, ImageSet] = {}
    for each in sets:
        name, number = each.name, 1
        while name in found:
            number += 1
            name = f"{each.name}-{number}"
        found[name] = replace(each, name=name)
    return list(found.values())


def _check_labels(y: Tensor, num_classes: int, where: str) -> None:
    whole = y.ndim == 1 and not y.is_floating_point()
    if not whole or (len(y) and (y.min() < 0 or 0 < num_classes <= y.max())):
        top = f"to {num_classes - 1}" if num_classes else "on"
        span = f", from {y.min().item()} to {y.max().item()}" if y.numel() else ""
        raise ValueError(
            f"{where}: labels must be class indices [B] from 0 {top}, these are {y.dtype} {list(y.shape)}"
            f"{span}: number the classes from 0, or say num_classes"
        )


def _loader_of(data: LightningDataModule, split: str) -> Any:
    return first_of(getattr(data, f"{split}_dataloader")())


def _as_loader(given: Any) -> Any:
    return DataLoader(given) if isinstance(given, Dataset) else first_of(given)


def _listed_labels(dataset: Any) -> Tensor | None:
    """The labels int64 ``[N]`` that a data set keeps in a list, or None where reading an image tells."""
    if isinstance(dataset, Subset):
        labels = _listed_labels(dataset.dataset)
        return None if labels is None else labels[torch.as_tensor(dataset.indices, dtype=torch.int64)]
    if isinstance(dataset, TensorDataset):
        found = dataset.tensors[1] if len(dataset.tensors) > 1 else None
    elif getattr(dataset, "target_transform", None) is not None:
        return None
    else:
        found = getattr(dataset, "targets", getattr(dataset, "labels", None))
    try:
        labels = torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        return None
    whole = labels.ndim == 1 and not labels.is_floating_point() and len(labels) == len(dataset)
    return labels.long() if whole and (not len(labels) or labels.min() >= 0) else None
