import io
import re

import pytest
from rich.console import Console

from tunnel_lightning.report import print_profile, profile_table
from tunnel_lightning.runs import Run, RunError, curve, ood_datasets, tunnels


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
    wide = printed(three_sets_rows, 80)
    assert "FashionMNIST" in wide.split("─")[0]
    assert "no room here: dim\n" in wide
    narrow = printed(three_sets_rows, 60)
    assert "3 sets" in narrow.split("─")[0]
    curves = [curve(three_sets_rows, dataset=n).value for n in ("Digits", "FashionMNIST", "SVHN")]
    assert f"{100 * sum(c[3] for c in curves) / 3:.1f}" in table_lines(narrow)[3]


def numbers_of(rows, without, apart):
    """Of each layer the numbers that are not left out, as they are to be read."""
    probe, rank = curve(rows), curve(rows, "rank_cov", "rtol=1e-3")
    ood = [curve(rows, dataset=name).value for name in ood_datasets(rows)]
    ranks = dict(zip(rank.index, rank.value, strict=True))
    lines = []
    for i in range(13):
        cells = {"#": f"{i}", "dim": "256", "ID %": f"{100 * probe.value[i]:.1f}"}
        shown = [values[i] for values in ood] if apart else [sum(values[i] for values in ood) / len(ood)]
        cells |= {f"OOD % {k}": f"{100 * value:.1f}" for k, value in enumerate(shown)}
        cells["rank"] = f"{ranks[i]:.0f}" if i else "-"
        lines.append(
            [cell for name, cell in cells.items() if not any(each and each in name for each in without)]
        )
    return lines


@pytest.mark.parametrize("width", [15, 20, 30, 40, 50, 60, 70])
@pytest.mark.parametrize("rows", ["mlp_rows", "three_sets_rows", "long_rows"])
def test_no_number_is_cut(rows, width, request):
    rows = request.getfixturevalue(rows)
    text = printed(rows, width)
    assert "…" not in text
    left_out = " ".join(text.split()).partition("no room here: ")[2].partition(" ID, OOD")[0]
    found = [re.findall(r"(?<!\S)(?:\d[\d.]*|-)(?!\S)", line.partition("◀")[0]) for line in table_lines(text)]
    without = left_out.replace("Digits ", "").split(", ")
    assert found == numbers_of(rows, without, "3 sets" not in text.partition("─")[0])
    assert ("◀ OOD" in text) == ("tunnel starts" not in left_out)
    assert ("rank:" in text) == ("rank" not in left_out)
    if width >= 20:
        assert max(map(len, text.partition("\nrun folder")[0].splitlines())) <= width


@pytest.fixture
def long_rows(mlp_rows):
    name = "model.encoder.layers.{}.block.mlp"
    return [
        r._replace(layer=name.format(r.layer)) if r.index and r.layer != "network" else r for r in mlp_rows
    ]


def test_columns_go_by_importance_where_there_is_little_room(mlp_rows):
    said = {width: re.findall(r"no room here: (.*)\n", printed(mlp_rows, width)) for width in (40, 50, 80)}
    assert said == {40: ["dim, tunnel starts"], 50: ["dim"], 80: []}
    assert "layers.11.linear" in printed(mlp_rows, 60), "names are whole where they fit"


def test_the_trained_set_is_the_one_the_run_knows(mlp_rows):
    names = {"Glyphs": "zzz", "Digits": "AAA"}
    rows = [
        r._replace(dataset=names[r.dataset])
        for r in mlp_rows
        if r.layer != "network" and r.variant != "online"
    ]
    rows.sort(key=lambda row: row.dataset)
    run = Run("runs/mlp/version_0", rows, "zzz")
    run.rows = rows
    head = [column.header.plain for column in profile_table(run).columns]
    assert head[3:5] == ["zzz\nID %", "AAA\nOOD %"]
    file = io.StringIO()
    print_profile(run, Console(file=file, width=100))
    assert "transfer to AAA peaks" in file.getvalue()
    starts = [line for line in table_lines(file.getvalue()) if "◀ 95 %" in line]
    assert [int(line.split()[0]) for line in starts] == [tunnels(rows, "zzz")["id95"].start]


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
