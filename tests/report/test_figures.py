import subprocess
import sys

import numpy as np
import pytest

from tunnel_lightning.report import depth_profile, heat_map, save, to_image
from tunnel_lightning.runs import RunError, curve, tunnels


def labels(figure):
    return [t.get_text() for legend in figure.legends for t in legend.get_texts()]


def lines(figure):
    return {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}


def texts(axes):
    return [t.get_text() for t in axes.texts]


def span(figure):
    """Left and right end of the shaded tunnel, or None."""
    for patch in figure.axes[0].patches:
        if str(patch.get_label()).startswith("tunnel"):
            return patch.get_x(), patch.get_x() + patch.get_width()
    return None


def test_depth_profile_draws_the_numbers_of_the_table(mlp_rows):
    figure = depth_profile(mlp_rows)
    drawn = lines(figure)
    probe = curve(mlp_rows).layers_only()
    np.testing.assert_array_equal(drawn["Glyphs probe (ID)"].get_xdata(), np.arange(1, 13))
    np.testing.assert_allclose(drawn["Glyphs probe (ID)"].get_ydata(), 100 * probe.value)
    transfer = curve(mlp_rows, dataset="Digits").layers_only()
    np.testing.assert_allclose(drawn["Digits probe (OOD)"].get_ydata(), 100 * transfer.value)
    assert drawn["rank"].axes is figure.axes[1]
    np.testing.assert_array_equal(drawn["rank"].get_ydata(), curve(mlp_rows, "rank_cov", "rtol=1e-3").value)
    assert drawn["network 54.0 %"].get_ydata()[0] == pytest.approx(54.0)
    raw = [tuple(line.get_data()) for line in figure.axes[0].get_lines() if list(line.get_xdata()) == [0]]
    assert sorted(float(y[0]) for _, y in raw) == pytest.approx([12.0, 95.0])
    assert figure.axes[0].get_title(loc="left") == "mlp/version_0"
    assert "Glyphs val" in texts(figure.axes[0])[-1]
    assert "epoch 6, step 420" in texts(figure.axes[0])[-1]


def test_the_tunnel_is_shaded_and_its_starts_marked(mlp_rows):
    figure = depth_profile(mlp_rows)
    starts = {rule: t.start for rule, t in tunnels(mlp_rows).items()}
    assert span(figure) == (starts["id95"], 12.6)
    marks = {t.xy[0]: t.get_text() for t in figure.axes[0].texts if t.get_text().endswith("rule")}
    assert marks == {starts["id95"]: "95 % rule", starts["id98"]: "98 % rule", starts["ood"]: "OOD rule"}


def test_rules_that_agree_share_one_mark(mlp_rows):
    rows = [r for r in mlp_rows if r.step == 420]
    jump = {i: 0.1 if i < 5 else 0.54 for i in range(13)}
    rows = [
        r._replace(value=jump[r.index]) if r.measure == "probe_accuracy" and r.dataset == "Glyphs" else r
        for r in rows
    ]
    assert "95 % · 98 % rule" in texts(depth_profile(rows).axes[0])


def test_step_can_be_chosen_and_a_missing_tunnel_is_explained(mlp_rows):
    figure = depth_profile(mlp_rows, step=0)
    assert span(figure) is None
    said = texts(figure.axes[0])[-1]
    assert "epoch 0, step 0" in said
    assert "95 % rule: no extractor" in said


def test_several_ood_sets_have_a_mean(three_sets_rows):
    figure = depth_profile(three_sets_rows)
    drawn = lines(figure)
    each = [drawn[f"{n} probe (OOD)"].get_ydata() for n in ("Digits", "FashionMNIST", "SVHN")]
    np.testing.assert_allclose(drawn["mean of 3 OOD sets"].get_ydata(), np.mean(each, axis=0))
    looks = {(drawn[n].get_color(), str(drawn[n].get_linestyle())) for n in drawn if "OOD" in n}
    assert len(looks) >= 3


def test_little_data(mlp_rows):
    ranks = depth_profile([r for r in mlp_rows if r.measure == "rank_cov"])
    assert len(ranks.axes) == 1
    assert labels(ranks) == ["rank"]
    probes = depth_profile([r for r in mlp_rows if r.measure != "rank_cov"])
    assert len(probes.axes) == 1
    online = depth_profile([r for r in mlp_rows if r.variant == "online"])
    assert labels(online) == ["Glyphs online probe"]
    one = depth_profile([r for r in mlp_rows if r.layer in ("layers.0.linear", "input", "network")])
    assert lines(one)["Glyphs probe (ID)"].get_marker() == "o"
    for figure in (ranks, probes, online, one):
        to_image(figure)


def test_online_probe_of_another_split_says_so(mlp_rows):
    rows = [r._replace(split="train") if r.variant == "online" else r for r in mlp_rows]
    assert "Glyphs online probe (train)" in labels(depth_profile(rows))


