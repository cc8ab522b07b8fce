"""Is it the extractor or the tunnel that forgets? Two snapshots of a network cut and put together crosswise.

The network after the first task is extractor E1 under tunnel T1, after a later one E2 under T2 (Masarczyk et al.,
"The Tunnel Effect", 2023, section 4; Harun et al., "What Variables Affect Out-of-Distribution Generalization in
Pretrained Models?", 2024). Every score is read with the head of the evaluated task as it was right after that task
was learnt. Statistics of normalisation layers go with their section.

The network itself is never written to: every state is put in the place of its own for the length of a forward.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tunnel_lightning.continual.stream import Images, Task
from tunnel_lightning.runs import Row, Tunnel
from tunnel_lightning.surgery import Sections, State, compose, rewind
from tunnel_lightning.taps import quiet

PAIRS = ("E1T1", "E1T2", "E2T1", "E2T2")
"""Extractor and tunnel of the variants of ``swap_accuracy``."""

MOST = 20
"""Layers up to which every contiguous block is put back."""


@dataclass(frozen=True)
class TwoTasks:
    """A network, its states after two tasks, and what is needed to score mixtures of them.

    Attributes:
        model: the network the states are of: a backbone with its head, or what holds both.
        view: gives a module whose ``forward(x)`` are the scores of a task; `model` is in it, or it is `model`.
        first: state of `model` right after `tasks[0]` was learnt (`surgery.snapshot`).
        second: right after `tasks[1]` was learnt.
        tasks: the two.
        parts: sections of `model`.
        run_id, step, epoch: of the rows.
        batch_size: images at once.

    Raises:
        ValueError: a view that does not hold the model.
    """

    model: nn.Module
    view: Callable[[Task], nn.Module]
    first: State
    second: State
    tasks: tuple[Task, Task]
    parts: Sections
    run_id: str = ""
    step: int = -1
    epoch: int = -1
    batch_size: int = 250

    def network(self, task: Task) -> WithState:
        """The model as it answers for a task."""
        return WithState(self.model, self.view(task))

    def row(self, cut: int, task: Task, measure: str, variant: str, right: float) -> Row:
        """A row of `right` answers on a task's test images; NaN where that is."""
        n = len(task.test.y)
        value = right / n
        return Row(
            self.run_id,
            self.step,
            self.epoch,
            self.tasks[1].index,
            "test",
            task.name,
            self.parts[cut].name,
            cut,
            measure,
            variant,
            value,
            math.sqrt(value * (1 - value) / n),
            n,
        )


def swap_sweep(
    two: TwoTasks, cuts: Iterable[int] | None = None, progress: Callable[[int], None] | None = None
) -> list[Row]:
    """Accuracy of either extractor under either tunnel, on both tasks, for every cut.

    E1T1 and E2T2 do not depend on the cut and are scored once; so are both others behind the last layer, where
    the tunnel is empty and E1T2 is E1T1.

    Args:
        two: the network and its states.
        cuts: last layers of the extractor, 1 to L; by default all.
        progress: called with each cut when it is done.

    Returns:
        Rows ``swap_accuracy`` of the variants `PAIRS`, on the test images of both tasks; layer and index are the
        cut's. A cut costs two forwards of the test images of each task: with many layers and maps, sections of
        blocks (``sections(model, example, "block")``) tell the same in a fraction of the time.

    Raises:
        ValueError: no such cut, states of another network, or tasks without test images.
    """
    wanted = checked_cuts(two, cuts)
    rows: list[Row] = []
    networks = [two.network(task) for task in two.tasks]
    states = placed(two.model, two.first), placed(two.model, two.second)
    whole: dict[tuple[str, int], float] = {}
    for cut in wanted:
        for number, (task, network) in enumerate(zip(two.tasks, networks, strict=True)):
            for variant in PAIRS:
                extractor, tunnel = (states[int(which) - 1] for which in variant[1::2])
                one = extractor is tunnel or cut == len(two.parts)
                key = (variant[:2], number)
                right = whole.get(key) if one else None
                if right is None:
                    state = compose(extractor, tunnel, two.parts, cut, states[number])
                    right = network.right(state, task.test, two.batch_size)
                if one:
                    whole[key] = right
                rows.append(two.row(cut, task, "swap_accuracy", variant, right))
        if progress is not None:
            progress(cut)
    say_where_nan(rows, "networks put together of two")
    return rows


