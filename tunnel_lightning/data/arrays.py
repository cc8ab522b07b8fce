"""Image sets kept as one .npz file."""

from __future__ import annotations

import zipfile
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunnel_lightning.data.base import ImageData, Part, Shape
from tunnel_lightning.data.images import Pool


class Arrays(ImageData):
    """Images and labels from one .npz file.

    The file holds ``train_images`` and ``test_images``, uint8 ``[N, H, W, C]`` with C 1 or 3 or ``[N, H, W]``
    for grey, ``train_labels`` and ``test_labels``, whole numbers ``[N]`` from 0, and, if wanted,
    ``class_names``, text ``[classes]``. Without names there are as many classes as the largest training
    label says.

    Args:
        path: The file.
        flip: Whether augmentation may mirror the images; not for digits, letters and the like.
        **options: Of `ImageData`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A damaged file, a missing key, a wrong type or shape, labels out of range.

    Example:
        >>> import tempfile, os
        >>> path = os.path.join(tempfile.mkdtemp(), "tiny.npz")
        >>> x, y = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 2
        >>> np.savez(path, train_images=x, train_labels=y, test_images=x, test_labels=y)
        >>> tiny = Arrays(path)
        >>> tiny.name, tiny.num_classes, tiny.input_shape
        ('tiny', 2, (1, 8, 8))
    """

    def __init__(
        self,
        path: str,
        flip: bool = True,
        **options: Any,
    ) -> None:
        self.path = Path(path)
        super().__init__(**options)
        self.flips = flip

    @property
    def name(self) -> str:  # type: ignore[override]
        """Name of the file, without its ending."""
        return self.path.stem

    @cached_property
    def native_shape(self) -> Shape:
        """``(C, H, W)`` of the training images; reads the head of the file only."""
        self._read("train_labels")  # says in words what is wrong with the file as a whole
        with zipfile.ZipFile(self.path) as archive:
            if "train_images.npy" not in archive.namelist():
                raise self._missing(
                    "train_images", [name.removesuffix(".npy") for name in archive.namelist()]
                )
            with archive.open("train_images.npy") as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0
                shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(member)
        self._check_images("train_images", shape, dtype)
        return (shape[3] if len(shape) == 4 else 1, shape[1], shape[2])

    @cached_property
    def all_class_names(self) -> list[str]:
        """``class_names`` of the file, else numbers up to the largest training label."""
        names = self._read("class_names", required=False)
        if names is not None:
            return [str(name) for name in names]
        labels = self._labels("train")
        return [str(label) for label in range(int(labels.max()) + 1 if len(labels) else 0)]

    def _load(self, part: Part) -> Pool | None:
        if part == "val":
            return None
        images, labels = self._read(f"{part}_images"), self._labels(part)
        self._check_images(f"{part}_images", images.shape, images.dtype)
        if len(images) != len(labels):
            raise ValueError(
                f"{self.path} holds {len(images)} {part}_images, but {len(labels)} {part}_labels."
            )
        images = images[..., None] if images.ndim == 3 else images
        if (images.shape[3], *images.shape[1:3]) != self.native_shape:
            raise ValueError(
                f"{self.path}: {part}_images are {list(images.shape[1:])}, but train_images have "
                f"(channels, height, width) {self.native_shape}."
            )
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        return Pool(pixels, torch.from_numpy(labels))

    def _labels(self, part: str) -> np.ndarray:
        labels = self._read(f"{part}_labels")
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ValueError(
                f"{self.path}: {part}_labels must be whole numbers [N], "
                f"got {labels.dtype} {list(labels.shape)}."
            )
        return labels.astype(np.int64)

    def _check_images(self, key: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        if dtype != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
            raise ValueError(
                f"{self.path}: {key} must be uint8 [N, H, W, 1 or 3] or [N, H, W], got {dtype} {list(shape)}."
            )

    def _missing(self, key: str, there: list[str]) -> ValueError:
        return ValueError(f"{self.path} has no array {key!r}; it holds {', '.join(there) or 'nothing'}.")

    def _read(self, key: str, required: bool = True) -> Any:
        if not self.path.is_file():
            raise FileNotFoundError(f"There is no file {self.path.absolute()}: check the path of Arrays.")
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                if key in arrays:
                    return arrays[key]
                there = list(arrays)
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.path} is no .npz file of plain arrays, or a damaged one ({error}): write it again "
                "with numpy.savez."
            ) from None
        if required:
            raise self._missing(key, there)
        return None
