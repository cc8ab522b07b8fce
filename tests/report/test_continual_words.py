"""What is said of a run over tasks: headline, key figures and names."""

import pytest
import sequences
from report.test_continual import changed, items

from tunnel_lightning.report.continual_page import name, page_of_continual
from tunnel_lightning.report.continual_tunnel import starts, verdict
from tunnel_lightning.report.continual_words import headline
from tunnel_lightning.runs.continual import ContinualRun, load_continual


@pytest.fixture(scope="module")
def naive(tmp_path_factory):
    return load_continual(sequences.naive(tmp_path_factory.mktemp("runs") / "naive" / "version_0"))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return load_continual(sequences.two_tasks(tmp_path_factory.mktemp("runs") / "two" / "version_0"))


def test_what_rounds_to_nothing_has_no_sign_and_a_gain_is_none_lost(naive):
    def moved(by):
        def change(row):
            if row.variant != "fixed":
                return row
            earlier = row.experience >= int(row.dataset[5:])
            return row._replace(value=0.98 - (by[row.index - 1] if earlier else 0.0))

        return headline(changed(naive, change)).split(". ")[0]

    deep = [0.1, 0.1, 0.1, 0.2, 0.3, 0.4, 0.5]
    said = "Deep layers forget most: probes fitted when a task was learnt lose"
    assert moved([-1e-6, *deep]).startswith(f"{said} 0.0 points at layer 1, 50.0 at layer 8")
    assert moved([-0.013, *deep]).startswith(f"{said} 50.0 points at layer 8 and gain 1.3 points at layer 1")
    some = [-0.013, 0.04, 0.04, -0.01, 0.04, 0.02, 0.02, 0.01]
    assert moved(some).startswith(
        "All layers forget alike: probes fitted when a task was learnt lose at most 4.0 points"
    )


def test_all_tasks_learnt_at_once(naive):
    run = changed(naive, lambda r: r if r.experience in (-1, 4) else None)
    joint = changed(run, lambda r: None if r.variant == "fixed" and r.experience < 4 else r)
    assert headline(joint) == "Of all classes layer 1 knows 96.0 %, layer 8 78.7 %"
    found = items(joint)
    assert "likeness" not in found
    table = found["layers_at_end"]
    assert {"CKA", "subspace overlap", "residual of linear map"}.isdisjoint(table.columns)
    assert "all classes %" in table.columns
    assert "layers_over_time" not in found
    assert "CKA" in items(naive)["layers_at_end"].columns
    bare = changed(joint, lambda r: r if r.layer == "network" else None)
    assert headline(bare) == "No layer was measured"


def test_swaps_say_whether_extractor_or_tunnel_forgets(two):
    found = verdict(two)
    assert (found.cut, found.layers, found.rule, found.who) == (4, 8, "", "extractor")
    assert found.extractor == pytest.approx((0.988 - 0.784) / (0.995 - 0.784))
    assert found.tunnel == pytest.approx((0.837 - 0.784) / (0.995 - 0.784))
    assert headline(two).startswith(
        "The extractor forgets, not the tunnel: layers 1 to 4 as they were bring back 97 % of what task 1 lost, "
        "layers 5 to 8 instead 25 %"
    )


def test_the_other_findings(two):
    # what the extractor did at cut k the tunnel does at cut 9 - k
    of = {
        (r.variant, r.index): r.value
        for r in two.rows
        if r.measure == "swap_accuracy" and r.dataset == "task 1"
    }
    mirrored = changed(
        two,
        lambda r: (
            r._replace(value=of["E1T2" if r.variant == "E2T1" else "E2T1", 9 - r.index])
            if r.measure == "swap_accuracy" and r.variant in ("E1T2", "E2T1")
            else r
        ),
    )
    found = verdict(mirrored)
    assert (found.cut, found.who) == (5, "tunnel")
    said = "The tunnel forgets, not the extractor: layers 6 to 8 as they were bring back 97 % of what task 1 lost, "
    assert headline(mirrored).startswith(f"{said}layers 1 to 5 instead 25 %")
    assert page_of_continual(mirrored).numbers[-1].label.endswith("is back with layers 6 to 8 as they were")
    half = changed(two, lambda r: r._replace(value=0.89) if r.variant in ("E1T2", "E2T1") else r)
    assert (verdict(half).who, verdict(half).cut) == ("both", 4)
    assert headline(half).startswith(
        "Extractor and tunnel forget: layers 1 to 4 as they were bring back 50 %"
    )
    either = changed(two, lambda r: r._replace(value=0.99) if r.variant in ("E1T2", "E2T1") else r)
    assert (verdict(either).who, verdict(either).cut) == ("either", 1)
    assert headline(either).startswith(
        "Extractor and tunnel forget only together: layer 1 as it was brings back 98 % of what task 1 lost, "
        "and so do layers 2 to 8 instead."
    )
    late = changed(two, lambda r: r._replace(value=0.8) if r.variant == "E1T2" and r.index < 7 else r)
    assert headline(late).startswith(
        "Forgetting is spread over all layers: layers 1 to 7 as they were bring back all"
    )
    few = changed(two, lambda r: r._replace(n=25) if r.measure == "swap_accuracy" else r)
    assert verdict(few).who == "both", "the shares may differ by chance"
    assert verdict(changed(two, lambda r: r._replace(n=15) if r.measure == "swap_accuracy" else r)) is None
    kept = changed(two, lambda r: r._replace(value=0.99) if r.measure == "swap_accuracy" else r)
    assert verdict(kept) is None
    assert headline(kept).startswith("Deep layers forget most")


