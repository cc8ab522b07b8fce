"""Several networks on the same images, in one pass: how alike their layers are, and what each answers."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor

from tunnel_lightning.analysis.base import Subject, cannot_run, name_of
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.subject import load_run_subject, read_config
from tunnel_lightning.analysis.weights import FOLDER
from tunnel_lightning.data import ImageData
from tunnel_lightning.measures.sample import gib
from tunnel_lightning.measures.similarity import LayerSimilarity, SimilarityMap
from tunnel_lightning.runs import RunError
from tunnel_lightning.taps import Taps, TapSpec, quiet, untouched_rng

SPLIT = "test"
GIB = 2**30


@dataclass
class Member:
    """One network of a comparison.

    Attributes:
        run_id: its run, unlike any other's in the comparison.
        subject: the network.
        images: the images of the comparison, at its size, channels and normalisation; shared with the members
            that see them alike.
        answers: its outputs are the classes of these images.
        taps: its layers.
    """

    run_id: str
    subject: Subject
    images: ImageSet
    answers: bool
    taps: Taps

    @property
    def layers(self) -> list[str]:
        """Names of its layers in the map."""
        return [self.named(tap.name) for tap in self.taps.layers]

    def named(self, layer: str) -> str:
        """The name of a layer among those of all members."""
        return f"{self.run_id}:{layer}"


def gather(
    runs: Sequence[str | Path],
    data: LightningDataModule | None = None,
    ckpt: str = "last",
    spec: TapSpec | None = None,
    batch_size: int = 256,
) -> list[Member]:
    """The networks of several runs, each with its view of the same images.

    Args:
        runs: run folders, at least two.
        data: whose test images they see; by default those of the first run's own set.
        ckpt: which checkpoint of each run: ``best``, ``last``, or a path in the run folder.
        spec: which layers.
        batch_size: images of a batch.

    Raises:
        RunError: fewer than two runs, or one given twice.
        FileNotFoundError: a folder is no run, or has no such checkpoint.
        ValueError: a run can't be read, its network can't take the images, or ``ckpt`` is one file for all runs.
    """
    folders = [Path(run).resolve() for run in runs]
    twice = next((run for run, folder in zip(runs, folders, strict=True) if folders.count(folder) > 1), None)
    if twice is not None:
        raise RunError(f"The run {twice} is given twice: compare different runs.")
    if len(folders) < 2:
        raise RunError(f"compare needs at least two run folders, got {len(folders)}: name another run.")
    with untouched_rng():  # networks are made with random weights before theirs are read
        subjects = [load_run_subject(run, _of_each(Path(run), ckpt), ood=[]) for run in runs]
    made: dict[str, Any] = {}  # equal sets are read once
    for run, subject in zip(runs, subjects, strict=True):
        subject.data = made.setdefault(json.dumps(read_config(run)["data"], default=str), subject.data)
    shown: Any = data or subjects[0].data
    shown.prepare_data()
    views: dict[Any, ImageSet] = {}
    members: list[Member] = []
    for subject in subjects:
        key, make = _view(shown, subject)
        if key not in views:
            views[key] = ImageSet.of(make(), batch_size)
        run_id, number = subject.run_id, 1
        while run_id in {member.run_id for member in members}:
            number += 1
            run_id = f"{subject.run_id}-{number}"
        own: Any = subject.data
        members.append(
            Member(run_id, subject, views[key], _kind(own) == _kind(shown), _tap(subject, views[key], spec))
        )
    return members


def _of_each(run: Path, ckpt: str) -> str | Path:
    """The checkpoint of one of several runs: a path starts in its folder, so that each run has its own."""
    if ckpt in ("best", "last"):
        return ckpt
    if Path(ckpt).is_absolute() or ".." in Path(ckpt).parts:
        raise ValueError(
            f"ckpt {ckpt!r} would be one file for all runs: give best, last, or a path in each run folder, such as "
            "checkpoints/last.ckpt"
        )
    return next((path for path in (run / ckpt, run / FOLDER / ckpt) if path.is_file()), run / ckpt)


def _view(shown: LightningDataModule, subject: Subject) -> tuple[Any, Callable[[], LightningDataModule]]:
    """How a network sees the images: a key, equal for those that see them alike, and what makes its view."""
    own: Any = subject.data
    if not isinstance(shown, ImageData):
        return None, lambda: shown
    kept = own if isinstance(own, ImageData) else shown
    key = tuple(getattr(subject.network, "input_shape", own.input_shape)), kept.mean, kept.std
    if key == (shown.input_shape, shown.mean, shown.std):
        return key, lambda: shown

    def make() -> LightningDataModule:
        view = copy.deepcopy(shown)
        view.adapt(*key)
        return view

    return key, make


def _kind(data: LightningDataModule) -> tuple[Any, ...]:
    """What two sets have in common if the outputs for one are answers to the other."""
    names, count = (getattr(data, key, None) for key in ("class_names", "num_classes"))
    return name_of(data), count, list(names) if names else None


def _tap(subject: Subject, images: ImageSet, spec: TapSpec | None) -> Taps:
    taps = Taps(subject.network, spec)
    try:
        taps.dry_run(images.example)
    except RuntimeError as error:
        raise ValueError(cannot_run(subject.run_id, images, error, subject.network)) from error
    return taps


class Seen(NamedTuple):
    """What the pass found.

    Attributes:
        similarity: linear CKA of all layers of all networks.
        log_probabilities: of each member that answers, by its position: logarithms of class probabilities
            ``[N, C]`` float32.
        target: class indices ``[N]``.
    """

    similarity: SimilarityMap
    log_probabilities: dict[int, NDArray[np.float32]]
    target: NDArray[np.int64]


def see(
    members: Sequence[Member],
    images: int | None,
    fabric: Fabric,
    progress: Callable[[str, int, int], None] | None = None,
    memory_limit: int = 8 * GIB,
) -> Seen:
    """One quiet pass of all networks over the same images.

    Raises:
        ValueError: networks, features, sums and answers need more than ``memory_limit`` bytes.
    """
    check_memory(members, images, memory_limit)
    views = {id(member.images): member.images.batches(SPLIT, images) for member in members}
    total = len(next(iter(views.values())))
    similarity = LayerSimilarity(grams=members[0].taps.spec.pool == "gram")
    answers: dict[int, list[Tensor]] = {i: [] for i, member in enumerate(members) if member.answers}
    target: list[Tensor] = []
    what = f"{members[0].images.name} {SPLIT}, {len(members)} networks"
    with ExitStack() as stack:
        for member in members:
            stack.enter_context(quiet(member.subject.model.to(fabric.device)))
        for done, batch in enumerate(zip(*views.values(), strict=True)):
            shown = {view: x.to(fabric.device) for view, (x, _) in zip(views, batch, strict=True)}
            features: dict[str, Tensor] = {}
            for i, member in enumerate(members):
                member.taps.arm()
                try:
                    with fabric.autocast():
                        output = member.subject.model(shown[id(member.images)])
                    features |= {member.named(name): x for name, x in member.taps.take().items()}
                finally:
                    member.taps.disarm()
                if i in answers:
                    answers[i].append(output.float().log_softmax(1))
            similarity.update(features)
            target.append(batch[0][1].cpu())
            if progress is not None:
                progress(what, done + 1, total)
    # In the order of the set, so that an image has the same number in every comparison.
    order = members[0].images.numbers(SPLIT, images).argsort()
    found = {i: torch.cat(each).cpu()[order].numpy() for i, each in answers.items()}
    return Seen(similarity.compute(), found, torch.cat(target)[order].numpy())


def check_memory(members: Sequence[Member], images: int | None, memory_limit: int) -> None:
    """Refuse what does not fit, before the first batch.

    Raises:
        ValueError: it does not; the sentence says what takes how much, and the options that lower it.
    """
    batch, grams = members[0].images.batch_size, members[0].taps.spec.pool == "gram"
    taps = [tap for member in members for tap in member.taps.layers]
    models = [member.subject.model for member in members]
    answering = sum(member.answers for member in members)
    parts = {
        f"{len(members)} networks": sum(
            tensor.nbytes for model in models for tensor in (*model.parameters(), *model.buffers())
        ),
        f"the features of {len(taps)} layers": 4 * batch * sum(batch if grams else tap.dim for tap in taps),
        "their similarity": LayerSimilarity.nbytes(len(taps), batch),
        "the answers": 4 * answering * members[0].images.size(SPLIT, images) * members[0].images.num_classes,
    }
    if sum(parts.values()) > memory_limit:
        most = ", ".join(f"{what} {gib(size)}" for what, size in parts.items())
        raise ValueError(
            f"the comparison needs {gib(sum(parts.values()))} ({most}) and the limit (memory_gb) is "
            f"{gib(memory_limit)}: compare fewer runs, fewer --taps.layers, or with --taps.pool avg"
        )
