import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from sklearn.datasets import load_digits

from tunnel_lightning.data import DeviceLoader, Digits, Glyphs, WorkerLoader
from tunnel_lightning.data.base import ImageData
from tunnel_lightning.data.images import Pool


class Coded(ImageData):
    """A hundred images of five classes; image i is all grey level i."""

    shape = (1, 8, 8)

    @property
    def native_shape(self):
        return self.shape

    @property
    def all_class_names(self):
        return list("abcde")

    def _load(self, part):
        if part == "val":
            return None
        start = 0 if part == "train" else 100
        levels = torch.arange(start, start + 100).to(torch.uint8)
        return Pool(levels[:, None, None, None].expand(-1, *self.shape).contiguous(), torch.arange(100) % 5)


def levels(data, part):
    return data._pool(part).images[:, 0, 0, 0].tolist()


def test_parts_are_seeded_disjoint_and_stratified():
    data = Coded(val_fraction=0.2)
    train, val, test = (set(levels(data, part)) for part in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (80, 20, 100)
    assert not train & val
    assert train | val == set(range(100))
    assert np.bincount(data._pool("val").labels).tolist() == [4] * 5
    np.random.seed(5)
    assert levels(Coded(val_fraction=0.2), "val") == levels(data, "val")
    assert levels(Coded(val_fraction=0.2, seed=1), "val") != levels(data, "val")


def test_classes_are_chosen_and_relabelled_in_order():
    data = Coded(classes=[4, 1])
    assert (data.num_classes, data.class_names) == (2, ["e", "b"])
    pool = data._pool("test")
    assert {
        (level % 5, label) for level, label in zip(levels(data, "test"), pool.labels.tolist(), strict=True)
    } == {(0 if level % 5 == 0 else level % 5, label) for level, label in ((104, 0), (101, 1))}
    assert Coded(classes=3).class_names == ["a", "b", "c"]
    assert set(Coded(classes=3)._pool("train").labels.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("classes", [6, [5], [-1], [1, 1], []])
def test_classes_that_are_not_there_are_refused(classes):
    with pytest.raises(ValueError, match="Coded has 5 classes"):
        _ = Coded(classes=classes).num_classes


def test_samples_per_class_are_of_the_training_images_only():
    data = Coded(samples_per_class=7)
    assert np.bincount(data._pool("train").labels).tolist() == [7] * 5
    assert len(data._pool("val")) == 10
    assert set(levels(data, "train")) <= set(levels(Coded(), "train"))
    assert levels(data, "train") != levels(Coded(samples_per_class=7, seed=1), "train")
    with pytest.raises(ValueError, match="class 'a' has only 18 training images"):
        Coded(samples_per_class=19).setup("fit")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("batch_size", 0), ("val_fraction", 0), ("val_fraction", 1.5), ("classes", 0), ("samples_per_class", 0),
        ("image_size", 2), ("channels", 2), ("seed", -1), ("loader", "gpu"), ("num_workers", -1),
        ("device_limit_mb", -1),
    ],
)  # fmt: skip
def test_arguments_out_of_range_are_refused(argument, value):
    with pytest.raises(ValueError, match=argument):
        Coded(**{argument: value})


@pytest.mark.parametrize(
    ("labels", "message"), [([-1, 0], "from -1 to 0"), ([0, 5], "from 0 to 5"), ([], "no test")]
)
def test_labels_out_of_range_and_empty_parts_are_refused(monkeypatch, labels, message):
    pool = Pool(torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8), torch.tensor(labels, dtype=torch.int64))
    monkeypatch.setattr(Coded, "_load", lambda self, part: pool)
    with pytest.raises(ValueError, match=message):
        Coded().setup("test")


def test_batches_are_normalised_by_the_training_images():
    data = Coded(val_fraction=0.2)
    kept = np.array(levels(data, "train")) / 255
    np.testing.assert_allclose([*data.mean, *data.std], [kept.mean(), kept.std()], rtol=1e-12)
    x = torch.cat([batch for batch, _ in data.train_dataloader().fixed()])
    assert abs(x.mean()) < 1e-5
    assert abs(x.std(correction=0) - 1) < 1e-5


def test_published_constants_are_kept_and_brought_to_the_channels_in_use(monkeypatch):
    monkeypatch.setattr(Coded, "constants", ((0.3,), (0.2,)))
    assert (Coded().mean, Coded(channels=3).std) == ((0.3,), (0.2, 0.2, 0.2))
    monkeypatch.setattr(Coded, "constants", ((0.1, 0.2, 0.3), (0.4, 0.4, 0.4)))
    monkeypatch.setattr(Coded, "shape", (3, 8, 8))
    grey = Coded(channels=1)
    np.testing.assert_allclose(grey.mean, [0.0299 + 0.1174 + 0.0342])
    np.testing.assert_allclose(grey.std, [0.4])


def test_size_and_channels():
    data = Digits(image_size=20, channels=3)
    assert data.input_shape == (3, 20, 20)
    x, _ = next(iter(data.val_dataloader()))
    assert x.shape[1:] == (3, 20, 20)
    assert torch.equal(x[:, 0], x[:, 2])


