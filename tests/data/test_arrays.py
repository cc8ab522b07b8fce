import numpy as np
import pytest
import torch

from tunnel_lightning.data import Arrays


def write(path, drop=(), **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "train_images": rng.integers(0, 256, (40, 8, 10, 3), dtype=np.uint8),
        "train_labels": np.arange(40) % 4,
        "test_images": rng.integers(0, 256, (12, 8, 10, 3), dtype=np.uint8),
        "test_labels": np.arange(12) % 4,
        "class_names": np.array(["a", "b", "c", "d"]),
        **changes,
    }
    np.savez(path, **{key: value for key, value in arrays.items() if key not in drop})
    return arrays


def test_colour_images_and_names(tmp_path):
    arrays = write(tmp_path / "some-set.npz")
    data = Arrays(str(tmp_path / "some-set.npz"))
    assert (data.name, data.class_names, data.input_shape) == ("some-set", list("abcd"), (3, 8, 10))
    pool = data._pool("test")
    np.testing.assert_array_equal(pool.images.numpy(), arrays["test_images"].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(pool.labels.numpy(), arrays["test_labels"])
    assert pool.labels.dtype == torch.int64
    assert len(data._pool("train")) + len(data._pool("val")) == 40
    assert not Arrays(str(tmp_path / "some-set.npz"), flip=False, augment=True).train_dataloader().flip


@pytest.mark.parametrize("shape", [(8, 10), (8, 10, 1)])
def test_grey_images_without_names(tmp_path, shape):
    images = np.full((40, *shape), 9, np.uint8)
    write(tmp_path / "grey.npz", drop=["class_names"], train_images=images, test_images=images[:12])
    data = Arrays(str(tmp_path / "grey.npz"))
    assert (data.num_classes, data.input_shape, data.class_names) == (4, (1, 8, 10), list("0123"))
    assert next(iter(data.test_dataloader()))[0].shape == (12, 1, 8, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": np.zeros((40, 8, 8, 3), np.float32)}, "train_images must be uint8 .* got float32"),
        (
            {"train_images": np.zeros((40, 3, 8, 8), np.uint8)},
            r"train_images must be .* got uint8 \[40, 3, 8, 8\]",
        ),
        ({"test_images": np.zeros((12, 9, 9, 3), np.uint8)}, r"test_images are \[9, 9, 3\]"),
        ({"train_labels": np.zeros(39, np.int64)}, "holds 40 train_images, but 39 train_labels"),
        ({"train_labels": np.zeros((40, 2), np.int64)}, "train_labels must be whole numbers"),
        ({"test_labels": np.zeros(12)}, "test_labels must be whole numbers"),
        ({"test_labels": np.full(12, 4)}, "test labels run from 4 to 4"),
        ({"class_names": np.array([object()])}, "no .npz file of plain arrays"),
    ],
)
def test_wrong_arrays_are_refused_in_words(tmp_path, changes, message):
    write(tmp_path / "wrong.npz", **changes)
    with pytest.raises(ValueError, match=message) as raised:
        Arrays(str(tmp_path / "wrong.npz")).setup()
    assert "wrong" in str(raised.value)


@pytest.mark.parametrize("key", ["train_images", "train_labels", "test_images", "test_labels"])
def test_missing_keys_are_named(tmp_path, key):
    write(tmp_path / "part.npz", drop=[key])
    with pytest.raises(ValueError, match=f"part.npz has no array '{key}'; it holds "):
        Arrays(str(tmp_path / "part.npz")).setup()
    if key == "train_images":
        with pytest.raises(ValueError, match=f"has no array '{key}'"):
            _ = Arrays(str(tmp_path / "part.npz")).input_shape


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*gone\.npz"):
        _ = Arrays(str(tmp_path / "gone.npz")).num_classes
    write(tmp_path / "cut.npz")
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("nothing of the kind")
    for name in ("cut.npz", "text.npz"):
        with pytest.raises(ValueError, match=f"{name} is no .npz file of plain arrays, or a damaged one"):
            Arrays(str(tmp_path / name)).setup()
