"""What is refused or mended because of Avalanche itself: each of these fails when it no longer needs to be."""

import inspect
import io
from contextlib import redirect_stdout
from typing import Any

import pytest
import torch
from continual.test_strategies import made, parameters_of
from continual.toys import mlp, normed, sgd, stream
from lightning.pytorch import seed_everything
from torch import nn

from tunnel_lightning.continual.compat import avalanche, shims
from tunnel_lightning.continual.models import Features, prepare_model
from tunnel_lightning.continual.names import load
from tunnel_lightning.continual.strategies import STRATEGIES, make_strategy, turns
from tunnel_lightning.continual.stream import Stream


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    avalanche()


def bare(
    name: str, tasks: Stream, model: Any = None, epochs: int = 2, optimizer: Any = sgd, **args: Any
) -> Any:
    """A strategy made by Avalanche's code alone."""
    from avalanche.training.plugins import EvaluationPlugin

    network = mlp(tasks) if model is None else model
    common: dict[str, Any] = {
        "model": network,
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": 8,
        "train_epochs": epochs,
        "eval_mb_size": 8,
        "evaluator": EvaluationPlugin(loggers=[]),
    }
    cls = load(STRATEGIES[name].path)
    given = {"optimizer": optimizer(network.parameters()), **common, **args}
    wanted = inspect.signature(cls).parameters
    everything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in wanted.values())
    return cls(**{key: value for key, value in given.items() if everything or key in wanted})


def train(strategy: Any, tasks: Stream, count: int = 2) -> Any:
    for experience in list(tasks.benchmark.train_stream)[:count]:
        strategy.train(experience)
    return strategy


# Equal to Avalanche's own ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("Naive", {}),
        ("Cumulative", {}),
        ("FromScratchTraining", {}),
        ("Replay", {"mem_size": 20}),
        ("GDumb", {"mem_size": 20}),
        ("EWC", {"ewc_lambda": 1.0}),
        ("SynapticIntelligence", {"si_lambda": 0.001}),
        ("MAS", {"lambda_reg": 0.001}),
        ("LwF", {"alpha": 1.0, "temperature": 2.0}),
        ("GEM", {"patterns_per_exp": 9}),
        ("AGEM", {"patterns_per_exp": 9, "sample_size": 8}),
        ("MIR", {"mem_size": 20, "subsample": 10, "batch_size_mem": 4}),
        ("DER", {"mem_size": 20, "batch_size_mem": 6}),
        ("ER_ACE", {"mem_size": 20, "batch_size_mem": 6}),
        ("BiC", {"mem_size": 40, "stage_2_epochs": 2}),
        ("MER", {"mem_size": 20, "n_inner_steps": 1}),
    ],
)
def test_weights_are_those_of_bare_avalanche(name: str, args: dict[str, Any]) -> None:
    tasks, ends = stream(), []
    for make in (
        lambda network: bare(name, tasks, network, **args),
        lambda network: made(name, tasks, args, network=lambda _: network),
    ):
        network = normed(tasks)
        seed_everything(5, verbose=False)
        ends.append(parameters_of(train(make(network), tasks, 3)))
    assert bool(torch.isfinite(ends[0]).all())
    assert torch.equal(*ends)


# Mended ------------------------------------------------------------------------------------------------------


def test_si_on_the_cpu_equals_naive_until_it_is_mended() -> None:
    from avalanche.training.plugins import SynapticIntelligencePlugin

    def end(name: str, **args: Any) -> torch.Tensor:
        torch.manual_seed(0)
        slow = {"optimizer": lambda each: torch.optim.SGD(each, lr=0.05)}
        return parameters_of(train(bare(name, tasks, **slow, **args), tasks))

    tasks, shim = stream(), next(each for each in shims() if each.name == "SynapticIntelligence")
    mended = SynapticIntelligencePlugin.extract_weights
    with pytest.MonkeyPatch.context() as patch:  # as other tests found it, afterwards
        original = inspect.getclosurevars(mended).nonlocals["original"]
        patch.setattr(SynapticIntelligencePlugin, "extract_weights", staticmethod(original))
        assert shim.needed()
        assert torch.equal(end("SynapticIntelligence", si_lambda=1e5), end("Naive"))
    assert not shim.needed()
    assert not torch.equal(end("SynapticIntelligence", si_lambda=1e5), end("Naive"))


