import pytest

from tunnel_lightning.report.words import headline, interval, numbers
from tunnel_lightning.runs import Row

RISING = [0.2, 0.4, 0.48, 0.5]


def rows_of(probe=(), network=None, raw=None, **ood):
    """Rows of one profile; an OOD set's list of five begins with the raw pixels."""
    at = Row(
        "mlp/version_0", 9, 1, -1, "test", "Glyphs", "", 0, "probe_accuracy", "ridge", 0.0, 0.01, 500, 64
    )
    rows = []
    for name, values in {"Glyphs": [raw, *probe], **ood}.items():
        first = len(RISING) + 1 - len(values) if name != "Glyphs" else 0
        for index, value in enumerate(values, first):
            if value is not None:
                rows.append(
                    at._replace(
                        dataset=name, layer=f"l{index}" if index else "input", index=index, value=value
                    )
                )
    if network is not None:
        last = {"layer": "network", "index": 5, "measure": "accuracy", "variant": "network", "value": network}
        rows.append(at._replace(**last))
    return rows


FALLING = [0.8, 0.9, 0.7, 0.6]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            rows_of(RISING, 0.5),
            "A tunnel from layer 3 of 4: the probe there reaches 96.0 % of the final accuracy",
        ),
        (
            rows_of(RISING, 0.5, Digits=FALLING),
            "A tunnel from layer 3 of 4: the probe there reaches 96.0 % of the final accuracy; transfer to Digits is "
            "best at layer 2 and loses 33 % by the end",
        ),
        (
            rows_of(RISING, 0.5, Digits=FALLING, SVHN=[0.7, 0.6, 0.6, 0.6]),
            "A tunnel from layer 3 of 4: the probe there reaches 96.0 % of the final accuracy; transfer to 2 other "
            "sets is best at layer 1 and loses 20 % by the end",
        ),
        (
            rows_of(RISING),
            "A tunnel from layer 3 of 4: the probe there reaches 96.0 % of the last probe's accuracy",
        ),
        (
            rows_of([0.1, 0.2, 0.3, 0.5], 0.5),
            "The tunnel is the last layer alone, 4 of 4: the probe there reaches 100.0 % of the final accuracy",
        ),
        (
            rows_of(RISING, 0.5, raw=0.49),
            "No extractor, hence no tunnel: the probe on the raw pixels already reaches 98.0 % of the final accuracy",
        ),
        (
            rows_of([0.49, 0.5, 0.5, 0.5], 0.5, raw=0.1),
            "No extractor, hence no tunnel: the probe of layer 1 already reaches 98.0 % of the final accuracy",
        ),
        (
            rows_of(RISING, 0.8),
            "No tunnel: the best probe, at layer 4 of 4, reaches only 62.5 % of the final accuracy",
        ),
        (
            rows_of(RISING, 0.5, Digits=[0.6, 0.7, 0.8, 0.9]),
            "A tunnel from layer 3 of 4: the probe there reaches 96.0 % of the final accuracy; transfer to Digits is "
            "best at the last layer",
        ),
        (
            rows_of(RISING, 0.5, Digits=[1.0, *FALLING]),
            "A tunnel from layer 3 of 4: the probe there reaches 96.0 % of the final accuracy; transfer to Digits is "
            "best from the raw pixels and loses 40 % by the end",
        ),
        (
            rows_of(RISING, 0.5, Digits=[0.6, 0.7, 0.9, 0.899]),
            "A tunnel from layer 3 of 4: the probe there reaches 96.0 % of the final accuracy; transfer to Digits is "
            "best at layer 3 and loses next to nothing by the end",
        ),
        (
            rows_of(network=0.5, Digits=FALLING),
            "Transfer to Digits is best at layer 2 and loses 33 % by the end",
        ),
        (
            rows_of(network=0.5),
            "Where the tunnel starts is unknown: no probe was measured on held-out images",
        ),
        ([], "Where the tunnel starts is unknown: no probe was measured on held-out images"),
    ],
)
def test_headline(rows, said):
    assert headline(rows) == said


def test_numbers():
    rank = [
        Row(
            "mlp/version_0",
            9,
            1,
            -1,
            "test",
            "Glyphs",
            f"l{i}",
            i,
            "rank_cov",
            "rtol=1e-3",
            v,
            float("nan"),
            500,
            64,
        )
        for i, v in enumerate([40.0, 63.0, 20.0, 9.0], 1)
    ]
    found = numbers([*rows_of(RISING, 0.5, Digits=FALLING), *rank], "Glyphs")
    assert [n.value for n in found] == ["50.0 %", "layer 3 of 4", "63 → 9", "67 %"]
    assert found[0].detail == "Glyphs test, 500 images, 95 % interval 45.6 to 54.4 %"
    assert found[1].detail == "98 % rule: layer 4, OOD rule: layer 3"
    assert found[2].detail == "highest at layer 2, where 64 is the most possible"
    assert found[3].detail == "best at layer 2: 90.0 %; at the end 60.0 %"
    assert numbers([], None) == []
    assert [n.value for n in numbers(rows_of([0.49, 0.5, 0.5, 0.5], 0.5), "Glyphs")] == ["50.0 %", "none"]


def test_interval_of_nothing():
    assert interval(0.5, 0) == interval(float("nan"), 10) == ""


def test_nothing_is_right_or_measured():
    nothing = rows_of([0.0] * 4, 0.0, raw=0.0, Digits=[0.0] * 4)
    assert headline(nothing) == (
        "Where the tunnel starts is unknown: the network's 0.0 % leave the probes nothing to reach"
    )
    assert [n.value for n in numbers(nothing, "Glyphs")] == ["0.0 %"]
    raw = rows_of(RISING, 0.5, Digits=[0.3, 0.0, 0.0, 0.0, 0.0])
    assert headline(raw).endswith("transfer to Digits is best from the raw pixels and loses 100 % by the end")
    assert [n.value for n in numbers(raw, "Glyphs")] == ["50.0 %", "layer 3 of 4"]
    nan = rows_of([float("nan")] * 4, float("nan"), raw=float("nan"), Digits=[float("nan")] * 4)
    assert headline(nan) == (
        "Where the tunnel starts is unknown: the Glyphs test probe has no finite value in any layer"
    )
    assert numbers(nan, "Glyphs") == []


def test_the_words_are_those_of_the_probe_there_is():
    rows = rows_of(RISING, 0.5, Digits=FALLING)
    harun = [r._replace(variant="harun") if r.measure == "probe_accuracy" else r for r in rows]
    assert headline(harun) == headline(rows)
    assert [n.value for n in numbers(harun, "Glyphs")] == ["50.0 %", "layer 3 of 4", "67 %"]
