"""An analysis part by part: resumed where it stopped, measured again where anything else was asked."""

import errno
import json
import shutil

import numpy as np
import pytest
import torch
from filelock import FileLock
from toys import Images, Net

import tunnel_lightning
from tunnel_lightning.analysis import parts as module
from tunnel_lightning.analysis.context import Context
from tunnel_lightning.analysis.options import Options
from tunnel_lightning.analysis.profile import Profile
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.subject import subject_of
from tunnel_lightning.runs import analysis_folder, files
from tunnel_lightning.taps import TapSpec


def analyze(model, train, test, ood=(), **options):
    """Without a transfer set unless one is named: rendering one for every test takes long."""
    return tunnel_lightning.analyze(model, train, test, ood, **options)


TRAIN, TEST = Images(120, 0), Images(60, 1)
OTHER = (Images(60, 2, classes=3), Images(45, 3, classes=3))
NAMES = ("ridge", "ranks", "cka", "logistic", "additions", "blocks")
PARTS = ["additions-data", "blocks-data", "held-Other", "held-data", "profile-data", "transfer-Other"]


class Counting(Net):
    """Counts the batches it is shown in passes over data; single images and pairs are for a look."""

    def __init__(self):
        super().__init__()
        self.passed = 0

    def forward(self, x):
        self.passed += len(x) > 2
        return super().forward(x)


def make():
    torch.manual_seed(0)
    return Counting()


@pytest.fixture
def net():
    return make()


