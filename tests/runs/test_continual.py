"""Metrics of accuracy matrices against their equations, and reading runs over tasks, finished or not."""

import doctest
import json
import shutil

import numpy as np
import pytest
import sequences

from tunnel_lightning.runs import ProfileTable, Row, RunError, continual, forgetting
from tunnel_lightning.runs.continual import is_continual, load_continual, matrix
from tunnel_lightning.runs.continual_group import is_group, load_group

NAN = float("nan")
# Three tasks; the second is known best after the third, the first before it was learnt is known from chance.
BEFORE = [0.5, 0.4, 0.5]
AFTER = [[0.9, 0.5, 0.6], [0.7, 0.8, 0.7], [0.6, 0.9, 1.0]]
MATRIX = np.array([BEFORE, *AFTER])


@pytest.mark.parametrize("module", [forgetting, continual])
def test_examples(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


def test_each_metric_is_its_equation():
    np.testing.assert_allclose(continual.average_accuracy(AFTER), [0.9, 0.75, 2.5 / 3])
    np.testing.assert_allclose(continual.average_accuracy(AFTER, [1, 2, 3])[2], (0.6 + 2 * 0.9 + 3 * 1.0) / 6)
    np.testing.assert_allclose(continual.forgetting_since_learnt(AFTER)[1:], [0.2, (0.3 - 0.1) / 2])
    np.testing.assert_allclose(continual.backward_transfer(AFTER)[1:], [-0.2, -0.1])
    # max over l < k of a_{l,1} is .9; of task 2, whose best is now, .8
    np.testing.assert_allclose(continual.forgetting(AFTER)[1:], [0.2, (0.3 - 0.1) / 2])
    better_later = [[0.6, 0.0, 0.0], [0.9, 0.8, 0.0], [0.5, 0.7, 1.0]]
    assert continual.forgetting(better_later)[2] == pytest.approx((0.4 + 0.1) / 2)
    assert continual.forgetting_since_learnt(better_later)[2] == pytest.approx((0.1 + 0.1) / 2)
    np.testing.assert_allclose(continual.forward_transfer(MATRIX), [0.1, 0.15, 0.15])
    np.testing.assert_allclose(continual.forward_transfer(AFTER, baseline=False), [0.5, 0.6, 0.6])
    # losses .2, then .3 and -.1; gains .9 - .5 and .8 - .5
    np.testing.assert_allclose(continual.relative_forgetting(MATRIX)[1:], [0.2 / 0.4, 0.2 / 0.7])
    np.testing.assert_allclose(continual.drift(AFTER), continual.representation_forgetting(AFTER))


def test_what_was_before_the_first_task_does_not_count_as_forgotten():
    known = np.vstack([[1.0, 1.0, 1.0], AFTER])
    for function in (continual.forgetting, continual.forgetting_since_learnt, continual.average_accuracy):
        np.testing.assert_array_equal(function(known), function(AFTER))


def test_of_one_task_nothing_is_forgotten_or_transferred():
    for function in (continual.forgetting, continual.forgetting_since_learnt, continual.backward_transfer):
        assert np.isnan(function([[0.9]])).all()
    assert np.isnan(continual.forward_transfer([[0.5], [0.9]])).all()
    assert continual.average_accuracy([[0.9]]) == [0.9]


def test_what_is_not_measured_is_not_guessed():
    going_on = np.array([[0.9, NAN, NAN], [0.5, 0.8, NAN], [NAN, NAN, NAN]])
    assert continual.at_end(continual.average_accuracy(going_on)) == pytest.approx(0.65)
    assert continual.at_end(continual.forgetting(going_on)) == pytest.approx(0.4)
    hole = np.array([[0.9, NAN, NAN], [0.5, 0.8, NAN], [NAN, 0.7, 1.0]])
    assert np.isnan(continual.average_accuracy(hole)[2])
    assert np.isnan(continual.forgetting(hole)[2])


def test_a_share_of_next_to_nothing_is_not_given():
    refit = np.array([[0.99, 0.99], [0.995, 0.99], [0.99, 1.0]])
    assert np.isnan(continual.relative_forgetting(refit)[1])
    assert continual.relative_forgetting(refit, least_gain=0.0)[1] == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (5, 3), (3, 3, 3)])
def test_another_shape_is_no_matrix(shape):
    with pytest.raises(ValueError, match=r"\[T, T\] or \[T \+ 1, T\], not"):
        continual.average_accuracy(np.zeros(shape))


def test_a_baseline_needs_a_row():
    with pytest.raises(ValueError, match="baseline=False"):
        continual.forward_transfer(AFTER)


