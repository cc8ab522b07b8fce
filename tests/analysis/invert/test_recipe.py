import numpy as np
import pytest
import torch
from torchvision.transforms import GaussianBlur

from tunnel_lightning.analysis.invert.recipe import PRESETS, RECIPE_WORDS, Recipe, blurred, preset


def test_the_paper():
    # Badger, 2022: every number of the recipe.
    recipe = preset("badger")
    assert recipe == Recipe()
    assert (recipe.start_mean, recipe.start_std) == (0.7, 1 / 20)
    assert (recipe.loss, recipe.scale, recipe.relative) == ("l1", 0.15, False)
    assert (recipe.optimizer, recipe.lr, recipe.decay, recipe.steps) == ("gradient", 0.1, "none", 500)
    assert (recipe.blur, recipe.blur_start, recipe.blur_end) == (True, 2.4, 0.4)
    assert not recipe.clamp
    assert recipe.jitter == recipe.tv == 0
    assert {recipe.rate(step) for step in range(500)} == {0.1}
    np.testing.assert_allclose([recipe.sigma(step) for step in range(500)], np.linspace(2.4, 0.4, 500))
    assert preset("badger-sharp").changes() == {}
    assert preset("badger-sharp", blur=True).changes() == {"blur": True}


def test_rate_falls_to_its_end():
    recipe = preset("badger", decay="linear", lr=0.2, steps=5)
    np.testing.assert_allclose([recipe.rate(step) for step in range(5)], np.linspace(0.2, 1e-4, 5))
    assert preset(steps=1).sigma(0) == 2.4


def test_none_leaves_what_the_preset_has():
    assert preset("adam", lr=None, blur=None, steps=3) == preset("adam", steps=3)


def test_every_preset_has_words_and_its_name():
    assert set(RECIPE_WORDS) == set(PRESETS)
    assert all(recipe.name == name and str(recipe) == name for name, recipe in PRESETS.items())


@pytest.mark.parametrize("sigma", [2.4, 0.4])
def test_blur_is_the_gaussian_of_three(sigma):
    x = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    kernel = np.exp(-(np.array([-1.0, 0.0, 1.0]) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    wide = np.pad(x.double().numpy(), [(0, 0), (0, 0), (1, 1), (1, 1)], mode="reflect")
    wanted = sum(kernel[i] * kernel[j] * wide[:, :, i : i + 5, j : j + 6] for i in range(3) for j in range(3))
    np.testing.assert_allclose(blurred(x, sigma), wanted, rtol=1e-5)
    torch.testing.assert_close(blurred(x, sigma), GaussianBlur(3, sigma)(x))


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("paper", {}, "no recipe 'paper': choose one of badger"),
        ("badger", {"rate": 1}, "no setting 'rate': choose among optimizer"),
        ("badger", {"name": "x"}, "no setting 'name'"),
        ("badger", {"optimizer": "sgd"}, "optimizer is 'sgd'; choose one of gradient, adam, lbfgs"),
        ("badger", {"loss": "huber"}, "loss is 'huber'"),
        ("badger", {"decay": "cosine"}, "decay is 'cosine'"),
        ("badger", {"units": "metres"}, "units is 'metres'"),
        ("badger", {"lr": 0.0}, "lr is 0.0; give a positive number"),
        ("badger", {"blur_end": -1.0}, "blur_end is -1.0"),
        ("badger", {"lr": float("nan")}, "lr is nan"),
        ("badger", {"tv": -1.0}, "tv is -1.0; give 0 or more"),
        ("badger", {"jitter": -1}, "jitter is -1"),
        ("badger", {"start_mean": float("inf")}, "start_mean is inf"),
        ("badger", {"steps": 0}, "steps is 0; give at least 1"),
        ("badger", {"optimizer": "lbfgs"}, "blur=true can't go with it"),
        ("lbfgs", {"jitter": 1, "clamp": True}, "jitter=1, clamp=true can't go"),
        ("lbfgs", {"decay": "linear"}, "decay='linear' can't go"),
    ],
)
def test_mistakes(name, changes, says):
    with pytest.raises(ValueError, match="recipe") as error:
        preset(name, **changes)
    assert says in str(error.value)
