"""Reading a run over a sequence of tasks: accuracy matrices of the network and of every layer, and what they say.

The functions of a matrix, `average_accuracy`, `forgetting` and the others, are those of
`tunnel_lightning.runs.forgetting`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunnel_lightning.runs.files import read_manifest, run_id_of
from tunnel_lightning.runs.forgetting import (
    at_end,
    average_accuracy,
    backward_transfer,
    drift,
    forgetting,
    forgetting_since_learnt,
    forward_transfer,
    lost_of_best,
    mean_and_deviation,
    over_earlier,
    relative_forgetting,
    representation_forgetting,
    since_learnt,
)
from tunnel_lightning.runs.schema import NETWORK, PROFILE_FILE, Row, RunError
from tunnel_lightning.runs.table import ProfileTable

__all__ = [
    "ALL",
    "KINDS",
    "SECTION",
    "ContinualRun",
    "at_end",
    "average_accuracy",
    "backward_transfer",
    "drift",
    "forgetting",
    "forgetting_since_learnt",
    "forward_transfer",
    "is_continual",
    "load_continual",
    "lost_of_best",
    "matrix",
    "mean_and_deviation",
    "over_earlier",
    "relative_forgetting",
    "representation_forgetting",
    "since_learnt",
]

Array = NDArray[np.float64]

SECTION = "continual"
"""The part of ``manifest.json`` that says what the tasks were."""

ALL = "all"
"""Name of the set of all the tasks' images together."""

NETWORK_KINDS = {"network": ("accuracy", "network"), "within": ("accuracy", "within_task")}
"""Measure and variant of the network's accuracy: among all its outputs (of the task's head), and among the task's."""

KINDS = {
    "fixed": ("probe_accuracy", "fixed"),
    "refit_task": ("probe_accuracy", "refit_task"),
    "refit_all": ("probe_accuracy", "refit_all"),
    "online": ("probe_accuracy", "online"),
    "cka": ("cka", "learnt"),
    "overlap": ("subspace_overlap", "k=10"),
    "residual": ("map_residual", "linear"),
    "rank": ("rank_cov", "rtol=1e-3"),
    "effective_rank": ("effective_rank", "cov"),
}
"""Measure and variant of what is known of each layer: probes fitted when the task was learnt, anew for each task,
anew for all classes, and trained along; comparisons with the layer as it was when the task was learnt; ranks."""

SWEEPS = ("swap_accuracy", "rewind_accuracy", "freeze_accuracy")
"""Measures of networks put together after the last task: a value for each cut."""


def matrix(rows: Iterable[Row], layer: str, measure: str, variant: str, tasks: Sequence[str] = ()) -> Array:
    """Gather one measure of one layer over tasks and time.

    Args:
        rows: rows of one run.
        layer: as in `Row`; ``network`` for its output.
        measure: as in `Row`.
        variant: as in `Row`.
        tasks: names of the T tasks, in order; by default ``task 1``, ``task 2``, ... up to the last one in the rows.

    Returns:
        Shape ``[T + 1, T]``: row 0 from before any training, row k after k tasks; NaN for what was not measured.
        Where a value was written twice the later one counts.

    Example:
        >>> row = Row("r", 9, 1, 0, "test", "task 1", "network", 3, "accuracy", "network", 0.9)
        >>> later = row._replace(experience=1, value=0.5)
        >>> rows = [row, later, later._replace(dataset="task 2", value=1.0)]
        >>> matrix(rows, "network", "accuracy", "network")
        array([[nan, nan],
               [0.9, nan],
               [0.5, 1. ]])
    """
    picked = [r for r in rows if (r.layer, r.measure, r.variant) == (layer, measure, variant)]
    found = _matrices(picked, list(tasks) or _names(picked))
    return next(iter(found.values())) if found else np.full((len(tasks) + 1, len(tasks)), np.nan)