def test_adapt_shows_the_set_as_another_network_saw_its_own():
    data = Digits()
    before = data.test_dataloader()
    data.adapt((3, 16, 12), mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    assert data.input_shape == (3, 16, 12)
    x, y = next(iter(data.test_dataloader()))
    image = data._pool("test").images[0, 0].numpy()
    # 8x8 shown at 16x12 is first cut to 8x6 about its centre.
    expected = np.asarray(Image.fromarray(image[:, 1:7]).resize((12, 16), Image.Resampling.BILINEAR)) / 255
    for channel, (mean, std) in enumerate(((0.1, 0.4), (0.2, 0.5), (0.3, 0.6))):
        np.testing.assert_allclose(x[0, channel].numpy(), (expected - mean) / std, atol=2 / 255 / std)
    old, old_y = next(iter(before))
    assert old.shape[1:] == (1, 8, 8)
    assert torch.equal(old_y, y)


def test_adapt_keeps_the_own_normalisation_unless_told():
    data = Digits()
    own = data.mean, data.std
    data.adapt((3, 8, 8))
    assert (data.mean, data.std) == (own[0] * 3, own[1] * 3)


@pytest.mark.parametrize(
    "arguments",
    [
        {"input_shape": (2, 8, 8)}, {"input_shape": (8, 8)}, {"input_shape": (1, 8, 8), "mean": [0.5]},
        {"input_shape": (3, 8, 8), "mean": [0.5], "std": [0.5]},
        {"input_shape": (1, 8, 8), "mean": [0.5], "std": [0.0]},
    ],
)  # fmt: skip
def test_adapt_refuses_what_makes_no_sense(arguments):
    with pytest.raises(ValueError, match="Digits"):
        Digits().adapt(**arguments)


def test_loader_falls_back_to_workers_above_the_limit():
    assert isinstance(Coded().train_dataloader(), DeviceLoader)
    assert isinstance(Coded(device_limit_mb=0).train_dataloader(), WorkerLoader)
    assert isinstance(Coded(device_limit_mb=0, loader="device").train_dataloader(), DeviceLoader)
    device, workers = Coded(augment=True), Coded(augment=True, loader="workers", num_workers=1)
    for (x, y), (other_x, other_y) in zip(device.train_dataloader(), workers.train_dataloader(), strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)


def test_augmentation_is_for_training_only_and_mirrors_only_where_allowed():
    data = Coded(augment=True, image_size=32)
    train, val = data.train_dataloader(), data.val_dataloader()
    assert (train.pad, train.flip, train.shuffle) == (4, True, True)
    assert (val.pad, val.flip, val.shuffle) == (0, False, False)
    assert not Digits(augment=True).train_dataloader().flip
    assert not Glyphs(augment=True, samples_per_class=2).train_dataloader().flip
    assert Coded().train_dataloader().pad == 0


def test_digits_are_those_of_scikit_learn():
    data = Digits()
    pools = [data._pool(part) for part in ("train", "val", "test")]
    assert sum(map(len, pools)) == 1797
    images, labels = load_digits(return_X_y=True)
    reference = {
        (np.round(x * 255 / 16).astype(np.uint8).tobytes(), int(y))
        for x, y in zip(images, labels, strict=True)
    }
    ours = {
        (image.numpy().tobytes(), label)
        for pool in pools
        for image, label in zip(pool.images, pool.labels.tolist(), strict=True)
    }
    assert ours == reference
    assert pools[0].images.max() == 255


class Tiny(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        self.seen = {"train": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch, index):
        self.seen["train"].append((self.current_epoch, batch[1].tolist()))
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.seen["val"].extend(batch[1].tolist())

    def test_step(self, batch, index):
        self.seen["test"].extend(batch[1].tolist())

    def predict_step(self, batch, index):
        self.seen["predict"].extend(batch[1].tolist())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def quiet(folder, **options):
    return Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, **options,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_every_stage_of_a_trainer_and_resume_from_the_end_of_an_epoch(tmp_path):
    whole, data = Tiny(), Digits(augment=True)
    trainer = quiet(tmp_path, max_epochs=3, num_sanity_val_steps=0)
    trainer.fit(whole, data)
    assert whole.seen["val"] == data._pool("val").labels.tolist() * 3
    trainer.test(whole, data, verbose=False)
    trainer.predict(whole, data, return_predictions=False)
    assert whole.seen["test"] == whole.seen["predict"] == data._pool("test").labels.tolist()

    first = quiet(tmp_path, max_epochs=2)
    first.fit(Tiny(), Digits(augment=True))
    first.save_checkpoint(tmp_path / "two.ckpt")
    rest = Tiny()
    quiet(tmp_path, max_epochs=3).fit(rest, Digits(augment=True), ckpt_path=tmp_path / "two.ckpt")
    assert rest.seen["train"] == [each for each in whole.seen["train"] if each[0] == 2]
    torch.testing.assert_close(rest.net[1].weight, whole.net[1].weight, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore")
def test_overfitting_a_few_batches_sees_the_same_ones_each_epoch(tmp_path):
    model = Tiny()
    quiet(tmp_path, max_epochs=2, overfit_batches=2).fit(model, Digits())
    batches = [labels for _, labels in model.seen["train"]]
    assert batches[:2] == batches[2:]
