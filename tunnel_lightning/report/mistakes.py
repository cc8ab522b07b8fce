"""What a command says of arguments that can't be read: a sentence, not the parser's page on what it might be."""

from __future__ import annotations

import re

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "str": "a text",
}


def sentence(said: str) -> str:
    r"""What jsonargparse says of a wrong argument, without the list of all types that it might have been.

    Example:
        >>> sentence('Parser key "data": No. Errors: - Expected a dot import path string: B Given value: B')
        '--data: there is no B: give a name, such as Digits or MLP, or a class path'
        >>> sentence("Parser key \"sample\": Expected a <class \'int\'>. Got value: many")
        '--sample: give a whole number, not many'
        >>> sentence("Parser key \"pool\": Expected a typing.Literal[\'avg\', \'2x2\']. Got value: max")
        '--pool: give avg or 2x2, not max'
    """
    said = " ".join(said.split())
    if not said.startswith("Parser key "):
        return said
    key, _, rest = said.removeprefix("Parser key ").partition(": ")
    given = re.search(r"(?:Given|Got) value: (.*)$", rest)
    found = [re.sub(r"\.? (Given|Got) value.*", "", rest)]
    if " Errors: " in rest:
        found = found[0].split(" Errors: ", 1)[1].removeprefix("- ").split(" - ")
        found = [each for each in found if "NoneType" not in each]
    wanted = [_wanted(each) for each in found]
    if given and all(wanted):
        rest = f"give {' or '.join(dict.fromkeys(wanted))}, not {given[1]}"
    elif " Errors: " in rest:
        rest = "; ".join(dict.fromkeys(found))
    rest = re.sub(
        r"Expected a dot import path string: (\S+)",
        r"there is no \1: give a name, such as Digits or MLP, or a class path",
        rest,
    )
    return f"--{key.strip(chr(34))}: {rest}"


def _wanted(said: str) -> str:
    """What would have been right, where that is of a simple kind; else empty."""
    if kind := re.fullmatch(r"Expected (?:a )?<class '(\w+)'>", said):
        return _KINDS.get(kind[1], "")
    if choice := re.fullmatch(r"Expected a typing\.Literal\[(.*)\]", said):
        *others, last = (each.strip().strip("'\"") for each in choice[1].split(","))
        return f"{', '.join(others)} or {last}" if others else last
    return ""
