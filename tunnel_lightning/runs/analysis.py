"""Writing and reading the folder of an analysis, ``RUN/analysis/``: the one place that knows its format.

``summary.json`` says what was analysed and what came out; ``profile.csv`` and ``layers.csv`` are as in a run
folder; ``similarity.npz`` holds maps of layers against layers and pictures of layers, ``spectrum.npz``
eigenvalues. All but the summary and the profile may be absent.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunnel_lightning.runs.files import atomic
from tunnel_lightning.runs.reader import Run
from tunnel_lightning.runs.schema import PROFILE_FILE, LayerInfo, Row, RunError
from tunnel_lightning.runs.table import ProfileTable, write_layers

ANALYSIS_FOLDER = "analysis"
ANALYSIS_SCHEMA = 1
SUMMARY_FILE = "summary.json"
SIMILARITY_FILE = "similarity.npz"
SPECTRUM_FILE = "spectrum.npz"

_AGAIN = "run analyze again"


class SimilarityMap(NamedTuple):
    """One similarity of all layers with all layers.

    Attributes:
        names: layer names in execution order, L of them.
        value: similarities, shape [L, L]; NaN where there is none.
        se: their standard errors, shape [L, L]; NaN for none.
    """

    names: list[str]
    value: NDArray[np.float64]
    se: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Analysis:
    """An analysis folder, read; arrays are read on first use.

    Attributes:
        path: the folder.
        run: rows and layers of the analysed network.
        summary: what ``summary.json`` holds.
    """

    path: Path
    run: Run
    summary: dict[str, Any]

    @cached_property
    def similarity(self) -> dict[str, SimilarityMap]:
        """Similarity maps by name, as ``cka``; none where there is no file."""
        return read_similarity(self.path)

    @cached_property
    def spectrum(self) -> dict[str, NDArray[np.float64]]:
        """Eigenvalues of the covariance by ``dataset|split|layer``, descending, shape [D]."""
        return read_arrays(self.path / SPECTRUM_FILE)

    @cached_property
    def embeddings(self) -> dict[str, NDArray[Any]]:
        """Pictures of layers: by layer the images' places, shape [n, 2], and ``labels``, shape [n]."""
        arrays = read_arrays(self.path / SIMILARITY_FILE)
        return {k.removeprefix("tsne/"): v for k, v in arrays.items() if k.startswith("tsne/")}


def write_analysis(
    folder: str | Path,
    rows: Iterable[Row],
    layers: Sequence[LayerInfo] = (),
    similarity: Mapping[str, SimilarityMap] | None = None,
    spectrum: Mapping[str, NDArray[Any]] | None = None,
    embeddings: Mapping[str, NDArray[Any]] | None = None,
    summary: Mapping[str, Any] | None = None,
) -> Path:
    """Write the files of an analysis and return the folder; each file replaces the one there when it is whole.

    The summary is written last and a former one goes first, so that a folder with a summary is complete. Files
    that a former analysis left and this one has nothing for are removed.

    Args:
        folder: the folder of the analysis itself; made where it is not there.
        rows: rows of the profile table.
        layers: lines of ``layers.csv``.
        similarity: maps by name.
        spectrum: eigenvalues by ``dataset|split|layer``, each [D].
        embeddings: by layer [n, 2], and ``labels`` [n].
        summary: plain values, numpy scalars and arrays; NaN and infinity are written as null. ``dataset`` names
            the set the network was trained on. The schema version is added.

    Example:
        >>> import tempfile
        >>> row = Row("mlp/version_0", 0, 0, -1, "test", "Glyphs", "stem", 1, "rank_cov", "rtol=1e-3", 12.0)
        >>> folder = write_analysis(Path(tempfile.mkdtemp()) / "analysis", [row], summary={"title": "mlp"})
        >>> load_analysis(folder).summary
        {'schema': 1, 'title': 'mlp'}
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMMARY_FILE).unlink(missing_ok=True)
    ProfileTable(folder / PROFILE_FILE).write(rows)
    write_layers(folder, layers)
    arrays = {f"tsne/{name}": array for name, array in (embeddings or {}).items()}
    for name, each in (similarity or {}).items():
        arrays |= {f"{name}/{field}": np.asarray(array) for field, array in each._asdict().items()}
    write_arrays(folder / SIMILARITY_FILE, arrays)
    write_arrays(folder / SPECTRUM_FILE, spectrum or {})
    with atomic(folder / SUMMARY_FILE) as file:
        json.dump(plain({"schema": ANALYSIS_SCHEMA, **(summary or {})}), file, indent=1, allow_nan=False)
        file.write("\n")
    return folder


def load_analysis(folder: str | Path) -> Analysis:
    """Read the analysis of a run.

    Args:
        folder: the run folder, or the folder of the analysis in it.

    Raises:
        RunError: there is none there, it was not finished, another version wrote it, or a file is broken.

    Example:
        >>> import tempfile
        >>> try:
        ...     load_analysis(tempfile.mkdtemp())
        ... except RunError as error:
        ...     print(str(error).partition("has ")[2])
        no finished analysis (no analysis/summary.json): make one with analyze.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise RunError(f"The run folder {folder} {what}: give the folder of a run, as runs/<name>/version_0.")
    path = analysis_folder(folder)
    if path is None:
        raise RunError(
            f"{folder} has no finished analysis (no {ANALYSIS_FOLDER}/{SUMMARY_FILE}): make one with analyze."
        )
    summary = read_json(path / SUMMARY_FILE, ANALYSIS_SCHEMA)
    table = ProfileTable(path / PROFILE_FILE)
    if not table.path.exists():
        raise RunError(f"{path} has a summary but no {PROFILE_FILE}: {_AGAIN}.")
    return Analysis(path, Run(path, table.rows, summary.get("dataset")), summary)


