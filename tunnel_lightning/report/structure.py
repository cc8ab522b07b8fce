"""Sections of one run's page: similarity, dimensions, variance and collapse, pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunnel_lightning.report.charts import Chart, Line, Map, Points, Section, escape
from tunnel_lightning.report.lines import COLORS, Wanted, line, several
from tunnel_lightning.report.style import GREY, INK, NEIGHBOURS, RANK
from tunnel_lightning.report.tables import APART
from tunnel_lightning.report.words import number
from tunnel_lightning.runs import (
    Analysis,
    Row,
    RunError,
    SimilarityMap,
    curve,
)
from tunnel_lightning.runs.curves import SPLITS

MAPS = {
    "cka": ("CKA of the layers", "Linear CKA of the layers' features, unbiased, averaged over batches."),
    "cka_groups": (
        "CKA between kinds of networks",
        "Means over pairs of different networks; ± by leaving out one network at a time.",
    ),
    "cka_all": ("CKA of every output", "Linear CKA of every output of the network, not pooled."),
    "cka_all_no_pc1": (
        "Without the first principal component",
        "The same after removing it from each batch.",
    ),
    "cka_all_no_dominant": ("Without the dominant images", "The same without the images that dominate it."),
    "pc1_cosine": ("First principal components", "Cosine of the images' scores on it, without the sign."),
    "rbf_cka": ("RBF CKA", ""),
    "procrustes": ("Procrustes", ""),
    "svcca": ("SVCCA", ""),
    "pwcca": ("PWCCA", ""),
}
"""Names of the similarity maps, and what each is; the last four are of a sample, which the files tell."""

CORRELATIONS = {"svcca": ", of which it takes the components that hold 99 % of the variance", "pwcca": ""}
"""Maps of canonical correlations, and what they take of a layer's columns."""

RANKS: list[Wanted] = [
    (*RANK, "numerical rank (rtol 1e-3)"),
    ("rank_cov", "rtol=torch", "numerical rank (torch's tolerance)"),
    ("effective_rank", "cov", "effective rank"),
    ("stable_rank", "cov", "stable rank"),
    ("participation_ratio", "cov", "participation ratio"),
    ("rankme", "raw", "RankMe"),
]

_TIGHT = "Falls where classes tighten."
COLLAPSE: list[tuple[str, str, str, bool, list[Wanted], str]] = [
    (
        "variance", "Distances between and within classes", "mean squared distance", False,
        [("variance_inter", "l2", "between classes"), ("variance_intra", "l2", "within a class")],
        "Features scaled to length 1 (Masarczyk et al., 2023).",
    ),
    (
        "variance_ratio", "Between over within", "ratio", True,
        [("variance_ratio", "l2", "features of length 1"), ("variance_ratio", "raw", "features as they are")],
        "Rises where classes separate.",
    ),
    (
        "nc1", "NC1: variation within classes", "NC1", True,
        [("nc1", "trace_pinv", "trace with pseudo-inverse"), ("nc1", "trace_ratio", "ratio of traces")],
        _TIGHT,
    ),
    (
        "nc2", "NC2: how evenly class means spread", "distance from a simplex", False,
        [("nc2", "norm_cv", "norms"), ("nc2", "angle", "angles"), ("nc2", "etf", "both (simplex frame)")],
        "0: equal lengths, equal and greatest angles.",
    ),
    (
        "nc3", "NC3: head and class means", "distance", False,
        [("nc3", "ridge", "least-squares head")],
        "0: the head points along the class means.",
    ),
    ("cdnv", "Class-distance normalised variance", "CDNV", True, [("cdnv", "mean", "mean over pairs")], _TIGHT),
    (
        "nearest", "Read without training", "accuracy (%)", False,
        [
            ("ncm_accuracy", "fit means", "nearest class mean"),
            ("knn_accuracy", NEIGHBOURS, "nearest neighbours"),
            ("ncm_disagreement", "network", "nearest mean differs from the network (NC4)"),
        ],
        "",
    ),
]  # fmt: skip
"""Charts: key, title, label of the axis, logarithmic, lines, note."""


