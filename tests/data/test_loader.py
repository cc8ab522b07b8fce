import random

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from tunnel_lightning.data.images import Files, Pool
from tunnel_lightning.data.loader import DeviceLoader, WorkerLoader


def coded(count, channels=1, side=4):
    """Images that say which they are: every pixel is the image's number."""
    return torch.arange(count, dtype=torch.uint8)[:, None, None, None].repeat(1, channels, side, side)


def make(count=50, batch_size=8, **options):
    options = {"shuffle": True, "seed": 3, **options}
    return DeviceLoader(coded(count), torch.arange(count), batch_size, [0.0], [1 / 255], **options)


def numbers(loader):
    return [y.tolist() for _, y in loader]


def noise(count=40, side=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def test_batches_are_normalised_and_belong_to_their_labels():
    images = noise()
    loader = DeviceLoader(images, torch.arange(40), 16, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7], shuffle=True, pad=0)
    for x, y in loader:
        expected = (images[y].double() / 255 - torch.tensor([0.1, 0.2, 0.3])[:, None, None].double()) / (
            torch.tensor([0.5, 0.6, 0.7])[:, None, None].double()
        )
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.double(), expected, rtol=1e-5, atol=1e-5)


def test_epochs_differ_and_follow_from_the_seed_alone():
    first, second = make(), make()
    epochs = [numbers(first) for _ in range(3)]
    torch.manual_seed(99)
    assert epochs == [numbers(second) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs != [numbers(make(seed=4)) for _ in range(3)]
    third = make()
    third.set_epoch(2)
    assert numbers(third) == epochs[2]


@pytest.mark.parametrize("workers", [None, 0, 2])
def test_no_global_random_state_is_touched(workers):
    if workers is None:
        loader = DeviceLoader(
            noise(), torch.arange(40), 8, [0.5] * 3, [0.5] * 3, shuffle=True, pad=2, flip=True
        )
    else:
        pool = Pool(noise(), torch.arange(40))
        loader = WorkerLoader(
            pool, (3, 8, 8), 8, [0.5] * 3, [0.5] * 3, workers, shuffle=True, pad=2, flip=True
        )
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    list(loader)
    list(loader.fixed(10))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()


def test_training_drops_the_last_batch_that_is_not_full_and_evaluation_none():
    assert [len(batch) for batch in numbers(make(50, 8))] == [8] * 6
    assert len(make(50, 8)) == 6
    assert [len(batch) for batch in numbers(make(5, 8))] == [5]
    assert [len(batch) for batch in numbers(make(50, 8, shuffle=False))] == [8] * 6 + [2]
    assert len(make(50, 8, shuffle=False)) == 7


@pytest.mark.parametrize("world", [2, 3])
def test_shards_for_training_are_equal_and_for_evaluation_complete(world):
    train = [make(50, 4, rank=rank, world_size=world) for rank in range(world)]
    assert len({len(loader) for loader in train}) == 1
    seen = [image for loader in train for batch in numbers(loader) for image in batch]
    assert len(seen) == len(set(seen))
    evaluation = [make(50, 4, shuffle=False, rank=rank, world_size=world) for rank in range(world)]
    assert sorted(i for loader in evaluation for batch in numbers(loader) for i in batch) == list(range(50))
    measured = [make(50, 4).fixed(17, rank, world) for rank in range(world)]
    everything = sorted(i for loader in measured for batch in numbers(loader) for i in batch)
    assert everything == sorted(i for batch in numbers(make(50, 4).fixed(17)) for i in batch)


def test_two_processes_see_in_each_step_what_one_sees_cut_and_flipped_alike():
    def loader(batch_size, **shard):
        return DeviceLoader(
            noise(),
            torch.arange(40),
            batch_size,
            [0.5] * 3,
            [0.5] * 3,
            shuffle=True,
            pad=2,
            flip=True,
            **shard,
        )

    for (x, y), *halves in zip(
        loader(8), loader(4, rank=0, world_size=2), loader(4, rank=1, world_size=2), strict=True
    ):
        both_x, both_y = (torch.cat(each) for each in zip(*halves, strict=True))
        assert torch.equal(x[y.argsort()], both_x[both_y.argsort()])


def test_augmentation_shows_every_crop_and_both_sides():
    image = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4).repeat(2000, 1, 1, 1)
    loader = DeviceLoader(
        image, torch.zeros(2000, dtype=torch.int64), 2000, [0.0], [1 / 255], shuffle=True, pad=1, flip=True
    )
    assert len(torch.unique(next(iter(loader))[0], dim=0)) == 18
    ((plain, _),) = loader.fixed()
    assert len(torch.unique(plain, dim=0)) == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_give_the_same_batches_as_the_device(tmp_path, num_workers):
    images = noise()
    for index, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{index}.png")
    pool = Pool(Files([tmp_path / f"{index}.png" for index in range(40)]), torch.arange(40))
    options = {"shuffle": True, "pad": 2, "flip": True, "seed": 5}
    device = DeviceLoader(images, torch.arange(40), 12, [0.4] * 3, [0.2] * 3, **options)
    workers = WorkerLoader(pool, (3, 8, 8), 12, [0.4] * 3, [0.2] * 3, num_workers, **options)
    for _ in range(2):
        for (x, y), (other_x, other_y) in zip(device, workers, strict=True):
            assert torch.equal(x, other_x)
            assert torch.equal(y, other_y)
    for (x, _), (other_x, _) in zip(device.fixed(15), workers.fixed(15), strict=True):
        assert torch.equal(x, other_x)