def test_nan_layers_are_gaps(mlp_rows):
    rows = [r._replace(value=float("nan")) if r.index == 4 else r for r in mlp_rows]
    figure = depth_profile(rows)
    assert np.isnan(lines(figure)["Glyphs probe (ID)"].get_ydata()[3])
    all_nan = depth_profile([r._replace(value=float("nan")) for r in mlp_rows])
    for each in (figure, all_nan):
        to_image(each)


def test_nothing_to_draw():
    with pytest.raises(RunError, match="Nothing to draw"):
        depth_profile([])
    with pytest.raises(RunError, match=r"no rank_cov \(x\) of None"):
        heat_map([], "rank_cov", "x")


def overlap(figure, artists):
    """Pairs of texts that cover one another."""
    boxes = [(t.get_text(), t.get_window_extent()) for t in artists if t.get_text() and t.get_visible()]
    return [(a, b) for k, (a, x) in enumerate(boxes) for b, y in boxes[k + 1 :] if x.overlaps(y)]


@pytest.mark.parametrize("rows", ["mlp_rows", "resnet_rows", "three_sets_rows"])
def test_no_text_covers_another_or_leaves_the_page(rows, request):
    figure = depth_profile(request.getfixturevalue(rows))
    to_image(figure)
    axes = figure.axes[0]
    titles = [t for t in axes.get_children() if hasattr(t, "get_text")]
    everything = [
        *axes.texts,
        *axes.get_xticklabels(),
        axes.xaxis.label,
        *figure.legends[0].get_texts(),
        *titles,
    ]
    everything = list({id(t): t for t in everything}.values())
    assert overlap(figure, everything) == []
    page = figure.bbox
    for t in everything:
        box = t.get_window_extent()
        if t.get_text():
            assert box.x0 >= 0, t
            assert box.x1 <= page.x1, t
            assert box.y0 >= 0, t
            assert box.y1 <= page.y1, t
    legend, plot = figure.legends[0].get_window_extent(), axes.get_window_extent()
    assert legend.y1 < plot.y0  # under the curves, not on them


def test_heat_map(resnet_rows):
    figure = heat_map(resnet_rows)
    mesh = figure.axes[0].collections[0]
    assert mesh.get_array().shape == (33, 9)
    at_end = curve(resnet_rows).layers_only().value
    np.testing.assert_allclose(mesh.get_array()[:, -1], 100 * at_end)
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()][-1] == "420\n6"
    (stairs,) = [p for p in figure.axes[0].patches if type(p).__name__ == "StepPatch"]
    assert stairs.get_data().values[-1] == tunnels(resnet_rows)["id95"].start - 1.5
    ranks = heat_map(resnet_rows, "rank_cov", "rtol=1e-3").axes[0].collections[0]
    np.testing.assert_array_equal(ranks.get_array()[:, -1], curve(resnet_rows, "rank_cov", "rtol=1e-3").value)
    assert "Digits test" in texts(heat_map(resnet_rows, dataset="Digits").axes[0])[0]


def test_heat_map_hatches_what_is_missing(mlp_rows):
    rows = [r._replace(value=float("nan")) if (r.index, r.step) == (3, 70) else r for r in mlp_rows]
    figure = heat_map(rows)
    assert figure.axes[0].collections[0].get_array().mask.sum() == 1
    assert labels(figure)[-1] == "no value"
    to_image(figure)


def test_figures_leave_no_global_state(mlp_rows, tmp_path):
    code = """
import sys, matplotlib
from tunnel_lightning.report import depth_profile, heat_map, save, to_image
from tunnel_lightning.runs import Row
row = Row("r", 0, 0, -1, "val", "A", "l", 1, "probe_accuracy", "ridge", 0.5)
before = dict(matplotlib.rcParams.copy())
for figure in (depth_profile([row]), heat_map([row])):
    to_image(figure)
    save(figure, sys.argv[1])
assert dict(matplotlib.rcParams.copy()) == before
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], check=True)


def test_save_and_image(mlp_rows, tmp_path):
    figure = depth_profile(mlp_rows)
    image = to_image(figure)
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50
    assert save(figure, tmp_path / "deep" / "profile.png").read_bytes()[:4] == b"\x89PNG"
    assert save(figure, tmp_path / "deep" / "profile.svg").read_text().startswith("<?xml")
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["profile.png", "profile.svg"]
    with pytest.raises(ValueError, match="no_such"):
        save(figure, tmp_path / "profile.no_such")
    assert not list(tmp_path.glob("*.tmp"))


def test_another_probe_is_drawn_and_named(mlp_rows):
    harun = [r._replace(variant="harun") if r.variant == "ridge" else r for r in mlp_rows]
    figure = depth_profile([*harun, mlp_rows[-1]._replace(step=999, variant="made up")])
    assert {"Glyphs harun probe (ID)", "Digits harun probe (OOD)"} <= set(labels(figure))
    assert span(figure) == span(depth_profile(mlp_rows))
    (mesh, *_) = heat_map(harun).axes[0].collections
    (ridge, *_) = heat_map(mlp_rows).axes[0].collections
    np.testing.assert_array_equal(mesh.get_array(), ridge.get_array())
