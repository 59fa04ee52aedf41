"""Pruning: the rows of an archive that have become old are deleted, a few blocks of the table at a time.

It owns the statements, and the loop that commits each batch by itself. There is no index on ``finished_at``, which every
settling would have to keep (decision 14): the table is read once from its first block to its last, by ``ctid``, so that
a batch is bounded whatever is in it, and how far it is can be said. It refuses to touch the job table, and to wait for
anybody for long.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import datetime, timedelta
from threading import Event
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    Interval,
    Text,
    bindparam,
    cast,
    delete,
    func,
    inspect,
    literal_column,
    select,
    text,
)
from sqlalchemy.types import UserDefinedType

from . import arguments, clock
from .dialects import Trouble, statement_now, trouble
from .models import checked_name
from .outcomes import Status
from .quoting import qualified

Progress = Callable[[int, float], None]
"""``(rows, share)``: how many rows so far, and which share of the table has been looked at, from 0 to 1."""
Pause = Callable[[float], bool]
"""``(seconds) -> whether to end``: called after each batch with the time that it took."""

LONGEST_AGE = timedelta(days=700_000)
FIRST_BLOCKS, MOST_BLOCKS = 64, 2048
QUICK, SLOW = 0.025, 0.1
PATIENCE = 10
LIMITS = {"synchronous_commit": "off", "lock_timeout": "500ms", "statement_timeout": "30s"}
WAITING = (Trouble.LOCK_TIMEOUT, Trouble.CANCELLED, Trouble.CONFLICT)

_BLOCKS = text("""
    SELECT CAST(COALESCE(max(pg_relation_size(leaf)), 0) / CAST(current_setting('block_size') AS bigint) AS bigint)
      FROM (SELECT CAST(:name AS regclass)
             UNION ALL SELECT relid FROM pg_partition_tree(CAST(:name AS regclass)) WHERE isleaf) AS leaves (leaf)
""")


class _Tid(UserDefinedType[str]):
    """The place of a row in its table: ``(block,number)``."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "TID"


class Pruning:
    """The verbs on the old rows of one archive; each takes a connection, and neither begins nor commits.

    :param queue: only rows of this queue.
    :param status: only rows that ended so.
    """

    def __init__(self, archived_model: Any, *, queue: str | None = None, status: Status | None = None) -> None:
        self._table: Any = archived_model.__table__
        columns = inspect(archived_model).columns
        self._finished_at: Any = columns["finished_at"]
        first, end = (cast(bindparam(name, type_=Text()), _Tid()) for name in ("first", "end"))
        ctid: Any = literal_column("ctid", _Tid())
        old = [ctid >= first, ctid < end, self._finished_at < bindparam("before", type_=self._finished_at.type)]
        if queue is not None:
            old.append(columns["queue"] == queue)
        if status is not None:
            old.append(columns["status"] == str(status))
        self._delete: Any = delete(self._table).where(*old)
        self._count: Any = select(func.count()).select_from(self._table).where(*old)

    def blocks(self, connection: Connection) -> int:
        """Give how many blocks the table has; of a partitioned one, the most that a partition has."""
        schemas: Any = connection.get_execution_options().get("schema_translate_map") or {}
        name = qualified(schemas.get(self._table.schema, self._table.schema), self._table.name)
        count: int = connection.execute(_BLOCKS, {"name": name}).scalar_one()
        return count

    def cutoff(self, connection: Connection, older_than: timedelta) -> datetime:
        """Give the instant before which a row is old, by the database's clock."""
        age = bindparam("age", type_=Interval())
        at: datetime = connection.execute(select(statement_now() - age), {"age": min(older_than, LONGEST_AGE)}).scalar_one()
        return at

    def prune(self, connection: Connection, before: datetime, first: int, end: int) -> int:
        """Delete the rows of the blocks from ``first`` to before ``end`` that finished before; give how many."""
        count: int = connection.execute(self._delete, _between(before, first, end)).rowcount
        return count

    def count(self, connection: Connection, before: datetime, first: int, end: int) -> int:
        """Give how many rows ``prune`` would delete."""
        count: int = connection.execute(self._count, _between(before, first, end)).scalar_one()
        return count


def sweep(
    engine: Engine,
    pruning: Pruning,
    older_than: timedelta,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
    pause: Pause | None = None,
) -> int:
    """Prune a whole archive, each batch in a transaction of its own, and give how many rows were deleted.

    A batch has as many blocks as can be done in about 25 to 100 ms, and is followed by as long a pause, so that workers
    have the better part of the server. One that has to wait for a lock is tried again, with
    fewer blocks each time; in the end it raises what it met.
    """
    with engine.begin() as connection:
        before, blocks = pruning.cutoff(connection, older_than), pruning.blocks(connection)
    verb = pruning.count if dry_run else pruning.prune
    pause = pause or Event().wait
    rows, first, size, failures = 0, 0, FIRST_BLOCKS, 0
    while first < blocks:
        started = clock.monotonic()
        try:
            with limited(engine) as connection:
                count = verb(connection, before, first, min(first + size, blocks))
        except Exception as error:
            failures += 1
            if trouble(error) not in WAITING or failures > PATIENCE:
                raise
            size = max(1, size // 4)
            if pause(0.0):
                break
            continue
        rows += count
        first, failures, spent = first + size, 0, clock.monotonic() - started
        if progress is not None:
            progress(rows, min(1.0, first / blocks))
        if pause(spent):
            break
        size = _next_size(size, spent)
    return rows


def prune(
    engine: Engine,
    archived_model: Any,
    older_than: Any,
    *,
    queue: Any,
    status: Any,
    dry_run: bool,
    progress: Any,
) -> int:
    """Check the arguments of ``jobs.prune``, then sweep by ``engine``, which is disposed of."""
    age = arguments.span("older_than", older_than, timedelta(0))
    pruning = Pruning(
        archived_model,
        queue=None if queue is None else checked_name("queue", queue),
        status=None if status is None else checked_status(status),
    )
    arguments.callable_or_none("progress", progress)
    try:
        return sweep(engine, pruning, age, dry_run=bool(dry_run), progress=progress)
    finally:
        engine.dispose()


def checked_status(value: object) -> Status:
    """Give the status that is called ``value``."""
    if not isinstance(value, str):
        raise TypeError(f"status must be a text, got {value!r}")
    if value not in [*Status]:
        raise ValueError(f"status must be one of {', '.join(Status)}, got {value!r}")
    return Status(value)


@contextmanager
def limited(engine: Engine) -> Generator[Connection, None, None]:
    """Give a connection in a transaction that waits neither for the disk, nor for others for long."""
    settings = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in LIMITS.items())
    with engine.begin() as connection:
        connection.execute(text(f"SELECT {settings}"))
        yield connection


def _between(before: datetime, first: int, end: int) -> dict[str, Any]:
    return {"before": before, "first": f"({first},0)", "end": f"({end},0)"}


def _next_size(size: int, spent: float) -> int:
    if spent < QUICK:
        return min(MOST_BLOCKS, size * 2)
    return max(1, size // 2) if spent > SLOW else size
