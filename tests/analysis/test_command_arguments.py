"""The arguments of `analyze`: what they become, those from a file, and what a paper's protocol sets."""

import pytest

from tunnel_lightning.__main__ import main
from tunnel_lightning.analysis.command import Request, parse
from tunnel_lightning.analysis.options import MEASURES, PROTOCOLS, Options, with_protocol
from tunnel_lightning.taps import TapSpec


def test_help_tells_every_setting(capsys):
    with pytest.raises(SystemExit) as left:
        main(["analyze", "--help"])
    assert left.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith("usage: python -m tunnel_lightning analyze [RUN] [options]")
    for name in ["protocol", *Options.__dataclass_fields__, *Request.__dataclass_fields__]:
        assert f"--{name}" in out or name == "run", name
    for name in MEASURES:
        assert name in out


def test_arguments_from_a_file(tmp_path, run):
    (tmp_path / "a.yaml").write_text("measures: [ridge]\ntaps:\n  pool: avg\nprocesses: 2\n")
    request, options = parse([str(run), "--config", str(tmp_path / "a.yaml"), "--alpha=0.5"])
    assert (request.run, request.processes) == (str(run), 2)
    assert (options.measures, options.taps.pool, options.alpha) == (("ridge",), "avg", 0.5)


@pytest.mark.parametrize("formats", ["svg,png", "[svg,png]", "svg, png"])
def test_formats_as_a_list_or_with_commas(run, formats):
    assert list(parse([str(run), f"--formats={formats}"])[0].formats) == ["svg", "png"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_protocol_starts_from_the_layers_that_were_watched(fit, tmp_path, protocol):
    watched = ["--monitor.taps.layers=activation", "--monitor.taps.pool=avg", "--monitor.taps.max_features=9"]
    run = fit(tmp_path / "runs", "--trainer.max_epochs=1", *watched)
    found = parse([str(run), f"--protocol={protocol}"])[1]
    assert found == with_protocol(Options(TapSpec("activation", "avg", 9)), protocol)
    assert found.sample_images == {"nguyen": 10_000}.get(protocol, 50_000), "the papers train on all images"


@pytest.mark.parametrize("sample", [500, 10_000, 60_000])
def test_a_sample_that_is_asked_for_wins_over_the_protocols(run, tmp_path, sample):
    (tmp_path / "a.yaml").write_text(f"sample: {sample}\nprotocol: masarczyk\n")
    for asked in (["--protocol=masarczyk", f"--sample={sample}"], [f"--config={tmp_path / 'a.yaml'}"]):
        options = parse([str(run), *asked])[1]
        assert (options.sample, options.taps.max_features) == (sample, 8000)


def test_what_a_protocol_sets_may_be_said_again(run):
    asked = ["--protocol=harun", "--taps.pool=2x2", "--measures=ranks,harun"]
    assert parse([str(run), *asked])[1] == parse([str(run), "--protocol=harun"])[1]
