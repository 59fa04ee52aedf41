"""Retention: a worker prunes its archive in the background, with a thread and a connection of its own.

It owns when a pass is due, and which of several workers makes it: that is written down in the worker table, so that a
restart begins no new one, and no lock is needed that a pooler would lose. It refuses to stand in the way of work: it is
at it for a tenth of the time, waits a moment for a lock and no longer, and what it meets becomes an event.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Engine, Interval, bindparam, delete, false
from sqlalchemy.dialects.postgresql import insert

from . import events
from .dialects import statement_now, trouble
from .pruning import WAITING, Pruning, limited, sweep
from .runs import Stopping
from .tables import NAME_LIMIT

PRUNE = "prune"
"""The ``kind`` of the rows that say when a pass began."""
SHORTEST, LONGEST = timedelta(seconds=1), timedelta(days=1)
LONGEST_LOOK = 300.0
REST = 9
"""So many times as long as a batch took, nothing is done after it."""


class Passes:
    """The verbs on a pass: begin it, if none was begun for so long, and give it back.

    A job model without a worker table has nowhere to write it down: there, every worker makes its own passes.
    """

    def __init__(self, job_model: Any, archived_model: Any, older_than: timedelta) -> None:
        self._table: Any = getattr(job_model, "__worker_table__", None)
        # of its own for each span: a worker that keeps more must not take the turn of one that keeps less
        self._subject = f"{archived_model.__table__.name} {older_than.total_seconds():.0f}"[-NAME_LIMIT:]
        if self._table is not None:
            self._begin: Any = self._beginning()
            row = self._table.c
            self._give_back: Any = delete(self._table).where(row.kind == PRUNE, row.subject == self._subject)

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
        values = {"kind": PRUNE, "subject": self._subject, "worker_id": "", "idle": false(), "detail": None}
        statement = insert(self._table).values(**values, started_at=now, last_seen_at=now)
        is_due = row.last_seen_at <= now - bindparam("interval", type_=Interval())
        return statement.on_conflict_do_update(
            index_elements=[*self._table.primary_key], set_={"last_seen_at": now}, where=is_due
        ).returning(row.subject)


class Retention:
    """A thread that keeps an archive pruned until ``stopping``.

    A pass is made after each tenth of ``older_than``, but at least once a day.

    :param make_engine: makes an engine of its own, of one connection, which is there for a look and the pass that follows.
    :param jobs: the app's ``Proletarian``.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        jobs: Any,
        older_than: timedelta,
        *,
        emit: events.Emitter,
        stopping: Stopping,
        name: str,
    ) -> None:
        self._make_engine = make_engine
        self._passes = Passes(jobs.job_model, jobs.archived_model, older_than)
        self._pruning = Pruning(jobs.archived_model)
        self._older_than = older_than
        self._interval = min(LONGEST, max(SHORTEST, older_than / 10))
        self._emit = emit
        self._stopping = stopping
        self._thread = threading.Thread(target=self._run, name=f"{name}-retention", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait so long for the end; a thread that hangs in the network is left behind."""
        self._thread.join(seconds)

    def _run(self) -> None:
        look = min(LONGEST_LOOK, self._interval.total_seconds())
        while not self._stopping.is_set():
            engine = self._make_engine()
            try:
                self._look(engine)
            except Exception as error:
                if trouble(error) not in WAITING:
                    self._emit(events.PruningFailed, error=error)
            with suppress(Exception):
                engine.dispose()
            self._stopping.wait(look * random.uniform(0.9, 1.1))

    def _look(self, engine: Engine) -> None:
        """Make a pass, if it is due and nobody else makes it."""
        with limited(engine) as connection:
            is_due = self._passes.begin(connection, self._interval)
        if not is_due:
            return
        rows = sweep(engine, self._pruning, self._older_than, pause=self._rest)
        if self._stopping.is_set():
            with limited(engine) as connection:
                self._passes.give_back(connection)
        if rows:
            self._emit(events.ArchivePruned, rows=rows)

    def _rest(self, spent: float) -> bool:
        return self._stopping.wait(REST * spent)
