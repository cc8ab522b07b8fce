import re

import numpy as np
import pytest

from tunnel_lightning.analysis.trim.choose import (
    best_transfer,
    cheapest,
    choose_for,
    choose_keeping,
    difference,
    pareto,
    place_of,
    share_kept,
    verdict,
)

CURVE = {
    "layer": ["input", "a", "b", "c", "d", "network"],
    "flops": [1, 10, 20, 30, 40, 40],
    "val_accuracy": [0.2, 0.5, 0.79, 0.8, 0.8, 0.8],
    "transfer_val:Other": [0.3, 0.9, 0.9, 0.7, 0.6, np.nan],
}


def paired(n, both, only_cut, only_whole, seed=0):
    """Answers of two networks on the same images."""
    cells = np.random.default_rng(seed).choice(
        4, n, p=[both, only_cut, only_whole, 1 - both - only_cut - only_whole]
    )
    return np.isin(cells, (0, 1)), np.isin(cells, (0, 2))


def bootstrap(cut, whole, of):
    random, values = np.random.default_rng(1), []
    for _ in range(4000):
        drawn = random.integers(len(cut), size=len(cut))
        values.append(of(cut[drawn].mean(), whole[drawn].mean()))
    return np.percentile(values, (2.5, 97.5))


def test_the_front_is_what_nothing_beats():
    cost, accuracy = [3, 1, 2, 2, 5, np.nan], [0.9, 0.5, 0.7, 0.6, 0.9, 1.0]
    assert pareto(cost, accuracy).tolist() == [True, True, True, False, False, False]
    assert pareto([2, 2], [0.5, 0.5]).tolist() == [True, True]
    with pytest.raises(ValueError, match="one of each"):
        pareto([1, 2], [1])


def test_the_cheapest_that_keeps_enough():
    assert cheapest([0.9, 0.95, 1.0], [3, 2, 1], whole=1.0, keep=0.9) == 2
    assert cheapest([0.9, 0.95], [1, 1], whole=1.0, keep=0.9) == 1, "of equally cheap ones the better"
    assert cheapest([0.0561], [1], whole=0.11, keep=0.51) == 0, "0.51 * 0.11 is a little more than 0.0561"
    assert cheapest([0.8, np.nan], [1, 2], whole=1.0, keep=0.9) is None
    assert best_transfer([np.nan, np.nan], [1, 2]) is None


@pytest.mark.parametrize("keep", [0, -1, 1.01, float("nan")])
def test_a_share_that_is_none_is_refused(keep):
    with pytest.raises(ValueError, match="keep is a share of the accuracy, above 0 and at most 1"):
        choose_keeping(CURVE, 0.8, keep)


def test_keeping_by_hand():
    assert choose_keeping(CURVE, 0.8, 0.98).line == 2
    assert choose_keeping(CURVE, 0.8, 0.99).line == 3
    assert choose_keeping(CURVE, 0.8, 0.5).line == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"val_accuracy": [0.79, 0.79, 0.79, 0.8, 0.8, 0.8]}, "raw pixels already keeps 98 %"),
        ({"val_accuracy": [0.2, 0.5, 0.6, 0.7, 0.8, 0.8]}, r"every layer is needed \(layer 3: 87.5 %\)"),
        ({"flops": [1, 10, 50, 60, 40, 40]}, "as many FLOPs as the whole"),
        ({"val_accuracy": [0.2, np.nan, np.nan, np.nan, 0.8, 0.8]}, "every layer is needed"),
    ],
)
def test_no_tunnel_is_said(change, why):
    found = choose_keeping(CURVE | change, 0.8, 0.98)
    assert found.line is None
    assert re.search(why, found.why)


def test_a_single_layer_has_nothing_behind_it():
    curve = {key: [values[0], values[1], values[-1]] for key, values in CURVE.items()}
    assert "single layer" in choose_keeping(curve, 0.5, 0.9).why


def test_for_another_set():
    assert choose_for(CURVE, "Other").line == 1, "of equally good ones the cheapest"
    late = CURVE | {"transfer_val:Other": [0.3, 0.5, 0.6, 0.7, 0.8, np.nan]}
    assert "better to Other than the last one" in choose_for(late, "Other").why
    raw = CURVE | {"transfer_val:Other": [0.95, 0.9, 0.6, 0.7, 0.8, np.nan]}
    assert "raw pixels" in choose_for(raw, "Other").why
    dear = CURVE | {"flops": [1, 40, 50, 60, 40, 40]}
    assert "FLOPs" in choose_for(dear, "Other").why


@pytest.mark.parametrize("cells", [(0.85, 0.02, 0.04), (0.5, 0.1, 0.1), (0.4, 0.02, 0.2)])
def test_intervals_agree_with_a_paired_bootstrap(cells):
    cut, whole = paired(1500, *cells)
    for found, of in (
        (share_kept(cut, whole), lambda a, b: a / b),
        (difference(cut, whole), lambda a, b: a - b),
    ):
        low, high = bootstrap(cut, whole, of)
        assert found.value == pytest.approx(of(cut.mean(), whole.mean()))
        assert found.n == 1500
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_pairing_makes_the_interval_narrow():
    cut, whole = paired(1000, 0.7, 0.01, 0.01)
    mixed = np.random.default_rng(5).permutation(cut)
    wide, narrow = share_kept(mixed, whole), share_kept(cut, whole)
    assert wide.value == narrow.value
    assert (narrow.high - narrow.low) < 0.4 * (wide.high - wide.low)


def test_equal_answers_on_few_images_are_not_certain():
    found = share_kept([1] * 20, [1] * 20)
    assert found.value == 1
    assert found.low < 0.98 < 1 < found.high
    assert np.isnan(share_kept([1, 0], [0, 0]).value)
    with pytest.raises(ValueError, match="not of the same images"):
        share_kept([1, 0], [1])


def test_the_verdict():
    assert verdict(share_kept([1] * 100, [1] * 100), 0.9) == "kept"
    assert verdict(share_kept([1] * 90 + [0] * 10, [1] * 92 + [0] * 8), 0.97) == "likely"
    assert verdict(share_kept([0] * 10 + [1] * 90, [1] * 100), 0.95) == "failed"


def test_layers_by_name_and_by_number():
    names = ["layers.0.linear", "layers.1.linear"]
    assert [place_of(each, names) for each in ("layers.1.linear", "1", "2")] == [1, 0, 1]
    for wrong in ("0", "3", "layers.9.linear"):
        with pytest.raises(ValueError, match=r"none of the 2 layers .*layers"):
            place_of(wrong, names)
