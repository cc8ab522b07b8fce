"""Choose layers of any network and capture what they put out: hooks that pool and detach on the spot."""

from tunnel_lightning.taps.additions import NoAdditions
from tunnel_lightning.taps.capture import Taps, tap
from tunnel_lightning.taps.quiet import quiet, untouched_rng
from tunnel_lightning.taps.spec import Tap, TapSpec

__all__ = ["NoAdditions", "Tap", "TapSpec", "Taps", "quiet", "tap", "untouched_rng"]