def similarity(
    rows: Sequence[Row], own: str | None, maps: Mapping[str, SimilarityMap], summary: Mapping[str, Any]
) -> list[Map | Chart]:
    """Every map there is, blocks outlined, and beside them what explains them."""
    found: list[Map | Chart] = [
        similarity_map(name, each, summary.get("blocks"), _sampled(name, each.names, rows, own, summary))
        for name, each in maps.items()
    ]
    pc1 = curve(rows, "pc1_fraction", "gram256", own)
    if pc1.layer:
        note = "Of all variance over a batch of 256 images, every output not pooled. High inside a block."
        drawn = line(pc1, "first principal component", marker="circle")
        at = next((k + 1 for k, each in enumerate(found) if each.key == "cka_all"), len(found))
        found.insert(
            at,
            Chart(
                "pc1_fraction", "Variance in the first principal component", [drawn],
                x="output, in execution order", y="fraction", y_range=(0, 1), note=note,
            ),
        )  # fmt: skip
    change = several(rows, [("l1_change", "next", "change to the next layer")], own)
    if change:
        note = "Mean absolute difference to the next layer of equal shape, over the mean absolute value."
        found.append(
            Chart("l1_change", "Change from layer to layer", change, y="relative L1 change", note=note)
        )
    return found


def _sampled(
    name: str, layers: Sequence[str], rows: Sequence[Row], own: str | None, summary: Mapping[str, Any]
) -> str:
    """On how many images a map of a sample rests, and what that does to it; empty for the others."""
    if name not in ("rbf_cka", "procrustes", *CORRELATIONS):
        return ""
    settings = summary.get("settings") or {}
    rows = [row for row in rows if row.dataset == own and row.variant not in APART]
    scored = max((row.n for row in rows if row.split == "test"), default=0)
    limits = [settings.get(key) for key in ("map_images", "sample", "eval_images")]
    most = min((each for each in (*limits, scored) if each), default=0)
    said = f"On {number(most)} test images." if limits[0] else "On a sample of the test images."
    if name in CORRELATIONS:
        said += (
            " Canonical correlations come out near 1 by construction where two layers together have about as many "
            "columns as there are images."
        )
        columns = sorted(row.dim for row in rows if row.layer in layers and row.dim)
        if columns:
            said += f" Here layers have {number(columns[0])} to {number(columns[-1])}{CORRELATIONS[name]}."
    return said


def similarity_map(
    name: str, each: SimilarityMap, blocks: Mapping[str, Any] | None = None, about: str = "", **more: Any
) -> Map:
    """One similarity as a map of layers against layers; ``about`` goes before what is said of its blocks."""
    title, note = MAPS.get(name, (name, ""))
    note = f"{note} {about}".strip()
    outlined = []
    if blocks and blocks.get("map") == name:
        place = {layer: k for k, layer in enumerate(each.names)}
        outlined = [
            (place[b["start"]], place[b["end"]], f"{b['start']} to {b['end']}")
            for b in blocks.get("found", [])
            if b["start"] in place and b["end"] in place
        ]
        threshold = blocks.get("threshold")
        if outlined:
            note += f" Outlined: blocks of layers that are all at least {threshold} alike."
        else:
            note += f" No block of layers is at least {threshold} alike."
    bounded = np.nanmin(each.value, initial=1) >= -0.2 and np.nanmax(each.value, initial=0) <= 1.2
    fields: dict[str, Any] = {"blocks": outlined, "note": note, "limits": (0.0, 1.0) if bounded else None}
    return Map(name, title, each.names, each.names, each.value, each.se, **{**fields, **more})


def ranks(rows: Sequence[Row], own: str | None) -> list[Chart]:
    """The family of ranks of the trained set, and how high they can be."""
    lines = several(rows, RANKS, own)
    if not lines:
        return []
    found = curve(rows, *RANK, own).layers_only()
    cap = np.minimum(found.n - 1, found.dim).astype(float)
    if len(cap) and (cap > 0).all():
        said = [f"at most {number(int(c))}" for c in cap]
        lines.append(Line("most possible, min(N-1, D)", found.index, cap, said, INK, "dot", 1.2))
    return [Chart("ranks", f"How many dimensions {own} takes", lines, y="dimensions", log_y=True)]


# A set may be called anything: the last name of a split is the one.
_PLACE = re.compile(rf"(.*)\|({'|'.join(SPLITS)})\|(.*)", re.DOTALL)


def spectra(rows: Sequence[Row], analysis: Analysis | None) -> list[Chart]:
    """The eigenvalues of every layer's covariance, a chart for each set."""
    by_set: dict[tuple[str, str], dict[str, NDArray[np.float64]]] = {}
    for key, values in (analysis.spectrum if analysis else {}).items():
        place = _PLACE.fullmatch(key)
        if place is None:
            raise RunError(f"The spectrum {key!r} is not called DATASET|SPLIT|LAYER: run analyze again.")
        dataset, split, layer = place.groups()
        by_set.setdefault((dataset, split), {})[layer] = values
    return [_spectrum(rows, *place, layers) for place, layers in by_set.items()]


