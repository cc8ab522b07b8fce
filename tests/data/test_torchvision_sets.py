"""Tiny sets written in each set's own format on disk; nothing is downloaded."""

import json
import pickle
import shutil
import struct
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets as tv
from PIL import Image
from scipy.io import savemat
from torchvision.datasets.utils import calculate_md5

import tunnel_lightning.data as data_room
from tunnel_lightning.data.torchvision_sets import SOURCES

RNG = np.random.default_rng(0)
COUNT = 20  # images of each part; classes 0 and 1 by turns
LABELS = np.arange(COUNT) % 2


def pixels(count=COUNT, side=32, channels=3):
    return RNG.integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(1, 40)[0][:30]).save(path)


def write_mnist(root, patch, name="MNIST"):
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        images = pixels(side=28, channels=1)[..., 0]
        head = struct.pack(">iiii", 2051, *images.shape)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = struct.pack(">ii", 2049, COUNT)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(head + LABELS.astype(np.uint8).tobytes())
    return images[:, None]


def write_fashion(root, patch):
    return write_mnist(root, patch, "FashionMNIST")


def write_cifar(root, patch, name="CIFAR10"):
    kind = getattr(tv, name)
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    key = "labels" if name == "CIFAR10" else "fine_labels"
    files = {}
    for file in ("train", "test"):
        images = pixels().transpose(0, 3, 1, 2)
        (folder / file).write_bytes(pickle.dumps({"data": images.reshape(COUNT, -1), key: LABELS.tolist()}))
        files[file] = [[file, calculate_md5(folder / file)]]
    names = [f"class {index}" for index in range(SOURCES[name].classes)]
    (folder / "names").write_bytes(pickle.dumps({"names": names}))
    patch.setattr(kind, "train_list", files["train"])
    patch.setattr(kind, "test_list", files["test"])
    patch.setattr(kind, "meta", {"filename": "names", "key": "names", "md5": calculate_md5(folder / "names")})
    return images


def write_cifar100(root, patch):
    return write_cifar(root, patch, "CIFAR100")


def write_svhn(root, patch):
    root.mkdir(exist_ok=True)
    files = {}
    for part in ("train", "test"):
        images = pixels()
        # House number 0 is labelled 10.
        savemat(
            root / f"{part}.mat", {"X": images.transpose(1, 2, 3, 0), "y": np.where(LABELS, 1, 10)[:, None]}
        )
        files[part] = ["", f"{part}.mat", calculate_md5(root / f"{part}.mat")]
    patch.setattr(tv.SVHN, "split_list", files)
    return images.transpose(0, 3, 1, 2)


def write_stl(root, patch):
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        images = pixels(side=96).transpose(0, 3, 1, 2)
        (folder / f"{part}_X.bin").write_bytes(np.ascontiguousarray(images.transpose(0, 1, 3, 2)).tobytes())
        (folder / f"{part}_y.bin").write_bytes((LABELS + 1).astype(np.uint8).tobytes())
        files = [[f"{part}_{each}.bin", calculate_md5(folder / f"{part}_{each}.bin")] for each in "Xy"]
        patch.setattr(tv.STL10, f"{part}_list", files)
    return images


