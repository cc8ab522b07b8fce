"""The page's maps over time: what they draw, and what is said of transfer."""

import numpy as np
import pytest
from pages import items

from tunnel_lightning.report import write_report
from tunnel_lightning.report.build import _page
from tunnel_lightning.report.charts import Map
from tunnel_lightning.report.over_time import mean_over_sets, over_time
from tunnel_lightning.runs import ProfileTable, Row, curve, tunnels, write_analysis

NAMES = ["layers.0.linear", "layers.1.linear", "layers.2.linear"]


def rows_of(values, dataset="AAA", step=0, variant="ridge", split="test"):
    """Probes of a set at one step, a layer each."""
    at = Row(
        "mlp/version_0", step, step, -1, split, dataset, "", 0, "probe_accuracy", variant, 0.0, 0.01, 50, 8
    )
    return [
        at._replace(layer=name, index=k, value=value)
        for k, (name, value) in enumerate(zip(NAMES, values, strict=True), 1)
    ]


def checkpoints():
    """Three checkpoints with two transfer sets; a fourth set is the trained one."""
    rows = []
    for step, (own, a, b) in {
        100: ([0.2, 0.3, 0.4], [0.8, 0.7, 0.6], [0.6, 0.7, 0.6]),
        200: ([0.3, 0.5, 0.5], [0.8, 0.6, 0.4], [0.6, 0.6, 0.4]),
        300: ([0.3, 0.6, 0.6], [0.8, 0.6, 0.2], [0.6, 0.6, 0.2]),
    }.items():
        rows += [*rows_of(a, "AAA", step), *rows_of(b, "BBB", step), *rows_of(own, "zzz", step)]
    return rows


def transfer_map(rows, own="zzz"):
    found = {each.key: each for each in over_time(rows, own, watched=False).items}
    return found.get("over_time_transfer")


def test_transfer_is_averaged_over_the_sets():
    found = transfer_map(checkpoints())
    np.testing.assert_allclose(found.value, [[70, 70, 70], [70, 60, 60], [60, 40, 20]])
    assert found.short == ["100", "200", "300"]
    assert found.rows == NAMES
    np.testing.assert_array_equal(found.edge, [1.5, 0.5, 0.5], "of the trained set's probe, step by step")
    assert found.title == "Transfer: ridge probe accuracy, mean of 2 sets"
    assert found.note == (
        "Mean of probes of AAA and BBB, which the network was not trained on. At step 100 layer 1 transfers "
        "best (70.0 %) and the last layer keeps 86 % of that; at step 300 layer 1 transfers best (70.0 %) and the "
        "last layer keeps 29 % of that."
    )


def test_a_single_set_keeps_its_name():
    found = transfer_map([row for row in checkpoints() if row.dataset != "BBB"])
    np.testing.assert_allclose(found.value[-1], [60, 40, 20])
    assert found.title == "Transfer: ridge probe accuracy, AAA"
    assert found.note.startswith("Probes of AAA, which the network was not trained on. At step 100 layer 1")


def test_a_profile_without_any_value_is_left_out():
    one = [r._replace(value=np.nan) if (r.step, r.dataset) == (100, "AAA") else r for r in checkpoints()]
    found = transfer_map([row for row in one if row.dataset != "BBB"])
    assert found.short == ["200", "300"]
    assert "At step 200" in found.note


def test_the_trained_set_is_no_transfer_set_whatever_the_order_of_rows():
    rows = checkpoints()
    assert [row.dataset for row in mean_over_sets(sorted(rows, key=lambda row: row.dataset), "zzz")[0]] == [
        "mean of 2 sets"
    ] * 9
    shuffled = [rows[k] for k in np.random.default_rng(0).permutation(len(rows))]
    np.testing.assert_allclose(transfer_map(shuffled).value, transfer_map(rows).value)
    np.testing.assert_array_equal(transfer_map(shuffled).edge, transfer_map(rows).edge)


def test_only_what_every_set_has_is_averaged():
    nan = [
        r._replace(value=np.nan) if (r.step, r.index, r.dataset) == (200, 3, "AAA") else r
        for r in checkpoints()
    ]
    assert np.argwhere(np.isnan(transfer_map(nan).value)).tolist() == [[2, 1]]
    late = [r for r in checkpoints() if (r.step, r.dataset) != (100, "AAA")]
    assert transfer_map(late).short == ["200", "300"], "a set more would be a jump"
    early = [r for r in checkpoints() if (r.step, r.dataset) != (300, "AAA")]
    np.testing.assert_allclose(transfer_map(early).value[-1], [60, 40, 20])
    assert transfer_map(early).title.endswith(", BBB"), "the sets of the last profile"


def test_held_out_images_of_the_probe_that_decides():
    rows = checkpoints()
    other = rows_of([0.1, 0.1, 0.1], "AAA", 300, variant="logistic")
    train = rows_of([0.9, 0.9, 0.9], "AAA", 300, split="train")
    early = rows_of([0.9, 0.9, 0.9], "AAA", 50, split="train") + rows_of(
        [0.9, 0.9, 0.9], "BBB", 50, split="train"
    )
    found = transfer_map([*rows, *other, *train, *early])
    np.testing.assert_array_equal(found.value, transfer_map(rows).value)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_nothing_transfers(value):
    rows = [r if r.dataset == "zzz" else r._replace(value=value) for r in checkpoints()]
    found = transfer_map(rows)
    assert found is None or found.note.endswith("at step 300 layer 1 transfers best (0.0 %).")
    assert (found is None) == np.isnan(value)


def test_one_profile_or_no_other_set_has_no_map():
    assert transfer_map([r for r in checkpoints() if r.step == 300]) is None
    assert transfer_map([r for r in checkpoints() if r.dataset == "zzz"]) is None
    assert transfer_map([r for r in checkpoints() if r.step == 300 or r.dataset == "zzz"]) is None
    assert over_time([], None, watched=True).items == []


def test_profiles_of_the_training_have_the_map(tmp_path, mlp_rows):
    ProfileTable(tmp_path / "profile.csv").append(mlp_rows)
    maps = items(tmp_path, Map)
    assert list(maps) == ["over_time_probe_accuracy", "over_time_transfer", "over_time_rank_cov"]
    found = maps["over_time_transfer"]
    assert (len(found.columns), found.columns[-1]) == (9, "step 420, epoch 6")
    np.testing.assert_allclose(
        found.value[:, -1], 100 * curve(mlp_rows, dataset="Digits").layers_only().value
    )
    assert found.edge[-1] == tunnels(mlp_rows)["id95"].start - 1.5


def test_checkpoints_of_an_analysis_have_the_map_on_the_page_and_as_a_figure(tmp_path, three_sets_rows):
    rows = [r._replace(split="test") for r in three_sets_rows if r.variant != "online"]
    folder = write_analysis(tmp_path / "analysis", rows, summary={"dataset": "Glyphs", "step": 140})
    section = next(s for s in _page([folder])[0].sections if s.key == "over_time")
    assert section.text == "Measured at each checkpoint."
    found = {each.key: each for each in section.items}["over_time_transfer"]
    page = write_report(folder, figures=tmp_path / "figures", formats=["svg"])
    assert found.title in page.read_text()
    assert found.note.replace(" %", "&nbsp;%") in page.read_text()
    assert (tmp_path / "figures" / "over_time_transfer.svg").exists()
    axes = found.draw().axes[0]
    np.testing.assert_allclose(axes.collections[0].get_array(), found.value)
    assert "mean of 3 sets test" in axes.texts[0].get_text()
