"""Finished parts of an analysis, kept so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.runs import Row
from tunnel_lightning.runs.analysis import write_arrays
from tunnel_lightning.taps import untouched_rng

NOTE = "note"
SHOWN = 8


@dataclass
class Part:
    """What one part of an analysis found.

    Attributes:
        rows: rows of the profile table.
        arrays: by name, as in ``similarity.npz`` and ``spectrum.npz``; every name has a ``/`` or a ``|``.
        extra: what else the summary needs, plain values.
        seconds: how long it took, and its steps.
    """

    rows: list[Row] = field(default_factory=list)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class Store:
    """A folder of finished parts, one file each.

    A file is a zip archive that takes its place when it is whole and carries check sums: what is torn, damaged or
    made with other settings counts as not there.

    Args:
        folder: where parts are kept.

    Example:
        >>> import tempfile
        >>> store = Store(Path(tempfile.mkdtemp()))
        >>> store.save("ranks", "key", Part(extra={"n": 3}))
        >>> store.load("ranks", "key").extra, store.load("ranks", "another key")
        ({'n': 3}, None)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, name: str, key: str) -> Part | None:
        """The part of that name, if it was finished with these settings."""
        try:
            with np.load(self._file(name), allow_pickle=False) as file:
                said = json.loads(file[NOTE].tobytes())
                if said["key"] != key:
                    return None
                arrays = {each: file[each] for each in file.files if each != NOTE}
            return Part([Row(*row) for row in said["rows"]], arrays, said["extra"], said["seconds"])
        except Exception:  # a damaged archive raises whatever its bytes happen to say
            return None

    def save(self, name: str, key: str, part: Part) -> None:
        """Keep a finished part.

        Raises:
            OSError: it can't be written; nothing is left of it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        said = {"key": key, "rows": part.rows, "extra": part.extra, "seconds": part.seconds}
        note = json.dumps(said, default=lambda number: number.item()).encode()
        write_arrays(self._file(name), {**part.arrays, NOTE: np.frombuffer(note, np.uint8)})

    def _file(self, name: str) -> Path:
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
        return self.folder / f"{safe}.npz"


def fingerprint(*what: Any) -> str:
    """A short text that changes with any of the plain values given.

    Example:
        >>> fingerprint({"a": 1}) == fingerprint({"a": 1}), fingerprint({"a": 1}) == fingerprint({"a": 2})
        (True, False)
    """
    text = json.dumps(what, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def tensors_key(tensors: Mapping[str, Tensor]) -> str:
    """A short text that changes with the name, the type, the shape or any value of any of the tensors.

    Example:
        >>> tensors_key({"a": torch.zeros(2)}) == tensors_key({"a": torch.tensor([0.0, 1e-30])})
        False
    """
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):  # the extra state of a module may be anything
            digest.update(f"{name} {tensor!r}".encode())
            continue
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def images_key(images: ImageSet) -> str:
    """A short text that changes with a set: its name, sizes and batches, and some images as the network sees them.

    Data sets that draw at random while they are read give the same key each time.
    """
    shown: dict[str, Tensor] = {}
    with untouched_rng():
        for split in ("train", "test"):
            random.seed(0)
            np.random.seed(0)
            torch.manual_seed(0)
            for number, (x, y) in enumerate(images.batches(split, SHOWN)):
                shown |= {f"{split} images {number}": x, f"{split} labels {number}": y}
    sizes = [images.size(split) for split in ("train", "test")]
    return fingerprint(images.name, images.num_classes, sizes, images.batch_size, tensors_key(shown))
