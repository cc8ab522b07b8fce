import copy
import gc
import io
import pickle
import random
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tunnel_lightning.taps import Taps, TapSpec, tap


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Net(nn.Module):
    """In-place and shared ReLU, batch norm, dropout: all that can disturb a capture."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 5)  # registered first, runs last
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        x = self.relu(self.norm1(self.conv1(x)))
        x = self.relu(self.norm2(self.conv2(x)))
        return self.fc(self.drop(x).mean((2, 3)))


def cells(x):
    """2x2 average pooling of an even map, written out."""
    b, c, h, w = x.shape
    return x.reshape(b, c, 2, h // 2, 2, w // 2).mean((3, 5)).reshape(b, -1)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def x():
    return torch.randn(6, 3, 8, 8, generator=generator())


def capture(taps, model, x):
    taps.arm()
    output = model(x)
    features = taps.take()
    taps.disarm()
    return features, output


def test_order_names_shapes_and_head(net, x):
    taps = tap(net, x, ["default", "relu", "norm1"])
    assert [(t.name, t.module, t.call, t.index, t.kind, t.shape, t.dim) for t in taps.layers] == [
        ("conv1", "conv1", 1, 1, "Conv2d", (8, 8, 8), 32),
        ("norm1", "norm1", 1, 2, "BatchNorm2d", (8, 8, 8), 32),
        ("relu#1", "relu", 1, 3, "ReLU", (8, 8, 8), 32),
        ("conv2", "conv2", 1, 4, "Conv2d", (12, 4, 4), 48),
        ("relu#2", "relu", 2, 5, "ReLU", (12, 4, 4), 48),
    ]
    assert [t.parameters for t in taps.layers] == [224, 16, 0, 876, 0]
    assert (taps.head.name, taps.head.index, taps.head.dim, taps.head.role) == ("fc", 6, 5, "head")
    assert (taps.input.index, taps.input.role, taps.input.dim) == (0, "input", 192)


def test_values_before_what_follows_in_place(net, x):
    taps = tap(net, x, ["conv1", "norm1", "relu"])
    net.eval()
    features, _ = capture(taps, net, x)
    conv = net.conv1(x)
    norm = net.norm1(conv)
    assert norm.min() < 0  # the in-place ReLU overwrites this output
    hidden = norm.relu()
    expected = {
        "conv1": conv, "norm1": norm, "relu#1": hidden, "relu#2": net.norm2(net.conv2(hidden)).relu()
    }  # fmt: skip
    assert list(features) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(features[name], cells(value))
        assert not features[name].requires_grad


def test_features_are_not_altered_by_in_place_relu():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 2))
    x = torch.randn(5, 4, generator=generator())
    features, _ = capture(tap(model, x), model, x)
    assert features["0"].min() < 0
    torch.testing.assert_close(features["0"], model[0](x))


def test_one_call_of_several_by_suffix(net, x):
    taps = tap(net, x, ["relu#2", "conv1"])
    assert [t.name for t in taps.layers] == ["conv1", "relu#2"]
    features, _ = capture(taps, net, x)
    assert features["relu#2"].shape == (6, 48)
    with pytest.raises(ValueError, match="'relu#3' finds nothing to capture: relu ran 2 time"):
        tap(net, x, "relu#3")


def test_head_by_glob_is_a_layer(net, x):
    taps = tap(net, x, ["default", "fc"])
    assert [t.name for t in taps.layers] == ["conv1", "conv2", "fc"]
    assert taps.layers[-1] == taps.head
    features, output = capture(taps, net, x)
    assert torch.equal(features["fc"], output)


def test_attribute_head_is_preferred_to_the_last_linear():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.auxiliary = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, x):
            x = self.body(x)
            return self.head(x), self.auxiliary(x)

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = TwoHeads()

        def forward(self, x):
            return self.backbone(x)

    assert tap(TwoHeads(), torch.zeros(1, 4)).head.name == "head"
    assert tap(Wrapper(), torch.zeros(1, 4)).head.name == "backbone.head"


def test_a_trunk_has_no_head(x):
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.ReLU())
    taps = tap(trunk, x)
    assert taps.head is None
    assert [t.name for t in taps.layers] == ["0", "2"]


def test_layers_are_unknown_before_the_first_forward(net, x):
    taps = Taps(net)
    for read in (lambda: taps.layers, lambda: taps.head, lambda: taps.input):
        with pytest.raises(RuntimeError, match="not known yet"):
            read()
    assert not taps.ready
    features, _ = capture(taps, net, x)
    assert taps.ready
    assert list(features) == [t.name for t in taps.layers] == ["conv1", "conv2"]


@pytest.mark.parametrize("pool", ["2x2", "flatten", "avg", "token"])
def test_first_real_forward_equals_dry_run(net, x, pool):
    spec = TapSpec(["default", "relu"], pool, max_features=20, seed=3)
    dry, real = Taps(net, spec), Taps(net, spec)
    dry.dry_run(x)
    net.eval()
    ours, _ = capture(dry, net, x)
    first, _ = capture(real, net, x)
    second, _ = capture(real, net, x)
    assert dry.layers == real.layers
    assert max(t.dim for t in real.layers) == (12 if pool in ("avg", "token") else 20)
    for name in ours:
        assert torch.equal(ours[name], first[name])
        assert torch.equal(ours[name], second[name])


def test_max_features_are_columns_of_the_whole(net, x):
    net.eval()
    whole, _ = capture(tap(net, x, pool="flatten"), net, x)
    part, _ = capture(tap(net, x, pool="flatten", max_features=10), net, x)
    for name, values in part.items():
        assert values.shape == (6, 10)
        columns = [(whole[name] == v[:, None]).all(0).nonzero()[0, 0].item() for v in values.T]
        assert len(set(columns)) == 10


def test_disarmed_hooks_do_nothing_and_take_refuses(net, x):
    taps = tap(net, x)
    net(x)
    assert all(not hook.out for hook in taps._hooks)
    with pytest.raises(RuntimeError, match="not armed"):
        taps.take()
    taps.arm()
    with pytest.raises(RuntimeError, match="no tapped layer ran"):
        taps.take()


def test_a_second_forward_before_take_is_ignored(net, x):
    taps = tap(net, x)
    net.eval()
    first, _ = capture(taps, net, x)
    taps.arm()
    net(x)
    net(x + 1)
    again = taps.take()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert list(again) == list(first)


@pytest.mark.parametrize("end", ["take", "disarm", "arm", "remove"])
def test_no_reference_to_activations_survives(net, x, end):
    taps = tap(net, x)
    taps.arm()
    net(x)
    held = [weakref.ref(out) for hook in taps._hooks for out in hook.out]
    assert len(held) == 2
    getattr(taps, end)()
    gc.collect()
    assert all(ref() is None for ref in held)


def test_the_map_itself_is_not_held(net, x):
    taps = tap(net, x, "conv1")
    seen = []
    net.conv1.register_forward_hook(lambda module, args, output: seen.append(weakref.ref(output)))
    net.eval()
    taps.arm()
    with torch.no_grad():
        net(x)
    gc.collect()
    assert seen[0]() is None


def test_remove_is_idempotent(net, x):
    with tap(net, x) as taps:
        assert sum(len(m._forward_hooks) for m in net.modules()) == 2
    taps.remove()
    assert sum(len(m._forward_hooks) for m in net.modules()) == 0


def test_hooks_put_back_capture_as_before(net, x):
    def hooked():
        return [name for name, module in net.named_modules() if module._forward_hooks]

    net.eval()
    with tap(net, x) as taps:
        taps.arm()
        net(x)
        first, places = taps.take(), hooked()
        assert places == ["conv1", "conv2"]
        taps.remove()
        twin = copy.deepcopy(net)
        assert hooked() == []
        for _ in range(2):
            taps.attach()
        # No hook twice, and none on layers that are not captured (they helped to find the head).
        assert hooked() == places
        assert sum(len(module._forward_hooks) for module in net.modules()) == 2
        net(x)
        with pytest.raises(RuntimeError, match="not armed"):
            taps.take()
        taps.arm()
        net(x)
        again = taps.take()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert list(again) == list(first)
    assert not any(module._forward_hooks for module in twin.modules())


def test_training_is_bitwise_the_same_with_hooks(x):
    def train(watch):
        torch.manual_seed(0)
        model = Net()
        if watch:
            taps = Taps(model, TapSpec(["default", "relu", "norm1"]))
            taps.dry_run(x)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            if watch:
                taps.arm()
            loss = model(x).square().mean()
            if watch:
                assert taps.take()
                taps.disarm()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model.state_dict()

    plain, watched = train(False), train(True)
    assert all(torch.equal(plain[key], watched[key]) for key in plain)


@pytest.mark.parametrize("fails", [False, True])
def test_dry_run_leaves_no_trace(net, x, fails):
    net.train()
    net.norm2.eval()
    net.conv2.weight.requires_grad_(False)
    net.conv1.weight.grad = torch.ones_like(net.conv1.weight)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)

    def state():
        return (
            [m.training for m in net.modules()],
            [p.requires_grad for p in net.parameters()],
            [None if p.grad is None else p.grad.tolist() for p in net.parameters()],
            {key: value.tolist() for key, value in net.state_dict().items()},
            random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist(),
        )  # fmt: skip

    before = state()
    taps = Taps(net)
    if fails:
        net.fc.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            taps.dry_run(x)
        assert not taps.ready
    else:
        taps.dry_run(x)
    assert state() == before
    assert not taps._state.armed


def test_dry_run_again_finds_the_same(net, x):
    taps = tap(net, x)
    layers, head = taps.layers, taps.head
    taps.dry_run(x[:1])
    assert (taps.layers, taps.head) == (layers, head)


@pytest.mark.parametrize("discover", ["dry run", "first forward"])
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_activation_checkpointing(discover, reentrant):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.out = body, nn.Linear(4, 2)

        def forward(self, x):
            return self.out(checkpoint(self.body, x, use_reentrant=reentrant))

    model = Checkpointed()
    x = torch.randn(5, 4, generator=generator()).requires_grad_()
    taps = Taps(model, TapSpec(["default", "body.1"]))
    if discover == "dry run":
        taps.dry_run(x.detach())
    for _ in range(2):
        taps.arm()
        model(x).sum().backward()  # recomputation fires the hooks again, and the owner did not disarm
        features = taps.take()
        assert list(features) == ["body.0", "body.1", "body.2"]
        torch.testing.assert_close(features["body.2"], body(x).detach())
    assert body[0].weight.grad is not None


def test_copies_and_pickles_of_the_network_do_not_capture(net, x):
    taps = tap(net, x)
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.load(buffer, weights_only=False)
    ]  # fmt: skip
    taps.arm()
    for other in copies:
        other(x)
        assert sum(len(m._forward_hooks) for m in other.modules()) == 2
    with pytest.raises(RuntimeError, match="no tapped layer ran"):
        taps.take()
    net(x)
    assert taps.take()
    # A copy can be watched by itself.
    features, _ = capture(tap(copies[0], x), copies[0], x)
    assert list(features) == ["conv1", "conv2"]


class Returns(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.weight = how, nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.how(x * self.weight)


class Odd(nn.Module):
    """Modules with outputs that are no plain tensors; one that never runs."""

    def __init__(self):
        super().__init__()
        self.pair = Returns(lambda x: (None, x, x + 1))
        self.dictionary = Returns(lambda x: {"index": x.long(), "nested": [x + 2]})
        self.integer = Returns(lambda x: x.long())
        self.nothing = Returns(lambda x: "words")
        self.position = Returns(lambda x: x[:1])
        self.unused, self.fc = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.dictionary(self.pair(x)[1])["nested"][0]
        self.integer(x), self.nothing(x), self.position(x)
        return {"logits": self.fc(x)}


def test_tuple_and_dict_outputs():
    x = torch.randn(3, 4, generator=generator())
    model = Odd()
    taps = tap(model, x, "all")
    features, _ = capture(taps, model, x)
    assert list(features) == ["pair", "dictionary"]
    torch.testing.assert_close(features["pair"], x)
    torch.testing.assert_close(features["dictionary"], x + 2)


@pytest.mark.parametrize("path", ["integer", "nothing", "position", "unused"])
def test_a_named_module_without_a_usable_output_is_an_error(path):
    with pytest.raises(ValueError, match=f"'{path}' finds nothing to capture: {path} "):
        tap(Odd(), torch.randn(3, 4, generator=generator()), ["pair", path])


def test_attention_projection_that_never_fires_is_dropped():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(8 * 5, 3))
    names = [t.name for t in tap(model, torch.randn(2, 5, 8)).layers]
    assert names == ["0.linear1", "0.linear2"]


def test_windows_in_the_batch_are_folded_back():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.inner, self.fc = nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):  # [B, 6, 4]
            x = self.inner(self.stem(x).reshape(-1, 2, 4))  # [3 B, 2, 6]
            return self.fc(x.reshape(-1, 6, 6).mean(1))

    model, x = Windows(), torch.randn(5, 6, 4, generator=generator())
    for taps in (tap(model, x), Taps(model)):
        features, _ = capture(taps, model, x)
        torch.testing.assert_close(features["inner"], model.inner(model.stem(x)).mean(1))


def test_channels_last_gives_the_same(net, x):
    net.eval()
    expected, _ = capture(tap(net, x, ["default", "relu"], pool="flatten"), net, x)
    net = net.to(memory_format=torch.channels_last)
    features, _ = capture(
        tap(net, x, ["default", "relu"], pool="flatten"), net, x.to(memory_format=torch.channels_last)
    )
    for name in expected:
        torch.testing.assert_close(features[name], expected[name])


def test_bf16_autocast(net, x):
    net.eval()
    expected, _ = capture(tap(net, x, ["default", "fc"]), net, x)
    with torch.autocast("cpu", torch.bfloat16):
        taps = tap(net, x, ["default", "fc"])
        features, output = capture(taps, net, x)
        output.sum().backward()
    assert features["conv1"].dtype == torch.float32
    assert features["fc"].dtype == torch.bfloat16
    assert net.conv1.weight.grad is not None
    for name in expected:
        torch.testing.assert_close(features[name].float(), expected[name], rtol=0.03, atol=0.03)


def test_input_is_raw_pixels_with_at_most_3072_fixed_columns(net):
    taps, small, large = Taps(net), torch.randn(2, 3, 8, 8), torch.randn(2, 3, 40, 40)
    assert torch.equal(taps.features_of_input(small), small.flatten(1))
    rows = taps.features_of_input(large)
    assert rows.shape == (2, 3072)
    assert taps.input.dim == 3072
    assert taps.input.shape == (3, 40, 40)
    assert torch.equal(rows, Taps(net).features_of_input(large))
    assert not torch.equal(rows, Taps(net, TapSpec(seed=1)).features_of_input(large))


def test_costs_by_tap(net, x):
    taps = tap(net, x)
    assert taps.costs(x)["conv1"] == 2 * 8 * 64 * 27
    assert set(taps.costs(x)) >= {t.module for t in taps.layers}


@pytest.mark.parametrize("discover", ["dry run", "first forward"])
def test_gram_holds_products_and_says_the_width(net, x, discover):
    net.eval()
    taps = Taps(net, TapSpec(["default", "relu"], "gram"))
    if discover == "dry run":
        taps.dry_run(x)
    whole, _ = capture(tap(net, x, ["default", "relu"], "flatten"), net, x)
    taps.arm()
    net(x)
    assert all(out is None or out.shape == (6, 6) for hook in taps._hooks for out in hook.out)
    products = taps.take()
    assert list(products) == list(whole)
    for name, rows in whole.items():
        centred = rows - rows.mean(0)
        torch.testing.assert_close(products[name], centred @ centred.T)
    assert [(t.name, t.dim) for t in taps.layers] == [(name, rows.shape[1]) for name, rows in whole.items()]
    assert len(capture(taps, net, x[:3])[0]["conv1"]) == 3
