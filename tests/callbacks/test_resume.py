"""The second promise: a resumed run equals the uninterrupted one."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from toys import OtherData

from tunnel_lightning.callbacks import LayerMonitor, RunFolder, Schedule, TransferOptions
from tunnel_lightning.callbacks.run_folder import prepare_resume
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
