"""Transfer measures of Harun et al."""

import math

import numpy as np
import pytest

from tunnel_lightning.measures import id_ood_alignment, id_ood_pearson, ood_retained, strength_bin


def test_retained_is_last_over_best() -> None:
    assert ood_retained([0.2, 0.8, 0.6]) == pytest.approx(75)
    assert ood_retained([0.2, 0.6, 0.8]) == 100
    assert ood_retained([math.nan, 0.8, 0.4]) == pytest.approx(50)


@pytest.mark.parametrize("curve", [[], [0.5, math.nan], [0.0, 0.0]])
def test_retained_undefined(curve: list[float]) -> None:
    assert math.isnan(ood_retained(curve))


def test_pearson_against_numpy_without_nan_layers() -> None:
    x, y = [0.1, math.nan, 0.5, 0.4, 0.9], [0.3, 0.2, 0.1, 0.6, 0.8]
    expected = np.corrcoef([0.1, 0.5, 0.4, 0.9], [0.3, 0.1, 0.6, 0.8])[0, 1]
    assert id_ood_pearson(x, y) == pytest.approx(expected)


def test_pearson_undefined_or_refused() -> None:
    assert math.isnan(id_ood_pearson([0.5], [0.5]))
    assert math.isnan(id_ood_pearson([0.1, 0.2], [0.5, 0.5]))
    with pytest.raises(ValueError, match="2 layers and the OOD curve 1"):
        id_ood_pearson([0.1, 0.2], [0.5])


def test_alignment() -> None:
    assert id_ood_alignment(0.9, 0.5, id_chance=0.1, ood_chance=0.25) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("value", "name"),
    [(100, "negligible"), (95, "negligible"), (94.9, "weak"), (90, "weak"), (80, "medium"), (79.9, "strong")],
)
def test_strength(value: float, name: str) -> None:
    assert strength_bin(value) == name
    assert strength_bin(math.nan) == "unknown"
