"""Progress of long work in the terminal: a bar for the pass at hand, and a line for each part that is done."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Bars:
    """Shows what is told it as ``(what, done, total)``: a bar, or where the total is 0 a line that stays.

    It writes to standard error; where that is no terminal, lines only.

    Args:
        enabled: False shows nothing, for processes other than the first.

    Example:
        >>> with Bars(enabled=False) as bars:
        ...     bars("Digits train", 1, 4)
        ...     bars("Digits train is read", 0, 0)
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
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
        self._what = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show how far ``what`` is."""
        if not self.enabled:
            return
        if not total:
            self.console.print(what, highlight=False, markup=False, soft_wrap=True)
            return
        if what != self._what:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._what, self._task = what, self._bar.add_task(what, total=total)
        assert self._task is not None
        self._bar.update(self._task, completed=done)

    def __enter__(self) -> Bars:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
