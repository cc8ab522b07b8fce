"""The callbacks in anyone's Trainer: alone and bundled, what they write, what they refuse."""

import math

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from toys import CLASSES, Data, Images, Lit, OtherData

from tunnel_lightning.callbacks import (
    LayerMonitor,
    OnlineProbes,
    RankMonitor,
    Schedule,
    TransferMonitor,
    TransferOptions,
    WeightChange,
)
from tunnel_lightning.runs import load_run
from tunnel_lightning.taps import TapSpec

SCHEDULE = Schedule(start=True, steps=[2], every_n_epochs=1)


def everything():
    return [
        OnlineProbes(profile=SCHEDULE),
        RankMonitor(profile=SCHEDULE),
        TransferMonitor([OtherData()], profile=SCHEDULE),
        WeightChange(profile=SCHEDULE),
    ]


def rows_of(callback):
    memory = callback.watch.memory
    return {(r.step, r.dataset, r.split, r.layer, r.measure, r.variant): r for r in memory}


def hooks_of(module):
    return sum(len(m._forward_hooks) for m in module.modules())


def test_alone_equals_bundled_and_apart(train):
    bundle = LayerMonitor(profile=SCHEDULE, transfer=TransferOptions([OtherData()]))
    train([bundle])
    together = rows_of(bundle)
    apart = everything()
    train(apart)
    assert rows_of(apart[0]).keys() == together.keys()
    alone = {}
    for callback in everything():
        train([callback])
        alone |= rows_of(callback)
    # what needs the curves of two callbacks can't come from one alone
    both = {key for key in together if key[4] in ("id_ood_pearson", "id_ood_alignment")}
    assert alone.keys() == together.keys() - both
    for rows in (rows_of(apart[0]), alone):
        for key, row in rows.items():
            assert np.array_equal(row.value, together[key].value, equal_nan=True), key


def test_all_share_one_set_of_hooks_and_leave_none(train):
    seen = []

    class Count(OnlineProbes):
        def on_train_batch_end(self, trainer, pl_module, *args):
            super().on_train_batch_end(trainer, pl_module, *args)
            seen.append(hooks_of(pl_module))

    _, module = train([Count(profile=SCHEDULE)])
    one = seen[-1]
    seen.clear()
    _, module = train([Count(profile=SCHEDULE), *everything()[1:]])
    assert seen[-1] == one == 3  # the convolutions and the linear layer before the head
    assert hooks_of(module) == 0


def test_different_taps_in_one_trainer_are_refused(train):
    with pytest.raises(ValueError, match="share one set of hooks"):
        train([OnlineProbes(), RankMonitor(taps=TapSpec(pool="avg"))])


def test_the_rows_of_a_profile(train):
    monitor = LayerMonitor(profile=SCHEDULE, transfer=TransferOptions([OtherData()]))
    train([monitor])
    rows = monitor.watch.memory
    assert {row.step for row in rows} == {0, 2, 5, 10}
    assert {(row.step, row.epoch) for row in rows} == {(0, 0), (2, 0), (5, 1), (10, 2)}
    last = [row for row in rows if row.step == 10]
    probes = {(r.dataset, r.split, r.variant, r.index): r for r in last if r.measure == "probe_accuracy"}
    assert set(probes) == {
        *(("Clusters", "val", variant, i) for variant in ("ridge", "online") for i in (1, 2, 3)),
        ("Clusters", "val", "ridge", 0),
        *(("Other", "test", "ridge", i) for i in (0, 1, 2, 3)),
    }
    assert {r.n for r in probes.values() if r.dataset == "Other"} == {45}
    assert {r.n for r in probes.values() if r.dataset == "Clusters"} == {60}
    assert [r.layer for r in last if r.measure == "accuracy"] == ["network"]
    assert {r.index for r in last if r.layer == "network"} == {4}
    assert {r.measure for r in last if r.layer == "network"} == {
        "accuracy",
        "ood_retained",
        "id_ood_pearson",
        "id_ood_alignment",
    }
    # random images differ from class to class by their centres: a probe reads them
    assert probes["Clusters", "val", "ridge", 1].value > 0.5
    assert all(0 <= r.value <= 1 and r.se >= 0 for r in probes.values())


