"""The classifier: its checkpoints, schedules, scores, and its place in LightningCLI."""

import math
import sys
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.cli import ReduceLROnPlateau as PlateauOfLightning
from sklearn.metrics import accuracy_score, log_loss
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR, OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from tunnel_lightning.backbones import MLP, Backbone
from tunnel_lightning.module import CHECKPOINT_KEY, Classifier, WarmupCosine

SHAPE = (1, 4, 4)


class OwnBackbone(Backbone):
    """A user's network."""

    def __init__(
        self, bias: bool = True, num_classes: int = 10, input_shape: tuple[int, int, int] = (3, 32, 32)
    ) -> None:
        super().__init__(num_classes, input_shape)
        self.head = nn.Linear(math.prod(self.input_shape), num_classes, bias=bias)

    def features(self, x):
        return x.flatten(1)


class Blobs(LightningDataModule):
    """48 training images in 6 batches of 8, 20 others in 8, 8 and 4."""

    num_classes = 3
    input_shape = SHAPE

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.y = torch.randint(3, (68,), generator=generator)
        self.x = torch.randn(68, *SHAPE, generator=generator) + self.y.view(-1, 1, 1, 1)

    def train_dataloader(self):
        return DataLoader(TensorDataset(self.x[:48], self.y[:48]), 8)

    def val_dataloader(self):
        return DataLoader(TensorDataset(self.x[48:], self.y[48:]), 8)

    def test_dataloader(self):
        return self.val_dataloader()


def trainer(tmp_path, **kwargs):
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 2,
        "default_root_dir": tmp_path,
    }
    return Trainer(**{**quiet, "max_epochs": 1, **kwargs})


def network(**kwargs):
    return MLP(depth=2, width=8, num_classes=3, input_shape=SHAPE, **kwargs)


def fitted(tmp_path, classifier, **kwargs):
    """Train, save, and give the checkpoint's path."""
    run = trainer(tmp_path, **kwargs)
    run.fit(classifier, Blobs())
    path = tmp_path / "kept.ckpt"
    run.save_checkpoint(path)
    return path


class LearningRates(Callback):
    """The learning rate each step was made with."""

    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


# ---------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize(
    "make",
    [
        lambda: Classifier(network()),
        lambda: Classifier(OwnBackbone(bias=False, num_classes=3, input_shape=SHAPE)),
        lambda: Classifier(
            network(),
            optimizer=partial(torch.optim.AdamW, lr=0.003, betas=(0.8, 0.99)),
            lr_scheduler=partial(MultiStepLR, milestones=[1, 2], gamma=0.5),
            label_smoothing=0.1,
        ),
        lambda: Classifier(network(), lr_scheduler=partial(WarmupCosine, warmup=0.2)),
        lambda: Classifier(network(), optimizer=torch.optim.Adam),
    ],
    ids=["defaults", "own backbone", "arguments", "per step", "class"],
)
def test_a_classifier_built_in_python_reloads(tmp_path, make):
    classifier = make()
    path = fitted(tmp_path, classifier)
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint[CHECKPOINT_KEY] == classifier.config
    again = Classifier.load_from_checkpoint(path)
    assert again.config == classifier.config
    assert type(again.backbone) is type(classifier.backbone)
    x = torch.randn(5, *SHAPE)
    assert torch.equal(again(x), classifier(x))
    # It trains on, and its optimizer is the same one.
    run = trainer(tmp_path)
    run.fit(again, Blobs())
    expected = classifier.optimizer(classifier.parameters())
    assert type(run.optimizers[0]) is type(expected)
    assert run.optimizers[0].defaults == expected.defaults


def test_resume_in_lightning_equals_uninterrupted(tmp_path):
    def make():
        torch.manual_seed(0)
        return Classifier(network(), lr_scheduler=partial(OneCycleLR, max_lr=0.1))

    whole, half, rest = make(), make(), make()
    trainer(tmp_path, max_epochs=4).fit(whole, Blobs())

    class Stop(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 1

    path = fitted(tmp_path, half, max_epochs=4, callbacks=[Stop()])
    trainer(tmp_path, max_epochs=4).fit(rest, Blobs(), ckpt_path=path)
    assert not torch.equal(half.backbone.head.weight, whole.backbone.head.weight)
    assert torch.equal(rest.backbone.head.weight, whole.backbone.head.weight)


def test_an_optimizer_that_cannot_be_told_is_asked_for(tmp_path):
    classifier = Classifier(network(), optimizer=lambda params: torch.optim.SGD(params, lr=0.1))
    path = fitted(tmp_path, classifier)
    again = Classifier.load_from_checkpoint(path)  # to look at, it needs none
    assert "lambda" in again.config["optimizer"]["unknown"]
    with pytest.raises(ValueError, match=r"keep its optimizer .*lambda.*; pass it: .*optimizer="):
        again.configure_optimizers()
    given = Classifier.load_from_checkpoint(path, optimizer=partial(torch.optim.SGD, lr=0.7))
    assert given.configure_optimizers().defaults["lr"] == 0.7


def test_an_argument_that_a_checkpoint_cannot_keep_is_asked_for():
    schedule = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 1.0)
    assert list(Classifier(network(), lr_scheduler=schedule).config["lr_scheduler"]) == ["unknown"]


