"""Writing and reading the folder of an ablation, ``RUN/ablate/``: what a network can and can't do without.

``table.csv`` has a row for each figure of each intervention, ``ablation.json`` says what was done and what is known
of the layers and blocks besides.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tunnel_lightning.runs.files import atomic
from tunnel_lightning.runs.schema import RunError
from tunnel_lightning.runs.summaries import read_summary, write_summary

ABLATION_FOLDER = "ablate"
ABLATION_SCHEMA = 1
SUMMARY_FILE = "ablation.json"
TABLE_FILE = "table.csv"
KIND = "ablation"

_AGAIN = "run ablate again"


class Effect(NamedTuple):
    """One figure of a network after one intervention.

    Attributes:
        kind: ``intact`` (nothing was done), ``delete``, ``reset``, ``rewind``, ``swap`` or ``retrain``.
        scope: what it was done to: ``layer`` (one alone), ``from`` (it and all behind it), ``tunnel``,
            ``extractor``, ``block`` (a residual block alone), ``stage`` (the last blocks of a stage), ``cut`` (two
            networks at a cut), ``part`` (trained again).
        layers: their names: one, or the first and the last.
        first: index of the first layer or block, from 1; of a cut, the last layer of the extractor; 0 for none.
        last: of the last.
        variant: which of several: whence the weights are, by which rule the tunnel starts, which network is below.
        statistics: of normalisation layers: ``kept`` with the weights, or ``estimated`` after the intervention.
        quantity: ``accuracy`` and ``agreement`` (fractions), ``ece``, ``nll`` (nats), ``rank``, ``cka``.
        value: the figure.
        se: its standard error; NaN for none.
        n: images it rests on.
    """

    kind: str
    scope: str
    layers: str
    first: int
    last: int
    variant: str
    statistics: str
    quantity: str
    value: float
    se: float
    n: int


@dataclass(frozen=True, eq=False)
class Ablation:
    """An ablation folder, read.

    Attributes:
        path: the folder.
        rows: every figure.
        summary: what ``ablation.json`` holds.
    """

    path: Path
    rows: list[Effect]
    summary: dict[str, Any]

    def pick(self, quantity: str = "accuracy", **wanted: Any) -> list[Effect]:
        """The rows of a quantity with the given fields, in their order; with statistics as they are unless asked.

        Example:
            >>> row = Effect("reset", "layer", "a", 1, 1, "initial", "kept", "accuracy", 0.5, 0.1, 25)
            >>> found = Ablation(Path(), [row, row._replace(first=2, last=2)], {})
            >>> [row.first for row in found.pick(kind="reset")], found.pick(kind="swap")
            ([1, 2], [])
        """
        wanted = {"quantity": quantity, "statistics": "kept", **wanted}
        return [row for row in self.rows if all(getattr(row, key) == value for key, value in wanted.items())]

    def intact(self, quantity: str = "accuracy") -> Effect | None:
        """The intact network's figure; None where it was not measured."""
        return next(iter(self.pick(quantity, kind="intact")), None)

    @property
    def main(self) -> str:
        """The quantity that tells what is lost: accuracy, or agreement where accuracy means nothing."""
        return "accuracy" if self.intact() is not None else "agreement"


def write_ablation(folder: str | Path, rows: Iterable[Effect], summary: Mapping[str, Any]) -> Path:
    """Write the table and the summary of an ablation and return the folder.

    The summary goes first and comes last, so that a folder with one is complete.

    Args:
        folder: ``RUN/ablate``; made where it is not there.
        rows: every figure.
        summary: plain values; the schema version is added.

    Example:
        >>> import tempfile
        >>> row = Effect("intact", "", "", 0, 0, "", "kept", "accuracy", 0.5, 0.1, 25)
        >>> folder = write_ablation(Path(tempfile.mkdtemp()) / "ablate", [row], {"run_id": "mlp/version_0"})
        >>> load_ablation(folder).rows == [row]
        True
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMMARY_FILE).unlink(missing_ok=True)
    with atomic(folder / TABLE_FILE) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Effect._fields)
        writer.writerows(rows)
    write_summary(folder / SUMMARY_FILE, KIND, ABLATION_SCHEMA, summary)
    return folder


def ablation_folder(place: str | Path) -> Path | None:
    """Return the finished ablation a folder is or holds; None where there is none."""
    places = (Path(place), Path(place) / ABLATION_FOLDER)
    return next(
        (each for each in places if (each / TABLE_FILE).is_file() and (each / SUMMARY_FILE).is_file()), None
    )


def load_ablation(folder: str | Path) -> Ablation:
    """Read the ablation of a run.

    Args:
        folder: the run folder, or the folder of the ablation in it.

    Raises:
        RunError: there is none there, another version wrote it, or a file is broken.

    Example:
        >>> import tempfile
        >>> try:
        ...     load_ablation(tempfile.mkdtemp())
        ... except RunError as error:
        ...     print(str(error).partition("has ")[2])
        no finished ablation (no ablate/ablation.json with its table.csv): make one with ablate.
    """
    path = ablation_folder(folder)
    if path is None:
        raise RunError(
            f"{folder} has no finished ablation (no {ABLATION_FOLDER}/{SUMMARY_FILE} with its {TABLE_FILE}): make "
            "one with ablate."
        )
    summary = read_summary(path / SUMMARY_FILE, KIND, ABLATION_SCHEMA, "ablate")
    return Ablation(path, _rows(path / TABLE_FILE), summary)


def _rows(path: Path) -> list[Effect]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            head, *lines = csv.reader(file)
    except (ValueError, csv.Error) as error:
        raise RunError(f"{path} can't be read as a table ({error}): {_AGAIN}.") from None
    if tuple(head) != Effect._fields:
        raise RunError(f"{path} has the columns {', '.join(head)} and not those of an ablation: {_AGAIN}.")
    rows = []
    for number, line in enumerate(lines, 2):
        try:
            kind, scope, layers, first, last, variant, statistics, quantity, value, se, n = line
            rows.append(
                Effect(
                    kind, scope, layers, int(first), int(last), variant, statistics, quantity,
                    float(value or math.nan), float(se or math.nan), int(n),
                )
            )  # fmt: skip
        except ValueError as error:
            raise RunError(f"Line {number} of {path} can't be read ({error}): {_AGAIN}.") from None
    return rows
