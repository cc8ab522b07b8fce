"""Two loops that train a strategy on one experience after another, with one result: its own, and Lightning's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning.pytorch.loggers import Logger

LoopName = Literal["native", "lightning"]
OnStep = Callable[[int, int], None]
"""Told after each step how many steps of this experience are done, and of how many (0: not known)."""

NATIVE_OPTIONS = frozenset({"logger", "log_every_n_steps"})
"""What of ``trainer:`` a strategy's own loop heeds too."""


class Loop:
    """The strategy's own loop, ``strategy.train``; and what both loops count and show.

    The loss of the batch at hand goes to the loggers as ``train/loss`` every ``log_every_n_steps`` steps, the first
    included. Both loops send it from the same place, so their curves are the same.

    Args:
        strategy: Avalanche's.
        loggers: Lightning's, for the training loss.
        log_every_n_steps: steps from one value to the next.
        num_workers: processes that read images.
        reset_optimizer: whether momentum and the like start anew with each experience.

    Attributes:
        name: ``native`` or ``lightning``.
        steps: steps so far, over all experiences.
        epochs: epochs so far, over all experiences.
        differs: why the weights may differ from those of the strategy's own loop; empty where they are the same.
    """

    name: LoopName = "native"
    differs = ""

    def __init__(
        self,
        strategy: Any,
        loggers: Iterable[Logger] = (),
        log_every_n_steps: int = 10,
        num_workers: int = 0,
        reset_optimizer: bool = False,
    ) -> None:
        if not isinstance(log_every_n_steps, int) or log_every_n_steps < 1:
            raise ValueError(f"trainer: log_every_n_steps is {log_every_n_steps}; give at least 1.")
        self.strategy = strategy
        self.loggers = list(loggers)
        self.log_every_n_steps = log_every_n_steps
        self.steps = self.epochs = 0
        self._arguments = {"num_workers": num_workers}
        if reset_optimizer:
            self._arguments["reset_optimizer_state"] = True

    def train(self, experience: Any, on_step: OnStep | None = None) -> None:
        """Learn one experience (for ``JointTraining``, all of them in a list).

        Args:
            experience: of the stream's ``train_stream``.
            on_step: told of each step.
        """
        with self._watched(on_step):
            self.strategy.train(experience, **self._arguments)

    def state_dict(self) -> dict[str, int]:
        """What a new loop goes on counting from."""
        return {"steps": self.steps, "epochs": self.epochs}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on counting from what :meth:`state_dict` returned."""
        self.steps, self.epochs = state["steps"], state["epochs"]

    @property
    def writer(self) -> Any:
        """TensorBoard's writer of the run folder, None without one. Use it for whatever else goes there.

        TensorBoard reads one file of events after the other and never goes back, so there must be but one.
        """
        from lightning.pytorch.loggers import TensorBoardLogger

        found = [logger for logger in self.loggers if isinstance(logger, TensorBoardLogger)]
        return found[0].experiment if found else None

    def close(self, status: str = "success") -> None:
        """Finish the loggers: not after each experience, for some can't be opened again."""
        for logger in self.loggers:
            logger.finalize(status)

    @contextmanager
    def _watched(self, on_step: OnStep | None) -> Iterator[None]:
        """Watch the strategy for the length of one training; before and after, its plugins are its own."""
        watch = _Watch(self, on_step)
        # First: a plugin may replace the loss after the step (periodic evaluation does).
        self.strategy.plugins.insert(0, watch)
        try:
            yield
        finally:
            self.strategy.plugins.remove(watch)


class _Watch:
    """Counts, logs and tells; a plugin by its methods' names, so that Avalanche need not be imported for it."""

    def __init__(self, loop: Loop, on_step: OnStep | None) -> None:
        self.loop, self.on_step = loop, on_step
        self.done, self.total = 0, -1

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.done, self.total = 0, -1

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        loop = self.loop
        loop.steps += 1
        self.done += 1
        if loop.loggers and (loop.steps == 1 or loop.steps % loop.log_every_n_steps == 0):
            metrics = {"train/loss": float(strategy.loss.detach())}
            for logger in loop.loggers:
                logger.log_metrics(metrics, step=loop.steps)
        if self.on_step is not None:
            if self.total < 0:  # not earlier: plugins may replace the loader until the first batch
                self.total = strategy.train_epochs * _length(strategy.dataloader)
            self.on_step(self.done, self.total)

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self.loop.epochs += 1

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        for logger in self.loop.loggers:
            logger.save()


