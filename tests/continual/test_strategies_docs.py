"""The page about strategies says what the table in the code says.

Where a test here fails, put the lines that it expects into the page.
"""

from pathlib import Path

import pytest

from tunnel_lightning.continual.strategies import PLUGINS, STRATEGIES, Method, Plugin

PAGE = Path(__file__).parents[2] / "docs" / "continual_strategies.md"


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def strategy(method: Method) -> str:
    given = ", ".join(f"`{key}: {value}`" for key, value in method.required.items())
    heads = "any" if len(method.heads) == 3 else ", ".join(method.heads)
    resumes = "yes" if method.resumable else "no"
    return row(
        f"`{method.name}`", method.about, heads, given, method.needs, method.loop, resumes, method.note
    )


def plugin(each: Plugin) -> str:
    heads = "any" if len(each.heads) == 3 else ", ".join(each.heads)
    return row(f"`{each.name}`", each.about, heads, each.needs)


EXPECTED = {
    "strategies": [strategy(method) for method in STRATEGIES.values() if not method.fails],
    "refused": [
        row(f"`{method.name}`", method.about, method.fails) for method in STRATEGIES.values() if method.fails
    ],
    "plugins": [plugin(each) for each in PLUGINS.values() if not each.fails],
    "refused plugins": [row(f"`{each.name}`", each.fails) for each in PLUGINS.values() if each.fails],
}


@pytest.mark.parametrize("table", EXPECTED)
def test_page_says_what_the_code_says(table: str) -> None:
    text = PAGE.read_text()
    section = text.split(f"<!-- {table} -->\n")[1].split("\n\n")[0].splitlines()
    assert "\n".join(section[2:]) == "\n".join(EXPECTED[table])


def test_lines_that_resume_are_those_of_the_table() -> None:
    said = " ".join(PAGE.read_text().split()).split("It can after any task of ")[1].split(".")[0]
    names = [method.name for method in STRATEGIES.values() if method.resumable]
    assert [name.strip(" `") for name in said.replace(" and ", ", ").split(",")] == names
