"""The page of a run over tasks: its words, charts, maps and tables hold the numbers of its files."""

import doctest
import json
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
import sequences
from plotly.graph_objects import Figure

from tunnel_lightning.__main__ import main
from tunnel_lightning.report import write_report
from tunnel_lightning.report.charts import Chart, Map, Table
from tunnel_lightning.report.continual_maps import behind
from tunnel_lightning.report.continual_page import name, page_of_continual
from tunnel_lightning.report.continual_tunnel import starts, verdict
from tunnel_lightning.report.continual_words import headline
from tunnel_lightning.report.interactive import figure
from tunnel_lightning.report.static import figure as drawn
from tunnel_lightning.runs import ProfileTable, RunError
from tunnel_lightning.runs.continual import ContinualRun, average_accuracy, load_continual

MODULES = ("", "_layers", "_maps", "_page", "_printed", "_rewinds", "_tunnel", "_words")


@pytest.mark.parametrize("module", MODULES)
def test_examples(module):
    assert doctest.testmod(import_module(f"tunnel_lightning.report.continual{module}")).failed == 0


@pytest.fixture(scope="module")
def naive(tmp_path_factory):
    return load_continual(sequences.naive(tmp_path_factory.mktemp("runs") / "naive" / "version_0"))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return load_continual(sequences.two_tasks(tmp_path_factory.mktemp("runs") / "two" / "version_0"))


def changed(run, change):
    """The run with other rows: of each what ``change`` makes of it, or none."""
    return ContinualRun(run.path, [new for row in run.rows if (new := change(row)) is not None], run.manifest)


def items(run, kind=object):
    return {
        i.key: i for section in page_of_continual(run).sections for i in section.items if isinstance(i, kind)
    }


def lines(chart):
    return {line.label: line for line in chart.lines}


# Words --------------------------------------------------------------------------------------------------------


def test_the_headline_says_which_layers_forget_and_which_transfer(naive):
    assert headline(naive) == (
        "Deep layers forget most: probes fitted when a task was learnt lose 7.4 points at layer 1, 50.7 at layer 7, "
        "refitted ones at most 1.7 points. For tasks to come layer 1 is better, layers 5 to 8 are worse than "
        "untrained"
    )
    still = changed(naive, lambda r: r._replace(value=0.98) if r.variant in ("fixed", "refit_task") else r)
    assert headline(still) == (
        "No layer forgets: probes fitted when a task was learnt lose at most 0.0 points. For tasks to come no layer "
        "is clearly better or worse than untrained"
    )
    top = changed(naive, lambda r: r._replace(index=9 - r.index) if r.variant == "fixed" else r)
    assert headline(top).startswith("Deep layers"), "layers go by their names"
    flat = sequences.sequence_rows("Replay", shift=0.2)
    flat = [
        r._replace(value=0.98 - 0.2 * (r.experience >= int(r.dataset[5:]))) if r.variant == "fixed" else r
        for r in flat
    ]
    found = ContinualRun(naive.path, flat, naive.manifest)
    assert headline(found).startswith(
        "All layers forget alike: probes fitted when a task was learnt lose 20.0 to 20.0"
    )


def test_swaps_say_whether_extractor_or_tunnel_forgets(two):
    found = verdict(two)
    assert (found.cut, found.layers, found.rule, found.who) == (4, 8, "", "extractor")
    assert found.extractor == pytest.approx((0.988 - 0.784) / (0.995 - 0.784))
    assert found.tunnel == pytest.approx((0.837 - 0.784) / (0.995 - 0.784))
    assert headline(two).startswith(
        "The extractor forgets, not the tunnel: layers 1 to 4 as they were bring back 97 % of what task 1 lost, "
        "layers 5 to 8 instead 25 %"
    )


