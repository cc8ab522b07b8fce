"""Streamed CKA against its formula in numpy, batch by batch; what a batch, a process or a layer may lack."""

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from tunnel_lightning.measures.functional.similarity import linear_cka
from tunnel_lightning.measures.similarity import LayerSimilarity, SimilarityMap
from tunnel_lightning.taps import Taps, TapSpec

Batches = Sequence[dict[str, torch.Tensor]]


def u_centred(x: np.ndarray) -> np.ndarray:
    """By the definition of Székely & Rizzo, from float64 features."""
    x = x.astype(np.float64)
    x = x - x.mean(0)
    x = x - x.mean(0)
    k = x @ x.T
    np.fill_diagonal(k, 0)
    n = len(k)
    k = k - k.sum(0) / (n - 2) - k.sum(1, keepdims=True) / (n - 2) + k.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(k, 0)
    return k


def hsic_of(batches: Batches) -> np.ndarray:
    """HSIC_1 of all pairs of layers in every batch ``[batches, L, L]``."""
    found = []
    for batch in batches:
        stack = np.stack([u_centred(x.double().numpy()).ravel() for x in batch.values()])
        n = len(next(iter(batch.values())))
        found.append(stack @ stack.T / (n * (n - 3)))
    return np.stack(found)


def ratio(hsic: np.ndarray) -> np.ndarray:
    root = np.sqrt(np.diagonal(hsic))
    return hsic / root / root[:, None]


def streamed(batches: Batches, **options: bool) -> LayerSimilarity:
    similarity = LayerSimilarity(**options)
    for batch in batches:
        similarity.update(batch)
    return similarity


def layers(n: int = 300, dims: Sequence[int] = (20, 500, 33), seed: int = 0) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((n, 8))
    return {
        f"layer{i}": torch.from_numpy(
            (shared @ rng.standard_normal((8, d)) + (i + 1) * rng.standard_normal((n, d)) + 10 * i).astype(
                "f4"
            )
        )
        for i, d in enumerate(dims)
    }


def cut(features: dict[str, torch.Tensor], size: int) -> list[dict[str, torch.Tensor]]:
    n = len(next(iter(features.values())))
    return [{name: x[i : i + size] for name, x in features.items()} for i in range(0, n, size)]


def shuffled(features: dict[str, torch.Tensor], passes: int) -> dict[str, torch.Tensor]:
    n = len(next(iter(features.values())))
    generator = torch.Generator().manual_seed(0)
    order = torch.cat([torch.randperm(n, generator=generator) for _ in range(passes)])
    return {name: x[order] for name, x in features.items()}


@pytest.mark.parametrize("size", [64, 10])
def test_is_the_formula_over_batches(size: int) -> None:
    batches = cut(layers(), size)
    found = streamed(batches).compute()
    assert found.names == ["layer0", "layer1", "layer2"]
    assert found.batches == len(batches)
    # The last batch of 44 weighs as much as the others.
    np.testing.assert_allclose(found.value, ratio(hsic_of(batches).mean(0)), atol=1e-7)
    assert found.value.dtype == found.se.dtype == torch.float64
    assert found.value.diagonal().tolist() == [1, 1, 1]


def test_one_batch_is_linear_cka() -> None:
    features = layers(100)
    found = streamed([features]).compute()
    for i, x in enumerate(features.values()):
        for j, y in enumerate(features.values()):
            assert found.value[i, j].item() == pytest.approx(linear_cka(x, y).item(), abs=1e-7)
    assert found.se.isnan().all()


def test_standard_error_is_that_of_the_influence_of_batches() -> None:
    batches = cut(layers(1600), 32)
    hsic = hsic_of(batches)
    mean = hsic.mean(0)
    value, own, count = ratio(mean), np.diagonal(mean), len(batches)
    each = np.diagonal(hsic, axis1=1, axis2=2) / own
    influence = value * (hsic / mean - each[:, None] / 2 - each[:, :, None] / 2)
    expected = influence.std(0, ddof=1) / np.sqrt(count)
    found = streamed(batches).compute()
    np.testing.assert_allclose(found.se, expected, rtol=1e-5, atol=1e-9)
    assert found.se.diagonal().tolist() == [0, 0, 0]
    # The jackknife knows nothing of derivatives.
    left_out = np.stack([ratio((hsic.sum(0) - h) / (count - 1)) for h in hsic])
    jackknife = np.sqrt((count - 1) * left_out.var(0))
    apart = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(found.se.numpy()[apart], jackknife[apart], rtol=0.05)


