"""Images and labels out of batches, repeatable batches out of loaders."""

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Sampler, SubsetRandomSampler, TensorDataset

from tunnel_lightning.callbacks.batches import first_of, fixed_batches, images_of, target_of

X, Y = torch.zeros(4, 3), torch.arange(4)


@pytest.mark.parametrize(
    ("batch", "target"),
    [
        ((X, Y), None),
        ({"image": X, "label": Y}, None),
        ((X, X, Y), 2),
        ({"a": X, "b": Y}, "b"),
        ({"a": {"b": Y}}, lambda batch: batch["a"]["b"]),
    ],
)
def test_labels_are_found(batch, target):
    assert target_of(batch, target) is Y


@pytest.mark.parametrize(
    ("batch", "target"), [((X,), None), ({"image": X}, None), ((X, Y), 5), ((X, Y), "label")]
)
def test_missing_labels_are_said(batch, target):
    with pytest.raises(ValueError, match="no labels found"):
        target_of(batch, target)


def test_images_are_found():
    assert images_of((X, Y)) is X
    assert images_of({"label": Y, "pixel_values": X}) is X
    with pytest.raises(ValueError, match="no images found"):
        images_of({"label": Y})


def test_first_loader_of_many():
    assert first_of([[X, Y], Y]) is X
    assert first_of({"a": X, "b": Y}) is X
    assert first_of([]) is None


def test_fixed_batches_are_spread_evenly_and_shared_without_doubles():
    loader = DataLoader(
        TensorDataset(torch.arange(100.0)[:, None], torch.arange(100)), batch_size=7, shuffle=True
    )
    labels = torch.cat([y for _, y in fixed_batches(loader, 10)])
    assert labels.tolist() == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]
    shares = [torch.cat([y for _, y in fixed_batches(loader, None, rank, 3)]).tolist() for rank in range(3)]
    assert sorted(label for share in shares for label in share) == list(range(100))


def test_fixed_batches_leave_the_samplers_generator_alone():
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(X, Y), shuffle=True, generator=generator)
    before = generator.get_state()
    list(fixed_batches(loader, None))
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("whole", [False, True])
def test_two_loaders_that_share_a_set_by_their_samplers_stay_apart(whole):
    data = TensorDataset(torch.arange(40.0)[:, None], torch.arange(40))
    odd = list(range(1, 40, 2))

    class Odd(Sampler):
        def __iter__(self):
            return iter(torch.tensor(odd)[torch.randperm(20)].tolist())

        def __len__(self):
            return 20

    if whole:
        loader = DataLoader(data, batch_size=7, sampler=SubsetRandomSampler(odd))
    else:
        loader = DataLoader(data, batch_sampler=BatchSampler(Odd(), 7, drop_last=False))
    assert torch.cat([y for _, y in fixed_batches(loader, None)]).tolist() == odd
