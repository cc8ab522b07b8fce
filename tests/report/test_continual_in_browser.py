"""The pages of runs over tasks, opened in a real browser: they draw, answer the pointer and ask for nothing."""

import json

import pytest
import sequences
from browser import LOGS, MISSING, ask, chromium, until

from tunnel_lightning.report import write_report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(MISSING), reason=f"no {' and no '.join(MISSING)} on the PATH"),
]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("browser"), **LOGS) as session:
        yield session


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    made = {"naive": sequences.naive, "two": sequences.two_tasks, "group": sequences.group}
    return {name: write_report(make(root / name / "version_0")) for name, make in made.items()}


def run(session, script):
    return ask(f"{session}/execute/sync", "POST", {"script": script, "args": []})["value"]


def logs(session, kind):
    return ask(f"{session}/se/log", "POST", {"type": kind})["value"]


def show(session, path, width):
    """Open a page in a window of a width, and draw all of it."""
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600}
    command = {"cmd": "Emulation.setDeviceMetricsOverride", "params": size}
    ask(f"{session}/goog/cdp/execute", "POST", command)
    for kind in ("browser", "performance"):
        logs(session, kind)  # those of a page before
    ask(f"{session}/url", "POST", {"url": path.as_uri()})
    run(session, "document.documentElement.style.scrollBehavior = 'auto'")
    count = run(session, "return document.querySelectorAll('.plot').length")
    for k in range(count):
        plot = f"document.querySelectorAll('.plot')[{k}]"
        run(session, f"{plot}.scrollIntoView()")
        until(
            lambda plot=plot: run(session, f"return {plot}.querySelector('.main-svg') !== null"),
            f"{plot} is not drawn",
        )
    return count


@pytest.mark.parametrize("width", [1100, 390])
@pytest.mark.parametrize(("name", "plots"), [("naive", 16), ("two", 13), ("group", 8)])
def test_it_draws_everything_and_asks_for_nothing(session, pages, name, plots, width):
    assert show(session, pages[name], width) == plots
    traces = run(
        session,
        """return [...document.querySelectorAll('.plot')].map((p) =>
             p.querySelectorAll('.scatterlayer .js-line, .scatterlayer .point, .heatmaplayer image').length)""",
    )
    assert all(traces), "each plot has lines, points or cells"
    assert logs(session, "browser") == []
    events = [json.loads(entry["message"])["message"] for entry in logs(session, "performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {pages[name].as_uri()}
    inside, room = run(
        session, "const page = document.documentElement; return [page.scrollWidth, page.clientWidth]"
    )
    assert inside == room <= width, "the page does not scroll sideways"


def test_the_pointer_is_told_task_layer_and_value(session, pages):
    show(session, pages["two"], 1100)
    hover(session, "Accuracy of each task", 0, 0, "after task 2", "task 1 (0, 1, 2, 3, 4)", "78.4%")
    hover(
        session,
        "Accuracy on task 1, by the cut",
        4,
        98.8,
        "cut behind layer 4",
        "E1T2: 98.8 %",
        "95 % interval",
    )
    hover(session, "What probes lost", 7, 50.7, "layer 7: layers.6.linear", "50.7 points")


def hover(session, title, x, y, *wanted):
    """Rest the pointer on a place of a plot, given in its axes' numbers, until all that is wanted is said."""
    plot = f"const plot = [...document.querySelectorAll('.plot')].find((p) => p.ariaLabel == {json.dumps(title)});"
    run(session, f"{plot} plot.scrollIntoView({{block: 'center'}})")
    place = run(
        session,
        f"""{plot} const box = plot.getBoundingClientRect(), of = plot._fullLayout;
        return [box.x + of.xaxis._offset + of.xaxis.d2p({x}), box.y + of.yaxis._offset + of.yaxis.d2p({y})]""",
    )
    moves = [
        {"type": "pointerMove", "duration": 20, "x": round(place[0]) + d, "y": round(place[1])}
        for d in (9, 0)
    ]
    pointer = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": moves}
    ask(f"{session}/actions", "POST", {"actions": [pointer]})
    said = f"{plot} return [...plot.querySelectorAll('.hovertext text')].map((t) => t.textContent).join()"
    until(
        lambda: all(text in run(session, said) for text in wanted), lambda: f"it says {run(session, said)!r}"
    )


def test_maps_have_room_on_a_phone(session, pages):
    show(session, pages["naive"], 390)
    shares = run(
        session,
        """return [...document.querySelectorAll('.plot.map')].map(
             (map) => map._fullLayout.xaxis._length / map.getBoundingClientRect().width)""",
    )
    assert len(shares) == 7
    assert min(shares) > 0.5


def test_rows_have_names_on_a_phone(session, pages):
    said = """return Object.fromEntries([...document.querySelectorAll('.plot.map')].map((map) => [map.ariaLabel,
        [...map.querySelectorAll('.yaxislayer-above .ytick text')].map((t) => t.textContent)]))"""
    show(session, pages["naive"], 390)
    found = run(session, said)
    assert found["Accuracy of each task"] == list("543210")
    assert found["Probe of all classes"] == list("12345678")
    show(session, pages["two"], 390)
    assert run(session, said)["What of task 1 comes back"] == list("12345678")
    show(session, pages["two"], 1100)
    assert run(session, said)["Accuracy of each task"] == [
        "after task 2",
        "after task 1",
        "before the first task",
    ]