def _names(rows: Iterable[Row]) -> list[str]:
    """``task 1`` to the last task there is a row of."""
    numbers = [int(r.dataset[5:]) for r in rows if r.dataset[:5] == "task " and r.dataset[5:].isdigit()]
    return [f"task {k}" for k in range(1, max(numbers, default=0) + 1)]


def _matrices(rows: Iterable[Row], tasks: Sequence[str]) -> dict[tuple[str, str, str], Array]:
    """Every matrix there is, by layer, measure and variant."""
    column = {name: k for k, name in enumerate(tasks)}
    found: dict[tuple[str, str, str], Array] = {}
    for row in rows:
        if row.dataset in column and -1 <= row.experience < len(tasks):
            key = row.layer, row.measure, row.variant
            if key not in found:
                found[key] = np.full((len(tasks) + 1, len(tasks)), np.nan)
            found[key][row.experience + 1, column[row.dataset]] = row.value
    return found


class Sweep(NamedTuple):
    """Accuracies of networks put together at each cut.

    Attributes:
        dataset: the task they were scored on.
        variant: how they were put together, as ``E1T2``: the extractor as after task 1, the tunnel as after task 2.
        cut: layers of the extractor, ascending, shape [K].
        value: accuracies, shape [K].
        n: images, shape [K].
        layer: the last layer of each extractor, K names.
    """

    dataset: str
    variant: str
    cut: NDArray[np.int64]
    value: Array
    n: NDArray[np.int64]
    layer: list[str]


class Rewinds(NamedTuple):
    """Accuracies of the last network with a block of layers put back to what it was after the first task.

    Attributes:
        dataset: the task they were scored on, the first.
        first: first layers of the blocks, ascending, shape [F].
        last: last layers of the blocks, ascending, shape [K].
        value: accuracies, shape [F, K]; NaN where there is no such block.
        n: images.
    """

    dataset: str
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    value: Array
    n: int


