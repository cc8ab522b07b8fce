"""What is known of one run: its rows, and the set the network was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunnel_lightning.runs import (
    NETWORK,
    PROFILE_FILE,
    Analysis,
    LayerInfo,
    Row,
    Run,
    analysis_folder,
    id_dataset,
    load_analysis,
    load_run,
    run_id_of,
)
from tunnel_lightning.runs.analysis import ANALYSIS_FOLDER


@dataclass(frozen=True, eq=False)
class Source:
    """What is known of one run.

    Attributes:
        path: the run folder, or the folder of the analysis.
        rows: the profile to show: of the analysed checkpoint, else what was measured while training.
        own: the set the network was trained on; None without rows.
        layers: lines of ``layers.csv``.
        history: several profiles, if there are: of several checkpoints, else those made while training.
        history_own: the trained set of the history, which may be another: a run can be analysed on any images.
        analysis: the analysis, if one was finished.
        manifest: the run's manifest.
    """

    path: Path
    rows: list[Row]
    own: str | None
    layers: list[LayerInfo]
    history: list[Row]
    history_own: str | None
    analysis: Analysis | None
    manifest: dict[str, Any]

    @property
    def home(self) -> Path:
        """The run folder; of an analysis that lies elsewhere, its own."""
        inside = self.analysis is not None and self.analysis.path.name == ANALYSIS_FOLDER
        return self.analysis.path.parent if self.analysis and inside else self.path

    @property
    def watched(self) -> bool:
        """Whether the history was measured while training."""
        return self.analysis is None or self.history is not self.analysis.run.rows

    @property
    def run_id(self) -> str:
        """The run's id, ``name/version_N``."""
        stated = self.analysis.summary.get("run_id") if self.analysis else None
        return self.rows[0].run_id if self.rows else str(stated or run_id_of(self.path))

    @property
    def title(self) -> str:
        """What the run is called."""
        return str((self.analysis and self.analysis.summary.get("title")) or self.run_id)


def read_source(folder: str | Path) -> Source:
    """Read a run folder with or without an analysis, or the folder of an analysis.

    Raises:
        RunError: it is neither, or a file in it can't be read.
    """
    folder = Path(folder)
    if not analysis_folder(folder):
        run = load_run(folder)
        own = run.id_dataset
        return Source(folder, run.rows, own, run.layers, run.rows, own, None, run.manifest)
    analysis = load_analysis(folder)
    home = analysis.path.parent if analysis.path.name == ANALYSIS_FOLDER else analysis.path
    # trained without the monitor, or not here at all: the analysis stands alone
    run = load_run(home) if (home / PROFILE_FILE).exists() else Run(home, [])
    rows, own, step = analysis.run.rows, analysis.run.id_dataset, analysis.summary.get("step")
    at = [row for row in rows if row.step == step] or rows
    history, history_own = rows, own
    if len({row.step for row in rows}) < 2:
        history, history_own = run.rows, _trained_on(run.rows, own)
    layers = analysis.run.layers or run.layers
    return Source(folder, at, own, layers, history, history_own, analysis, run.manifest)


def _trained_on(rows: Sequence[Row], told: str | None) -> str | None:
    """The trained set of profiles made while training: the one told, unless the network was scored on another."""
    scored = {row.dataset for row in rows if row.layer == NETWORK and row.measure == "accuracy"}
    return told if told in (scored or {row.dataset for row in rows}) else id_dataset(rows)


def rows_of(run: Run | Iterable[Row], own: str | None = None) -> tuple[list[Row], str | None]:
    """Rows, and the set the network was trained on: as told, else a run may know it; of rows alone it is guessed.

    Example:
        >>> row = Row("mlp/version_0", 9, 1, -1, "val", "Glyphs", "l1", 1, "rank_cov", "rtol=1e-3", 12.0)
        >>> rows_of(Run(".", [row], "Digits"))[1], rows_of([row])[1]
        ('Digits', 'Glyphs')
    """
    if isinstance(run, Run):
        return run.rows, own or run.id_dataset
    rows = list(run)
    return rows, own or id_dataset(rows)
