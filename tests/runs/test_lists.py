"""Lists that people write."""

import doctest

import pytest

from tunnel_lightning.runs import lists as module
from tunnel_lightning.runs.lists import listed


@pytest.mark.parametrize("given", ["a,b", " a , b,", ["a", "b"], ("a,b",), ["a", "b", "a"], "a,,b"])
def test_a_list_or_commas_or_both(given):
    assert listed(given) == ("a", "b")


def test_nothing():
    assert listed("") == listed([]) == listed(" , ") == ()


def test_examples():
    assert doctest.testmod(module).attempted == 1
    assert doctest.testmod(module).failed == 0
