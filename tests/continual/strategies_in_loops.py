"""Every strategy that both loops must train to the same weights: `from continual.strategies_in_loops import ...`.

Made by bare Avalanche code, so that nothing of ours but the loop stands between a strategy and its weights.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from continual.toys import digits, normed
from lightning.pytorch import seed_everything
from torch import Tensor, nn

from tunnel_lightning.continual.compat import avalanche
from tunnel_lightning.continual.loops import Loop, make_loop
from tunnel_lightning.continual.scenarios import Scenario, make_stream
from tunnel_lightning.continual.stream import Stream

TASKS = [[0, 1], [2, 3], [4, 5]]


class Case(NamedTuple):
    """Makes a strategy out of a stream and what every strategy is given."""

    make: Callable[[Stream, dict[str, Any]], Any]
    kind: str = "class_incremental"
    joint: bool = False


def named(name: str, **arguments: Any) -> Callable[[Stream, dict[str, Any]], Any]:
    """A strategy of ``avalanche.training`` with its own arguments."""

    def make(stream: Stream, common: dict[str, Any]) -> Any:
        import avalanche.training

        return getattr(avalanche.training, name)(**common, **arguments)

    return make


def with_plugin(name: str, **arguments: Any) -> Callable[[Stream, dict[str, Any]], Any]:
    """Naive with a plugin of ``avalanche.training.plugins``."""

    def make(stream: Stream, common: dict[str, Any]) -> Any:
        import avalanche.training
        import avalanche.training.plugins

        plugin = getattr(avalanche.training.plugins, name)(**arguments)
        return avalanche.training.Naive(**common, plugins=[plugin])

    return make


def optimizer(model: nn.Module, lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def gss(stream: Stream, common: dict[str, Any]) -> Any:
    return named("GSS_greedy", mem_size=40, mem_strength=2, input_size=list(stream.input_shape))(
        stream, common
    )


def icarl(stream: Stream, common: dict[str, Any]) -> Any:
    from avalanche.training import ICaRL

    model = common.pop("model")
    common.pop("criterion")
    head, model.head = model.head, nn.Identity()
    common["optimizer"] = optimizer(nn.ModuleList([model, head]))
    return ICaRL(
        feature_extractor=model,
        classifier=head,
        memory_size=12,
        buffer_transform=None,
        fixed_memory=True,
        **common,
    )


def scr(stream: Stream, common: dict[str, Any]) -> Any:
    from avalanche.models import SCRModel
    from avalanche.training.supervised import SCR

    model = common.pop("model")
    common.pop("criterion")
    projection = nn.Linear(model.head.in_features, 8)
    model.head = nn.Identity()
    both = SCRModel(feature_extractor=model, projection=projection)
    noise = _Noise()
    return SCR(
        model=both,
        mem_size=12,
        batch_size_mem=6,
        augmentations=noise,
        **common | {"optimizer": optimizer(both)},
    )


class _Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)


def feature_replay(stream: Stream, common: dict[str, Any]) -> Any:
    from avalanche.training.losses import MaskedCrossEntropy
    from avalanche.training.supervised.feature_replay import FeatureReplay

    # One of its own: the default is one object for all, which remembers the classes of the run before.
    common["criterion"] = MaskedCrossEntropy()
    return FeatureReplay(last_layer_name="head", mem_size=12, batch_size_mem=6, **common)


def pnn(stream: Stream, common: dict[str, Any]) -> Any:
    from avalanche.models import PNN
    from avalanche.training import PNNStrategy

    channels, height, width = stream.input_shape
    columns = PNN(
        num_layers=2, in_features=channels * height * width, hidden_features_per_column=8, adapter="mlp"
    )
    return PNNStrategy(**common | {"model": columns, "optimizer": optimizer(columns)})


CASES = {
    "Naive": Case(named("Naive")),
    "Naive TI": Case(named("Naive"), "task_incremental"),
    "Cumulative": Case(named("Cumulative")),
    "JointTraining": Case(named("JointTraining"), joint=True),
    "FromScratchTraining": Case(named("FromScratchTraining")),
    "Replay": Case(named("Replay", mem_size=20)),
    "EWC": Case(named("EWC", ewc_lambda=1.0)),
    "EWC TI": Case(named("EWC", ewc_lambda=1.0), "task_incremental"),
    "LwF": Case(named("LwF", alpha=1.0, temperature=2.0)),
    "LwF TI": Case(named("LwF", alpha=1.0, temperature=2.0), "task_incremental"),
    "SynapticIntelligence": Case(named("SynapticIntelligence", si_lambda=1.0)),
    "GEM": Case(named("GEM", patterns_per_exp=8)),
    "AGEM": Case(named("AGEM", patterns_per_exp=8, sample_size=8)),
    "MAS": Case(named("MAS", lambda_reg=0.1)),
    "MIR": Case(named("MIR", batch_size_mem=4, mem_size=20, subsample=10)),
    "GDumb": Case(named("GDumb", mem_size=20)),
    "GDumb TI": Case(named("GDumb", mem_size=20), "task_incremental"),
    "CWRStar": Case(named("CWRStar", cwr_layer_name="head")),
    "GSS_greedy": Case(gss),
    "ICaRL": Case(icarl),
    "SCR": Case(scr),
    "BiC": Case(named("BiC", mem_size=24, val_percentage=0.25, stage_2_epochs=3)),
    "FeatureReplay": Case(feature_replay),
    "RWalk": Case(with_plugin("RWalkPlugin", delta_t=2)),
    "PNN": Case(pnn, "task_incremental"),
}


def tasks(kind: str = "class_incremental") -> Stream:
    """Three tasks of two classes, 24 images each, cropped and so drawing from the random state."""
    return make_stream(digits(augment=True), Scenario(kind, TASKS), 24, 24)


def make(name: str, stream: Stream, **changes: Any) -> Any:
    """A strategy with dropout, BatchNorm and momentum, from the same first weights each time."""
    avalanche()
    from avalanche.models import as_multitask

    case = CASES[name]
    model: nn.Module = normed(stream)
    if stream.multi_head:
        model = as_multitask(model, "head")
    common = {
        "model": model,
        "optimizer": optimizer(model),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": 8,
        "train_epochs": 2,
        "eval_mb_size": 8,
        "device": "cpu",
        "evaluator": None,
    }
    torch.manual_seed(1)
    return case.make(stream, common | changes)


def experiences(name: str, stream: Stream) -> list[Any]:
    """What to train on, one after the other."""
    every = list(stream.benchmark.train_stream)
    return [every] if CASES[name].joint else every


def trained(name: str, stream: Stream, loop: str, **trainer: Any) -> Loop:
    """The loop after all tasks."""
    made = make_loop(make(name, stream), loop, trainer)
    seed_everything(2, verbose=False)  # A-GEM draws from python's random state
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Avalanche's own
        for experience in experiences(name, stream):
            made.train(experience)
    return made


def state_of(loop: Loop) -> dict[str, Tensor]:
    """All tensors of network and optimizer, and the random state the training ended in."""
    found = {f"model.{key}": value.clone() for key, value in loop.strategy.model.state_dict().items()}
    for index, state in loop.strategy.optimizer.state_dict()["state"].items():
        found |= {
            f"optimizer.{index}.{key}": value for key, value in state.items() if isinstance(value, Tensor)
        }
    return found | {"random": torch.get_rng_state()}
