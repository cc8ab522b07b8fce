"""Lists that people write."""

from __future__ import annotations

from collections.abc import Sequence


def listed(given: str | Sequence[str]) -> tuple[str, ...]:
    """Names given as a list, or with commas between, or both; each once, in the order given.

    Example:
        >>> listed("png, svg,"), listed(["pdf"]), listed(["a,b", "a"])
        (('png', 'svg'), ('pdf',), ('a', 'b'))
    """
    texts = [given] if isinstance(given, str) else given
    names = [name.strip() for text in texts for name in text.split(",")]
    return tuple(dict.fromkeys(name for name in names if name))
