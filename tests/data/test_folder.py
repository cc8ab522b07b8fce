import shutil

import numpy as np
import pytest
from PIL import Image

from tunnel_lightning.data import CINIC10, ImageFolder


def write(root, parts=("train", "test"), classes=("cat", "dog"), count=10, size=(12, 8)):
    rng = np.random.default_rng(0)
    for part in parts:
        for name in classes:
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return str(root)


def test_folders_become_classes(tmp_path):
    data = ImageFolder(write(tmp_path / "pets"))
    assert (data.name, data.class_names, data.input_shape) == ("pets", ["cat", "dog"], (3, 8, 12))
    sizes = [len(data._pool(part)) for part in ("train", "val", "test")]
    assert sizes == [18, 2, 20]
    x, y = next(iter(data.test_dataloader()))
    first = np.asarray(Image.open(tmp_path / "pets/test/cat/0.png")).transpose(2, 0, 1) / 255
    mean, std = (np.array(each)[:, None, None] for each in (data.mean, data.std))
    np.testing.assert_allclose(x[0].numpy(), (first - mean) / std, atol=1e-4)
    assert y.tolist() == [0] * 10 + [1] * 10


@pytest.mark.parametrize("validation", ["val", "valid"])
def test_an_own_validation_part_is_used(tmp_path, validation):
    data = ImageFolder(write(tmp_path, ("train", validation, "test")), image_size=8)
    assert len(data._pool("train")) == len(data._pool("val")) == len(data._pool("test")) == 20
    assert all(f"/{validation}/" in path for path in data._pool("val").images.paths)
    shutil.rmtree(tmp_path / "test")
    data = ImageFolder(str(tmp_path), image_size=8)
    assert len(data._pool("val")) == 2
    assert all(f"/{validation}/" in path for path in data._pool("test").images.paths)


def test_classes_of_a_folder(tmp_path):
    data = ImageFolder(write(tmp_path), classes=[1])
    assert all("/dog/" in path for path in data._pool("train").images.paths)


def test_wrong_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no class folders"):
        _ = ImageFolder(str(tmp_path / "none")).num_classes
    root = write(tmp_path / "lonely", ("train",))
    with pytest.raises(FileNotFoundError, match="has no test, val or valid folder"):
        ImageFolder(root).setup("test")
    root = write(tmp_path / "strange")
    (tmp_path / "strange/test/fox").mkdir()
    with pytest.raises(ValueError, match="class 'fox', which the train folder lacks"):
        ImageFolder(root).setup("test")
    (tmp_path / "strange/train/ant").mkdir()
    with pytest.raises(ValueError, match="ant holds no images"):
        ImageFolder(root).setup("fit")


def test_unreadable_images_are_named(tmp_path):
    data = ImageFolder(write(tmp_path), image_size=8)
    (tmp_path / "test/dog/3.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"Cannot read the image .*dog/3\.png"):
        data.test_dataloader()
    (tmp_path / "train/cat/0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"Cannot read the image .*cat/0\.png"):
        _ = ImageFolder(str(tmp_path)).input_shape


def test_cinic10_is_a_folder_with_published_constants(tmp_path):
    data = CINIC10(write(tmp_path, ("train", "valid", "test"), size=(32, 32)))
    assert (data.name, data.input_shape, data.mean) == ("CINIC10", (3, 32, 32), (0.4789, 0.4723, 0.4305))