def run(net, folder, ood=None, options=None, progress=None, **settings):
    """An analysis; the number of batches that were passed, and the profile."""
    net.passed = 0
    options = options or Options(measures=NAMES, block_images=32)
    profile = analyze(
        net, TRAIN, TEST, ood or {"Other": OTHER}, out=folder, options=options, progress=progress, **settings
    )
    return net.passed, profile


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished analysis and its batches; not to be changed."""
    return run(make(), tmp_path_factory.mktemp("finished"))


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished[1].path, tmp_path / "a")


def same(one, two):
    assert list(map(str, one.rows)) == list(map(str, two.rows))
    assert list(one.similarity) == list(two.similarity)
    for name, found in one.similarity.items():
        assert np.array_equal(found.value, two.similarity[name].value, equal_nan=True), name
    plain = [{k: v for k, v in each.summary.items() if k != "seconds"} for each in (one, two)]
    assert plain[0] == plain[1]


def stop_at(text):
    def progress(what, done, total):
        if what.startswith(text):
            raise KeyboardInterrupt

    return progress


def test_every_part_is_kept_in_a_file(folder):
    assert sorted(path.stem for path in (folder / "parts").iterdir()) == PARTS
    assert (folder / "summary.json").exists()


@pytest.mark.parametrize(
    ("stop", "kept"),
    [
        ("data train", []),
        ("Other test", ["profile-data"]),
        ("Other: logistic", ["additions-data", "blocks-data", "held-data", "profile-data", "transfer-Other"]),
    ],
)
def test_what_was_interrupted_goes_on_and_ends_alike(net, finished, tmp_path, stop, kept):
    whole, expected = finished
    with pytest.raises(KeyboardInterrupt):
        run(net, tmp_path / "a", progress=stop_at(stop))
    there = sorted(path.stem for path in tmp_path.glob("a/parts/*"))
    assert there == kept
    assert (tmp_path / "a").exists() == bool(kept), "an empty folder is not left behind"
    assert not (tmp_path / "a/summary.json").exists()
    lines = []
    told = lambda what, done, total: lines.append(what) if not total else None  # noqa: E731
    rest, found = run(net, tmp_path / "a", progress=told)
    assert (rest < whole) == bool(kept)
    assert sum("kept" in line for line in lines) == len(kept)
    same(found, expected)
    nothing, again = run(net, tmp_path / "a")
    assert nothing == 0, "all is kept"
    same(again, expected)


def test_a_torn_part_is_measured_again_and_nothing_else(net, finished, folder):
    file = folder / "parts/transfer-Other.npz"
    file.write_bytes(file.read_bytes()[:-100])
    passed, found = run(net, folder)
    assert passed == 2, "training and test images of one set"
    same(found, finished[1])


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"alpha": 0.5}, PARTS),
        ({"seed": 1}, PARTS),
        ({"taps": TapSpec(pool="avg")}, PARTS),
        ({"eval_images": 30}, PARTS),
        ({"memory_gb": 3.0}, []),
        ({"measures": (*NAMES, "knn")}, ["held-data"]),
        ({"measures": ("ridge", "cka", "logistic", "additions", "blocks")}, ["profile-data"]),
        ({"measures": NAMES[::-1]}, []),
    ],
)
def test_other_settings_measure_again_what_they_decide(net, folder, change, again):
    before = {path.stem: path.stat().st_mtime_ns for path in (folder / "parts").iterdir()}
    run(net, folder, **change)
    after = {path.stem: path.stat().st_mtime_ns for path in (folder / "parts").iterdir()}
    assert sorted(name for name in before if after[name] != before[name]) == again


def test_another_network_or_set_is_measured_anew(net, finished, folder):
    whole = finished[0]
    for change in ("weights", "buffers", "modules"):
        if change == "weights":
            net[0].bias.data[0] += 1e-6
        if change == "buffers":
            net[1].running_mean[0] += 1e-6
        if change == "modules":
            net[5] = torch.nn.GELU()
        passed, _ = run(net, folder)
        assert passed == whole, change
    passed, found = run(net, folder, {"Other": OTHER, "More": (Images(50, 8), Images(40, 9))})
    assert 0 < passed < whole, "a set more is measured, the others stay"
    assert {r.dataset for r in found.rows} == {"data", "Other", "More"}
    brighter = Images(60, 2, classes=3)
    brighter.x += 1
    passed, _ = run(net, folder, {"Other": (brighter, OTHER[1])})
    assert passed == 4, "transfer and held features of the set that changed"


def test_sets_whose_names_make_one_file_do_not_mix(net, tmp_path):
    sets = {"a b": OTHER, "a_b": (Images(50, 8), Images(40, 9))}
    options = Options(measures="ridge")
    _, expected = run(net, tmp_path / "whole", sets, options)
    _, found = run(net, tmp_path / "whole", sets, options)
    same(found, expected)


def test_an_analysis_of_another_version_or_of_more_is_replaced(net, folder):
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "schema": 99}))
    _, found = run(net, folder, options=Options(measures="ridge"))
    assert found.summary["schema"] == 1
    assert found.similarity == {}
    assert not (folder / "spectrum.npz").exists()


def test_a_run_folder_is_no_place(net, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "profile.csv").write_text("live")
    with pytest.raises(ValueError, match="is a run folder: choose another place"):
        run(net, tmp_path)
    assert (tmp_path / "profile.csv").read_text() == "live"


def test_two_analyses_do_not_write_to_one_folder(net, tmp_path):
    (tmp_path / "parts").mkdir()
    with (
        FileLock(tmp_path / "parts/.lock"),
        pytest.raises(ValueError, match="another analysis is writing to"),
    ):
        run(net, tmp_path)
    assert not (tmp_path / "summary.json").exists()
    run(net, tmp_path)


def contents(folder):
    """Bytes of every file but the parts."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def refusing(monkeypatch, fails):
    """A disk that takes nothing under the names for which ``fails`` is true."""
    replace = files.os.replace

    def full(source, target):
        if fails(str(target)):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", full)


CHANGED = Options(measures=NAMES, block_images=32, seed=5)


