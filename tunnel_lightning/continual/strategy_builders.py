"""What Avalanche's strategies need beside a network, made from the run's backbone and stream."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn

from tunnel_lightning.backbones import Backbone
from tunnel_lightning.continual.models import Features, split_for_icarl
from tunnel_lightning.continual.strategy_networks import Featured, Labelled, Range
from tunnel_lightning.continual.stream import Stream

MakeOptimizer = Callable[[Any], torch.optim.Optimizer]
"""From the network's parameters to an optimizer over them."""


@dataclass
class Job:
    """A strategy to be built.

    Attributes:
        cls: its class.
        args: its own arguments.
        model: the network with its heads, as `prepare_model` returns it.
        backbone: the one inside it.
        stream: what it will learn.
        optimizer: from parameters to an optimizer.
        criterion: the loss.
        common: arguments that every strategy takes: epochs, batch sizes, device, plugins, evaluator.
    """

    cls: type
    args: dict[str, Any]
    model: nn.Module
    backbone: Backbone
    stream: Stream
    optimizer: MakeOptimizer
    criterion: Any
    common: dict[str, Any]

    @property
    def head(self) -> str:
        """``multi``, ``incremental`` or ``fixed``."""
        if hasattr(self.model, "forward_single_task"):
            return "multi"
        growing = type(self.backbone.head).__name__ == "IncrementalClassifier"
        return "incremental" if growing else "fixed"

    @property
    def batch_size(self) -> int:
        """Images of a step."""
        return self.common["train_mb_size"]

    @property
    def epochs(self) -> int:
        """Epochs over each task."""
        return self.common["train_epochs"]

    @property
    def tasks(self) -> int:
        """Tasks of the stream."""
        return len(self.stream.tasks)

    def images_of_tasks(self) -> list[int]:
        """How many images each task is learnt from."""
        return [len(experience.dataset) for experience in self.stream.benchmark.train_stream]

    def images_of_classes(self) -> list[int]:
        """How many images the network sees of each output, counted within each task."""
        counts: list[int] = []
        for experience in self.stream.benchmark.train_stream:
            targets = torch.as_tensor([int(target) for target in experience.dataset.targets])
            counts += torch.unique(targets, return_counts=True)[1].tolist()
        return counts


def build(job: Job) -> Any:
    """Any strategy that takes a network, an optimizer and a loss, or some of them."""
    wanted = inspect.signature(job.cls).parameters
    everything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in wanted.values())
    given = {"model": job.model, "criterion": job.criterion, **job.common}
    if everything or "optimizer" in wanted:
        given["optimizer"] = job.optimizer(job.model.parameters())
    return job.cls(**{key: value for key, value in given.items() if everything or key in wanted}, **job.args)


def build_si(job: Job) -> Any:
    """With a word where it diverges."""
    strategy = build(job)
    group = strategy.optimizer.param_groups[0]
    if group.get("momentum") or "betas" in group:
        warnings.warn(
            "SynapticIntelligence does not bound its importances below: with momentum they turn negative, and all "
            "but a tiny si_lambda diverges. Plain SGD is safe.",
            stacklevel=2,
        )
    return strategy


def build_icarl(job: Job) -> Any:
    """Feature extractor and classifier apart; the loss is the strategy's own."""
    extractor, classifier = split_for_icarl(job.backbone)
    return job.cls(
        feature_extractor=extractor,
        classifier=classifier,
        optimizer=job.optimizer(job.backbone.parameters()),
        **{"buffer_transform": None, "fixed_memory": True, **job.args},
        **job.common,
    )


def build_scr(job: Job) -> Any:
    """Features, normalised, with a projection for training and class means for testing."""
    from avalanche.models import SCRModel

    args = dict(job.args)
    width, size = job.backbone.head.in_features, int(args.pop("projection_size", 128))
    projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, size))
    model = SCRModel(Features(job.backbone), projection)
    return job.cls(model=model, optimizer=job.optimizer(model.parameters()), **job.common, **args)


def build_slda(job: Job) -> Any:
    """The features as they are; nothing is trained by gradients."""
    return job.cls(
        slda_model=Features(job.backbone),
        criterion=job.criterion,
        input_size=job.backbone.head.in_features,
        num_classes=job.stream.outputs,
        **job.common,
        **job.args,
    )


def build_lfl(job: Job) -> Any:
    """The network, as one that can be asked for its features."""
    from avalanche.models.base_model import BaseModel

    BaseModel.register(Featured)
    job.model = Featured(job.model, job.backbone)
    return build(job)


def build_cwr(job: Job) -> Any:
    """The name of the layer that classifies."""
    job.args = {"cwr_layer_name": classifier_name(job.model), **job.args}
    return build(job)


def build_feature_replay(job: Job) -> Any:
    """The last layer's name, and a loss of its own for each run."""
    from avalanche.training.losses import MaskedCrossEntropy

    # Avalanche's default is one object that all strategies of a program share, with the classes it has seen.
    job.criterion = MaskedCrossEntropy()
    job.args = {"last_layer_name": "head", **job.args}
    return build(job)


