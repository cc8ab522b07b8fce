"""All of Avalanche's strategies, and how each fares here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

FIXED: tuple[str, ...] = ("fixed",)
ONE: tuple[str, ...] = ("fixed", "incremental")
MULTI: tuple[str, ...] = ("multi",)
ALL: tuple[str, ...] = ("fixed", "incremental", "multi")
NONE: Mapping[str, Any] = MappingProxyType({})


class Method(NamedTuple):
    """One strategy.

    Attributes:
        name: as a config says it.
        path: class path.
        about: what it does, with its source.
        heads: heads of the network that it learns with.
        needs: what else it needs of network, data or arguments.
        required: arguments without a default, each with a value that may do.
        given: arguments that are made from network and stream, so nobody gives them.
        extra: arguments that Avalanche's constructor does not know.
        resumable: whether a run can go on after any task.
        loop: ``lightning`` where a Trainer can drive it, ``native`` where only its own loop can.
        own_loss: whether it ignores the loss it is given, in some of its steps at least.
        note: what to know before reading its figures.
        fails: why it is refused; empty for those that run.
    """

    name: str
    path: str
    about: str
    heads: tuple[str, ...] = ALL
    needs: str = ""
    required: Mapping[str, Any] = NONE
    given: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    resumable: bool = False
    loop: Literal["lightning", "native"] = "lightning"
    own_loss: bool = False
    note: str = ""
    fails: str = ""


_SUPERVISED = "avalanche.training.supervised."
_WRAPPERS = _SUPERVISED + "strategy_wrappers."

_METHODS = (
    Method(
        "Naive",
        _WRAPPERS + "Naive",
        "fine-tunes on each task",
        resumable=True,
    ),
    Method(
        "Cumulative",
        _SUPERVISED + "cumulative.Cumulative",
        "learns from all images so far",
        resumable=True,
    ),
    Method(
        "JointTraining",
        _SUPERVISED + "joint_training.JointTraining",
        "learns from all tasks at once: the upper bound",
        resumable=True,
        note="One training on the whole stream; its figures are those after the last task.",
    ),
    Method(
        "FromScratchTraining",
        _WRAPPERS + "FromScratchTraining",
        "starts from the first weights with each task",
        needs="an optimizer with one group of parameters",
        note="Running statistics of BatchNorm are not put back.",
    ),
    Method(
        "Replay",
        _WRAPPERS + "Replay",
        "adds a batch of remembered images to each batch",
        resumable=True,
    ),
    Method(
        "GDumb",
        _WRAPPERS + "GDumb",
        "trains a fresh copy on a balanced memory (Prabhu et al., 2020)",
        note="The network is another object after each task.",
    ),
    Method(
        "EWC",
        _WRAPPERS + "EWC",
        "holds weights that matter by Fisher information (Kirkpatrick et al., 2017)",
        required={"ewc_lambda": 1.0},
        resumable=True,
    ),
    Method(
        "SynapticIntelligence",
        _WRAPPERS + "SynapticIntelligence",
        "holds weights by their share in the fall of the loss (Zenke et al., 2017)",
        required={"si_lambda": 0.0001},
        resumable=True,
        note="Mended: on the CPU Avalanche's own equals Naive. With momentum all but tiny `si_lambda` diverge.",
    ),
    Method(
        "MAS",
        _WRAPPERS + "MAS",
        "holds weights the outputs depend on (Aljundi et al., 2018)",
        resumable=True,
        note="With a large learning rate the default `lambda_reg` of 1 diverges.",
    ),
    Method(
        "LwF",
        _WRAPPERS + "LwF",
        "distils the answers of the network before this task (Li and Hoiem, 2016)",
        required={"alpha": 1.0, "temperature": 2.0},
        resumable=True,
        note="The teacher is left in training mode: BatchNorm and dropout act in it.",
    ),
    Method(
        "LFL",
        _WRAPPERS + "LFL",
        "holds features (Jung et al., 2016)",
        heads=ONE,
        required={"lambda_e": 0.001},
        note="From the second task on it trains in evaluation mode, and the classifier's first weights are frozen.",
    ),
    Method(
        "GEM",
        _WRAPPERS + "GEM",
        "projects gradients that would harm remembered images (Lopez-Paz and Ranzato, 2017)",
        required={"patterns_per_exp": 50},
        resumable=True,
    ),
    Method(
        "AGEM",
        _WRAPPERS + "AGEM",
        "the same for their mean (Chaudhry et al., 2019)",
        needs="`sample_size` of an image for each former task",
        required={"patterns_per_exp": 50},
        resumable=True,
    ),
    Method(
        "GSS_greedy",
        _WRAPPERS + "GSS_greedy",
        "remembers images whose gradients differ (Aljundi et al., 2019)",
        heads=ONE,
        needs="`mem_size` of the batch size + 32 or more",
        given=("input_size",),
    ),
    Method(
        "MIR",
        _WRAPPERS + "MIR",
        "replays what this step would harm most (Aljundi et al., 2019)",
        needs="a loss with a `reduction`",
        required={"mem_size": 200, "subsample": 50},
    ),
    Method(
        "DER",
        _SUPERVISED + "der.DER",
        "replays images with the scores they had (Buzzega et al., 2020); DER++ where `beta` is above 0",
        heads=FIXED,
        resumable=True,
        loop="native",
        own_loss=True,
    ),
    Method(
        "ER_ACE",
        _SUPERVISED + "er_ace.ER_ACE",
        "replay; new classes compete only among themselves (Caccia et al., 2022)",
        loop="native",
        own_loss=True,
    ),
    Method(
        "ER_AML",
        _SUPERVISED + "er_aml.ER_AML",
        "replay with a contrastive loss on new images (Caccia et al., 2022)",
        heads=ONE,
        needs="in memory, a batch of every class: `mem_size` >= classes x batch size",
        given=("feature_extractor",),
        loop="native",
        own_loss=True,
    ),
    Method(
        "SCR",
        _SUPERVISED + "supervised_contrastive_replay.SCR",
        "contrastive replay; answers by the nearest class mean (Mai et al., 2021)",
        heads=FIXED,
        extra=("projection_size",),
        own_loss=True,
        note="The backbone's head is not used. `augmentations` do nothing by default; give a class path.",
    ),
    Method(
        "ICaRL",
        _SUPERVISED + "icarl.ICaRL",
        "exemplars and distillation; answers by the nearest class mean (Rebuffi et al., 2017)",
        heads=FIXED,
        needs="new classes in each task",
        required={"memory_size": 200},
        given=("feature_extractor", "classifier"),
        resumable=True,
        own_loss=True,
    ),
    Method(
        "BiC",
        _WRAPPERS + "BiC",
        "replay and distillation, then corrects the scores of new classes (Wu et al., 2019)",
        heads=ONE,
        needs="new classes in each task; `val_percentage` of `mem_size` of an image or more",
    ),
    Method(
        "FeatureReplay",
        _SUPERVISED + "feature_replay.FeatureReplay",
        "replays features to the classifier (Magistri et al., 2024)",
        heads=FIXED,
        needs="`batch_size_mem` of no more than memory and first task hold",
        given=("last_layer_name",),
        own_loss=True,
        note="The classifier leaves the backbone: it is `train_classifier`.",
    ),
    Method(
        "GenerativeReplay",
        _WRAPPERS + "GenerativeReplay",
        "replays images of a generator trained alongside (Shin et al., 2017)",
        heads=ONE,
        extra=("nhid", "generator_lr"),
        note="The generator is made for the shape and range of the stream's images; Avalanche's own is for MNIST.",
    ),
    Method(
        "CWRStar",
        _WRAPPERS + "CWRStar",
        "after the first task only the classifier learns (Lomonaco et al., 2020)",
        heads=ONE,
        given=(),
        note="`cwr_layer_name` is filled in with the last linear layer's.",
    ),
    Method(
        "CoPE",
        _WRAPPERS + "CoPE",
        "class prototypes kept up to date by replay (De Lange and Tuytelaars, 2021)",
        heads=FIXED,
        given=("n_classes", "p_size"),
        extra=("max_it_cnt",),
        own_loss=True,
        note="Learns all batches of a task; Avalanche's, meant for tasks of one batch, learns one (`max_it_cnt: 1`).",
    ),
    Method(
        "StreamingLDA",
        _SUPERVISED + "deep_slda.StreamingLDA",
        "linear discriminants on features that never learn (Hayes and Kanan, 2020)",
        heads=FIXED,
        given=("slda_model", "input_size", "num_classes", "output_layer_name"),
        loop="native",
        own_loss=True,
        note="The backbone's head is not used.",
    ),
    Method(
        "MER",
        _SUPERVISED + "mer.MER",
        "replay with Reptile's meta-updates (Riemer et al., 2019)",
        loop="native",
        note="A step for each single image: slow, and BatchNorm sees one image at a time.",
    ),
    Method(
        "LaMAML",
        _SUPERVISED + "lamaml_v2.LaMAML",
        "look-ahead meta-learning with learnt rates (Gupta et al., 2020)",
        heads=ONE,
        needs="tasks of a batch or more",
        loop="native",
        note="Draws all weights anew (He et al.) when it is made. The second version; the first can't run.",
    ),
    Method(
        "PackNet",
        _WRAPPERS + "PackNet",
        "gives each task weights of its own by pruning (Mallya and Lazebnik, 2018)",
        heads=MULTI,
        needs="no normalisation layers; more epochs than `post_prune_epochs`",
        required={"post_prune_epochs": 1, "prune_proportion": 0.5},
        note="One head in the place of several. Its layers are wrapped: name them by pattern under `taps`.",
    ),
    Method(
        "PNNStrategy",
        _WRAPPERS + "PNNStrategy",
        "a new column of layers for each task (Rusu et al., 2016)",
        heads=MULTI,
        extra=("num_layers", "hidden_features_per_column", "adapter"),
        note="Brings Avalanche's own fully connected network for the backbone; of it the first column is measured.",
    ),
    Method(
        "AR1",
        _SUPERVISED + "ar1.AR1",
        "latent replay with Synaptic Intelligence",
        loop="native",
        fails="it makes a MobileNetV1 of its own and downloads its weights",
    ),
    Method(
        "ExpertGateStrategy",
        _SUPERVISED + "expert_gate.ExpertGateStrategy",
        "a network for each task, chosen by autoencoders",
        fails="it trains AlexNets of its own whose weights it downloads",
    ),
    Method(
        "LearningToPrompt",
        _SUPERVISED + "l2p.LearningToPrompt",
        "learns prompts of a vision transformer",
        fails="it trains prompts for a pretrained vision transformer of its own, which it downloads",
    ),
    Method(
        "LaMAML_v1",
        _SUPERVISED + "lamaml.LaMAML",
        "first version of LaMAML",
        loop="native",
        fails="it needs the package higher, which is no longer maintained; take LaMAML, the second version",
    ),
    Method(
        "OnlineNaive",
        _SUPERVISED + "strategy_wrappers_online.OnlineNaive",
        "Naive under an older name",
        fails="Avalanche gave it up; take Naive",
    ),
    Method(
        "AETraining",
        _WRAPPERS + "AETraining",
        "trains an autoencoder",
        fails="it trains an autoencoder, which has no classes to be measured on",
    ),
    Method(
        "VAETraining",
        _WRAPPERS + "VAETraining",
        "trains a variational autoencoder",
        fails="it trains an autoencoder, which has no classes to be measured on; GenerativeReplay brings one",
    ),
    Method(
        "ObjectDetectionTemplate",
        _SUPERVISED + "naive_object_detection.ObjectDetectionTemplate",
        "detects objects",
        fails="it is for object detection, and the streams here are of classification",
    ),
)

STRATEGIES: Mapping[str, Method] = MappingProxyType({method.name: method for method in _METHODS})
"""Every strategy of Avalanche by name."""
