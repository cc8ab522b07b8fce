"""Any strategy of Avalanche, by name or class path, made from the run's network, optimizer and stream."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tunnel_lightning.backbones import Backbone
from tunnel_lightning.continual import strategy_builders as builders
from tunnel_lightning.continual.compat import avalanche
from tunnel_lightning.continual.names import load
from tunnel_lightning.continual.state_origins import Origins
from tunnel_lightning.continual.strategy_builders import Job, MakeOptimizer
from tunnel_lightning.continual.strategy_checks import check_arguments, refuse
from tunnel_lightning.continual.strategy_plugins import (
    PLUGINS,
    Plugin,
    Scheduled,
    make_plugin,
    plain_or_built,
    refuse_plugins,
)
from tunnel_lightning.continual.strategy_table import STRATEGIES, Method
from tunnel_lightning.continual.stream import Stream

__all__ = [
    "PLUGINS",
    "STRATEGIES",
    "Method",
    "Plugin",
    "answering_model",
    "make_strategy",
    "strategy_class",
    "turns",
]

_BUILDERS: dict[str, Callable[[Job], Any]] = {
    "SynapticIntelligence": builders.build_si,
    "ICaRL": builders.build_icarl,
    "SCR": builders.build_scr,
    "StreamingLDA": builders.build_slda,
    "LFL": builders.build_lfl,
    "CWRStar": builders.build_cwr,
    "FeatureReplay": builders.build_feature_replay,
    "GSS_greedy": builders.build_gss,
    "ER_AML": builders.build_er_aml,
    "CoPE": builders.build_cope,
    "LaMAML": builders.build_lamaml,
    "PNNStrategy": builders.build_pnn,
    "PackNet": builders.build_packnet,
    "GenerativeReplay": builders.build_generative,
}


def strategy_class(name: str) -> tuple[Method, type]:
    """What a config names: a strategy of the table, or anyone's class.

    Args:
        name: as in `STRATEGIES`, or a class path.

    Returns:
        Its entry (one with an empty ``about`` for a class that is not in the table) and its class.

    Raises:
        ValueError: there is none, or it does not run here.

    Example:
        >>> strategy_class("Replay")[0].resumable
        True
        >>> strategy_class("Reply")
        Traceback (most recent call last):
        ValueError: Avalanche has no strategy Reply: did you mean Replay ...
    """
    avalanche()
    if name in STRATEGIES:
        method = STRATEGIES[name]
        if method.fails:
            raise ValueError(f"{name} does not run here: {method.fails}.")
        return method, load(method.path)
    if "." not in name:
        library = importlib.import_module("avalanche.training.plugins")
        if isinstance(getattr(library, name, None), type):
            raise ValueError(f"{name} is a plugin: {_of_plugin(name)}.")
        near = get_close_matches(name, STRATEGIES, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "give one of its strategies or a class path."
        raise ValueError(f"Avalanche has no strategy {name}: {hint}")
    cls = inspect.unwrap(load(name))  # a class that Avalanche gives up hides in a function
    from avalanche.training.templates.base import BaseTemplate

    if not (isinstance(cls, type) and issubclass(cls, BaseTemplate)):
        raise ValueError(f"{name} is no strategy: a class that extends avalanche's SupervisedTemplate.")
    for method in STRATEGIES.values():
        if f"{cls.__module__}.{cls.__qualname__}" == method.path:
            return strategy_class(method.name)
    return Method(cls.__name__, name, about=""), cls


def _of_plugin(name: str) -> str:
    """Where a plugin goes."""
    plugin = PLUGINS.get(name)
    if plugin is None:
        return "put it under plugins, beside a strategy such as Naive"
    if plugin.fails:
        return f"one that does not run here, for {plugin.fails}"
    return f"put it under plugins; it needs {plugin.needs.replace('`', '')}"


def make_strategy(
    name: str,
    init_args: Mapping[str, Any] | None = None,
    *,
    model: nn.Module,
    backbone: Backbone,
    stream: Stream,
    optimizer: MakeOptimizer,
    criterion: Any,
    epochs: int,
    batch_size: int,
    device: str | torch.device = "cpu",
    plugins: Sequence[Any] = (),
) -> Any:
    """A strategy of Avalanche's, or of one's own, ready to learn the first task.

    It prints and measures nothing. Two habits of Avalanche's stay as they are: at the first task the optimizer is
    given *every* parameter of the network, whatever ``optimizer`` put into it (a part that must not learn needs
    ``requires_grad_(False)``, or a group of its own with rate 0); and momentum goes on from task to task unless the
    loop is told ``reset_optimizer``.

    Args:
        name: as in `STRATEGIES`, or the class path of any strategy.
        init_args: its own arguments; ``class_path`` and ``init_args`` within them are made.
        model: the network with its heads, from `prepare_model`; strategies may wrap it, so look at
            ``strategy.model`` afterwards.
        backbone: the one inside it.
        stream: what it will learn.
        optimizer: makes an optimizer of parameters.
        criterion: the loss.
        epochs: over each task.
        batch_size: images of a step; also the default of ``eval_mb_size``.
        device: where the network learns.
        plugins: objects, names, or mappings with ``class_path`` and ``init_args``; a schedule is given its optimizer.

    Raises:
        ValueError: there is no such strategy, its arguments are wrong, or it would hang, fail or mislead with them.

    Example:
        >>> from tunnel_lightning.backbones import MLP
        >>> from tunnel_lightning.continual.models import prepare_model
        >>> from tunnel_lightning.continual.scenarios import Scenario, make_stream
        >>> from tunnel_lightning.data import Digits
        >>> stream = make_stream(Digits(), Scenario(tasks=5))
        >>> mlp = MLP(depth=2, width=8, num_classes=stream.outputs, input_shape=stream.input_shape)
        >>> strategy = make_strategy(
        ...     "EWC", {"ewc_lambda": 1.0}, model=prepare_model(mlp, stream), backbone=mlp, stream=stream,
        ...     optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05), criterion=nn.CrossEntropyLoss(),
        ...     epochs=1, batch_size=32,
        ... )
        >>> type(strategy).__name__
        'EWC'
    """
    method, cls = strategy_class(name)
    args = {key: plain_or_built(value) for key, value in (init_args or {}).items()}
    check_arguments(method, cls, args)
    made = [make_plugin(plugin) for plugin in plugins]
    evaluated = args.get("eval_every", -1) >= 0
    common = {
        "train_mb_size": batch_size,
        "train_epochs": epochs,
        "eval_mb_size": args.pop("eval_mb_size", batch_size),
        "device": device,
        "plugins": [plugin for plugin in made if not isinstance(plugin, Scheduled)],
        "evaluator": builders.quiet_evaluator(metrics=evaluated),
    }
    job = Job(cls, args, model, backbone, stream, optimizer, criterion, common)
    refuse(job, method)
    refuse_plugins(job, method.name, made)
    builder = _BUILDERS.get(method.name, builders.build) if method.about else builders.build
    try:
        with warnings.catch_warnings():
            # LaMAML calls its base class in a manner that Avalanche wants to end.
            warnings.filterwarnings("ignore", "Avalanche is transitioning")
            strategy = builder(job)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"{method.name} can't be made: {error}") from error
    strategy.plugins[:0] = [
        plugin.make(strategy.optimizer) for plugin in made if isinstance(plugin, Scheduled)
    ]
    # First of all: every memory takes its images after it.
    strategy.plugins.insert(0, Origins(stream.benchmark.train_stream))
    return strategy


def turns(strategy: Any, stream: Stream) -> list[tuple[int, Any]]:
    """What to train a strategy on, one after another, and which task is the last learnt after each.

    For ``JointTraining`` that is one turn with all tasks, for every other strategy one turn for each.

    Returns:
        ``(index of the last task learnt, what strategy.train is given)``.
    """
    from avalanche.training.supervised.joint_training import JointTraining

    experiences = stream.benchmark.train_stream
    if isinstance(strategy, JointTraining):
        return [(len(stream.tasks) - 1, list(experiences))]
    return [(task.index, experiences[task.index]) for task in stream.tasks]


def answering_model(strategy: Any) -> nn.Module:
    """The network that gives the strategy's own answers: ``strategy.model``, and what comes behind it.

    BiC corrects the scores, CoPE looks for the nearest prototype, StreamingLDA scores the features. For all others
    it is ``strategy.model`` itself. Ask for it anew at each measurement.
    """
    for plugin in strategy.plugins:
        kind = type(plugin).__name__
        if kind == "BiCPlugin" and not plugin.is_first_experience:
            return _Answers(strategy.model, plugin.bias_forward)
        if kind == "CoPEPlugin" and plugin.p_mem:
            prototypes = torch.cat([plugin.p_mem[output] for output in sorted(plugin.p_mem)])
            return _Answers(strategy.model, partial(torch.matmul, other=prototypes.T))
    if type(strategy).__name__ == "StreamingLDA":
        return _Answers(strategy.model, strategy.predict)
    return strategy.model


class _Answers(nn.Module):
    """A network with a last step behind it."""

    def __init__(self, model: nn.Module, last: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._last = last

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``[B, outputs]`` of images ``[B, C, H, W]``."""
        return self._last(self.model(x))
