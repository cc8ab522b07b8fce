"""The parts of an analysis, done in turn; finished ones are kept, and in the end all are written as one folder."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from tunnel_lightning.analysis.context import Context
from tunnel_lightning.analysis.held import held_set
from tunnel_lightning.analysis.options import FITTED, SAMPLE_MAPS, STREAMED
from tunnel_lightning.analysis.over_time import (
    at_checkpoint,
    cost,
    spacing,
    taken,
    weight_changes,
    weights_of,
)
from tunnel_lightning.analysis.places import PARTS_FOLDER, alone, check_place
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.store import Part, Store, fingerprint, images_key, tensors_key
from tunnel_lightning.analysis.streamed import other_set, own_set
from tunnel_lightning.analysis.structure import additions, blocks
from tunnel_lightning.analysis.subject import reload
from tunnel_lightning.analysis.summary import summarise, transfer_rows
from tunnel_lightning.analysis.weights import FOLDER, torn_in
from tunnel_lightning.callbacks.places import all_places, flops_by_path, layer_infos
from tunnel_lightning.report import write_report
from tunnel_lightning.report.build import REPORT_FILE
from tunnel_lightning.runs import SimilarityMap, package_versions, write_analysis
from tunnel_lightning.runs.analysis import ANALYSIS_FOLDER, SIMILARITY_FILE, SPECTRUM_FILE, SUMMARY_FILE
from tunnel_lightning.runs.files import atomic
from tunnel_lightning.runs.schema import LAYERS_FILE, MANIFEST_FILE, PROFILE_FILE

WHAT = "an analysis"
FRESH_FOLDER = ".new"
"""Among the parts: where the files of an analysis are written before they take their places."""


@dataclass(frozen=True)
class Task:
    """A part to be done.

    Attributes:
        name: of its file.
        title: for people.
        images: the set it reads.
        measures: those that decide what it finds, of the options'.
        do: makes it.
    """

    name: str
    title: str
    images: ImageSet
    measures: Sequence[str]
    do: Callable[[], Part]


def tasks_of(context: Context) -> list[Task]:
    """The parts of an analysis in the order in which they are done."""
    wants, own = context.options.wants, context.own

    def task(kind: str, images: ImageSet, measures: Sequence[str], make: Callable[[], Part]) -> Task:
        title = f"{images.name}: {', '.join(wants(*measures)) or 'accuracy'}"
        return Task(f"{kind}-{images.name}", title, images, measures, make)

    found = [task("profile", own, STREAMED, partial(own_set, context))]
    if wants("ridge"):
        for images in context.others:
            found.append(task("transfer", images, ("ridge",), partial(other_set, context, images)))
    if wants("additions"):
        found.append(task("additions", own, ("additions",), partial(additions, context)))
    if wants("blocks"):
        found.append(task("blocks", own, ("blocks",), partial(blocks, context)))
    for images in (own, *context.others):
        measures = (*FITTED, "knn", "tsne", *SAMPLE_MAPS) if images is own else FITTED
        if wants(*measures):
            found.append(task("held", images, measures, partial(held_set, context, images)))
    return found


def perform(context: Context, folder: Path, checkpoints: Sequence[Path] = ()) -> None:
    """Measure everything, part by part, and write the analysis folder.

    A part that was finished before, of the same network, images and settings, is read and not measured again.

    Args:
        context: the analysis.
        folder: where it is written.
        checkpoints: of the network's run, in order, for the development over time.

    Raises:
        ValueError: the folder is a run's own or holds something else, or another analysis writes to it.
        OSError: it can't be written; a former analysis is still there then, as it was.
    """
    check_place(folder, WHAT, is_ours, ANALYSIS_FOLDER)
    flops = flops_by_path(context.model, context.subject.network, context.example)
    with alone(folder, WHAT) if context.fabric.is_global_zero else nullcontext():
        store = Store(folder / PARTS_FOLDER)
        parts = [finish(context, store, task) for task in tasks_of(context)]
        if checkpoints:
            parts += develop(context, store, checkpoints)
        if context.fabric.is_global_zero:
            write(context, folder, parts, flops)
        context.fabric.barrier("written")


def is_ours(folder: Path) -> bool:
    """Whether a folder holds a finished analysis, of whatever version."""
    return _is_summary(folder / SUMMARY_FILE)


def _is_summary(path: Path) -> bool:
    """Whether a file is the summary of an analysis, of whatever version."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"schema", "run_id"} <= found.keys()


