import doctest

import pytest
import torch
from torch import nn

from tunnel_lightning.backbones import ResNet
from tunnel_lightning.surgery import compose, loaded, restored, rewind, sections, snapshot, states


def network(seed):
    torch.manual_seed(seed)
    model = ResNet(depth=8, width=3, num_classes=4, input_shape=(1, 8, 8))
    with torch.no_grad():
        for buffer in model.buffers():
            buffer += 1 + seed
    return model


@pytest.fixture(scope="module")
def images():
    return torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def one():
    return network(1)


@pytest.fixture
def two():
    return network(2)


@pytest.fixture
def parts(one, images):
    return sections(one, images)


def same(state, other):
    return state.keys() == other.keys() and all(
        torch.equal(value, other[key]) for key, value in state.items()
    )


def train_a_step(model, images):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.train()
    model(images).square().mean().backward()
    optimizer.step()


def test_the_examples():
    assert doctest.testmod(states).failed == 0


def test_snapshots_do_not_follow_the_network(one, images):
    taken, now = snapshot(one), {key: value.clone() for key, value in one.state_dict().items()}
    train_a_step(one, images)
    assert same(taken, now)
    assert not any(value.requires_grad for value in taken.values())


def test_cuts_from_none_to_all(one, two, parts):
    first, second = snapshot(one), snapshot(two)
    head = {"head.weight", "head.bias"}
    assert same(compose(first, second, parts, 0), second)
    whole = compose(first, second, parts, len(parts))
    assert all(torch.equal(value, (second if key in head else first)[key]) for key, value in whole.items())
    assert same(compose(first, second, parts, len(parts), head=first), first)
    assert same(compose(first, second, parts, 0, head=second), second)
    for cut in range(len(parts) + 1):
        assert same(compose(first, first, parts, cut, first), first)


def test_statistics_move_with_their_section(one, two, parts):
    first, second = snapshot(one), snapshot(two)
    mixed = compose(first, second, parts, 2)
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(mixed[f"stages.0.0.norm1.{key}"], first[f"stages.0.0.norm1.{key}"])
        assert torch.equal(mixed[f"stages.0.0.norm2.{key}"], second[f"stages.0.0.norm2.{key}"])
        assert not torch.equal(first[f"stages.0.0.norm1.{key}"], second[f"stages.0.0.norm1.{key}"])


def test_a_composed_network_computes_first_one_then_the_other(one, two, parts, images):
    cut = 3  # behind the first block
    one.eval(), two.eval()
    with loaded(two, compose(snapshot(one), snapshot(two), parts, cut)):
        got = two(images)
    expected = two.head(two.pool(two.stages[2](two.stages[1](one.stages[0](one.stem(images))))).flatten(1))
    assert torch.equal(got, expected)


def test_rewinding_a_block(one, two, parts):
    now, then = snapshot(two), snapshot(one)
    back = rewind(now, then, parts, [2, 8])
    for index in range(1, 9):
        entries = parts.entries([index])
        assert all(back[key] is (then if index in (2, 8) else now)[key] for key in entries)
    assert same(now, snapshot(two))


def test_a_head_grown_since_is_put_back_whole(one, parts):
    now = {**snapshot(one), "head.weight": torch.zeros(9, 12)}
    assert rewind(now, snapshot(one), parts, [8])["head.weight"].shape == (4, 12)
    many = {**snapshot(one), "head.more": torch.ones(1)}
    assert "head.more" in compose(now, now, parts, 3, head=many)


def test_mistakes_in_words(one, parts):
    state = snapshot(one)
    with pytest.raises(ValueError, match="cut is 8; give 0 to 7"):
        compose(state, state, parts, 8)
    with pytest.raises(ValueError, match=r"no 'stem.conv.weight': it is not of the network"):
        compose({}, state, parts, 1)
    with pytest.raises(ValueError, match="not of the network"):
        compose(state, {}, parts, 1)
    with (
        pytest.raises(ValueError, match=r"does not fit ResNet.*size mismatch"),
        loaded(one, {**state, "head.bias": torch.zeros(7)}),
    ):
        raise AssertionError("loaded")
    assert same(snapshot(one), state)


class Extra(nn.Linear):
    """Keeps something that is no tensor, and a buffer outside of its state."""

    def __init__(self):
        super().__init__(3, 3)
        self.steps = [0]
        self.register_buffer("hidden", torch.zeros(2), persistent=False)

    def get_extra_state(self):
        return {"steps": self.steps}

    def set_extra_state(self, state):
        self.steps = state["steps"]


@pytest.mark.parametrize("fails", [False, True])
def test_everything_comes_back(one, images, fails):
    one.extra = Extra()
    train_a_step(one, images)
    one.stem.norm.eval()
    one.stages[0][0].conv1.weight.requires_grad_(False)
    parameters = list(one.parameters())
    before, flags = snapshot(one), [m.training for m in one.modules()]
    gradients = [None if p.grad is None else p.grad.clone() for p in parameters]
    try:
        with restored(one):
            assert all(p.grad is None for p in parameters)
            one.requires_grad_(True)
            train_a_step(one, images)
            one.head = nn.Linear(12, 9)
            one.more = nn.Linear(2, 2)
            one.stem.conv.weight.data = torch.zeros(1, 1)
            one.stem.norm.running_mean = torch.full((3,), torch.nan)
            one.extra.steps[0] = 7
            one.extra.hidden += 1
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert snapshot(one).keys() == before.keys()
    after = {key: value for key, value in snapshot(one).items() if not key.endswith("extra_state")}
    assert same(after, {key: value for key, value in before.items() if not key.endswith("extra_state")})
    assert one.extra.steps == [0]
    assert not one.extra.hidden.any()
    assert all(p is q for p, q in zip(one.parameters(), parameters, strict=True))
    assert [m.training for m in one.modules()] == flags
    assert not one.stages[0][0].conv1.weight.requires_grad
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("fails", [False, True])
def test_loaded_for_a_while(one, two, images, fails):
    before, other = snapshot(one), snapshot(two)
    try:
        with loaded(one, other):
            assert same(snapshot(one), other)
            train_a_step(one, images)
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert same(snapshot(one), before)
    assert same(other, snapshot(two))
