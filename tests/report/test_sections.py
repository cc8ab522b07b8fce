"""The sections of one run's page: they say and draw the numbers of the files."""

import io
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from pages import items
from rich.console import Console

from tunnel_lightning.report import print_profile, write_report
from tunnel_lightning.report.build import _page
from tunnel_lightning.report.charts import Chart, Map, Table
from tunnel_lightning.report.interactive import figure
from tunnel_lightning.report.sections import page_of_run
from tunnel_lightning.report.source import read_source
from tunnel_lightning.report.structure import collapse
from tunnel_lightning.runs import (
    ProfileTable,
    Row,
    Run,
    RunError,
    curve,
    load_analysis,
    tunnels,
    write_analysis,
)


@pytest.fixture(scope="module")
def measured(analysed):
    return load_analysis(analysed).run.rows


def analysis_of(kinds, folder, rows, **summary):
    """The page of an analysis whose ridge probes are of these kinds instead."""
    ridge = [r for r in rows if r.variant == "ridge"]
    rest = [r for r in rows if r.variant not in ("ridge", "logistic", "masarczyk", "ridge@addition")]
    rows = [*rest, *(r._replace(variant=kind) for kind in kinds for r in ridge)]
    return page_of_run(read_source(write_analysis(folder, rows, summary=summary)))


def test_the_profile_draws_the_numbers_of_the_table(analysed):
    rows = load_analysis(analysed).run.rows
    chart = items(analysed, Chart)["depth_profile"]
    drawn = {line.label: line for line in chart.lines if line.legend}
    ridge = curve(rows).layers_only()
    np.testing.assert_allclose(drawn["Glyphs ridge (ID)"].y, 100 * ridge.value)
    np.testing.assert_allclose(drawn["Glyphs ridge (ID)"].high, 100 * (ridge.value + ridge.se))
    np.testing.assert_array_equal(drawn["numerical rank"].y, curve(rows, "rank_cov", "rtol=1e-3").value)
    each = [drawn[f"{name} ridge (OOD)"].y for name in ("Digits", "Fashion")]
    np.testing.assert_allclose(drawn["mean of 2 OOD sets"].y, np.mean(each, axis=0))
    assert [line.label for line in chart.lines if not line.shown] == [
        "Glyphs logistic (ID)", "Glyphs as Masarczyk et al. (ID)",
    ]  # fmt: skip
    starts = {rule: t.start for rule, t in tunnels(rows).items()}
    assert {m.label: m.x for m in chart.marks} == {
        "95 %": starts["id95"],
        "98 %": starts["id98"],
        "OOD": starts["ood"],
    }
    assert chart.shade[0] == starts["id95"]
    said = drawn["Glyphs ridge (ID)"].hover[4]
    assert said.startswith("<b>layer 5: layers.&lt;b&gt;5")
    assert re.search(r"50\.\d % \(95 % interval 4\d\.\d to 5\d\.\d %\)<br>256 columns, 2,000 images$", said)
    raw = [line for line in chart.lines if not line.legend]
    assert [float(line.y[0]) for line in raw] == pytest.approx([12.0, 95.0, 85.0])


def test_a_map_has_its_blocks_and_gaps(analysed):
    maps = items(analysed, Map)
    assert maps["cka_all"].blocks == [(12, 23, "layers.6.linear.norm to layers.11.linear.act")]
    assert maps["cka"].blocks == []
    heat = figure(maps["cka"])["data"][0]
    assert heat["z"][2][5] is None
    assert heat["z"][3][3] == 1
    assert len(figure(maps["cka_all"])["layout"]["shapes"]) == 2
    overtime = maps["over_time_probe_accuracy"]
    assert overtime.short[-1] == "420"
    assert overtime.edge[-1] == 4.5


def test_before_and_after_additions_are_paired(analysed):
    after, before = items(analysed, Chart)["additions"].lines
    assert after.x.tolist() == [2, 4, 6, 8, 10, 12]
    assert before.x.tolist() == [1, 3, 5, 7, 9, 11]
    np.testing.assert_allclose(after.y - before.y, 10)


def test_eigenvalues_are_relative_and_few(analysed):
    chart = items(analysed, Chart)["spectrum_Glyphs_test"]
    first, *_, threshold = chart.lines
    assert first.y[0] == 1
    assert len(first.x) < 200
    assert (first.x[0], first.x[-1]) == (1, 256)
    assert "rank 256 of at most 256" in first.hover[0]
    assert set(threshold.y) == {1e-3}


