"""Loaders of whole batches: from one tensor on the device, or from files through workers.

Both follow the same plan of an epoch (order, crops, flips), so they give the same batches; both know where
they are and can go on from there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tunnel_lightning.data.augment import augmented
from tunnel_lightning.data.images import Pool, Shape, fit

Batch = tuple[Tensor, Tensor]


class Plan(NamedTuple):
    """What one process reads in one epoch: image positions ``[n]`` and each one's crop and flip, or None."""

    rows: Tensor
    crop: Tensor | None
    flip: Tensor | None


class ImageLoader:
    """What the two loaders share: the plan of an epoch, sharding, and the position.

    The plan of epoch ``e`` follows from ``(seed, e)`` alone, by a generator of its own: no global random
    state is read or changed. Crops and flips are drawn per image, not per process, so a run on two
    processes at half the batch size sees in every step the images that a run on one sees, cut and flipped
    alike.

    - Shuffled (training): every process gets the same number of images; the up to ``world_size - 1`` left
      over, and the last batch where it would not be full, are left out of that epoch (others the next).
    - Not shuffled (evaluation): every image exactly once over all processes.

    ``state_dict`` says which batches have been handed out; after ``load_state_dict`` the next ``iter`` goes
    on after them, and after a finished epoch with the next one. An ``iter`` whose batches nobody takes
    changes nothing (Lightning asks for several).

    Args:
        labels: int64 ``[N]``.
        batch_size: Images of a batch on this process.
        mean: Mean of each channel, of pixels in 0..1.
        std: Standard deviation of each channel.
        shuffle: Another order each epoch.
        pad: Random crops from the image padded by reflection by so many pixels; 0 for none.
        flip: Random left-right flips.
        seed: Of order, crops and flips.
        rank: This process.
        world_size: Number of processes.
        device: Where the batches are.
    """

    def __init__(
        self,
        labels: Tensor,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        shuffle: bool = False,
        pad: int = 0,
        flip: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be from 0 to world_size - 1 = {world_size - 1}, got {rank}.")
        self.labels = labels
        self.batch_size = batch_size
        self.mean, self.std = tuple(mean), tuple(std)
        self.shuffle, self.pad, self.flip, self.seed = shuffle, pad, flip, seed
        self.rank, self.world_size = rank, world_size
        self.device = torch.device(device)
        self._subset: Tensor | None = None
        self._begin(0)

    def _batch(self, rows: Tensor) -> Iterator[Tensor]:
        raise NotImplementedError

    @property
    def numbers(self) -> Tensor:
        """Places in the set, int64 ``[n]``, of the images of an epoch, in the order they are read in unshuffled."""
        return torch.arange(len(self.labels)) if self._subset is None else self._subset

    @property
    def num_images(self) -> int:
        """Images of an epoch, over all processes."""
        return len(self.labels) if self._subset is None else len(self._subset)

    def _share(self) -> int:
        if self.shuffle:
            return self.num_images // self.world_size
        return len(range(self.rank, self.num_images, self.world_size))

    def __len__(self) -> int:
        """Number of batches on this process."""
        full, rest = divmod(self._share(), self.batch_size)
        return full + bool(rest and not (self.shuffle and full))

    @property
    def batch_sampler(self) -> SimpleNamespace:
        """Where Lightning looks for the ``set_epoch`` that it calls at the start of each epoch: this one's.

        It restores the position of a loader from checkpoints in mid-epoch only; after one at the end of an
        epoch this is how the loader learns which epoch comes.
        """
        return SimpleNamespace(sampler=self)

    def set_epoch(self, epoch: int) -> None:
        """Go to the first batch of ``epoch``, unless a position in it was loaded and waits to be used."""
        if epoch != self.epoch or self._begun:
            self._begin(epoch)

    def _begin(self, epoch: int) -> None:
        self.epoch, self.position, self._begun = epoch, 0, False

    def state_dict(self) -> dict[str, int]:
        """Where the loader is: batches handed out in which epoch. Empty unless it shuffles."""
        if not self.shuffle:
            return {}
        return {
            "epoch": self.epoch,
            "position": self.position,
            "batches": len(self),
            "seed": self.seed,
            "images": self.num_images,
            "global_batch_size": self.batch_size * self.world_size,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state`` was taken.

        Raises:
            ValueError: In mid-epoch, with another seed, set or batch size: the remaining batches would not
                be the remaining images.
        """
        if not (self.shuffle and state):
            return
        if state["position"] >= state["batches"]:
            self._begin(state["epoch"] + 1)
            return
        mine = self.state_dict()
        other = [key for key in ("seed", "images", "global_batch_size") if state[key] != mine[key]]
        if other and state["position"]:
            was = ", ".join(f"{key}={state[key]} (now {mine[key]})" for key in other)
            raise ValueError(
                f"The checkpoint was written in the middle of an epoch with {was}: resume with the same "
                "data settings, or from a checkpoint written at the end of an epoch."
            )
        self._begin(state["epoch"])
        self.position = state["position"]

    def __iter__(self) -> Iterator[Batch]:
        """Batches: images float32 ``[B, C, H, W]``, normalised, and labels int64 ``[B]``."""
        if self._begun:
            self._begin(self.epoch + 1)
        self._begun = True
        plan = self._plan(self.epoch, self.position * self.batch_size, len(self) * self.batch_size)
        scale, shift = self._normalisation()
        labels = self.labels.to(self.device)[plan.rows].split(self.batch_size)
        for at, images in enumerate(self._batch(plan.rows)):
            here = slice(at * self.batch_size, (at + 1) * self.batch_size)
            crop, flip = (None if each is None else each[here] for each in (plan.crop, plan.flip))
            if crop is not None or flip is not None:
                images = augmented(images, crop, flip, self.pad)
            # Counted before it is handed out: whoever asks during this batch is told that it is taken.
            self.position += 1
            yield images.to(torch.float32).mul_(scale).add_(shift), labels[at]

    def _plan(self, epoch: int, first: int, last: int) -> Plan:
        """What this process reads in an epoch, from its ``first`` image up to before its ``last``."""
        rows = self.numbers
        if not self.shuffle:
            return Plan(rows[self.rank :: self.world_size][first:last].to(self.device), None, None)
        generator = torch.Generator()
        seed = np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)
        generator.manual_seed(int(seed[0] >> np.uint64(1)))
        count = len(rows)
        order = torch.randperm(count, generator=generator)[: self._share() * self.world_size]
        mine = order[self.rank :: self.world_size][first:last]
        crops = flips = None
        if self.pad:
            crops = torch.randint(2 * self.pad + 1, (count, 2), generator=generator)[mine].to(self.device)
        if self.flip:
            flips = torch.randint(2, (count,), generator=generator, dtype=torch.bool)[mine].to(self.device)
        return Plan(rows[mine].to(self.device), crops, flips)

    def _normalisation(self) -> tuple[Tensor, Tensor]:
        mean = torch.tensor(self.mean, dtype=torch.float64)[:, None, None]
        std = torch.tensor(self.std, dtype=torch.float64)[:, None, None]
        return (1 / (255 * std)).float().to(self.device), (-mean / std).float().to(self.device)

    def fixed(
        self,
        n: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        order: Callable[[int], Tensor] | None = None,
    ) -> ImageLoader:
        """The same images for every measurement: ``n`` evenly spaced ones, not augmented.

        Draws nothing at random and leaves the position of this loader as it is.

        Args:
            n: How many, over all processes; None or more than there are: all.
            rank: This process.
            world_size: Number of processes; each image is read by exactly one.
            order: From the number of images to their order, int64 of that length; None as they lie in the set.

        Returns:
            A loader of its own over the same memory.

        Raises:
            ValueError: ``n`` below 1, or ``rank`` out of range.
        """
        if n is not None and n < 1:
            raise ValueError(f"n, the number of images to measure on, must be at least 1, got {n}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be from 0 to world_size - 1 = {world_size - 1}, got {rank}.")
        other = copy.copy(self)
        other.shuffle, other.pad, other.flip = False, 0, False
        other.rank, other.world_size = rank, world_size
        rows = self.numbers
        count = min(n or len(rows), len(rows))
        chosen = rows[torch.arange(count) * len(rows) // max(count, 1)]
        other._subset = chosen if order is None else chosen[order(count)]
        other._begin(0)
        return other


class DeviceLoader(ImageLoader):
    """Batches out of one uint8 tensor that lies on the device; crops and flips on whole batches there.

    A plain iterable with a length, which Lightning takes as it is (it puts no sampler into it); sharding,
    epochs and position: see `ImageLoader`, which also lists the other arguments.

    Args:
        images: uint8 ``[N, C, H, W]``; moved to ``device``.
        labels: int64 ``[N]``.
        batch_size: Images of a batch on this process.
        mean: Mean of each channel, of pixels in 0..1.
        std: Standard deviation of each channel.
        **options: Of `ImageLoader`.

    Raises:
        ValueError: Images that are not uint8 ``[N, C, H, W]``, or another number of labels.

    Example:
        >>> images = torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8)
        >>> loader = DeviceLoader(images, torch.arange(10), 4, [0.5] * 3, [0.25] * 3, shuffle=True, pad=1)
        >>> len(loader), next(iter(loader))[0].shape
        (2, torch.Size([4, 3, 8, 8]))
        >>> [len(y) for _, y in loader.fixed(5)]
        [4, 1]
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        **options: Any,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) != len(labels):
            raise ValueError(
                "DeviceLoader needs uint8 images [N, C, H, W] and N labels, "
                f"got {images.dtype} {list(images.shape)} and {len(labels)} labels."
            )
        super().__init__(labels, batch_size, mean, std, **options)
        self.images = images
        self.to(self.device)

    def to(self, device: torch.device | str) -> DeviceLoader:
        """Move images and labels; returns itself."""
        self.device = torch.device(device)
        self.images, self.labels = self.images.to(self.device), self.labels.to(self.device)
        return self

    def _batch(self, rows: Tensor) -> Iterator[Tensor]:
        return (self.images.index_select(0, each) for each in rows.split(self.batch_size))


