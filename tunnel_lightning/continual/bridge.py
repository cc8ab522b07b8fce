"""A Trainer of Lightning drives an Avalanche strategy, whose hooks fire where its own loop would fire them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, GradientAccumulationScheduler
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.profilers import PassThroughProfiler, Profiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from tunnel_lightning.continual.loops import Loop
from tunnel_lightning.continual.strategy_plugins import plain_or_built

OPTIONS = (
    *("logger", "log_every_n_steps", "callbacks", "precision", "gradient_clip_val"),
    *("gradient_clip_algorithm", "limit_train_batches", "deterministic", "detect_anomaly", "profiler"),
    *("accelerator", "devices", "accumulate_grad_batches"),
    *("enable_progress_bar", "enable_model_summary", "default_root_dir"),
)
"""Arguments of a Trainer that ``trainer:`` takes."""

FULL = ("32", "32-true")
PRECISIONS = (*FULL, "bf16", "bf16-mixed")
ONE_PRECISION = ("BiCPlugin", "ICaRLLossPlugin")
"""Plugins that put scores into tensors of another precision under autocast, which torch refuses in mid-training."""


class LightningLoop(Loop):
    """One Trainer for all experiences; its epochs and steps go on counting from one to the next.

    The optimizer is the strategy's, the batches come from the loader that the strategy and its plugins have made,
    and the hooks fire in the strategy's order, so the weights are those of its own loop to the last bit, unless
    an option says otherwise (``differs``). Lightning's checkpoints are off: they would lack the strategy's memory.

    Args:
        strategy: Avalanche's.
        options: arguments of the Trainer, of those in ``OPTIONS``.
        **shared: as for ``Loop``.

    Raises:
        ValueError: an option that does not go with the strategy.
    """

    name = "lightning"

    def __init__(self, strategy: Any, options: Mapping[str, Any] | None = None, **shared: Any) -> None:
        super().__init__(strategy, **shared)
        options = dict(options or {})
        if isinstance(options.get("profiler"), Mapping):
            options["profiler"] = _made(options["profiler"], Profiler)
        check_options(options, strategy)
        _quieten()
        self.differs = _differs(options)
        device = strategy.device
        given = {
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "profiler": _Unprofiled(),
            **options,
            "callbacks": _callbacks(options.get("callbacks")),
            "accelerator": device.type,
            "devices": 1 if device.type == "cpu" else [device.index or 0],
        }
        try:
            self.trainer = Trainer(
                **given,
                logger=self.loggers,
                log_every_n_steps=self.log_every_n_steps,
                strategy=_InPlace(device),
                max_epochs=0,
                enable_checkpointing=False,
                enable_autolog_hparams=False,
                use_distributed_sampler=False,
            )
        except (MisconfigurationException, TypeError, ValueError) as error:
            raise ValueError(f"trainer: {error}") from error
        self._bridge = Bridge(strategy)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on counting from what :meth:`state_dict` returned; the Trainer too."""
        super().load_state_dict(state)
        loop = self.trainer.fit_loop
        step = loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step
        loop.epoch_progress.reset()
        loop.epoch_progress.increment_by(self.epochs)
        step.reset()
        step.increment_by(self.steps)
        loop.epoch_loop._batches_that_stepped = self.steps

    def train(self, experience: Any, on_step: Any = None) -> None:
        """Learn one experience (for ``JointTraining``, all of them in a list); see ``Loop.train``."""
        self.strategy._train_exp = self._train_exp
        try:
            super().train(experience, on_step)
        finally:
            del self.strategy._train_exp

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        """In the place of ``BaseSGDTemplate._train_exp``."""
        strategy = self.strategy
        if strategy.train_epochs < 1:
            return
        strategy._before_training_epoch(**kwargs)  # the later ones at the end of the epoch before
        if strategy._stop_training:
            strategy._stop_training = False
            return
        self._bridge.begin(kwargs)
        self.trainer.fit_loop.max_epochs = self.trainer.current_epoch + strategy.train_epochs
        self._fit()

    def _fit(self) -> None:
        try:
            self.trainer.fit(self._bridge, _Batches(self.strategy))
        except SystemExit as stop:
            if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning makes an exit of Ctrl-C
                raise KeyboardInterrupt from None
            raise
        finally:
            self.trainer.loggers = self.loggers


