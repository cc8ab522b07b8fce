"""Image sets kept as folders of files, one folder for each class."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tunnel_lightning.data.base import ImageData, Part, Shape
from tunnel_lightning.data.images import Files, Pool

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class ImageFolder(ImageData):
    """Image files in ``path/PART/CLASS/``, PART being train, test, and val or valid.

    With both a test and a validation folder each is what it says; with one of them it is the test part, and
    validation images are cut out of the training images. The classes are the folders in train, by name.
    Images are RGB, cut about the centre and resized to one size.

    Args:
        path: The folder that holds train.
        flip: Whether augmentation may mirror the images.
        **options: Of `ImageData`.

    Raises:
        FileNotFoundError: A folder is not there.
        ValueError: A class without images, a class in test or val that train lacks, an unreadable image.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> for each in ("train/cat", "train/dog", "test/cat", "test/dog"):
        ...     (root / each).mkdir(parents=True)
        ...     Image.new("RGB", (8, 8)).save(root / each / "0.png")
        >>> ImageFolder(str(root)).class_names, ImageFolder(str(root)).input_shape
        (['cat', 'dog'], (3, 8, 8))
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
        """Name of the folder."""
        return self.path.absolute().name

    @cached_property
    def native_shape(self) -> Shape:
        """RGB, at the size of the first training image."""
        first = str(self._files("train")[0][0])
        try:
            with Image.open(first) as image:
                width, height = image.size
        except OSError as error:
            raise ValueError(
                f"Cannot read the image {first} ({error}): replace the file or take it out."
            ) from None
        return (3, height, width)

    @cached_property
    def all_class_names(self) -> list[str]:
        """Names of the folders in train, sorted."""
        train = self.path / "train"
        names = sorted(each.name for each in os.scandir(train) if each.is_dir()) if train.is_dir() else []
        if not names:
            raise FileNotFoundError(
                f"{train.absolute()} holds no class folders: {type(self).__name__} expects images in "
                "PATH/train/CLASS/."
            )
        return names

    def _part_folder(self, part: Part) -> Path | None:
        validation = next((p for each in ("val", "valid") if (p := self.path / each).is_dir()), None)
        test = self.path / "test"
        if part == "train":
            return self.path / "train"
        if part == "val":
            return validation if test.is_dir() else None
        if not test.is_dir() and validation is None:
            raise FileNotFoundError(
                f"{self.path.absolute()} has no test, val or valid folder: put images that are not "
                "trained on into one."
            )
        return test if test.is_dir() else validation

    def _files(self, part: Part) -> tuple[list[Path], list[int]]:
        folder = self._part_folder(part)
        assert folder is not None
        names = self.all_class_names
        strange = sorted({each.name for each in os.scandir(folder) if each.is_dir()} - set(names))
        if strange:
            raise ValueError(
                f"{folder.absolute()} has the class {strange[0]!r}, which the train folder lacks."
            )
        paths: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(names):
            found = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in ENDINGS)
            if part == "train" and not found:
                raise ValueError(
                    f"{folder.absolute() / name} holds no images ({', '.join(ENDINGS)}): fill or remove it."
                )
            paths += found
            labels += [label] * len(found)
        return paths, labels

    def _load(self, part: Part) -> Pool | None:
        if self._part_folder(part) is None:
            return None
        paths, labels = self._files(part)
        return Pool(Files(paths), torch.tensor(labels, dtype=torch.int64))


class CINIC10(ImageFolder):
    """CINIC-10: 90,000 train, validation and test images each, 32x32 RGB, of 10 classes; an `ImageFolder`.

    Download https://datashare.ed.ac.uk/handle/10283/3192 and unpack it at ``path``.
    Source: L. Darlow et al. (2018), CINIC-10 is not ImageNet or CIFAR-10, arXiv:1810.03505.

    Takes the arguments of `ImageFolder`.
    """

    constants = ((0.4789, 0.4723, 0.4305), (0.2421, 0.2383, 0.2587))

    @property
    def name(self) -> str:  # type: ignore[override]
        """The published name."""
        return "CINIC10"
