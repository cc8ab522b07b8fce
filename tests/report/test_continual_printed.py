"""A run over tasks in the terminal: every number is whole and right, whatever the width."""

import io
import re

import numpy as np
import pytest
import sequences
from rich.console import Console

from tunnel_lightning.report.continual import print_continual
from tunnel_lightning.report.continual_printed import print_group, print_run
from tunnel_lightning.runs import RunError
from tunnel_lightning.runs.continual import ContinualRun, average_accuracy, load_continual
from tunnel_lightning.runs.continual_group import ContinualGroup, load_group


@pytest.fixture(scope="module")
def naive(tmp_path_factory):
    return load_continual(sequences.naive(tmp_path_factory.mktemp("runs") / "naive" / "version_0"))


@pytest.fixture(scope="module")
def thirteen(tmp_path_factory):
    rows = sequences.sequence_rows("Replay", tasks=13)
    return load_continual(sequences.write_sequence(tmp_path_factory.mktemp("runs") / "r" / "v", rows, 13))


def printed(found, width, show=print_run, encoding="utf-8"):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    show(found, Console(file=file, width=width))
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def body(text, title):
    """The heads and the lines of a table, and what it had no room for."""
    behind = text[text.index(title) :].splitlines()
    rule = next(k for k, line in enumerate(behind) if "──" in line)
    lines = []
    for line in behind[rule + 1 :]:
        if not re.match(r"(before|task|ta\S*|\s*\d+) ", line):
            break
        lines.append(line.split())
    rest = " ".join(" ".join(behind[rule + 1 + len(lines) :]).split())
    left_out = re.match(r"no room here: (.*?)(?= drift:| Layers at|$)", rest)
    return lines, left_out[1] if left_out else ""


