"""The demo's table on a terminal: a row for each job, redrawn in place. It needs ``rich``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self, TextIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table as Grid
from rich.text import Text

from . import clock
from .demo_story import Attempt, Scene, State, Tale

_COLUMNS = {"job": 3, "attempt 1": 16, "attempt 2": 16, "attempt 3": 16, "state": 14}
_WIDTH = 80
_LEGEND = " [yellow]▶[/] running   [green]✓[/] succeeded   [red]✗[/] failed   [dim]→ retry_after[/]"
_COLORS = {State.WAITING: "dim", State.RUNNING: "yellow", State.SUCCESS: "bold green", State.FAILURE: "bold red"}


def table_on(stream: TextIO) -> Table | None:
    """Give a table on the terminal ``stream``, unless that is too narrow, cannot redraw, or has no such characters."""
    console = Console(file=stream)
    fits = console.width >= _WIDTH and console.encoding.startswith("utf") and not console.is_dumb_terminal
    return Table(console) if fits else None


class Table:
    """A row for each job, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def tell(self, line: str) -> None:
        """Leave out the line: the table shows what it says."""

    def show(self, scene: Scene) -> None:
        """Draw everything anew."""
        self._live.update(Group(*_parts(scene)), refresh=True)


def _parts(scene: Scene) -> Iterator[RenderableType]:
    yield _grid(scene.tales)
    yield Text.from_markup(_LEGEND)
    yield Text.from_markup(f" rows in the job table: [bold]{scene.waiting}[/], in the archive: [bold]{scene.archived}[/]")
    for report in scene.reports:
        yield Text(f" on_failed: {report}", style="red")


def _grid(tales: list[Tale]) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, header_style="bold")
    for heading, width in _COLUMNS.items():
        grid.add_column(heading, min_width=width, justify="right" if heading == "job" else "left")
    for tale in tales:
        attempts = [_attempt(attempt) for attempt in tale.attempts]
        grid.add_row(str(tale.number), *attempts, *[""] * (3 - len(attempts)), _state(tale))
    return grid


def _attempt(attempt: Attempt) -> str:
    if attempt.ended is None:
        return f"[yellow]▶ {attempt.span:.1f} s[/]"
    if attempt.retry_after is None:
        return f"[green]✓ {attempt.span:.1f} s[/]"
    return f"[red]✗ {attempt.span:.1f} s[/] [dim]→ {attempt.retry_after} ms[/]"


def _state(tale: Tale) -> str:
    if tale.state is State.RETRYING:
        return f"[cyan]again in {max(0.0, tale.due - clock.monotonic()):.1f} s[/]"
    return f"[{_COLORS[tale.state]}]{tale.state}[/]"