def blocks(layers: int, most: int = MOST) -> list[tuple[int, int]]:
    """The blocks of a rewind sweep: every contiguous one, or of a deep network those between steps of several layers.

    Args:
        layers: L, of the network.
        most: places at which a block begins. In deeper networks they lie ``ceil(L / most)`` layers apart, and blocks
            end in front of the next one.

    Returns:
        First and last layer of each, from 1: ``L (L + 1) / 2`` of them, or fewer.

    Example:
        >>> blocks(3)
        [(1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 3)]
        >>> blocks(5, most=3)
        [(1, 2), (1, 4), (1, 5), (3, 4), (3, 5), (5, 5)]
    """
    step = math.ceil(layers / most)
    firsts = range(1, layers + 1, step)
    lasts = [min(first + step - 1, layers) for first in firsts]
    return [(first, last) for first in firsts for last in lasts if last >= first]


def rewind_sweep(
    two: TwoTasks, swaps: Iterable[Row] = (), progress: Callable[[int, int], None] | None = None
) -> list[Row]:
    """Accuracy on the first task when a block of the last network is put back to what it was after that task.

    The reset of Ramasesh, Dyer & Raghu, "Anatomy of Catastrophic Forgetting", 2021 (arXiv 2007.07400), for the
    contiguous blocks of `blocks`, single layers and the whole network among them. The head is that of the task as
    learnt.

    Args:
        two: the network and its states.
        swaps: rows of `swap_sweep`, where that was made: blocks that begin with the first layer, and those that end
            with the last, are swaps under another name, and not scored again.
        progress: called with how many blocks are done, and of how many.

    Returns:
        Rows ``rewind_accuracy``, variant ``i..k`` where the block begins with layer i (``3..k``), on the test images
        of the first task; layer and index are those of its last layer, k. A block costs one forward of these images.

    Raises:
        ValueError: states of another network, or no test images.
    """
    task, last = two.tasks[0], len(two.parts)
    right: dict[tuple[int, int], float] = {}
    for row in swaps:
        if row.measure == "swap_accuracy" and row.dataset == task.name:
            known = {"E1T2": (1, row.index), "E2T1": (row.index + 1, last), "E1T1": (1, last)}
            if row.variant in known:
                right[known[row.variant]] = math.nan if math.isnan(row.value) else round(row.value * row.n)
    network = two.network(task)
    then, now = placed(two.model, two.first), placed(two.model, two.second)
    rows: list[Row] = []
    every = blocks(last)
    for number, (first, end) in enumerate(every, 1):
        if (first, end) not in right:
            state = rewind(now, then, two.parts, [*range(first, end + 1), last + 1])
            right[first, end] = network.right(state, task.test, two.batch_size)
        rows.append(two.row(end, task, "rewind_accuracy", f"{first}..k", right[first, end]))
        if progress is not None:
            progress(number, len(every))
    say_where_nan(rows, "networks with layers put back")
    return rows


