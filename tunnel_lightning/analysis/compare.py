"""``compare RUN RUN ...``: how alike the layers of several networks are, and how their answers differ.

The comparison folder (`runs/compare/version_N`), read by the report without torch:

- ``comparison.json``: {"schema": 1, "title", "checkpoint" (as asked: "last", "best" or a path), "dataset",
  "split", "images", "runs": [{"run_id", "path", "group" (a group's key), "network": {"name", "parameters", "layers"},
  "checkpoint", "step", "epoch", "accuracy": {"value", "low", "high", "n"} | null, "blocks": [{"start", "end"
  (layers), "start_index", "end_index" (their indices as in ``profile.csv``, from 1), "size", "min_cka"}],
  "profile": "analysis" | "training" | null, "dataset" (it was trained on)}], "groups": [{"key": "a", "name",
  "run_ids"}], "blocks": {"map": "cka", "threshold"}, "tables": [{"title", "columns", "rows", "note"}],
  "settings", "versions", "machine", "seconds", "notes"}; NaN is null.
- ``profile.csv``: rows of all runs, the last of each measure: from their analyses if all have one, else from the
  training if all were watched, else from where there are any.
- ``similarity.npz``: map ``cka`` with names "RUN_ID:layer"; where a group has several networks of equal layers
  also ``cka_groups``, names "a:layer": means over pairs of different networks and their standard errors, by
  leaving out one network at a time.
- ``predictions.csv``: image, label, accuracy_a, accuracy_b, ... (over the networks of group a, b, ...).
"""

from __future__ import annotations

import json
import shutil
import time
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule

from tunnel_lightning.analysis.context import fabric_of
from tunnel_lightning.analysis.findings import Findings
from tunnel_lightning.analysis.predictions import Group, Predictions, group_runs
from tunnel_lightning.analysis.subject import read_config
from tunnel_lightning.analysis.together import GIB, SPLIT, Member, gather, see
from tunnel_lightning.runs import (
    ProfileTable,
    Row,
    RunError,
    SimilarityMap,
    machine_info,
    new_run_folder,
    package_versions,
)
from tunnel_lightning.runs.analysis import SIMILARITY_FILE, plain, write_arrays
from tunnel_lightning.runs.comparison import (
    COMPARISON_FILE,
    COMPARISON_SCHEMA,
    PREDICTIONS_FILE,
    Comparison,
    Profile,
    is_comparison,
    load_comparison,
    profiles_of,
)
from tunnel_lightning.runs.files import atomic
from tunnel_lightning.runs.schema import PROFILE_FILE
from tunnel_lightning.taps import TapSpec


