import numpy as np
import pytest

from tunnel_lightning.runs import curve, id_dataset, network_accuracy, ood_datasets, probe_variant


def test_defaults_pick_the_id_set_last_step_and_best_split(rows_of):
    rows = rows_of([0.1, 0.2], 0.3, {"Digits": [0.8, 0.9]}, raw=0.05, step=5)
    rows += rows_of([0.4, 0.5], 0.6, raw=0.07, step=9) + rows_of([0.6, 0.7], 0.6, step=9, split="test")
    found = curve(rows)
    assert (found.dataset, found.split, found.step, found.epoch) == ("Glyphs", "test", 9, 1)
    np.testing.assert_array_equal(found.value, [0.6, 0.7])
    found = curve(rows, split="val")
    assert found.layer == ["input", "layers.1", "layers.2"]
    np.testing.assert_array_equal(found.index, [0, 1, 2])
    np.testing.assert_array_equal(found.layers_only().value, [0.4, 0.5])
    np.testing.assert_array_equal(curve(rows, dataset="Digits").value, [0.8, 0.9])


def test_a_layer_written_twice_counts_once_and_the_later_wins(rows_of):
    rows = rows_of([0.1, 0.2]) + rows_of([0.3, 0.4])
    np.testing.assert_array_equal(curve(rows).value, [0.3, 0.4])


def test_nothing_found(rows_of):
    found = curve(rows_of([0.1]), "rank_cov", "rtol=1e-3")
    assert (found.step, found.layer, found.value.shape) == (-1, [], (0,))
    assert curve([]).value.shape == (0,)


def test_the_network_is_no_layer(rows_of):
    assert curve(rows_of([0.1], 0.6), "accuracy", "network").layer == []


def test_finite(rows_of):
    assert curve(rows_of([0.1, np.nan, np.inf, 0.2])).finite().layer == ["layers.1", "layers.4"]


def test_id_dataset_without_a_network_row(rows_of):
    rows = rows_of([0.1], None, {"Digits": [0.5]})
    assert id_dataset(rows) == "Glyphs"
    assert id_dataset(list(reversed(rows))) == "Digits"  # nothing tells them apart: the first
    online = rows[0]._replace(variant="online", split="train")
    assert id_dataset([*reversed(rows), online]) == "Glyphs"
    assert id_dataset([]) is None
    assert ood_datasets(rows) == ["Digits"]


def test_network_accuracy(rows_of):
    rows = rows_of([0.1], 0.6)
    assert network_accuracy(rows, "Glyphs", "val", 100) == 0.6
    assert np.isnan(network_accuracy(rows, "Glyphs", "test", 100))


@pytest.mark.parametrize(
    ("kinds", "decides"),
    [
        (["harun", "logistic", "ridge"], "ridge"),
        (["nguyen", "harun", "logistic"], "logistic"),
        (["nguyen", "harun", "masarczyk"], "masarczyk"),
        (["nguyen", "online", "ridge@addition"], "nguyen"),
        (["online", "ridge@addition"], "ridge"),
        ([], "ridge"),
    ],
)
def test_which_probe_decides(rows_of, kinds, decides):
    rows = rows_of([0.1, 0.2], 0.3, {"Digits": [0.8, 0.9]})
    kept = [row for row in rows if row.measure != "probe_accuracy"]
    kept += [row._replace(variant=kind) for kind in kinds for row in rows if row not in kept]
    assert probe_variant(kept) == curve(kept).variant == decides
    assert ood_datasets(kept) == (["Digits"] if decides in kinds else [])
    assert id_dataset([row for row in kept if row.layer != "network" and row.variant != "online"]) == (
        "Glyphs" if kinds else None
    )


def test_one_probe_decides_for_all_sets_and_never_on_training_images(rows_of):
    rows = rows_of([0.1], 0.3, {"Digits": [0.8]})
    harun = [row._replace(variant="harun") for row in rows if row.measure == "probe_accuracy"]
    mixed = [*harun, *(row for row in rows if row.dataset == "Digits")]
    assert curve(mixed, dataset="Glyphs").layer == [], "ridge decides, though of Digits alone"
    assert probe_variant([*harun, rows[0]._replace(split="train")]) == "harun"
