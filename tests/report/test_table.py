import io
import re

import pytest
from rich.console import Console

from tunnel_lightning.report import print_profile, profile_table
from tunnel_lightning.runs import Run, RunError, curve, tunnels


def printed(rows, width=80, path="runs/mlp/version_0", encoding="utf-8", **console):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_profile(Run(path, rows), Console(file=file, width=width, **console))
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def table_lines(text):
    return [line for line in text.splitlines() if re.match(r" ?\d+  \S", line)]


def test_every_layer_has_its_numbers(mlp_rows):
    lines = table_lines(printed(mlp_rows))
    assert len(lines) == 13
    assert lines[0].split() == ["0", "raw", "pixels", "256", "12.0", "95.0", "-"]
    probe, ood = curve(mlp_rows), curve(mlp_rows, dataset="Digits")
    for i in range(1, 13):
        cells = lines[i].split()
        rank = curve(mlp_rows, "rank_cov", "rtol=1e-3").value[i - 1]
        assert cells[:6] == [
            str(i), f"layers.{i - 1}.linear", "256", f"{100 * probe.value[i]:.1f}",
            f"{100 * ood.value[i]:.1f}", f"{rank:.0f}",
        ]  # fmt: skip


def test_starts_are_marked_and_explained(mlp_rows):
    text = printed(mlp_rows)
    lines = table_lines(text)
    for rule, mark in (("id95", "◀ 95 %"), ("id98", "◀ 98 %"), ("ood", "◀ OOD")):
        start = tunnels(mlp_rows)[rule].start
        assert [i for i, line in enumerate(lines) if mark in line] == [start]
    joined = " ".join(text.split())
    for found in tunnels(mlp_rows).values():
        assert found.note in joined
    assert "last layer keeps: Digits 78 %" in joined
    assert re.search(r"^ +network +54\.0 *$", text, re.M)


def test_rules_at_one_layer_share_the_mark(mlp_rows):
    rows = [
        r._replace(value=0.1 if r.index < 5 else 0.54)
        if (r.measure, r.dataset) == ("probe_accuracy", "Glyphs")
        else r
        for r in mlp_rows
    ]
    assert "◀ 95 %, 98 %" in table_lines(printed(rows))[5]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("rows", ["mlp_rows", "resnet_rows", "three_sets_rows"])
def test_fits_the_width(rows, width, request):
    text = printed(request.getfixturevalue(rows), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "linear" in text or "conv2" in text  # names are whole


def test_several_sets_are_columns_where_there_is_room_and_else_their_mean(three_sets_rows):
    assert "FashionMNIST" in printed(three_sets_rows, 120).split("─")[0]
    narrow = printed(three_sets_rows, 80)
    assert "3 sets" in narrow.split("─")[0]
    curves = [curve(three_sets_rows, dataset=n).value for n in ("Digits", "FashionMNIST", "SVHN")]
    assert f"{100 * sum(c[3] for c in curves) / 3:.1f}" in table_lines(narrow)[3]


def test_long_names_are_shortened_in_the_middle(mlp_rows):
    rows = [
        r._replace(layer=f"model.encoder.layers.{r.layer}.block[red].mlp.{r.index}")
        if r.dim == 256 and r.index
        else r
        for r in mlp_rows
    ]
    lines = table_lines(printed(rows, 80))
    assert max(map(len, lines)) <= 80
    for i, line in enumerate(lines[1:], 1):
        assert re.search(rf" model\S+\.\.\S+\.{i} ", line)
    assert "block[red].mlp.12" in printed(rows, 140)


def test_commands_can_be_copied(mlp_rows, tmp_path):
    path = tmp_path / ("with a space/" + "deep/" * 20 + "mlp/version_0")
    path.mkdir(parents=True)
    assert "ensor" not in printed(mlp_rows, path=path), "no events, no TensorBoard"
    (path / "events.out.tfevents.1").touch()
    text = printed(mlp_rows, path=path)
    assert f"run folder   {path}\n" in text
    assert f"tensorboard --logdir '{path}'\n" in text


def test_a_log_without_unicode(mlp_rows):
    text = printed(mlp_rows, encoding="ascii")
    assert "< 95 %" in text


def test_a_log_has_no_colours_and_a_terminal_has(mlp_rows):
    assert "\x1b" not in printed(mlp_rows)
    assert "\x1b" in printed(mlp_rows, force_terminal=True)


def test_little_data(mlp_rows):
    ranks = [r for r in mlp_rows if r.measure == "rank_cov"]
    text = printed(ranks)
    assert len(table_lines(text)) == 12
    assert "unknown: no ridge probe" in " ".join(text.split())
    online = printed([r for r in mlp_rows if r.variant == "online"])
    assert "online %" in online
    assert len(table_lines(online)) == 12
    transfer = printed([r for r in mlp_rows if r.dataset == "Digits" or r.layer == "network"])
    assert len(table_lines(transfer)) == 13
    assert "transfer to Digits peaks" in transfer
    nothing = printed([r for r in mlp_rows if r.layer == "network"])
    assert nothing.split("\n")[1:] == ["run folder   runs/mlp/version_0", ""]
    probes = profile_table([r for r in mlp_rows if r.measure == "probe_accuracy"])
    assert [c.header.plain for c in probes.columns][-2:] == ["Digits\nOOD %", "tunnel starts"]
    assert "keeps" not in text
    nan = printed([r._replace(value=float("nan")) for r in mlp_rows])
    assert table_lines(nan)[3].split()[3:] == ["nan"] * 3
    assert "keeps" not in nan
    with pytest.raises(RunError, match="no profile to show"):
        profile_table([])


def test_last_profile_is_shown(mlp_rows):
    assert "mlp/version_0, epoch 6, step 420" in printed(mlp_rows)
    assert "epoch 0, step 0" in printed([r for r in mlp_rows if r.step == 0])


def test_another_probe_is_named(mlp_rows):
    ridge = [r for r in mlp_rows if r.variant != "online"]
    harun = [r._replace(variant="harun") if r.variant == "ridge" else r for r in ridge]
    text, usual = printed(harun), printed(ridge)
    assert table_lines(text) == table_lines(usual), "the same columns, rules and numbers"
    assert "ID, OOD: harun probe on frozen features" in text
    assert "harun probe" not in usual
    assert "harun probe (" in " ".join(text.split())
    assert "the last layer keeps: Digits 78 %" in " ".join(text.split())