def test_the_table_holds_every_measure_of_the_layers(analysed):
    table = items(analysed, Table)["all_layers"]
    rows = load_analysis(analysed).run.rows
    named = dict(zip(table.columns, zip(*table.rows, strict=True), strict=True))
    np.testing.assert_allclose(named["Ridge probe accuracy, test %"][:13], 100 * curve(rows).value)
    assert named["layer"][5] == "layers.<b>5&%{x}</b>"
    assert named["layer"][-1] == "network"
    assert named["flops"][1] == 131_072
    assert named["Accuracy of the network, test %"][-1] == pytest.approx(54.0)
    assert not any("gram256" in column or "addition" in column for column in table.columns)


def test_the_analysis_of_a_folder_alone(analysed):
    source = read_source(analysed / "analysis")
    assert source.run_id == "mlp/version_0"
    assert source.manifest["versions"] == {"torch": "2.11.0"}
    assert len({row.step for row in source.history}) > 1
    assert source.watched
    assert page_of_run(source).headline == page_of_run(read_source(analysed)).headline


def test_a_page_is_of_the_checkpoint_that_was_analysed(tmp_path, mlp_rows):
    source = read_source(write_analysis(tmp_path, mlp_rows, summary={"step": 210}))
    assert {row.step for row in source.rows} == {210}
    assert not source.watched
    page = page_of_run(source)
    assert page.subtitle.endswith("epoch 3, step 210")
    over_time = next(section for section in page.sections if section.key == "over_time")
    assert over_time.items[0].short[-1] == "420"
    assert over_time.text == "Measured at each checkpoint."


def test_transfer_by_kind_of_probe(analysed):
    table = items(analysed, Table)["transfer"]
    assert [row[:2] for row in table.rows] == [
        ["Digits", "ridge"],
        ["Digits", "logistic"],
        ["Fashion", "ridge"],
    ]
    ridge = dict(zip(table.columns, table.rows[0], strict=True))
    assert (ridge["kept %"], ridge["tunnel effect"]) == (77.6, "strong")
    assert table.rows[1][-1] is None


def test_a_page_by_another_probe(analysed, measured, tmp_path):
    usual, page = page_of_run(read_source(analysed)), analysis_of(["harun"], tmp_path, measured)
    assert page.headline == usual.headline
    assert page.numbers == usual.numbers
    found = {item.key: item for section in page.sections for item in section.items}
    assert [row[1] for row in found["transfer"].rows] == ["as Harun et al."] * 2
    assert [row[2:] for row in found["transfer"].rows] == [
        row[2:-1] for row in items(analysed, Table)["transfer"].rows if row[1] == "ridge"
    ]
    drawn = {line.label: line for line in found["depth_profile"].lines if line.legend}
    assert drawn["Glyphs as Harun et al. (ID)"].shown
    assert drawn["Glyphs as Harun et al. (ID)"].low is not None
    assert "Fashion as Harun et al. (OOD)" in drawn
    assert "harun probe" in found["rules"].rows[0][3]
    assert found["probe_scores"].title == "Harun probe by how it is scored"
    write_report(tmp_path, figures=tmp_path / "figures", formats=["svg"])


def test_every_kind_of_probe_is_shown_known_or_not(measured, tmp_path):
    page = analysis_of(["made up", "nguyen", "other"], tmp_path, measured)
    found = {item.key: item for section in page.sections for item in section.items}
    names = ["as Nguyen et al.", "made up", "other"]
    assert [line.label for line in found["probes"].lines] == names, "the one that decides first"
    assert len({(line.color, line.dash) for line in found["probes"].lines}) == 3
    assert [row[1] for row in found["transfer"].rows] == names * 2
    assert "Probe accuracy (Nguyen et al.), test %" in found["all_layers"].columns


def test_what_probes_are_fitted_on_is_said(analysed, measured, tmp_path):
    charts = items(analysed, Chart)
    said = "Ridge probes are fitted on all training images, the others on up to 10,000 of them."
    assert charts["probes"].note == charts["transfer_Digits"].note == said
    for kinds, settings, note in (
        (
            ["ridge", "harun"],
            {"fit_images": 500, "sample": 300},
            "on up to 500 training images, the others on up to 300",
        ),
        (["logistic", "harun"], {"sample": 300}, ""),
        (["ridge", "harun"], {}, ""),
    ):
        page = analysis_of(kinds, tmp_path, measured, settings=settings)
        (chart,) = [item for s in page.sections for item in s.items if item.key == "probes"]
        assert note in chart.note
        assert bool(note) == bool(chart.note)


SAMPLED = ("rbf_cka", "procrustes", "svcca", "pwcca")


