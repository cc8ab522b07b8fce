"""The page of a report, opened in a real browser: it draws, answers the pointer and asks for nothing."""

import csv
import io
import json

import pytest
from browser import LOGS, MISSING, ask, chromium, until

from tunnel_lightning.report import write_report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(MISSING), reason=f"no {' and no '.join(MISSING)} on the PATH"),
]

DRAWN = (
    "return [...document.querySelectorAll('.plot')].map((p) => p.querySelectorAll('.main-svg').length > 0)"
)


class Page:
    """The page in a window of a width."""

    def __init__(self, session, path, width):
        self.session = session
        wide = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600}
        self.cdp("Emulation.setDeviceMetricsOverride", **wide)
        self.logs()  # those of a page before
        ask(f"{session}/url", "POST", {"url": path.as_uri()})
        self.run("document.documentElement.style.scrollBehavior = 'auto'")

    def cdp(self, command, **parameters):
        return ask(f"{self.session}/goog/cdp/execute", "POST", {"cmd": command, "params": parameters})[
            "value"
        ]

    def run(self, script):
        return ask(f"{self.session}/execute/sync", "POST", {"script": script, "args": []})["value"]

    def wait(self, script):
        return until(lambda: self.run(script), lambda: f"never true: {script}")

    def logs(self):
        """Lines of the console, and addresses asked for, since the last time."""
        entries = {
            kind: ask(f"{self.session}/se/log", "POST", {"type": kind})["value"]
            for kind in ("browser", "performance")
        }
        events = [json.loads(entry["message"])["message"] for entry in entries["performance"]]
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [entry["message"] for entry in entries["browser"]], asked

    def draw_all(self):
        """Scroll through the page, as plots are drawn when they come near."""
        for k in range(self.run("return document.querySelectorAll('.plot').length")):
            self.run(f"document.querySelectorAll('.plot')[{k}].scrollIntoView()")
            self.wait(f"return document.querySelectorAll('.plot')[{k}].querySelector('.main-svg') !== null")

    def hover(self, title, x, y, *wanted):
        """Rest the pointer on a place of a plot, given in its axes' numbers, until all that is wanted is said."""
        plots = "[...document.querySelectorAll('.plot')]"
        plot = f"const plot = {plots}.find((p) => p.ariaLabel == {json.dumps(title)});"
        self.run(f"{plot} plot.scrollIntoView({{block: 'center'}})")
        self.wait(f"{plot} return plot.querySelector('.main-svg') !== null")
        place = self.run(
            f"""{plot} const box = plot.getBoundingClientRect(), of = plot._fullLayout;
            return [box.x + of.xaxis._offset + of.xaxis.d2p({x}), box.y + of.yaxis._offset + of.yaxis.d2p({y})]"""
        )
        moves = [
            {"type": "pointerMove", "duration": 20, "x": round(place[0]) + d, "y": round(place[1])}
            for d in (9, 0)
        ]
        pointer = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": moves}
        ask(f"{self.session}/actions", "POST", {"actions": [pointer]})
        said = f"{plot} return [...plot.querySelectorAll('.hovertext text')].map((t) => t.textContent).join()"
        until(lambda: all(text in self.run(said) for text in wanted), lambda: f"it says {self.run(said)!r}")


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("browser"), **LOGS) as session:
        yield session


@pytest.fixture(scope="module")
def file(analysed):
    return write_report(analysed)


@pytest.mark.parametrize("width", [1280, 390])
def test_it_draws_everything_and_asks_for_nothing(session, file, width):
    page = Page(session, file, width)
    page.draw_all()
    assert all(page.run(DRAWN))
    traces = page.run(
        """return [...document.querySelectorAll('.plot')].map((p) =>
             p.querySelectorAll('.scatterlayer .js-line, .scatterlayer .point, .heatmaplayer image').length)"""
    )
    assert len(traces) == 27
    assert all(traces), "each plot has lines, points or cells"
    console, asked = page.logs()
    assert console == []
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {file.as_uri()}
    assert (
        page.run(
            "return performance.getEntriesByType('resource').filter((e) => !e.name.startsWith('data:')).length"
        )
        == 0
    )
    inside, room = page.run(
        "const page = document.documentElement; return [page.scrollWidth, page.clientWidth]"
    )
    assert inside == room <= width, "the page does not scroll sideways, only tables within themselves"
    assert page.run("return getComputedStyle(document.querySelector('#layers .table')).overflowX") == "auto"


def test_the_pointer_is_told_layer_and_value(session, file):
    page = Page(session, file, 1280)
    page.hover("What every layer knows", 8, 54, "layer 8: layers.7.linear", "95 % interval", "2,000 images")
    page.hover(
        "What every layer knows", 5, 50.5, "layer 5: layers.<b>5&%", "{x}</b>"
    )  # a name is text, not markup
    page.hover("CKA of the layers", 3, 9, "layers.9.linear", "layers.3.linear", "± 0.004")