@dataclass(frozen=True, eq=False)
class ContinualRun:
    """A run over a sequence of tasks, read; one that still goes on as far as it is.

    Attributes:
        path: the folder.
        rows: every row of its profile table.
        manifest: what ``manifest.json`` holds.
    """

    path: Path
    rows: list[Row]
    manifest: dict[str, Any]

    @property
    def id(self) -> str:
        """The run's id, ``name/version_N``."""
        return self.rows[0].run_id if self.rows else run_id_of(self.path)

    @property
    def about(self) -> dict[str, Any]:
        """What the manifest says of the sequence: tasks, data, strategy, ..."""
        return self.manifest.get(SECTION) or {}

    @cached_property
    def tasks(self) -> list[str]:
        """Names of the tasks in the order they are learnt, those to come included."""
        stated = [str(each["name"]) for each in self.about.get("tasks") or []]
        return stated or _names(self.rows)

    @cached_property
    def classes(self) -> list[str]:
        """The class names of each task, with commas; empty where they are not known."""
        stated = self.about.get("tasks") or [{}] * len(self.tasks)
        return [", ".join(map(str, each.get("classes") or [])) for each in stated]

    @property
    def single_head(self) -> bool:
        """Whether one head answers for the classes of all tasks: within a task's own it may be right more often."""
        kind = self.about.get("kind", "class_incremental")
        one = kind == "class_incremental" and not self.about.get("multi_head")
        return bool(self.about.get("single_head", one))

    @cached_property
    def done(self) -> int:
        """How many tasks were learnt and measured."""
        return 1 + max((r.experience for r in self.rows if r.dataset in (*self.tasks, ALL)), default=-1)

    @property
    def finished(self) -> bool:
        """Whether all tasks were."""
        return 0 < len(self.tasks) == self.done

    @cached_property
    def layers(self) -> dict[int, str]:
        """Names of the measured layers by index, ascending, without the raw pixels."""
        measures = {measure for measure, _ in KINDS.values()}
        found = {r.index: r.layer for r in self.rows if r.measure in measures and r.layer != NETWORK}
        return {index: found[index] for index in sorted(found) if index > 0}

    @cached_property
    def _of_tasks(self) -> dict[tuple[str, str, str], Array]:
        return _matrices(self.rows, self.tasks)

    @cached_property
    def _of_all(self) -> dict[tuple[str, str, str], Array]:
        found: dict[tuple[str, str, str], Array] = {}
        for row in (r for r in self.rows if r.dataset == ALL):
            key = row.layer, row.measure, row.variant
            if -1 <= row.experience < len(self.tasks):
                found.setdefault(key, np.full(len(self.tasks) + 1, np.nan))[row.experience + 1] = row.value
        return found

    def network(self, kind: str = "network") -> Array:
        """The network's accuracy matrix, ``[T + 1, T]``, see `matrix`; ``within``: among each task's own outputs."""
        missing = np.full((len(self.tasks) + 1, len(self.tasks)), np.nan)
        return self._of_tasks.get((NETWORK, *NETWORK_KINDS[kind]), missing)

    def of_tasks(self, kind: str) -> Array:
        """One of `KINDS` in every layer: ``[L, T + 1, T]``, see `matrix`."""
        missing = np.full((len(self.tasks) + 1, len(self.tasks)), np.nan)
        key = self._known(kind)
        found = [self._of_tasks.get((name, *key), missing) for name in self.layers.values()]
        return np.stack(found) if found else np.empty((0, *missing.shape))

    def of_all(self, kind: str) -> Array:
        """One of `KINDS` on the images of all tasks together: ``[L, T + 1]``."""
        missing = np.full(len(self.tasks) + 1, np.nan)
        key = self._known(kind)
        found = [self._of_all.get((name, *key), missing) for name in self.layers.values()]
        return np.stack(found) if found else np.empty((0, len(missing)))

    def _known(self, kind: str) -> tuple[str, str]:
        """Measure and variant of a kind; comparisons may have been made with another number of directions."""
        measure, variant = KINDS[kind]
        there = sorted({r.variant for r in self.rows if r.measure == measure})
        if variant in there or not there or measure == "probe_accuracy":
            return measure, variant
        return measure, there[0]

    @cached_property
    def _images(self) -> dict[tuple[str, str], dict[str, int]]:
        """How many test images a measure of layers rests on, by task."""
        found: dict[tuple[str, str], dict[str, int]] = {}
        for row in self.rows:
            if row.split == "test" and row.layer != NETWORK:
                found.setdefault((row.measure, row.variant), {})[row.dataset] = row.n
        return found

    def doubt(self, kind: str) -> Array:
        """How far a difference of two accuracies of a kind of probe, averaged over tasks, may be chance: ``[L]``.

        Its standard error as if the two were of different images, ``sqrt(2 p (1 - p) / n)`` with n the images of all
        tasks but one: an upper bound, since they are of the same. NaN where n is not known.
        """
        images = [self._images.get(self._known(kind), {}).get(task, 0) for task in self.tasks]
        n = sum(images) * max(len(images) - 1, 1) / max(len(images), 1)
        found = self.of_tasks(kind)
        known = np.isfinite(found)
        count = known.sum(axis=(1, 2))
        p = np.where(known, found, 0).sum(axis=(1, 2)) / np.maximum(count, 1)
        return np.sqrt(2 * p * (1 - p) / n) if n else np.full(len(found), np.nan)

    def sweeps(self, measure: str = "swap_accuracy") -> list[Sweep]:
        """Networks put together after the last task, see `SWEEPS`, in the order they were measured."""
        groups: dict[tuple[str, str], dict[int, Row]] = {}
        for row in self.rows:
            if row.measure == measure:
                groups.setdefault((row.dataset, row.variant), {})[row.index] = row
        found = []
        for (dataset, variant), by_cut in groups.items():
            rows = [by_cut[cut] for cut in sorted(by_cut)]
            cuts, n = (np.array([getattr(r, key) for r in rows], dtype=np.int64) for key in ("index", "n"))
            value = np.array([r.value for r in rows])
            found.append(Sweep(dataset, variant, cuts, value, n, [r.layer for r in rows]))
        return found

    def rewinds(self) -> Rewinds | None:
        """Blocks of layers put back, of every first and last layer; None where that was not tried."""
        found: dict[tuple[int, int], Row] = {}
        for row in self.rows:
            begins, _, ends = row.variant.partition("..")
            if row.measure == "rewind_accuracy" and begins.isdigit() and ends == "k":
                found[int(begins), row.index] = row
        if not found:
            return None
        first, last = (np.array(sorted({block[k] for block in found})) for k in (0, 1))
        value = np.full((len(first), len(last)), np.nan)
        for (i, k), row in found.items():
            value[np.searchsorted(first, i), np.searchsorted(last, k)] = row.value
        return Rewinds(row.dataset, first, last, value, row.n)

    def layer_table(self, after: int | None = None) -> dict[str, Array]:
        """What became of every layer, averaged over the tasks learnt before the last one.

        Args:
            after: how many tasks were learnt; by default all that were measured.

        Returns:
            By name an array of shape ``[L]``, NaN for what was not measured: in fractions ``drift``,
            ``representation_forgetting``, ``online_forgetting`` and ``all_classes_lost``; ``relative_forgetting``, in
            shares of what was gained, NaN where that gain may be chance; ``all_classes``, the accuracy of a probe of
            all classes; ``cka``, ``overlap`` and ``residual`` against the layer as it was; ``rank`` and
            ``effective_rank``; ``unseen``, what probes of tasks have gained by those learnt before them, since before
            any training.
        """
        after = self.done if after is None else after
        pick = max(after - 1, 0)

        def each(function: Any, kind: str) -> Array:
            return np.array([function(found)[pick] for found in self.of_tasks(kind)])

        def earlier(found: Array) -> Array:
            mean = over_earlier(found[1:])
            mean[:1] = found[1, 0]  # there is none before the first
            return mean

        whole, refit = self.of_all("refit_all"), self.of_tasks("refit_task")
        least = np.maximum(0.01, 2 * np.nan_to_num(self.doubt("refit_task")))
        return {
            "drift": each(drift, "fixed"),
            "representation_forgetting": each(representation_forgetting, "refit_task"),
            "relative_forgetting": np.array(
                [relative_forgetting(r, gain)[pick] for r, gain in zip(refit, least.tolist(), strict=True)]
            ),
            "online_forgetting": each(forgetting_since_learnt, "online"),
            "all_classes": whole[:, after],
            "all_classes_lost": lost_of_best(whole)[:, after],
            "cka": each(earlier, "cka"),
            "overlap": each(earlier, "overlap"),
            "residual": each(earlier, "residual"),
            "rank": each(earlier, "rank"),
            "effective_rank": each(earlier, "effective_rank"),
            "unseen": each(forward_transfer, "refit_task"),
        }


