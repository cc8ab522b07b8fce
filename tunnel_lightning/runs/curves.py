"""One measure over the layers, as arrays, out of the rows of a profile table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tunnel_lightning.runs.schema import NETWORK, Row

SPLITS = ("test", "val", "train")
"""Where several splits were measured, the first of these is shown."""

PROBES = ("ridge", "logistic", "masarczyk", "harun", "nguyen")
"""Kinds of converged probes: where several were fitted, the first of these decides."""


@dataclass(frozen=True, eq=False)
class Curve:
    """One measure over the layers at one step.

    Attributes:
        measure: as in `Row`.
        variant: as in `Row`.
        dataset: as in `Row`.
        split: as in `Row`.
        step: as in `Row`; -1 for an empty curve.
        epoch: as in `Row`; -1 for an empty curve.
        index: layer indices, ascending, shape [L]; 0 is the raw pixels.
        layer: layer names, L of them.
        value: values, shape [L].
        se: standard errors, shape [L].
        n: images, shape [L].
        dim: feature columns, shape [L].
    """

    measure: str
    variant: str
    dataset: str
    split: str
    step: int
    epoch: int
    index: NDArray[np.int64]
    layer: list[str]
    value: NDArray[np.float64]
    se: NDArray[np.float64]
    n: NDArray[np.int64]
    dim: NDArray[np.int64]

    def where(self, mask: NDArray[np.bool_]) -> Curve:
        """Return the curve at the layers where a mask, shape [L], is true."""
        arrays = {k: getattr(self, k)[mask] for k in ("index", "value", "se", "n", "dim")}
        return replace(
            self, layer=[name for name, kept in zip(self.layer, mask, strict=True) if kept], **arrays
        )

    def layers_only(self) -> Curve:
        """Return the curve without the raw pixels."""
        return self.where(self.index > 0)

    def finite(self) -> Curve:
        """Return the curve without layers whose value is NaN or infinite."""
        return self.where(np.isfinite(self.value))


def curve(
    rows: Iterable[Row],
    measure: str = "probe_accuracy",
    variant: str | None = None,
    dataset: str | None = None,
    split: str | None = None,
    step: int | None = None,
) -> Curve:
    """Pick one measure over the layers.

    The ``network`` row is no layer and is left out. Where a layer was written twice, the later row counts.

    Args:
        rows: rows of one run.
        measure: as in `Row`.
        variant: as in `Row`; default: the probe that decides, see `probe_variant`.
        dataset: default: the in-distribution set, see `id_dataset`.
        split: default: ``test``, else ``val``, else ``train``, whichever was measured.
        step: default: the last at which this was measured.

    Returns:
        The curve; one without layers where nothing matches.

    Example:
        >>> row = Row("r", 0, 0, -1, "val", "A", "l1", 1, "rank_cov", "rtol=1e-3", 9.0)
        >>> rows = [row, row._replace(layer="l2", index=2, value=4.5)]
        >>> curve(rows, "rank_cov", "rtol=1e-3").value
        array([9. , 4.5])
    """
    rows = list(rows)
    variant = probe_variant(rows) if variant is None else variant
    dataset = id_dataset(rows) if dataset is None else dataset
    found = [
        r
        for r in rows
        if r.measure == measure and r.variant == variant and r.dataset == dataset and r.layer != NETWORK
    ]
    if split is not None:
        found = [r for r in found if r.split == split]
    step = max((r.step for r in found), default=-1) if step is None else step
    found = [r for r in found if r.step == step]
    if found and split is None:
        there = {r.split for r in found}
        split = next((s for s in SPLITS if s in there), found[0].split)
        found = [r for r in found if r.split == split]
    layers = {r.index: r for r in found}
    found = [layers[i] for i in sorted(layers)]
    return Curve(
        measure,
        variant,
        dataset or "",
        split or "",
        found[0].step if found else -1,
        found[0].epoch if found else -1,
        np.array([r.index for r in found], dtype=np.int64),
        [r.layer for r in found],
        np.array([r.value for r in found], dtype=np.float64),
        np.array([r.se for r in found], dtype=np.float64),
        np.array([r.n for r in found], dtype=np.int64),
        np.array([r.dim for r in found], dtype=np.int64),
    )


def probe_variant(rows: Iterable[Row]) -> str:
    """Name the kind of probe by which tunnel and transfer are told.

    It is the first of `PROBES` that was scored on held-out images of any set, and one for all sets of a run; never
    the online probe; ``ridge`` where there is none.

    Example:
        >>> row = Row("r", 0, 0, -1, "test", "A", "l1", 1, "probe_accuracy", "harun", 0.5)
        >>> probe_variant([row]), probe_variant([row, row._replace(variant="logistic")])
        ('harun', 'logistic')
    """
    there = {r.variant for r in rows if r.measure == "probe_accuracy" and r.split != "train"}
    return next((variant for variant in PROBES if variant in there), PROBES[0])


def id_dataset(rows: Sequence[Row]) -> str | None:
    """Name the set the network was trained on: the one its own accuracy was last measured on.

    A network without a matching head has no such row; then it is the set of the last online probe, else of
    the first probe that decides, see `probe_variant`, else of the first row. None without rows. An analysis says
    it: see `Run.id_dataset`.

    Example:
        >>> id_dataset([Row("r", 0, 0, -1, "val", "A", "network", 3, "accuracy", "network", 0.5)])
        'A'
    """
    last = {(r.measure, r.variant): r.dataset for r in rows if r.measure != "accuracy" or r.layer == NETWORK}
    for key in (("accuracy", "network"), ("probe_accuracy", "online")):
        if key in last:
            return last[key]
    kind = ("probe_accuracy", probe_variant(rows))
    probes = (r.dataset for r in rows if (r.measure, r.variant) == kind)
    return next(probes, rows[0].dataset if rows else None)


def ood_datasets(rows: Sequence[Row], own: str | None = None) -> list[str]:
    """Name the sets transfer was measured on: those with a probe that are not the in-distribution one.

    The probe is the one that decides, see `probe_variant`.

    Args:
        rows: rows of one run.
        own: the in-distribution set; default: see `id_dataset`.

    Example:
        >>> row = Row("r", 0, 0, -1, "test", "B", "l1", 1, "probe_accuracy", "ridge", 0.5)
        >>> own = row._replace(measure="accuracy", variant="network", dataset="A", layer="network", index=2)
        >>> ood_datasets([row, own])
        ['B']
    """
    own = own or id_dataset(rows)
    # dict.fromkeys keeps the order in which the sets were listed in the run's config.
    kind = ("probe_accuracy", probe_variant(rows))
    return list(dict.fromkeys(r.dataset for r in rows if (r.measure, r.variant) == kind and r.dataset != own))


def network_accuracy(rows: Iterable[Row], dataset: str | None, split: str, step: int) -> float:
    """Return the network's own accuracy at a step, a fraction; NaN where it was not measured.

    Example:
        >>> row = Row("r", 9, 1, -1, "val", "A", "network", 3, "accuracy", "network", 0.5)
        >>> network_accuracy([row], "A", "val", 9)
        0.5
    """
    found = [
        r.value
        for r in rows
        if r.layer == NETWORK
        and r.measure == "accuracy"
        and (r.dataset, r.split, r.step) == (dataset, split, step)
    ]
    return found[-1] if found else float("nan")