def analysis_folder(folder: str | Path) -> Path | None:
    """Return the finished analysis a folder is or holds; None where there is none."""
    places = (Path(folder), Path(folder) / ANALYSIS_FOLDER)
    return next((place for place in places if (place / SUMMARY_FILE).is_file()), None)


def read_json(path: Path, schema: int) -> dict[str, Any]:
    """Read a JSON object with a schema version.

    Raises:
        RunError: it is no such file, or of another version.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one
        raise RunError(f"{path} is not valid JSON ({error}): {_AGAIN}.") from None
    if not isinstance(found, dict):
        raise RunError(f"{path} holds no JSON object: {_AGAIN}.")
    if found.get("schema") != schema:
        raise RunError(
            f"{path} has schema {found.get('schema')}, this tunnel_lightning reads schema {schema}: open it with "
            f"the version that wrote it, or {_AGAIN}."
        )
    return found


def read_similarity(folder: Path) -> dict[str, SimilarityMap]:
    """Read every map of ``similarity.npz``; none where there is no file.

    Raises:
        RunError: the file is broken, or a map is not square.
    """
    path = folder / SIMILARITY_FILE
    arrays = read_arrays(path)
    maps = {}
    for key in arrays:
        name, _, field = key.rpartition("/")
        if field != "names" or key.startswith("tsne/"):
            continue
        names = [str(n) for n in arrays[key]]
        value, se = (arrays.get(f"{name}/{field}", np.empty(0)) for field in ("value", "se"))
        if not value.shape == se.shape == (len(names), len(names)):
            raise RunError(
                f"The map {name} in {path} has {len(names)} names, values {list(value.shape)} and errors "
                f"{list(se.shape)}, which do not fit: {_AGAIN}."
            )
        maps[name] = SimilarityMap(names, value.astype(np.float64), se.astype(np.float64))
    return maps


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read a ``.npz`` file, never anything pickled in it; an empty dict where there is none.

    Raises:
        RunError: it is no such file, or broken.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} can't be read as arrays ({error}): {_AGAIN}.") from None


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a ``.npz`` file in the place of the one there; without arrays, remove that."""
    if not arrays:
        path.unlink(missing_ok=True)
        return
    with atomic(path, "wb") as file:
        np.savez_compressed(file, **{key: np.asarray(array) for key, array in arrays.items()})  # type: ignore[arg-type]


def plain(value: Any) -> Any:
    """Make of numbers, arrays, tuples and mappings what JSON knows: what is not finite becomes None.

    Example:
        >>> plain({"a": float("nan"), "b": (np.float32(0.5), np.arange(2)), "c": Path("d")})
        {'a': None, 'b': [0.5, [0, 1]], 'c': 'd'}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)
