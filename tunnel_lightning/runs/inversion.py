"""Writing and reading ``RUN/invert/``, what layers still know of their input: the one place that knows its format.

``inversion.json`` says what was inverted and what came of it, ``table.csv`` has the rows of the profile table's form,
``pictures.npz`` the pixels and ``curves.npz`` what the descents did step by step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunnel_lightning.runs.analysis import read_arrays, write_arrays
from tunnel_lightning.runs.schema import Row, RunError
from tunnel_lightning.runs.summaries import read_summary, write_summary
from tunnel_lightning.runs.table import ProfileTable

INVERT_FOLDER = "invert"
INVERT_SCHEMA = 1
KIND = "inversion"
SUMMARY_FILE = "inversion.json"
TABLE_FILE = "table.csv"
PICTURES_FILE = "pictures.npz"
CURVES_FILE = "curves.npz"

_AGAIN = "run invert again"


@dataclass(frozen=True, eq=False)
class Inversion:
    """A folder of inversions, read; arrays are read on first use.

    Attributes:
        path: the folder.
        rows: a row for each quantity, layer, network and set of images.
        summary: what ``inversion.json`` holds.
    """

    path: Path
    rows: list[Row]
    summary: dict[str, Any]

    @cached_property
    def pictures(self) -> dict[str, NDArray[Any]]:
        """Pixels uint8 by name.

        ``original/SET`` is ``[N, H, W, C]``, ``recovered/SET/NETWORK`` ``[L, N, S, H, W, C]``; the others are of the
        extras, see ``docs/invert.md``.
        """
        return read_arrays(self.path / PICTURES_FILE)

    @cached_property
    def curves(self) -> dict[str, NDArray[Any]]:
        """Distances by name.

        ``steps`` is ``[P]``; ``embedding_curve/SET/NETWORK`` and ``input_curve/SET/NETWORK`` are ``[L, N, S, P]``,
        relative to the norm of the target; ``QUANTITY/SET/NETWORK``, as ``psnr/Digits/trained``, are ``[L, N, S]``.
        """
        return read_arrays(self.path / CURVES_FILE)

    @property
    def sets(self) -> list[str]:
        """Names of the sets of images, the first being the one that pictures are shown of."""
        return list(self.summary["images"])

    @property
    def networks(self) -> list[str]:
        """``trained``, and the twins it stands beside: ``untrained``, ``noise``."""
        return list(self.summary["networks"])

    def values(
        self, quantity: str, dataset: str, network: str
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of a quantity over images at each layer, both ``[L]``; NaN where there is none.

        Each image counts once, with the mean of its starts, which are no independent samples.

        Args:
            quantity: as ``psnr``.
            dataset: one of ``sets``.
            network: one of ``networks``.
        """
        found = self.curves.get(f"{quantity}/{dataset}/{network}")
        if found is None:
            none = np.full(len(self.summary["layers"]), np.nan)
            return none, none
        means = found.astype(np.float64).mean(2)
        with np.errstate(invalid="ignore"):
            deviation = means.std(1, ddof=1) if means.shape[1] > 1 else np.full(len(means), np.nan)
            return means.mean(1), deviation


RECOVERED, NOT_UNIQUE, NOT_REACHED = "recovered", "not unique", "not reached"
DIVERGED, MIXED = "diverged", "in part"
"""Verdicts on a layer; `verdicts` says when."""

ALIKE = 20.0
"""PSNR in dB from which a person takes an image for recovered: a mean deviation of a tenth of the range."""


