"""Pooling as a module: what the taps do inside their hooks."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from tunnel_lightning.backbones.rows import Rows
from tunnel_lightning.taps.pooling import Hints, Layout, hints_of, layout_of, pool

POOLS = ("2x2", "avg", "flatten", "token")


class Says(nn.Module):
    """A network that says its layout as timm's do."""

    def __init__(self, prefix=None, channels_last=False):
        super().__init__()
        if prefix is not None:
            self.num_prefix_tokens = prefix
        self.output_fmt = "NHWC" if channels_last else "NCHW"


OUTPUTS = OrderedDict(
    vector=(nn.ReLU(), (4, 6)),
    single=(nn.ReLU(), (4,)),
    map=(nn.ReLU(), (4, 3, 8, 8)),
    odd=(nn.ReLU(), (4, 3, 7, 5)),
    narrow=(nn.ReLU(), (4, 3, 2, 2)),
    pixel=(nn.ReLU(), (4, 3, 1, 1)),
    line=(nn.ReLU(), (4, 3, 1, 6)),
    sequence=(nn.Conv1d(1, 1, 1), (4, 3, 10)),
    volume=(nn.Conv3d(1, 1, 1), (4, 3, 4, 6, 5)),
    tokens=(nn.GELU(), (4, 16, 6)),
    class_token=(nn.GELU(), (4, 17, 6)),
    last=(nn.LayerNorm(6), (4, 8, 8, 6)),
    last_oblong=(nn.LayerNorm(6), (4, 8, 4, 6)),
    square=(nn.Identity(), (4, 8, 8, 6)),
    oblong=(nn.Identity(), (4, 8, 4, 6)),
    windows=(nn.Linear(1, 1), (12, 16, 6)),
    folded=(nn.ReLU(), (12, 6)),
)
NETS = [Says(), Says(prefix=1), Says(prefix=2), Says(prefix=0), Says(channels_last=True)]


@pytest.mark.parametrize("how", POOLS)
@pytest.mark.parametrize("case", OUTPUTS)
def test_pooling_is_that_of_the_taps(case, how):
    module, shape = OUTPUTS[case]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for network in NETS:
        wanted = pool(x, layout_of(module, shape, hints_of(network), shape[0] // 4), how)
        assert torch.equal(Rows.of(how, network, module, shape, 4)(x), wanted), network.__dict__


def test_the_hints_change_something():
    """Else the test above would hold for a module that reads none."""
    assert layout_of(nn.GELU(), (4, 18, 6), Hints(2)) == Layout("tokens", 2)
    assert layout_of(nn.Identity(), (4, 8, 4, 6), Hints(None, True)).kind == "last"


def test_an_output_of_no_whole_rows_is_refused():
    with pytest.raises(ValueError, match="no rows of theirs"):
        Rows.of("2x2", Says(), nn.ReLU(), (7, 3), 2)
