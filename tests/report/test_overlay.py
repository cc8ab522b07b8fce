"""The page of several runs, and of a comparison."""

import json
import shutil

import numpy as np
import pytest
from pages import items

from tunnel_lightning.report import write_report
from tunnel_lightning.report.build import _page
from tunnel_lightning.report.charts import Chart, Map, Points, Table
from tunnel_lightning.report.overlay import Member, page_of_runs
from tunnel_lightning.runs import ProfileTable, RunError, curve, write_analysis


def test_several_runs_lie_over_one_another(tmp_path, mlp_rows, resnet_rows, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = []
    for run_id, rows in {
        "mlp/version_0": mlp_rows,
        "mlp/version_1": mlp_rows,
        "net/version_0": resnet_rows,
    }.items():
        folders.append(tmp_path / run_id)
        shifted = [r._replace(run_id=run_id, value=r.value * (0.9 if "1" in run_id else 1)) for r in rows]
        ProfileTable(folders[-1] / "profile.csv").append(shifted)
    assert write_report(folders).resolve() == tmp_path / "report.html"
    page, _ = _page(folders)
    assert page.headline.startswith("3 networks. Tunnel by the 95 % rule: mlp from layer")
    charts = {i.key: i for i in page.sections[0].items if isinstance(i, Chart)}
    mlp, net = charts["overlay_rank_layer"].lines
    ranks = curve(mlp_rows, "rank_cov", "rtol=1e-3").value
    np.testing.assert_allclose(mlp.y, 0.95 * ranks)
    np.testing.assert_allclose(mlp.high - mlp.y, 0.05 * ranks * np.sqrt(2))
    assert (mlp.label, net.label) == ("mlp", "net")
    assert net.low is None
    by_depth = charts["overlay_id_depth"].lines
    assert (by_depth[0].x[0], by_depth[0].x[-1], by_depth[1].x[-1]) == (1 / 12, 1, 1)
    with pytest.raises(RunError, match="The 2 folders are of 1 runs: give each run once"):
        write_report([folders[0], folders[0]])


def test_networks_of_one_name_and_other_layers_are_no_seeds(tmp_path, mlp_rows, resnet_rows):
    for k, rows in enumerate((mlp_rows, resnet_rows)):
        table = ProfileTable(tmp_path / f"v{k}" / "profile.csv")
        table.append([r._replace(run_id=f"net/version_{k}") for r in rows])
    page, _ = _page([tmp_path / "v0", tmp_path / "v1"])
    assert [line.label for line in page.sections[0].items[0].lines] == ["net/version_0", "net/version_1"]


def test_comparison(compared):
    page, home = _page([compared])
    assert home == compared
    assert (
        page.headline == "4 networks. Tunnel by the 95 % rule: mlp from layer 6; resnet & more from layer 13"
    )
    assert [(n.value, n.label) for n in page.numbers] == [("55.0 %", "mlp"), ("75.0 %", "resnet & more")]
    assert page.numbers[0].detail == "mean accuracy of 2 networks, 50.0 % to 60.0 %"
    found = items(compared, (Map, Points, Table, Chart))
    assert found["cka"].breaks == [
        (0, "mlp/version_0"), (12, "mlp/version_1"), (24, "resnet/version_0"), (57, "resnet/version_1"),
    ]  # fmt: skip
    assert found["cka"].blocks == [
        (24, 30, "resnet/version_0:stem.conv to resnet/version_0:stages.0.2.conv2")
    ]
    points = found["images_a_b"]
    assert len(points.place) == 9
    assert points.hover[0].endswith("<br>mlp: 0 %<br>resnet &amp; more: 0 %")
    assert sum(int(text.split()[0]) for text in points.hover) == 500
    assert found["table_0"].rows[1] == ["mlp/version_0", "resnet/version_0", 71.2, None]
    assert [line.label for line in found["overlay_id_layer"].lines] == ["mlp", "resnet & more"]
    assert write_report(compared) == compared / "report.html"


def test_notes_of_a_comparison(compared, tmp_path):
    folder = tmp_path / "compared"
    shutil.copytree(compared, folder)
    summary = json.loads((folder / "comparison.json").read_text())
    (folder / "comparison.json").write_text(json.dumps({**summary, "notes": ["<b> & so on"]}))
    assert '<ul class="notes"><li>&lt;b&gt; &amp; so on</li></ul>' in write_report(folder).read_text()


def run_of(folder, run_id, rows, analysed=None):
    """A run folder with profiles taken in training, and with an analysis or not."""
    path = folder / run_id
    if rows:
        ProfileTable(path / "profile.csv").append([r._replace(run_id=run_id) for r in rows])
    if analysed:
        write_analysis(
            path / "analysis", [r._replace(run_id=run_id) for r in analysed], summary={"step": 420}
        )
    return path


@pytest.fixture
def tested(mlp_rows):
    """The last profile as an analysis would have it: on test images, and 10 points higher."""
    last = [r for r in mlp_rows if r.step == 420 and r.variant != "online"]
    return [
        r._replace(split="test", value=r.value + 0.1 * (r.dataset == "Glyphs" and r.value < 1)) for r in last
    ]


def profiles(folders):
    """Charts and the table of the profiles, their text, and the notes of the page."""
    page, _ = _page(folders)
    section = next(each for each in page.sections if each.key == "profiles")
    return {item.key: item for item in section.items}, section.text, page.notes


def test_analyses_are_laid_over_one_another_where_all_runs_have_one(tmp_path, mlp_rows, tested):
    folders = [run_of(tmp_path, f"mlp/version_{k}", mlp_rows, tested) for k in range(2)]
    found, text, notes = profiles(folders)
    (line,) = found["overlay_id_layer"].lines
    np.testing.assert_allclose(line.y, 100 * curve(tested).layers_only().value)
    assert line.hover[0].endswith("<br>Glyphs test images, analysed")
    assert text.startswith("Of the runs' analyses, on test images. Lines are means")
    assert found["runs"].rows[0][2:4] == ["test images, analysed", 420]
    assert not any("analysed" in note for note in notes)


def test_all_profiles_are_of_the_training_where_one_run_is_not_analysed(tmp_path, mlp_rows, tested):
    folders = [
        run_of(tmp_path, "mlp/version_0", mlp_rows, tested),
        run_of(tmp_path, "mlp/version_1", mlp_rows),
    ]
    found, text, notes = profiles(folders)
    (line,) = found["overlay_id_layer"].lines
    np.testing.assert_allclose(line.y, 100 * curve(mlp_rows).layers_only().value)
    np.testing.assert_allclose(line.high, line.low)
    assert line.hover[0].endswith("<br>Glyphs validation images, in training")
    assert text.startswith("The last profiles taken in training, on validation images. Lines are means")
    assert [row[2] for row in found["runs"].rows] == ["validation images, in training"] * 2
    assert (
        "mlp/version_1: not analysed, so all profiles are the last ones taken in training, on validation images"
        in notes
    )


def test_profiles_of_two_kinds_are_never_averaged(tmp_path, mlp_rows, tested):
    folders = [run_of(tmp_path, "mlp/version_0", [], tested), run_of(tmp_path, "mlp/version_1", mlp_rows)]
    found, text, notes = profiles(folders)
    for key in ("overlay_id_layer", "overlay_ood_depth", "overlay_rank_layer"):
        lines = found[key].lines
        assert [line.label for line in lines] == ["mlp/version_0", "mlp/version_1"]
        assert all(line.low is None for line in lines)
        assert lines[0].dash != lines[1].dash, "of one colour, they are told apart"
    assert "each line is one network" in text
    assert "means" not in text
    assert [row[2] for row in found["runs"].rows] == [
        "test images, analysed",
        "validation images, in training",
    ]
    assert notes[0].startswith("profiles of two kinds, each network by itself, without means: analyses")


def test_probes_of_two_kinds_are_never_averaged(tmp_path, mlp_rows):
    other = [r._replace(variant="harun") if r.variant == "ridge" else r for r in mlp_rows]
    folders = [run_of(tmp_path, f"mlp/version_{k}", rows) for k, rows in enumerate((mlp_rows, other))]
    found, _, _ = profiles(folders)
    assert len(found["overlay_id_layer"].lines) == 2
    assert len(found["overlay_rank_layer"].lines) == 1


def test_the_trained_set_is_the_one_each_run_knows(tmp_path, tested):
    names = {"Glyphs": "zzz", "Digits": "AAA"}
    rows = [r._replace(dataset=names[r.dataset]) for r in tested if r.measure != "accuracy"]
    rows.sort(key=lambda row: row.dataset)
    members = [
        Member(f"mlp/version_{k}", [r._replace(run_id=f"mlp/version_{k}") for r in rows], "zzz", "mlp")
        for k in range(2)
    ]
    page = page_of_runs(members)
    found = {item.key: item for section in page.sections for item in section.items}
    for key, name in (("id", "zzz"), ("ood", "AAA")):
        (line,) = found[f"overlay_{key}_layer"].lines
        np.testing.assert_allclose(line.y, 100 * curve(rows, dataset=name).layers_only().value)
    assert page.headline == "2 networks. Tunnel by the 95 % rule: mlp from layer 6"
    assert [row[6:9] for row in found["runs"].rows] == [[6, 7, 3]] * 2
    assert "Ridge probe accuracy, test %" in found["all_layers"].columns
    other = [
        *members,
        Member("net/version_0", [r._replace(run_id="net/version_0") for r in rows], "AAA", "net"),
    ]
    (table,) = page_of_runs(other).sections[-1].items
    assert "Ridge probe accuracy, test %" not in table.columns, "there is no one trained set"
    assert {"Ridge probe accuracy, zzz test %", "Ridge probe accuracy, AAA test %"} <= set(table.columns)


def test_runs_on_other_sets_are_no_seeds(tmp_path, mlp_rows):
    other = [r._replace(dataset="Other") if r.dataset == "Glyphs" else r for r in mlp_rows]
    folders = [run_of(tmp_path, f"mlp/version_{k}", rows) for k, rows in enumerate((mlp_rows, other))]
    found, _, _ = profiles(folders)
    assert [line.label for line in found["overlay_rank_layer"].lines] == ["mlp/version_0", "mlp/version_1"]
    assert [row[:2] for row in found["runs"].rows] == [[f"mlp/version_{k}"] * 2 for k in range(2)]


def of_sizes(compared, folder, sizes):
    """The comparison with so many networks in its two groups."""
    shutil.copytree(compared, folder)
    summary = json.loads((folder / "comparison.json").read_text())
    for group, size in zip(summary["groups"], sizes, strict=True):
        group["run_ids"] = group["run_ids"][:size]
    (folder / "comparison.json").write_text(json.dumps(summary))
    return folder


@pytest.mark.parametrize(("sizes", "drawn"), [((2, 2), ["images_a_b"]), ((1, 2), []), ((1, 1), [])])
def test_images_are_drawn_for_groups_of_several_networks(compared, tmp_path, sizes, drawn):
    assert list(items(of_sizes(compared, tmp_path / "compared", sizes), Points)) == drawn
