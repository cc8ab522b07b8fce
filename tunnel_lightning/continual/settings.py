"""What a continual run is asked for, and how it is written down: plain values that a file can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tunnel_lightning.continual.names import load
from tunnel_lightning.continual.scenarios import Scenario
from tunnel_lightning.taps import TapSpec

__all__ = ["ExitOptions", "MeterOptions", "Settings", "SweepOptions", "load", "named"]

FEWEST = 4
"""Images of a task that can be measured on: unbiased CKA takes no fewer, see ``continual.meter``."""


@dataclass
class MeterOptions:
    """What is measured in every layer, before the first task and after each.

    Attributes:
        train_images: images of each task's training part that probes are fitted on; drawn once, the same every time.
        test_images: images of each task's test part that everything is scored on.
        reference_images: of those, so many whose features are kept as they were when the task was learnt.
        probes: kinds of probe: ``fixed`` (fitted when the task was learnt), ``refit_task``, ``refit_all`` (all
            classes of the stream), ``online`` (trained along with the network, never refitted).
        drift: whether each layer is compared with itself as it was when the task was learnt: CKA, subspace
            overlap, residual of the best linear map.
        ranks: whether ranks are taken.
    """

    train_images: int = 1000
    test_images: int = 500
    reference_images: int = 500
    probes: list[Literal["fixed", "refit_task", "refit_all", "online"]] = field(
        default_factory=lambda: ["fixed", "refit_task", "refit_all", "online"]
    )
    drift: bool = True
    ranks: bool = True

    def __post_init__(self) -> None:
        for name in ("train_images", "test_images", "reference_images"):
            least = FEWEST if name != "reference_images" or self.drift else 1
            if (value := getattr(self, name)) < least:
                raise ValueError(f"meter.{name} is {value}; give at least {least}.")


@dataclass
class SweepOptions:
    """What is tried on the network's snapshots after the last task.

    Attributes:
        swap: extractor of one task with the tunnel of another, at every cut (Masarczyk et al., 2023).
        rewind: blocks of layers put back to what they were after the first task, every contiguous one of up to 20
            layers (Ramasesh et al., 2021).
        tune_epochs: epochs of fine-tuning on the first task of the extractor of the last one, with the first
            task's tunnel and alone with a fresh head; 0 leaves it out.
        freeze: also trains the last task again, from the network as it was before it, with the first layers frozen,
            for every cut.
    """

    swap: bool = True
    rewind: bool = True
    tune_epochs: int = 0
    freeze: bool = False

    def __post_init__(self) -> None:
        if self.tune_epochs < 0:
            raise ValueError(f"sweeps.tune_epochs is {self.tune_epochs}; give 0, for none, or more.")


@dataclass
class ExitOptions:
    """Auxiliary classifiers at chosen layers (Szatkowski et al., 2025).

    Attributes:
        layers: layers with an exit, as ``taps.layers``.
        joint: whether exits train the network too; else their gradients stop at it.
        weight: of each exit's loss.
        thresholds: confidences at which a prediction leaves early; the table shows accuracy and cost at each.
    """

    layers: str | list[str] = "default"
    joint: bool = False
    weight: float = 1.0
    thresholds: list[float] = field(default_factory=lambda: [0.5, 0.7, 0.8, 0.9, 0.95, 0.99])

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"exits.weight is {self.weight}; give one above 0.")
        if not self.thresholds or not all(0 < each < 1 for each in self.thresholds):
            raise ValueError(f"exits.thresholds is {self.thresholds}; give confidences between 0 and 1.")


@dataclass
class Settings:
    """One sequence of tasks, learnt once: everything that decides its figures.

    Attributes:
        data: class path and arguments of an image set.
        scenario: how its classes or images become tasks.
        classic: class path and arguments of one of Avalanche's own benchmarks, in the place of ``data``.
        model: a backbone's and an optimizer's class path and arguments, and ``label_smoothing``.
        strategy: Avalanche's, by name or class path, with its arguments.
        plugins: Avalanche's plugins beside it, likewise.
        head: ``fixed``, ``incremental`` (grows with the classes) or ``multi`` (one for each task);
            ``auto``: ``multi`` for ``task_incremental``, else ``fixed``.
        epochs: over each task.
        batch_size: images of a step.
        reset_optimizer: whether momentum and the like start anew with each task.
        loop: ``native`` is the strategy's own, ``lightning`` a Trainer that drives it; ``auto`` takes the Trainer
            where ``trainer`` asks for something that the other can't do.
        trainer: arguments of that Trainer.
        taps: which layers are measured.
        meter: what is measured.
        sweeps: what is tried afterwards.
        exits: auxiliary classifiers; None for none.
        device: ``auto``, ``cpu`` or ``cuda``.
        num_workers: reading processes.
        seed: of the network, the order of the images and everything the strategy draws.
    """

    data: dict[str, Any] | None
    scenario: Scenario
    classic: dict[str, Any] | None
    model: dict[str, Any]
    strategy: dict[str, Any]
    plugins: list[dict[str, Any]]
    head: str
    epochs: int
    batch_size: int
    reset_optimizer: bool
    loop: str
    trainer: dict[str, Any]
    taps: TapSpec
    meter: MeterOptions
    sweeps: SweepOptions
    exits: ExitOptions | None
    device: str
    num_workers: int
    seed: int


def named(value: str | Mapping[str, Any]) -> dict[str, Any]:
    """``class_path`` and ``init_args`` of what stands in a file as a name or as both.

    Example:
        >>> named("Replay")
        {'class_path': 'Replay', 'init_args': {}}
    """
    if isinstance(value, str):
        return {"class_path": value, "init_args": {}}
    unknown = set(value) - {"class_path", "init_args"}
    if unknown or not isinstance(value.get("class_path"), str):
        raise ValueError(
            f"{dict(value)} names nothing: give a name, or class_path (a name) and init_args (its arguments)."
        )
    return {"class_path": value["class_path"], "init_args": dict(value.get("init_args") or {})}