@pytest.mark.parametrize(
    ("settings", "images"),
    [
        ({"map_images": 2_000, "sample": 10_000, "eval_images": None}, "On 2,000 test images."),
        ({"map_images": 2_000, "sample": 1_500, "eval_images": None}, "On 1,500 test images."),
        ({"map_images": 2_000, "sample": 10_000, "eval_images": 700}, "On 700 test images."),
        (
            {"map_images": 5_000, "sample": 10_000, "eval_images": None},
            "On 2,000 test images.",
        ),  # all there are
        ({"sample": 10_000}, "On a sample of the test images."),
    ],
)
def test_samples_are_stated(analysed, measured, tmp_path, settings, images):
    cka = load_analysis(analysed).similarity["cka"]
    maps = dict.fromkeys((*SAMPLED, "cka"), cka)
    folder = write_analysis(tmp_path, measured, similarity=maps, summary={"settings": settings})
    notes = {name: each.note for name, each in items(folder, Map).items()}
    assert notes["rbf_cka"] == notes["procrustes"] == images
    assert notes["pwcca"].startswith(f"{images} Canonical correlations come out near 1 by construction")
    assert notes["pwcca"].endswith("Here layers have 256 to 256.")
    assert notes["svcca"].endswith("of which it takes the components that hold 99 % of the variance.")
    assert "test images" not in notes["cka"]


def test_pictures_say_how_many_images_they_hold(analysed):
    sections = {section.key: section for section in _page([analysed])[0].sections}
    assert sections["pictures"].text.startswith("t-SNE of 300 test images:")


@pytest.mark.parametrize("name", ["Glyphs", "a|b", "x|test|y", "|", "test"])
def test_a_set_may_be_called_anything(measured, tmp_path, name):
    rows = [row._replace(dataset=name) if row.dataset == "Glyphs" else row for row in measured]
    layers = [row.layer for row in rows if (row.measure, row.variant) == ("rank_cov", "rtol=1e-3")]
    spectrum = {f"{name}|test|{layer}": np.geomspace(1, 1e-6, 256) for layer in layers}
    chart = items(write_analysis(tmp_path, rows, spectrum=spectrum), Chart)[f"spectrum_{name}_test"]
    assert chart.title == f"Eigenvalues of the covariance, {name} test"
    assert [line.label for line in chart.lines[:-1]] == [f"layer {i}: {n}" for i, n in enumerate(layers, 1)]


def test_a_spectrum_of_another_name_is_refused(measured, tmp_path):
    folder = write_analysis(tmp_path, measured, spectrum={"Glyphs|layers.0": np.ones(3)})
    with pytest.raises(
        RunError, match=r"'Glyphs\|layers\.0' is not called DATASET\|SPLIT\|LAYER: run analyze again"
    ):
        write_report(folder)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_network_that_knows_nothing(measured, tmp_path, value):
    rows = [r for r in measured if r.measure != "ood_retained"]
    rows = [r._replace(value=value) if value or r.measure.endswith("accuracy") else r for r in rows]
    folder = write_analysis(tmp_path / "mlp", rows)
    page = page_of_run(read_source(folder))
    assert page.headline.startswith("Where the tunnel starts is unknown: the ")
    write_report(folder, figures=tmp_path / "figures", formats=["svg"])
    others = write_analysis(tmp_path / "other", [r._replace(run_id="other/version_0") for r in rows])
    page, _ = _page([folder, others])
    (table,) = [item for s in page.sections for item in s.items if item.key == "runs"]
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert [row[rule] for rule in ("95 % rule", "98 % rule", "OOD rule")] == [None] * 3
    write_report([folder, others], tmp_path / "both.html", tmp_path / "figures", ["svg"])
    assert math.isnan(dict(zip(table.columns, table.rows[0], strict=True))["transfer kept %"])


def test_the_trained_set_is_the_one_the_summary_names(measured, tmp_path):
    rows = [r for r in measured if (r.measure, r.variant) != ("accuracy", "network")]
    rows.sort(key=lambda row: row.dataset)
    page = analysis_of(["ridge"], tmp_path, rows, dataset="Glyphs")
    found = {item.key: item for section in page.sections for item in section.items}
    assert [row[0] for row in found["transfer"].rows] == ["Digits", "Fashion"]
    assert "Glyphs test probe" in found["rules"].rows[0][3]
    assert "of the last probe's accuracy; transfer to 2 other sets" in page.headline
    assert page.subtitle.startswith("Glyphs  ·  ")
    assert analysis_of(["ridge"], tmp_path, rows).headline != page.headline, "the rows do not tell"


