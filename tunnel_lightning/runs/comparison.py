"""Reading the folder of a comparison of several runs."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunnel_lightning.runs.analysis import SimilarityMap, read_json, read_similarity
from tunnel_lightning.runs.reader import Run
from tunnel_lightning.runs.schema import PROFILE_FILE, Row, RunError
from tunnel_lightning.runs.table import ProfileTable

COMPARISON_SCHEMA = 1
COMPARISON_FILE = "comparison.json"
PREDICTIONS_FILE = "predictions.csv"


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
    ids = [each["run_id"] for each in summary.get("runs", [])]
    runs = [Run(folder, by_run[run_id]) for run_id in ids or by_run if run_id in by_run]
    return Comparison(folder, runs, summary)


def is_comparison(folder: str | Path) -> bool:
    """Whether a folder is one that ``compare`` has written."""
    return (Path(folder) / COMPARISON_FILE).is_file()
