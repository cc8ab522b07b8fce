"""The characters that matplotlib's fonts can show, drawn large."""

from __future__ import annotations

import string
from fnmatch import fnmatch
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

EM = 40  # height of a font in pixels of a drawing
CANVAS = 64  # side of a drawing

_CYRILLIC = "АБВГДЕЁЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯ"
_GREEK = "ΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩ"
_ACCENTED = "".join(chr(code) for code in range(0xC0, 0x180) if chr(code).isalpha())

#: Named alphabets, to be joined by "+".
ALPHABETS: dict[str, str] = {
    "latin": string.ascii_uppercase,
    "latin-lower": string.ascii_lowercase,
    "latin-accented": "".join(each for each in _ACCENTED if each.isupper()),
    "latin-accented-lower": "".join(each for each in _ACCENTED if each.islower()),
    "digits": string.digits,
    "greek": _GREEK,
    "greek-lower": _GREEK.lower() + "ς",
    "cyrillic": _CYRILLIC,
    "cyrillic-lower": _CYRILLIC.lower(),
}

# Fonts of text. The others map letters to symbols (cmsy10, cmex10), to one box for a whole script
# (LastResort), or hold pieces of formulas (STIXSiz*, STIXNonUni*).
_TEXT_FONTS = ("DejaVu*", "STIXGeneral*", "cmb10", "cmr10", "cmss10", "cmti10", "cmtt10")
# Outside of these, the Computer Modern fonts put other characters at the code points of Unicode.
_CM_TRUSTED = string.ascii_letters + string.digits


@lru_cache
def text_fonts() -> dict[str, tuple[Path, frozenset[int]]]:
    """Fonts by name, each with its file and the code points that it maps."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    found = {}
    for path in sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf")):
        if any(fnmatch(path.stem, pattern) for pattern in _TEXT_FONTS):
            found[path.stem] = path, frozenset(FT2Font(str(path)).get_charmap())
    return found


@cache
def _pillow_font(path: Path):  # type: ignore[no-untyped-def]
    from PIL import ImageFont

    # The basic layout engine is in every Pillow; the other depends on an optional library.
    return ImageFont.truetype(str(path), EM, layout_engine=ImageFont.Layout.BASIC)


def draw(character: str, font: str) -> np.ndarray | None:
    """One character in one font, about the middle of the capital letters.

    Args:
        character: A single character.
        font: Name in `text_fonts`.

    Returns:
        uint8 ``[CANVAS, CANVAS]``, 255 where there is ink; None where the font lacks the character or
        draws nothing for it.

    Example:
        >>> draw("A", "DejaVuSans").shape, draw("A", "DejaVuSansDisplay")
        ((64, 64), None)
    """
    from PIL import Image, ImageDraw

    path, codes = text_fonts()[font]
    if ord(character) not in codes or (font.startswith("cm") and character not in _CM_TRUSTED):
        return None
    image = Image.new("L", (CANVAS, CANVAS))
    # Anchored at the baseline, a third of the em below the centre: every letter keeps its height.
    ImageDraw.Draw(image).text(
        (CANVAS // 2, CANVAS // 2 + EM // 3), character, fill=255, font=_pillow_font(path), anchor="ms"
    )
    pixels = np.asarray(image)
    return pixels if pixels.max() >= 128 else None


def characters_of(alphabet: str) -> str:
    """Characters that an alphabet argument stands for, each look only once.

    Args:
        alphabet: Names of `ALPHABETS` joined by "+", or the characters themselves.

    Returns:
        The characters in order. Of those that look the same (Latin A, Greek and Cyrillic A) the first stays:
        labels that no eye can tell apart would measure nothing.

    Raises:
        ValueError: An empty alphabet, or a character that no font shows.

    Example:
        >>> characters_of("digits"), characters_of("aab"), len(characters_of("latin+greek"))
        ('0123456789', 'ab', 36)
    """
    names = alphabet.split("+")
    wanted = "".join(ALPHABETS[name] for name in names) if all(n in ALPHABETS for n in names) else alphabet
    seen: dict[bytes, str] = {}
    for character in dict.fromkeys(wanted):
        pixels = next((p for font in _by_coverage() if (p := draw(character, font)) is not None), None)
        if pixels is None:
            raise ValueError(
                f"Glyphs: no font shows the character {character!r} (U+{ord(character):04X}) of the alphabet "
                f"{alphabet!r}: leave it out, or name alphabets from {', '.join(ALPHABETS)} joined by '+'."
            )
        seen.setdefault(pixels.tobytes(), character)
    if not seen:
        raise ValueError(f"Glyphs: the alphabet is empty: name one of {', '.join(ALPHABETS)}, or characters.")
    return "".join(seen.values())


@lru_cache
def _by_coverage() -> list[str]:
    return sorted(text_fonts(), key=lambda name: (name != "DejaVuSans", -len(text_fonts()[name][1])))
