"""The image sets that torchvision downloads and reads, all by one table."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.error import URLError

import numpy as np
import torch

from tunnel_lightning.data.base import ImageData, Part, Shape
from tunnel_lightning.data.images import Files, Pool, stratified_split

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Source(NamedTuple):
    """How torchvision keeps a set, and what is known of it beforehand."""

    parts: dict[str, dict[str, Any]]  # arguments of torchvision's class; without test, a fifth is cut off
    sizes: dict[str, int]  # images of each part
    classes: int
    shape: Shape
    constants: tuple[Sequence[float], Sequence[float]]
    images: str = "data"  # where the object keeps images (or paths) and labels
    labels: str = "targets"
    layout: Literal["NHW", "NHWC", "NCHW", "files"] = "files"
    flips: bool = True
    names: str | None = None  # class names where torchvision knows them only after reading


_TRAIN_TEST = {"train": {"train": True}, "test": {"train": False}}
_SPLIT = {"train": {"split": "train"}, "test": {"split": "test"}}
_PATHS = ("_image_files", "_labels")
_DIGITS = "0 1 2 3 4 5 6 7 8 9"

SOURCES: dict[str, Source] = {
    "MNIST": Source(
        _TRAIN_TEST, {"train": 60000, "test": 10000}, 10, (1, 28, 28), ((0.1307,), (0.3081,)),
        layout="NHW", flips=False, names=_DIGITS,
    ),
    "FashionMNIST": Source(
        _TRAIN_TEST, {"train": 60000, "test": 10000}, 10, (1, 28, 28), ((0.2860,), (0.3530,)), layout="NHW",
    ),
    "CIFAR10": Source(
        _TRAIN_TEST, {"train": 50000, "test": 10000}, 10, (3, 32, 32),
        ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)), layout="NHWC",
        names="airplane automobile bird cat deer dog frog horse ship truck",
    ),
    "CIFAR100": Source(
        _TRAIN_TEST, {"train": 50000, "test": 10000}, 100, (3, 32, 32),
        ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)), layout="NHWC",
    ),
    "SVHN": Source(
        _SPLIT, {"train": 73257, "test": 26032}, 10, (3, 32, 32),
        ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)), labels="labels", layout="NCHW", flips=False,
        names=_DIGITS,
    ),
    "STL10": Source(
        _SPLIT, {"train": 5000, "test": 8000}, 10, (3, 96, 96),
        ((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)), labels="labels", layout="NCHW",
        names="airplane bird car cat deer dog horse monkey ship truck",
    ),
    "Flowers102": Source(
        {**_SPLIT, "val": {"split": "val"}}, {"train": 1020, "val": 1020, "test": 6149}, 102, (3, 224, 224),
        _IMAGENET, *_PATHS,
    ),
    "Food101": Source(_SPLIT, {"train": 75750, "test": 25250}, 101, (3, 224, 224), _IMAGENET, *_PATHS),
    "OxfordIIITPet": Source(
        {"train": {"split": "trainval"}, "test": {"split": "test"}}, {"train": 3680, "test": 3669}, 37,
        (3, 224, 224), _IMAGENET, "_images", "_labels",
    ),
    "Places365": Source(
        {"train": {"split": "train-standard", "small": True}, "test": {"split": "val", "small": True}},
        {"train": 1803460, "test": 36500}, 365, (3, 224, 224), _IMAGENET, "imgs",
    ),
    "SUN397": Source({"train": {}}, {"train": 108754}, 397, (3, 224, 224), _IMAGENET, *_PATHS),
}  # fmt: skip


class TorchvisionData(ImageData):
    """A set that torchvision reads; the base of the classes below.

    Args:
        root: Folder of the data, laid out as torchvision does.
        download: Fetch the set if it is not whole under ``root``. It is fetched into a folder beside and
            moved to its place when complete, so an interrupted download leaves nothing that looks whole.
        **options: Of `ImageData`.

    Raises:
        FileNotFoundError: The set is not whole under ``root``.
        RuntimeError: The download failed.

    Example:
        >>> CIFAR10().num_classes, CIFAR10(classes=[3, 5]).class_names, MNIST().input_shape
        (10, ['cat', 'dog'], (1, 28, 28))
    """

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root = Path(root)
        self.download = download
        self.constants = self.source.constants
        self.flips = self.source.flips
        self._names: list[str] | None = self.source.names.split() if self.source.names else None

    @property
    def source(self) -> Source:
        """The row of the table."""
        return SOURCES[type(self).__name__]

    @property
    def native_shape(self) -> Shape:
        """``(C, H, W)`` of the table."""
        return self.source.shape

    @property
    def all_class_names(self) -> list[str]:
        """Names of the classes; numbers where they are known only after the set has been read."""
        if self._names is None:
            names = getattr(self._torchvision(), "classes", None)
            if not isinstance(names, (list, tuple)):
                return [str(label) for label in range(self.source.classes)]
            self._names = list(names)
        return self._names

    def _torchvision(self) -> Any:
        import torchvision.datasets

        return getattr(torchvision.datasets, type(self).__name__)

    def prepare_data(self) -> None:
        """Fetch the set where it was asked for and is not there; on one process."""
        if self.download:
            for part in self.source.parts:
                self._open(part)

    def _open(self, part: str) -> tuple[Any, np.ndarray]:
        """Images (or paths) and labels of one part, checked to be whole; fetched first if asked for."""
        try:
            return self._read(self.root, part)
        except _NotWhole:
            if not self.download:
                raise
        self._fetch()
        return self._read(self.root, part)

    def _read(self, root: Path, part: str) -> tuple[Any, np.ndarray]:
        source = self.source
        advice = (
            "pass download=True (on the command line --data.download true) to fetch it, or name "
            "the folder that holds it by root"
        )
        where = f"{self.name} ({part}) under {root.absolute()}"
        try:
            data = self._torchvision()(root=root, **source.parts[part])
        except (RuntimeError, OSError, EOFError, ValueError, AssertionError, KeyError, TypeError) as error:
            detail = str(error).split("\n")[0].replace(" You can use download=True to download it", "")
            raise _NotWhole(f"{where} is missing or damaged ({detail.rstrip('.')}): {advice}.") from None
        images = getattr(data, source.images)
        labels = np.asarray(getattr(data, source.labels), dtype=np.int64)
        if len(labels) != source.sizes[part]:
            raise _NotWhole(f"{where} has {len(labels)} images instead of {source.sizes[part]}: {advice}.")
        if source.layout == "files":
            images = [each[0] if isinstance(each, tuple) else each for each in images]
            missing = _first_missing(images)
            if missing is not None:
                raise _NotWhole(f"{where} is incomplete, {missing} is not there: {advice}.")
            # Some are listed in the order of the disk.
            order = sorted(range(len(images)), key=lambda index: str(images[index]))
            images, labels = [images[each] for each in order], labels[order]
        names = getattr(data, "classes", None)
        if names is not None and source.names is None:
            self._names = list(names)
        return images, labels

    def _fetch(self) -> None:
        """Download beside, check, then move into place."""
        self.root.mkdir(parents=True, exist_ok=True)
        incoming = self.root / f".incoming-{self.name}"
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir()
        try:
            for part, arguments in self.source.parts.items():
                self._torchvision()(root=incoming, download=True, **arguments)
                self._read(incoming, part)
            # Data folders last: they are what torchvision looks for.
            for entry in sorted(incoming.iterdir(), key=lambda each: each.is_dir()):
                if entry.name.endswith((".tar", ".tar.gz", ".tgz")):
                    continue
                target = self.root / entry.name
                if target.is_dir():
                    shutil.rmtree(target)
                os.replace(entry, target)
        except (RuntimeError, OSError, URLError, EOFError) as error:
            reason = str(error).strip().replace("\n", " ")
            raise RuntimeError(
                f"{self.name} could not be downloaded to {self.root.absolute()} ({reason}); nothing was "
                "kept: check the network and the free space and try again, or copy the set there by hand."
            ) from None
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    def _load(self, part: Part) -> Pool | None:
        source = self.source
        if part not in source.parts and part == "val":
            return None
        images, labels = self._open(part if part in source.parts else "train")
        pool = Pool(_as_pixels(images, source.layout), torch.from_numpy(labels))
        if "test" not in source.parts:
            kept, cut = stratified_split(labels, 0.2, self._rng(3))
            pool = pool.take(kept if part == "train" else cut)
        return pool


class _NotWhole(FileNotFoundError):
    """The set is not there, or not all of it."""


def _as_pixels(images: Any, layout: str) -> torch.Tensor | Files:
    if layout == "files":
        return Files(images)
    pixels = torch.as_tensor(np.asarray(images))
    if layout == "NHW":
        return pixels[:, None]
    return (pixels.permute(0, 3, 1, 2) if layout == "NHWC" else pixels).contiguous()


def _first_missing(paths: Sequence[str | Path]) -> str | None:
    """The first path without a file; by listing folders, which is far quicker than asking for each file."""
    listed: dict[str, set[str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listed:
            listed[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in listed[folder]:
            return str(path)
    return None


class MNIST(TorchvisionData):
    """Handwritten digits, 28x28 grey, 60,000 + 10,000 (LeCun et al. 1998). See `TorchvisionData`."""


class FashionMNIST(TorchvisionData):
    """Articles of clothing, 28x28 grey, 60,000 + 10,000 (Xiao et al. 2017). See `TorchvisionData`."""


class CIFAR10(TorchvisionData):
    """Ten kinds of objects, 32x32 RGB, 50,000 + 10,000 (Krizhevsky 2009). See `TorchvisionData`."""


class CIFAR100(TorchvisionData):
    """A hundred kinds of objects, 32x32 RGB, 50,000 + 10,000 (Krizhevsky 2009). See `TorchvisionData`."""


class SVHN(TorchvisionData):
    """House numbers, 32x32 RGB, 73,257 + 26,032 (Netzer et al. 2011). See `TorchvisionData`."""


class STL10(TorchvisionData):
    """Ten kinds of objects, 96x96 RGB, 5,000 + 8,000 (Coates et al. 2011). See `TorchvisionData`."""


class Flowers102(TorchvisionData):
    """Flowers, photographs, 1,020 + 1,020 + 6,149 (Nilsback and Zisserman 2008). See `TorchvisionData`."""


class Food101(TorchvisionData):
    """Dishes, photographs, 75,750 + 25,250 (Bossard et al. 2014). See `TorchvisionData`."""


class OxfordIIITPet(TorchvisionData):
    """Breeds of cats and dogs, photographs, 3,680 + 3,669 (Parkhi et al. 2012). See `TorchvisionData`."""


class Places365(TorchvisionData):
    """Scenes, photographs at 256 pixels, 1,803,460 + 36,500 (Zhou et al. 2017). See `TorchvisionData`.

    The published validation part is the test part here: the published test part has no labels.
    """


class SUN397(TorchvisionData):
    """Scenes, photographs, 108,754 (Xiao et al. 2010). See `TorchvisionData`.

    torchvision knows no parts of it: a fifth of every class, chosen by ``seed``, is the test part.
    """
