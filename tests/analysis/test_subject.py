"""Networks found, weights read, sets shown as the network takes its images; and what is said of bad input."""

import doctest
import os
import pickle
import shutil

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader
from toys import Images

from tunnel_lightning.__main__ import main
from tunnel_lightning.analysis import base, subject
from tunnel_lightning.analysis.subject import (
    checkpoints_of,
    load_network_subject,
    load_run_subject,
    reload,
)
from tunnel_lightning.data import Digits, Glyphs
from tunnel_lightning.module import Classifier
from tunnel_lightning.runs import load_run


def edit(run, change):
    path = run / "config.yaml"
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config))


def weights_of(path):
    return torch.load(path, weights_only=True)["state_dict"]


def holds(network, path):
    mine = network.state_dict()
    return all(torch.equal(mine[k.removeprefix("backbone.")], v) for k, v in weights_of(path).items())


# -- a run folder -----------------------------------------------------------------------------------------


def test_a_run_is_found_as_it_was_trained(trained):
    subject = load_run_subject(trained)
    assert subject.title == "MLP (depth 3, width 16)"
    assert subject.config["init_args"]["num_classes"] == 10
    assert (subject.run, subject.run_id, subject.checkpoint) == (
        trained,
        "tiny/version_0",
        "checkpoints/last.ckpt",
    )
    per_epoch = len(Digits().train_dataloader())
    assert (subject.step, subject.epoch, subject.matches) == (5 * per_epoch, 5, True)
    last = load_run(trained).rows[-1]
    assert (subject.step, subject.epoch) == (last.step, last.epoch), "as the live table counts"
    assert holds(subject.network, trained / "checkpoints/last.ckpt")
    assert subject.model is subject.network
    assert not any(module.training for module in subject.model.modules())
    assert [name for name, _ in subject.network.named_children()] == ["layers", "head"]
    own, others = subject.sets()
    assert (own.name, own.image_shape, [each.name for each in others]) == ("Digits", (1, 8, 8), ["Glyphs"])
    x = own.example
    direct = Classifier.load_from_checkpoint(trained / "checkpoints/last.ckpt").eval()
    assert torch.equal(subject.model(x), direct(x))


@pytest.mark.parametrize("ckpt", ["best", "checkpoints/best.ckpt", "best.ckpt"])
def test_the_best_checkpoint_and_paths(trained, ckpt):
    subject = load_run_subject(trained, ckpt)
    assert subject.checkpoint == "checkpoints/best.ckpt"
    assert holds(subject.network, trained / "checkpoints/best.ckpt")


def test_a_checkpoint_from_elsewhere(trained, tmp_path):
    path = tmp_path / "kept.ckpt"
    shutil.copy(trained / "checkpoints/last.ckpt", path)
    assert load_run_subject(trained, path).checkpoint == str(path)


