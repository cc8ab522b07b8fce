"""Several runs compared, from their folders to the comparison's."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from tunnel_lightning.__main__ import main
from tunnel_lightning.analysis.base import Subject
from tunnel_lightning.analysis.compare import command, compare
from tunnel_lightning.analysis.sets import mixed
from tunnel_lightning.analysis.subject import load_run_subject
from tunnel_lightning.analysis.together import gather
from tunnel_lightning.data import Digits
from tunnel_lightning.runs import RunError, load_comparison, load_run, write_analysis
from tunnel_lightning.taps import TapSpec


def fit(runs, name, seed, *more, depth=3):
    arguments = [
        *("fit", "--data", "Digits", "--model.backbone", "MLP", "--model.backbone.width=16"),
        *(f"--model.backbone.depth={depth}", f"--seed_everything={seed}", f"--runs={runs}", f"--name={name}"),
        *("--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--monitor.transfer=null", *more),
    ]
    assert main(arguments) == 0
    return max((runs / name).iterdir())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of one kind, a deeper network on smaller images, one of fewer classes."""
    root = tmp_path_factory.mktemp("runs")
    return {
        "one": fit(root, "mlp", 0),
        "two": fit(root, "mlp", 1),
        "deep": fit(root, "deep", 0, "--data.image_size=6", depth=5),
        "five": fit(root, "five", 0, "--data.classes=5"),
    }


