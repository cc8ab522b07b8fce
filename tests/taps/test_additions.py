"""Residual additions: found in anyone's network, the sums right before what follows overwrites them."""

import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torchvision import models
from torchvision.models.vision_transformer import VisionTransformer
from torchvision.ops import SqueezeExcitation

from tunnel_lightning.backbones import ResNet
from tunnel_lightning.taps import NoAdditions, Taps, TapSpec, tap


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=4, size=16):
    return torch.randn(n, 3, size, size, generator=generator())


def randomised(model, seed=0):
    """Weights and statistics that leave no tensor zero (norms that end a branch are often zero at first)."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.05, 0.15, generator=generator(seed)).mul_(
                1 - 2 * torch.randint(2, tensor.shape, generator=generator(seed)) if tensor.dim() > 1 else 1
            )
    return model.eval()


def capture(taps, model, x):
    taps.arm()
    with torch.no_grad():
        output = model(x)
    features = taps.take()
    taps.disarm()
    return features, output


def names(model, x, layers="addition"):
    taps = tap(model, x, layers)
    found = [layer.name for layer in taps.layers]
    taps.remove()
    return found


def in_pairs(*pairs):
    return [name for pair in pairs for name in pair]


def test_our_resnet_and_its_numbers():
    model, x = randomised(ResNet(depth=8)), images()
    taps = tap(model, x, "addition", pool="flatten")
    blocks = [f"stages.{i}.0" for i in range(3)]
    assert [layer.name for layer in taps.layers] == in_pairs(*((f"{b}.norm2", f"{b}.add") for b in blocks))
    assert [(t.kind, t.parameters, t.shape, t.index, t.call) for t in taps.layers[2:4]] == [
        ("BatchNorm2d", 64, (32, 8, 8), 3, 1),
        ("Add", 0, (32, 8, 8), 4, 1),
    ]
    assert taps.head.name == "head"
    features, output = capture(taps, model, x)
    with torch.no_grad():
        hidden = model.stem(x)
        for name, block in zip(blocks, (model.stages[i][0] for i in range(3)), strict=True):
            branch = block.norm2(block.conv2(block.act1(block.norm1(block.conv1(hidden)))))
            total = branch + (hidden if block.shortcut is None else block.shortcut(hidden))
            torch.testing.assert_close(features[f"{name}.norm2"], branch.flatten(1))
            torch.testing.assert_close(features[f"{name}.add"], total.flatten(1))
            assert total.min() < 0  # what the activation takes away is still there
            hidden = block.act2(total)
        torch.testing.assert_close(output, model.head(model.pool(hidden).flatten(1)))


def test_torchvision_resnet_adds_in_place_and_shares_an_in_place_relu():
    model, x = randomised(models.resnet18(num_classes=5)), images(size=32)
    taps = tap(model, x, "addition", pool="flatten")
    blocks = [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)]
    assert [layer.name for layer in taps.layers] == in_pairs(*((f"{b}.bn2", f"{b}.add") for b in blocks))
    features, output = capture(taps, model, x)
    with torch.no_grad():
        hidden = model.maxpool(model.bn1(model.conv1(x)).relu())
        for name in blocks:
            block = model.get_submodule(name)
            branch = block.bn2(block.conv2(block.bn1(block.conv1(hidden)).relu()))
            total = branch + (hidden if block.downsample is None else block.downsample(hidden))
            torch.testing.assert_close(features[f"{name}.bn2"], branch.flatten(1))
            torch.testing.assert_close(features[f"{name}.add"], total.flatten(1))
            hidden = total.relu()
        assert torch.equal(output, model(x))


@pytest.mark.parametrize("name", ["resnet18", "resnetv2_18"])
def test_timm_resnets(name):
    timm = pytest.importorskip("timm")
    model, x = randomised(timm.create_model(name, num_classes=5)), images(size=32)
    taps = tap(model, x, "addition")
    sums = [layer for layer in taps.layers if layer.kind == "Add"]
    assert len(sums) == 8
    assert len(taps.layers) == 16
    for before, after in zip(taps.layers[::2], taps.layers[1::2], strict=True):
        assert after.name == f"{before.name.rpartition('.')[0]}.add"
        assert after.shape == before.shape
    features, output = capture(taps, model, x)
    assert list(features) == [layer.name for layer in taps.layers]
    assert torch.equal(output, model(x))
    assert not torch.equal(features[sums[0].name], features[taps.layers[0].name])


def vit():
    return VisionTransformer(16, 4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=3)


def test_vision_transformer_adds_twice_in_a_block():
    model, x = randomised(vit()), images()
    taps = tap(model, x, "addition", pool="flatten")
    expected = []
    for block in (f"encoder.layers.encoder_layer_{i}" for i in range(2)):
        expected += [f"{block}.dropout", f"{block}.add#1", f"{block}.mlp", f"{block}.add#2"]
    assert [layer.name for layer in taps.layers] == expected
    features, _ = capture(taps, model, x)
    block = model.encoder.layers[0]
    with torch.no_grad():
        tokens = model._process_input(x)
        tokens = (
            torch.cat([model.class_token.expand(len(x), -1, -1), tokens], 1) + model.encoder.pos_embedding
        )
        normed = block.ln_1(tokens)
        first = block.self_attention(normed, normed, normed, need_weights=False)[0] + tokens
        second = first + block.mlp(block.ln_2(first))
    torch.testing.assert_close(features[expected[1]], first.flatten(1))
    torch.testing.assert_close(features[expected[3]], second.flatten(1))
    assert taps.layers[1].shape == (17, 8)


class ResidualMLP(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.stem = how, nn.Linear(6, 5)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(3))
        self.fc = nn.Linear(5, 2)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = self.how(x, layer(x))
        return self.fc(x)


@pytest.mark.parametrize(
    "how",
    [
        lambda x, y: x + y,
        lambda x, y: y + x,
        lambda x, y: torch.add(x, y),
        lambda x, y: torch.add(input=x, other=y),
        lambda x, y: y.add_(x),
        lambda x, y: y.__iadd__(x),
    ],
    ids=["x + y", "y + x", "add", "keywords", "add_", "+="],
)
def test_residual_mlp_by_any_way_to_add(how):
    torch.manual_seed(0)
    model, x = ResidualMLP(how), torch.randn(7, 6, generator=generator())
    taps = tap(model, x, "addition")
    expected = in_pairs(*((f"layers.{i}", f"layers.add#{i + 1}") for i in range(3)))
    assert [layer.name for layer in taps.layers] == expected
    features, _ = capture(taps, model, x)
    with torch.no_grad():
        hidden = model.stem(x)
        for i, layer in enumerate(model.layers):
            branch = layer(hidden)
            hidden = hidden + branch
            torch.testing.assert_close(features[f"layers.{i}"], branch)
            torch.testing.assert_close(features[f"layers.add#{i + 1}"], hidden)


def test_what_is_no_residual_addition():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.fc = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 2)
            self.position, self.flat = nn.Parameter(torch.ones(1, 4)), nn.Flatten(0)

        def forward(self, x):
            y = self.a(x) + self.position  # other shapes
            y = y + 1
            z = y * 2 + y.square()  # no module's output
            weight = self.a.weight + self.b.weight
            self.flat(self.a(x)) + self.flat(self.b(x))  # one number an image
            return self.fc(z @ weight[:, :4].T)

    with pytest.raises(
        NoAdditions, match="'addition' finds no residual addition in Net; choose another kind"
    ):
        tap(Net(), torch.randn(3, 6), "addition")


class Gated(nn.Module):
    """A block whose branch ends in a gate; the block's input is what its predecessor put out."""

    def __init__(self, by_module):
        super().__init__()
        self.conv, self.by_module = nn.Conv2d(4, 4, 3, padding=1), by_module
        self.se = SqueezeExcitation(4, 2)

    def forward(self, x):
        y = self.conv(x)
        return x + (self.se(y) if self.by_module else y * self.se._scale(y))