def test_the_networks_own_accuracy_is_right(train):
    ranks = RankMonitor(profile=SCHEDULE)
    _, module = train([ranks])
    data = Images(60, 1)
    with torch.no_grad():
        expected = (module.eval()(data.x).argmax(1) == data.y).float().mean().item()
    found = [row.value for row in ranks.watch.memory if row.measure == "accuracy"][-1]
    assert found == pytest.approx(expected)


def test_ridge_probe_and_rank_agree_with_scikit_learn_and_numpy(train):
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    monitor = LayerMonitor(profile=SCHEDULE)
    _, module = train([monitor], data=Data(jitter=False))
    module.eval()
    fit, val = Images(160, 0), Images(60, 1)
    with torch.no_grad():
        head = nn.Sequential(*list(module.net)[:8])  # up to the linear layer before the last
        x, v = (head(data.x).double().numpy() for data in (fit, val))
    scaler = StandardScaler().fit(x)
    alpha = monitor.bundle[0].options.alpha * len(x)
    ridge = Ridge(alpha=alpha).fit(scaler.transform(x), np.eye(CLASSES)[fit.y.numpy()])
    expected = (ridge.predict(scaler.transform(v)).argmax(1) == val.y.numpy()).mean()
    rows = {(r.layer, r.measure, r.variant): r for r in monitor.watch.memory if r.step == 10}
    assert rows["7", "probe_accuracy", "ridge"].value == pytest.approx(expected)
    singular = np.linalg.svd(np.cov(v.T), compute_uv=False)
    assert rows["7", "rank_cov", "rtol=1e-3"].value == (singular > 1e-3 * singular[0]).sum()


def test_weight_change_is_the_distance_between_profiles(train):
    change = WeightChange(profile=Schedule(start=True, every_n_epochs=0))
    weights = []

    class Keep(WeightChange):
        def measure_layers(self):
            weights.append(self.watch.network[4].weight.detach().clone().double())
            weights.append(self.watch.network[4].bias.detach().clone().double())
            return super().measure_layers()

    change = Keep(profile=Schedule(start=True, every_n_epochs=0))
    train([change])
    first, last = torch.cat([w.flatten() for w in weights[:2]]), torch.cat([w.flatten() for w in weights[2:]])
    expected = ((last - first).norm() / math.sqrt(len(first))).item()
    (found,) = (row.value for row in change.watch.memory if row.layer == "4" and row.step == 10)
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_sick_layer_gives_nan_for_itself_alone(train):
    class Sick(nn.Module):
        def forward(self, x):
            return x * torch.nan

    class SickLit(Lit):
        def __init__(self):
            super().__init__()
            self.net.append(nn.Linear(CLASSES, CLASSES))  # the new head
            self.side = nn.Sequential(Sick(), nn.Linear(64, 3))

        def forward(self, x):
            self.side(x.flatten(1).detach())
            return self.net(x)

    monitor = LayerMonitor(profile=Schedule(start=False), taps=TapSpec(layers=["net.4", "side.1"]))
    with pytest.warns(UserWarning, match=r"side\.1.*step"):
        train([monitor], module=SickLit(), epochs=1)
    last = [row for row in monitor.watch.memory if row.measure in ("probe_accuracy", "rank_cov")]
    values = {(row.layer, row.measure, row.variant): row.value for row in last}
    assert all(math.isnan(value) for key, value in values.items() if key[0] == "side.1")
    assert not any(math.isnan(value) for key, value in values.items() if key[0] == "net.4")


def test_labels_elsewhere_in_the_batch(train):
    class Dicts(Images):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return {"pixel_values": x, "weight": torch.ones(()), "kind": y}

    class DictData(LightningDataModule):
        num_classes = CLASSES

        def train_dataloader(self):
            return DataLoader(Dicts(160, 0), batch_size=32, shuffle=True)

        def val_dataloader(self):
            return DataLoader(Dicts(60, 1), batch_size=32)

    class DictLit(Lit):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch["pixel_values"], batch["kind"]), batch_idx)

        def validation_step(self, batch, batch_idx):
            super().validation_step((batch["pixel_values"], batch["kind"]), batch_idx)

    probes = OnlineProbes(target="kind", profile=SCHEDULE)
    train([probes], module=DictLit(), data=DictData(), epochs=1)
    assert {row.n for row in probes.watch.memory if row.measure == "probe_accuracy"} == {60}
    with pytest.raises(ValueError, match="say where they are with target="):
        train([OnlineProbes()], module=DictLit(), data=DictData(), epochs=1)


