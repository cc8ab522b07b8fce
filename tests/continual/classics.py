"""Benchmarks made as Avalanche's classic ones are, of a few tensors: `classic_stream("continual.classics.split")`."""

from typing import Any

import torch
from torch.utils.data import TensorDataset

CLASSES = 6


def part(seed: int, count: int = 60) -> TensorDataset:
    """Images [1, 4, 4] whose first pixel is their class, and their classes."""
    y = torch.arange(count) % CLASSES
    x = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    x[:, 0, 0, 0] = y.float()
    return TensorDataset(x, y)


def split(n_experiences: int = 3, seed: int | None = None, **options: Any) -> Any:
    """New classes in each task, in an order drawn by ``seed`` or from the global random state."""
    from avalanche.benchmarks import nc_benchmark

    options = {"task_labels": False, **options}
    return nc_benchmark(part(0), part(1), n_experiences, seed=seed, **options)


def heads(seed: int | None = None) -> Any:
    """The same with a task label for each experience, classes counting from zero in each."""
    return split(seed=seed, task_labels=True, class_ids_from_zero_in_each_exp=True)


def shifted() -> Any:
    """All classes in each of two tasks."""
    return datasets([part(0), part(2)], [part(1), part(3)])


def one_test() -> Any:
    """Two tasks of three classes and one test experience for both."""
    whole = part(0)
    first = torch.isin(whole.tensors[1], torch.tensor([0, 1, 2]))
    return datasets(
        [TensorDataset(*(each[mask] for each in whole.tensors)) for mask in (first, ~first)], [part(1)]
    )


def datasets(train: list[TensorDataset], test: list[TensorDataset]) -> Any:
    from avalanche.benchmarks import dataset_benchmark

    return dataset_benchmark(train, test)


def uneven() -> Any:
    """Three tasks, two test experiences."""
    return datasets([part(0), part(2), part(4)], [part(1), part(3)])


def mixed() -> Any:
    """Two task labels in one experience."""
    from avalanche.benchmarks.utils import DataAttribute, make_avalanche_dataset

    def labelled(seed: int) -> Any:
        whole = part(seed)
        return make_avalanche_dataset(
            whole,
            data_attributes=[
                DataAttribute(whole.tensors[1].tolist(), "targets"),
                DataAttribute([at % 2 for at in range(60)], "targets_task_labels", use_in_getitem=True),
            ],
        )

    return datasets([labelled(0)], [labelled(1)])


def pictures() -> Any:
    """Images that nothing turns into tensors."""
    return split(seed=0, eval_transform=list)


def vectors() -> Any:
    """No images at all."""
    return split(seed=0, train_transform=torch.flatten, eval_transform=torch.flatten)


def nothing() -> None:
    """No benchmark."""


def augmented() -> Any:
    """Training images spoilt at random, but not for evaluation."""
    return split(seed=0, train_transform=torch.rand_like)