class Bridge(LightningModule):
    """The strategy's step, in the pieces that a Trainer asks for.

    Avalanche clears the gradients before the forward pass and lets plugins compute some of their own after it;
    Lightning clears them after ``training_step``. So they are cleared here, and Lightning's turn does nothing.

    Attributes:
        model: the strategy's network, for callbacks.
    """

    def __init__(self, strategy: Any) -> None:
        super().__init__()
        self.strategy = strategy
        self.model = strategy.model
        self._kwargs: dict[str, Any] = {}
        self._epochs_left = 0

    def begin(self, kwargs: dict[str, Any]) -> None:
        """Get ready for an experience: by now plugins may have replaced the network."""
        self.model = self.strategy.model
        self._kwargs = kwargs
        self._epochs_left = self.strategy.train_epochs

    def configure_optimizers(self) -> Any:
        """The strategy's own."""
        return self.strategy.optimizer

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """End the epoch here if the strategy was told to stop."""
        return -1 if self.strategy._stop_training else None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The step of ``SGDUpdate.training_epoch`` up to the backward pass."""
        strategy, kwargs = self.strategy, self._kwargs
        strategy.mbatch = batch
        strategy._unpack_minibatch()
        strategy._before_training_iteration(**kwargs)
        strategy.optimizer.zero_grad()
        strategy.loss = strategy._make_empty_loss()
        strategy._before_forward(**kwargs)
        strategy.mb_output = strategy.forward()
        strategy._after_forward(**kwargs)
        strategy.loss += strategy.criterion()
        strategy._before_backward(**kwargs)
        loss: Tensor = strategy.loss
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The strategy's own, of ``strategy.loss``."""
        self.strategy.backward()

    def on_after_backward(self) -> None:
        """Pass on."""
        self.strategy._after_backward(**self._kwargs)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Pass on."""
        self.strategy._before_update(**self._kwargs)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Pass on."""
        self.strategy._after_update(**self._kwargs)
        self.strategy._after_training_iteration(**self._kwargs)

    def on_train_epoch_end(self) -> None:
        """Pass on; then what the strategy's loop does before the next epoch, stopping included."""
        strategy = self.strategy
        strategy._after_training_epoch(**self._kwargs)
        self._epochs_left -= 1
        if self._epochs_left == 0 or self.trainer.should_stop:
            return
        strategy._before_training_epoch(**self._kwargs)
        if strategy._stop_training:
            strategy._stop_training = False
            self.trainer.should_stop = True

    def teardown(self, stage: str) -> None:
        """Hide the loggers from a Trainer that is about to finish them: more experiences follow."""
        self.trainer.loggers = []

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing: the Trainer would clear what plugins may read before the first step."""

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Do nothing: ``training_step`` has cleared them."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; the one that the Trainer sets at every call of every hook, fast."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)


class _Batches:
    """The strategy's loader, as it is when an epoch begins.

    Lightning makes one iterator more than it uses; one that is not read draws nothing from the random state.
    """

    def __init__(self, strategy: Any) -> None:
        self.strategy = strategy

    def __iter__(self) -> Iterator[Any]:
        yield from self.strategy.dataloader

    def __len__(self) -> int:
        return len(self.strategy.dataloader)


class _InPlace(SingleDeviceStrategy):
    """Leaves everything where the Avalanche strategy has put it, or will: network, optimizer and batches."""

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        return batch

    def teardown(self) -> None:
        self.precision_plugin.teardown()
        assert self.accelerator is not None
        self.accelerator.teardown()


class _Unprofiled(PassThroughProfiler):
    """Lightning's profiler that does nothing, with nothing done for each of its thirty calls a step."""

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        return _NOTHING


_NOTHING = nullcontext()