def test_the_other_findings(two):
    # what the extractor did at cut k the tunnel does at cut 9 - k
    of = {
        (r.variant, r.index): r.value
        for r in two.rows
        if r.measure == "swap_accuracy" and r.dataset == "task 1"
    }
    mirrored = changed(
        two,
        lambda r: (
            r._replace(value=of["E1T2" if r.variant == "E2T1" else "E2T1", 9 - r.index])
            if r.measure == "swap_accuracy" and r.variant in ("E1T2", "E2T1")
            else r
        ),
    )
    found = verdict(mirrored)
    assert (found.cut, found.who) == (5, "tunnel")
    said = "The tunnel forgets, not the extractor: layers 6 to 8 as they were bring back 97 % of what task 1 lost, "
    assert headline(mirrored).startswith(f"{said}layers 1 to 5 instead 25 %")
    assert page_of_continual(mirrored).numbers[-1].label.endswith("is back with layers 6 to 8 as they were")
    half = changed(two, lambda r: r._replace(value=0.89) if r.variant in ("E1T2", "E2T1") else r)
    assert (verdict(half).who, verdict(half).cut) == ("both", 4)
    assert headline(half).startswith(
        "Extractor and tunnel forget: layers 1 to 4 as they were bring back 50 %"
    )
    either = changed(two, lambda r: r._replace(value=0.99) if r.variant in ("E1T2", "E2T1") else r)
    assert (verdict(either).who, verdict(either).cut) == ("either", 1)
    assert headline(either).startswith(
        "Extractor and tunnel forget only together: layer 1 as it was brings back 98 % of what task 1 lost, "
        "and so do layers 2 to 8 instead."
    )
    late = changed(two, lambda r: r._replace(value=0.8) if r.variant == "E1T2" and r.index < 7 else r)
    assert headline(late).startswith(
        "Forgetting is spread over all layers: layers 1 to 7 as they were bring back all"
    )
    few = changed(two, lambda r: r._replace(n=25) if r.measure == "swap_accuracy" else r)
    assert verdict(few).who == "both", "the shares may differ by chance"
    assert verdict(changed(two, lambda r: r._replace(n=15) if r.measure == "swap_accuracy" else r)) is None
    kept = changed(two, lambda r: r._replace(value=0.99) if r.measure == "swap_accuracy" else r)
    assert verdict(kept) is None
    assert headline(kept).startswith("Deep layers forget most")


def test_the_cut_is_that_of_the_tunnel_where_a_rule_finds_it(two):
    assert starts(two) == {"ood": 1}, "the raw set is separable: no extractor by the trained set's own rules"
    probes = dict(zip(range(1, 9), [0.6, 0.7, 0.9, 0.93, 0.96, 0.98, 0.99, 0.99], strict=True))
    hard = changed(
        two,
        lambda r: (
            r._replace(value=probes[r.index])
            if (r.variant, r.dataset, r.experience) == ("refit_task", "task 1", 0)
            else r
        ),
    )
    assert starts(hard) == {"id95": 4, "id98": 5, "ood": 1}
    assert (verdict(hard).cut, verdict(hard).rule) == (4, "id95")
    chart = items(hard)["swaps_1"]
    assert [(mark.x, mark.label) for mark in chart.marks] == [(1, "OOD"), (4, "95 %"), (5, "98 %")]
    card = page_of_continual(hard).numbers[-1]
    assert card.value == "97 %"
    assert card.detail == "with the others 25 %; the tunnel starts there by the 95 % rule"


def test_gains_that_may_be_chance_are_not_said(naive):
    few = changed(naive, lambda r: r._replace(n=20))
    assert headline(few).endswith("For tasks to come no layer is clearly better or worse than untrained")


def test_the_manifest_may_say_where_the_tunnel_starts(two):
    manifest = {**two.manifest, "tunnel": {"after": "task 1", "cuts": {"ood": 3, "id95": 2}, "layers": 8}}
    found = ContinualRun(two.path, two.rows, manifest)
    assert starts(found) == {"id95": 2, "ood": 3}
    assert (verdict(found).cut, verdict(found).rule) == (2, "id95")


def test_the_key_figures(naive):
    found = {number.label: (number.value, number.detail) for number in page_of_continual(naive).numbers}
    assert found["average accuracy of 5 tasks"] == ("19.8 %", "among each task's own classes 95.0 %")
    assert found["forgotten since learnt"][0] == "99.0 points"
    assert "backward transfer -99.0 points" in found["forgotten since learnt"][1]
    assert found["drift of layer 7, the most"][0] == "50.7 points"


def test_names_are_short():
    assert name("Naive") == "Naive"
    assert name({"class_path": "a.b.Replay", "init_args": {"mem_size": 200, "storage": {"x": 1}}}) == (
        "Replay (mem size 200)"
    )
    assert name(None) == ""