def finish(context: Context, store: Store, task: Task) -> Part:
    """A part, from the store where it was finished before; kept there when it is done now."""
    key = key_of(context, task)
    found = store.load(task.name, key)
    if found is None:
        before, context.notes, context.seconds = context.notes, [], {}
        start = time.perf_counter()
        found = task.do()
        seconds = time.perf_counter() - start
        steps = {f"{task.title}: {step}": value for step, value in context.seconds.items()}
        found.seconds = {task.title: seconds, **steps}
        found.extra["notes"], context.notes = context.notes, before
        found.extra["device"] = str(context.fabric.device)
        if context.fabric.is_global_zero:
            store.save(task.name, key, found)
        context.fabric.barrier(task.name)  # the others look for the next part when this one is there
        context.progress(f"{seconds:7.1f} s  {task.title}", 0, 0)
    else:
        context.progress(f"     kept  {task.title}", 0, 0)
    for note in found.extra["notes"]:
        context.note(note)
    return found


def key_of(context: Context, task: Task) -> str:
    """A short text that changes with everything that decides what a part finds."""
    subject, options = context.subject, context.options
    settings = {**options.settings(), "measures": options.wants(*task.measures)}
    if "tsne" not in settings["measures"]:
        del settings["pictures"]
    return fingerprint(
        package_versions(),  # which the summary states for all parts
        settings,
        context.precision,
        (subject.run_id, subject.step, subject.epoch, subject.matches),
        str(subject.model),
        tensors_key(subject.model.state_dict()),
        images_key(task.images),
    )


def tasks_at_checkpoint(context: Context) -> list[Task]:
    """The parts of the checkpoint that the network holds now, which is not the analysed one."""
    step, wants = f"step {context.subject.step}", context.options.wants
    measures = wants("ridge", "ranks")
    title = f"{step}: {', '.join(measures) or 'accuracy'}"
    found = [Task(step, title, context.own, measures, partial(at_checkpoint, context))]
    for images in context.others if wants("ridge") else ():
        make = partial(other_set, context, images)
        found.append(
            Task(f"{step} transfer-{images.name}", f"{step}: {images.name}: ridge", images, ("ridge",), make)
        )
    return found


def develop(context: Context, store: Store, checkpoints: Sequence[Path]) -> list[Part]:
    """The profile at every checkpoint; the network holds the analysed one again afterwards.

    Ridge probes and ranks on the in-distribution set, ridge probes on the others, each set a part of its own, and how
    far the weights moved since the checkpoint before. ``best.ckpt`` is left out, see :func:`taken`, and so are files
    that can't be read.

    Args:
        context: the analysis, of a run.
        store: where finished parts are kept.
        checkpoints: of the run, one for each step.
    """
    subject = context.subject
    assert subject.run is not None, "only a run has checkpoints"
    for path in torn_in(subject.run):
        context.note(
            f"{FOLDER}/{path.name} can't be read as a checkpoint and is left out of the development: a run that is "
            "killed while it writes leaves such a file"
        )
    parts: list[Part] = []
    analysed, step = subject.run / subject.checkpoint, subject.step
    checkpoints = taken(checkpoints, analysed)
    if len(checkpoints) < 2:
        context.note("one checkpoint, so nothing over time: train with `fit --keep_every N` to keep more")
        return parts
    before: dict[str, Tensor] | None = None
    steps: list[int] = []
    measures = context.options.wants("ridge", "ranks")
    absent = {name: what for name, what in (("ridge", "probes"), ("ranks", "ranks")) if name not in measures}
    if absent:
        context.note(
            f"no {' or '.join(absent.values())} over time: of each checkpoint only ridge probes and ranks are "
            f"measured, and the measures leave out {' and '.join(absent)}"
        )
    context.progress(cost(context, len(checkpoints) - 1), 0, 0)
    try:
        for path in checkpoints:
            reload(subject, path)
            steps.append(subject.step)
            if subject.step != step:
                context.prefix = f"step {subject.step}: "
                found = [finish(context, store, task) for task in tasks_at_checkpoint(context)]
                parts += [*found, Part(transfer_rows(context, [row for part in found for row in part.rows]))]
            after = weights_of(context)
            if before is not None:
                parts.append(Part(weight_changes(context, before, after)))
            before = after
    finally:
        context.prefix = ""
        reload(subject, analysed)
    if uneven := spacing(steps):
        context.note(uneven)
    return parts


