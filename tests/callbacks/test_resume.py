"""The second promise: a resumed run equals the uninterrupted one."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from toys import Data, Images, OtherData

from tunnel_lightning.callbacks import LayerMonitor, RunFolder, Schedule, TransferOptions
from tunnel_lightning.callbacks.run_folder import drop_events, prepare_resume, random_state, set_random_state
from tunnel_lightning.data import DeviceLoader
from tunnel_lightning.runs import ProfileTable


def callbacks(folder, schedule):
    monitor = LayerMonitor(profile=schedule, transfer=TransferOptions([OtherData()]))
    checkpoint = ModelCheckpoint(folder / "checkpoints", save_last=True, save_on_train_epoch_end=True)
    return [monitor, RunFolder(folder, config="seed_everything: 7\n"), checkpoint]


def table(folder):
    return [row._replace(run_id="") for row in ProfileTable(folder / "profile.csv").rows]


def assert_same_rows(first, second):
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert a[:10] == b[:10]
        assert torch.equal(torch.tensor(a[10:]).nan_to_num(-1), torch.tensor(b[10:]).nan_to_num(-1)), (a, b)


@pytest.mark.parametrize("schedule", [Schedule(), Schedule(steps=[3, 13], every_n_epochs=0)])
def test_two_and_two_epochs_equal_four(train, tmp_path, schedule):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = {"enable_checkpointing": True}
    trainer, straight = train(callbacks(whole, schedule), epochs=4, **options)
    train(callbacks(parts, schedule), epochs=4, limit_train_batches=1.0, max_steps=10, **options)
    checkpoint = prepare_resume(parts)
    resumed = callbacks(parts, schedule)
    torch.rand(100)  # whatever state the new process is in
    trainer2, again = train(resumed, epochs=4, ckpt_path=checkpoint, weights_only=True, **options)
    assert trainer2.global_step == trainer.global_step == 20
    for key, value in straight.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    bank = resumed[0].bundle[0].bank
    assert bank is not None
    reference = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)
    found = torch.load(parts / "checkpoints" / "last.ckpt", weights_only=True)
    probes = [state["callbacks"]["LayerMonitor"]["OnlineProbes"]["bank"] for state in (reference, found)]
    assert_same_tree(*probes)
    # the run that stopped at step 10 profiled there: training ended for it
    rows = [row for row in table(parts) if schedule.every_n_epochs or row.step != 10]
    kept = list(table(whole))
    if not schedule.every_n_epochs:
        rows = [row for row in rows if row.measure != "weight_change" or row.step < 10]
        kept = [row for row in kept if row.measure != "weight_change" or row.step < 10]
    assert_same_rows(kept, rows)


def assert_same_tree(first, second):
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same_tree(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        for a, b in zip(first, second, strict=True):
            assert_same_tree(a, b)
    else:
        assert first == second


def test_a_missing_checkpoint_is_refused_and_nothing_is_changed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.yaml"):
        prepare_resume(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(FileNotFoundError, match=r"last\.ckpt"):
        prepare_resume(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_mid_epoch_checkpoint_with_a_plain_loader_is_refused(train, tmp_path):
    callbacks_ = [
        RunFolder(tmp_path / "run", config="x: 1\n"),
        ModelCheckpoint(tmp_path / "run" / "checkpoints", save_last=True, every_n_train_steps=3),
    ]
    train(callbacks_, epochs=1, max_steps=3, enable_checkpointing=True)
    with pytest.raises(ValueError, match="can't go on from there"):
        prepare_resume(Path(tmp_path / "run"))


class Resident(Data):
    """The same clusters through the loader that keeps its place."""

    def train_dataloader(self):
        images = Images(160, 0)
        pixels = (images.x * 40 + 128).clamp(0, 255).to(torch.uint8)
        return DeviceLoader(pixels, images.y, 32, [0.5], [0.25], shuffle=True, pad=1, flip=True)


@pytest.mark.parametrize("stop", [7, 9])
def test_mid_epoch_with_the_resident_loader_equals_uninterrupted(train, tmp_path, stop):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    schedule = Schedule(steps=[3, 8], every_n_epochs=1)
    options = {"enable_checkpointing": True, "epochs": 4}

    def fresh(folder):
        monitor, keep, end = callbacks(folder, schedule)
        now = ModelCheckpoint(
            folder / "checkpoints", "last", every_n_train_steps=stop, enable_version_counter=False
        )
        return [monitor, keep, now] if folder == parts else [monitor, keep, end]

    _, straight = train(fresh(whole), data=Resident(), **options)
    train(fresh(parts), data=Resident(), max_steps=stop, **options)
    checkpoint = prepare_resume(parts)
    torch.rand(100)
    _, again = train(fresh(parts), data=Resident(), ckpt_path=checkpoint, weights_only=True, **options)
    for key, value in straight.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    # the first part ended at `stop` and profiled there; the change of weights is counted from there
    expected = [row for row in table(whole) if row.measure != "weight_change"]
    found = [row for row in table(parts) if row.measure != "weight_change" and row.step != stop]
    assert_same_rows(expected, found)


def test_random_states_come_back():
    torch.rand(3), np.random.rand(3), random.random()
    state = random_state()
    first = torch.rand(5).tolist(), np.random.randn(5).tolist(), random.gauss(0, 1)
    set_random_state(state)
    assert (torch.rand(5).tolist(), np.random.randn(5).tolist(), random.gauss(0, 1)) == first


def test_only_events_after_the_checkpoint_are_dropped(tmp_path):
    writer = SummaryWriter(tmp_path)
    for step in range(10):
        writer.add_scalar("a", step * 1.0, step)
    writer.close()
    (path,) = tmp_path.iterdir()
    assert drop_events(path, 6) == 3
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("a")] == [(step, float(step)) for step in range(7)]
    assert drop_events(path, 6) == 0
    assert list(tmp_path.iterdir()) == [path]


def test_weights_without_a_training_are_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text("seed_everything: 7\n")
    torch.save({"state_dict": {}, "global_step": 3}, tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match=r"last\.ckpt holds weights alone, as `trim` writes them"):
        prepare_resume(tmp_path)