def test_a_branch_that_ends_in_a_gate_and_one_that_no_module_put_out():
    x = images(4)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), Gated(True), Gated(False), Gated(True), nn.Flatten(), nn.LazyLinear(2)
    )
    # The middle block's sum has no branch to go with; its input, put out by the block before, is none.
    assert names(model, x) == ["1.se", "1.add", "3.se", "3.add"]


def test_a_sum_in_place_is_no_branch_any_more():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.fc = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 2)

        def forward(self, x):
            y = self.a(x)
            y += self.b(x)
            return self.fc(y + torch.ones_like(y))

    assert names(Net(), torch.randn(3, 6)) == ["b", "add"]


def test_a_sum_is_read_as_its_branch_is():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv, self.fc = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 2)

        def forward(self, x):
            x = self.stem(x)
            return self.fc((x + self.conv(x)).mean((2, 3)))

    # Sizes alone would say 8 x 8 cells of 4 channels.
    taps = tap(Net(), torch.randn(2, 3, 8, 4), "addition", pool="avg")
    assert [(t.name, t.dim) for t in taps.layers] == [("conv", 8), ("add", 8)]


def test_a_plain_network_is_one_sentence():
    with pytest.raises(ValueError, match="'addition' finds no residual addition in ResNet"):
        tap(ResNet(depth=8, residual=False), images(), "addition")
    assert _get_current_function_mode_stack() == []


