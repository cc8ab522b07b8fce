import numpy as np
import pytest
from rich.console import Console

from tunnel_lightning.report.charts import Chart, Page, Table
from tunnel_lightning.report.page import html
from tunnel_lightning.report.static import figure
from tunnel_lightning.report.trimming import print_trimming, sections_of
from tunnel_lightning.report.trimming_words import certificate, headline, tuned
from tunnel_lightning.runs.summaries import write_summary
from tunnel_lightning.runs.trimming import load_trimming, write_curve

LAYERS = [f"layers.{k}.linear" for k in range(12)]


def curve(latency=True):
    lines, depth = 14, np.arange(14)
    accuracy = np.array([0.12, *np.linspace(0.3, 0.55, 5), *[0.56] * 7, 0.57])
    columns = {
        "index": list(range(lines)),
        "layer": ["input", *LAYERS, "network"],
        "kind": ["", *["Linear"] * 12, "MLP"],
        "head": [*["ridge"] * 13, ""],
        "dim": [16, *[64] * 12, 64],
        "flops": [10, *(100 * depth[1:13]).tolist(), 1200],
        "parameters": [5, *(50 * depth[1:13]).tolist(), 600],
        "val_accuracy": accuracy,
        "accuracy": accuracy,
        "se": np.full(lines, 0.01),
        "ece": np.full(lines, 0.02),
        "front": [0, 1, 1, 1, 1, 1, *[0] * 7, 1],
        "transfer:Digits": np.array([0.9, *np.linspace(0.97, 0.77, 12), np.nan]),
        "transfer_se:Digits": np.full(lines, 0.02),
        "transfer_val:Digits": np.array([0.9, *np.linspace(0.97, 0.77, 12), np.nan]),
    }
    if latency:
        for size in (1, 256):
            columns |= {
                f"latency_ms{end}_{size}": np.array([np.nan, *depth[1:13], 12.0])
                for end in ("", "_low", "_high")
            }
            faster = np.array([np.nan, *(12 / depth[1:13]), 1.0])
            columns |= {f"speedup{end}_{size}": faster for end in ("", "_low", "_high")}
            columns[f"front_latency_{size}"] = columns["front"]
    return columns


SUMMARY = {
    "run_id": "mlp/version_0",
    "dataset": "Glyphs",
    "test_images": 2000,
    "whole": {
        "reference": "network",
        "accuracy": 0.57,
        "val_accuracy": 0.57,
        "flops": 1200,
        "parameters": 600,
    },
    "choice": {"layer": "layers.4.linear", "line": 5, "how": "keep", "why": "", "keep": 0.96, "set": None},
    "certificate": {"value": 0.984, "low": 0.979, "high": 0.989, "n": 2000, "keep": 0.96, "verdict": "kept"},
    "transfer": {"Digits": {"cut": 0.951, "last": 0.773, "gain": 0.178, "low": 0.14, "high": 0.21, "n": 360}},
    "latency": {
        "conditions": {"processor": "A <CPU>", "device": "cpu", "threads": 2},
        "turns": {"1": 30, "256": 9},
    },
    "files": {"checkpoints/last.ckpt": "the cut network"},
    "notes": ["Digits is shown at 16x16"],
}


@pytest.fixture
def make(tmp_path):
    def made(latency=True, **changes):
        folder = tmp_path / "trim"
        folder.mkdir(exist_ok=True)
        write_curve(folder, curve(latency))
        write_summary(folder / "trim.json", "trim", 1, SUMMARY | changes)
        return load_trimming(folder)

    return made


def test_the_headline_says_all(make):
    assert headline(make()) == (
        "cut behind layer 5 of 12 (layers.4.linear): 98.4 % of the accuracy (interval 97.9 to 98.9) at 42 % of the "
        "FLOPs, 2.4x faster at batch 256; transfer to Digits 95.1 % instead of 77.3 %"
    )
    assert "faster" not in headline(make(latency=False))


