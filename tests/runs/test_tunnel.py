import random

import numpy as np
import pytest

from tunnel_lightning.runs import RULES, ood_datasets, tunnel_start, tunnels

# An MLP of 12 x 1028 on CIFAR-10, three seeds (means), published by a replication of the tunnel paper: the
# tunnel starts at layer 4 by 95 % and at layer 5 by 98 %, and transfer peaks at layer 3.
MLP_ID = np.array([38.5, 51.0, 53.4, 55.1, 56.2, 56.7, 56.6, 56.6, 56.7, 56.6, 56.6, 56.6, 56.7]) / 100
MLP_OOD = np.array([41.0, 49.1, 51.2, 49.0, 47.6, 45.3, 40.5, 36.6, 33.1, 31.7, 30.5, 30.0, 25.1]) / 100


def test_gold_mlp(rows_of):
    found = tunnels(rows_of(MLP_ID, 0.567, {"CIFAR100": MLP_OOD}, dataset="CIFAR10"))
    assert list(found) == list(RULES) == ["id95", "id98", "ood"]
    assert [t.start for t in found.values()] == [4, 5, 4]
    assert [t.layer for t in found.values()] == ["layers.4", "layers.5", "layers.4"]
    assert [t.extractor_length for t in found.values()] == [3, 4, 3]
    assert found["id95"].reference == 0.567
    assert found["id95"].threshold == pytest.approx(0.53865)
    assert found["ood"].reference == 0.512
    assert found["ood"].note == (
        "transfer to CIFAR100 peaks at layer 3 (51.2 %), the tunnel starts behind it; "
        "the last layer has 25.1 %"
    )


def test_row_order_does_not_matter(rows_of):
    rows = rows_of(MLP_ID, 0.567, {"CIFAR100": MLP_OOD})
    shuffled = rows.copy()
    random.Random(0).shuffle(shuffled)
    assert tunnels(shuffled) == tunnels(rows)


def test_no_network_row_takes_the_last_probe(rows_of):
    found = tunnel_start(rows_of([0.2, 0.4, 0.57, 0.6, 0.6]), "id95")
    assert (found.start, found.reference) == (3, 0.6)
    assert "the last probe's 60.0 %" in found.note


def test_rounding_does_not_decide(rows_of):
    assert 0.98 * 0.46 > 0.4508  # in floats; on paper they are equal
    assert tunnel_start(rows_of([0.2, 0.3, 0.4508, 0.46], 0.46), "id98").start == 3


def test_nan_network_accuracy_takes_the_last_finite_probe(rows_of):
    found = tunnel_start(rows_of([0.2, 0.5, 0.6, np.nan], float("nan")), "id95")
    assert (found.start, found.reference) == (3, 0.6)


@pytest.mark.parametrize("rule", ["id95", "id98"])
def test_separable_by_raw_pixels(rows_of, rule):
    found = tunnel_start(rows_of([0.98, 0.99, 0.99], 0.99, raw=0.975), rule)
    assert (found.start, found.layer, found.extractor_length) == (None, None, 0)
    assert found.note.startswith("no extractor: the Glyphs val probe on raw pixels (97.5 %)")
    assert "linearly separable" in found.note


def test_untrained_network_is_not_called_separable(rows_of):
    found = tunnel_start(rows_of([0.2, 0.3], 0.04, raw=0.12), "id95")
    assert found.start is None
    assert "the network is no better than that" in found.note


def test_first_layer_reaches(rows_of):
    found = tunnels(rows_of([0.96, 0.99, 1.0], 1.0, raw=0.5))
    assert (found["id95"].start, found["id95"].extractor_length) == (None, 0)
    assert "layer 1" in found["id95"].note
    assert found["id98"].start == 2


def test_no_layer_reaches(rows_of):
    found = tunnel_start(rows_of([0.2, 0.3, 0.4], 0.9), "id95")
    assert (found.start, found.extractor_length) == (None, 3)
    assert found.note.startswith("no tunnel: no layer's")


