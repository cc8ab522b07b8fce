"""Pure functions: what is measured, apart from how it is streamed."""

from tunnel_lightning.measures.functional.rank import (
    effective_rank,
    eigenvalues,
    numerical_rank,
    participation_ratio,
    rankme,
    stable_rank,
)
from tunnel_lightning.measures.functional.ridge import LinearHead, ridge, ridge_from_moments
from tunnel_lightning.measures.functional.transfer import (
    id_ood_alignment,
    id_ood_pearson,
    ood_retained,
    strength_bin,
)
from tunnel_lightning.measures.functional.variance import ClassVariances, class_variances

__all__ = [
    "ClassVariances",
    "LinearHead",
    "class_variances",
    "effective_rank",
    "eigenvalues",
    "id_ood_alignment",
    "id_ood_pearson",
    "numerical_rank",
    "ood_retained",
    "participation_ratio",
    "rankme",
    "ridge",
    "ridge_from_moments",
    "stable_rank",
    "strength_bin",
]
