"""The features of a limited number of images, held: for measures that need them all at once."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

GIB = 2**30


class FeatureSample:
    """Keeps the features of the images it is shown, float32, by layer: an ``Observer``.

    Its size is known beforehand (:meth:`nbytes`). Where that exceeds ``budget`` the features lie in files, one
    a layer, which are mapped into memory: the system reads what is used and may drop it again.

    With several processes, each shown every W-th batch, :meth:`all_reduce` gives all of them the images of all,
    in the order of one process.

    Args:
        n: images, over all processes; no more may be shown.
        budget: bytes the features may take in memory.
        folder: where files go, in a folder of their own that :meth:`close` removes; by default the system's
            place for temporary files.

    Example:
        >>> sample = FeatureSample(n=3)
        >>> sample.update({"a": torch.ones(2, 4)}, torch.tensor([0, 1]), None)
        >>> sample.features["a"].shape, sample.target
        (torch.Size([2, 4]), tensor([0, 1]))
    """

    def __init__(self, n: int, budget: int = 8 * GIB, folder: Path | str | None = None) -> None:
        self.n = n
        self.budget = budget
        self.folder = folder
        self.dims: dict[str, int] = {}
        self._sizes: list[int] = []
        self._target = torch.empty(0, dtype=torch.int64)
        self._held: dict[str, Tensor] = {}
        self._files: tempfile.TemporaryDirectory[str] | None = None

    @staticmethod
    def nbytes(dims: Mapping[str, int], n: int) -> int:
        """Bytes of the features of ``n`` images and of their labels, in memory or in files."""
        return 4 * n * sum(dims.values()) + 8 * n

    @property
    def on_disk(self) -> bool:
        """Whether the features lie in files."""
        return self._files is not None

    @property
    def features(self) -> dict[str, Tensor]:
        """``[N, D]`` float32 of every layer, on the CPU; not copies."""
        return {name: self._rows(name)[: sum(self._sizes)] for name in self.dims}

    @property
    def target(self) -> Tensor:
        """Class indices ``[N]``."""
        return self._target[: sum(self._sizes)]

    @torch.no_grad()
    def update(self, features: Mapping[str, Tensor], target: Tensor, output: Tensor | None = None) -> None:
        """Keep one batch: features ``[B, D]`` by layer, class indices ``[B]``; the output is not kept.

        Raises:
            ValueError: more than ``n`` images, or the files do not fit on the disk.
        """
        if not self.dims:
            self._allocate({name: layer.shape[1] for name, layer in features.items()})
        start = sum(self._sizes)
        end = start + len(target)
        if end > self.n:
            raise ValueError(
                f"a sample of {self.n} images was shown {end}: limit the loader, or make it larger"
            )
        for name in self.dims:
            self._rows(name)[start:end] = features[name]
        self._target[start:end] = target
        self._sizes.append(len(target))

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Gather the batches of all processes, in the order in which one process would have been shown them."""
        rank, world = dist.get_rank(group), dist.get_world_size(group)
        known: list[tuple[dict[str, int], list[int]]] = [({}, [])] * world
        dist.all_gather_object(known, (self.dims, self._sizes), group=group)
        if not self.dims:
            self._allocate(next((dims for dims, _ in known if dims), {}))
        sizes = [sizes for _, sizes in known]
        # Process r was shown the batches r, r + W, ...
        order = [(r, i) for i in range(max(map(len, sizes))) for r in range(world) if i < len(sizes[r])]
        end, own_end = sum(map(sum, sizes)), sum(self._sizes)
        if end > self.n:
            raise ValueError(
                f"a sample of {self.n} images was shown {end}: limit the loader, or make it larger"
            )
        # From the last batch on, in place: a batch only moves towards the end, past what is moved already.
        for r, i in reversed(order):
            start, own = end - sizes[r][i], slice(own_end - sizes[r][i], own_end)
            for rows in (*map(self._rows, self.dims), self._target):
                batch = rows[own].clone() if r == rank else torch.empty_like(rows[start:end])
                rows[start:end] = _broadcast(batch, r, group)
            end, own_end = start, own.start if r == rank else own_end
        self._sizes = [sizes[r][i] for r, i in order]

    def close(self) -> None:
        """Forget everything; files are removed."""
        self.dims, self._sizes, self._held = {}, [], {}
        if self._files is not None:
            self._files.cleanup()
            self._files = None

    def _allocate(self, dims: dict[str, int]) -> None:
        needed = self.nbytes(dims, self.n)
        if needed > self.budget:
            self._make_files(dims, needed)
        else:
            self._held = {name: torch.empty(self.n, dim) for name, dim in dims.items()}
        self._target = torch.empty(self.n, dtype=torch.int64)
        self.dims = dims

    def _make_files(self, dims: dict[str, int], needed: int) -> None:
        folder = self.folder or tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise ValueError(
                f"the features of {self.n} images need {needed / GIB:.1f} GiB: more than the budget of "
                f"{self.budget / GIB:.1f} GiB in memory and the {free / GIB:.1f} GiB free in {folder}: "
                "take fewer images or layers, or another folder"
            )
        self._files = tempfile.TemporaryDirectory(prefix="features-", dir=folder, ignore_cleanup_errors=True)
        for i, dim in enumerate(dims.values()):
            with open(Path(self._files.name, str(i)), "wb") as file:
                # Room is taken now: a map of a file that finds the disk full later ends the process.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, 4 * self.n * dim)
                else:
                    file.truncate(4 * self.n * dim)

    def _rows(self, name: str) -> Tensor:
        """All rows of a layer. A map is made anew each time, so that its pages are dropped with it."""
        if self._files is None:
            return self._held[name]
        path = Path(self._files.name, str(list(self.dims).index(name)))
        return torch.from_numpy(np.memmap(path, np.float32, "r+", shape=(self.n, self.dims[name])))


