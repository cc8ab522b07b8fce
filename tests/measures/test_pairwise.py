"""Similarities of all pairs of layers against those of two, and what they hold in memory."""

import doctest

import numpy as np
import pytest
import torch
from counting import peak_bytes

from tunnel_lightning.measures.functional import pairwise as module
from tunnel_lightning.measures.functional.pairwise import (
    KINDS,
    pairwise,
    pairwise_bytes,
    procrustes,
    pwcca,
    rbf_cka,
    svcca,
)

ALONE = {
    "rbf_cka": rbf_cka,
    "procrustes": lambda x, y: procrustes(x, y).similarity,
    "svcca": svcca,
    "pwcca": pwcca,
}


def layers(n: int, dims: tuple[int, ...]) -> list[torch.Tensor]:
    """Features that share a few directions."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((n, 5))
    return [
        torch.from_numpy(shared @ rng.standard_normal((5, d)) + 2 * rng.standard_normal((n, d))).float()
        for d in dims
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_all_pairs_are_the_pairs(kind: str) -> None:
    given = [*layers(60, (20, 90, 30)), torch.full((60, 4), 0.3)]
    seen: list[tuple[int, int]] = []
    found = pairwise(kind, given, lambda *at: seen.append(at))
    for i, x in enumerate(given):
        for j, y in enumerate(given):
            expected = ALONE[kind](x, y).item()
            assert found[i, j].item() == pytest.approx(expected, rel=1e-12, nan_ok=True)
    assert found[:3, :3].isfinite().all()
    assert found[3].isnan().all()
    assert seen[-1] == (10, 10)
    assert pairwise(kind, iter([])).shape == (0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_asked_for_one_after_the_other_and_forgotten(kind: str) -> None:
    given = layers(40, (30, 60, 20))
    copies: list[torch.Tensor] = []

    def one_by_one():
        for x in given:
            if copies:
                copies.pop().fill_(torch.nan)  # whoever still looks at it sees nothing
            copies.append(x.clone())
            yield copies[0]

    assert torch.equal(pairwise(kind, one_by_one()), pairwise(kind, given))


@pytest.mark.parametrize("dims", [(50,) * 6, (1200,) * 3, (50, 1200, 20, 20)], ids=["narrow", "wide", "both"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_takes_no_more_bytes_than_it_says(kind: str, dims: tuple[int, ...]) -> None:
    given = layers(300, dims)
    said = pairwise_bytes(kind, 300, dims)
    assert said / 3 < peak_bytes(lambda: pairwise(kind, given)) <= said


def test_what_is_held_grows_with_the_layers_and_the_work_on_one_does_not() -> None:
    one, more = pairwise_bytes("rbf_cka", 100, [10]), pairwise_bytes("rbf_cka", 100, [10] * 5)
    assert more - one == 4 * 8 * 100 * 100
    assert pairwise_bytes("svcca", 100, []) == 0 < one


def test_wrong_use_is_told() -> None:
    for kind, least in (("rbf_cka", 4), ("procrustes", 2), ("svcca", 2), ("pwcca", 2)):
        with pytest.raises(ValueError, match=kind):
            pairwise(kind, [torch.ones(60, 3), torch.ones(50, 3)])
        with pytest.raises(ValueError, match=f">= {least}"):
            pairwise(kind, [torch.ones(least - 1, 3)])
    for call in (lambda: pairwise("cka", []), lambda: pairwise_bytes("cka", 9, [])):
        with pytest.raises(ValueError, match="'cka'; there are rbf_cka"):
            call()


def test_examples() -> None:
    assert doctest.testmod(module).attempted > 0
    assert doctest.testmod(module).failed == 0
