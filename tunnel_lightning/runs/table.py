"""Writing and reading ``profile.csv`` and ``layers.csv``."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from tunnel_lightning.runs.files import atomic, temporary
from tunnel_lightning.runs.schema import LAYERS_FILE, SCHEMA_VERSION, LayerInfo, Row, RunError

_MARK = "# tunnel_lightning profile schema "
_Record = TypeVar("_Record", Row, LayerInfo)


class ProfileTable:
    """The profile table of a run: every measured value of every layer, one CSV line each.

    The first line states the schema version. Floats are written so that they read back exactly. Every write
    goes to a file beside, which then takes the table's place: a process killed at any moment leaves the old
    table or the new one.

    Args:
        path: where the CSV file is or will be; it is created by the first `append`.

    Example:
        >>> import tempfile
        >>> table = ProfileTable(Path(tempfile.mkdtemp()) / "profile.csv")
        >>> row = Row("mlp/version_0", 0, 0, -1, "val", "Glyphs", "head", 3, "rank_cov", "rtol=1e-3", 12.0)
        >>> table.append([row, row._replace(step=90, epoch=1)])
        >>> [row.step for row in table.rows]
        [0, 90]
        >>> table.truncate(step=50)
        1
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def rows(self) -> list[Row]:
        """All rows in the order written; none where there is no file yet.

        A last line without its end (a copy that was cut off, a full disk) is left out with a warning.

        Raises:
            RunError: another schema version, or a line that does not hold what the columns say.
        """
        if temporary(self.path).exists():
            warnings.warn(
                f"{temporary(self.path)} is left over from a write that was interrupted; the table beside it "
                "is whole without it, and the next write replaces it.",
                stacklevel=2,
            )
        text = self._whole_lines()
        if not text:
            return []
        return list(_parse(Row, self.path, text.split("\n")[1:], first_line=2))

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows at the end, all of them or, when the process dies meanwhile, none.

        Raises:
            RunError: the table that is there has another schema version.
        """
        self._write(self._whole_lines(), rows)

    def write(self, rows: Iterable[Row]) -> None:
        """Put these rows in the place of all that are there."""
        self._write("", rows)

    def truncate(self, step: int) -> int:
        """Drop the rows measured after `step`, and return how many there were (for a resumed run)."""
        rows = self.rows
        kept = [row for row in rows if row.step <= step]
        if len(kept) < len(rows):
            self.write(kept)
        return len(rows) - len(kept)

    def _write(self, before: str, rows: Iterable[Row]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(self.path) as file:
            if before:
                file.write(before)
            else:
                file.write(f"{_MARK}{SCHEMA_VERSION}\n")
                csv.writer(file, lineterminator="\n").writerow(Row._fields)
            _write_records(file, Row, rows)

    def _whole_lines(self) -> str:
        try:
            text = self.path.read_bytes().decode("utf-8").replace("\r\n", "\n")
        except FileNotFoundError:
            return ""
        except UnicodeDecodeError:
            raise RunError(f"{self.path} is not a text file, so no profile table: {_REMEDY}") from None
        end = text.rfind("\n") + 1
        if end < len(text):
            warnings.warn(
                f"The last line of {self.path} has no end and is left out: {text[end:][:60]!r}.", stacklevel=3
            )
        first = text.partition("\n")[0]
        if not first.startswith(_MARK):
            raise RunError(
                f"{self.path} does not begin with '{_MARK}{SCHEMA_VERSION}', so it is no profile table: "
                f"{_REMEDY}"
            )
        version = first.removeprefix(_MARK).strip()
        if version != str(SCHEMA_VERSION):
            raise RunError(
                f"{self.path} has schema {version}, this tunnel_lightning reads schema {SCHEMA_VERSION}: "
                "open it with the version that wrote it (manifest.json beside it says which)."
            )
        return text[:end]


_REMEDY = "choose another run folder, or restore the file."


def write_layers(folder: str | Path, layers: Sequence[LayerInfo]) -> Path:
    """Write ``layers.csv`` of a run folder and return its path.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> layer = LayerInfo(1, "stem.conv", "Conv2d", "16x16x16", 64, 432, 221184, "layer")
        >>> _ = write_layers(folder, [layer])
        >>> read_layers(folder)[0].shape
        '16x16x16'
    """
    path = Path(folder) / LAYERS_FILE
    with atomic(path) as file:
        csv.writer(file, lineterminator="\n").writerow(LayerInfo._fields)
        _write_records(file, LayerInfo, layers)
    return path


def read_layers(folder: str | Path) -> list[LayerInfo]:
    """Read ``layers.csv`` of a run folder; an empty list where there is none.

    Raises:
        RunError: a line does not hold what the columns say.
    """
    path = Path(folder) / LAYERS_FILE
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    return list(_parse(LayerInfo, path, lines, first_line=1))


def _write_records(file: Any, kind: type[_Record], records: Iterable[_Record]) -> None:
    types = get_type_hints(kind)
    # Values may come as numpy or torch scalars, whose repr is no number; float's repr reads back exactly.
    text = [repr if types[name] is float else str for name in kind._fields]
    make = [types[name] for name in kind._fields]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([t(m(v)) for t, m, v in zip(text, make, r, strict=True)] for r in records)


def _parse(kind: type[_Record], path: Path, lines: list[str], first_line: int) -> Iterator[_Record]:
    types = get_type_hints(kind)
    make = [types[name] for name in kind._fields]
    reader = csv.reader(lines)
    header = next(reader, [])
    if tuple(header) != kind._fields:
        raise RunError(f"{path} has the columns {header}, not {list(kind._fields)}: {_REMEDY}")
    for number, fields in enumerate(reader, first_line + 1):
        if not fields:
            continue
        where = f"{path} line {number}"
        if len(fields) != len(make):
            raise RunError(
                f"{where} has {len(fields)} fields instead of {len(make)}: repair or delete that line."
            )
        try:
            values = [m(f) for m, f in zip(make, fields, strict=True)]
        except ValueError as error:
            raise RunError(f"{where} is no row ({error}): repair or delete that line.") from None
        yield kind(*values)
