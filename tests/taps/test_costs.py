import torch
from torch import nn
from torch.utils.flop_counter import flop_registry
from torchvision.models import resnet18

from tunnel_lightning.taps.costs import costs


def test_a_multiply_add_counts_two():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 6 * 6, 5))
    counted = costs(model, torch.randn(4, 3, 6, 6))
    conv, linear = 2 * 8 * 36 * 27, 2 * 8 * 36 * 5
    assert counted == {"": conv + linear, "0": conv, "2": linear}


def test_resnet18_has_its_published_cost_and_parts_add_up():
    model = resnet18()
    counted = costs(model, torch.zeros(1, 3, 224, 224))
    # 1.814 G multiply-adds (torchvision's table of weights).
    assert abs(counted[""] / 2e9 - 1.814) < 0.001
    leaves = [path for path, module in model.named_modules() if not any(module.children())]
    assert sum(counted.get(path, 0) for path in leaves) == counted[""]


def test_leaves_no_trace():
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)).train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    costs(model, torch.randn(3, 6, generator=torch.Generator().manual_seed(0)))
    assert model.training
    assert model[0].weight.grad is None
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_attention_is_counted_though_evaluation_would_fuse_it():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    counted = costs(layer, torch.randn(1, 9, 16))
    feed_forward = 2 * 2 * 9 * 16 * 32
    projections = 2 * 9 * 16 * 16 * 4
    attention = 2 * 2 * 9 * 9 * 16
    # torch 2.11 does not count the CPU's kernel for attention itself
    known = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu in flop_registry
    assert counted[""] == feed_forward + projections + (attention if known else 0)
