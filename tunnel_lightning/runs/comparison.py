"""Reading the folder of a comparison of several runs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunnel_lightning.runs.analysis import (
    ANALYSIS_FOLDER,
    SimilarityMap,
    analysis_folder,
    load_analysis,
    read_json,
    read_similarity,
)
from tunnel_lightning.runs.files import run_id_of
from tunnel_lightning.runs.reader import Run, load_run
from tunnel_lightning.runs.schema import PROFILE_FILE, Row, RunError
from tunnel_lightning.runs.table import ProfileTable

COMPARISON_SCHEMA = 1
COMPARISON_FILE = "comparison.json"
PREDICTIONS_FILE = "predictions.csv"

ANALYSED, TRAINED = "analysis", "training"
"""Where a profile is from: an analysis, on test images, or the training, on validation images."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """A comparison folder, read; arrays are read on first use.

    Attributes:
        path: the folder.
        runs: the networks' rows, one `Run` for each, in the order they were given.
        summary: what ``comparison.json`` holds.
    """

    path: Path
    runs: list[Run]
    summary: dict[str, Any]

    @cached_property
    def similarity(self) -> dict[str, SimilarityMap]:
        """Similarity maps by name; layers are called ``RUN_ID:layer``."""
        return read_similarity(self.path)

    @cached_property
    def per_image(self) -> dict[str, NDArray[np.float64]]:
        """Columns ``accuracy_<group>`` of ``predictions.csv`` by group, each [N]; none where there is no file."""
        path = self.path / PREDICTIONS_FILE
        try:
            with path.open(encoding="utf-8", newline="") as file:
                lines = list(csv.DictReader(file))
            groups = [key for key in (lines[0] if lines else {}) if key.startswith("accuracy_")]
            return {g.removeprefix("accuracy_"): np.array([float(line[g]) for line in lines]) for g in groups}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, csv.Error) as error:
            raise RunError(f"{path} can't be read as a table ({error}): run compare again.") from None


def load_comparison(folder: str | Path) -> Comparison:
    """Read a comparison folder, as ``compare`` writes it.

    Raises:
        RunError: it is none, another version wrote it, or a file is broken.
    """
    folder = Path(folder)
    if not is_comparison(folder):
        raise RunError(f"{folder} holds no {COMPARISON_FILE}: give a folder that compare has written.")
    summary = read_json(folder / COMPARISON_FILE, COMPARISON_SCHEMA)
    by_run: dict[str, list[Row]] = {}
    for row in ProfileTable(folder / PROFILE_FILE).rows:
        by_run.setdefault(row.run_id, []).append(row)
    own = {each["run_id"]: each.get("dataset") for each in summary.get("runs", [])}
    runs = [Run(folder, by_run[i], own.get(i)) for i in own or by_run if i in by_run]
    return Comparison(folder, runs, summary)


def is_comparison(folder: str | Path) -> bool:
    """Whether a folder is one that ``compare`` has written."""
    return (Path(folder) / COMPARISON_FILE).is_file()


class Profile(NamedTuple):
    """The profile of one of several runs.

    Attributes:
        run_id: the run.
        rows: of each measure the last; none where the run was neither analysed nor watched in training.
        source: ``analysis`` or ``training``; empty without rows.
        dataset: the set the network was trained on; None without rows.
    """

    run_id: str
    rows: list[Row]
    source: str
    dataset: str | None


def profiles_of(
    folders: Sequence[str | Path], run_ids: Sequence[str] | None = None
) -> tuple[list[Profile], list[str]]:
    """Read the profiles of several runs, of one kind wherever that can be.

    An analysis scores probes on test images, the training on validation images and perhaps at another step. So
    that alike is compared with alike, analyses are taken if every run has one, else the last profiles of the
    training if every run has those, else of each run what there is. Runs without any profile don't count.

    Args:
        folders: run folders, or folders of analyses.
        run_ids: what the runs are called; by default as in their files.

    Returns:
        A profile for each folder, and what a reader must know of them, in sentences.

    Raises:
        RunError: a file can't be read.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> row = Row("mlp/version_0", 9, 1, -1, "val", "Glyphs", "l1", 1, "rank_cov", "rtol=1e-3", 12.0)
        >>> ProfileTable(folder / "profile.csv").append([row])
        >>> (profile,), notes = profiles_of([folder])
        >>> profile.run_id, profile.source
        ('mlp/version_0', 'training')
        >>> notes
        ['no run is analysed: profiles are the last ones taken in training, on validation images']
    """
    analysed = [_analysed(folder) for folder in folders]
    trained = [None if each else _trained(folder) for each, folder in zip(analysed, folders, strict=True)]
    found = [a or t for a, t in zip(analysed, trained, strict=True)]
    if any(trained) and any(analysed):
        live = [_trained(folder) for folder in folders]
        if all(each for each, there in zip(live, found, strict=True) if there):
            found = live
    names = run_ids or [
        each.run_id if each else run_id_of(folder) for each, folder in zip(found, folders, strict=True)
    ]
    profiles = [
        each._replace(run_id=name, rows=[row._replace(run_id=name) for row in each.rows])
        if each
        else Profile(name, [], "", None)
        for name, each in zip(names, found, strict=True)
    ]
    return profiles, _said(profiles, [name for name, each in zip(names, trained, strict=True) if each])


def _analysed(folder: str | Path) -> Profile | None:
    """The profile of the checkpoint that was analysed."""
    path = analysis_folder(folder)
    if path is None:
        return None
    found = load_analysis(path)
    step = found.summary.get("step")
    rows = [row for row in found.run.rows if row.step == step] or found.run.rows
    return Profile(found.run.id, _last(rows), ANALYSED, found.run.id_dataset) if rows else None


def _trained(folder: str | Path) -> Profile | None:
    """The last profile that was taken in training."""
    path = analysis_folder(folder)
    home = Path(folder) if path is None else path.parent if path.name == ANALYSIS_FOLDER else None
    if home is None or not (home / PROFILE_FILE).exists():
        return None
    run = load_run(home)
    return Profile(run.id, _last(run.rows), TRAINED, run.id_dataset) if run.rows else None


def _last(rows: Sequence[Row]) -> list[Row]:
    last: dict[tuple[str, ...], int] = {}
    for row in rows:
        key = row.dataset, row.split, row.measure, row.variant
        last[key] = max(row.step, last.get(key, row.step))
    return [row for row in rows if row.step == last[row.dataset, row.split, row.measure, row.variant]]


def _said(profiles: Sequence[Profile], not_analysed: Sequence[str]) -> list[str]:
    """What a reader must know of the profiles."""
    of = {
        source: [each.run_id for each in profiles if each.source == source]
        for source in (ANALYSED, TRAINED, "")
    }
    notes = []
    if of[ANALYSED] and of[TRAINED]:
        notes.append(
            f"profiles of two kinds, each network by itself, without means: analyses, on test images "
            f"({', '.join(of[ANALYSED])}), and the last ones taken in training, on validation images "
            f"({', '.join(of[TRAINED])})"
        )
    elif of[TRAINED]:
        some = len(not_analysed) < len(of[TRAINED])
        whose = f"{', '.join(not_analysed)}: not analysed, so all" if some else "no run is analysed:"
        notes.append(f"{whose} profiles are the last ones taken in training, on validation images")
    if of[""]:
        notes.append(f"{', '.join(of[''])}: neither analysed nor watched in training, so there is no profile")
    return notes