def write_flowers(root, patch):
    folder = root / "flowers-102"
    for index in range(3 * COUNT):
        photo(folder / "jpg" / f"image_{index + 1:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.tile(LABELS, 3) + 1})
    ids = np.arange(1, 3 * COUNT + 1).reshape(3, COUNT)
    savemat(folder / "setid.mat", dict(zip(("trnid", "valid", "tstid"), ids, strict=True)))
    files = {each: (f"{name}.mat", calculate_md5(folder / f"{name}.mat"))
             for each, name in (("label", "imagelabels"), ("setid", "setid"))}  # fmt: skip
    patch.setattr(tv.Flowers102, "_file_dict", {**tv.Flowers102._file_dict, **files})


def write_food(root, patch):
    for part in ("train", "test"):
        listed = {}
        for name in ("apple_pie", "waffles"):
            listed[name] = [f"{name}/{part}{index}" for index in range(COUNT // 2)]
            for each in listed[name]:
                photo(root / "food-101" / "images" / f"{each}.jpg")
        (root / "food-101" / "meta").mkdir(exist_ok=True)
        (root / "food-101" / "meta" / f"{part}.json").write_text(json.dumps(listed))


def write_pets(root, patch):
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    for part in ("trainval", "test"):
        lines = []
        for index, label in enumerate(LABELS):
            name = f"{('Beagle', 'Bengal')[label]}_{part}{index}"
            photo(folder / "images" / f"{name}.jpg")
            lines.append(f"{name} {label + 1} {label + 1} 1")
        (folder / "annotations" / f"{part}.txt").write_text("\n".join(lines))


def write_places(root, patch):
    root.mkdir(exist_ok=True)
    lists = {}
    for part, split, folder in (("train", "train-standard", "data_256_standard"), ("val", "val", "val_256")):
        lines = [f"/{part}{index}.jpg {label}" for index, label in enumerate(LABELS)]
        for index in range(COUNT):
            photo(root / folder / f"{part}{index}.jpg")
        (root / f"{part}.txt").write_text("\n".join(lines))
        lists[split] = (f"{part}.txt", calculate_md5(root / f"{part}.txt"))
    (root / "categories.txt").write_text("\n".join(f"/c/{index:03d} {index}" for index in range(365)))
    patch.setattr(tv.Places365, "_FILE_LIST_META", lists)
    patch.setattr(
        tv.Places365, "_CATEGORIES_META", ("categories.txt", calculate_md5(root / "categories.txt"))
    )


def write_sun(root, patch):
    names = ["a/abbey", "z/zoo", *(f"m/{index}" for index in range(395))]
    for index, label in enumerate(LABELS):
        photo(root / "SUN397" / names[label] / f"sun_{index:02d}.jpg")
    (root / "SUN397" / "ClassName.txt").write_text("\n".join(f"/{name}" for name in names))


WRITERS = {
    "MNIST": write_mnist, "FashionMNIST": write_fashion, "CIFAR10": write_cifar, "CIFAR100": write_cifar100,
    "SVHN": write_svhn, "STL10": write_stl, "Flowers102": write_flowers, "Food101": write_food,
    "OxfordIIITPet": write_pets, "Places365": write_places, "SUN397": write_sun,
}  # fmt: skip
PHOTOS = [name for name, source in SOURCES.items() if source.layout == "files"]


@pytest.fixture
def small(monkeypatch):
    for name, source in SOURCES.items():
        monkeypatch.setitem(SOURCES, name, source._replace(sizes=dict.fromkeys(source.sizes, COUNT)))
    return monkeypatch


def test_table_and_classes_agree():
    assert set(SOURCES) == set(WRITERS)
    for name, source in SOURCES.items():
        data = getattr(data_room, name)()
        assert (data.name, data.num_classes, data.input_shape) == (name, source.classes, source.shape)
        assert len(data.class_names) == source.classes
        assert len(data.mean) == len(data.std) == source.shape[0]


@pytest.mark.parametrize("name", WRITERS)
def test_every_set_reads_its_own_format(tmp_path, small, name):
    expected = WRITERS[name](tmp_path, small)
    data = getattr(data_room, name)(root=str(tmp_path), val_fraction=0.2, num_workers=0)
    sizes = [len(data._pool(part)) for part in ("train", "val", "test")]
    if name == "SUN397":  # no published parts: a fifth is the test part, a fifth of the rest validation
        assert sizes == [12, 4, 4]
    else:
        assert sizes == ([20, 20, 20] if name == "Flowers102" else [16, 4, 20])
    x, y = next(iter(data.test_dataloader()))
    assert x.shape[1:] == data.input_shape
    assert set(y.tolist()) == {0, 1}
    assert set(data._pool("train").labels.tolist()) == {0, 1}
    if expected is not None:
        np.testing.assert_array_equal(data._pool("test").images.numpy(), expected)
        np.testing.assert_array_equal(data._pool("test").labels.numpy(), LABELS)
    assert len(data.class_names) == data.num_classes or name in ("OxfordIIITPet", "Food101")


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_set_is_said_in_one_sentence(tmp_path, name):
    with pytest.raises(
        FileNotFoundError, match=rf"^{name} \(t\w+\) under .* is missing or damaged.*download=True"
    ) as e:
        getattr(data_room, name)(root=str(tmp_path / "none")).setup("test")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", WRITERS)
def test_a_set_that_is_not_whole_is_refused(tmp_path, small, name):
    WRITERS[name](tmp_path, small)
    biggest = sorted(p for p in tmp_path.rglob("*") if p.suffix == ".jpg" or "images-idx3" in p.name)
    if not biggest:  # sets with checksums
        biggest = sorted(tmp_path.rglob("t*"), key=lambda p: -p.stat().st_size if p.is_file() else 0)
        biggest = [p for p in biggest if p.is_file()][:2]
    for path in biggest:
        if path.suffix == ".jpg":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        FileNotFoundError, match=rf"^{name} .*(missing or damaged|incomplete|has \d+ images instead)"
    ):
        getattr(data_room, name)(root=str(tmp_path)).setup()


@pytest.mark.parametrize("name", PHOTOS)
def test_one_photograph_less_is_noticed(tmp_path, small, name):
    WRITERS[name](tmp_path, small)
    sorted(tmp_path.rglob("*.jpg"))[0].unlink()
    with pytest.raises(FileNotFoundError, match=r"incomplete|has 19 images instead of 20"):
        getattr(data_room, name)(root=str(tmp_path)).setup()


def serve(patch, kind, write, failure=None):
    """Let a torchvision class "download" by ``write``; with a failure, that after the first file is there."""
    init = kind.__init__

    def fake(self, root, download=False, **arguments):
        if download:
            if not any(root.iterdir()):
                write(root, patch)
            if failure is not None:
                raise failure
        init(self, root=root, **arguments)

    patch.setattr(kind, "__init__", fake)


@pytest.mark.parametrize("name", ["CIFAR10", "Food101", "MNIST"])
def test_download_is_on_request_and_arrives_whole(tmp_path, small, name):
    serve(small, getattr(tv, name), WRITERS[name])
    kind, root = getattr(data_room, name), tmp_path / "data"
    with pytest.raises(FileNotFoundError):
        kind(root=str(root)).prepare_data() or kind(root=str(root)).setup()
    assert not root.exists()
    kind(root=str(root), download=True, image_size=8).prepare_data()
    assert not list(root.glob(".incoming*"))
    kind(root=str(root), image_size=8).setup()


@pytest.mark.parametrize(
    "failure",
    [
        URLError("Name or service not known"),
        RuntimeError("File not found or corrupted."),
        OSError("disk full"),
    ],
)
@pytest.mark.parametrize("name", ["SVHN", "Food101"])
def test_a_failed_download_is_said_in_words_and_leaves_nothing(tmp_path, small, name, failure):
    serve(small, getattr(tv, name), WRITERS[name], failure)
    data = getattr(data_room, name)(root=str(tmp_path / "data"), download=True)
    with pytest.raises(
        RuntimeError, match=rf"^{name} could not be downloaded to .*nothing was kept: check the network"
    ):
        data.prepare_data()
    assert list((tmp_path / "data").iterdir()) == []


def test_a_download_replaces_what_an_interrupted_one_left(tmp_path, small):
    root = tmp_path / "data"
    write_food(root, small)
    whole = len(list(root.rglob("*.jpg")))
    shutil.rmtree(root / "food-101" / "images" / "waffles")
    (root / ".incoming-Food101" / "food-101").mkdir(parents=True)  # killed in mid-download
    serve(small, tv.Food101, write_food)
    data_room.Food101(root=str(root), download=True).setup()
    assert len(list(root.rglob("*.jpg"))) == whole
    assert [each.name for each in root.iterdir()] == ["food-101"]


def test_photographs_come_through_workers_and_equal_those_on_the_device(tmp_path, small):
    write_pets(tmp_path, small)
    options = {"root": str(tmp_path), "image_size": 24, "augment": True, "batch_size": 6}
    workers = data_room.OxfordIIITPet(loader="workers", num_workers=2, **options).train_dataloader()
    device = data_room.OxfordIIITPet(loader="device", **options).train_dataloader()
    for (x, y), (other_x, other_y) in zip(workers, device, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)
