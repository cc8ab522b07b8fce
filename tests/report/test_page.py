"""The page as a file: what it holds, that it asks for nothing, and that it is whole or not there."""

import json
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from pages import items
from plotly.graph_objects import Figure

from tunnel_lightning.report import write_report
from tunnel_lightning.report.charts import Chart, Map, Points
from tunnel_lightning.report.interactive import figure
from tunnel_lightning.report.static import parse_formats
from tunnel_lightning.runs import ProfileTable, RunError, load_analysis, write_analysis


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
        "over_time_transfer",
        "additions",
    }
    assert {f"{name}.{kind}" for name in wanted for kind in ("svg",)} <= names
    assert len(names) == len(items(analysed, (Chart, Map, Points)))
    with pytest.raises(ValueError, match="No figure format gif: choose among png, svg, pdf"):
        write_report(analysed, tmp_path / "b.html", tmp_path / "more", ["gif"])
    assert not (tmp_path / "b.html").exists()


@pytest.mark.parametrize(
    ("given", "formats"),
    [
        ("png,svg", ["png", "svg"]),
        (" svg , png,", ["svg", "png"]),
        (["pdf"], ["pdf"]),
        (("png", "svg,png"), ["png", "svg"]),
    ],
)
def test_formats_are_a_list_or_have_commas_between(given, formats):
    assert parse_formats(given) == formats


@pytest.mark.parametrize(
    ("given", "said"), [("png,gif", "gif"), ([], "given"), (",", "given"), ("all", "all")]
)
def test_other_formats_are_refused(given, said):
    with pytest.raises(ValueError, match=f"^No figure format {said}: choose among png, svg, pdf"):
        parse_formats(given)


def test_notes_stand_under_the_headline(page, analysed, tmp_path):
    assert '<ul class="notes"><li>Digits images (1x8x8) were resized to 1x16x16.</li></ul>' in page
    assert page.index('class="notes"') < page.index('class="numbers"')
    rows = load_analysis(analysed).run.rows
    none = write_report(write_analysis(tmp_path, rows)).read_text(encoding="utf-8")
    assert '<ul class="notes"' not in none


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
