"""Writing and reading what ``trim`` found, ``RUN/trim/``: the one place that knows the format of its tables.

``trim.json`` says which cut was taken and what it keeps; ``curve.csv`` has a line for every cut, one for the raw
pixels (index 0) and one for the whole network (the last). The written network lies beside them.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunnel_lightning.runs.files import atomic
from tunnel_lightning.runs.schema import INPUT, NETWORK, RunError
from tunnel_lightning.runs.summaries import read_summary

TRIM_FOLDER = "trim"
TRIM_SCHEMA = 1
KIND = "trim"
SUMMARY_FILE = "trim.json"
CURVE_FILE = "curve.csv"

TEXTS = ("layer", "kind", "head")
"""Columns of ``curve.csv`` that hold texts; all others hold numbers, empty where there is none."""
FIXED = ("index", *TEXTS, "dim", "flops", "parameters", "val_accuracy", "accuracy")
"""Columns that are always there."""

_AGAIN = "run trim again"

Columns = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Trimming:
    """A trim, read.

    Attributes:
        path: its folder.
        curve: columns of ``curve.csv``: lists of texts, and arrays of shape [L + 2], the raw pixels first and the
            whole network last.
        summary: what ``trim.json`` holds.
    """

    path: Path
    curve: Columns
    summary: dict[str, Any]

    @property
    def cuts(self) -> NDArray[np.bool_]:
        """Which lines are cuts, shape [L + 2]: neither the raw pixels nor the whole network."""
        return np.array([name not in (INPUT, NETWORK) for name in self.curve["layer"]], dtype=bool)

    @property
    def sets(self) -> list[str]:
        """Names of the sets whose transfer was measured."""
        return [key.removeprefix("transfer:") for key in self.curve if key.startswith("transfer:")]

    @property
    def batches(self) -> list[int]:
        """Sizes of the batches whose latency was measured."""
        found = [key.removeprefix("latency_ms_") for key in self.curve if key.startswith("latency_ms_")]
        return [int(size) for size in found if size.isdecimal()]

    @property
    def chosen(self) -> int | None:
        """The line of the cut that was taken; None where there was none."""
        name = (self.summary.get("choice") or {}).get("layer")
        return self.curve["layer"].index(name) if name in self.curve["layer"] else None

    def at(self, column: str, line: int) -> float:
        """A number of a line; NaN where it was not measured."""
        values = self.curve.get(column)
        return float(values[line]) if values is not None else math.nan


def write_curve(folder: Path, columns: Mapping[str, Sequence[Any] | NDArray[Any]]) -> None:
    """Write ``curve.csv``, one line for each place; it takes the place of the one there when it is whole.

    Raises:
        ValueError: columns of several lengths.
    """
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of {CURVE_FILE} differ in length: {lengths}")
    with atomic(folder / CURVE_FILE) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for line in zip(*columns.values(), strict=True):
            writer.writerow(["" if _absent(each) else each for each in line])


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float | np.floating) and not math.isfinite(value))


def trim_folder(place: str | Path) -> Path | None:
    """The finished trim a folder is or holds; None where there is none.

    Example:
        >>> import tempfile
        >>> trim_folder(tempfile.mkdtemp()) is None
        True
    """
    for folder in (Path(place), Path(place) / TRIM_FOLDER):
        if (folder / SUMMARY_FILE).is_file() and (folder / CURVE_FILE).is_file():
            return folder
    return None


def load_trimming(place: str | Path) -> Trimming:
    """Read what ``trim`` found.

    Args:
        place: the run folder, or the folder of the trim in it.

    Raises:
        RunError: there is none there, it was not finished, another version wrote it, or a file is damaged.

    Example:
        >>> import tempfile
        >>> try:
        ...     load_trimming(tempfile.mkdtemp())
        ... except RunError as error:
        ...     print(str(error).partition("has ")[2])
        no finished trim (no trim/trim.json): make one with trim.
    """
    folder = trim_folder(place)
    if folder is None:
        raise RunError(f"{place} has no finished trim (no {TRIM_FOLDER}/{SUMMARY_FILE}): make one with trim.")
    summary = read_summary(folder / SUMMARY_FILE, KIND, TRIM_SCHEMA, "trim")
    for key in ("whole", "choice"):
        if not isinstance(summary.get(key), dict | None):
            raise RunError(f"{folder / SUMMARY_FILE} is damaged, its {key!r} is no object: {_AGAIN}.")
    curve = read_curve(folder)
    chosen = (summary.get("choice") or {}).get("layer")
    if chosen is not None and chosen not in curve["layer"]:
        raise RunError(
            f"{folder / SUMMARY_FILE} names the cut {chosen!r}, which {CURVE_FILE} beside it does not have: {_AGAIN}."
        )
    return Trimming(folder, curve, summary)


def read_curve(folder: Path) -> Columns:
    """Read ``curve.csv``.

    Raises:
        RunError: it is damaged.
    """
    path = folder / CURVE_FILE
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise RunError(f"{path} can't be read as a table ({error}): {_AGAIN}.") from None
    heads, *rows = lines or [[]]
    if absent := [name for name in FIXED if name not in heads]:
        raise RunError(f"{path} has no column {absent[0]!r}: {_AGAIN}.")
    for number, row in enumerate(rows, 2):
        if len(row) != len(heads):
            raise RunError(f"Line {number} of {path} has {len(row)} cells instead of {len(heads)}: {_AGAIN}.")
    found: Columns = {}
    for name, cells in zip(heads, zip(*rows, strict=True) if rows else [()] * len(heads), strict=True):
        try:
            found[name] = list(cells) if name in TEXTS else np.array([float(cell or "nan") for cell in cells])
        except ValueError as error:
            raise RunError(f"The column {name!r} of {path} holds no numbers ({error}): {_AGAIN}.") from None
    if found["layer"][-1:] != [NETWORK]:
        raise RunError(f"{path} does not end with the whole network: {_AGAIN}.")
    return found
