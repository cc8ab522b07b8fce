"""From a set of images to a sequence of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from tunnel_lightning.continual.classic import classic_stream
from tunnel_lightning.continual.compat import avalanche
from tunnel_lightning.continual.datasets import (
    TEST,
    TRAIN,
    Augment,
    Both,
    PartImages,
    Permute,
    Rotate,
    check_counts,
    stratified_sample,
)
from tunnel_lightning.continual.stream import Images, Kind, ScenarioKind, Stream, Task
from tunnel_lightning.data import ImageData
from tunnel_lightning.taps.quiet import untouched_rng

__all__ = ["Scenario", "classic_stream", "make_stream", "split_classes"]

SPLIT = ("class_incremental", "task_incremental", "domain_incremental")
View = Permute | Rotate | None


@dataclass(frozen=True)
class Scenario:
    """How a set of images becomes a sequence of tasks.

    - ``class_incremental``: each task brings new classes; one head over all classes of the stream, which count in
      the order they appear.
    - ``task_incremental``: the same, but each task has a head of its own, whose classes count from 0, and its label
      is known when it is tested.
    - ``domain_incremental``: the same classes of pictures, but the network is to answer only which one within the
      task, with one head that all tasks share; every task has as many classes.
    - ``permuted``: all classes in every task, the pixels in another fixed order (Goodfellow et al. 2014, "An
      Empirical Investigation of Catastrophic Forgetting"); the first task shows the images as they are.
    - ``rotated``: all classes in every task, the images turned (Lopez-Paz and Ranzato 2017, "Gradient Episodic
      Memory").

    Args:
        kind: one of these.
        tasks: how many, of equal size; or how many classes each has; or which, by label or by name. Classes that no
            task names are left out. For ``permuted`` and ``rotated`` a number.
        class_order: labels or names, in the order they appear; by default as in the set. Classes left out of it are
            left out of the stream.
        shuffle: draw the order of the classes by ``seed``.
        seed: of the class order, the permutations, and the images to measure on.
        degrees: for ``rotated``: one angle for each task, counter-clockwise; by default evenly from 0 to 180.

    Raises:
        ValueError: an unknown kind, or arguments that contradict one another.

    Example:
        >>> Scenario("class_incremental", tasks=[3, 2, 5]).tasks
        [3, 2, 5]
    """

    kind: ScenarioKind = "class_incremental"
    tasks: int | list[int] | list[list[int | str]] = 5
    class_order: list[int | str] | None = None
    shuffle: bool = False
    seed: int = 0
    degrees: list[float] | None = None

    def __post_init__(self) -> None:
        kinds = get_args(ScenarioKind)
        if self.kind not in kinds:
            raise ValueError(f"kind must be one of {', '.join(kinds)}, got {self.kind!r}.")
        if self.seed < 0:
            raise ValueError(f"The seed of a scenario must be 0 or more, got {self.seed}.")
        if not (self.tasks if isinstance(self.tasks, list) else self.tasks >= 1):
            raise ValueError(f"A stream needs at least one task, got tasks={self.tasks}.")
        if self.class_order is not None and self.shuffle:
            raise ValueError(
                "Either class_order says the order of the classes, or shuffle draws it: give one."
            )
        if self.lists_classes and (self.class_order is not None or self.shuffle):
            raise ValueError(
                "tasks lists the classes of every task, so there is no order left to choose: leave out class_order "
                "and shuffle, or give tasks as a number or as class counts."
            )
        if self.kind in SPLIT and self.degrees is not None:
            raise ValueError(f"degrees are for kind rotated, not for {self.kind}.")
        if self.kind not in SPLIT:
            if not isinstance(self.tasks, int):
                raise ValueError(
                    f"In a {self.kind} stream every task has all classes: tasks must be a number, got {self.tasks}."
                )
            if self.class_order is not None or self.shuffle:
                raise ValueError(
                    f"In a {self.kind} stream every task has all classes: leave out class_order and shuffle."
                )
        if self.degrees is not None and (self.kind != "rotated" or len(self.degrees) != self.tasks):
            raise ValueError(
                f"degrees are for kind rotated, one for each of {self.tasks} tasks; got {len(self.degrees)} for kind "
                f"{self.kind}."
            )

    @property
    def lists_classes(self) -> bool:
        """Whether ``tasks`` names the classes of each task."""
        return isinstance(self.tasks, list) and any(not isinstance(each, int) for each in self.tasks)

    def rng(self, purpose: int) -> np.random.Generator:
        """A generator of its own for each choice that ``seed`` decides."""
        return np.random.default_rng([self.seed, purpose])


def split_classes(scenario: Scenario, names: Sequence[str]) -> list[list[int]]:
    """The classes of each task, as labels of the set, in the order they appear.

    Args:
        scenario: one that splits the classes.
        names: of the set's classes, in the order of their labels.

    Raises:
        ValueError: a class that is unknown or comes twice, more classes wanted than there are, tasks that would be
            unequal or empty where they may not.

    Example:
        >>> split_classes(Scenario(tasks=[2, 1], class_order=["c", 0, 1]), ["a", "b", "c"])
        [[2, 0], [1]]
    """
    tasks = scenario.tasks
    if scenario.lists_classes:
        assert isinstance(tasks, list)
        if any(isinstance(each, int | str) for each in tasks):
            raise ValueError(
                f"tasks must be a number, class counts, or lists of classes, not a mixture: got {tasks}."
            )
        split = [[_label(each, names) for each in task] for task in tasks]  # type: ignore[union-attr]
        order = [label for task in split for label in task]
        counts = [len(task) for task in split]
    else:
        order = _order(scenario, names)
        counts = _counts(tasks, len(order))  # type: ignore[arg-type]
        ends = np.cumsum(counts)
        split = [order[end - count : end] for end, count in zip(ends.tolist(), counts, strict=True)]
    twice = sorted({names[label] for label in order if order.count(label) > 1})
    if twice:
        raise ValueError(f"A class belongs to one task, once: {', '.join(twice)} comes more than once.")
    if min(counts) < 1:
        raise ValueError(f"Every task needs a class; the tasks have {counts} classes.")
    if scenario.kind != "class_incremental" and min(counts) < 2:
        raise ValueError(
            f"In a {scenario.kind} stream each task is told apart within itself, so it needs two classes or more; "
            f"the tasks have {counts}."
        )
    if scenario.kind == "domain_incremental" and len(set(counts)) > 1:
        raise ValueError(
            f"In a domain_incremental stream all tasks share the outputs, so they need equally many classes; they "
            f"have {counts}: make them equal, or take kind task_incremental."
        )
    return split


def _label(named: int | str, names: Sequence[str]) -> int:
    if isinstance(named, str) and named in names:
        return list(names).index(named)
    if isinstance(named, int) and 0 <= named < len(names):
        return named
    raise ValueError(
        f"There is no class {named!r}: give a label from 0 to {len(names) - 1}, or one of the names "
        f"{', '.join(names)}."
    )


def _order(scenario: Scenario, names: Sequence[str]) -> list[int]:
    if scenario.class_order is not None:
        return [_label(each, names) for each in scenario.class_order]
    order = list(range(len(names)))
    return scenario.rng(0).permutation(order).tolist() if scenario.shuffle else order


def _counts(tasks: int | list[int], classes: int) -> list[int]:
    if isinstance(tasks, int):
        if tasks > classes:
            raise ValueError(
                f"{classes} classes are too few for {tasks} tasks: lower tasks to {classes} or less."
            )
        if classes % tasks:
            rest = classes - (tasks - 1) * (classes // tasks)
            counts = [classes // tasks] * (tasks - 1) + [rest]
            raise ValueError(
                f"{classes} classes don't make {tasks} equal tasks: say how many each has, e.g. tasks: {counts}."
            )
        return [classes // tasks] * tasks
    if sum(tasks) > classes:
        raise ValueError(f"The tasks {tasks} need {sum(tasks)} classes, but there are {classes}.")
    return tasks


def make_stream(
    data: ImageData, scenario: Scenario, train_images: int = 1000, test_images: int = 1000
) -> Stream:
    """The sequence of tasks, ready to learn and to measure on.

    Learnt from are the images of the set's train part; its val part stays unseen (lower ``val_fraction`` for larger
    tasks), and its test part is the test stream. Where ``data.augment`` is set, training images are cropped and
    flipped at random each time they are read: the ``train`` transforms of Avalanche's data sets, while strategies
    that ask for ``eval`` transforms get the images as they are. Nothing is drawn from global random states here.

    Args:
        data: any set; ``adapt`` it first if need be.
        scenario: how it becomes tasks.
        train_images: at most so many training images of each task to fit probes on, un-augmented, every class
            alike; in memory as float32, as are the test images.
        test_images: likewise of the test part, to score on.

    Raises:
        ValueError: a scenario that the set's classes do not allow.

    Example:
        >>> from tunnel_lightning.data import Digits
        >>> stream = make_stream(Digits(), Scenario("task_incremental", tasks=[2, 8]), test_images=100)
        >>> [task.class_names for task in stream.tasks][0], stream.outputs, stream.tasks[1].test.x.shape
        (('0', '1'), 8, torch.Size([100, 1, 8, 8]))
    """
    check_counts(train_images, test_images)
    names, shape = data.class_names, data.input_shape
    splits = scenario.kind in SPLIT
    split = split_classes(scenario, names) if splits else [list(range(len(names)))] * _number(scenario)
    loader = data.train_dataloader()
    train, test = PartImages(loader), PartImages(data.test_dataloader())
    for part, targets in (("training", set(train.targets)), ("test", set(test.targets))):
        without = [names[label] for labels in split for label in labels if label not in targets]
        if without:
            raise ValueError(
                f"{data.name} has no {part} images of class {', '.join(dict.fromkeys(without))}."
            )
    augment = Augment(shape, loader.pad, loader.flip) if loader.pad or loader.flip else None
    views: list[View] = [None] * len(split) if splits else _views(scenario, shape, train.shift)
    if splits:
        benchmark = _split_benchmark(scenario.kind, split, train, test, augment)
    else:
        benchmark = _view_benchmark(views, train, test, augment)

    tasks: list[Task] = []
    for index, (labels, view) in enumerate(zip(split, views, strict=True)):
        first = sum(len(task.classes) for task in tasks) if splits else 0
        first_output = first if scenario.kind == "class_incremental" else 0
        classes = tuple(range(first, first + len(labels)))
        outputs = tuple(range(first_output, first_output + len(labels)))
        # Where every task has all classes, all tasks are measured on the same pictures.
        drawn = 2 * index if splits else 0
        fit = _chosen(train, labels, train_images, scenario.rng(TRAIN + drawn))
        score = _chosen(test, labels, test_images, scenario.rng(TEST + drawn))
        tasks.append(
            Task(
                index=index,
                name=f"task {index + 1}",
                label=index if scenario.kind == "task_incremental" else 0,
                classes=classes,
                outputs=outputs,
                class_names=tuple(names[label] for label in labels),
                train=_images(train, fit, labels, classes, outputs, view),
                test=_images(test, score, labels, classes, outputs, view),
            )
        )
    return Stream(
        name=data.name,
        kind=scenario.kind,
        benchmark=benchmark,
        tasks=tuple(tasks),
        num_classes=max(task.classes[-1] for task in tasks) + 1,
        outputs=max(task.outputs[-1] for task in tasks) + 1,
        input_shape=shape,
        multi_head=scenario.kind == "task_incremental",
    )


def _number(scenario: Scenario) -> int:
    assert isinstance(scenario.tasks, int)
    return scenario.tasks


def _chosen(part: PartImages, labels: list[int], count: int, rng: np.random.Generator) -> np.ndarray:
    targets = np.asarray(part.targets)
    mine = np.flatnonzero(np.isin(targets, labels))
    return mine[stratified_sample(targets[mine], count, rng)]


def _images(
    part: PartImages,
    chosen: np.ndarray,
    labels: list[int],
    classes: tuple[int, ...],
    outputs: tuple[int, ...],
    view: View,
) -> Images:
    x = torch.stack([part[at][0] for at in chosen.tolist()])
    within = [labels.index(part.targets[at]) for at in chosen.tolist()]
    return Images(
        x if view is None else view(x),
        torch.tensor([outputs[each] for each in within]),
        torch.tensor([classes[each] for each in within]),
    )


def _views(scenario: Scenario, shape: tuple[int, int, int], black: Tensor) -> list[View]:
    number = _number(scenario)
    if scenario.kind == "rotated":
        degrees = np.linspace(0, 180, number).tolist() if scenario.degrees is None else scenario.degrees
        return [Rotate(shape, each, black) if each % 360 else None for each in degrees]
    pixels = shape[1] * shape[2]
    orders = [scenario.rng(1 + index).permutation(pixels) for index in range(1, number)]
    return [None, *(Permute(torch.from_numpy(order)) for order in orders)]


def _split_benchmark(
    kind: Kind, split: list[list[int]], train: PartImages, test: PartImages, augment: Augment | None
) -> Any:
    avalanche()
    from avalanche.benchmarks import nc_benchmark

    with untouched_rng():
        return nc_benchmark(
            train,
            test,
            n_experiences=len(split),
            task_labels=kind == "task_incremental",
            shuffle=False,
            fixed_class_order=[label for labels in split for label in labels],
            per_exp_classes={index: len(labels) for index, labels in enumerate(split)},
            class_ids_from_zero_from_first_exp=kind == "class_incremental",
            class_ids_from_zero_in_each_exp=kind != "class_incremental",
            train_transform=augment,
        )


def _view_benchmark(views: list[View], train: PartImages, test: PartImages, augment: Augment | None) -> Any:
    avalanche()
    from avalanche.benchmarks import dataset_benchmark
    from avalanche.benchmarks.utils import DataAttribute, TransformGroups, make_avalanche_dataset

    def seen(part: PartImages, transform: Any, view: View) -> Any:
        return make_avalanche_dataset(
            part,
            data_attributes=[DataAttribute(part.targets, "targets")],
            transform_groups=TransformGroups({"train": transform, "eval": view}),
        )

    def both(view: View) -> Any:
        return Both(augment, view) if augment is not None and view is not None else augment or view

    with untouched_rng():
        return dataset_benchmark(
            [seen(train, both(view), view) for view in views], [seen(test, view, view) for view in views]
        )