def test_the_cut_is_that_of_the_tunnel_where_a_rule_finds_it(two):
    assert starts(two) == {"ood": 1}, "the raw set is separable: no extractor by the trained set's own rules"
    probes = dict(zip(range(1, 9), [0.6, 0.7, 0.9, 0.93, 0.96, 0.98, 0.99, 0.99], strict=True))
    hard = changed(
        two,
        lambda r: (
            r._replace(value=probes[r.index])
            if (r.variant, r.dataset, r.experience) == ("refit_task", "task 1", 0)
            else r
        ),
    )
    assert starts(hard) == {"id95": 4, "id98": 5, "ood": 1}
    assert (verdict(hard).cut, verdict(hard).rule) == (4, "id95")
    chart = items(hard)["swaps_1"]
    assert [(mark.x, mark.label) for mark in chart.marks] == [(1, "OOD"), (4, "95 %"), (5, "98 %")]
    card = page_of_continual(hard).numbers[-1]
    assert (card.value, card.label) == (
        "97 %",
        "of what task 1 lost is back with layers 1 to 4 as they were",
    )
    assert card.detail == "with the others 25 %; the tunnel starts there by the 95 % rule"


def test_the_card_leads_with_the_block_that_chose_the_cut(two):
    # layers 1 to 3 bring 94 % back, and no shorter block does; layers 4 to 8 instead bring 99 %
    of = {("E1T2", 3): 0.983, ("E2T1", 3): 0.9928}
    run = changed(
        two,
        lambda r: (
            r._replace(value=of.get((r.variant, r.index), 0.8 if r.index < 3 else r.value))
            if r.variant in ("E1T2", "E2T1") and r.dataset == "task 1"
            else r
        ),
    )
    assert (verdict(run).cut, verdict(run).who, verdict(run).rule) == (3, "either", "")
    card = page_of_continual(run).numbers[-1]
    assert card.value == "94 %"
    assert card.label.endswith("is back with layers 1 to 3 as they were")
    assert card.detail == "with the others 99 %; the smallest block from either end that brings 90 % back"


def test_gains_that_may_be_chance_are_not_said(naive):
    few = changed(naive, lambda r: r._replace(n=20))
    assert headline(few).endswith("For tasks to come no layer is clearly better or worse than untrained")


def test_the_manifest_may_say_where_the_tunnel_starts(two):
    manifest = {**two.manifest, "tunnel": {"after": "task 1", "cuts": {"ood": 3, "id95": 2}, "layers": 8}}
    found = ContinualRun(two.path, two.rows, manifest)
    assert starts(found) == {"id95": 2, "ood": 3}
    assert (verdict(found).cut, verdict(found).rule) == (2, "id95")


def test_the_key_figures(naive):
    found = {number.label: (number.value, number.detail) for number in page_of_continual(naive).numbers}
    assert found["average accuracy of 5 tasks"] == ("19.8 %", "among each task's own classes 95.0 %")
    assert found["forgotten since learnt"][0] == "99.0 points"
    assert "backward transfer -99.0 points" in found["forgotten since learnt"][1]
    assert found["drift of layer 7, the most"][0] == "50.7 points"


def test_names_are_short():
    assert name("Naive") == "Naive"
    assert name({"class_path": "a.b.Replay", "init_args": {"mem_size": 200, "storage": {"x": 1}}}) == (
        "Replay (mem size 200)"
    )
    assert name(None) == ""


def test_one_epoch_is_one(naive):
    about = {**naive.about, "epochs": 1}
    run = ContinualRun(naive.path, naive.rows, {**naive.manifest, "continual": about})
    assert "1 epoch each" in page_of_continual(run).subtitle
    assert "30 epochs each" in page_of_continual(naive).subtitle


def test_the_headline_says_which_layers_forget_and_which_transfer(naive):
    assert headline(naive) == (
        "Deep layers forget most: probes fitted when a task was learnt lose 7.4 points at layer 1, 50.7 at layer 7, "
        "refitted ones at most 1.7 points. For tasks to come layer 1 is better, layers 5 to 8 are worse than "
        "untrained"
    )
    still = changed(naive, lambda r: r._replace(value=0.98) if r.variant in ("fixed", "refit_task") else r)
    assert headline(still) == (
        "No layer forgets: probes fitted when a task was learnt lose at most 0.0 points. For tasks to come no layer "
        "is clearly better or worse than untrained"
    )
    top = changed(naive, lambda r: r._replace(index=9 - r.index) if r.variant == "fixed" else r)
    assert headline(top).startswith("Deep layers"), "layers go by their names"
    flat = sequences.sequence_rows("Replay", shift=0.2)
    flat = [
        r._replace(value=0.98 - 0.2 * (r.experience >= int(r.dataset[5:]))) if r.variant == "fixed" else r
        for r in flat
    ]
    found = ContinualRun(naive.path, flat, naive.manifest)
    assert headline(found).startswith(
        "All layers forget alike: probes fitted when a task was learnt lose 20.0 to 20.0"
    )


def test_a_network_that_diverged_is_not_shown_as_it_was(naive):
    def change(row):
        if row.layer == "network" and row.measure == "accuracy" and row.experience >= 3:
            return row._replace(value=float("nan"), se=float("nan"))
        return row

    page = page_of_continual(changed(naive, change))
    assert page.notes == ["The network's scores are NaN or infinite after task 4: it has no accuracy there."]
    labels = {number.label for number in page.numbers}
    assert labels == {"drift of layer 7, the most", "probe of all classes, best to last layer"}
    assert not page_of_continual(naive).notes
    later = changed(naive, lambda r: change(r._replace(experience=4)) if r.experience > 0 else r)
    assert "CKA" in items(later)["layers_at_end"].columns, "two moments, one of them without accuracies"
