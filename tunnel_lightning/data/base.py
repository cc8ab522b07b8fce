"""The base of all image sets: parts, subsets, sizes, normalisation and loaders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from tunnel_lightning.data.images import (
    Files,
    Pool,
    Shape,
    channel_statistics,
    choose_per_class,
    fit_pool,
    stratified_split,
)
from tunnel_lightning.data.loader import DeviceLoader, ImageLoader, WorkerLoader

Part = Literal["train", "val", "test"]
LUMA = (0.299, 0.587, 0.114)


def check_range(
    owner: object, name: str, value: float | None, low: float, high: float = float("inf")
) -> None:
    """Raise one clear ValueError unless ``low <= value <= high`` (None passes)."""
    if value is None or low <= value <= high:
        return
    wanted = f"at least {low}" if high == float("inf") else f"from {low} to {high}"
    raise ValueError(f"{type(owner).__name__}: {name} must be {wanted}, got {value}.")


class ImageData(LightningDataModule):
    """A set of labelled images, in three parts that do not overlap.

    The validation part is cut out of the training images, the same share of every class, unless the set
    brings its own. Every choice comes from ``seed`` by generators of its own.

    Args:
        batch_size: Images of a batch, on each process.
        val_fraction: Share of the training images of every class kept for validation.
        classes: Only the first so many classes, or the listed class ids; relabelled from 0 in that order.
        samples_per_class: So many training images of every class, chosen by ``seed``; None for all.
        image_size: Height and width; None for the set's own.
        channels: 1 for grey, 3 for RGB; None for the set's own.
        augment: Random crops of the training images (from a reflected border of an eighth of the size) and,
            where it keeps the meaning, left-right flips.
        seed: Of the parts, the subset, the order and the augmentation.
        loader: ``device`` keeps the images as one uint8 tensor on the device, ``workers`` reads them through
            DataLoader workers, ``auto`` takes the first for a part of at most ``device_limit_mb``.
        num_workers: Reading processes, for ``workers``.
        device_limit_mb: Largest part, in MB, that ``auto`` puts on the device.

    Raises:
        ValueError: A number out of its range.
    """

    flips = True  # whether a mirrored image is still one of its class
    constants: tuple[Sequence[float], Sequence[float]] | None = None  # published mean and std of the channels

    def __init__(
        self,
        batch_size: int = 128,
        val_fraction: float = 0.1,
        classes: int | list[int] | None = None,
        samples_per_class: int | None = None,
        image_size: int | None = None,
        channels: int | None = None,
        augment: bool = False,
        seed: int = 0,
        loader: Literal["auto", "device", "workers"] = "auto",
        num_workers: int = 2,
        device_limit_mb: int = 1024,
    ) -> None:
        super().__init__()
        check_range(self, "batch_size", batch_size, 1)
        if not 0 < val_fraction < 1:
            raise ValueError(
                f"{self.name}: val_fraction must be between 0 and 1, both excluded, got {val_fraction}."
            )
        check_range(self, "classes", classes if isinstance(classes, int) else None, 1)
        check_range(self, "samples_per_class", samples_per_class, 1)
        check_range(self, "image_size", image_size, 4, 1024)
        check_range(self, "seed", seed, 0)
        check_range(self, "num_workers", num_workers, 0)
        check_range(self, "device_limit_mb", device_limit_mb, 0)
        if channels not in (None, 1, 3):
            raise ValueError(f"{self.name}: channels must be 1 (grey) or 3 (RGB), got {channels}.")
        if loader not in ("auto", "device", "workers"):
            raise ValueError(f"{self.name}: loader must be auto, device or workers, got {loader!r}.")
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.classes = classes
        self.samples_per_class = samples_per_class
        self.image_size = image_size
        self.channels = channels
        self.augment = augment
        self.seed = seed
        self.loader = loader
        self.num_workers = num_workers
        self.device_limit_mb = device_limit_mb
        self._shape: Shape | None = None
        self._statistics: tuple[list[float], list[float]] | None = None
        self._pools: dict[Part, Pool] = {}
        self._tensors: dict[Part, Tensor] = {}

    # What a set says of itself -------------------------------------------------------------------------

    def _load(self, part: Part) -> Pool | None:
        """All images of a part, labelled by the set's own class ids; None for "val": cut it from train."""
        raise NotImplementedError

    @property
    def native_shape(self) -> Shape:
        """``(C, H, W)`` of the set as it comes."""
        raise NotImplementedError

    @property
    def all_class_names(self) -> list[str]:
        """Names of all classes of the set, in the order of their ids."""
        raise NotImplementedError

    # What everyone may ask, before anything is loaded ----------------------------------------------------

    @property
    def name(self) -> str:  # type: ignore[override]
        """Name of the set in tables and plots."""
        return type(self).__name__

    @property
    def class_ids(self) -> list[int]:
        """The chosen classes, as the set's own ids, in the order of the labels."""
        count = len(self.all_class_names)
        if self.classes is None:
            return list(range(count))
        ids = list(range(self.classes)) if isinstance(self.classes, int) else list(self.classes)
        if len(set(ids)) != len(ids) or not ids or not all(0 <= each < count for each in ids):
            raise ValueError(
                f"{self.name} has {count} classes: classes must be a count from 1 to {count} or a list of "
                f"different ids from 0 to {count - 1}, got {self.classes}."
            )
        return ids

    @property
    def num_classes(self) -> int:
        """Number of chosen classes; labels run from 0 to this less one."""
        return len(self.class_ids)

    @property
    def class_names(self) -> list[str]:
        """Names of the chosen classes, in the order of the labels."""
        names = self.all_class_names
        return [names[each] for each in self.class_ids]

    @property
    def input_shape(self) -> Shape:
        """``(C, H, W)`` of the images in a batch."""
        if self._shape is not None:
            return self._shape
        channels, height, width = self.native_shape
        size = self.image_size
        return self.channels or channels, size or height, size or width

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean that the batches are centred by, of each channel, of pixels in 0..1."""
        return tuple(self._normalisation()[0])

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation that the batches are divided by, of each channel."""
        return tuple(self._normalisation()[1])

    def _normalisation(self) -> tuple[list[float], list[float]]:
        """The published constants, else the statistics of the training images, for the channels in use."""
        if self._statistics is None:
            if self.constants is not None:
                mean, std = (list(each) for each in self.constants)
            else:
                mean, std = channel_statistics(self._sample())
            self._statistics = mean, std
        mean, std = self._statistics
        channels = self.input_shape[0]
        if len(mean) == 1 and channels == 3:
            mean, std = mean * 3, std * 3
        elif len(mean) == 3 and channels == 1:
            mean, std = ([sum(w * v for w, v in zip(LUMA, each, strict=True))] for each in (mean, std))
        return mean, std

    def _sample(self) -> Tensor:
        """Training images for their statistics: all in memory, or up to 1,000 files."""
        pool = self._pool("train")
        if isinstance(pool.images, Files):
            count = min(len(pool), 1000)
            pool = pool.take(np.arange(count) * len(pool) // count)
            return fit_pool(pool, (self.native_shape[0], *self.input_shape[1:]))
        return pool.images

    def adapt(
        self,
        input_shape: Sequence[int],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        """Show this set at another network's size, channels and normalisation.

        Loaders handed out before stay as they are.

        Args:
            input_shape: ``(C, H, W)`` of that network.
            mean: Mean of each channel that the network was trained with; None keeps this set's own.
            std: Standard deviation likewise.

        Raises:
            ValueError: A shape that is not (1 or 3, H, W), or not one value for each channel.

        Example:
            >>> from tunnel_lightning.data import Digits
            >>> digits = Digits()
            >>> digits.adapt((3, 32, 32), mean=[0.5] * 3, std=[0.25] * 3)
            >>> next(iter(digits.test_dataloader()))[0].shape
            torch.Size([128, 3, 32, 32])
        """
        shape = tuple(int(each) for each in input_shape)
        if len(shape) != 3 or shape[0] not in (1, 3) or min(shape) < 1:
            raise ValueError(
                f"{self.name} can be shown as (1 or 3, height, width), not as {list(input_shape)}."
            )
        if (mean is None) != (std is None):
            raise ValueError(f"{self.name}: adapt needs both mean and std, or neither.")
        if mean is not None and std is not None:
            if not len(mean) == len(std) == shape[0] or min(std) <= 0:
                raise ValueError(
                    f"{self.name}: adapt needs one mean and one positive std for each of {shape[0]} "
                    f"channels, got mean {list(mean)} and std {list(std)}."
                )
            self._statistics = [float(m) for m in mean], [float(s) for s in std]
        self._shape = shape
        self._tensors.clear()

    # Parts ----------------------------------------------------------------------------------------------

    def _rng(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, purpose])

    def _pool(self, part: Part) -> Pool:
        if part not in self._pools:
            if part == "test":
                self._pools["test"] = self._chosen_classes("test", self._load("test"))
            else:
                self._load_training()
        return self._pools[part]

    def _load_training(self) -> None:
        train = self._chosen_classes("train", self._load("train"))
        labels = train.labels.numpy()
        own = self._load("val")
        if own is not None:
            keep, val = np.arange(len(train)), self._chosen_classes("val", own)
        else:
            keep, cut = stratified_split(labels, self.val_fraction, self._rng(1))
            val = train.take(cut)
        if self.samples_per_class is not None:
            keep = keep[
                choose_per_class(labels[keep], self.samples_per_class, self.class_names, self._rng(2))
            ]
        self._pools["train"], self._pools["val"] = train.take(keep), val

    def _chosen_classes(self, part: Part, pool: Pool | None) -> Pool:
        assert pool is not None, "only val may be cut from train"
        labels = pool.labels.numpy()
        count = len(self.all_class_names)
        if len(labels) == 0:
            raise ValueError(f"{self.name} has no {part} images.")
        if labels.min() < 0 or labels.max() >= count:
            raise ValueError(
                f"{self.name}: the {part} labels run from {labels.min()} to {labels.max()}, but with {count} "
                f"classes they must lie between 0 and {count - 1}."
            )
        if self.classes is None:
            return pool
        relabel = np.full(count, -1, dtype=np.int64)
        relabel[self.class_ids] = np.arange(self.num_classes)
        keep = np.flatnonzero(relabel[labels] >= 0)
        if len(keep) == 0:
            raise ValueError(f"{self.name} has no {part} images of the classes {self.classes}.")
        chosen = pool.take(keep)
        return Pool(chosen.images, torch.from_numpy(relabel[labels[keep]]))

    def setup(self, stage: str | None = None) -> None:
        """Load the parts that a stage of Lightning needs (all, for None)."""
        if stage in (None, "fit", "validate"):
            self._pool("train")
        if stage in (None, "test", "predict"):
            self._pool("test")

    # Loaders --------------------------------------------------------------------------------------------

    def train_dataloader(self) -> ImageLoader:
        """Training images: another order each epoch, augmented if so chosen."""
        return self._loader("train", shuffle=not getattr(self.trainer, "overfit_batches", 0))

    def val_dataloader(self) -> ImageLoader:
        """Validation images, in order."""
        return self._loader("val")

    def test_dataloader(self) -> ImageLoader:
        """Test images, in order."""
        return self._loader("test")

    def predict_dataloader(self) -> ImageLoader:
        """The test images again."""
        return self.test_dataloader()

    def _loader(self, part: Part, shuffle: bool = False) -> ImageLoader:
        pool, shape, trainer = self._pool(part), self.input_shape, self.trainer
        augment = shuffle and self.augment
        options: dict[str, Any] = {
            "batch_size": self.batch_size,
            "mean": self.mean,
            "std": self.std,
            "shuffle": shuffle,
            "pad": max(1, min(shape[1:]) // 8) if augment else 0,
            "flip": augment and self.flips,
            "seed": self.seed,
            "rank": trainer.global_rank if trainer is not None else 0,
            "world_size": trainer.world_size if trainer is not None else 1,
            "device": trainer.strategy.root_device if trainer is not None else torch.device("cpu"),
        }
        megabytes = len(pool) * np.prod(shape) / 2**20
        if self.loader == "workers" or (self.loader == "auto" and megabytes > self.device_limit_mb):
            return WorkerLoader(pool, shape, num_workers=self.num_workers, **options)
        if part not in self._tensors:
            self._tensors[part] = fit_pool(pool, shape)
        loader = DeviceLoader(self._tensors[part], pool.labels, **options)
        # Kept where it now lies, so that later loaders of this part share the same memory.
        self._tensors[part] = loader.images
        return loader