def test_standard_error_is_the_spread_over_repetitions() -> None:
    values, errors = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((480, 10))
        pair = {"x": torch.from_numpy(x), "y": torch.from_numpy(x + rng.standard_normal((480, 10)))}
        found = streamed(cut(pair, 24)).compute()
        values.append(found.value[0, 1].item())
        errors.append(found.se[0, 1].item())
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.25)


def test_depends_little_on_the_size_of_batches() -> None:
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((2000, 60))
    x = shared @ rng.standard_normal((60, 300)) + 4 * rng.standard_normal((2000, 300))
    y = shared @ rng.standard_normal((60, 500)) + 4 * rng.standard_normal((2000, 500))
    features = shuffled({"x": torch.from_numpy(x).float(), "y": torch.from_numpy(y).float()}, passes=3)
    truth = linear_cka(torch.from_numpy(x), torch.from_numpy(y)).item()
    for size, off in ((8, 0.1), (32, 0.1), (256, 0.02)):
        batches = cut(features, size)
        assert streamed(batches).compute().value[0, 1].item() == pytest.approx(truth, abs=0.015)
        biased = np.mean([linear_cka(b["x"], b["y"], unbiased=False).item() for b in batches[:30]])
        assert biased > truth + off


@pytest.mark.parametrize("size", [32, 256])
def test_independent_layers_have_nothing_in_common(size: int) -> None:
    rng = np.random.default_rng(0)
    features = {name: torch.from_numpy(rng.standard_normal((2048, 2000)).astype("f4")) for name in "ab"}
    found = streamed(cut(features, size)).compute()
    assert abs(found.value[0, 1].item()) < 0.005 + 3 * found.se[0, 1].item()
    assert found.se[0, 1].item() < 0.01


def test_shift_rotation_and_scale_change_nothing() -> None:
    features = layers(200, (20, 30))
    turn = torch.linalg.qr(torch.randn(30, 30, generator=torch.Generator().manual_seed(0)).double()).Q
    other = {"layer0": 1e-3 * features["layer0"] + 4, "layer1": 50 * features["layer1"].double() @ turn - 9}
    expected = streamed(cut(features, 40)).compute()
    found = streamed(cut({**features, **{f"{name}*": x for name, x in other.items()}}, 40)).compute()
    value, se = found.between(["layer0*", "layer1*"], ["layer0", "layer1"])
    np.testing.assert_allclose(value, expected.value, atol=1e-6)
    np.testing.assert_allclose(se, expected.se, atol=1e-6)


