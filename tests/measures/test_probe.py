"""The bank of online probes against separate linear layers, each with its own optimizer."""

import copy
import io

import pytest
import torch
from torch import nn

from tunnel_lightning.measures import ProbeBank

DIMS = {"a": 6, "b": 4, "c": 6}


def batch(seed: int, offset: float = 0.0, n: int = 32) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (n,), generator=generator)
    features = {
        name: torch.randn(n, dim, generator=generator) * 2 + y[:, None] * torch.linspace(0, 1, dim) + offset
        for name, dim in DIMS.items()
    }
    return features, y


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_equals_a_plain_loop(offset: float) -> None:
    bank = ProbeBank(DIMS, 3, lr=1e-2, momentum=0.2)
    heads = {name: nn.Linear(dim, 3, dtype=torch.float64) for name, dim in DIMS.items()}
    optimizers = {}
    for name, head in heads.items():
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        optimizers[name] = torch.optim.Adam(head.parameters(), lr=1e-2)
    moments: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for step in range(20):
        features, y = batch(step, offset)
        loss, accuracy = bank.step(features, y)
        for i, (name, x) in enumerate((name, features[name].double()) for name in DIMS):
            if step == 0:
                moments[name] = x.mean(0), x.var(0, correction=0)
            mean, var = moments[name]
            logits = heads[name]((x - mean) / (var + 1e-6 * var.mean()).sqrt())
            expected = nn.functional.cross_entropy(logits, y)
            assert loss[i].item() == pytest.approx(expected.item(), abs=2e-4 if offset else 1e-5)
            if not offset:
                assert accuracy[i].item() == pytest.approx((logits.argmax(1) == y).double().mean().item())
            optimizers[name].zero_grad()
            expected.backward()
            optimizers[name].step()
            rate = max(1 / (step + 1), 0.2)
            # Moments of the mixture: old with weight 1 - rate, batch with weight rate.
            new = (1 - rate) * mean + rate * x.mean(0)
            second = (1 - rate) * (var + (mean - new) ** 2) + rate * ((x - new) ** 2).mean(0)
            moments[name] = new, second
    for name, head in heads.items():
        mean, var = moments[name]
        scale = (var + 1e-6 * var.mean()).sqrt()
        folded = bank.head(name)
        torch.testing.assert_close(folded.weight, head.weight.detach() / scale, atol=2e-4, rtol=0)
        features, _ = batch(99, offset)
        expected = head((features[name].double() - mean) / scale).detach()
        torch.testing.assert_close(folded(features[name]), expected, atol=2e-3, rtol=0)
        torch.testing.assert_close(bank.logits(features)[name].double(), expected, atol=2e-3, rtol=0)


def test_no_random_number_is_drawn_and_heads_start_at_zero() -> None:
    state = torch.get_rng_state()
    bank = ProbeBank(DIMS, 3)
    assert all((parameter == 0).all() for parameter in bank.parameters())
    bank.step(*batch(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_network_gets_no_gradient() -> None:
    features, y = batch(0)
    watched = {name: x.clone().requires_grad_() for name, x in features.items()}
    ProbeBank(DIMS, 3).step(watched, y)
    assert all(x.grad is None for x in watched.values())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: x.index_fill(0, torch.tensor([3]), torch.nan),
        lambda x: x.index_fill(1, torch.tensor([2]), torch.inf),
        lambda x: torch.full_like(x, 0.1),
        lambda x: x * 1e30,
    ],
    ids=["nan", "inf", "constant", "overflow"],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_sick_layer_hurts_neither_others_nor_itself_for_good(spoil, first: bool) -> None:
    sick, well = ProbeBank(DIMS, 3, lr=1e-2), ProbeBank(DIMS, 3, lr=1e-2)
    for step in range(60):
        # Far from the moments a layer has before its first batch: it must not learn by those.
        features, y = batch(step, offset=1000)
        expected_loss, expected_accuracy = well.step(features, y)
        ill = step < 5 if first else 20 <= step < 25
        if ill:
            features = features | {"a": spoil(features["a"])}
        loss, accuracy = sick.step(features, y)
        assert loss[0].isnan() == accuracy[0].isnan() == ill
        assert torch.equal(loss[1:], expected_loss[1:])
        assert torch.equal(accuracy[1:], expected_accuracy[1:])
    # It goes on learning: as well as the one that was never ill, but for the batches it missed.
    assert loss[0] == pytest.approx(expected_loss[0].item(), abs=0.05)
    assert all(torch.isfinite(value).all() for value in (*sick.parameters(), *sick.buffers()))


def test_constant_column_and_single_sample() -> None:
    bank = ProbeBank({"a": 3}, 3)
    for step in range(5):
        features, y = batch(step)
        x = features["a"][:, :3].clone()
        x[:, 1] = 0.1
        loss, _ = bank.step({"a": x}, y)
        assert torch.isfinite(loss).all()
    assert torch.isfinite(bank.step({"a": x[:1]}, y[:1])[0]).all()
    assert torch.isfinite(bank.head("a").weight).all()


def test_learns_under_autocast_and_from_bfloat16() -> None:
    bank, half = ProbeBank(DIMS, 3, lr=1e-2), ProbeBank(DIMS, 3, lr=1e-2)
    for step in range(10):
        features, y = batch(step)
        features = {name: x.bfloat16() for name, x in features.items()}
        expected = bank.step({name: x.float() for name, x in features.items()}, y)
        with torch.autocast("cpu", torch.bfloat16):
            found = half.step(features, y)
        assert torch.equal(found[0], expected[0])
        assert found[0].dtype == torch.float32


def test_resumes_bitwise_through_a_weights_only_file() -> None:
    straight, first = ProbeBank(DIMS, 3), ProbeBank(DIMS, 3)
    for step in range(6):
        straight.step(*batch(step))
    for step in range(3):
        first.step(*batch(step))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = ProbeBank(DIMS, 3)
    second.load_state_dict(torch.load(file, weights_only=True))
    copied = copy.deepcopy(second)
    for bank in (second, copied):
        for step in range(3, 6):
            bank.step(*batch(step))
        for found, expected in zip(
            (*bank.parameters(), *bank.buffers()), (*straight.parameters(), *straight.buffers()), strict=True
        ):
            assert torch.equal(found, expected)


def test_wrong_use_is_said_in_words() -> None:
    bank = ProbeBank(DIMS, 3)
    with pytest.raises(KeyError, match="no features for \\['c'\\]"):
        bank.step({"a": torch.zeros(2, 6), "b": torch.zeros(2, 4)}, torch.zeros(2, dtype=torch.long))
    with pytest.raises(KeyError, match="no layer 'x'"):
        bank.head("x")
    with pytest.raises(ValueError, match="at least one layer"):
        ProbeBank({}, 3)
