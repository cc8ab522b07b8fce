import numpy as np
import pytest
import torch
from torch import nn

from tunnel_lightning.taps.pooling import Hints, Layout, choose_columns, hints_of, layout_of, pool


def windows(size):
    """The two windows of adaptive pooling, written out."""
    return (
        [(i * size // 2, -(-(i + 1) * size // 2)) for i in range(2)]
        if size > 2
        else [(i, i + 1) for i in range(size)]
    )


def reference_2x2(x):
    """Loops in float64 over [B, C, H, W]."""
    x = x.double().numpy()
    cells = [x[:, :, a:b, c:d].mean((2, 3)) for a, b in windows(x.shape[2]) for c, d in windows(x.shape[3])]
    return np.stack(cells, 2).reshape(len(x), -1)


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (5, 6), (2, 2), (1, 1), (1, 4), (8, 2), (3, 3)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_2x2_of_maps(size, channels_last):
    x = torch.randn(3, 4, *size)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    rows = pool(x, Layout("first"), "2x2")
    np.testing.assert_allclose(rows, reference_2x2(x), rtol=1e-5, atol=1e-6)
    assert rows.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


@pytest.mark.parametrize("size", [(8, 8), (6, 4), (8, 2), (2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_way_of_a_gpu_gives_the_same(size, dtype, monkeypatch):
    x = torch.randn(3, 4, *size).to(dtype)
    here = pool(x, Layout("first"), "2x2")
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    there = pool(x, Layout("first"), "2x2")
    assert there.dtype == here.dtype
    torch.testing.assert_close(there, here, rtol=0, atol=2e-6 if dtype == torch.float32 else 2**-8)
    if size != (2, 2):
        np.testing.assert_allclose(there, reference_2x2(x), rtol=1e-5, atol=1e-6)


def test_avg_and_flatten_of_maps_first_and_last():
    x = torch.randn(3, 4, 6, 5)
    last = x.permute(0, 2, 3, 1).contiguous()
    for layout, y in ((Layout("first"), x), (Layout("last"), last)):
        np.testing.assert_allclose(pool(y, layout, "avg"), x.double().mean((2, 3)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(pool(y, layout, "token"), x.double().mean((2, 3)), rtol=1e-5, atol=1e-6)
        assert torch.equal(pool(y, layout, "flatten"), x.flatten(1))
    np.testing.assert_allclose(pool(last, Layout("last"), "2x2"), reference_2x2(x), rtol=1e-5, atol=1e-6)


def test_one_and_three_dimensions():
    line, volume = torch.randn(2, 3, 8), torch.randn(2, 3, 4, 4, 6)
    rows = pool(line, Layout("first"), "2x2")
    expected = torch.stack([line[..., :4].mean(2), line[..., 4:].mean(2)], 2).flatten(1)
    torch.testing.assert_close(rows, expected)
    rows = pool(volume, Layout("first"), "2x2").view(2, 3, 2, 2, 2)
    torch.testing.assert_close(rows[:, :, 1, 0, 1], volume[:, :, 2:, :2, 3:].mean((2, 3, 4)))


def test_tokens():
    x = torch.randn(2, 17, 5)
    layout = layout_of(nn.Identity(), (2, 17, 5))
    assert layout == Layout("tokens", prefix=1)
    for how in ("2x2", "avg"):
        torch.testing.assert_close(pool(x, layout, how), x[:, 1:].mean(1))
    assert torch.equal(pool(x, layout, "token"), x[:, 0])
    assert torch.equal(pool(x, layout, "flatten"), x.flatten(1))


def test_rows_that_belong_to_one_image_are_averaged():
    x = torch.randn(6, 4, 5)  # two images of three windows
    torch.testing.assert_close(pool(x, Layout("tokens", fold=3), "2x2"), x.view(2, 12, 5).mean(1))
    assert torch.equal(pool(x, Layout("tokens", fold=3), "flatten"), x.view(2, -1))
    rows = torch.randn(6, 5)
    torch.testing.assert_close(pool(rows, Layout("features", fold=3), "2x2"), rows.view(2, 3, 5).mean(1))


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((4, 7), Layout("features")),
        ((4, 7, 4), Layout("features")),
        ((4, 16, 4), Layout("first")),
        ((4, 3, 2, 2), Layout("first")),
        ((4, 5, 3), Layout("tokens")),
    ],
)
@pytest.mark.parametrize("how", ["2x2", "flatten", "token", "avg"])
def test_what_follows_cannot_alter_the_rows(shape, layout, how):
    x = torch.randn(shape[: 2 if layout.kind == "features" else None])
    rows = pool(x, layout, how)
    copy = rows.clone()
    x.zero_()
    assert torch.equal(rows, copy)


@pytest.mark.parametrize(
    ("module", "shape", "hints", "expected"),
    [
        (nn.Linear(3, 3), (2, 9), Hints(), Layout("features")),
        (nn.Linear(3, 3), (2,), Hints(), Layout("features")),
        (nn.Conv1d(3, 3, 1), (2, 3, 9), Hints(), Layout("first")),
        (nn.GELU(), (2, 197, 192), Hints(), Layout("tokens", 1)),
        (nn.GELU(), (2, 196, 192), Hints(), Layout("tokens", 0)),
        (nn.GELU(), (2, 198, 192), Hints(), Layout("tokens", 0)),
        (nn.GELU(), (2, 198, 192), Hints(prefix_tokens=2), Layout("tokens", 2)),
        (nn.GELU(), (2, 196, 192), Hints(prefix_tokens=1), Layout("tokens", 0)),
        (nn.GELU(), (2, 197, 192), Hints(prefix_tokens=0), Layout("tokens", 0)),
        (nn.GELU(), (2, 1, 192), Hints(prefix_tokens=1), Layout("tokens", 0)),
        (nn.Linear(3, 3), (2, 5, 7, 7), Hints(), Layout("last")),
        (nn.Conv2d(3, 3, 1), (2, 7, 7, 5), Hints(), Layout("first")),
        (nn.Identity(), (2, 96, 56, 56), Hints(), Layout("first")),
        (nn.Identity(), (2, 56, 56, 96), Hints(), Layout("last")),
        (nn.Identity(), (2, 96, 96, 96), Hints(), Layout("first")),
        (nn.Identity(), (2, 96, 96, 96), Hints(channels_last=True), Layout("last")),
        (nn.Identity(), (2, 5, 8, 9), Hints(channels_last=True), Layout("last")),
        (nn.Identity(), (2, 96, 56, 56), Hints(channels_last=True), Layout("first")),
    ],
)
def test_layout_rules(module, shape, hints, expected):
    assert layout_of(module, shape, hints) == expected


def test_hints_are_found_below_the_root():
    inner = nn.Identity()
    inner.num_prefix_tokens, inner.output_fmt = 5, "NHWC"
    assert hints_of(nn.Sequential(inner)) == Hints(5, True)
    assert hints_of(nn.Linear(1, 1)) == Hints(None, False)


def test_half_precision_averages_are_float32_and_the_rest_keeps_its_type():
    x = (torch.randn(4, 3, 8, 8) + 3).bfloat16()
    rows = pool(x, Layout("first"), "2x2")
    assert rows.dtype == torch.float32
    np.testing.assert_allclose(rows, reference_2x2(x), rtol=2**-8)
    assert pool(x[:, :, 0, 0], Layout("features"), "2x2").dtype == torch.bfloat16
    assert pool(x.double(), Layout("first"), "avg").dtype == torch.float64


def test_columns_are_fixed_by_seed_and_name_and_move_no_random_state():
    before = torch.get_rng_state()
    one = choose_columns(500, 20, 3, "stem.conv")
    assert torch.equal(torch.get_rng_state(), before)
    # Written out: the same columns in every process and run, whatever python's hash seed.
    assert one[:5].tolist() == [58, 65, 138, 157, 174]
    assert len(set(one.tolist())) == 20
    assert one.tolist() == sorted(one.tolist())
    assert not torch.equal(one, choose_columns(500, 20, 4, "stem.conv"))
    assert not torch.equal(one, choose_columns(500, 20, 3, "stem.bn"))
    assert choose_columns(20, 20, 3, "a") is None
    x = torch.randn(2, 500)
    assert torch.equal(pool(x, Layout("features"), "avg", one), x[:, one])


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((6, 5), Layout("features")),
        ((6, 3, 4, 5), Layout("first")),
        ((6, 4, 5, 3), Layout("last")),
        ((6, 7, 5), Layout("tokens", prefix=1)),
        ((18, 7, 5), Layout("tokens", fold=3)),
        ((18, 5), Layout("features", fold=3)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gram_is_of_the_whole_output_centred_over_the_batch(shape, layout, dtype):
    # Mean far above deviation: products first, centred after, would be all rounding.
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 100).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        products = pool(x, layout, "gram")
    rows = x.double().reshape(6, -1).numpy()
    rows = rows - rows.mean(0)
    assert products.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    np.testing.assert_allclose(products, rows @ rows.T, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_gram_is_in_full_float32(precision):
    x = torch.randn(8, 500, generator=torch.Generator().manual_seed(0))
    expected = pool(x, Layout("features"), "gram")
    try:
        torch.set_float32_matmul_precision(precision)
        assert torch.equal(pool(x, Layout("features"), "gram"), expected)
    finally:
        torch.set_float32_matmul_precision("highest")
