import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier

from tunnel_lightning.data import ALPHABETS, Glyphs
from tunnel_lightning.data.fonts import characters_of, draw, text_fonts

CODE = """
import hashlib
from tunnel_lightning.data import Glyphs
glyphs = Glyphs("latin+digits", samples_per_class=12, seed=5)
digest = hashlib.sha256()
for part in ("train", "val", "test"):
    images = glyphs._pool(part)
    digest.update(images.images.numpy().tobytes() + images.labels.numpy().tobytes())
print(digest.hexdigest())
"""


def images_of(part="train", **arguments):
    return Glyphs(**arguments)._pool(part)


def test_default_set_is_the_promised_one():
    glyphs = Glyphs()
    assert (glyphs.name, glyphs.num_classes, glyphs.input_shape) == ("Glyphs", 26, (1, 16, 16))
    train, val, test = (glyphs._pool(part) for part in ("train", "val", "test"))
    assert 8500 <= len(train) <= 9500
    assert len(val) >= 2000
    assert len(test) >= 1000
    assert np.bincount(train.labels.numpy()).tolist() == [350] * 26
    assert train.images.dtype == torch.uint8
    pixels = [{image.numpy().tobytes() for image in pool.images} for pool in (train, val, test)]
    assert not (pixels[0] & pixels[1] | pixels[0] & pixels[2] | pixels[1] & pixels[2])


def test_raw_pixels_are_hard_to_read_linearly_but_say_something():
    train, val = (Glyphs()._pool(part) for part in ("train", "val"))
    features = [pool.images.flatten(1).numpy() / 255.0 for pool in (train, val)]
    accuracy = RidgeClassifier(alpha=10).fit(features[0], train.labels).score(features[1], val.labels)
    assert 0.08 < accuracy < 0.2


def test_same_seed_gives_the_same_bytes_here_and_in_another_process():
    here = []
    for _ in range(2):
        scope = {}
        torch.manual_seed(np.random.default_rng().integers(1000))
        exec(CODE.replace("print(digest.hexdigest())", "result = digest.hexdigest()"), scope)
        here.append(scope["result"])
    there = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert here == [there.stdout.strip()] * 2
    other = images_of(alphabet="latin+digits", samples_per_class=12, seed=6)
    same = images_of(alphabet="latin+digits", samples_per_class=12, seed=5)
    assert not torch.equal(other.images, same.images)
    assert hashlib.sha256(same.images.numpy().tobytes()).digest()


def test_a_class_is_the_same_in_every_alphabet_and_subset():
    def of(letter, **arguments):
        glyphs = Glyphs(samples_per_class=5, **arguments)
        pool = glyphs._pool("train")
        chosen = pool.images[pool.labels == glyphs.class_names.index(letter)]
        return {image.numpy().tobytes() for image in chosen}

    assert of("C") == of("C", alphabet="latin+greek") == of("C", classes=[7, 2])
    assert len(of("C")) == 5


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("side", [8, 16])
def test_no_image_is_blank(alphabet, side):
    hard = {
        "shift": 0.3,
        "scale": 1.0,
        "slant": 1.0,
        "weight": 2.0,
        "rotation": 180.0,
        "noise": 0.0,
        "contrast": 0.5,
    }
    glyphs = Glyphs(alphabet, 6, 1, 1, image_size=side, polarity="both", **hard)
    images = glyphs._pool("train").images.flatten(1).int()
    # Half of the range is the least contrast; every image must show it, every font included.
    assert (images.amax(1) - images.amin(1)).min() >= 126


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_every_drawing_of_every_font_shows_ink_of_its_own(alphabet):
    for font in text_fonts():
        drawn = [pixels for each in ALPHABETS[alphabet] if (pixels := draw(each, font)) is not None]
        assert all(pixels.max() >= 128 for pixels in drawn)
        # A font that shows one box for all that it lacks would repeat itself.
        assert len({pixels.tobytes() for pixels in drawn}) >= 0.95 * len(drawn)


def test_fonts_that_lack_a_character_are_left_out():
    assert draw("A", "DejaVuSansDisplay") is None
    assert draw("É", "cmr10") is None
    assert draw(" ", "DejaVuSans") is None  # there, but without ink
    assert draw("Я", "STIXGeneral") is not None
    assert "LastResortHE-Regular" not in text_fonts()
    assert len(text_fonts()) >= 15


def test_alphabets_join_and_show_each_look_once():
    assert characters_of("latin") == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    everything = "+".join(ALPHABETS)
    assert Glyphs(everything).num_classes > 300
    joined = Glyphs("latin+greek")
    assert "Α" not in joined.class_names  # Greek alpha looks like the Latin A
    assert "Ω" in joined.class_names
    assert Glyphs("XO+").class_names == ["X", "O", "+"]


def test_wrong_characters_and_fonts_are_named():
    with pytest.raises(ValueError, match=r"no font shows the character '\\U000f0000' \(U\+F0000\)"):
        Glyphs("ab\U000f0000")
    with pytest.raises(ValueError, match="empty"):
        Glyphs("")
    with pytest.raises(ValueError, match=r"no font matches \['Comic\*'\]"):
        Glyphs(fonts=["Comic*"])
    with pytest.raises(ValueError, match="none of the chosen fonts shows the character 'А'"):
        Glyphs("cyrillic", fonts=["cmr10"]).setup()


@pytest.mark.parametrize(
    ("dial", "value"),
    [
        ("shift", 0.5), ("scale", -0.1), ("slant", 2), ("weight", 3), ("rotation", 200), ("contrast", 0),
        ("noise", -1), ("polarity", "grey"), ("image_size", 4), ("samples_per_class", 0),
        ("val_samples_per_class", 0), ("test_samples_per_class", 0),
    ],
)  # fmt: skip
def test_dials_out_of_range_are_refused(dial, value):
    with pytest.raises(ValueError, match=dial):
        Glyphs(**{dial: value})


def test_every_dial_turns():
    still = {
        "alphabet": "F", "samples_per_class": 40, "shift": 0, "scale": 0, "slant": 0, "weight": 0, "rotation": 0,
        "contrast": 1, "noise": 0, "fonts": ["DejaVuSans"],
    }  # fmt: skip

    def looks(**turned):
        return len(torch.unique(images_of(**{**still, **turned}).images, dim=0))

    assert looks() == 1
    turns = {
        "shift": 0.2, "scale": 0.3, "slant": 0.3, "weight": 1, "rotation": 20, "contrast": 0.4, "noise": 0.1,
        "polarity": "both", "fonts": None,
    }  # fmt: skip
    for dial, value in turns.items():
        assert looks(**{dial: value}) > 1, dial
    assert images_of(**still).images.float().mean() < 128  # light on dark
    assert images_of(**still, polarity="dark").images.float().mean() > 128
    assert images_of(**{**still, "image_size": 40}).images.shape == (40, 1, 40, 40)
