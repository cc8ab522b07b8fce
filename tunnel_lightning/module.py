"""The classifier that is trained: backbone, loss, optimizer and schedule. It knows nothing of probes."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from os import PathLike
from typing import IO, Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.functional.classification import multiclass_accuracy
from typing_extensions import Self

from tunnel_lightning.backbones.base import Backbone, imported_class, plain, rebuild
from tunnel_lightning.backbones.early import EarlyExit

# Not Lightning's "hyper_parameters": what stands there silently beats the command line given with a
# checkpoint.
CHECKPOINT_KEY = "classifier"


class Classifier(LightningModule):
    """Trains a backbone to classify images, on batches (images [B, C, H, W], labels [B]).

    It logs ``train/loss`` and ``train/accuracy`` of the batch at hand every ``log_every_n_steps`` steps, and
    ``val/...`` and ``test/...`` once an epoch. With several validation loaders these are of the first one.

    A checkpoint holds class paths and arguments, never objects, so ``Classifier.load_from_checkpoint(path)``
    needs nothing else and reads with ``weights_only=True``.

    Args:
        backbone: the network.
        optimizer: makes the optimizer of the parameters it is given; in a config file, its class and
            arguments. By default SGD with lr 0.01 and momentum 0.9.
        lr_scheduler: makes the schedule of the optimizer it is given. One that takes ``total_steps``
            (``OneCycleLR``, ``WarmupCosine``) is stepped after each optimizer step and told how many the
            trainer will make; any other is stepped once an epoch.
        label_smoothing: of the cross-entropy, in [0, 1].
        compile: run the backbone through ``torch.compile``, from the first batch on.

    Raises:
        TypeError: the backbone is no ``Backbone``.
        ValueError: the schedule asks for the number of steps and the trainer has no end.

    Example:
        >>> from tunnel_lightning.backbones import MLP
        >>> classifier = Classifier(MLP(depth=2, width=8), optimizer=partial(torch.optim.SGD, lr=0.1))
        >>> classifier.config["optimizer"]
        {'class_path': 'torch.optim.sgd.SGD', 'init_args': {'lr': 0.1}}
        >>> classifier(torch.zeros(4, 3, 32, 32)).shape
        torch.Size([4, 10])
    """

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        label_smoothing: float = 0.0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, Backbone):
            raise TypeError(
                f"Classifier: the backbone is a {type(backbone).__name__}; it must be a "
                "tunnel_lightning.backbones.Backbone, so that a checkpoint can say how to make it again."
            )
        self.backbone = backbone
        # No default in the signature: jsonargparse would carry its lr and weight decay over to another class.
        self.optimizer = optimizer or partial(torch.optim.SGD, lr=0.01, momentum=0.9)
        self.lr_scheduler = lr_scheduler
        self.label_smoothing = label_smoothing
        self.compiled = compile
        self.metrics = nn.ModuleDict()
        for stage in ("val", "test"):
            self.metrics[f"{stage}/loss"] = MeanMetric()
            self.metrics[f"{stage}/accuracy"] = MulticlassAccuracy(
                backbone.num_classes, average="micro", validate_args=False
            )

    @property
    def config(self) -> dict[str, Any]:
        """What it was made of, in the form of a config file's ``model:`` section; plain values only.

        An optimizer or schedule whose class and arguments cannot be told (a function of one's own) stands as
        ``{"unknown": its name}``.
        """
        schedule = self.lr_scheduler
        return {
            "backbone": self.backbone.config,
            "optimizer": _describe(self.optimizer, Optimizer),
            "lr_scheduler": None if schedule is None else _describe(schedule, LRScheduler),
            "label_smoothing": self.label_smoothing,
            "compile": self.compiled,
        }

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of images [B, C, H, W]."""
        return self.backbone(x)

    def configure_model(self) -> None:
        """Compile in place: after the callbacks' ``setup`` has set its hooks, and with no change of names."""
        if self.compiled and self._trainer is not None and self.backbone._compiled_call_impl is None:
            self.backbone.compile()

    def configure_optimizers(self) -> Any:
        """The optimizer, and its schedule with the interval it is stepped at."""
        optimizer = self.optimizer(self.backbone.parameters())
        if self.lr_scheduler is None:
            return optimizer
        made, given = _class_and_arguments(self.lr_scheduler, LRScheduler) or (self.lr_scheduler, {})
        by_step = "total_steps" in inspect.signature(made).parameters
        steps = {}
        if by_step and given.get("total_steps") is None:
            total = self.trainer.estimated_stepping_batches
            if math.isinf(total):
                raise ValueError(
                    "Classifier: the schedule needs the number of steps, and the trainer has no end; set "
                    "trainer.max_epochs or trainer.max_steps."
                )
            steps["total_steps"] = int(total)
        scheduler = self.lr_scheduler(optimizer, **steps)
        entry = {"scheduler": scheduler, "interval": "step" if by_step else "epoch"}
        if isinstance(scheduler, ReduceLROnPlateau):
            entry["monitor"] = getattr(scheduler, "monitor", "val/loss")
        return {"optimizer": optimizer, "lr_scheduler": entry}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy of the batch."""
        x, y = batch
        logits = self.backbone(x)
        loss = F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)
        # A logged key costs 0.2 ms a step, and Lightning keeps only the values of these steps.
        period: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if period and (self.trainer.global_step + 1) % period == 0:
            accuracy = multiclass_accuracy(
                logits, y, self.backbone.num_classes, average="micro", validate_args=False
            )
            self.log_dict({"train/loss": loss.detach(), "train/accuracy": accuracy})
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count the batch in the validation scores."""
        if dataloader_idx == 0:
            self._count("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count the batch in the test scores."""
        if dataloader_idx == 0:
            self._count("test", batch)

    def on_validation_epoch_end(self) -> None:
        """Log the validation scores."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the test scores."""
        self._log_scores("test")

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Of a batch of images, with labels or without: ``probabilities`` [B, num_classes], ``label`` [B].

        Of a network with early exits also ``exit`` [B], where each image left, and ``flops`` [B], what it took.
        """
        x = batch if isinstance(batch, Tensor) else batch[0]
        probabilities = self(x).float().softmax(dim=1)
        found = {"probabilities": probabilities, "label": probabilities.argmax(dim=1)}
        if isinstance(self.backbone, EarlyExit) and self.backbone.taken is not None:
            taken = self.backbone.taken
            found |= {"exit": taken, "flops": torch.tensor(self.backbone.costs, device=taken.device)[taken]}
        return found

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what makes the module again."""
        checkpoint[CHECKPOINT_KEY] = self.config

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | PathLike[str] | IO[bytes],
        map_location: Any = None,
        strict: bool = True,
        **kwargs: Any,
    ) -> Self:
        """The module of a checkpoint, made again and loaded, under ``weights_only=True``.

        Args:
            checkpoint_path: file, or an open one.
            map_location: as in ``torch.load``.
            strict: refuse a checkpoint with other parameters than the backbone's.
            kwargs: constructor arguments that replace the checkpoint's, for example ``optimizer``.

        Raises:
            ValueError: the file is no checkpoint of a ``Classifier``, or its backbone's class is not
                imported.
        """
        checkpoint = torch.load(checkpoint_path, map_location=map_location, weights_only=True)
        config = checkpoint.get(CHECKPOINT_KEY)
        if config is None:
            raise ValueError(
                f"{checkpoint_path} is no checkpoint of a Classifier: it lacks {CHECKPOINT_KEY!r}."
            )
        arguments = {**config, **kwargs}
        for name, make in (
            ("backbone", rebuild),
            ("optimizer", partial(_factory, "optimizer", Optimizer)),
            ("lr_scheduler", partial(_factory, "lr_scheduler", LRScheduler)),
        ):
            if name not in kwargs and arguments[name] is not None:
                arguments[name] = make(arguments[name])
        module = cls(**arguments)
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"], strict=strict)
        return module.to(next(iter(checkpoint["state_dict"].values())).device)

    def _count(self, stage: str, batch: tuple[Tensor, Tensor]) -> None:
        x, y = batch
        logits = self.backbone(x)
        loss = F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)
        mean_loss: Any = self.metrics[f"{stage}/loss"]
        accuracy: Any = self.metrics[f"{stage}/accuracy"]
        mean_loss.update(loss, weight=len(y))
        accuracy.update(logits, y)

    def _log_scores(self, stage: str) -> None:
        metric: Any
        for name, metric in self.metrics.items():
            if name.startswith(stage):
                self.log(name, metric, prog_bar=True)  # the metric itself: Lightning sums it over processes


