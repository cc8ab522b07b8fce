"""Finished parts of an analysis, kept so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunnel_lightning.runs import ProfileTable, Row
from tunnel_lightning.runs.files import atomic


@dataclass
class Part:
    """What one part of an analysis found.

    Attributes:
        rows: rows of the profile table.
        arrays: by name, as in ``similarity.npz`` and ``spectrum.npz``.
        extra: what else the summary needs, plain values.
        seconds: how long it took, in all and of that in eigenvalue decompositions.
    """

    rows: list[Row] = field(default_factory=list)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def fingerprint(*what: Any) -> str:
    """A short text that changes with any of the plain values given.

    Example:
        >>> fingerprint({"a": 1}) == fingerprint({"a": 1}), fingerprint({"a": 1}) == fingerprint({"a": 2})
        (True, False)
    """
    text = json.dumps(what, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Store:
    """A folder of finished parts; without a folder nothing is kept.

    Each part is a table, an array file, and a note that is written last: a part without its note was interrupted
    and is measured again, as is one made with other settings.

    Args:
        folder: where parts are kept, or None.

    Example:
        >>> import tempfile
        >>> store = Store(Path(tempfile.mkdtemp()))
        >>> store.save("ranks", "key", Part(extra={"n": 3}))
        >>> store.load("ranks", "key").extra, store.load("ranks", "another key")
        ({'n': 3}, None)
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def load(self, name: str, key: str) -> Part | None:
        """The part of that name, if it was finished with these settings."""
        if self.folder is None:
            return None
        note, table, arrays = self._files(name)
        try:
            said = json.loads(note.read_text(encoding="utf-8"))
            if said["key"] != key:
                return None
            with np.load(arrays, allow_pickle=False) as file:
                found = {key: file[key] for key in file.files}
            return Part(list(ProfileTable(table).rows), found, said["extra"], said["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # half-written or of another version: measured again

    def save(self, name: str, key: str, part: Part) -> None:
        """Keep a finished part."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        note, table, arrays = self._files(name)
        note.unlink(missing_ok=True)
        table.unlink(missing_ok=True)
        ProfileTable(table).append(part.rows)
        beside = arrays.with_suffix(".tmp")
        try:
            with beside.open("wb") as file:
                np.savez_compressed(file, **part.arrays)  # type: ignore[arg-type]
            os.replace(beside, arrays)
        finally:
            beside.unlink(missing_ok=True)
        with atomic(note) as file_:
            json.dump({"key": key, "extra": part.extra, "seconds": part.seconds}, file_, default=str)

    def _files(self, name: str) -> tuple[Path, Path, Path]:
        assert self.folder is not None
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
        return tuple(self.folder / f"{safe}.{kind}" for kind in ("json", "csv", "npz"))  # type: ignore[return-value]
