"""From folders to the page and the figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunnel_lightning.report.charts import Page
from tunnel_lightning.report.continual import page_of_tasks
from tunnel_lightning.report.overlay import Member, page_of_comparison, page_of_runs
from tunnel_lightning.report.page import html
from tunnel_lightning.report.results import home_of, page_of_results
from tunnel_lightning.report.sections import page_of_run
from tunnel_lightning.report.source import read_source
from tunnel_lightning.report.static import FORMATS, write_figures
from tunnel_lightning.runs import (
    PROFILE_FILE,
    RunError,
    analysis_folder,
    curve,
    is_comparison,
    load_comparison,
    load_run,
)
from tunnel_lightning.runs.comparison import profiles_of
from tunnel_lightning.runs.continual import is_continual
from tunnel_lightning.runs.files import atomic

REPORT_FILE = "report.html"


def write_report(
    folders: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    figures: str | Path | None = None,
    formats: str | Sequence[str] = FORMATS,
) -> Path:
    """Write the page of a run, of several runs, of a sequence of tasks, or of a comparison, from their files alone.

    Args:
        folders: a run folder with or without an analysis, the folder of an analysis or of a comparison; or
            several of runs, which are laid over one another. Or that of a run over a sequence of tasks, or of a sweep
            of such runs; or that of what `invert`, `ablate` or `trim` found.
        out: the file to write; by default ``report.html`` in the folder of the analysis, of the run without one,
            or of the comparison, and of several runs in the current folder.
        figures: a folder for the figures as files of their own; by default none are written.
        formats: which of ``png``, ``svg``, ``pdf`` they are written as, a list or with commas between.

    Returns:
        The path of the page.

    Raises:
        RunError: a folder is none of these, a file in it can't be read, or there is nothing to show.
        ValueError: no folders, or an unknown format.

    Example:
        >>> import tempfile
        >>> from tunnel_lightning.runs import ProfileTable, Row
        >>> folder = Path(tempfile.mkdtemp())
        >>> row = Row("mlp/version_0", 9, 1, -1, "val", "Glyphs", "l1", 1, "rank_cov", "rtol=1e-3", 12.0)
        >>> ProfileTable(folder / "profile.csv").append([row, row._replace(layer="l2", index=2, value=5.0)])
        >>> write_report(folder).name
        'report.html'
    """
    places = [Path(each) for each in ([folders] if isinstance(folders, str | Path) else folders)]
    if not places:
        raise ValueError("There is nothing to report on: give at least one run folder.")
    page, home = _page(places)
    items = [item for section in page.sections if section.key != "settings" for item in section.items]
    if not any(section.items for section in page.sections if section.key != "settings"):
        raise RunError(f"{places[0]} holds nothing to show: no profile and no analysis.")
    path = Path(out) if out is not None else home / REPORT_FILE
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file.")
    text = html(page)
    if figures is not None:
        write_figures(items, figures, formats)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        file.write(text)
    return path


def _page(places: list[Path]) -> tuple[Page, Path]:
    if len(places) == 1:
        (place,) = places
        if is_comparison(place):
            return page_of_comparison(load_comparison(place)), place
        if page := page_of_tasks(place):
            return page, place
        analysed = analysis_folder(place)
        if (home := home_of(place)) and not analysed and not (place / PROFILE_FILE).exists():
            # the folder of one command's result, or a network that was neither watched nor analysed
            if analysis_folder(home) or (home / PROFILE_FILE).exists():
                return page_of_run(read_source(home)), analysis_folder(home) or home
            return page_of_results(home), home
        return page_of_run(read_source(place)), analysed or place
    if over_tasks := next((place for place in places if is_continual(place)), None):
        raise RunError(
            f"{over_tasks} is a run over a sequence of tasks, which has a page of its own: give it alone, or the "
            "folder of its sweep."
        )
    profiles, notes = profiles_of(places)
    for place, profile in zip(places, profiles, strict=True):
        if not profile.rows:
            load_run(place)  # says what it lacks
    if len(ids := {profile.run_id for profile in profiles}) < len(places):
        raise RunError(f"The {len(places)} folders are of {len(ids)} runs: give each run once.")
    # runs of one name are one network with several seeds, unless their layers or their set say otherwise
    kind = {
        p.run_id: (p.run_id.partition("/")[0], (p.dataset, *curve(p.rows, dataset=p.dataset).layer))
        for p in profiles
    }
    mixed = [
        name for name, what in kind.values() if any(n == name and other != what for n, other in kind.values())
    ]
    groups = {run_id: run_id if name in mixed else name for run_id, (name, _) in kind.items()}
    members = [Member(p.run_id, p.rows, p.dataset, groups[p.run_id], p.source) for p in profiles]
    return page_of_runs(members, notes), Path()
