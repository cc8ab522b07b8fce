"""Auxiliary classifiers in a continual run: how they are trained along with any strategy, and what they are worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tunnel_lightning.continual.models import knows
from tunnel_lightning.continual.settings import ExitOptions
from tunnel_lightning.continual.stream import Stream, Task
from tunnel_lightning.runs import NETWORK, Row
from tunnel_lightning.surgery import Exits, leave, overthinking
from tunnel_lightning.taps import quiet

BATCH = 250


def with_exits(model: nn.Module, stream: Stream, options: ExitOptions) -> Exits:
    """A network with exits, ready for a strategy.

    Raises:
        ValueError: a stream whose tasks have a head each.
    """
    if stream.multi_head:
        raise ValueError(
            "exits go with one head over all tasks: take scenario.kind class_incremental or domain_incremental, or "
            "leave out exits"
        )
    example = stream.tasks[0].train.x[:2]
    return Exits(model, options.layers, example, detached=not options.joint)


class ExitLoss:
    """A plugin of Avalanche's: adds the exits' cross-entropies, summed and weighted, to the strategy's loss.

    The scores are taken right behind the strategy's own forward, since plugins may run the network again before the
    backward pass.

    Args:
        weight: of each exit.
    """

    supports_distributed = False

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self._scores: list[Tensor] = []

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Keep the exits' scores of this batch."""
        model = strategy.model
        self._scores = model.last[:-1] if isinstance(model, Exits) else []

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add their loss."""
        for scores in self._scores:
            if len(scores) == len(strategy.mb_y):
                strategy.loss = strategy.loss + self.weight * F.cross_entropy(scores, strategy.mb_y)
        self._scores = []


def exit_rows(
    model: Exits, stream: Stream, thresholds: Sequence[float], run_id: str, step: int, epoch: int, after: int
) -> list[Row]:
    """Accuracy and cost of every exit on every task the network can answer for, and of leaving early.

    Args:
        model: ``strategy.model``.
        stream: its tasks.
        thresholds: confidences at which a prediction leaves.
        run_id: of the rows.
        step: of the rows.
        epoch: of the rows.
        after: the task learnt last, from 0; -1 before the first.

    Returns:
        Of each exit's layer ``exit_accuracy/exit`` and ``exit_flops_share/exit`` (cost up to it over the whole
        network with all exits); of the network ``early_exit_accuracy`` and ``early_exit_flops`` (mean cost over the
        whole) by ``threshold=...`` and for the most confident exit, and ``overthinking/any``.
    """
    rows: list[Row] = []
    last = model.layers[-1].index + 1 if model.layers else 1

    def add(task: Task, layer: str, index: int, measure: str, variant: str, value: float, n: int) -> None:
        se = math.sqrt(max(value * (1 - value), 0) / n) if measure.endswith("accuracy") else math.nan
        rows.append(
            Row(run_id, step, epoch, after, "test", task.name, layer, index, measure, variant, value, se, n)
        )

    for task in stream.tasks:
        if not knows(model, task):
            continue
        scores, y = _scores(model, task), task.test.y
        n = len(y)
        for place, cost, found in zip(model.layers, model.costs, scores, strict=False):
            right = (found.argmax(1) == y).double().mean().item()
            add(task, place.name, place.index, "exit_accuracy", "exit", right, n)
            add(task, place.name, place.index, "exit_flops_share", "exit", cost / model.costs[-1], n)
        for threshold in (*thresholds, None):
            left = leave(scores, threshold, model.costs)
            variant = "most confident" if threshold is None else f"threshold={threshold:g}"
            right = (left.answer == y).double().mean().item()
            share = (left.flops.double().mean() / model.costs[-1]).item()
            add(task, NETWORK, last, "early_exit_accuracy", variant, right, n)
            add(task, NETWORK, last, "early_exit_flops", variant, share, n)
        add(task, NETWORK, last, "overthinking", "any", overthinking(scores, y).overthinking, n)
    return rows


def _scores(model: Exits, task: Task) -> Tensor:
    """Scores ``[E + 1, N, C]`` on a task's test images, on the CPU."""
    device = next(model.parameters()).device
    with quiet(model):
        batches = [torch.stack(model.all_scores(x.to(device))).cpu() for x in task.test.x.split(BATCH)]
    return torch.cat(batches, 1)