# What is drawn ------------------------------------------------------------------------------------------------


def test_the_matrix_goes_down_in_time(naive):
    found = items(naive, Map)["task_accuracy"]
    assert found.rows == [*(f"after task {k}" for k in (5, 4, 3, 2, 1)), "before the first task"]
    assert found.columns[1] == "task 2 (2, 3)"
    np.testing.assert_allclose(found.value[::-1], 100 * naive.network())
    within = items(naive, Map)["within_accuracy"]
    np.testing.assert_allclose(within.value[::-1], 100 * naive.network("within"))


@pytest.mark.parametrize(("tasks", "written"), [(5, True), (15, True), (16, False)])
def test_numbers_stand_in_the_cells_of_a_matrix_of_few_tasks(tmp_path, tasks, written):
    rows = sequences.sequence_rows(tasks=tasks)
    run = load_continual(sequences.write_sequence(tmp_path / "r", rows, tasks))
    heat = figure(items(run, Map)["task_accuracy"])["data"][0]
    assert heat.get("texttemplate") == ("%{z:.0f}" if written else None)
    assert "texttemplate" not in figure(items(run, Map)["time_all"])["data"][0]


def test_courses_begin_when_a_task_is_learnt(naive):
    chart = lines(items(naive)["course_within"])
    assert chart["task 3"].x.tolist() == [3, 4, 5]
    np.testing.assert_allclose(chart["task 3"].y, 100 * naive.network("within")[3:, 2])
    np.testing.assert_allclose(chart["average"].y, 100 * average_accuracy(naive.network("within")))
    assert "95 % interval" in chart["task 3"].hover[0]


def test_depth_curves_hold_the_table_of_layers(naive):
    chart, table = lines(items(naive)["forgetting_by_depth"]), naive.layer_table()
    np.testing.assert_allclose(chart["fixed: fitted when learnt"].y, 100 * table["drift"])
    np.testing.assert_allclose(chart["refitted for the task"].y, 100 * table["representation_forgetting"])
    np.testing.assert_allclose(chart["refitted for all classes"].y, 100 * table["all_classes_lost"])
    np.testing.assert_allclose(chart["online: trained along"].y, 100 * table["online_forgetting"])
    assert "the network within each task: 5.0 points" in chart
    assert "layer 7: layers.6.linear" in chart["fixed: fitted when learnt"].hover[6]
    assert "50.7 points" in chart["fixed: fitted when learnt"].hover[6]


def test_maps_over_time(naive):
    maps = items(naive, Map)
    np.testing.assert_allclose(maps["time_all"].value, 100 * naive.of_all("refit_all"))
    assert maps["time_all"].short == list("012345")
    np.testing.assert_allclose(maps["time_drift"].value[:, -1], 100 * naive.layer_table()["drift"])
    assert maps["time_drift"].columns == [f"after task {k}" for k in (2, 3, 4, 5)]
    np.testing.assert_allclose(maps["time_cka"].value[:, -1], naive.layer_table()["cka"])
    gain = naive.of_tasks("refit_task")
    np.testing.assert_allclose(
        maps["time_transfer"].value[:, 1], 100 * (gain[:, 2, 2:] - gain[:, 0, 2:]).mean(axis=1)
    )
    np.testing.assert_array_equal(maps["time_all"].edge[-4:], [5.5, 3.5, 3.5, 2.5])


def test_where_deep_layers_know_less():
    whole = np.array([[1.0, 1.0, np.nan], [0.96, 0.9, np.nan], [0.9, 0.96, np.nan]])
    np.testing.assert_array_equal(behind(whole), [1.5, np.nan, np.nan])


def test_swaps_are_drawn_for_both_tasks(two):
    charts = items(two, Chart)
    for k, task in enumerate(sequences.SWAPS, 1):
        drawn_lines = lines(charts[f"swaps_{k}"])
        for variant, values in sequences.SWAPS[task].items():
            np.testing.assert_allclose(drawn_lines[variant].y, 100 * np.array(values))
    assert "95 % interval" in lines(charts["swaps_1"])["E1T2"].hover[3]
    assert lines(charts["swaps_1"])["E2 tuned"].width == 0, "marks alone"
    assert set(lines(charts["frozen"])) == {"on task 1", "on task 2"}
    table = items(two, Table)["swaps"]
    row = next(row for row in table.rows if row[:2] == ["task 1", 4])
    assert row[table.columns.index("E1T2 %")] == pytest.approx(98.8)


