"""Colours, line styles and sizes of every figure, in one place."""

from typing import Any

# Okabe and Ito's palette: told apart with any of the common colour deficiencies, and in grey by line style.
BLUE, SKY, GREEN, ORANGE, VERMILION, PURPLE = "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7"
WINE, OLIVE = "#882255", "#999933"  # from Tol's muted palette, for a fourth and fifth set
INK, GREY, PALE = "#222222", "#6B6B6B", "#E3E3E3"

STYLE: dict[str, Any] = {
    "size": (9.0, 5.2),  # inches
    "dpi": 120,
    "title": {"fontsize": 13, "fontweight": "bold", "color": INK},
    "subtitle": {"fontsize": 9.5, "color": GREY},
    "label": {"fontsize": 10.5, "color": INK},
    "tick": {"labelsize": 9.5, "labelcolor": INK, "color": PALE},
    "grid": {"color": PALE, "linewidth": 0.8},
    "legend": {"frameon": False, "fontsize": 9.5, "labelcolor": INK, "handlelength": 3.0},
    "id": {"color": BLUE, "linewidth": 2.4, "linestyle": "-", "marker": "o", "zorder": 5},
    "online": {"color": SKY, "linewidth": 1.3, "linestyle": "-", "marker": "", "zorder": 4},
    "ood": {"linewidth": 1.7, "zorder": 4},
    "ood_colors": (VERMILION, PURPLE, ORANGE, WINE, OLIVE, GREY),
    "ood_dashes": ((0, (4, 1.6)), (0, (2, 1.2)), (0, (7, 2))),
    "ood_mean": {"color": VERMILION, "linewidth": 2.4, "linestyle": (0, (3, 1.2)), "zorder": 5},
    "network": {"color": INK, "linewidth": 1.3, "linestyle": ":", "zorder": 3},
    "rank": {"color": GREEN, "linewidth": 2.0, "linestyle": (0, (5, 1.4, 1, 1.4)), "marker": "", "zorder": 3},
    "error_band": {"alpha": 0.15, "linewidth": 0},
    "tunnel": {"color": "#F3E9CF", "zorder": 0, "linewidth": 0},
    "rule": {"color": INK, "linewidth": 1.0, "zorder": 2},
    "rule_dashes": {"id95": "-", "id98": (0, (4, 2)), "ood": (0, (1, 1.5))},
    "rule_label": {"fontsize": 9, "color": INK},
    "colormap": "cividis",
    "missing": {"facecolor": "#FFFFFF", "hatch": "////", "edgecolor": "#BBBBBB"},
    "outline": {"color": "#FFFFFF", "linewidth": 1.6},
    "outline_edge": {"foreground": "#000000", "linewidth": 3.6},
}

RULE_LABELS = {"id95": "95 %", "id98": "98 %", "ood": "OOD"}
"""The short names of the three rules, in figures and tables alike."""

RANK = ("rank_cov", "rtol=1e-3")
"""Measure and variant of the rank in the depth profile and the table: the tunnel paper's definition."""

NEIGHBOURS = "k="
"""What the variants of nearest neighbours begin with, before their number; in `TITLES` it stands for all."""

TITLES = {
    ("probe_accuracy", "ridge"): "Ridge probe accuracy",
    ("probe_accuracy", "online"): "Online probe accuracy",
    ("rank_cov", "rtol=1e-3"): "Numerical rank (rtol 1e-3)",
    ("rank_cov", "rtol=torch"): "Numerical rank (torch's tolerance)",
    ("effective_rank", "cov"): "Effective rank",
    ("stable_rank", "cov"): "Stable rank",
    ("participation_ratio", "cov"): "Participation ratio",
    ("rankme", "raw"): "RankMe",
    ("variance_inter", "l2"): "Inter-class variance (normalised features)",
    ("variance_intra", "l2"): "Intra-class variance (normalised features)",
    ("variance_ratio", "l2"): "Inter- over intra-class variance (normalised features)",
    ("probe_accuracy", "logistic"): "Logistic probe accuracy",
    ("probe_accuracy", "masarczyk"): "Probe accuracy (Masarczyk et al.)",
    ("probe_accuracy", "harun"): "Probe accuracy (Harun et al.)",
    ("probe_accuracy", "nguyen"): "Probe accuracy (Nguyen et al.)",
    ("probe_balanced_accuracy", "ridge"): "Balanced accuracy of the ridge probe",
    ("probe_top5_accuracy", "ridge"): "Top-5 accuracy of the ridge probe",
    ("accuracy", "network"): "Accuracy of the network",
    ("knn_accuracy", NEIGHBOURS): "Accuracy of the K nearest neighbours",
    ("ncm_accuracy", "fit means"): "Accuracy of the nearest class mean",
    ("ncm_disagreement", "network"): "Nearest class mean differs from the network (NC4)",
    ("nc1", "trace_pinv"): "NC1 (trace with pseudo-inverse)",
    ("nc1", "trace_ratio"): "NC1 (ratio of traces)",
    ("nc2", "norm_cv"): "NC2 (spread of norms)",
    ("nc2", "angle"): "NC2 (deviation of angles)",
    ("nc2", "etf"): "NC2 (distance from a simplex)",
    ("nc3", "ridge"): "NC3 (least-squares head and class means)",
    ("cdnv", "mean"): "Class-distance normalised variance",
    ("pc1_fraction", "cov"): "Variance in the first principal component",
    ("pc1_fraction", "gram256"): "Variance in the first principal component (unpooled, batches of up to 256)",
    ("l1_change", "next"): "Change to the next layer (L1)",
    ("weight_change", "l2_per_sqrt_n"): "Weight change since the last profile (L2 per root of size)",
}
"""What a measure is called on figures and in tables."""


def kind_of(measure: str, variant: str) -> tuple[str, str]:
    """Where a measure stands in `TITLES`.

    Example:
        >>> kind_of("knn_accuracy", "k=12")
        ('knn_accuracy', 'k=')
    """
    return measure, NEIGHBOURS if variant.startswith(NEIGHBOURS) else variant


def shorten(name: str, width: int) -> str:
    """Shorten a long layer name in the middle, where module paths differ least.

    Example:
        >>> shorten("encoder.layers.encoder_layer_11.mlp.0", 20)
        'encoder.l.._11.mlp.0'
        >>> shorten("layers.0", 20)
        'layers.0'
    """
    if len(name) <= width:
        return name
    keep = max(width - 2, 2)
    head = keep // 2
    return name[:head].rstrip(".") + ".." + name[len(name) - (keep - head) :].lstrip(".")
