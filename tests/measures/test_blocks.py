"""Planted blocks are found, and only those."""

from itertools import combinations

import numpy as np
import pytest
import torch

from tunnel_lightning.measures.functional.blocks import Block, contiguous_blocks, resemblance


def planted(size: int, blocks: list[tuple[int, int, float]]) -> torch.Tensor:
    """Layers that fade with their distance, and squares (first, last, value)."""
    at = torch.arange(size)
    similarity = 0.8 ** (at - at[:, None]).abs().double()
    for start, end, value in blocks:
        square = similarity[start : end + 1, start : end + 1]
        square.clamp_(min=value)
    return similarity.fill_diagonal_(1)


def test_planted_blocks() -> None:
    found = contiguous_blocks(planted(20, [(2, 5, 0.93), (10, 17, 0.96)]))
    assert [block[:3] for block in found] == [(2, 5, 4), (10, 17, 8)]
    assert [block.min_cka for block in found] == pytest.approx([0.93, 0.96])


def test_no_block() -> None:
    assert contiguous_blocks(planted(20, [])) == []
    assert contiguous_blocks(planted(20, [(3, 4, 0.99)])) == []
    assert contiguous_blocks(planted(20, [(3, 9, 0.93)]), threshold=0.95) == []
    assert contiguous_blocks(torch.zeros(0, 0)) == []


def test_two_layers_are_a_block_on_request() -> None:
    assert [block[:2] for block in contiguous_blocks(planted(20, [(3, 4, 0.99)]), min_size=2)] == [(3, 4)]


def test_one_pair_below_the_threshold_parts_a_block() -> None:
    similarity = planted(12, [(1, 9, 0.95)])
    similarity[2, 8] = similarity[8, 2] = 0.5
    found = contiguous_blocks(similarity)
    # 1..7 and 2..7, or 3..9: the two longest have seven layers, and only one of them fits.
    assert [block[:2] for block in found] == [(1, 7)]
    similarity[3:10, 3:10] += 0.01
    found = contiguous_blocks(similarity)
    assert [block[:2] for block in found] == [(3, 9)], "of equal ones the one that is more alike"


def test_a_layer_without_features_parts_a_block() -> None:
    similarity = planted(12, [(0, 11, 0.95)])
    similarity[5] = similarity[:, 5] = torch.nan
    assert [block[:2] for block in contiguous_blocks(similarity)] == [(0, 4), (6, 11)]


def test_against_all_intervals() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        raw = np.cumsum(rng.normal(size=(10, 40)) * rng.choice([0.2, 1.5], size=(10, 1)), axis=0)
        values = np.corrcoef(raw)
        valid = [
            (i, j)
            for i, j in combinations(range(10), 2)
            if j - i >= 2 and values[i : j + 1, i : j + 1].min() >= 0.7
        ]
        expected: list[tuple[int, int]] = []
        for i, j in sorted(
            valid, key=lambda ij: (ij[0] - ij[1], -values[ij[0] : ij[1] + 1, ij[0] : ij[1] + 1].min())
        ):
            if all(j < a or i > b for a, b in expected):
                expected.append((i, j))
        found = contiguous_blocks(torch.from_numpy(values), threshold=0.7)
        assert [block[:2] for block in found] == sorted(expected)


def test_resemblance() -> None:
    cross = torch.full((6, 4), 0.1)
    cross[:2] = torch.eye(4)[:2] * 0.9
    cross[5, 3] = torch.nan
    cross[1, 0] = 0.3
    blocks = [Block(2, 4, 3, 0.95)]
    found = resemblance(cross, blocks)
    assert found.best.tolist() == pytest.approx([0.9, 0.9, 0.1, 0.1, 0.1, 0.1])
    assert found.inside.item() == pytest.approx(0.1)
    assert found.outside.item() == pytest.approx((0.9 + 0.9 + 0.1) / 3)
    cross[5] = torch.nan
    assert resemblance(cross, blocks).best[5].isnan()
    assert resemblance(cross, blocks).outside.item() == pytest.approx(0.9)
    assert resemblance(cross, []).inside.isnan()


def test_wrong_shapes_are_told() -> None:
    with pytest.raises(ValueError, match=r"map \[L, L\]"):
        contiguous_blocks(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="all layers of the blocks"):
        resemblance(torch.zeros(3, 4), [Block(1, 3, 3, 0.9)])
