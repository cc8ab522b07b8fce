"""Reading a run folder."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunnel_lightning.runs.curves import Curve, curve, id_dataset
from tunnel_lightning.runs.files import read_manifest, run_id_of
from tunnel_lightning.runs.schema import PROFILE_FILE, LayerInfo, Row, RunError
from tunnel_lightning.runs.table import ProfileTable, read_layers
from tunnel_lightning.runs.tunnel import Tunnel, tunnels

if TYPE_CHECKING:
    import pandas as pd

    from tunnel_lightning.runs.analysis import Analysis


class Run:
    """A run folder, read.

    Args:
        path: the folder.
        rows: rows of its profile table.
        dataset: the set the network was trained on, where that is known otherwise than from the rows.

    Attributes:
        path: the folder.
        rows: every row of the profile table; those of ``dataset`` first, for functions of rows alone that have to
            guess it, see `tunnel_lightning.runs.id_dataset`.
        dataset: the set the network was trained on, as it was told; or None.
    """

    def __init__(self, path: str | Path, rows: list[Row], dataset: str | None = None) -> None:
        self.path = Path(path)
        self.dataset = dataset
        self.rows = sorted(rows, key=lambda row: row.dataset != dataset) if dataset else rows

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {len(self.rows)} rows)"

    @property
    def id(self) -> str:
        """The run's id, ``name/version_N``."""
        return self.rows[0].run_id if self.rows else run_id_of(self.path)

    @cached_property
    def layers(self) -> list[LayerInfo]:
        """The lines of ``layers.csv``; none where the file is absent."""
        return read_layers(self.path)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What ``manifest.json`` holds; empty where the file is absent."""
        return read_manifest(self.path)

    @property
    def analysis(self) -> Analysis | None:
        """The analysis in the folder, see `tunnel_lightning.runs.load_analysis`; None where none was finished."""
        from tunnel_lightning.runs.analysis import analysis_folder, load_analysis

        return load_analysis(self.path) if analysis_folder(self.path) else None

    @cached_property
    def steps(self) -> list[int]:
        """The steps at which something was measured, ascending."""
        return sorted({r.step for r in self.rows})

    @cached_property
    def id_dataset(self) -> str | None:
        """The set the network was trained on, as told; else see `tunnel_lightning.runs.id_dataset`."""
        return self.dataset or id_dataset(self.rows)

    def profile(
        self,
        step: int | None = None,
        measure: str = "probe_accuracy",
        variant: str | None = None,
        dataset: str | None = None,
        split: str | None = None,
    ) -> Curve:
        """Return one measure over the layers as arrays; defaults as in `curve`.

        Raises:
            RunError: nothing of the kind was measured; the message lists what was.
        """
        found = curve(self.rows, measure, variant, dataset or self.id_dataset, split, step)
        if not found.layer:
            asked = ", ".join(str(v) for v in (measure, found.variant, dataset, split) if v is not None)
            at = "" if step is None else f" at step {step}"
            there = sorted({f"{r.measure}/{r.variant} ({r.dataset}, {r.split})" for r in self.rows})
            raise RunError(
                f"{self.path} has no rows of {asked}{at}. It has: {'; '.join(there) or 'no rows'}."
            )
        return found

    def tunnel(self) -> dict[str, Tunnel]:
        """Where the tunnel starts at the end of the run, by each of the three rules."""
        return tunnels(self.rows, self.id_dataset)

    def to_pandas(self) -> pd.DataFrame:
        """Return the profile table as a pandas DataFrame.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("Run.to_pandas() needs pandas: pip install pandas.") from error
        return pd.DataFrame(self.rows, columns=list(Row._fields))


def load_run(path: str | Path) -> Run:
    """Read a run folder.

    Raises:
        RunError: there is no such folder, it holds no profile table, or one that cannot be read.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> ProfileTable(folder / "profile.csv").append(
        ...     [Row("mlp/version_0", 0, 0, -1, "val", "Glyphs", "stem", 1, "rank_cov", "rtol=1e-3", 12.0)]
        ... )
        >>> load_run(folder).profile(measure="rank_cov", variant="rtol=1e-3").value
        array([12.])
    """
    path = Path(path)
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise RunError(f"The run folder {path} {what}: give the folder of a run, as runs/<name>/version_0.")
    table = ProfileTable(path / PROFILE_FILE)
    if not table.path.exists():
        inside = [*path.glob(f"*/{PROFILE_FILE}"), *path.glob(f"*/*/{PROFILE_FILE}")]
        latest = max(inside, key=lambda p: p.stat().st_mtime, default=None)
        hint = f"did you mean {latest.parent}?" if latest else "was it trained with the monitor on?"
        raise RunError(f"{path} holds no {PROFILE_FILE}, so there is no profile to read: {hint}")
    return Run(path, table.rows)
