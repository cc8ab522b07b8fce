"""Groups of runs, and the tables of their answers."""

import csv
import doctest
import re

import numpy as np
import pytest
from scipy import stats
from scipy.special import log_softmax

from tunnel_lightning.analysis import predictions as room
from tunnel_lightning.analysis.predictions import Group, Predictions, group_runs


def config(depth, seed, name="run", **more):
    return {
        "seed_everything": seed,
        "name": name,
        "runs": f"somewhere/{seed}",
        "monitor": {"taps": {"layers": f"kind {seed}"}},
        "data": {"class_path": "Digits", "init_args": {"seed": 5}},
        "model": {
            "backbone": {"class_path": "tunnel_lightning.backbones.MLP", "init_args": {"depth": depth}}
        },
        "trainer": {"max_epochs": 3, "default_root_dir": f"{seed}"},
        **more,
    }


def ids(*names):
    return [f"{name}/version_{i}" for i, name in enumerate(names)]


def test_seed_name_and_folder_make_no_group():
    configs = [config(3, 0, "x"), config(3, 1, "y"), config(5, 0), config(3, 2, "z")]
    found = group_runs(ids("x", "y", "run", "z"), configs)
    assert [(g.key, g.members) for g in found] == [("a", [0, 1, 3]), ("b", [2])]
    assert [g.name for g in found] == ["depth=3", "depth=5"]


def test_anything_else_does():
    other = config(3, 0)
    other["trainer"] = {"max_epochs": 4}
    assert len(group_runs(ids("r", "r"), [config(3, 0), other])) == 2


def test_the_seed_of_the_images_does_and_is_named_with_them():
    others = [config(3, seed) for seed in (0, 1, 2)]
    others[1]["data"] = {"class_path": "Digits", "init_args": {"seed": 6}}
    found = group_runs(ids("r", "r", "r"), others)
    assert [(g.name, g.members) for g in found] == [("data.seed=5", [0, 2]), ("data.seed=6", [1])]


def test_groups_are_called_as_their_runs_where_that_tells_them_apart():
    configs = [config(3, 0), config(3, 1), config(5, 0)]
    assert [g.name for g in group_runs(ids("wide", "wide", "deep"), configs)] == ["wide", "deep"]
    assert [g.name for g in group_runs(ids("m", "m", "m"), configs)] == ["depth=3", "depth=5"]


def test_another_class_is_named_without_its_module():
    other = config(3, 0)
    other["model"]["backbone"]["class_path"] = "tunnel_lightning.backbones.VGG"
    assert [g.name for g in group_runs(ids("m", "m"), [config(3, 0), other])] == ["MLP", "VGG"]