def _length(loader: Any) -> int:
    """Batches of an epoch; 0 for a loader that does not know."""
    try:
        return len(loader)
    except TypeError:
        return 0


def why_native(strategy: Any) -> str | None:
    """Why a Trainer can't drive a strategy; None where it can."""
    from tunnel_lightning.continual.compat import avalanche

    avalanche()
    from avalanche.training.templates.base_sgd import BaseSGDTemplate
    from avalanche.training.templates.update_type import SGDUpdate

    taken_over = {
        "training_epoch": SGDUpdate,
        "_train_exp": BaseSGDTemplate,
        "optimizer_step": BaseSGDTemplate,
    }
    for method, base in taken_over.items():
        own = getattr(type(strategy), method, None) is not getattr(base, method)
        if own or method in vars(strategy):
            return f"it has a {method} of its own, which a Trainer would have to replace"
    if isinstance(strategy.optimizer, torch.optim.LBFGS):
        return "LBFGS computes each step several times, and Avalanche's plugins count on once"
    return None


def needs_trainer(options: Collection[str]) -> list[str]:
    """What of ``trainer:`` only Lightning's Trainer can do.

    Example:
        >>> needs_trainer({"logger": True, "precision": "bf16-mixed"})
        ['precision']
    """
    return sorted(set(options) - NATIVE_OPTIONS)


def choose_loop(strategy: Any, loop: str = "auto", options: Collection[str] = ()) -> LoopName:
    """The loop that trains a strategy.

    Args:
        strategy: Avalanche's.
        loop: ``native``, ``lightning``, or ``auto``: the Trainer where something is asked of it and it can drive the
            strategy. Else both would end in the same weights, and the strategy's own loop costs less a step.
        options: names of the arguments in ``trainer:``.

    Raises:
        TypeError: ``lightning`` for a strategy that no Trainer can drive.
        ValueError: a loop that does not exist.
    """
    if loop not in ("auto", "native", "lightning"):
        raise ValueError(f"loop: {loop!r} is none of auto, native, lightning.")
    if loop == "native" or (loop == "auto" and not needs_trainer(options)):
        return "native"
    why = why_native(strategy)
    if why is None:
        return "lightning"
    if loop == "lightning":
        raise TypeError(
            f"loop: lightning can't drive {type(strategy).__name__}: {why}; set loop: native or auto."
        )
    return "native"


def make_loop(
    strategy: Any,
    loop: str = "auto",
    trainer: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    num_workers: int = 0,
    reset_optimizer: bool = False,
) -> Loop:
    """The loop that trains a strategy, with its loggers.

    Args:
        strategy: Avalanche's.
        loop: as for :func:`choose_loop`.
        trainer: arguments of Lightning's Trainer, see ``continual.bridge.OPTIONS``; ``logger`` and ``callbacks``
            are objects, or mappings with ``class_path`` and ``init_args``. The strategy's own loop heeds ``logger``
            and ``log_every_n_steps``.
        folder: run folder with TensorBoard's events; None for none.
        num_workers: processes that read images.
        reset_optimizer: whether momentum and the like start anew with each experience.

    Raises:
        TypeError: ``lightning`` for a strategy that no Trainer can drive.
        ValueError: an argument of the Trainer that does not go with the strategy or its loop.

    Example:
        >>> from tunnel_lightning.continual.compat import avalanche
        >>> _ = avalanche()
        >>> from avalanche.training import Naive
        >>> model = torch.nn.Linear(2, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> strategy = Naive(model=model, optimizer=optimizer, evaluator=None)
        >>> make_loop(strategy, trainer={"gradient_clip_val": 1.0}).differs
        "gradient_clip_val=1.0 changes the weights: they are not those of Avalanche's own loop."
    """
    options = {key: value for key, value in (trainer or {}).items() if value is not None}
    chosen = choose_loop(strategy, loop, options)
    if chosen == "native" and (unheeded := needs_trainer(options)):
        why = why_native(strategy) if loop == "auto" else "loop: native has none"
        raise ValueError(
            f"trainer: {', '.join(unheeded)} needs Lightning's Trainer, which does not drive this run: {why}."
        )
    from tunnel_lightning.continual.bridge import LightningLoop, loggers_of

    shared = {
        "loggers": loggers_of(options.pop("logger", None), folder),
        "log_every_n_steps": options.pop("log_every_n_steps", 10),
        "num_workers": num_workers,
        "reset_optimizer": reset_optimizer,
    }
    return Loop(strategy, **shared) if chosen == "native" else LightningLoop(strategy, options, **shared)
