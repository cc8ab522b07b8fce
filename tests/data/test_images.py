import numpy as np
import pytest
import torch
from PIL import Image

from tunnel_lightning.data.images import (
    Files,
    Pool,
    channel_statistics,
    choose_per_class,
    fit,
    fit_pool,
    stratified_split,
)


def test_fit_resizes_as_pillow_does():
    rng = np.random.default_rng(0)
    smooth = np.clip(np.cumsum(rng.normal(0, 9, (40, 40)), 0) + 128, 0, 255).astype(np.uint8)
    got = fit(torch.from_numpy(smooth)[None], (1, 13, 13))[0].numpy().astype(int)
    expected = np.asarray(Image.fromarray(smooth).resize((13, 13), Image.Resampling.BILINEAR)).astype(int)
    assert abs(got - expected).max() <= 1


def test_fit_cuts_about_the_centre_and_changes_channels():
    image = torch.zeros(3, 8, 16, dtype=torch.uint8)
    image[0, :, 4:12] = 255  # the middle square is red
    assert fit(image, (3, 8, 8))[0].min() == 255
    grey = fit(image, (1, 8, 8))
    assert grey.shape == (1, 8, 8)
    assert abs(int(grey[0, 0, 0]) - round(0.299 * 255)) <= 1
    assert torch.equal(fit(grey, (3, 8, 8)), grey.expand(3, 8, 8))


def test_pool_of_files_and_of_memory_agree(tmp_path):
    pixels = torch.randint(256, (5, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for index, image in enumerate(pixels):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{index}.png")
    labels = torch.arange(5)
    files = Pool(Files([tmp_path / f"{index}.png" for index in range(5)]), labels)
    memory = Pool(pixels, labels)
    assert torch.equal(fit_pool(files, (3, 9, 7)), pixels)
    assert torch.equal(fit_pool(files, (1, 6, 6)), fit_pool(memory, (1, 6, 6)))
    some = np.array([3, 1])
    assert torch.equal(fit_pool(files.take(some), (3, 9, 7)), memory.take(some).images)
    assert memory.take(some).labels.tolist() == [3, 1]


def test_unreadable_image_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    Image.new("RGB", (64, 64)).save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    files = Files([tmp_path / "broken.png", tmp_path / "cut.jpg", tmp_path / "gone.png"])
    with pytest.raises(ValueError, match=r"Cannot read the image .*broken\.png"):
        files.read(0)
    with pytest.raises(ValueError, match=r"Cannot read the image .*cut\.jpg"):
        files.read(1)
    with pytest.raises(FileNotFoundError, match=r"gone\.png is missing"):
        files.read(2)
    with pytest.raises(ValueError, match=r"broken\.png"):
        fit_pool(Pool(files, torch.zeros(3, dtype=torch.int64)), (3, 8, 8))


def test_channel_statistics_are_those_of_numpy():
    images = np.random.default_rng(0).integers(0, 256, (50, 3, 5, 6), dtype=np.uint8)
    mean, std = channel_statistics(torch.from_numpy(images))
    np.testing.assert_allclose(mean, (images / 255).mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 2, 3)), rtol=1e-12)
    assert channel_statistics(torch.full((2, 1, 4, 4), 7, dtype=torch.uint8))[1] == [1 / 255]


def test_stratified_split_keeps_shares_and_loses_nothing():
    labels = np.repeat([0, 1, 2, 3], [100, 50, 2, 1])
    kept, cut = stratified_split(labels, 0.2, np.random.default_rng(1))
    assert np.bincount(labels[cut], minlength=4).tolist() == [20, 10, 1, 0]
    assert sorted([*kept, *cut]) == list(range(153))
    again = stratified_split(labels, 0.2, np.random.default_rng(1))
    np.testing.assert_array_equal(cut, again[1])
    assert set(cut) != set(stratified_split(labels, 0.2, np.random.default_rng(2))[1])


def test_choose_per_class_counts_and_names_the_class_that_has_too_few():
    labels = np.repeat([0, 1], [9, 3])
    chosen = choose_per_class(labels, 3, ["cat", "dog"], np.random.default_rng(0))
    assert np.bincount(labels[chosen]).tolist() == [3, 3]
    assert len(set(chosen)) == 6
    with pytest.raises(ValueError, match="'dog' has only 3"):
        choose_per_class(labels, 4, ["cat", "dog"], np.random.default_rng(0))