def test_seeds_are_aggregated():
    mean, deviation = continual.mean_and_deviation([[0.5, 1.0], [0.7, 1.0], [0.6, NAN]])
    assert mean[0] == pytest.approx(0.6)
    assert deviation[0] == pytest.approx(0.1)
    assert np.isnan([mean[1], deviation[1]]).all()
    assert np.isnan(continual.mean_and_deviation([[0.5]])[1])


# Reading ------------------------------------------------------------------------------------------------------


def test_a_matrix_is_gathered_from_rows():
    row = Row("r", 9, 1, -1, "test", "task 1", "l1", 1, "probe_accuracy", "fixed", 0.1)
    rows = [
        row,
        row._replace(experience=1, dataset="task 2", value=0.4),
        row._replace(experience=0, value=0.2),
        row._replace(experience=0, value=0.25),
        row._replace(experience=0, variant="online", value=0.9),
        row._replace(experience=0, layer="l2", value=0.9),
        row._replace(experience=0, dataset="all", value=0.9),
    ]
    expected = np.array([[0.1, NAN], [0.25, NAN], [NAN, 0.4]])
    np.testing.assert_array_equal(matrix(rows, "l1", "probe_accuracy", "fixed"), expected)
    other = matrix(rows, "l1", "probe_accuracy", "fixed", ["task 2", "task 1", "task 3"])
    np.testing.assert_array_equal(other[:3, :2], expected[:, ::-1])
    assert np.isnan(other[:, 2]).all()
    assert matrix(rows, "l9", "probe_accuracy", "fixed", ["task 1"]).shape == (2, 1)


@pytest.fixture(scope="module")
def naive(tmp_path_factory):
    return sequences.naive(tmp_path_factory.mktemp("runs") / "naive" / "version_0")


def test_a_run_knows_what_its_rows_say(naive):
    run = load_continual(naive)
    assert (run.id, run.done, run.finished, run.single_head) == ("naive/version_0", 5, True, True)
    assert run.tasks == [f"task {k}" for k in range(1, 6)]
    assert run.classes[1] == "2, 3"
    assert run.layers == {k: f"layers.{k - 1}.linear" for k in range(1, 9)}
    np.testing.assert_array_equal(np.diag(run.network()[1:]), [0.99] * 5)
    assert continual.average_accuracy(run.network())[-1] == pytest.approx(0.99 / 5)
    table = run.layer_table()
    for column, key in (("drift", "drift"), ("representation_forgetting", "repr"), ("all_classes", "all")):
        np.testing.assert_allclose(table[column], sequences.NAIVE[key], atol=1e-9)
    np.testing.assert_allclose(table["cka"], sequences.NAIVE["cka"], atol=1e-9)
    np.testing.assert_allclose(table["effective_rank"], sequences.NAIVE["rank"])
    assert table["drift"][7] >= 4 * table["drift"][0], "the gradient by depth"


def test_the_table_of_layers_at_any_time(naive):
    run = load_continual(naive)
    first, second = run.layer_table(1), run.layer_table(2)
    assert np.isnan(first["drift"]).all()
    np.testing.assert_allclose(first["effective_rank"], sequences.NAIVE["rank"])
    fixed = run.of_tasks("fixed")
    np.testing.assert_allclose(second["drift"], fixed[:, 1, 0] - fixed[:, 2, 0])


def test_a_run_that_goes_on(tmp_path):
    rows = sequences.sequence_rows(after=2)
    folder = sequences.write_sequence(tmp_path / "r", rows, 5)
    run = load_continual(folder)
    assert (run.done, run.finished) == (2, False)
    assert run.network().shape == (6, 5)
    assert np.isfinite(run.layer_table()["drift"]).all()
    (folder / "profile.csv").unlink()
    run = load_continual(folder)
    assert (run.done, run.rows, run.layers) == (0, [], {})
    assert run.of_tasks("fixed").shape == (0, 6, 5)
    assert all(len(column) == 0 for column in run.layer_table().values())


def test_what_may_be_chance(naive):
    run = load_continual(naive)
    found = run.of_tasks("refit_task")
    p = found.mean(axis=(1, 2))
    np.testing.assert_allclose(run.doubt("refit_task"), np.sqrt(2 * p * (1 - p) / (4 * sequences.IMAGES)))
    few = type(run)(run.path, [row._replace(n=5) for row in run.rows], run.manifest)
    assert np.isfinite(run.layer_table()["relative_forgetting"]).all()
    assert np.isnan(few.layer_table()["relative_forgetting"]).all(), "the gain may be chance"
    unknown = type(run)(run.path, [row._replace(n=0) for row in run.rows], run.manifest)
    assert np.isnan(unknown.doubt("refit_task")).all()
    assert np.isfinite(unknown.layer_table()["relative_forgetting"]).all()


