"""What an analysis measures, and how: the settings that decide every figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tunnel_lightning.measures.recipes import RECIPES
from tunnel_lightning.runs.lists import listed
from tunnel_lightning.taps import TapSpec

STREAMED = ("ridge", "ranks", "variance", "collapse", "cka")
"""Measured in the passes over the data, whatever their length; no features are kept."""
HELD = ("logistic", *RECIPES, "knn", "tsne")
"""Measured on held features of a sample of the images."""
SAMPLE_MAPS = ("rbf_cka", "procrustes", "svcca", "pwcca")
"""Similarities that need two whole matrices, on the same sample."""
EXTRA = ("additions", "blocks")
"""Passes of their own: probes round each residual addition, and the map over every output of the network."""
MEASURES = (*STREAMED, *HELD, *SAMPLE_MAPS, *EXTRA)
DEFAULT = (*STREAMED, "logistic", "knn", "tsne", *EXTRA)
"""What is measured unless asked otherwise."""

FITTED = ("logistic", *RECIPES)
"""Probes that are trained; the others are solved in closed form."""

HELD_IMAGES = 10_000
"""Images of each split whose features are held, unless asked otherwise."""
MAPPED = 2_000
"""Images of a similarity of two whole matrices: memory takes their square."""
PICTURED = 1_000
"""Images of a picture: t-SNE takes time with their square, and more would hide each other."""
NEIGHBOURS = 20
"""Neighbours that vote in ``knn``."""

GIB = 2**30


@dataclass(frozen=True)
class Options:
    """Settings of an analysis.

    Attributes:
        taps: which layers, and how their outputs become features.
        measures: a list, or with commas between: ridge, ranks, variance, collapse and cka, in passes over all images;
            logistic, masarczyk, harun and nguyen (trained probes), knn, tsne, rbf_cka, procrustes, svcca and pwcca,
            on a sample; additions (probes round residual additions) and blocks (every output, unpooled).
        fit_images: training images of each set the ridge probes are fitted on; None for all.
        eval_images: test images of each set everything is scored on; None for all.
        sample: training and test images of each set whose features are held, for what can't be streamed; by
            default 10,000, or what a protocol takes. What is done with them is done on the CPU, whatever the
            device of the passes; maps of whole matrices take at most 2,000 of the test images, pictures 1,000.
        block_images: test images of the map over every output of the network.
        alpha: penalty of the ridge probes, relative to the number of images.
        memory_gb: GiB that sums, or held features and the work on them, may take beside the network and its
            batches; layers are measured in groups that fit into it.
        seed: of hold-out splits, recipes and pictures.
        pictures: layers that tsne draws, a list or with commas between; by default the first, the middle and the
            last one.

    Raises:
        ValueError: an unknown measure, or a number out of its range.

    Example:
        >>> Options(measures="ridge,ranks").wants("cka", "ranks")
        ['ranks']
    """

    taps: TapSpec = field(default_factory=TapSpec)
    measures: str | Sequence[str] = DEFAULT
    fit_images: int | None = None
    eval_images: int | None = None
    sample: int | None = None
    block_images: int = 2_560
    alpha: float = 1e-2
    memory_gb: float = 4.0
    seed: int = 0
    pictures: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        for each in ("measures", "pictures"):
            object.__setattr__(self, each, listed(getattr(self, each)))
        unknown = [name for name in self.measures if name not in MEASURES]
        if unknown or not self.measures:
            said = f"no measure {unknown[0]!r}" if unknown else "no measures"
            raise ValueError(f"{said}: choose among {', '.join(MEASURES)}")
        if self.taps.pool == "gram":
            raise ValueError("taps.pool 'gram' has no features to measure: choose another pool, such as 2x2")
        least = {"fit_images": 2, "eval_images": 2, "sample": 2, "block_images": 8}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name} must be at least {low}, got {value}")
        for name in ("alpha", "memory_gb"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")

    def wants(self, *names: str) -> list[str]:
        """Those of ``names`` that are measured."""
        return [name for name in names if name in self.measures]

    @property
    def memory(self) -> int:
        """The memory limit in bytes."""
        return int(self.memory_gb * GIB)

    def held(self, split: str) -> int:
        """The most images of a split whose features are held."""
        asked = self.fit_images if split == "train" else self.eval_images
        return min(self.sample_images, asked or self.sample_images)

    @property
    def sample_images(self) -> int:
        """The most images of a split whose features are held, where all are measured."""
        return HELD_IMAGES if self.sample is None else self.sample

    @property
    def map_images(self) -> int:
        """The most test images that similarities of whole matrices are measured on."""
        return min(MAPPED, self.held("test"))

    @property
    def every_output_images(self) -> int:
        """The most test images of the map over every output of the network."""
        return min(self.block_images, self.eval_images or self.block_images)

    @property
    def picture_images(self) -> int:
        """The most test images of a picture."""
        return min(PICTURED, self.held("test"))

    def settings(self) -> dict[str, Any]:
        """Everything that decides a figure, flat and plain."""
        flat = {key: value for key, value in asdict(self).items() if key not in ("taps", "memory_gb")}
        flat |= {key: list(flat[key]) for key in ("measures", "pictures")}
        flat |= {
            "sample": self.sample_images,
            "block_images": self.every_output_images,
            "map_images": self.map_images,
            "picture_images": self.picture_images,
            "neighbours": NEIGHBOURS,
        }
        flat["held_device"] = "cpu"
        return {**{f"taps.{key}": value for key, value in asdict(self.taps).items()}, **flat}


PROTOCOLS: dict[str, dict[str, Any]] = {
    "masarczyk": {
        "pool": "flatten",
        "max_features": 8000,
        "measures": ("ranks", "variance", "masarczyk"),
        "sample": 50_000,
    },
    "harun": {"pool": "2x2", "max_features": None, "measures": ("ranks", "harun"), "sample": 50_000},
    "nguyen": {"pool": "flatten", "max_features": 8000, "measures": ("cka", "blocks", "additions")},
}
"""The papers' own protocols: how features are made, and which probe is trained by which recipe; it alone, so that
tunnel and transfer are told by it."""


def with_protocol(options: Options, protocol: str | None) -> Options:
    """The options with a paper's protocol: its pooling, cap and measures in the place of theirs.

    Its sample too, where none is asked for: ``masarczyk`` and ``harun`` train probes on all training images.

    - ``masarczyk`` (Masarczyk et al., 2023, released code): features flattened, 8,000 fixed random columns, Adam
      probes, ranks and variances.
    - ``harun`` (Harun et al., 2024, section 3): 2x2 pooling, AdamW probes with label smoothing.
    - ``nguyen`` (Nguyen et al., 2021): similarity of every output, unpooled, its block structure, and probes round
      each addition, on flattened features; of these 8,000 columns at most, since the probes are solved for.

    Raises:
        ValueError: no such protocol.

    Example:
        >>> with_protocol(Options(), "masarczyk").taps.max_features
        8000
    """
    if protocol is None:
        return options
    if protocol not in PROTOCOLS:
        raise ValueError(f"no protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}")
    chosen = PROTOCOLS[protocol]
    taps = replace(options.taps, pool=chosen["pool"], max_features=chosen["max_features"])
    sample = chosen.get("sample") if options.sample is None else options.sample
    return replace(options, taps=taps, measures=chosen["measures"], sample=sample)