def build_gss(job: Job) -> Any:
    """The shape of an image."""
    job.args = {"input_size": list(job.stream.input_shape), **job.args}
    return build(job)


def build_er_aml(job: Job) -> Any:
    """The features beside the network."""
    job.args = {"feature_extractor": Features(job.backbone), **job.args}
    return build(job)


def build_cope(job: Job) -> Any:
    """Prototypes as long as the last layer is wide, and epochs instead of one batch for each task."""
    batches = job.args.pop("max_it_cnt", -1)
    job.args = {**job.args, "n_classes": job.stream.outputs, "p_size": job.stream.outputs}
    strategy = build(job)
    for plugin in strategy.plugins:
        if type(plugin).__name__ == "CoPEPlugin":
            plugin.max_it_cnt = batches
            plugin.before_training = _silent(plugin.before_training)
    return strategy


def _silent(call: Callable[..., None]) -> Callable[..., None]:
    """The same, without what it prints."""

    def silent(*args: Any, **kwargs: Any) -> None:
        with redirect_stdout(StringIO()):
            call(*args, **kwargs)

    return silent


def build_lamaml(job: Job) -> Any:
    """A network that takes task labels, needed or not."""
    if job.head != "multi":
        job.model = Labelled(job.model)
    return build(job)


def build_pnn(job: Job) -> Any:
    """Avalanche's own progressive network in the place of the backbone."""
    from avalanche.models import PNN
    from avalanche.models.utils import avalanche_model_adaptation

    args = dict(job.args)
    names = ("num_layers", "hidden_features_per_column", "adapter")
    options = {name: args.pop(name) for name in names if name in args}
    job.model = PNN(in_features=math.prod(job.stream.input_shape), **options)
    # Else it has no column for any task, and no layer runs before the first training.
    avalanche_model_adaptation(job.model, job.stream.benchmark.train_stream[0])
    job.args = args
    return build(job)


def build_packnet(job: Job) -> Any:
    """The backbone with one head that all tasks share, wrapped for pruning."""
    from avalanche.models.packnet import PackNetModel

    class PackNetNetwork(PackNetModel):
        """A PackNet that can be asked about one task, as networks with several heads can."""

        def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
            return self(x, torch.full((len(x),), task_label, device=x.device))

    backbone = job.backbone
    if not isinstance(backbone.head, nn.Linear):  # heads of its own: the masks take their place
        backbone.head = nn.Linear(features_of(job), job.stream.outputs)
    job.model = PackNetNetwork(backbone)
    # Avalanche puts the list of plugins into the list of plugins, where nobody calls them.
    plugins = job.common["plugins"]
    job.common = {**job.common, "plugins": None}
    strategy = build(job)
    strategy.plugins[:1] = plugins
    return strategy


def build_generative(job: Job) -> Any:
    """A generator of images of the stream's shape and range, trained beside the network."""
    from avalanche.models.generator import MlpVAE, VAE_loss
    from avalanche.training.plugins import GenerativeReplayPlugin
    from avalanche.training.supervised import VAETraining

    args = dict(job.args)
    if "generator_strategy" not in args:
        nhid, lr = args.pop("nhid", 2), args.pop("generator_lr", 0.01)
        common = {key: value for key, value in job.common.items() if key != "plugins"}
        vae = MlpVAE(job.stream.input_shape, nhid=nhid, device=common["device"])
        images = torch.cat([task.train.x for task in job.stream.tasks])
        # Avalanche's puts out images in the range of normalised MNIST, whatever it is shown.
        vae.decoder.invTrans = Range(images)
        names = (
            "replay_size",
            "increasing_replay_size",
            "is_weighted_replay",
            "weight_replay_loss_factor",
            "weight_replay_loss",
        )
        replay = GenerativeReplayPlugin(**{name: args[name] for name in names if name in args})
        args["generator_strategy"] = VAETraining(
            model=vae,
            optimizer=torch.optim.Adam(vae.parameters(), lr=lr, weight_decay=0.0001),
            criterion=VAE_loss,
            plugins=[replay],
            **{**common, "evaluator": quiet_evaluator()},
        )
    job.args = args
    return build(job)


def features_of(job: Job) -> int:
    """How many features the backbone hands to its head."""
    head: Any = job.model.head if job.head == "multi" else job.backbone.head
    return int(getattr(head, "classifier", head).in_features)


def classifier_name(model: nn.Module) -> str:
    """Name of the linear layer that puts out the scores."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]


def quiet_evaluator(metrics: bool = False) -> Any:
    """An evaluation plugin that prints nothing; with ``metrics`` it takes accuracy and loss of a stream."""
    from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
    from avalanche.training.plugins import EvaluationPlugin

    taken = [accuracy_metrics(stream=True), loss_metrics(stream=True)] if metrics else []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No loggers specified")
        return EvaluationPlugin(*taken, loggers=[])
