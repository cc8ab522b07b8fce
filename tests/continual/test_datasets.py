"""What a strategy reads: training images augmented, all others as they are, from memory, files and workers."""

import pickle

import numpy as np
import pytest
import torch
from continual.toys import pictures_in, stream, whole
from torch.utils.data import DataLoader

from tunnel_lightning.continual.scenarios import Scenario, make_stream
from tunnel_lightning.data import ImageFolder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return pictures_in(tmp_path_factory.mktemp("set"))


def crops(image, pad, flip):
    """Every picture that augmentation may make of one."""
    edged = torch.nn.functional.pad(image[None], [pad] * 4, mode="reflect")[0]
    height, width = image.shape[1:]
    cut = [
        edged[:, row : row + height, column : column + width]
        for row in range(2 * pad + 1)
        for column in range(2 * pad + 1)
    ]
    return torch.stack(cut + [each.flip(2) for each in cut] * flip)


@pytest.mark.parametrize("flip", [True, False])
def test_training_images_are_cropped_and_flipped_anew_each_time(pictures, flip):
    made = make_stream(pictures(augment=True, flip=flip), Scenario(tasks=2))
    dataset = made.benchmark.train_stream[1].dataset
    possible = crops(dataset.eval()[3][0], pad=1, flip=flip)
    seen = {int((possible == dataset[3][0]).flatten(1).all(1).int().argmax()) for _ in range(400)}
    assert all((possible == dataset[3][0]).flatten(1).all(1).any() for _ in range(20))
    assert seen == set(range(len(possible)))


@pytest.mark.parametrize("kind", ["class_incremental", "rotated"])
def test_what_is_measured_and_tested_is_not_augmented(pictures, kind):
    plain, augmented = (make_stream(pictures(augment=each), Scenario(kind, 2)) for each in (False, True))
    for mine, own in zip(augmented.tasks, plain.tasks, strict=True):
        assert torch.equal(mine.train.x, own.train.x)
        assert torch.equal(mine.test.x, own.test.x)
    for part in ("train", "test"):
        mine, own = (
            getattr(each.benchmark, f"{part}_stream")[0].dataset.eval() for each in (augmented, plain)
        )
        assert torch.equal(whole(mine)[0], whole(own)[0])
    for mine, own in zip(augmented.benchmark.test_stream, plain.benchmark.test_stream, strict=True):
        assert torch.equal(whole(mine.dataset)[0], whole(own.dataset)[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_who_restores_torchs_random_state_gets_the_same_crops(pictures, workers):
    dataset = make_stream(pictures(augment=True), Scenario(tasks=1)).benchmark.train_stream[0].dataset

    def epoch():
        return torch.cat([x for x, *_ in DataLoader(dataset, 8, shuffle=True, num_workers=workers)])

    state = torch.get_rng_state()
    first, second = epoch(), epoch()
    torch.set_rng_state(state)
    assert torch.equal(epoch(), first)
    assert not torch.equal(first, second)


def test_the_crop_comes_before_the_permutation(pictures):
    made = make_stream(pictures(augment=True), Scenario("permuted", 2))
    plain, permuted = (made.benchmark.train_stream[at].dataset for at in (0, 1))
    possible = crops(plain.eval()[0][0], pad=1, flip=True)
    before, after = whole(plain.eval())[0].flatten(2), whole(permuted.eval())[0].flatten(2)
    order = (after[0].T[:, None] == before[0].T[None]).all(2).int().argmax(1)
    for _ in range(10):
        x = torch.empty(3, 48)
        x[:, order] = permuted[0][0].flatten(1)
        assert (possible == x.view(3, 6, 8)).flatten(1).all(1).any()


# Files and workers --------------------------------------------------------------------------------------------


def test_image_files_are_read_when_they_are_needed(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / part / name).mkdir(parents=True)
            for at in range(6):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{at}.png")
    options = {"image_size": 8, "val_fraction": 0.2}
    files = ImageFolder(str(tmp_path), loader="workers", num_workers=0, **options)
    memory = ImageFolder(str(tmp_path), loader="device", **options)
    scenario = Scenario(tasks=[["bee"], ["ant"]])
    lazy, held = make_stream(files, scenario), make_stream(memory, scenario)
    for mine, own in zip(lazy.benchmark.train_stream, held.benchmark.train_stream, strict=True):
        assert torch.equal(whole(mine.dataset)[0], whole(own.dataset)[0])
    assert lazy.tasks[0].class_names == ("bee",)
    for path in (tmp_path / "train" / "bee").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="is missing"):
        lazy.benchmark.train_stream[0].dataset[0]


@pytest.mark.parametrize("kind", ["class_incremental", "task_incremental", "permuted", "rotated"])
def test_a_data_set_goes_through_pickle_and_workers(kind):
    dataset = stream(kind, 2).benchmark.train_stream[1].dataset
    x, y = whole(dataset)
    copied = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(whole(copied)[0], x)
    batches = list(DataLoader(dataset, 5, num_workers=2))
    assert torch.equal(torch.cat([batch[0] for batch in batches]), x)
    assert torch.equal(torch.cat([batch[1] for batch in batches]), y)
