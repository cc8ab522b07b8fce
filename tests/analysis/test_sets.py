"""Which images an analysis reads, in which order, in which batches."""

import doctest
import random

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from toys import Data, Images

from tunnel_lightning.analysis import sets as room
from tunnel_lightning.analysis.sets import ImageSet, distinct, shard
from tunnel_lightning.data import Digits, Glyphs


def gather(batches):
    x, y = zip(*batches, strict=True)
    return torch.cat(x), torch.cat(y)


def numbered(n=10, classes=5):
    """Images that say which they are."""
    return TensorDataset(torch.arange(n).view(n, 1, 1, 1).expand(n, 1, 2, 2), torch.arange(n) % classes)


def plain(train, test=None, **options):
    return ImageSet.from_loaders("Plain", train, test or train, **options)


def test_a_datamodule_is_read_alike_each_time_and_unaugmented():
    data = Digits(augment=True, batch_size=32)
    images = ImageSet.of(data)
    random_state = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    first, labels = gather(images.batches("train"))
    again, _ = gather(images.batches("train"))
    assert torch.equal(first, again)
    assert torch.equal(labels, images.labels("train"))
    plain_images, plain_labels = gather(data.train_dataloader().fixed())
    order = images.numbers("train")
    assert not torch.equal(order, order.sort().values), "a set that lies class after class is mixed"
    assert torch.equal(first[order.argsort()], plain_images)
    assert torch.equal(labels[order.argsort()], plain_labels)
    assert first.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert random.getstate() == random_state[0]
    assert np.array_equal(np.random.get_state()[1], random_state[1])
    assert torch.equal(torch.get_rng_state(), random_state[2])


@pytest.mark.parametrize("loader", ["device", "workers"])
def test_batches_are_the_analysis_own(loader):
    data = Digits(batch_size=32, loader=loader, num_workers=0)
    images = ImageSet.of(data)
    assert [len(y) for _, y in images.batches("test")] == [180, 179]
    assert len(images.batches("test")) == 2
    assert [len(y) for _, y in ImageSet.of(data, batch_size=100).batches("test", 230)] == [77, 77, 76]
    assert len(next(iter(images.loader("test")))[1]) == 32, "others' batches stay as they are"
    assert len(next(iter(data.test_dataloader()))[1]) == 32


def test_what_a_datamodule_says_of_itself_is_kept():
    images = ImageSet.of(Glyphs(samples_per_class=2, classes=[3, 0]))
    assert (images.name, images.num_classes, images.class_names) == ("Glyphs", 2, ["D", "A"])
    assert images.splits == ["train", "val", "test"]
    assert (images.image_shape, images.example.shape) == ((1, 16, 16), (2, 1, 16, 16))


def test_size_and_labels_are_those_of_the_batches():
    for images in (ImageSet.of(Digits()), ImageSet.of(Data(jitter=False)), plain(numbered(23))):
        for n in (None, 7, 10_000):
            x, y = gather(images.batches("train", n))
            assert images.size("train", n) == len(x) == len(y)
            assert torch.equal(images.labels("train", n), y)
    assert images.size("train", 7) == 7


class Bare(LightningDataModule):
    """Someone's datamodule that says nothing of itself."""

    def train_dataloader(self):
        return DataLoader(Images(60, 0, classes=4), batch_size=7, shuffle=True)

    def val_dataloader(self):
        return DataLoader(Images(20, 1, classes=4), batch_size=7)


def test_someone_elses_datamodule():
    images = ImageSet.of(Bare())
    assert (images.name, images.num_classes, images.class_names) == ("Bare", 4, ["0", "1", "2", "3"])
    assert images.splits == ["train", "val"]
    assert torch.equal(
        gather(images.batches("train"))[0], Images(60, 0, classes=4).x[images.numbers("train")]
    )
    with pytest.raises(ValueError, match="Bare has no test images: give it a test_dataloader"):
        images.batches("test")


def test_the_images_of_a_limit_are_spread_over_the_set():
    x, _ = gather(plain(numbered(100)).batches("test", 5))
    assert x[:, 0, 0, 0].sort().values.tolist() == [0, 25, 50, 74, 99]


