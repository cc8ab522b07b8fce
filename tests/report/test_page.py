import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from plotly.graph_objects import Figure

from tunnel_lightning.report import structure, write_report
from tunnel_lightning.report.build import _page
from tunnel_lightning.report.charts import Chart, Map, Points, Table
from tunnel_lightning.report.interactive import figure
from tunnel_lightning.report.sections import page_of_run, read_source
from tunnel_lightning.runs import ProfileTable, RunError, curve, load_analysis, tunnels, write_analysis


class Reader(HTMLParser):
    """Tags with their attributes, the text of each heading, and what the scripts hold."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.headings, self.scripts, self.cells, self.inside = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        where = {"h1": self.headings, "h2": self.headings, "script": self.scripts, "td": self.cells}.get(
            self.inside
        )
        if where is not None:
            where.append(data)


@pytest.fixture(scope="module")
def page(analysed):
    return write_report(analysed).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def read(page):
    return Reader(page)


def figures_of(reader):
    (data,) = [json.loads(s) for s in reader.scripts if s.startswith("{")]
    return data


def items(folder, kind):
    return {i.key: i for section in _page([folder])[0].sections for i in section.items if isinstance(i, kind)}


def test_the_page_lies_in_the_analysis_and_says_it_all(analysed, read):
    assert (analysed / "analysis" / "report.html").exists()
    assert read.headings == [
        "A tunnel from layer 6 of 12: the probe there reaches 95.2\u00a0% of the final accuracy; transfer to 2 other "
        "sets is best at layer 1 and loses 30\u00a0% by the end",
        "Depth profile", "Transfer", "Similarity of layers", "Probes", "Dimensions", "Variance and collapse",
        "Over time", "Pictures of layers", "All layers",
    ]  # fmt: skip
    assert [t for t, a in read.tags if t == "summary"], "settings are folded"
    plots = [a["data-figure"] for t, a in read.tags if "data-figure" in a]
    assert sorted(plots) == sorted(figures_of(read))


def test_no_resource_is_asked_for(page, read):
    asked = [
        (tag, name, value)
        for tag, attributes in read.tags
        for name, value in attributes.items()
        if name in ("src", "srcset", "href", "data", "action", "poster")
        and not value.startswith(("#", "data:"))
    ]
    assert asked == []
    policy = next(a["content"] for t, a in read.tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    style = page[page.index("<style>") : page.index("</style>")]
    assert "@import" not in style
    assert "url(" not in style


def test_names_are_text_wherever_they_stand(page, read):
    assert [t for t, _ in read.tags].count("b") == 4, "those of the key numbers alone"
    assert "MLP &lt;b&gt;12 x 256&lt;/b&gt; &amp; friends" in page
    assert "layers.<b>5&%{x}</b>" in read.cells
    start = page.index('<script type="application/json"')
    data = page[start : page.index("</script>", start)]
    assert "<b>" not in data, "an HTML parser must not meet a tag in a script"
    texts = json.dumps(figures_of(read))
    assert "layers.&lt;b&gt;5&amp;%&#8203;{x}&lt;/b&gt;" in texts
    assert "layers.<b>5" not in texts, "plotly knows tags, too"


def test_plotly_knows_every_attribute(analysed, compared):
    for folder in (analysed, compared):
        for item in items(folder, (Chart, Map, Points)).values():
            spec = figure(item)
            for trace in spec["data"]:
                trace.pop("cells", None)
                trace.pop("band", None)
            Figure(spec)
            json.dumps(spec, allow_nan=False)


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


def test_what_was_not_measured_is_left_out(tmp_path, mlp_rows, analysed):
    live = tmp_path / "mlp" / "version_1"
    ProfileTable(live / "profile.csv").append(mlp_rows)
    path = write_report(live)
    assert path == live / "report.html"
    assert Reader(path.read_text()).headings[1:] == [
        "Depth profile",
        "Transfer",
        "Dimensions",
        "Over time",
        "All layers",
    ]

    maps = load_analysis(analysed).similarity
    alone = write_analysis(tmp_path / "maps", [], similarity={"cka": maps["cka"]}, summary={"run_id": "x/y"})
    found = Reader(write_report(alone).read_text())
    assert found.headings[0].startswith("Where the tunnel starts is unknown")
    assert found.headings[1:] == ["Similarity of layers"]

    nothing = write_analysis(tmp_path / "nothing", [], summary={"versions": {"torch": "2"}})
    with pytest.raises(RunError, match="nothing holds nothing to show"):
        write_report(nothing)


def test_little_and_odd_data(tmp_path, mlp_rows):
    last = [r for r in mlp_rows if r.step == 420]
    odd = {
        "ranks": [r for r in last if r.measure == "rank_cov"],
        "online": [r for r in last if r.variant == "online"],
        "transfer": [r for r in last if r.dataset == "Digits" or r.layer == "network"],
        "one": [r for r in last if r.index == 1],
        "network": [r for r in last if r.layer == "network"],
        "nan": [r._replace(value=float("nan")) for r in last],
    }
    for name, rows in odd.items():
        ProfileTable(tmp_path / name / "profile.csv").append(rows)
        write_report(tmp_path / name, figures=tmp_path / "figures" / name, formats=["png"])
    assert (tmp_path / "figures" / "ranks" / "depth_profile.png").exists()


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


def test_figures_for_papers(analysed, tmp_path):
    write_report(analysed, tmp_path / "a.html", tmp_path / "figures", ["svg"])
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    wanted = {
        "depth_profile",
        "cka",
        "cka_all",
        "ranks",
        "spectrum_Glyphs_test",
        "nc1",
        "over_time_rank_cov",
        "additions",
    }
    assert {f"{name}.{kind}" for name in wanted for kind in ("svg",)} <= names
    assert len(names) == len(items(analysed, (Chart, Map, Points)))
    with pytest.raises(ValueError, match="No figure format gif: choose among png, svg, pdf"):
        write_report(analysed, tmp_path / "b.html", tmp_path / "more", ["gif"])
    assert not (tmp_path / "b.html").exists()


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


@pytest.fixture(scope="module")
def measured(analysed):
    return load_analysis(analysed).run.rows


def analysis_of(kinds, folder, rows, **summary):
    """The page of an analysis whose ridge probes are of these kinds instead."""
    ridge = [r for r in rows if r.variant == "ridge"]
    rest = [r for r in rows if r.variant not in ("ridge", "logistic", "masarczyk", "ridge@addition")]
    rows = [*rest, *(r._replace(variant=kind) for kind in kinds for r in ridge)]
    return page_of_run(read_source(write_analysis(folder, rows, summary=summary)))


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


def test_notes_stand_under_the_headline(page, measured, tmp_path):
    assert '<ul class="notes"><li>Digits images (1x8x8) were resized to 1x16x16.</li></ul>' in page
    assert page.index('class="notes"') < page.index('class="numbers"')
    none = write_report(write_analysis(tmp_path, measured)).read_text(encoding="utf-8")
    assert '<ul class="notes"' not in none


def test_notes_of_a_comparison(compared, tmp_path):
    folder = tmp_path / "compared"
    shutil.copytree(compared, folder)
    summary = json.loads((folder / "comparison.json").read_text())
    (folder / "comparison.json").write_text(json.dumps({**summary, "notes": ["<b> & so on"]}))
    assert '<ul class="notes"><li>&lt;b&gt; &amp; so on</li></ul>' in write_report(folder).read_text()


def test_samples_are_stated(analysed):
    sections = {section.key: section for section in _page([analysed])[0].sections}
    assert sections["pictures"].text.startswith("t-SNE of up to 1,000 test images:")
    assert {structure.MAPS[name][1] for name in ("rbf_cka", "procrustes", "svcca", "pwcca")} == {
        "On up to 2,000 test images."
    }


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
    assert table.rows[0][4:7] == [None] * 3
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


def test_no_folder_and_no_file():
    with pytest.raises(ValueError, match="give at least one run folder"):
        write_report([])


def test_a_page_cut_short_leaves_the_old_one(analysed, tmp_path, monkeypatch):
    out = tmp_path / "page.html"
    out.write_text("old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write_report(analysed, out)
    assert out.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_the_page_is_made_without_torch(analysed, tmp_path):
    code = """import sys
from tunnel_lightning.report import write_report
write_report(sys.argv[1], sys.argv[2])
print(*sorted({"torch", "lightning", "sklearn", "matplotlib.pyplot"} & set(sys.modules)))"""
    run = [sys.executable, "-c", code, str(analysed), str(tmp_path / "a.html")]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip() == ""