def untrained(batch: torch.Tensor) -> dict[str, torch.Tensor]:
    """24 layers with torch's default initial weights: the deeper, the more the mean dwarfs the deviation."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = [nn.Linear(512, 512) for _ in range(24)]
    features = {}
    with torch.no_grad():
        for i, layer in enumerate(weights):
            batch = torch.tanh(layer(batch))
            features[str(i)] = batch
    return features


def test_untrained_network() -> None:
    generator = torch.Generator().manual_seed(1)
    batches = [untrained(torch.randn(64, 512, generator=generator)) for _ in range(3)]
    deep = batches[0]["23"]
    assert deep.mean(0).norm() > 1e4 * (deep - deep.mean(0)).norm(dim=1).mean()
    expected = ratio(hsic_of(batches).mean(0))
    found = streamed(batches).compute()
    np.testing.assert_allclose(found.value, expected, atol=1e-6)
    assert 0.2 < expected.min() < 0.5
    # What this guards against: the same product of features that are not centred, in float32.
    raw = (deep @ deep.T).double().numpy()
    np.fill_diagonal(raw, 0)
    n = len(raw)
    careless = (
        raw - raw.sum(0) / (n - 2) - raw.sum(1, keepdims=True) / (n - 2) + raw.sum() / ((n - 1) * (n - 2))
    )
    np.fill_diagonal(careless, 0)
    exact = u_centred(deep.numpy())
    assert np.linalg.norm(careless - exact) > np.linalg.norm(exact)


class TwoCalls(nn.Sequential):
    def __init__(self, inplace: bool) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3),
            nn.ReLU(inplace),
            nn.Conv2d(8, 8, 3),
            nn.ReLU(inplace),
            nn.Flatten(),
            nn.Linear(128, 4),
        )


def test_relu_in_place_does_not_reach_the_layer_before() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = [TwoCalls(True), TwoCalls(False)]
    networks[1].load_state_dict(copy.deepcopy(networks[0].state_dict()))
    similarity = LayerSimilarity()
    for i in range(3):
        x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(i))
        features = {}
        for which, network in enumerate(networks):
            with Taps(network, TapSpec(["default", "activation"], pool="flatten")) as taps, torch.no_grad():
                taps.dry_run(x)
                taps.arm()
                network(x)
                features.update({f"{which}:{name}": rows for name, rows in taps.take().items()})
        similarity.update(features)
    found = similarity.compute()
    names = ["0", "1", "2", "3"]
    assert found.names == [f"{which}:{name}" for which in (0, 1) for name in names]
    value, _ = found.between([f"0:{name}" for name in names], [f"1:{name}" for name in names])
    assert value.diagonal().tolist() == pytest.approx([1] * 4, abs=1e-12)
    assert value[0, 1] < 0.99, "before and after the ReLU differ"


def test_gram_matrices_give_the_same() -> None:
    batches = cut(layers(200), 50)
    grams = []
    for batch in batches:
        centred = {name: x - x.mean(0) for name, x in batch.items()}
        grams.append({name: x @ x.T for name, x in centred.items()})
    features, found = streamed(batches).compute(), streamed(grams, grams=True).compute()
    assert found.names == features.names
    np.testing.assert_allclose(found.value, features.value, atol=1e-6)
    np.testing.assert_allclose(found.se, features.se, atol=1e-6)


def equal(a: SimilarityMap, b: SimilarityMap) -> None:
    assert a.names == b.names
    assert a.batches == b.batches
    np.testing.assert_allclose(a.value, b.value, rtol=1e-12)
    np.testing.assert_allclose(a.se, b.se, rtol=1e-6)


def test_merged_parts_are_the_whole() -> None:
    batches = cut(layers(), 32)
    whole = streamed(batches).compute()
    merged = LayerSimilarity()
    for part in (batches[:2], [], batches[2:3], batches[3:]):
        other = streamed(part)
        before = other.compute()
        merged.merge(other)
        equal(other.compute(), before) if part else None
    equal(merged.compute(), whole)


def test_short_batches_are_skipped() -> None:
    batches = cut(layers(103), 50)
    assert streamed(batches).compute().batches == 2
    equal(streamed(batches).compute(), streamed(batches[:2]).compute())
    assert len(streamed([]).compute().names) == 0
    assert streamed(cut(layers(4), 4)).compute().batches == 1


def test_a_missing_layer_is_nan_and_harms_no_other() -> None:
    batches = cut(layers(), 50)
    whole = streamed(batches).compute()
    for lost in (0, 2, 5):
        parts = [dict(batch) for batch in batches]
        del parts[lost]["layer1"]
        found = streamed(parts).compute()
        assert sorted(found.names) == whole.names
        value, se = found.between(whole.names, whole.names)
        assert value[1].isnan().all()
        assert se[:, 1].isnan().all()
        for mine, all_of_it in ((value, whole.value), (se, whole.se)):
            np.testing.assert_allclose(mine[::2, ::2], all_of_it[::2, ::2], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("sick", [torch.nan, torch.inf, -torch.inf])
def test_a_sick_layer_is_nan_and_harms_no_other(sick: float) -> None:
    batches = cut(layers(), 50)
    whole = streamed(batches).compute()
    batches[3]["layer0"][7, 2] = sick
    found = streamed(batches).compute()
    assert found.value[0].isnan().all()
    assert found.value[:, 0].isnan().all()
    np.testing.assert_allclose(found.value[1:, 1:], whole.value[1:, 1:], rtol=1e-12)
    np.testing.assert_allclose(found.se[1:, 1:], whole.se[1:, 1:], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("grams", [False, True])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e5])
def test_a_constant_layer_is_nan(value: float, grams: bool) -> None:
    features = {**layers(200), "constant": torch.full((200, 700), value)}
    batches = cut(features, 50)
    if grams:
        batches = [
            {name: (x - x.mean(0)) @ (x - x.mean(0)).T for name, x in batch.items()} for batch in batches
        ]
    found = streamed(batches, grams=grams).compute()
    assert found.value[3].isnan().all()
    assert found.value[:3, :3].isfinite().all()


def test_a_layer_may_be_constant_in_one_batch() -> None:
    batches = cut(layers(), 50)
    batches[1]["layer2"] = torch.full_like(batches[1]["layer2"], 3.0)
    expected = ratio(hsic_of(batches).mean(0))
    np.testing.assert_allclose(streamed(batches).compute().value, expected, atol=1e-7)


def test_the_last_bit_of_a_type_is_no_signal() -> None:
    x = torch.randn(200, 30, generator=torch.Generator().manual_seed(0)).double()
    for dtype in (torch.float32, torch.bfloat16):
        # In steps of the type: one value in fourteen is not the same as all others, and hardly one is.
        for spread, undefined in ((0.28, True), (5, False)):
            y = (1.1015625 + spread * torch.finfo(dtype).eps * x).to(dtype)
            assert len(y.unique()) > 1
            found = streamed(cut({"x": x, "y": y}, 50)).compute().value[0, 1]
            assert bool(found.isnan()) == undefined, (dtype, spread)


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30])
def test_tiny_and_huge_features(scale: float) -> None:
    features = {name: x - x.mean(0) for name, x in layers().items()}
    expected = streamed(cut(features, 50)).compute()
    features["layer1"] = features["layer1"] * scale
    found = streamed(cut(features, 50)).compute()
    np.testing.assert_allclose(found.value, expected.value, atol=1e-6)
    np.testing.assert_allclose(found.se, expected.se, atol=1e-6)


def test_the_raw_pixels_come_first() -> None:
    features = layers()
    features["input"] = features["layer0"] + 1
    assert streamed(cut(features, 50)).compute().names == ["input", "layer0", "layer1", "layer2"]


def test_state_is_as_said_and_does_not_grow() -> None:
    def held(similarity: LayerSimilarity) -> int:
        tensors = [*similarity._sums.sums.values(), similarity._stacker._buffer]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    batches = cut(layers(), 50)
    few, many = streamed(batches[:1]), streamed(batches * 4)
    assert held(few) == held(many) == LayerSimilarity.nbytes(3, 50)


def test_nothing_given_is_changed_or_kept() -> None:
    features = layers(50)
    before = {name: x.clone() for name, x in features.items()}
    similarity = streamed([features])
    for name, x in features.items():
        assert torch.equal(x, before[name])
        x.zero_()
    equal(similarity.compute(), streamed([before]).compute())
    gram = {name: x @ x.T for name, x in before.items()}
    copies = {name: x.clone() for name, x in gram.items()}
    streamed([gram], grams=True)
    assert all(torch.equal(gram[name], copies[name]) for name in gram)


def test_wrong_shapes_are_told() -> None:
    with pytest.raises(ValueError, match=r"features \[10, D\] of 'b', got \[9, 3\]"):
        LayerSimilarity().update({"a": torch.ones(10, 3), "b": torch.ones(9, 3)})
    with pytest.raises(ValueError, match=r"a Gram matrix \[10, 10\] of 'a', got \[10, 3\]"):
        LayerSimilarity(grams=True).update({"a": torch.ones(10, 3)})
    with pytest.raises(ValueError, match="no layer 'c'"):
        streamed(cut(layers(), 50)).compute().between(["c"], ["layer0"])
