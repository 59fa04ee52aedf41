"""What a run has found, as a page for the terminal, as JSON, as a chart, and as the generated part of docs/performance.md.

It owns the forms. It refuses to measure, and to judge: each group of rows brings its tables and its goals.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chart import Panel, drawn
from measuring import Series, aligned, figure, table, write_json

BEGIN, END = "<!-- written by nox -s bench: begin -->", "<!-- written by nox -s bench: end -->"


@dataclass(frozen=True, slots=True)
class Table:
    """Ways that were measured in turn."""

    title: str
    unit: str
    seen: Mapping[str, Series]
    against: str | None = None

    def shown(self) -> str:
        return table(self.unit, self.seen, against=self.against)


@dataclass(frozen=True, slots=True)
class Grid:
    """Figures of several kinds for each way: one number a cell, a median where there were several."""

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[float | None]]

    def shown(self) -> str:
        cells = [[name, *("" if cell is None else figure(cell) for cell in row)] for name, row in self.rows.items()]
        return aligned(["", *self.columns], cells)


@dataclass(frozen=True, slots=True)
class Goal:
    """One line of the goals: what was asked for, what was found; ``met`` is ``None`` where it could not be measured."""

    what: str
    asked: str
    found: str
    met: bool | None


def at_least(what: str, asked: float, found: float) -> Goal:
    return Goal(what, f"≥ {asked:.3g} ×", f"{figure(found)} ×", found >= asked)


def at_most(what: str, asked: float, found: float, unit: str = "×") -> Goal:
    return Goal(what, f"≤ {asked:g} {unit}", f"{figure(found)} {unit}", found <= asked)


@dataclass(slots=True)
class Findings:
    """What the groups of a run have found so far."""

    about: dict[str, Any]
    tables: list[Table | Grid] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def add(self, *, tables: Sequence[Table | Grid] = (), goals: Sequence[Goal] = (), panels: Sequence[Panel] = ()) -> None:
        self.tables += tables
        self.goals += goals
        self.panels += panels

    def shown(self) -> str:
        about = ", ".join(f"{name} {value}" for name, value in self.about.items())
        parts = [about]
        for one in self.tables:
            parts += [f"**{one.title}**", one.shown()]
        if self.failed:
            parts.append(f"Without {', '.join(self.failed)}, which failed.")
        if self.goals:
            parts += ["**Goals**", _goals(self.goals)]
        return "\n\n".join(parts)

    def write(self, folder: Path) -> None:
        """Write ``performance.json`` and, if there is something to draw, ``performance.svg`` into ``folder``."""
        tables = {one.title: {**_fields(one), "title": one.title} for one in self.tables}
        goals = [asdict(goal) for goal in self.goals]
        write_json(folder / "performance.json", {"about": self.about, "tables": tables, "goals": goals})
        if self.panels:
            (folder / "performance.svg").write_text(drawn(self.panels))

    def write_page(self, page: Path) -> None:
        """Put what was found between the two marks of ``page``; the rest of it stays as it is."""
        chart = "![Drains, jobs a second](performance.svg)\n\n" if self.panels else ""
        generated = f"{BEGIN}\n\n{chart}{self.shown()}\n\n{END}"
        text, changed = re.subn(
            f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: generated, page.read_text(), flags=re.DOTALL
        )
        if changed != 1:
            raise ValueError(f"{page} must hold the marks {BEGIN} and {END} once")
        page.write_text(text)


def _fields(one: Table | Grid) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__slots__}


def _goals(goals: Sequence[Goal]) -> str:
    words = {True: "met", False: "**not met**", None: "not measured"}
    return aligned(["", "asked", "found", ""], [[goal.what, goal.asked, goal.found, words[goal.met]] for goal in goals])
