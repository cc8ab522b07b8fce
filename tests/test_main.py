"""Which errors the command line says in a sentence, and which it shows whole: those are bugs."""

import sys
from types import ModuleType

import pytest

from tunnel_lightning.__main__ import COMMANDS, main

CODE = """
import json
import torch
from tunnel_lightning.runs.files import atomic

def plain(argv):
    raise ValueError("ours")

def deep(argv):
    plain(argv)

def again(argv):
    try:
        plain(argv)
    except ValueError:
        raise

def reason(argv):
    try:
        torch.ones(2) @ torch.ones(3)
    except RuntimeError as error:
        raise TypeError("ours") from error

def writing(argv):
    with atomic(argv[0]):
        raise RuntimeError("ours")

def wrapped(argv):
    json.loads("1", parse_int=plain)

def compiled(argv):
    torch.ones(2) @ torch.ones(3)

def converted(argv):
    int("x")

def operator(argv):
    1 + "x"

def unpacked(argv):
    first, second = argv

def library(argv):
    json.loads("{")

def missing(argv):
    import nothing_of_that_name
"""


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Call one of the functions above as a command, as if it were of a module of that name; its source is absent."""

    def call(function, name="tunnel_lightning.toy"):
        module = ModuleType(name)
        exec(compile(CODE, "<absent>", "exec"), module.__dict__)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setitem(COMMANDS, "toy", ("", f"{name}:{function}"))
        return main(["toy", str(tmp_path / "file")])

    return call


@pytest.mark.parametrize("function", ["plain", "deep", "again", "reason", "writing", "wrapped"])
def test_what_the_package_raises_is_said(run, function, capsys):
    assert run(function) == 2
    assert capsys.readouterr().err == "error: ours\n"


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        ("compiled", RuntimeError),
        ("converted", ValueError),
        ("operator", TypeError),
        ("unpacked", ValueError),
        ("library", ValueError),
        ("missing", ImportError),
    ],
)
def test_what_anything_called_there_raises_is_a_bug(run, function, kind, capsys):
    with pytest.raises(kind):
        run(function)
    assert capsys.readouterr().err == ""


def test_an_error_of_another_package_is_not_said(run):
    with pytest.raises(ValueError, match="ours"):
        run("plain", "someone.else")


def test_the_traceback_on_request(run, monkeypatch):
    monkeypatch.setenv("TUNNEL_TRACEBACK", "1")
    with pytest.raises(ValueError, match="ours"):
        run("plain")
