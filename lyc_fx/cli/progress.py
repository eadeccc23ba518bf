"""Progress on stderr for anything that takes longer than a second. Nothing is shown if stderr is not a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_SHOWN = 32
"""How many characters of a weight's name are shown, from its end"""
_DELAY = 1.0
"""Seconds before anything is shown"""


@contextmanager
def working(text: str, *, quiet: bool = False) -> Iterator[None]:
    """Show a spinner while something of unknown length runs."""
    with _later(quiet, SpinnerColumn(), _text(), TimeElapsedColumn()) as progress:
        progress.add_task(text, total=None)
        yield


@contextmanager
def counting_bytes(text: str, total: int | None, *, quiet: bool = False) -> Iterator[Callable[[str, int], None]]:
    """Show a bar with bytes and rate. Yields a function to call with a name and a number of further bytes done."""
    with _later(
        quiet, _text(), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    ) as progress:
        task = progress.add_task(text, total=total)

        def done(name: str, size: int) -> None:
            progress.update(task, advance=size, description=f"{text} {name[-_SHOWN:]:{_SHOWN}}")

        yield done


@contextmanager
def counting(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar over a number of items. Yields a function to call with how many more are done."""
    with _later(False, _text(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task(text, total=total)
        yield lambda count: progress.advance(task, count)


def _text() -> ProgressColumn:
    return TextColumn("{task.description}")


@contextmanager
def _later(quiet: bool, *columns: ProgressColumn) -> Iterator[Progress]:
    console = Console(stderr=True)
    progress = Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)
    timer = Timer(_DELAY, progress.start)
    timer.daemon = True
    timer.start()
    try:
        yield progress
    finally:
        timer.cancel()
        timer.join()
        progress.stop()
