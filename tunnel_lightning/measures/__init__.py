"""What is measured per layer: pure functions, streaming states beside them, and the pass that feeds them."""

from tunnel_lightning.measures.base import (
    LayerValue,
    Measure,
    accumulate,
    check_memory,
    first_two,
    measure,
    required_bytes,
    values_of,
)
from tunnel_lightning.measures.functional import (
    ClassVariances,
    LinearHead,
    class_variances,
    effective_rank,
    eigenvalues,
    id_ood_alignment,
    id_ood_pearson,
    numerical_rank,
    ood_retained,
    participation_ratio,
    rankme,
    ridge,
    ridge_from_moments,
    stable_rank,
    strength_bin,
)
from tunnel_lightning.measures.layer import RANKS, VARIANCES, Accuracy, MomentMeasures, ProbeAccuracy, Value
from tunnel_lightning.measures.metric import MomentsMetric
from tunnel_lightning.measures.moments import Moments
from tunnel_lightning.measures.probe import ProbeBank

__all__ = [
    "RANKS",
    "VARIANCES",
    "Accuracy",
    "ClassVariances",
    "LayerValue",
    "LinearHead",
    "Measure",
    "MomentMeasures",
    "Moments",
    "MomentsMetric",
    "ProbeAccuracy",
    "ProbeBank",
    "Value",
    "accumulate",
    "check_memory",
    "class_variances",
    "effective_rank",
    "eigenvalues",
    "first_two",
    "id_ood_alignment",
    "id_ood_pearson",
    "measure",
    "numerical_rank",
    "ood_retained",
    "participation_ratio",
    "rankme",
    "required_bytes",
    "ridge",
    "ridge_from_moments",
    "stable_rank",
    "strength_bin",
    "values_of",
]
