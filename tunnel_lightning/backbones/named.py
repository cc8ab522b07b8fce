"""Any classifier of timm or torchvision as a backbone."""

from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from .base import Backbone


class Named(Backbone):
    """A network of timm or torchvision by its name there, with its own weights and a head of ``num_classes``.

    The network itself is ``net``, so its modules are ``net.conv1``, ``net.layer1.0.conv1``, ...; pass images
    the way its weights expect them. One silent forward pass of a blank image on making it shows whether the
    images fit.

    Args:
        name: ``timm:NAME`` or ``torchvision:NAME``.
        pretrained: download the library's weights for it.
        small_stem: for images of about 32 pixels: the first convolution becomes 3x3 with stride 1, its
            weights new, and the max-pool behind it is left out. A network whose first convolution has stride
            1 already stays as it is.
        options: further arguments of the library's constructor, for example
            ``{img_size: 32, patch_size: 4}``.
        num_classes: number of outputs; the head is new where the library's has another number.
        input_shape: channels, height and width of one image; other than three channels make the first
            convolution anew.

    Raises:
        ImportError: the library is not installed.
        ValueError: no such network (near names are given), a network without a final ``nn.Linear``, images
            that do not fit, or a stem of patches with ``small_stem``.

    Example:
        >>> network = Named("torchvision:resnet18", small_stem=True, num_classes=26, input_shape=(1, 16, 16))
        >>> network.net.conv1.stride, network.head.out_features
        ((1, 1), 26)
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        small_stem: bool = False,
        options: dict[str, Any] | None = None,
        num_classes: int = 10,
        input_shape: tuple[int, int, int] = (3, 32, 32),
    ) -> None:
        super().__init__(num_classes, input_shape)
        self.net: Any
        library, _, model = name.partition(":")
        if library == "timm":
            sizes = {"num_classes": num_classes, "in_chans": self.input_shape[0]}
            self.net = _from_timm(model, pretrained, {**sizes, **(options or {})})
        elif library == "torchvision":
            # Its constructors refuse another number of classes together with weights; the head is replaced
            # below.
            classes = {} if pretrained else {"num_classes": num_classes}
            self.net = _from_torchvision(model, pretrained, {**classes, **(options or {})})
        else:
            raise ValueError(f"Named: {name!r} is no network; write timm:NAME or torchvision:NAME.")
        self._name = name
        self._head_path = self._find_head()
        if self.head.out_features != num_classes:
            parent, _, child = self._head_path.rpartition(".")
            setattr(self.net.get_submodule(parent), child, nn.Linear(self.head.in_features, num_classes))
        self._adapt_stem(self.input_shape[0], small_stem)
        self._check_fit()

    @property
    def head(self) -> nn.Linear:  # type: ignore[override]
        """The network's final linear layer, wherever it keeps it."""
        return self.net.get_submodule(self._head_path)

    def features(self, x: Tensor) -> Tensor:
        """What the head reads; [B, D], or [B, tokens, D] for a network that averages after its head."""
        read: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        try:
            self.net(x)
        finally:
            handle.remove()
        return read[0]

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes]; auxiliary outputs of a network in training are dropped."""
        output = self.net(x)
        return output if isinstance(output, Tensor) else output[0]

    def _find_head(self) -> str:
        linear = [path for path, module in self.net.named_modules() if isinstance(module, nn.Linear)]
        if hasattr(self.net, "get_classifier"):  # timm says which it is
            classifier: Any = self.net.get_classifier()
            linear = [path for path in linear if self.net.get_submodule(path) is classifier]
        if not linear:
            raise ValueError(f"Named: {self._name} does not end in an nn.Linear; choose a network that does.")
        return linear[-1]

    def _adapt_stem(self, channels: int, small: bool) -> None:
        convolutions = [item for item in self.net.named_modules() if isinstance(item[1], nn.Conv2d)]
        if not convolutions:
            if small or channels != 3:
                raise ValueError(f"Named: {self._name} has no convolution to adapt; give it three channels.")
            return
        path, conv = convolutions[0]
        small = small and max(conv.stride) > 1
        if small and conv.stride == conv.kernel_size:
            raise ValueError(
                f"Named: the stem of {self._name} cuts patches, so small_stem cannot change it; set their "
                "size, for example options={'img_size': 32, 'patch_size': 4}."
            )
        if small or conv.in_channels != channels:
            size: dict[str, Any] = (
                {"kernel_size": 3, "stride": 1, "padding": 1}
                if small
                else {"kernel_size": conv.kernel_size, "stride": conv.stride, "padding": conv.padding}
            )
            new = nn.Conv2d(channels, conv.out_channels, **size, bias=conv.bias is not None)
            nn.init.kaiming_normal_(new.weight, nonlinearity="relu")
            if not small:
                # Weights that were trained stay of use: each channel gets its share of their sum.
                with torch.no_grad():
                    new.weight.copy_(conv.weight.sum(1, keepdim=True).expand_as(new.weight) / channels)
            _replace(self.net, path, new)
        if small:
            pools = [path for path, module in self.net.named_modules() if isinstance(module, nn.MaxPool2d)]
            if pools:
                _replace(self.net, pools[0], nn.Identity())

    def _check_fit(self) -> None:
        was = {module: module.training for module in self.modules()}
        self.eval()
        try:
            with torch.no_grad():
                shape = tuple(self(torch.zeros(1, *self.input_shape)).shape)
        except (RuntimeError, ValueError, AssertionError) as error:
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"Named: {self._name} cannot take images of {self.input_shape} ({message}); give larger "
                "images, or set small_stem=True, or its image size through options."
            ) from error
        finally:
            for module, training in was.items():
                module.training = training
        if shape != (1, self.num_classes):
            raise ValueError(f"Named: {self._name} gives {shape} for one image, not (1, {self.num_classes}).")


def _from_timm(model: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise ImportError("Named: timm is not installed; run `pip install timm`.") from None
    if not timm.is_model(model):
        raise ValueError(_unknown("timm", model, timm.list_models()))
    return timm.create_model(model, pretrained=pretrained, **options)


def _from_torchvision(model: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if model not in known:
        raise ValueError(_unknown("torchvision", model, known))
    return models.get_model(model, weights="DEFAULT" if pretrained else None, **options)


def _unknown(library: str, model: str, known: list[str]) -> str:
    near = get_close_matches(model, known, n=3) or get_close_matches(model, known, n=3, cutoff=0.3)
    return f"Named: {library} has no network {model!r}; near ones are {', '.join(near) or 'none'}."


def _replace(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(root.get_submodule(parent), child, module)
