"""The page and the tables of an ablation, from files alone."""

import io

import numpy as np
import pytest
from rich.console import Console

from tunnel_lightning.report import write_report
from tunnel_lightning.report.ablation import headline, print_ablation, sections_of
from tunnel_lightning.report.charts import Chart, Map, Table
from tunnel_lightning.runs.ablation import Effect, load_ablation, write_ablation

N = 100
WHOLE = Effect("intact", "", "", 0, 0, "", "kept", "accuracy", 0.9, 0.03, N)
BLOCKS = (0.2, 0.89, 0.895, 0.6)


def made(kind, scope, first, last, variant, value, **more):
    layers = f"layers.{first}.linear" if first == last else f"layers.{first}.linear to layers.{last}.linear"
    row = Effect(kind, scope, layers, first, last, variant, "kept", "accuracy", value, 0.03, N)._replace(
        **more
    )
    others = {"agreement": value, "ece": 0.1, "nll": 1.5, "rank": 7.0, "cka": 0.5}
    return [row, *(row._replace(quantity=name, value=each) for name, each in others.items())]


def everything():
    rows = [
        WHOLE,
        *(WHOLE._replace(quantity=q, value=1.0) for q in ("agreement", "ece", "nll", "rank", "cka")),
    ]
    for variant in ("initial", "drawn anew"):
        for k, value in enumerate((0.1, 0.55, 0.895), 1):
            rows += made("reset", "layer", k, k, variant, value)
            rows += made("reset", "from", k, 3, variant, value / 2)
        for rules, start in (("ood", 2), ("id95,id98", 3)):
            rows += made("reset", "tunnel", start, 3, f"{variant}; {rules}", 0.1 * start)
            rows += made("reset", "extractor", 1, start - 1, f"{variant}; {rules}", 0.15)
    for epoch in (10, 20):
        for k in (1, 2, 3):
            rows += made("rewind", "layer", k, k, f"epoch {epoch}", 0.8)
        rows += made("rewind", "tunnel", 3, 3, f"epoch {epoch}; id95,id98", 0.7)
        rows += made("rewind", "extractor", 1, 2, f"epoch {epoch}; id95,id98", 0.7)
    for k, value in enumerate(BLOCKS, 1):
        rows += made("delete", "block", k, k, f"stage {(k + 1) // 2}", value)
    rows += made("delete", "stage", 2, 2, "stage 1", 0.89) + made("delete", "stage", 1, 2, "stage 1", 0.1)
    for k in (1, 2, 3):
        rows += made("swap", "layer", k, k, "other/version_0", 0.3)
        rows += made("swap", "cut", k, k, "E1T2", 0.12) + made("swap", "cut", k, k, "E2T1", 0.11)
    return rows + made("retrain", "part", 3, 3, "tunnel and head anew; id95,id98", 0.88)


SUMMARY = {
    "run_id": "tiny/version_0",
    "title": "MLP",
    "dataset": "Glyphs",
    "classes": 10,
    "images": N,
    "settings": {"retrain_epochs": 3},
    "tunnel": {"starts": {"id95": 3, "id98": 3, "ood": 2}},
    "blocks": [{"index": k, "name": f"b{k}", "cka": 1 - v / 10} for k, v in enumerate(BLOCKS, 1)],
    "structure": {"sentence": "deleting a block costs the more the more it changes"},
    "retrained": {"tunnel and head anew": "is the tunnel found again?"},
    "notes": ["a note"],
}


@pytest.fixture
def run(tmp_path):
    write_ablation(tmp_path / "ablate", everything(), SUMMARY)
    return tmp_path


def test_a_run_without_one_has_no_section(tmp_path):
    assert sections_of(tmp_path) == []


def test_the_headline_says_what_it_can_and_cannot_do_without(run):
    assert headline(load_ablation(run)) == (
        "Resetting the tunnel (layer 3) takes accuracy from 90.0 % to 30.0 %; "
        "half of it or more is lost at 1 of 3 layers reset alone, a point or less at 1; "
        "half of it or more is lost at 1 of 4 residual blocks deleted, a point or less at 2; "
        "tunnel and head learnt again on the frozen extractor give 88.0 %"
    )


def test_the_section_has_every_figure(run):
    (section,) = sections_of(run)
    items = {item.key: item for item in section.items}
    assert list(items) == [
        "ablation_reset", "ablation_rewind", "ablation_rewind_whole", "ablation_blocks", "ablation_stages",
        "ablation_swaps", "ablation_retrain", "ablation_table",
    ]  # fmt: skip
    depth = items["ablation_reset"]
    assert isinstance(depth, Chart)
    assert [(mark.x, mark.label) for mark in depth.marks] == [(2, "OOD"), (3, "95 % · 98 %")]
    assert np.allclose(depth.lines[0].y, [10, 55, 89.5])
    heat = items["ablation_rewind"]
    assert isinstance(heat, Map)
    assert heat.columns == ["initial", "drawn anew", "epoch 10", "epoch 20"]
    assert np.allclose(heat.value[:, 0], [10, 55, 89.5])
    assert np.allclose(heat.value[:, 2:], 80)
    blocks = items["ablation_blocks"]
    assert [mark.x for mark in blocks.marks] == [2.5]
    assert np.allclose(next(line.y for line in blocks.lines if line.right), [v / 10 for v in BLOCKS])
    assert [mark.x for mark in items["ablation_swaps"].marks] == [1, 2]  # of a cut, the layer before
    table = items["ablation_table"]
    assert isinstance(table, Table)
    assert len(table.rows) == len([row for row in everything() if row.quantity == "accuracy"])
    assert table.rows[0][:4] == ["intact", "", "", ""]
    assert table.rows[1][-2:] == [pytest.approx(80), "layers.1.linear"]


def test_the_page_is_written(run):
    path = write_report(run)
    text = path.read_text()
    assert path == run / "report.html"
    assert "What a layer is needed for" in text
    assert "a note" in text


@pytest.mark.parametrize("width", [80, 60, 200])
def test_the_tables_fit_the_terminal(run, width):
    console = Console(file=io.StringIO(), width=width)
    print_ablation(load_ablation(run), console)
    said = console.file.getvalue()
    assert max(len(line.rstrip()) for line in said.splitlines()) <= width
    for text in ("tunnel", "89.5", "note: a note"):
        assert text in said
    if width >= 80:
        assert "Residual blocks deleted" in said
        assert "found again" not in said  # for the page


def test_agreement_stands_in_where_accuracy_means_nothing(tmp_path):
    rows = [row for row in everything() if row.quantity != "accuracy"]
    write_ablation(tmp_path / "ablate", rows, SUMMARY)
    (section,) = sections_of(tmp_path)
    assert "chance" not in section.text
    assert section.items[0].y == "answers as the intact network (%)"
    print_ablation(load_ablation(tmp_path), Console(file=io.StringIO(), width=80))


def test_one_kind_alone_is_enough(tmp_path):
    for kind in ("reset", "rewind", "delete", "swap", "retrain"):
        rows = [row for row in everything() if row.kind in ("intact", kind)]
        write_ablation(tmp_path / "ablate", rows, SUMMARY)
        assert sections_of(tmp_path)[0].items
        assert headline(load_ablation(tmp_path))
        print_ablation(load_ablation(tmp_path), Console(file=io.StringIO(), width=80))
