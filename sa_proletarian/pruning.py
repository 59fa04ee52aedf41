"""Pruning: the rows of an archive that have become old are deleted, a few blocks of the table at a time.

It owns the statements, the loop that commits each batch by itself, and who of several workers begins. There is no index on
``finished_at``, which every settling would have to keep (decision 14): the table is read once from its first block to its
last, by ``ctid``, so that a batch is bounded whatever is in it, and how far it is can be said. It refuses to touch the job
table, and to wait for anybody for long.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
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
    false,
    func,
    inspect,
    literal_column,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.types import UserDefinedType

from . import arguments, clock
from .dialects import Trouble, statement_now, trouble
from .models import checked_name
from .outcomes import Status
from .quoting import qualified
from .tables import NAME_LIMIT

Progress = Callable[[int, float], None]
"""``(rows, share)``: how many rows so far, and which share of the table has been looked at, from 0 to 1."""
Pause = Callable[[float], bool]
"""``(seconds) -> whether to end``: called after each batch with the time that it took."""

LONGEST_AGE = timedelta(days=700_000)
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


@dataclass(frozen=True, slots=True)
class Part:
    """What a batch came to.

    :ivar count: how many rows.
    :ivar next: where the next batch begins; ``None`` after the last one.
    :ivar share: of the table that has been looked at, between 0 and 1.
    """

    count: int
    next: Any
    share: float


class Pruning:
    """The verbs on the old rows of one archive; each takes a connection, and neither begins nor commits.

    :cvar first_size: how large the first batch is, and ``most_size`` the largest: in blocks of the table.
    :param queue: only rows of this queue.
    :param status: only rows that ended so.
    """

    first_size = 64
    most_size = 2048

    def __init__(self, archived_model: Any, *, queue: str | None = None, status: Status | None = None) -> None:
        self._table: Any = archived_model.__table__
        columns = inspect(archived_model).columns
        self._finished_at: Any = columns["finished_at"]
        old = [self._finished_at < bindparam("before", type_=self._finished_at.type)]
        if queue is not None:
            old.append(columns["queue"] == queue)
        if status is not None:
            old.append(columns["status"] == str(status))
        self._statements(old)

    def _statements(self, old: list[Any]) -> None:
        first, end = (cast(bindparam(name, type_=Text()), _Tid()) for name in ("first", "end"))
        ctid: Any = literal_column("ctid", _Tid())
        among = [*old, ctid >= first, ctid < end]
        self._delete: Any = delete(self._table).where(*among)
        self._count: Any = select(func.count()).select_from(self._table).where(*among)

    @contextmanager
    def limited(self, engine: Engine) -> Generator[Connection, None, None]:
        """Give a connection in a transaction that waits neither for the disk, nor for others for long."""
        with engine.begin() as connection:
            self.limit(connection)
            yield connection

    def limit(self, connection: Connection) -> None:
        """Set for how long the transaction waits, and for what."""
        settings = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in LIMITS.items())
        connection.execute(text(f"SELECT {settings}"))

    def extent(self, connection: Connection) -> int:
        """Give how large the table is, in the unit of sizes."""
        return self.blocks(connection)

    def begin(self, extent: int) -> Any:
        """Give where the first batch begins; ``None`` where there is nothing."""
        return 0 if extent else None

    def part(self, connection: Connection, before: Any, place: Any, size: int, extent: int, *, dry_run: bool) -> Part:
        """Delete, or with ``dry_run`` count, the old rows of the batch that begins at ``place``."""
        end = min(place + size, extent)
        count = (self.count if dry_run else self.prune)(connection, before, place, end)
        return Part(count, end if end < extent else None, end / extent)

    def blocks(self, connection: Connection) -> int:
        """Give how many blocks the table has; of a partitioned one, the most that a partition has."""
        schemas: Any = connection.get_execution_options().get("schema_translate_map") or {}
        name = qualified(schemas.get(self._table.schema, self._table.schema), self._table.name)
        count: int = connection.execute(_BLOCKS, {"name": name}).scalar_one()
        return count

    def cutoff(self, connection: Connection, older_than: timedelta) -> datetime | None:
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


class Passes:
    """The verbs on a pass: begin it, if none was begun for so long, and give it back.

    :cvar kind: of the rows that say when a pass began.

    A job model without a worker table has nowhere to write it down: there, every worker makes its own passes.
    """

    kind = "prune"

    def __init__(self, job_model: Any, archived_model: Any, older_than: timedelta) -> None:
        self._table: Any = getattr(job_model, "__worker_table__", None)
        # of its own for each span: a worker that keeps more must not take the turn of one that keeps less
        self._subject = f"{archived_model.__table__.name} {older_than.total_seconds():.0f}"[-NAME_LIMIT:]
        if self._table is not None:
            self._begin: Any = self._beginning()
            row = self._table.c
            self._give_back: Any = delete(self._table).where(row.kind == self.kind, row.subject == self._subject)

    def begin(self, connection: Connection, interval: timedelta) -> bool:
        """Say whether the caller shall make a pass now; nobody else is told so within ``interval``."""
        if self._table is None:
            return True
        return bool(connection.execute(self._begin, {"interval": interval}).all())

    def give_back(self, connection: Connection) -> None:
        """Let somebody else make the pass that the caller has begun."""
        if self._table is not None:
            connection.execute(self._give_back)

    def _beginning(self) -> Any:
        row, now = self._table.c, statement_now()
        statement = insert(self._table).values(**self._values(), detail=None, started_at=now, last_seen_at=now)
        is_due = row.last_seen_at <= now - bindparam("interval", type_=Interval())
        return statement.on_conflict_do_update(
            index_elements=[*self._table.primary_key], set_={"last_seen_at": now}, where=is_due
        ).returning(row.subject)

    def _values(self) -> dict[str, Any]:
        return {"kind": self.kind, "subject": self._subject, "worker_id": "", "idle": false()}


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
        before, extent = pruning.cutoff(connection, older_than), pruning.extent(connection)
    place = pruning.begin(extent)
    pause = pause or Event().wait
    rows, size, failures = 0, pruning.first_size, 0
    while place is not None:
        started = clock.monotonic()
        try:
            with pruning.limited(engine) as connection:
                part = pruning.part(connection, before, place, size, extent, dry_run=dry_run)
        except Exception as error:
            failures += 1
            if trouble(error) not in WAITING or failures > PATIENCE:
                raise
            size = max(1, size // 4)
            if pause(0.0):
                break
            continue
        rows += part.count
        place, failures, spent = part.next, 0, clock.monotonic() - started
        if progress is not None:
            progress(rows, part.share)
        if pause(spent):
            break
        size = _next_size(size, spent, pruning.most_size)
    return rows


def checked(
    kind: type[Pruning], archived_model: Any, *, queue: object = None, status: object = None, progress: object = None
) -> Pruning:
    """Check the arguments of ``jobs.prune``; give the verbs for them."""
    arguments.callable_or_none("progress", progress)
    return kind(
        archived_model,
        queue=None if queue is None else checked_name("queue", queue),
        status=None if status is None else checked_status(status),
    )


def checked_status(value: object) -> Status:
    """Give the status that is called ``value``."""
    if not isinstance(value, str):
        raise TypeError(f"status must be a text, got {value!r}")
    if value not in [*Status]:
        raise ValueError(f"status must be one of {', '.join(Status)}, got {value!r}")
    return Status(value)


def _between(before: datetime, first: int, end: int) -> dict[str, Any]:
    return {"before": before, "first": f"({first},0)", "end": f"({end},0)"}


def _next_size(size: int, spent: float, most: int) -> int:
    if spent < QUICK:
        return min(most, size * 2)
    return max(1, size // 2) if spent > SLOW else size
