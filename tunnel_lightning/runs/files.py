"""The run folder itself: its number, its manifest, and writing that never leaves half a file."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO, Any, Literal

from tunnel_lightning.runs.schema import MANIFEST_FILE, RunError

# Lightning is published under two names; which one is there is part of how a run came about.
_PACKAGES = (
    "tunnel-lightning",
    "torch",
    "lightning",
    "pytorch-lightning",
    "torchvision",
    "torchmetrics",
    "numpy",
    "avalanche-lib",
)


def temporary(path: Path) -> Path:
    """Return the name under which `path` is written before it takes its place."""
    return path.with_name(path.name + ".tmp")


@contextmanager
def atomic(path: str | Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """Open a file that replaces `path` when the block ends well, and not at all when it fails.

    The name of the file written beside is always the same, so a leftover of a killed process is overwritten
    by the next write. One process at a time may write a file: rank 0.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with atomic(path) as file:
        ...     _ = file.write("whole")
        >>> path.read_text()
        'whole'
    """
    path = Path(path)
    beside = temporary(path)
    try:
        text: dict[str, Any] = {} if mode == "wb" else {"encoding": "utf-8", "newline": ""}
        with beside.open(mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk is said where it is
        raise


def new_run_folder(root: str | Path = "runs", name: str = "run") -> Path:
    """Create and return the next free ``root/name/version_N``.

    N is one more than the highest there, as Lightning's loggers count. Creation is exclusive: two processes
    that ask at once get two folders.

    Raises:
        ValueError: `name` is empty or more than one folder deep.

    Example:
        >>> import tempfile
        >>> root = tempfile.mkdtemp()
        >>> [new_run_folder(root, "mlp").name for _ in range(2)]
        ['version_0', 'version_1']
    """
    if not name or name in (".", "..") or any(c in name for c in "/\\"):
        raise ValueError(f"The run name {name!r} must be the name of one folder, without slashes.")
    parent = Path(root) / name
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        version = 1 + max(_versions(parent), default=-1)
        folder = parent / f"version_{version}"
        try:
            folder.mkdir()
        except FileExistsError:  # another process took this number between the look and the mkdir
            continue
        return folder


def _versions(parent: Path) -> list[int]:
    # Anything of that name counts, files too: a number that cannot be created would be tried for ever.
    numbers = (p.name.removeprefix("version_") for p in parent.glob("version_*"))
    return [int(n) for n in numbers if n.isascii() and n.isdigit()]


def run_id_of(folder: str | Path) -> str:
    """Return the id of the run in a folder: its last two parts.

    Example:
        >>> run_id_of("runs/mlp/version_3")
        'mlp/version_3'
    """
    return "/".join(Path(folder).resolve().parts[-2:])


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Read ``manifest.json`` of a run folder; an empty dict where there is none.

    Raises:
        RunError: the file is not JSON.
    """
    path = Path(folder) / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RunError(f"{path} is not valid JSON ({error}): repair or delete it.") from None
    if not isinstance(manifest, dict):
        raise RunError(f"{path} holds no JSON object: repair or delete it.")
    return manifest


def write_manifest(folder: str | Path, /, **sections: Any) -> dict[str, Any]:
    """Put sections into ``manifest.json`` of a run folder and return the whole; other sections stay.

    What JSON does not know (paths, dtypes) is written as its text.

    Raises:
        RunError: the manifest that is there is not JSON.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> _ = write_manifest(folder, seed=7)
        >>> write_manifest(folder, taps={"pool": "2x2"})
        {'seed': 7, 'taps': {'pool': '2x2'}}
    """
    manifest = {**read_manifest(folder), **sections}
    with atomic(Path(folder) / MANIFEST_FILE) as file:
        json.dump(manifest, file, indent=2, default=str)
        file.write("\n")
    return manifest


def machine_info() -> dict[str, Any]:
    """Describe the machine: platform, architecture, processor, and cores there and usable.

    Example:
        >>> sorted(machine_info())
        ['architecture', 'cores', 'cores_usable', 'platform', 'processor']
    """
    # A process pinned to two of 64 cores runs like a small machine: both numbers.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "platform": platform.platform(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "cores_usable": usable,
    }


def _processor() -> str:
    # platform.processor() is empty or just "x86_64" on Linux.
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def package_versions() -> dict[str, str | None]:
    """Versions of Python and of the packages a run depends on, None for one that is absent.

    They are read from the installed metadata, so nothing is imported.

    Example:
        >>> package_versions()["python"].count(".")
        2
    """
    versions: dict[str, str | None] = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions
