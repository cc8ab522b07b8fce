"""TensorBoard's own page, opened in a real browser: the charts, the pictures and the table are there to be seen."""

import math
import sys
from types import SimpleNamespace

import pytest
from browser import MISSING, ask, chromium, server, until
from lightning.pytorch.loggers import TensorBoardLogger

from tunnel_lightning.callbacks.publish import Publisher
from tunnel_lightning.runs import Row

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(MISSING), reason=f"no {' and no '.join(MISSING)} on the PATH"),
]

LAYERS = ["conv1", "relu#1", "relu#2", "fc"]
STEPS = [0, 10, 20, 30]

# Everything on the page: TensorBoard hides most of it in nested shadow roots.
ALL = """
const inside = (root) => [...root.querySelectorAll('*')].flatMap(
  (e) => [e, ...(e.shadowRoot ? inside(e.shadowRoot) : [])]);
const all = (name, root = document) => inside(root).filter((e) => e.localName == name);
"""


def profile_at(step):
    """A profile whose tunnel starts at layer 3 by every rule, at the end."""

    def row(layer, index, measure, variant, value, dataset="Glyphs", split="val"):
        return Row(
            "toy/version_0", step, step // 10, -1, split, dataset, layer, index, measure, variant, value
        )

    grown = (1 + step) / 31
    values = [0.2, 0.5, 0.7, 0.71]
    transfer = [0.6, 0.8, 0.7, 0.5]
    rows = [row("network", 5, "accuracy", "network", 0.7 * grown)]
    for index, layer in enumerate(LAYERS, 1):
        rows += [
            row(layer, index, "probe_accuracy", "ridge", values[index - 1] * grown),
            row(layer, index, "probe_accuracy", "ridge", transfer[index - 1], "Digits", "test"),
            # a layer that diverged has no rank any more
            row(layer, index, "rank_cov", "rtol=1e-3", math.nan if index == 4 and step else 10.0 * index),
        ]
    return rows


class Page:
    """A browser's page, by the WebDriver protocol."""

    def __init__(self, session, address):
        self.session, self.address = session, address

    def open(self, dashboard):
        ask(f"{self.session}/url", "POST", {"url": "about:blank"})
        ask(f"{self.session}/url", "POST", {"url": f"{self.address}/#{dashboard}"})

    def run(self, script):
        return ask(f"{self.session}/execute/sync", "POST", {"script": ALL + script, "args": []})["value"]

    def wait(self, script, wanted):
        """Run the script until its value is as wanted, and return it."""
        seen = []

        def look():
            seen[:] = [self.run(script)]
            return wanted(seen[0])

        until(look, lambda: f"the page shows {seen[0]}")
        return seen[0]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """TensorBoard on the events of a small run, in a browser."""
    path = tmp_path_factory.mktemp("tensorboard")
    logger = TensorBoardLogger(path, "toy", 0, default_hp_metric=False)
    logger.log_hyperparams({"backbone": "MLP", "backbone.depth": 4})
    publisher, memory = Publisher(SimpleNamespace(loggers=[logger])), []
    for step in STEPS:
        found = profile_at(step)
        memory += found
        publisher.profile(memory, found)
    publisher.finish(memory)
    logger.finalize("success")

    tensorboard = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        logger.log_dir,
        "--host",
        "127.0.0.1",
    ]
    with server(tensorboard, "/data/runs") as address, chromium(path / "browser") as session:
        yield Page(session, address)


def test_the_layers_of_a_measure_are_lines_of_one_chart(page):
    page.open("custom_scalars")
    # every line is drawn twice, as it is and smoothed
    charts = page.wait(
        """return Object.fromEntries(all('tf-custom-scalar-multi-line-chart-card').map((card) => [
             card.title,
             [(card.shadowRoot || card).textContent.match(/Matches \\((\\d+)\\)/)?.[1],
              all('path', card).concat(card.shadowRoot ? all('path', card.shadowRoot) : []).filter(
                (p) => p.classList.contains('line') && (p.getAttribute('d') || '').length > 20).length / 2]]))""",
        lambda charts: len(charts) >= 5 and all(lines >= 1 for _, lines in charts.values()),
    )
    assert charts["Ridge probe accuracy · Glyphs val"] == ["5", 5]  # the four layers and the network
    assert charts["Ridge probe accuracy · Digits test"] == ["4", 4]
    assert charts["Numerical rank (rtol 1e-3) · Glyphs val"][0] == "4"
    assert charts["The tunnel starts at layer"][0] == "3"


def test_the_pictures_are_shown(page):
    page.open("images")
    shown = page.wait(
        "return all('tf-image-loader').map((l) => [l.tag, all('img', l.shadowRoot || l)[0]?.naturalWidth])",
        lambda shown: len(shown) == 4 and all(width for _, width in shown),
    )
    assert sorted(name for name, _ in shown) == [
        "depth_profile",
        "depth_vs_epoch/probe_accuracy_ridge_Digits_test",
        "depth_vs_epoch/probe_accuracy_ridge_Glyphs_val",
        "depth_vs_epoch/rank_cov_rtol_1e-3_Glyphs_val",
    ]
    assert all(width > 500 for _, width in shown)


def test_the_first_page_opens_with_the_pictures_and_few_groups(page):
    page.open("timeseries")
    groups = page.wait(
        "return all('span').filter((e) => e.className == 'group-title').map((e) => e.textContent.trim())",
        lambda groups: len(groups) >= 6,
    )
    assert groups == ["Pinned", "depth_profile", "depth_vs_epoch", "layers", "network", "tunnel"]
    cards = page.wait("return all('image-card').length", lambda cards: cards == 4)
    assert cards == 4
    assert page.run("return all('scalar-card').length") == 0


def test_the_table_of_hyper_parameters_has_one_run_with_its_tunnel(page):
    page.open("hparams")
    cells = page.wait(
        "return all('vaadin-grid-cell-content').map((cell) => cell.textContent.trim()).filter((text) => text)",
        lambda cells: "MLP" in cells,
    )
    at = cells.index("Trial ID")
    names, values = cells[at : cells.index(".", at)], cells[cells.index(".", at) :]
    assert values.count("MLP") == 1
    # the box under "Show Metrics" has no text
    row = dict(zip([name for name in names if name != "Show Metrics"], values, strict=True))
    assert row["backbone"] == "MLP"
    assert float(row["backbone.depth"]) == 4
    assert [float(row[f"tunnel/{rule}"]) for rule in ("id95", "id98", "ood")] == [3, 3, 3]
    assert float(row["network/accuracy_val"]) == pytest.approx(0.7)
    assert "hp_metric" not in row
