"""What is left of the first task in the last extractor: swapped networks, fine-tuned on the first task again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tunnel_lightning.continual.stream import Images, Task
from tunnel_lightning.continual.swaps import TwoTasks, WithState, checked_cuts, placed, say_where_nan
from tunnel_lightning.runs import Row
from tunnel_lightning.surgery import State, compose
from tunnel_lightning.taps import quiet
from tunnel_lightning.taps.pooling import hints_of, layout_of, pool

TUNED = ("E2+T1 tuned", "E2 tuned")
"""The fine-tuned variants of ``swap_accuracy``."""


@dataclass(frozen=True)
class Tuning:
    """How `tuned_sweep` trains: AdamW, the rate a tenth after 40 % and a hundredth after 80 % of the epochs.

    Optimizer and shape of the schedule are those of Harun et al. (2024, section 4.3); there is no augmentation.

    Attributes:
        epochs: 0 is off.
        lr: learning rate.
        weight_decay: of AdamW.
        batch_size: images at once.
        seed: of the order of the images, of dropout and of the fresh head.

    Raises:
        ValueError: a number of epochs below 0, or a batch or a rate that is not positive.

    Example:
        >>> Tuning(epochs=5).lr
        0.001
    """

    epochs: int = 10
    lr: float = 1e-3
    weight_decay: float = 0.05
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 2 or not self.lr > 0 or not self.weight_decay >= 0:
            raise ValueError(
                f"{self}: epochs and weight_decay must be at least 0, batch_size at least 2 and lr above 0."
            )


def tuned_sweep(
    two: TwoTasks,
    cuts: Iterable[int],
    tuning: Tuning | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Row]:
    """Accuracy on the first task after fine-tuning on its training images, of two networks for each cut.

    ``E2+T1 tuned`` is E2 under T1 and the task's head as learnt; ``E2 tuned`` is E2 alone under a fresh linear head
    on what the layer behind the cut would take in, maps averaged to 2 x 2. Both are trained end to end (Masarczyk et
    al., 2023, section 4; Harun et al., 2024, section 4.3). A cut costs about seven forwards of the training images
    for each epoch.

    Args:
        two: the network and its states.
        cuts: last layers of the extractor, 1 to L.
        tuning: how; by default `Tuning()`.
        progress: called with each cut when it is done.

    Returns:
        Rows ``swap_accuracy`` of the variants `TUNED`, on the test images of the first task; none for 0 epochs.

    Raises:
        ValueError: no such cut, states of another network, no images, or a cut behind which nothing runs.
    """
    tuning = tuning or Tuning()
    wanted = checked_cuts(two, cuts)
    if not tuning.epochs:
        return []
    task = two.tasks[0]
    if len(task.train.y) < 2:
        raise ValueError(f"tuned_sweep: {task.name} has no training images to tune on.")
    network = two.network(task)
    first, second = placed(two.model, two.first), placed(two.model, two.second)
    rows: list[Row] = []
    for cut in wanted:
        mixed = compose(second, first, two.parts, cut, first)
        for variant, tune in zip(TUNED, (_whole, _alone), strict=True):
            right = tune(network, mixed, cut, task, tuning, two)
            rows.append(two.row(cut, task, "swap_accuracy", variant, right))
        if progress is not None:
            progress(cut)
    say_where_nan(rows, "fine-tuned networks")
    return rows


def _whole(network: WithState, state: State, cut: int, task: Task, tuning: Tuning, two: TwoTasks) -> float:
    """Train all of a state; how many answers are then right."""
    work = _trainable(network, state, None)

    def run(x: Tensor) -> Tensor:
        return network.scores(work, x)

    with quiet(network.view):
        torch.manual_seed(tuning.seed)
        _fit(network, run, _leaves(work), task.train, tuning)
    return network.count_right(run, task.test, two.batch_size)


def _alone(network: WithState, state: State, cut: int, task: Task, tuning: Tuning, two: TwoTasks) -> float:
    """Train the extractor under a fresh linear head; how many answers are then right."""
    work = _trainable(network, state, two.parts.entries(range(1, cut + 1)))
    hints = hints_of(network.view)
    behind = two.parts[cut + 1]
    # Of several heads another may run than when the sections were taken: the first of any to run tells.
    paths = [behind.path] if cut == len(two.parts) else list(behind.modules[:1])
    if not any(paths):
        raise ValueError(f"tuned_sweep: nothing runs behind cut {cut}, so E2 alone has no features to read.")
    modules = list(network.model.get_submodule(paths[0]).modules())

    def features(x: Tensor) -> Tensor:
        with _stop_before(modules):
            try:
                network.scores(work, x)
            except _Reached as reached:
                found = reached.features
                return pool(found, layout_of(reached.module, tuple(found.shape), hints), "2x2").float()
        raise ValueError(f"tuned_sweep: {paths[0]} takes no tensor in, so E2 alone has no features to read.")

    with quiet(network.view):
        torch.manual_seed(tuning.seed)
        x, _ = next(network.batches(task.train, torch.arange(2), 2))
        head = nn.Linear(features(x).shape[1], len(task.outputs)).to(x.device)

        def run(x: Tensor) -> Tensor:
            return head(features(x))

        leaves = [*_leaves(work), *head.parameters()]
        _fit(network, run, leaves, _relabelled(task.train, task), tuning)
    return network.count_right(run, _relabelled(task.test, task), two.batch_size)


def _trainable(network: WithState, state: State, which: Iterable[str] | None) -> dict[str, Tensor]:
    """A copy of a state, with gradients for the parameters among some of its entries, or for all."""
    own = {**network.parameters, **network.buffers}
    work = {key: state.get(key, value).detach().clone() for key, value in own.items()}
    trained = set(own if which is None else which)
    # Tensors that several modules share stay shared.
    shared: dict[int, Tensor] = {}
    for key, parameter in network.parameters.items():
        work[key] = shared.setdefault(id(parameter), work[key])
        if key in trained and parameter.is_floating_point():
            work[key].requires_grad_(True)
    return work


def _leaves(work: dict[str, Tensor]) -> list[Tensor]:
    return [
        tensor for tensor in {id(value): value for value in work.values()}.values() if tensor.requires_grad
    ]


def _fit(
    network: WithState,
    run: Callable[[Tensor], Tensor],
    leaves: list[Tensor],
    images: Images,
    tuning: Tuning,
) -> None:
    """Inside `quiet`, which puts flags and random states back."""
    optimizer = torch.optim.AdamW(leaves, lr=tuning.lr, weight_decay=tuning.weight_decay)
    steps = [math.ceil(0.4 * tuning.epochs), math.ceil(0.8 * tuning.epochs)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, steps)
    generator = torch.Generator().manual_seed(tuning.seed)
    for module in network.view.modules():
        module.training = True
    with torch.enable_grad():
        for _ in range(tuning.epochs):
            order = torch.randperm(len(images.y), generator=generator)
            for x, y in network.batches(images, order, tuning.batch_size):
                if len(y) < 2:
                    continue  # one image has no batch statistics
                optimizer.zero_grad()
                F.cross_entropy(run(x), y).backward()
                optimizer.step()
            schedule.step()


def _relabelled(images: Images, task: Task) -> Images:
    """Labels counted within the task."""
    outputs = torch.tensor(sorted(task.outputs), device=images.y.device)
    return images._replace(y=torch.searchsorted(outputs, images.y))


class _Reached(Exception):
    """The forward came to the cut; carries the module behind it and what that was to take in."""

    def __init__(self, module: nn.Module, features: Tensor) -> None:
        super().__init__()
        self.module, self.features = module, features


@contextmanager
def _stop_before(modules: Iterable[nn.Module]) -> Iterator[None]:
    """End a forward, by `_Reached`, when it comes to the first of these modules."""

    def hook(module: nn.Module, args: Any) -> None:
        if args and isinstance(args[0], Tensor):
            raise _Reached(module, args[0])

    handles = [module.register_forward_pre_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