def test_the_headline_for_another_set(make):
    found = make(choice=SUMMARY["choice"] | {"how": "for", "set": "Digits", "keep": None}, certificate=None)
    assert headline(found).endswith(
        "(layers.4.linear), for Digits: 95.1 % right instead of 77.3 % at 42 % of the FLOPs, 2.4x faster at batch 256"
    )
    assert "better than a head on the last layer (+17.8 points" in certificate(found)
    weak = SUMMARY["transfer"]["Digits"] | {"low": -0.01}
    assert "not certain to be better" in certificate(
        make(choice=found.summary["choice"], transfer={"Digits": weak})
    )


def test_no_tunnel_is_said(make):
    found = make(
        choice={"layer": None, "line": None, "how": "keep", "why": "every layer is needed", "keep": 0.99},
        files={},
    )
    assert headline(found) == "no tunnel to cut: every layer is needed"
    assert certificate(found) == ""
    (section,) = sections_of(found.path)
    assert section.text == "No tunnel to cut: every layer is needed."
    assert not [mark for item in section.items if isinstance(item, Chart) for mark in item.marks]


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("kept", "and the interval lies above the 96 % asked for."),
        ("likely", "Certificate, not certain: "),
        ("failed", "The certificate fails: on 2,000 test images it keeps 98.4 %"),
    ],
)
def test_the_certificate_is_plain(make, verdict, said):
    assert said in certificate(make(certificate=SUMMARY["certificate"] | {"verdict": verdict}))


def test_by_hand_nothing_was_asked_for(make):
    kept = SUMMARY["certificate"] | {"keep": None, "verdict": None}
    assert certificate(make(certificate=kept)).endswith("(95 % interval 97.9 to 98.9 %).")
    last = SUMMARY["whole"] | {"reference": "layers.11.linear"}
    assert "of the accuracy of the last layer's head" in certificate(make(whole=last))


def test_what_tuning_gained(make):
    gained = {"epochs": 1, "optimizer": "SGD", "lr": 0.005, "gain": 0.012, "low": 0.001, "high": 0.023}
    gained |= {"val_before": 0.5, "val_after": 0.52}
    said = tuned(make(tuned=gained | {"taken": True}))
    assert said.startswith(
        "Tuned for 1 epoch of SGD at lr 0.005: +1.2 points on test images (95 % interval +0.1 to +2.3)"
    )
    assert "so the untuned weights are written" in tuned(make(tuned=gained | {"taken": False}))


def test_the_page_shows_the_cut(make):
    (section,) = sections_of(make().path.parent)
    assert section.text.endswith("Written into trim/: checkpoints/last.ckpt.")
    charts = {item.key: item for item in section.items if isinstance(item, Chart)}
    assert list(charts) == ["trim_flops", "trim_depth", "trim_time", "trim_latency"]
    flops = charts["trim_flops"]
    taken = next(line for line in flops.lines if line.label == "the cut taken")
    assert (taken.x.tolist(), taken.y.tolist()) == ([500 / 1200], [pytest.approx(55)])
    front = next(line for line in flops.lines if "Pareto" in line.label)
    assert front.x.tolist() == [pytest.approx(k / 12) for k in (1, 2, 3, 4, 5, 12)]
    assert charts["trim_depth"].shade == (5.5, "cut away")
    assert "2 threads" in charts["trim_latency"].note
    table = next(item for item in section.items if isinstance(item, Table) and item.key == "trim_cuts")
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert [row[2] for row in table.rows].count("taken") == 1
    page = html(Page("t", "h", "", [], [section]))
    assert "A &lt;CPU&gt;" in page
    for chart in charts.values():
        figure(chart)


def test_nothing_to_show(tmp_path):
    assert sections_of(tmp_path) == []


def test_the_page_without_latencies_and_transfer(make, tmp_path):
    found = make(latency=False, transfer={})
    keys = [item.key for item in sections_of(found.path)[0].items]
    assert "trim_latency" not in keys
    assert "trim_time" not in keys


@pytest.mark.parametrize("width", [80, 160])
def test_the_terminal_has_room(make, width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_trimming(make(), console)
    said = console.export_text()
    table = [line for line in said.splitlines() if "layers." in line and "cut behind" not in line]
    assert len(table) == 12
    assert max(map(len, said.splitlines()[:18])) <= width
    assert "taken" in table[4]
    assert "95.1 %" in " ".join(said.split())
    assert "curve.csv" in said
