"""Taps on compiled networks. Backends without a code generator: what is tested is tracing and its guards."""

import copy

import pytest
import torch
from torch import nn

from tunnel_lightning.taps import Taps, TapSpec


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(6 * 16, 4)

    def forward(self, x):
        x = self.relu(self.norm(self.conv1(x)))
        return self.fc(self.relu(self.conv2(x)).flatten(1))


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model, how, backend):
    if how == "in place":
        model.compile(backend=backend, fullgraph=True)
        return model
    return torch.compile(model, backend=backend, fullgraph=True)


@pytest.mark.parametrize(
    ("backend", "how", "discover"),
    [
        ("eager", "in place", "dry run"),
        ("eager", "wrapped", "first forward"),
        ("aot_eager", "in place", "dry run"),
    ],
)
def test_compiled_capture_equals_eager(backend, how, discover):
    torch.manual_seed(0)
    eager = Net()
    model = copy.deepcopy(eager)
    spec = TapSpec(["default", "relu", "norm"], max_features=9)
    ours, theirs = Taps(eager, spec), Taps(model, spec)
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    ours.dry_run(x)
    if discover == "dry run":
        theirs.dry_run(x)
    fast = compiled(model, how, backend)
    for step in range(4):
        eager.train(step % 2 == 0)
        fast.train(step % 2 == 0)
        for armed in (True, False):
            if armed:
                ours.arm(), theirs.arm()
            expected, output = eager(x), fast(x)
            torch.testing.assert_close(output, expected)
            if armed:
                expected.square().sum().backward(), output.square().sum().backward()
                a, b = ours.take(), theirs.take()
                assert list(a) == list(b)
                assert theirs.layers == ours.layers
                for name in a:
                    torch.testing.assert_close(b[name], a[name])
                    assert not b[name].requires_grad
                ours.disarm(), theirs.disarm()
            assert all(not hook.out for hook in theirs._hooks)
    for p, q in zip(eager.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad)


def test_dry_run_and_costs_compile_nothing():
    graphs = []
    model, x = Net(), torch.randn(5, 3, 8, 8)
    model.compile(backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    taps = Taps(model)
    taps.dry_run(x)
    taps.costs(x)
    assert not graphs
    model(x)
    assert graphs


def test_arming_does_not_recompile_for_ever():
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model, x = Net().eval(), torch.randn(5, 3, 8, 8)
    taps = Taps(model)
    taps.dry_run(x)
    model.compile(backend=count)
    with torch.no_grad():
        for _ in range(5):
            model(x)
            taps.arm()
            model(x)
            taps.take()
            model(x)
            taps.disarm()
    assert len(graphs) == 2  # armed and disarmed


def test_taps_on_a_compiled_wrapper_name_the_modules_inside():
    model = Net()
    fast = torch.compile(model, backend="eager")
    taps, x = Taps(fast), torch.randn(5, 3, 8, 8)
    taps.arm()
    fast(x)
    assert list(taps.take()) == ["conv1", "conv2"]


def test_hooks_after_the_first_compiled_call_are_an_error_in_words():
    model = Net()
    x = torch.randn(5, 3, 8, 8)
    model.compile(backend="eager")
    model(x)
    taps = Taps(model)
    taps.dry_run(x)  # uncompiled, so it finds the layers
    taps.arm()
    model(x)
    with pytest.raises(RuntimeError, match="make the taps before its first compiled call"):
        taps.take()


def test_blocks_compiled_one_by_one():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)), nn.Linear(8, 2))
    x = torch.randn(4, 8)
    taps = Taps(model)
    taps.dry_run(x)
    taps.arm()
    model(x)
    expected = taps.take()
    for block in model[:3]:
        block.compile(backend="eager", fullgraph=True)
    for _ in range(3):
        model(x)
        features = taps.take()
        assert list(features) == ["0.0", "1.0", "2.0"]
        for name in expected:
            torch.testing.assert_close(features[name], expected[name])


def test_gram_under_compile_equals_eager():
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(5, 3, 8, 8)
    taps = Taps(model, TapSpec(["default", "relu"], "gram"))
    taps.dry_run(x)
    model.compile(backend="eager")
    with torch.no_grad():
        taps.arm()
        model(x)
        compiled = taps.take()
        with torch.compiler.set_stance("force_eager"):
            model(x)
        for name, products in taps.take().items():
            torch.testing.assert_close(compiled[name], products)
