"""Progress: a bar in a terminal, lines elsewhere."""

import doctest
import io

import pytest
from rich.console import Console

from tunnel_lightning.report import progress as module
from tunnel_lightning.report.progress import Bars


@pytest.fixture
def shown(monkeypatch):
    """Bars on a terminal of 80 columns, or on none; and what they wrote."""

    def make(terminal, enabled=True):
        file = io.StringIO()
        console = Console(file=file, force_terminal=terminal, width=80, height=24)
        monkeypatch.setattr(module, "Console", lambda stderr: console)
        return Bars(enabled), file

    return make


def work(bars):
    with bars:
        bars("analysing MLP [a] on Digits", 0, 0)
        for done in range(4):
            bars("Digits train", done, 3)
        for done in range(3):
            bars("Digits test", done, 2)
            bars._bar.refresh()
        bars("    1.0 s  Digits: ridge", 0, 0)


def test_without_a_terminal_there_are_the_lines_that_stay(shown):
    bars, file = shown(False)
    work(bars)
    assert file.getvalue() == "analysing MLP [a] on Digits\n    1.0 s  Digits: ridge\n"


def test_in_a_terminal_there_is_a_bar_for_the_pass_at_hand(shown):
    bars, file = shown(True)
    work(bars)
    text = file.getvalue()
    assert "Digits test" in text
    assert "2/2" in text
    assert len(bars._bar.tasks) == 1, "one bar at a time"
    assert "analysing MLP [a] on Digits" in text


def test_long_lines_are_not_broken(shown):
    bars, file = shown(False)
    with bars:
        bars("x" * 200, 0, 0)
    assert file.getvalue() == "x" * 200 + "\n"


def test_other_processes_show_nothing(shown):
    bars, file = shown(True, enabled=False)
    work(bars)
    assert file.getvalue() == ""


def test_the_bar_is_gone_after_an_error(shown):
    bars, _ = shown(True)

    def fail():
        with bars:
            bars("Digits train", 1, 3)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not bars._bar.live.is_started


def test_docstrings():
    assert doctest.testmod(module).attempted > 0
    assert doctest.testmod(module).failed == 0