def test_checkpoints_in_the_order_of_their_steps_once_each(trained):
    per_epoch = len(Digits().train_dataloader())
    paths = checkpoints_of(trained)
    steps = [torch.load(path, weights_only=True)["global_step"] for path in paths]
    assert steps == sorted(set(steps))
    assert {2 * per_epoch, 4 * per_epoch, 5 * per_epoch} <= set(steps)
    subject = load_run_subject(trained)
    for path, step in zip(paths, steps, strict=True):
        reload(subject, path)
        assert (subject.step, subject.epoch) == (step, step // per_epoch)
        assert subject.checkpoint == f"checkpoints/{path.name}"
        assert holds(subject.network, path)


def test_the_same_step_twice_is_one_checkpoint(run):
    shutil.copy(run / "checkpoints/last.ckpt", run / "checkpoints/best.ckpt")
    shutil.copy(run / "checkpoints/last.ckpt", run / "checkpoints/again.ckpt")
    assert len(checkpoints_of(run)) == 3


def test_other_sets_are_shown_as_the_network_takes_its_images(trained):
    subject = load_run_subject(trained)
    (glyphs,) = subject.ood
    assert glyphs.input_shape == (1, 8, 8)
    assert (glyphs.mean, glyphs.std) == (Digits().mean, Digits().std)
    assert subject.notes == [
        "Glyphs is shown at 8x8 with 1 channel instead of 16x16 with 1 channel, normalised as Digits"
    ]
    assert load_run_subject(trained, ood=[]).ood == []


def test_sets_of_the_config_and_their_replacement(run):
    def change(config):
        config["monitor"]["transfer"]["ood"] = [
            {"class_path": "Glyphs", "init_args": {"classes": 4, "samples_per_class": 20}},
            {"class_path": "tunnel_lightning.data.Digits", "init_args": {"classes": 5}},
        ]

    edit(run, change)
    own, others = load_run_subject(run).sets()
    assert [(each.name, each.num_classes) for each in others] == [("Glyphs", 4), ("Digits-2", 5)]
    assert own.name == "Digits"
    (only,) = load_run_subject(run, ood=[Glyphs(classes=3)]).ood
    assert only.num_classes == 3


def test_a_section_that_is_off_means_the_default_set(run):
    edit(run, lambda config: config["monitor"].update(transfer=None))
    assert [type(each) for each in load_run_subject(run).ood] == [Glyphs]


def test_defaults_of_the_config_are_the_command_lines(run):
    """Only what was written down differs from the class's own defaults."""
    edit(run, lambda config: config.update(data={"class_path": "Digits", "init_args": {"seed": 3}}))
    data = load_run_subject(run).data
    assert (type(data), data.seed, data.batch_size) == (Digits, 3, 128)


def test_other_data_in_the_place_of_the_runs(trained):
    subject = load_run_subject(trained, data=Glyphs(samples_per_class=5))
    assert not subject.matches
    assert subject.data.input_shape == (1, 8, 8)
    assert subject.data.mean == Digits().mean
    assert [type(each) for each in subject.ood] == [Digits], "Glyphs can't be its own transfer set"
    notes = " ".join(subject.notes)
    for said in (
        "in the place of Digits",
        "has 10 outputs and Glyphs has 26 classes",
        "8x8 with 1 channel instead",
    ):
        assert said in notes
    assert load_run_subject(trained, data=Glyphs(classes=10, samples_per_class=5)).matches


class Plain(LightningDataModule):
    """Someone's data, which can't be adapted."""

    num_classes = 10

    def __init__(self, size=8):
        super().__init__()
        self.size = size

    def train_dataloader(self):
        images = Images(40, 0, classes=10)
        images.x = images.x.repeat(1, 1, self.size // 8, self.size // 8)
        return DataLoader(images, batch_size=8)

    def test_dataloader(self):
        return self.train_dataloader()


def test_data_that_cannot_be_adapted(trained):
    subject = load_run_subject(trained, data=Plain(), ood=[Plain()])
    assert [each.name for each in subject.sets()[1]] == ["Plain-2"]
    with pytest.raises(ValueError, match=r"Plain .*takes \[1, 8, 8\]\): choose another size"):
        load_run_subject(trained, data=Plain(16))
    with pytest.raises(
        ValueError, match=r"transfer set Plain gives images \[1, 16, 16\] .* takes \[1, 8, 8\]"
    ):
        load_run_subject(trained, ood=[Plain(16)]).sets()


def test_classes_of_ones_own_are_found_in_the_current_folder(run, module):
    edit(run, lambda config: config["data"].update(class_path=f"{module}.Mine"))
    assert type(load_run_subject(run).data).__name__ == "Mine"
    edit(run, lambda config: config["model"]["backbone"].update(class_path=f"{module}.Wide"))
    with pytest.raises(ValueError, match=r"does not fit its config: it holds MLP .* says Wide"):
        load_run_subject(run)
    path = run / "checkpoints/last.ckpt"
    state = torch.load(path, weights_only=True)
    state["classifier"]["backbone"]["class_path"] = f"{module}.Wide"
    torch.save(state, path)
    assert load_run_subject(run).title == "Wide (depth 3, width 16)"


# -- what is wrong with a run -------------------------------------------------------------------------------


def said_of(run, kind=ValueError, **options):
    """The one sentence on a run, and the same from the command line's point of view: it is the package's own."""
    with pytest.raises(kind) as caught:
        load_run_subject(run, **options)
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_no_run(tmp_path, trained):
    assert "is no run folder: it has no config.yaml; give one" in said_of(tmp_path / "no", FileNotFoundError)
    said = said_of(trained.parent.parent, FileNotFoundError)
    assert f"did you mean {trained}?" in said
    assert "is no run folder" in said_of(trained / "config.yaml", FileNotFoundError)


def test_no_checkpoint(run):
    folder = run / "checkpoints"
    (folder / "best.ckpt").unlink()
    said = said_of(run, FileNotFoundError, ckpt="best")
    assert f"there is no checkpoint {folder / 'best.ckpt'}" in said
    assert "last.ckpt" in said
    assert "there is no checkpoint x.ckpt" in said_of(run, FileNotFoundError, ckpt="x.ckpt")
    shutil.rmtree(folder)
    assert f"{run} has no checkpoint yet" in said_of(run, FileNotFoundError)
    with pytest.raises(FileNotFoundError, match="has no checkpoint yet"):
        checkpoints_of(run)


class Hostile:
    def __reduce__(self):
        return (open, (os.environ["TUNNEL_HOSTILE"], "w"))


@pytest.mark.parametrize("save", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state))])
def test_a_hostile_pickle_is_refused_and_does_not_run(run, save, monkeypatch, tmp_path):
    trace = tmp_path / "trace"
    monkeypatch.setenv("TUNNEL_HOSTILE", str(trace))
    path = run / "checkpoints/last.ckpt"
    save({"state_dict": {}, "global_step": 1, "x": Hostile()}, path)
    said = said_of(run)
    assert said.startswith(f"{path} is refused")
    assert "weights_only=False" not in said
    with pytest.raises(ValueError, match="is refused"):
        checkpoints_of(run)
    with pytest.raises(ValueError, match="is refused"):
        load_network_subject("torch.nn:Flatten", Digits(), weights=path)
    assert not trace.exists()