@pytest.mark.parametrize("width", [40, 50, 60, 70, 80, 120])
@pytest.mark.parametrize("run", ["naive", "thirteen"])
def test_no_number_is_cut(run, width, request):
    run = request.getfixturevalue(run)
    text = printed(run, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    lines, _ = body(text, "Layers at the end")
    table = run.layer_table()
    assert len(lines) == 8
    for k, line in enumerate(lines):
        said = [
            f"{100 * table['drift'][k]:.1f}",
            f"{100 * table['all_classes'][k]:.1f}",
            f"{100 * table['representation_forgetting'][k] + 0.0:.1f}".replace("-0.0", "0.0"),
        ]
        assert line[2 : 2 + len(said)] == said
    lines, _ = body(text, "Accuracy (%)")
    average = 100 * average_accuracy(run.network())
    last = lines[-1]
    whole = {f"{average[-1]:.1f}", f"{average[-1]:.0f}"}
    assert whole & set(last)
    first = 100 * run.network()[-1, 0]
    assert last[2] in (f"{first:.1f}", f"{first:.0f}"), "the first task stays"


def test_the_first_table_is_the_matrix(naive):
    lines, left_out = body(printed(naive, 80), "Accuracy (%)")
    assert left_out == ""
    matrix, within = naive.network(), average_accuracy(naive.network("within"))
    assert lines[0][1:6] == [f"{100 * v:.1f}" for v in matrix[0]]
    for k in range(1, 6):
        values = [f"{100 * v:.1f}" for v in matrix[k]]
        assert lines[k][:2] == ["task", str(k)]
        assert lines[k][2:7] == values
        assert lines[k][7] == f"{100 * average_accuracy(matrix)[k - 1]:.1f}"
        assert lines[k][8] == f"{100 * within[k - 1]:.1f}"
        assert lines[k][9] == ("-" if k == 1 else "99.0")


def test_columns_of_tasks_are_whole_percents_where_there_is_little_room(thirteen):
    text = printed(thirteen, 80)
    assert "no room" not in text.partition("Layers at the end")[0]
    lines, _ = body(text, "Accuracy (%)")
    assert lines[13][2:15] == [f"{100 * v:.0f}" for v in thirteen.network()[-1]]
    lines, left_out = body(printed(thirteen, 40), "Accuracy (%)")
    assert left_out.startswith("task 2 to ")
    assert f"{100 * average_accuracy(thirteen.network())[-1]:.0f}" in lines[13]


def test_columns_of_layers_go_by_importance(naive):
    left_out = {width: body(printed(naive, width), "Layers at the end")[1] for width in (40, 50, 70)}
    assert left_out[40] == "relative forgetting, rank, CKA"
    assert left_out[50] in ("relative forgetting", "relative forgetting, CKA")
    assert left_out[70] == ""
    assert "rel. forg.:" in printed(naive, 70)
    assert "rel. forg.:" not in printed(naive, 40)


def test_all_columns_of_the_second_table(naive):
    lines, _ = body(printed(naive, 100), "Layers at the end")
    assert lines[6] == ["7", "layers.6.linear", "50.7", "82.8", "1.7", "13", "4", "0.64"]


def test_the_end_says_it_in_words(naive):
    joined = " ".join(printed(naive, 100).split())
    assert "Deep layers forget most: probes fitted when a task was learnt lose 7.4 points" in joined
    assert joined.endswith("are worse than untrained.")


def test_names_of_layers_stay_different(naive, tmp_path):
    names = {f"layers.{i}.linear" for i in range(8)}
    for width in (40, 60, 80):
        lines, _ = body(printed(naive, width), "Layers at the end")
        assert len({line[1] for line in lines}) == len(names)
    rows = [r._replace(layer=f"model.blocks.{r.index}.attention.output.linear") if r.layer in names else r
            for r in naive.rows]  # fmt: skip
    lines, _ = body(printed(ContinualRun(naive.path, rows, naive.manifest), 60), "Layers at the end")
    assert len({line[1] for line in lines}) == len(names)


def test_all_tasks_learnt_at_once_have_one_line_and_no_likeness(naive):
    rows = [row for row in naive.rows if row.experience in (-1, 4)]
    text = printed(ContinualRun(naive.path, rows, naive.manifest), 80)
    lines, _ = body(text, "Accuracy (%)")
    assert [" ".join(line[:2]) for line in lines[1:]] == ["task 5"]
    assert lines[0][0] == "before"
    assert "CKA" not in text
    assert "No layer was measured" not in text


def test_a_folder_is_read(naive, tmp_path):
    assert printed(naive.path, 80, print_continual) == printed(naive, 80)
    folder = sequences.group(tmp_path / "depths")
    assert printed(folder, 80, print_continual) == printed(load_group(folder), 80, print_group)
    with pytest.raises(RunError, match="no run over a sequence of tasks"):
        print_continual(tmp_path)


def test_a_head_for_each_task_has_no_column_within_tasks(tmp_path):
    run = load_continual(sequences.two_tasks(tmp_path / "two" / "version_0"))
    text = printed(run, 80)
    assert "within" not in text.partition("Layers at the end")[0]
    lines, _ = body(text, "Accuracy (%)")
    assert lines == [
        ["before", "20.0", "-", "-", "-"],
        ["task", "1", "99.5", "-", "99.5", "-"],
        ["task", "2", "78.4", "98.3", "88.4", "21.1"],
    ]
    assert "The extractor forgets, not the tunnel: layers 1 to 4" in " ".join(text.split())
    said = printed(run, 60).partition("The extractor")[2]
    assert " %" not in said, "a number keeps its percent sign"
    assert "97%" in said


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_run_that_goes_on(naive, after):
    rows = [row for row in naive.rows if row.experience < after]
    text = printed(ContinualRun(naive.path, rows, naive.manifest), 80)
    assert ("Accuracy (%)" in text) == (after > 0)
    assert ("Layers at the end" in text) == (after > 1)


def test_brackets_in_names_are_text(naive):
    rows = [r._replace(layer=f"[red]{r.layer}[/red]") if r.layer != "network" else r for r in naive.rows]
    assert "[red]layers.6.linear[/red]" in printed(ContinualRun(naive.path, rows, naive.manifest), 120)


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_group(tmp_path, width):
    group = load_group(sequences.group(tmp_path / "depths"))
    text = printed(group, width, print_group)
    assert max(map(len, text.splitlines())) <= width
    mean, deviation = group.against_depth()["forgetting"]
    for k, depth in enumerate(group.depths):
        line = next(line for line in text.splitlines() if line.split()[:1] == [str(depth)])
        assert f"{100 * mean[k]:.1f} ± {100 * deviation[k]:.1f}" in line
    assert "depth_8/seed_2 is left out" in " ".join(text.split())
    assert "Networks of depth 4 forget least within each task" in " ".join(text.split())


def test_a_group_without_a_finished_run(tmp_path):
    text = printed(ContinualGroup(tmp_path, [], ["2 of 2 runs have not begun."]), 80, print_group)
    assert "2 of 2 runs have not begun." in text
    assert np.size(text) == 1
