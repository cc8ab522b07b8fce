"""The network that a strategy trains: prepared for the stream, found again inside, and asked without a trace."""

import doctest
import importlib
import warnings

import pytest
import torch
from continual.toys import mlp, normed, sgd, stream
from torch import nn

from tunnel_lightning.backbones import MLP
from tunnel_lightning.continual.compat import avalanche
from tunnel_lightning.continual.models import TaskView, backbone_in, knows, prepare_model, split_for_icarl
from tunnel_lightning.taps.quiet import quiet

SPLIT = [[0, 1], [2, 3], [4, 5]]
UNEVEN = [[0, 1], [2, 3, 4], [5, 6]]


@pytest.fixture(autouse=True)
def calm():
    avalanche()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def options(model, **more):
    return {
        "optimizer": sgd(model.parameters()), "train_mb_size": 8, "train_epochs": 2, "eval_mb_size": 8,
        "evaluator": None, **more,
    }  # fmt: skip


def naive(model, **more):
    from avalanche.training import Naive

    return Naive(model=model, criterion=nn.CrossEntropyLoss(), **options(model, **more))


def learn(strategy, stream, upto=None, between=lambda: None):
    """The stream's experiences, one after the other."""
    torch.manual_seed(1)
    for task, experience in zip(stream.tasks[:upto], stream.benchmark.train_stream, strict=False):
        between()
        strategy.train(experience)
        strategy.learnt = task.index
    between()


def ask(model, task):
    """The scores of a task's test images, and nothing changed by asking for them."""
    view = TaskView(model, task.label)
    with quiet(view):
        return view(task.test.x)