def test_a_damaged_checkpoint(run):
    path = run / "checkpoints/last.ckpt"
    path.write_bytes(path.read_bytes()[:4000])
    assert f"{path} can't be read as a checkpoint" in said_of(run)
    torch.save({"a": 1}, path)
    assert f"{path} is no checkpoint of a training run" in said_of(run)
    torch.save({"state_dict": {}, "global_step": 1}, path)
    assert f"{path} is no checkpoint of a Classifier" in said_of(run)


def test_a_checkpoint_that_does_not_fit_its_config(run):
    edit(run, lambda config: config["model"]["backbone"]["init_args"].update(width=32))
    said = said_of(run)
    assert f"{run / 'checkpoints/last.ckpt'} does not fit its config" in said
    assert "it holds MLP (depth 3, width 16), and " in said
    assert "says MLP (depth 3, width 32)" in said


def test_a_checkpoint_of_other_shapes(run, trained):
    path = run / "checkpoints/last.ckpt"
    state = torch.load(path, weights_only=True)
    state["state_dict"]["backbone.head.weight"] = torch.zeros(3, 16)
    torch.save(state, path)
    assert f"{path} is of another network or other classes: size mismatch for head.weight" in said_of(run)
    subject = load_run_subject(trained)
    with pytest.raises(ValueError, match="is of another network"):
        reload(subject, path)
    del state["state_dict"]["backbone.head.weight"]
    torch.save(state, path)
    assert f"{path} does not hold the weights of MLP" in said_of(run)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (("data",), None, "data"),
        (("data", "class_path"), "nowhere.Data", "names nowhere.Data, which can't be imported"),
        (("data", "class_path"), "tunnel_lightning.data.Dogits", "tunnel_lightning.data has no Dogits"),
        (("data", "init_args", "batchsize"), 3, "batchsize"),
        (("data", "init_args", "batch_size"), "many", "batch_size"),
        (("model", "backbone", "class_path"), "nowhere.Net", "names nowhere.Net, which can't be imported"),
        (("model",), None, "backbone"),
        (("monitor", "transfer", "ood"), ["nowhere.Data"], "names nowhere.Data"),
        (("monitor", "transfer", "ood"), [3], "ood"),
        (("data", "init_args", "batch_size"), 0, "batch_size must be at least 1"),
    ],
)
def test_a_config_with_a_mistake(run, key, value, said):
    def change(config):
        for each in key[:-1]:
            config = config[each]
        config[key[-1]] = value

    edit(run, change)
    found = said_of(run)
    assert said in found
    assert len(found) < 1000