def test_only_the_last_layer_reaches(rows_of):
    found = tunnel_start(rows_of([0.2, 0.3, 0.9], 0.9), "id95")
    assert (found.start, found.extractor_length) == (3, 2)
    assert "the tunnel is that layer alone" in found.note


def test_dips_are_told(rows_of):
    found = tunnel_start(rows_of([0.2, 0.9, 0.7, 0.9, 0.8, 0.9], 0.9), "id95")
    assert found.start == 2
    assert found.note.endswith("; 2 of the 4 layers behind it are below that again")


def test_nan_layers_are_passed_over(rows_of):
    rows = rows_of([0.2, np.nan, 0.9, np.nan, 0.9], 0.9, {"Digits": [0.5, np.nan, 0.7, 0.6, 0.4]})
    found = tunnels(rows)
    assert [t.start for t in found.values()] == [3, 3, 4]
    assert "below that again" not in found["id95"].note


def test_all_nan_is_unknown(rows_of):
    found = tunnels(rows_of([np.nan] * 3, 0.9, {"Digits": [np.nan] * 3}))
    assert all(t.start is None and t.extractor_length is None for t in found.values())
    assert all(t.note.startswith("unknown") for t in found.values())


def test_no_rows_is_unknown(rows_of):
    for rows in ([], rows_of([], 0.9)):
        assert all(t.note.startswith("unknown") for t in tunnels(rows).values())


def test_no_ood_rows(rows_of):
    found = tunnel_start(rows_of(MLP_ID, 0.567), "ood")
    assert found.start is None
    assert found.note == "unknown: no ridge probe of an out-of-distribution set was measured"


def test_several_ood_sets_are_averaged(rows_of):
    # Alone A peaks at 1 and B at 4; their mean .5 .55 .65 .6 .3 peaks at 3.
    sets = {"A": [0.9, 0.7, 0.6, 0.3, 0.3], "B": [0.1, 0.4, 0.7, 0.9, 0.3]}
    found = tunnel_start(rows_of([0.2, 0.5, 0.8, 0.9, 0.9], 0.9, sets), "ood")
    assert (found.start, found.datasets) == (4, ("A", "B"))
    assert found.reference == pytest.approx(0.65)


def test_ood_set_without_values_is_left_out_and_partial_layers_too(rows_of):
    sets = {"A": [0.1, 0.9, 0.8, 0.2], "B": [np.nan] * 4, "C": [0.1, np.nan, 0.8, 0.2]}
    found = tunnel_start(rows_of([0.5] * 4, 0.9, sets), "ood")
    assert found.datasets == ("A", "C")
    assert found.start == 4  # layer 2 has A alone


def test_ood_peak_at_the_last_layer(rows_of):
    found = tunnel_start(rows_of([0.5] * 3, 0.9, {"Digits": [0.1, 0.2, 0.3]}), "ood")
    assert (found.start, found.extractor_length) == (None, 3)
    assert found.note.startswith("no tunnel")


def test_ood_best_from_raw_pixels(rows_of):
    rows = rows_of([0.5] * 3, 0.9, {"Digits": [0.3, 0.2, 0.1]})
    ood = next(r for r in rows if r.dataset == "Digits")
    found = tunnel_start([*rows, ood._replace(layer="input", index=0, value=0.4)], "ood")
    assert (found.start, found.extractor_length) == (None, 0)
    assert found.note.startswith("no extractor")


def test_fall_within_noise_is_told(rows_of):
    flat = {"Digits": [0.90, 0.91, 0.90]}
    assert "two standard errors" in tunnel_start(rows_of([0.5] * 3, 0.9, flat, se=0.02), "ood").note
    assert "two standard errors" not in tunnel_start(rows_of([0.5] * 3, 0.9, flat, se=0.002), "ood").note
    assert "two standard errors" not in tunnel_start(rows_of([0.5] * 3, 0.9, flat, se=np.nan), "ood").note


