"""What is said of arguments that can't be read is one sentence, without the parser's lists of types."""

import doctest

import pytest

from tunnel_lightning.report import mistakes


def test_examples():
    assert doctest.testmod(mistakes).failed == 0


ERRORS = "Does not validate against any of the Union subtypes\n  Subtypes: [x, y]\n  Errors:\n    - {}\n  {}"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("unrecognized arguments:\n --blub=1", "unrecognized arguments: --blub=1"),
        (
            ERRORS.format("Expected a <class 'int'>\n - Expected a <class 'NoneType'>", "Given value: many"),
            "--key: give a whole number, not many",
        ),
        (
            ERRORS.format(
                "Expected a <class 'int'>\n - Expected a <class 'list'>\n - Expected a <class 'list'>",
                "Given value type: <class 'str'>\n  Given value: a b",
            ),
            "--key: give a whole number or a list, not a b",
        ),
        (
            ERRORS.format(
                "Problem with given class_path 'a.B': Option 'c' is not accepted", "Given value type: x"
            ),
            "--key: Problem with given class_path 'a.B': Option 'c' is not accepted",
        ),
        ("Expected a <class 'a.B'>. Got value: 3", "--key: Expected a <class 'a.B'>. Got value: 3"),
    ],
)
def test_one_sentence(said, expected):
    said = said if said.startswith("unrec") else f'Parser key "key":\n  {said}'
    assert mistakes.sentence(said) == expected
