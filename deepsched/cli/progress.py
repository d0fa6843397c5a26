"""A progress bar on stderr, with the time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from deepsched.cli.console import Console
from deepsched.shortages import thread_errors


class ProgressBar:
    """Progress in seconds of a known total; draws nothing without a Progress."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._task = None if progress is None else progress.add_task("")

    def begin(self, title: str, seconds: float) -> None:
        """Restarts at 0."""
        if self._progress is not None and self._task is not None:
            self._progress.reset(self._task, description=title, total=seconds)

    def describe(self, title: str) -> None:
        """Changes the title."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=title)

    def update(self, seconds: float) -> None:
        """Sets how many seconds have passed."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=seconds)


@contextmanager
def progress_bar(is_quiet: bool) -> Iterator[ProgressBar]:
    """A bar that disappears when the block ends; none if stderr is not a terminal."""
    console = Console(stderr=True)
    if is_quiet or not console.is_terminal:
        yield ProgressBar(None)
        return
    columns = (
        TextColumn("{task.description:<28}", markup=False),
        BarColumn(),
        TimeRemainingColumn(),
    )
    with (
        thread_errors("the thread that draws progress"),
        Progress(*columns, console=console, transient=True) as progress,
    ):
        yield ProgressBar(progress)
