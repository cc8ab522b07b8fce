"""The base class of every network, and how a network is written down and made again."""

import inspect
import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from typing_extensions import Self


class Backbone(nn.Module):
    """A classifier network: features, then a linear head.

    A subclass calls ``super().__init__(num_classes, input_shape)``, sets ``head`` and defines ``features``.
    Its constructor takes plain values (numbers, bools, strings, None, lists and dicts of them) and ends with
    ``num_classes`` and ``input_shape``, which the command line fills in from the data. What the outermost
    constructor was called with is kept in ``init_args``, so a checkpoint can say how to make the network
    again without storing the object.

    Args:
        num_classes: number of outputs.
        input_shape: channels, height and width of one image.

    Attributes:
        head: the final ``nn.Linear``.
        init_args: the constructor's arguments, defaults included, as plain values.

    Raises:
        TypeError: an argument is no plain value, or the constructor takes ``*args``.
        ValueError: fewer than two classes, or no shape of three positive sizes.

    Example:
        >>> class Linear(Backbone):
        ...     def __init__(self, bias=True, num_classes=10, input_shape=(3, 32, 32)):
        ...         super().__init__(num_classes, input_shape)
        ...         self.head = nn.Linear(3 * 32 * 32, num_classes, bias=bias)
        ...
        ...     def features(self, x):
        ...         return x.flatten(1)
        >>> Linear(bias=False).init_args
        {'bias': False, 'num_classes': 10, 'input_shape': [3, 32, 32]}
    """

    head: nn.Linear
    init_args: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keep the arguments of the outermost constructor before it runs."""
        backbone = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(backbone, *args, **kwargs)
        except TypeError:
            # Wrong arguments: __init__ says so itself. No arguments: copy and pickle, which restore
            # init_args.
            return backbone
        bound.apply_defaults()
        backbone.init_args = _plain_arguments(cls, bound)
        return backbone

    def __init__(self, num_classes: int = 10, input_shape: tuple[int, int, int] = (3, 32, 32)) -> None:
        super().__init__()
        # A link from the data may bring it as a list.
        self.input_shape: tuple[int, int, int] = tuple(input_shape)  # type: ignore[assignment]
        self.num_classes = num_classes
        name = type(self).__name__
        if num_classes < 2:
            raise ValueError(f"{name}: num_classes is {num_classes}; a classifier needs at least 2.")
        if len(self.input_shape) != 3 or min(self.input_shape) < 1:
            raise ValueError(
                f"{name}: input_shape is {self.input_shape}; give channels, height and width, all positive."
            )

    @property
    def config(self) -> dict[str, Any]:
        """Class path and arguments, as a config file has them; ``rebuild`` reads it."""
        return {
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "init_args": dict(self.init_args),
        }

    def features(self, x: Tensor) -> Tensor:
        """What the head reads, [B, ``head.in_features``], of images [B, C, H, W]."""
        raise NotImplementedError(f"{type(self).__name__} defines no features(x).")

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of images [B, C, H, W]."""
        return self.head(self.features(x))


def rebuild(config: Mapping[str, Any]) -> Backbone:
    """The network that ``Backbone.config`` describes, with fresh weights.

    The class must already be imported: what a file names is never imported for it, so a checkpoint cannot run
    code. Nothing is downloaded: pretrained weights are the caller's to load.

    Args:
        config: ``class_path`` and ``init_args``.

    Raises:
        ValueError: the class is not imported, or is no ``Backbone``.

    Example:
        >>> from tunnel_lightning.backbones import MLP
        >>> twin = rebuild(MLP(depth=2, width=8).config)
        >>> twin.init_args["depth"], twin.init_args["width"]
        (2, 8)
    """
    init_args = dict(config["init_args"])
    if "pretrained" in init_args:
        init_args["pretrained"] = False
    return imported_class(config["class_path"], Backbone)(**init_args)


def imported_class(class_path: str, base: type) -> type:
    """The already imported subclass of ``base`` at a dotted path.

    Raises:
        ValueError: there is none.

    Example:
        >>> imported_class("torch.nn.modules.linear.Linear", nn.Module).__name__
        'Linear'
    """
    module, _, name = class_path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(
            f"{class_path} is not an imported subclass of {base.__name__}; import the module that defines it "
            "before loading the checkpoint."
        )
    return found


def plain(value: Any) -> Any:
    """The value as numbers, bools, strings, None, lists and dicts.

    Raises:
        TypeError: it holds anything else.

    Example:
        >>> plain({"betas": (0.9, 0.99)})
        {'betas': [0.9, 0.99]}
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(item) for key, item in value.items()}
    raise TypeError(f"a {type(value).__name__} is no plain value")


def _plain_arguments(cls: type, bound: inspect.BoundArguments) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for parameter, value in list(bound.arguments.items())[1:]:  # without self
        kind = bound.signature.parameters[parameter].kind
        if kind == inspect.Parameter.VAR_POSITIONAL:
            raise TypeError(f"{cls.__name__}: a backbone cannot take *{parameter}; give its arguments names.")
        arguments.update(value if kind == inspect.Parameter.VAR_KEYWORD else {parameter: value})
    for parameter, value in arguments.items():
        try:
            arguments[parameter] = plain(value)
        except TypeError as error:
            raise TypeError(
                f"{cls.__name__}: argument {parameter}: {error}; a checkpoint can keep only numbers, bools, "
                "strings, None, and lists and dicts of them."
            ) from None
    return arguments
