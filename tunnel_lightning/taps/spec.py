"""What is asked for (`TapSpec`) and what was found (`Tap`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Pool = Literal["2x2", "flatten", "avg", "token", "gram"]
Role = Literal["input", "layer", "head"]


@dataclass
class TapSpec:
    """Which layers to watch, and how their outputs become rows of features.

    Attributes:
        layers: A kind or glob, or a list that mixes them. Kinds: `default` (outputs of convolution and linear
            modules on the main path, before normalisation and activation: the places of Masarczyk et al.,
            "The Tunnel Effect", 2023), `block` (residual or convolution blocks), `activation` (activation
            modules), `all` (every module without children, and the blocks), `addition` (every residual
            addition: the branch before it and the sum, before what follows, the places of Nguyen et al., "Do
            Wide and Deep Networks Learn the Same Things?", 2021; the branch is the module whose output is
            added, the sum is `add` under the module that holds it: `stages.0.0.norm2`, `stages.0.0.add`; not
            with torch.compile). Anything else is a glob over module paths, where `*` crosses dots:
            `stages.*.conv2`; a suffix `#2` takes the second call only of a module that runs several times:
            `relu#2`.
        pool: How a map [B, C, H, W] becomes [B, D]. `2x2`: adaptive average to 2 x 2, D = 4 C; maps at most
            2 wide are flattened (Harun et al., "What Variables Affect Out-of-Distribution Generalization in
            Pretrained Models?", 2024). `avg`: global average, D = C. `flatten`: every value. `token`: the
            first (class) token, `avg` for maps. Tokens [B, T, C] under `2x2` and `avg`: the mean of the patch
            tokens, class token left out.
            `gram`: not features but the products [B, B] of the whole outputs of a batch's images, centred over
            the batch, in full float32 (`Tap.dim` is the size of an output): for the similarity of layers,
            without holding their outputs (torch.compile breaks its graph there, so not with `fullgraph`).
        max_features: Keep at most this many columns of each layer: a fixed random subset, the same for every
            batch and run.
        seed: Draws those columns.

    Example:
        >>> TapSpec(layers=["block", "stem.*"], pool="avg").pool
        'avg'
    """

    layers: str | list[str] = "default"
    pool: Pool = "2x2"
    max_features: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pool not in get_args(Pool):
            raise ValueError(f"taps.pool is {self.pool!r}; choose one of {', '.join(get_args(Pool))}.")
        if self.pool == "gram" and self.max_features is not None:
            raise ValueError(
                "taps.max_features does not go with taps.pool 'gram', which takes whole outputs; leave it out."
            )
        if self.max_features is not None and self.max_features < 1:
            raise ValueError(
                f"taps.max_features is {self.max_features}; give at least 1, or null for no limit."
            )
        if not self.layers:
            raise ValueError(
                "taps.layers is empty; name a kind (default, block, activation, all, addition) or globs."
            )

    @property
    def patterns(self) -> list[str]:
        """`layers` as a list."""
        return [self.layers] if isinstance(self.layers, str) else list(self.layers)


@dataclass(frozen=True)
class Tap:
    """A named place in the network.

    Attributes:
        name: The module's path (of an addition, `add` under its owner's); with `#1`, `#2`, ... where it runs
            several times in one forward.
        module: The module's path; of an addition, the name without its number.
        call: Which of the module's calls in one forward, from 1.
        index: Position in the order of execution, from 1; 0 is the input.
        kind: The module's class name; `Add` for an addition.
        shape: Shape of the module's output for one image (not pooled).
        dim: D, the number of columns after pooling.
        parameters: Number of parameters of the module, those of its children included.
        role: `input`, `layer`, or `head` (the classifier).
    """

    name: str
    module: str
    call: int
    index: int
    kind: str
    shape: tuple[int, ...]
    dim: int
    parameters: int
    role: Role = "layer"
