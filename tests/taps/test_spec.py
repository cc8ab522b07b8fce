import pytest

from tunnel_lightning.taps import TapSpec


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"pool": "3x3"}, "taps.pool"),
        ({"max_features": 0}, "taps.max_features"),
        ({"layers": []}, "taps.layers"),
        ({"pool": "gram", "max_features": 10}, "taps.max_features does not go with taps.pool 'gram'"),
    ],
)
def test_wrong_value_is_named(wrong, word):
    with pytest.raises(ValueError, match=word):
        TapSpec(**wrong)


def test_one_pattern_is_a_list_of_one():
    assert TapSpec("block").patterns == ["block"]
    assert TapSpec(["block", "fc"]).patterns == ["block", "fc"]
