"""Where remembered images come from: which one, of which task. So a memory is written down as pairs of numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NAME = "origin"
SPAN = 1 << 40  # more images than any task has


class Origins:
    """A plugin that tells each image of a task its place, which it keeps wherever a memory takes it.

    Avalanche's data sets carry attributes of their images along through subsets and sums; this adds one.

    Args:
        stream: Avalanche's ``train_stream``.
    """

    supports_distributed = True

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Before anyone takes images of the task."""
        strategy.experience.dataset = marked(strategy.experience)


def marked(experience: Any) -> Any:
    """The data set of an experience, whose images know their place.

    The images and the order of random draws stay the same.
    """
    from avalanche.benchmarks.utils import DataAttribute

    dataset = experience.dataset
    if hasattr(dataset, NAME):
        return dataset
    first = experience.current_experience * SPAN
    places = range(first, first + len(dataset))
    return dataset.update_data_attribute(NAME, DataAttribute(places, NAME))


def origins(dataset: Any) -> Tensor:
    """Experience and index of every image, int64 ``[N, 2]``.

    Raises:
        ValueError: images that come from nowhere in the stream.
    """
    if len(dataset) == 0:
        return torch.zeros(0, 2, dtype=torch.int64)
    places = getattr(dataset, NAME, None)
    if places is None:
        raise ValueError(
            "The memory holds images that are none of the stream's, so it can't be written down."
        )
    return torch.tensor([divmod(place, SPAN) for place in places], dtype=torch.int64)


def gathered(stream: Any, pairs: Tensor) -> Any:
    """The images again, in the same order, as one data set of Avalanche's.

    Args:
        stream: Avalanche's ``train_stream``.
        pairs: as `origins` returned them.

    Raises:
        ValueError: the stream has no such images.
    """
    from avalanche.benchmarks.utils.utils import concat_datasets

    if len(pairs) == 0:
        return marked(stream[0]).subset([])  # not a bare empty set: in a sum the first decides on attributes
    tasks = torch.unique(pairs[:, 0]).tolist()
    if tasks[-1] >= len(stream):
        raise ValueError(
            f"The memory holds images of task {tasks[-1] + 1}, and the stream has {len(stream)} tasks."
        )
    parts = [marked(stream[task]) for task in tasks]
    firsts: dict[int, int] = {}
    total = 0
    for task, part in zip(tasks, parts, strict=True):
        firsts[task] = total
        total += len(part)
        if int(pairs[pairs[:, 0] == task, 1].max()) >= len(part):
            raise ValueError(f"The memory holds images that task {task + 1} of the stream does not have.")
    return concat_datasets(parts).subset([firsts[task] + index for task, index in pairs.tolist()])
