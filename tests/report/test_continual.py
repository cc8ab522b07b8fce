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
from tunnel_lightning.report.continual_page import page_of_continual
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
    assert (
        charts["frozen"].note == "The last task learnt again with layers 1 to k held as they were before it."
    )
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


def test_of_steps_of_several_layers_no_block_is_said_to_be_the_smallest(two):
    assert "The smallest" in items(two, Map)["rewinds"].note
    odd = changed(
        two, lambda r: r if r.measure != "rewind_accuracy" or r.variant[0] in "157" or r.index == 8 else None
    )
    odd = changed(odd, lambda r: None if r.measure == "rewind_accuracy" and r.variant[0] in "2468" else r)
    note = items(odd, Map)["rewinds"].note
    assert (
        note
        == "Blocks of the last network put back to what they were after the task (Ramasesh et al., 2021)."
    )


def test_two_exits_may_have_one_number(naive):
    twice = [r._replace(layer="layers.2.act", value=0.5) for r in naive.rows
             if r.index == 3 and r.measure in ("exit_accuracy", "exit_flops_share")]  # fmt: skip
    found = items(ContinualRun(naive.path, [*naive.rows, *twice], naive.manifest))
    old = lines(found["exits"])["tasks before the last"]
    assert old.x.tolist() == [1, 2, 3, 3, 4, 5, 6, 7, 8]
    assert old.y[[2, 3]].tolist() == pytest.approx([33.0, 50.0])
    assert "exit at layer 3: layers.2.act" in old.hover[3]
    assert len(lines(found["exit_costs"])["always the same exit"].x) == 9


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