def test_unknown_number_of_classes_is_refused_before_training(train):
    class Unnamed(Data):
        num_classes = None

    class Refuse(Lit):
        def training_step(self, batch, batch_idx):
            raise AssertionError("trained")

    with pytest.raises(ValueError, match=r"pass num_classes="):
        train([OnlineProbes()], module=Refuse(), data=Unnamed())
    train([OnlineProbes(num_classes=CLASSES)], data=Unnamed(), epochs=1)


def test_a_stream_can_not_be_profiled_and_says_so(train):
    class Stream(IterableDataset):
        def __iter__(self):
            data = Images(64, 0)
            return iter([data[i] for i in range(64)])

    class StreamData(Data):
        def train_dataloader(self):
            return DataLoader(Stream(), batch_size=32)

    with pytest.raises(ValueError, match="can't be read by index"):
        train([OnlineProbes()], data=StreamData(), epochs=1)
    # without profiles over training images the live probes need no index
    probes = OnlineProbes(fit_images=0, profile=Schedule(start=False))
    train([probes], data=StreamData(), epochs=1)
    assert {row.variant for row in probes.watch.memory if row.measure == "probe_accuracy"} == {"online"}


def test_without_validation_images_training_goes_on(train):
    class NoVal(Data):
        val_dataloader = LightningDataModule.val_dataloader

    monitor = LayerMonitor(profile=SCHEDULE)
    with pytest.warns(UserWarning, match="no validation loader"):
        train([monitor], data=NoVal(), epochs=1)
    assert {row.measure for row in monitor.watch.memory} == {"weight_change"}


def test_a_run_of_a_foreign_trainer_can_be_read(train, tmp_path):
    monitor = LayerMonitor(profile=SCHEDULE)
    train([monitor], logger=CSVLogger(tmp_path, name="foreign"))
    run = load_run(tmp_path / "foreign" / "version_0")
    assert run.steps == [0, 2, 5, 10]
    assert [layer.name for layer in run.layers] == ["input", "0", "4", "7", "10"]
    assert (run.path / "profile.png").stat().st_size > 10_000


def test_everything_off_hooks_nothing(train):
    monitor = LayerMonitor(probes=None, ranks=None, transfer=None, weights=None)
    _, module = train([monitor], epochs=1)
    assert hooks_of(module) == 0
    with pytest.raises(RuntimeError, match=r"starts with Trainer\.fit"):
        monitor.watch  # noqa: B018


def test_several_validation_loaders_the_first_counts(train):
    class Two(Data):
        def val_dataloader(self):
            return [super().val_dataloader(), DataLoader(Images(20, 9), batch_size=10)]

    class TwoLit(Lit):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            pass

    probes = OnlineProbes(profile=SCHEDULE)
    train([probes], module=TwoLit(), data=Two(), epochs=1)
    assert {row.n for row in probes.watch.memory if row.measure == "probe_accuracy"} == {60}


@pytest.mark.parametrize("compiled", [False, True])
def test_a_compiled_network_is_watched_all_the_same(train, compiled):
    class Compiled(Lit):
        def configure_model(self):
            if compiled:
                self.net.compile(backend="eager")

    probes = OnlineProbes(profile=SCHEDULE)
    train([probes], module=Compiled(), epochs=1)
    assert {row.layer for row in probes.watch.memory} == {"input", "0", "4", "7", "network"}


def test_too_large_a_profile_is_refused_before_training(train):
    class Wide(Lit):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 40_000), nn.Linear(40_000, CLASSES))

        def training_step(self, batch, batch_idx):
            raise AssertionError("trained")

    with pytest.raises(ValueError, match=r"taps\.max_features"):
        train([RankMonitor(profile=Schedule(start=False))], module=Wide())


def test_a_module_that_prepares_its_images_is_called_as_a_whole(train, tmp_path):
    class Flat(Lit):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, CLASSES))

        def forward(self, x):
            return self.net(x.flatten(1))

    ranks = RankMonitor(profile=SCHEDULE)
    train([ranks], module=Flat(), logger=CSVLogger(tmp_path, name="flat"), epochs=1)
    run = load_run(tmp_path / "flat" / "version_0")
    assert [(layer.name, layer.flops) for layer in run.layers] == [("input", 0), ("0", 2048), ("2", 160)]