@pytest.mark.parametrize(
    "where", ["parts/held-data.npz", "profile.csv", "similarity.npz", "summary.json", "report.html"]
)
def test_a_full_disk_leaves_the_former_analysis_as_it_was(
    net, finished, folder, tmp_path, monkeypatch, where
):
    before = contents(folder)
    refusing(monkeypatch, lambda target: target.endswith(where))
    with pytest.raises(OSError, match="No space left on device") as caught:
        run(net, folder, options=CHANGED)
    assert str(caught.value.filename).endswith(where)
    assert not list(folder.rglob("*.tmp"))
    assert sorted(path.stem for path in (folder / "parts").iterdir()) == PARTS, "nothing else is left"
    assert contents(folder) == before
    assert set(before) > {"profile.csv", "similarity.npz", "summary.json", "report.html"}
    monkeypatch.undo()
    passed, found = run(net, folder, options=CHANGED)
    assert passed < finished[0], "what was finished is kept"
    same(found, run(net, tmp_path / "new", options=CHANGED)[1])


def test_a_disk_that_fails_in_between_leaves_no_summary(net, folder, monkeypatch):
    refusing(monkeypatch, lambda target: target == str(folder / "spectrum.npz"))
    with pytest.raises(OSError, match="No space left on device"):
        run(net, folder, options=CHANGED)
    assert not (folder / "summary.json").exists(), "it is not whole, and does not say so"
    assert analysis_folder(folder) is None
    monkeypatch.undo()
    passed, _ = run(net, folder, options=CHANGED)
    assert passed == 0
    assert Profile.read(folder).summary["settings"]["seed"] == 5


def test_what_a_killed_process_left_is_no_obstacle(net, finished, folder):
    left = folder / "parts/.new/a"
    left.mkdir(parents=True)
    (left / "similarity.npz").write_text("of something else")
    _, found = run(net, folder)
    same(found, finished[1])
    assert not left.parent.exists()


@pytest.mark.parametrize(
    "there",
    [
        {"profile.csv": "mine", "report.html": "mine"},
        {"notes.txt": ""},
        {"summary.json": "mine", "report.html": "mine"},
        {"summary.json": '{"title": "mine"}'},
        {"comparison.json": "{}", "profile.csv": "mine"},
        {"parts/drawing.txt": "mine", "report.html": "mine"},
    ],
)
def test_a_folder_of_something_else_is_refused(net, tmp_path, there):
    for name, text in there.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="holds something else than an analysis: give it a folder"):
        run(net, tmp_path)
    assert net.passed == 0, "said at once"
    assert sorted(tmp_path.rglob("*")) == before
    assert all((tmp_path / name).read_text() == text for name, text in there.items())


def test_a_file_is_no_place(net, tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(ValueError, match="a is a file: give the analysis a folder of its own"):
        run(net, tmp_path / "a")
    assert (tmp_path / "a").read_text() == "mine"


def test_an_analysis_is_replaced_and_what_lies_beside_it_stays(net, finished, folder):
    (folder / "notes.txt").write_text("mine")
    shutil.rmtree(folder / "parts")
    passed, found = run(net, folder)
    assert passed == finished[0], "without its parts all is measured anew"
    same(found, finished[1])
    assert (folder / "notes.txt").read_text() == "mine"


def test_tasks_and_their_titles(net):
    own, other = ImageSet.from_loaders("A", TRAIN, TEST), ImageSet.from_loaders("B", *OTHER)
    with Context(subject_of(net, images=own), own, [other], Options(measures="tsne,harun")) as context:
        tasks = module.tasks_of(context)
    assert [task.title for task in tasks] == ["A: accuracy", "A: harun, tsne", "B: harun"]
    assert [task.name for task in tasks] == ["profile-A", "held-A", "held-B"]


def test_the_summary_names_the_device_a_part_was_measured_on(tmp_path):
    net = Net()
    analyze(net, TRAIN, TEST, measures="ridge", out=tmp_path)
    path = tmp_path / "parts/profile-data.npz"
    with np.load(path) as file:
        arrays = dict(file)
    said = json.loads(arrays["note"].tobytes())
    assert said["extra"]["device"] == "cpu"
    said["extra"]["device"] = "cuda:0"
    arrays["note"] = np.frombuffer(json.dumps(said).encode(), np.uint8)
    with path.open("wb") as file:
        np.savez(file, **arrays)
    found = analyze(net, TRAIN, TEST, measures="ridge", out=tmp_path)
    assert found.summary["machine"]["device"] == "cuda:0"
