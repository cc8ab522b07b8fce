"""The one quiet pass: what it reads, what it leaves alone, what it says."""

import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tunnel_lightning.measures import (
    MomentMeasures,
    Moments,
    ProbeAccuracy,
    accumulate,
    first_two,
    measure,
    required_bytes,
    ridge_from_moments,
    values_of,
)
from tunnel_lightning.taps import Taps, tap


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(8, 5),
            nn.ReLU(),
            nn.Linear(5, 3),
        )


def images(n: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 6, generator=generator), torch.randint(3, (n,), generator=generator)


def batches(n: int = 50, size: int = 16) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, y = images(n)
    return list(zip(x.split(size), y.split(size), strict=True))


def ranks(tap) -> MomentMeasures:
    return MomentMeasures(tap.dim, 3, which=["rank_cov"])


def test_rows_of_every_layer_input_and_network() -> None:
    model, (x, y) = network(), images()
    rows = measure(model, tap(model, x), batches(), [lambda tap: MomentMeasures(tap.dim, 3)])
    layers = {(row.index, row.layer, row.dim, row.n) for row in rows}
    assert layers == {(0, "input", 6, 50), (1, "0", 8, 50), (2, "4", 5, 50), (3, "network", 3, 50)}
    model.eval()
    expected = (model(x).argmax(1) == y).float().mean().item()
    (accuracy,) = [row for row in rows if row.measure == "accuracy"]
    assert accuracy.value == pytest.approx(expected)
    features = model[0](x).detach().double().numpy()
    (inter,) = [r.value for r in rows if r[:1] == ("0",) and r[3:5] == ("variance_intra", "raw")]
    y = y.numpy()
    assert inter == pytest.approx(np.mean([features[y == c].var(0).sum() for c in range(3)]), rel=1e-6)


def test_taps_that_know_nothing_yet_learn_from_the_first_batch() -> None:
    model = network()
    assert [
        row.layer for row in measure(model, Taps(model), batches(), [ranks]) if row.variant != "rtol=torch"
    ] == [
        "input",
        "0",
        "4",
        "network",
    ]


def test_nothing_is_left_behind() -> None:
    model, loader = network(), DataLoader(TensorDataset(*images()), batch_size=8, shuffle=True)
    taps = tap(model, images()[0])
    model[3].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    random_states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    accumulate(model, taps, loader, [ranks])
    torch.testing.assert_close(dict(model.state_dict()), before, atol=0, rtol=0)
    assert [module.training for module in model.modules()] == flags
    assert random.getstate() == random_states[0]
    assert np.random.get_state()[1].tolist() == random_states[1]
    assert torch.equal(torch.get_rng_state(), random_states[2])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_ridge_probe_in_two_passes_and_layers_left_out() -> None:
    model = network()
    taps = tap(model, images()[0])
    train = accumulate(model, taps, batches(), [lambda tap: Moments(tap.dim, 3)], input=False)
    assert values_of({name: train[name] for name in ("0", "4")}, taps) == []
    heads = {name: ridge_from_moments(train[name][0]) for name in ("0", "4")}
    states = accumulate(
        model,
        taps,
        batches(),
        [ranks, lambda tap: ProbeAccuracy(heads[tap.name], "ridge") if tap.name in heads else None],
    )
    assert states["input"][1] is None
    rows = values_of(states, taps)
    assert [row.layer for row in rows if row.measure == "probe_accuracy"] == ["0", "4"]
    assert all(row.value > 0.3 for row in rows if row.measure == "probe_accuracy")


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda layer: layer.weight.data.fill_(torch.nan), "NaN or infinite features"),
        (lambda layer: layer.bias.data.fill_(torch.inf), "NaN or infinite features"),
        (lambda layer: layer.weight.data.zero_(), "constant features"),
    ],
)
def test_a_sick_layer_is_nan_for_itself_with_one_warning(spoil, what: str) -> None:
    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sick, self.well, self.head = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.sick(x)
            return self.head(self.well(x))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Parallel()
    taps = tap(model, images()[0])
    factories = [
        lambda tap: MomentMeasures(tap.dim, 3),
        lambda tap: ProbeAccuracy(ridge_from_moments(random_moments(tap.dim)), "online", loss=True),
    ]
    healthy = [row for row in measure(model, taps, batches(), factories) if row.layer != "sick"]
    spoil(model.sick)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = measure(model, taps, batches(), factories, where="step 120")
    assert [str(warning.message) for warning in caught] == [
        f"layer 'sick' has {what} at step 120: its values are NaN"
    ]
    assert all(np.isnan([row.value, row.se]).all() for row in rows if row.layer == "sick")
    assert len([row for row in rows if row.layer == "sick"]) == 14
    np.testing.assert_equal(
        [tuple(row) for row in rows if row.layer != "sick"], [tuple(row) for row in healthy]
    )


def random_moments(dim: int) -> Moments:
    moments = Moments(dim, 3)
    generator = torch.Generator().manual_seed(dim)
    moments.update(torch.randn(30, dim, generator=generator), torch.arange(30) % 3)
    return moments