def test_no_two_groups_are_called_alike():
    configs = [
        config(3, 0, **{f"option_{i}": f"{i}.{j}" if i < 4 else j // 2 for i in range(5)}) for j in range(3)
    ]
    for each in configs[:2]:
        each.update({f"option_{i}": "same" for i in range(4)})
    configs[1]["option_4"] = 9
    found = group_runs(ids("m", "m", "m"), configs)
    assert len({g.name for g in found}) == 3


def test_named_groups():
    found = group_runs(ids("m", "m", "m"), [config(d, 0) for d in (3, 4, 5)], ["few", "many", "few"])
    assert found == [Group("a", "few", [0, 2]), Group("b", "many", [1])]
    with pytest.raises(ValueError, match="2 names for 1 runs"):
        group_runs(ids("m"), [config(3, 0)], ["few", "many"])


@pytest.fixture
def predictions():
    """Two groups of three networks; the second is better in class 1 and worse in class 0."""
    rng = np.random.default_rng(0)
    target = np.arange(300) % 3
    scores = rng.normal(size=(6, 300, 3))
    lift = np.array([[1.4, 0.8, 1.0], [0.8, 1.4, 1.0]])
    for r in range(6):
        scores[r, np.arange(300), target] += lift[r // 3, target] + 0.02 * r
    groups = [Group("a", "shallow", [0, 1, 2]), Group("b", "deep", [3, 4, 5])]
    return Predictions(list(log_softmax(scores, 2)), target, ["zero", "one", "two"], groups)


def column(table, name):
    return [row[table["columns"].index(name)] for row in table["rows"]]


def test_tables_are_whole(predictions):
    tables = predictions.tables()
    assert len(tables) == 3
    for table in tables:
        assert set(table) == {"title", "columns", "rows", "note"}
        assert all(len(row) == len(table["columns"]) for row in table["rows"])


def test_group_table(predictions):
    right = predictions.answers == predictions.target
    table = predictions.tables()[0]
    assert column(table, "accuracy %") == pytest.approx([100 * right[:3].mean(), 100 * right[3:].mean()])
    assert column(table, "sd")[1] == pytest.approx(100 * right[3:].mean(1).std(ddof=1))
    assert column(table, "always right %")[0] == pytest.approx(100 * np.mean(right[:3].sum(0) == 3))
    assert column(table, "never right %")[0] == pytest.approx(100 * np.mean(right[:3].sum(0) == 0))


def test_class_table_against_scipy(predictions):
    right = predictions.answers == predictions.target
    accuracy = np.stack([right[:, predictions.target == c].mean(1) for c in range(3)], 1)
    expected = stats.ttest_ind(accuracy[:3], accuracy[3:], equal_var=False)
    table = predictions.tables()[2]
    assert column(table, "class") == ["zero", "one", "two"]
    assert column(table, "images") == [100, 100, 100]
    assert column(table, "difference") == pytest.approx(100 * (accuracy[:3] - accuracy[3:]).mean(0))
    assert column(table, "p") == pytest.approx(expected.pvalue)
    assert column(table, "difference")[0] > 0 > column(table, "difference")[1]
    assert min(column(table, "p (Holm)")) == pytest.approx(3 * min(expected.pvalue))


def test_spread_table_shows_other_errors(predictions):
    table = predictions.tables()[1]
    assert column(table, "groups") == ["a / b"] * 2
    # The halves of one kind are noisy too: a difference of two single networks.
    assert all(ratio > 1 for ratio in column(table, "ratio"))
    same = [Group("a", "even", [0, 2, 4]), Group("b", "odd", [1, 3, 5])]
    mixed = Predictions(predictions.log_probabilities, predictions.target, predictions.class_names, same)
    assert column(mixed.tables()[1], "ratio")[0] == pytest.approx(1, abs=0.05)


def test_one_network_a_group_is_not_tested_but_compared(predictions):
    groups = [Group("a", "x", [0]), Group("b", "y", [1])]
    single = Predictions(
        predictions.log_probabilities[:2], predictions.target, predictions.class_names, groups
    )
    (table,) = single.tables()
    assert "from 2 networks" in table["note"]
    pair = single.pair(0, 1)
    assert pair.agreement == pytest.approx(np.mean(single.answers[0] == single.answers[1]))
    assert pair.churn.changed == pytest.approx(1 - pair.agreement)
    assert pair.kl > 0 < pair.kl_back
    assert pair.kl != pair.kl_back
    assert single.pair(0, 0).kl == 0


def test_csv_has_a_line_for_each_image(predictions, tmp_path):
    predictions.write(tmp_path / "predictions.csv")
    with (tmp_path / "predictions.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["image", "label", "accuracy_a", "accuracy_b"]
    assert [line["label"] for line in lines[:4]] == ["zero", "one", "two", "zero"]
    right = predictions.answers == predictions.target
    assert [float(line["accuracy_b"]) for line in lines] == pytest.approx(right[3:].mean(0), abs=1e-5)
    assert re.fullmatch(r"\d+", lines[-1]["image"])


def test_examples():
    assert doctest.testmod(room).failed == 0
