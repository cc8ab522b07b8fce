"""The papers' minibatch probes against an ordinary training loop with autograd."""

import dataclasses

import pytest
import torch
from counting import peak_bytes
from torch import nn

from tunnel_lightning.measures.recipes import RECIPES, Recipe, train_heads


def data(n: int = 200) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (n,), generator=generator)
    means = torch.randn(3, 7, generator=generator)
    layers = {"a": 7, "b": 4, "c": 7}
    return {
        name: (torch.randn(n, dim, generator=generator) + means[y][:, :dim]) * (i + 1)
        for i, (name, dim) in enumerate(layers.items())
    }, y


def reference(x: torch.Tensor, y: torch.Tensor, classes: int, recipe: Recipe, seed: int) -> nn.Linear:
    """One layer alone, one step after another; the random numbers in the order they are documented to come."""
    head = nn.Linear(x.shape[1], classes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if recipe.init_std is None:
            bound = 1 / x.shape[1] ** 0.5
            nn.init.uniform_(head.weight, -bound, bound)
            nn.init.uniform_(head.bias, -bound, bound)
        else:
            nn.init.normal_(head.weight, std=recipe.init_std)
            nn.init.zeros_(head.bias)
    order = torch.Generator().manual_seed(seed)
    fit = torch.randperm(len(x), generator=order)[: int(recipe.fit_share * len(x))]
    kinds = {
        "adam": lambda p: torch.optim.Adam(p, recipe.lr, weight_decay=recipe.weight_decay),
        "adamw": lambda p: torch.optim.AdamW(p, recipe.lr, weight_decay=recipe.weight_decay),
        "sgd": lambda p: torch.optim.SGD(p, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay),
    }
    optimizer = kinds[recipe.optimizer](head.parameters())
    for _ in range(recipe.epochs):
        for batch in fit[torch.randperm(len(fit), generator=order)].split(recipe.batch):
            loss = nn.functional.cross_entropy(
                head(x[batch]), y[batch], label_smoothing=recipe.label_smoothing
            )
            loss = loss + recipe.norm_penalty * head.weight.norm()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return head


@pytest.mark.parametrize("name", RECIPES)
def test_equals_a_loop_per_layer(name: str) -> None:
    # Steps large enough that every term of the loss shows; penalties as the paper's, times ten.
    recipe = dataclasses.replace(
        RECIPES[name], epochs=4, batch=64, weight_decay=0.01, norm_penalty=10 * RECIPES[name].norm_penalty
    )
    features, y = data()
    heads = train_heads(features, y, 3, recipe, seed=5)
    assert list(heads) == ["a", "b", "c"]
    for layer, head in heads.items():
        expected = reference(features[layer], y, 3, recipe, seed=5)
        torch.testing.assert_close(head.weight.float(), expected.weight.detach(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(head.bias.float(), expected.bias.detach(), atol=1e-5, rtol=1e-4)


def test_the_papers_settings() -> None:
    assert set(RECIPES) == {"masarczyk", "harun", "nguyen"}
    assert RECIPES["masarczyk"] == Recipe("adam", 1e-3, 512, 30, fit_share=0.8, norm_penalty=1e-3)
    assert RECIPES["harun"] == Recipe("adamw", 1e-3, 128, 30, label_smoothing=0.1, init_std=0.01)
    assert RECIPES["nguyen"] == Recipe("sgd", 0.01, 128, 300, momentum=0.9)


def test_neither_the_random_state_nor_other_layers_matter() -> None:
    features, y = data()
    recipe = dataclasses.replace(RECIPES["masarczyk"], epochs=2)
    state = torch.random.get_rng_state()
    heads = train_heads(features, y, 3, recipe)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(1)
    alone = train_heads({"c": features["c"]}, y, 3, recipe)
    torch.testing.assert_close(heads["c"].weight, alone["c"].weight, atol=1e-7, rtol=1e-6)
    assert not torch.equal(
        train_heads({"c": features["c"]}, y, 3, recipe, seed=1)["c"].weight, alone["c"].weight
    )


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, None], ids=["nan", "inf", "constant"])
def test_sick_layers_leave_the_others_alone(bad: float | None) -> None:
    features, y = data()
    recipe = dataclasses.replace(RECIPES["masarczyk"], epochs=2, fit_share=1.0)
    healthy = train_heads(features, y, 3, recipe)
    if bad is None:
        features["a"] = torch.ones_like(features["a"])
    else:
        features["a"][3, 2] = bad
    heads = train_heads(features, y, 3, recipe)
    assert heads["a"].weight.isnan().all()
    assert heads["a"].weight.shape == (3, 7)
    assert heads["a"].bias.isnan().all()
    for name in "bc":
        torch.testing.assert_close(heads[name].weight, healthy[name].weight)


def test_learns_and_reports() -> None:
    features, y = data()
    epochs: list[tuple[int, int]] = []
    recipe = dataclasses.replace(RECIPES["nguyen"], epochs=30)
    heads = train_heads(features, y, 3, recipe, progress=lambda *done: epochs.append(done))
    assert (heads["a"](features["a"]).argmax(1) == y).double().mean() > 0.8
    assert epochs == [(i, 30) for i in range(1, 31)]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(("batch", "classes"), [(512, 10), (16, 200)])
@pytest.mark.parametrize("dims", [(200,), (200, 200, 200), (30, 400)])
def test_it_takes_no_more_bytes_than_it_says(
    name: str, dims: tuple[int, ...], batch: int, classes: int
) -> None:
    recipe = dataclasses.replace(RECIPES[name], epochs=2, batch=batch)
    generator = torch.Generator().manual_seed(0)
    layers = {f"layer{i}": torch.randn(1500, dim, generator=generator) for i, dim in enumerate(dims)}
    y = torch.randint(classes, (1500,), generator=generator)
    said = sum(recipe.nbytes(dim, classes) for dim in dims)
    samples = 8 * 4 * 1500
    assert said / 2 < peak_bytes(lambda: train_heads(layers, y, classes, recipe)) <= said + samples


def test_wrong_use_is_refused() -> None:
    features, y = data()
    with pytest.raises(ValueError, match="choose adam, adamw or sgd"):
        train_heads(features, y, 3, Recipe("lbfgs", 1.0, 10, 1))
    with pytest.raises(ValueError, match="no samples to train probes on"):
        train_heads({"a": features["a"][:1]}, y[:1], 3, RECIPES["masarczyk"])