class WarmupCosine(LambdaLR):
    """Learning rate that rises linearly from 0, then falls along half a cosine to 0, step by step.

    At step t of T, with W = ``warmup`` * T: (t + 1) / (W + 1) while t < W, then
    (1 + cos(pi (t - W) / (T - W))) / 2 (Loshchilov & Hutter 2017, eq. 5, without restarts); times the
    optimizer's learning rate.

    Args:
        optimizer: the optimizer.
        total_steps: T; ``Classifier`` fills it in from the trainer.
        warmup: share of the steps, in [0, 1), in which the rate rises.
        last_epoch: the step to go on from.

    Raises:
        ValueError: no ``total_steps``, or a warm-up outside [0, 1).

    Example:
        >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
        >>> schedule = WarmupCosine(optimizer, total_steps=100)
        >>> schedule.get_last_lr()
        [0.1]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None = None,
        warmup: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if total_steps is None or total_steps < 1 or not 0 <= warmup < 1:
            raise ValueError(
                f"WarmupCosine: total_steps is {total_steps} and warmup {warmup}; give a positive number of "
                "steps and a share in [0, 1)."
            )
        rise = warmup * total_steps

        def factor(step: int) -> float:
            if step < rise:
                return (step + 1) / (rise + 1)
            return (1 + math.cos(math.pi * min((step - rise) / (total_steps - rise), 1.0))) / 2

        super().__init__(optimizer, factor, last_epoch)


def _class_and_arguments(factory: Callable, base: type) -> tuple[type, dict[str, Any]] | None:
    """Of a class, or a partial of one; jsonargparse's partial has the class among its arguments."""
    if not isinstance(factory, partial):
        return (factory, {}) if isinstance(factory, type) and issubclass(factory, base) else None
    parts = (factory.func, *factory.args)
    classes = [part for part in parts if isinstance(part, type) and issubclass(part, base)]
    return (classes[0], factory.keywords) if len(classes) == 1 else None


def _describe(factory: Callable, base: type) -> dict[str, Any]:
    """Class path and arguments of what a factory makes, or ``{"unknown": its name}``."""
    known = _class_and_arguments(factory, base)
    if known is not None:
        made, arguments = known
        try:
            return {"class_path": f"{made.__module__}.{made.__qualname__}", "init_args": plain(arguments)}
        except TypeError:
            pass  # an argument that a checkpoint cannot keep
    return {"unknown": getattr(factory, "__qualname__", repr(factory))}


def _factory(role: str, base: type, config: dict[str, Any]) -> Callable:
    """The factory that ``_describe`` described; one unknown raises when it is needed, not before."""
    if "unknown" not in config:
        return partial(imported_class(config["class_path"], base), **config["init_args"])

    def missing(*_: Any, **__: Any) -> None:
        raise ValueError(
            f"The checkpoint does not keep its {role} ({config['unknown']}); pass it: "
            f"Classifier.load_from_checkpoint(path, {role}=...)."
        )

    missing.__qualname__ = config["unknown"]  # so that the next checkpoint names it too
    return missing