@pytest.fixture(scope="module")
def three(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "comparison"
    return compare([runs[name] for name in ("one", "two", "deep")], device="cpu", out=folder)


def table(found, title):
    return next(each for each in found.summary["tables"] if each["title"] == title)


def column(found, title, name):
    each = table(found, title)
    return [row[each["columns"].index(name)] for row in each["rows"]]


def part(found, first, second):
    """The map between two runs."""
    similarity = found.similarity["cka"]
    at = [
        [i for i, name in enumerate(similarity.names) if name.startswith(f"{run}:")]
        for run in (first, second)
    ]
    return similarity.value[np.ix_(*at)]


def keep(outs, module, args, output):
    outs.append(output.numpy())


def features(run):
    """Features of every tapped layer and class scores, in two even batches, by hand."""
    subject: Subject = load_run_subject(run, ood=[])
    layers = [module for name, module in subject.network.named_modules() if name.endswith(".linear")]
    found = []
    for start in (0, 180):
        outs: list[np.ndarray] = []
        handles = [layer.register_forward_hook(partial(keep, outs)) for layer in layers]
        x = torch.cat([x for x, _ in subject.data.test_dataloader()])
        x = x[mixed(len(x))][start : start + 180]
        with torch.no_grad():
            scores = subject.network.eval()(x)
        for handle in handles:
            handle.remove()
        found.append((outs, scores.numpy()))
    return found


def hsic_1(x, y):
    """Song et al.'s estimator as it is written, in float64."""
    n = len(x)
    k, l = ((a.astype(float) - a.mean(0)) @ (a.astype(float) - a.mean(0)).T for a in (x, y))  # noqa: E741
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    total = (k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ l).sum()
    return total / (n * (n - 3))


def test_map_against_the_estimator_written_out(runs, three):
    one, deep = features(runs["one"]), features(runs["deep"])
    for (first, xs), (second, ys) in (
        (("mlp/version_0", one), ("deep/version_0", deep)),
        (("mlp/version_0", one), ("mlp/version_0", one)),
    ):
        expected = np.empty((len(xs[0][0]), len(ys[0][0])))
        for i, j in np.ndindex(*expected.shape):
            terms = [
                (hsic_1(x[i], y[j]), hsic_1(x[i], x[i]), hsic_1(y[j], y[j]))
                for (x, _), (y, _) in zip(xs, ys, strict=True)
            ]
            xy, xx, yy = np.mean(terms, 0)
            expected[i, j] = xy / np.sqrt(xx * yy)
        np.testing.assert_allclose(part(three, first, second), expected, atol=1e-5)


def test_each_network_sees_the_images_its_own_way(runs, three):
    labels = torch.cat([y for _, y in Digits().test_dataloader()])[mixed(359)].numpy()
    for name, each in zip(("one", "two", "deep"), three.summary["runs"], strict=True):
        scores = np.concatenate([scores for _, scores in features(runs[name])])
        assert each["accuracy"]["value"] == pytest.approx(np.mean(scores.argmax(1) == labels))
        assert each["accuracy"]["n"] == 359
        assert each["accuracy"]["low"] < each["accuracy"]["value"] < each["accuracy"]["high"]


def test_each_network_sees_pixels_as_it_was_trained_on_them(runs):
    members = gather([runs["one"], runs["deep"], runs["five"]])
    pixels, norms = [], []
    for member in members:
        own = load_run_subject(member.subject.run, ood=[]).data
        x = next(iter(member.images.batches("test", 8)))[0]
        assert x.shape[1:] == own.input_shape
        norms.append((own.mean, own.std))
        pixels.append(x * own.std[0] + own.mean[0])
    assert norms[0] == norms[1] != norms[2]
    torch.testing.assert_close(pixels[0], pixels[2])


def test_pairs(runs, three):
    scores = [np.concatenate([s for _, s in features(runs[name])]) for name in ("one", "deep")]
    expected = 100 * np.mean(scores[0].argmax(1) == scores[1].argmax(1))
    assert column(three, "Pairs of networks", "agreement %")[1] == pytest.approx(expected)
    kl = rel_entr(*(softmax(each.astype(float), 1) for each in scores)).sum(1).mean()
    assert column(three, "Pairs of networks", "KL(first, second)")[1] == pytest.approx(kl, rel=1e-4)
    cka = part(three, "mlp/version_0", "mlp/version_1")
    assert column(three, "Pairs of networks", "mean CKA along depth")[0] == pytest.approx(np.diag(cka).mean())
    assert column(three, "Pairs of networks", "CKA of the last layers")[0] == pytest.approx(cka[-1, -1])


def test_a_third_network_changes_nothing_between_two(runs, three, tmp_path):
    two = compare([runs["one"], runs["two"]], device="cpu", out=tmp_path / "two")
    pair = ("mlp/version_0", "mlp/version_1")
    # but the order in which single precision adds up
    np.testing.assert_allclose(part(two, *pair), part(three, *pair), atol=1e-6)


def test_a_network_is_its_own_twin(runs, tmp_path):
    twin = tmp_path / "twin" / "version_0"
    shutil.copytree(runs["one"], twin)
    found = compare([runs["one"], twin], device="cpu", out=tmp_path / "out")
    own, cross = part(found, "mlp/version_0", "mlp/version_0"), part(found, "mlp/version_0", "twin/version_0")
    np.testing.assert_allclose(np.diag(cross), 1, atol=1e-12)
    np.testing.assert_allclose(cross, own, atol=1e-12)
    assert column(found, "Pairs of networks", "agreement %") == [100]
    assert column(found, "Pairs of networks", "churn %") == [0]
    assert column(found, "Pairs of networks", "KL(first, second)") == [0]


def test_runs_of_the_same_id_keep_apart(runs, tmp_path):
    other = tmp_path / "mlp" / "version_0"
    shutil.copytree(runs["two"], other)
    found = compare([runs["one"], other], device="cpu", out=tmp_path / "out")
    assert [each["run_id"] for each in found.summary["runs"]] == ["mlp/version_0", "mlp/version_0-2"]
    assert len(found.runs) == 2
    assert part(found, "mlp/version_0", "mlp/version_0-2").shape == (3, 3)


def test_groups_are_runs_that_differ_in_their_seed(three):
    assert [(g["key"], g["name"], len(g["run_ids"])) for g in three.summary["groups"]] == [
        ("a", "mlp", 2),
        ("b", "deep", 1),
    ]
    assert "from 2 networks" in table(three, "Groups of networks")["note"]
    assert set(three.per_image) == {"a", "b"}
    assert len(three.per_image["a"]) == 359


def test_named_groups_are_tested(runs, tmp_path):
    twin = tmp_path / "deep2" / "version_0"
    shutil.copytree(runs["deep"], twin)
    names = ["s", "s", "d", "d"]
    four = [runs["one"], runs["two"], runs["deep"], twin]
    found = compare(four, device="cpu", groups=names, out=tmp_path / "out")
    rows = table(found, "Classes in which the groups differ")["rows"]
    assert [row[1] for row in rows] == [str(i) for i in range(10)]
    assert len(table(found, "Are the groups right about different images?")["rows"]) == 2


def test_group_map_is_the_mean_over_pairs(three):
    groups = three.similarity["cka_groups"]
    assert groups.names[:4] == [
        "a:layers.0.linear",
        "a:layers.1.linear",
        "a:layers.2.linear",
        "b:layers.0.linear",
    ]
    one, two, deep = "mlp/version_0", "mlp/version_1", "deep/version_0"
    cross = part(three, one, two)
    np.testing.assert_allclose(groups.value[:3, :3], (cross + cross.T) / 2)
    pairs = np.stack([part(three, one, deep), part(three, two, deep)])
    np.testing.assert_allclose(groups.value[:3, 3:], pairs.mean(0))
    assert np.isnan(groups.value[3:, 3:]).all()
    assert np.isnan(groups.se).all(), "no group has a network to spare"


def test_errors_of_the_group_map_are_over_networks(runs, tmp_path):
    third = tmp_path / "mlp" / "version_7"
    shutil.copytree(runs["two"], third)
    found = compare([runs["one"], runs["two"], third], device="cpu", images=128, out=tmp_path / "out")
    pairs = [
        part(found, f"mlp/version_{i}", f"mlp/version_{j}") for i, j in ((0, 1), (0, 7), (1, 7))
    ]  # each is the mean without the third network
    means = np.stack([(each + each.T) / 2 for each in pairs])
    expected = np.sqrt(2 / 3 * ((means - means.mean(0)) ** 2).sum(0))
    np.testing.assert_allclose(found.similarity["cka_groups"].se, expected, atol=1e-12)


def test_other_classes_are_compared_without_answers(runs, tmp_path):
    found = compare([runs["one"], runs["five"]], device="cpu", out=tmp_path / "out")
    assert [each["accuracy"] is None for each in found.summary["runs"]] == [False, True]
    assert column(found, "Pairs of networks", "agreement %") == [None]
    assert np.isfinite(part(found, "mlp/version_0", "five/version_0")).all()
    assert any("five/version_0" in note for note in found.summary["notes"])
    with pytest.raises(ValueError, match="mixes networks of different classes: five/version_0"):
        compare([runs["one"], runs["five"]], device="cpu", groups=["x", "x"])


def test_other_images(runs, tmp_path):
    data = Digits(classes=5)
    found = compare([runs["one"], runs["five"]], data=data, images=100, device="cpu", out=tmp_path / "out")
    assert found.summary["images"] == 100
    assert [each["accuracy"] is None for each in found.summary["runs"]] == [True, False]
    assert data.input_shape == (1, 8, 8)


def test_whole_outputs_as_grams(runs, three, tmp_path):
    found = compare([runs["one"], runs["two"]], taps=TapSpec(pool="gram"), device="cpu", out=tmp_path / "out")
    pair = ("mlp/version_0", "mlp/version_1")
    np.testing.assert_allclose(part(found, *pair), part(three, *pair), atol=1e-5)


def test_profiles_of_all_runs(runs, three, tmp_path):
    assert [run.id for run in three.runs] == ["mlp/version_0", "mlp/version_1", "deep/version_0"]
    live = load_run(runs["one"])
    last = max(row.step for row in live.rows)
    expected = [row for row in live.rows if row.step == last and row.measure == "probe_accuracy"]
    found = [row for row in three.runs[0].rows if row.measure == "probe_accuracy"]
    assert len(found) == len(expected) > 0
    assert {row.step for row in found} == {last}
    assert three.summary["notes"][-1].startswith(
        "no run is analysed: profiles are the last ones taken in training"
    )
    assert [each["profile"] for each in three.summary["runs"]] == ["training"] * 3
    assert {each["dataset"] for each in three.summary["runs"]} == {"Digits"}


@pytest.fixture
def analysed(runs, tmp_path):
    """The two runs again, each with an analysis of one row, of another step than the last."""
    folders = []
    for name in ("one", "two"):
        folders.append(tmp_path / name / "version_0")
        shutil.copytree(runs[name], folders[-1])
        row = load_run(runs[name]).rows[0]._replace(measure="converged", step=77, split="test")
        write_analysis(folders[-1] / "analysis", [row])
    return folders


def test_profiles_are_analyses_where_all_runs_have_one(analysed, tmp_path):
    found = compare(analysed, device="cpu", images=64, out=tmp_path / "out")
    assert [[(row.measure, row.run_id) for row in run.rows] for run in found.runs] == [
        [("converged", f"{name}/version_0")] for name in ("one", "two")
    ]
    assert [each["profile"] for each in found.summary["runs"]] == ["analysis"] * 2
    steps = {each["step"] for each in found.summary["runs"]}
    (note,) = found.summary["notes"]
    assert note.startswith("profiles of other checkpoints than the one compared: one/version_0 (of step 77, ")
    assert note.endswith(f"the network of step {steps.pop()})")


def test_profiles_are_all_of_the_training_where_one_run_is_not_analysed(runs, analysed, tmp_path):
    found = compare([analysed[0], runs["two"]], device="cpu", images=64, out=tmp_path / "out")
    assert all(row.split != "test" or row.dataset != "Digits" for run in found.runs for row in run.rows)
    assert {row.measure for run in found.runs for row in run.rows} >= {"probe_accuracy", "rank_cov"}
    assert found.summary["notes"] == [
        "mlp/version_1: not analysed, so all profiles are the last ones taken in training, on validation images"
    ]


def test_the_folder_holds_everything(three):
    names = {path.name for path in three.path.iterdir()}
    assert names == {"comparison.json", "profile.csv", "similarity.npz", "predictions.csv", "report.html"}
    text = (three.path / "comparison.json").read_text()
    assert "NaN" not in text
    summary = json.loads(text)
    assert summary["title"] == "3 networks on Digits"
    assert {"settings", "versions", "machine", "seconds", "notes"} <= set(summary)
    assert load_comparison(three.path).similarity["cka"].names[0] == "mlp/version_0:layers.0.linear"


def test_random_states_and_networks_stay_as_they_are(runs, tmp_path):
    before = torch.get_rng_state()
    compare([runs["one"], runs["two"]], device="cpu", out=tmp_path / "out")
    assert (torch.get_rng_state() == before).all()


def test_blocks_and_what_others_see_of_them(runs, tmp_path):
    found = compare([runs["one"], runs["deep"]], device="cpu", threshold=1e-6, out=tmp_path / "out")
    assert column(found, "Block structure", "layers") == [3, 5]
    cross = part(found, "mlp/version_0", "deep/version_0")
    assert column(found, "Blocks seen from other networks", "best CKA of those") == pytest.approx(
        [cross.max(1).mean(), cross.max(0).mean()]
    )
    block = found.summary["runs"][1]["blocks"][0]
    assert (block["start"], block["end"]) == ("layers.0.linear", "layers.4.linear")
    assert (block["start_index"], block["end_index"]) == (1, 5)


def test_mistakes_are_one_sentence_and_leave_nothing(runs, tmp_path):
    one, two = runs["one"], runs["two"]
    out = tmp_path / "out"
    with pytest.raises(RunError, match="at least two run folders, got 1"):
        compare([one], out=out)
    with pytest.raises(RunError, match="given twice"):
        compare([one, two, one.parent / "." / one.name], out=out)
    with pytest.raises(FileNotFoundError, match="no run folder"):
        compare([one, tmp_path], out=out)
    with pytest.raises(ValueError, match="memory_gb"):
        compare([one, two], device="cpu", memory_gb=1e-6, out=out)
    with pytest.raises(ValueError, match="at least 4"):
        compare([one, two], images=3, out=out)
    for threshold in (7, 1.01, 0, -1, float("nan")):
        with pytest.raises(ValueError, match="threshold is a CKA and must be above 0 and at most 1, got"):
            compare([one, two], threshold=threshold, out=out)
    for memory in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="memory_gb must be a number above 0, got"):
            compare([one, two], memory_gb=memory, out=out)
    with pytest.raises(RunError, match="something else"):
        compare([one, two], out=one)
    assert not out.exists()


