"""Auxiliary classifiers in a continual run: how they are trained along with any strategy, and what they are worth."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from tunnel_lightning.continual.compat import avalanche
from tunnel_lightning.continual.models import backbone_in, knows
from tunnel_lightning.continual.places import find_layers
from tunnel_lightning.continual.settings import ExitOptions
from tunnel_lightning.continual.stream import Stream, Task
from tunnel_lightning.runs import NETWORK, Row
from tunnel_lightning.surgery import Exits, leave, overthinking
from tunnel_lightning.taps import Tap, TapSpec, quiet
from tunnel_lightning.taps.hooks import Inert
from tunnel_lightning.taps.spec import Pool

BATCH = 250
MASKED = -1000.0
"""The score of outputs that a task does not have; Avalanche's, so that exits and network are as sure alike."""


def with_exits(model: nn.Module, stream: Stream, options: ExitOptions) -> Exits:
    """A network with exits, ready for a strategy.

    Where tasks have a head each, every exit has a linear head for each task, and the one of the image's task
    answers; outputs that a task has not been trained on are masked in them as in the network's own heads. Of a
    head that grows the exits put out as many classes as it has by then.

    Args:
        model: from `prepare_model`.
        stream: what it will learn.
        options: where exits are, and whether they train the network.

    Raises:
        ValueError: no such layers.

    Example:
        >>> from tunnel_lightning.backbones import MLP
        >>> from tunnel_lightning.continual.models import prepare_model
        >>> from tunnel_lightning.continual.scenarios import Scenario, make_stream
        >>> from tunnel_lightning.data import Digits
        >>> stream = make_stream(Digits(), Scenario("task_incremental", tasks=5))
        >>> mlp = MLP(depth=2, width=8, num_classes=stream.outputs, input_shape=stream.input_shape)
        >>> model = with_exits(prepare_model(mlp, stream), stream, ExitOptions())
        >>> [len(heads) for heads in model.heads]
        [5, 5]
        >>> [tuple(scores.shape) for scores in model.all_scores(stream.tasks[0].test.x[:3], 0)]
        [(3, 2), (3, 2), (3, 2)]
    """
    example = stream.tasks[0].train.x[:2]
    several = hasattr(model, "forward_single_task")
    made: Exits = (_task_exits() if several else Exits)(
        model,
        options.layers,
        example,
        detached=not options.joint,
        outputs=stream.outputs,
        tasks=sorted({task.label for task in stream.tasks}) if several else (),
    )
    return made