def test_a_module_without_forward_is_called_by_its_network(train):
    class NoForward(Lit):
        forward = LightningModule.forward

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            pass

    probes = OnlineProbes(profile=SCHEDULE)
    train([probes], module=NoForward(), epochs=1)
    assert {row.layer for row in probes.watch.memory} == {"input", "0", "4", "7", "network"}


def test_images_are_measured_as_the_network_gets_them(train):
    seen = {"train": [], "profile": []}

    class Shifted(Data):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch[0] + 5, batch[1]

    class Look(Lit):
        def forward(self, x):
            kind = "train" if self.training else "profile"
            seen[kind].append(x.mean().item())
            return super().forward(x)

    train([RankMonitor(profile=SCHEDULE)], module=Look(), data=Shifted(), epochs=1)
    assert all(4 < mean < 6 for means in seen.values() for mean in means)


def test_accumulated_batches_of_a_step_are_sent_once(train, tmp_path):
    sent = []
    probes = OnlineProbes(profile=Schedule(start=False))
    logger = CSVLogger(tmp_path, name="x")
    logger.log_metrics = lambda metrics, step=None: sent.append((step, *metrics))
    logger.save = lambda: None
    train([probes], logger=logger, accumulate_grad_batches=2, epochs=4)
    steps = [row[0] for row in sent if any(key.startswith("layers/online_loss") for key in row[1:])]
    assert steps == sorted(set(steps))
    assert 0 not in steps
    assert steps


def test_several_optimizers_do_not_skip_a_profile(train):
    class Two(Lit):
        automatic_optimization = False

        def configure_optimizers(self):
            return [super(Two, self).configure_optimizers() for _ in range(2)]

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
                optimizer.step()

    ranks = RankMonitor(profile=Schedule(start=False, steps=[3, 5], every_n_epochs=0))
    train([ranks], module=Two(), epochs=1)
    assert sorted({row.step for row in ranks.watch.memory}) == [4, 6, 10]


def test_fitting_twice_goes_on(train):
    callbacks = everything()
    trainer, module = train(callbacks, epochs=1)
    steps = callbacks[0].bank.steps
    trainer.fit_loop.max_epochs += 1
    trainer.fit(module, datamodule=Data())
    assert callbacks[0].bank.steps == 2 * steps
    assert max(row.step for row in callbacks[0].watch.memory) == 10


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_true_precisions(train, precision):
    monitor = LayerMonitor(profile=SCHEDULE, transfer=TransferOptions([OtherData()]))
    train([monitor], data=Data(jitter=False), precision=precision, epochs=1)
    assert {row.dataset for row in monitor.watch.memory} == {"Clusters", "Other"}


def test_weight_change_needs_no_classes(train):
    class Unnamed(Data):
        num_classes = None

    change = WeightChange(profile=SCHEDULE)
    train([change], data=Unnamed(), epochs=1)
    assert {row.measure for row in change.watch.memory} == {"weight_change"}


def test_no_logging_interval(train):
    class Never(OnlineProbes):
        def on_train_start(self, trainer, pl_module):
            trainer.log_every_n_steps = 0
            super().on_train_start(trainer, pl_module)

    train([Never(profile=Schedule(start=False))], epochs=1)


def test_a_transfer_set_of_another_size_is_refused_by_name(train):
    class Large(OtherData):
        name = "Large"

        def test_dataloader(self):
            large = [(nn.functional.pad(x, (2, 2, 2, 2)), y) for x, y in Images(45, 3, classes=3)]
            return DataLoader(large, batch_size=32)

    with pytest.raises(
        ValueError, match=r"Large gives images \[1, 12, 12\] and the network takes \[1, 8, 8\]"
    ):
        train([TransferMonitor([Large()], profile=SCHEDULE)])


def test_labels_that_are_no_class_are_refused_in_words(train):
    with pytest.raises(ValueError, match=r"class indices \[B\] from 0 to 2"):
        train([OnlineProbes(num_classes=3, profile=Schedule(start=False))])


def test_a_module_with_parts_side_by_side_and_no_forward_is_refused(train):
    class Parts(LightningModule):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 4), nn.Linear(4, CLASSES)

        training_step, configure_optimizers = Lit.training_step, Lit.configure_optimizers

    with pytest.raises(ValueError, match="has no forward"):
        train([OnlineProbes()], module=Parts())
