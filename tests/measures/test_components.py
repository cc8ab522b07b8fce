"""First principal components of a batch's layers against numpy's full decomposition."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from tunnel_lightning.measures import accumulate
from tunnel_lightning.measures.components import Components, FirstComponents, first_component
from tunnel_lightning.measures.functional.blocks import contiguous_blocks
from tunnel_lightning.measures.similarity import LayerSimilarity
from tunnel_lightning.taps import Taps, TapSpec

Batches = Sequence[dict[str, torch.Tensor]]


def spectrum(values: np.ndarray, seed: int = 0) -> np.ndarray:
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values),) * 2))[0]
    return turn * values @ turn.T


def grams(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((n, 2000))
    single = 0.1 * rng.standard_normal((n, 30))
    single[n // 2] += 100
    return {
        "one dominates": spectrum(np.geomspace(1, 1e-6, n)),
        "flat": noise @ noise.T,
        "two are close": spectrum(np.concatenate([[1.001, 1], np.geomspace(0.5, 1e-3, n - 2)])),
        "slow decay": spectrum(1 / np.sqrt(np.arange(1, n + 1))),
        "rank one": np.outer(noise[:, 0], noise[:, 0]),
        "a single image": single @ single.T,
        "tiny": 1e-40 * spectrum(np.geomspace(1, 1e-6, n)),
    }


@pytest.mark.parametrize("n", [5, 20, 21, 200])
def test_first_component_against_all_eigenvalues(n: int) -> None:
    given = grams(n)
    values, vectors = first_component(torch.from_numpy(np.stack(list(given.values()))))
    for (name, gram), value, vector in zip(given.items(), values, vectors, strict=True):
        known, exact = np.linalg.eigh(gram)
        assert value.item() == pytest.approx(known[-1], rel=1e-10), name
        assert abs(exact[:, -1] @ vector.numpy()) == pytest.approx(1, abs=1e-7), name
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-12)


def test_first_component_without_a_direction() -> None:
    values, vectors = first_component(torch.stack([torch.zeros(100, 100), torch.eye(100)]).double())
    assert values.tolist() == pytest.approx([0, 1])
    assert vectors.norm(dim=1).tolist() == pytest.approx([0, 1])


def layers(n: int = 256, seed: int = 0, share: float = 0.03) -> dict[str, torch.Tensor]:
    """Eight layers; layers 3 to 6 share one component, which a few images make, and nothing else."""
    rng = np.random.default_rng(seed)
    rare = np.where(rng.random(n) < share, 1, 0) * rng.normal(10, 1, n) + 0.01 * rng.standard_normal(n)
    found = {}
    for i in range(8):
        x = rng.standard_normal((n, 300 + 20 * i))
        if 3 <= i <= 6:
            x = x + 4 * np.outer(rare, rng.standard_normal(x.shape[1]))
        found[f"layer{i}"] = torch.from_numpy(x.astype("f4") + i)
    return found


def cut(features: dict[str, torch.Tensor], size: int) -> list[dict[str, torch.Tensor]]:
    n = len(next(iter(features.values())))
    return [{name: x[i : i + size] for name, x in features.items()} for i in range(0, n, size)]


def streamed(batches: Batches, **options) -> FirstComponents:
    components = FirstComponents(**options)
    for batch in batches:
        components.update(batch)
    return components


def test_against_singular_vectors_of_the_features() -> None:
    batches = cut(layers(200), 40)
    fractions, cosines = [], []
    without = LayerSimilarity()
    dominant = LayerSimilarity()
    for batch in batches:
        sides, fraction, removed = [], [], {}
        for name, x in batch.items():
            a = x.double().numpy()
            a = a - a.mean(0)
            u, s, v = np.linalg.svd(a, full_matrices=False)
            sides.append(u[:, 0])
            fraction.append(s[0] ** 2 / (s**2).sum())
            removed[name] = torch.from_numpy(a - s[0] * np.outer(u[:, 0], v[0]))
        fractions.append(fraction)
        cosines.append(np.abs(np.array(sides) @ np.array(sides).T))
        without.update(removed)
        # 5 % of 40 images are two.
        keep = np.sort(np.argsort(np.abs(sides[int(np.argmax(fraction))]))[:-2])
        dominant.update({name: x[keep] for name, x in batch.items()})
    found = streamed(batches, share=0.05).compute()
    assert found.names == list(batches[0])
    np.testing.assert_allclose(found.fraction, np.mean(fractions, 0), rtol=1e-5)
    np.testing.assert_allclose(found.fraction_se, np.std(fractions, 0, ddof=1) / 5**0.5, rtol=1e-3)
    np.testing.assert_allclose(found.cosine.value, np.mean(cosines, 0), atol=1e-3)
    np.testing.assert_allclose(found.cosine.se, np.std(cosines, 0, ddof=1) / 5**0.5, atol=1e-3)
    np.testing.assert_allclose(found.without_first.value, without.compute().value, atol=1e-4)
    np.testing.assert_allclose(found.without_dominant.value, dominant.compute().value, atol=1e-5)
    np.testing.assert_allclose(found.without_dominant.se, dominant.compute().se, atol=1e-6)


def test_planted_block_structure_rests_on_one_component_of_few_images() -> None:
    found = streamed(cut(layers(1024), 256), share=0.06).compute()
    assert [block[:2] for block in contiguous_blocks(found.cka.value)] == [(3, 6)]
    in_block, others = found.fraction[3:7], found.fraction[[0, 1, 2, 7]]
    assert in_block.min() > 0.9
    assert others.max() < 0.05
    assert found.cosine.value[3:7, 3:7].min() > 0.99
    assert found.cosine.value[:3, 3:7].max() < 0.5
    for without in (found.without_first, found.without_dominant):
        assert contiguous_blocks(without.value) == []
        assert without.value[3:7, 3:7].fill_diagonal_(0).max() < 0.2


def test_cka_is_that_of_layer_similarity() -> None:
    batches = cut(layers(512), 128)
    similarity = LayerSimilarity()
    for batch in batches:
        similarity.update(batch)
    expected, found = similarity.compute(), streamed(batches).compute().cka
    assert found.names == expected.names
    assert found.batches == expected.batches
    # One multiplies in float32, the other, which needs eigenvectors, in float64.
    np.testing.assert_allclose(found.value, expected.value, atol=5e-7)
    np.testing.assert_allclose(found.se, expected.se, atol=5e-7)


def equal(a: Components, b: Components, atol: float = 1e-12) -> None:
    assert a.names == b.names
    np.testing.assert_allclose(a.fraction, b.fraction, atol=atol)
    np.testing.assert_allclose(a.fraction_se, b.fraction_se, atol=max(atol, 1e-7))
    for mine, other in zip(a[3:], b[3:], strict=True):
        assert mine.names == other.names
        assert mine.batches == other.batches
        np.testing.assert_allclose(mine.value, other.value, atol=atol)
        np.testing.assert_allclose(mine.se, other.se, atol=max(atol, 1e-7))


def test_gram_matrices_give_the_same() -> None:
    batches = cut(layers(240), 80)
    given = [{name: (x - x.mean(0)) @ (x - x.mean(0)).T for name, x in batch.items()} for batch in batches]
    equal(streamed(batches).compute(), streamed(given, grams=True).compute(), atol=1e-4)


def test_merged_parts_are_the_whole() -> None:
    batches = cut(layers(300), 50)
    merged = streamed(batches[:1])
    merged.merge(streamed(batches[1:3]))
    merged.merge(streamed([]))
    merged.merge(streamed(batches[3:]))
    equal(merged.compute(), streamed(batches).compute())


def test_sick_layers_are_nan_and_harm_no_other() -> None:
    batches = cut(layers(200), 50)
    whole = streamed(batches).compute()
    for batch in batches:
        batch["constant"] = torch.full((50, 3), 0.1)
        batch["sick"] = torch.full((50, 3), torch.nan)
    found = streamed(batches).compute()
    assert found.names[-2:] == ["constant", "sick"]
    assert found.fraction[-2:].isnan().all()
    np.testing.assert_allclose(found.fraction[:-2], whole.fraction, rtol=1e-9)
    for mine, expected in zip(found[3:], whole[3:], strict=True):
        assert mine.value[-2:].isnan().all()
        assert mine.value[:, -2:].isnan().all()
        np.testing.assert_allclose(mine.value[:-2, :-2], expected.value, atol=1e-9)


def test_a_layer_of_one_component_has_nothing_without_it() -> None:
    rng = np.random.default_rng(0)
    features = {
        "line": torch.from_numpy(np.outer(rng.standard_normal(200), rng.standard_normal(40)).astype("f4")),
        "other": torch.from_numpy(rng.standard_normal((200, 40)).astype("f4")),
    }
    found = streamed(cut(features, 100)).compute()
    assert found.fraction[0].item() == pytest.approx(1)
    assert found.cka.value.isfinite().all()
    assert found.without_first.value[0].isnan().all()
    assert found.without_first.value[1, 1] == 1


def test_at_least_one_image_is_left_out_and_four_remain() -> None:
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    assert streamed([{"x": x}]).compute().cka.batches == 1
    assert streamed([{"x": x[:4]}]).compute().names == []
    assert streamed([{"x": x.repeat(2, 1)}], share=0.7).compute().names == []
    with pytest.raises(ValueError, match="share"):
        FirstComponents(share=1.0)


def test_no_random_state_moves() -> None:
    before = torch.get_rng_state()
    streamed(cut(layers(), 128))
    assert torch.equal(torch.get_rng_state(), before)


def test_wrong_shapes_are_told() -> None:
    with pytest.raises(ValueError, match=r"features \[10, D\] of 'b'"):
        FirstComponents().update({"a": torch.ones(10, 3), "b": torch.ones(9, 3)})


def test_through_taps_that_give_gram_matrices() -> None:
    """Every output of a network, unpooled, in one pass."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = resnet18(num_classes=4)
    x = torch.randn(36, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batches = [(part, torch.zeros(len(part), dtype=torch.int64)) for part in x.split(12)]
    found = {}
    for pool in ("gram", "flatten"):
        with Taps(model, TapSpec("all", pool=pool)) as taps:
            taps.dry_run(x)
            components = FirstComponents(grams=pool == "gram")
            accumulate(model, taps, batches, [], observers=[components], input=False)
            found[pool] = components.compute()
            assert found[pool].names == [tap.name for tap in taps.layers]
    assert len(found["gram"].names) > 60
    assert found["gram"].cka.value.isfinite().all()
    equal(found["gram"], found["flatten"], atol=1e-4)
