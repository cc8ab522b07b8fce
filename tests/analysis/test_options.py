"""The settings of an analysis."""

import doctest

import pytest

from tunnel_lightning.analysis import options as module
from tunnel_lightning.analysis.options import DEFAULT, MEASURES, PROTOCOLS, Options, with_protocol
from tunnel_lightning.taps import TapSpec


def test_measures_as_a_list_or_with_commas():
    assert (
        Options(measures="ridge, cka,").measures
        == Options(measures=["ridge", "cka"]).measures
        == ("ridge", "cka")
    )
    assert Options().measures == DEFAULT
    assert set(DEFAULT) < set(MEASURES)
    assert len(set(MEASURES)) == len(MEASURES)
    assert Options(measures="cka,ridge").wants("ridge", "ranks", "cka") == ["ridge", "cka"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"measures": "ridge,foo"}, "no measure 'foo': choose among ridge, ranks"),
        ({"measures": ""}, "no measures: choose among"),
        ({"measures": []}, "no measures: choose among"),
        ({"fit_images": 1}, "fit_images must be at least 2, got 1"),
        ({"eval_images": 0}, "eval_images must be at least 2"),
        ({"sample": 1}, "sample must be at least 2"),
        ({"block_images": 7}, "block_images must be at least 8"),
        ({"alpha": 0}, "alpha must be above 0"),
        ({"alpha": float("nan")}, "alpha must be above 0"),
        ({"memory_gb": -1}, "memory_gb must be above 0"),
        ({"taps": TapSpec(pool="gram")}, "taps.pool 'gram'"),
    ],
)
def test_what_makes_no_sense_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        Options(**given)


def test_pictures_as_a_list_or_with_commas():
    assert Options(pictures="a, b,").pictures == Options(pictures=["a", "b"]).pictures == ("a", "b")
    assert Options().pictures == Options(pictures="").pictures == ()


def test_how_many_images_are_held():
    assert (Options().held("train"), Options().held("test")) == (10_000, 10_000)
    few = Options(sample=500, fit_images=300, eval_images=700)
    assert (few.held("train"), few.held("test")) == (300, 500)
    assert (few.map_images, few.picture_images) == (500, 500)
    assert (Options().map_images, Options().picture_images) == (2000, 1000)


def test_numbers_that_no_option_sets_are_told_too():
    told = Options(eval_images=1500, pictures="a").settings()
    names = ("map_images", "picture_images", "neighbours", "held_device", "pictures")
    assert [told[name] for name in names] == [1500, 1000, 20, "cpu", ["a"]]


@pytest.mark.parametrize("asked", [500, 10_000, 60_000])
def test_a_sample_that_is_asked_for_stays_with_every_protocol(asked):
    for protocol in (None, *PROTOCOLS):
        found = with_protocol(Options(sample=asked), protocol)
        assert (found.held("train"), found.settings()["sample"]) == (asked, asked)


@pytest.mark.parametrize(
    ("protocol", "taken"), [(None, 10_000), ("masarczyk", 50_000), ("harun", 50_000), ("nguyen", 10_000)]
)
def test_the_sample_where_none_is_asked_for_is_told_as_a_number(protocol, taken):
    found = with_protocol(Options(), protocol)
    assert (found.held("test"), found.sample_images, found.settings()["sample"]) == (taken,) * 3


def test_all_settings_are_told_flat_and_what_decides_no_figure_is_left_out():
    flat = Options(TapSpec("block", "avg"), measures="ridge", alpha=0.5).settings()
    assert (flat["taps.layers"], flat["taps.pool"], flat["alpha"], flat["measures"]) == (
        "block",
        "avg",
        0.5,
        ["ridge"],
    )
    assert "memory_gb" not in flat
    assert not any(isinstance(value, dict) for value in flat.values())


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocols_replace_pooling_cap_and_measures_and_nothing_else(name):
    mine = Options(TapSpec("block", "avg", 7, seed=3), "tsne", fit_images=50, alpha=0.5, seed=9)
    found = with_protocol(mine, name)
    assert (found.taps.layers, found.taps.seed) == ("block", 3)
    assert (found.taps.pool, found.taps.max_features) == (
        PROTOCOLS[name]["pool"],
        PROTOCOLS[name]["max_features"],
    )
    assert found.measures == PROTOCOLS[name]["measures"]
    assert set(found.measures) <= set(MEASURES)
    assert (found.fit_images, found.alpha, found.seed) == (50, 0.5, 9)


def test_no_protocol_and_an_unknown_one():
    mine = Options()
    assert with_protocol(mine, None) is mine
    with pytest.raises(ValueError, match="no protocol 'foo': choose one of masarczyk, harun, nguyen"):
        with_protocol(mine, "foo")


def test_docstrings():
    assert doctest.testmod(module).attempted > 0
    assert doctest.testmod(module).failed == 0
