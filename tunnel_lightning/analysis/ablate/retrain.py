"""Parts of a network trained again from their first weights while the others are frozen."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from tunnel_lightning.analysis.ablate.evaluate import Bench, Seen
from tunnel_lightning.analysis.ablate.interventions import Cut, Where, named
from tunnel_lightning.analysis.base import Subject
from tunnel_lightning.analysis.subject import read_config
from tunnel_lightning.module import Classifier
from tunnel_lightning.surgery import Sections, State, frozen, rewind
from tunnel_lightning.taps import untouched_rng

CARRIED = ("gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches")
"""What of the run's trainer decides what a step does."""


class Part(NamedTuple):
    """What is put back to its first weights and what is frozen, for one training.

    Attributes:
        name: of the row.
        reset: which of ``extractor``, ``tunnel`` and ``head`` begin at their first weights.
        frozen: which do not learn.
        asks: what it is done for.
    """

    name: str
    reset: tuple[str, ...]
    frozen: tuple[str, ...]
    asks: str


PARTS = (
    Part(
        "tunnel and head anew", ("tunnel", "head"), ("extractor",),
        "the trained extractor, frozen; tunnel and head learn again: is the tunnel found again?",
    ),
    Part(
        "extractor anew", ("extractor",), ("tunnel", "head"),
        "the trained tunnel and head, frozen; the extractor learns again: can it learn to feed them?",
    ),
    Part(
        "head alone", ("tunnel", "head"), ("extractor", "tunnel"),
        "the trained extractor under a tunnel that stays at its first weights; the head learns again: what is left "
        "of the tunnel's work without its training?",
    ),
    Part(
        "untrained tunnel", ("extractor", "tunnel", "head"), ("tunnel",),
        "all at their first weights, the tunnel stays there: does the tunnel have to learn at all?",
    ),
    Part(
        "all anew", ("extractor", "tunnel", "head"), (),
        "all at their first weights, nothing frozen: what these epochs give by themselves",
    ),
)  # fmt: skip
"""The trainings, in the order in which they are done."""


@dataclass(frozen=True)
class Retraining:
    """All that the trainings of a run share.

    Attributes:
        bench: the network and its test images.
        parts: its sections.
        now: its state.
        first: its first weights.
        cut: where the tunnel starts.
        epochs: of each training.
        seed: of dropout and of loaders that draw from the global random state.
    """

    bench: Bench
    parts: Sections
    now: State
    first: State
    cut: Cut
    epochs: int
    seed: int

    def indices(self, names: Sequence[str]) -> list[int]:
        """Sections of several of ``extractor``, ``tunnel`` and ``head``."""
        count = len(self.parts)
        where = {
            "extractor": range(1, self.cut.start),
            "tunnel": range(self.cut.start, count + 1),
            "head": range(count + 1, count + 2),
        }
        return [index for name in names for index in where[name]]

    def where(self, part: Part) -> Where:
        """What a training is done to: the sections that learn."""
        learn = [i for i in self.indices(("extractor", "tunnel")) if i not in self.indices(part.frozen)]
        first, last = (learn[0], learn[-1]) if learn else (0, 0)
        layers = named(self.parts, first, last) if learn else self.parts.head.name
        return Where("retrain", "part", layers, first, last, f"{part.name}; {self.cut.rules}")

    def trained(self, part: Part) -> dict[str, Seen]:
        """Train, and look at the network that comes out; the subject's own is left alone.

        Raises:
            ValueError: the run does not tell its optimizer.
        """
        subject = self.bench.subject
        classifier = classifier_of(subject)
        network = classifier.backbone
        network.load_state_dict(rewind(self.now, self.first, self.parts, self.indices(part.reset)))
        still = self.indices(part.frozen)
        data: Any = subject.data
        # Only a schedule that waits for the validation loss needs one.
        waits = "Plateau" in str(classifier.config["lr_scheduler"])
        val = data.val_dataloader() if waits else None
        with own_randomness(self.seed), frozen(network, self.parts, still) if still else nullcontext():
            trainer = Trainer(
                max_epochs=self.epochs,
                accelerator=self.bench.device.type if self.bench.device.type != "cuda" else "gpu",
                devices=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                limit_val_batches=1.0 if waits else 0,
                callbacks=[_Tell(self.bench, part.name)],
                **carried(subject),
            )
            with interruptible(trainer):
                trainer.fit(classifier, train_dataloaders=data.train_dataloader(), val_dataloaders=val)
        network.to(self.bench.device).eval()
        return self.bench.under(model=network)


def classifier_of(subject: Subject) -> Classifier:
    """The run's classifier: its loss, optimizer and schedule, with a network of its own, not compiled.

    Raises:
        ValueError: the subject is no run, or its checkpoint does not tell its optimizer.
    """
    if subject.run is None or not subject.checkpoint:
        raise ValueError(
            f"retrain: {subject.title} is no run, so no optimizer and schedule are known to train it with: give a "
            "run folder that `fit` made"
        )
    path = Path(subject.checkpoint)
    inside = subject.run / path
    with untouched_rng():  # a network that is made draws its weights, before it is given others
        made = Classifier.load_from_checkpoint(
            inside if inside.is_file() else path, map_location="cpu", compile=False
        )
    if "unknown" in made.config["optimizer"]:
        raise ValueError(
            f"retrain: the checkpoint {path} does not keep its optimizer ({made.config['optimizer']['unknown']}): "
            "train the run with one that is named in its config"
        )
    return made


def carried(subject: Subject) -> dict[str, Any]:
    """Settings of the run's trainer that decide what a step does."""
    assert subject.run is not None, "only a run is trained again"
    told: Mapping[str, Any] = read_config(subject.run).get("trainer") or {}
    return {name: told[name] for name in CARRIED if told.get(name) is not None}


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Deterministic inside, and every random state and torch's own setting as they were afterwards."""
    before, warned = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    with untouched_rng():
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warned)


@contextmanager
def interruptible(trainer: Trainer) -> Iterator[None]:
    """An interruption of a training stays one: Lightning makes an exit of it, and is deaf to the next."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt from None


class _Tell(Callback):
    """Tells how far a training is."""

    def __init__(self, bench: Bench, name: str) -> None:
        self.bench, self.name = bench, name

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Say how many steps are done."""
        self.bench.progress(
            f"retrain: {self.name}", trainer.global_step, int(trainer.estimated_stepping_batches)
        )