def test_blocks_put_back_are_a_map_of_their_ends(two):
    found = items(two, Map)["rewinds"]
    assert found.rows[2] == "3  layers.2.linear"
    assert found.columns[3] == "to layer 4  layers.3.linear"
    assert found.value[2, 3] == pytest.approx(85.0), "of what was lost"
    assert found.value[0, 7] == pytest.approx(100.0)
    assert np.isnan(found.value[np.tril_indices(8, -1)]).all(), "no block ends before it begins"
    assert "The smallest that brings 90 % back: layers 2 to 4, 95 %." in found.note
    assert found.note.endswith("Alone, layer 4 brings back most: 55 %.")
    alone = changed(two, lambda r: None if r.measure == "swap_accuracy" else r)
    kept = changed(two, lambda r: r._replace(value=0.99) if r.variant == "E2T2" else r)
    for run in (alone, kept):
        found = items(run, Map)["rewinds"]
        assert found.title == "Accuracy on task 1, layers put back"
        assert found.value[2, 3] == pytest.approx(100 * sequences.rewound(3, 4))
    assert "rewinds" not in items(changed(two, lambda r: None if r.measure == "rewind_accuracy" else r))


def test_forward_transfer(naive):
    chart, found = lines(items(naive)["forward_transfer"]), naive.of_tasks("refit_task")
    before = np.mean([found[:, 0, j] for j in range(1, 5)], axis=0)
    just_before = np.mean([found[:, j, j] for j in range(1, 5)], axis=0)
    np.testing.assert_allclose(chart["before any training"].y, 100 * before)
    np.testing.assert_allclose(chart["after the tasks before it"].y, 100 * just_before)
    np.testing.assert_allclose(just_before - before, naive.layer_table()["unseen"])


def test_exits(naive):
    charts = items(naive)
    old = lines(charts["exits"])["tasks before the last"]
    np.testing.assert_allclose(old.y, [100 * (0.45 - 0.04 * k) for k in range(1, 9)])
    early = lines(charts["exit_costs"])["the first that is sure"]
    np.testing.assert_allclose(early.x, np.array([0.5, 0.7, 0.8, 0.9, 0.95, 0.99]) ** 2)
    assert charts["early_exits"].rows[3] == [
        "0.9",
        pytest.approx(100 * (0.12 + 0.6 / 5)),
        pytest.approx(81.0),
    ]
    assert charts["early_exits"].rows[-1][0] == "most confident"
    assert "the network on tasks before the last: 0.0 %" in lines(charts["exits"])
    text = next(s.text for s in page_of_continual(naive).sections if s.key == "exits")
    assert "On 31.0 % of the images an exit is right where the network is not" in text


def test_exits_are_those_after_the_last_task(naive):
    earlier = [
        r._replace(experience=2, value=0.0)
        for r in naive.rows
        if r.measure.startswith(("exit_", "early_exit_")) and r.dataset != "task 5"
    ]
    for rows in ([*earlier, *naive.rows], [*naive.rows, *earlier]):
        found = items(ContinualRun(naive.path, rows, naive.manifest))
        assert found["early_exits"].rows == items(naive)["early_exits"].rows
        old = lines(found["exits"])["tasks before the last"]
        np.testing.assert_allclose(old.y, [100 * (0.45 - 0.04 * k) for k in range(1, 9)])


def test_tables(naive):
    tables = items(naive, Table)
    table = tables["accuracies_network"]
    assert table.rows[5][:2] == ["after task 5", 0.0]
    assert table.rows[5][table.columns.index("average %")] == pytest.approx(19.8)
    layers = tables["layers_at_end"]
    assert layers.rows[6][layers.columns.index("drift %")] == pytest.approx(50.7)
    assert len(tables["layers_over_time"].rows) == 5 * 8
    assert ["task 2", "2, 3", 0] in tables["tasks"].rows
    assert ["class_path", "Naive"] not in tables["settings"].rows
    assert ["strategy.class_path", "Naive"] in tables["settings"].rows
    assert any(row[0] == "avalanche-lib" for row in tables["versions"].rows)


