"""A trained network cut at a layer, its probe there as the head."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tunnel_lightning.backbones import Backbone, Cut
from tunnel_lightning.backbones.cut import Centred, shift_of
from tunnel_lightning.backbones.graph import as_written, close, cut_graph, find
from tunnel_lightning.backbones.rows import Pooled, Rows
from tunnel_lightning.taps.costs import costs
from tunnel_lightning.taps.pooling import choose_columns
from tunnel_lightning.taps.quiet import untouched_rng

HARMLESS = 1e-5
"""Error of a float32 head, in shares of its largest score, that is let be."""


class Severed(nn.Module):
    """Anyone's network up to one of its layers, with a linear head there: what `Cut` is of a ``Backbone``.

    No file can say how to make it, since none can say how to make the network: it copies one that is at hand.

    Args:
        network: takes one tensor [B, ...]; it is left as it is.
        layer: where to cut, a tap's name.
        example: a batch of its input; two images are enough.
        num_classes: number of outputs.
        pool: as in ``TapSpec``.
        columns: which of the pooled features the head reads; None for all.
        centred: as of `Cut`.
        mean: as of `Cut`.
        std: as of `Cut`.

    Attributes:
        body: what is left of the network, under its own names.
        rows: the pooling.
        head: the linear head, with fresh weights.

    Raises:
        ValueError: as of `Cut`.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> severed = Severed(network, "0", torch.zeros(2, 4), num_classes=3)
        >>> severed(torch.zeros(5, 4)).shape, list(severed.state_dict())
        (torch.Size([5, 3]), ['body.0.weight', 'body.0.bias', 'head.weight', 'head.bias'])
    """

    def __init__(
        self,
        network: nn.Module,
        layer: str,
        example: Tensor,
        num_classes: int,
        pool: Pooled = "2x2",
        columns: list[int] | None = None,
        centred: bool = False,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.input_shape = tuple(example.shape[1:])
        self.shift = shift_of(mean, std, self.input_shape[0])
        network = copy.deepcopy(network)
        two = example[:2] if len(example) > 1 else torch.cat([example, example])
        place = find(network, layer, two)
        module = network.get_submodule(place.path)
        self.rows = Rows.of(pool, network, module, place.value.shape, 2, columns).to(example.device)
        self.body = cut_graph(network, place, two)
        width = self.rows(place.value).shape[1]
        self.head: nn.Linear = Centred(width, num_classes) if centred else nn.Linear(width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """What the head reads, [B, D]: the layer's output, pooled."""
        return self.rows(self.body(self.shift(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Scores [B, num_classes]."""
        return self.head(self.features(x))


@untouched_rng()
def cut(
    network: nn.Module,
    layer: str,
    weight: Tensor,
    bias: Tensor,
    example: Tensor,
    pool: Pooled = "2x2",
    max_features: int | None = None,
    seed: int = 0,
    mean: list[float] | None = None,
    std: list[float] | None = None,
) -> Cut | Severed:
    """A trained network cut where a linear probe reads it, with the probe as its head.

    The network stays as it is: weights are copied. A ``Backbone`` gives a `Cut`, which a checkpoint can keep;
    anything else a `Severed`. Both are in evaluation mode, on the network's device, in float32.

    The probe is float64, because ``W x + b`` with the standardisation folded in cancels where a layer's mean dwarfs
    its deviation. Where float32 errs by more than 1e-5 of the largest score on the example, the head takes the
    example's mean away first (``Centred``; the bias is made up for it in float64).

    Args:
        network: any network that takes one tensor.
        layer: where to cut, a tap's name in that network.
        weight: of the probe on raw features, [C, D], as of ``measures.LinearHead``.
        bias: likewise, [C].
        example: a batch of the network's input [B, ...], two images or more; of images as they will come, for the
            centring.
        pool: how the probe's features were pooled, as in ``TapSpec``.
        max_features: ``TapSpec.max_features`` of the probe.
        seed: ``TapSpec.seed`` of the probe.
        mean: for images that come otherwise than the network is used to: taken away from each channel first. The
            example is as the network is used to it.
        std: each channel is divided by it then.

    Raises:
        ValueError: no such layer, a network that can't be followed, a probe that is not finite or reads another
            number of features than there are with this pooling.

    Example:
        >>> from tunnel_lightning.backbones import MLP
        >>> network = MLP(depth=3, width=8, num_classes=10, input_shape=(1, 4, 4))
        >>> probe = torch.randn(10, 8, dtype=torch.float64), torch.zeros(10, dtype=torch.float64)
        >>> small = cut(network, "layers.1.linear", *probe, torch.randn(9, 1, 4, 4))
        >>> type(small).__name__, costs_of(network, torch.zeros(1, 1, 4, 4)), costs_of(small, torch.zeros(1, 1, 4, 4))
        ('Cut', (672, 370), (544, 298))
    """
    network = getattr(network, "_orig_mod", network)
    _check_probe(layer, weight, bias)
    like = next((p for p in network.parameters() if p.is_floating_point()), example)
    example = example.to(like.device, like.dtype)
    if len(example) < 2:
        example = torch.cat([example, example])
    place = find(network, layer, example)
    module, shape = network.get_submodule(place.path), place.value.shape
    rows = Rows.of(pool, network, module, shape, len(example)).to(like.device)
    wanted = rows(place.value).float()
    kept = choose_columns(wanted.shape[1], max_features, seed, f"{place.path}#{place.call}")
    columns = None if kept is None else kept.tolist()
    if kept is not None:
        wanted = wanted.index_select(1, kept.to(wanted.device))
    if weight.shape[1] != wanted.shape[1]:
        raise ValueError(
            f"the probe at {layer} reads {weight.shape[1]} features, and the layer has {wanted.shape[1]} with pool "
            f"{pool!r} (max_features {max_features}); cut with the pooling that the probe was fitted on."
        )
    weight, bias = weight.to(wanted.device, torch.float64), bias.to(wanted.device, torch.float64)
    head = _head(weight, bias, wanted)
    centred, classes = isinstance(head, Centred), len(weight)
    made: Cut | Severed
    if isinstance(network, Backbone):
        given = network.config
        made = Cut(given, layer, pool, columns, centred, mean, std, classes, network.input_shape)
        _take_over(made.body, network, layer)
    else:
        made = Severed(network, layer, example[:2], classes, pool, columns, centred, mean, std)
    made.head.load_state_dict(head.state_dict())
    made.to(like.device, torch.float32).eval()
    with as_written(made):
        same = close(made.rows(made.body(example.float())), wanted)
    if not same and like.dtype == torch.float32:
        raise ValueError(
            f"{type(network).__name__} cut at {layer} gives other features than it does whole; it is not what its "
            "config says, or draws at random in evaluation mode."
        )
    return made


def costs_of(module: nn.Module, example: Tensor) -> tuple[int, int]:
    """What one image costs, and what the network weighs.

    Args:
        module: any network.
        example: a batch of its input [B, ...]; the first image is used.

    Returns:
        Floating-point operations of one image (a multiply-add counts as two, see ``taps.costs``), and parameters.

    Example:
        >>> costs_of(nn.Sequential(nn.Linear(10, 4), nn.ReLU()), torch.zeros(1, 10))
        (80, 44)
    """
    return costs(module, example).get("", 0), sum(p.numel() for p in module.parameters())


def _check_probe(layer: str, weight: Tensor, bias: Tensor) -> None:
    if weight.dim() != 2 or bias.shape != weight.shape[:1] or len(weight) < 2:
        raise ValueError(
            f"the probe at {layer} has weight {list(weight.shape)} and bias {list(bias.shape)}; they must be [C, D] "
            "and [C], of at least two classes."
        )
    if not bool(weight.isfinite().all() & bias.isfinite().all()):
        raise ValueError(
            f"the probe at {layer} is not finite: nothing can be fitted on that layer (it is constant, or not finite "
            "itself); cut at another."
        )


def _head(weight: Tensor, bias: Tensor, features: Tensor) -> nn.Linear:
    """The float32 head of a float64 probe, centred where that makes it better and it has to be."""
    exact = torch.addmm(bias, features.double(), weight.T)
    plain, centred = nn.Linear(*weight.T.shape), Centred(*weight.T.shape)
    errors = []
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        for head in (plain, centred):
            moved = bias
            if isinstance(head, Centred):
                head.centre.copy_(features.double().mean(0))
                moved = bias + weight @ head.centre.to(weight)
            head.weight.copy_(weight)
            head.bias.copy_(moved)
            head.to(features.device)
            errors.append(float((head(features).double() - exact).abs().amax()))
    bad = errors[0] > HARMLESS * float(exact.abs().amax())
    return centred if bad and errors[1] < errors[0] / 2 else plain


def _take_over(body: nn.Module, network: nn.Module, layer: str) -> None:
    """Copy weights and statistics by their names."""
    state = network.state_dict()
    missing = [name for name in body.state_dict() if name not in state]
    try:
        if not missing:
            body.load_state_dict({name: state[name] for name in body.state_dict()})
    except RuntimeError as error:
        missing = [str(error).split("\n\t")[-1].strip()]
    if missing:
        raise ValueError(
            f"{type(network).__name__} can't be cut at {layer}: it is not what its config says ({missing[0]}); wrap "
            "a network that was changed after it was made in an nn.Sequential, and it is cut as any module."
        )