@pytest.mark.parametrize("text", ["a: [", "just words", "", "- 1"])
def test_a_config_that_is_none(run, text):
    (run / "config.yaml").write_text(text)
    assert f"{run / 'config.yaml'} can't be read" in said_of(run)


def test_data_that_is_not_what_it_was_trained_on(run):
    edit(run, lambda config: config["data"]["init_args"].update(classes=5))
    said = said_of(run)
    assert "has 10 outputs for images [1, 8, 8]" in said
    assert "has 5 classes" in said
    edit(run, lambda config: config["data"]["init_args"].update(classes=None, image_size=12))
    assert "images [1, 12, 12]" in said_of(run)


def test_nothing_is_drawn_from_the_random_state(trained):
    state = torch.get_rng_state()
    subject = load_run_subject(trained)
    subject.sets()
    assert torch.equal(torch.get_rng_state(), state)


# -- --keep_every -------------------------------------------------------------------------------------------


def test_kept_checkpoints_are_numbered_like_the_table(trained):
    names = {path.name for path in (trained / "checkpoints").iterdir()}
    assert names == {"best.ckpt", "last.ckpt", "epoch=2.ckpt", "epoch=4.ckpt"}
    subject = load_run_subject(trained, "epoch=4.ckpt")
    assert subject.epoch == 4


def test_without_it_none_are_kept_and_every_epoch_can_be(fit, tmp_path):
    short = ["--trainer.max_epochs=2", "--trainer.limit_train_batches=1"]
    for every, kept in ((0, set()), (1, {"epoch=1.ckpt", "epoch=2.ckpt"})):
        run = fit(tmp_path / str(every), *short, f"--keep_every={every}")
        assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", *kept}


def test_resume_goes_on_keeping_and_ends_as_if_uninterrupted(fit, trained, tmp_path):
    run = fit(tmp_path, "--trainer.max_epochs=3")
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=5"]) == 0
    for name in ("epoch=2.ckpt", "epoch=4.ckpt", "last.ckpt"):
        mine, whole = (weights_of(folder / "checkpoints" / name) for folder in (run, trained))
        assert all(torch.equal(value, mine[key]) for key, value in whole.items())
    assert {path.name for path in (run / "checkpoints").iterdir()} == {
        path.name for path in (trained / "checkpoints").iterdir()
    }


def test_a_wrong_period_is_said(fit, tmp_path, capsys):
    with pytest.raises(SystemExit):
        fit(tmp_path, "--keep_every=-1")
    assert "keep_every" in capsys.readouterr().err


def test_a_config_that_keeps_serves_other_commands_too(trained, capsys):
    config, best = trained / "config.yaml", trained / "checkpoints/best.ckpt"
    assert main(["test", "--config", str(config), "--ckpt_path", str(best)]) == 0
    assert "test/accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("module", [base, subject], ids=lambda module: module.__name__)
def test_examples(module):
    assert doctest.testmod(module).failed == 0