def test_many_tasks_are_told_apart_by_time(tmp_path):
    rows = sequences.sequence_rows(tasks=13)
    run = load_continual(sequences.write_sequence(tmp_path / "r", rows, 13))
    course = items(run)["course_network"]
    assert course.ends == ("task 1", "task 13")
    assert items(run)["all_classes"].ends == ("after task 13", "first")
    assert items(run, Map)["task_accuracy"].short == [str(k) for k in range(1, 14)]
    for item in items(run, (Chart, Map)).values():
        Figure(_plain(figure(item)))


def _plain(spec):
    for trace in spec["data"]:
        trace.pop("cells", None)
        trace.pop("band", None)
    json.dumps(spec, allow_nan=False)
    return spec


def test_plotly_and_matplotlib_draw_everything(naive, two):
    for run in (naive, two):
        for item in items(run, (Chart, Map)).values():
            Figure(_plain(figure(item)))
            drawn(item).canvas.draw()
    axes = drawn(items(naive)["course_network"]).axes[0]
    assert [float(tick) % 1 for tick in axes.get_xticks()] == [0.0] * len(axes.get_xticks())
    cells = [text.get_text() for text in drawn(items(naive)["within_accuracy"]).axes[0].texts]
    assert "95.3" in cells, "numbers stand in the cells"


@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_a_run_at_any_time(tmp_path, after):
    run = load_continual(sequences.write_sequence(tmp_path / "r", sequences.sequence_rows(after=after), 5))
    page = page_of_continual(run)
    for section in page.sections:
        for item in section.items:
            if not isinstance(item, Table):
                figure(item)
                drawn(item)
    assert page.notes == (
        [] if after == 5 else [f"The run goes on or was ended: {after} of 5 tasks are learnt and measured."]
    )
    assert page.headline[:3] == {0: "Not", 1: "One", 2: "Dee", 5: "Dee"}[after]


@pytest.mark.parametrize(
    "kept", ["network", "fixed", "refit_task", "refit_all", "learnt", "linear", "cov", "online"]
)
def test_whatever_was_measured_alone(naive, kept):
    run = changed(naive, lambda r: r if r.variant == kept else None)
    for item in items(run).values():
        if not isinstance(item, Table):
            _plain(figure(item))
            drawn(item)


def test_names_are_text(naive):
    nasty = "layers.<b>5&%{x}</b>"
    run = changed(naive, lambda r: r._replace(layer=nasty) if r.layer == "layers.4.linear" else r)
    texts = json.dumps([figure(item) for item in items(run, (Chart, Map)).values()])
    assert "layers.&lt;b&gt;5&amp;%&#8203;{x}&lt;/b&gt;" in texts
    assert "layers.<b>5" not in texts


# From files ---------------------------------------------------------------------------------------------------


def test_the_command_writes_the_page_without_torch(tmp_path):
    folder = sequences.two_tasks(tmp_path / "two" / "version_0")
    code = "import sys; from tunnel_lightning.__main__ import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    run = [
        sys.executable,
        "-c",
        code,
        "report",
        str(folder),
        "--figures",
        str(tmp_path / "f"),
        "--formats",
        "svg",
    ]
    out = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "0 False"
    text = (folder / "report.html").read_text()
    assert "<h1>The extractor forgets, not the tunnel" in text
    assert {"swaps_1.svg", "task_accuracy.svg", "forgetting_by_depth.svg"} <= {
        path.name for path in (tmp_path / "f").iterdir()
    }


def test_several_runs_over_tasks_are_refused(naive, two, capsys):
    assert main(["report", str(naive.path), str(two.path)]) == 2
    assert "is a run over a sequence of tasks, which has a page of its own" in capsys.readouterr().err


def test_a_run_without_rows_has_nothing_to_show(tmp_path):
    folder = sequences.write_sequence(tmp_path / "r", [], 5)
    ProfileTable(folder / "profile.csv").path.unlink()
    with pytest.raises(RunError, match="nothing to show"):
        write_report(folder)
    assert not (folder / "report.html").exists()