@pytest.mark.parametrize(
    ("class_path", "why"),
    [("this.Backbone", "antigravity"), ("torch.nn.Linear", ""), ("os.system", ""), ("MLP", "")],
)
def test_a_checkpoint_cannot_name_any_code(tmp_path, class_path, why):
    path = fitted(tmp_path, Classifier(network()))
    checkpoint = torch.load(path, weights_only=True)
    checkpoint[CHECKPOINT_KEY]["backbone"]["class_path"] = class_path
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=f"{class_path} is not an imported subclass of Backbone"):
        Classifier.load_from_checkpoint(path)
    assert "this" not in sys.modules  # not imported on the file's word


def test_a_foreign_checkpoint_is_refused_in_words(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match=r"foreign\.ckpt is no checkpoint of a Classifier"):
        Classifier.load_from_checkpoint(tmp_path / "foreign.ckpt")


def test_the_backbone_must_be_one():
    with pytest.raises(TypeError, match="the backbone is a Linear; it must be a"):
        Classifier(nn.Linear(2, 2))


# ------------------------------------------------------------------------------------------------ schedules


def test_multi_step_is_stepped_by_epoch(tmp_path):
    seen = LearningRates()
    classifier = Classifier(
        network(),
        optimizer=partial(torch.optim.SGD, lr=0.1),
        lr_scheduler=partial(MultiStepLR, milestones=[1, 3], gamma=0.1),
    )
    trainer(tmp_path, max_epochs=4, callbacks=[seen]).fit(classifier, Blobs())
    assert seen.rates == pytest.approx([0.1] * 6 + [0.01] * 12 + [0.001] * 6)


def test_one_cycle_is_stepped_by_step_over_the_whole_run(tmp_path):
    seen = LearningRates()
    classifier = Classifier(network(), lr_scheduler=partial(OneCycleLR, max_lr=0.2, anneal_strategy="linear"))
    trainer(tmp_path, max_epochs=5, callbacks=[seen]).fit(classifier, Blobs())
    assert len(seen.rates) == 30
    # 30 steps; the peak at step 0.3 * 30 - 1 = 8; from max / 25 to max / 25e4 in straight lines.
    up = [0.008 + (0.2 - 0.008) * step / 8 for step in range(9)]
    down = [0.2 + (0.2 / 25e4 - 0.2) * (step - 8) / 21 for step in range(9, 30)]
    assert seen.rates == pytest.approx(up + down)


def test_accumulated_steps_are_counted_once(tmp_path):
    classifier = Classifier(network(), lr_scheduler=partial(OneCycleLR, max_lr=0.2))
    run = trainer(tmp_path, max_epochs=5, accumulate_grad_batches=3)
    run.fit(classifier, Blobs())
    assert run.lr_scheduler_configs[0].scheduler.total_steps == 10


def test_warmup_cosine_follows_its_formula(tmp_path):
    seen = LearningRates()
    classifier = Classifier(
        network(),
        optimizer=partial(torch.optim.SGD, lr=0.4),
        lr_scheduler=partial(WarmupCosine, warmup=0.2),
    )
    trainer(tmp_path, max_epochs=5, callbacks=[seen]).fit(classifier, Blobs())
    rise = [0.4 * (step + 1) / 7 for step in range(6)]
    fall = [0.4 * (1 + math.cos(math.pi * (step - 6) / 24)) / 2 for step in range(6, 30)]
    assert seen.rates == pytest.approx(rise + fall)


@pytest.mark.parametrize("arguments", [{}, {"total_steps": 0}, {"total_steps": 9, "warmup": 1.0}])
def test_warmup_cosine_refuses_in_words(arguments):
    with pytest.raises(ValueError, match=r"total_steps is .* and warmup .*; give a positive number of steps"):
        WarmupCosine(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), **arguments)


def test_given_total_steps_stay(tmp_path):
    classifier = Classifier(network(), lr_scheduler=partial(WarmupCosine, total_steps=77))
    run = trainer(tmp_path, max_epochs=1)
    run.fit(classifier, Blobs())
    config = run.lr_scheduler_configs[0]
    assert config.scheduler.state_dict()["last_epoch"] == 6  # by step all the same
    assert config.interval == "step"
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(
        0.01 * (1 + math.cos(math.pi * 6 / 77)) / 2
    )


