"""The depth gradient of forgetting on digits: a check that the whole chain of data, strategy and meter can fail."""

import warnings

import numpy as np
import torch
from torch import nn

from tunnel_lightning.backbones import MLP
from tunnel_lightning.continual.compat import avalanche
from tunnel_lightning.continual.meter import LayerMeter
from tunnel_lightning.continual.scenarios import Scenario, make_stream
from tunnel_lightning.continual.stream import Stream
from tunnel_lightning.data import Digits
from tunnel_lightning.runs import Row

LAYERS = [f"layers.{i}.linear" for i in range(8)]


def learnt(name: str, stream: Stream, **arguments: object) -> list[Row]:
    import avalanche.training

    torch.manual_seed(0)
    model = MLP(depth=8, width=128, num_classes=10, input_shape=(1, 8, 8))
    meter = LayerMeter(stream, probes=["fixed", "refit_all"], drift=False, ranks=False)
    meter.start(model)
    strategy = getattr(avalanche.training, name)(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.05), criterion=nn.CrossEntropyLoss(),
        train_mb_size=32, train_epochs=12, evaluator=None, **arguments,
    )  # fmt: skip
    rows = []
    for k, experience in enumerate(stream.benchmark.train_stream):
        strategy.train(experience)
        rows += meter.measure(strategy.model, after=k)
    return rows


def matrix(rows: list[Row], layer: str, variant: str) -> np.ndarray:
    """Accuracy ``[after, task]``, NaN for tasks not learnt yet."""
    found = np.full((5, 5), np.nan)
    for row in rows:
        if (row.layer, row.variant) == (layer, variant):
            found[row.experience, int(row.dataset.removeprefix("task ")) - 1] = row.value
    return found


def drift(rows: list[Row], layer: str) -> float:
    """What the probe fitted when a task was learnt has lost at the end, over all tasks but the last."""
    fixed = matrix(rows, layer, "fixed")
    return float(np.mean(np.diag(fixed)[:4] - fixed[4, :4]))


def all_classes(rows: list[Row]) -> list[float]:
    """The probe of all ten classes at the end, layer by layer."""
    at_the_end = [row for row in rows if row.variant == "refit_all" and row.experience == 4]
    return [next(row.value for row in at_the_end if row.layer == layer) for layer in LAYERS]


def test_naive_forgets_with_depth_and_replay_hardly() -> None:
    avalanche()
    stream = make_stream(Digits(), Scenario("class_incremental", tasks=5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Avalanche's own
        naive, replay = learnt("Naive", stream), learnt("Replay", stream, mem_size=200)
    # The identity of class-incremental learning without memory: only the last task is answered.
    network = matrix(naive, "network", "network")[4]
    assert abs(network.mean() - network[4] / 5) < 0.02
    assert matrix(replay, "network", "network")[4].mean() > 0.8
    # Drift grows with depth.
    assert drift(naive, LAYERS[7]) > 0.2
    assert drift(naive, LAYERS[7]) >= 4 * drift(naive, LAYERS[0])
    # What the layers know of all classes falls with depth, and hardly under replay.
    fallen, kept = all_classes(naive), all_classes(replay)
    assert np.corrcoef(range(8), fallen)[0, 1] < -0.7
    assert max(fallen[:2]) - fallen[7] > 0.08
    assert max(kept[:2]) - kept[7] < 0.04
    assert drift(replay, LAYERS[7]) < 0.75 * drift(naive, LAYERS[7])
