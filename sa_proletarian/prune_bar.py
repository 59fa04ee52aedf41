"""How far a pruning is, for people: a bar on a terminal that can draw one (it needs ``rich``), else a line now and then."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TextIO

Progress = Callable[[int, float], None]


@contextmanager
def shown(stream: TextIO, *, plain: bool = False) -> Generator[Progress, None, None]:
    """Give what is to be called as ``(rows, share)``, as long as the context lasts."""
    bar = None if plain or not stream.isatty() else _bar(stream)
    if bar is None:
        yield _lines(stream)
        return
    with bar as progress:
        yield progress


def _lines(stream: TextIO) -> Progress:
    """Write a line for each tenth of the table."""
    said = 0

    def tell(rows: int, share: float) -> None:
        nonlocal said
        tenths = int(share * 10)
        if said < tenths < 10:
            said = tenths
            print(f"{tenths * 10} % looked at, {rows} rows so far", file=stream, flush=True)

    return tell


def _bar(stream: TextIO) -> _Bar | None:
    return None if find_spec("rich") is None else _Bar(stream)


class _Bar:
    """A bar that rich draws, with the number of rows beside it."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console  # noqa: PLC0415 (an extra)
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415

        columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rows]} rows"), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(file=stream), transient=True)
        self._task = self._progress.add_task("", total=1.0, rows=0)

    def __enter__(self) -> Progress:
        self._progress.start()
        return self._tell

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _tell(self, rows: int, share: float) -> None:
        self._progress.update(self._task, completed=share, rows=rows)
