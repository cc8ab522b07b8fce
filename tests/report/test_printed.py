"""A comparison in the terminal: every number is whole and right, whatever the width."""

import io
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tunnel_lightning.report.printed import SHOWN, print_comparison
from tunnel_lightning.runs import Comparison

SHORT = ["mlp/version_0", "mlp/version_1", "resnet/version_0"]
LONG = ["a_name_that_somebody_took_great_care_over/version_0", "another_long_name_of_a_run/version_12", "c/v"]
HEADS = {"accuracy %": "accuracy", "agreement %": "agree", "churn %": "churn", "layers": "layers"}
NUMBERS = re.compile(r"(?<!\S)(?:\d[\d.]*|-)(?!\S)")


def comparison(names):
    """A comparison of networks, with numbers of every size; one was trained on other classes."""
    random = np.random.default_rng(0)
    networks = [
        [
            name,
            "abc"[k],
            "ResNet (depth 34, width 16, residual)",
            33 + k,
            1_336_394,
            426,
            accuracy,
            None,
            None,
        ]
        for k, (name, accuracy) in enumerate(zip(names, (100.0, 61.34615, None), strict=True))
    ]
    pairs = [
        [a, b, 50.0, 60.0, *agreement, 1.0, 2.0, 0.1, 0.2, *random.uniform(0, 1, 2).tolist()]
        for (a, b), agreement in zip(
            combinations(names, 2), [(91.26, 8.74), (100.0, 0.0), (None, None)], strict=True
        )
    ]
    tables = [
        {
            "title": "Networks",
            "columns": [
                *("run", "group", "network", "layers", "parameters", "step", "accuracy %", "95 % from", "to"),
            ],
            "rows": networks,
        },
        {
            "title": "Pairs of networks",
            "columns": [
                *("first", "second", "first %", "second %", "agreement %", "churn %", "lost %", "won %"),
                *("KL(first, second)", "KL(second, first)", "mean CKA along depth", "CKA of the last layers"),
            ],
            "rows": pairs,
        },
        {"title": "Block structure", "columns": ["run"], "rows": [["not here"]]},
    ]  # fmt: skip
    return Comparison(Path("runs/compare/version_0"), [], {"tables": tables, "notes": ["a note"]})


def printed(found, width):
    file = io.StringIO()
    print_comparison(found, Console(file=file, width=width))
    return file.getvalue()


def lines_of(text, title):
    """The lines of a table's rows."""
    behind = text[text.index(title) :].splitlines()
    rule = next(k for k, line in enumerate(behind) if "─" in line)
    end = next(
        k for k, line in enumerate(behind[rule + 1 :], rule + 1) if not line.strip() or "CKA along" in line
    )
    return behind[1:rule], behind[rule + 1 : end]


def expected(table, left_out):
    """Of each row the numbers of the columns that are not left out, as they are to be read."""
    columns = [each for each in SHOWN[table["title"]] if each.name not in left_out]
    shown = [[row[table["columns"].index(each.name)] for each in columns] for row in table["rows"]]
    return [
        [
            "-" if value is None else f"{value:.{each.digits}f}"
            for value, each in zip(row, columns, strict=True)
            if not isinstance(value, str)
        ]
        for row in shown
    ]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 200])
@pytest.mark.parametrize("names", [SHORT, LONG])
def test_every_number_is_whole_and_right(names, width):
    found = comparison(names)
    text = printed(found, width)
    joined = " ".join(text.split())
    left_out = joined.partition("no room here, but on the page: ")[2].partition(" a note")[0].split(", ")
    for table in found.summary["tables"][:2]:
        heads, lines = lines_of(text, table["title"])
        assert [NUMBERS.findall(line) for line in lines] == expected(table, left_out)
        for column, head in HEADS.items():
            if column in {each.name for each in SHOWN[table["title"]]} - set(left_out):
                assert head in " ".join(heads)
    if width >= 60:
        assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "not here" not in text


def test_columns_go_by_importance_where_there_is_little_room():
    text = {width: printed(comparison(SHORT), width) for width in (60, 80, 100)}
    assert "no room" not in text[100]
    assert "no room" not in text[80]
    assert "but on the page: network" in text[60]
    assert "version_1" in text[60], "names are whole where they fit"


def test_long_names_keep_their_ends():
    text = printed(comparison(LONG), 60)
    assert "CKA last: of the last layers" in text, "names are shortened so that numbers have room"
    _, lines = lines_of(text, "Pairs of networks")
    first, second = re.split(r"\s+", lines[0])[:2]
    assert (first[:3], first[-3:], second[:3], second[-3:]) == ("a_n", "n_0", "ano", "_12")


def test_the_end_says_what_and_where():
    assert (
        printed(comparison(SHORT), 30).splitlines()[-1] == "comparison   runs/compare/version_0/report.html"
    )
    assert "a note" in printed(comparison(SHORT), 80)


def test_a_table_without_rows_or_of_an_older_comparison():
    found = comparison(SHORT)
    pairs = found.summary["tables"][1]
    pairs["columns"] = pairs["columns"][:6]
    pairs["rows"] = [row[:6] for row in pairs["rows"]]
    found.summary["tables"][0]["rows"] = []
    assert "91.3" in printed(found, 60)