def test_unreadable_image_in_a_worker_is_one_sentence(tmp_path):
    (tmp_path / "0.png").write_bytes(b"nothing")
    pool = Pool(Files([tmp_path / "0.png"]), torch.zeros(1, dtype=torch.int64))
    loader = WorkerLoader(pool, (3, 8, 8), 1, [0.5] * 3, [0.5] * 3, num_workers=1)
    with pytest.raises(ValueError, match=r"^Cannot read the image .*0\.png") as raised:
        list(loader)
    assert "Traceback" not in str(raised.value)


def test_fixed_is_evenly_spaced_repeatable_and_leaves_the_position():
    loader = make(50, 8)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    measured = loader.fixed(5)
    assert numbers(measured) == numbers(measured) == [[0, 10, 20, 30, 40]]
    assert len(measured) == 1
    assert loader.state_dict() == state
    assert sum(map(len, numbers(loader.fixed(500)))) == sum(map(len, numbers(loader.fixed()))) == 50
    with pytest.raises(ValueError, match="at least 1"):
        loader.fixed(0)


def test_fixed_in_an_order_of_ones_own():
    loader = make(50, 8)
    assert loader.numbers.tolist() == list(range(50))
    turned = loader.fixed(5, order=lambda count: torch.arange(count).flip(0))
    assert numbers(turned) == [turned.numbers.tolist()] == [[40, 30, 20, 10, 0]]
    assert loader.fixed(5).numbers.tolist() == [0, 10, 20, 30, 40]
    assert turned.fixed().numbers.tolist() == turned.numbers.tolist()
    shares = [loader.fixed(5, rank, 2, lambda count: torch.arange(count).flip(0)) for rank in (0, 1)]
    assert [numbers(share) for share in shares] == [[[40, 20, 0]], [[30, 10]]]


def test_an_iterator_that_nobody_uses_changes_nothing():
    loader, plain = make(), make()
    iter(loader), iter(loader)
    assert numbers(loader) == numbers(plain)
    iter(loader)
    assert numbers(loader) == numbers(plain)


@pytest.mark.parametrize("taken", [0, 1, 4, 6])
def test_position_is_restored(taken):
    loader, whole = make(), make()
    numbers(loader), numbers(whole)
    batches = iter(loader)
    for _ in range(taken):
        next(batches)
    state = loader.state_dict()
    rest = numbers(whole)[taken:] + numbers(whole)
    other = make()
    other.load_state_dict(state)
    iter(other)
    other.set_epoch(1 + (taken == 6))  # as Lightning says at the start of each epoch
    got = numbers(other) + numbers(other)
    # After the last batch the epoch is over: what follows is the next one, and then the one after.
    assert got[: len(rest)] == rest


