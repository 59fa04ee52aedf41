"""How a migration waits for a lock: briefly, and again, so that nobody waits long behind it.

It owns ``lock_timeout``, the savepoint around the work, the pauses, and what is said when patience is at its end. It
refuses to know what the work is. A statement that waits for a lock makes everybody wait who comes after it, so one try
waits for ``lock_timeout`` at most, gives back every lock it had, and lets the others pass before the next.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

from alembic.operations import Operations
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from sa_proletarian import clock
from sa_proletarian.dialects import sqlstate

LOCK_TIMEOUT = timedelta(milliseconds=200)
RETRIES = 100

_LONGEST_PAUSE = 5.0
_BLOCKED = {"55P03", "40P01"}  # a lock was not had in time; a deadlock
_NO_TRANSACTION = "25P01"

log: logging.Logger = logging.getLogger(__name__)

_HOLDERS = text("""
    SELECT DISTINCT a.pid, a.xact_start, coalesce(nullif(a.application_name, ''), 'no application_name') AS name,
           coalesce(a.state, 'unknown') AS state, coalesce(to_char(a.xact_start, 'HH24:MI:SS'), 'unknown') AS since
      FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
     WHERE l.relation = ANY(SELECT to_regclass(name)::oid FROM unnest(string_to_array(:names, chr(10))) AS name)
       AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND l.granted AND l.pid <> pg_backend_pid()
     ORDER BY a.xact_start LIMIT 5
""")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long one try waits for a lock, and how many more tries there are."""

    lock_timeout: timedelta = LOCK_TIMEOUT
    retries: int = RETRIES

    def __post_init__(self) -> None:
        if not isinstance(self.lock_timeout, timedelta):
            raise TypeError(f"lock_timeout must be a timedelta, got {self.lock_timeout!r}")
        if not timedelta(milliseconds=1) <= self.lock_timeout <= timedelta(days=1):
            raise ValueError(f"lock_timeout must be between a millisecond and a day, got {self.lock_timeout!r}")
        if type(self.retries) is not int:
            raise TypeError(f"retries must be an int, got {self.retries!r}")
        if self.retries < 0:
            raise ValueError(f"retries must not be negative, got {self.retries}")

    @property
    def setting(self) -> str:
        """The span as PostgreSQL's setting takes it."""
        return f"{self.lock_timeout // timedelta(milliseconds=1)}ms"

    def pause(self) -> float:
        """Give the seconds to wait before the next try: by chance, and longer than the try itself."""
        return min(self.lock_timeout.total_seconds() * random.uniform(1, 3), _LONGEST_PAUSE)


def patiently(op: Operations, patience: Patience, tables: Iterable[str], work: Callable[[], None]) -> None:
    """Do ``work``, all of it or nothing; ``CommandError`` when one of ``tables`` could not be locked in any try.

    With ``--sql`` it is tried once; on other databases than PostgreSQL it is simply done.
    """
    context = op.get_context()
    if context.dialect.name != "postgresql":
        work()
    elif context.as_sql:
        op.execute(f"SET LOCAL lock_timeout = '{patience.setting}'")
        work()
        op.execute("SET LOCAL lock_timeout TO DEFAULT")
    else:
        _try_often(op.get_bind(), patience, "\n".join(tables), work)


def _try_often(connection: Connection, patience: Patience, tables: str, work: Callable[[], None]) -> None:
    started = clock.monotonic()
    for tries in range(1, patience.retries + 2):
        blocked = _try(connection, patience, work)
        if blocked is None:
            return
        holders = connection.execute(_HOLDERS, {"names": tables}).all()
        if tries > patience.retries:
            _give_up(patience, tables, holders, clock.monotonic() - started, blocked)
        log.warning("no lock on %s within %s, try %d of %d%s", *_named(tables), patience.setting, tries,
                    patience.retries + 1, _described(holders))  # fmt: skip
        time.sleep(patience.pause())


def _try(connection: Connection, patience: Patience, work: Callable[[], None]) -> DBAPIError | None:
    """Do the work inside a savepoint; give the error if a lock was not had, with all undone and every lock given back."""
    try:
        with connection.begin_nested():
            before = connection.scalar(text("SELECT current_setting('lock_timeout')"))
            connection.execute(text(f"SET LOCAL lock_timeout = '{patience.setting}'"))
            work()
            connection.execute(text("SELECT set_config('lock_timeout', :before, true)"), {"before": before})
    except DBAPIError as error:
        if sqlstate(error) == _NO_TRANSACTION:
            raise CommandError(
                "op.proletarian_migrate needs a transaction, but this connection is in AUTOCOMMIT: "
                "let env.py connect without isolation_level='AUTOCOMMIT'"
            ) from error
        if sqlstate(error) not in _BLOCKED:
            raise
        return error
    return None


def _give_up(patience: Patience, tables: str, holders: Any, seconds: float, blocked: DBAPIError) -> NoReturn:
    raise CommandError(
        f"{_named(tables)[0]} could not be locked: not within {patience.setting} in any of {patience.retries + 1} tries "
        f"({seconds:.0f} s). A lock is held by a running job, or by another open transaction{_described(holders)}. "
        "Nothing was changed. Stop the workers, or wait for the job, or end that transaction "
        f"(SELECT pg_terminate_backend({holders[0].pid if holders else 'pid'})), and run the migration again; "
        "retries= waits for more tries, a longer lock_timeout= makes enqueues wait as long."
    ) from blocked


def _named(tables: str) -> tuple[str]:
    return (tables.replace("\n", ", "),)


def _described(holders: Any) -> str:
    return "".join(f"; pid {row.pid} ({row.name}, {row.state}, since {row.since})" for row in holders)
