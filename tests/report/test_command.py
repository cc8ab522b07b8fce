import subprocess
import sys

import pytest

from tunnel_lightning.__main__ import COMMANDS, main


def test_the_command_writes_page_and_figures(compared, tmp_path, capsys):
    out, figures = tmp_path / "page.html", tmp_path / "figures"
    arguments = ["report", str(compared), "--out", str(out), "--figures", str(figures), "--formats", "png"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"report   {out}\nfigures  {figures}\n"
    assert out.stat().st_size > 1e6
    assert {path.suffix for path in figures.iterdir()} == {".png"}


def test_it_needs_no_torch(analysed, tmp_path):
    code = """import sys
from tunnel_lightning.__main__ import main
status = main(sys.argv[1:])
print(status, "torch" in sys.modules)"""
    run = [sys.executable, "-c", code, "report", str(analysed), "--out", str(tmp_path / "page.html")]
    out = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "0 False"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "The run folder nowhere does not exist"),
        (["."], "holds no profile.csv"),
        (["RUN", "--formats", "gif", "--figures", "f"], "No figure format gif"),
        (["RUN", "--formats", "png,gif"], "No figure format gif: choose among png, svg, pdf"),
        (["RUN", "--out", "."], "is a folder: give the name of a file"),
        (["RUN", "--out", "file/page.html"], "file"),
        (["RUN", "RUN"], "give each run once"),
    ],
)
def test_a_mistake_gets_one_sentence_and_leaves_nothing(
    analysed, tmp_path, arguments, said, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    before = sorted(analysed.rglob("*"))
    assert main(["report", *(str(analysed) if a == "RUN" else a for a in arguments)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert said in err
    assert len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert sorted(analysed.rglob("*")) == before


def test_a_full_disk_is_no_mistake_of_the_user(analysed, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    monkeypatch.setattr("tunnel_lightning.__main__._said_by_us", lambda error: error)
    assert main(["report", str(analysed), "--out", str(tmp_path / "page.html")]) == 1
    assert "No space left" in capsys.readouterr().err


def test_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["report"])
    assert stop.value.code == 2
    assert "RUN" in capsys.readouterr().err
    assert main(["--help"]) == 0
    text, home = COMMANDS["report"]
    assert text in capsys.readouterr().out
    assert home