def test_other_numbers_of_directions_are_found(tmp_path):
    rows = [r._replace(variant="k=4") if r.variant == "k=10" else r for r in sequences.sequence_rows(tasks=2)]
    run = load_continual(sequences.write_sequence(tmp_path / "r", rows, 2))
    assert np.isfinite(run.layer_table()["overlap"]).all()


def test_sweeps(tmp_path):
    run = load_continual(sequences.two_tasks(tmp_path / "r"))
    found = {(each.dataset, each.variant): each for each in run.sweeps()}
    assert found["task 1", "E1T2"].cut.tolist() == list(range(1, 9))
    assert found["task 1", "E1T2"].value.tolist() == sequences.SWAPS["task 1"]["E1T2"]
    assert found["task 1", "E1T2"].layer[3] == "layers.3.linear"
    blocks = run.rewinds()
    assert (blocks.dataset, blocks.n) == ("task 1", sequences.IMAGES)
    assert blocks.first.tolist() == blocks.last.tolist() == list(range(1, 9))
    for i, k in np.ndindex(8, 8):
        expected = sequences.rewound(i + 1, k + 1) if k >= i else NAN
        np.testing.assert_array_equal(blocks.value[i, k], expected)
    none = type(run)(run.path, [r for r in run.rows if r.measure != "rewind_accuracy"], run.manifest)
    assert none.rewinds() is None
    assert not run.single_head


def test_whether_one_head_answers_for_all_is_taken_from_the_manifest(naive):
    run = load_continual(naive)
    for about, single in (
        ({"kind": "classic", "single_head": True}, True),
        ({"kind": "class_incremental", "single_head": False}, False),
        ({"kind": "classic"}, False),
        ({"kind": "class_incremental", "multi_head": True}, False),
    ):
        assert type(run)(run.path, run.rows, {"continual": about}).single_head is single


def test_a_folder_of_another_kind_is_said(tmp_path):
    assert not is_continual(tmp_path)
    with pytest.raises(RunError, match="no run over a sequence of tasks"):
        load_continual(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RunError, match="not valid JSON"):
        load_continual(tmp_path)


# Several runs -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    return sequences.group(tmp_path_factory.mktemp("runs") / "depth")


def test_a_group_is_read_by_depth_and_seed(group):
    assert is_group(group)
    found = load_group(group)
    assert {depth: [m.seed for m in each] for depth, each in found.depths.items()} == {
        4: [0, 1, 2], 6: [0, 1, 2], 8: [0, 1],
    }  # fmt: skip
    assert found.id == "/".join(group.parts[-2:])
    assert found.notes == ["depth_8/seed_2 is left out: it has learnt 3 of 5 tasks."]
    mean, deviation = found.layer_tables(4)["drift"]
    np.testing.assert_allclose(mean, np.array(sequences.NAIVE["drift"][:4]) + 0.05)
    np.testing.assert_allclose(deviation, 0.01)
    lost, spread = found.against_depth()["within_forgetting"]
    assert lost[0] < lost[1] < lost[2]
    np.testing.assert_allclose(spread[:2], 0.01)
    assert found.against_depth()["accuracy"][0] == pytest.approx([0.198] * 3)


def test_runs_of_a_group_that_are_not_there_yet(group, tmp_path):
    folder = tmp_path / "g"
    shutil.copytree(group, folder)
    shutil.rmtree(folder / "depth_6" / "seed_1")
    assert "1 of 9 runs has not begun." in load_group(folder).notes
    sweep = json.loads((folder / "sweep.json").read_text())
    for member in sweep["members"]:
        member["depth"] = None
    (folder / "sweep.json").write_text(json.dumps(sweep))
    assert list(load_group(folder).depths) == [4, 6, 8], "the layers that were measured"


@pytest.mark.parametrize("text", ["{", "[]", '{"members": [1]}', '{"members": [{"seed": 1}]}'])
def test_a_broken_list_of_runs_is_said(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(RunError, match=r"sweep\.json"):
        load_group(tmp_path)


def test_a_list_of_other_runs_is_no_group(tmp_path):
    assert not is_group(tmp_path)
    with pytest.raises(RunError, match=r"holds no sweep\.json"):
        load_group(tmp_path)
    ProfileTable(tmp_path / "a" / "profile.csv").append([])
    (tmp_path / "sweep.json").write_text('{"members": [{"folder": "a"}]}')
    assert not is_group(tmp_path)


def test_depths_with_other_layers_have_no_mean(group, tmp_path):
    folder = tmp_path / "g"
    shutil.copytree(group, folder)
    table = ProfileTable(folder / "depth_4" / "seed_1" / "profile.csv")
    table.write([r._replace(layer=f"other.{r.layer}") if r.layer != "network" else r for r in table.rows])
    with pytest.raises(RunError, match="differ in their layers"):
        load_group(folder).layer_tables(4)