GUESSES = [
    "runs.curves.id_dataset", "runs.tunnel.id_dataset", "runs.reader.id_dataset", "report.source.id_dataset",
]  # fmt: skip


def renamed(rows):
    """The same with a trained set that comes last by name and in the rows, which do not tell it."""
    names = {"Glyphs": "zzz", "Digits": "AAA", "Fashion": "BBB"}
    found = [r._replace(dataset=names[r.dataset]) for r in rows]
    rows = [r for r in found if (r.measure, r.variant) != ("accuracy", "network") and r.variant != "online"]
    order = np.random.default_rng(0).permutation(len(rows))
    return sorted((rows[k] for k in order), key=lambda row: row.dataset)


def test_the_trained_set_is_never_guessed_where_it_is_told(measured, tmp_path, monkeypatch):
    rows = renamed(measured)
    rows += [r._replace(step=r.step - 1) for r in rows]
    summary = {"dataset": "zzz", "title": "mlp", "step": 420}
    source = read_source(write_analysis(tmp_path, rows, summary=summary))
    source = replace(source, rows=[r for r in rows if r.step == 420], history=rows)
    for guess in GUESSES:
        monkeypatch.setattr(f"tunnel_lightning.{guess}", None)
    page = page_of_run(source)
    found = {item.key: item for section in page.sections for item in section.items}
    assert {row[0] for row in found["transfer"].rows} == {"AAA", "BBB"}
    first = next(line.label for line in found["depth_profile"].lines)
    assert first == "zzz ridge (ID)"
    assert "zzz test probe" in found["rules"].rows[0][3]
    assert found["probes"].title == "Probes of zzz by how they are fitted"
    assert found["ranks"].title == "How many dimensions zzz takes"
    assert [line.label for line in found["nc1"].lines]
    assert "Ridge probe accuracy, test %" in found["all_layers"].columns
    assert "AAA test" in " ".join(found["all_layers"].columns)
    assert found["over_time_transfer"].title.endswith("mean of 2 sets")
    np.testing.assert_allclose(
        found["over_time_probe_accuracy"].value[:, -1], 100 * curve(rows, dataset="zzz").layers_only().value
    )
    assert page.subtitle.startswith("mlp/version_0  ·  zzz")
    assert page.headline.startswith("A tunnel from layer 6 of 12")
    assert page.numbers[0].label == "start of the tunnel, 95 % rule"
    for item in ("depth_profile", "over_time_probe_accuracy"):
        assert any("zzz test" in text.get_text() for text in found[item].draw().axes[0].texts)
    print_profile(Run(tmp_path, rows, "zzz"), Console(file=io.StringIO()))


def test_profiles_of_the_training_are_of_the_set_they_were_made_on(analysed, measured, tmp_path, mlp_rows):
    other = [
        r._replace(dataset={"Glyphs": "Digits", "Digits": "Glyphs"}.get(r.dataset, r.dataset))
        for r in measured
    ]
    ProfileTable(tmp_path / "profile.csv").append(mlp_rows)
    source = read_source(write_analysis(tmp_path / "analysis", other, summary={"dataset": "Digits"}).parent)
    assert (source.own, source.history_own) == ("Digits", "Glyphs"), "analysed on other images"
    silent = [r for r in mlp_rows if r.dataset == "Digits" or r.measure == "rank_cov"]
    ProfileTable(tmp_path / "profile.csv").write([r for r in silent if r.layer != "network"])
    (tmp_path / "analysis").rename(tmp_path / "one")
    assert read_source(tmp_path).own == "Digits", "nothing tells: the first probe"
    write_analysis(tmp_path / "analysis", measured, summary={"dataset": "Glyphs"})
    assert read_source(tmp_path).history_own == "Glyphs", "the analysis tells"


def test_the_nearest_neighbours_have_a_name_whatever_their_number(measured, tmp_path):
    few = [r._replace(variant="k=12") if r.measure == "knn_accuracy" else r for r in measured]
    page = analysis_of(["ridge"], tmp_path, few)
    found = {item.key: item for section in page.sections for item in section.items}
    assert "Accuracy of the 12 nearest neighbours, test %" in found["all_layers"].columns
    assert "12 nearest neighbours" in [line.label for line in found["nearest"].lines]


def test_fewer_neighbours_than_twenty_are_drawn():
    rows = [
        Row("run", 0, 0, -1, "test", "Glyphs", f"layer{i}", i, "knn_accuracy", "k=12", 0.5, 0.1, 40, 8)
        for i in (1, 2)
    ]
    (chart,) = collapse(rows, "Glyphs")
    assert [each.label for each in chart.lines] == ["12 nearest neighbours"]
