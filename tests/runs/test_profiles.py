"""The profiles of several runs, of one kind wherever that can be."""

import pytest

from tunnel_lightning.runs import ProfileTable, RunError, load_comparison, write_analysis
from tunnel_lightning.runs.comparison import profiles_of


@pytest.fixture
def run(tmp_path, rows_of):
    """Make a run folder that was watched in training or not, and analysed or not."""

    def make(name, watched=True, analysed=True):
        path = tmp_path / "mlp" / name
        path.mkdir(parents=True)
        if watched:
            rows = [row for step in (50, 100) for row in rows_of([0.1, 0.2], 0.2, step=step)]
            ProfileTable(path / "profile.csv").append(rows)
        if analysed:
            rows = [row for step in (60, 90) for row in rows_of([0.3, 0.5], 0.5, step=step, split="test")]
            write_analysis(path / "analysis", rows, summary={"step": 60, "dataset": "Glyphs"})
        return path

    return make


def kinds(profiles):
    return [(each.source, {(row.split, row.step) for row in each.rows}) for each in profiles]


ANALYSIS = ("analysis", {("test", 60)})
TRAINING = ("training", {("val", 100)})


def test_analyses_where_every_run_has_one(run):
    profiles, notes = profiles_of([run("a"), run("b", watched=False)])
    assert kinds(profiles) == [ANALYSIS, ANALYSIS]
    assert notes == []


def test_of_the_training_where_one_has_no_analysis(run):
    profiles, notes = profiles_of([run("a"), run("b", analysed=False)], ["one", "two"])
    assert kinds(profiles) == [TRAINING, TRAINING]
    assert notes == [
        "two: not analysed, so all profiles are the last ones taken in training, on validation images"
    ]


def test_what_there_is_where_neither_can_be(run):
    folders = [run("a", watched=False), run("b", analysed=False), run("c")]
    profiles, notes = profiles_of(folders, ["one", "two", "three"])
    assert kinds(profiles) == [ANALYSIS, TRAINING, ANALYSIS]
    (note,) = notes
    assert "analyses, on test images (one, three)" in note
    assert "taken in training, on validation images (two)" in note


def test_runs_without_profiles_decide_nothing(run):
    nothing = run("n", watched=False, analysed=False)
    profiles, notes = profiles_of([run("a"), nothing, run("b", watched=False)])
    assert kinds(profiles) == [ANALYSIS, ("", set()), ANALYSIS]
    assert notes == ["mlp/n: neither analysed nor watched in training, so there is no profile"]
    profiles, notes = profiles_of([run("c", analysed=False), nothing])
    assert kinds(profiles) == [TRAINING, ("", set())]
    assert (
        notes[0] == "no run is analysed: profiles are the last ones taken in training, on validation images"
    )


def test_rows_are_called_as_asked_or_as_in_the_files(run):
    folders = [run("a"), run("b")]
    profiles, _ = profiles_of(folders, ["one", "two"])
    assert [(each.run_id, {row.run_id for row in each.rows}) for each in profiles] == [
        ("one", {"one"}),
        ("two", {"two"}),
    ]
    assert {each.run_id for each in profiles_of(folders)[0]} == {"mlp/version_0"}
    assert {each.dataset for each in profiles} == {"Glyphs"}


def test_folders_of_analyses(run, rows_of):
    found, other = run("a"), run("b", analysed=False)
    assert kinds(profiles_of([found / "analysis", other])[0]) == [TRAINING, TRAINING]
    alone = write_analysis(other / "alone", rows_of([0.3, 0.5], 0.5, step=60, split="test"))
    assert kinds(profiles_of([alone, other])[0]) == [ANALYSIS, TRAINING], "the table beside it is another's"


def test_broken_files_are_said(run):
    folder = run("a")
    (folder / "analysis" / "summary.json").write_text("{")
    with pytest.raises(RunError, match="not valid JSON"):
        profiles_of([folder])


def test_a_comparison_knows_the_set_of_each_run(tmp_path, rows_of):
    rows = sorted(rows_of([0.3, 0.5], ood={"Digits": [0.9, 0.6]}), key=lambda row: row.dataset)
    ProfileTable(tmp_path / "profile.csv").append(rows)
    summary = '{"schema": 1, "runs": [{"run_id": "mlp/version_0", "dataset": "Glyphs"}]}'
    (tmp_path / "comparison.json").write_text(summary)
    assert load_comparison(tmp_path).runs[0].id_dataset == "Glyphs"
