"""Two gloo processes equal one: similarity and first components, also where one process has no batch."""

import numpy as np
import pytest
import torch
from two_processes import one_and_two

from tunnel_lightning.measures.components import FirstComponents
from tunnel_lightning.measures.similarity import LayerSimilarity


def batches(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(count):
        x = torch.randn(40, 12, generator=generator) + 100
        found.append({"a": x, "b": x[:, :5] + torch.randn(40, 5, generator=generator), "c": x**2})
        if i == 2:
            del found[-1]["b"]
    return found


def run(rank: int, world: int) -> dict:
    results = {}
    for kind in (LayerSimilarity, FirstComponents):
        for name, given in (("many", batches(2)), ("lost", batches(7)), ("few", batches(1)), ("none", [])):
            state = kind()
            for batch in given[rank::world]:
                state.update(batch)
            if world > 1:
                state.all_reduce()
            results[kind.__name__, name] = state.compute()
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> tuple[dict, list[dict]]:
    return one_and_two(run, tmp_path_factory.mktemp("gloo"))


def flat(result: tuple) -> list:
    return [part for item in result for part in (flat(item) if isinstance(item, tuple) else [item])]


@pytest.mark.parametrize("kind", ["LayerSimilarity", "FirstComponents"])
@pytest.mark.parametrize("name", ["many", "lost", "few", "none"])
def test_two_processes_are_one(results, kind: str, name: str) -> None:
    one, two = results
    for found in two:
        for mine, expected in zip(flat(found[kind, name]), flat(one[kind, name]), strict=True):
            if isinstance(expected, torch.Tensor):
                np.testing.assert_allclose(mine, expected, rtol=1e-6, atol=1e-9)
            else:
                assert mine == expected
    for mine, other in zip(flat(two[0][kind, name]), flat(two[1][kind, name]), strict=True):
        assert (
            mine == other if not isinstance(mine, torch.Tensor) else mine.equal(other) or mine.isnan().any()
        )


def test_they_are_of_all_batches(results) -> None:
    one, _ = results
    assert one["LayerSimilarity", "many"].batches == 2
    assert one["LayerSimilarity", "few"].batches == 1
    assert one["LayerSimilarity", "none"].names == []
    lost = one["LayerSimilarity", "lost"]
    assert lost.batches == 7
    assert lost.value[1].isnan().all()
    assert lost.value[::2, ::2].isfinite().all()