def verdicts(curves: Mapping[str, NDArray[Any]], dataset: str, network: str) -> list[str]:
    """What the descents tell of each layer, in a word or two; the first of these that holds.

    - ``recovered``: more than half of the descents end with a PSNR of at least `ALIKE`. (Badger's reference, an image
      with slight noise, has 28 dB; as its author says, it is closer than descents come in practice.)
    - ``diverged``: more than half of the descents ended further from the embedding than they began, or nowhere.
    - ``not unique``: more than half pass the paper's test, an image further away than the reference and an embedding
      nearer; or by their curves, the embedding's distance going to zero while the image's stays.
    - ``not reached``: the embeddings found are on average further away than the reference's, so that the descent
      tells nothing of the layer: more steps or another recipe may.
    - ``in part``: none of these.

    Args:
        curves: as `Inversion.curves`.
        dataset: a set of images.
        network: a network.

    Example:
        >>> one = {"psnr": 9, "diverged": 0, "embedding_ratio": 0.5, "non_unique": 1, "plateau": 0}
        >>> verdicts({f"{k}/Digits/trained": np.full((1, 1, 1), v) for k, v in one.items()}, "Digits", "trained")
        ['not unique']
    """

    def flat(quantity: str) -> NDArray[np.float64]:
        found = curves[f"{quantity}/{dataset}/{network}"].astype(np.float64)
        return np.asarray(found.reshape(len(found), -1))

    alike = (flat("psnr") >= ALIKE).mean(1)
    others = (flat(name).mean(1) for name in ("diverged", "non_unique", "plateau", "embedding_ratio"))
    found = []
    for share, diverged, test, plateau, layer in zip(alike, *others, strict=True):
        if share > 0.5:
            found.append(RECOVERED)
        elif diverged > 0.5:
            found.append(DIVERGED)
        elif test > 0.5 or plateau > 0.5:
            found.append(NOT_UNIQUE)
        else:
            found.append(NOT_REACHED if not layer <= 1 else MIXED)
    return found


def write_inversion(
    folder: str | Path,
    rows: Iterable[Row],
    pictures: Mapping[str, NDArray[Any]],
    curves: Mapping[str, NDArray[Any]],
    summary: Mapping[str, Any],
) -> Path:
    """Write the files of an inversion and return the folder; the summary is last, so a folder with one is complete.

    Args:
        folder: the folder itself; made where it is not there.
        rows: rows of the table.
        pictures: as `Inversion.pictures`.
        curves: as `Inversion.curves`.
        summary: plain values; ``layers``, ``images`` and ``networks`` are needed. The schema is added.

    Example:
        >>> import tempfile
        >>> summary = {"layers": [], "images": {"Digits": []}, "networks": {"trained": ""}}
        >>> load_inversion(write_inversion(Path(tempfile.mkdtemp()) / "invert", [], {}, {}, summary)).sets
        ['Digits']
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMMARY_FILE).unlink(missing_ok=True)
    ProfileTable(folder / TABLE_FILE).write(rows)
    write_arrays(folder / PICTURES_FILE, pictures)
    write_arrays(folder / CURVES_FILE, curves)
    write_summary(folder / SUMMARY_FILE, KIND, INVERT_SCHEMA, summary)
    return folder


def inversion_folder(place: str | Path) -> Path | None:
    """The finished inversion a folder is or holds; None where there is none."""
    places = (Path(place), Path(place) / INVERT_FOLDER)
    return next((each for each in places if (each / SUMMARY_FILE).is_file()), None)


def load_inversion(folder: str | Path) -> Inversion:
    """Read the inversions of a run.

    Args:
        folder: the run folder, or the folder of the inversions in it.

    Raises:
        RunError: there are none, another version wrote them, or a file is broken.

    Example:
        >>> import tempfile
        >>> try:
        ...     load_inversion(tempfile.mkdtemp())
        ... except RunError as error:
        ...     print(str(error).partition("has ")[2])
        no finished inversion (no invert/inversion.json): make one with invert.
    """
    path = inversion_folder(folder)
    if path is None:
        raise RunError(
            f"{folder} has no finished inversion (no {INVERT_FOLDER}/{SUMMARY_FILE}): make one with invert."
        )
    summary = read_summary(
        path / SUMMARY_FILE, KIND, INVERT_SCHEMA, "invert", ("layers", "images", "networks")
    )
    table = ProfileTable(path / TABLE_FILE)
    if not table.path.exists():
        raise RunError(f"{path} has a summary but no {TABLE_FILE}: {_AGAIN}.")
    return Inversion(path, table.rows, summary)