class WorkerLoader(ImageLoader):
    """The same batches, each image read and resized by DataLoader workers when it is needed.

    For sets too large for the memory of the device. The workers decide nothing at random.

    Args:
        pool: Images in memory or files.
        shape: ``(C, H, W)`` of the batches.
        batch_size: Images of a batch on this process.
        mean: Mean of each channel, of pixels in 0..1.
        std: Standard deviation of each channel.
        num_workers: Processes that read; 0 reads in this one.
        **options: Of `ImageLoader`.

    Example:
        >>> pool = Pool(torch.zeros(6, 1, 4, 4, dtype=torch.uint8), torch.arange(6))
        >>> [len(y) for _, y in WorkerLoader(pool, (1, 4, 4), 4, [0.5], [0.5], num_workers=0)]
        [4, 2]
    """

    def __init__(
        self,
        pool: Pool,
        shape: Shape,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        num_workers: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(pool.labels, batch_size, mean, std, **options)
        self._dataset = FittedImages(pool, shape)
        self.num_workers = num_workers

    def _batch(self, rows: Tensor) -> Iterator[Tensor]:
        batches = DataLoader(
            self._dataset,
            batch_sampler=[each.tolist() for each in rows.cpu().split(self.batch_size)],
            collate_fn=_collate,
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
            # Without one of its own, a DataLoader takes its base seed from the global random state.
            generator=torch.Generator(),
        )
        for images in batches:
            if isinstance(images, Exception):
                raise images
            yield images.to(self.device, non_blocking=True)


class FittedImages(Dataset):
    """The images of a pool, each brought to ``shape``: uint8 ``[C, H, W]``."""

    def __init__(self, pool: Pool, shape: Shape) -> None:
        self.pool, self.shape = pool, shape

    def __len__(self) -> int:
        return len(self.pool)

    def __getitem__(self, index: int) -> Tensor | Exception:
        try:
            return fit(self.pool.read(index), self.shape)
        except (ValueError, FileNotFoundError) as error:
            # Raised in a worker it would arrive wrapped in the worker's traceback.
            return error


def _collate(images: list[Tensor | Exception]) -> Tensor | Exception:
    wrong = next((each for each in images if isinstance(each, Exception)), None)
    return wrong if wrong is not None else torch.stack(images)  # type: ignore[arg-type]
