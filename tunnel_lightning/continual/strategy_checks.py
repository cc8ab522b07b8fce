"""What is refused before anything is learnt: arguments that are missing or wrong, and what hangs or misleads."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from torch import nn

from tunnel_lightning.continual.strategy_builders import Job
from tunnel_lightning.continual.strategy_table import NONE, Method

SET_ELSEWHERE = {
    "model": "it is the network under model",
    "optimizer": "it is under model",
    "criterion": "it is cross entropy, with model.label_smoothing",
    "train_mb_size": "it is batch_size",
    "train_epochs": "it is epochs",
    "train_passes": "it is epochs",
    "device": "it is device, beside the strategy",
    "plugins": "they are under plugins, beside the strategy",
    "evaluator": "the run measures for itself",
}
SHARED = ("eval_mb_size", "eval_every", "peval_mode")
"""Arguments that every strategy takes and a config may give."""
COUNTS = frozenset(
    (
        *("mem_size", "memory_size", "max_buffer_size", "batch_size", "batch_size_mem", "buffer_mb_size"),
        *("patterns_per_exp", "patterns_per_experience", "sample_size", "subsample", "replay_size"),
        *("n_inner_steps", "n_inner_updates", "projection_size", "delta_t", "eval_mb_size"),
        *("num_layers", "hidden_features_per_column", "nhid"),
    )
)
"""Arguments of strategies and plugins that count something there must be one of."""


def check_arguments(method: Method, cls: type, args: Mapping[str, Any]) -> None:
    """Refuse arguments that a strategy does not take, and say which are missing.

    Args:
        method: the strategy.
        cls: its class.
        args: its own arguments.

    Raises:
        ValueError: naming the argument.
    """
    name = method.name
    parameters = inspect.signature(cls).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = {key for key, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD}
    own = (named | set(method.extra)) - set(SET_ELSEWHERE) - set(method.given)
    taken = own | {key for key in SHARED if open_ended or key in named}
    for key in args:
        if key in SET_ELSEWHERE:
            raise ValueError(f"{name}: {key} is no argument to give here: {SET_ELSEWHERE[key]}.")
        if key in method.given:
            raise ValueError(f"{name}: {key} is made from the network and the stream; leave it out.")
        if key not in taken and (method.about or not open_ended):
            near = get_close_matches(key, own - set(SHARED), n=3) or sorted(own - set(SHARED))
            hint = f"did you mean {' or '.join(near)}?" if near else "it takes none of its own."
            raise ValueError(f"{name} has no argument {key}: {hint}")
    check_numbers(name, parameters, args, method.required)
    missing = {key: value for key, value in method.required.items() if key not in args}
    if missing:
        example = ", ".join(f"{key}: {value}" for key, value in missing.items())
        raise ValueError(f"{name} needs {' and '.join(missing)}, for instance {{{example}}}: give init_args.")
    if not method.about:  # a class that is not in the table
        without = [
            key
            for key, parameter in parameters.items()
            if key in named and parameter.default is parameter.empty and key not in {*args, *SET_ELSEWHERE}
        ]
        if without:
            raise ValueError(f"{name} needs {' and '.join(without)}: give init_args.")


def check_numbers(
    name: str,
    parameters: Mapping[str, inspect.Parameter],
    args: Mapping[str, Any],
    examples: Mapping[str, Any] = NONE,
) -> None:
    """Refuse texts in the place of numbers, and memories and batches of nothing.

    Args:
        name: of the strategy or plugin.
        parameters: of its class.
        args: its own arguments.
        examples: values of arguments that have no default.

    Raises:
        ValueError: naming the argument.

    Example:
        >>> check_numbers("Replay", {}, {"mem_size": -3})
        Traceback (most recent call last):
        ValueError: Replay: mem_size is -3; give a whole number from 1.
    """
    for key, value in args.items():
        usual = parameters[key].default if key in parameters else None
        example = examples.get(key, usual)
        if key in COUNTS:
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            left_open = value is None and (usual is None or key == "batch_size_mem")
            if not (whole or left_open):
                raise ValueError(f"{name}: {key} is {value!r}; give a whole number from 1.")
        elif isinstance(value, str | bool) and isinstance(example, int | float):
            switch = isinstance(example, bool)
            if not (switch and isinstance(value, bool)):
                wanted = "true or false" if switch else "a number"
                raise ValueError(f"{name}: {key} is {value!r}; give {wanted}.")


def refuse(job: Job, method: Method) -> None:
    """Refuse what would hang, fail half-way or silently mislead.

    Raises:
        ValueError: saying what goes wrong and what to give instead.
    """
    name = method.name
    if method.fails:
        raise ValueError(f"{name} does not run here: {method.fails}.")
    if job.head not in method.heads:
        raise ValueError(f"{name} does not go with head {job.head}: {_heads(method.heads)}.")
    smoothing = getattr(job.criterion, "label_smoothing", 0.0)
    if method.own_loss and smoothing:
        raise ValueError(
            f"{name} has a loss of its own, so label_smoothing={smoothing} would be ignored: leave it out."
        )
    if name in _CHECKS:
        _CHECKS[name](job)


def _heads(heads: Iterable[str]) -> str:
    if set(heads) == {"multi"}:
        return "it needs task labels: take scenario kind task_incremental"
    kinds = " or ".join(heads)
    return (
        f"take head {kinds}, which is for streams with one head, as class_incremental or domain_incremental"
    )


def _new_classes(job: Job) -> None:
    if not job.stream.disjoint:
        raise ValueError(
            f"{job.cls.__name__} needs new classes in each task, and those of a {job.stream.kind} stream come again: "
            "take kind class_incremental."
        )


def _icarl(job: Job) -> None:
    _new_classes(job)
    if not hasattr(job.stream.benchmark, "n_classes_per_exp"):
        raise ValueError("ICaRL asks the benchmark for n_classes_per_exp, which this one does not know.")


def _lists(key: str) -> Callable[[Job], None]:
    def check(job: Job) -> None:
        value = job.args[key]
        if isinstance(value, list | tuple) and len(value) < job.tasks:
            raise ValueError(
                f"{job.cls.__name__}: {key} has {len(value)} values for {job.tasks} tasks: give one for each, "
                "or a number."
            )

    return check


def _agem(job: Job) -> None:
    size = job.args.get("sample_size", 64)
    if size < job.tasks - 1:
        raise ValueError(
            f"AGEM: sample_size is {size}, shared among up to {job.tasks - 1} former tasks: give at least "
            f"{job.tasks - 1}."
        )


def _gss(job: Job) -> None:
    size, batch = job.args.get("mem_size", 200), job.batch_size + 32
    if size < batch:
        raise ValueError(
            f"GSS_greedy: mem_size is {size}, but it compares each batch, {job.batch_size} new images and 32 "
            f"remembered ones, with as many of its memory: give at least {batch}."
        )


def _er_aml(job: Job) -> None:
    size, batch, classes = job.args.get("mem_size", 200), job.batch_size, job.stream.outputs
    if size // classes < batch:
        raise ValueError(
            f"ER_AML would wait forever for a batch of {batch} images of one class: mem_size={size} keeps "
            f"{size // classes} of each of {classes}; give mem_size of at least {batch * classes}, or a smaller "
            "batch_size."
        )
    fewest = min(job.images_of_classes())
    if fewest < batch:
        raise ValueError(
            f"ER_AML would wait forever for a batch of {batch} images of one class: there is a class of {fewest}; "
            "give a smaller batch_size."
        )


def _feature_replay(job: Job) -> None:
    held, batch = (
        min(job.args.get("mem_size", 200), job.images_of_tasks()[0]),
        job.args.get("batch_size_mem", 10),
    )
    if batch is None:
        batch = job.batch_size
    if held < batch:
        raise ValueError(
            f"FeatureReplay would wait forever for a batch of {batch} features from a memory of {held}: lower "
            "batch_size_mem or raise mem_size."
        )


def _bic(job: Job) -> None:
    _new_classes(job)
    size, part = job.args.get("mem_size", 200), job.args.get("val_percentage", 0.1)
    if int(part * size) < 1:
        raise ValueError(
            f"BiC corrects its scores on val_percentage of mem_size, {part} of {size}, which is no image: raise one."
        )


def _lamaml(job: Job) -> None:
    fewest = min(job.images_of_tasks())
    if fewest < job.batch_size:
        raise ValueError(
            f"LaMAML learns from whole batches only, so of a task of {fewest} images it would learn nothing in "
            f"batches of {job.batch_size}: give a smaller batch_size."
        )


def _packnet(job: Job) -> None:
    after = job.args["post_prune_epochs"]
    if after >= job.epochs:
        raise ValueError(
            f"PackNet: post_prune_epochs is {after} of {job.epochs} epochs: it must be less, for it trains "
            "before pruning too."
        )
    norms = [name for name, module in job.backbone.named_modules() if hasattr(module, "running_mean")]
    if norms:
        raise ValueError(
            f"PackNet can't prune normalisation layers, and the network has {norms[0]}: take one without, as MLP "
            "or VGG with batch_norm: false."
        )


def _cwr(job: Job) -> None:
    name = job.args.get("cwr_layer_name")
    modules = dict(job.model.named_modules())
    if name is not None and not isinstance(modules.get(name), nn.Linear):
        linear = [each for each, module in modules.items() if isinstance(module, nn.Linear)]
        raise ValueError(
            f"CWRStar: cwr_layer_name is {name!r}, but the linear layers are {', '.join(linear)}: leave it out "
            f"to have {linear[-1]}."
        )


def _mir(job: Job) -> None:
    if not hasattr(job.criterion, "reduction"):
        raise ValueError(
            "MIR needs the loss of each image, but this loss has no reduction: take cross entropy."
        )


_CHECKS: dict[str, Callable[[Job], None]] = {
    "ICaRL": _icarl,
    "LwF": _lists("alpha"),
    "LFL": _lists("lambda_e"),
    "AGEM": _agem,
    "GSS_greedy": _gss,
    "ER_AML": _er_aml,
    "FeatureReplay": _feature_replay,
    "BiC": _bic,
    "LaMAML": _lamaml,
    "PackNet": _packnet,
    "CWRStar": _cwr,
    "MIR": _mir,
}