def freeze_sweep(
    two: TwoTasks,
    train: Callable[[int], State],
    cuts: Iterable[int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Row]:
    """Accuracy on both tasks when the layers 1 to k are frozen for the second of them (Ramasesh et al., 2021).

    Args:
        two: the network and its states; the second state is not looked at.
        train: trains the second task anew from the state before it, which is the first one where no tasks lie
            between the two, with sections 1 to k frozen (`surgery.frozen`), and gives the state afterwards.
        cuts: the values of k, 1 to L; by default all.
        progress: called with each when it is done.

    Returns:
        Rows ``freeze_accuracy``, variant ``1..k``, on the test images of both tasks; index is k.

    Raises:
        ValueError: as `swap_sweep`.
    """
    rows: list[Row] = []
    for cut in checked_cuts(two, cuts):
        state = placed(two.model, train(cut))
        for task, head in zip(two.tasks, (placed(two.model, two.first), state), strict=True):
            mixed = compose(state, state, two.parts, cut, head)
            right = two.network(task).right(mixed, task.test, two.batch_size)
            rows.append(two.row(cut, task, "freeze_accuracy", "1..k", right))
        if progress is not None:
            progress(cut)
    say_where_nan(rows, "networks with layers frozen")
    return rows


def say_where_nan(rows: Iterable[Row], what: str) -> None:
    """One warning that names the tasks on which there is no accuracy."""
    sick = dict.fromkeys(row.dataset for row in rows if math.isnan(row.value))
    if sick:
        warnings.warn(
            f"Scores of {what} on {', '.join(sick)} are NaN or infinite: accuracies there are NaN.",
            stacklevel=3,
        )


def cuts_at_tunnel(found: Mapping[str, Tunnel], parts: Sections) -> dict[str, int]:
    """The cut in front of the tunnel by each rule, of those that find one.

    Args:
        found: by rule, as `runs.tunnels` gives them.
        parts: sections of the same layers.

    Returns:
        The last layer of the extractor by rule, 1 to L - 1; a rule that finds no tunnel or no extractor is missing.

    Raises:
        ValueError: the tunnel starts at a layer that is no section.

    Example:
        >>> from tunnel_lightning.surgery import Section
        >>> layers = tuple(Section(i, f"layers.{i}", "", 1, (), ()) for i in (1, 2, 3))
        >>> nan = float("nan")
        >>> tunnel = Tunnel("id95", 3, "layers.3", 2, nan, nan, 9, (), "test", "")
        >>> cuts_at_tunnel({"id95": tunnel}, Sections(layers, Section(4, "head", "", 1, (), ())))
        {'id95': 2}
    """
    index = {section.name: section.index for section in parts.layers}
    cuts = {}
    for rule, tunnel in found.items():
        if tunnel.start is None or tunnel.layer is None:
            continue
        if tunnel.layer not in index:
            raise ValueError(
                f"By rule {rule} the tunnel starts at {tunnel.layer}, which is no section: take sections at the "
                "layers that were probed."
            )
        if index[tunnel.layer] > 1:
            cuts[rule] = index[tunnel.layer] - 1
    return cuts


class WithState:
    """A model seen through a view, run with states that are not its own."""

    def __init__(self, model: nn.Module, view: nn.Module) -> None:
        self.model, self.view = model, view
        paths = [path for path, module in view.named_modules() if module is model]
        if not paths:
            raise ValueError(
                f"TwoTasks: the {type(view).__name__} that view gives does not hold the {type(model).__name__} "
                "that the states are of."
            )
        self.prefix = f"{paths[0]}." if paths[0] else ""
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        self.buffers = dict(model.named_buffers(remove_duplicate=False))

    def scores(self, state: State, x: Tensor) -> Tensor:
        """Scores [B, C] with the tensors of a state in the place of the model's, which may differ in shape."""
        own = self.parameters.keys() | self.buffers.keys()
        tensors = {self.prefix + key: value for key, value in state.items() if key in own}
        return functional_call(self.view, tensors, (x,), tie_weights=False)

    def right(self, state: State, images: Images, batch_size: int) -> float:
        """How many images are answered right, see `count_right`."""
        return self.count_right(lambda x: self.scores(state, x), images, batch_size)

    def count_right(self, run: Callable[[Tensor], Tensor], images: Images, batch_size: int) -> float:
        """How many images `run` answers right, in evaluation mode and without gradients.

        NaN as soon as one score is NaN or infinite: what is largest among them is no answer.

        Raises:
            ValueError: there are none.
        """
        if not len(images.y):
            raise ValueError("swaps: a task has no test images to score on.")
        right, finite = torch.zeros((), dtype=torch.int64), torch.ones((), dtype=torch.bool)
        with quiet(self.view):
            for x, y in self.batches(images, torch.arange(len(images.y)), batch_size):
                scores = run(x)
                right = right.to(y.device) + (scores.argmax(1) == y).sum()
                finite = finite.to(y.device) & torch.isfinite(scores).all()
        return int(right) if finite else math.nan

    def batches(self, images: Images, order: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels on the model's device, in the given order of indices."""
        device = next(iter(self.parameters.values())).device
        for rows in order.split(size):
            yield images.x[rows].to(device), images.y[rows].to(device)


def checked_cuts(two: TwoTasks, cuts: Iterable[int] | None) -> list[int]:
    """The cuts asked for, each once, or all of them.

    Raises:
        ValueError: no such cut.
    """
    last = len(two.parts)
    wanted = list(range(1, last + 1)) if cuts is None else list(dict.fromkeys(cuts))
    for cut in wanted:
        if not 1 <= cut <= last:
            raise ValueError(f"There is no cut {cut}: give 1 to {last}, the layers of the network.")
    return wanted


def placed(model: nn.Module, state: State) -> dict[str, Any]:
    """A copy of a state on the model's device."""
    device = next(model.parameters()).device
    # Copies: some networks write to their buffers as they run.
    return {
        key: value.to(device, copy=True) if isinstance(value, Tensor) else value
        for key, value in state.items()
    }