def test_batches_of_a_set_that_lies_class_after_class_hold_all_classes():
    data = TensorDataset(torch.zeros(400, 1, 2, 2), torch.arange(400) // 100)
    for _, y in plain(data, batch_size=100).batches("test"):
        assert torch.bincount(y, minlength=4).min() > 10


class Reads(Dataset):
    """Counts how many images were read."""

    def __init__(self, n=10, **attributes):
        self.n, self.read = n, 0
        vars(self).update(attributes)

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        self.read += 1
        return torch.zeros(1, 2, 2), index % 3


@pytest.mark.parametrize("key", ["targets", "labels"])
@pytest.mark.parametrize("kind", [list, torch.tensor, np.array])
def test_classes_are_counted_from_the_list_of_labels(key, kind):
    data = Reads(**{key: kind([i % 3 for i in range(10)])})
    assert plain(data).num_classes == 3
    assert plain(DataLoader(Subset(data, [0, 1, 4]))).num_classes == 2, "of the part that is read"
    assert data.read == 0


@pytest.mark.parametrize(
    "attributes",
    [{}, {"targets": [0.5] * 10}, {"targets": [5] * 9}, {"targets": [9] * 10, "target_transform": int}],
    ids=["none", "no whole numbers", "too few", "changed on reading"],
)
def test_else_by_a_pass(attributes):
    data = Reads(**attributes)
    assert plain(data).num_classes == 3
    assert data.read == 10
    assert plain(data, num_classes=7).num_classes == 7
    assert data.read == 10


def test_names_of_classes_come_from_the_data_set_where_they_fit():
    assert plain(Reads(targets=[0, 1, 2] * 3 + [0], classes=["a", "b", "c"])).class_names == ["a", "b", "c"]
    assert plain(Reads(targets=[0, 1, 2] * 3 + [0], classes=["a"])).class_names == ["0", "1", "2"]


def test_batches_of_dicts_and_other_numbers():
    data = [{"image": torch.ones(1, 2, 2, dtype=torch.uint8), "label": np.int32(i % 2)} for i in range(4)]

    class Dicts(Dataset):
        def __len__(self):
            return len(data)

        def __getitem__(self, index):
            return data[index]

    ((x, y),) = plain(Dicts()).batches("train")
    assert (x.dtype, y.dtype, x.shape) == (torch.float32, torch.int64, (4, 1, 2, 2))


def test_labels_that_are_no_classes_are_refused():
    with pytest.raises(ValueError, match=r"Plain \(train\): labels must be class indices .*float32 \[4\]"):
        plain(TensorDataset(torch.zeros(4, 1, 2, 2), torch.rand(4)))
    with pytest.raises(ValueError, match=r"class indices .* from -1 to 2"):
        plain(TensorDataset(torch.zeros(4, 1, 2, 2), torch.arange(4) - 1))
    images = plain(numbered(10, 3), numbered(10, 4))
    with pytest.raises(ValueError, match=r"Plain \(test\): labels .* from 0 to 2, these are .* from 0 to 3"):
        list(images.batches("test"))
    with pytest.raises(ValueError, match=r"from 0 to 1, these are .* from 0 to 4"):
        plain(numbered(), num_classes=2).check()


def test_a_stream_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            yield torch.zeros(1, 2, 2), 0

    with pytest.raises(ValueError, match="can't be read by index"):
        plain(Stream())


def test_a_class_without_images_is_named():
    assert plain(numbered(20, 5)).check() == []
    assert plain(numbered(20, 5), num_classes=7).check() == [
        "Plain has no training images of 2 of 7 classes (5, 6)"
    ]
    assert plain(numbered(30, 10), num_classes=20).check() == [
        "Plain has no training images of 10 of 20 classes (10, 11, 12, 13, 14 and 5 more)"
    ]
    rare = TensorDataset(torch.zeros(100, 1, 2, 2), (torch.arange(100) == 1).long())
    assert plain(rare).check() == []
    assert plain(rare).check(10) == [
        "Plain has no training images of 1 of 2 classes (1) among the 10 of --fit_images"
    ]
    assert plain(rare).check(10, "--sample")[0].endswith("among the 10 of --sample")


def test_a_test_split_without_images_is_refused():
    with pytest.raises(ValueError, match="Plain has no test images, so nothing can be scored on it"):
        ImageSet.from_loaders("Plain", numbered(10), Subset(numbered(10), [])).check()


def test_fewer_images_than_classes_are_refused():
    with pytest.raises(ValueError, match="Plain: 4 training images are fewer than its 5 classes"):
        plain(numbered(4), num_classes=5).check()
    with pytest.raises(ValueError, match="Digits: 9 training images are fewer than its 10 classes"):
        ImageSet.of(Digits()).check(9)
    with pytest.raises(ValueError, match="so no probe can be fitted: give more images, or fewer classes"):
        plain(numbered(4), num_classes=5).check(9)
    with pytest.raises(ValueError, match="so no probe can be fitted: raise --sample"):
        ImageSet.of(Digits()).check(9, "--sample")


class Own:
    """Someone's loader with a way of its own to read the same images each time."""

    def __init__(self, batches):
        self.batches = batches

    def fixed(self, n, rank=0, world_size=1):
        return self.batches(n)


def test_someone_elses_fixed_images_are_mixed_where_they_can_be():
    data = numbered(60, 3)
    order = data.tensors[1].argsort(stable=True)
    by_class = TensorDataset(*(each[order] for each in data.tensors))
    images = plain(Own(lambda n: DataLoader(Subset(by_class, range(n or 60)), batch_size=7)), data)
    x, y = gather(images.batches("train"))
    whole = plain(Own(lambda n: DataLoader(by_class)), data, batch_size=25)
    assert [len(batch) for _, batch in whole.batches("train")] == [20, 20, 20]
    assert torch.equal(x, by_class.tensors[0][images.numbers("train")].float())
    assert torch.equal(y, images.labels("train"))
    assert y[:20].unique().tolist() == [0, 1, 2]
    assert images.check() == []


def test_someone_elses_batches_are_taken_as_they_are_and_that_is_said():
    data = numbered(60, 3)
    batches = [(data.tensors[0][i : i + 20], data.tensors[1][i : i + 20].sort().values) for i in (0, 20, 40)]
    images = plain(Own(lambda n: batches), data)
    assert [y.tolist() for _, y in images.batches("train")] == [y.tolist() for _, y in batches]
    assert images.size("train") == 60
    assert images.numbers("train").tolist() == list(range(60))
    (note,) = images.check()
    assert note.startswith("Plain gives its images in an order and in batches of its own")


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_whole_batches(world):
    whole = [y.tolist() for _, y in ImageSet.of(Digits()).batches("train")]
    shares = [
        [y.tolist() for _, y in shard(ImageSet.of(Digits()).batches("train"), rank, world)]
        for rank in range(world)
    ]
    assert [len(share) for share in shares] == [len(range(rank, len(whole), world)) for rank in range(world)]
    for number, batch in enumerate(whole):
        assert shares[number % world][number // world] == batch


def test_a_set_without_images_is_refused():
    with pytest.raises(ValueError, match="Plain has no training images"):
        plain(numbered(0)).image_shape  # noqa: B018


def test_equal_names_are_told_apart():
    sets = [ImageSet.of(Digits()), plain(numbered()), ImageSet.of(Digits()), ImageSet.of(Digits())]
    found = distinct(sets)
    assert [each.name for each in found] == ["Digits", "Plain", "Digits-2", "Digits-3"]
    assert [each.name for each in sets] == ["Digits", "Plain", "Digits", "Digits"]
    assert len(next(iter(found[2].batches("test")))[1]) == 180


def test_readers_leave_the_random_state_alone():
    images = ImageSet.of(Data(jitter=True))
    state = torch.get_rng_state()
    images.labels("train")
    assert images.image_shape == (1, 8, 8)
    gather(plain(numbered()).batches("train"))
    assert torch.equal(torch.get_rng_state(), state)


def test_examples():
    assert doctest.testmod(room).failed == 0


@pytest.mark.parametrize("kind", ["ours", "anyone's"])
def test_no_batch_is_much_smaller_than_the_others(kind):
    images = TensorDataset(torch.rand(1_040, 1, 2, 2), torch.arange(1_040) % 4)
    if kind == "ours":
        given = ImageSet.of(Glyphs(classes=4, image_size=8, test_samples_per_class=260, samples_per_class=4))
    else:
        given = ImageSet.from_loaders("set", images, images)
    assert [len(y) for _, y in given.batches("test")] == [208] * 5
    assert [len(y) for _, y in given.batches("test", 257)] == [129, 128]
