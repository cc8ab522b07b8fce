"""What a continual run is made of: tasks, and the images each of them is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

ScenarioKind = Literal["class_incremental", "task_incremental", "domain_incremental", "permuted", "rotated"]
Kind = Literal[ScenarioKind, "classic"]


class Images(NamedTuple):
    """Images of one task as the network sees them, without augmentation.

    Attributes:
        x: ``[N, C, H, W]``, float32, normalised.
        y: ``[N]``, what the network is to answer: an index into the outputs of this task's head.
        classes: ``[N]``, the class over the whole stream, ``0..Stream.num_classes - 1``.
    """

    x: Tensor
    y: Tensor
    classes: Tensor


@dataclass(frozen=True)
class Task:
    """One experience of a stream, and a fixed sample of its images to measure on.

    Attributes:
        index: its position in the stream, from 0.
        name: ``task 1`` for the first; the ``dataset`` of its rows.
        label: Avalanche's task label: 0 for every task of a single-head network.
        classes: its classes over the whole stream, in ascending order.
        outputs: what the network answers for them: indices into the outputs of this task's head.
        class_names: their names.
        train: images to fit probes on.
        test: images to score on.
    """

    index: int
    name: str
    label: int
    classes: tuple[int, ...]
    outputs: tuple[int, ...]
    class_names: tuple[str, ...]
    train: Images
    test: Images


@dataclass(frozen=True)
class Stream:
    """A benchmark: what is learnt, task by task.

    Attributes:
        name: of the set of images.
        kind: how the tasks differ.
        benchmark: Avalanche's, with ``train_stream`` and ``test_stream``.
        tasks: in order.
        num_classes: classes over the whole stream; they count in the order they appear.
        outputs: outputs of a single head; of several heads the largest.
        input_shape: channels, height, width.
        multi_head: whether each task has a head of its own and its label is known at test time.
    """

    name: str
    kind: Kind
    benchmark: Any
    tasks: tuple[Task, ...]
    num_classes: int
    outputs: int
    input_shape: tuple[int, int, int]
    multi_head: bool

    @property
    def disjoint(self) -> bool:
        """Whether no output answers for classes of two tasks."""
        outputs = [output for task in self.tasks for output in task.outputs]
        return len(set(outputs)) == len(outputs)
