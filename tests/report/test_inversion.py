"""What the page and the terminal show of an inversion, and pictures as items of the page."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tunnel_lightning.report import write_report
from tunnel_lightning.report.charts import Chart, Page, Pictures, Section, Strip, Table
from tunnel_lightning.report.inversion import headline_of, print_inversion, sections_of
from tunnel_lightning.report.page import html
from tunnel_lightning.report.static import figure, write_figures
from tunnel_lightning.runs import ProfileTable, RunError
from tunnel_lightning.runs.inversion import RECOVERED, Inversion, load_inversion, verdicts, write_inversion

NAMES = ["layers.0.linear", "layers.5.linear", "layers.11.linear"]
EVIL = '<b>"5"&%{x}'


def made(folder, names=NAMES, networks=("trained", "untrained"), starts=2, size=8, extras=True):
    """An inversion of two images whose first layer gives them back."""
    draw = np.random.default_rng(0)
    shape = (len(names), 2, starts)
    curves, pictures = {"steps": np.array([0, 5, 10])}, {}
    for dataset in ("Glyphs", "noise"):
        pictures[f"original/{dataset}"] = draw.integers(0, 256, (2, size, size, 1), np.uint8)
        for net in networks:
            at = f"{dataset}/{net}"
            pictures[f"recovered/{at}"] = draw.integers(0, 256, (*shape, size, size, 1), np.uint8)
            psnr = np.stack(
                [
                    np.full((2, starts), 30.0 - 7 * k) + draw.normal(size=(2, starts))
                    for k in range(len(names))
                ]
            )
            values = {
                "psnr": psnr,
                "ssim": psnr / 40,
                "diverged": 0 * psnr,
                "plateau": 0 * psnr,
                "outside": 0 * psnr,
            }
            values |= {
                "non_unique": (psnr < 19.5).astype(float),
                "input_ratio": 30 / psnr,
                "embedding_ratio": psnr / 25,
            }
            values |= {"input_share": 1 / psnr, "embedding_share": 1 / psnr}
            values |= {"reference_input_share": 0.1 + 0 * psnr, "reference_embedding_share": 0.1 + 0 * psnr}
            curves |= {f"{name}/{at}": value for name, value in values.items()}
            curves |= {
                f"{name}_curve/{at}": 1 / np.stack([psnr, psnr, psnr], 3) for name in ("input", "embedding")
            }
    if extras:
        for kind in ("near", "near_recovered"):
            pictures[f"pictures_{kind}/Glyphs/trained"] = np.zeros((*shape[:2], 3, size, size, 1), np.uint8)
            curves[f"label_{kind}/Glyphs/trained"] = np.zeros((*shape[:2], 3), np.int64)
            curves[f"{kind}/Glyphs/trained"] = np.zeros((*shape[:2], 3), np.int64)
            curves[f"class_{kind}/Glyphs/trained"] = np.full((*shape[:2], 1), 0.5)
        pictures["generated/trained"] = np.zeros((len(names), 1, starts, size, size, 1), np.uint8)
        curves["generated_class/trained"] = np.full((len(names), 1, 1), 0.5)
    summary = {
        "run_id": "mlp/version_0", "title": "MLP", "recipe": "adam", "step": 420, "class_names": ["A"],
        "generated": ["A"],
        "layers": [{"name": name, "index": k} for name, k in zip(names, (1, 6, 12), strict=True)],
        "all_layers": ["input", *(f"layers.{k}.linear" for k in range(12)), "head"],
        "images": {name: [{"name": f"{name} {k}", "class": 0} for k in range(2)] for name in ("Glyphs", "noise")},
        "networks": dict.fromkeys(networks, ""), "settings": {"starts": starts, "sigma": 0.04}, "notes": [EVIL],
        "verdicts": {of: {net: verdicts(curves, of, net) for net in networks} for of in ("Glyphs", "noise")},
    }  # fmt: skip
    return write_inversion(folder, [], pictures, curves, summary)


@pytest.fixture(scope="module")
def run(tmp_path_factory, mlp_rows):
    home = tmp_path_factory.mktemp("runs") / "mlp" / "version_0"
    ProfileTable(home / "profile.csv").append(mlp_rows)
    made(home / "invert")
    return home


def items(home):
    return {item.key: item for section in sections_of(home) for item in section.items}


def test_a_run_without_one_has_no_section(tmp_path):
    assert sections_of(tmp_path) == []


def test_sections_and_what_they_say(run):
    found = {section.key: section for section in sections_of(run)}
    assert [*found] == [
        "inversion", "inversion_steps", "inversion_starts", "inversion_near", "inversion_made", "inversion_others",
    ]  # fmt: skip
    assert [section.key for section in found.values() if section.folded] == [
        "inversion_steps",
        "inversion_starts",
    ]
    said = found["inversion"].text
    assert said.startswith(
        "After training images come back from layers 1 to 6; before training from layers 1 to 6."
    )
    assert "Each of 2 images was recovered 2 times at each of 3 layers" in said


def test_the_tunnel_is_marked_as_in_the_depth_profile(run, tmp_path):
    shown = items(run)
    assert shown["inversion_Glyphs"].shade == (1, "tunnel (95 % rule)")
    solid = [mark.x for mark in shown["inversion_psnr"].marks if mark.dash == "solid"]
    assert solid == [6]
    alone = made(tmp_path / "elsewhere")
    shown = items(alone)
    assert shown["inversion_Glyphs"].shade is None
    assert shown["inversion_psnr"].marks == []


def test_pictures_stand_where_they_belong(run):
    found, shown = load_inversion(run), items(run)
    film = shown["inversion_Glyphs"]
    assert film.rows == ["before training", "after training"]
    assert film.columns == ["1", "6", "12"]
    assert film.names[1] == "layer 6: layers.5.linear"
    for k, strip in enumerate(film.strips):
        for row, net in enumerate(("untrained", "trained")):
            wanted = np.broadcast_to(
                found.pictures[f"recovered/Glyphs/{net}"][:, k, 0], strip.images[row].shape
            )
            np.testing.assert_array_equal(strip.images[row], wanted)
            psnr = found.curves[f"psnr/Glyphs/{net}"][:, k, 0]
            assert strip.captions[row] == [f"{value:.1f}" for value in psnr]
        np.testing.assert_array_equal(strip.lead[..., 2], found.pictures["original/Glyphs"][k, ..., 0])
    starts = shown["inversion_starts"]
    assert starts.rows[1] == "before training, start 2"
    second = np.broadcast_to(
        found.pictures["recovered/Glyphs/untrained"][:, 0, 1], starts.strips[0].images[1].shape
    )
    np.testing.assert_array_equal(starts.strips[0].images[1], second)
    assert shown["inversion_made"].strips[0].captions[0] == ["1 of 2"] * 3


def test_charts_and_table_have_the_figures(run):
    found, shown = load_inversion(run), items(run)
    mean, deviation = found.values("psnr", "Glyphs", "trained")
    line = {each.label: each for each in shown["inversion_psnr"].lines}["after training"]
    np.testing.assert_allclose(line.y, mean)
    np.testing.assert_allclose(line.high, mean + deviation)
    assert line.x.tolist() == [1, 6, 12]
    table = shown["inversion_table"]
    rows = {(row[1], row[2]): dict(zip(table.columns, row, strict=True)) for row in table.rows}
    row = rows["layers.11.linear", "after training"]
    assert (row["verdict"], row["test passed %"]) == ("not unique", 100.0)
    assert row["PSNR"] == pytest.approx(mean[2], abs=0.05)
    assert [row[3] for row in table.rows] == ["recovered", "recovered", "not unique"] * 2


def test_one_start_one_network_and_no_extras(tmp_path):
    folder = made(tmp_path / "invert", networks=("trained",), starts=1, extras=False)
    assert [section.key for section in sections_of(folder)] == [
        "inversion",
        "inversion_steps",
        "inversion_others",
    ]
    assert sections_of(folder)[0].text.startswith("After training images come back from layers 1 to 6. ")


def test_the_page_holds_its_pictures_and_names_are_text(tmp_path):
    folder = made(tmp_path / "invert", names=[EVIL, "b", "c"])
    page = write_report(folder).read_text()
    body = page[: page.index('<script type="application/json"')]
    assert "<b>&quot;" not in body
    assert EVIL not in body
    images = re.findall(r'<img class="crisp" src="data:image/png;base64,([^"]+)" alt="([^"]+)"', body)
    found = load_inversion(folder)
    said = [alt for _, alt in images]
    psnr = found.curves["psnr/Glyphs/untrained"][1, 0, 0]
    place = said.index(f"Glyphs 0, before training, layer 6: b, {psnr:.1f}")
    with Image.open(io.BytesIO(base64.b64decode(images[place][0]))) as picture:
        pixels = np.asarray(picture.convert("L"))
    np.testing.assert_array_equal(pixels, found.pictures["recovered/Glyphs/untrained"][1, 0, 0, ..., 0])


def test_large_pictures_are_made_small(tmp_path):
    images = np.zeros((1, 1, 400, 300, 3), np.uint8)
    item = Pictures("a", "A", [Strip("one", images)], ["row"], ["1"])
    page = html(Page("t", "h", "", [], [Section("s", "S", [item])]))
    kind, data = re.search(r"data:image/(jpeg);base64,([^\"]+)", page).groups()
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert (kind, picture.size) == ("jpeg", (120, 160))


def test_pictures_must_fit_their_rows_and_columns():
    with pytest.raises(ValueError, match="A: one has 1 x 2 pictures, and there are 1 rows and 3 columns"):
        Pictures("a", "A", [Strip("one", np.zeros((1, 2, 4, 4, 3), np.uint8))], ["row"], ["1", "2", "3"])


def test_figures_for_papers(run, tmp_path):
    shown = items(run)
    write_figures([shown["inversion_Glyphs"]], tmp_path, ["png", "svg", "pdf"])
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".pdf", ".png", ".svg"]
    axes = figure(shown["inversion_Glyphs"]).axes[0]
    assert len(axes.images) == 2 * (1 + 2 * 3)
    assert {"before training", "after training", "1", "6", "12", "original"} <= {
        t.get_text() for t in axes.texts
    }
    kinds = {type(item) for item in shown.values()}
    assert kinds == {Pictures, Chart, Table}


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_in_the_terminal(run, width):
    console = Console(width=width, record=True, file=io.StringIO())
    print_inversion(load_inversion(run), console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert "mlp/version_0: adam" in text
    assert "After training images come back from layers 1 to 6" in text
    assert f"note: {EVIL}" in text
    last = next(line for line in lines if line.startswith("12"))
    mean, _ = load_inversion(run).values("psnr", "Glyphs", "trained")
    assert f" {mean[2]:.1f} " in f"{last} "
    assert "not unique" in last


def test_damage_is_said(tmp_path):
    folder = made(tmp_path / "invert")
    (folder / "pictures.npz").write_bytes(b"no archive")
    with pytest.raises(RunError, match=r"pictures.npz can't be read as arrays"):
        sections_of(tmp_path)


@pytest.mark.parametrize(
    ("psnr", "said"),
    [
        ((30, 30, 30), "from every layer"),
        ((9, 9, 9), "from no layer"),
        ((30, 9, 9), "from layer 1 alone"),
        ((9, 30, 9), "from layer 6 alone"),
        ((30, 30, 9), "from layers 1 to 6"),
        ((9, 30, 30), "from layers 6 and 12 only"),
        ((30, 9, 30), "from layers 1 and 12 only"),
    ],
)
def test_the_headline_names_the_layers_that_give_images_back(psnr, said):
    verdicts = [RECOVERED if value > 20 else "not unique" for value in psnr]
    summary = {
        "layers": [{"index": index} for index in (1, 6, 12)],
        "images": {"Glyphs": []},
        "networks": {"trained": ""},
        "verdicts": {"Glyphs": {"trained": verdicts}},
    }
    assert headline_of(Inversion(Path(), [], summary)) == f"After training images come back {said}"


def test_descents_that_came_near_nothing_tell_nothing(tmp_path):
    summary = {
        "layers": [{"index": 1}],
        "images": {"Glyphs": []},
        "networks": {"trained": ""},
        "verdicts": {"Glyphs": {"trained": ["not reached"]}},
        "recipe": "badger",
    }
    said = headline_of(Inversion(tmp_path, [], summary))
    assert said == "No descent of badger came near a layer's output, which tells nothing of the layers"
