"""What TensorBoard shows of a continual run while the tasks go by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from tunnel_lightning.callbacks.publish import clean
from tunnel_lightning.report.canvas import to_image
from tunnel_lightning.report.charts import Table
from tunnel_lightning.report.continual import page_of_tasks
from tunnel_lightning.report.static import figure
from tunnel_lightning.runs import NETWORK, Row
from tunnel_lightning.runs.continual import average_accuracy, forgetting, matrix

LAYER_CHARTS = {
    ("probe_accuracy", "refit_all"): "All-class probe",
    ("probe_accuracy", "refit_task"): "Task probe, refitted",
    ("probe_accuracy", "fixed"): "Task probe, as fitted when learnt",
    ("probe_accuracy", "online"): "Online probe",
    ("cka", "learnt"): "CKA to the layer as learnt",
    ("effective_rank", "cov"): "Effective rank",
    ("rank_cov", "rtol=1e-3"): "Numerical rank (rtol 1e-3)",
    ("exit_accuracy", "exit"): "Accuracy of each exit",
}
"""Measures with a chart of all layers, averaged over the tasks they are of."""

PICTURES = (
    "task_accuracy",
    "forgetting_by_depth",
    "time_all",
    "time_drift",
    "swaps_1",
    "rewinds",
    "frozen",
    "exits",
    "exit_costs",
)
"""Pictures of the page that TensorBoard shows too, drawn anew after each task."""


class Live:
    """Scalars, and a chart for each measure with a line for each layer.

    Args:
        writer: TensorBoard's, the one that the training loss goes to (TensorBoard follows the newest file of a
            folder); None shows nothing.
        tasks: names of the stream's tasks.
        rows: what was measured before, of a run that goes on.

    Example:
        >>> import tempfile
        >>> live = Live(SummaryWriter(tempfile.mkdtemp()), ["task 1"])
        >>> live([Row("r", 9, 1, 0, "test", "task 1", "network", 3, "accuracy", "network", 0.9)])
    """

    def __init__(self, writer: SummaryWriter | None, tasks: Sequence[str], rows: Iterable[Row] = ()) -> None:
        self._writer = writer
        self._tasks = list(tasks)
        self._rows = list(rows)
        self._charts: dict[str, list[str]] = {}

    def __call__(self, rows: Iterable[Row]) -> None:
        """Show what was measured after a task."""
        new = list(rows)
        if not new or self._writer is None:
            return
        self._rows += new
        step = max(row.step for row in new)
        for row in new:
            if row.layer == NETWORK and row.measure == "accuracy" and row.variant == "network":
                self._scalar(f"accuracy/{row.dataset}", row.value, step)
        after = max(row.experience for row in new)
        if after >= 0:
            accuracy = matrix(self._rows, NETWORK, "accuracy", "network", self._tasks)
            self._scalar("accuracy/average", float(average_accuracy(accuracy)[after]), step)
            self._scalar("accuracy/forgetting", float(forgetting(accuracy)[after]), step)
        self._layers(new, step)
        self._writer.flush()

    def _layers(self, rows: list[Row], step: int) -> None:
        for (measure, variant), title in LAYER_CHARTS.items():
            layers: dict[tuple[int, str], list[float]] = {}
            for row in rows:
                if (row.measure, row.variant) == (measure, variant) and row.layer != NETWORK:
                    layers.setdefault((row.index, row.layer), []).append(row.value)
            for (index, layer), values in layers.items():
                tag = clean(f"layers/{measure}_{variant}/{index:02d}_{layer}")
                self._scalar(tag, float(np.mean(values)), step)
            if layers and title not in self._charts and self._writer is not None:
                self._charts[title] = [f"^{clean(f'layers/{measure}_{variant}')}/"]
                self._writer.add_custom_scalars(
                    {"Layers": {name: ["Multiline", tags] for name, tags in self._charts.items()}}
                )

    def _scalar(self, tag: str, value: float, step: int) -> None:
        if self._writer is not None and math.isfinite(value):
            self._writer.add_scalar(clean(tag), value, step)

    def pictures(self, folder: Path) -> None:
        """Show the run's maps and depth curves as they are now, from its files."""
        if self._writer is None:
            return
        page, step = page_of_tasks(folder), max(row.step for row in self._rows)
        assert page is not None, "a run over tasks"
        for section in page.sections:
            for item in section.items:
                if item.key in PICTURES and not isinstance(item, Table):
                    pixels = to_image(figure(item))
                    self._writer.add_image(f"tasks/{item.key}", pixels, step, dataformats="HWC")
        self._writer.flush()
