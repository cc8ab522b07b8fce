"""Two gloo processes equal one: moments, the metric, the pass over the data, observers, the bank of probes."""

from itertools import chain

import pytest
import torch
from torch import nn
from two_processes import one_and_two

from tunnel_lightning.measures import (
    Agreement,
    LinearHead,
    MomentMeasures,
    Moments,
    MomentsMetric,
    ProbeBank,
    accumulate,
)
from tunnel_lightning.taps import Taps

STEPS = 8


def images(n: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 10, generator=generator) @ torch.randn(10, 10, generator=generator) + 100
    return x, torch.randint(4, (n,), generator=generator)


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 4))


def head(dim: int) -> LinearHead:
    weight = torch.randn(4, dim, generator=torch.Generator().manual_seed(dim)).double()
    return LinearHead(weight, -100 * weight.sum(1))  # the images have mean 100


def run(rank: int, world: int) -> dict:
    x, y = images()
    mine = slice(rank, None, world)
    moments = Moments(10, 4)
    moments.update(x[mine], y[mine])
    if world > 1:
        moments.all_reduce()
    metric = MomentsMetric(10, 4)
    metric.update(x[mine], y[mine])

    network = model()
    parts = list(zip(x[mine].split(32), y[mine].split(32), strict=True))
    factories = [lambda tap: MomentMeasures(tap.dim, 4)]
    agreements = [Agreement({"input": head(10), "0": head(6)}) for _ in range(2)]
    states = accumulate(network, Taps(network), parts, factories, observers=agreements[:1])
    # The second process gets no image at all, and its taps know the layers from before.
    taps = Taps(network)
    taps.dry_run(x[:2])
    lone = accumulate(network, taps, [] if rank else [(x, y)], factories, observers=agreements[1:])

    bank = ProbeBank({"x": 10, "sick": 4}, 4, lr=1e-2)
    results = []
    for step in range(STEPS):
        share = slice(step * 30, (step + 1) * 30)
        # Unequal shares: a mean over processes would not be the mean over the batch.
        cut = [slice(0, 30)] if world == 1 else [slice(0, 20), slice(20, 30)]
        a, b = x[share][cut[rank]], y[share][cut[rank]]
        sick = a[:, :4].clone()
        if step == 3 and rank == world - 1:
            sick[-1] = torch.nan
        results.append(torch.stack(bank.step({"x": a, "sick": sick}, b)))
    return {
        "moments": moments.state_dict(),
        "metric": metric.compute(),
        "values": {name: [m.compute() for m in found] for name, found in states.items()},
        "lone": {name: [m.compute() for m in found] for name, found in lone.items()},
        "agreements": [agreement.values() for agreement in agreements],
        "bank": [*(p.detach() for p in bank.parameters()), *bank.buffers()],
        "steps": torch.stack(results),
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> tuple[dict, list[dict]]:
    return one_and_two(run, tmp_path_factory.mktemp("gloo"))


def test_sums(results) -> None:
    one, two = results
    for found in two:
        for name, state in one["moments"].items():
            if not state.is_floating_point():
                assert torch.equal(found["moments"][name], state)
            else:
                # The scatter is a float32 product, rounded differently where the rows of a block differ.
                relative = 1e-6 if name == "second" else 1e-12
                torch.testing.assert_close(found["moments"][name], state, rtol=relative, atol=1e-12)


def test_values(results) -> None:
    one, two = results
    for found in two:
        assert list(found["values"]) == ["input", "0", "network"]
        for kind in ("values", "lone"):
            for name, measures in one[kind].items():
                for value, expected in zip(
                    *(list(chain(*part)) for part in (found[kind][name], measures)), strict=True
                ):
                    assert value[:2] == expected[:2]
                    assert value.n == expected.n == 300
                    exact = value.measure in ("rank_cov", "accuracy")
                    assert value.value == pytest.approx(expected.value, rel=0 if exact else 1e-5)
        for name, value in one["metric"].items():
            assert found["metric"][name].item() == pytest.approx(value.item(), rel=1e-5)


def test_observers(results) -> None:
    one, two = results
    for found in two:
        assert found["agreements"] == one["agreements"]
        for values in found["agreements"]:
            assert [value.n for value in values.values()] == [300, 300]
            assert 0 < values["input"].value < 1


def test_probes_are_equal_on_both_ranks_and_those_of_the_whole_batch(results) -> None:
    one, two = results
    for a, b in zip(two[0]["bank"], two[1]["bank"], strict=True):
        assert torch.equal(a, b)
    assert torch.equal(two[0]["steps"].nan_to_num(-1), two[1]["steps"].nan_to_num(-1))
    for found, expected in zip(two[0]["bank"], one["bank"], strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    (loss, accuracy), (expected_loss, expected_accuracy) = (r["steps"].unbind(1) for r in (two[0], one))
    torch.testing.assert_close(loss, expected_loss, atol=1e-4, rtol=0, equal_nan=True)
    # Rounding may decide a close call between two classes: one sample of thirty.
    torch.testing.assert_close(accuracy, expected_accuracy, atol=1.1 / 30, rtol=0, equal_nan=True)
    assert one["steps"][3, :, 1].isnan().all()
    assert one["steps"].isnan().sum() == 2