def test_a_schedule_without_an_end_is_refused(tmp_path):
    classifier = Classifier(network(), lr_scheduler=partial(OneCycleLR, max_lr=0.2))
    with pytest.raises(ValueError, match=r"trainer has no end; set trainer\.max_epochs"):
        trainer(tmp_path, max_epochs=-1).fit(classifier, Blobs())


def test_plateau_watches_the_validation_loss(tmp_path):
    schedule = partial(PlateauOfLightning, monitor="val/accuracy")
    assert Classifier(network(), lr_scheduler=schedule).configure_optimizers()["lr_scheduler"]["monitor"] == (
        "val/accuracy"
    )
    plain = Classifier(
        network(),
        optimizer=partial(torch.optim.SGD, lr=0.0),  # no learning: every epoch is a plateau
        lr_scheduler=partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0),
    )
    run = trainer(tmp_path, max_epochs=3)
    run.fit(plain, Blobs())
    assert run.lr_scheduler_configs[0].monitor == "val/loss"


# --------------------------------------------------------------------------------------- training and scores


def test_fit_is_the_bare_loop_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    classifier = Classifier(network(), label_smoothing=0.1)
    torch.manual_seed(0)
    bare = network()
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.01, momentum=0.9)
    trainer(tmp_path, max_epochs=2).fit(classifier, Blobs())
    for _ in range(2):
        for x, y in Blobs().train_dataloader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(bare(x), y, label_smoothing=0.1).backward()
            optimizer.step()
    for ours, theirs in zip(classifier.backbone.parameters(), bare.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_scores_are_those_of_all_images(tmp_path):
    classifier, blobs = Classifier(network()), Blobs()
    run = trainer(tmp_path)
    run.fit(classifier, blobs)
    logits = classifier(blobs.x[48:]).detach().double()
    wanted = {
        "loss": log_loss(blobs.y[48:], logits.softmax(1), labels=[0, 1, 2]),
        "accuracy": accuracy_score(blobs.y[48:], logits.argmax(1)),
    }
    (tested,) = run.test(classifier, blobs, verbose=False)
    (validated,) = run.validate(classifier, blobs, verbose=False)  # twice: the counts start afresh
    for name, value in wanted.items():
        assert validated[f"val/{name}"] == pytest.approx(value, rel=1e-5)
        assert tested[f"test/{name}"] == pytest.approx(value, rel=1e-5)


def test_further_validation_loaders_are_not_mixed_in(tmp_path):
    classifier, blobs = Classifier(network()), Blobs()
    run = trainer(tmp_path)
    (alone,) = run.validate(classifier, blobs.val_dataloader(), verbose=False)
    both = run.validate(classifier, [blobs.val_dataloader(), blobs.train_dataloader()], verbose=False)
    assert both[0] == alone


@pytest.mark.parametrize(("period", "logged"), [(2, [2, 4, 6, 8, 10, 12]), (5, [5, 10]), (50, [])])
def test_training_logs_at_the_period_only(tmp_path, monkeypatch, period, logged):
    classifier, steps = Classifier(network()), []
    log_dict = Classifier.log_dict

    def count(self, values, *args, **kwargs):
        steps.append(self.trainer.global_step + 1)
        assert set(values) == {"train/loss", "train/accuracy"}
        log_dict(self, values, *args, **kwargs)

    monkeypatch.setattr(Classifier, "log_dict", count)
    run = trainer(tmp_path, max_epochs=2, log_every_n_steps=period)
    run.fit(classifier, Blobs())
    assert steps == logged
    assert ("train/loss" in run.logged_metrics) == (logged != [] and logged[-1] > 6)


def test_training_values_are_those_of_the_batch(tmp_path):
    classifier, blobs = Classifier(network(), optimizer=partial(torch.optim.SGD, lr=0.0)), Blobs()
    run = trainer(tmp_path, log_every_n_steps=6)
    run.fit(classifier, blobs)
    x, y = blobs.x[40:48], blobs.y[40:48]
    logits = classifier(x).detach().double()
    assert run.logged_metrics["train/loss"].item() == pytest.approx(log_loss(y, logits.softmax(1)), rel=1e-5)
    assert run.logged_metrics["train/accuracy"].item() == accuracy_score(y, logits.argmax(1))


@pytest.mark.parametrize("labelled", [True, False])
def test_predict_gives_probabilities_and_labels(tmp_path, labelled):
    classifier, blobs = Classifier(network()), Blobs()
    data = TensorDataset(blobs.x, blobs.y) if labelled else blobs.x
    batches = trainer(tmp_path).predict(classifier, DataLoader(data, 17))
    probabilities = torch.cat([batch["probabilities"] for batch in batches])
    assert torch.allclose(probabilities, classifier(blobs.x).softmax(1).detach())
    assert torch.equal(torch.cat([batch["label"] for batch in batches]), probabilities.argmax(1))


def test_compile_comes_after_the_callbacks_hooks_and_once(tmp_path, monkeypatch):
    compiled, fired = [], []

    def compile(self, *args, **kwargs):
        compiled.append(self)
        nn.Module.compile(self, backend="eager")

    monkeypatch.setattr(Backbone, "compile", compile)

    class Hooks(Callback):
        def setup(self, trainer, pl_module, stage):
            if stage == "fit":
                assert not compiled
                pl_module.backbone.layers[0].register_forward_hook(lambda *_: fired.append(True))

    classifier = Classifier(network(), compile=True)
    names = list(classifier.state_dict())
    run = trainer(tmp_path, callbacks=[Hooks()])
    run.fit(classifier, Blobs())
    run.validate(classifier, Blobs(), verbose=False)
    assert compiled == [classifier.backbone]
    assert len(fired) >= 6
    assert list(classifier.state_dict()) == names
    run.save_checkpoint(tmp_path / "compiled.ckpt")
    again = Classifier.load_from_checkpoint(tmp_path / "compiled.ckpt")
    assert again.config["compile"]
    assert len(compiled) == 1  # only a trainer compiles


# ---------------------------------------------------------------------------------------------- LightningCLI


class CLI(LightningCLI):
    """Fixed model class, data by class path, sizes linked from the data."""

    def add_arguments_to_parser(self, parser):
        for size in ("num_classes", "input_shape"):
            parser.link_arguments(f"data.{size}", f"model.backbone.init_args.{size}", apply_on="instantiate")


def cli(tmp_path, monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["tunnel"])  # Lightning warns about pytest's own arguments
    quiet = ["accelerator=cpu", "logger=false", "enable_progress_bar=false", "enable_model_summary=false"]
    quiet += ["max_epochs=1", "log_every_n_steps=2", f"default_root_dir={tmp_path}"]
    return CLI(
        Classifier,
        LightningDataModule,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_callback=None,
        args=["fit", "--data=Blobs", *(f"--trainer.{option}" for option in quiet), *args],
    )


@pytest.mark.filterwarnings("ignore")  # jsonargparse announces its version 5 on calls that Lightning makes
def test_the_command_line_builds_and_its_checkpoint_reloads(tmp_path, monkeypatch):
    config = tmp_path / "config.yaml"
    config.write_text(
        """
        model:
          backbone: {class_path: VGG, init_args: {depth: 11, width: 2}}
          optimizer: {class_path: SGD, init_args: {lr: 0.1, momentum: 0.8}}
          lr_scheduler: {class_path: OneCycleLR, init_args: {max_lr: 0.2}}
        """
    )
    made = cli(tmp_path, monkeypatch, f"--config={config}", "--model.backbone.depth=13")
    assert made.model.backbone.init_args == {
        "depth": 13,
        "width": 2,
        "batch_norm": True,
        "num_classes": 3,
        "input_shape": [1, 4, 4],
    }
    assert made.trainer.optimizers[0].defaults["momentum"] == 0.8
    path = made.trainer.checkpoint_callback.best_model_path
    assert "hyper_parameters" not in torch.load(path, weights_only=True)
    again = Classifier.load_from_checkpoint(path)
    assert again.config == made.model.config
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(again.parameters(), made.model.parameters(), strict=True)
    )


