"""What every benchmark here shares: a server that waits for the disk, runs taken in turn, medians with their ranges.

It owns how things are measured and shown. It refuses to know what is measured. A script says ``from measuring import …``
and is run as ``python benchmarks/script.py``.

    with server() as postgres, fresh_engine(postgres) as engine:
        seen = interleaved(5, {"add_all": lambda: rate(…), "enqueue_many": lambda: rate(…)})
    print(table("jobs/s", seen))
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy
from sqlalchemy import Engine, create_engine, text

from sa_proletarian import metadata
from sa_proletarian.embedded import EmbeddedPostgres

DURABLE = {"fsync": True, "synchronous_commit": True, "full_page_writes": True}


@dataclass(frozen=True, slots=True)
class Series:
    """What one way gave, run for run."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def least(self) -> float:
        return min(self.values)

    @property
    def most(self) -> float:
        return max(self.values)

    def over(self, other: Series) -> float:
        """How many times ``other`` this is: the median of the ratios, run for run, of two ways that were taken in turn."""
        return statistics.median(mine / theirs for mine, theirs in zip(self.values, other.values, strict=True))


def percentile(values: Iterable[float], percent: float) -> float:
    """The value that so many percent of ``values`` do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(1, math.ceil(len(ordered) * percent / 100)) - 1]


@contextmanager
def server(version: int = 18, *, settings: Mapping[str, str | int | bool] | None = None) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL of our own, by TCP, that waits for the disk as a production server does; gone after the block."""
    with EmbeddedPostgres(version, tcp=True, settings={**DURABLE, **(settings or {})}) as postgres:
        yield postgres


@contextmanager
def fresh_engine(postgres: EmbeddedPostgres, database: str = "bench", **options: Any) -> Iterator[Engine]:
    """An engine on a database that was not there before and has our tables; the database goes after the block."""
    administration = create_engine(postgres.url(), isolation_level="AUTOCOMMIT")
    engine = create_engine(postgres.url(database), **options)
    with administration.connect() as connection:
        connection.execute(text(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)'))
        connection.execute(text(f'CREATE DATABASE "{database}"'))
    try:
        metadata.create_all(engine)
        yield engine
    finally:
        engine.dispose()
        with administration.connect() as connection:
            connection.execute(text(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)'))
        administration.dispose()


def emptied(engine: Engine, *tables: str) -> None:
    """Empty our tables and ``tables``, and leave nothing for autovacuum or a checkpoint to do during the next run."""
    names = ["proletarian_job", "proletarian_archived_job", *tables]
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"TRUNCATE {', '.join(names)}"))
        connection.execute(text("CHECKPOINT"))


def interleaved(
    runs: int,
    ways: Mapping[str, Callable[[], float]],
    *,
    warm_up: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Series]:
    """Run every way once after the other, ``runs`` times over, so that a slow moment of the machine meets all of them.

    A way gives its own figure, so that it decides what its clock sees. ``warm_up`` puts one more round first, uncounted.
    """
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-1 if warm_up else 0, runs):
        for name, way in ways.items():
            value = way()
            tell(f"{'warm-up' if number < 0 else f'run {number + 1}/{runs}'}: {name}: {value:,.4g}")
            if number >= 0:
                seen[name].append(value)
    return {name: Series(tuple(values)) for name, values in seen.items()}


def alternating(runs: int, count: int, ways: Mapping[str, Callable[[], object]]) -> dict[str, Series]:
    """Call every way ``count`` times a run, call by call in turn: for short calls whose ratio must be known closely.

    Gives calls a second. One more run goes first, uncounted.
    """
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-1, runs):
        spent = dict.fromkeys(ways, 0.0)
        for call in range(count):
            for name in list(ways) if call % 2 else reversed(ways):
                begun = time.perf_counter()
                ways[name]()
                spent[name] += time.perf_counter() - begun
        for name in ways if number >= 0 else ():
            seen[name].append(count / spent[name])
    return {name: Series(tuple(values)) for name, values in seen.items()}


def figure(value: float) -> str:
    """A number as the tables show it: three figures that count, no more."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def table(unit: str, seen: Mapping[str, Series], *, against: str | None = None) -> str:
    """The ways with their medians and ranges; with ``against``, how many times that way each of them is."""
    head = ["", f"{unit}: median", "least", "most", *([f"× {against}"] if against else [])]
    rows = []
    for name, series in seen.items():
        ratio = [figure(series.over(seen[against]))] if against else []
        rows.append([name, figure(series.median), figure(series.least), figure(series.most), *ratio])
    return aligned(head, rows)


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns that line up; also a table of Markdown."""
    widths = [max(len(line[place]) for line in (head, *rows)) for place in range(len(head))]
    cells = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in (head, *rows)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (cells[0], rule, *cells[1:]))


def machine(engine: Engine) -> dict[str, str | int]:
    """What a reader must know of the machine to compare figures."""
    with engine.connect() as connection:
        version = str(connection.scalar(text("SHOW server_version")))
    return {
        "cores": os.cpu_count() or 0,
        "postgresql": version,
        "python": platform.python_version(),
        "sqlalchemy": sqlalchemy.__version__,
        "psycopg": psycopg.__version__,
        "system": platform.system(),
    }


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write ``document`` so that two runs of the same benchmark can be compared line by line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, default=_plain, ensure_ascii=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Series):
        return {"median": value.median, "least": value.least, "most": value.most, "runs": list(value.values)}
    raise TypeError(f"{value!r} does not go into JSON")