def compare(
    runs: Sequence[str | Path],
    data: LightningDataModule | None = None,
    images: int | None = None,
    ckpt: str = "last",
    taps: TapSpec = TapSpec(),  # noqa: B008 - read only
    groups: Sequence[str] | None = None,
    threshold: float = 0.9,
    batch_size: int = 256,
    device: str = "auto",
    precision: str = "32-true",
    memory_gb: float = 8.0,
    out: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Compare the networks of several runs in one pass over the same test images.

    Minibatch linear CKA between all layers of all networks (Nguyen et al., ICLR 2021, eq. 2), their blocks and
    whether other networks have anything like them, their profiles, and their answers, image by
    image and class by class. Each network sees the images at its own size,
    channels and normalisation. Answers are compared among runs that were trained on the classes shown.

    Args:
        runs: run folders that ``fit`` made, at least two.
        data: whose test images are shown; by default those of the first run's own set.
        images: so many of them, spread evenly; None for all.
        ckpt: the checkpoint of each run: ``best``, ``last``, or a path in each run folder, such as
            ``checkpoints/epoch=10.ckpt``.
        taps: which layers, and how their outputs become features; ``pool="gram"`` takes all of an output.
        groups: a group's name for each run, in their order; by default runs whose configs differ in training
            seed, name, folder and what is watched only form a group.
        threshold: smallest CKA between any two layers of a block, above 0 and at most 1.
        batch_size: images of a batch.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: of the networks' forward passes, as Lightning names it (``32-true``, ``bf16-mixed``).
        memory_gb: most GiB that networks, features, sums and answers may take together.
        out: folder to write; by default the next ``version_N`` in ``compare``, beside the first run.
        progress: told ``(what, batches done, batches in all)``.

    Returns:
        The comparison, as :func:`tunnel_lightning.runs.load_comparison` reads it.

    Raises:
        RunError: fewer than two runs, one given twice, a profile that can't be read, or ``out`` holds something
            else.
        FileNotFoundError: a folder is no run, or has no such checkpoint.
        ValueError: runs that can't be read or shown the images, one checkpoint for all of them, groups of networks
            with different classes, a number out of its range, or more memory needed than allowed.
    """
    from tunnel_lightning.report import write_report  # plotly takes a while to import

    start = time.perf_counter()
    for name, value in (("images", images), ("batch_size", batch_size)):
        if value is not None and value < 4:
            raise ValueError(
                f"{name} must be at least 4, which the unbiased estimator of CKA needs, got {value}"
            )
    if not 0 < threshold <= 1:  # NaN neither
        raise ValueError(f"threshold is a CKA and must be above 0 and at most 1, got {threshold:g}")
    if not 0 < memory_gb < float("inf"):
        raise ValueError(f"memory_gb must be a number above 0, got {memory_gb:g}")
    if out is not None:
        _check_out(Path(out))
    fabric = fabric_of(device, precision)
    members = gather(runs, data, ckpt, taps, batch_size)
    configs = [read_config(run) for run in runs]
    kinds = group_runs([member.run_id for member in members], configs, groups)
    _check_groups(kinds, members, given=groups is not None)
    profiles, notes = _profiles(members)
    loaded = time.perf_counter()
    seen = see(members, images, fabric, progress, int(memory_gb * GIB))
    passed = time.perf_counter()
    found = Findings(members, kinds, seen, threshold)
    tables, maps = found.tables(), found.maps()
    settings = {
        **{f"taps.{key}": value for key, value in asdict(taps).items()},
        "images": len(seen.target),
        "batch_size": batch_size,
        "checkpoint": ckpt,
        "block_threshold": threshold,
        "groups": list(groups) if groups else "by config",
        "device": str(fabric.device),
        "precision": precision,
    }
    shown = members[0].images
    summary = {
        "schema": COMPARISON_SCHEMA,
        "title": f"{len(members)} networks on {shown.name}",
        "checkpoint": ckpt,
        "dataset": shown.name,
        "split": SPLIT,
        "images": len(seen.target),
        "runs": [
            {**run, "profile": profile.source or None, "dataset": profile.dataset}
            for run, profile in zip(found.runs(), profiles, strict=True)
        ],
        "groups": [
            {"key": each.key, "name": each.name, "run_ids": [members[i].run_id for i in each.members]}
            for each in kinds
        ],
        "blocks": {"map": "cka", "threshold": threshold},
        "tables": tables,
        "settings": settings,
        "versions": package_versions(),
        "machine": machine_info(),
        "seconds": {"load": loaded - start, "pass": passed - loaded, "tables": time.perf_counter() - passed},
        "notes": [*found.notes, *notes],
    }
    folder = Path(out) if out is not None else _next_folder(members[0])
    _write(folder, summary, [row for each in profiles for row in each.rows], maps, found.predictions)
    write_report(folder)
    return load_comparison(folder)


def _check_groups(groups: Sequence[Group], members: Sequence[Member], given: bool) -> None:
    """Refuse a group that was named and can't answer alike."""
    for group in groups if given else ():
        answers = {members[i].answers for i in group.members}
        if len(answers) > 1:
            without = next(members[i].run_id for i in group.members if not members[i].answers)
            raise ValueError(
                f"the group {group.name!r} mixes networks of different classes: {without} was not trained on those "
                f"of {members[0].images.name}; give it a group of its own"
            )


def _profiles(members: Sequence[Member]) -> tuple[list[Profile], list[str]]:
    """The profiles of the networks, and what a reader must know of them."""
    folders = [member.subject.run for member in members if member.subject.run is not None]
    profiles, notes = profiles_of(folders, [member.run_id for member in members])
    others = []
    for member, profile in zip(members, profiles, strict=True):
        step = max((row.step for row in profile.rows), default=member.subject.step)
        if step != member.subject.step:
            others.append(f"{member.run_id} (of step {step:,}, the network of step {member.subject.step:,})")
    if others:
        notes.append(f"profiles of other checkpoints than the one compared: {', '.join(others)}")
    return profiles, notes


def _check_out(out: Path) -> None:
    """Refuse a folder with files of something else; an earlier comparison is replaced."""
    empty = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    if not empty and not is_comparison(out):
        raise RunError(f"{out} holds something else than a comparison: give --out a new folder.")


def _next_folder(first: Member) -> Path:
    run = Path(first.subject.run or ".").resolve()
    return new_run_folder(run.parent.parent if run.name.startswith("version_") else run.parent, "compare")


def _write(
    folder: Path,
    summary: dict[str, Any],
    rows: Sequence[Row],
    maps: dict[str, SimilarityMap],
    predictions: Predictions | None,
) -> None:
    """Write the comparison; its summary comes last, so a folder with one is complete."""
    fresh = not folder.exists() or not any(folder.iterdir())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / COMPARISON_FILE).unlink(missing_ok=True)
        ProfileTable(folder / PROFILE_FILE).write(rows)
        arrays = {
            f"{name}/{key}": np.asarray(array)
            for name, each in maps.items()
            for key, array in each._asdict().items()
        }
        write_arrays(folder / SIMILARITY_FILE, arrays)
        (folder / PREDICTIONS_FILE).unlink(missing_ok=True)
        if predictions is not None:
            predictions.write(folder / PREDICTIONS_FILE)
        with atomic(folder / COMPARISON_FILE) as file:
            json.dump(plain(summary), file, indent=1, allow_nan=False)
            file.write("\n")
    except BaseException:
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def command(argv: list[str]) -> None:
    """``python -m tunnel_lightning compare RUN RUN ...``.

    Raises:
        ValueError: arguments that make no sense; and what :func:`compare` raises.
    """
    from rich.progress import Progress

    from tunnel_lightning.report.printed import print_comparison

    parser = ArgumentParser(
        prog="python -m tunnel_lightning compare",
        description="Compare the networks of several runs: their layers, their profiles and their answers.",
        exit_on_error=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="Run folders that `fit` made, at least two.")
    parser.add_function_arguments(compare, skip={"runs", "progress"})
    try:
        given = parser.instantiate_classes(parser.parse_args(argv))
    except ArgumentError as error:
        raise ValueError(" ".join(str(error).split())) from error
    with Progress(transient=True) as bar:
        task = bar.add_task("reading runs", total=None)

        def told(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        found = compare(**given.as_dict(), progress=told)
    print_comparison(found)