@pytest.mark.filterwarnings("ignore")
def test_the_command_line_takes_own_backbones_and_beats_a_checkpoint(tmp_path, monkeypatch):
    own = ["--model.backbone=OwnBackbone", "--model.backbone.bias=false"]
    made = cli(tmp_path, monkeypatch, *own, "--model.optimizer=Adam", "--model.optimizer.lr=0.5")
    path = made.trainer.checkpoint_callback.best_model_path
    assert made.trainer.optimizers[0].defaults["lr"] == 0.5
    again = Classifier.load_from_checkpoint(path)
    assert again.backbone.init_args == {"bias": False, "num_classes": 3, "input_shape": [1, 4, 4]}
    # What Lightning stores as hyper-parameters would put the checkpoint's label smoothing back.
    resumed = cli(
        tmp_path, monkeypatch, *own, "--model.optimizer=Adam", "--model.label_smoothing=0.3",
        "--trainer.max_epochs=2", f"--ckpt_path={path}",
    )  # fmt: skip
    assert resumed.model.label_smoothing == 0.3


@pytest.mark.filterwarnings("ignore")
def test_an_optimizer_named_alone_has_its_own_defaults(tmp_path, monkeypatch):
    made = cli(tmp_path, monkeypatch, "--model.backbone=OwnBackbone", "--model.optimizer=AdamW")
    assert made.trainer.optimizers[0].defaults["lr"] == 1e-3
    assert made.trainer.optimizers[0].defaults["weight_decay"] == 1e-2