def test_with_other_kinds_and_globs():
    found = names(ResNet(depth=8), images(), ["addition", "stem.conv", "block"])
    assert found[:5] == ["stem.conv", "stages.0.0.norm2", "stages.0.0.add", "stages.0.0", "stages.1.0.norm2"]


@pytest.mark.parametrize("pool", ["2x2", "gram"])
def test_first_real_forward_equals_dry_run(pool):
    model, x = randomised(models.resnet18(num_classes=5)), images(size=32)
    dry, real = (Taps(model, TapSpec("addition", pool)) for _ in range(2))
    dry.dry_run(x)
    ours, _ = capture(dry, model, x)
    first, _ = capture(real, model, x)
    second, _ = capture(real, model, x)
    assert dry.layers == real.layers
    assert list(ours) == list(first) == list(second)
    for name in ours:
        assert torch.equal(ours[name], first[name])
        assert torch.equal(ours[name], second[name])
    dry.dry_run(x[:1])
    assert dry.layers == real.layers


def test_training_is_bitwise_the_same():
    x = images()

    def train(watch):
        torch.manual_seed(0)
        model = models.resnet18(num_classes=5)
        model.layer1[0].bn2.register_forward_hook(
            lambda module, args, output: nn.functional.dropout(output, 0.1)
        )
        taps = Taps(model, TapSpec("addition")) if watch else None
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            if taps:
                taps.arm()
            loss = model(x).square().mean()
            if taps:
                assert len(taps.take()) == 16
                taps.disarm()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model.state_dict()

    plain, watched = train(False), train(True)
    assert all(torch.equal(plain[key], watched[key]) for key in plain)


def test_functions_are_looked_at_only_while_armed():
    model, x = ResNet(depth=8), images()
    taps = tap(model, x, "addition")
    for _ in range(2):
        taps.arm()
        assert len(_get_current_function_mode_stack()) == 1
    taps.disarm()
    taps.disarm()
    assert _get_current_function_mode_stack() == []
    taps.arm()
    taps.remove()
    assert _get_current_function_mode_stack() == []
    assert not any(module._forward_hooks for module in model.modules())


def test_only_branches_keep_their_hooks():
    model = ResNet(depth=8)
    taps = tap(model, images(), "addition")
    hooked = [path for path, module in model.named_modules() if module._forward_hooks]
    assert hooked == [f"stages.{i}.0.norm2" for i in range(3)]
    taps.remove()


def test_a_compiled_network_is_refused_in_words():
    x = images()
    inside, whole, part = (ResNet(depth=8) for _ in range(3))
    inside.compile(backend="eager")
    part.stages = torch.compile(part.stages, backend="eager")
    for model in (inside, torch.compile(whole, backend="eager"), part):
        with pytest.raises(NoAdditions, match=r"'addition' cannot see into a network under torch\.compile"):
            tap(model, x, "addition")
        with pytest.raises(ValueError, match=r"torch\.compile"):
            Taps(model, TapSpec("addition")).arm()
    assert _get_current_function_mode_stack() == []