def _spectrum(
    rows: Sequence[Row], dataset: str, split: str, layers: Mapping[str, NDArray[np.float64]]
) -> Chart:
    found = curve(rows, *RANK, dataset, split)
    known = {
        name: (int(i), int(n), float(v))
        for name, i, n, v in zip(found.layer, found.index, found.n, found.value, strict=True)
    }
    order = sorted(layers, key=lambda name: known.get(name, (len(known), 0, 0))[0])
    lines = []
    for k, name in enumerate(order):
        values = layers[name]
        if not len(values) or not values[0] > 0:
            continue
        # enough points for a smooth line, few enough for the page
        kept = np.unique(np.geomspace(1, len(values), 150).round().astype(int)) - 1
        index, n, rank = known.get(name, (k + 1, 0, np.nan))
        where = f"layer {index}: {name}" if index else "raw pixels"
        about = f"rank {number(rank)} of at most {number(min(n - 1, len(values)))}" if n else ""
        said = [
            f"<b>{escape(where)}</b><br>eigenvalue {number(int(i) + 1)}: {values[i] / values[0]:.3g} of the largest"
            f"<br>{about}"
            for i in kept
        ]
        color = k / max(len(order) - 1, 1)
        lines.append(
            Line(
                where,
                kept + 1,
                np.where(values[kept] > 0, values[kept] / values[0], np.nan),
                said,
                color,
                width=1.5,
            )
        )
    end = max((int(each.x[-1]) for each in lines), default=1)
    threshold = Line(
        "tolerance of the rank, 1e-3",
        np.array([1, end]),
        np.full(2, 1e-3),
        ["1e-3 of the largest"] * 2,
        GREY,
        "dot",
        1.2,
    )
    return Chart(
        f"spectrum_{dataset}_{split}",
        f"Eigenvalues of the covariance, {dataset} {split}",
        [*lines, threshold],
        x="eigenvalue, by size",
        y="relative to the largest",
        log_x=True,
        log_y=True,
        y_range=(1e-8, 2.0),
        ends=(order[0], order[-1]) if order else None,
        note="The numerical rank is where a line crosses the dotted one.",
    )


def collapse(rows: Sequence[Row], own: str | None) -> list[Chart]:
    """Variance and neural collapse over the layers, as far as they were measured."""
    charts = [
        Chart(
            key,
            title,
            several(rows, [_voted(rows, *each) for each in wanted], own),
            y=label,
            log_y=log,
            note=note,
        )
        for key, title, label, log, wanted, note in COLLAPSE
    ]
    separable = several(
        rows, [("probe_accuracy", "logistic", "logistic probe, training images")], own, split="train"
    )
    held_out = [r for r in rows if r.split != "train"]
    if separable:
        separable += [
            line(found, "logistic probe, held-out images", COLORS[1], dash="dash", marker="circle")
            for found in (curve(held_out, variant="logistic", dataset=own),)
            if found.layer
        ]
        charts.append(Chart("separability", "Linear separability", separable, y="accuracy (%)"))
    return [chart for chart in charts if chart.lines]


def _voted(rows: Sequence[Row], measure: str, variant: str, label: str) -> Wanted:
    """What is wanted, with the number of neighbours that voted: fewer where there are few images."""
    if variant != NEIGHBOURS:
        return measure, variant, label
    there = (row.variant for row in rows if row.measure == measure and row.variant.startswith(variant))
    variant = next(there, variant)
    return measure, variant, f"{variant.removeprefix(NEIGHBOURS)} {label}"


def pictures(analysis: Analysis | None) -> Section:
    """Layers as pictures: images near one another are alike to the layer."""
    arrays = dict(analysis.embeddings) if analysis else {}
    labels = arrays.pop("labels", None)
    names = [str(name) for name in analysis.summary.get("class_names") or []] if analysis else []
    if labels is None:
        return Section("pictures", "Pictures of layers", [])
    names = names or [str(k) for k in range(int(labels.max(initial=0)) + 1)]
    said = [escape(names[k]) for k in labels]
    points = [Points(f"tsne_{layer}", layer, place, labels, names, said) for layer, place in arrays.items()]
    text = (
        f"t-SNE of {number(len(labels))} test images: each point is an image, its colour the class; what lies "
        "together is alike to the layer."
    )
    chips = list(zip(names, COLORS, strict=False)) if len(names) <= len(COLORS) else []
    return Section("pictures", "Pictures of layers", points, text, chips=chips)
