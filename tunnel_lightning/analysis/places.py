"""The folder of a command's result: refused where it is something else's, and written by one command at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from tunnel_lightning.runs.schema import MANIFEST_FILE

PARTS_FOLDER = "parts"
"""In the folder of a result: finished parts, with which an interrupted command goes on."""


def check_place(folder: Path, what: str, ours: Callable[[Path], bool], name: str) -> None:
    """Refuse a folder with files of something else: the result would replace those of the same names.

    What lies beside a result (a note, figures) stays, so it is no obstacle.

    Args:
        folder: where the result goes.
        what: it is, with its article, as ``an analysis``.
        ours: whether a folder holds a finished one.
        name: of its folder in a run folder.

    Raises:
        ValueError: the folder is a run's own, or a file, or holds files and no such result, finished or not.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp())
        >>> check_place(place, "an analysis", lambda folder: False, "analysis")
        >>> _ = (place / "notes.txt").write_text("mine")
        >>> try:
        ...     check_place(place, "an analysis", lambda folder: False, "analysis")
        ... except ValueError as error:
        ...     print(str(error).partition(" holds ")[2])
        something else than an analysis: give it a folder of its own (--out)
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give the {_noun(what)} a folder of its own (--out)")
    others = folder.is_dir() and any(path.name != PARTS_FOLDER for path in folder.iterdir())
    if not others or ours(folder) or any((folder / PARTS_FOLDER).glob("*.npz")):
        return
    if (folder / MANIFEST_FILE).exists():
        raise ValueError(
            f"{folder} is a run folder: choose another place for the {_noun(what)}, as {folder / name}"
        )
    raise ValueError(f"{folder} holds something else than {what}: give it a folder of its own (--out)")


@contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Let no other command of the kind write to a folder meanwhile; folders that stay empty are not left behind.

    Raises:
        ValueError: another one is writing.
    """
    parts = folder / PARTS_FOLDER
    made = [place for place in (parts, *parts.parents) if not place.exists()]
    parts.mkdir(parents=True, exist_ok=True)
    lock = FileLock(parts / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"another {_noun(what)} is writing to {folder}: wait for its end, or choose another --out"
        ) from error
    try:
        yield
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)
        with suppress(OSError):
            for place in made:
                place.rmdir()


@contextmanager
def resumable(folder: Callable[[], Path | None]) -> Iterator[None]:
    """Say of an interruption what is kept, once the folder is known and a part was finished."""
    try:
        yield
    except KeyboardInterrupt:
        found = folder()
        if found is None or not any((found / PARTS_FOLDER).glob("*.npz")):
            raise
        raise KeyboardInterrupt(
            f"finished parts are kept in {found / PARTS_FOLDER}, and the same command goes on with them"
        ) from None


def _noun(what: str) -> str:
    return what.partition(" ")[2]
