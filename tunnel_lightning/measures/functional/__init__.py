"""Pure functions: what is measured, apart from how it is streamed."""

from tunnel_lightning.measures.functional.blocks import Block, Resemblance, contiguous_blocks, resemblance
from tunnel_lightning.measures.functional.collapse import (
    SimplexDistance,
    VariabilityCollapse,
    cdnv,
    nc1,
    nc2,
    nc3,
    nearest_mean_head,
)
from tunnel_lightning.measures.functional.drift import (
    linear_map_residual,
    principal_directions,
    subspace_overlap,
)
from tunnel_lightning.measures.functional.logistic import (
    LogisticFit,
    LogisticPath,
    logistic,
    logistic_all,
    logistic_path,
    stratified_split,
)
from tunnel_lightning.measures.functional.neighbours import NeighbourAccuracy, knn_accuracy
from tunnel_lightning.measures.functional.pairwise import (
    Procrustes,
    procrustes,
    pwcca,
    rbf_cka,
    svcca,
)
from tunnel_lightning.measures.functional.predictions import (
    Churn,
    ClassDifferences,
    ErrorSpread,
    churn,
    class_differences,
    error_spread,
    holm,
    mean_kl,
    per_class_accuracy,
    per_example_accuracy,
)
from tunnel_lightning.measures.functional.rank import (
    effective_rank,
    eigenvalue_pair,
    eigenvalues,
    numerical_rank,
    participation_ratio,
    rankme,
    stable_rank,
)
from tunnel_lightning.measures.functional.ridge import LinearHead, ridge, ridge_from_moments
from tunnel_lightning.measures.functional.similarity import hsic_1, l1_change, linear_cka
from tunnel_lightning.measures.functional.transfer import (
    id_ood_alignment,
    id_ood_pearson,
    ood_retained,
    strength_bin,
)
from tunnel_lightning.measures.functional.variance import ClassVariances, class_variances

__all__ = [
    "Block",
    "Churn",
    "ClassDifferences",
    "ClassVariances",
    "ErrorSpread",
    "LinearHead",
    "LogisticFit",
    "LogisticPath",
    "NeighbourAccuracy",
    "Procrustes",
    "Resemblance",
    "SimplexDistance",
    "VariabilityCollapse",
    "cdnv",
    "churn",
    "class_differences",
    "class_variances",
    "contiguous_blocks",
    "effective_rank",
    "eigenvalue_pair",
    "eigenvalues",
    "error_spread",
    "holm",
    "hsic_1",
    "id_ood_alignment",
    "id_ood_pearson",
    "knn_accuracy",
    "l1_change",
    "linear_cka",
    "linear_map_residual",
    "logistic",
    "logistic_all",
    "logistic_path",
    "mean_kl",
    "nc1",
    "nc2",
    "nc3",
    "nearest_mean_head",
    "numerical_rank",
    "ood_retained",
    "participation_ratio",
    "per_class_accuracy",
    "per_example_accuracy",
    "principal_directions",
    "procrustes",
    "pwcca",
    "rankme",
    "rbf_cka",
    "resemblance",
    "ridge",
    "ridge_from_moments",
    "stable_rank",
    "stratified_split",
    "strength_bin",
    "subspace_overlap",
    "svcca",
]
