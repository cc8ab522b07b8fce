"""Writing and reading what ``trim --exits`` found, ``RUN/trim/exits/``: the one place that knows its format."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunnel_lightning.runs.analysis import SUMMARY_FILE, plain
from tunnel_lightning.runs.files import atomic
from tunnel_lightning.runs.schema import RunError

EXITS_FOLDER = "exits"
EXITS_SCHEMA = 1
CURVE_FILE = "curve.csv"
COLUMNS = ("threshold", "ends", "val_accuracy", "val_flops", "accuracy", "flops")
"""Of ``curve.csv``, a line for each threshold, with (``ends`` 0) and without (1) the network behind the last exit;
what has no ``val_`` is of test images."""

_NEEDED = (
    "layers",
    "threshold",
    "keep",
    "costs",
    "whole",
    "chosen",
    "certificate",
    "leaving",
    "overthinking",
)


@dataclass(frozen=True, eq=False)
class EarlyExits:
    """A network with early exits, as it was measured.

    Attributes:
        path: its folder.
        curve: columns of ``curve.csv``, shape [thresholds].
        summary: what ``summary.json`` holds.
    """

    path: Path
    curve: dict[str, NDArray[np.float64]]
    summary: dict[str, Any]


def write_exits(folder: Path, summary: Mapping[str, Any], columns: Mapping[str, Any]) -> None:
    """Write ``summary.json`` and ``curve.csv``; what is not finite becomes null."""
    with atomic(folder / CURVE_FILE) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(zip(*(columns[name] for name in COLUMNS), strict=True))
    with atomic(folder / SUMMARY_FILE) as file:
        json.dump(plain({"schema": EXITS_SCHEMA, **summary}), file, indent=1, allow_nan=False)
        file.write("\n")


def exits_folder(place: str | Path) -> Path | None:
    """The early exits of a run or of its trim; None where there are none.

    Args:
        place: ``RUN``, ``RUN/trim`` or ``RUN/trim/exits``.

    Example:
        >>> import tempfile
        >>> exits_folder(tempfile.mkdtemp()) is None
        True
    """
    for folder in (Path(place), Path(place) / EXITS_FOLDER, Path(place) / "trim" / EXITS_FOLDER):
        if folder.name == EXITS_FOLDER and (folder / SUMMARY_FILE).is_file():
            return folder
    return None


def load_exits(place: str | Path) -> EarlyExits:
    """Read them.

    Args:
        place: as of `exits_folder`.

    Raises:
        RunError: there are none, or a file is damaged.
    """
    folder = exits_folder(place)
    if folder is None:
        raise RunError(f"{place} has no early exits: make them with `trim RUN --exits auto`.")
    path = folder / SUMMARY_FILE
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise RunError(f"{path} can't be read ({error}): run trim again.") from None
    if not isinstance(summary, dict) or any(name not in summary for name in _NEEDED):
        raise RunError(f"{path} lacks what early exits are told by: run trim again.")
    if summary.get("schema") != EXITS_SCHEMA:
        raise RunError(
            f"{path} has schema {summary.get('schema')!r} and this version reads {EXITS_SCHEMA}: run trim again."
        )
    path = folder / CURVE_FILE
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        curve = {name: np.array([float(row[name]) for row in rows]) for name in COLUMNS}
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise RunError(f"{path} can't be read ({error!r}): run trim again.") from None
    return EarlyExits(folder, curve, summary)
