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

from sqlalchemy import Engine

from . import events
from .dialects import trouble
from .pruning import WAITING, sweep
from .runs import Stopping
from .verbs import passes_for, pruning_for

SHORTEST, LONGEST = timedelta(seconds=1), timedelta(days=1)
LONGEST_LOOK = 300.0
REST = 9
"""So many times as long as a batch took, nothing is done after it."""


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
        dialect = make_engine().dialect.name
        self._passes = passes_for(dialect, jobs.job_model, jobs.archived_model, older_than)
        self._pruning = pruning_for(dialect, jobs.archived_model)
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
        with self._pruning.limited(engine) as connection:
            is_due = self._passes.begin(connection, self._interval)
        if not is_due:
            return
        rows = sweep(engine, self._pruning, self._older_than, pause=self._rest)
        if self._stopping.is_set():
            with self._pruning.limited(engine) as connection:
                self._passes.give_back(connection)
        if rows:
            self._emit(events.ArchivePruned, rows=rows)

    def _rest(self, spent: float) -> bool:
        return self._stopping.wait(REST * spent)