def test_fall_from_100_percent_within_noise_is_told(rows_of):
    # The binomial error of 100 % is 0; that of 50 of 50 images is not.
    def note(n, last=1.0 - 1e-9):
        rows = rows_of([0.5] * 3, 0.9, {"Digits": [0.9, 1.0, last]}, se=0.0)
        return tunnel_start([row._replace(n=n) for row in rows], "ood").note

    assert "two standard errors" in note(50)
    assert "two standard errors" in note(50, last=0.96)
    assert "two standard errors" not in note(5000, last=0.96)
    assert "two standard errors" not in note(0)  # unknown


def test_last_step_counts(rows_of):
    old = rows_of([0.9, 0.9, 0.9], 0.9, {"Digits": [0.1, 0.9, 0.3]}, step=10)
    new = rows_of([0.2, 0.4, 0.9], 0.9, {"Digits": [0.9, 0.2, 0.1]}, step=90)
    online = [new[0]._replace(step=95, variant="online")]
    found = tunnels(new + old + online)
    assert [(t.start, t.step) for t in found.values()] == [(3, 90), (3, 90), (2, 90)]


def test_test_split_before_val_and_never_train(rows_of):
    val = rows_of([0.2, 0.9, 0.9], 0.9)
    test = rows_of([0.2, 0.3, 0.9], 0.9, split="test")
    train = rows_of([0.9, 0.9, 0.9], 0.9, split="train")
    assert (tunnel_start(val + train).start, tunnel_start(val + train).split) == (2, "val")
    assert (tunnel_start(val + test + train).start, tunnel_start(val + test + train).split) == (3, "test")
    assert tunnel_start(train).note.startswith("unknown")
    # A test probe without the network's test accuracy: the split that has both.
    assert tunnel_start(val + rows_of([0.2, 0.3, 0.9], split="test")).split == "val"


def test_wrong_use_is_refused(rows_of):
    rows = rows_of([0.5], 0.9)
    with pytest.raises(ValueError, match="choose one of id95, id98, ood"):
        tunnel_start(rows, "id90")
    with pytest.raises(ValueError, match="2 runs"):
        tunnel_start([*rows, rows[0]._replace(run_id="other")])


def by(kind, rows):
    return [row._replace(variant=kind) if row.measure == "probe_accuracy" else row for row in rows]


def test_another_probe_decides_where_there_is_no_ridge_probe_and_is_named(rows_of):
    rows = rows_of(MLP_ID, 0.567, {"CIFAR100": MLP_OOD}, dataset="CIFAR10")
    ridge, harun = tunnels(rows), tunnels(by("harun", rows))
    assert [t.start for t in harun.values()] == [t.start for t in ridge.values()] == [4, 5, 4]
    assert "first whose CIFAR10 val harun probe (" in harun["id95"].note
    assert "transfer to CIFAR100 by the harun probe peaks at" in harun["ood"].note
    assert not any("ridge" in t.note or "harun" in t.note for t in ridge.values())
    both = [*rows, *(row._replace(value=0.0) for row in by("harun", rows) if row.variant == "harun")]
    assert tunnels(both) == ridge


@pytest.mark.parametrize("network", [0.0, None])
def test_nothing_is_right(rows_of, network):
    found = tunnels(rows_of([0.0, 0.0, 0.0], network, {"Digits": [0.0, 0.0, 0.0]}, raw=0.0))
    assert all(t.note.startswith("unknown") and t.extractor_length is None for t in found.values())
    assert "0.0 %" in found["id95"].note
    assert found["ood"].note == "unknown: no probe is right about any image of Digits"


def test_the_trained_set_is_the_one_that_is_told(rows_of):
    rows = sorted(rows_of([0.3, 0.5, 0.5], ood={"Digits": [0.9, 0.6, 0.5]}), key=lambda row: row.dataset)
    assert tunnels(rows)["id95"].datasets == ("Digits",), "nothing tells: the first"
    found = tunnels(rows, "Glyphs")
    assert [found[rule].datasets for rule in ("id95", "id98", "ood")] == [
        ("Glyphs",),
        ("Glyphs",),
        ("Digits",),
    ]
    assert found["id95"].start == tunnel_start(rows, "id95", "Glyphs").start == 2
    assert ood_datasets(rows, "Glyphs") == ["Digits"]