def is_continual(folder: str | Path) -> bool:
    """Whether a folder is that of a run over a sequence of tasks."""
    return isinstance(read_manifest(folder).get(SECTION), dict)


def load_continual(folder: str | Path) -> ContinualRun:
    """Read a run over a sequence of tasks; one without any row yet has none.

    Raises:
        RunError: it is no such folder, or a file in it can't be read.

    Example:
        >>> import tempfile
        >>> from tunnel_lightning.runs import write_manifest
        >>> folder = tempfile.mkdtemp()
        >>> tasks = [{"name": f"task {k}", "classes": [f"{2 * k}", f"{2 * k + 1}"], "label": 0} for k in (1, 2)]
        >>> _ = write_manifest(folder, continual={"tasks": tasks, "kind": "class_incremental"})
        >>> run = load_continual(folder)
        >>> run.tasks, run.classes, run.done
        (['task 1', 'task 2'], ['2, 3', '4, 5'], 0)
    """
    folder = Path(folder)
    if not is_continual(folder):
        raise RunError(
            f"{folder} is no run over a sequence of tasks: its manifest.json says nothing of any. Give a folder that "
            "the continual command has written."
        )
    return ContinualRun(folder, ProfileTable(folder / PROFILE_FILE).rows, read_manifest(folder))
