"""What is measured of a network, and statistics estimated anew."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from tunnel_lightning.analysis.ablate.evaluate import ESTIMATED, KEPT, Bench, Seen, rank_of, values_of
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.subject import load_run_subject
from tunnel_lightning.surgery import snapshot


def rng():
    return torch.Generator().manual_seed(0)


def reference_ece(scores, labels, bins=15):
    e = np.exp(scores - scores.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    confidence, right = p.max(1), p.argmax(1) == labels
    edges, total = np.linspace(0, 1, bins + 1), 0.0
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


def test_calibration_against_numpy():
    scores = 3 * torch.randn(500, 7, generator=rng())
    labels = torch.randint(7, (500,), generator=rng())
    seen = Seen(scores, scores)
    found = values_of(seen, seen, labels)
    assert found["ece"].value == pytest.approx(
        reference_ece(scores.double().numpy(), labels.numpy()), abs=1e-6
    )
    p = scores.double().log_softmax(1).numpy()
    loss = -p[np.arange(500), labels.numpy()]
    assert found["nll"].value == pytest.approx(loss.mean())
    assert found["nll"].se == pytest.approx(loss.std(ddof=1) / np.sqrt(500))


def test_agreement_rank_and_cka_are_with_the_intact_network():
    one, two = (torch.randn(60, 5, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    found = values_of(Seen(one, one[:, :2]), Seen(two, two), None)
    assert set(found) == {"agreement", "rank", "cka"}
    assert found["agreement"].value == (one.argmax(1) == two.argmax(1)).double().mean()
    assert found["rank"].value == 2
    assert abs(found["cka"].value) < 0.2
    assert values_of(Seen(one, two @ torch.eye(5) * 3), Seen(two, two), None)["cka"].value == pytest.approx(1)


@pytest.mark.parametrize(("size", "rank"), [((50, 8), 3), ((8, 50), 3)])
def test_rank_from_either_side(size, rank):
    n, d = size
    x = torch.randn(n, rank, generator=rng()) @ torch.randn(rank, d, generator=rng()) + 100
    assert rank_of(x) == rank
    assert rank_of(torch.full((n, d), 0.1)) == 0
    assert rank_of(torch.full((n, d), torch.nan)).isnan()


def test_a_network_that_gives_no_numbers_is_scored():
    bad, good = torch.full((20, 3), torch.nan), torch.randn(20, 3, generator=rng())
    found = values_of(Seen(bad, bad), Seen(good, good), torch.zeros(20, dtype=torch.int64))
    assert np.isnan(found["cka"].value)
    assert found["accuracy"].n == 20


@pytest.fixture
def bench(residual):
    subject = load_run_subject(residual)
    return Bench(subject, ImageSet.of(subject.data), 50, 60, torch.device("cpu"), lambda *_: None)


def test_the_final_representation_is_what_the_head_takes_in(bench):
    seen, network = bench.look(), bench.network
    assert torch.allclose(network.head(seen.final), seen.scores, atol=1e-6)
    assert seen.final.shape == (50, 16)


def test_statistics_are_those_of_training_images_and_come_back(bench):
    network, before = bench.network, snapshot(bench.network)
    momenta = [m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    x = torch.cat([x for x, _ in bench.images.batches("train", 60)])
    with torch.no_grad():
        stem = network.stem.conv(x)
    with bench.estimated(network):
        norm = network.stem.norm
        assert torch.allclose(norm.running_mean, stem.mean((0, 2, 3)), atol=1e-5)
        assert torch.allclose(norm.running_var, stem.var((0, 2, 3)), rtol=1e-4)
        assert not norm.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert [m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)] == momenta


def test_a_state_is_put_in_for_a_while(bench):
    before = snapshot(bench.network)
    zeros = {k: torch.zeros_like(v) for k, v in before.items()}
    found = bench.under(zeros)
    assert set(found) == {KEPT, ESTIMATED}
    assert not found[KEPT].scores.any()
    assert all(torch.equal(value, before[key]) for key, value in bench.network.state_dict().items())