def test_memory_is_refused_before_it_is_taken() -> None:
    model = nn.Sequential(nn.Linear(6, 50_000), nn.Linear(50_000, 3))
    taps = tap(model, images()[0])
    with pytest.raises(ValueError, match=r"needs 18\.8 GiB and memory_limit is 8\.0 GiB") as error:
        measure(model, taps, batches(), [lambda tap: Moments(tap.dim, 3)])
    for option in ("taps.pool=avg", "taps.max_features", "taps.layers", "'0' with 50000"):
        assert option in str(error.value)
    # Both of a layer's measures count, those that were left out do not.
    assert required_bytes([MomentMeasures(7, 3), None, MomentMeasures(7, 3)]) == 2 * Moments.nbytes(7, 3)


def test_dict_batches_unpack_and_context() -> None:
    model = network()
    taps = tap(model, images()[0])
    seen = []

    class Context:
        def __enter__(self) -> None:
            seen.append("in")

        def __exit__(self, *error: object) -> None:
            seen.append("out")

    plain = measure(model, taps, batches(), [ranks])
    dicts = [{"image": x, "label": y} for x, y in batches()]
    assert measure(model, taps, dicts, [ranks], context=Context) == plain
    assert seen == ["in", "out"] * len(dicts)
    turned = [(y, x) for x, y in batches()]
    assert measure(model, taps, turned, [ranks], unpack=lambda batch: (batch[1], batch[0])) == plain
    with pytest.raises(ValueError, match="pass unpack="):
        first_two(torch.zeros(3))


def test_no_batch_at_all() -> None:
    model = network()
    with pytest.raises(ValueError, match="gave no batch"):
        measure(model, Taps(model), [], [ranks])


def test_output_without_scores_has_no_network_row() -> None:
    class Wrapped(nn.Module):
        def __init__(self, wrap) -> None:
            super().__init__()
            self.body, self.wrap = network(), wrap

        def forward(self, x: torch.Tensor):
            return self.wrap(self.body(x))

    def layers(wrap, **options) -> set[str]:
        model = Wrapped(wrap)
        return {row.layer for row in measure(model, tap(model, images()[0]), batches(), [ranks], **options)}

    assert "network" in layers(lambda y: {"loss": y.mean(), "logits": y})
    assert "network" in layers(lambda y: (y, y.mean()))
    assert "network" not in layers(lambda y: y.mean(1))
    assert "network" not in layers(lambda y: y, network=False)


class Recorder:
    """An observer that keeps what it was given."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor | None]] = []

    def update(self, features, target, output) -> None:
        assert not torch.is_grad_enabled()
        self.seen.append((dict(features), target, output))

    def all_reduce(self, group=None) -> None:
        raise AssertionError("one process has nothing to reduce")


def test_observers_see_all_layers_of_a_batch_and_the_scores() -> None:
    model, (x, y) = network(), images()
    taps, observer, second = tap(model, x), Recorder(), Recorder()
    states = accumulate(model, taps, batches(), [ranks], observers=[observer, second])
    assert list(states) == ["input", "0", "4", "network"]
    assert [len(target) for _, target, _ in observer.seen] == [16, 16, 16, 2]
    assert len(second.seen) == 4
    model.eval()
    features = {
        name: torch.cat([found[name] for found, _, _ in observer.seen]) for name in observer.seen[0][0]
    }
    assert set(features) == {"input", "0", "4"}
    torch.testing.assert_close(features["input"], x)
    torch.testing.assert_close(features["0"], model[0](x).detach())
    torch.testing.assert_close(torch.cat([target for _, target, _ in observer.seen]), y)
    torch.testing.assert_close(torch.cat([output for _, _, output in observer.seen]), model(x).detach())


def test_observers_of_a_network_without_scores_and_without_pixels() -> None:
    class Trunk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: torch.Tensor):
            return self.body(x).mean(1)

    model, observer = Trunk(), Recorder()
    states = accumulate(model, tap(model, images()[0]), batches(), [], observers=[observer], input=False)
    assert states == {"body.0": [], "body.4": []}
    assert all(output is None and set(found) == {"body.0", "body.4"} for found, _, output in observer.seen)


def test_only_measured_layers_are_looked_at_and_observers_get_the_sick_ones() -> None:
    model, observer = network(), Recorder()
    model[0].weight.data.fill_(torch.nan)
    taps = tap(model, images()[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        states = accumulate(
            model,
            taps,
            batches(),
            [lambda tap: ranks(tap) if tap.name == "input" else None],
            observers=[observer],
            network=False,
        )
    assert states["0"] == [None]
    assert observer.seen[0][0]["0"].isnan().all()


def test_gram_taps_feed_observers_alone() -> None:
    model, observer = network(), Recorder()
    taps = tap(model, images()[0], pool="gram")
    with pytest.raises(
        ValueError, match=r"taps\.pool is 'gram', and Gram matrices have no features to measure"
    ):
        accumulate(model, taps, batches(), [ranks])
    states = accumulate(model, taps, batches(), [], observers=[observer])
    assert list(states) == ["0", "4", "network"]
    assert [{n: tuple(g.shape) for n, g in found.items()} for found, _, _ in observer.seen[-2:]] == [
        {"0": (16, 16), "4": (16, 16)},
        {"0": (2, 2), "4": (2, 2)},
    ]
    assert [row.layer for row in values_of(states, taps)] == ["network"]
