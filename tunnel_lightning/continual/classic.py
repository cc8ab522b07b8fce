"""Avalanche's own benchmarks, by class path."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunnel_lightning.continual.compat import avalanche
from tunnel_lightning.continual.datasets import TEST, TRAIN, check_counts, stratified_sample
from tunnel_lightning.continual.names import load
from tunnel_lightning.continual.stream import Images, Stream, Task
from tunnel_lightning.taps.quiet import untouched_rng


def classic_stream(
    class_path: str,
    init_args: Mapping[str, Any] | None = None,
    seed: int = 0,
    train_images: int = 1000,
    test_images: int = 1000,
) -> Stream:
    """A benchmark that Avalanche brings, or anyone's function that returns one, as a stream.

    Tasks, classes and task labels are read off its experiences. Images are measured with the ``eval`` transforms of
    its data sets, which must make tensors of them, all of one shape. Where the test stream is a single experience,
    each task is tested on its images of the task's classes.

    Args:
        class_path: e.g. ``avalanche.benchmarks.SplitMNIST``. These download their images.
        init_args: its arguments, e.g. ``{"n_experiences": 5, "seed": 1}``.
        seed: of the images to measure on, and of what the benchmark draws when it is given no seed of its own. Global
            random states end as they began.
        train_images: at most so many training images of each task to fit probes on.
        test_images: likewise of the test stream, to score on.

    Raises:
        ValueError: no such class, arguments it rejects, no benchmark of classes, an experience of several tasks, or
            images that are no tensors.

    Example:
        >>> classic_stream("avalanche.benchmarks.SplitMNITS")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: 'avalanche.benchmarks.SplitMNITS' can't be imported: ...
    """
    check_counts(train_images, test_images)
    avalanche()
    make = load(class_path)
    with untouched_rng():
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            benchmark = make(**dict(init_args or {}))
        except TypeError as error:
            raise ValueError(f"{class_path} does not take these arguments: {error}.") from error
        return _read(benchmark, class_path, seed, train_images, test_images)


def _read(benchmark: Any, class_path: str, seed: int, train_images: int, test_images: int) -> Stream:
    train, test = (list(getattr(benchmark, f"{part}_stream", ())) for part in ("train", "test"))
    if not train or len(test) not in (1, len(train)):
        raise ValueError(
            f"{class_path} makes no stream of tasks: it has {len(train)} training and {len(test)} test experiences, "
            "but a test experience for each training experience is needed, or one for all."
        )
    # Relabelled within each experience, equal labels are different classes; their own ids name them.
    relabelled = getattr(benchmark, "class_ids_from_zero_in_each_exp", False)
    own_ids = getattr(benchmark, "classes_order_original_ids", None) if relabelled else None
    classes: dict[tuple[int, int], int] = {}
    tasks: list[Task] = []
    for index, experience in enumerate(train):
        label = _only_label(experience, class_path)
        outputs = sorted({int(y) for y in experience.dataset.targets})
        keys = [(index if relabelled else -1, y) for y in outputs]
        before = len(classes) if relabelled else 0
        for key in keys:
            classes.setdefault(key, len(classes))
        ids = {y: classes[key] for key, y in zip(keys, outputs, strict=True)}
        whole = len(test) == 1 and len(train) > 1
        chosen = _chosen(experience, outputs, train_images, [seed, TRAIN + 2 * index])
        tested = _chosen(test[0 if whole else index], outputs, test_images, [seed, TEST + 2 * index])
        order = sorted(outputs, key=ids.__getitem__)
        tasks.append(
            Task(
                index=index,
                name=f"task {index + 1}",
                label=label,
                classes=tuple(ids[y] for y in order),
                outputs=tuple(order),
                class_names=tuple(str(own_ids[before + y] if own_ids else y) for y in order),
                train=_images(experience.dataset, chosen, ids, class_path),
                test=_images(test[0 if whole else index].dataset, tested, ids, class_path),
            )
        )
    shapes = {tuple(task.train.x.shape[1:]) for task in tasks}
    if len(shapes) > 1 or len(next(iter(shapes))) != 3:
        raise ValueError(
            f"The images of {class_path} have the shapes {sorted(shapes)}; one [C, H, W] is needed."
        )
    return Stream(
        name=class_path.rpartition(".")[2],
        kind="classic",
        benchmark=benchmark,
        tasks=tuple(tasks),
        num_classes=len(classes),
        outputs=max(max(task.outputs) for task in tasks) + 1,
        input_shape=shapes.pop(),  # type: ignore[arg-type]
        multi_head=len({task.label for task in tasks}) > 1,
    )


def _only_label(experience: Any, class_path: str) -> int:
    labels = [int(label) for label in set(getattr(experience, "task_labels", [0]))]
    if len(labels) != 1:
        raise ValueError(
            f"Experience {experience.current_experience} of {class_path} mixes the tasks {labels}; a stream needs "
            "one task label for each experience."
        )
    return labels[0]


def _chosen(experience: Any, outputs: list[int], count: int, seed: list[int]) -> list[int]:
    targets = np.asarray([int(y) for y in experience.dataset.targets])
    mine = np.flatnonzero(np.isin(targets, outputs))
    if len(mine) == 0:
        raise ValueError(
            f"Experience {experience.current_experience} of the test stream has no images of the classes {outputs} "
            "that its task learns."
        )
    return mine[stratified_sample(targets[mine], count, np.random.default_rng(seed))].tolist()


def _images(dataset: Any, chosen: list[int], ids: dict[int, int], class_path: str) -> Images:
    seen = dataset.eval()
    items = [seen[at] for at in chosen]
    if not all(isinstance(item[0], Tensor) for item in items):
        raise ValueError(
            f"The images of {class_path} are no tensors but {type(items[0][0]).__name__}: give it an eval_transform "
            "that makes tensors of them."
        )
    y = [int(item[1]) for item in items]
    return Images(
        torch.stack([item[0] for item in items]).float(),
        torch.tensor(y),
        torch.tensor([ids[each] for each in y]),
    )
