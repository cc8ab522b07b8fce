import numpy as np
import torch

from tunnel_lightning.data.augment import augmented


def test_crops_and_flips_as_numpy_pads_cuts_and_mirrors():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 3, 7, 9), dtype=np.uint8)
    crop, flip = rng.integers(0, 7, (12, 2)), rng.random(12) < 0.5
    result = augmented(torch.from_numpy(images), torch.from_numpy(crop), torch.from_numpy(flip), 3)
    for image, (row, column), mirror, got in zip(images, crop, flip, result.numpy(), strict=True):
        padded = np.pad(image, [(0, 0), (3, 3), (3, 3)], mode="reflect")
        expected = padded[:, row : row + 7, column : column + 9]
        if mirror:
            expected = expected[:, :, ::-1]
        np.testing.assert_array_equal(got, expected)


def test_each_of_crop_and_flip_alone():
    image = torch.arange(6).reshape(1, 1, 2, 3)
    assert augmented(image, None, torch.tensor([True]), 0).flatten().tolist() == [2, 1, 0, 5, 4, 3]
    assert torch.equal(augmented(image, torch.tensor([[1, 1]]), None, 1), image)