def test_state_from_other_settings_is_refused_in_mid_epoch_only():
    loader = make(50, 8)
    batches = iter(loader)
    next(batches)
    with pytest.raises(ValueError, match=r"seed=3 \(now 4\), global_batch_size=8 \(now 5\)"):
        make(50, 5, seed=4).load_state_dict(loader.state_dict())
    list(batches)
    other = make(50, 5)
    other.load_state_dict(loader.state_dict())
    assert other.epoch == 1


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="uint8 images"):
        DeviceLoader(torch.zeros(4, 1, 2, 2), torch.arange(4), 2, [0.5], [0.5])
    with pytest.raises(ValueError, match="uint8 images"):
        DeviceLoader(coded(4), torch.arange(3), 2, [0.5], [0.5])
    with pytest.raises(ValueError, match="batch_size"):
        make(batch_size=0)
    with pytest.raises(ValueError, match="rank"):
        make(rank=2, world_size=2)


class Recorder(LightningModule):
    """Writes down the images of each step, and stops dead after so many."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen, self.stop_after = [], stop_after

    def training_step(self, batch, _):
        if self.stop_after is not None and len(self.seen) == self.stop_after:
            raise KeyboardInterrupt
        self.seen.append((self.current_epoch, batch[1].tolist(), batch[0].sum().item()))
        return (self.weight * batch[0].mean()).sum()

    def validation_step(self, batch, _):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(model, folder, ckpt_path=None, limit=None, validate=True, every=None):
    """Train three epochs; checkpoints after each epoch, and after every so many steps."""
    callbacks = [ModelCheckpoint(folder, "end-{epoch}", save_top_k=-1, save_on_train_epoch_end=True)]
    if every:
        callbacks.append(ModelCheckpoint(folder, "step-{step}", save_top_k=-1, every_n_train_steps=every))
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=callbacks, num_sanity_val_steps=2 if validate else 0, limit_train_batches=limit,
        val_check_interval=0.5 if validate else None,
    )  # fmt: skip
    train = make(pad=1, flip=True)
    trainer.fit(model, train, make(20, shuffle=False) if validate else None, ckpt_path=ckpt_path)
    return model.seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", [None, 4])
@pytest.mark.parametrize("validate", [False, True])
def test_resumed_in_a_trainer_the_batches_are_those_of_the_uninterrupted_run(tmp_path, limit, validate):
    whole = fit(Recorder(), tmp_path / "whole", limit=limit, validate=validate, every=1)
    length = limit or 6
    assert len(whole) == 3 * length
    assert [epoch for epoch, *_ in whole] == [e for e in range(3) for _ in range(length)]
    for step in (1, length - 1, length, length + 2, 2 * length):
        path = tmp_path / "whole" / f"step-step={step}.ckpt"
        rest = fit(Recorder(), tmp_path / f"from{step}", path, limit=limit, validate=validate)
        assert rest == whole[step:], f"from the checkpoint of step {step}"
    for epoch in (0, 1):
        path = tmp_path / "whole" / f"end-epoch={epoch}.ckpt"
        rest = fit(Recorder(), tmp_path / f"end{epoch}", path, limit=limit, validate=validate)
        assert rest == whole[(epoch + 1) * length :], f"from the checkpoint of epoch {epoch}"


@pytest.mark.filterwarnings("ignore")
def test_resumed_after_an_interruption(tmp_path):
    whole = fit(Recorder(), tmp_path / "whole")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(Recorder(stop_after=8), tmp_path / "cut", every=3)
    rest = fit(Recorder(), tmp_path / "rest", tmp_path / "cut" / "step-step=6.ckpt")
    assert rest == whole[6:]