def test_a_tap_in_the_legend_shows_another_probe(session, file):
    page = Page(session, file, 1280)
    page.wait("return document.querySelector('.plot .legendtoggle') !== null")
    count = "return document.querySelectorAll('#profile .scatterlayer .trace').length"
    before = page.run(count)
    page.run(
        """const toggle = [...document.querySelectorAll('#profile .traces')].find(
             (t) => t.textContent.includes('logistic')).querySelector('.legendtoggle');
           for (const kind of ['mousedown', 'mouseup']) toggle.dispatchEvent(new MouseEvent(kind, {bubbles: true}))"""
    )
    page.wait(f"{count} > {before}")


def test_tables_sort_and_are_downloaded(session, file):
    page = Page(session, file, 1280)
    table = "const table = document.querySelector('#layers table'); "
    heads = page.run(table + "return [...table.tHead.rows[0].cells].map((c) => c.textContent)")
    column = heads.index("Numerical rank (rtol 1e-3), test")
    values = table + f"return [...table.tBodies[0].rows].map((r) => r.cells[{column}].dataset.v)"
    press = table + f"table.tHead.rows[0].cells[{column}].firstChild.click();"
    before = page.run(values)
    page.run(press)
    up = page.run(values)
    ranks = [float(v) for v in before if v]
    assert [float(v) for v in up if v] == sorted(ranks)
    assert up[len(ranks) :] == [""] * (len(up) - len(ranks)), "what is not there stays at the end"
    page.run(press)
    assert [float(v) for v in page.run(values) if v] == sorted(ranks, reverse=True)
    assert page.run(table + f"return table.tHead.rows[0].cells[{column}].ariaSort") == "descending"
    text = page.run(
        """let blob; const make = URL.createObjectURL; URL.createObjectURL = (b) => (blob = b, make(b));
           document.querySelector('#layers [data-csv]').click(); return blob.text()"""
    )
    lines = list(csv.reader(io.StringIO(text)))
    assert lines[0] == heads
    assert len(lines) == 1 + len(before)
    assert [line[column] for line in lines[1:] if line[column]] == [
        repr(v) for v in sorted(ranks, reverse=True)
    ]
    assert "layers.<b>5&%{x}</b>" in {line[1] for line in lines}


def test_a_comparison_draws_everything(session, compared):
    path = write_report(compared)
    page = Page(session, path, 390)
    page.draw_all()
    console, asked = page.logs()
    assert console == []
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {path.as_uri()}
    assert page.run("return document.documentElement.scrollWidth") == 390


def test_a_print_has_every_plot(session, file):
    page = Page(session, file, 1280)
    page.wait("return document.querySelector('.plot .main-svg') !== null")
    assert not all(page.run(DRAWN)), "what is far away waits"
    assert page.cdp("Page.printToPDF")["data"]
    assert all(page.run(DRAWN))
    assert page.logs()[0] == []


@pytest.mark.parametrize(("width", "colours"), [(1280, "v"), (390, "h")])
def test_numbers_lie_flat_and_maps_have_room(session, compared, width, colours):
    page = Page(session, write_report(compared), width)
    page.draw_all()
    turned = """return [...document.querySelectorAll('.chart .xtick text')].filter(
        (t) => /rotate\\((?!0[,)])/.test(t.getAttribute('transform') ?? '')).length"""
    assert page.run("return document.querySelectorAll('.chart .xtick text').length") > 0
    assert page.run(turned) == 0
    map_ = "const map = document.querySelector('.plot.map');"
    assert page.run(f"{map_} return map._fullData[0].colorbar.orientation") == colours
    share = f"{map_} return map._fullLayout.xaxis._length / map.getBoundingClientRect().width"
    assert page.run(share) > 0.5


def test_names_leave_a_chart_room_on_a_phone(session, file):
    page = Page(session, file, 390)
    page.draw_all()
    heights = page.run(
        """return [...document.querySelectorAll('.plot.chart')].map(
             (p) => [p.ariaLabel, p._fullLayout.yaxis._length, p.getBoundingClientRect().height])"""
    )
    assert min(axis for _, axis, _ in heights) > 150
    assert {whole for name, _, whole in heights if name.startswith("Eigenvalues")} == {320}, "it has no names"


def test_what_is_drawn_for_a_print_is_not_drawn_again(session, file):
    page = Page(session, file, 1280)
    page.wait("return document.querySelector('.plot .main-svg') !== null")
    assert not all(page.run(DRAWN)), "what is far away waits"
    page.run(
        """window.drawn = []; const draw = Plotly.newPlot;
           Plotly.newPlot = (div, ...rest) => (window.drawn.push(div.dataset.figure), draw(div, ...rest));
           dispatchEvent(new Event('beforeprint'))"""
    )
    page.wait(DRAWN.replace("return", "return (") + ").every(Boolean)")
    page.draw_all()
    drawn = page.run("return window.drawn")
    assert len(drawn) == len(set(drawn)) > 0, "none is drawn again when it comes near"
    assert page.logs()[0] == []
