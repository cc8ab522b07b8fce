"""Progress of long work in the terminal: one bar for the pass at hand, a line for each that is done."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Bars:
    """Shows what is told it as ``(what, done, total)``; where the output is no terminal, a line per pass.

    Args:
        title: what is worked on.
        enabled: False shows nothing, for processes other than the first.

    Example:
        >>> with Bars("mlp", enabled=False) as bars:
        ...     bars("Digits train", 1, 4)
    """

    def __init__(self, title: str, enabled: bool = True) -> None:
        self.title, self.enabled = title, enabled
        self.console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not enabled or not self.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._what, self._since = "", 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show how far ``what`` is."""
        if not self.enabled:
            return
        if what != self._what:
            self._what, self._since = what, time.perf_counter()
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(what, total=total or None)
            if not total:
                self.console.print(what, style="dim", highlight=False)
        assert self._task is not None
        self._bar.update(self._task, completed=done, total=total or None)
        if total and done >= total:
            seconds = time.perf_counter() - self._since
            self.console.print(f"[dim]{seconds:6.1f} s[/dim]  {what}", highlight=False)
            self._bar.remove_task(self._task)
            self._task, self._what = None, ""

    def __enter__(self) -> Bars:
        if self.enabled:
            self.console.print(f"analysing {self.title}", highlight=False)
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