def check_options(options: Mapping[str, Any], strategy: Any) -> None:
    """Refuse arguments of a Trainer that do not go with a strategy.

    Raises:
        ValueError: with the argument's name.

    Example:
        >>> check_options({"accumulate_grad_batches": 4}, None)
        Traceback (most recent call last):
        ...
        ValueError: trainer: accumulate_grad_batches is 4, but Avalanche's plugins act on every batch; give 1 and a larger batch_size.
    """  # noqa: E501
    if unknown := sorted(options.keys() - set(OPTIONS)):
        raise ValueError(
            f"trainer: {', '.join(unknown)} is not for a continual run, which sets epochs, data, checkpoints and "
            f"device itself; it takes {', '.join(OPTIONS)}."
        )
    if (batches := options.get("accumulate_grad_batches", 1)) != 1:
        raise ValueError(
            f"trainer: accumulate_grad_batches is {batches}, but Avalanche's plugins act on every batch; give 1 and "
            "a larger batch_size."
        )
    clip = options.get("gradient_clip_val")
    if clip is not None and not (_number(clip) and clip > 0):
        raise ValueError(f"trainer: gradient_clip_val is {clip}; give a number above 0, or leave it out.")
    limit = options.get("limit_train_batches")
    if limit is not None and not (_number(limit) and limit > 0 and (limit <= 1 or isinstance(limit, int))):
        raise ValueError(
            f"trainer: limit_train_batches is {limit}; give how many batches of an epoch, from 1, or a share of them "
            "above 0, up to 1.0."
        )
    if (devices := options.get("devices", 1)) not in (1, "1", "auto"):
        raise ValueError(f"trainer: devices is {devices}, but a strategy lives on one device; give 1.")
    kind = {"gpu": "cuda"}.get(options.get("accelerator", "auto"), options.get("accelerator", "auto"))
    if kind not in ("auto", strategy.device.type):
        raise ValueError(
            f"trainer: accelerator is {kind}, but the strategy is on {strategy.device}; set device."
        )
    if str(options.get("precision", "32")) not in PRECISIONS:
        raise ValueError(
            f"trainer: precision is {options['precision']}; give 32-true or bf16-mixed: plugins read gradients, "
            "which 16-mixed scales, and images of their own, which true half or double precision would not take."
        )
    if str(options.get("precision", "32")) not in FULL:
        for plugin in strategy.plugins:
            if type(plugin).__name__ in ONE_PRECISION:
                raise ValueError(
                    f"trainer: precision is {options['precision']}, but {type(strategy).__name__} with "
                    f"{type(plugin).__name__} mixes scores of both precisions and would fail; give 32-true."
                )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def loggers_of(given: Any, folder: Path | None) -> list[Logger]:
    """Loggers of a run: TensorBoard in its folder, then those that ``trainer: logger`` names."""
    own: list[Logger] = []
    if folder is not None:
        folder = Path(folder).absolute()
        # Seconds between what happens and what can be seen; by default 120, longer than a short run.
        own = [TensorBoardLogger(folder.parent, "", folder.name, default_hp_metric=False, flush_secs=10)]
    if given in (None, True, False):
        return own if given is not False else []
    return own + [_made(each, Logger) for each in _listed(given)]


def _callbacks(given: Any) -> list[Callback]:
    callbacks = [_made(each, Callback) for each in _listed(given)]
    for callback in callbacks:
        if isinstance(callback, (Checkpoint, GradientAccumulationScheduler)):
            raise ValueError(
                f"trainer: callbacks holds {type(callback).__name__}, which does not go with a strategy's memory and "
                "plugins; the run keeps its own state after each task."
            )
    return callbacks


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, Iterable) and not isinstance(value, Mapping) else [value]


def _made(value: Any, kind: type) -> Any:
    """An object, made of class path and arguments where it is not there yet."""
    if isinstance(value, Mapping):
        try:
            value = plain_or_built(value)
        except (ImportError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"trainer: {dict(value)} can't be made: {error}") from error
    if not isinstance(value, kind):
        raise ValueError(f"trainer: {value!r} is no {kind.__name__}.")
    return value


def _differs(options: Mapping[str, Any]) -> str:
    """Which options change the weights, in words."""
    changes = [
        f"{key}={options[key]}"
        for key in ("precision", "gradient_clip_val", "limit_train_batches")
        if key in options and not (key == "precision" and str(options[key]) in FULL)
    ]
    if not changes:
        return ""
    verb = "changes" if len(changes) == 1 else "change"
    return f"{', '.join(changes)} {verb} the weights: they are not those of Avalanche's own loop."


def _quieten() -> None:
    """Keep back what Lightning would say at each experience anew, and nothing else."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "Found .* module\\(s\\) in eval mode")
    warnings.filterwarnings(
        "ignore", "The number of training batches .* is smaller than the logging interval"
    )
    warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated")
