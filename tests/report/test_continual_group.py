"""The page of several runs over tasks: means and deviations over seeds, and depth against forgetting."""

import doctest
import json
import shutil

import numpy as np
import pytest
import sequences
from plotly.graph_objects import Figure

from tunnel_lightning.report import continual_group as module
from tunnel_lightning.report import write_report
from tunnel_lightning.report.charts import Chart, Table
from tunnel_lightning.report.continual_group import headline, page_of_group
from tunnel_lightning.report.interactive import figure
from tunnel_lightning.report.static import figure as drawn
from tunnel_lightning.runs import RunError
from tunnel_lightning.runs.continual_group import ContinualGroup, load_group


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    return load_group(sequences.group(tmp_path_factory.mktemp("runs") / "depths"))


def items(group, kind=object):
    return {
        i.key: i for section in page_of_group(group).sections for i in section.items if isinstance(i, kind)
    }


def test_examples():
    assert doctest.testmod(module).failed == 0


def test_depth_curves_are_means_with_bands(group):
    for depth, each in group.depths.items():
        line = next(line for line in items(group)["layers_drift"].lines if line.label == f"depth {depth}")
        values = 100 * np.array([m.run.layer_table()["drift"] for m in each])
        np.testing.assert_allclose(line.y, values.mean(0))
        np.testing.assert_allclose(line.high - line.y, values.std(0, ddof=1))
        np.testing.assert_allclose(line.y - line.low, values.std(0, ddof=1))
        assert line.x.tolist() == list(range(1, depth + 1))
        assert f"{len(each)} seeds" in line.hover[0]


def test_accuracy_and_forgetting_against_depth_have_bars(group):
    found = group.against_depth()
    for key, column in (("depth_accuracy", "within"), ("depth_forgetting", "within_forgetting")):
        within = [line for line in items(group)[key].lines if line.label == "within each task"]
        assert within[0].x.tolist() == [4, 6, 8]
        np.testing.assert_allclose(within[0].y, 100 * found[column][0])
        for bar, mean, deviation in zip(within[1:], *found[column], strict=True):
            assert not bar.legend
            np.testing.assert_allclose(bar.y, [100 * (mean - deviation), 100 * (mean + deviation)])


def test_the_headline_and_the_key_figures(group):
    assert headline(group) == (
        "Networks of depth 4 forget least within each task: 14.0 ± 1.0 points at depth 4 and 21.5 ± 0.7 points at "
        "depth 8; average accuracy within each task 87.8 ± 0.8 and 81.8 ± 0.6 %"
    )
    page = page_of_group(group)
    assert page.numbers[1].value == "87.8 \N{RIGHTWARDS ARROW} 81.8 %"
    assert page.notes == ["depth_8/seed_2 is left out: it has learnt 3 of 5 tasks."]
    assert "8 runs, depths 4, 6, 8" in page.subtitle
    assert "MLP (width 128)" in page.subtitle, "the depth differs"
    assert "seed" not in page.subtitle


def test_depth_that_does_not_matter(group):
    alike = ContinualGroup(group.path, [m._replace(run=group.members[0].run) for m in group.members], [])
    assert headline(alike).startswith("Depth hardly matters to forgetting: 13.0 ± 0.0 points at depth 4")


def test_seeds_of_one_depth(group):
    one = ContinualGroup(group.path, group.depths[4], [])
    page = page_of_group(one)
    assert headline(one) == (
        "Average accuracy within each task 87.8 ± 0.8, forgotten 14.0 ± 1.0 points, over 3 seeds"
    )
    assert not any(section.items for section in page.sections if section.key == "depth")
    assert [line.label for line in items(one)["layers_drift"].lines] == ["mean"]
    alone = ContinualGroup(group.path, group.depths[4][:1], [])
    assert items(alone)["layers_drift"].lines[0].low is None
    assert "±" not in page_of_group(alone).headline


def test_tables(group):
    tables = items(group, Table)
    by_depth = tables["by_depth"]
    assert [row[:2] for row in by_depth.rows] == [[4, 3], [6, 3], [8, 2]]
    mean, deviation = group.against_depth()["within"]
    at = by_depth.columns.index("within tasks %")
    assert by_depth.rows[1][at : at + 2] == pytest.approx([100 * mean[1], 100 * deviation[1]])
    assert len(tables["members"].rows) == 8
    assert len(tables["all_layers"].rows) == 4 + 6 + 8


def test_everything_is_drawn(group):
    for item in items(group, Chart).values():
        spec = figure(item)
        for trace in spec["data"]:
            trace.pop("band", None)
        Figure(spec)
        json.dumps(spec, allow_nan=False)
        drawn(item).canvas.draw()


def test_the_page_is_written_from_files(group, tmp_path):
    path = write_report(group.path, figures=tmp_path / "f", formats="png")
    assert path == group.path / "report.html"
    assert "Depth against forgetting" in path.read_text()
    assert (tmp_path / "f" / "depth_forgetting.png").exists()


def test_a_group_without_a_finished_run_has_nothing_to_show(group, tmp_path):
    folder = tmp_path / "g"
    shutil.copytree(group.path / "depth_8" / "seed_2", folder / "a")
    (folder / "sweep.json").write_text('{"members": [{"folder": "a", "seed": 2, "depth": 8}]}')
    assert page_of_group(load_group(folder)).headline == "No run has learnt all its tasks yet"
    with pytest.raises(RunError, match="nothing to show"):
        write_report(folder)