@cache
def _task_exits() -> Any:
    """The class of networks with exits whose tasks have a head each: Avalanche asks what a network derives from."""
    avalanche()
    from avalanche.models import MultiTaskModule

    class TaskExits(Exits, MultiTaskModule):
        """Exits around a network of Avalanche's with several heads; a batch may be of several tasks."""

        active: Tensor

        def __init__(self, backbone: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(backbone, *args, **kwargs)
            self.max_class_label = backbone.max_class_label
            outputs = self._heads_of(self._any_task)[0].out_features
            self.register_buffer("active", torch.zeros(max(self.tasks) + 1, outputs, dtype=torch.bool))

        @property
        def head(self) -> Any:
            """The network's own heads, where strategies look for them."""
            return self.backbone.head

        def adaptation(self, experience: Any) -> None:
            """Note which outputs are trained from here on, as the network's own heads do."""
            MultiTaskModule.adaptation(self, experience)
            if self.training:
                for label in set(experience.task_labels):
                    self.active[label, list(experience.classes_in_this_experience)] = True

        def forward(self, x: Tensor, task_labels: Any = None) -> Any:
            """The network's own scores, image by image of its task; those of the exits are then in `last`."""
            if task_labels is None:
                self.last = []
                return self.forward_all_tasks(x)
            if isinstance(task_labels, int):
                return self.forward_single_task(x, task_labels)
            # Task by task, as Avalanche's own: what the network is shown, and so what it learns, is the same.
            out = [torch.zeros(len(x), self.max_class_label, device=x.device) for _ in (*self.layers, None)]
            for label in task_labels.unique().tolist():
                mask = task_labels == label
                for whole, part in zip(out, self.all_scores(x[mask], label), strict=True):
                    whole[mask, : part.shape[1]] = part.to(whole.dtype)
            self.last = out
            return out[-1]

        def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
            """Scores of one task's head."""
            self.last = self.all_scores(x, task_label)
            return self.last[-1]

        def forward_all_tasks(self, x: Tensor) -> Any:
            """Scores of all heads by label, of one pass through the network; none of the exits."""
            network: Any = self.backbone
            return network.forward_all_tasks(x)

        @property
        def _trunk(self) -> nn.Module:
            return backbone_in(self.backbone)

        def _find(self, layers: str | list[str], example: Tensor, pool: Pool) -> tuple[Tap, ...]:
            return tuple(find_layers(self.backbone, TapSpec(layers, pool), example))

        def _shown(self, scores: Tensor, task: int | None) -> Tensor:
            return scores.masked_fill(~self.active[task, : scores.shape[1]], MASKED)

    return TaskExits


_APART = "takes the network apart"

NO_EXITS = {
    "FeatureReplay": _APART,
    "CWRStar": "holds all but one layer from the second task on, exits too",
    "CWRStarPlugin": "holds all but one layer from the second task on, exits too",
    "CoPE": "answers by prototypes of what the last layer puts out, which exits have none of",
    "CoPEPlugin": "answers by prototypes of what the last layer puts out, which exits have none of",
}
"""Strategies and plugins that take the last linear layer for the classifier, which is an exit's: by name, why not."""


def refuse_exits(strategy: type) -> None:
    """Refuse exits with a strategy that can't be made of a network with exits, or would take an exit for its head.

    Args:
        strategy: its class; those derived from one that is refused are too.

    Raises:
        ValueError: saying why.

    Example:
        >>> class CoPE: ...
        >>> refuse_exits(CoPE)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: CoPE answers by prototypes of what the last layer puts out, ...
    """
    for each in strategy.__mro__:
        if each.__name__ in NO_EXITS:
            raise _refused(strategy.__name__, NO_EXITS[each.__name__])


def check_exits(strategy: Any) -> None:
    """Refuse exits with a strategy that would not train them, or is not itself with them.

    Raises:
        ValueError: saying why.
    """
    name = type(strategy).__name__
    refuse_exits(type(strategy))
    if hasattr(strategy, "_inner_updates"):
        raise _refused(name, "takes steps of its own that no other loss can be added to")
    if not isinstance(strategy.model, Exits):
        raise _refused(name, _APART)
    for plugin in strategy.plugins:
        refuse_exits(type(plugin))


def _refused(name: str, why: str) -> ValueError:
    return ValueError(
        f"{name} {why}, so exits can't be trained with it: leave out exits, or take another strategy"
    )


class ExitLoss:
    """A plugin of Avalanche's: adds the exits' cross-entropies, summed and weighted, to the strategy's loss.

    They are of what the strategy has as its batch: remembered images that it puts into the batch (Replay, DER) train
    the exits, those it shows the network apart (ER_ACE, GEM, MIR) don't. The scores are taken from the strategy's
    own forward; plugins, and strategies between it and their hooks, may run the network again. The hook is on the
    network only for that long, and copies hold none.

    Args:
        weight: of each exit.
    """

    supports_distributed = False

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self._scores: list[Tensor] = []
        self._handle: RemovableHandle | None = None
        self._learnt = 0

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse a strategy that would not train them."""
        check_exits(strategy)
        self._learnt = 0

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Look out for the strategy's own forward."""
        self._let_go()
        self._scores = []
        self._handle = strategy.model.register_forward_hook(_Seen(self, strategy))

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """It is over."""
        self._let_go()

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add their loss."""
        for scores in self._scores:
            strategy.loss = strategy.loss + self.weight * F.cross_entropy(scores, strategy.mb_y)
            self._learnt += 1
        self._scores = []

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Say so where nothing was learnt."""
        if not self._learnt:
            warnings.warn(
                f"The exits have learnt nothing from {type(strategy).__name__}, whose loop does not announce its "
                "forward passes: their figures are those of untrained exits.",
                stacklevel=2,
            )

    def _let_go(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = None


class _Seen:
    """A forward hook that takes the exits' scores of one batch."""

    def __init__(self, to: ExitLoss, strategy: Any) -> None:
        self._to, self._strategy = to, strategy

    def __call__(self, module: Any, args: Any, output: Any) -> None:
        """Take them, if this is the batch."""
        # The batch as it is now: the strategy may have added to it since its plugins were told (DER).
        if args and args[0] is self._strategy.mb_x:
            self._to._scores = module.last[:-1]

    def __deepcopy__(self, memo: dict[int, Any]) -> Inert:
        return Inert()


def exit_rows(
    model: Exits,
    stream: Stream,
    thresholds: Sequence[float],
    run_id: str,
    step: int,
    epoch: int,
    after: int,
    layers: Sequence[Tap] = (),
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
        layers: the layers that are measured, by which exits are numbered; by default those of `TapSpec()`.

    Returns:
        Rows whose index is that of the layer among `layers`; where it is none of them, that of the last one before
        it. NaN for a task with a score that is NaN or infinite. Of each exit's layer ``exit_accuracy/exit`` and
        ``exit_flops_share/exit`` (cost up to it over the whole network with all exits); of the network
        ``early_exit_accuracy`` and ``early_exit_flops`` (mean cost over the whole) by ``threshold=...`` and for the
        most confident exit, and ``overthinking/any``.
    """
    rows: list[Row] = []
    layers = layers or find_layers(model, TapSpec(), stream.tasks[0].train.x[:2])
    number, last = _numbers(model, stream, layers), len(layers) + 1
    sick: list[str] = []

    def add(task: Task, layer: str, index: int, measure: str, variant: str, value: float, n: int) -> None:
        if measure != "exit_flops_share" and task.name in sick:
            value = math.nan
        se = math.sqrt(value * (1 - value) / n) if measure.endswith("accuracy") else math.nan
        rows.append(
            Row(run_id, step, epoch, after, "test", task.name, layer, index, measure, variant, value, se, n)
        )

    for task in stream.tasks:
        if not knows(model, task):
            continue
        scores, y = _scores(model, task), task.test.y
        n = len(y)
        if not torch.isfinite(scores).all():
            sick.append(task.name)
        for place, cost, found in zip(model.layers, model.costs, scores, strict=False):
            right = (found.argmax(1) == y).double().mean().item()
            add(task, place.name, number[place.name], "exit_accuracy", "exit", right, n)
            add(task, place.name, number[place.name], "exit_flops_share", "exit", cost / model.costs[-1], n)
        for threshold in (*thresholds, None):
            left = leave(scores, threshold, model.costs)
            variant = "most confident" if threshold is None else f"threshold={threshold:g}"
            right = (left.answer == y).double().mean().item()
            share = (left.flops.double().mean() / model.costs[-1]).item()
            add(task, NETWORK, last, "early_exit_accuracy", variant, right, n)
            add(task, NETWORK, last, "early_exit_flops", variant, share, n)
        add(task, NETWORK, last, "overthinking", "any", overthinking(scores, y).overthinking, n)
    if sick:
        warnings.warn(
            f"Scores of the network or of its exits on {', '.join(sick)} are NaN or infinite: what exits are worth "
            "there is NaN.",
            stacklevel=2,
        )
    return rows


def _numbers(model: Exits, stream: Stream, layers: Sequence[Tap]) -> dict[str, int]:
    """The index of each exit's layer, by name."""
    number = {layer.name: layer.index for layer in layers}
    others = [place.name for place in model.layers if place.name not in number]
    if others:
        # Additions have no module to be named by, and are not looked for: those before them number what follows.
        modules = {path for path, _ in backbone_in(model).named_modules()}
        names = [*(layer.name for layer in layers if layer.module in modules), *others]
        reached = 0
        for place in find_layers(model, TapSpec(names), stream.tasks[0].train.x[:2]):
            reached = number.setdefault(place.name, reached)
    return number


def _scores(model: Exits, task: Task) -> Tensor:
    """Scores ``[E + 1, N, C]`` on a task's test images, on the CPU."""
    device, label = next(model.parameters()).device, task.label if model.tasks else None
    with quiet(model):
        batches = [torch.stack(model.all_scores(x.to(device), label)).cpu() for x in task.test.x.split(BATCH)]
    return torch.cat(batches, 1)
