"""Images and labels out of anyone's batches, and repeatable batches out of anyone's loaders."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)

Target = int | str | Callable[[Any], Tensor] | None

LABEL_KEYS = ("label", "labels", "target", "targets", "y", "class")
IMAGE_KEYS = ("image", "images", "img", "input", "inputs", "x", "pixel_values")


def target_of(batch: Any, target: Target = None) -> Tensor:
    """The labels of a batch.

    Args:
        batch: what a loader yields.
        target: an index or key into the batch, a function of it, or ``None`` for the usual places
            (the second item; the keys ``label``, ``labels``, ``target``, ``targets``, ``y``, ``class``).

    Raises:
        ValueError: when no labels are found there.

    Example:
        >>> import torch
        >>> target_of((torch.zeros(2, 3), torch.tensor([0, 1])))
        tensor([0, 1])
    """
    if callable(target):
        return target(batch)
    try:
        if target is not None:
            return batch[target]
        if isinstance(batch, Mapping):
            return next(batch[key] for key in LABEL_KEYS if key in batch)
        if isinstance(batch, Sequence) and isinstance(batch[1], Tensor):
            return batch[1]
    except (KeyError, IndexError, StopIteration, TypeError):
        pass
    found = list(batch) if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
    raise ValueError(
        f"no labels found in the batch ({found}) with target={target!r}: say where they are with "
        "target=, an index, a key or a function of the batch"
    )


def images_of(batch: Any) -> Tensor:
    """The network's input in a batch: its first item, or the first of the usual keys."""
    if isinstance(batch, Mapping):
        named = [batch[key] for key in IMAGE_KEYS if key in batch]
        shaped = [value for value in batch.values() if isinstance(value, Tensor) and value.ndim >= 3]
        if not named and not shaped:
            raise ValueError(f"no images found in the batch: none of {list(batch)} is a tensor [B, C, H, W]")
        return (named or shaped)[0]
    return batch[0] if isinstance(batch, Sequence) else batch


def first_of(loaders: Any) -> Any:
    """The first loader of a loader, a list or a dict of loaders (the in-distribution one), or ``None``."""
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, (list, tuple)):
        return first_of(loaders[0]) if loaders else None
    return loaders


def fixed_batches(loader: Any, limit: int | None, rank: int = 0, world_size: int = 1) -> Iterable[Any]:
    """The same images in the same order each time, spread evenly over what the loader reads.

    The loader itself and its sampler are not touched: nothing of their random state is drawn. Each process
    gets its own share and no image comes twice.

    Args:
        loader: a loader with a ``fixed`` method, or a torch ``DataLoader`` over a map-style data set.
        limit: number of images over all processes; ``None`` for all.
        rank: this process.
        world_size: number of processes.

    Raises:
        ValueError: for a loader that can't be read by index.
    """
    if hasattr(loader, "fixed"):
        return loader.fixed(limit, rank=rank, world_size=world_size)
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        raise ValueError(
            f"a profile reads the same images each time, and {type(loader).__name__} can't be read by index: "
            "give a DataLoader over a data set with __len__ and __getitem__"
        )
    within = _indices(loader)
    count = len(within) if limit is None else min(limit, len(within))
    spread = np.linspace(0, len(within) - 1, count).round().astype(int)[rank::world_size]
    return DataLoader(
        Subset(loader.dataset, [within[i] for i in spread]),
        batch_size=loader.batch_size or getattr(loader.batch_sampler, "batch_size", 128),
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
    )


def _indices(loader: DataLoader) -> Sequence[int]:
    """What of its data set a loader reads: two loaders may share one set through their samplers."""
    sampler: Any = getattr(loader.batch_sampler, "sampler", loader.batch_sampler)
    # Lightning wraps a sampler of one's own for distributed runs.
    sampler = getattr(getattr(sampler, "dataset", None), "_sampler", sampler)
    if isinstance(sampler, (SequentialSampler, RandomSampler, DistributedSampler)):
        return range(len(loader.dataset))  # type: ignore[arg-type]
    if hasattr(sampler, "indices"):
        return sorted(sampler.indices)
    try:
        drawn = list(copy.deepcopy(sampler))
    except Exception as error:
        raise ValueError(
            f"a profile can't tell which images {type(sampler).__name__} reads ({error}): give the sampler an "
            "attribute `indices`, or split the data set itself"
        ) from error
    return sorted({i for item in drawn for i in (item if isinstance(item, Sequence) else [item])})