def write(context: Context, folder: Path, parts: Sequence[Part], flops: Mapping[str, int]) -> None:
    """Write the files of the analysis and its page, all of them before any takes its place."""
    rows = [row for part in parts for row in part.rows]
    rows += transfer_rows(context, rows)
    # The in-distribution set first: who reads the table without the summary takes it for that.
    own = context.own.name
    rows.sort(key=lambda r: (r.step, r.dataset != own, r.dataset, r.split, r.measure, r.variant, r.index))
    arrays = {key: array for part in parts for key, array in part.arrays.items()}
    with fresh(folder) as beside:
        write_analysis(
            beside,
            rows,
            layer_infos(all_places(context.taps), flops),
            maps_of(arrays),
            {key: array for key, array in arrays.items() if "|" in key},
            {key.removeprefix("tsne/"): array for key, array in arrays.items() if key.startswith("tsne/")},
            summarise(context, rows, parts, flops.get("", 0)),
        )
        write_report([beside], beside / REPORT_FILE)
        take_place(beside, folder)


@contextmanager
def fresh(folder: Path) -> Iterator[Path]:
    """An empty folder to write an analysis to, in the same file system as the one it is for; it goes afterwards.

    It has the name of that one, and the profile and manifest of its run beside it, which the page tells of.
    """
    home = folder / PARTS_FOLDER / FRESH_FOLDER
    shutil.rmtree(home, ignore_errors=True)  # of a process that was killed
    beside = home / (folder.name or "here")
    try:
        beside.mkdir(parents=True)
        for name in (PROFILE_FILE, MANIFEST_FILE):
            if (folder.parent / name).is_file():
                with atomic(home / name, "wb") as file:
                    file.write((folder.parent / name).read_bytes())
        yield beside
    finally:
        shutil.rmtree(home, ignore_errors=True)


def take_place(beside: Path, folder: Path) -> None:
    """Move the files of an analysis to their places; what a former one has and this one has not is removed.

    The summary goes first and comes last, so that a folder with one is complete.
    """
    (folder / SUMMARY_FILE).unlink(missing_ok=True)
    for name in (PROFILE_FILE, LAYERS_FILE, SIMILARITY_FILE, SPECTRUM_FILE, REPORT_FILE, SUMMARY_FILE):
        if (beside / name).exists():
            (beside / name).replace(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def maps_of(arrays: Mapping[str, NDArray[Any]]) -> dict[str, SimilarityMap]:
    """The similarity maps among the arrays of all parts."""
    names = [
        key.removesuffix("/value") for key in arrays if key.endswith("/value") and not key.startswith("tsne/")
    ]
    return {
        name: SimilarityMap(
            [str(layer) for layer in arrays[f"{name}/names"]], arrays[f"{name}/value"], arrays[f"{name}/se"]
        )
        for name in names
    }