def test_packnet_calls_nobodys_plugins() -> None:
    from avalanche.models.packnet import PackNetModel

    class Called:
        times = 0

        def before_training(self, strategy: Any, **kwargs: Any) -> None:
            self.times += 1

    tasks, theirs, ours = stream("task_incremental", tasks=2), Called(), Called()
    network = PackNetModel(mlp(tasks))
    args = {"post_prune_epochs": 1, "prune_proportion": 0.5}
    train(bare("PackNet", tasks, network, plugins=[theirs], **args), tasks, 1)
    train(made("PackNet", tasks, args, plugins=[ours]), tasks, 1)
    assert (theirs.times, ours.times) == (0, 1)


def test_feature_replay_shares_one_loss_among_all_strategies() -> None:
    cls = load(STRATEGIES["FeatureReplay"].path)
    from avalanche.training.losses import MaskedCrossEntropy

    assert isinstance(inspect.signature(cls).parameters["criterion"].default, MaskedCrossEntropy)
    first, second = (made("FeatureReplay", stream()) for _ in range(2))
    assert isinstance(first._criterion, MaskedCrossEntropy)
    assert first._criterion is not second._criterion


def test_cope_learns_one_batch_of_a_task_unless_told_otherwise() -> None:
    tasks = stream()
    with redirect_stdout(io.StringIO()):
        assert train(bare("CoPE", tasks, p_size=10), tasks).clock.train_iterations == 2
    assert train(made("CoPE", tasks), tasks).clock.train_iterations == 2 * 2 * 3
    assert train(made("CoPE", tasks, {"max_it_cnt": 1}), tasks).clock.train_iterations == 2


def test_generators_images_are_in_the_range_of_the_streams() -> None:
    from avalanche.models.generator import MlpVAE

    tasks = stream()
    images = torch.cat([task.train.x for task in tasks.tasks])
    theirs = MlpVAE((1, 8, 8)).decoder.invTrans(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))
    ours = made("GenerativeReplay", tasks).generator_strategy.model.decoder
    assert theirs.flatten().tolist() != pytest.approx([float(images.min()), float(images.max())], abs=0.1)
    found = ours.invTrans(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))
    assert found.flatten().tolist() == pytest.approx([float(images.min()), float(images.max())])


# Refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "memory"), [("ER_AML", 28), ("FeatureReplay", 5)])
def test_waits_forever_for_a_whole_batch(name: str, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def cycle(loader: Any) -> Any:
        while True:
            got = False
            for batch in loader:
                got = True
                yield batch
            if not got:
                raise TimeoutError("a loader without batches, asked again and again")

    tasks = stream()
    module = STRATEGIES[name].path.rpartition(".")[0]
    monkeypatch.setattr(f"{module}.cycle", cycle)
    network = mlp(tasks)
    args: dict[str, Any] = {"last_layer_name": "head"}
    if name == "ER_AML":
        args = {"feature_extractor": Features(network)}
    with pytest.raises(TimeoutError, match="asked again"):
        train(bare(name, tasks, network, batch_size_mem=6, mem_size=memory, **args), tasks)


def test_gss_compares_with_more_images_than_it_remembers() -> None:
    tasks = stream()
    with pytest.raises(ValueError, match="max"):
        train(bare("GSS_greedy", tasks, mem_size=39, input_size=[1, 8, 8]), tasks, 5)
    train(bare("GSS_greedy", tasks, mem_size=40, input_size=[1, 8, 8]), tasks, 5)


def test_agem_shares_a_sample_among_more_tasks_than_it_has_images() -> None:
    tasks = stream()
    with pytest.raises(ValueError, match="batch_size"):
        train(bare("AGEM", tasks, patterns_per_exp=9, sample_size=3), tasks, 5)
    train(bare("AGEM", tasks, patterns_per_exp=9, sample_size=4), tasks, 5)


def test_bic_has_nothing_to_correct_its_scores_on() -> None:
    tasks = stream()
    with pytest.raises(ValueError, match="num_samples"):
        train(bare("BiC", tasks, mem_size=10, val_percentage=0.05, stage_2_epochs=1), tasks)


def test_lamaml_learns_nothing_of_a_small_task() -> None:
    tasks = stream()
    model = prepare_model(mlp(tasks), tasks)
    assert train(bare("LaMAML", tasks, model, train_mb_size=40), tasks).clock.train_iterations == 0


def test_lamaml_v1_needs_a_library_that_is_gone() -> None:
    tasks = stream()
    with pytest.raises((NameError, ImportError)):
        train(bare("LaMAML_v1", tasks), tasks)


def test_der_with_a_classifier_that_grows() -> None:
    from avalanche.models import IncrementalClassifier

    tasks = stream()
    with pytest.raises(RuntimeError, match="size of tensor"):
        train(bare("DER", tasks, prepare_model(mlp(tasks), tasks, "incremental"), batch_size_mem=6), tasks)

    class Loss:
        highest = 0.0

        def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            self.highest = max(self.highest, float(strategy.loss))

    # With a mask the scores it replays are -1000 for classes to come, and the loss is their square.
    network, loss = mlp(tasks), Loss()
    network.head = IncrementalClassifier(16, initial_out_features=10, masking=True)  # type: ignore[assignment]
    train(bare("DER", tasks, network, batch_size_mem=6, plugins=[loss]), tasks)
    assert loss.highest > 1000


def test_rwalk_divides_by_zero_before_its_first_look() -> None:
    from avalanche.training.plugins import RWalkPlugin

    tasks = stream()
    ends = [
        parameters_of(train(bare("Naive", tasks, plugins=[RWalkPlugin(delta_t=delta)]), tasks))
        for delta in (6, 7)
    ]
    assert [bool(torch.isfinite(end).all()) for end in ends] == [True, False]


def test_early_stopping_never_stops_without_evaluation() -> None:
    from avalanche.training.plugins import EarlyStoppingPlugin

    tasks = stream()
    strategy = bare("Naive", tasks, epochs=30, plugins=[EarlyStoppingPlugin(1, "train_stream")])
    assert train(strategy, tasks, 1).clock.train_exp_epochs == 30


@pytest.mark.parametrize("name", ["CWRStar", "DER", "GenerativeReplay", "GSS_greedy", "LFL", "LaMAML", "BiC"])
def test_fails_with_several_heads(name: str) -> None:
    tasks = stream("task_incremental")
    model = prepare_model(mlp(tasks), tasks)
    args: dict[str, Any] = {
        "CWRStar": {"cwr_layer_name": "model.head"},
        "GSS_greedy": {"mem_size": 48, "input_size": [1, 8, 8]},
        "LFL": {"lambda_e": 0.001},
    }.get(name, {})
    if name == "GenerativeReplay":
        args = {"generator_strategy": made(name, stream()).generator_strategy}
    with pytest.raises((TypeError, RuntimeError, AssertionError, NotImplementedError)):
        train(bare(name, tasks, model, **args), tasks)


def test_packnet_prunes_no_normalisation() -> None:
    from avalanche.models.packnet import PackNetModel

    with pytest.raises(ValueError, match="norm"):
        PackNetModel(normed(stream()))


def test_those_that_bring_their_own_network() -> None:
    source = inspect.getsource(load(STRATEGIES["AR1"].path).__init__)
    assert "MobilenetV1(pretrained=True" in source
    from avalanche.models.expert_gate import ExpertGate

    assert inspect.signature(ExpertGate).parameters["pretrained_flag"].default is True
    prompts = inspect.signature(load(STRATEGIES["LearningToPrompt"].path)).parameters
    assert "model" not in prompts
    assert prompts["pretrained"].default is True


def test_optimizer_is_given_every_parameter() -> None:
    tasks = stream()
    network = mlp(tasks)
    before = network.layers[0].linear.weight.clone()
    strategy = make_strategy(
        "Naive",
        model=network,
        backbone=network,
        stream=tasks,
        optimizer=lambda _: torch.optim.SGD(network.head.parameters(), lr=0.05),
        criterion=nn.CrossEntropyLoss(),
        epochs=1,
        batch_size=8,
    )
    train(strategy, tasks, 1)
    assert not torch.equal(before, network.layers[0].linear.weight)
    assert turns(strategy, tasks)[0][0] == 0