def _broadcast(batch: Tensor, rank: int, group: dist.ProcessGroup | None) -> Tensor:
    """A batch of one process, given to all."""
    place = torch.device("cuda") if dist.get_backend(group) == "nccl" else batch.device
    sent = batch.to(place)
    dist.broadcast(sent, rank if group is None else dist.get_global_rank(group, rank), group=group)
    return sent.to(batch.device)


def gib(size: int) -> str:
    """Bytes in words; small ones are not rounded to nothing.

    Example:
        >>> gib(3 * 2**29), gib(2**20)
        ('1.50 GiB', '0.00098 GiB')
    """
    return f"{size / GIB:.2f} GiB" if size > GIB / 10 else f"{size / GIB:.2g} GiB"


CURE = "raise the memory limit, or lower it with taps.pool=avg or a smaller taps.max_features"


def groups(
    dims: Mapping[str, int],
    bytes_per_layer: Callable[[int], int],
    limit: int,
    working: Callable[[int], int] | None = None,
    cure: str = CURE,
) -> list[list[str]]:
    """Pack layers, in their order, into groups that fit into memory: one pass over the data for each.

    Args:
        dims: width of every layer.
        bytes_per_layer: ``D -> bytes``, such as ``lambda dim: Moments.nbytes(dim, 10)``, held for all layers of a
            group at once.
        limit: bytes a group may take.
        working: ``D -> bytes`` taken beside for one layer at a time, as while a probe is fitted; by default none.
        cure: what to do where a layer does not fit, for the error.

    Returns:
        Names, group by group.

    Raises:
        ValueError: one layer alone exceeds the limit.

    Example:
        >>> groups({"a": 2, "b": 3, "c": 4}, lambda dim: 4 * dim, limit=20)
        [['a', 'b'], ['c']]
        >>> groups({"a": 2, "b": 3, "c": 4}, lambda dim: 4 * dim, limit=24, working=lambda dim: 2 * dim)
        [['a'], ['b'], ['c']]
    """
    packed: list[list[str]] = []
    held = most = 0
    for name, dim in dims.items():
        size, beside = bytes_per_layer(dim), working(dim) if working else 0
        if size + beside > limit:
            raise ValueError(
                f"layer {name!r} with {dim} features needs {gib(size + beside)} and the limit is {gib(limit)}: {cure}"
            )
        if not packed or held + size + max(most, beside) > limit:
            packed.append([])
            held = most = 0
        packed[-1].append(name)
        held, most = held + size, max(most, beside)
    return packed