def test_nothing_half_written_remains(runs, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("tunnel_lightning.analysis.compare.write_arrays", full)
    with pytest.raises(OSError, match="no space"):
        compare([runs["one"], runs["two"]], device="cpu", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_earlier_comparison_is_replaced(runs, tmp_path):
    pair = [runs["one"], runs["two"]]
    for images in (64, 128):
        found = compare(pair, images=images, device="cpu", out=tmp_path)
        assert len(found.per_image["a"]) == found.summary["images"] == images


def test_command_line(runs, capsys):
    command([str(runs["one"]), str(runs["deep"]), "--device=cpu", "--taps.pool=avg", "--images=64"])
    out = capsys.readouterr().out
    assert "Pairs of networks" in out
    assert max(map(len, out.partition("comparison  ")[0].splitlines())) <= 80
    folder = runs["one"].parent.parent / "compare" / "version_0"
    assert str(folder) in out.replace("\n", "")
    assert load_comparison(folder).summary["settings"]["taps.pool"] == "avg"
    pairs = next(each for each in load_comparison(folder).summary["tables"] if "Pairs" in each["title"])
    assert f"{pairs['rows'][0][-1]:.3f}" in out.split(), "the last column is whole"
    with pytest.raises(ValueError, match="ckpts"):
        command([str(runs["one"]), str(runs["two"]), "--ckpts=last"])


@pytest.mark.parametrize(("option", "value"), [("device", "tpu"), ("precision", "foo")])
def test_a_machine_that_is_not_there_is_refused_in_words(runs, option, value):
    with pytest.raises(ValueError, match=f"no {option} '{value}': choose one of"):
        compare([runs["one"], runs["two"]], **{option: value})


@pytest.mark.parametrize("name", ["report.html", "profile.csv", "notes.txt"])
def test_a_folder_of_something_else_is_left_alone(runs, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunError, match="holds something else than a comparison"):
        compare([runs["one"], runs["two"]], device="cpu", out=tmp_path)
    assert (tmp_path / name).read_text() == "mine"