def state(model):
    return {name: each.clone() for name, each in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# prepare_model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["class_incremental", "domain_incremental", "permuted", "rotated"])
def test_one_head_is_the_backbones_own(kind):
    one = stream(kind, 2 if kind in ("permuted", "rotated") else SPLIT)
    network = mlp(one)
    head = network.head
    assert prepare_model(network, one) is network
    assert network.head is head


def test_task_incremental_streams_get_a_head_for_each_task():
    split = stream("task_incremental", UNEVEN)
    network = mlp(split)
    weight = network.head.weight.clone()
    model = prepare_model(network, split)
    assert backbone_in(model) is network
    # The first head starts with the backbone's own weights, as Avalanche has it.
    assert torch.equal(model.head.classifiers["0"].classifier.weight, weight)
    learn(naive(model), split)
    assert [each.classifier.out_features for each in model.head.classifiers.values()] == [3, 3, 3]


def test_a_fixed_head_can_be_shared_where_labels_are_known():
    split = stream("task_incremental", SPLIT)
    network = mlp(split)
    assert prepare_model(network, split, "fixed") is network


def test_an_incremental_head_grows_with_the_classes_and_masks_nothing():
    split = stream("class_incremental", UNEVEN)
    model = prepare_model(mlp(split), split, "incremental")
    assert backbone_in(model) is model
    grown = []

    def between():
        grown.append((ask(model, split.tasks[0]).shape[1], [knows(model, task) for task in split.tasks]))
        assert ask(model, split.tasks[0]).min() > -100

    learn(naive(model), split, between=between)
    assert grown == [
        (2, [True, False, False]),
        (2, [True, False, False]),
        (5, [True, True, False]),
        (7, [True, True, True]),
    ]


@pytest.mark.parametrize(
    ("kind", "head", "sentence"),
    [
        ("class_incremental", "multi", "share one head: take head fixed or incremental"),
        ("domain_incremental", "multi", "share one head"),
        ("task_incremental", "incremental", "no head grows: take head multi"),
        ("class_incremental", "single", "head must be auto, fixed, multi or incremental, got 'single'"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(kind, head, sentence):
    split = stream(kind, SPLIT)
    with pytest.raises(ValueError, match=sentence):
        prepare_model(mlp(split), split, head)


@pytest.mark.parametrize("kind", ["class_incremental", "task_incremental"])
def test_a_backbone_of_another_size_is_refused(kind):
    split = stream(kind, SPLIT)
    network = MLP(depth=1, width=4, num_classes=9, input_shape=split.input_shape)
    with pytest.raises(ValueError, match=f"has 9 outputs, but the stream needs {split.outputs}"):
        prepare_model(network, split)


def test_a_backbone_is_prepared_once():
    split = stream("task_incremental", SPLIT)
    network = mlp(split)
    prepare_model(network, split)
    with pytest.raises(ValueError, match="was prepared for a stream before"):
        prepare_model(network, split)


# TaskView and knows -------------------------------------------------------------------------------------------


def test_a_view_gives_the_scores_that_the_strategys_model_gives():
    for kind in ("class_incremental", "task_incremental"):
        split = stream(kind, SPLIT)
        model = prepare_model(normed(split), split)
        learn(naive(model), split)
        model.eval()
        for task in split.tasks:
            labels = torch.full((len(task.test.y),), task.label)
            with torch.no_grad():
                wanted = model(task.test.x, labels) if split.multi_head else model(task.test.x)
            assert torch.equal(ask(model, task), wanted)
    # Of several heads, the label chooses.
    assert not torch.equal(ask(model, split.tasks[2]), TaskView(model, 0)(split.tasks[2].test.x))


def test_only_trained_heads_are_known():
    split = stream("task_incremental", UNEVEN)
    model = prepare_model(mlp(split), split)
    strategy = naive(model)
    assert [knows(model, task) for task in split.tasks] == [False, False, False]
    learn(strategy, split, upto=2)
    assert [knows(model, task) for task in split.tasks] == [True, True, False]
    assert len(model.head.classifiers) == 2
    # Avalanche's evaluation makes the head of a task that was never learnt.
    strategy.eval(split.benchmark.test_stream)
    assert len(model.head.classifiers) == 3
    assert [knows(model, task) for task in split.tasks] == [True, True, False]


def test_which_heads_are_known_is_read_from_weights_alone():
    """The set of labels that Avalanche keeps beside the weights is in no state_dict."""
    split = stream("task_incremental", SPLIT)
    model = prepare_model(mlp(split), split)
    learn(naive(model), split, upto=2)
    model.known_train_tasks_labels = set()
    assert [knows(model, task) for task in split.tasks] == [True, True, False]


def test_asking_makes_no_head_and_moves_nothing():
    split = stream("task_incremental", SPLIT)
    model = prepare_model(normed(split), split)
    learn(naive(model), split, upto=2)
    before, rng = state(model), torch.get_rng_state()
    with quiet(model), pytest.raises(KeyError):
        TaskView(model, 2)(split.tasks[2].test.x)
    ask(model, split.tasks[0])
    assert same(state(model), before)
    assert torch.equal(torch.get_rng_state(), rng)
    assert model.training


def test_idle_outputs_of_a_small_task_never_win():
    split = stream("task_incremental", UNEVEN)
    model = prepare_model(mlp(split), split)
    learn(naive(model), split)
    scores = ask(model, split.tasks[0])
    assert scores.shape[1] == 3
    assert (scores[:, 2] == -1000).all()
    assert scores[:, :2].min() > -100


def test_several_heads_can_be_asked_for_bfloat16_scores():
    split = stream("task_incremental", SPLIT)
    model = prepare_model(mlp(split), split)
    learn(naive(model), split)
    with torch.autocast("cpu", torch.bfloat16):
        scores = ask(model, split.tasks[1])
    torch.testing.assert_close(scores.float(), ask(model, split.tasks[1]), rtol=0, atol=0.05)


# Strategies that wrap, split or replace the model ---------------------------------------------------------------


def icarl(network, split):
    from avalanche.training import ICaRL

    extractor, classifier = split_for_icarl(network)
    return ICaRL(
        feature_extractor=extractor, classifier=classifier, memory_size=20, buffer_transform=None,
        fixed_memory=True, **options(network),
    )  # fmt: skip


def gdumb(network, split):
    from avalanche.training import GDumb

    return GDumb(model=network, criterion=nn.CrossEntropyLoss(), mem_size=20, **options(network))


def packnet(network, split):
    from avalanche.models.packnet import PackNetModel, PackNetPlugin

    return naive(PackNetModel(network), plugins=[PackNetPlugin(post_prune_epochs=1, prune_proportion=0.5)])


def several_heads(network, split):
    return naive(prepare_model(network, split))


def scr(network, split):
    from avalanche.models import SCRModel
    from avalanche.training import SCR

    extractor, _ = split_for_icarl(network)
    model = SCRModel(extractor, projection=nn.Linear(network.head.in_features, 8))
    return SCR(model=model, augmentations=nn.Identity(), mem_size=20, **options(model, train_epochs=1))


STRATEGIES = {
    "class_incremental": (icarl, gdumb, scr),
    "task_incremental": (several_heads, packnet),
}
CASES = [(kind, make) for kind, makes in STRATEGIES.items() for make in makes]


@pytest.mark.parametrize(("kind", "make"), CASES, ids=lambda each: getattr(each, "__name__", each))
def test_asking_between_tasks_leaves_training_bitwise_unchanged(kind, make):
    split = stream(kind, SPLIT)
    network = mlp if make is packnet else normed  # PackNet takes no BatchNorm
    # Not copied: a copy of PackNet's weights would lose its hooks.
    asked, left = (make(network(split), split) for _ in range(2))
    assert same(state(asked.model), state(left.model))
    answers = []

    def between():
        mine = [task for task in split.tasks if knows(asked.model, task)]
        answers.append([(task.index, ask(asked.model, task)) for task in mine])

    learn(asked, split, between=between)
    learn(left, split)
    assert same(state(asked.model), state(left.model))
    assert same(state(backbone_in(asked.model)), state(backbone_in(left.model)))
    assert [index for index, _ in answers[-1]] == [0, 1, 2]
    if make is not gdumb:  # that one's outputs are all there from the start
        assert answers[0] == []


@pytest.mark.parametrize(("kind", "make"), CASES, ids=lambda each: getattr(each, "__name__", each))
def test_the_backbone_is_found_in_whatever_the_strategy_made_of_it(kind, make):
    split = stream(kind, SPLIT)
    network = mlp(split)
    strategy = make(network, split)
    assert backbone_in(strategy.model) is network
    learn(strategy, split)
    found = backbone_in(strategy.model)
    assert type(found) is type(network)
    # GDumb trains a fresh copy each time: who keeps the backbone keeps an old one.
    assert (found is network) == (make is not gdumb)
    x = split.tasks[0].test.x
    with torch.no_grad():
        assert found.features(x).shape == (len(x), 16)


def test_icarl_is_known_once_it_has_class_means():
    split = stream("class_incremental", SPLIT)
    network = mlp(split)
    strategy = icarl(network, split)
    assert not any(knows(strategy.model, task) for task in split.tasks)
    learn(strategy, split)
    assert all(knows(strategy.model, task) for task in split.tasks)
    task = split.tasks[2]
    strategy.model.eval()
    with torch.no_grad():
        assert torch.equal(ask(strategy.model, task), strategy.model(task.test.x))
        # The nearest mean answers; the head that was trained stays in the backbone, and trained it was.
        assert not torch.equal(network(task.test.x), ask(strategy.model, task))
    assert not torch.equal(network.head.weight, mlp(split).head.weight)


def test_packnet_answers_for_an_old_task_with_that_tasks_weights():
    split = stream("task_incremental", SPLIT)
    network = mlp(split, width=32)
    strategy = packnet(network, split)
    first = []
    learn(strategy, split, upto=1)
    first = ask(strategy.model, split.tasks[0])
    assert [knows(strategy.model, task) for task in split.tasks] == [True, False, False]
    rng = torch.get_rng_state()
    for experience in list(split.benchmark.train_stream)[1:]:
        strategy.train(experience)
    assert not torch.equal(torch.get_rng_state(), rng)
    assert [knows(strategy.model, task) for task in split.tasks] == [True, True, True]
    before, active = state(strategy.model), strategy.model.active_task
    # Later tasks may not touch what the first set aside: its answers are still the same.
    assert torch.equal(ask(strategy.model, split.tasks[0]), first)
    assert strategy.model.active_task == active
    assert same(state(strategy.model), before)
    assert not torch.equal(TaskView(strategy.model, 2)(split.tasks[0].test.x), first)


def test_a_model_without_a_backbone_is_taken_as_it_is():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert backbone_in(model) is model
    split = stream("class_incremental", SPLIT)
    assert knows(model, split.tasks[2])
    assert ask(model, split.tasks[2]).shape == (24, 10)


@pytest.mark.parametrize("module", ["models"])
def test_examples_of_the_docstrings_run(module):
    done = doctest.testmod(importlib.import_module(f"tunnel_lightning.continual.{module}"))
    assert done.attempted > 0
    assert done.failed == 0
