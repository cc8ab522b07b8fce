"""The file in which a command says what it did and what came out: JSON with a kind and a schema version."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tunnel_lightning.runs.analysis import plain
from tunnel_lightning.runs.files import atomic
from tunnel_lightning.runs.schema import RunError


def write_summary(path: Path, kind: str, schema: int, summary: Mapping[str, Any]) -> None:
    """Write a summary; what is not finite becomes null.

    Args:
        path: the file.
        kind: of the result, as ``ablation``.
        schema: version of its form.
        summary: plain values.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "ablation.json"
        >>> write_summary(path, "ablation", 1, {"accuracy": float("nan")})
        >>> read_summary(path, "ablation", 1, "ablate")["accuracy"] is None
        True
    """
    with atomic(path) as file:
        json.dump(plain({"schema": schema, "kind": kind, **summary}), file, indent=1, allow_nan=False)
        file.write("\n")


def read_summary(
    path: Path, kind: str, schema: int, command: str, needed: Collection[str] = ()
) -> dict[str, Any]:
    """Read a summary.

    Args:
        path: the file.
        kind: of the result.
        schema: the version that can be read.
        command: what makes it again.
        needed: keys it must have.

    Raises:
        RunError: the file is no such summary, or of another version.
        OSError: it can't be opened.
    """
    again = f"run {command} again"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one
        raise RunError(f"{path} is not valid JSON ({error}): {again}.") from None
    if not isinstance(found, dict) or found.get("kind") != kind:
        raise RunError(f"{path} is not the summary of {'an' if kind[0] in 'aeiou' else 'a'} {kind}: {again}.")
    if found.get("schema") != schema:
        raise RunError(
            f"{path} has schema {found.get('schema')}, this tunnel_lightning reads schema {schema}: open it with the "
            f"version that wrote it, or {again}."
        )
    if missing := [key for key in needed if key not in found]:
        raise RunError(f"{path} lacks {', '.join(missing)}: {again}.")
    return found
